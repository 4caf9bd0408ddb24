"""``trunkline windows``: what it writes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.windows_kit import FORM, extracted, raw, save, windowed
from trunkline.calibration.windows.store import WindowStore
from trunkline.exporter.cli import app

FORM_WORDS = ("--rate", "650", "--samples", "40")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return save(tmp_path / "r.npz", raw())


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["windows", *(str(word) for word in words)])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def test_windows_at_the_times_of_a_file(tmp_path: Path, recording: Path) -> None:
    (tmp_path / "times.csv").write_text("camera\n0.3\n0.01\n")
    result = run(recording, "-o", tmp_path / "s", *FORM_WORDS, "--at", tmp_path / "times.csv", "--offset", "1000")
    store = WindowStore(tmp_path / "s", recording=recording)
    np.testing.assert_array_equal(store.stack([0, 1]), [extracted(raw(), FORM, at) for at in (1000.3, 1000.01)])
    assert "2 windows of 0.0615385 s, 5 channels, float32" in result.stdout
    assert "1 of 2 windows are padded with zeros, left" in result.stderr
    assert store.record.key[:16] in result.stdout


def test_equal_distances_at_several_resolutions_as_json(tmp_path: Path, recording: Path) -> None:
    words = ("--every", "0.1", "--steps", "8", "--steps", "0", "--resample", "cubic", "--storage", "int8", "--json")
    found = json.loads(run(recording, "-o", tmp_path / "s", *FORM_WORDS, *words).stdout)
    assert found["store"] == str(tmp_path / "s")
    assert [each["steps"] for each in found["record"]["resolutions"]] == [8, 0]
    assert 0 < found["record"]["resolutions"][0]["rms_error"] < 0.01
    assert (found["record"]["storage"], found["record"]["form"]["resample"]) == ("int8", "cubic")
    assert WindowStore(tmp_path / "s", steps=8).record.windows == found["record"]["windows"] == 6


def test_adaptive_intervals(tmp_path: Path, recording: Path) -> None:
    (tmp_path / "i.txt").write_text("1000.1 1000.15\n1000.2 1000.23\n5 6\n")
    words = ("--intervals", tmp_path / "i.txt", "--adaptive", "--skip-unusable")
    result = run(recording, "-o", tmp_path / "s", *FORM_WORDS, *words)
    assert "1 unusable windows were left out" in result.stderr
    assert "as cut" in result.stdout
    assert len(set(WindowStore(tmp_path / "s").lengths.tolist())) == 2


def test_a_recording_of_windows_is_taken_as_it_is(tmp_path: Path) -> None:
    arrays = windowed(hop=60)
    arrays["data"][2, :3] = 0
    result = run(save(tmp_path / "r.npz", arrays), "-o", tmp_path / "s", *FORM_WORDS)
    for note in ("does not tell its rate", "is its word", "1 of 12 windows begin with zeros in the recording itself"):
        assert note in result.stderr
    assert len(WindowStore(tmp_path / "s")) == 12


def test_a_second_run_does_nothing_and_another_one_is_refused(tmp_path: Path, recording: Path) -> None:
    words = (recording, "-o", tmp_path / "s", *FORM_WORDS, "--every", "0.1")
    run(*words)
    before = (tmp_path / "s" / "windows.json").stat().st_ino
    run(*words)
    assert (tmp_path / "s" / "windows.json").stat().st_ino == before
    assert "storage: 'float32' instead of 'int8'" in run(*words, "--storage", "int8", code=1).stderr
    run(*words, "--storage", "int8", "--overwrite")
    assert WindowStore(tmp_path / "s").record.storage == "int8"


@pytest.mark.parametrize(
    ("words", "code", "decisive"),
    [
        (("--every", "0.1", "--at", "x"), 2, "choose one of"),
        (("--every", "0"), 2, "--every must be above 0"),
        (("--every", "0.1", "--storage", "int4"), 1, "storage is 'int4'"),
        (("--every", "0.1", "--padding", "both", "--resample", "no"), 1, "padding is 'both'"),
        (("--every", "0.1", "--steps", "-1"), 2, "Invalid value"),
        (("--at", "/no/such/file"), 1, "cannot read a file of times"),
        ((), 1, "needs moments or intervals"),
    ],
)
def test_usage_and_user_errors(
    tmp_path: Path, recording: Path, words: tuple[str, ...], code: int, decisive: str
) -> None:
    assert decisive in run(recording, "-o", tmp_path / "s", *FORM_WORDS, *words, code=code).stderr
    assert not (tmp_path / "s").exists()


def test_another_rate_is_refused(tmp_path: Path, recording: Path) -> None:
    words = ("-o", tmp_path / "s", "--rate", "65", "--samples", "40", "--every", "0.1")
    assert "another rate than was stated" in run(recording, *words, code=1).stderr
