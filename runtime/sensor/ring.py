"""The memory of a cache: the last rows of a stream, in arrays that are made once.

Rows are numbered from 0 in the order in which they were written, and row ``r`` lies in slot ``r % size``. The first
slots are stored a second time behind the last one, so that any ``window`` consecutive rows lie side by side and can be
handed out as a view. Stamps are stored twice altogether (they are small), so that the whole history can be searched as
one array.

Of ``size`` rows the newest ``history`` may be asked for. The others are room in which the writer can go on while
somebody still looks at the oldest: ``overwritten`` says how far it has come, and is raised before the first byte is
touched. Who finds it still below the rows that were read afterwards has read them whole. Nothing is locked. That stores
become visible in the order in which they were made is what the interpreter's lock gives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.sensor.window import Rows

#: Rows that are written at once at most; it bounds the writer's scratch memory.
PIECE = 128


class Ring:
    """Rows, and per row its stamp, the samples missing up to it, and the first row of its uninterrupted stream.

    Threads: one writes, any may read and then look at ``overwritten``.

    Args:
        history: rows that may be asked for.
        window: rows that can be had side by side.
        channels: numbers per row.

    Attributes:
        rows: (size + window, C) float32, not writeable.
        end: number of the next row.
        overwritten: rows below this number are gone, or going.
    """

    def __init__(self, history: int, window: int, channels: int) -> None:
        self.history, self.window = history, window
        self.size = history + max(window, PIECE)
        self._rows: Rows = np.empty((self.size + window, channels), np.float32)
        self._stamps: NDArray[np.int64] = np.empty(2 * self.size, np.int64)
        self._missing: NDArray[np.int64] = np.empty(self.size, np.int64)
        self._runs: NDArray[np.int64] = np.empty(self.size, np.int64)
        for array in (self._rows, self._stamps, self._missing, self._runs):
            array.fill(0)  # pages come now, not while the robot moves
        self.rows = self._rows.view()
        self.rows.flags.writeable = False
        self.end = 0
        self.overwritten = 0

    @staticmethod
    def bytes_for(history: int, window: int, channels: int) -> int:
        """Bytes that a ring takes."""
        size = history + max(window, PIECE)
        return 4 * channels * (size + window) + 8 * 4 * size

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.bytes_for(self.history, self.window, self._rows.shape[1])

    @property
    def room(self) -> int:
        """Rows that the next ``write`` takes at most."""
        return min(PIECE, self.size - self.end % self.size)

    def write(self, stamps: NDArray[np.int64], samples: Rows, missing: int, run: int) -> None:
        """Appends (n,) stamps and (n, C) samples that share ``missing`` and ``run``; n is at most ``room``."""
        first = self.end % self.size
        end = self.end + len(stamps)
        self.overwritten = max(0, end - self.size)
        stop = first + len(stamps)
        self._rows[first:stop] = samples
        if first < self.window:
            copied = min(stop, self.window)
            self._rows[self.size + first : self.size + copied] = samples[: copied - first]
        self._stamps[first:stop] = stamps
        self._stamps[self.size + first : self.size + stop] = stamps
        self._missing[first:stop] = missing
        self._runs[first:stop] = run
        self.end = end

    def view(self, first: int, end: int) -> Rows:
        """Rows ``first`` to ``end``, at most ``window`` of them: (end - first, C) float32, not writeable."""
        slot = first % self.size
        return self.rows[slot : slot + end - first]

    def stamps(self, first: int, end: int) -> NDArray[np.int64]:
        """Their stamps, (end - first,)."""
        slot = first % self.size
        return self._stamps[slot : slot + end - first]

    def stamp(self, row: int) -> int:
        """Stamp of a row."""
        return int(self._stamps[row % self.size])

    def missing(self, row: int) -> int:
        """Samples missing from the beginning up to a row."""
        return int(self._missing[row % self.size])

    def run(self, row: int) -> int:
        """First row of the uninterrupted stream that a row belongs to."""
        return int(self._runs[row % self.size])

    def owns(self, samples: Rows) -> bool:
        """Whether an array is a view of this memory."""
        return samples.base is self._rows
