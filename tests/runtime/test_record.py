"""Records: what is written is what is read, and nothing else is."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.runtime.record import (
    MAX_DEPTH,
    MAX_LISTED,
    MAX_TEXT_BYTES,
    RecordError,
    as_text,
    build,
    decode,
    differences,
    encode,
    parse,
)


@dataclass(frozen=True)
class Inner:
    name: str
    size: int = 3


@dataclass(frozen=True)
class Outer:
    """One field of each kind that manifests use."""

    kind: Literal["one", "two"]
    ratio: float
    inner: Inner
    many: tuple[Inner, ...]
    pair: tuple[int, str]
    maybe: str | None
    shape: tuple[int | str, ...]
    table: dict[str, Inner] = field(default_factory=dict)


GOOD = Outer("one", 0.5, Inner("ä"), (Inner("b", 4),), (1, "x"), None, ("B", 3), {"k": Inner("c")})


def plain(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(encode(GOOD))
    return content | changes


def test_round_trip() -> None:
    assert decode(encode(GOOD), Outer) == GOOD
    assert encode(decode(encode(GOOD), Outer)) == encode(GOOD)
    assert encode(GOOD).endswith(b"}\n")


names = st.text(st.characters(exclude_categories=["Cs"]))
inners = st.builds(Inner, names, st.integers(-(10**30), 10**30))


@given(
    st.builds(
        Outer,
        st.sampled_from(["one", "two"]),
        st.floats(allow_nan=False, allow_infinity=False),
        inners,
        st.lists(inners, max_size=3).map(tuple),
        st.tuples(st.integers(), names),
        st.none() | names,
        st.lists(st.integers() | names, max_size=4).map(tuple),
        st.dictionaries(names, inners, max_size=3),
    )
)
def test_round_trip_of_anything(record: Outer) -> None:
    assert decode(encode(record), Outer) == record


def test_defaults_and_whole_numbers_for_floats() -> None:
    content = plain(ratio=2)
    del content["table"]
    record = build(content, Outer)
    assert (record.ratio, type(record.ratio), record.table) == (2.0, float, {})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "literal": ({"kind": "three"}, "kind: expected 'one' or 'two', found 'three'"),
    "literal list": ({"kind": []}, "kind: expected 'one' or 'two', found []"),
    "float": ({"ratio": "1"}, "ratio: expected float, found '1'"),
    "truth value for a float": ({"ratio": True}, "ratio: expected float, found True"),
    "integer beyond floats": ({"ratio": 10**400}, "ratio: expected a number that a float can hold"),
    "record": ({"inner": 5}, "inner: expected an object, found 5"),
    "field of a record": ({"inner": {"name": 5}}, "inner.name: expected str, found 5"),
    "truth value for an integer": ({"inner": {"name": "a", "size": True}}, "inner.size: expected int, found True"),
    "float for an integer": ({"inner": {"name": "a", "size": 1.0}}, "inner.size: expected int, found 1.0"),
    "missing": ({"inner": {"size": 1}}, "missing field inner.name"),
    "unknown": ({"inner": {"name": "a", "color": 1}}, "unknown field inner.color"),
    "unknown, hostile": ({"inner": {"name": "a", "\x1b": 1}}, r"unknown field inner.'\x1b'"),
    "list": ({"many": {}}, "many: expected a list, found {}"),
    "item": ({"many": [{"name": "a"}, {"name": 1}]}, "many[1].name: expected str, found 1"),
    "length": ({"pair": [1]}, "pair: expected a list of 2, found [1]"),
    "optional": ({"maybe": 5}, "maybe: expected str, found 5"),
    "union": ({"shape": ["B", 1.5]}, "shape[1]: expected str, found 1.5"),
    "mapping": ({"table": []}, "table: expected an object, found []"),
    "value of a mapping": ({"table": {"k": 1}}, "table['k']: expected an object, found 1"),
    "half a character": ({"inner": {"name": "\ud800"}}, r"inner.name: expected text without half characters"),
    "half a character in a key": ({"table": {"\ud800": {"name": "a"}}}, r"the key '\ud800' holds half a character"),
    "long value": ({"ratio": "x" * 1000}, "ratio: expected float, found '" + "x" * 56 + "..."),
}


@pytest.mark.parametrize(("changes", "difference"), WRONG.values(), ids=WRONG)
def test_wrong_fields(changes: dict[str, Any], difference: str) -> None:
    with pytest.raises(RecordError) as caught:
        decode(json.dumps(plain(**changes)).encode(), Outer)
    assert any(difference in each for each in caught.value.differences), caught.value.differences
    str(caught.value).encode()  # can be printed


def test_every_difference_is_reported() -> None:
    with pytest.raises(RecordError) as caught:
        build(plain(kind=1, ratio=None, extra=0, inner={}), Outer)
    assert len(caught.value.differences) == 4


def test_long_lists_of_differences_are_cut() -> None:
    with pytest.raises(RecordError) as caught:
        build(plain(many=[1] * 5000), Outer)
    assert len(caught.value.differences) == MAX_LISTED + 1
    assert caught.value.differences[-1] == f"and {5000 - MAX_LISTED} more"


def test_depth_is_counted_outside_strings_only() -> None:
    assert parse(b'["' + b"[" * 100 + b'"]') == ["[" * 100]
    assert parse(b'["\\"' + b"[" * 100 + b'"]') == ['"' + "[" * 100]
    assert parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(RecordError, match="nested deeper"):
        parse(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


@given(st.text(alphabet='{}[]",:\\ \nab0', max_size=80))
def test_anything_is_read_or_refused(text: str) -> None:
    try:
        expected: Any = json.loads(text)
    except ValueError:
        expected = RecordError
    try:
        found = parse(text.encode())
    except RecordError:
        return  # stricter than the standard library is fine
    assert found == expected


@pytest.mark.parametrize(
    "text",
    [
        b'"' + b'\\"' * (MAX_TEXT_BYTES // 2 - 1),
        b'"' * MAX_TEXT_BYTES,
        b"[" * MAX_TEXT_BYTES,
        b"\\" * MAX_TEXT_BYTES,
        b"[" + b'"\\\n' * (MAX_TEXT_BYTES // 3 - 1),
        b"1" * MAX_TEXT_BYTES,
    ],
    ids=["escaped quotes", "quotes", "brackets", "backslashes", "broken escapes", "digits"],
)
def test_time_is_linear(text: bytes) -> None:
    started = time.process_time()
    with pytest.raises(RecordError):
        parse(text)
    assert time.process_time() - started < 5


def test_nothing_that_is_not_json_is_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(Outer("one", float("nan"), Inner("a"), (), (1, "x"), None, ()))


def test_differences_are_those_that_reading_would_find() -> None:
    assert differences(GOOD) == []
    assert differences(Inner("a\udcff")) == [r"name: expected text without half characters, found 'a\udcff'"]
    assert differences(Inner("ü", "3")) == ["size: expected int, found '3'"]  # type: ignore[arg-type]
    assert differences(replace(GOOD, ratio=float("nan"))) == ["NaN is not a JSON number"]
    assert differences(Inner("ü" * (MAX_TEXT_BYTES // 2 - 20))) == []  # as long as it is once it is written
    assert len(differences(Inner("ü" * (MAX_TEXT_BYTES // 2)))) == 1


def test_half_characters_are_spelt_out() -> None:
    assert as_text("grün 漢\udcff\ud800.png") == r"grün 漢\udcff\ud800.png"
