"""``trunkline export --half``: a second variant of every stage, and the first one untouched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import WITH_HALF, made_once
from trunkline.calibration.tensorrt_rules import violations
from trunkline.exporter import half_variant
from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.export import build
from trunkline.exporter.trunk import Trunk
from trunkline.runtime import load, onnx_scan
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import ExportError
from trunkline.runtime.parity import check_parity


@pytest.fixture(scope="module")
def both(shared: Path, trunk: Trunk, checkpoint: Checkpoint) -> Path:
    target = shared / "with_half"
    return made_once(target, lambda: (build(checkpoint, trunk, target, options=WITH_HALF), None)[1])


def test_every_stage_has_both_variants(both: Path, bundle: Path) -> None:
    stages = Bundle(both).manifest.stages
    assert {name: sorted(stage.variants) for name, stage in stages.items()} == {name: ["cpu", "trt"] for name in stages}
    for name, stage in stages.items():
        half = stage.variants["trt"]
        assert (half.opset, half.precision) == (20, "float16")
        assert stage.variants["cpu"].precision == "float32"
        folder, other = both / "stages" / name, bundle / "stages" / name
        assert (folder / "cpu.weights").read_bytes() == (other / "cpu.weights").read_bytes()
        assert (folder / "trt.weights").stat().st_size < 0.7 * (folder / "cpu.weights").stat().st_size


def test_the_runtime_takes_the_bundle(both: Path) -> None:
    with load(both, backend="onnxruntime") as ensemble:
        assert check_parity(ensemble).passed
    manifest = Bundle(both).manifest
    for name, stage in manifest.stages.items():
        half = stage.variants["trt"]
        size = manifest.files[str(half.weights)].size
        graph = (both / half.graph).read_bytes()
        onnx_scan.scan(graph, opset=20, weights="trt.weights", weights_bytes=size, where=name)


def test_nothing_speaks_against_tensorrt(both: Path) -> None:
    for name, stage in Bundle(both).manifest.stages.items():
        assert violations(both / stage.variants["trt"].graph, "10.3") == [], name


def test_what_tensorrt_would_refuse_is_not_shipped(both: Path) -> None:
    """The cpu variant stands for such a graph: attention as one operator, opset 23."""
    graph = both / Bundle(both).manifest.stages["vision"].variants["cpu"].graph
    with pytest.raises(ExportError, match=r"TensorRT would not take a stage\n.*vision(.|\n)*10\.3(.|\n)*Attention"):
        half_variant._require_acceptable(graph, "vision")
