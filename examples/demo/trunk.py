"""The demo's trunk: tokenizer, open_clip folder, and the token features that verifier heads read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import open_clip
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

IMAGE_SIZE = 160
GRID = 10
PATCHES = GRID * GRID
WIDTH = 96
CONTEXT_LENGTH = 24
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
VOCABULARY = 512

MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": WIDTH,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": IMAGE_SIZE,
        "timm_model_name": "test_vit3",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": VOCABULARY,
        "hf_tokenizer_name": "tokenizer",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": WIDTH,
        "heads": 4,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
}
PREPROCESSING = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


def create_folder(folder: Path, sentences: Iterable[str]) -> None:
    """Writes configuration and tokenizer, all an open_clip folder needs but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    train_tokenizer(sentences).save_pretrained(folder)
    record = folder / "tokenizer_config.json"
    settings = json.loads(record.read_text(encoding="utf-8"))
    settings.pop("backend", None)  # written by transformers 5 only; with it, version 4 cannot load the folder
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    record.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def train_tokenizer(sentences: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding with SigLIP 2's habits: pad 0, eos 1, no bos, eos appended, text lower-cased."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789'"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS, UNKNOWN],
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="right",
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


class Features:
    """The features of a published verifier trunk, caught by hooks.

    Patches are the output of the last vision block's attention sub-module; text is the output of the text
    transformer, sent through ``ln_final`` and ``text_projection`` token by token. Both have rows of length one.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.caught: dict[str, Tensor] = {}
        model.visual.trunk.blocks[-1].attn.register_forward_hook(self._keep("patches"))
        model.text.transformer.register_forward_hook(self._keep("text"))

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.caught[name] = output

        return hook

    def patches(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, P, D)."""
        self.model.encode_image(images)
        caught = self.caught.pop("patches")
        if caught.shape[1] == PATCHES + 1:
            caught = caught[:, 1:]
        return functional.normalize(caught.float(), dim=-1)

    def tokens(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        self.model.encode_text(ids)
        text = self.model.text
        projected = text.text_projection(text.ln_final(self.caught.pop("text")))
        return functional.normalize(projected.float(), dim=-1)


def unit_range(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3), already resized, to the trunk's input; what the folder's preprocessing says."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def load(folder: Path) -> tuple[nn.Module, Any, Any]:
    """Model, preprocessing and tokenizer from an open_clip folder."""
    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name, precision="fp32")
    return model.eval().requires_grad_(False), preprocess, open_clip.get_tokenizer(name)


def tokenize_all(folder: Path, sentences: Sequence[str]) -> Tensor:
    return open_clip.get_tokenizer(f"local-dir:{folder}")(list(sentences))
