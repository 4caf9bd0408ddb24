"""``trunkline eval`` tells which samples calibrated the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from tests.samples_kit import save_scenes
from trunkline.calibration.int8 import outcome
from trunkline.calibration.samples.dataset import read_dataset
from trunkline.calibration.samples.dataset_samples import DatasetSamples
from trunkline.calibration.samples.overlap import short_digests
from trunkline.exporter.cli import app


def evaluated(bundle: Path, dataset: Path, *options: str) -> tuple[str, str]:
    words = ["eval", str(bundle), "--dataset", str(dataset), "--samples", "24", "--pool", "3", *options]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return result.stdout, result.stderr


def calibrated_on(monkeypatch: pytest.MonkeyPatch, digests: tuple[str, ...]) -> None:
    record = SimpleNamespace(samples=SimpleNamespace(digests=digests))
    monkeypatch.setattr(outcome, "read_calibration", lambda bundle: record)


def test_samples_that_calibrated_are_counted(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_scenes(tmp_path)
    samples = DatasetSamples(read_dataset(path))
    calibrated_on(monkeypatch, short_digests(samples[index] for index in (0, 1)))
    stdout, stderr = evaluated(bundle, path)
    assert "8 of 24 samples were used in calibration" in stderr
    assert "used in calibration" not in stdout
    stdout, _ = evaluated(bundle, path, "--json")
    used = json.loads(stdout)["used_in_calibration"]
    assert (len(used["used"]), used["total"]) == (8, 24)


def test_fresh_samples_are_no_news(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated_on(monkeypatch, ("0" * 16,))
    assert "used in calibration" not in evaluated(bundle, save_scenes(tmp_path))[1]


def test_a_float32_bundle_has_no_overlap(bundle: Path, tmp_path: Path) -> None:
    stdout, stderr = evaluated(bundle, save_scenes(tmp_path), "--json")
    assert json.loads(stdout)["used_in_calibration"] is None
    assert "used in calibration" not in stderr
