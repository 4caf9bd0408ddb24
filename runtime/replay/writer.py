"""Appending to a log, and keeping it within its bounds.

Promises:

*Whole records.* A record is handed to the system in one piece and never changed. A process that is killed loses at most
the record it was writing; a power cut loses at most what the last ``sync_s`` seconds wrote.
*Bounds.* From the moment a log is opened, its segments never take more than ``bytes`` (file sizes; the file system
rounds them up), and no record is older than ``seconds`` before the newest one. The oldest segments go first, whole, and
before the record is written that would break a bound. A segment takes at most an eighth of either bound, so that a log
that is full holds at least three quarters of it.
*One writer.* A second one is refused, in this process or another.

What a writer that was cut off left behind is not touched: the next one begins a new segment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trunkline.runtime.errors import ReplayError
from trunkline.runtime.exact import is_number, is_whole
from trunkline.runtime.replay.disk_error import disk_error
from trunkline.runtime.replay.folder import FolderLock
from trunkline.runtime.replay.framing import (
    FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_SEGMENT,
    PREAMBLE_BYTES,
    Head,
    Preamble,
    pack_record,
    record_number,
)
from trunkline.runtime.replay.payloads import Header
from trunkline.runtime.replay.segments import OpenSegment, Segments

#: Nanoseconds that never go back.
Clock = Callable[[], int]

SHARES = 8
MIN_BYTES = 1 << 16
MAX_SEGMENT_BYTES = 64 << 20


@dataclass(frozen=True)
class LogLimits:
    """How much a log keeps.

    Attributes:
        bytes: of all segments together.
        seconds: from the oldest record to the newest.
        sync_s: seconds after which records are on the disk for sure, also when the power fails; None leaves it to the
            system. A process that is killed loses nothing either way.
    """

    bytes: int = 2 << 30
    seconds: float = 3600.0
    sync_s: float | None = 1.0

    @property
    def segment_bytes(self) -> int:
        """Size of the largest segment."""
        return min(self.bytes // SHARES, MAX_SEGMENT_BYTES)

    @property
    def span_ns(self) -> int:
        """``seconds`` in nanoseconds."""
        return int(self.seconds * 1e9)

    def check(self) -> None:
        """Raises ReplayError, with every reason, if nothing can be kept within these limits."""
        problems = []
        if not (is_whole(self.bytes) and self.bytes >= MIN_BYTES):
            problems.append(f"bytes is {self.bytes}, not a whole number from {MIN_BYTES}")
        if not (is_number(self.seconds) and 0 < self.seconds <= 1e9):
            problems.append(f"seconds is {self.seconds}, not above 0 and up to 1e9")
        if self.sync_s is not None and not (is_number(self.sync_s) and self.sync_s >= 0):
            problems.append(f"sync_s is {self.sync_s}, not a number from 0")
        if problems:
            raise ReplayError("no replay log can be kept within these limits", found=problems)


class LogWriter:
    """A log open for appending.

    Threads: for one at a time; :class:`~trunkline.runtime.replay.recorder.Recorder` has a thread for it. A process that
    was forked must open another log.

    Attributes:
        folder: the directory of the log.
        limits: what is kept.
        session: number of the first segment that this writer writes.
    """

    def __init__(
        self, folder: Path | str, header: bytes, limits: LogLimits | None = None, *, clock: Clock | None = None
    ) -> None:
        """Opens a log, new or not; nothing is written before the first record.

        Args:
            folder: its directory; it is made.
            header: payload of the record that every segment begins with.
            limits: what is kept.
            clock: gives the stamps; by default the time of the day when the log is opened, and from then on the time
                that passes, whatever happens to the clock on the wall.

        Raises:
            ReplayError: the directory cannot be used, another writer has it, or it was written by another version.
        """
        self.folder, self.limits = Path(folder), limits or LogLimits()
        self.limits.check()
        self._header, self._clock = header, clock or wall_clock()
        self._process = os.getpid()
        self._current: OpenSegment | None = None
        self._place = 0
        self._unsynced_ns: int | None = None
        self._lock: FolderLock | None = _lock(self.folder)
        try:
            self._segments = Segments(self.folder)
            # Behind all that is there, even where the clock was set back: stamps tell what is oldest.
            self._last_ns = self._segments.newest_ns
            self._ahead_ns = max(0, self._last_ns + 1 - self._clock())
            self._segments.drop(self.limits.bytes, self._last_ns - self.limits.span_ns, keep=0)
        except OSError as error:
            self._unlock()
            raise disk_error(error, self.folder) from error
        except BaseException:
            self._unlock()
            raise
        self.session = self._segments.following

    @property
    def segment(self) -> int:
        """Number of the segment that the last record is in, -1 if the next one will be in a new segment."""
        return -1 if self._current is None else self._current.number

    def begin(self, size: int) -> None:
        """Goes on to a new segment unless this one has room for so many bytes of records and is not too old.

        Raises:
            ReplayError: a new one cannot be written.
        """
        self._require_usable()
        current, now = self._current, self._now()
        if current is not None:
            fits = current.bytes + size <= self.limits.segment_bytes or size > self._room
            if fits and (now - current.start_ns) * SHARES <= self.limits.span_ns:
                return
        self._next_segment(now)

    def append(self, kind: int, payload: bytes, *, grouped: bool = False) -> int:
        """Writes a record.

        Args:
            kind: see :mod:`trunkline.runtime.replay.payloads`.
            payload: what :func:`~trunkline.runtime.replay.payloads.pack` made.
            grouped: it belongs to what :meth:`begin` was called for, and stays in that segment if it can.

        Returns:
            The number of the record.

        Raises:
            ReplayError: it is too large for this log, or could not be written; the log is then as it was before.
        """
        size = len(payload) + FRAME_BYTES
        self._require_usable()
        self._require_small(size)
        if not grouped:
            self.begin(size)
        current = self._current
        if current is None or current.bytes + size > self.limits.segment_bytes:
            current = self._next_segment(self._now())
        stamp_ns = self._now()
        number = record_number(current.number, self._place)
        self._drop(size, stamp_ns, keep=1)
        self._write(current, pack_record(Head(len(payload), number, stamp_ns, kind), payload))
        self._place += 1
        self._sync_if_due(stamp_ns)
        return number

    def sync(self) -> None:
        """Puts everything on the disk.

        Raises:
            ReplayError: the disk refuses.
        """
        self._require_usable()
        if self._current is not None and self._unsynced_ns is not None:
            try:
                self._current.sync()
            except OSError as error:
                raise disk_error(error, self.folder) from error
        self._unsynced_ns = None

    def close(self) -> None:
        """Puts everything on the disk and gives the log back. Calling it twice is fine.

        Raises:
            ReplayError: the disk refuses; the log is closed all the same.
        """
        if self._lock is None or os.getpid() != self._process:
            return
        try:
            self._close_segment()
        finally:
            self._unlock()

    @property
    def _room(self) -> int:
        """Bytes of records that a segment has room for."""
        return self.limits.segment_bytes - PREAMBLE_BYTES - FRAME_BYTES - len(self._header)

    def _require_usable(self) -> None:
        if self._lock is None:
            raise ReplayError("the replay log is closed", where=self.folder, fix="open it again")
        if os.getpid() != self._process:
            raise ReplayError(
                "the replay log was opened before this process was forked",
                where=self.folder,
                fix="record in the process that opened it, or open another log here",
            )

    def _require_small(self, size: int) -> None:
        most = min(self._room, MAX_PAYLOAD_BYTES + FRAME_BYTES)
        if size > most:
            raise ReplayError(
                "a record is too large for this log",
                where=self.folder,
                expected=f"at most {most} bytes",
                found=f"{size} bytes",
                fix=f"let the log keep more bytes, of which a record takes up to 1/{SHARES}; or record smaller frames",
            )

    def _now(self) -> int:
        self._last_ns = max(self._last_ns, self._clock() + self._ahead_ns)
        return self._last_ns

    def _drop(self, size: int, now_ns: int, keep: int) -> None:
        """Makes room for so many bytes that are to be written now."""
        try:
            self._segments.drop(self.limits.bytes - size, now_ns - self.limits.span_ns, keep)
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def _next_segment(self, now_ns: int) -> OpenSegment:
        self._close_segment()
        number = self._segments.following
        if number > MAX_SEGMENT:
            raise ReplayError("a replay log has used up its numbers", where=self.folder, fix="use another directory")
        head = Head(len(self._header), record_number(number, 0), now_ns, Header.kind)
        first = pack_record(head, self._header)
        self._drop(PREAMBLE_BYTES + len(first), now_ns, keep=0)
        try:
            self._current = OpenSegment(self.folder, Preamble(number, self.session, now_ns), first)
            self._segments.add(now_ns, self._current.bytes)
            if self.limits.sync_s is not None:
                _sync_folder(self.folder)
        except OSError as error:
            raise disk_error(error, self.folder) from error
        self._place, self._unsynced_ns = 1, now_ns
        return self._current

    def _close_segment(self) -> None:
        try:
            if self.limits.sync_s is not None:
                self.sync()
        finally:
            current, self._current = self._current, None
            if current is not None:
                current.close()

    def _write(self, current: OpenSegment, data: bytes) -> None:
        before = current.bytes
        try:
            current.write(data)
        except OSError as error:
            if current.broken:
                self._current = None
                current.close()
            raise disk_error(error, self.folder) from error
        finally:
            self._segments.grow(current.bytes - before)

    def _sync_if_due(self, now_ns: int) -> None:
        if self._unsynced_ns is None:
            self._unsynced_ns = now_ns
        if self.limits.sync_s is not None and now_ns - self._unsynced_ns >= self.limits.sync_s * 1e9:
            self.sync()

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()


def wall_clock() -> Clock:
    """The time of the day as it is now, and from now on the time that passes."""
    base_ns = time.time_ns() - time.monotonic_ns()
    return lambda: base_ns + time.monotonic_ns()


def _lock(folder: Path) -> FolderLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FolderLock(folder)
    except OSError as error:
        raise disk_error(error, folder) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
