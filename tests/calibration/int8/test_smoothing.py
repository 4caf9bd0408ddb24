"""Factors move from activations into weights, and the function stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.int8_kit import run, stage_inputs
from trunkline.calibration.int8.linears import Linear, find_linears, normalise
from trunkline.calibration.int8.smoothing import find_sites, smooth
from trunkline.calibration.int8.stage_plan import save


def sites_of(graph: Path) -> tuple[ir.Model, list]:
    model = ir.load(graph)
    normalise(model)
    return model, find_sites(model)


@pytest.mark.parametrize("stage", ["vision", "text", "context", "action"])
def test_random_factors_keep_the_function(bundle: Path, tmp_path: Path, stage: str) -> None:
    graph = bundle / "stages" / stage / "cpu.onnx"
    model, sites = sites_of(graph)
    random = np.random.default_rng(int.from_bytes(stage.encode(), "little") % 1000)
    for site in sites:
        smooth(model, site, np.exp(random.normal(0, 2, len(site.channels))).astype(np.float32))
    save(model, tmp_path)
    inputs = stage_inputs(stage)
    np.testing.assert_allclose(run(tmp_path / "cpu.onnx", inputs), run(graph, inputs), atol=1e-5)


def test_what_a_site_divides_is_divided(bundle: Path, tmp_path: Path) -> None:
    """The values themselves, not only the function: a site that did nothing would pass the test above."""
    graph = bundle / "stages/vision/cpu.onnx"
    model, sites = sites_of(graph)
    random = np.random.default_rng(3)
    factors = {
        str(site.value.name): np.exp(random.normal(0, 1, len(site.channels))).astype(np.float32) for site in sites
    }
    for site in sites:
        smooth(model, site, factors[str(site.value.name)])
    save(model, tmp_path)
    inputs = stage_inputs("vision")
    for name, divided_by in factors.items():
        before, after = inner(graph, name, inputs), inner(tmp_path / "cpu.onnx", name, inputs)
        np.testing.assert_allclose(after * divided_by, before, rtol=1e-3, atol=1e-4)


def inner(graph: Path, value: str, inputs: dict) -> np.ndarray:
    """A value from inside a graph."""
    model = onnx.load(graph)
    model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([value], inputs)[0]


def test_sources(bundle: Path) -> None:
    """Normalisations feed qkv and fc1, values feed proj; fc2 follows GELU and is left alone."""
    model, sites = sites_of(bundle / "stages/vision/cpu.onnx")
    kinds = {
        linear.name.rpartition(".")[2]: isinstance(site.source, Linear) for site in sites for linear in site.linears
    }
    assert kinds == {"qkv": False, "fc1": False, "proj": True}
    assert any(linear.name.endswith("fc2") for linear in find_linears(model))


def test_a_normalisation_that_a_residual_reads_is_left_alone(bundle: Path) -> None:
    """Post-norm layers of the action encoder: linear1 and qkv read what the sum reads too."""
    _, sites = sites_of(bundle / "stages/action/cpu.onnx")
    names = {linear.name.rpartition(".")[2] for site in sites for linear in site.linears}
    assert names == {"out_proj", "linear2"}
    assert all(isinstance(site.source, Linear) for site in sites)


def two_layers(
    between: list[onnx.NodeProto],
    extra_outputs: list[str],
    inputs: int = 6,
    constants: dict[str, list[int]] | None = None,
) -> onnx.ModelProto:
    """``y = f(x W + b) V`` with ``between`` as f; V takes ``inputs`` channels."""
    random = np.random.default_rng(0)
    shapes = {"one.weight": (6, 6), "one.bias": (6,), "two.weight": (inputs, 4)}
    weights = {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "one.weight"], ["product"]),
        helper.make_node("Add", ["product", "one.bias"], ["sum"]),
        *between,
        helper.make_node("MatMul", ["middle", "two.weight"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ["y", *extra_outputs]]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        outputs,
        [
            *(numpy_helper.from_array(weight, name) for name, weight in weights.items()),
            *(numpy_helper.from_array(np.array(number), name) for name, number in (constants or {}).items()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize(
    ("operator", "extra", "found"),
    [
        ("Relu", [], 1),
        ("Identity", [], 1),
        ("Gelu", [], 0),
        ("Tanh", [], 0),
        ("Relu", ["sum"], 0),
        ("Relu", ["middle"], 0),
    ],
)
def test_only_what_commutes_and_nobody_else_reads(operator: str, extra: list[str], found: int) -> None:
    model = ir.from_proto(two_layers([helper.make_node(operator, ["sum"], ["middle"])], extra))
    normalise(model)
    assert len(find_sites(model)) == found


@pytest.mark.parametrize(("start", "found"), [(3, 1), (2, 0)])
def test_channels_that_two_branches_take_are_left_alone(start: int, found: int) -> None:
    """Where the second slice overlaps the first, its reader would see divided numbers."""
    constants = {"zero": [0], "three": [3], "start": [start], "six": [6], "last": [1]}
    nodes = [
        helper.make_node("Slice", ["sum", "zero", "three", "last"], ["middle"]),
        helper.make_node("Slice", ["sum", "start", "six", "last"], ["other"]),
        helper.make_node("Tanh", ["other"], ["seen"]),
    ]
    proto = two_layers(nodes, ["seen"], inputs=3, constants=constants)
    model = ir.from_proto(proto)
    normalise(model)
    assert len(find_sites(model)) == found
