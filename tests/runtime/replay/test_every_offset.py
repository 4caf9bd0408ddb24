"""A log that is cut or spoilt anywhere: what is whole is read, and nothing else."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replay_kit import FORM, HEADER, Fake, Robot, Ticks, content, contents, recorder, segments
from trunkline.runtime.replay.framing import FRAME_BYTES, PREAMBLE_BYTES
from trunkline.runtime.replay.reader import Damage, Entry, ReplayLog, Torn


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three segments: in the middle one every kind of record, in the others a note."""
    folder, clock, robot = tmp_path_factory.mktemp("logs") / "log", Ticks(), Robot()
    for steps in (0, 1, 0):
        with recorder(folder, clock, header=replace(HEADER, sensor=FORM if steps else None)) as recording:
            robot.work(recording, Fake(), steps, clock)
            recording.note("a note")
    assert len(segments(folder)) == 3
    assert sum(path.stat().st_size for path in segments(folder)) < 4000
    return folder


@pytest.fixture(scope="module")
def whole(log: Path) -> list[tuple[int, int, bytes]]:
    return contents(log)


def ends(log: Path, path: Path) -> list[int]:
    """Offsets behind every record of a segment."""
    number = int(path.stem)
    places = [(item.offset, len(content(item)[2]) + FRAME_BYTES) for item in ReplayLog(log).entries_of(number)]
    return [offset + size for offset, size in places]


def copied(log: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(log, target)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_segment_cut_at_every_byte_loses_the_last_record_at_most(
    log: Path, whole: list[tuple[int, int, bytes]], tmp_path: Path, which: int
) -> None:
    path, folder = segments(log)[which], copied(log, tmp_path / "log")
    data, boundaries = path.read_bytes(), ends(log, path)
    before = sum(len(list(ReplayLog(log).entries_of(int(each.stem)))) for each in segments(log)[:which])
    behind = whole[before + len(boundaries) :]
    assert boundaries[-1] == len(data)
    for cut in range(len(data)):
        (folder / path.name).write_bytes(data[:cut])
        items = list(ReplayLog(folder).items())
        complete = sum(end <= cut for end in boundaries)
        found = [content(item) for item in items if isinstance(item, Entry)]
        assert found == whole[: before + complete] + behind
        torn = [item for item in items if not isinstance(item, Entry)]
        start = boundaries[complete - 1] if complete else (PREAMBLE_BYTES if cut >= PREAMBLE_BYTES else 0)
        expected = [Torn(int(path.stem), start, cut - start)] if cut > start or cut == 0 else []
        assert torn == expected


def test_appending_goes_on_after_a_cut_at_every_byte(
    log: Path, whole: list[tuple[int, int, bytes]], tmp_path: Path
) -> None:
    last, path = segments(log)[-1], segments(log)[1]
    folder = copied(log, tmp_path / "log")
    (folder / last.name).unlink()  # the middle one is what a killed writer left
    data, boundaries = path.read_bytes(), ends(log, path)
    before = len(list(ReplayLog(log).entries_of(0)))
    for cut in range(len(data)):
        (folder / path.name).write_bytes(data[:cut])
        with recorder(folder, Ticks(0)) as recording:
            recording.note(f"cut at {cut}")
        found = contents(folder)
        kept = whole[: before + sum(end <= cut for end in boundaries)]
        assert found[: len(kept)] == kept
        numbers, stamps, payloads = zip(*found, strict=True)
        assert b"cut at %d" % cut in payloads[-1]
        assert len(found) == len(kept) + 2  # the header of the new segment, and the note
        assert sorted(set(numbers)) == list(numbers)
        assert sorted(stamps) == list(stamps)
        segments(folder)[-1].unlink()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_flipped_bit_at_every_byte_never_gives_a_wrong_record(
    log: Path, whole: list[tuple[int, int, bytes]], tmp_path: Path, which: int
) -> None:
    path, folder = segments(log)[which], copied(log, tmp_path / "log")
    data, generator = path.read_bytes(), random.Random()
    here = [content(entry) for entry in ReplayLog(log).entries_of(int(path.stem))]
    boundaries = [PREAMBLE_BYTES, *ends(log, path)]
    for place in range(len(data)):
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << generator.randrange(8)
        (folder / path.name).write_bytes(spoilt)
        items = list(ReplayLog(folder).items())
        lost = here if place < PREAMBLE_BYTES else [here[sum(end <= place for end in boundaries) - 1]]
        assert [content(item) for item in items if isinstance(item, Entry)] == [
            each for each in whole if each not in lost
        ]
        (damage,) = [item for item in items if isinstance(item, Damage)]
        assert damage.segment == int(path.stem)
        assert damage.offset <= place < damage.offset + damage.bytes
        assert not any(isinstance(item, Torn) for item in items)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_happens_to_a_segment_no_record_is_made_up(
    log: Path, whole: list[tuple[int, int, bytes]], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes are overwritten, cut out, put in, doubled, and moved."""
    folder = copied(log, tmp_path_factory.getbasetemp() / "spoilt")
    path = data.draw(st.sampled_from(segments(folder)))
    content_bytes = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(content_bytes)))
        end = data.draw(st.integers(begin, min(begin + 400, len(content_bytes))))
        source = data.draw(st.integers(0, len(content_bytes)))
        piece = data.draw(st.one_of(st.binary(max_size=60), st.just(bytes(content_bytes[source : source + 300]))))
        content_bytes[begin:end] = piece
    path.write_bytes(content_bytes)
    found = contents(folder)
    assert len(set(found)) == len(found)
    assert set(found) <= set(whole)
    assert sorted(number for number, _, _ in found) == [number for number, _, _ in found]
