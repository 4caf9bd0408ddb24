"""Inputs to compare two implementations with: camera-like frames, and windows that vary as real ones do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.exporter.checkpoint.members import Settings

PROBE_INSTRUCTIONS = (
    "put the red block in the bowl",
    "Move the GREEN ball to the left of the plate.",
    "pick up the carrot \u2013 then stack it on the caf\u00e9 mug!",
)
#: Sizes (height, width) of probe frames. The last one shrinks far more in height than in width: Pillow 13 resizes such
#: images in another order than earlier versions, and the parity check must notice.
FRAME_SIZES = ((240, 320), (128, 96), (180, 180), (640, 120))


def frame(random: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A smooth random image with a little pixel noise: (height, width, 3) uint8."""
    coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = random.integers(-12, 13, (height, width, 3), dtype=np.int16)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def windows(random: np.random.Generator, count: int, settings: Settings) -> NDArray[np.float32]:
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
