"""Reading a log: every whole record in order, and what is wrong, with the place.

A log may be read while it is written. What a writer was cut off in is *torn*: the last bytes of a segment that do not
make a whole record. Anything else that cannot be read is *damage*: reading goes on behind it. A damaged record is never
returned, and a record is never returned twice. No more memory is asked for than the largest record takes.

Threads: a :class:`ReplayLog` keeps nothing open and changes nothing; any number may use one.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trunkline.runtime.errors import ReplayError
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.replay.folder import open_segment, read_preamble, segment_numbers, segment_path
from trunkline.runtime.replay.framing import (
    HEAD_BYTES,
    MARKER,
    OLDEST_SCHEMA,
    PREAMBLE_BYTES,
    SCHEMA,
    Head,
    SchemaError,
    record_number,
    unpack_head,
    unpack_payload,
)
from trunkline.runtime.replay.payloads import Array, Dropped, Meta, PayloadError, unpack

_SEARCH_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Entry:
    """A record.

    Attributes:
        segment: number of the segment it is in.
        session: number of the first segment of its writer; rows of sensor blocks count within a session.
        offset: where it begins in the file, in bytes.
        number: unique in the log and ascending.
        stamp_ns: when it was written, nanoseconds since 1970 as far as the writer's clock was right; never descending
            within a session.
        meta: what it is.
        arrays: what it holds, read-only; see :mod:`trunkline.runtime.replay.payloads`.
    """

    segment: int
    session: int
    offset: int
    number: int
    stamp_ns: int
    meta: Meta
    arrays: tuple[Array, ...]


@dataclass(frozen=True)
class Damage:
    """Bytes that should be a record and are not: where they begin, how many they are, and what is wrong."""

    segment: int
    offset: int
    bytes: int
    reason: str


@dataclass(frozen=True)
class Torn:
    """The end of a segment whose writer was cut off, or is still writing."""

    segment: int
    offset: int
    bytes: int


Item = Entry | Damage | Torn


@dataclass
class Summary:
    """What a log holds.

    Attributes:
        segments: how many files.
        bytes: of all segments.
        records: how many of each kind.
        first_ns: stamp of the oldest record, None without one.
        last_ns: stamp of the newest record.
        sessions: how many writers' records there are.
        dropped: what writers could not write, by what it was.
        damage: what cannot be read.
        torn: ends that were cut off.
    """

    segments: int = 0
    bytes: int = 0
    records: Counter[str] = field(default_factory=Counter)
    first_ns: int | None = None
    last_ns: int | None = None
    sessions: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    damage: list[Damage] = field(default_factory=list)
    torn: list[Torn] = field(default_factory=list)


class ReplayLog:
    """A log opened for reading.

    Attributes:
        folder: the directory of the log.
    """

    def __init__(self, folder: Path | str) -> None:
        """Raises ReplayError if there is no log at this path."""
        self.folder = Path(folder)
        if not segment_numbers(self.folder):
            raise ReplayError(
                "a directory is not a replay log",
                where=self.folder,
                expected=f"segments such as {segment_path(self.folder, 0).name}",
                found="none",
                fix="name the directory that the recorder was given",
            )

    def items(self, progress: Progress = silent) -> Iterator[Item]:
        """All records, oldest first, with damage and torn ends where they are.

        Args:
            progress: told about segments.

        Raises:
            ReplayError: a segment cannot be opened, or is of another version.
        """
        numbers = segment_numbers(self.folder)
        for done, number in enumerate(numbers):
            progress("reading the log", done, len(numbers))
            yield from self._segment(number)
        progress("reading the log", len(numbers), len(numbers))

    def entries(self, progress: Progress = silent) -> Iterator[Entry]:
        """All records, oldest first.

        Raises:
            ReplayError: as :meth:`items`.
        """
        return (item for item in self.items(progress) if isinstance(item, Entry))

    def entries_of(self, segment: int) -> Iterator[Entry]:
        """All records of one segment; none if it is gone.

        Raises:
            ReplayError: as :meth:`items`.
        """
        return (item for item in self._segment(segment) if isinstance(item, Entry))

    def read(self, segment: int, offset: int, number: int) -> Entry | None:
        """One record again, None if it is no longer there.

        Raises:
            ReplayError: as :meth:`items`.
        """
        try:
            with _opened(self.folder, segment) as file:
                head = file.head(offset, number - 1)
                item = None if head is None or head.number != number else file.entry(offset, head)
        except OSError:
            return None
        return item if isinstance(item, Entry) else None

    def summary(self, progress: Progress = silent) -> Summary:
        """Reads the whole log and counts.

        Raises:
            ReplayError: as :meth:`items`.
        """
        summary, sessions = Summary(), set()
        for number in segment_numbers(self.folder):
            try:
                summary.bytes += os.stat(segment_path(self.folder, number)).st_size
            except FileNotFoundError:
                continue
            summary.segments += 1
        for item in self.items(progress):
            if isinstance(item, Entry):
                sessions.add(item.session)
            _count(summary, item)
        summary.sessions = len(sessions)
        return summary

    def _segment(self, number: int) -> Iterator[Item]:
        position = 0
        try:
            with _opened(self.folder, number) as file:
                for item in file.items():
                    yield item
                    position = file.position
        except FileNotFoundError:  # dropped by the writer since it was listed
            return
        except OSError as error:  # a link, a directory, a bad block: the other segments are still worth reading
            yield Damage(number, position, 0, f"the file cannot be read: {error.strerror}")


def _count(summary: Summary, item: Item) -> None:
    if isinstance(item, Damage):
        summary.damage.append(item)
    elif isinstance(item, Torn):
        summary.torn.append(item)
    else:
        summary.records[type(item.meta).__name__] += 1
        summary.first_ns = item.stamp_ns if summary.first_ns is None else min(summary.first_ns, item.stamp_ns)
        summary.last_ns = item.stamp_ns if summary.last_ns is None else max(summary.last_ns, item.stamp_ns)
        if isinstance(item.meta, Dropped):
            summary.dropped.update(item.meta.counts)


class _Segment:
    """One file, open. Threads: for the one who opened it."""

    def __init__(self, number: int, descriptor: int) -> None:
        self._number = number
        self._descriptor = descriptor
        # What is appended from now on is left to the next reader.
        self._size = os.fstat(descriptor).st_size
        self._preamble = read_preamble(descriptor)
        self.position = 0

    def items(self) -> Iterator[Item]:
        if self._size < PREAMBLE_BYTES:
            yield Torn(self._number, 0, self._size)
        elif self._preamble is None:
            yield Damage(self._number, 0, self._size, "the segment's beginning is damaged, or it is no segment at all")
        elif self._preamble.segment != self._number:
            yield Damage(self._number, 0, self._size, f"it was written as segment {self._preamble.segment}")
        else:
            yield from self._records()

    def _records(self) -> Iterator[Item]:
        self.position, last = PREAMBLE_BYTES, record_number(self._number, 0) - 1
        while left := self._size - self.position:
            head = self.head(self.position, last)
            if left < (HEAD_BYTES if head is None else head.size):
                yield Torn(self._number, self.position, left)
                return
            if head is None:
                begin, self.position = self.position, self._search(self.position + 1, last)
                yield Damage(self._number, begin, self.position - begin, "no record begins here")
                continue
            item = self.entry(self.position, head)
            self.position, last = self.position + head.size, head.number
            yield item

    def head(self, offset: int, after: int) -> Head | None:
        """The head at an offset, None if there is none or the file ends in it."""
        data = os.pread(self._descriptor, HEAD_BYTES, offset)
        return unpack_head(data, self._number, after) if len(data) == HEAD_BYTES else None

    def entry(self, offset: int, head: Head) -> Entry | Damage:
        """The record behind a good head."""
        record = self._read(offset, head.size)
        payload = unpack_payload(record) if len(record) == head.size else None
        if payload is None:
            return Damage(self._number, offset, head.size, "the checksum of the record is wrong")
        try:
            meta, arrays = unpack(head.kind, payload)
        except PayloadError as error:
            return Damage(self._number, offset, head.size, f"the record is malformed: {error}")
        session = self._preamble.session if self._preamble else 0
        return Entry(self._number, session, offset, head.number, head.stamp_ns, meta, arrays)

    def _read(self, offset: int, count: int) -> bytes:
        parts = []
        while count and (part := os.pread(self._descriptor, count, offset)):
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _search(self, offset: int, after: int) -> int:
        """Where the next whole head begins, or the end of the file. Time grows with the bytes between."""
        while offset < self._size:
            data = self._read(offset, min(_SEARCH_BYTES, self._size - offset))
            place = data.find(MARKER)
            while 0 <= place <= len(data) - HEAD_BYTES:
                if unpack_head(data[place : place + HEAD_BYTES], self._number, after):
                    return offset + place
                place = data.find(MARKER, place + 1)
            if offset + len(data) >= self._size or len(data) < HEAD_BYTES:
                break
            offset += len(data) - HEAD_BYTES + 1  # a head may lie across the edge
        return self._size


@contextlib.contextmanager
def _opened(folder: Path, number: int) -> Iterator[_Segment]:
    """A segment to read from.

    Raises:
        ReplayError: it is of another version.
        OSError: it is gone, or cannot be read.
    """
    path = segment_path(folder, number)
    descriptor = open_segment(path)
    try:
        yield _Segment(number, descriptor)
    except SchemaError as error:
        raise ReplayError(
            "a replay log was written by another version of Trunkline",
            where=path,
            expected=f"schema {OLDEST_SCHEMA} to {SCHEMA}",
            found=f"schema {error}",
            fix="update Trunkline here, or read the log with the version that wrote it",
        ) from error
    finally:
        os.close(descriptor)
