"""The runtime runs where nothing of the exporter's side is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import trunkline.runtime
from trunkline.runtime.backends import named, names

FORBIDDEN = (
    *("torch", "torchvision", "onnx", "onnxscript", "onnx_ir", "open_clip", "timm", "transformers", "huggingface_hub"),
    *("typer", "rich", "jinja2", "matplotlib", "pandas", "scipy"),
    *("trunkline.exporter", "trunkline.calibration", "trunkline.targets"),
)
#: What back ends compute with.
LIBRARIES = {"onnxruntime", "openvino", "tensorrt", "tensorrt_lean", "tensorrt_libs"}
FOLDER = Path(trunkline.runtime.__file__).parent
MODULES = sorted(
    "trunkline.runtime" + "".join("." + part for part in path.relative_to(FOLDER).with_suffix("").parts)
    for path in FOLDER.rglob("*.py")
    if path.name != "__init__.py"
)

SCORING = """
import numpy as np
from trunkline.runtime import load
from trunkline.runtime.parity import check_parity
with load(sys.argv[1], backend=sys.argv[2]) as ensemble:
    decision = ensemble.score(np.zeros((40, 40, 3), np.uint8), ["go", "stop"], np.zeros((2, 10, 7), np.float32))
    assert decision.scores.shape == (2, 2)
    assert check_parity(ensemble).passed
"""


def loaded(code: str, *arguments: str) -> set[str]:
    """Modules that a fresh interpreter holds after running ``code``."""
    program = f"import sys\n{code}\nimport json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_all_modules_are_found() -> None:
    backends = {f"trunkline.runtime.backends.{name.replace('-', '_')}" for name in names()}
    assert {"trunkline.runtime.ensemble", *backends} <= set(MODULES)


def test_importing_every_module() -> None:
    modules = loaded("\n".join(f"import {module}" for module in MODULES))
    assert set(MODULES) <= modules
    assert sorted(modules & set(FORBIDDEN)) == []
    assert sorted(modules & LIBRARIES) == []  # a back end is loaded when it is chosen


@pytest.mark.parametrize("name", names("cpu"))
def test_loading_and_scoring(bundle: Path, name: str) -> None:
    if (missing := named(name).available()) is not None:
        pytest.skip(missing.reason)
    modules = loaded(SCORING, str(bundle), name)
    assert modules & LIBRARIES == {name}
    assert sorted(modules & set(FORBIDDEN)) == []


@pytest.mark.parametrize("module", ["json", "colorsys"])
def test_the_check_can_fail(module: str) -> None:
    assert module in loaded(f"import {module}")
