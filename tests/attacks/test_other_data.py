"""Data of another kind than the bundle are refused by every command that reads data, in the same words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.bundles import frame, windows
from tests.datasets_kit import changed, content
from tests.deep_images import DEEP_FILES
from tests.samples_kit import NEEDS, save_scenes
from trunkline.calibration.replay import replay
from trunkline.calibration.replay.again import OTHER_FORM, UNKNOWN_FORM
from trunkline.calibration.samples.bundle_needs import check_form
from trunkline.calibration.samples.sample import WindowForm
from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.cli import app
from trunkline.runtime.ensemble import Ensemble
from trunkline.runtime.errors import DatasetError
from trunkline.runtime.manifest import SensorEntry
from trunkline.runtime.replay import Recorder, ReplayLog, Seen, SyncRecorder, header_of
from trunkline.runtime.replay.index import LogIndex
from trunkline.runtime.sensor.form import SensorForm

#: What the bundle's actions are: 10 steps of 7 numbers, padded with -5.
OTHERS: dict[str, tuple[str, Any, str]] = {
    "padding": ("padding_value", -4.0, "padding value: -4, the bundle has -5"),
    "steps": ("history_length", 6, "steps per window: 6, the bundle has 10"),
    "numbers": ("action_dim", 6, "numbers per step: 6, the bundle has 7"),
}
REFUSED = "the samples are of another kind than the bundle"


def run(*words: object, code: int = 0) -> str:
    """What the command said on stderr, as one line."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def checkpoint_file(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "ensemble.safetensors"
    write_checkpoint(checkpoint, path)
    return path


def stated(folder: Path, key: str, value: Any) -> Path:
    """A data set that states something else, and holds windows of that kind."""
    data = changed(content(), "_metadata", key, to=value)
    steps, numbers = data["_metadata"]["history_length"], data["_metadata"]["action_dim"]
    data["_metadata"]["total_window_size"] = steps
    for window in data["action_histories"].values():
        window[:] = [step[:numbers] for step in window[:steps]]
    return save_scenes(folder, data)


@pytest.mark.parametrize("name", OTHERS)
def test_a_data_set_that_states_another_kind(
    tmp_path: Path, bundle: Path, checkpoint_file: Path, ensemble: Ensemble, name: str
) -> None:
    key, value, found = OTHERS[name]
    other, good = stated(tmp_path / "other", key, value), save_scenes(tmp_path / "good")
    int8 = ("export", checkpoint_file, "-o", tmp_path / "int8", "--precision", "int8", "--samples", 4, "--judged", 2)
    said = [
        run("eval", bundle, "--dataset", other, "--samples", 8, code=1),
        run("eval", bundle, "--dataset", other, "--samples", 8, "--against", checkpoint_file, code=1),
        run("eval", bundle, "--dataset", other, "--samples", 8, "--beside", bundle, "--without-sensor", code=1),
        run(*int8, "--calibrate", other, code=1),
        run(*int8, "--calibrate", good, "--judge", other, code=1),
    ]
    for each in said:
        assert f"error: {REFUSED} where: dataset.json found: {found} fix: use the data that" in each
        assert "tracing" not in each

    header = header_of(ensemble.bundle)
    with SyncRecorder(tmp_path / "log", replace(header, actions=replace(header.actions, **{key: value}))) as recording:
        decision = ensemble.score(frame(0), "go", windows(4))
        steps = windows(4)[:, : recording._header.actions.history_length, : recording._header.actions.action_dim]
        recording.decision(Seen("go", steps, image=frame(0)), decision, 0)
    told = run("replay", tmp_path / "log", "--bundle", bundle, code=1)
    assert f"error: {REFUSED} where: {tmp_path / 'log'} found: {found} fix: use the data that" in told


def test_everything_that_differs_is_listed() -> None:
    form = SensorForm(channels=6, rate_hz=100.0, samples=50, steps=50)
    needs = replace(NEEDS, sensor=SensorEntry(form, 1, (0,), 16, 16, 20))
    with pytest.raises(DatasetError, match=REFUSED) as raised:
        check_form("tuesday", WindowForm(9, 6, -4.0, (5, 7, 1000.0)), needs)
    assert raised.value.found == [
        "steps per window: 9, the bundle has 10",
        "numbers per step: 6, the bundle has 7",
        "padding value: -4, the bundle has -5",
        "sensor channels: 7, the bundle has 6",
        "sensor samples a second: 1000, the bundle has 100",
        "samples per sensor window: 5, the bundle has 50",
    ]
    same = WindowForm(10, 7, -5.0)
    for sensor in (None, (50, 6, 100.0), (60, 6, 101.5)):  # of longer windows the last rows are read
        check_form("tuesday", replace(same, sensor=sensor), needs)
    adaptive = replace(needs, sensor=replace(needs.sensor, form=replace(form, adaptive=True)))  # type: ignore[type-var]
    check_form("tuesday", replace(same, sensor=(5, 6, 100.0)), adaptive)
    with pytest.raises(DatasetError, match="samples per sensor window: 60, the bundle has 50"):
        check_form("tuesday", replace(same, sensor=(60, 6, 100.0)), adaptive)
    check_form("tuesday", replace(same, sensor=(5, 7, 9.0)), NEEDS)  # a bundle that reads no sensor
    check_form("tuesday", None, needs)


def test_a_data_set_with_windows_of_another_time_scale(tmp_path: Path, sensor_bundle: Path) -> None:
    """A tenth of the bundle's window, which would be padded with zeros in silence."""
    data = changed(content(), "_metadata", "sensor", to={"file": "sensor.npz", "rate_hz": 100.0})
    for index, row in enumerate(data["samples"]):
        row["sensor_window"] = index
    path = save_scenes(tmp_path, data)
    rows = np.random.default_rng(0).standard_normal((24, 5, 6)).astype(np.float32)
    np.savez(tmp_path / "sensor.npz", timestamps=np.arange(24) * 0.05 + 1, data=rows)
    said = run("eval", sensor_bundle, "--dataset", path, "--samples", 8, code=1)
    assert f"error: {REFUSED} where: dataset.json found: samples per sensor window: 5, the bundle has 50" in said
    run("eval", sensor_bundle, "--dataset", path, "--samples", 8, "--without-sensor")


def test_samples_that_no_bundle_scores(tmp_path: Path, bundle: Path) -> None:
    """What is wrong with single samples is said before anything is scored, as for calibration."""
    data = content()
    data["action_histories"]["action_3"][4][0] = -5.0
    data["instructions"]["instr_1"] = "x" * 20_000
    said = run("eval", bundle, "--dataset", save_scenes(tmp_path, data), "--samples", 24, code=1)
    assert "samples cannot be scored by the bundle where: dataset.json" in said
    assert "step 4 starts with the padding value -5 but is not padding" in said
    assert "instruction 'xxxx" in said


def test_pictures_of_16_bits(tmp_path: Path, bundle: Path, checkpoint_file: Path) -> None:
    """A data set's, a folder's and a single one."""
    path = save_scenes(tmp_path / "data")
    (tmp_path / "data" / "images" / "2.jpg").write_bytes(DEEP_FILES["rgb.png"])
    said = run("eval", bundle, "--dataset", path, "--samples", 24, code=1)
    assert "images of the data set cannot be read" in said
    assert "2.jpg: the image's file has more than 8 bits per channel" in said
    assert "1 image" not in said
    int8 = ("export", checkpoint_file, "-o", tmp_path / "int8", "--precision", "int8", "--samples", 24)
    assert "2.jpg: the image's file has more than 8 bits" in run(*int8, "--calibrate", path, code=1)
    folder = tmp_path / "data" / "images"
    (folder / "instructions.txt").write_text("go\n")
    assert "2.jpg: the image's file has more than 8 bits" in run(*int8, "--calibrate", folder, code=1)
    (tmp_path / "c.json").write_text(json.dumps(windows(3).tolist()))
    words = ("--instruction", "go", "--candidates", tmp_path / "c.json")
    assert "more than 8 bits" in run("score", bundle, "--image", folder / "2.jpg", *words, code=1)


def test_a_log_of_two_bundles(tmp_path: Path, ensemble: Ensemble) -> None:
    """Decisions under another padding are left out, those of the bundle's own kind are taken again."""
    header = header_of(ensemble.bundle)
    others = replace(header, bundle="cd" * 32, actions=replace(header.actions, padding_value=-4.0))
    for each, count in ((others, 2), (header, 3)):
        with Recorder(tmp_path, each) as recording:
            for index in range(count):
                decision = ensemble.score(frame(index), "go", windows(4, index))
                recording.decision(Seen("go", windows(4, index), image=frame(index)), decision, index)
    report = replay(ReplayLog(tmp_path), ensemble)
    assert report.replayed == 3
    assert report.skipped == {f"{OTHER_FORM}: padding value: -4, the bundle has -5": 2}
    assert report.comparison is not None
    assert report.comparison.max_score_change <= 1e-6


def test_a_log_whose_header_is_damaged(tmp_path: Path, ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows how candidates are padded then, so nothing is taken for granted."""
    with Recorder(tmp_path, header_of(ensemble.bundle)) as recording:
        decision = ensemble.score(frame(0), "go", windows(4))
        recording.decision(Seen("go", windows(4), image=frame(0)), decision, 0)
    monkeypatch.setattr(LogIndex, "actions", lambda self, decision: None)
    assert replay(ReplayLog(tmp_path), ensemble).skipped == {UNKNOWN_FORM: 1}
