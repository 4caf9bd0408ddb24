"""How windows lie in a file: float32, float16, or int8 with a scale and an offset for each window and channel.

*float32*
    as it is; read without a copy.
*float16*
    half the size. A number beyond 65,504 is refused: it would become infinite.
*int8*
    a quarter. Each channel of each window keeps its middle and the size of a step, 1/254 of the distance from its
    smallest to its largest number there, so that a force that varies a little around a large value loses nothing by
    the large value, and an outlier costs its own window only. A number is off by half a step at most.

What a number loses is measured while windows are written, in units of its channel's range over all windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.calibration.windows.plan import Storage
from trunkline.runtime.sensor.window import Rows

MAX_FLOAT16 = float(np.finfo(np.float16).max)
#: Steps of int8 to either side of the middle.
STEPS = 127
#: Windows begin at multiples of this, so that vector instructions find them aligned.
ALIGNMENT_BYTES = 64

#: Every float16, by its bits: three times as fast as numpy's conversion, with the same result.
_FROM_FLOAT16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
_DTYPES: dict[Storage, Any] = {"float32": np.float32, "float16": np.float16, "int8": np.int8}
Bytes = NDArray[np.uint8]


class UnstorableError(ValueError):
    """A window holds a number that its storage has no room for."""


def encoded_bytes(storage: Storage, rows: int, channels: int) -> int:
    """Bytes of a window in the file, up to where the next one begins."""
    scales = 2 * channels * 4 if storage == "int8" else 0
    used = scales + rows * channels * np.dtype(_DTYPES[storage]).itemsize
    return -(-used // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def encode(rows: Rows, storage: Storage) -> Bytes:
    """A window (n, C) float32 as :func:`encoded_bytes` says, the rest zero.

    Raises:
        UnstorableError: naming the number.
    """
    content = np.zeros(encoded_bytes(storage, *rows.shape), np.uint8)
    if storage == "int8":
        _encode_int8(rows, content)
        return content
    if storage == "float16":
        _require_float16(rows)
    with np.errstate(under="ignore"):  # numbers too small for half become 0; that is in the measured error
        _numbers(content, storage, *rows.shape)[:] = rows
    return content


def decode(content: Bytes, storage: Storage, rows: int, channels: int) -> Rows:
    """A window (rows, channels) float32: of float32 a view of ``content``, otherwise new."""
    numbers = _numbers(content, storage, rows, channels)
    if storage == "float32":
        return numbers
    if storage == "float16":
        return _FROM_FLOAT16.take(numbers.view(np.uint16))
    middle, step = _scales(content, channels)
    result = numbers.astype(np.float32)
    result *= step
    result += middle
    return result


def _numbers(content: Bytes, storage: Storage, rows: int, channels: int) -> NDArray[Any]:
    """The window's numbers within its bytes, as they are stored."""
    dtype = np.dtype(_DTYPES[storage])
    start = 2 * channels * 4 if storage == "int8" else 0
    return content[start : start + rows * channels * dtype.itemsize].view(dtype).reshape(rows, channels)


def _scales(content: Bytes, channels: int) -> Rows:
    """Middles and steps: (2, C) float32."""
    return content[: 2 * channels * 4].view(np.float32).reshape(2, channels)


def _encode_int8(rows: Rows, content: Bytes) -> None:
    low, high = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
    scales = _scales(content, rows.shape[1])
    with np.errstate(under="ignore"):
        scales[0], scales[1] = (low + high) / 2, (high - low) / (2 * STEPS)
    middle, step = scales
    with np.errstate(over="ignore", under="ignore"):
        steps = np.divide(rows - middle, step, out=np.zeros_like(rows), where=step > 0)
        _numbers(content, "int8", *rows.shape)[:] = np.rint(steps).clip(-STEPS, STEPS)
        fits = np.isfinite(decode(content, "int8", *rows.shape)).all()
    if not fits:
        raise UnstorableError(f"numbers as large as {np.abs(rows).max():g}, where a step of int8 is lost in float32")


def _require_float16(rows: Rows) -> None:
    if max(float(rows.max()), -float(rows.min())) > MAX_FLOAT16:
        row, channel = np.unravel_index(int(np.abs(rows).argmax()), rows.shape)
        raise UnstorableError(
            f"{rows[row, channel]:g} at row {row}, channel {channel}: float16 ends at {MAX_FLOAT16:g}, "
            "beyond which numbers become infinite"
        )


@dataclass(frozen=True)
class StorageError:
    """What stored numbers are off by, as a share of their channel's range over all windows.

    Attributes:
        max: of any number.
        rms: root of the mean square over all numbers.
    """

    max: float
    rms: float


class ErrorMeter:
    """Measures while windows are written. Used by one thread."""

    def __init__(self, channels: int) -> None:
        self._low, self._high = np.full(channels, np.inf), np.full(channels, -np.inf)
        self._largest, self._squares = np.zeros(channels), np.zeros(channels)
        self._rows = 0

    def add(self, rows: Rows, stored: Rows) -> None:
        """A window, before and after: (n, C) each."""
        self._low = np.minimum(self._low, rows.min(axis=0))
        self._high = np.maximum(self._high, rows.max(axis=0))
        off = np.abs(rows - stored)
        self._largest = np.maximum(self._largest, off.max(axis=0))
        self._squares += np.square(off, dtype=np.float64).sum(axis=0)
        self._rows += len(rows)

    def result(self) -> StorageError:
        """Of all windows so far. A channel that never changes is measured by its own size."""
        extent = self._high - self._low
        extent = np.where(extent > 0, extent, np.maximum(np.abs(self._high), np.abs(self._low)))
        off = self._largest > 0
        largest = np.divide(self._largest, extent, out=np.zeros_like(extent), where=off)
        squares = np.divide(self._squares, extent**2, out=np.zeros_like(extent), where=off)
        rms = math.sqrt(squares.sum() / max(1, self._rows * len(extent)))
        return StorageError(float(largest.max(initial=0.0)), rms)
