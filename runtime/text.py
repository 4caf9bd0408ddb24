"""From an instruction to the token ids that the text stage takes.

Promises: cleaning and ids equal those of the open_clip tokenizer that the trunk was trained with, id for id. The
tokenizer is data, a ``tokenizers`` JSON with its truncation and padding inside, so neither transformers nor torch is
needed. Only the runtime's own Unicode tables (Python's lower case, ftfy) could make a difference, for characters
younger than they are.

Refuses what the reference accepts although it cannot steer a robot: instructions without words, of extreme length, or
with broken text; and a tokenizer whose settings do not belong to the bundle.
"""

from __future__ import annotations

import html
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import ftfy
import numpy as np
import tokenizers
from numpy.typing import NDArray

from trunkline.runtime.errors import BundleError, InstructionError
from trunkline.runtime.record import shortened

Clean = Literal["canonicalize", "lower", "whitespace"]

MAX_INSTRUCTION_CHARS = 10_000

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class TextSpec:
    """How instructions become ids, besides the tokenizer's own JSON: plain data, checked by whoever reads it.

    Attributes:
        clean: ``whitespace`` repairs the text and joins its words by single spaces; ``lower`` also makes it lower
            case; ``canonicalize`` also drops ASCII punctuation and reads ``_`` as a space.
        context_length: L, the number of ids per instruction.
        strip_token: an id that is replaced by 0 wherever it occurs (the separator of some trunks), or None.
        vocab_size: rows of the trunk's token embedding table; ids lie below it.
    """

    clean: Clean
    context_length: int
    strip_token: int | None
    vocab_size: int


def clean(text: str, how: Clean) -> str:
    """Repairs and normalises one text.

    Broken encodings are mended (ftfy) and HTML entities resolved twice, because web text is often escaped twice.

    Raises:
        InstructionError: the text holds a numeric HTML entity too long to be a number.
    """
    try:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    except ValueError as error:
        raise InstructionError(
            "the instruction cannot be cleaned",
            expected="plain text",
            found=str(error),
            fix="remove the HTML entity, which is not a character",
        ) from error
    if how == "canonicalize":
        return _joined(text.replace("_", " ").translate(_WITHOUT_PUNCTUATION).lower())
    text = _joined(text)
    return text.lower() if how == "lower" else text


def _joined(text: str) -> str:
    return " ".join(text.split())


class Tokenizer:
    """Turns instructions into ids.

    Immutable after construction: any number of threads may call one object at once. Instructions are encoded one by
    one on the caller's thread, so that no thread pool is left behind when the process forks.

    Raises:
        BundleError: the JSON is not a tokenizer, or its truncation or padding is not of ``spec.context_length``.
    """

    def __init__(self, spec: TextSpec, tokenizer_json: bytes) -> None:
        self.spec = spec
        self._tokenizer = _parsed(tokenizer_json)
        _check_lengths(self._tokenizer, spec.context_length)

    def __call__(self, instructions: Sequence[str]) -> NDArray[np.int64]:
        """Ids of some instructions.

        Args:
            instructions: I strings, such as ``["put the red block in the bowl"]``.

        Returns:
            (I, L) int64, from 0 to ``spec.vocab_size - 1``.

        Raises:
            InstructionError: an instruction cannot be encoded, has no words, or holds a token that the trunk has no
                embedding for; the message names it.
        """
        _check_batch(instructions)
        cleaned = [self._cleaned(text, place) for place, text in enumerate(instructions)]
        ids = np.array([self._encoded(text) for text in cleaned], dtype=np.int64)
        strip = self.spec.strip_token
        ids = ids if strip is None else np.where(ids == strip, np.int64(0), ids)
        self._check_rows(ids, cleaned)
        return ids

    def _check_rows(self, ids: NDArray[np.int64], cleaned: Sequence[str]) -> None:
        """Not every back end fails beyond the table: OpenVINO scores."""
        beyond = ids >= self.spec.vocab_size
        found = [
            f"instruction {place}, {cleaned[place]!r:.80}: {self._tokenizer.id_to_token(int(token))!r} is {token}"
            for place in np.flatnonzero(beyond.any(axis=1)).tolist()
            for token in np.unique(ids[place][beyond[place]])
        ]
        if found:
            raise InstructionError(
                "an instruction holds a token that the trunk has no embedding for",
                expected=f"ids below {self.spec.vocab_size}",
                found=shortened(found),
                fix="say it in other words",
            )

    def _cleaned(self, text: object, place: int) -> str:
        where = f"instruction {place}"
        cleaned = clean(_checked(text, where), self.spec.clean)
        if not cleaned:
            raise InstructionError(
                "the instruction has no words",
                where=where,
                expected="something that is left after cleaning" + _what_cleaning_drops(self.spec.clean),
                found=repr(text),
                fix="say what the robot is to do",
            )
        return cleaned

    def _encoded(self, text: str) -> list[int]:
        with _library_errors("the bundle's tokenizer failed on an instruction", where=repr(text)):
            ids = self._tokenizer.encode(text).ids
        if len(ids) != self.spec.context_length:
            raise BundleError(
                "the bundle's tokenizer gives a wrong number of ids",
                where=repr(text),
                expected=f"{self.spec.context_length} ids",
                found=f"{len(ids)} ids",
                fix="export the bundle again",
            )
        return ids


def _parsed(tokenizer_json: bytes) -> tokenizers.Tokenizer:
    with _library_errors("the bundle's tokenizer cannot be read"):
        return tokenizers.Tokenizer.from_buffer(tokenizer_json)


@contextmanager
def _library_errors(problem: str, where: object = None) -> Iterator[None]:
    """Maps what tokenizers raises: bare ``Exception``, and Rust panics, which are not even an ``Exception``."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleError(
            problem,
            where=where,
            expected=f"the JSON of a tokenizer that tokenizers {tokenizers.__version__} can run",
            found=f"{type(error).__name__}: {error!s:.300}",
            fix="export the bundle again, or install the tokenizers version that it was exported with",
        ) from error


def _check_lengths(tokenizer: tokenizers.Tokenizer, length: int) -> None:
    """Before the first use, because padding to a forged length would take memory without bound."""
    truncation, padding = tokenizer.truncation or {}, tokenizer.padding or {}
    found = {
        "truncation to": truncation.get("max_length"),
        "padding to": padding.get("length"),
        "padding to a multiple of": padding.get("pad_to_multiple_of"),
    }
    expected = dict(zip(found, (length, length, None), strict=True))
    if found != expected:
        raise BundleError(
            "the bundle's tokenizer has other lengths than the text stage",
            expected=[f"{name} {value}" for name, value in expected.items()],
            found=[f"{name} {value}" for name, value in found.items()],
            fix="export the bundle again",
        )


def _check_batch(instructions: object) -> None:
    if isinstance(instructions, str):
        found, fix = "one string", "put it into a list: [instruction]"
    elif not isinstance(instructions, Sequence):
        found, fix = type(instructions).__name__, "make it a list of strings"
    elif not len(instructions):
        found, fix = "an empty list", "hand over at least one instruction"
    else:
        return
    raise InstructionError("there are no instructions to encode", expected="a list of strings", found=found, fix=fix)


def _checked(text: object, where: str) -> str:
    if not isinstance(text, str):
        fix = "decode it: text.decode('utf-8')" if isinstance(text, bytes) else "hand over a string"
        raise InstructionError(
            "the instruction is not text", where=where, expected="str", found=type(text).__name__, fix=fix
        )
    if len(text) > MAX_INSTRUCTION_CHARS:
        raise InstructionError(
            "the instruction is too long",
            where=where,
            expected=f"at most {MAX_INSTRUCTION_CHARS} characters",
            found=f"{len(text)} characters",
            fix="shorten it: only the first few dozen words reach the model anyway",
        )
    _check_encodable(text, where)
    return str(text)


def _check_encodable(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InstructionError(
            "the instruction holds half a character (a surrogate)",
            where=where,
            expected="text that can be written as UTF-8",
            found=f"{text[error.start]!a} at position {error.start}",
            fix="decode its bytes as UTF-8 where they come from, without errors='surrogateescape'",
        ) from error


def _what_cleaning_drops(how: Clean) -> str:
    return ", which drops punctuation and spaces" if how == "canonicalize" else ", which drops spaces"
