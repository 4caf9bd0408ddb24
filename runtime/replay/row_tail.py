"""The newest rows of a recorded stream, in which a window is looked up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Stamps = NDArray[np.int64]

#: A stream that stands still has a window's last row many times; the newest ones are tried.
_TRIES = 16


class RowTail:
    """The last rows of a stream, with their numbers. Threads: for one at a time."""

    def __init__(self, rows: int, channels: int) -> None:
        """Keeps at least ``rows`` rows of ``channels`` numbers, and takes the memory of twice as many now."""
        self._keep = rows
        self._samples: Rows = np.empty((2 * rows, channels), np.float32)
        self._stamps: Stamps = np.empty(2 * rows, np.int64)
        self._count = 0
        self._next = 0

    def append(self, row: int, stamps: Stamps, samples: Rows) -> None:
        """Rows that begin with number ``row``; those before a hole in the numbers are forgotten."""
        if row != self._next or len(samples) >= self._keep:
            self._count = 0
        self._next = row + len(samples)
        stamps, samples = stamps[-self._keep :], samples[-self._keep :]
        if self._count + len(samples) > len(self._samples):
            kept = min(self._keep, self._count)
            for buffer in (self._stamps, self._samples):
                buffer[:kept] = buffer[self._count - kept : self._count].copy()
            self._count = kept
        end = self._count + len(samples)
        self._stamps[self._count : end], self._samples[self._count : end] = stamps, samples
        self._count = end

    def find(self, window: Rows) -> tuple[int, int, int] | None:
        """Number of the first row, and stamps of the first and the last, of rows that are the window's bit for bit."""
        length = len(window)
        if not 0 < length <= self._count or window.shape[1] != self._samples.shape[1]:
            return None
        bits, wanted = self._samples.view(np.uint32), np.ascontiguousarray(window).view(np.uint32)
        ends = np.flatnonzero(bits[length - 1 : self._count, 0] == wanted[-1, 0])[::-1][:_TRIES] + length
        for end in ends.tolist():
            if np.array_equal(bits[end - length : end], wanted):
                first = end - length
                number = self._next - self._count + first
                return number, int(self._stamps[first]), int(self._stamps[end - 1])
        return None
