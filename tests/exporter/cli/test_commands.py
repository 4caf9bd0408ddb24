"""The command line: help, results on stdout, diagnostics on stderr, exit codes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.kit import random_checkpoint, random_member, save_training
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.cli import app
from trunkline.runtime import fusion
from trunkline.runtime.backends import Missing, described, named, names

COMMANDS = (
    *("pack", "doctor", "export", "info", "verify", "score", "eval", "bench", "report", "windows", "replay"),
    *("targets", "plan", "build"),
)


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    path = tmp_path / "frame.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


def test_help_lists_every_command() -> None:
    text = run("--help").stdout
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example(command: str) -> None:
    text = run(command, "--help").stdout
    assert "Example" in text
    assert f"trunkline {command}" in text


def test_commands_load_nothing_heavy() -> None:
    code = "import sys, trunkline.exporter.cli; print([m for m in ('torch', 'onnx', 'onnxruntime', 'matplotlib') "
    output = subprocess.check_output([sys.executable, "-c", code + "if m in sys.modules])"], text=True)
    assert output.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "code", "decisive"),
    [
        (("bench",), 2, "Missing argument"),
        (("nonsense",), 2, "No such command"),
        (("bench", "b", "-n", "0"), 2, "Invalid value"),
        (("info", "/no/such/file"), 1, "no such file"),
    ],
)
def test_usage_and_user_errors(words: tuple[str, ...], code: int, decisive: str) -> None:
    assert decisive in run(*words, code=code).stderr


def test_a_directory_that_is_no_bundle_is_an_integrity_error(tmp_path: Path) -> None:
    result = run("verify", tmp_path, code=4)
    assert "is not a bundle" in result.stderr
    assert result.stdout == ""


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in run("--debug", "verify", tmp_path, code=4).stderr
    assert "Traceback" not in run("verify", tmp_path, code=4).stderr


def test_a_bug_is_not_blamed_on_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("trunkline.exporter.cli.info.describe_bundle", lambda path: 1 / 0)
    assert "a bug in trunkline" in run("info", tmp_path, code=70).stderr


def test_without_torch_the_exporter_commands_say_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['trunkline', 'export', 'x.pt', '-o', 'b']\n"
        "from trunkline.exporter.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert "pip install 'trunkline[export]'" in result.stderr


def test_pack_reports_sizes(tmp_path: Path) -> None:
    sources = [save_training(random_member(seed=seed), tmp_path / f"epoch_{seed}.pt") for seed in range(2)]
    output = tmp_path / "ensemble.safetensors"
    text = run("pack", *sources, "-o", output, "--backbone", "local-dir:trunk").stdout
    assert "2 members (epoch_0, epoch_1)" in text
    assert "before:" in text
    assert "after:" in text
    facts = json.loads(run("info", output, "--json").stdout)
    assert facts["backbone"] == "local-dir:trunk"


def test_pack_under_its_former_name(tmp_path: Path) -> None:
    source = save_training(random_member(), tmp_path / "epoch_0.pt")
    words = (source, "--backbone", "x", "--heads", "2", "--history-length", "5", "--json", "-o")
    now, before = (run(name, *words, tmp_path / f"{name}.safetensors") for name in ("pack", "merge"))
    assert "called `trunkline pack` now" in before.stderr
    assert "called" not in now.stderr
    assert json.loads(before.stdout) == json.loads(now.stdout) | {"output": str(tmp_path / "merge.safetensors")}
    assert (tmp_path / "merge.safetensors").read_bytes() == (tmp_path / "pack.safetensors").read_bytes()
    assert not re.search(r"\bmerge\b", run("--help").stdout)
    assert "trunkline pack" in run("merge", "--help").stdout


def test_doctor_exits_with_1_on_a_fatal_finding(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(1)
    write_checkpoint(checkpoint, tmp_path / "good.safetensors")
    assert "0 fatal" in run("doctor", tmp_path / "good.safetensors").stdout
    checkpoint.members[0].components["text_aware_visual_extraction"]["temperature"].fill_(-1)  # type: ignore[union-attr]
    write_checkpoint(checkpoint, tmp_path / "bad.safetensors")
    result = run("doctor", tmp_path / "bad.safetensors", "--json", code=1)
    findings = json.loads(result.stdout)["findings"]
    assert [each["check"] for each in findings if each["severity"] == "fatal"] == ["temperature"]


def test_info_of_a_bundle(bundle: Path) -> None:
    facts = json.loads(run("info", bundle, "--json").stdout)
    assert facts["kind"] == "verifier bundle, schema 1"
    assert len(facts["members"]) == 3
    here = [described(named(name)) for name in names("cpu") if named(name).available() is None]
    assert facts["back ends here, fastest first"] == here
    assert facts["allowed on a device"] == ["cpu: scores within 0.0001 of PyTorch's"]
    assert facts["image"] == "160 x 160 px, squash, bicubic, mean 0.5 0.45 0.4, std 0.5 0.25 0.3"


def test_info_says_which_back_ends_are_missing_and_why(half_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in names("trt"):
        monkeypatch.setattr(named(name), "available", lambda: Missing("no driver", "install it"))
    facts = json.loads(run("info", half_bundle, "--json").stdout)
    missing = [f"{name}: no driver" for name in names("trt")]
    assert [each for each in facts["back ends not here"] if "no driver" in each] == missing
    assert "trt: scores within 0.01 of PyTorch's" in facts["allowed on a device"]


def test_results_say_which_back_end_ran(bundle: Path, frame: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", np.ones((2, 10, 7), np.float32))
    asked = ("score", bundle, "--image", frame, "--instruction", "go", "--candidates", tmp_path / "c.npy")
    for name in names("cpu"):
        ran_on = described(named(name))
        for words in (asked, ("verify", bundle), ("bench", bundle, "-n", 1)):
            assert ran_on in run(*words, "--backend", name).stdout
            assert json.loads(run(*words, "--backend", name, "--json").stdout)["backend"] == ran_on


def test_verify_passes_and_fails(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = json.loads(run("verify", bundle, "--json").stdout)
    assert report["golden"]["passed"] is True
    assert report["golden"]["fused"]["max_score_change"] <= 1e-4
    right = fusion.fuse
    monkeypatch.setattr(fusion, "fuse", lambda context, action: tuple(-scores for scores in right(context, action)))
    result = run("verify", bundle, code=3)
    assert "does not decide as the PyTorch ensemble did" in result.stderr
    assert "FAILED" in result.stdout


def test_verify_finds_an_altered_file(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    weights = copy / "stages" / "action" / "cpu.weights"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert "not what the manifest says" in run("verify", copy, code=4).stderr


def test_score_from_json_and_npy(bundle: Path, frame: Path, tmp_path: Path) -> None:
    windows = np.random.default_rng(1).normal(0, 1, (4, 10, 7)).astype(np.float32)
    np.save(tmp_path / "c.npy", windows)
    (tmp_path / "c.json").write_text(json.dumps(windows.tolist()))
    asked = ("--image", frame, "--instruction", "put the red block in the bowl", "--json")
    one = json.loads(run("score", bundle, *asked, "--candidates", tmp_path / "c.npy").stdout)
    two = json.loads(run("score", bundle, *asked, "--candidates", tmp_path / "c.json").stdout)
    assert one == two
    assert np.argmax(one["scores"]) == one["best"]
    text = run("score", bundle, *asked[:-1], "--candidates", tmp_path / "c.npy").stdout
    assert f"best candidate: {one['best']}" in text


@pytest.mark.parametrize(
    ("name", "content", "decisive"),
    [
        ("c.json", b"{", "not JSON"),
        ("c.json", b"[[[NaN]]]", "NaN"),
        ("c.npy", b"junk", "cannot read candidates"),
        ("missing.json", None, "cannot read candidates"),
    ],
)
def test_score_refuses_candidate_files(
    bundle: Path, frame: Path, tmp_path: Path, name: str, content: bytes | None, decisive: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    words = ("score", bundle, "--image", frame, "--instruction", "x", "--candidates", tmp_path / name)
    assert decisive in run(*words, code=1).stderr


def test_score_refuses_a_pickled_npy(bundle: Path, frame: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    words = ("score", bundle, "--image", frame, "--instruction", "x", "--candidates", tmp_path / "c.npy")
    assert "cannot read candidates" in run(*words, code=1).stderr


def test_bench_reports_every_case(bundle: Path) -> None:
    report = json.loads(run("bench", bundle, "-n", "2", "--json").stdout)
    assert [case["name"] for case in report["cases"]] == ["new frame", "new candidates", "8 rephrasings"]
    assert set(report["cases"][0]["stages"]) == {"vision", "context", "action"}
    assert set(report["cases"][1]["stages"]) == {"action"}
    assert "outside the back end" in run("bench", bundle, "-n", "1").stdout
