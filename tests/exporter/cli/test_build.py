"""``trunkline build``: what is missing here, what a build prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.engines_kit import FakeBuilder
from trunkline.exporter.cli import app, build
from trunkline.runtime.backends import Missing
from trunkline.runtime.engines.device import Device
from trunkline.targets.building import here
from trunkline.targets.detect import Chosen, Recognition
from trunkline.targets.profile import profiles

STAGES = ["vision", "text", "context", "action"]
ADA = Device("Fake RTX 4090", "8.9", "550.1", "linux-x86_64")


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["build", *(str(word) for word in words)])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without driver and TensorRT."""
    monkeypatch.setattr(here.driver, "probe", lambda: Missing("no NVIDIA driver: none", "install it"))

    def absent() -> None:
        raise ImportError("No module named 'tensorrt'")

    monkeypatch.setattr(here.api, "library", absent)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBuilder:
    """A machine with a pretended GPU and compiler."""
    builder = FakeBuilder(device=ADA)
    monkeypatch.setattr(here, "_driver_problem", lambda: None)
    monkeypatch.setattr(here, "_library_problem", lambda: None)
    monkeypatch.setattr(here, "TensorRtBuilder", lambda: builder)
    monkeypatch.setenv("TRUNKLINE_ENGINES", str(tmp_path / "engines"))
    return builder


@pytest.mark.usefixtures("nothing")
@pytest.mark.parametrize(
    ("target", "advice", "never"),
    [
        ("jetson-orin-nano-8gb", "sudo apt install nvidia-jetpack", "docker"),
        ("jetson-thor", "Never `pip install tensorrt` on a Jetson", "docker"),
        ("rtx-40", "`pip install tensorrt`", "apt"),
        ("x86-cpu", "`trunkline verify` runs the bundle as it is", "apt"),
    ],
)
def test_everything_that_is_missing_is_told_at_once(bundle: Path, target: str, advice: str, never: str) -> None:
    text = run(bundle, "--target", target, code=1).stderr
    for part in ("engines cannot be built here", target, "no NVIDIA driver: none", "no TensorRT: No module", advice):
        assert part in text
    assert never not in text


@pytest.mark.usefixtures("nothing")
def test_this_machine_says_how_it_was_recognised(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profiles()["x86-cpu"]
    chosen = Chosen(profile, None, Recognition(profile, True, ("processor: x86_64", "no NVIDIA GPU")))
    monkeypatch.setattr(here, "choose", lambda target: chosen)
    assert "target x86-cpu, x86-64 processor (processor: x86_64; no NVIDIA GPU)" in run(bundle, code=1).stderr


def test_what_is_not_supported_says_why(bundle: Path) -> None:
    text = run(bundle, "--target", "jetson-xavier", code=1).stderr
    assert "no engines are built for this target" in text
    assert "TensorRT 8.5" in text


def test_an_unknown_target(bundle: Path) -> None:
    assert "there is no such target" in run(bundle, "--target", "toaster", code=1).stderr


@pytest.mark.usefixtures("gpu")
def test_another_device_than_this_one(bundle: Path) -> None:
    text = run(bundle, "--target", "jetson-orin-nano-8gb", code=1).stderr
    assert "engines are built on the device that runs them, and this is another one" in text
    assert "compute capability 8.7" in text
    assert "Fake RTX 4090, compute capability 8.9" in text


def test_a_build_and_another(bundle: Path, gpu: FakeBuilder, tmp_path: Path) -> None:
    result = run(bundle, "--target", "rtx-40")
    assert gpu.built == STAGES
    for part in ("engines for rtx-40: fake 1.0.0", "compiled in", "12 decisions", "in use from now on"):
        assert part in result.stdout
    assert "compiling vision" in result.stderr
    again = json.loads(run(bundle, "--target", "rtx-40", "--json").stdout)
    assert again["cache"] == str(tmp_path / "engines")
    assert [stage["compiled"] for stage in again["report"]["stages"]] == [False] * 4
    assert again["report"]["parity"]["passed"] is True
    assert "from the cache" in run(bundle, "--target", "rtx-40", "--verify-only").stdout
    assert gpu.built == STAGES


def test_for_the_lean_runtime(bundle: Path, gpu: FakeBuilder) -> None:
    run(bundle, "--target", "rtx-40")
    run(bundle, "--target", "rtx-40", "--version-compatible")
    assert gpu.built == STAGES * 2  # other settings are other engines
    assert [each.version_compatible for each in gpu.settings] == [False] * 4 + [True] * 4


@pytest.mark.usefixtures("gpu")
def test_engines_elsewhere_say_how_they_are_found(bundle: Path, tmp_path: Path) -> None:
    text = run(bundle, "--target", "rtx-40", "--cache", tmp_path / "other").stdout
    assert f"set TRUNKLINE_ENGINES={tmp_path / 'other'}" in text
    assert "set TRUNKLINE_ENGINES" not in run(bundle, "--target", "rtx-40").stdout


@pytest.mark.usefixtures("gpu")
def test_verifying_what_was_not_built(bundle: Path) -> None:
    text = run(bundle, "--target", "rtx-40", "--verify-only", code=1).stderr
    assert "there is no engine for a stage on this device" in text
    assert "trunkline build BUNDLE" in text


def test_engines_that_decide_otherwise(bundle: Path, gpu: FakeBuilder) -> None:
    gpu.faults = {"features.trunk.blocks.1.mlp.fc1/MatMul": 1.5}
    result = run(bundle, "--target", "rtx-40", "--bisect", code=3)
    assert result.stdout == ""
    for part in (
        "do not decide as the PyTorch ensemble did",
        "with stage vision on the CPU the gate passes",
        "fc1/MatMul",
    ):
        assert part in result.stderr


@pytest.mark.usefixtures("gpu")
def test_a_limit_that_does_not_suffice(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "GB", 1000)  # such engines are small
    assert "--cache-limit" in run(bundle, "--target", "rtx-40", "--cache-limit", "0.001", code=1).stderr
    assert "Invalid value" in run(bundle, "--target", "rtx-40", "--cache-limit", "0", code=2).stderr


@pytest.mark.usefixtures("gpu")
def test_a_machine_without_memory(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "_free_bytes", lambda profile: 1)
    text = run(bundle, "--target", "rtx-40", code=1).stderr
    assert "not enough free memory to build engines" in text
    assert "trunkline plan" in text


def test_concerns_about_the_machine_are_told(bundle: Path, gpu: FakeBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profiles()["rtx-40"]
    chosen = Chosen(profile, None, Recognition(profile, False, ("by its name",), ("Python 3.14 is not what comes",)))
    monkeypatch.setattr(here, "choose", lambda target: chosen)
    assert "note: Python 3.14 is not what comes" in run(bundle).stderr
