"""What one look at a picture shows: its digest, whether it is of one colour, and whether it is random noise.

Noise is told by two numbers at once, each the largest of the three channels:

- ``correlation`` of neighbouring pixels. Pictures of things reach 0.7 and more, because things are larger than pixels;
  random pixels reach 0.1, also after JPEG.
- ``coarse_share``, how much of the variance is left in a 16 x 16 thumbnail of block means. Pictures keep 0.2 and more,
  independent pixels one part in as many as there are in a block.

Both must be low, and the contrast of some height: a camera's grain at night lowers the first number, a fine texture
the second, and a bare wall shows nothing but grain, faintly. Random colours spread over many pixels each are no noise
in this sense.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.runtime.image import ImageSpec, to_pixels

#: Measured: noise of any kind up to 0.17 and 0.011, rendered scenes from 0.90 and 0.52, scenes with Gaussian grain of
#: a standard deviation of 40 grey levels 0.40 and 0.28.
NOISE_CORRELATION = 0.5
NOISE_COARSE_SHARE = 0.05
#: Standard deviations in grey levels, 0..255. Fainter noise may be the grain of a camera that looks at a wall.
NOISE_SPREAD = 10.0
CONSTANT_SPREAD = 1.0
_THUMBNAIL_SIDE = 16
_MIN_BLOCK_PX = 8
#: Rows or columns of pairs that are looked at: 128 lines give the correlation to 0.01.
_LINES = 128

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class FrameFacts:
    """What is kept of a picture.

    Attributes:
        digest: SHA-256 in hex of the height, the width and the RGB pixels, so that it depends neither on the file's
            name nor on its format.
        spread: largest standard deviation of a channel, in grey levels.
        correlation: of neighbouring pixels, -1 to 1; 1 where nothing varies.
        coarse_share: share of the variance that block means keep, 0 to 1.
    """

    digest: str
    spread: float
    correlation: float
    coarse_share: float

    @property
    def constant(self) -> bool:
        """Whether the picture shows one colour."""
        return self.spread < CONSTANT_SPREAD

    @property
    def noise(self) -> bool:
        """Whether the picture shows random pixels."""
        quiet = self.spread < NOISE_SPREAD
        return not quiet and self.correlation < NOISE_CORRELATION and self.coarse_share < NOISE_COARSE_SHARE


def look_at(image: Image.Image | Pixels) -> FrameFacts:
    """Looks at one picture.

    Args:
        image: a PIL image, or an RGB array (h, w, 3) uint8.

    Raises:
        ImageError: it is not one that the trunk can judge.
    """
    pixels = rgb(image)
    spread = float(pixels.std(axis=(0, 1), dtype=np.float64).max())
    if spread < CONSTANT_SPREAD:
        return FrameFacts(_digest(pixels), spread, 1.0, 0.0)
    return FrameFacts(_digest(pixels), spread, _correlation(pixels), _coarse_share(pixels))


def rgb(image: Image.Image | Pixels) -> Pixels:
    """The pixels (h, w, 3) uint8 of an image in its own size, checked as the runtime checks them.

    Raises:
        ImageError: it is not one that the trunk can judge.
    """
    height, width = image.shape[:2] if isinstance(image, np.ndarray) and image.ndim == 3 else (0, 0)
    if isinstance(image, Image.Image):
        width, height = image.size
    return to_pixels(image, ImageSpec(height, width, "squash", "bicubic", 0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))


def _digest(pixels: Pixels) -> str:
    height, width, _ = pixels.shape
    content = hashlib.sha256(f"rgb {height} x {width}:".encode())
    content.update(pixels.tobytes())
    return content.hexdigest()


def _correlation(pixels: Pixels) -> float:
    height, width, _ = pixels.shape
    rows = pixels[:: max(1, height // _LINES)]
    columns = pixels[:, :: max(1, width // _LINES)]
    pairs = ((rows[:, :-1], rows[:, 1:]), (columns[:-1], columns[1:]))
    return max(_pearson(one[..., channel], two[..., channel]) for one, two in pairs for channel in range(3))


def _pearson(one: Pixels, two: Pixels) -> float:
    """Correlation of two arrays of equal size; 0 where one of them does not vary, which tells nothing."""
    a, b = one.ravel().astype(np.float32), two.ravel().astype(np.float32)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else 0.0


def _coarse_share(pixels: Pixels) -> float:
    height, width, _ = pixels.shape
    size = [max(1, min(_THUMBNAIL_SIDE, side // _MIN_BLOCK_PX)) for side in (width, height)]
    means = np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.BOX), np.float64)
    whole = pixels.var(axis=(0, 1), dtype=np.float64)
    return float(np.divide(means.var(axis=(0, 1)), whole, out=np.zeros(3), where=whole > 0).max())
