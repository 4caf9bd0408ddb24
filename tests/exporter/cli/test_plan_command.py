"""``trunkline plan``: what it prints, its exit codes, and the same as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.machines_kit import GIB, MIB
from trunkline.exporter.cli import app
from trunkline.runtime.backends import Missing
from trunkline.runtime.bundle import Bundle
from trunkline.targets import detect, plan
from trunkline.targets.machine import Gpu, Machine
from trunkline.targets.plan import make_plan
from trunkline.targets.profile import BUILT_IN, profiles

KNOWN = profiles(Path("/nonexistent"))


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["plan", *(str(word) for word in words)])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def small(folder: Path, free_bytes: int, base: str = "x86-cpu") -> Path:
    """A profile of a device with little memory."""
    content = json.loads((BUILT_IN / f"{base}.json").read_text())
    content["name"] = "small"
    content["memory"].update(total_bytes=free_bytes, system_bytes=0)
    content["workspace_bytes"] = min(content["workspace_bytes"], free_bytes // 2)
    path = folder / "small.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("target", [name for name, each in KNOWN.items() if each.unsupported is None])
def test_a_bundle_that_fits(half_bundle: Path, target: str) -> None:
    text = run(half_bundle, "--target", target).stdout
    planned = make_plan(Bundle(half_bundle), KNOWN[target])
    assert f"{target}, {planned.backend}" in text
    for stage in ("vision", "text", "context", "action"):
        assert stage in text
    assert ("building, at its peak" in text) == (KNOWN[target].kind != "cpu")
    assert f"fits: {(planned.memory.free_bytes - planned.estimate.peak_bytes) / MIB:.0f} MiB to spare" in text
    assert "missing" not in text
    assert ("was never measured" in text) == (KNOWN[target].kind != "cpu")


def test_the_sum_is_printed(bundle: Path) -> None:
    lines = run(bundle, "--target", "x86-cpu").stdout.splitlines()
    assert "images: 160 x 160 px, squash, bicubic, mean 0.5 0.45 0.4, std 0.5 0.25 0.3" in lines
    needed = make_plan(Bundle(bundle), KNOWN["x86-cpu"]).estimate
    rows = {
        "process and libraries": needed.process_bytes,
        "caches, at most": needed.caches_bytes,
        "running": needed.running_bytes,
        "free, says the profile": KNOWN["x86-cpu"].memory.free_bytes,
    }
    for name, count in rows.items():
        (line,) = [line for line in lines if f" {name} " in line]
        assert f" {count / MIB:.0f} " in line


def test_everything_as_json(half_bundle: Path) -> None:
    facts = json.loads(run(half_bundle, "--target", "jetson-thor", "--json").stdout)
    planned = make_plan(Bundle(half_bundle), KNOWN["jetson-thor"])
    assert facts["ready"] is True
    assert facts["this_machine"] is None
    assert (facts["image"]["interpolation"], facts["image"]["mean"]) == ("bicubic", [0.5, 0.45, 0.4])
    assert facts["plan"]["bundle"] == planned.bundle
    assert facts["plan"]["estimate"]["running_bytes"] == planned.estimate.running_bytes
    assert [each["stage"] for each in facts["plan"]["estimate"]["stages"]] == ["vision", "text", "context", "action"]
    assert facts["plan"]["advice"][0]["name"] == planned.advice[0].name


def test_a_bundle_that_does_not_fit(bundle: Path, tmp_path: Path) -> None:
    """Every piece of advice with what it saves, and what suffices."""
    peak = make_plan(Bundle(bundle), KNOWN["x86-cpu"]).estimate.peak_bytes
    target = small(tmp_path, peak - (8 << 20))
    text = run(bundle, "--target", target, code=1).stdout
    assert "does not fit: 8 MiB too much" in text
    assert "what to do, each by itself:" in text
    assert "  bake: saves " in text
    assert ", fits then" in text
    assert "trunkline export --bake FILE" in text
    facts = json.loads(run(bundle, "--target", target, "--json", code=1).stdout)
    assert facts["ready"] is facts["plan"]["fits"] is False
    assert any(each["fits"] for each in facts["plan"]["advice"])


def test_a_bundle_that_fits_nowhere_near(bundle: Path, tmp_path: Path) -> None:
    text = run(bundle, "--target", small(tmp_path, 10 << 20), code=1).stdout
    assert "MiB too much" in text
    assert "fits then" not in text
    assert "all of it together does not suffice" in text


def test_changes_that_suffice_together(half_bundle: Path, tmp_path: Path) -> None:
    first = make_plan(Bundle(half_bundle), KNOWN["x86-cpu"]).advice[0]
    text = run(half_bundle, "--target", small(tmp_path, first.peak_bytes - 1), code=1).stdout
    assert f"together these suffice: {first.name}, " in text


def test_a_bundle_without_the_variant_that_runs_there(bundle: Path) -> None:
    """It would fit, but it will not run: the exit code says so."""
    text = run(bundle, "--target", "jetson-orin-nano-8gb", code=1).stdout
    assert "fits: " in text
    assert "missing: the bundle has no trt variant, which `trunkline export --half` writes" in text


def test_another_back_end(half_bundle: Path) -> None:
    assert "x86-cpu, onnxruntime" in run(half_bundle, "--target", "x86-cpu", "--backend", "onnxruntime").stdout
    text = run(half_bundle, "--target", "x86-cpu", "--backend", "tensorrt", code=1).stderr
    assert "the target does not run this back end" in text


def test_what_is_not_supported_says_why(half_bundle: Path) -> None:
    text = run(half_bundle, "--target", "jetson-xavier", code=1).stderr
    assert "the target is not supported" in text
    assert "JetPack 5 is the last for Xavier" in text


def test_an_unknown_target_is_answered_with_all_there_are(half_bundle: Path) -> None:
    text = run(half_bundle, "--target", "toaster", code=1).stderr
    assert "there is no such target" in text
    assert all(name in text for name in KNOWN)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    assert "is not a bundle" in run(tmp_path, "--target", "x86-cpu", code=4).stderr


def test_this_machine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own memory counts, and what is not as it should be is told."""
    here = Machine(
        "linux", "x86_64", processor="Some processor", memory_bytes=4 * GIB, free_bytes=3 * GIB, python="3.9.1"
    )
    monkeypatch.setattr(detect, "look", lambda: here)
    text = run(bundle).stdout
    assert "this machine: processor: x86_64, Some processor; no NVIDIA GPU" in text
    assert "but: Python 3.9.1 is not what comes with it" in text
    assert "free, says this machine, now" in text
    facts = json.loads(run(bundle, "--json").stdout)
    assert facts["this_machine"]["exact"] is True
    assert len(facts["this_machine"]["concerns"]) == 1
    assert facts["plan"]["memory"] == {"total_bytes": 4 * GIB, "free_bytes": 3 * GIB, "source": "this machine, now"}


def test_this_machine_without_what_runs_there(half_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 * GIB)
    monkeypatch.setattr(detect, "look", lambda: Machine("linux", "x86_64", gpu=gpu, gpus=1, python="3.12.1"))
    absent = SimpleNamespace(available=lambda: Missing("no such library", "install it"))
    monkeypatch.setattr(plan.backends, "named", lambda name: absent)
    text = run(half_bundle, code=1).stdout
    for name in ("tensorrt", "onnxruntime-cuda"):  # onnxruntime-tensorrt is only taken by name
        assert f"missing: {name} is not here: no such library; install it" in text
    assert "free, says this machine's GPU" in text


def test_a_machine_that_is_not_recognised(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "look", lambda: Machine("linux", "riscv64"))
    assert "this machine is not recognised" in run(bundle, code=1).stderr


def test_neither_torch_nor_onnx_is_needed(half_bundle: Path) -> None:
    """Nor any back end: a plan runs nothing."""
    blocked = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt", "open_clip", "timm", "matplotlib")
    code = f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
    code += "sys.argv = ['trunkline', 'plan', sys.argv[1], '--target', 'jetson-thor', '--json']\n"
    code += "from trunkline.exporter.cli import main; main()"
    text = subprocess.check_output([sys.executable, "-c", code, str(half_bundle)], text=True)
    assert json.loads(text)["ready"] is True
