"""Streams for tests of the cache: every sample can be told by its numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.sensor.form import SensorForm

CHANNELS = 3
RATE_HZ = 1000.0
PERIOD_NS = 1_000_000

Stamps = NDArray[np.int64]
Rows = NDArray[np.float32]


def form(samples: int = 8, **facts: object) -> SensorForm:
    return SensorForm(channels=CHANNELS, rate_hz=RATE_HZ, samples=samples, steps=samples, **facts)  # type: ignore[arg-type]


def numbered(first: int, count: int, channels: int = CHANNELS) -> Rows:
    """(count, channels) float32 that say which sample they are: number, minus number, number, ..."""
    signs = np.resize([1, -1], channels)
    return (np.arange(first, first + count)[:, None] * signs).astype(np.float32)


def block(first: int, count: int) -> tuple[Stamps, Rows]:
    """Samples ``first`` to ``first + count`` of a stream without faults that began at 0."""
    return np.arange(first, first + count) * PERIOD_NS, numbered(first, count)
