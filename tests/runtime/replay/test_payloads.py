"""Payloads and frames of records: what is packed is what is unpacked, and nothing else is."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.replay_kit import ACTIONS, FORM, HEADER, image
from trunkline.runtime.errors import ImageError
from trunkline.runtime.image import PIL_MODES
from trunkline.runtime.replay import framing
from trunkline.runtime.replay.frames import Pixels, decoded, encoded
from trunkline.runtime.replay.payloads import (
    KINDS,
    Candidates,
    Decided,
    Dropped,
    Frame,
    Header,
    Instruction,
    Meta,
    Note,
    PayloadError,
    SensorBlock,
    WindowRows,
    WindowSource,
    pack,
    unpack,
)

stamps = st.integers(-(1 << 63), (1 << 63) - 1)
numbers = st.integers(0, (1 << 64) - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
finite = st.floats(1e-3, 1e6)


def floats(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Any bits: scores and samples are stored as they are, NaN included."""
    return hnp.arrays(np.uint32, shape).map(lambda bits: bits.view(np.float32))


@st.composite
def frames(draw: st.DrawFn) -> tuple[Meta, Any]:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    mode = draw(st.sampled_from(PIL_MODES))
    data = draw(st.binary(min_size=1, max_size=768)) * (height * width * 4)
    image = Image.frombytes(mode, (width, height), data[: len(Image.new(mode, (width, height)).tobytes())])
    colours = draw(hnp.arrays(np.uint8, st.integers(1, 256).map(lambda count: 3 * count))) if mode == "P" else None
    pixels = Pixels(mode, height, width, np.frombuffer(image.tobytes(), np.uint8))
    encoding = draw(st.sampled_from(["raw", "png"]))
    packed = encoded(pixels, encoding)
    size = 0 if colours is None else len(colours)
    meta = Frame(draw(st.none() | stamps), height, width, encoding, len(packed), mode, size)
    return meta, (packed,) if colours is None else (packed, colours)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[Meta, Any]:
    rows, channels = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    meta = SensorBlock(draw(st.integers(0, 1 << 40)), rows, channels)
    return meta, (draw(hnp.arrays(np.int64, rows)), draw(floats((rows, channels))))


@st.composite
def decisions(draw: st.DrawFn) -> tuple[Meta, Any]:
    shape = draw(st.sampled_from([(), (3,), (2, 3)]))
    members = draw(st.integers(1, 3)) if shape else 0
    record = draw(st.none() | numbers)
    window = WindowSource(
        draw(st.integers(1, 60)),
        draw(st.integers(0, 1 << 40)) if record is None else None,
        record,
        draw(st.none() | stamps),
        draw(st.none() | stamps),
        draw(st.none() | stamps),
        draw(finite),
        draw(st.integers(0, 9)),
    )
    meta = Decided(
        stamp_ns=draw(stamps),
        bundle=draw(texts),
        frame=draw(st.none() | numbers),
        frame_ns=draw(st.none() | stamps),
        instruction=draw(st.none() | numbers),
        candidates=draw(st.none() | numbers),
        window=draw(st.none() | st.just(window)),
        frame_age_ns=draw(st.none() | stamps),
        sensor_age_ns=draw(st.none() | stamps),
        marks=tuple(draw(st.lists(texts, max_size=3))),
        best=draw(st.integers(0, 2)) if shape else None,
        best_instruction=draw(st.integers(0, 1)) if len(shape) == 2 else (0 if shape else None),
        scores=shape,
        members=members,
    )
    return meta, (draw(floats(shape)), draw(floats((members, *shape)))) if shape else ()


@st.composite
def rows(draw: st.DrawFn) -> tuple[Meta, Any]:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 4)))
    return WindowRows(*shape), (draw(floats(shape)),)


@st.composite
def candidates(draw: st.DrawFn) -> tuple[Meta, Any]:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)))
    return Candidates(*shape), (draw(floats(shape)),)


instructions = st.lists(texts, min_size=2, max_size=3).map(lambda many: Instruction(tuple(many), False)) | texts.map(
    lambda text: Instruction((text,), True)
)
plain = (
    st.builds(Note, texts)
    | st.builds(Dropped, st.dictionaries(texts, st.integers(0, 1 << 40), max_size=3))
    | st.builds(Header, texts, st.just(ACTIONS), st.none() | st.just(FORM), stamps)
    | instructions
)
#: No test is timed.
untimed = settings(deadline=None)
anything = frames() | blocks() | decisions() | rows() | candidates() | plain.map(lambda meta: (meta, ()))


@untimed
@given(anything)
def test_round_trip(what: tuple[Meta, Any]) -> None:
    meta, arrays = what
    payload = pack(meta, *arrays)
    found, found_arrays = unpack(meta.kind, payload)
    assert found == meta
    assert [each.tobytes() for each in found_arrays] == [each.tobytes() for each in arrays]
    assert [each.shape for each in found_arrays] == [each.shape for each in arrays]
    assert not any(each.flags.writeable for each in found_arrays)
    assert pack(found, *found_arrays) == payload


@untimed
@given(anything, st.data())
def test_a_payload_of_another_length_or_kind_is_refused(what: tuple[Meta, Any], data: st.DataObject) -> None:
    meta, arrays = what
    payload = pack(meta, *arrays)
    cut = data.draw(st.integers(0, len(payload) - 1))
    for spoilt in (payload[:cut], payload + b"\0"):
        with pytest.raises(PayloadError):
            unpack(meta.kind, spoilt)
    for kind in (0, 77, 1 << 15):
        with pytest.raises(PayloadError, match="do not exist"):
            unpack(kind, payload)


def test_every_kind_has_a_number_of_its_own() -> None:
    assert sorted(KINDS) == list(range(1, 10))


REFUSED: dict[str, tuple[Meta, tuple[Any, ...], str]] = {
    "half a character": (Instruction(("\ud800",), True), (), "cannot be written"),
    "a list": (Instruction(["a", "b"], False), (), "something else"),  # type: ignore[arg-type]
    "no instruction": (Instruction((), False), (), "0 instructions"),
    "one of two": (Instruction(("a", "b"), True), (), "2 instructions"),
    "too long": (Note("x" * 70_000), (), "more than"),
    "a note that is none": (Note(7), (), "cannot be written"),  # type: ignore[arg-type]
    "a stamp that no clock shows": (Header("x", ACTIONS, None, 1 << 63), (), "opened_ns"),
    "not finite": (WindowRows(1, 1), (np.zeros((1, 2), np.float32),), "instead of"),
    "another type": (WindowRows(1, 1), (np.zeros((1, 1)),), "instead of"),
    "an array too few": (SensorBlock(0, 1, 1), (np.zeros(1, np.int64),), "instead of"),
    "no rows": (SensorBlock(0, 0, 1), (np.zeros(0, np.int64), np.zeros((0, 1), np.float32)), "rows is 0"),
    "a raw frame of another size": (Frame(0, 8, 8, "raw", 5), (np.zeros(5, np.uint8),), "5 bytes"),
    "a raw frame of another mode": (Frame(0, 8, 8, "raw", 192, "RGBA"), (np.zeros(192, np.uint8),), "192 bytes"),
    "a palette without colours": (Frame(0, 8, 8, "raw", 64, "P"), (np.zeros(64, np.uint8),), "a palette of 0 bytes"),
    "colours without a palette": (
        *(Frame(0, 8, 8, "raw", 64, "L", 3), (np.zeros(64, np.uint8), np.zeros(3, np.uint8))),
        "a palette of 3 bytes",
    ),
    "drops below zero": (Dropped({"frame": 1 << 64}), (), "frame is"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_read_is_not_packed(name: str) -> None:
    meta, arrays, decisive = REFUSED[name]
    with pytest.raises(PayloadError, match=decisive):
        pack(meta, *arrays)


def test_numpy_numbers_are_not_taken_for_whole_ones() -> None:
    with pytest.raises(PayloadError):
        pack(SensorBlock(np.int64(3), 1, 1), np.zeros(1, np.int64), np.zeros((1, 1), np.float32))  # type: ignore[arg-type]


def test_a_png_frame_is_the_frame() -> None:
    pixels = image(3, 20, 31)
    data = encoded(Pixels.of(pixels), "png")
    frame = Frame(0, 20, 31, "png", len(data))
    np.testing.assert_array_equal(decoded(frame, data, b"", "here").image, pixels)
    for other in (Frame(0, 31, 20, "png", len(data)), Frame(0, 20, 31, "png", len(data), "RGBA")):
        with pytest.raises(ImageError, match="not what its record says"):
            decoded(other, data, b"", "here")
    with pytest.raises(ImageError):
        decoded(frame, data[:-30], b"", "here")


@untimed
@given(numbers, stamps, st.integers(0, 65535), st.binary(max_size=50))
def test_a_record_is_its_own_frame(number: int, stamp_ns: int, kind: int, payload: bytes) -> None:
    data = framing.pack_record(framing.Head(len(payload), number, stamp_ns, kind), payload)
    segment = framing.segment_of(number)
    head = framing.unpack_head(data[: framing.HEAD_BYTES], segment, number - 1)
    assert head == framing.Head(len(payload), number, stamp_ns, kind)
    assert framing.unpack_payload(data) == payload
    assert len(data) == head.size
    assert framing.unpack_head(data[: framing.HEAD_BYTES], segment, number) is None
    assert framing.unpack_head(data[: framing.HEAD_BYTES], segment + 1, number - 1) is None


def test_the_layout_on_disk_is_the_documented_one() -> None:
    """Other programs read these bytes: they change with the schema only."""
    preamble = framing.pack_preamble(framing.Preamble(7, 5, -3))
    assert preamble[:28] == bytes.fromhex("8f544c4c4f470d0a") + struct.pack("<IIIq", 2, 7, 5, -3)
    record = framing.pack_record(framing.Head(4, (7 << 32) + 2, 9, 8), b"\x00\x00\x00\x00")
    assert record[:28] == bytes.fromhex("c554529e") + struct.pack("<IQqHH", 4, (7 << 32) + 2, 9, 8, 0)
    payload = pack(WindowRows(1, 2), np.array([[1.5, -2]], np.float32))
    text = json.dumps({"rows": 1, "channels": 2}, separators=(",", ":")).encode() + b"\n"
    assert payload == struct.pack("<I", len(text)) + text + struct.pack("<2f", 1.5, -2)
    assert unpack(Header.kind, pack(HEADER))[0] == HEADER
