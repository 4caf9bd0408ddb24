"""Replay logs whose sums are right and whose content is not, and directories that are no logs."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.replay_kit import HEADER, Fake, Robot, Ticks, contents, image, limits, recorder, segments
from trunkline.runtime.errors import ReplayError
from trunkline.runtime.replay.frames import Pixels, encoded
from trunkline.runtime.replay.framing import Head, Preamble, pack_preamble, pack_record
from trunkline.runtime.replay.index import FRAME_GONE, WINDOW_GONE, Inputs, LogIndex
from trunkline.runtime.replay.payloads import (
    Candidates,
    Decided,
    Frame,
    Header,
    Instruction,
    Note,
    SensorBlock,
    WindowRows,
    WindowSource,
    pack,
)
from trunkline.runtime.replay.reader import Damage, Entry, ReplayLog, Torn

NOTE = pack(Note("whole"))
Records = list[tuple[int, bytes]]


def record(place: int, kind: int, payload: bytes, segment: int = 0, length: int | None = None) -> bytes:
    """A record; with ``length``, its head claims another one and is right otherwise."""
    data = pack_record(Head(len(payload), (segment << 32) + place, 5, kind), payload)
    if length is None:
        return data
    head = data[:4] + struct.pack("<I", length) + data[8:28]
    return head + struct.pack("<I", zlib.crc32(head)) + data[32:]


def forged(folder: Path, *pieces: bytes, preamble: bytes | None = None) -> ReplayLog:
    folder.mkdir(exist_ok=True)
    begin = pack_preamble(Preamble(0, 0, 0)) if preamble is None else preamble
    (folder / "0000000000.tlog").write_bytes(begin + b"".join(pieces))
    return ReplayLog(folder)


def text(value: Any, body: bytes = b"") -> bytes:
    """A payload whose text is anything."""
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<I", len(content)) + content + body


def read(log: ReplayLog) -> tuple[list[Entry], list[Damage], list[Torn]]:
    items = list(log.items())
    return (
        [item for item in items if isinstance(item, Entry)],
        [item for item in items if isinstance(item, Damage)],
        [item for item in items if isinstance(item, Torn)],
    )


@pytest.mark.parametrize("length", [(1 << 32) - 1, 1 << 31, (32 << 20) + 1])
def test_a_length_beyond_the_largest_record_asks_for_no_memory(tmp_path: Path, length: int) -> None:
    log = forged(tmp_path, record(0, 8, NOTE, length=length), record(1, 8, NOTE))
    tracemalloc.start()
    entries, damage, _ = read(log)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert [entry.number for entry in entries] == [1]
    assert len(damage) == 1


def test_a_length_up_to_the_largest_record_is_the_end_of_the_file(tmp_path: Path) -> None:
    log = forged(tmp_path, record(0, 8, NOTE), record(1, 8, NOTE, length=32 << 20), record(2, 8, NOTE))
    tracemalloc.start()
    entries, damage, torn = read(log)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert ([entry.number for entry in entries], damage, len(torn)) == ([0], [], 1)


def test_a_length_that_reaches_over_other_records_is_damage(tmp_path: Path) -> None:
    whole = record(1, 8, NOTE)
    log = forged(tmp_path, record(0, 8, NOTE, length=len(NOTE) + len(whole)), whole, record(2, 8, NOTE))
    entries, damage, _ = read(log)
    assert [entry.number for entry in entries] == [2]
    assert damage[0].reason == "the checksum of the record is wrong"


def test_a_file_full_of_markers_takes_time_that_grows_with_its_length(tmp_path: Path) -> None:
    """Every place looks like a record; none is tried twice."""
    log = forged(tmp_path, b"\xc5TR\x9e" * (1 << 18), record(0, 8, NOTE))
    entries, damage, _ = read(log)
    assert len(entries) == 1
    assert [each.bytes for each in damage] == [1 << 20]


@pytest.mark.parametrize("padding", [0, 1, 30, 31, 32, (1 << 20) - 33, (1 << 20) - 5, 1 << 20, (1 << 20) + 17])
def test_a_record_across_the_edge_of_what_is_searched_at_once_is_found(tmp_path: Path, padding: int) -> None:
    log = forged(tmp_path, b"\0" * padding, record(0, 8, NOTE))
    entries, damage, torn = read(log)
    assert len(entries) == 1
    assert len(damage) == (padding > 0)
    assert torn == []


def test_records_of_another_segment_repeated_or_out_of_order_are_not_taken(tmp_path: Path) -> None:
    one, two = record(5, 8, NOTE), record(4, 8, NOTE)
    log = forged(tmp_path, one, one, two, record(6, 8, NOTE, segment=3), record(7, 8, pack(Note("last"))))
    entries, damage, _ = read(log)
    assert [entry.number for entry in entries] == [5, 7]
    assert [(each.bytes, each.reason) for each in damage] == [(2 * len(one) + len(one), "no record begins here")]


def test_a_segment_under_another_name_is_not_read(tmp_path: Path) -> None:
    forged(tmp_path, record(0, 8, NOTE)).folder.joinpath("0000000000.tlog").rename(tmp_path / "0000000009.tlog")
    entries, damage, _ = read(ReplayLog(tmp_path))
    assert entries == []
    assert "written as segment 0" in damage[0].reason


@pytest.mark.parametrize(
    "content", [b"", b"\x8fTLLOG", b"\0" * 31, b"\0" * 32, b"\0" * 5000, b"PK\x03\x04" + b"\1" * 90]
)
def test_what_is_no_segment_gives_nothing(tmp_path: Path, content: bytes) -> None:
    entries, damage, torn = read(forged(tmp_path, preamble=content))
    assert entries == []
    assert len(damage) + len(torn) == 1


def test_a_log_of_the_version_before_is_read(tmp_path: Path) -> None:
    """It knows no modes: its frames are RGB."""
    begin = bytearray(pack_preamble(Preamble(0, 0, 0)))
    begin[8] = 1
    begin[28:] = struct.pack("<I", zlib.crc32(begin[:28]))
    stated = {"stamp_ns": 5, "height": 8, "width": 9, "encoding": "raw", "bytes": 216}
    pieces = [*SCENE, (2, text(stated, image(0, 8, 9).tobytes())), (7, decided(instruction=0, candidates=1, frame=2))]
    records = (record(place, *piece) for place, piece in enumerate(pieces))
    found = inputs_of(forged(tmp_path, *records, preamble=bytes(begin)))
    assert isinstance(found, Inputs)
    np.testing.assert_array_equal(found.image, image(0, 8, 9))
    with recorder(tmp_path) as recording:
        recording.note("goes on")
    assert [type(entry.meta) for entry in read(ReplayLog(tmp_path))[0]] == [Header, Note]  # the old one was too old


def test_a_newer_version_is_refused_for_reading_and_for_writing(tmp_path: Path) -> None:
    begin = bytearray(pack_preamble(Preamble(0, 0, 0)))
    begin[8] = 3
    begin[28:] = struct.pack("<I", zlib.crc32(begin[:28]))
    log = forged(tmp_path, record(0, 8, NOTE), preamble=bytes(begin))
    with pytest.raises(ReplayError, match=r"another version[\s\S]*schema 3[\s\S]*update Trunkline"):
        read(log)
    with pytest.raises(ReplayError, match="another version"):
        recorder(tmp_path)
    assert len(segments(tmp_path)) == 1


DECIDED: dict[str, Any] = {
    "stamp_ns": 0,
    "bundle": "",
    "frame": None,
    "frame_ns": None,
    "instruction": None,
    "candidates": None,
    "window": None,
    "frame_age_ns": None,
    "sensor_age_ns": None,
    "marks": [],
    "best": 0,
    "best_instruction": 0,
    "scores": [1],
    "members": 1,
}
ACTIONS = {"history_length": 4, "action_dim": 2, "padding_value": -5.0, "encoder": "mlp"}
SENSOR = {
    "channels": 3,
    "rate_hz": 1.0,
    "samples": 2,
    "steps": 2,
    "resample": "linear",
    "padding": "left",
    "adaptive": False,
}
WINDOW = {
    "rows": 1,
    "row": 0,
    "record": None,
    "first_ns": 0,
    "last_ns": 0,
    "end_ns": None,
    "rate_hz": 1.0,
    "missing": 0,
}
MALFORMED: dict[str, tuple[int, bytes]] = {
    "no text": (8, b""),
    "half a length": (8, b"\1\0\0"),
    "a text of 4 GB": (8, struct.pack("<I", (1 << 32) - 1) + b"{}"),
    "not JSON": (8, text(b"{nope")),
    "not UTF-8": (8, text(b"\xff\xfe")),
    "nested deep": (8, text(b"[" * 100_000)),
    "a number of a million digits": (8, text(b'{"text":' + b"1" * 1_000_000 + b"}")),
    "a key twice": (8, text(b'{"text":"a","text":"b"}')),
    "an unknown field": (8, text({"text": "a", "more": 1})),
    "half a character": (8, text(b'{"text":"\\ud800"}')),
    "bytes behind the text": (8, text({"text": "a"}, b"\0")),
    "an unknown kind": (99, NOTE),
    "a kind for another": (2, NOTE),
    "pickle": (8, b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94."),
    "candidates without end": (5, text({"count": 1 << 31, "steps": 1 << 31, "numbers": 1 << 31})),
    "candidates of no number": (5, text({"count": 0, "steps": 1, "numbers": 1})),
    "candidates of less than none": (5, text({"count": -1, "steps": -1, "numbers": 1}, b"\0" * 4)),
    "a block of 2**70 rows": (3, text({"row": 0, "rows": 1 << 70, "channels": 1})),
    "a block of many channels": (3, text({"row": 0, "rows": 1, "channels": 1 << 20})),
    "a window of many rows": (6, text({"rows": 1 << 17, "channels": 1})),
    "a frame of true pixels": (
        2,
        text({"stamp_ns": 0, "height": True, "width": 1, "encoding": "raw", "bytes": 3}, b"123"),
    ),
    "a frame of less than none": (
        2,
        text({"stamp_ns": 0, "height": 1, "width": 1, "encoding": "png", "bytes": -1}),
    ),
    "a frame in another form": (2, text({"stamp_ns": 0, "height": 1, "width": 1, "encoding": "exe", "bytes": 0})),
    "scores of many dimensions": (7, text({**DECIDED, "scores": [1, 1, 1]}, b"\0" * 8)),
    "scores of no candidate": (7, text({**DECIDED, "scores": [0]})),
    "a winner that is no candidate": (7, text({**DECIDED, "best": 1}, b"\0" * 8)),
    "a winner without scores": (7, text({**DECIDED, "scores": [], "members": 0})),
    "no members": (7, text({**DECIDED, "members": 0}, b"\0" * 4)),
    "a stamp beyond 64 bits": (7, text({**DECIDED, "stamp_ns": 1 << 64}, b"\0" * 8)),
    "a record below nought": (7, text({**DECIDED, "frame": -1}, b"\0" * 8)),
    "a window of two kinds": (7, text({**DECIDED, "window": {**WINDOW, "record": 3}}, b"\0" * 8)),
    "a window of neither": (7, text({**DECIDED, "window": {**WINDOW, "row": None}}, b"\0" * 8)),
    "a window of a million rows": (7, text({**DECIDED, "window": {**WINDOW, "rows": 1 << 20}}, b"\0" * 8)),
    "a stream that stands": (7, text({**DECIDED, "window": {**WINDOW, "rate_hz": 0.0}}, b"\0" * 8)),
    "an infinite rate": (7, text(json.dumps({**DECIDED, "window": {**WINDOW, "rate_hz": float("inf")}}).encode())),
    "a sensor without channels": (
        1,
        text({"bundle": "", "actions": ACTIONS, "sensor": {**SENSOR, "channels": 0}, "opened_ns": 0}),
    ),
    "drops that are no number": (9, text({"counts": {"frame": "many"}})),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_record_is_damage_with_its_place(tmp_path: Path, name: str) -> None:
    kind, payload = MALFORMED[name]
    first, bad = record(0, 8, NOTE), record(1, kind, payload)
    log = forged(tmp_path, first, bad, record(2, 8, NOTE))
    entries, damage, torn = read(log)
    assert [entry.number for entry in entries] == [0, 2]
    assert [(each.segment, each.offset, each.bytes) for each in damage] == [(0, 32 + len(first), len(bad))]
    assert "malformed" in damage[0].reason
    assert len(damage[0].reason) < 8000
    assert torn == []


def frame_record(data: bytes, height: int, width: int) -> bytes:
    return pack(Frame(0, height, width, "png", len(data)), np.frombuffer(data, np.uint8))


def decided(**changes: Any) -> bytes:
    fields = {**DECIDED, "marks": (), "scores": (1,), **changes}
    return pack(Decided(**fields), np.zeros(1, np.float32), np.zeros((1, 1), np.float32))


def inputs_of(log: ReplayLog) -> Inputs | str:
    index = LogIndex(log)
    (number,) = index.decisions
    decision = index.decision(number)
    assert decision is not None
    return index.inputs(decision)


SCENE: Records = [
    (4, pack(Instruction(("go",), True))),
    (5, pack(Candidates(1, 4, 2), np.zeros((1, 4, 2), np.float32))),
]


def png(height: int, width: int) -> bytes:
    return encoded(Pixels.of(image(0, height, width)), "png").tobytes()


def bomb() -> bytes:
    """A PNG that says it has 40,000 x 40,000 pixels."""
    data = bytearray(png(8, 8))
    data[16:24] = struct.pack(">II", 40_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


FRAMES = {
    "another size": (png(8, 9), 9, 8),
    "a bomb": (bomb(), 40_000, 40_000),
    "nothing": (b"", 8, 8),
    "half": (png(8, 8)[:120], 8, 8),
    "a JPEG": (b"\xff\xd8\xff\xe0" + b"\0" * 50, 8, 8),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_that_is_none_is_gone(tmp_path: Path, name: str) -> None:
    data, height, width = FRAMES[name]
    pieces = [*SCENE, (2, frame_record(data, height, width)), (7, decided(instruction=0, candidates=1, frame=2))]
    log = forged(tmp_path, *(record(place, *piece) for place, piece in enumerate(pieces)))
    assert inputs_of(log) == FRAME_GONE


@pytest.mark.parametrize(
    "changes",
    [
        {"frame": 0},
        {"frame": 3},
        {"frame": 1 << 63},
        {"instruction": 2},
        {"candidates": 0},
        {"candidates": (7 << 32)},
        {"instruction": None},
    ],
)
def test_a_decision_that_names_records_of_another_kind_or_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    named = {"instruction": 0, "candidates": 1, "frame": 2, **changes}
    pieces = [*SCENE, (2, frame_record(png(8, 8), 8, 8)), (7, decided(**named))]
    log = forged(tmp_path, *(record(place, *piece) for place, piece in enumerate(pieces)))
    assert isinstance(inputs_of(log), str)


def block(row: int, stamps: list[int], channels: int = 3) -> tuple[int, bytes]:
    samples = np.full((len(stamps), channels), row, np.float32)
    return 3, pack(SensorBlock(row, *samples.shape), np.array(stamps, np.int64), samples)


BLOCKS: dict[str, Records] = {
    "a hole": [block(0, [0, 1]), block(3, [3, 4])],
    "an overlap": [block(0, [0, 1]), block(1, [1, 2]), block(3, [3, 4])],
    "the same twice at the end": [block(0, [0, 1]), block(2, [2, 3, 4]), block(2, [2, 3, 4])],
    "one inside another": [block(0, [0, 1, 2, 3, 4]), block(1, [1])],
    "the same twice": [block(0, [0, 1]), block(0, [0, 1]), block(2, [2, 3, 4])],
    "another width": [block(0, [0, 1]), block(2, [2, 3, 4], channels=4)],
    "other stamps": [block(0, [0, 1]), block(2, [2, 3, 9])],
    "too few": [block(0, [0, 1])],
    "none": [],
    "not from the beginning": [block(1, [1, 2, 3, 4])],
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_window_is_never_made_of_rows_that_do_not_follow_each_other(tmp_path: Path, name: str) -> None:
    window = {**WINDOW, "rows": 5, "last_ns": 4}
    blocks = [*BLOCKS[name]]
    place = len(blocks)
    pieces = [*blocks, *SCENE, (2, frame_record(png(8, 8), 8, 8))]
    meta = decided(instruction=place, candidates=place + 1, frame=place + 2, window=WindowSource(**window))
    log = forged(tmp_path, *(record(index, *piece) for index, piece in enumerate([*pieces, (7, meta)])))
    assert inputs_of(log) == WINDOW_GONE


def test_a_written_window_of_another_length_is_gone(tmp_path: Path) -> None:
    rows = (6, pack(WindowRows(2, 3), np.zeros((2, 3), np.float32)))
    window = WindowSource(**{**WINDOW, "row": None, "record": 3})
    meta = decided(instruction=0, candidates=1, frame=2, window=window)
    pieces = [*SCENE, (2, frame_record(png(8, 8), 8, 8)), rows, (7, meta)]
    assert inputs_of(forged(tmp_path, *(record(i, *piece) for i, piece in enumerate(pieces)))) == WINDOW_GONE


def test_links_pipes_and_directories_are_not_read(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "log"
    with recorder(elsewhere) as recording:
        recording.note("not yours")
    folder.mkdir()
    (folder / "0000000000.tlog").symlink_to(segments(elsewhere)[0])
    os.mkfifo(folder / "0000000001.tlog")
    (folder / "0000000002.tlog").mkdir()
    (folder / "0000000003.tlog").symlink_to("nowhere")
    entries, damage, _ = read(ReplayLog(folder))
    assert entries == []
    assert {each.segment for each in damage} == {0, 1, 2, 3}
    assert all("cannot be read" in each.reason for each in damage)


def test_a_writer_never_writes_through_a_link(tmp_path: Path) -> None:
    folder, victim = tmp_path / "log", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("precious")
    (folder / "0000000000.tlog").symlink_to(victim)
    with recorder(folder, limits=limits(bytes=1 << 16)) as recording:
        for _ in range(40):
            recording.note("x" * 3000)
    assert victim.read_text() == "precious"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lock").symlink_to(victim)
    with pytest.raises(ReplayError, match="cannot be written"):
        recorder(tmp_path / "other")
    assert victim.read_text() == "precious"


def test_the_highest_number_is_the_last(tmp_path: Path) -> None:
    (tmp_path / "4294967295.tlog").write_bytes(pack_preamble(Preamble((1 << 32) - 1, 0, 0)))
    with recorder(tmp_path) as recording, pytest.raises(ReplayError, match="used up its numbers"):
        recording.note("x")


def test_a_frame_that_shows_a_log_is_not_taken_for_one(tmp_path: Path) -> None:
    """A picture may hold the bytes of whole records; they are looked for only where something is damaged."""
    with recorder(tmp_path, Ticks()) as recording:
        Robot().work(recording, Fake(), 2)
        inside = segments(tmp_path)[0].read_bytes()
        picture = np.zeros((40, 60, 3), np.uint8)
        picture.reshape(-1)[: len(inside)] = np.frombuffer(inside, np.uint8)[: picture.size]
        recording.frame(picture, 0)
        recording.note("behind it")
    whole = contents(tmp_path)
    data = bytearray(segments(tmp_path)[0].read_bytes())
    entry = [each for each in ReplayLog(tmp_path).entries() if isinstance(each.meta, Frame)][-1]
    data[entry.offset] ^= 1  # its head is damaged, and all its bytes are searched
    segments(tmp_path)[0].write_bytes(data)
    assert contents(tmp_path) == [each for each in whole if each[0] != entry.number]


def test_a_header_without_a_log_behind_it(tmp_path: Path) -> None:
    log = forged(tmp_path, record(0, Header.kind, pack(HEADER)))
    index = LogIndex(log)
    assert (index.decisions, index.headers) == ([], {0: HEADER})
