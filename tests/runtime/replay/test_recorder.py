"""Recording: nothing is written twice without need, the loop never waits, and what is lost is counted."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.deep_images import DEEP_FILES
from tests.replay_kit import (
    FORM,
    HEADER,
    INSTRUCTIONS,
    MS,
    UNSYNCED,
    Fake,
    Robot,
    Ticks,
    frozen,
    histories,
    image,
    limits,
    of_kind,
    recorder,
    segments,
)
from trunkline.runtime.ensemble import Decision, Selection
from trunkline.runtime.errors import CandidateError, ImageError, InputError, ReplayError, SensorError
from trunkline.runtime.image import PIL_MODES
from trunkline.runtime.replay import Recorder, Seen, SyncRecorder, header_of
from trunkline.runtime.replay.framing import segment_of
from trunkline.runtime.replay.index import Inputs, LogIndex
from trunkline.runtime.replay.payloads import Candidates, Decided, Dropped, Frame, Instruction, Note, WindowRows
from trunkline.runtime.replay.reader import ReplayLog
from trunkline.runtime.replay.writer import LogLimits
from trunkline.runtime.sensor.window import SensorWindow

DECISION = Decision(np.array([0.1, 0.3, 0.2], np.float32), 1, 0, np.zeros((2, 3), np.float32))


def kinds(folder: Path) -> dict[str, int]:
    return dict(ReplayLog(folder).summary().records)


def seen(seed: int = 0, **changes: Any) -> Seen:
    return replace(Seen(INSTRUCTIONS[0], histories(seed), image=image(seed), frame_ns=5), **changes)


def test_a_decision_says_all_that_was_said(tmp_path: Path) -> None:
    with recorder(tmp_path) as recording:
        recording.decision(
            seen(frame_age_ns=30 * MS, sensor_age_ns=2 * MS), DECISION, 77, marks=["late", "frame pending"]
        )
    (entry,) = of_kind(tmp_path, Decided)
    meta = entry.meta
    assert isinstance(meta, Decided)
    assert (meta.stamp_ns, meta.bundle, meta.frame_ns) == (77, HEADER.bundle, 5)
    assert (meta.frame_age_ns, meta.sensor_age_ns, meta.marks) == (30 * MS, 2 * MS, ("late", "frame pending"))
    assert (meta.best, meta.best_instruction, meta.window) == (1, 0, None)
    np.testing.assert_array_equal(entry.arrays[0], DECISION.scores)
    np.testing.assert_array_equal(entry.arrays[1], DECISION.member_scores)
    assert kinds(tmp_path) == {"Header": 1, "Frame": 1, "Instruction": 1, "Candidates": 1, "Decided": 1}


def test_what_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    with recorder(tmp_path) as recording:
        same = image(1)
        recording.frame(same, 4)
        for index in range(6):
            recording.decision(seen(image=same.copy() if index % 2 else same, frame_ns=index), DECISION, index)
        recording.decision(seen(image=image(2)), DECISION, 6)
        recording.decision(seen(image=image(2), instruction=INSTRUCTIONS[1]), DECISION, 7)
        recording.decision(seen(image=image(2), histories=histories(3)), DECISION, 8)
    counts = kinds(tmp_path)
    assert (counts["Frame"], counts["Instruction"], counts["Candidates"], counts["Decided"]) == (2, 3, 2, 9)
    decided = [entry.meta for entry in of_kind(tmp_path, Decided)]
    assert [each.frame_ns for each in decided[:6]] == list(range(6))  # the same picture, captured again
    assert len({each.frame for each in decided}) == 2


def test_a_buffer_that_the_camera_overwrites_is_a_new_frame(tmp_path: Path) -> None:
    buffer = image(1)
    with recorder(tmp_path) as recording:
        for seed in (1, 2, 2, 3):
            buffer[:] = image(seed)
            recording.decision(seen(image=buffer), DECISION, seed)
        buffer[:] = 0
    frames = [entry.arrays[0].reshape(8, 9, 3) for entry in of_kind(tmp_path, Frame)]
    assert len(frames) == 3
    for seed, pixels in zip((1, 2, 3), frames, strict=True):
        np.testing.assert_array_equal(pixels, image(seed))


def test_every_decision_finds_its_input_in_its_own_segment(tmp_path: Path) -> None:
    clock, robot = Ticks(), Robot()
    same = frozen(image(9))
    with recorder(tmp_path, clock, limits=limits(bytes=1 << 16)) as recording:
        for index in range(100):
            robot.step(recording, Fake(), index)
            recording.decision(seen(image=same), DECISION, index)
    entries = list(of_kind(tmp_path, Decided))
    assert len(segments(tmp_path)) > 5
    for entry in entries:
        for number in (entry.meta.frame, entry.meta.instruction, entry.meta.candidates):
            assert segment_of(number) == entry.segment


def test_rephrasings(tmp_path: Path) -> None:
    decision = Fake().score(image(0), INSTRUCTIONS, histories(0))
    with recorder(tmp_path) as recording:
        recording.decision(seen(instruction=list(INSTRUCTIONS)), decision, 0)
    (told,), (entry,) = of_kind(tmp_path, Instruction), of_kind(tmp_path, Decided)
    assert told.meta == Instruction(INSTRUCTIONS, False)
    assert entry.meta.scores == (2, 3)
    assert entry.arrays[1].shape == (2, 2, 3)


def test_short_and_uneven_candidates_are_recorded_as_they_were_scored(tmp_path: Path) -> None:
    uneven = [[[0.5, 1.0]], [[0.1, 0.2], [0.3, 0.4]], histories(0)[0]]
    with recorder(tmp_path) as recording:
        recording.decision(seen(histories=uneven), DECISION, 0)
    (entry,) = of_kind(tmp_path, Candidates)
    assert entry.arrays[0].shape == (3, 4, 2)
    np.testing.assert_array_equal(entry.arrays[0][0], np.float32([[-5, -5], [-5, -5], [-5, -5], [0.5, 1]]))


def test_a_refusal_is_recorded_with_whatever_there_is(tmp_path: Path) -> None:
    with recorder(tmp_path) as recording:
        recording.decision(Seen(None, None), None, 3, marks=["no frame"])
        recording.decision(seen(histories=np.full((2, 4, 2), np.nan, np.float32)), None, 4, marks=["error"])
        with pytest.raises(CandidateError):
            recording.decision(seen(histories=np.full((2, 4, 2), np.nan, np.float32)), DECISION, 5)
    first, second = (entry.meta for entry in of_kind(tmp_path, Decided))
    assert (first.frame, first.instruction, first.candidates, first.best, first.scores) == (None,) * 4 + ((),)
    assert first.marks == ("no frame",)
    assert second.marks == ("error", "unusable candidates")
    assert second.frame is not None


BAD_IMAGES: dict[str, Any] = {
    "empty": np.zeros((0, 640, 3), np.uint8),
    "empty, of PIL": Image.new("RGB", (0, 0)),
    "floats": image(4).astype(np.float32),
    "grey": image(4)[:, :, 0],
    "channel-first": np.zeros((3, 8, 9), np.uint8),
    "masked": np.ma.masked_array(image(4), True),
    "too small": image(4, 7, 7),
    "16-bit": Image.new("I;16", (9, 8)),
    "16-bit RGB": Image.open(io.BytesIO(DEEP_FILES["rgb.png"])),
    "half a file": Image.open(io.BytesIO(DEEP_FILES["rgb.png"][:60])),
    "a path": "frame.png",
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_fails_in_the_call_and_the_next_decision_is_recorded(tmp_path: Path, name: str) -> None:
    """Once, an empty frame ended the thread, and everything behind it was lost without a word."""
    with Recorder(tmp_path, HEADER, UNSYNCED) as recording:
        with pytest.raises(ImageError):
            recording.decision(seen(image=BAD_IMAGES[name]), DECISION, 0)
        with pytest.raises(ImageError):
            recording.frame(BAD_IMAGES[name], 0)
        for index in range(100):
            recording.decision(seen(index), DECISION, index)
    assert (recording.dropped, recording.failure) == ({}, None)
    assert kinds(tmp_path)["Decided"] == 100


@pytest.mark.parametrize("encoding", ["png", "raw"])
@pytest.mark.parametrize("mode", PIL_MODES)
def test_images_of_every_mode_are_recorded_as_they_are(tmp_path: Path, mode: str, encoding: str) -> None:
    given = Image.fromarray(np.dstack([image(4), image(5)[..., :1]])).convert("RGB" if mode == "P" else mode)
    given = given.quantize(20) if mode == "P" else given
    with recorder(tmp_path, frames=encoding) as recording:
        for index in range(2):
            recording.decision(seen(image=given), DECISION, index)
        recording.decision(seen(image=given.transpose(Image.Transpose.ROTATE_180)), DECISION, 2)
    index = LogIndex(ReplayLog(tmp_path))
    first, again, turned = (index.inputs(index.decision(number)) for number in index.decisions)  # type: ignore[arg-type]
    assert isinstance(first, Inputs)
    assert isinstance(turned, Inputs)
    assert first.frame == again.frame != turned.frame  # type: ignore[union-attr]
    found = Image.fromarray(first.image) if isinstance(first.image, np.ndarray) else first.image
    assert (found.mode, found.size) == (mode, given.size)
    assert found.tobytes() == given.tobytes()
    assert found.getpalette() == given.getpalette()


STAMPS: tuple[Any, ...] = (7, np.int64(7), np.uint64(7))
NO_STAMPS: tuple[Any, ...] = (None, 7.0, "7", float("nan"), np.int32(7), np.float64(7), True, 1 << 63, np.array([7]))


@pytest.mark.parametrize("stamp", STAMPS, ids=repr)
def test_stamps_of_every_kind_that_is_one(tmp_path: Path, stamp: Any) -> None:
    """Numpy's integers once lost every decision."""
    window = SensorWindow(np.ones((4, 3), np.float32), np.float32(100), stamp, np.int32(1))  # type: ignore[arg-type]
    with Recorder(tmp_path, HEADER, UNSYNCED) as recording:
        recording.frame(image(1), stamp)
        ages = {"frame_age_ns": stamp, "sensor_age_ns": stamp}
        recording.decision(seen(frame_ns=stamp, window=window, **ages), DECISION, stamp)
    assert (recording.dropped, recording.failure) == ({}, None)
    (entry,) = of_kind(tmp_path, Decided)
    meta = entry.meta
    assert (meta.stamp_ns, meta.frame_ns, meta.frame_age_ns, meta.sensor_age_ns) == (7, 7, 7, 7)
    assert meta.window is not None
    assert (meta.window.end_ns, meta.window.missing, meta.window.rate_hz) == (7, 1, 100.0)


@pytest.mark.parametrize("stamp", NO_STAMPS, ids=repr)
def test_stamps_that_are_none_fail_in_the_call(tmp_path: Path, stamp: Any) -> None:
    with Recorder(tmp_path, HEADER, UNSYNCED) as recording:
        for call in (lambda: recording.frame(image(1), stamp), lambda: recording.decision(seen(), DECISION, stamp)):
            with pytest.raises(InputError, match="not whole nanoseconds"):
                call()
        for name in ("frame_ns", "frame_age_ns", "sensor_age_ns"):
            if stamp is not None:
                with pytest.raises(InputError, match=f"(?s)not whole nanoseconds.*{name}"):
                    recording.decision(seen(**{name: stamp}), DECISION, 0)
        recording.decision(seen(), DECISION, 1)
    assert (recording.dropped, recording.failure) == ({}, None)
    assert kinds(tmp_path)["Decided"] == 1


WINDOW = SensorWindow(np.ones((4, 3), np.float32), 100.0)
BAD_CALLS: dict[str, tuple[dict[str, Any], Any]] = {
    "no instruction": ({"instruction": []}, DECISION),
    "an instruction in bytes": ({"instruction": b"go"}, DECISION),
    "half a character": ({"instruction": "\ud800"}, DECISION),
    "a number": ({"instruction": 7}, DECISION),
    "candidates": ({"histories": np.ma.masked_array(histories(0), True)}, DECISION),
    "a window without its rate": ({"window": WINDOW.samples}, DECISION),
    "a window of doubles": ({"window": replace(WINDOW, samples=np.ones((4, 3)))}, DECISION),
    "a matrix": ({"window": replace(WINDOW, samples=WINDOW.samples.view(np.matrix))}, DECISION),
    "an empty window": ({"window": replace(WINDOW, samples=WINDOW.samples[:0])}, DECISION),
    "a window that ends in NaN": ({"window": replace(WINDOW, end_ns=float("nan"))}, DECISION),
    "a rate of NaN": ({"window": replace(WINDOW, rate_hz=float("nan"))}, DECISION),
    "a selection": ({}, Selection(0, 0, 0.5, "go", np.zeros(1, np.float32), np.zeros((1, 3), np.float32))),
    "scores of doubles": ({}, replace(DECISION, scores=DECISION.scores.astype(np.float64))),
    "more candidates than scores": ({"histories": histories(0, 4)}, DECISION),
    "another winner": ({}, replace(DECISION, best=3)),
    "no members": ({}, replace(DECISION, member_scores=np.zeros((0, 3), np.float32))),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_fails_in_the_call_and_the_next_decision_is_recorded(tmp_path: Path, name: str) -> None:
    changes, decision = BAD_CALLS[name]
    with Recorder(tmp_path, HEADER, UNSYNCED) as recording:
        with pytest.raises((InputError, ReplayError)):
            recording.decision(seen(**changes), decision, 0)
        recording.decision(seen(), DECISION, 1)
        with pytest.raises(ReplayError, match="cannot be recorded"):
            recording.note("half a character: \ud800")
    assert (recording.dropped, recording.failure) == ({}, None)
    assert [entry.meta.stamp_ns for entry in of_kind(tmp_path, Decided)] == [1]


def test_what_a_refusal_cannot_have_been_made_on_is_marked(tmp_path: Path) -> None:
    bad = {
        name: changes for name, (changes, _) in BAD_CALLS.items() if changes and name != "more candidates than scores"
    }
    with Recorder(tmp_path, HEADER, UNSYNCED) as recording:
        for changes in (*bad.values(), {"image": BAD_IMAGES["empty"]}):
            recording.decision(seen(**changes), None, 0, marks=["error"])
        recording.decision(seen(image=BAD_IMAGES["grey"], instruction=[]), None, 0, marks="error")
    found = [entry.meta.marks[1:] for entry in of_kind(tmp_path, Decided)]
    kinds_of = {"instruction": 4, "candidates": 1, "sensor window": 6, "frame": 1}
    assert found[:-1] == [(f"unusable {what}",) for what, count in kinds_of.items() for _ in range(count)]
    assert found[-1] == ("unusable frame", "unusable instruction")
    assert (recording.dropped, recording.failure) == ({}, None)


@pytest.mark.parametrize(
    ("stamps", "samples"),
    [
        (np.zeros(2, np.float64), np.zeros((2, 3), np.float32)),
        (np.zeros(2, np.int64), np.zeros((2, 3))),
        (np.zeros(2, np.int64), np.zeros((3, 3), np.float32)),
        (np.zeros(2, np.int64), np.zeros((2, 4), np.float32)),
        (np.zeros((2, 1), np.int64), np.zeros((2, 3), np.float32)),
        ([0, 1], np.zeros((2, 3), np.float32)),
        (np.zeros(2, np.int64), np.zeros((2, 3), np.float32).view(np.matrix)),
        (np.zeros(2, np.int64), np.ma.masked_array(np.zeros((2, 3), np.float32), True)),
        (np.zeros(2, np.int32), np.zeros((2, 3), np.float32)),
        (None, None),
    ],
)
def test_samples_of_another_stream_are_refused(tmp_path: Path, stamps: Any, samples: Any) -> None:
    with recorder(tmp_path) as recording, pytest.raises(SensorError, match="cannot be taken"):
        recording.sensor(stamps, samples)


def test_a_log_without_a_sensor_takes_windows_but_no_stream(tmp_path: Path) -> None:
    window = SensorWindow(np.ones((4, 3), np.float32), 100.0)
    with recorder(tmp_path, header=replace(HEADER, sensor=None)) as recording:
        with pytest.raises(SensorError, match="no sensor"):
            recording.sensor(np.zeros(1, np.int64), np.zeros((1, 3), np.float32))
        recording.decision(seen(window=window), DECISION, 0)
    assert kinds(tmp_path)["WindowRows"] == 1


def test_windows_of_the_recorded_stream_are_named_and_others_written(tmp_path: Path) -> None:
    with recorder(tmp_path) as recording:
        robot = Robot()
        robot.work(recording, Fake(), 6)
        window = robot.seen[-1].window
        assert window is not None
        changed = frozen(window.samples)
        changed.setflags(write=True)
        changed[3, 1] = np.nextafter(changed[3, 1], np.float32(9))
        for _ in range(2):
            recording.decision(seen(window=replace(window, samples=changed)), DECISION, 0)
        recording.decision(seen(window=replace(window, samples=changed[:-1])), DECISION, 0)
    sources = [entry.meta.window for entry in of_kind(tmp_path, Decided)]
    assert [(source.row is None, source.record is None) for source in sources] == [(False, True)] * 6 + [
        (True, False)
    ] * 3
    assert [len(entry.arrays[0]) for entry in of_kind(tmp_path, WindowRows)] == [20, 19]
    assert sources[6].record == sources[7].record != sources[8].record


def test_a_closed_recorder_says_so(tmp_path: Path) -> None:
    for made in (recorder(tmp_path / "one"), Recorder(tmp_path / "two", HEADER, UNSYNCED)):
        made.close()
        made.close()
        with pytest.raises(ReplayError, match="closed"):
            made.note("x")


def test_what_the_log_says_of_a_bundle(tmp_path: Path) -> None:
    header = header_of(Fake().bundle)
    assert (header.bundle, header.actions, header.sensor) == ("ab" * 32, HEADER.actions, FORM)
    assert header_of(Fake(sensor=None).bundle).sensor is None


# --- the thread --------------------------------------------------------------------------------------------------


class Gate:
    """Stands for ``os.write``: waits until it is opened."""

    def __init__(self) -> None:
        self.open, self.reached, self.write = threading.Event(), threading.Event(), os.write

    def __call__(self, descriptor: int, data: memoryview) -> int:
        self.reached.set()
        assert self.open.wait(60)
        return self.write(descriptor, data)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr("trunkline.runtime.replay.segments.os.write", gate)
    return gate


def test_the_thread_writes_what_the_synchronous_recorder_writes(tmp_path: Path) -> None:
    found = []
    for made in (SyncRecorder, Recorder):
        folder = tmp_path / made.__name__
        with made(folder, HEADER, UNSYNCED, clock=Ticks()) as recording:
            Robot(seed=3).work(recording, Fake(), 30)
            recording.note("the end")
        found.append([path.read_bytes() for path in segments(folder)])
    assert found[0] == found[1]


def test_no_call_waits_for_the_disk_and_what_does_not_fit_is_counted(tmp_path: Path, gate: Gate) -> None:
    recording = Recorder(tmp_path, HEADER, UNSYNCED, frames="raw", queue_bytes=20_000)
    recording.note("first")
    assert gate.reached.wait(60)  # the thread hangs in the disk from now on
    calls: Counter[str] = Counter(note=1)
    for index in range(200):
        recording.frame(image(index, 20, 20), index)
        recording.decision(seen(index), DECISION, index)
        recording.sensor(np.arange(4), np.zeros((4, 3), np.float32))
        recording.note("x")
        calls.update(("frame", "decision", "sensor", "note"))
    assert recording._waiting_bytes <= 20_000
    before = recording.dropped
    assert set(before) == {"frame", "decision", "sensor", "note"}
    assert recording.failure is None
    gate.open.set()
    recording.close()
    assert recording.dropped == before
    summary = ReplayLog(tmp_path).summary()
    assert dict(summary.dropped) == before  # the log says so, too
    written = {"note": summary.records["Note"], "decision": summary.records["Decided"]}
    written["sensor"] = summary.records["SensorBlock"]
    assert {what: calls[what] - before[what] for what in written} == written


def test_rows_that_were_dropped_are_a_hole_in_the_numbers(tmp_path: Path, gate: Gate) -> None:
    recording = Recorder(tmp_path, HEADER, UNSYNCED, queue_bytes=3000)
    block = np.zeros((5, 3), np.float32)
    for _ in range(50):
        recording.sensor(np.arange(5), block)
    gate.open.set()
    recording.close()
    with recorder(tmp_path) as later:
        later.sensor(np.arange(5), block)
    rows = [entry.meta.row for entry in ReplayLog(tmp_path).entries() if type(entry.meta).__name__ == "SensorBlock"]
    assert rows[:-1] == [5 * index for index in range(len(rows) - 1)]
    assert len(rows) < 52
    assert recording.dropped["sensor"] == 50 - (len(rows) - 1)


def test_a_full_disk_is_counted_and_recording_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, write, refusing = threading.Event(), os.write, True

    def disk(descriptor: int, data: memoryview) -> int:
        if refusing:
            tried.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr("trunkline.runtime.replay.segments.os.write", disk)
    recording = Recorder(tmp_path, HEADER, UNSYNCED)
    recording.note("lost")
    assert tried.wait(60)
    while not recording.dropped:
        pass
    assert "no room on the disk" in str(recording.failure)
    refusing = False
    recording.note("kept")
    recording.close()
    assert recording.dropped == {"note": 1}
    metas = [entry.meta for entry in ReplayLog(tmp_path).entries()][1:]
    assert metas == [Dropped({"note": 1}), Note("kept")]


@pytest.mark.parametrize("error", [ValueError("tile cannot extend outside image"), MemoryError(), KeyError("x")])
@pytest.mark.parametrize("place", ["encoded", "packed"])
def test_whatever_goes_wrong_with_a_record_the_thread_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception
) -> None:
    """A fault that no check foresaw costs one record, is counted here and in the log, and told."""

    def broken(*arguments: object) -> None:
        raise error

    recording = Recorder(tmp_path, HEADER, UNSYNCED)
    with monkeypatch.context() as patch:
        patch.setattr(f"trunkline.runtime.replay.scribe.{place}", broken)
        recording.decision(seen(0), DECISION, 0)
        while not recording.dropped:
            pass
    assert recording.dropped == {"decision": 1}
    assert isinstance(recording.failure, ReplayError)
    assert recording.failure.__cause__ is error
    assert type(error).__name__ in str(recording.failure)
    assert "where: decision" in str(recording.failure)
    for index in range(1, 101):
        recording.decision(seen(index), DECISION, index)
    recording.close()
    assert recording.dropped == {"decision": 1}
    assert [entry.meta.stamp_ns for entry in of_kind(tmp_path, Decided)] == list(range(1, 101))
    assert dict(ReplayLog(tmp_path).summary().dropped) == {"decision": 1}


def test_an_idle_log_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = threading.Event()
    recording = Recorder(tmp_path, HEADER, LogLimits(sync_s=0.05))
    recording.note("x")
    monkeypatch.setattr("trunkline.runtime.replay.segments.os.fsync", lambda descriptor: synced.set())
    recording.note("y")
    assert synced.wait(60)
    recording.close()


def test_many_threads_may_record(tmp_path: Path) -> None:
    with Recorder(tmp_path, HEADER, UNSYNCED) as recording:

        def work(seed: int) -> None:
            for index in range(40):
                recording.decision(seen(seed * 100 + index), DECISION, index, marks=[str(seed)])

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    decided = [entry.meta for entry in of_kind(tmp_path, Decided)]
    for seed in range(4):
        assert [meta.stamp_ns for meta in decided if meta.marks == (str(seed),)] == list(range(40))
