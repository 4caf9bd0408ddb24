"""Where a library fails, our error is all that is said: nothing of its own reaches the terminal beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.small_stages import written
from trunkline.calibration.half_ranges import largest_values
from trunkline.calibration.statistics.watch import Watch
from trunkline.exporter.stages.trt import check_trt_variant
from trunkline.runtime.backends import StageFiles, named, names, ort
from trunkline.runtime.backends.ort_device import OrtDeviceSession, Placement
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import Stage, TensorSpec, Variant

PORTS = TensorSpec("x", "float32", ("N", 4)), TensorSpec("y", "float32", ("N", 4))
#: What the library says of a row that a table does not have.
REASON = "indices element out of data bounds, idx=9"


@pytest.fixture
def files(tmp_path: Path) -> StageFiles:
    """A stage that adds a row of a table of three to x, the one that x's largest number says."""
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=7),
        helper.make_node("ReduceMax", ["whole"], ["place"], keepdims=0),
        helper.make_node("Gather", ["table", "place"], ["row"]),
        helper.make_node("Add", ["x", "row"], ["y"]),
    ]
    variants = {name: Variant("odd/trt.onnx", None, 20, "float32") for name in ("cpu", "trt")}
    stage = Stage(PORTS[:1], PORTS[1:], variants)
    return written(tmp_path / "odd", "odd", stage, nodes, {"table": np.ones((3, 4), np.float32)})


def runs(files: StageFiles) -> dict[str, Callable[[dict[str, Any]], object]]:
    """Everything that makes a session of ONNX Runtime."""
    graph = files.folder / "trt.onnx"
    on_processor = Placement(((ort.CPU, {}),), device="cpu")
    return {
        "back end": lambda x: named("onnxruntime").open_stage(files).run(x),
        "device": lambda x: OrtDeviceSession(files, on_processor).run(x),
        "watch": lambda x: list(Watch("odd", graph, ["row"]).run(x)),
        "ranges": lambda x: largest_values(graph, [x]),
        "comparison": lambda x: check_trt_variant(files.folder.parent, "odd", files.stage, [x]),
    }


@pytest.mark.parametrize("who", ["back end", "device", "watch", "ranges", "comparison"])
def test_a_run_that_fails(files: StageFiles, who: str, capfd: pytest.CaptureFixture[str]) -> None:
    run = runs(files)[who]
    run({"x": np.zeros((1, 4), np.float32)})
    with pytest.raises(BackendError, match=REASON):
        run({"x": np.full((1, 4), 9, np.float32)})
    assert tuple(capfd.readouterr()) == ("", "")


def spoilt(files: StageFiles, how: str) -> StageFiles:
    graph = {"empty": b"", "zeros": b"\0" * 100, "operator": files.graph.replace(b"ReduceMax", b"ReduceXax")}[how]
    return StageFiles(files.name, files.stage, graph, files.folder)


@pytest.mark.parametrize("how", ["empty", "zeros", "operator"])
@pytest.mark.parametrize("backend", names("cpu"))
def test_a_graph_that_cannot_be_opened(
    files: StageFiles, backend: str, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if (missing := named(backend).available()) is not None:
        pytest.skip(missing.reason)
    with pytest.raises(BackendError, match="cannot load a stage"):
        named(backend).open_stage(spoilt(files, how))
    assert tuple(capfd.readouterr()) == ("", "")


IN_A_PROCESS = """
import sys, numpy as np
from pathlib import Path
from trunkline.runtime.backends import StageFiles, onnxruntime
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import Stage, TensorSpec
ports = TensorSpec("x", "float32", ("N", 4)), TensorSpec("y", "float32", ("N", 4))
graph = Path(sys.argv[1])
session = onnxruntime.open_stage(StageFiles("odd", Stage(ports[:1], ports[1:], {}), graph.read_bytes(), graph.parent))
try:
    session.run({"x": np.full((1, 4), 9, np.float32)})
except BackendError as error:
    print(error, file=sys.stderr)
"""


def test_what_a_terminal_shows(files: StageFiles) -> None:
    """From the import on, which no test of this process can see."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, str(files.folder / "trt.onnx")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    assert (done.returncode, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert lines[:2] == ["ONNX Runtime failed while it ran a stage", "  where: stage odd"]
    assert lines[2].startswith("  found: [ONNXRuntimeError]")
    assert REASON in lines[2]
    assert len(lines) == 3
    assert "\x1b" not in done.stderr
