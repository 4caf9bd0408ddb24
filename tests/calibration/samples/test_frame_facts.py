"""Noise is told from pictures, and a digest depends on pixels alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.samples_kit import Pixels, noise, scene
from trunkline.calibration.samples.frame_facts import look_at
from trunkline.calibration.samples.synthetic import frame
from trunkline.runtime.errors import ImageError

HEIGHT, WIDTH = 120, 160
DEMO = Path(__file__).parents[3] / "examples" / "demo"


def jpeg(pixels: Pixels, quality: int, subsampling: int = 2) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(stream))


def gaussian(deviation: float) -> Pixels:
    values = np.random.default_rng(1).normal(128, deviation, (HEIGHT, WIDTH, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


def grained(pixels: Pixels, deviation: float) -> Pixels:
    values = pixels + np.random.default_rng(2).normal(0, deviation, pixels.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


def gradient() -> Pixels:
    return np.broadcast_to(np.linspace(0, 255, WIDTH).astype(np.uint8)[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def spot() -> Pixels:
    """A small light in a dark room, with the camera's grain."""
    pixels = grained(np.full((HEIGHT, WIDTH, 3), 20, np.uint8), 3)
    pixels[50:58, 70:78] = 250
    return pixels


NOISE = {
    "uniform": noise(0, HEIGHT, WIDTH),
    "large": noise(0, 480, 640),
    "small": noise(0, 24, 32),
    "grey": np.repeat(noise(0, HEIGHT, WIDTH)[..., :1], 3, axis=2),
    "black and white": (noise(0, HEIGHT, WIDTH) > 127).astype(np.uint8) * 255,
    "salt": (noise(0, HEIGHT, WIDTH) > 242).astype(np.uint8) * 255,
    "gaussian": gaussian(60),
    "faint": gaussian(20),
    "JPEG 95": jpeg(noise(0, HEIGHT, WIDTH), 95, 0),
    "JPEG 75": jpeg(noise(0, HEIGHT, WIDTH), 75),
    "JPEG 30": jpeg(noise(0, HEIGHT, WIDTH), 30),
    "shrunk": np.asarray(Image.fromarray(noise(0, 2 * HEIGHT, 2 * WIDTH)).resize((WIDTH, HEIGHT))),
}
PICTURES = {
    "smooth": scene(0, HEIGHT, WIDTH),
    "tall": frame(np.random.default_rng(0), 640, 120),
    "small": scene(3, 24, 32),
    "gradient": gradient(),
    "grainy": grained(scene(0, HEIGHT, WIDTH), 40),
    "bare wall": gaussian(4),
    "spot": spot(),
    "JPEG": jpeg(scene(0, HEIGHT, WIDTH), 50),
    "one colour": np.full((HEIGHT, WIDTH, 3), 90, np.uint8),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_recognised(name: str) -> None:
    facts = look_at(NOISE[name])
    assert facts.noise, facts
    assert not facts.constant


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_not_taken_for_noise(name: str) -> None:
    facts = look_at(PICTURES[name])
    assert not facts.noise, facts
    assert facts.constant == (name == "one colour")


def test_rendered_scenes_are_far_from_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DEMO)
    from world import make_episode, render  # type: ignore[import-not-found]

    for index in range(5):
        facts = look_at(render(make_episode("held-out", 7, index)[0].scenes[0]))
        assert facts.correlation > 0.8
        assert facts.coarse_share > 0.3


def test_the_digest_depends_on_pixels_alone(tmp_path: Path) -> None:
    pixels = scene(0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.bmp")
    digests = {look_at(Image.open(tmp_path / name)).digest for name in ("a.png", "b.bmp")} | {look_at(pixels).digest}
    assert len(digests) == 1
    changed = pixels.copy()
    changed[-1, -1, -1] ^= 1
    turned = pixels.reshape(pixels.shape[1], pixels.shape[0], 3)  # the same bytes in another form
    strided = pixels[:, ::-1]
    assert len(digests | {look_at(each).digest for each in (changed, turned, strided)}) == 4


def test_grey_and_palette_pictures_count_as_rgb() -> None:
    grey = Image.fromarray(scene(0)).convert("L")
    assert look_at(grey).digest == look_at(grey.convert("RGB")).digest


@pytest.mark.parametrize(
    "thing", [np.zeros((4, 4, 3), np.uint8), np.zeros((40, 40), np.uint8), np.zeros((40, 40, 3), np.float32), None]
)
def test_what_the_runtime_refuses_is_refused(thing: object) -> None:
    with pytest.raises(ImageError):
        look_at(thing)  # type: ignore[arg-type]
