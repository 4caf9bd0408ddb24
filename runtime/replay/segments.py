"""The segments of a log as its writer sees them: how many, how large, how old, and the one that is being written."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from trunkline.runtime.errors import ReplayError
from trunkline.runtime.replay.folder import open_segment, read_preamble, segment_numbers, segment_path
from trunkline.runtime.replay.framing import Preamble, SchemaError, pack_preamble
from trunkline.runtime.replay.reader import ReplayLog

#: Older than any stamp, and a stamp that leaves room for what comes; a forged one must not make the next impossible.
LONG_AGO_NS, FAR_AHEAD_NS = -(1 << 62), 1 << 62
#: However small they are: a program that crashes and starts all day must not fill a directory.
MAX_SEGMENTS = 4096


@dataclass
class Segment:
    """A file of the log: when it begins, and how large it is."""

    number: int
    start_ns: int
    bytes: int


class Segments:
    """All segments, oldest first. Threads: for the writer's owner.

    Attributes:
        total: bytes of all of them.
        newest_ns: stamp of the newest record that was there.
        following: the number that comes next.
    """

    def __init__(self, folder: Path) -> None:
        """Looks at what is there.

        Raises:
            ReplayError: it was written by another version.
            OSError: the folder cannot be read.
        """
        self._folder = folder
        self._all: deque[Segment] = deque()
        numbers = segment_numbers(folder)
        self.newest_ns = later_ns = _newest_ns(folder, numbers)
        for number in reversed(numbers):
            path = segment_path(folder, number)
            later_ns = min(later_ns, _start_ns(path, later_ns))
            self._all.appendleft(Segment(number, later_ns, path.lstat().st_size))
        self.total = sum(segment.bytes for segment in self._all)
        self.following = numbers[-1] + 1 if numbers else 0

    def add(self, start_ns: int, size: int) -> None:
        """The next segment was begun with so many bytes."""
        self._all.append(Segment(self.following, start_ns, size))
        self.following += 1
        self.total += size

    def grow(self, size: int) -> None:
        """The newest segment took so many bytes more."""
        self._all[-1].bytes += size
        self.total += size

    def drop(self, most_bytes: int, since_ns: int, keep: int) -> None:
        """Removes the oldest until the others take no more than so many bytes and none begins before ``since_ns``.

        ``keep`` of the newest are not removed.

        Raises:
            OSError: one cannot be removed.
        """
        while len(self._all) > keep:
            oldest = self._all[0]
            if self.total <= most_bytes and oldest.start_ns >= since_ns and len(self._all) < MAX_SEGMENTS:
                return
            segment_path(self._folder, oldest.number).unlink(missing_ok=True)
            self.total -= oldest.bytes
            self._all.popleft()


def _start_ns(path: Path, unknown_ns: int) -> int:
    """Stamp of a segment's beginning; ``unknown_ns`` where it is damaged or no file at all."""
    try:
        descriptor = open_segment(path)
    except OSError:
        return unknown_ns
    try:
        preamble = read_preamble(descriptor)
    except SchemaError as error:
        raise ReplayError(
            "a replay log of another version is not written to",
            where=path,
            found=f"schema {error}",
            fix="give the recorder another directory",
        ) from error
    finally:
        os.close(descriptor)
    return preamble.start_ns if preamble else unknown_ns


def _newest_ns(folder: Path, numbers: list[int]) -> int:
    """Stamp of the last record of the newest segment that has one."""
    for number in reversed(numbers):
        stamps = [entry.stamp_ns for entry in ReplayLog(folder).entries_of(number)]
        if stamps:
            return min(max(stamps), FAR_AHEAD_NS)
    return LONG_AGO_NS


class OpenSegment:
    """The segment that is being written. Threads: for the writer's owner.

    Attributes:
        number: of the segment.
        start_ns: stamp of its beginning.
        bytes: its size.
        broken: it ends in half a record that could not be taken back, so that nothing may follow.
    """

    def __init__(self, folder: Path, preamble: Preamble, first: bytes) -> None:
        """Makes the file, with its first record in it.

        Raises:
            OSError: there is no room for it; the file is gone again.
        """
        path = segment_path(folder, preamble.segment)
        self.number, self.start_ns = preamble.segment, preamble.start_ns
        self.bytes, self.broken = 0, False
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self.write(pack_preamble(preamble) + first)
        except OSError:
            os.close(self._file)
            path.unlink(missing_ok=True)
            raise

    def write(self, data: bytes) -> None:
        """Appends all of it or nothing, as long as the process lives.

        Raises:
            OSError: it could not be written.
        """
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            self._take_back()
            raise
        self.bytes += len(data)

    def _take_back(self) -> None:
        """Cuts off what was written of a record; readers would take it for the end, and all behind it for damage."""
        try:
            os.ftruncate(self._file, self.bytes)
        except OSError:
            self.broken, self.bytes = True, os.fstat(self._file).st_size

    def sync(self) -> None:
        """Raises OSError if the disk refuses."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)
