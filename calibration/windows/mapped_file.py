"""A file mapped for reading, with a bound on the memory that looking at it takes.

Pages of a mapped file that were looked at count as the process's own until the system drops them, which it does only
when memory is short. Here they are given back after every 64 MB that were handed out. Arrays that are still in use stay
valid: their pages come back, from the system's cache, when they are looked at again.

A mapped file must not be cut short: the system ends a process that looks at pages that are gone. Stores are therefore
replaced as a whole, never written to.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import DatasetError
from trunkline.runtime.files import Identity

#: So much is handed out before pages are given back.
RELEASE_BYTES = 64 << 20


class MappedFile:
    """A plain file, mapped read-only; arrays over it live as long as somebody holds them.

    Any number of threads may use one. What they count together may be off by what they count at the same moment, which
    moves the next release by as much.

    Attributes:
        path: the file.
        size: in bytes.
    """

    def __init__(self, path: Path) -> None:
        """Maps the file.

        Raises:
            DatasetError: it is missing, empty, no plain file, or cannot be read.
        """
        self.path = path
        self._handed_out = 0
        try:
            # O_NONBLOCK: a FIFO must not hang the open; it is refused right after.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _unreadable(path, error.strerror) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not status.st_size:
                raise _unreadable(path, "an empty file" if stat.S_ISREG(status.st_mode) else "no plain file")
            self.size = status.st_size
            self._identity = Identity.of(status)
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise _unreadable(path, error.strerror) from error
        finally:
            os.close(descriptor)

    def require_unchanged(self) -> None:
        """Raises DatasetError if the file at the path is not the one that was mapped, or was written to since."""
        if not self.path.exists() or Identity.of(self.path.stat()) != self._identity:
            raise DatasetError(
                "a file changed while it was read",
                where=self.path,
                fix="wait for its writer, then start again",
            )

    def array(
        self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], order: Literal["C", "F"] = "C"
    ) -> NDArray[Any]:
        """A read-only view of the file, which must reach that far. It need not be aligned."""
        if not math.prod(shape):
            return np.empty(shape, dtype, order)
        return np.ndarray(shape, dtype, self._map, offset, order=order)

    def handing_out(self, size_bytes: int) -> None:
        """Called before so much of an array is looked at; now and then it gives back what was looked at before."""
        if self._handed_out > RELEASE_BYTES:
            self._handed_out = 0
            if hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED)
        self._handed_out += size_bytes


def _unreadable(path: Path, found: str | None) -> DatasetError:
    return DatasetError("cannot read a file", where=path, found=found, fix="check the path and its permissions")
