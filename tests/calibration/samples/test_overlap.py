"""Evaluation samples that also calibrated."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.samples_kit import InMemory, scene
from trunkline.calibration.samples.overlap import Overlap, overlap, short_digests
from trunkline.calibration.samples.sample import CalibrationSample, Picture
from trunkline.runtime.image import open_image


def drawn(source: InMemory) -> list[CalibrationSample]:
    return [source[index] for index in range(len(source))]


def test_digests_are_short_distinct_and_sorted() -> None:
    digests = short_digests(drawn(InMemory([scene(0), scene(1), scene(0)])))
    assert len(digests) == 2
    assert list(digests) == sorted(digests)
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)


def test_pictures_are_known_by_their_pixels(tmp_path: Path) -> None:
    digests = short_digests(drawn(InMemory([scene(index) for index in range(5)])))
    evaluated = drawn(InMemory([scene(index) for index in range(3, 10)], instructions=("another instruction",)))
    found = overlap(digests, evaluated)
    assert found == Overlap(("#0", "#1"), 7)
    assert str(found) == "2 of 7 samples were used in calibration"
    Image.fromarray(scene(4)).save(tmp_path / "copy.png")
    copy = CalibrationSample("copy", "lift", Picture("copy", lambda: open_image(tmp_path / "copy.png")))
    assert overlap(digests, [copy]).used == ("copy",)


def test_no_overlap() -> None:
    assert overlap((), drawn(InMemory([scene(0)]))) == Overlap((), 1)
    assert overlap(("0" * 16,), []) == Overlap((), 0)
