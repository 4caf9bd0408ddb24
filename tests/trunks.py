"""Tiny open_clip trunks with a timm vision tower and a local tokenizer, made without any download."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors.torch import save_file

from tests.kit import SMALL
from tests.tokenizers_kit import SAVERS
from trunkline.exporter.checkpoint.members import HeadShape

#: timm's own test models: 160 px, 16 px patches, 100 patches; ``test_vit`` has a class token, ``test_vit4`` none.
VISION_WIDTH = {name: timm.create_model(name).num_features for name in ("test_vit", "test_vit2", "test_vit4")}
PATCHES = 100
CONTEXT_LENGTH = 12


def head_shape(vision: str = "test_vit", shape: HeadShape = SMALL) -> HeadShape:
    """``shape`` with the sizes of a trunk's features."""
    return replace(shape, trunk_width=VISION_WIDTH[vision], patches=PATCHES)


def model_config(vision: str = "test_vit", **text: Any) -> dict[str, Any]:
    width = VISION_WIDTH[vision]
    return {
        "embed_dim": width,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": vision, "timm_pool": "", "timm_proj": "none"},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": 1000,
            "hf_tokenizer_name": "local",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 32,
            "heads": 4,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        }
        | text,
    }


def save_trunk(folder: Path, vision: str = "test_vit", tokenizer: str = "bpe", seed: int = 0, **text: Any) -> str:
    """Writes a trunk that open_clip loads by the name returned, ``local-dir:FOLDER``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": model_config(vision, **text),
        "preprocess_cfg": {
            "mean": [0.5, 0.45, 0.4],
            "std": [0.5, 0.25, 0.3],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    SAVERS[tokenizer](folder, context_length=CONTEXT_LENGTH)
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    sharpen(model)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def sharpen(model: torch.nn.Module) -> None:
    """Random towers of tiny weights map everything to nearly one vector; larger ones tell inputs apart."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "embedding" not in name and "pos_embed" not in name:
                parameter.mul_(2.0)
            elif "token_embedding" in name:
                parameter.mul_(20.0)
