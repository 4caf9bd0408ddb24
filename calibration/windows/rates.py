"""How many samples a second a recording has, measured from itself.

A window of another rate has the same shape and other content in time, so a stated rate is never taken on trust where
the recording can tell.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import DatasetError
from trunkline.runtime.sensor.window import RATE_TOLERANCE

#: The rate is the median over stretches of so many samples: single late stamps and gaps do not count.
STRETCH = 64
#: So many pairs of windows are compared.
MAX_PAIRS = 32
#: Windows are cut at whole samples, so that a few samples say little about a rate.
MIN_OVERLAP_SAMPLES = 200
#: And so many say enough.
ENOUGH_SAMPLES = 1000


def stamps_rate_hz(stamps: NDArray[np.float64]) -> float | None:
    """Samples per second of a stream, None for a single sample.

    Args:
        stamps: (N,) seconds, strictly ascending.
    """
    if len(stamps) < 2:
        return None
    stretch = min(STRETCH, len(stamps) - 1)
    return float(stretch / np.median(stamps[stretch:] - stamps[:-stretch]))


def overlap_rate_hz(windows: NDArray[np.float32], stamps: NDArray[np.float64]) -> float | None:
    """Samples per second of windows that overlap: by how many samples each is ahead of the one before.

    Args:
        windows: (N, T, C).
        stamps: (N,) seconds, of the same place in each window.

    Returns:
        None where no window begins with samples of the one before, or where these tell too little.
    """
    samples, seconds = 0, 0.0
    for index in range(min(len(windows) - 1, MAX_PAIRS)):
        if samples >= ENOUGH_SAMPLES:
            break
        hop = _hop(windows[index], windows[index + 1])
        if hop is not None:
            samples += hop
            seconds += float(stamps[index + 1] - stamps[index])
    return samples / seconds if samples >= MIN_OVERLAP_SAMPLES else None


def _hop(earlier: NDArray[np.float32], later: NDArray[np.float32]) -> int | None:
    """How many samples ``later`` is ahead: the one number by which their common samples are equal."""
    last = len(later) - 1
    places = np.flatnonzero(later[:last, 0] == earlier[-1, 0])
    hops = [last - place for place in places.tolist() if np.array_equal(later[place], earlier[-1])]
    hops = [hop for hop in hops if hop < last and np.array_equal(later[:-hop], earlier[hop:])]
    return hops[0] if len(hops) == 1 else None


def require_rate(measured_hz: float | None, stated_hz: float, where: Path) -> None:
    """Compares a stated rate with a measured one, if there is one.

    Raises:
        DatasetError: they differ by more than 2 %.
    """
    if measured_hz is not None and not abs(measured_hz - stated_hz) <= RATE_TOLERANCE * stated_hz:
        raise DatasetError(
            "a recording has another rate than was stated",
            where=where,
            expected=f"{stated_hz:g} samples a second",
            found=f"{measured_hz:.2f}, measured",
            fix="state the rate of the recording; an encoder of another rate cannot read its windows",
        )
