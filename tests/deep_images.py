"""Image files of 16 bits per channel, written byte by byte: Pillow reads them as 8-bit and writes none."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

#: Colour types of PNG by number of bands.
_PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}


def deep_values(bands: int, height: int = 40, width: int = 30) -> NDArray[np.uint16]:
    """(height, width, bands) of a camera with 12 bits: as the upper 8 of 16 bits they are nearly black."""
    return np.random.default_rng(bands).integers(0, 4096, (height, width, bands), np.uint16)


def deep_png(bands: int) -> bytes:
    """Grey, grey with alpha, RGB or RGBA."""
    values = deep_values(bands)
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOURS[bands], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def deep_tiff(bands: int, order: str = "<", compressed: bool = False) -> bytes:
    """RGB (3), RGBA (4) or, with 5, CMYK; ``order`` is that of the bytes."""
    cmyk, count = bands == 5, min(bands, 4)
    values = deep_values(count)
    data = values.astype(f"{order}u2").tobytes()
    more: dict[int, list[int]] = {338: [2]} if bands == 4 else {}
    return _tiff(
        zlib.compress(data) if compressed else data,
        [16] * count,
        order,
        {259: [8 if compressed else 1], 262: [5 if cmyk else 2], **more},
    )


def signed_tiff() -> bytes:
    """Grey, 8 bits from -128 to 127."""
    return _tiff(np.arange(40 * 30).astype(np.int8).tobytes(), [8], "<", {259: [1], 262: [1], 339: [2]})


def _tiff(data: bytes, bits: list[int], order: str, more: dict[int, list[int]]) -> bytes:
    height, width, _ = deep_values(1).shape
    count = len(bits)
    tags = [  # number, type (3: short, 4: long), values
        (256, 3, [width]),
        (257, 3, [height]),
        (258, 3, bits),
        (273, 4, [0]),
        (277, 3, [count]),
        (278, 3, [height]),
        (279, 4, [len(data)]),
        *((number, 3, content) for number, content in more.items()),
    ]
    tags.sort()
    beside = 8 + 2 + 12 * len(tags) + 4
    pixels = beside + 2 * count
    entries = b""
    for number, kind, content in tags:
        entry = struct.pack(f"{order}HHI", number, kind, len(content))
        if number == 258 and count > 2:
            entries += entry + struct.pack(f"{order}I", beside)
            continue
        content = [pixels] if number == 273 else content
        entries += entry + struct.pack(f"{order}{len(content)}{'HI'[kind - 3]}", *content).ljust(4, b"\0")
    begin = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    directory = struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0"
    return begin + directory + struct.pack(f"{order}{count}H", *bits).ljust(2 * count, b"\0") + data


def deep_ppm(most: int = 65535, plain: bool = False) -> bytes:
    """RGB with values up to ``most``."""
    values = np.minimum(deep_values(3), most)
    height, width, _ = values.shape
    begin = f"P{3 if plain else 6}\n{width} {height}\n{most}\n".encode()
    if plain:
        return begin + " ".join(map(str, values.reshape(-1).tolist())).encode() + b"\n"
    return begin + values.astype(">u2" if most > 255 else "u1").tobytes()


DEEP_FILES = {
    **{f"{name}.png": deep_png(bands) for name, bands in (("grey-alpha", 2), ("rgb", 3), ("rgba", 4))},
    "rgb.tiff": deep_tiff(3),
    "rgb-big-endian.tiff": deep_tiff(3, ">"),
    "rgb-deflate.tiff": deep_tiff(3, compressed=True),
    "rgba.tiff": deep_tiff(4),
    "cmyk.tiff": deep_tiff(5),
    "rgb.ppm": deep_ppm(),
    "rgb-12-bit.ppm": deep_ppm(4095),
    "rgb-plain.ppm": deep_ppm(1023, plain=True),
}
