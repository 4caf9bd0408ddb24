"""Everything that the ensemble accepts is recorded as it was, so that replay gives the very scores, and so do promoted
samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bundles import frame, windows
from trunkline.calibration.replay import promote, replay
from trunkline.calibration.replay.promote import NO_FILE
from trunkline.calibration.samples.dataset import read_dataset
from trunkline.runtime.ensemble import Ensemble
from trunkline.runtime.image import PIL_MODES
from trunkline.runtime.replay import Recorder, ReplayLog, Seen, header_of


def of_mode(mode: str, seed: int = 1) -> Image.Image:
    image = Image.fromarray(frame(seed))
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(frame(2)[..., 0]))
    return image.convert(mode)


def mapped(folder: Path) -> np.ndarray:
    np.save(folder / "frame.npy", frame(3))
    return np.load(folder / "frame.npy", mmap_mode="r")


def from_file(folder: Path, name: str, image: Image.Image, **options: Any) -> Image.Image:
    image.save(folder / name, **options)
    return Image.open(folder / name)


def with_transparency(image: Image.Image, transparency: object) -> Image.Image:
    image.info["transparency"] = transparency
    return image


def images(folder: Path) -> dict[str, Any]:
    return {
        "an array": frame(0),
        "a view": frame(0, 80, 120)[::2, ::-2],
        "read-only": np.frombuffer(frame(0).tobytes(), np.uint8).reshape(40, 60, 3),
        "in the order of Fortran": np.asfortranarray(frame(0)),
        "mapped": mapped(folder),
        **{f"mode {mode}": of_mode(mode) for mode in PIL_MODES},
        "few colours": Image.fromarray(frame(4)).quantize(20),
        "colours with alpha": of_mode("RGBA").quantize(20),
        "transparent colours": with_transparency(of_mode("P", 6), b"\x00\x80"),
        "a transparent colour": with_transparency(of_mode("L", 7), 5),
        "a JPEG not read yet": from_file(folder, "a.jpg", of_mode("RGB")),
        "a PNG of four levels": from_file(folder, "b.png", of_mode("RGB").quantize(4), bits=2),
        "a CMYK JPEG": from_file(folder, "c.jpg", of_mode("CMYK")),
        "black and white": from_file(folder, "d.tiff", of_mode("1", 8)),
        "a narrow one": Image.fromarray(frame(5, 8, 300)),
    }


CANDIDATES: tuple[Any, ...] = (
    windows(5),
    windows(5).astype(np.float64),
    np.round(windows(5) * 4).astype(np.int8),
    windows(5, steps=3),
    [windows(1)[0], windows(1, 1)[0][:4], windows(1, 2)[0][-1:].tolist()],
    windows(10)[::2],
)


@pytest.mark.parametrize("frames", ["png", "raw"])
def test_scores_of_every_form_come_again(tmp_path: Path, ensemble: Ensemble, frames: Any) -> None:
    given = images(tmp_path)
    told: list[tuple[Any, Any, Any]] = [(image, "put it down", windows(5)) for image in given.values()]
    told += [(frame(0), ["pick it up", "lift it"], each) for each in CANDIDATES]
    told += [(frame(0), ("go",), windows(5))]
    expected = []
    with Recorder(tmp_path / "log", header_of(ensemble.bundle), frames=frames) as recording:
        for index, (image, instruction, candidates) in enumerate(told):
            decision = ensemble.score(image, instruction, candidates)
            recording.decision(Seen(instruction, candidates, image=image, frame_ns=np.int64(index)), decision, index)  # type: ignore[arg-type]
            expected.append(ensemble.pixels(image))
    assert (recording.dropped, recording.failure) == ({}, None)
    ensemble.forget()
    report = replay(ReplayLog(tmp_path / "log"), ensemble)
    assert (report.replayed, report.moved, dict(report.skipped)) == (len(told), (), {})
    assert report.comparison is not None
    assert report.comparison.max_score_change <= 1e-6

    promotion = promote(ReplayLog(tmp_path / "log"), tmp_path / "samples")
    assert dict(promotion.skipped) == {NO_FILE: 1}
    samples = iter(read_dataset(promotion.path).samples)
    for name, pixels in zip(given, expected, strict=False):
        if name not in ("mode YCbCr", "read-only", "in the order of Fortran"):  # left out, or seen before
            np.testing.assert_array_equal(ensemble.pixels(next(samples).open()), pixels, err_msg=name)
