"""int8 and half precision for ensembles with a sensor, through the same calibration as everything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import made_once
from tests.kit import FORM, sensor_checkpoint
from tests.samples_kit import ACTIONS, scene
from tests.trunks import head_shape
from trunkline.calibration.int8.compress import CompressOptions
from trunkline.calibration.int8.outcome import Budget, read_calibration
from trunkline.calibration.samples.draw import DrawOptions
from trunkline.calibration.samples.sample import CalibrationSample, Picture, SensorExcerpt
from trunkline.calibration.samples.synthetic import stream, windows
from trunkline.calibration.tensorrt_rules import violations
from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.export import build
from trunkline.exporter.options import ExportOptions, HalfOptions, Int8Options
from trunkline.exporter.trunk import Trunk
from trunkline.runtime import Ensemble, load
from trunkline.runtime.backends import named, names
from trunkline.runtime.errors import DatasetError
from trunkline.runtime.parity import check_parity
from trunkline.runtime.sensor.window import SensorWindow

#: Random heads: what matters here is the path, not how good the decisions are.
BUDGET = Budget(max_score_change=0.5, min_agreement=0.2)
WITHOUT = 5


class Felt:
    """Samples with a sensor window each, every ``WITHOUT``-th without."""

    name, windows = "felt", None

    def __init__(self, channels: int = 6, gaps: bool = True) -> None:
        self._channels, self._gaps = channels, gaps

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> CalibrationSample:
        random = np.random.default_rng(index)
        window = SensorWindow(stream(random, FORM.samples, self._channels), FORM.rate_hz)
        felt = None if self._gaps and index % WITHOUT == 0 else SensorExcerpt(f"window {index}", lambda: window)
        picture = Picture(f"scene {index}", lambda: scene(index))
        return CalibrationSample(f"#{index}", "lift the lid", picture, windows(random, 6, ACTIONS), sensor=felt)


def int8_options(samples: Felt) -> Int8Options:
    return Int8Options(
        samples, draw=DrawOptions(calibrate=10, judge=6, prove=8), compress=CompressOptions(budget=BUDGET)
    )


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return sensor_checkpoint(head_shape(), "gated", "concat")


@pytest.fixture(scope="module")
def exported(shared: Path, trunk: Trunk, checkpoint: Checkpoint) -> Path:
    target = shared / "sensor_int8"
    options = ExportOptions(int8=int8_options(Felt()), half=HalfOptions(0.01, int8=True))
    return made_once(target, lambda: (build(checkpoint, trunk, target, options=options), None)[1])


@pytest.fixture(params=names("cpu"))
def ensemble(request: pytest.FixtureRequest, exported: Path) -> Iterator[Ensemble]:
    if (missing := named(request.param).available()) is not None:
        pytest.skip(missing.reason)
    with load(exported, backend=request.param) as loaded:
        yield loaded


def test_the_gate_holds(ensemble: Ensemble) -> None:
    report = check_parity(ensemble)
    assert report.passed
    assert report.allowed_score_change == BUDGET.max_score_change


def test_the_sensors_layers_are_int8(ensemble: Ensemble) -> None:
    record = read_calibration(ensemble.bundle)
    assert record is not None
    for stage in ("steps", "sensor"):
        layers = [layer for layer in record.layers if layer.stage == stage]
        assert {layer.precision for layer in layers} == {"int8"}, stage
        assert all(layer.signal_to_noise_db > 10 for layer in layers)
    found = [layer.name for layer in record.layers if layer.stage == "steps"]
    # The first convolution reads 18 numbers, too few to be worth it; with 1,026 channels it reads 3,078.
    assert found == [f"encoder.{encoder}.conv.{layer}" for encoder in range(2) for layer in (1, 2, 3)]


def test_windows_that_slide_give_what_whole_ones_give(ensemble: Ensemble) -> None:
    """Ranges are fixed in the graph, so int8 rounds a row the same whatever is computed beside it."""
    rows = stream(np.random.default_rng(), 400, 6)
    for position in (0, 16, 48, 64, 192):
        samples = rows[position : position + FORM.samples]
        slid = ensemble.encode_sensor(SensorWindow(samples, FORM.rate_hz, stream=7, position=position)).values
        whole = ensemble.encode_sensor(SensorWindow(samples, FORM.rate_hz)).values
        np.testing.assert_allclose(slid, whole, atol=1e-5)
    assert ensemble.sensor_counts.slid > 0


def test_golden_frames_are_samples_with_their_windows(ensemble: Ensemble) -> None:
    golden = ensemble.bundle.tensors(ensemble.bundle.manifest.parity.golden)
    felt = [Felt()[index].sensor for index in range(24)]
    known = [each.open().samples for each in felt if each is not None]
    stored = [np.asarray(golden[name]) for name in golden if name.startswith("sensor_")]
    assert stored
    assert all(any(np.array_equal(one, other) for other in known) for one in stored)


def test_the_half_variant_is_there_and_acceptable(ensemble: Ensemble) -> None:
    for name, stage in ensemble.bundle.manifest.stages.items():
        assert violations(ensemble.bundle.root / stage.variants["trt"].graph, "10.3") == [], name


def test_samples_of_another_stream(trunk: Trunk, checkpoint: Checkpoint, tmp_path: Path) -> None:
    int8 = Int8Options(
        Felt(channels=5), draw=DrawOptions(calibrate=10, judge=6, prove=8), compress=CompressOptions(budget=BUDGET)
    )
    with pytest.raises(DatasetError, match="5 numbers per sample instead of 6"):
        build(checkpoint, trunk, tmp_path / "bundle", options=ExportOptions(int8=int8))


def test_samples_without_a_sensor_for_members_that_need_one(trunk: Trunk, tmp_path: Path) -> None:
    checkpoint = sensor_checkpoint(head_shape(), "concat", absent=False)
    int8 = int8_options(Felt())
    with pytest.raises(DatasetError, match="does not know what absence means"):
        build(checkpoint, trunk, tmp_path / "bundle", options=ExportOptions(int8=int8))
