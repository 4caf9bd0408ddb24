"""Steps of sliding windows: what is reused must be what the full computation gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.kit import FORM, random_member, with_sensor
from tests.sensor_kit import TracedEncoder
from trunkline.calibration.samples.synthetic import stream
from trunkline.runtime.sensor.steps import SlidingSteps
from trunkline.runtime.sensor.window import SensorWindow

STRIDE = 16


@pytest.fixture(scope="module", params=[650, 640, 130, 65, 33, 17])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedEncoder]:
    """Windows that end in the middle of a block, at its end, and just behind it."""
    form = replace(FORM, samples=request.param, steps=request.param)
    member = random_member(with_sensor(channels=3), form=form)
    with TracedEncoder(member, tmp_path_factory.mktemp("encoder")) as traced:
        yield traced


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng()


def window(rows: np.ndarray, start: int, samples: int, stream: int | None = 1) -> SensorWindow:
    return SensorWindow(rows[start : start + samples], 100.0, stream=stream, position=start)


def full(encoder: TracedEncoder, one: SensorWindow) -> np.ndarray:
    return SlidingSteps(encoder.entry, encoder.run_steps)(replace(one, stream=None))


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Row 1 means nothing."""
    np.testing.assert_allclose(np.delete(found, 1, axis=1), np.delete(expected, 1, axis=1), atol=1e-5)


def test_random_hops_equal_the_full_computation(encoder: TracedEncoder, random: np.random.Generator) -> None:
    samples, position = encoder.entry.form.samples, 0
    rows = stream(random, samples + 40 * 120, 3)
    encoder.sliding.forget()
    for hop in [
        0,
        STRIDE,
        4 * STRIDE,
        *(STRIDE * random.integers(0, 8, 12)).tolist(),
        *random.integers(0, 90, 12).tolist(),
    ]:
        position += hop
        one = window(rows, position, samples)
        same(encoder.sliding(one), full(encoder, one))
        np.testing.assert_allclose(encoder.features(one), encoder.expected(one.samples), atol=1e-5)


def test_only_new_blocks_are_computed(tmp_path: Path, random: np.random.Generator) -> None:
    form = replace(FORM, samples=650, steps=650)
    rows = stream(random, 1200, 3)
    with TracedEncoder(random_member(with_sensor(channels=3), form=form), tmp_path) as encoder:
        for position, blocks in [(0, 42), (64, 7), (128, 7), (128, None), (144, 4), (145, 42), (209, 7), (208, 42)]:
            encoder.blocks_run.clear()
            encoder.sliding(window(rows, position, 650))
            assert encoder.blocks_run == ([] if blocks is None else [blocks]), position
        assert (encoder.sliding.counts.full, encoder.sliding.counts.slid) == (3, 5)


@pytest.mark.parametrize("what", ["another stream", "no stream", "a short window", "a hop beyond the window"])
def test_what_takes_the_full_path(tmp_path: Path, random: np.random.Generator, what: str) -> None:
    form = replace(FORM, samples=130, steps=130)
    rows = stream(random, 600, 3)
    then = {
        "another stream": window(rows, 16, 130, stream=2),
        "no stream": window(rows, 16, 130, stream=None),
        "a short window": window(rows, 16, 100),
        "a hop beyond the window": window(rows, 160, 130),
    }[what]
    with TracedEncoder(random_member(with_sensor(channels=3), form=form), tmp_path) as encoder:
        encoder.sliding(window(rows, 0, 130))
        same(encoder.sliding(then), full(encoder, then))
        assert (encoder.sliding.counts.full, encoder.sliding.counts.slid) == (2, 0)


def test_windows_that_are_longer_than_needed(tmp_path: Path, random: np.random.Generator) -> None:
    """The last rows count, and so does their place in the stream."""
    form = replace(FORM, samples=130, steps=130)
    rows = stream(random, 600, 3)
    with TracedEncoder(random_member(with_sensor(channels=3), form=form), tmp_path) as encoder:
        encoder.sliding(window(rows, 0, 200))
        longer = window(rows, 6, 210)  # ends 16 rows later
        same(encoder.sliding(longer), full(encoder, longer))
        assert encoder.sliding.counts.slid == 1


@pytest.mark.parametrize("change", [{"samples": 260}, {"adaptive": True}])
def test_resampled_windows_are_never_reused(
    tmp_path: Path, random: np.random.Generator, change: dict[str, int]
) -> None:
    form = replace(FORM, steps=130, **{"samples": 130, **change})  # type: ignore[arg-type]
    rows = stream(random, 600, 3)
    with TracedEncoder(random_member(with_sensor(channels=3), form=form), tmp_path) as encoder:
        for position in (0, 16):
            one = window(rows, position, form.samples)
            same(encoder.sliding(one), full(encoder, one))
        assert (encoder.sliding.counts.full, encoder.sliding.counts.slid) == (2, 0)


def test_a_window_without_a_place_leaves_the_stream_known(tmp_path: Path, random: np.random.Generator) -> None:
    form = replace(FORM, samples=130, steps=130)
    rows = stream(random, 600, 3)
    with TracedEncoder(random_member(with_sensor(channels=3), form=form), tmp_path) as encoder:
        encoder.sliding(window(rows, 0, 130))
        encoder.sliding(window(rows, 300, 130, stream=None))
        then = window(rows, 16, 130)
        same(encoder.sliding(then), full(encoder, then))
        assert encoder.sliding.counts.slid == 1
