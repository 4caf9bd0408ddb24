"""``trunkline replay``: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.bundles import frame, windows
from tests.replay_kit import Fake, Robot, Ticks, recorder, segments
from trunkline.calibration.samples.dataset import read_dataset
from trunkline.exporter.cli import app
from trunkline.runtime.ensemble import Decision, Ensemble
from trunkline.runtime.replay import Seen, SyncRecorder, header_of


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


@pytest.fixture
def log(tmp_path: Path, ensemble: Ensemble) -> Path:
    """Six decisions of the bundle, the third of which says that another candidate won."""
    with SyncRecorder(tmp_path / "log", header_of(ensemble.bundle), clock=Ticks()) as recording:
        for index in range(6):
            decision = ensemble.score(frame(index), "put it\x1b[31m down" if index == 2 else "put it down", windows(4))
            if index == 2:
                scores = np.roll(decision.scores, 1)
                decision = Decision(scores, int(scores.argmax()), 0, decision.member_scores)
            text = "put it\x1b[31m down" if index == 2 else "put it down"
            recording.decision(Seen(text, windows(4), image=frame(index)), decision, index)
    return tmp_path / "log"


def test_what_a_log_holds(tmp_path: Path) -> None:
    clock = Ticks()
    with recorder(tmp_path, clock) as recording:
        Robot().work(recording, Fake(), 5, clock)
    size = segments(tmp_path)[0].stat().st_size
    with segments(tmp_path)[0].open("ab") as file:
        file.write(b"\xc5TR\x9e half a record")
    text = run("replay", tmp_path).stdout
    assert "Decided" in text
    assert "SensorBlock" in text
    assert "0.3 s, from 2023-11-14T" in text
    assert "1 segments of 1 sessions" in text
    assert "segment 0 ends in 18 bytes of a record that was not finished" in text
    found = json.loads(run("replay", tmp_path, "--json").stdout)["log"]
    assert found["records"]["Decided"] == 5
    assert found["torn"] == [{"segment": 0, "offset": size, "bytes": 18}]
    assert found["bytes"] == size + 18


def test_damage_is_shown_with_its_place(tmp_path: Path) -> None:
    with recorder(tmp_path) as recording:
        recording.note("first")
        recording.note("second")
    data = bytearray(segments(tmp_path)[0].read_bytes())
    place = data.index(b"first")
    data[place] ^= 1
    segments(tmp_path)[0].write_bytes(data)
    assert "damaged: segment 0" in run("replay", tmp_path).stdout
    (damage,) = json.loads(run("replay", tmp_path, "--json").stdout)["log"]["damage"]
    assert damage["offset"] < place < damage["offset"] + damage["bytes"]


def test_decisions_that_moved(log: Path, bundle: Path) -> None:
    text = run("replay", log, "--bundle", bundle).stdout
    assert "decisions that moved, 1 in all" in text
    assert "6 of 6 decisions taken again" in text
    assert "\x1b[31m" not in text
    report = json.loads(run("replay", log, "--bundle", bundle, "--json").stdout)["replay"]
    assert report["replayed"] == 6
    assert [moved["stamp_ns"] for moved in report["moved"]] == [2]
    assert report["comparison"]["max_score_change"] > 0
    assert "decisions that moved" not in run("replay", log, "--bundle", bundle, "--show", 0).stdout
    report = json.loads(run("replay", log, "--bundle", bundle, "--json", "--limit", 3).stdout)["replay"]
    assert (report["decisions"], report["moved"]) == (3, [])


def test_a_gate_on_scores(log: Path, bundle: Path) -> None:
    result = run("replay", log, "--bundle", bundle, "--max-score-change", 1e-4, code=3)
    assert "does not score as the one that decided" in result.stderr
    assert "6 of 6" in result.stdout
    run("replay", log, "--bundle", bundle, "--max-score-change", 1.0)
    run("replay", log, "--bundle", bundle, "--max-score-change", 1e-4, "--limit", 3)
    assert "needs --bundle" in run("replay", log, "--max-score-change", 1.0, code=2).stderr


def test_samples_for_calibration(log: Path, tmp_path: Path) -> None:
    text = run("replay", log, "--promote", tmp_path / "samples").stdout
    assert "6 samples of 1 episodes, 6 frames, 0 sensor windows" in text
    assert len(read_dataset(tmp_path / "samples" / "dataset.json").samples) == 6
    assert "exists already" in run("replay", log, "--promote", tmp_path / "samples", code=1).stderr
    found = json.loads(run("replay", log, "--promote", tmp_path / "more", "--limit", 2, "--json").stdout)
    assert found["promotion"]["samples"] == 2


def test_a_bundle_that_cannot_judge_any_of_it(tmp_path: Path, bundle: Path) -> None:
    with recorder(tmp_path / "log") as recording:
        Robot().work(recording, Fake(), 3)
    result = run("replay", tmp_path / "log", "--bundle", bundle, code=1)
    assert "the samples are of another kind than the bundle" in result.stderr
    assert "steps per window: 4, the bundle has 10" in result.stderr


def test_a_log_without_a_decision_to_take_again(tmp_path: Path, bundle: Path, ensemble: Ensemble) -> None:
    with SyncRecorder(tmp_path / "log", header_of(ensemble.bundle)) as recording:
        recording.decision(Seen("put it down", windows(4), image=frame(0)), None, 0, marks=["frame too old"])
    result = run("replay", tmp_path / "log", "--bundle", bundle, code=1)
    assert "no decision of the log could be taken again" in result.stderr
    assert "1: it has no scores: there was no decision" in result.stderr


def test_where_there_is_no_log(tmp_path: Path) -> None:
    assert "is not a replay log" in run("replay", tmp_path, code=1).stderr
    assert "cannot open a replay log" in run("replay", tmp_path / "nothing", code=1).stderr
