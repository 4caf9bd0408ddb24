"""Instructions as a source of the stage graph: token ids, or the tokens of those that the bundle was exported for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BundleError, InputError, InstructionError
from trunkline.runtime.graph import Source
from trunkline.runtime.text import Tokenizer, clean

MAX_INSTRUCTIONS = 256


class InstructionSources:
    """Of one ensemble. Any number of threads may ask."""

    def __init__(self, bundle: Bundle) -> None:
        """Reads tokenizer or baked tokens.

        Raises:
            BundleError: they are malformed.
        """
        self._text = bundle.manifest.text
        name = self._text.tokenizer
        self._tokenizer = Tokenizer(self._text.spec, bundle.read(name)) if name else None
        self._baked = _read_baked(bundle) if self._text.baked else {}

    def of(self, instructions: Sequence[str]) -> dict[str, Source]:
        """The source for a call, by tensor name.

        Raises:
            InstructionError: there are none or too many, or one cannot be encoded or is not among the baked ones.
        """
        names = as_list(instructions)
        if not 0 < len(names) <= MAX_INSTRUCTIONS:
            raise InstructionError(
                "there must be an instruction, and not too many",
                expected=f"1 to {MAX_INSTRUCTIONS}",
                found=len(names),
            )
        if self._tokenizer is not None:
            tokenizer = self._tokenizer
            return {"ids": Source(tuple(names), lambda wanted: tokenizer([names[index] for index in wanted]))}
        baked = [self._baked_name(text) for text in names]
        return {"tokens": Source(tuple(baked), lambda wanted: np.stack([self._baked[baked[i]] for i in wanted]))}

    def token_ids(self, instructions: Sequence[str]) -> NDArray[np.int64] | None:
        """(I, L) ids, or None where instructions are baked."""
        return None if self._tokenizer is None else self._tokenizer(list(instructions))

    def _baked_name(self, instruction: str) -> str:
        name = clean(instruction, self._text.spec.clean)
        if name not in self._baked:
            raise InstructionError(
                "the bundle was exported for a fixed list of instructions, and this is not one of them",
                expected=[*self._text.instructions[:10], *(["..."] if len(self._text.instructions) > 10 else [])],
                found=repr(instruction),
                fix="export again with the instruction in the --bake file, or without --bake",
            )
        return name


def as_list(instructions: Sequence[str]) -> list[str]:
    """The instructions, or InstructionError if they are none."""
    if isinstance(instructions, str | bytes) or not isinstance(instructions, Iterable):
        raise InstructionError("there must be a list of instructions", found=type(instructions).__name__)
    names = list(instructions)
    wrong = [f"{index}: {type(text).__name__}" for index, text in enumerate(names) if type(text) is not str]
    if wrong:
        raise InstructionError("an instruction must be a string", found=wrong[:20])
    return names


def group_instructions(instructions: str | Sequence[str], groups: int, repeats: int) -> list[str]:
    """One instruction for all groups, or one per group; InputError if they do not fit."""
    names = [instructions] if isinstance(instructions, str) else as_list(instructions)
    if len(names) == groups * repeats and len(names) != groups:
        per_group = [names[group * repeats : (group + 1) * repeats] for group in range(groups)]
        mixed = [str(group) for group, each in enumerate(per_group) if len(set(each)) > 1]
        if mixed:
            raise InputError("candidates of one group have different instructions", found="groups " + ", ".join(mixed))
        names = [each[0] for each in per_group]
    if len(set(names)) == 1:
        return names[:1]
    if len(names) != groups:
        raise InputError(
            "instructions do not fit the groups",
            expected=f"1 instruction, {groups} (one per group) or {groups * repeats} (one per candidate)",
            found=len(names),
        )
    return names


def _read_baked(bundle: Bundle) -> dict[str, NDArray[np.float32]]:
    """Tokens (L, D) by cleaned instruction."""
    text, manifest = bundle.manifest.text, bundle.manifest
    where = f"{bundle.root}, {text.baked}"
    tokens = bundle.tensors(cast(str, text.baked)).get("tokens")
    expected = (len(text.instructions), text.spec.context_length, manifest.trunk.width)
    if not isinstance(tokens, np.ndarray) or tokens.shape != expected or tokens.dtype != np.float32:
        found = f"{tokens.dtype} {tokens.shape}" if isinstance(tokens, np.ndarray) else "no tokens"
        raise BundleError("baked instructions are malformed", where=where, expected=f"float32 {expected}", found=found)
    if not np.isfinite(tokens).all():
        raise BundleError("baked instructions are malformed", where=where, found="NaN or infinite values")
    try:
        names = [clean(each, text.spec.clean) for each in text.instructions]
    except InstructionError as error:
        raise BundleError("baked instructions are malformed", where=where, found=error.problem) from error
    if len(set(names)) != len(names):
        raise BundleError("baked instructions are not distinct once cleaned", where=where)
    return dict(zip(names, tokens, strict=True))
