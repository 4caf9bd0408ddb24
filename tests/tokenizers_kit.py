"""Small tokenizers of the kinds that trunks use, trained on a few sentences and saved as open_clip's local-dir wants.

Each function fills a folder, so that ``open_clip.get_tokenizer(f"local-dir:{folder}")`` loads it. A folder that has an
``open_clip_config.json`` already keeps it, with the text settings merged in, so a tokenizer and a model can share one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CONTEXT_LENGTH = 16
#: Of the embedding table; CLIP's own tokenizer gives as many ids.
ROWS = 49408

CORPUS = (
    *("put the red block in the bowl", "pick up the blue cup and place it on the plate", "open the top drawer"),
    *("close the cabinet door", "move the carrot to the left of the sink", "stack the green cube on the yellow cube"),
    *(
        "don't drop it, please!",
        "it's 3 cm to the right",
        "turn the faucet 90 degrees",
        "wipe the table with the towel",
    ),
    *("Grasp the handle; then pull.", "café naïve über straße", "die rote Tasse", "le bloc rouge", "el bloque rojo"),
    *("ложка и тарелка", "你好世界", "ロボット", "the quick brown fox jumps over the lazy dog 0123456789 &<>#@"),
)


def save_bpe(folder: Path, **settings: Any) -> Path:
    """Like Gemma's (SigLIP2): spaces become ``▁``, unknown characters fall back to bytes, ``<eos>`` ends the text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    tokenizer = Tokenizer.from_str(_with_bytes(tokenizer.to_str()))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    _end_with(tokenizer, "<eos>")
    tokens = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return _save(folder, tokenizer, tokens, settings | {"tokenizer_kwargs": _cleaned(settings, "canonicalize")})


def save_unigram(folder: Path, **settings: Any) -> Path:
    """Like T5's (SigLIP): Unigram over Metaspace, NFKC first, ``</s>`` ends the text, padded with ``</s>`` too."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    _end_with(tokenizer, "</s>")
    tokens = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _save(folder, tokenizer, tokens, settings | {"tokenizer_kwargs": _cleaned(settings, "canonicalize")})


def save_wordpiece(folder: Path, **settings: Any) -> Path:
    """Like BERT's: WordPiece between ``[CLS]`` and ``[SEP]``; open_clip may be told to replace ``[SEP]`` by 0."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    pair = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
    names = ("unk_token", "cls_token", "sep_token", "mask_token", "pad_token")
    tokens = dict(zip(names, special, strict=True))
    return _save(folder, tokenizer, tokens, settings | {"tokenizer_kwargs": _cleaned(settings, "whitespace")})


SAVERS = {"bpe": save_bpe, "unigram": save_unigram, "wordpiece": save_wordpiece}


def _cleaned(settings: dict[str, Any], default: str) -> dict[str, Any]:
    return {"clean": default, **settings.get("tokenizer_kwargs", {})}


def _with_bytes(saved: str) -> str:
    """Byte tokens belong to the plain vocabulary: as special tokens they would be found in ordinary text."""
    content = json.loads(saved)
    vocabulary = content["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    return json.dumps(content)


def _end_with(tokenizer: Tokenizer, token: str) -> None:
    special = [(token, tokenizer.token_to_id(token))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {token}", special_tokens=special)


def _save(folder: Path, tokenizer: Tokenizer, tokens: dict[str, str], settings: dict[str, Any]) -> Path:
    """``settings``: entries of ``text_cfg``, and ``fast`` for PreTrainedTokenizerFast's own arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    fast = settings.pop("fast", {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens, **fast).save_pretrained(folder)
    text = {"hf_tokenizer_name": "local", "context_length": CONTEXT_LENGTH, **settings}
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text()) if path.exists() else {"model_cfg": {}}
    config["model_cfg"]["text_cfg"] = config["model_cfg"].get("text_cfg", {}) | text
    path.write_text(json.dumps(config, indent=1))
    return folder
