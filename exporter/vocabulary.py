"""Which ids a tokenizer can give, held against the rows of the trunk's token embedding table.

Beyond the last row back ends disagree: PyTorch and ONNX Runtime fail, OpenVINO scores.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from trunkline.runtime.errors import TrunkError
from trunkline.runtime.record import shortened
from trunkline.runtime.text import TextSpec


def ids_given(tokenizer_json: bytes, spec: TextSpec) -> dict[int, str]:
    """The ids that a tokenizer can give, with their tokens: its vocabulary, and what it puts around a text.

    Left out are added tokens whose text cleaning takes away, such as T5's ``<extra_id_0>``: published SigLIP trunks
    have a hundred of them beyond their table. If a normaliser made such a text of other characters after all, the
    runtime would refuse the instruction.
    """
    content = json.loads(tokenizer_json)
    tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_json)
    silent = _cleaned_away(content, spec)
    given = {
        index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items() if token not in silent
    }
    given |= {index: token for token, index in _put_around(content)}
    if spec.strip_token is not None:
        given.pop(spec.strip_token, None)
    return given


def _cleaned_away(content: Mapping[str, Any], spec: TextSpec) -> set[str]:
    """Added tokens that no cleaned text holds; what stands for unknown words needs no text of its own."""
    if spec.clean != "canonicalize":
        return set()
    added = {each["content"] for each in content["added_tokens"]}
    return {token for token in added if set(token) & set(string.punctuation)} - {_unknown(content["model"])}


def _unknown(model: Mapping[str, Any]) -> str | None:
    place = model.get("unk_id")  # of Unigram, whose vocabulary is a list of (token, score)
    return model.get("unk_token") if place is None else model["vocab"][place][0]


def _put_around(content: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    if padding := content["padding"]:
        yield padding["pad_token"], padding["pad_id"]
    yield from _post_processed(content["post_processor"] or {})


def _post_processed(processor: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for each in processor.get("processors", ()):
        yield from _post_processed(each)
    for special in processor.get("special_tokens", {}).values():
        yield from zip(special["tokens"], special["ids"], strict=True)
    yield from (tuple(processor[name]) for name in ("cls", "sep") if name in processor)


def require_rows(given: Mapping[int, str], vocab_size: int, where: str) -> None:
    """Raises TrunkError, naming the tokens, if an id has no row."""
    if beyond := sorted(index for index in given if index >= vocab_size):
        raise TrunkError(
            "the tokenizer gives ids that the trunk has no embedding for",
            where=where,
            expected=f"ids below {vocab_size}, the rows of the token embedding table",
            found=shortened([f"{given[index]!r} is {index}" for index in beyond]),
            fix="use the tokenizer that the trunk was trained with, or take these tokens out of its tokenizer.json",
        )
