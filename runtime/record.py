"""JSON records, read strictly.

A record is a frozen dataclass. Reading one refuses unknown and missing fields, wrong types, duplicate keys,
NaN and infinity, deep nesting, a byte-order mark, invalid UTF-8, half characters and oversized text, and reports
every difference of a record at once. The time it takes grows with the text's length, whatever the text is.
Writing gives the same bytes for the same content.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Record = TypeVar("Record")

#: The JSON texts we read are small; anything larger is not one of ours.
MAX_TEXT_BYTES = 4 << 20
MAX_DEPTH = 24
#: A message lists this many differences; a text that is something else altogether has thousands.
MAX_LISTED = 50
#: Of a value quoted in a message.
MAX_SHOWN_CHARS = 60

# An unclosed string runs to the end, so the pattern never gives up and starts over: time stays linear.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]+|\\.)*"?|[\[{\]}]', re.DOTALL)


class RecordError(Exception):
    """A text is not the record it should be. ``differences`` lists what is wrong, one per line."""

    def __init__(self, *differences: str) -> None:
        self.differences = shortened(differences)
        super().__init__("; ".join(self.differences))


def shortened(differences: Sequence[str]) -> list[str]:
    """The first differences, and how many more there are."""
    more = len(differences) - MAX_LISTED
    return [*differences[:MAX_LISTED], *([f"and {more} more"] if more > 0 else [])]


def shown(value: object) -> str:
    """A value from outside, fit for a message: escaped and short."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def encode(record: Any, *, compact: bool = False) -> bytes:
    """The record as UTF-8 JSON with a final newline, indented unless it is to be ``compact``."""
    layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 1}
    return (json.dumps(dataclasses.asdict(record), ensure_ascii=False, allow_nan=False, **layout) + "\n").encode()


def differences(record: Any) -> list[str]:
    """What would be refused of the record once it is written; it may hold half characters, which cannot be."""
    text = json.dumps(dataclasses.asdict(record), ensure_ascii=False).encode("utf-8", "backslashreplace")
    try:
        decode(text, type(record))
    except RecordError as error:
        return error.differences
    return []


def decode(text: bytes, kind: type[Record]) -> Record:
    """Reads ``kind`` from JSON.

    Raises:
        RecordError: listing all differences.
    """
    return build(parse(text), kind)


def parse(text: bytes) -> Any:
    """JSON values from bytes, with the refusals that the standard library leaves out."""
    if len(text) > MAX_TEXT_BYTES:
        raise RecordError(f"{len(text)} bytes, more than the {MAX_TEXT_BYTES} allowed")
    if text.startswith(b"\xef\xbb\xbf"):
        raise RecordError("starts with a byte-order mark")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8 at byte {error.start}") from error
    if not decoded.strip():
        raise RecordError("empty")
    if _depth(decoded) > MAX_DEPTH:
        raise RecordError(f"nested deeper than {MAX_DEPTH}")
    try:
        return json.loads(decoded, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise RecordError(f"not JSON: {error}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise RecordError(f"not JSON: {error}") from error


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside strings; counted before parsing, since the parser recurses."""
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        bracket = match.group()
        if bracket in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif bracket in "]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        times = Counter(key for key, _ in pairs)
        raise RecordError(*(f"duplicate key {shown(key)}" for key, count in times.items() if count > 1))
    return result


def _no_constant(name: str) -> float:
    raise RecordError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RecordError(f"{text[:MAX_SHOWN_CHARS]} is too large for a number")
    return value


def build(value: Any, kind: type[Record], path: str = "") -> Record:
    """A dataclass from parsed JSON, all differences in one error."""
    differences: list[str] = []
    result = _convert(value, kind, path or "top level", differences)
    if differences:
        raise RecordError(*differences)
    return typing.cast(Record, result)


def _convert(value: Any, kind: Any, path: str, differences: list[str]) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_record(value, kind, path, differences)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, kind, path, differences)
    if origin is typing.Literal:
        if value in typing.get_args(kind) and not isinstance(value, bool):
            return value
        return _wrong(value, " or ".join(map(repr, typing.get_args(kind))), path, differences)
    if origin is tuple:
        return _convert_tuple(value, kind, path, differences)
    if origin in (dict, Mapping):
        return _convert_mapping(value, kind, path, differences)
    if kind is float and type(value) is int:
        return _convert_float(value, path, differences)
    if kind is str and isinstance(value, str) and not is_text(value):
        return _wrong(value, "text without half characters", path, differences)
    if type(value) is kind:
        return value
    return _wrong(value, kind.__name__, path, differences)


def _convert_float(value: int, path: str, differences: list[str]) -> float | None:
    try:
        return float(value)
    except OverflowError:
        _wrong(value, "a number that a float can hold", path, differences)
        return None


def is_text(value: str) -> bool:
    """False for a lone surrogate, which JSON can spell but nothing can print or write.

    Python reads bytes of a file's name as such where they are no UTF-8.
    """
    return not any("\ud800" <= char <= "\udfff" for char in value)


def as_text(value: str) -> str:
    """With half characters spelt out: names of files may hold them, and records may not."""
    return value.encode("utf-8", "backslashreplace").decode()


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _convert_record(value: Any, kind: Any, path: str, differences: list[str]) -> Any:
    if not isinstance(value, dict):
        return _wrong(value, "an object", path, differences)
    hints = _hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    prefix = "" if path == "top level" else path + "."
    differences += [f"unknown field {prefix}{_key(name)}" for name in value if name not in fields]
    result = {}
    for name, field in fields.items():
        if name in value:
            result[name] = _convert(value[name], hints[name], prefix + name, differences)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            differences.append(f"missing field {prefix}{name}")
    return None if differences else kind(**result)


def _convert_union(value: Any, kind: Any, path: str, differences: list[str]) -> Any:
    options = typing.get_args(kind)
    if value is None and types.NoneType in options:
        return None
    for option in options:
        if option is types.NoneType:
            continue
        attempt: list[str] = []
        result = _convert(value, option, path, attempt)
        if not attempt:
            return result
    differences += attempt
    return None


def _convert_tuple(value: Any, kind: Any, path: str, differences: list[str]) -> Any:
    item, *rest = typing.get_args(kind)
    if not isinstance(value, list):
        return _wrong(value, "a list", path, differences)
    kinds = [item] * len(value) if rest == [Ellipsis] else [item, *rest]
    if len(kinds) != len(value):
        return _wrong(value, f"a list of {len(kinds)}", path, differences)
    return tuple(
        _convert(element, kind, f"{path}[{i}]", differences)
        for i, (element, kind) in enumerate(zip(value, kinds, strict=True))
    )


def _convert_mapping(value: Any, kind: Any, path: str, differences: list[str]) -> Any:
    if not isinstance(value, dict):
        return _wrong(value, "an object", path, differences)
    item = typing.get_args(kind)[1]
    differences += [f"{path}: the key {shown(key)} holds half a character" for key in value if not is_text(key)]
    return {key: _convert(element, item, f"{path}[{shown(key)}]", differences) for key, element in value.items()}


def _wrong(value: Any, expected: str, path: str, differences: list[str]) -> None:
    differences.append(f"{path}: expected {expected}, found {shown(value)}")


def _key(name: str) -> str:
    """A key as it is if it is harmless in a message, otherwise escaped."""
    return name if name.isidentifier() and len(name) <= MAX_SHOWN_CHARS else shown(name)
