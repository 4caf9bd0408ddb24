"""Appending: the bounds hold at every moment, one writer at a time, and a disk that refuses."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replay_kit import HEADER, MS, UNSYNCED, S, Ticks, contents, limits, of_kind, recorder, segments
from trunkline.runtime.errors import ReplayError
from trunkline.runtime.replay.framing import FRAME_BYTES, segment_of
from trunkline.runtime.replay.payloads import Header, Note, pack
from trunkline.runtime.replay.reader import Entry, ReplayLog, Torn
from trunkline.runtime.replay.writer import LogLimits, LogWriter

HEADER_PAYLOAD = pack(HEADER)
LEAST = 1 << 16


def writer(folder: Path, clock: Ticks, chosen: LogLimits = UNSYNCED) -> LogWriter:
    return LogWriter(folder, HEADER_PAYLOAD, chosen, clock=clock)


def note(size: int = 20, letter: str = "x") -> bytes:
    return pack(Note(letter * size))


def taken(folder: Path) -> int:
    return sum(path.stat().st_size for path in segments(folder))


def stamps(folder: Path) -> list[int]:
    return [entry.stamp_ns for entry in ReplayLog(folder).entries()]


steps = st.lists(
    st.tuples(st.integers(1, 7000), st.sampled_from([0, 1, 40, 300, 900, 2500]), st.booleans()), min_size=1, max_size=60
)


@given(steps, st.floats(0.5, 5.0))
@settings(max_examples=40, deadline=None)
def test_both_bounds_hold_after_every_record(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bool]], seconds: float
) -> None:
    folder, clock = tmp_path_factory.mktemp("bounds") / "log", Ticks()
    chosen = limits(bytes=LEAST, seconds=seconds)
    log, written = writer(folder, clock, chosen), 0
    for size, wait_ms, again in steps:
        clock.now_ns += wait_ms * MS
        number = log.append(Note.kind, note(size))
        written += len(note(size)) + FRAME_BYTES
        assert taken(folder) <= LEAST
        found = stamps(folder)
        assert found[-1] - found[0] <= seconds * S
        assert [entry.number for entry in ReplayLog(folder).entries()][-1] == number
        assert all(path.stat().st_size <= LEAST // 8 for path in segments(folder))
        if again:
            log.close()
            log = writer(folder, clock, chosen)
            assert taken(folder) <= LEAST
    log.close()


def test_a_full_log_holds_three_quarters_of_its_bytes(tmp_path: Path) -> None:
    log = writer(tmp_path, Ticks(), limits(bytes=LEAST))
    for _ in range(300):
        log.append(Note.kind, note(700))
        assert taken(tmp_path) <= LEAST
    assert taken(tmp_path) >= LEAST * 3 / 4


def test_a_log_of_enough_time_holds_three_quarters_of_its_seconds(tmp_path: Path) -> None:
    clock = Ticks()
    log = writer(tmp_path, clock, limits(seconds=8.0))
    for index in range(3000):
        clock.now_ns += 10 * MS
        log.append(Note.kind, note(1))
        if index > 800 and index % 37 == 0:
            found = stamps(tmp_path)
            assert 6 * S <= found[-1] - found[0] <= 8 * S


def test_nothing_is_dropped_before_a_bound_is_reached(tmp_path: Path) -> None:
    log = writer(tmp_path, Ticks(), limits(bytes=LEAST))
    count = 0
    while taken(tmp_path) < LEAST * 7 // 8 - 200:
        log.append(Note.kind, note(100))
        count += 1
    assert len(list(of_kind(tmp_path, Note))) == count


def test_the_oldest_go_first(tmp_path: Path) -> None:
    log = writer(tmp_path, Ticks(), limits(bytes=LEAST))
    numbers = [log.append(Note.kind, note(3000)) for _ in range(100)]
    found = [entry.number for entry in of_kind(tmp_path, Note)]
    assert found == numbers[-len(found) :]
    assert 10 < len(found) < 22


def test_a_smaller_limit_holds_from_the_moment_of_opening(tmp_path: Path) -> None:
    with recorder(tmp_path, limits=limits(bytes=LEAST * 4)) as recording:
        for _ in range(60):
            recording.note("x" * 3000)
    assert taken(tmp_path) > LEAST
    writer(tmp_path, Ticks(), limits(bytes=LEAST)).close()
    assert taken(tmp_path) <= LEAST
    assert of_kind(tmp_path, Note)


def test_every_segment_begins_with_the_header(tmp_path: Path) -> None:
    log = writer(tmp_path, Ticks(), limits(bytes=LEAST))
    for _ in range(10):
        log.append(Note.kind, note(3000))
    assert len(segments(tmp_path)) > 3
    for path in segments(tmp_path):
        first = next(iter(ReplayLog(tmp_path).entries_of(int(path.stem))))
        assert first.meta == HEADER
        assert first.number == int(path.stem) << 32


def test_a_group_stays_in_one_segment(tmp_path: Path) -> None:
    log = writer(tmp_path, Ticks(), limits(bytes=LEAST))
    for _ in range(20):
        sizes = [len(note(size)) + FRAME_BYTES for size in (900, 2000, 800)]
        log.begin(sum(sizes))
        group = {segment_of(log.append(Note.kind, note(size), grouped=True)) for size in (900, 2000, 800)}
        assert len(group) == 1


def test_a_group_that_no_segment_holds_is_written_all_the_same(tmp_path: Path) -> None:
    log = writer(tmp_path, Ticks(), limits(bytes=LEAST))
    for _ in range(4):
        log.begin(12_000)
        for _ in range(3):
            log.append(Note.kind, note(4000), grouped=True)
    assert len(list(of_kind(tmp_path, Note))) == 12


def test_a_record_that_is_too_large_is_refused_and_leaves_the_log_alone(tmp_path: Path) -> None:
    log = writer(tmp_path, Ticks(), limits(bytes=LEAST))
    log.append(Note.kind, note())
    before = contents(tmp_path)
    with pytest.raises(ReplayError, match="too large for this log"):
        log.append(Note.kind, note(9000))
    log.append(Note.kind, note(letter="y"))
    assert contents(tmp_path)[:-1] == before


@pytest.mark.parametrize("back_s", [0, 1, 3600, 1_600_000_000])
def test_stamps_never_go_back_when_the_clock_does(tmp_path: Path, back_s: int) -> None:
    clock = Ticks()
    for _ in range(3):
        log = writer(tmp_path, clock, limits(seconds=100.0))
        for _ in range(5):
            clock.now_ns += S
            log.append(Note.kind, note())
        log.close()
        clock.now_ns -= back_s * S
    found = stamps(tmp_path)
    assert found == sorted(found)
    assert len(found) == 18
    assert found[-1] - found[0] <= 20 * S


def test_a_stamp_at_the_end_of_time_does_not_stop_the_next_writer(tmp_path: Path) -> None:
    log = writer(tmp_path, Ticks((1 << 63) - 5))
    log.append(Note.kind, note())
    log.close()
    log = writer(tmp_path, Ticks())
    log.append(Note.kind, note())
    assert len(list(of_kind(tmp_path, Note))) >= 1


def test_limits_without_sense_are_refused_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(ReplayError) as caught:
        LogWriter(tmp_path, HEADER_PAYLOAD, LogLimits(bytes=5, seconds=float("nan"), sync_s=-1.0))
    assert all(word in str(caught.value) for word in ("bytes is 5", "seconds is nan", "sync_s is -1"))


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    first = writer(tmp_path, Ticks())
    with pytest.raises(ReplayError, match="another writer has this replay log open"):
        writer(tmp_path, Ticks())
    first.append(Note.kind, note())  # the first one did not notice
    first.close()
    first.close()
    writer(tmp_path, Ticks()).close()
    with pytest.raises(ReplayError, match="closed"):
        first.append(Note.kind, note())


HOLDER = """
import os, sys
from tests.replay_kit import Ticks, recorder
from pathlib import Path
recording = recorder(Path(sys.argv[1]))
recording.note("held")
if len(sys.argv) > 2 and os.fork() == 0:
    try:
        recording.note("from the child")
    except Exception as error:
        print(type(error).__name__, flush=True)
    sys.stdin.read()  # lives on
    os._exit(0)
if len(sys.argv) > 2:
    os.wait() if sys.argv[2] == "wait" else os._exit(0)
print("held", flush=True)
sys.stdin.read()
"""


def hold(folder: Path, *words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_the_lock_of_another_process_goes_with_it(tmp_path: Path) -> None:
    process = hold(tmp_path)
    with pytest.raises(ReplayError, match="another writer"):
        writer(tmp_path, Ticks())
    assert [entry.meta for entry in of_kind(tmp_path, Note)] == [Note("held")]  # readers need no lock
    process.kill()
    process.wait()
    writer(tmp_path, Ticks()).close()


def test_a_forked_child_neither_writes_nor_keeps_the_lock(tmp_path: Path) -> None:
    process = hold(tmp_path, "leave")  # the parent is gone, its child waits
    assert process.wait() == 0
    log = writer(tmp_path, Ticks())
    log.append(Note.kind, note())
    process.communicate()
    assert len(list(of_kind(tmp_path, Note))) == 2


class Disk:
    """Stands for ``os.write``: takes so many bytes, then refuses."""

    def __init__(self, room: int, problem: int = errno.ENOSPC) -> None:
        self.room, self.problem, self.write = room, problem, os.write

    def __call__(self, descriptor: int, data: memoryview) -> int:
        if self.room <= 0:
            raise OSError(self.problem, os.strerror(self.problem))
        count = self.write(descriptor, data[: self.room])
        self.room -= count
        return count


@pytest.mark.parametrize("room", [0, 1, 31, 40, 60])
def test_a_full_disk_is_said_and_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    log = writer(tmp_path, Ticks())
    first = log.append(Note.kind, note())
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("trunkline.runtime.replay.segments.os.write", Disk(room))
        for _ in range(3):
            with pytest.raises(ReplayError, match="no room on the disk") as caught:
                log.append(Note.kind, note())
        assert str(tmp_path) in str(caught.value)
        assert list(ReplayLog(tmp_path).items())[-1].number == first  # type: ignore[union-attr]
        assert contents(tmp_path) == before
    second = log.append(Note.kind, note(letter="y"))
    assert second == first + 1
    assert len(segments(tmp_path)) == 1


@pytest.mark.parametrize("room", [0, 1, 31, 40, 700])
def test_a_segment_that_cannot_begin_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    log = writer(tmp_path, Ticks())
    with monkeypatch.context() as patch:
        patch.setattr("trunkline.runtime.replay.segments.os.write", Disk(room))
        with pytest.raises(ReplayError, match="no room on the disk"):
            log.append(Note.kind, note(500))
        assert len(segments(tmp_path)) == (room == 700)
    log.append(Note.kind, note())
    assert [entry.meta for entry in of_kind(tmp_path, Note)] == [Note("x" * 20)]


def test_half_a_record_that_cannot_be_taken_back_ends_its_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = writer(tmp_path, Ticks())
    log.append(Note.kind, note())
    with monkeypatch.context() as patch:
        patch.setattr("trunkline.runtime.replay.segments.os.write", Disk(50, errno.EIO))
        patch.setattr("trunkline.runtime.replay.segments.os.ftruncate", Disk(0))
        with pytest.raises(ReplayError, match="cannot be written"):
            log.append(Note.kind, note())
    log.append(Note.kind, note(letter="y"))
    items = list(ReplayLog(tmp_path).items())
    assert [item.bytes for item in items if isinstance(item, Torn)] == [50]
    assert [item.meta.text[0] for item in items if isinstance(item, Entry) and isinstance(item.meta, Note)] == [
        "x",
        "y",
    ]
    assert log._segments.total == taken(tmp_path)


LIMITED = """
import resource, sys
from pathlib import Path
from tests.replay_kit import recorder
from trunkline.runtime.errors import ReplayError
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
written = 0
with recorder(Path(sys.argv[1])) as recording:
    try:
        while True:
            recording.note("x" * 100)
            written += 1
    except ReplayError as error:
        print(written, error)
"""


def test_a_system_that_writes_half_and_refuses_the_rest(tmp_path: Path) -> None:
    """No patch: the kernel's own limit of a file's size."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=True,
        timeout=60,
    )
    written, _, message = done.stdout.partition(" ")
    assert "no room" in message
    items = list(ReplayLog(tmp_path).items())
    assert all(isinstance(item, Entry) for item in items)
    assert len(items) == int(written) + 1 > 5


def test_what_is_written_is_synced_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, synced = Ticks(), []
    monkeypatch.setattr("trunkline.runtime.replay.segments.os.fsync", lambda descriptor: synced.append(clock.now_ns))
    log = writer(tmp_path, clock, LogLimits(sync_s=1.0))
    unsynced_since = None
    for index in range(200):
        clock.now_ns += (index * 37 % 400) * MS
        done = len(synced)
        log.append(Note.kind, note())
        if len(synced) > done and index:
            unsynced_since = None
        elif unsynced_since is None:
            unsynced_since = clock.now_ns
        assert unsynced_since is None or clock.now_ns - unsynced_since < 1 * S
    before = len(synced)
    log.close()
    assert len(synced) >= before
    assert before > 20


def test_a_disk_that_does_not_sync_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ticks()
    log = writer(tmp_path, clock, LogLimits(sync_s=1.0))
    log.append(Note.kind, note())

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("trunkline.runtime.replay.segments.os.fsync", refuse)
        clock.now_ns += 2 * S
        with pytest.raises(ReplayError, match="cannot be written"):
            log.append(Note.kind, note())
    log.close()
    assert len(list(of_kind(tmp_path, Note))) == 2


def test_a_directory_that_cannot_be_made_or_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReplayError, match="cannot be written"):
        writer(tmp_path / "file", Ticks())
    with pytest.raises(ReplayError, match="cannot be written"):
        writer(tmp_path / "file" / "log", Ticks())


def test_other_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    names = ["notes.txt", "1.tlog", "00000000001.tlog", "0000000001.tlog.bak", "9999999999.tlog", "a0000000001.tlog"]
    for name in names:
        (tmp_path / name).write_text("mine")
    log = writer(tmp_path, Ticks(), limits(bytes=LEAST))
    for _ in range(60):
        log.append(Note.kind, note(3000))
    assert all((tmp_path / name).read_text() == "mine" for name in names)
    assert len(list(of_kind(tmp_path, Header))) > 1


def test_a_log_is_read_while_it_is_written(tmp_path: Path) -> None:
    log = writer(tmp_path, Ticks())
    count, done, problems = 400, threading.Event(), []

    def write() -> None:
        for index in range(count):
            log.append(Note.kind, note(1 + index % 300))
        done.set()

    thread = threading.Thread(target=write)
    log.append(Note.kind, note())
    thread.start()
    last = 0
    while True:
        finished = done.is_set()
        items = list(ReplayLog(tmp_path).items())
        found = [item.number for item in items if isinstance(item, Entry)]
        problems += [item for item in items if not isinstance(item, Entry | Torn)]
        assert found == list(range(len(found)))
        assert len(found) >= last
        last = len(found)
        if finished:
            break
    thread.join()
    assert problems == []
    assert last == count + 2


def test_segments_that_are_dropped_while_they_are_read_are_no_damage(tmp_path: Path) -> None:
    log = writer(tmp_path, Ticks(), limits(bytes=LEAST))
    for _ in range(20):
        log.append(Note.kind, note(3000))
    items = ReplayLog(tmp_path).items()
    first = next(items)
    for _ in range(40):
        log.append(Note.kind, note(3000))
    rest = list(items)  # the first segment is still open, those after it are gone
    assert isinstance(first, Entry)
    assert all(isinstance(item, Entry) for item in rest)
    assert {segment_of(item.number) for item in rest if isinstance(item, Entry)} == {first.segment}


def test_where_there_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="is not a replay log"):
        ReplayLog(tmp_path)
    with pytest.raises(ReplayError, match="cannot open a replay log"):
        ReplayLog(tmp_path / "nothing")
    with recorder(tmp_path / "unused"):
        pass
    assert list((tmp_path / "unused").iterdir()) == [tmp_path / "unused" / "lock"]
