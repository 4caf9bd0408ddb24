"""Locks between processes: on an open file, so that the kernel releases them when their holder dies, however it dies.

A lock file is empty and never removed: a process that waited on a removed one would hold a lock that nobody sees.
Where nothing can be written, a shared lock holds nothing: what was read is in memory, whoever removes the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType

#: What the kernel answers where nothing can be created.
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class FileLock:
    """A held lock. Any thread may close it; a forked child lets go of its copy without releasing the parent's."""

    _descriptor: int | None = None

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        """Opens the lock file; nothing is held before :meth:`take` or :meth:`try_to_take`.

        Args:
            path: made if it is not there, with its folder.
            shared: any number of holders of shared locks stand beside each other, none beside an exclusive one.

        Raises:
            OSError: the file cannot be made or opened.
        """
        self._how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._descriptor = _opened(path, shared)
        _held.add(self)

    def try_to_take(self) -> bool:
        """Takes the lock if nobody stands in the way."""
        try:
            self._lock(fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def take(self) -> None:
        """Waits for the lock; interrupted by Ctrl-C."""
        self._lock(0)

    def _lock(self, flags: int) -> None:
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, self._how | flags)

    def close(self) -> None:
        """Releases the lock. Calling it twice is fine."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _opened(path: Path, shared: bool) -> int | None:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    except OSError as error:
        if not shared or error.errno not in READ_ONLY:
            raise
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY | flags)
    return None


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _let_go() -> None:
    """Without it, a child that outlives its parent would keep everybody waiting.

    Closing a copy releases nothing: the lock belongs to the open file, which the parent still holds.
    """
    for lock in list(_held):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
