"""The directory of a log: which files are its segments, and the lock that one writer holds.

Only files named like a segment are ever looked at or removed. The lock lies on a file beside them, is held by a
descriptor, and so goes with the process, however that ends; a forked child does not inherit it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import weakref
from pathlib import Path

from trunkline.runtime.errors import ReplayError
from trunkline.runtime.replay.framing import MAX_SEGMENT, PREAMBLE_BYTES, Preamble, unpack_preamble

LOCK_NAME = "lock"
SUFFIX = ".tlog"
_NAME = re.compile(r"([0-9]{10})" + re.escape(SUFFIX))

_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"{number:010d}{SUFFIX}"


def segment_numbers(folder: Path) -> list[int]:
    """Numbers of the segments in a folder, ascending.

    Raises:
        ReplayError: the folder cannot be listed.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise ReplayError(
            "cannot open a replay log", where=folder, found=error.strerror, fix="name the directory of the log"
        ) from error
    numbers = (int(match.group(1)) for name in names if (match := _NAME.fullmatch(name)))
    return sorted(number for number in numbers if number <= MAX_SEGMENT)


def open_segment(path: Path) -> int:
    """A descriptor for reading; nothing but a plain file is opened.

    Raises:
        FileNotFoundError: it is gone, which happens to the oldest while somebody writes.
        OSError: it is not a plain file, or cannot be read.
    """
    # O_NONBLOCK: a FIFO must not hang the open; it is refused right after.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file")
    return descriptor


def read_preamble(descriptor: int) -> Preamble | None:
    """How a segment begins, None if that is damaged or not all there.

    Raises:
        SchemaError: it is of another version.
    """
    data = os.pread(descriptor, PREAMBLE_BYTES, 0)
    return unpack_preamble(data) if len(data) == PREAMBLE_BYTES else None


class FolderLock:
    """The right to write a log. Threads: for one owner, who releases it."""

    def __init__(self, folder: Path) -> None:
        """Takes the lock.

        Raises:
            ReplayError: another writer holds it.
            OSError: the lock file cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(folder / LOCK_NAME, flags, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise ReplayError(
                "another writer has this replay log open",
                where=folder,
                fix="end that program, or write to another directory; reading needs no lock",
            ) from error
        _held.add(self)

    def release(self) -> None:
        """Gives the lock back. Calling it twice is fine."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            _held.discard(self)
            os.close(descriptor)


def _let_go() -> None:
    """In a forked child: the lock stays with the parent, and must not outlive it here."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go)
