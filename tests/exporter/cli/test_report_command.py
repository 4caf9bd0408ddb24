"""``trunkline report``: stdout, exit codes, and what to do where its libraries are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.bundles import copied, edit_manifest
from tests.calibration_kit import calibrated
from trunkline.exporter.cli import app, export
from trunkline.exporter.report import Report
from trunkline.runtime import record
from trunkline.runtime.cuda import driver
from trunkline.runtime.progress import silent


def test_help_shows_an_example() -> None:
    text = CliRunner().invoke(app, ["report", "--help"]).stdout
    assert "trunkline report bundle/ -o report.html" in text


def test_it_writes_a_file_and_says_the_verdict(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    result = CliRunner().invoke(app, ["report", str(bundle), "-o", str(output), "--no-latency"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("Yes: on this machine")
    assert f"written: {output}" in result.stdout
    assert "<h2>Latency" not in output.read_text()


def test_json_is_the_report(bundle: Path, tmp_path: Path) -> None:
    folder = calibrated(bundle, tmp_path / "int8")
    words = ["report", str(folder), "-o", str(tmp_path / "r.html"), "--json", "--against", str(bundle)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    report = record.decode(result.stdout.encode(), Report)
    assert report.calibration is not None
    assert report.beside is not None
    assert report.latency is not None
    assert [case.name for case in report.latency.cases] == ["new frame", "new candidates", "8 rephrasings"]
    assert json.loads(result.stdout)["format"] == "trunkline-report"


def test_a_failed_gate_exits_with_3_after_writing(bundle: Path, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path / "wrong")
    edit_manifest(folder, lambda manifest: manifest["parity"]["gates"].update(cpu=1e-12))
    output = tmp_path / "report.html"
    result = CliRunner().invoke(app, ["report", str(folder), "-o", str(output), "--no-latency"])
    assert result.exit_code == 3
    assert output.is_file()
    assert "does not decide as the PyTorch ensemble did" in result.stderr


def test_an_existing_file_is_kept(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    result = CliRunner().invoke(app, ["report", str(bundle), "-o", str(tmp_path / "report.html"), "--no-latency"])
    assert result.exit_code == 1
    assert "the output exists already" in result.stderr


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_its_libraries_it_says_what_to_install(missing: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules['{missing}'] = None; sys.argv = ['trunkline', 'report', 'b', '-o', 'r.html']\n"
        "from trunkline.exporter.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert "`trunkline report` needs matplotlib and jinja2" in result.stderr
    assert "pip install matplotlib jinja2" in result.stderr
    assert "pip install 'trunkline[export]'" in result.stderr


def test_it_needs_no_torch(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys; blocked = ('torch', 'onnx', 'onnx_ir', 'open_clip', 'timm', 'transformers')\n"
        "sys.modules.update(dict.fromkeys(blocked))\n"
        f"sys.argv = ['trunkline', 'report', {str(bundle)!r}, '-o', 'r.html', '--no-latency']\n"
        "from trunkline.exporter.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "r.html").is_file()


def test_an_export_reports_on_the_processor_where_there_is_a_gpu(
    half_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who exports has a GPU for PyTorch, and often nothing that runs bundles on it."""
    gpu = driver.DriverFacts("NVIDIA GeForce RTX 4090", (8, 9), 24 << 30, False, "0" * 32, (13, 0), "580.1, CUDA 13.0")
    monkeypatch.setattr(driver, "probe", lambda: gpu)
    folder = copied(half_bundle, tmp_path / "bundle")
    result = CliRunner().invoke(app, ["report", str(folder), "-o", str(tmp_path / "asked.html")])
    assert "there is a GPU and a bundle for it" in result.stderr
    page = export._write_report(folder, silent)
    assert page == tmp_path / "bundle.html"
    assert "Yes: on this machine" in page.read_text()
