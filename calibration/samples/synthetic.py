"""Made-up input where nothing real is at hand: camera-like frames, and windows that vary as real ones do.

Good for comparing two implementations on the same input, and for judging samples that come without windows. Never for
activation ranges: what a robot does lies elsewhere.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.calibration.samples.sample import CalibrationSample

DEFAULT_CANDIDATES = 20


class WindowSettings(Protocol):
    """What windows look like: H steps of A numbers, and what fills padded steps."""

    @property
    def history_length(self) -> int: ...
    @property
    def action_dim(self) -> int: ...
    @property
    def padding_value(self) -> float: ...


def frame(random: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A smooth random image with a little pixel noise: (height, width, 3) uint8."""
    coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = random.integers(-12, 13, (height, width, 3), dtype=np.int16)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def windows(random: np.random.Generator, count: int, settings: WindowSettings) -> NDArray[np.float32]:
    """Random walks as action windows (count, H, A) float32; some are padded at the start, some at the end."""
    steps = random.normal(0, 0.3, (count, settings.history_length, settings.action_dim))
    result = np.cumsum(steps, axis=1).astype(np.float32)
    for index in range(count):
        padded = int(random.integers(1, settings.history_length)) if settings.history_length > 1 else 0
        if index % 3 == 1:
            result[index, :padded] = settings.padding_value
        elif index % 5 == 4:
            result[index, settings.history_length - padded :] = settings.padding_value
    return result


def stream(random: np.random.Generator, samples: int, channels: int) -> NDArray[np.float32]:
    """Samples (n, C) float32 of a made-up sensor: slow waves of each channel's own, and noise."""
    time = np.arange(samples, dtype=np.float32)[:, None]
    rates = random.uniform(0.002, 0.2, channels).astype(np.float32)
    waves = np.sin(time * rates + random.uniform(0, 6, channels).astype(np.float32))
    return (waves + random.normal(0, 0.3, (samples, channels))).astype(np.float32)


def candidates_for(
    sample: CalibrationSample, settings: WindowSettings, count: int = DEFAULT_CANDIDATES
) -> NDArray[np.float32]:
    """The sample's own windows (N, H, A) float32, or ``count`` made-up ones that depend on its id alone."""
    if sample.histories is not None:
        return sample.histories
    seed = int.from_bytes(hashlib.sha256(sample.id.encode()).digest()[:8], "little")
    return windows(np.random.default_rng(seed), count, settings)
