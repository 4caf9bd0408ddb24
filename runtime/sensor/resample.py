"""Resampling along time, the numbers that PyTorch gives.

Positions are those of ``align_corners=False`` without an anti-alias filter: output row ``i`` of ``T_out`` lies at input
position ``(i + 0.5) T_in / T_out - 0.5``. PyTorch computes positions in float32, and so does this: at 3,000 rows a
float64 position would give other weights in the fourth digit.

``linear``
    two neighbours, positions below 0 taken for 0.
``nearest``
    row ``floor(i T_in / T_out)``, PyTorch's ``nearest`` (not ``nearest-exact``).
``cubic``
    four neighbours with Keys' kernel at a = -0.75 and the first and last row repeated beyond the ends. PyTorch has no
    cubic mode for one dimension; this is what its ``bicubic`` does along one dimension of an image (R. Keys, "Cubic
    convolution interpolation for digital image processing", 1981, with PyTorch's value of a).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.sensor.form import Resample

Rows = NDArray[np.float32]
#: Keys' parameter as PyTorch sets it.
KEYS = -0.75


def resample(rows: Rows, steps: int, mode: Resample, out: Rows | None = None) -> Rows:
    """Rows brought to another number.

    Args:
        rows: (T_in, C) float32, T_in >= 1; any strides.
        steps: T_out.
        mode: see the module.
        out: (T_out, C) float32 to write into; by default it is made.

    Returns:
        (T_out, C) float32: ``out`` if given, else ``rows`` itself where the number is right already.
    """
    if len(rows) == steps:
        if out is None:
            return rows
        out[:] = rows
        return out
    places, weights = _taps(len(rows), steps, mode)
    out = np.empty((steps, rows.shape[1]), np.float32) if out is None else out
    np.take(rows, places[0], axis=0, out=out, mode="clip")
    if len(places) > 1:
        out *= weights[0]
        for place, weight in zip(places[1:], weights[1:], strict=True):
            out += rows[place] * weight
    return out


@lru_cache(maxsize=64)
def _taps(length: int, steps: int, mode: Resample) -> tuple[NDArray[np.intp], Rows]:
    """Which rows (taps, T_out) are mixed with which weights (taps, T_out, 1)."""
    scale = np.float32(length) / np.float32(steps)
    index = np.arange(steps, dtype=np.float32)
    if mode == "nearest":
        places = np.minimum(np.floor(index * scale).astype(np.intp), length - 1)
        return places[None], np.ones((1, steps, 1), np.float32)
    # One rounding for product and difference, as the fused multiply-add in PyTorch's kernels has it.
    position = ((index + np.float32(0.5)).astype(np.float64) * scale - 0.5).astype(np.float32)
    if mode == "linear":
        position = np.maximum(position, np.float32(0))
    left = np.floor(position)
    taps = _linear(position - left) if mode == "linear" else _cubic(position - left)
    first = 0 if mode == "linear" else -1
    places = left.astype(np.intp) + np.arange(first, first + len(taps))[:, None]
    return places.clip(0, length - 1), taps[:, :, None]


def _linear(fraction: Rows) -> Rows:
    return np.stack([np.float32(1) - fraction, fraction])


def _cubic(fraction: Rows) -> Rows:
    """Keys' kernel at distances 1 + t, t, 1 - t and 2 - t."""
    t = fraction.astype(np.float64)
    return np.stack([_far(t + 1), _near(t), _near(1 - t), _far(2 - t)]).astype(np.float32)


def _near(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((KEYS + 2) * x - (KEYS + 3)) * x * x + 1


def _far(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((KEYS * x - 5 * KEYS) * x + 8 * KEYS) * x - 4 * KEYS
