"""Q/DQ pairs where they belong, int8 storage elsewhere, and int8 kernels in every back end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.int8_kit import run, stage_inputs
from trunkline.calibration.int8.linears import find_linears, normalise
from trunkline.calibration.int8.placement import place_int8, storable
from trunkline.calibration.int8.stage_plan import save
from trunkline.runtime import onnx_scan
from trunkline.runtime.backends import StageFiles, onnxruntime, openvino
from trunkline.runtime.bundle import Bundle

STAGES = ("vision", "text", "context", "action")


def normalised(bundle: Path, stage: str) -> ir.Model:
    model = ir.load(bundle / "stages" / stage / "cpu.onnx")
    normalise(model)
    return model


def in_int8(bundle: Path, stage: str, folder: Path) -> tuple[StageFiles, list[str]]:
    """Every wide layer in int8 and the rest stored; ranges as wide as anything that flows here."""
    model = normalised(bundle, stage)
    names = [linear.name for linear in find_linears(model) if min(linear.size) >= 16]
    place_int8(model, dict.fromkeys(names, 6.0), storable(model, names))
    save(model, folder)
    entry = Bundle(bundle).manifest.stages[stage]
    return StageFiles(stage, entry, (folder / "cpu.onnx").read_bytes(), folder), names


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("backend", [onnxruntime, openvino], ids=lambda it: it.NAME)
def test_every_layer_runs_in_int8(bundle: Path, tmp_path: Path, stage: str, backend) -> None:
    files, names = in_int8(bundle, stage, tmp_path)
    assert backend.int8_kernels(files) == len(names) > 0


@pytest.mark.parametrize("stage", STAGES)
def test_only_linear_layers_are_quantised(bundle: Path, tmp_path: Path, stage: str) -> None:
    _, names = in_int8(bundle, stage, tmp_path)
    before, after = (
        Counter(node.op_type for node in model.graph)
        for model in (normalised(bundle, stage), ir.load(tmp_path / "cpu.onnx"))
    )
    inputs = after["QuantizeLinear"]
    assert after["DequantizeLinear"] == inputs + len(names)
    added = {"QuantizeLinear", "DequantizeLinear", "Cast", "Mul", "Div", "Gather"}
    assert {kind: n for kind, n in before.items() if kind not in added} == {
        kind: n for kind, n in after.items() if kind not in added
    }
    model = ir.load(tmp_path / "cpu.onnx")
    readers = {
        use.node.op_type for node in model.graph if node.op_type == "DequantizeLinear" for use in node.outputs[0].uses()
    }
    assert readers == {"MatMul"}


@pytest.mark.parametrize("stage", STAGES)
def test_the_runtime_accepts_the_graph(bundle: Path, tmp_path: Path, stage: str) -> None:
    files, _ = in_int8(bundle, stage, tmp_path)
    size = (tmp_path / "cpu.weights").stat().st_size
    onnx_scan.scan(files.graph, opset=23, weights="cpu.weights", weights_bytes=size, where="test")


@pytest.mark.parametrize("second_threshold", [3.0, 1.0], ids=["other range", "same range"])
@pytest.mark.parametrize("backend", [onnxruntime, openvino], ids=lambda it: it.NAME)
def test_layers_that_read_one_value_are_all_int8(
    bundle: Path, tmp_path: Path, backend, second_threshold: float
) -> None:
    """Equal pairs must not be made one: ONNX Runtime would compute what reads it in float32."""
    model = normalised(bundle, "action")
    linears = {linear.name: linear for linear in find_linears(model)}
    first, second = (f"member.{index}.layers.0.out_proj" for index in (0, 1))
    linears[second].node.replace_input_with(0, linears[first].input)
    place_int8(model, {first: 1.0, second: second_threshold}, [])
    scale = model.graph.initializers[f"{second}.input_scale"]
    assert scale.const_value.numpy() == pytest.approx(second_threshold / 127)
    save(model, tmp_path)
    entry = Bundle(bundle).manifest.stages["action"]
    files = StageFiles("action", entry, (tmp_path / "cpu.onnx").read_bytes(), tmp_path)
    assert backend.int8_kernels(files) == 2


def test_weights_are_the_nearest_int8_numbers(bundle: Path, tmp_path: Path) -> None:
    _, names = in_int8(bundle, "vision", tmp_path)
    exact = {linear.name: linear.matrix() for linear in find_linears(normalised(bundle, "vision"))}
    initializers = ir.load(tmp_path / "cpu.onnx").graph.initializers
    for name in names:
        weight = initializers[f"{name}.weight"].const_value.numpy()
        scale = initializers[f"{name}.weight_scale"].const_value.numpy()
        assert weight.dtype == np.int8
        assert weight.min() >= -127
        assert (np.abs(weight * scale - exact[name]).max(axis=0) <= scale / 2 * 1.001).all()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("backend", [onnxruntime, openvino], ids=lambda it: it.NAME)
def test_stored_tensors_cost_little(bundle: Path, tmp_path: Path, stage: str, backend) -> None:
    """All weights as int8 in the file, all arithmetic in float32."""
    model = normalised(bundle, stage)
    names = storable(model, [])
    place_int8(model, {}, names)
    save(model, tmp_path)
    for name in names:
        assert model.graph.initializers[name].dtype == ir.DataType.INT8
    inputs = stage_inputs(stage)
    expected = run(bundle / "stages" / stage / "cpu.onnx", inputs)
    entry = Bundle(bundle).manifest.stages[stage]
    session = backend.open_stage(StageFiles(stage, entry, (tmp_path / "cpu.onnx").read_bytes(), tmp_path))
    (found,) = session.run(inputs).values()
    session.close()
    assert 0 < np.abs(found - expected).max() < 0.05
    if stage in ("vision", "text"):  # the heads of the test bundle are too small to gain
        before, after = (folder / "cpu.weights" for folder in (bundle / "stages" / stage, tmp_path))
        assert after.stat().st_size < 0.4 * before.stat().st_size


def test_a_token_table_is_looked_up_as_int8(bundle: Path) -> None:
    model = normalised(bundle, "text")
    table = next(name for name in storable(model, []) if "token_embedding" in name)
    place_int8(model, {}, [table])
    (reader,) = {use.node.op_type for use in model.graph.initializers[table].uses()}
    assert reader == "Gather"
    assert not any(node.op_type == "Cast" and node.inputs[0].is_initializer() for node in model.graph)
