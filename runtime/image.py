"""From a camera image to the pixels that the vision stage takes.

Promises: the result equals, pixel for pixel, what open_clip's evaluation transform computes up to its ``ToTensor``.
In that transform an image is resized and cropped in its *own* mode and becomes RGB afterwards, so a palette image is
resized by nearest neighbour and a CMYK image is padded with white; both are kept, because a model was trained so.
Scaling to [0, 1], mean and standard deviation are part of the vision graph and not done here. The filter is Pillow's:
since version 13 it reduces tall images in another order, so their values can differ slightly from older versions'.

Refuses, each with the way to put it right: what the reference would clip or reinterpret in silence (16-bit, float,
channel-first and grey arrays), files of more than 8 bits per channel, rotated (EXIF) and multi-frame images, unreadable
files, and sizes without sense or without bound. An array's channel order cannot be seen: it is RGB, so convert OpenCV's
BGR first. Nor can be seen what Pillow has decoded before: of a file that is 16-bit RGB it keeps the upper 8 bits.

Pure functions: any thread may call them, as long as no two threads share one PIL image that is not loaded yet.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from trunkline.runtime.errors import ImageError
from trunkline.runtime.exact import described, fix_for, is_plain

ResizeMode = Literal["squash", "shortest", "longest"]
Interpolation = Literal["bicubic", "bilinear"]

MIN_SIDE_PX = 8
MAX_PIXELS = 64_000_000  # pixels of an image, before and after its resize; 256 MB when decoded

# Everything else loses or invents values on its way to RGB: see _MODE_FIXES.
PIL_MODES = ("RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr")

# Formats whose header is read without decoding. WebP takes the memory of all pixels first, EPS runs another program.
FILE_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF")

# Formats that hold 8 or 16 bits, or floats, without a sign of it in what Pillow knows before it decodes.
_DEPTH_UNSEEN = ("JPEG2000", "AVIF", "HEIF", "DDS", "SGI")
_DEEP_RAW = re.compile(r"(?!BGR;).*;(?:10|12|14|16|32)")  # BGR;16 of a BMP has 5 or 6 bits per channel
_TIFF_BITS, _TIFF_SAMPLE_FORMAT = 0x0102, 0x0153
_SIGNED_OR_FLOAT = (2, 3)

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_ORIENTATION_TAG = 0x0112
_TURNED = range(2, 9)  # 1 is upright; other values mean nothing and are ignored by all readers
_DEPTH_FIX = "scale the values to 0..255 yourself, then convert: Image.fromarray((values * scale).astype('uint8'))"
_MODE_FIXES = {"I": _DEPTH_FIX, "F": _DEPTH_FIX, "PA": "convert it first: image.convert('RGBA')"}
# What Pillow's decoders let through when the bytes of a file are not what its header says.
_DECODING_ERRORS = (
    OSError,
    AssertionError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True)
class ImageSpec:
    """How images were prepared for the trunk: plain data, checked by whoever reads or makes it.

    Attributes:
        height: of the result, in pixels.
        width: of the result, in pixels.
        resize_mode: ``squash`` gives up the aspect ratio; ``shortest`` fills the target and crops the middle;
            ``longest`` fits into the target and pads.
        interpolation: filter of the resize. The reference ignores it and takes bicubic for ``shortest`` with a
            target that is not square; so do we.
        fill: value of padded pixels in every channel of the image's own mode, 0..255; only ``longest`` pads.
        mean: subtracted from RGB in [0, 1] by the vision graph; on record here.
        std: divides after ``mean``, in the vision graph; on record here.
    """

    height: int
    width: int
    resize_mode: ResizeMode
    interpolation: Interpolation
    fill: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def in_words(self) -> str:
        """The preprocessing, for people: size, resize with the filter that is really used, mean and std."""
        mean, std = (" ".join(f"{value:.9g}" for value in values) for values in (self.mean, self.std))
        resize = f"{self.resize_mode}, {_resampling(self).name.lower()}"
        padded = f", padded with {self.fill}" if self.resize_mode == "longest" else ""
        return f"{self.height} x {self.width} px, {resize}{padded}, mean {mean}, std {std}"


def to_pixels(image: Image.Image | NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.uint8]:
    """Resizes and crops one image as the trunk was trained.

    Args:
        image: a PIL image, or an RGB array (h, w, 3) uint8 with any strides.
        spec: the trunk's preprocessing.

    Returns:
        (spec.height, spec.width, 3) uint8 RGB, C-contiguous. An array that is right already is returned as it is,
        so treat the result as read-only.

    Raises:
        ImageError: the image is not one that the trunk can judge.
    """
    check_image(image)
    if isinstance(image, np.ndarray):
        return _pixels_of_array(image, spec)
    return np.array(_to_rgb(_fit(image, spec)))


def check_image(image: Image.Image | NDArray[np.uint8]) -> None:
    """Refuses what :func:`to_pixels` does for every target; a PIL image is decoded.

    Raises:
        ImageError: the image is not one that the trunk can judge.
    """
    if isinstance(image, np.ndarray):
        _check_array(image)
    elif isinstance(image, Image.Image):
        _check_pil(image)
    else:
        raise _not_an_image(image)


def normalised(pixels: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.float32]:
    """(3, height, width) float32 of (height, width, 3) pixels: to the bit what open_clip's transform makes of them."""
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (spec.mean, spec.std))
    scaled = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    return (scaled - mean) / std


def open_image(path: str | Path) -> Image.Image:
    """Reads an image file whose header was checked before its pixels were decoded.

    Raises:
        ImageError: there is no such file, it is not an image that can be read, or ``to_pixels`` would refuse it.
    """
    path = Path(path)
    if not path.is_file():
        found = "something that is not a file" if path.exists() else "nothing"
        raise ImageError("no image file at this path", where=path, found=found, fix="check the path")
    return _decoded(path, path, FILE_FORMATS)


def decode_png(content: bytes, where: object) -> Image.Image:
    """The image in a PNG file's content, checked as :func:`open_image` does.

    Raises:
        ImageError: it is no PNG, or ``to_pixels`` would refuse it.
    """
    return _decoded(io.BytesIO(content), where, ("PNG",))


def _decoded(source: Path | io.BytesIO, where: object, formats: tuple[str, ...]) -> Image.Image:
    try:
        with Image.open(source, formats=formats) as image:
            _check_pil(image)
            return image.copy()  # a plain image, independent of the file that is closed here
    except _DECODING_ERRORS as error:
        raise ImageError(
            "the image file cannot be read",
            where=where,
            expected=f"a complete file of one of the formats {', '.join(formats)}",
            found=_first_line(error),
            fix="open it in a viewer to see whether it is damaged, and convert it to PNG",
        ) from error


def _pixels_of_array(array: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.uint8]:
    height, width, _ = array.shape
    target = (spec.height, spec.width)
    if (height, width) == target == _resized(height, width, spec):
        return np.ascontiguousarray(array)
    return np.array(_fit(Image.fromarray(array), spec))


def _fit(image: Image.Image, spec: ImageSpec) -> Image.Image:
    height, width = _resized(image.height, image.width, spec)
    if (width, height) != image.size:
        image = image.resize((width, height), _resampling(spec))
    return _centred(image, spec)


def _resampling(spec: ImageSpec) -> Image.Resampling:
    if spec.resize_mode == "shortest" and spec.height != spec.width:
        return Image.Resampling.BICUBIC  # the reference forgets to hand the setting on in this one case
    return _RESAMPLING[spec.interpolation]


def _resized(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """Height and width before the crop, rounded as the reference rounds: down for a square target, else to even."""
    if spec.resize_mode == "squash":
        return spec.height, spec.width
    if spec.resize_mode == "shortest" and spec.height == spec.width:
        longer = int(spec.height * max(height, width) / min(height, width))
        size = (longer, spec.width) if width <= height else (spec.height, longer)
    else:
        ratios = (height / spec.height, width / spec.width)
        ratio = max(ratios) if spec.resize_mode == "longest" else min(ratios)
        size = (round(height / ratio), round(width / ratio))
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            "the image is too long and thin to be resized",
            expected=f"at least 1 and at most {MAX_PIXELS} pixels after the resize ({spec.resize_mode})",
            found=f"{height} x {width} pixels, which become {size[0]} x {size[1]}",
            fix="crop it to the part that matters",
        )
    return size


def _centred(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """The middle of the image, padded where it is smaller than the target."""
    lack_w, lack_h = max(spec.width - image.width, 0), max(spec.height - image.height, 0)
    if lack_w or lack_h:
        fill = spec.fill if spec.resize_mode == "longest" else 0
        image = _padded(image, (lack_w // 2, lack_h // 2, (lack_w + 1) // 2, (lack_h + 1) // 2), fill)
    if image.size == (spec.width, spec.height):
        return image
    top, left = round((image.height - spec.height) / 2), round((image.width - spec.width) / 2)
    return image.crop((left, top, left + spec.width, top + spec.height))


def _padded(image: Image.Image, border: tuple[int, int, int, int], fill: int) -> Image.Image:
    """``fill`` goes into every band of the image's own mode; in a palette image it is an index."""
    bands = len(image.getbands())
    padded = ImageOps.expand(image, border, fill=(fill,) * bands if bands > 1 else fill)
    if image.mode == "P":
        padded.putpalette(image.getpalette() or [])
    return padded


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if "transparency" in image.info:  # says nothing about the colours, but Pillow warns about it or trips over it
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _check_pil(image: Image.Image) -> None:
    """Header first, so that nothing large is decoded in vain; again afterwards, because decoders may correct it."""
    where = getattr(image, "filename", None) or None
    _check_header(image, where)
    try:
        frames = _frames(image)
        image.load()
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODING_ERRORS as error:
        raise ImageError(
            "the image cannot be decoded",
            where=where,
            expected="a complete, undamaged image whose file is still open",
            found=_first_line(error),
            fix="take the frame again; if its file was closed, keep image.copy() from before",
        ) from error
    _check_header(image, where)
    _check_single(frames, where)
    _check_upright(orientation, where)


def _check_header(image: Image.Image, where: object) -> None:
    if image.mode not in PIL_MODES:
        fix = _MODE_FIXES.get(image.mode.partition(";")[0], "convert it first: image.convert('RGB')")
        raise ImageError(
            "the image's mode has no faithful way to 8-bit RGB",
            where=where,
            expected=f"one of {', '.join(PIL_MODES)}",
            found=f"mode {image.mode}",
            fix=fix,
        )
    if deep := _deep(image):
        raise ImageError(
            "the image's file has more than 8 bits per channel, or may have; Pillow cuts them off in silence",
            where=where,
            expected="8 bits per channel",
            found=deep,
            fix="scale the values that matter to 0..255 and write the file with 8 bits",
        )
    _check_size(image.height, image.width, where)


def _deep(image: Image.Image) -> str | None:
    """What a file says of more than 8 bits per channel; Pillow's mode does not, and once decoded nothing does."""
    bits, forms = (_tag(image, number) for number in (_TIFF_BITS, _TIFF_SAMPLE_FORMAT))
    if any(isinstance(each, int) and each > 8 for each in bits):
        return f"{bits} bits per channel"
    if any(form in _SIGNED_OR_FLOAT for form in forms):
        return "values with a sign, or floats"
    tiles: list[tuple[Any, ...]] = getattr(image, "tile", [])
    if tiles and image.format in _DEPTH_UNSEEN:
        return f"{image.format}, of which the depth cannot be seen; decode it yourself (image.copy()) if it has 8 bits"
    for codec, _, _, arguments in tiles:
        rawmode, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
        if _DEEP_RAW.match(str(rawmode)):
            return f"values of the form {rawmode}"
        if codec in ("ppm", "ppm_plain") and rest and rest[0] > 255:
            return f"values up to {rest[0]}"
    return None


def _tag(image: Image.Image, number: int) -> tuple[Any, ...]:
    """A tag of a TIFF file, nothing for other files."""
    value = getattr(image, "tag_v2", {}).get(number, ())
    return value if isinstance(value, tuple) else (value,)


def _check_size(height: int, width: int, where: object = None) -> None:
    if min(height, width) < MIN_SIDE_PX:
        raise ImageError(
            "the image is too small" if min(height, width) else "the image is empty",
            where=where,
            expected=f"at least {MIN_SIDE_PX} pixels on each side",
            found=f"{height} x {width} pixels (height x width)",
            fix="check the camera driver: such a frame shows nothing",
        )
    if height * width > MAX_PIXELS:
        raise ImageError(
            "the image is too large",
            where=where,
            expected=f"at most {MAX_PIXELS} pixels",
            found=f"{height} x {width} pixels (height x width)",
            fix="scale it down before it is handed over",
        )


def _frames(image: Image.Image) -> int:
    if getattr(image, "is_animated", False):
        return max(2, getattr(image, "n_frames", 2))
    return 1


def _check_single(frames: int, where: object) -> None:
    if frames > 1:
        raise ImageError(
            "the image holds several frames",
            where=where,
            expected="one frame",
            found=f"{frames} frames",
            fix="choose one: image.seek(index), then image.copy()",
        )


def _check_upright(orientation: object, where: object) -> None:
    if orientation in _TURNED:
        raise ImageError(
            "the image is stored turned: its EXIF orientation asks the viewer to rotate or mirror it",
            where=where,
            expected="orientation 1 or none, because training read pixels as they are stored",
            found=f"orientation {orientation}",
            fix="apply it with ImageOps.exif_transpose(image), or drop the tag if the pixels are upright already",
        )


def _check_array(array: NDArray[np.uint8]) -> None:
    if not is_plain(array):
        raise ImageError(
            "the image array is of a class of its own, which may mean something else than its numbers",
            expected="a plain array of numpy",
            found=described(array),
            fix=fix_for("", array),
        )
    if array.dtype != np.uint8:
        raise ImageError(
            "the image array does not hold 8-bit values",
            expected="dtype uint8, values 0..255",
            found=_described(array),
            fix=_dtype_fix(array),
        )
    if array.ndim != 3 or array.shape[2] != 3:
        problem, fix = _shape_problem(array.shape)
        raise ImageError(problem, expected="shape (height, width, 3), RGB", found=f"shape {array.shape}", fix=fix)
    _check_size(*array.shape[:2])


def _described(array: NDArray[np.generic]) -> str:
    text = f"dtype {array.dtype}, shape {array.shape}"
    if array.size == 0 or array.dtype.kind != "f":
        return text
    if not np.isfinite(array).all():
        return f"{text}, with NaN or infinite values"
    return f"{text}, values {array.min()} to {array.max()}"


def _dtype_fix(array: NDArray[np.generic]) -> str:
    if array.dtype.kind == "f":
        return "undo any mean and std; for values 0..1: (array * 255).round().astype(np.uint8)"
    if array.dtype.kind in "iu" and array.dtype.itemsize > 1:
        return "scale the sensor's range to 0..255, then .astype(np.uint8); a bare .astype would wrap around"
    return "hand over the camera's 8-bit RGB values"


def _shape_problem(shape: tuple[int, ...]) -> tuple[str, str]:
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        return "the image array is grey", "repeat it: np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)"
    if len(shape) == 3 and shape[0] == 3:
        return "the image array is channel-first", "move the channels last: array.transpose(1, 2, 0)"
    if len(shape) == 3 and shape[2] == 4:
        return "the image array has four channels", "drop alpha: array[..., :3] (reorder BGRA: array[..., 2::-1])"
    if len(shape) == 4:
        return "the image array is a batch", "hand over one image at a time: array[index]"
    return "the array is not an image", "hand over an RGB image"


def _not_an_image(thing: object) -> ImageError:
    if isinstance(thing, str | Path):
        found, fix = f"the path {thing!s:.200}", "open it first: trunkline.runtime.image.open_image(path)"
    elif isinstance(thing, bytes | bytearray | memoryview):
        found, fix = f"{type(thing).__name__}", "decode them first: Image.open(io.BytesIO(data))"
    elif isinstance(thing, list | tuple):
        found, fix = f"a {type(thing).__name__} of {len(thing)}", "hand over one image at a time"
    elif thing is None:
        found, fix = "None", "check that the camera or the file gave a frame (cv2.imread gives None when it fails)"
    else:
        found, fix = type(thing).__qualname__, "make it an array: np.asarray(image); of a tensor: tensor.cpu().numpy()"
    return ImageError("this is not an image", expected="a PIL image or an RGB array", found=found, fix=fix)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no further word'}"
