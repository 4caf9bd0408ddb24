"""Finding a decision's input again: the very rows, pixels and numbers, or a word about what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replay_kit import (
    HEADER,
    INSTRUCTIONS,
    UNSYNCED,
    Fake,
    Robot,
    S,
    Ticks,
    frozen,
    histories,
    image,
    limits,
    recorder,
    segments,
)
from trunkline.runtime.ensemble import Decision
from trunkline.runtime.replay.framing import FRAME_BYTES, HEAD_BYTES
from trunkline.runtime.replay.front import Seen
from trunkline.runtime.replay.index import (
    CANDIDATES_GONE,
    FRAME_GONE,
    INSTRUCTION_GONE,
    NO_FRAME,
    NO_SCORES,
    NOT_FINITE,
    WINDOW_GONE,
    Inputs,
    LogIndex,
)
from trunkline.runtime.replay.payloads import Candidates, Frame, Instruction, SensorBlock
from trunkline.runtime.replay.reader import ReplayLog
from trunkline.runtime.replay.row_tail import RowTail
from trunkline.runtime.sensor.window import SensorWindow

DECISION = Decision(np.array([0.1, 0.3, 0.2], np.float32), 1, 0, np.zeros((2, 3), np.float32))


def found(folder: Path) -> list[Inputs | str]:
    index = LogIndex(ReplayLog(folder))
    return [index.inputs(decision) for number in index.decisions if (decision := index.decision(number)) is not None]


def same(seen: Seen, inputs: Inputs | str) -> bool:
    assert isinstance(inputs, Inputs), inputs
    window = inputs.window
    assert seen.window is not None
    assert window is not None
    np.testing.assert_array_equal(inputs.image, seen.image)
    np.testing.assert_array_equal(inputs.candidates, seen.histories)
    assert inputs.instruction == seen.instruction
    assert window.samples.tobytes() == seen.window.samples.tobytes()
    return (window.rate_hz, window.end_ns, window.missing) == (
        seen.window.rate_hz,
        seen.window.end_ns,
        seen.window.missing,
    )


@pytest.mark.parametrize("frames", ["raw", "png"])
def test_every_decision_is_found_as_it_was_made(tmp_path: Path, frames: str) -> None:
    robot, clock = Robot(), Ticks()
    with recorder(tmp_path, clock, limits=limits(bytes=1 << 20, seconds=8.0), frames=frames) as recording:
        robot.work(recording, Fake(), 60, clock)
    assert len(segments(tmp_path)) > 3  # windows reach into the segment before
    assert all(same(seen, inputs) for seen, inputs in zip(robot.seen, found(tmp_path), strict=True))


def test_a_new_session_counts_its_rows_from_nought(tmp_path: Path) -> None:
    robots = [Robot(seed=seed) for seed in range(3)]
    for robot in robots:
        with recorder(tmp_path) as recording:
            robot.work(recording, Fake(), 9)
    everything = [seen for robot in robots for seen in robot.seen]
    assert all(same(seen, inputs) for seen, inputs in zip(everything, found(tmp_path), strict=True))


def test_what_goes_with_the_oldest_segment(tmp_path: Path) -> None:
    """The rows of a window may lie in the segment before: the first decisions of what is left lose them, no others."""
    robot, clock = Robot(), Ticks()
    with recorder(tmp_path, clock, limits=limits(bytes=1 << 20, seconds=4.0)) as recording:
        robot.work(recording, Fake(), 120, clock)
    inputs = found(tmp_path)
    gone = [each for each in inputs if isinstance(each, str)]
    assert gone == inputs[: len(gone)] == [WINDOW_GONE] * len(gone)
    assert 0 < len(gone) <= 3  # a window of 20 rows, 7 rows a step
    assert len(inputs) > 40
    assert all(same(*pair) for pair in zip(robot.seen[-len(inputs) + len(gone) :], inputs[len(gone) :], strict=True))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_window_of_any_blocks_is_found_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("windows") / "log"
    generator = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    values = data.draw(st.sampled_from(["random", "few", "constant", "nan"]))
    stream, wanted = np.empty((0, 3), np.float32), []
    with recorder(folder) as recording:
        for _ in range(data.draw(st.integers(1, 12))):
            count = data.draw(st.integers(1, 60))
            block = generator.standard_normal((count, 3)).astype(np.float32)
            if values == "few":
                block = np.sign(block)
            elif values != "random":
                block[:] = 1 if values == "constant" else np.nan
            recording.sensor(np.arange(len(stream), len(stream) + count), block)
            stream = np.concatenate([stream, block])
            begin = data.draw(st.integers(max(0, len(stream) - 60), len(stream) - 1))
            end = data.draw(st.integers(begin + 1, min(begin + 40, len(stream))))
            window = SensorWindow(stream[begin:end].copy(), 100.0, end_ns=end)
            recording.decision(Seen(INSTRUCTIONS[0], histories(0), image=image(0), window=window), DECISION, 0)
            wanted.append(window)
    for window, inputs in zip(wanted, found(folder), strict=True):
        assert isinstance(inputs, Inputs)
        assert inputs.window is not None
        assert inputs.window.samples.tobytes() == window.samples.tobytes()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_tail_finds_what_a_plain_search_finds(data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, 12))
    tail, stream, first = RowTail(keep, 2), np.empty((0, 2), np.float32), 0
    generator = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    row = 0
    for _ in range(data.draw(st.integers(1, 8))):
        if data.draw(st.booleans()):  # a hole
            row += data.draw(st.integers(0, 2))
        block = generator.standard_normal((data.draw(st.integers(1, 30)), 2)).astype(np.float32)
        if row != first + len(stream):
            stream, first = np.empty((0, 2), np.float32), row
        tail.append(row, np.arange(row, row + len(block)) * 10, block)
        stream, row = np.concatenate([stream, block]), row + len(block)
        length = data.draw(st.integers(1, min(keep, len(stream))))
        place = data.draw(st.integers(0, len(stream) - length))
        wanted = stream[place : place + length]
        number = first + place
        expected = (number, number * 10, (number + length - 1) * 10)
        assert tail.find(wanted) in ([expected] if place >= len(stream) - keep else [expected, None])
        assert tail.find(wanted + np.float32(1)) is None
    assert tail.find(np.empty((0, 2), np.float32)) is None
    assert tail.find(np.zeros((3 * keep, 2), np.float32)) is None
    assert tail.find(np.zeros((1, 5), np.float32)) is None


def spoil(folder: Path, kind: type, which: int) -> None:
    """Flips a bit in the payload of one record."""
    entry = [entry for entry in ReplayLog(folder).entries() if isinstance(entry.meta, kind)][which]
    (path,) = [path for path in segments(folder) if int(path.stem) == entry.segment]
    data = bytearray(path.read_bytes())
    data[entry.offset + HEAD_BYTES + 1] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Frame, FRAME_GONE),
        (Instruction, INSTRUCTION_GONE),
        (Candidates, CANDIDATES_GONE),
        (SensorBlock, WINDOW_GONE),
    ],
)
def test_damaged_input_is_said_to_be_gone(tmp_path: Path, kind: type, reason: str) -> None:
    robot = Robot()
    with recorder(tmp_path) as recording:
        robot.work(recording, Fake(), 8)
    spoil(tmp_path, kind, 1)
    inputs = found(tmp_path)
    missing = [each for each in inputs if isinstance(each, str)]
    assert len(inputs) == 8
    assert set(missing) == {reason}
    assert all(same(seen, each) for seen, each in zip(robot.seen, inputs, strict=True) if not isinstance(each, str))


def test_a_decision_without_scores_or_frame(tmp_path: Path) -> None:
    no_number = Decision(np.float32([np.nan, 1, 2]), 1, 0, np.zeros((2, 3), np.float32))
    with recorder(tmp_path) as recording:
        recording.decision(Seen(INSTRUCTIONS[0], histories(0), image=image(0)), None, 0)
        recording.decision(Seen(INSTRUCTIONS[0], histories(0)), DECISION, 0)
        recording.decision(Seen(INSTRUCTIONS[0], histories(0), image=image(0)), no_number, 0)
        recording.decision(Seen(None, histories(0), image=image(0)), DECISION, 0)
        recording.decision(Seen(INSTRUCTIONS[0], None, image=image(0)), DECISION, 0)
    assert found(tmp_path) == [NO_SCORES, NO_FRAME, NOT_FINITE, INSTRUCTION_GONE, CANDIDATES_GONE]


def test_a_log_that_loses_its_oldest_records_after_it_was_indexed(tmp_path: Path) -> None:
    robot, clock = Robot(), Ticks()
    recording = recorder(tmp_path, clock, limits=limits(bytes=1 << 20, seconds=4.0))
    robot.work(recording, Fake(), 40, clock)
    index = LogIndex(ReplayLog(tmp_path))
    clock.now_ns += 100 * S
    recording.note("much later")
    assert all(index.decision(number) is None for number in index.decisions)
    recording.close()


def test_frames_on_the_same_picture_are_one_object(tmp_path: Path) -> None:
    picture = frozen(image(0))
    with recorder(tmp_path) as recording:
        for index in range(3):
            recording.decision(Seen(INSTRUCTIONS[0], histories(index), image=picture), DECISION, 0)
    inputs: list[Any] = found(tmp_path)
    index = LogIndex(ReplayLog(tmp_path))
    decisions = [index.decision(number) for number in index.decisions]
    images = [index.inputs(decision).pixels for decision in decisions if decision]  # type: ignore[union-attr]
    assert all(each is images[0] for each in images)
    assert len({each.frame for each in inputs}) == 1


def test_a_copy_of_a_log_is_a_log(tmp_path: Path) -> None:
    robot = Robot()
    with recorder(tmp_path / "log") as recording:
        robot.work(recording, Fake(), 4)
    shutil.copytree(tmp_path / "log", tmp_path / "copy")
    assert all(same(seen, inputs) for seen, inputs in zip(robot.seen, found(tmp_path / "copy"), strict=True))
    assert LogIndex(ReplayLog(tmp_path / "copy")).headers[0] == HEADER
    assert UNSYNCED.sync_s is None
    assert FRAME_BYTES == HEAD_BYTES + 4
