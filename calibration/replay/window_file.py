"""Writes sensor windows in the published pre-windowed form, one by one, however many there are.

The file is what ``numpy.savez`` writes: ``timestamps`` float64 (N,) in seconds and ``data`` float32 (N, T, C), not
compressed, so that readers can map it. Stamps must ascend. Where a recorded clock went back, as it does when a robot
starts again, the windows from there on are set one second behind the last one before.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

Rows = NDArray[np.float32]

_COPY_BYTES = 8 << 20
#: Seconds that a reader takes for a stamp.
_MAX_STAMP_S = 8e9
_BEHIND_S = 1.0


class WindowFile:
    """A file of windows (T, C) in the making. Threads: for one at a time.

    Attributes:
        count: windows so far.
    """

    def __init__(self, path: Path, samples: int, channels: int) -> None:
        """Begins a file of windows of ``samples`` rows; a second one beside it holds them until :meth:`finish`.

        Raises:
            OSError: it cannot be made.
        """
        self._path, self._shape = path, (samples, channels)
        self._spooled = path.with_suffix(".partial")
        self._spool: IO[bytes] = open(self._spooled, "wb")  # noqa: SIM115 - closed by close
        self._stamps: list[float] = []
        self._offset_s = 0.0

    @property
    def count(self) -> int:
        return len(self._stamps)

    def add(self, rows: Rows, end_ns: int) -> int:
        """Adds a window (T, C); returns its row.

        Raises:
            OSError: there is no room.
        """
        stamp_s = end_ns / 1e9 + self._offset_s
        last_s = self._stamps[-1] if self._stamps else -np.inf
        if not last_s < stamp_s <= _MAX_STAMP_S or stamp_s < -_MAX_STAMP_S:
            begin_s = last_s + _BEHIND_S if self._stamps else 0.0
            self._offset_s = begin_s - end_ns / 1e9
            stamp_s = begin_s
        self._spool.write(np.ascontiguousarray(rows, "<f4").tobytes())
        self._stamps.append(stamp_s)
        return len(self._stamps) - 1

    def close(self) -> None:
        """Gives up what is not finished. Calling it twice is fine."""
        self._spool.close()
        self._spooled.unlink(missing_ok=True)

    def finish(self) -> None:
        """Writes the file.

        Raises:
            OSError: there is no room.
        """
        self._spool.close()
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("timestamps.npy", "w") as member:
                _header(member, "<f8", (self.count,))
                member.write(np.array(self._stamps, "<f8").tobytes())
            with archive.open("data.npy", "w", force_zip64=True) as member, open(self._spooled, "rb") as spool:
                _header(member, "<f4", (self.count, *self._shape))
                while chunk := spool.read(_COPY_BYTES):
                    member.write(chunk)
        self.close()


def _header(member: IO[bytes], dtype: str, shape: tuple[int, ...]) -> None:
    npy.write_array_header_1_0(member, {"descr": dtype, "fortran_order": False, "shape": shape})
