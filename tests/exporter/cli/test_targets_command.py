"""``trunkline targets``: the list, one profile, this machine, and the same as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.machines_kit import GIB
from trunkline.exporter.cli import app
from trunkline.targets import machine
from trunkline.targets.detect import recognise
from trunkline.targets.machine import Gpu, Machine, look
from trunkline.targets.profile import BUILT_IN, profiles, read_profile

NAMES = sorted(path.stem for path in BUILT_IN.glob("*.json"))
XAVIER = Machine("linux", "aarch64", "NVIDIA Jetson Xavier NX", ("nvidia,p3668-0000", "nvidia,tegra194"), "35.4.1")


@pytest.fixture(autouse=True)
def _no_profiles_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["targets", *(str(word) for word in words)])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def pretend(monkeypatch: pytest.MonkeyPatch, here: Machine) -> None:
    monkeypatch.setattr(machine, "look", lambda: here)


def test_the_list_names_every_device() -> None:
    lines = run().stdout.splitlines()
    for name in NAMES:
        (line,) = [line for line in lines if f" {name} " in line]
        assert "GiB" in line
    here = recognise(look(), profiles()).profile.name
    assert [line.split()[1] for line in lines if " * " in line] == [here]
    assert f"this machine: {here}" in lines


def test_names_are_not_cut_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are to be copied."""
    monkeypatch.setattr("trunkline.exporter.cli.output.stdout.width", 80)
    text = run().stdout
    assert all(f" {name} " in text for name in NAMES)


def test_how_this_machine_was_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Machine(
        "linux", "x86_64", gpu=Gpu("NVIDIA RTX 6000 Ada Generation", "8.9", 48 * GIB), gpus=1, python="3.9.1"
    )
    pretend(monkeypatch, here)
    text = run().stdout
    assert "this machine: rtx-40, the nearest there is" in text
    assert "  driver: NVIDIA RTX 6000 Ada Generation, compute capability 8.9, 48 GiB" in text
    assert "  but: Python 3.9.1 is not what comes with it: 3.10 to 3.13" in text


def test_a_device_that_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, XAVIER)
    text = run().stdout
    assert "this machine: jetson-xavier" in text
    assert "but: JetPack 5 is the last for Xavier" in text


def test_a_machine_that_is_not_recognised_still_gets_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Machine("linux", "riscv64"))
    text = run().stdout
    assert "jetson-thor" in text
    assert "this machine is not recognised" in text
    assert "processor: riscv64" in text
    facts = json.loads(run("--json").stdout)
    assert facts["recognised"] is None
    assert "processor: riscv64" in facts["unrecognised"]
    assert len(facts["profiles"]) == len(NAMES)


def test_everything_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, XAVIER)
    facts = json.loads(run("--json").stdout)
    assert facts["machine"]["compatible"] == ["nvidia,p3668-0000", "nvidia,tegra194"]
    recognised = facts["recognised"]
    assert (recognised["target"], recognised["exact"]) == ("jetson-xavier", True)
    assert any("module p3668-0000" in line for line in recognised["how"])
    assert len(recognised["concerns"]) == 1
    assert facts["unrecognised"] is None
    assert facts["profiles"] == [json.loads((BUILT_IN / f"{name}.json").read_text()) for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_that_is_printed_reads_back(name: str, tmp_path: Path) -> None:
    text = run(name).stdout
    assert text == (BUILT_IN / f"{name}.json").read_text()
    (tmp_path / "mine.json").write_text(text)
    assert read_profile(tmp_path / "mine.json") == profiles()[name]
    assert run(tmp_path / "mine.json").stdout == text


def test_a_profile_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Machine("linux", "x86_64", python="3.12.3"))
    mine = tmp_path / "trunkline" / "targets" / "mine.json"
    mine.parent.mkdir(parents=True)
    mine.write_text(run("x86-cpu").stdout.replace('"x86-cpu"', '"mine"'))
    text = run().stdout
    assert "this machine: mine" in text
    assert "  x86-cpu fits, too" in text
    assert json.loads(run("mine").stdout)["name"] == "mine"


def test_an_unknown_device_is_answered_with_all_there_are() -> None:
    text = run("toaster", code=1).stderr
    assert "there is no such target" in text
    assert all(name in text for name in NAMES)


def test_a_profile_that_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    result = run(tmp_path / "mine.json", code=1)
    assert "missing field name" in result.stderr
    assert "missing field rows" in result.stderr
    assert result.stdout == ""


def test_neither_torch_nor_onnx_is_needed() -> None:
    blocked = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt", "open_clip", "timm", "matplotlib")
    code = f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
    code += "sys.argv = ['trunkline', 'targets', '--json']\nfrom trunkline.exporter.cli import main; main()"
    text = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert len(json.loads(text)["profiles"]) >= len(NAMES)
