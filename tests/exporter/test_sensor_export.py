"""Ensembles with sensors as bundles: the same features and scores as PyTorch, whatever the fusion and the window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import made_once
from tests.kit import FORM, FUSIONS, random_member, sensor_checkpoint, with_sensor
from tests.sensor_kit import TracedEncoder
from tests.trunks import head_shape
from trunkline.calibration.samples.synthetic import frame, stream, windows
from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.export import build
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.exporter.trunk import Trunk
from trunkline.runtime import Ensemble, load
from trunkline.runtime.errors import InputError, SensorError
from trunkline.runtime.parity import check_parity
from trunkline.runtime.sensor.window import SensorWindow

INSTRUCTIONS = ["put the red block in the bowl", "go left"]
ADAPTIVE = replace(FORM, samples=3000, steps=65, adaptive=True)

Make = Callable[[str, Checkpoint], tuple[Ensemble, PyTorchEnsemble]]


@pytest.fixture(scope="session")
def make(shared: Path, trunk: Trunk) -> Iterator[Make]:
    loaded: dict[str, tuple[Ensemble, PyTorchEnsemble]] = {}

    def make(name: str, checkpoint: Checkpoint) -> tuple[Ensemble, PyTorchEnsemble]:
        if name not in loaded:
            path = shared / f"sensor_{name}"
            made_once(path, lambda: (build(checkpoint, trunk, path), None)[1])
            loaded[name] = load(path), PyTorchEnsemble(trunk, checkpoint)
        return loaded[name]

    yield make
    for ensemble, _ in loaded.values():
        ensemble.close()


@pytest.fixture(scope="session")
def mixed(make: Make) -> tuple[Ensemble, PyTorchEnsemble]:
    """Every fusion, and a member without a sensor; with transformer and features for absence."""
    return make("mixed", sensor_checkpoint(head_shape(), *FUSIONS, None))


@pytest.fixture(scope="session")
def adaptive(make: Make) -> tuple[Ensemble, PyTorchEnsemble]:
    """Windows of any length, resampled; no transformer, nothing for absence."""
    return make(
        "adaptive",
        sensor_checkpoint(head_shape(), "concat", "gated", form=ADAPTIVE, layers=0, feedforward=0, absent=False),
    )


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng()


def scores_of(
    pair: tuple[Ensemble, PyTorchEnsemble], random: np.random.Generator, samples: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Member scores of the bundle and of PyTorch for a fresh frame and candidates."""
    ensemble, reference = pair
    image, histories = frame(random, 60, 90), windows(random, 5, reference.settings)
    entry = ensemble.bundle.manifest.sensor
    assert entry is not None
    window = None if samples is None else SensorWindow(samples, entry.form.rate_hz)
    found = ensemble.score(image, INSTRUCTIONS, histories, sensor=window)
    expected, members = reference.score(image, INSTRUCTIONS, histories, samples)
    np.testing.assert_allclose(found.scores, expected, atol=1e-4)
    return found.member_scores, members


def test_golden_vectors_pass(mixed: tuple[Ensemble, PyTorchEnsemble]) -> None:
    assert check_parity(mixed[0]).passed


@pytest.mark.parametrize("length", [1, 7, 49, 50, 51, 200])
def test_scores_for_windows_of_any_length(
    mixed: tuple[Ensemble, PyTorchEnsemble], random: np.random.Generator, length: int
) -> None:
    found, expected = scores_of(mixed, random, stream(random, length, 6))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_scores_without_a_sensor(mixed: tuple[Ensemble, PyTorchEnsemble], random: np.random.Generator) -> None:
    found, expected = scores_of(mixed, random, None)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 3, 64, 65, 66, 130, 650, 2999, 3000])
def test_scores_for_adaptive_windows(
    adaptive: tuple[Ensemble, PyTorchEnsemble], random: np.random.Generator, length: int
) -> None:
    found, expected = scores_of(adaptive, random, stream(random, length, 6))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_which_members_the_sensor_moves(mixed: tuple[Ensemble, PyTorchEnsemble], random: np.random.Generator) -> None:
    """All but the one with a single token, which cannot hear, and the one without."""
    ensemble, reference = mixed
    image, histories = frame(random, 60, 90), windows(random, 5, reference.settings)
    quiet, loud = (SensorWindow(scale * stream(random, 50, 6), 100.0) for scale in (0.01, 3))
    one, two = (ensemble.score(image, "go", histories, sensor=each).member_scores for each in (quiet, loud))
    assert (np.abs(one - two).max(axis=1) > 1e-4).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("resample", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("steps", [65, 650])
def test_features_at_every_length(
    tmp_path: Path, random: np.random.Generator, resample: str, layers: int, steps: int
) -> None:
    form = replace(ADAPTIVE, steps=steps, resample=resample)  # type: ignore[arg-type]
    member = random_member(with_sensor(layers=layers, feedforward=16 * layers, channels=3), form=form)
    with TracedEncoder(member, tmp_path) as encoder:
        for length in [*range(1, 140), *random.integers(140, 3001, 60).tolist(), 3000]:
            samples = stream(random, length, 3)
            found = encoder.features(SensorWindow(samples, 100.0))
            np.testing.assert_allclose(found, encoder.expected(samples), atol=1e-4, err_msg=f"{length} samples")


def test_features_are_what_the_window_is(mixed: tuple[Ensemble, PyTorchEnsemble], random: np.random.Generator) -> None:
    ensemble, reference = mixed
    image, histories = frame(random, 60, 90), windows(random, 5, reference.settings)
    window = SensorWindow(stream(random, 50, 6), 100.0, end_ns=17)
    seen, felt = ensemble.encode_frame(image), ensemble.encode_sensor(window)
    assert felt.end_ns == 17
    direct = ensemble.score(image, INSTRUCTIONS, histories, sensor=window)
    before = {name: counts.runs for name, counts in ensemble.counts().items()}
    ahead = ensemble.score(seen, INSTRUCTIONS, histories, sensor=felt)
    assert np.array_equal(direct.member_scores, ahead.member_scores)
    assert {name: counts.runs for name, counts in ensemble.counts().items()} == before


def test_features_of_another_bundle(
    mixed: tuple[Ensemble, PyTorchEnsemble], adaptive: tuple[Ensemble, PyTorchEnsemble], random: np.random.Generator
) -> None:
    window = SensorWindow(stream(random, 50, 6), 100.0)
    felt = adaptive[0].encode_sensor(window)
    with pytest.raises(InputError, match="computed by another bundle"):
        mixed[0].score(frame(random, 60, 90), "go", windows(random, 2, mixed[1].settings), sensor=felt)


def test_a_missing_sensor_is_an_error_where_nothing_stands_for_it(
    adaptive: tuple[Ensemble, PyTorchEnsemble], random: np.random.Generator
) -> None:
    with pytest.raises(SensorError, match="there is no sensor window"):
        adaptive[0].score(frame(random, 60, 90), "go", windows(random, 2, adaptive[1].settings))


def test_members_without_a_sensor_never_need_one(make: Make, random: np.random.Generator) -> None:
    ensemble, reference = make("half", sensor_checkpoint(head_shape(), None, "concat", absent=False))
    image, histories = frame(random, 60, 90), windows(random, 5, reference.settings)
    found = ensemble.score(image, INSTRUCTIONS, histories, members=[0])
    felt = stream(random, 50, 6)  # the reference has no subsets
    _, members = reference.score(image, INSTRUCTIONS, histories, felt)
    np.testing.assert_allclose(found.member_scores[0], members[0], atol=1e-4)
    with pytest.raises(SensorError, match=r"members 1 read a sensor"):
        ensemble.score(image, INSTRUCTIONS, histories)


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (SensorWindow(np.ones((50, 6), np.float32), 650.0), "a stream of 650 Hz"),
        (SensorWindow(np.ones((50, 5), np.float32), 100.0), "5 numbers per sample instead of 6"),
        (SensorWindow(np.ones((50, 6)), 100.0), "float64"),  # type: ignore[arg-type]
        (SensorWindow(np.ones((0, 6), np.float32), 100.0), "no samples"),
        (SensorWindow(np.full((50, 6), np.nan, np.float32), 100.0), "NaN"),
        (SensorWindow(np.ones((50, 6), np.float32), 100.0, missing=20), "gaps that swallowed 20"),
        (np.ones((50, 6), np.float32), "must say which stream"),
    ],
)
def test_windows_of_another_kind(
    mixed: tuple[Ensemble, PyTorchEnsemble], random: np.random.Generator, window: object, words: str
) -> None:
    with pytest.raises(SensorError, match=words):
        mixed[0].score(frame(random, 60, 90), "go", windows(random, 2, mixed[1].settings), sensor=window)  # type: ignore[arg-type]


def test_a_bundle_without_a_sensor_takes_none(ensemble: Ensemble, random: np.random.Generator) -> None:
    window = SensorWindow(np.ones((50, 6), np.float32), 100.0)
    with pytest.raises(SensorError, match="has no sensor"):
        ensemble.score(frame(random, 60, 90), "go", np.zeros((2, 10, 7), np.float32), sensor=window)
    with pytest.raises(SensorError, match="has no sensor"):
        ensemble.encode_sensor(window)


def test_a_shared_encoder_is_stored_once(make: Make) -> None:
    first = random_member(with_sensor(head_shape()), 0)
    second = random_member(with_sensor(head_shape()), 1)
    second = replace(second, components={**second.components, "sensor_encoder": first.components["sensor_encoder"]})
    ensemble, _ = make("shared", Checkpoint("random", (first, second), "test"))
    entry = ensemble.bundle.manifest.sensor
    assert entry is not None
    assert (entry.encoders, entry.encoder_of) == (1, (0, 0))
    assert check_parity(ensemble).passed
