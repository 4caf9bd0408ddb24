"""Pixels equal open_clip's evaluation transform for every accepted image, and every other image is refused by name."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps

from tests.deep_images import DEEP_FILES, deep_ppm, signed_tiff
from trunkline.runtime import image as image_module
from trunkline.runtime.errors import ImageError
from trunkline.runtime.image import (
    MAX_PIXELS,
    MIN_SIDE_PX,
    PIL_MODES,
    ImageSpec,
    decode_png,
    normalised,
    open_image,
    to_pixels,
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RESIZE_MODES = ("squash", "shortest", "longest")
INTERPOLATIONS = ("bicubic", "bilinear")
TARGETS = ((32, 32), (24, 40), (41, 23))  # height, width
SOURCES = ((8, 8), (8, 150), (151, 9), (32, 32), (40, 24), (33, 31), (61, 97))  # width, height


def a_spec(height: int = 32, width: int = 32, **changes: Any) -> ImageSpec:
    values = {"resize_mode": "squash", "interpolation": "bicubic", "fill": 0, "mean": MEAN, "std": STD}
    return ImageSpec(height, width, **(values | changes))


def reference(spec: ImageSpec) -> Any:
    config = PreprocessCfg(
        size=(spec.height, spec.width),
        mean=spec.mean,
        std=spec.std,
        interpolation=spec.interpolation,
        resize_mode=spec.resize_mode,
        fill_color=spec.fill,
    )
    return image_transform_v2(config, is_train=False)


def an_array(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Noise over blocks, so that both filters and rounding have something to disagree about."""
    rng = np.random.default_rng([width, height, seed])
    blocks = rng.integers(0, 256, (height // 7 + 1, width // 5 + 1, 3))
    smooth = np.repeat(np.repeat(blocks, 7, axis=0), 5, axis=1)[:height, :width]
    return np.clip(smooth + rng.integers(-40, 41, smooth.shape), 0, 255).astype(np.uint8)


def an_image(mode: str, width: int, height: int) -> Image.Image:
    values = an_array(width, height)
    image = Image.fromarray(values)
    if mode in ("LA", "RGBA"):
        alpha = Image.fromarray(an_array(width, height, seed=1)[..., 0])
        image.putalpha(alpha)
    return image.convert(mode)


def assert_equal_to_reference(image: Image.Image, spec: ImageSpec) -> None:
    *until_rgb, to_tensor, normalize = reference(spec).transforms
    expected = image
    for step in until_rgb:
        expected = step(expected)
    pixels = to_pixels(image, spec)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, np.asarray(expected))
    scaled = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    assert torch.equal((scaled - mean) / std, normalize(to_tensor(expected)))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # the reference's, not ours
class TestEqualsTheReference:
    @pytest.mark.parametrize("mode", PIL_MODES)
    @pytest.mark.parametrize("target", TARGETS, ids=str)
    @pytest.mark.parametrize("interpolation", INTERPOLATIONS)
    @pytest.mark.parametrize("resize_mode", RESIZE_MODES)
    def test_modes_and_sizes(self, resize_mode: str, interpolation: str, target: tuple[int, int], mode: str) -> None:
        for fill in (0, 127) if resize_mode == "longest" else (0,):
            spec = a_spec(*target, resize_mode=resize_mode, interpolation=interpolation, fill=fill)
            for width, height in SOURCES if mode in ("RGB", "P") else SOURCES[1::2]:
                assert_equal_to_reference(an_image(mode, width, height), spec)

    @pytest.mark.parametrize("resize_mode", RESIZE_MODES)
    @pytest.mark.parametrize("size", [(224, 224), (225, 223), (640, 480), (1280, 720), (3001, 1999)], ids=str)
    def test_camera_sizes(self, size: tuple[int, int], resize_mode: str) -> None:
        assert_equal_to_reference(an_image("RGB", *size), a_spec(224, 224, resize_mode=resize_mode, fill=3))

    @settings(derandomize=True, deadline=None, max_examples=150)
    @given(
        source=st.tuples(st.integers(8, 200), st.integers(8, 200)),
        target=st.tuples(st.integers(16, 64), st.integers(16, 64)) | st.integers(16, 64).map(lambda side: (side, side)),
        resize_mode=st.sampled_from(RESIZE_MODES),
        interpolation=st.sampled_from(INTERPOLATIONS),
        fill=st.integers(0, 255),
    )
    def test_any_size(self, source: Any, target: Any, resize_mode: str, interpolation: str, fill: int) -> None:
        spec = a_spec(*target, resize_mode=resize_mode, interpolation=interpolation, fill=fill)
        assert_equal_to_reference(an_image("RGB", *source), spec)

    @pytest.mark.parametrize("resize_mode", RESIZE_MODES)
    @pytest.mark.parametrize(("mode", "transparency"), [("P", b"\x00\x80"), ("P", 3), ("L", 5), ("RGB", (1, 2, 3))])
    def test_transparent_colours(self, mode: str, transparency: object, resize_mode: str) -> None:
        image = an_image(mode, 50, 40)
        image.info["transparency"] = transparency
        assert_equal_to_reference(image, a_spec(resize_mode=resize_mode, fill=9))
        assert image.info["transparency"] == transparency

    @pytest.mark.parametrize("resize_mode", RESIZE_MODES)
    def test_palette_with_alpha(self, resize_mode: str) -> None:
        image = an_image("RGBA", 50, 40).quantize(20)
        assert image.palette is not None
        assert image.palette.mode == "RGBA"
        assert_equal_to_reference(image, a_spec(resize_mode=resize_mode, fill=9))

    @pytest.mark.parametrize("image_format", ["PNG", "JPEG", "BMP", "PPM", "TIFF", "GIF", "WEBP"])
    def test_images_not_loaded_yet(self, image_format: str) -> None:
        file = io.BytesIO()
        an_image("RGB", 50, 40).save(file, image_format)
        with Image.open(file) as ours, Image.open(io.BytesIO(file.getvalue())) as theirs:
            np.testing.assert_array_equal(to_pixels(ours, a_spec()), to_pixels(theirs.copy(), a_spec()))
            assert_equal_to_reference(theirs, a_spec())

    def test_bilinear_is_ignored_for_the_shortest_side_of_an_oblong_target(self) -> None:
        image = an_image("RGB", 90, 70)
        oblong = [to_pixels(image, a_spec(24, 40, resize_mode="shortest", interpolation=f)) for f in INTERPOLATIONS]
        square = [to_pixels(image, a_spec(24, 24, resize_mode="shortest", interpolation=f)) for f in INTERPOLATIONS]
        assert np.array_equal(*oblong)
        assert not np.array_equal(*square)

    def test_images_are_resized_before_they_become_rgb(self) -> None:
        image = an_image("P", 90, 70)
        assert not np.array_equal(to_pixels(image, a_spec()), to_pixels(image.convert("RGB"), a_spec()))

    def test_no_warning(self) -> None:
        image = an_image("P", 50, 40)
        image.info["transparency"] = b"\x00\x80"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            to_pixels(image, a_spec())


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (MEAN, STD),
        ((0.5, 0.45, 0.4), (0.5, 0.25, 0.3)),
        ((0.0,) * 3, (1.0,) * 3),
        ((0.485, 0.456, 0.406), (0.229,) * 3),
    ],
)
def test_mean_and_std_give_the_same_bits(mean: Any, std: Any) -> None:
    every_byte = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, axis=-1)
    spec = a_spec(16, 16, mean=mean, std=std)
    found = normalised(every_byte, spec)
    assert (found.dtype, found.shape) == (np.float32, (3, 16, 16))
    assert found.tobytes() == reference(spec)(Image.fromarray(every_byte)).numpy().tobytes()


def test_in_words() -> None:
    assert a_spec(96, 160, mean=(0.5,) * 3, std=(0.25, 0.3, 1.0)).in_words() == (
        "96 x 160 px, squash, bicubic, mean 0.5 0.5 0.5, std 0.25 0.3 1"
    )
    assert "shortest, bilinear, mean 0.48145466 " in a_spec(resize_mode="shortest", interpolation="bilinear").in_words()
    assert (
        "longest, bilinear, padded with 7, "
        in a_spec(resize_mode="longest", interpolation="bilinear", fill=7).in_words()
    )
    oblong = a_spec(24, 40, resize_mode="shortest", interpolation="bilinear")
    assert "shortest, bicubic, " in oblong.in_words()  # what is really done


class TestArrays:
    @pytest.mark.parametrize("resize_mode", RESIZE_MODES)
    def test_equal_the_same_pil_image(self, resize_mode: str) -> None:
        array = an_array(70, 50)
        spec = a_spec(resize_mode=resize_mode)
        np.testing.assert_array_equal(to_pixels(array, spec), to_pixels(Image.fromarray(array), spec))

    @pytest.mark.parametrize("size", [(32, 32), (70, 50)])
    @pytest.mark.parametrize(
        "view",
        [
            lambda array: array[::-1],
            lambda array: array[:, ::-1],
            lambda array: array[..., ::-1],
            lambda array: np.asfortranarray(array),
            lambda array: np.repeat(array, 2, axis=1)[:, ::2],
            lambda array: np.ascontiguousarray(array.transpose(2, 0, 1)).transpose(1, 2, 0),
        ],
        ids=["upside down", "mirrored", "BGR view", "Fortran", "every second", "channel-first memory"],
    )
    def test_any_strides(self, view: Any, size: tuple[int, int]) -> None:
        array = view(an_array(*size))
        assert not array.flags.c_contiguous
        pixels = to_pixels(array, a_spec())
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, to_pixels(np.ascontiguousarray(array), a_spec()))

    @pytest.mark.parametrize("size", [(32, 32), (70, 50)])
    def test_read_only(self, size: tuple[int, int]) -> None:
        array = an_array(*size)
        expected = to_pixels(array.copy(), a_spec())
        array.flags.writeable = False
        np.testing.assert_array_equal(to_pixels(array, a_spec()), expected)

    @pytest.mark.parametrize("resize_mode", RESIZE_MODES)
    def test_the_right_size_is_not_copied(self, resize_mode: str) -> None:
        array = an_array(32, 32)
        assert to_pixels(array, a_spec(resize_mode=resize_mode)) is array

    def test_the_input_is_not_changed(self) -> None:
        array = an_array(70, 50)
        before = array.copy()
        to_pixels(array, a_spec())
        np.testing.assert_array_equal(array, before)


REFUSED_ARRAYS = {
    "grey": (np.zeros((40, 40), np.uint8), r"(?s)is grey.*found: shape \(40, 40\).*np\.repeat"),
    "grey, one channel": (np.zeros((40, 40, 1), np.uint8), r"(?s)is grey.*np\.repeat"),
    "RGBA": (np.zeros((40, 40, 4), np.uint8), r"(?s)four channels.*array\[\.\.\., :3\]"),
    "channel-first": (np.zeros((3, 40, 40), np.uint8), r"(?s)channel-first.*transpose\(1, 2, 0\)"),
    "batch": (np.zeros((1, 40, 40, 3), np.uint8), r"(?s)is a batch.*array\[index\]"),
    "two channels": (np.zeros((40, 40, 2), np.uint8), r"(?s)not an image.*\(40, 40, 2\)"),
    "no dimension": (np.uint8(3).reshape(()), "not an image"),
    "float": (np.full((40, 40, 3), 0.5), r"(?s)8-bit.*float64.*values 0\.5 to 0\.5.*\* 255"),
    "float with NaN": (np.full((40, 40, 3), np.nan, np.float32), "with NaN or infinite values"),
    "float, empty": (np.zeros((0, 0, 3), np.float32), "float32"),
    "16-bit": (np.zeros((40, 40, 3), np.uint16), "(?s)uint16.*wrap around"),
    "int64": (np.zeros((40, 40, 3), np.int64), "int64"),
    "int8": (np.zeros((40, 40, 3), np.int8), "(?s)int8.*8-bit RGB"),
    "bool": (np.zeros((40, 40, 3), bool), "dtype bool"),
    "objects": (np.full((40, 40, 3), None), "dtype object"),
    "empty": (np.zeros((0, 40, 3), np.uint8), "(?s)is empty.*0 x 40"),
    "1 x 1": (np.zeros((1, 1, 3), np.uint8), "(?s)too small.*at least 8 pixels.*1 x 1"),
    "thin": (np.zeros((40, 7, 3), np.uint8), "(?s)too small.*40 x 7"),
    "masked": (np.ma.masked_array(np.zeros((40, 40, 3), np.uint8), True), r"(?s)class of its own.*MaskedArray.*filled"),
    "a class of its own": (np.zeros((40, 40, 3), np.uint8).view(np.recarray), r"(?s)class of its own.*numpy\.asarray"),
    "huge": (np.broadcast_to(np.uint8(0), (8001, 8000, 3)), "(?s)too large.*8001 x 8000"),
}


@pytest.mark.parametrize("name", REFUSED_ARRAYS)
def test_refused_arrays(name: str) -> None:
    array, message = REFUSED_ARRAYS[name]
    with pytest.raises(ImageError, match=message):
        to_pixels(array, a_spec())


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ("frame.png", r"(?s)the path frame\.png.*open_image\(path\)"),
        (Path("frame.png"), r"open_image\(path\)"),
        (b"\x89PNG", r"Image\.open\(io\.BytesIO\(data\)\)"),
        (None, r"(?s)found: None.*cv2\.imread"),
        ([np.zeros((40, 40, 3), np.uint8)], "(?s)a list of 1.*one image at a time"),
        ((), "a tuple of 0"),
        (torch.zeros(40, 40, 3, dtype=torch.uint8), r"(?s)Tensor.*tensor\.cpu\(\)\.numpy\(\)"),
        (7, "(?s)not an image.*found: int"),
    ],
)
def test_refused_things(thing: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        to_pixels(thing, a_spec())


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "I;16B", "I;16L", "PA", "La", "RGBa", "RGBX", "HSV", "LAB"])
def test_refused_modes(mode: str) -> None:
    fix = {"I": "scale the values to 0..255", "F": "scale the values to 0..255", "P": "RGBA"}.get(mode[0], "'RGB'")
    with pytest.raises(ImageError, match=rf"(?s)no faithful way.*found: mode {mode}.*{fix}"):
        to_pixels(Image.new(mode, (40, 40)), a_spec())


class TestSizes:
    @pytest.mark.parametrize("size", [(0, 0), (0, 40), (40, 0)])
    def test_empty(self, size: tuple[int, int]) -> None:
        with pytest.raises(ImageError, match="is empty"):
            to_pixels(Image.new("RGB", size), a_spec())

    @pytest.mark.parametrize("size", [(1, 1), (MIN_SIDE_PX - 1, 40), (40, MIN_SIDE_PX - 1)])
    def test_too_small(self, size: tuple[int, int]) -> None:
        with pytest.raises(ImageError, match=r"(?s)too small.*shows nothing"):
            to_pixels(Image.new("RGB", size), a_spec())

    def test_too_large(self) -> None:
        with pytest.raises(ImageError, match=rf"(?s)too large.*{MAX_PIXELS}.*8001 x 8000.*scale it down"):
            to_pixels(Image.new("1", (8000, 8001)), a_spec())

    @pytest.mark.parametrize("resize_mode", ["shortest", "longest"])
    @pytest.mark.parametrize("width_first", [True, False])
    def test_too_thin(self, resize_mode: str, width_first: bool) -> None:
        size = (20_000, 8) if width_first else (8, 20_000)
        spec = (
            a_spec(900, 900, resize_mode=resize_mode)
            if resize_mode == "shortest"
            else a_spec(9, 9, resize_mode="longest")
        )
        with pytest.raises(ImageError, match=r"(?s)too long and thin.*which become.*crop it"):
            to_pixels(Image.new("RGB", size), spec)
        with pytest.raises(ImageError, match="too long and thin"):
            to_pixels(np.zeros((size[1], size[0], 3), np.uint8), spec)

    def test_long_and_thin_within_the_limit(self) -> None:
        assert to_pixels(Image.new("RGB", (20_000, 8)), a_spec()).shape == (32, 32, 3)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


class TestFiles:
    def test_is_closed_and_complete(self, tmp_path: Path) -> None:
        image = an_image("RGB", 50, 40)
        path = saved(tmp_path / "frame.png", image)
        opened = open_image(path)
        path.unlink()
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(image))
        assert_equal_to_reference(opened, a_spec())
        assert to_pixels(open_image(str(saved(path, image))), a_spec()).shape == (32, 32, 3)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"(?s)no image file.*frame.png.*found: nothing"):
            open_image(tmp_path / "frame.png")
        with pytest.raises(ImageError, match=r"(?s)no image file.*not a file"):
            open_image(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
    def test_not_an_image(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "frame.png"
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"(?s)cannot be read.*frame\.png.*JPEG, PNG.*convert it to PNG") as caught:
            open_image(path)
        assert caught.value.__cause__ is not None

    @pytest.mark.parametrize("name", ["half.jpg", "half.png", "half.tiff", "half.bmp"])
    def test_half_a_file(self, tmp_path: Path, name: str) -> None:
        path = saved(tmp_path / name, an_image("RGB", 200, 150))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ImageError, match=r"(?s)cannot be (decoded|read).*half\."):
            open_image(path)
        with pytest.raises(ImageError, match=r"(?s)cannot be (decoded|read)"), Image.open(path) as image:
            to_pixels(image, a_spec())

    def test_a_file_that_was_closed_before_it_was_decoded(self, tmp_path: Path) -> None:
        with Image.open(saved(tmp_path / "frame.jpg", an_image("RGB", 50, 40))) as image:
            pass
        with pytest.raises(ImageError, match=r"(?s)cannot be decoded.*whose file is still open"):
            to_pixels(image, a_spec())

    def test_bombs_are_refused_before_they_are_decoded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = saved(tmp_path / "bomb.png", Image.new("1", (8000, 8001)))
        monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
        with pytest.raises(ImageError, match=r"(?s)too large.*bomb.png"):
            open_image(path)

    def test_bombs_that_pillow_refuses(self, tmp_path: Path) -> None:
        header = b"P6 20000 20000 255\n"
        path = tmp_path / "bomb.ppm"
        path.write_bytes(header)
        with pytest.raises(ImageError, match=r"(?s)cannot be read.*DecompressionBombError"):
            open_image(path)

    @pytest.mark.parametrize("name", ["turned.jpg", "turned.png"])
    @pytest.mark.parametrize("orientation", range(2, 9))
    def test_turned(self, tmp_path: Path, name: str, orientation: int) -> None:
        path = saved(tmp_path / name, an_image("RGB", 50, 40), exif=turned(orientation))
        message = f"(?s)stored turned.*{name}.*orientation {orientation}.*exif_transpose"
        with pytest.raises(ImageError, match=message):
            open_image(path)
        with Image.open(path) as image:
            with pytest.raises(ImageError, match=message):
                to_pixels(image, a_spec())
            assert to_pixels(ImageOps.exif_transpose(image), a_spec()).shape == (32, 32, 3)

    @pytest.mark.parametrize("orientation", [0, 1, 9])
    def test_upright(self, tmp_path: Path, orientation: int) -> None:
        assert open_image(saved(tmp_path / "upright.jpg", an_image("RGB", 50, 40), exif=turned(orientation)))

    def test_a_turned_tiff_is_what_pillow_makes_of_it(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "turned.tiff", an_image("RGB", 50, 40), tiffinfo={0x0112: 6})
        assert_equal_to_reference(open_image(path), a_spec())

    @pytest.mark.parametrize("image_format", ["GIF", "PNG", "TIFF", "WEBP", "MPO"])
    def test_several_frames(self, image_format: str) -> None:
        frames = [an_image("RGB", 50, 40), an_image("RGB", 50, 40).rotate(90)]
        file = io.BytesIO()
        frames[0].save(file, image_format, save_all=True, append_images=frames[1:])
        with Image.open(file) as image:
            with pytest.raises(ImageError, match=r"(?s)several frames.*2 frames.*image\.seek"):
                to_pixels(image, a_spec())
            assert to_pixels(image.copy(), a_spec()).shape == (32, 32, 3)

    def test_16_bit(self, tmp_path: Path) -> None:
        values = Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40))
        with pytest.raises(ImageError, match=r"(?s)no faithful way.*deep\.png.*mode I;16"):
            open_image(saved(tmp_path / "deep.png", values))

    @pytest.mark.parametrize("name", DEEP_FILES)
    def test_more_than_8_bits_that_pillow_hides(self, tmp_path: Path, name: str) -> None:
        """Values of a 12-bit camera would become those of a nearly black 8-bit image."""
        path = tmp_path / name
        path.write_bytes(DEEP_FILES[name])
        with Image.open(path) as cut:
            assert cut.mode in PIL_MODES  # which is why the mode does not show it
            assert name.endswith(("12-bit.ppm", "plain.ppm")) or np.asarray(cut)[..., 0].max() <= 16  # of 255
        for read in (open_image, lambda path: to_pixels(Image.open(path), a_spec())):
            with pytest.raises(ImageError, match=r"(?s)more than 8 bits per channel.*" + name + ".*8 bits"):
                read(path)

    def test_values_with_a_sign(self, tmp_path: Path) -> None:
        (tmp_path / "signed.tiff").write_bytes(signed_tiff())
        with pytest.raises(ImageError, match=r"(?s)more than 8 bits.*values with a sign"):
            open_image(tmp_path / "signed.tiff")

    def test_a_recorded_or_golden_png_of_16_bits(self) -> None:
        with pytest.raises(ImageError, match=r"(?s)more than 8 bits.*RGB;16B"):
            decode_png(DEEP_FILES["rgb.png"], "here")

    @pytest.mark.parametrize("image_format", ["JPEG2000", "AVIF", "DDS", "SGI"])
    def test_formats_that_do_not_show_their_depth(self, image_format: str) -> None:
        file = io.BytesIO()
        try:
            an_image("RGB", 50, 40).save(file, image_format)
        except (OSError, KeyError):
            pytest.skip(f"this Pillow writes no {image_format}")
        with pytest.raises(ImageError, match=r"(?s)may have.*depth cannot be seen.*image\.copy"):
            to_pixels(Image.open(file), a_spec())
        assert to_pixels(Image.open(file).copy(), a_spec()).shape == (32, 32, 3)  # the caller's word

    @pytest.mark.parametrize("most", [1, 15, 200, 255])
    def test_a_file_of_fewer_levels_is_spread_over_all(self, tmp_path: Path, most: int) -> None:
        (tmp_path / "few.ppm").write_bytes(deep_ppm(most))
        assert np.asarray(open_image(tmp_path / "few.ppm")).max() == 255

    def test_a_bitmap_of_16_bits_a_pixel_has_fewer_a_channel(self, tmp_path: Path) -> None:
        header = struct.pack("<IiiHHIIiiII", 40, 16, 16, 1, 16, 3, 512, 0, 0, 0, 0) + struct.pack(
            "<III", 0xF800, 0x7E0, 0x1F
        )
        begin = b"BM" + struct.pack("<IHHI", 14 + len(header) + 512, 0, 0, 14 + len(header))
        (tmp_path / "565.bmp").write_bytes(begin + header + b"\xff" * 512)
        assert np.asarray(open_image(tmp_path / "565.bmp")).min() == 255

    @pytest.mark.parametrize("name", ["frame.jpg", "frame.png", "frame.tiff", "frame.bmp", "frame.ppm"])
    @pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on TIFF tags
    def test_damaged_files_end_in_pixels_or_an_image_error(self, tmp_path: Path, name: str) -> None:
        path = saved(tmp_path / name, an_image("RGB", 30, 20))
        whole, rng = path.read_bytes(), random.Random(0)
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(rng.choice([1, 1, 2, 5])):
                damaged[rng.randrange(min(len(damaged), rng.choice([60, 10_000])))] = rng.randrange(256)
            path.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
            try:
                to_pixels(open_image(path), a_spec(resize_mode="longest"))
            except ImageError:
                continue

    def test_unreadable_metadata(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(self: Image.Image) -> None:
            raise SyntaxError("not a TIFF file")

        monkeypatch.setattr(Image.Image, "getexif", broken)
        with pytest.raises(ImageError, match=r"(?s)cannot be decoded.*SyntaxError: not a TIFF file"):
            to_pixels(an_image("RGB", 50, 40), a_spec())


def test_the_runtime_imports_nothing_heavy() -> None:
    heavy = ["torch", "torchvision", "transformers", "open_clip", "timm", "onnx", "typer", "matplotlib", "regex"]
    code = (
        "import os, sys; before = dict(os.environ)\n"
        "import trunkline.runtime.image, trunkline.runtime.text\n"
        f"print([name for name in {heavy} if name in sys.modules], dict(os.environ) == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] True"


def test_constants_are_what_messages_say() -> None:
    assert (MIN_SIDE_PX, MAX_PIXELS) == (8, 64_000_000)
    assert set(image_module.FILE_FORMATS) == {"JPEG", "PNG", "BMP", "PPM", "TIFF"}
