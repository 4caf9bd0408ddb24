"""A float32 bundle becomes an int8 one that keeps its decisions, or an error."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.samples_kit import InMemory, scene
from trunkline.calibration.int8 import compress as module
from trunkline.calibration.int8.compress import CompressOptions, compress
from trunkline.calibration.int8.outcome import Budget, SampleSummary, read_calibration
from trunkline.calibration.samples.bundle_needs import BundleNeeds
from trunkline.calibration.samples.draw import DrawnSamples, DrawOptions, draw_samples
from trunkline.calibration.samples.sample import WindowForm
from trunkline.calibration.samples.synthetic import windows
from trunkline.runtime import load, record
from trunkline.runtime.backends import StageFiles, onnxruntime, openvino
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import InputError, ParityError
from trunkline.runtime.parity import check_parity

LOOSE = Budget(max_score_change=0.3, min_agreement=0.5)


def drawn(bundle: Path, histories: bool = True, count: int = 36) -> DrawnSamples:
    opened = Bundle(bundle)
    actions = opened.manifest.actions
    form = WindowForm(actions.history_length, actions.action_dim, actions.padding_value) if histories else None
    candidates = windows(np.random.default_rng(5), 8, actions) if histories else None
    samples = InMemory(
        [scene(index) for index in range(count)],
        instructions=("put the red block in the bowl", "lift the lid", "push the ball to the left"),
        windows=form,
        histories=candidates,
    )
    return draw_samples(samples, BundleNeeds.of(opened), DrawOptions(calibrate=16, judge=8, prove=12))


def options(**changes) -> CompressOptions:
    return CompressOptions(**{"budget": LOOSE, "backend": "onnxruntime", **changes})


@pytest.fixture(scope="module")
def compressed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    shutil.copytree(bundle, folder)
    compress(folder, drawn(bundle), options())
    return folder


def test_names_of_files_that_are_not_utf8_are_recorded(bundle: Path) -> None:
    """Pictures of any name can be read; a record that no reader takes would end an export after all its work."""
    odd = replace(drawn(bundle), name="samples\udcff", unreadable=("0\udcfe.png: damaged",))
    found = module._summary(odd, ["1\udcfd.png is thin"])
    assert (found.source, found.warnings) == (r"samples\udcff", (r"1\udcfd.png is thin",))
    assert found.skipped[0] == r"0\udcfe.png: damaged"
    assert record.decode(record.encode(found), SampleSummary) == found


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_it_loads_and_decides(compressed: Path, backend: str) -> None:
    with load(compressed, backend=backend) as ensemble:
        report = check_parity(ensemble)
    assert report.passed
    assert 1e-5 < report.fused.max_score_change <= LOOSE.max_score_change
    assert report.allowed_score_change == LOOSE.max_score_change


def test_stages_are_smaller(bundle: Path, compressed: Path) -> None:
    for stage in ("vision", "text"):
        before, after = ((folder / "stages" / stage / "cpu.weights").stat().st_size for folder in (bundle, compressed))
        assert after < 0.4 * before


@pytest.mark.parametrize("backend", [onnxruntime, openvino], ids=lambda it: it.NAME)
def test_every_int8_layer_of_the_record_has_a_kernel(compressed: Path, backend) -> None:
    bundle = Bundle(compressed)
    record = read_calibration(bundle)
    assert record is not None
    for name, stage in bundle.manifest.stages.items():
        folder = compressed / "stages" / name
        files = StageFiles(name, stage, (folder / "cpu.onnx").read_bytes(), folder)
        layers = [layer for layer in record.layers if layer.stage == name and layer.precision == "int8"]
        assert backend.int8_kernels(files) == len(layers) > 0
        assert "int8" in stage.variants["cpu"].precision


def test_the_record_says_what_was_done(compressed: Path) -> None:
    record = read_calibration(Bundle(compressed))
    assert record is not None
    samples = record.samples
    assert (samples.calibrating, samples.judging, samples.proving, len(samples.digests)) == (16, 8, 12, 16)
    assert any("16" in warning for warning in record.samples.warnings)  # few pictures
    assert record.fused.decisions > 8  # the golden vectors judge too
    assert {each.stage for each in record.sensitivities if not each.block} == {"vision", "text", "context", "action"}
    assert {each.block for each in record.sensitivities} > {"features.trunk.blocks.0", "member.0", "member.2"}
    assert len(record.scores.reference) == len(record.scores.found) > 100


def test_two_runs_give_the_same_bytes(bundle: Path, compressed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(bundle, folder)
    compress(folder, drawn(bundle), options())
    assert digests(folder) == digests(compressed)


class Stop(Exception):
    pass


@pytest.mark.parametrize("step", ["collecting ranges of vision", "collecting ranges of context", "sensitivity"])
def test_an_interrupted_run_goes_on(bundle: Path, compressed: Path, tmp_path: Path, step: str) -> None:
    folder, statistics = tmp_path / "interrupted", tmp_path / "statistics"
    shutil.copytree(bundle, folder)
    before = digests(folder)

    def stop(name: str, done: int, total: int) -> None:
        if name.startswith(step) and done == 7:
            raise Stop

    with pytest.raises(Stop):
        compress(folder, drawn(bundle), options(statistics=statistics), stop)
    assert digests(folder) == before
    remembered = {path: path.stat().st_mtime_ns for path in statistics.rglob("*") if path.is_file()}
    assert len(remembered) >= 7
    compress(folder, drawn(bundle), options(statistics=statistics))
    assert {path: path.stat().st_mtime_ns for path in remembered}.items() <= {
        path: path.stat().st_mtime_ns for path in statistics.rglob("*") if path.is_file()
    }.items()
    assert digests(folder) == digests(compressed)
    assert list(tmp_path.glob(".int8*")) == []


def test_samples_without_windows_leave_the_action_encoder_alone(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    record = compress(folder, drawn(bundle, histories=False), options()).record
    kinds = {stage: {each.precision for each in record.layers if each.stage == stage} for stage in ("vision", "action")}
    assert "int8" in kinds["vision"]
    assert "int8" not in kinds["action"]


@pytest.mark.parametrize(
    "budget", [Budget(0.0, 0.97), Budget(1e-4, 0.97), Budget(-1, 0.5), Budget(0.1, 1.5), Budget(3, 0)]
)
def test_a_budget_that_makes_no_sense(bundle: Path, budget: Budget) -> None:
    with pytest.raises(InputError, match="the budget for int8 cannot be met or cannot be missed"):
        compress(bundle, drawn(bundle), options(budget=budget))


def test_a_budget_that_cannot_be_met_changes_nothing(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    with pytest.raises(ParityError, match="no choice of int8 layers keeps the decisions within the budget") as caught:
        compress(folder, drawn(bundle), options(budget=Budget(1.2e-4, 1.0)))
    assert caught.value.exit_code == 3
    assert "--max-score-change" in str(caught.value)
    assert digests(folder) == digests(bundle)
