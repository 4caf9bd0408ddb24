"""``trunkline export --precision int8``: one command from a checkpoint and samples to a bundle, or a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.conftest import made_once
from tests.samples_kit import noise, scene
from trunkline.calibration.int8.outcome import read_calibration
from trunkline.calibration.samples.synthetic import windows
from trunkline.calibration.statistics import cache
from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.cli import app
from trunkline.exporter.cli.export import _statistics
from trunkline.runtime import load
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.manifest import ActionsEntry
from trunkline.runtime.parity import check_parity, golden_calls

ACTIONS = ActionsEntry(10, 7, -5.0, "transformer")
#: Random heads: what matters here is the path, not how good the decisions are.
LOOSE = ("--max-score-change", 0.5, "--min-agreement", 0.2)


def test_a_user_without_a_home_directory_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Path:
        raise FileNotFoundError("no home directory")

    monkeypatch.setattr(cache, "cache_directory", missing)
    assert _statistics() is None
    assert "no home directory" in capsys.readouterr().err


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def export(ensemble: Path, output: Path, *words: object) -> Any:
    return run(
        "export", ensemble, "-o", output, "--precision", "int8", "--samples", 12, "--judged", 6, "--proved", 18, *words
    )


@pytest.fixture(scope="module")
def ensemble(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "ensemble.safetensors"
    write_checkpoint(checkpoint, path)
    return path


def save_pictures(folder: Path, pictures: list[np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    for index, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")


def folder_of_samples(folder: Path, count: int = 36) -> Path:
    """Pictures, instructions and candidates as a user would put them into a folder."""
    save_pictures(folder, [scene(index) for index in range(count)])
    (folder / "instructions.txt").write_text("put the red block in the bowl\nlift the lid\n")
    np.save(folder / "candidates.npy", windows(np.random.default_rng(1), 40, ACTIONS))
    return folder


@pytest.fixture(scope="module")
def exported(shared: Path, ensemble: Path) -> Path:
    target = shared / "int8_export"

    def make() -> None:
        data = folder_of_samples(shared / "int8_samples")
        result = export(ensemble, target, "--calibrate", data, *LOOSE)
        assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
        (shared / "int8_export.txt").write_text(result.stdout)

    return made_once(target, make)


def test_the_bundle_decides(exported: Path) -> None:
    with load(exported) as loaded:
        assert check_parity(loaded).passed
        record = read_calibration(loaded.bundle)
    assert record is not None
    assert (record.samples.calibrating, record.samples.judging, record.samples.proving) == (12, 6, 18)
    assert record.method == "best"
    assert {layer.precision for layer in record.layers} <= {"int8", "stored", "float32"}


def test_golden_frames_are_samples_that_did_not_calibrate(exported: Path) -> None:
    with load(exported) as loaded:
        record = read_calibration(loaded.bundle)
        frames = [np.asarray(call.image) for call in golden_calls(loaded)]
    assert frames[0].shape == scene(0).shape
    scenes = [scene(index) for index in range(36)]
    assert all(any(np.array_equal(frame, each) for each in scenes) for frame in frames)
    assert record is not None


def test_the_command_says_what_it_did(exported: Path, shared: Path) -> None:
    shown = " ".join((shared / "int8_export.txt").read_text().split())
    assert "linear layers in int8" in shown
    assert "largest score change" in shown
    assert (shared / "int8_export.html").read_text().lower().startswith("<!doctype html>")
    info = run("info", exported, "--json")
    assert any("int8" in stage for stage in json.loads(info.stdout)["stages"])


@pytest.mark.parametrize(
    ("words", "decisive"),
    [
        ((), "int8 needs samples of what the robot sees"),
        (("--calibrate", "nowhere"), "cannot open samples"),
        (("--calibrate", "DATA", "--max-score-change", 0), "the budget for int8 cannot be met"),
        (("--calibrate", "DATA", "--min-agreement", 1.5), "the budget for int8 cannot be met or cannot be missed"),
    ],
)
def test_what_cannot_be_started(ensemble: Path, tmp_path: Path, words: tuple, decisive: str) -> None:
    data = folder_of_samples(tmp_path / "data", 4)
    result = export(ensemble, tmp_path / "bundle", *(data if word == "DATA" else word for word in words))
    assert result.exit_code == 1, (result.stdout, result.stderr, result.exception)
    assert decisive in " ".join(result.stderr.split())
    assert not (tmp_path / "bundle").exists()


def test_samples_without_int8_are_a_mistake(ensemble: Path, tmp_path: Path) -> None:
    result = run("export", ensemble, "-o", tmp_path / "bundle", "--calibrate", tmp_path)
    assert result.exit_code == 1
    assert "nothing is calibrated" in result.stderr


def empty(folder: Path) -> None:
    for picture in folder.glob("*.png"):
        picture.unlink()


def only_one(folder: Path) -> None:
    for picture in sorted(folder.glob("*.png"))[1:]:
        picture.unlink()
    (folder / "instructions.txt").write_text("lift the lid\n")


def all_noise(folder: Path) -> None:
    save_pictures(folder, [noise(index) for index in range(20)])


def corrupt(folder: Path) -> None:
    for name in ("003.png", "007.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:200])


def other_windows(folder: Path) -> None:
    actions = ActionsEntry(10, 6, -5.0, "transformer")
    np.save(folder / "candidates.npy", windows(np.random.default_rng(1), 40, actions))


@pytest.mark.parametrize(
    ("spoil", "decisive"),
    [
        (empty, ["the folder holds no pictures"]),
        (only_one, ["one picture"]),
        (all_noise, ["noise"]),
        (corrupt, ["003.png", "007.png"]),
        (other_windows, ["of another kind than the bundle", "numbers per step: 6, the bundle has 7"]),
    ],
    ids=lambda it: getattr(it, "__name__", ""),
)
def test_bad_samples_stop_the_export_at_once(ensemble: Path, tmp_path: Path, spoil: Any, decisive: list[str]) -> None:
    data = folder_of_samples(tmp_path / "data")
    spoil(data)
    result = export(ensemble, tmp_path / "bundle", "--calibrate", data, *LOOSE)
    assert result.exit_code == 1, (result.stdout, result.stderr, result.exception)
    assert all(words in " ".join(result.stderr.split()) for words in decisive), result.stderr
    assert "tracing" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_going_on_without_corrupt_images_is_a_choice(ensemble: Path, tmp_path: Path) -> None:
    data = folder_of_samples(tmp_path / "data")
    corrupt(data)
    result = export(ensemble, tmp_path / "bundle", "--calibrate", data, "--skip-unreadable", "--no-report", *LOOSE)
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    record = read_calibration(Bundle(tmp_path / "bundle"))
    assert record is not None
    skipped = " ".join(record.samples.skipped)
    assert [name in skipped for name in ("003.png", "007.png", "004.png")] == [True, True, False]


def test_a_budget_that_cannot_be_met_ships_nothing(ensemble: Path, tmp_path: Path) -> None:
    data = folder_of_samples(tmp_path / "data")
    words = ("--calibrate", data, "--max-score-change", 1.1e-4, "--min-agreement", 1)
    result = export(ensemble, tmp_path / "bundle", *words)
    assert result.exit_code == 3, (result.stdout, result.stderr, result.exception)
    assert "no choice of int8 layers keeps the decisions within the budget" in " ".join(result.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
