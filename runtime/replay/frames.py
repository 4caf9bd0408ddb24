"""Frames as they are recorded: whatever image the ensemble takes, in the mode in which it would resize it.

An image is resized in its own mode and becomes RGB afterwards (:mod:`trunkline.runtime.image`), so what is recorded of
a palette or CMYK image is that image, and replay gives its very scores.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.runtime.ensemble import Camera
from trunkline.runtime.errors import ImageError
from trunkline.runtime.image import check_image, decode_png
from trunkline.runtime.replay.payloads import Encoding, Frame, Mode

Number = TypeVar("Number", np.uint8, np.float32, np.int64)

#: The mode of a PNG file that holds the bytes of an image of this mode.
_CARRIERS: dict[Mode, str] = {
    "RGB": "RGB",
    "L": "L",
    "LA": "LA",
    "RGBA": "RGBA",
    "P": "L",
    "1": "1",
    "CMYK": "RGBA",
    "YCbCr": "RGB",
}


@dataclass(frozen=True, eq=False)
class Pixels:
    """An image that nobody writes to.

    Attributes:
        mode: of PIL; arrays are RGB.
        height: in pixels.
        width: in pixels.
        data: uint8 of any shape, in the order of ``Image.tobytes``.
        palette: RGB of a palette image's colours, nothing for others.
    """

    mode: Mode
    height: int
    width: int
    data: NDArray[np.uint8]
    palette: bytes = b""

    @classmethod
    def of(cls, image: Camera) -> Pixels:
        """What the ensemble was given.

        Raises:
            ImageError: the ensemble would refuse it.
        """
        check_image(image)
        if isinstance(image, np.ndarray):
            height, width, _ = image.shape
            return cls("RGB", height, width, unchanging(image))
        palette = bytes(image.getpalette("RGB") or ()) if image.mode == "P" else b""
        data = np.frombuffer(image.tobytes(), np.uint8)
        return cls(image.mode, image.height, image.width, data, palette)  # type: ignore[arg-type]

    @property
    def image(self) -> Camera:
        """(height, width, 3) uint8 for RGB, otherwise a PIL image."""
        if self.mode == "RGB":
            return self.data.reshape(self.height, self.width, 3)
        image = Image.frombytes(self.mode, (self.width, self.height), self.data.tobytes())
        if self.palette:
            image.putpalette(self.palette)
        return image

    def same(self, other: Pixels) -> bool:
        """Whether they are one image, bit for bit."""
        form = (self.mode, self.height, self.width, self.palette)
        if form != (other.mode, other.height, other.width, other.palette):
            return False
        return self.data is other.data or np.array_equal(self.data.reshape(-1), other.data.reshape(-1))


def encoded(pixels: Pixels, encoding: Encoding) -> NDArray[np.uint8]:
    """The bytes of a frame."""
    if encoding == "raw":
        return np.ascontiguousarray(pixels.data).reshape(-1)
    carrier = Image.frombytes(_CARRIERS[pixels.mode], (pixels.width, pixels.height), pixels.data.tobytes())
    file = io.BytesIO()
    carrier.save(file, "PNG", compress_level=1)  # higher levels take many times as long
    return np.frombuffer(file.getvalue(), np.uint8)


def decoded(frame: Frame, data: NDArray[np.uint8], palette: bytes, where: object) -> Pixels:
    """A recorded frame; ``data`` and ``palette`` are the arrays of its record.

    Raises:
        ImageError: it is no frame of the mode and size that are stated.
    """
    if frame.encoding == "png":
        carrier = decode_png(data.tobytes(), where)
        if carrier.mode != _CARRIERS[frame.mode] or carrier.size != (frame.width, frame.height):
            raise ImageError(
                "a recorded frame is not what its record says",
                where=where,
                expected=f"{_CARRIERS[frame.mode]}, {frame.height} x {frame.width} pixels",
                found=f"{carrier.mode}, {carrier.height} x {carrier.width} pixels",
            )
        data = np.frombuffer(carrier.tobytes(), np.uint8)
    return Pixels(frame.mode, frame.height, frame.width, data, palette)


def unchanging(array: NDArray[Number]) -> NDArray[Number]:
    """The array if it is read-only and no view of something that may not be, else a copy that nobody can write to."""
    if array.base is None and not array.flags.writeable:
        return array
    copy = np.array(array)
    copy.setflags(write=False)
    return copy
