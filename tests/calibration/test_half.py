"""Half precision in a graph: what becomes half, what stays float32 and why, and that it computes the same."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from tests.half_kit import HalfEvaluator, Kernels, with_giants
from tests.half_stages import STAGES, contract_of, feed, manifest_of, single
from trunkline.calibration.half import (
    CARRIERS,
    ISLANDS,
    LAYER_NORM,
    RESIDUAL,
    UNIT_LENGTH,
    HalfReport,
    Island,
    KeptTensor,
    half_of,
    half_problem,
    to_half,
)
from trunkline.calibration.half_ranges import largest_values
from trunkline.calibration.int8.linears import find_linears, normalise
from trunkline.calibration.int8.placement import place_int8
from trunkline.calibration.tensorrt_rules import violations
from trunkline.exporter.stages.towers import VisionStage
from trunkline.exporter.stages.trace import capture
from trunkline.exporter.stages.trt import lower_for_trt
from trunkline.exporter.trunk import load_trunk
from trunkline.runtime.errors import ExportError
from trunkline.runtime.onnx_scan import scan

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
KERNELS: tuple[Kernels, ...] = ("fused", "stepwise")
#: Largest difference of a number of a unit row, after some ten layers of random weights.
TOLERANCE = 5e-3
#: What may not read or make half numbers.
SINGLE_ONLY = {"LayerNormalization", "ReduceL2", "Conv", "Equal"}


def saved(model: ir.Model, folder: Path, name: str = "model") -> Path:
    ir.save(model, folder / f"{name}.onnx", external_data=f"{name}.weights", size_threshold_bytes=512)
    return folder / f"{name}.onnx"


def built(text: str, **weights: NDArray[np.float32]) -> ir.Model:
    """A model from onnx's own notation, opset 20, with float32 weights."""
    declared = ", ".join(
        f"float[{','.join(map(str, array.shape))}] {name}" if array.ndim else f"float {name}"
        for name, array in weights.items()
    )
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {text.replace("WEIGHTS", declared)}')
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    kept = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return ir.from_proto(model)


def types_around(node: ir.Node) -> set[ir.DataType]:
    """Of the floats that a node reads or makes."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    return {value.dtype for value in values if value.dtype in (HALF, FLOAT)}


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


# Structure


@pytest.mark.parametrize("stage", STAGES)
def test_a_converted_stage_is_what_its_reader_expects(single_stages: Path, stage: str, tmp_path: Path) -> None:
    model = single(single_stages, stage)
    before = Counter(node.op_type for node in model.graph)
    report = to_half(model)
    graph = saved(model, tmp_path)
    onnx.checker.check_model(str(graph), full_check=True)  # infers every type anew and compares
    weights = tmp_path / "model.weights"
    facts = scan(graph.read_bytes(), opset=20, weights=weights.name, weights_bytes=weights.stat().st_size, where=stage)
    after = Counter(facts.operators)
    assert "Attention" not in after
    assert after - before == Counter({"Cast": report.casts})
    assert before - after == Counter()
    assert report.half_nodes > 0
    assert [value.dtype for value in model.graph.inputs if value.dtype == HALF] == []
    assert {value.dtype for value in model.graph.outputs} == {FLOAT}
    assert model.graph.outputs[0].name == contract_output(stage)


def contract_output(stage: str) -> str:
    return {"vision": "patches", "text": "tokens", "context": "context", "action": "action"}[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_no_node_mixes_types_and_islands_are_float32(single_stages: Path, stage: str) -> None:
    model = single(single_stages, stage)
    report = to_half(model)
    for node in model.graph:
        if node.op_type not in ("Cast", "QuantizeLinear", "DequantizeLinear"):
            assert len(types_around(node)) < 2, node.name
        if node.op_type in SINGLE_ONLY:
            assert HALF not in types_around(node), node.name
    products = [node for node in model.graph if node.op_type in ("MatMul", "Gemm", "Gelu", "Softmax")]
    assert {kind for node in products for kind in types_around(node)} == {HALF}
    assert set(report.islands) <= {island.name for island in ISLANDS} | {"weight"}


@pytest.mark.parametrize("stage", STAGES)
def test_casts_are_where_types_meet_and_nowhere_else(single_stages: Path, stage: str) -> None:
    model = single(single_stages, stage)
    known = {node.name for node in model.graph}
    to_half(model)
    casts = [node for node in model.graph if node.op_type == "Cast" and node.name not in known]
    sources = [(node.inputs[0], node.outputs[0].dtype) for node in casts]
    assert len(set(sources)) == len(sources)  # one serves all readers
    for node in casts:
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        assert {source.dtype, result.dtype} == {HALF, FLOAT}
        assert source.producer() is None or source.producer() not in casts
        readers = [use.node for use in result.uses()]
        assert readers or result.is_graph_output()
        assert all(reader.op_type != "Shape" for reader in readers)


def test_an_island_of_neighbours_is_entered_and_left_once(single_stages: Path) -> None:
    """Two casts into the residual stream and two out of it per block, as many as norms alone would need."""
    model = single(single_stages, "vision")
    report = to_half(model)
    norms = sum(node.op_type == "LayerNormalization" for node in model.graph)
    blocks = (norms + 1) // 2  # the last one ends at the cut
    stream, ends = 4 * (blocks - 1) + 1, 1
    assert report.casts == stream + ends
    alone = single(single_stages, "vision")
    assert to_half(alone, islands=[island for island in ISLANDS if island is not RESIDUAL]).casts >= report.casts


def test_weights_inside_islands_stay_float32_and_are_listed(single_stages: Path) -> None:
    model = single(single_stages, "text")
    report = to_half(model)
    singles = {name for name, value in model.graph.initializers.items() if value.dtype == FLOAT}
    assert {kept.name for kept in report.kept} == singles
    assert {kept.reason for kept in report.kept} == {LAYER_NORM.name, RESIDUAL.name}
    table = max(model.graph.initializers.values(), key=lambda value: np.prod(value.shape))
    assert table.dtype == HALF


def test_the_same_model_gives_the_same_bytes(single_stages: Path, tmp_path: Path) -> None:
    contents = []
    for run in ("first", "second"):
        folder = tmp_path / run
        folder.mkdir()
        model = single(single_stages, "context")
        to_half(model)
        saved(model, folder)
        contents.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert contents[0] == contents[1]


# Numbers


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("stage", STAGES)
def test_half_arithmetic_stays_close_to_float32(
    bundle: Path, single_stages: Path, stage: str, kernels: Kernels, tmp_path: Path
) -> None:
    sample = feed(manifest_of(bundle).stages[stage])
    model = single(single_stages, stage)
    to_half(model)
    found = HalfEvaluator(saved(model, tmp_path), kernels).run(sample)
    expected = HalfEvaluator(single_stages / stage / "single.onnx").run(sample)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < TOLERANCE


@pytest.fixture(scope="module")
def giants(trunk_folder: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vision stage with giant channels, float32."""
    trunk = load_trunk(f"local-dir:{trunk_folder}")
    images = torch.rand(2, 3, trunk.image.height, trunk.image.width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with_giants(trunk.model, images)
    contract = contract_of("vision", manifest_of(bundle).stages["vision"])
    model = lower_for_trt(capture(VisionStage(trunk), contract), contract)
    return saved(model, tmp_path_factory.mktemp("giants"))


def error_of(graph: Path, bundle: Path, folder: Path, kernels: Kernels, *left_out: Island) -> float:
    """Mean of 1 - cosine without some islands; NaN where a number is not finite."""
    sample = feed(manifest_of(bundle).stages["vision"], rows=2)
    model = ir.load(graph)
    to_half(model, islands=[island for island in ISLANDS if island not in left_out])
    found = HalfEvaluator(saved(model, folder), kernels).run(sample)
    if not (np.isfinite(found).all() and np.linalg.norm(found, axis=-1).all()):
        return float("nan")
    return float((1 - cosines(found, HalfEvaluator(graph).run(sample))).mean())


@pytest.mark.parametrize("kernels", KERNELS)
def test_giant_channels_are_held(giants: Path, bundle: Path, tmp_path: Path, kernels: Kernels) -> None:
    assert error_of(giants, bundle, tmp_path, kernels) < 2e-5


@pytest.mark.parametrize("island", [LAYER_NORM, UNIT_LENGTH], ids=["norms", "length"])
def test_giant_channels_overflow_without_the_islands(
    giants: Path, bundle: Path, tmp_path: Path, island: Island
) -> None:
    """In kernels that square in half: 1000 squared is no half number."""
    assert not error_of(giants, bundle, tmp_path, "stepwise", island) < 0.1


def test_giant_channels_blur_the_others_without_the_residual_island(giants: Path, bundle: Path, tmp_path: Path) -> None:
    """In all kernels: the stream itself is stored in steps of 0.5."""
    assert error_of(giants, bundle, tmp_path, "fused", RESIDUAL) > 5 * error_of(giants, bundle, tmp_path, "fused")


def test_padding_is_recognised_exactly(bundle: Path, single_stages: Path, tmp_path: Path) -> None:
    """-5.001 is -5 in half, and no padding."""
    sample = feed(manifest_of(bundle).stages["action"])
    sample["history"][1, 4, 0] = -5.001
    model = single(single_stages, "action")
    to_half(model)
    found = HalfEvaluator(saved(model, tmp_path)).run(sample)
    assert np.abs(found - HalfEvaluator(single_stages / "action" / "single.onnx").run(sample)).max() < TOLERANCE


@pytest.mark.parametrize("islands", [ISLANDS, ()], ids=["with", "without"])
def test_equality_of_what_products_read_too_needs_the_island(islands: tuple[Island, ...], tmp_path: Path) -> None:
    text = """(float[n,4] x, WEIGHTS) => (float[4,n] y)
        { t = Transpose <perm = [1, 0]> (x) h = MatMul(w, t) is = Equal(t, p) y = Where(is, z, h) }"""
    weights = {"w": np.eye(4, dtype=np.float32), "p": np.float32([-5]), "z": np.float32([9])}
    model = built(text, **weights)
    to_half(model, islands=islands)
    found = HalfEvaluator(saved(model, tmp_path)).run({"x": np.array([[-5, -5.001, 2, 3]], np.float32)})
    assert found[:, 0].tolist() == ([9, -5, 2, 3] if islands else [9, 9, 2, 3])


# Weights and ranges


def product_with(weight: NDArray[np.float32]) -> tuple[ir.Model, HalfReport]:
    model = built(
        "(float[n,4] x, WEIGHTS) => (float[n,4] y) { h = MatMul(x, w) t = Relu(h) y = MatMul(t, v) }",
        w=weight,
        v=np.eye(4, dtype=np.float32),
    )
    return model, to_half(model)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (70000.0, "reaches 70000; half ends at 65504"),
        (-1e6, r"reaches 1e\+06"),
        (None, "so small that rounding to half"),
    ],
)
def test_weights_that_half_cannot_hold_stay_float32(change: float | None, reason: str) -> None:
    weight = np.eye(4, dtype=np.float32)
    if change is None:
        weight *= np.float32(1e-7)
    else:
        weight[1, 2] = change
    model, report = product_with(weight)
    assert report.islands == {"weight": 1}
    (kept,) = report.kept
    assert kept.name == "w"
    assert re.search(reason, kept.reason)
    assert [types_around(node) for node in model.graph if node.op_type == "MatMul"] == [{FLOAT}, {HALF}]


def test_ordinary_weights_become_half() -> None:
    weight = np.random.default_rng(0).normal(0, 0.02, (4, 4)).astype(np.float32)
    weight[0, 0] = 1e-9  # one of many may vanish
    model, report = product_with(weight)
    assert report == HalfReport(islands={}, half_nodes=3, casts=2, kept=())
    found = model.graph.initializers["w"].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), weight.astype(np.float16))


def test_masks_become_the_ends_of_half() -> None:
    lowest = np.finfo(np.float32).min
    content = np.array([lowest, -lowest, -np.inf, 1.5], np.float32)
    assert half_problem(content) is None
    assert half_of(content).tolist() == [-65504, 65504, -np.inf, 1.5]


def test_values_that_come_near_halfs_end_stay_float32(tmp_path: Path) -> None:
    text = """(float[n,4] x, WEIGHTS) => (float[n,4] y)
        { h = MatMul(x, w) g = Mul(h, c) s = Tanh(g) y = MatMul(s, w) }"""
    weights = {"w": np.eye(4, dtype=np.float32), "c": np.float32(3000).reshape(1)}
    sample = {"x": np.full((2, 4), 10, np.float32)}
    largest = largest_values(saved(built(text, **weights), tmp_path), [sample, {"x": np.ones((1, 4), np.float32)}])
    assert {name: largest[name] for name in ("x", "h", "g", "s")} == {"x": 10, "h": 10, "g": 30000, "s": 1}
    model = built(text, **weights)
    report = to_half(model, largest=largest)
    assert report.islands == {"range": 2}  # what makes it and what reads it
    assert {node.op_type: types_around(node) for node in model.graph}["Tanh"] == {FLOAT}
    assert "c" in {kept.name for kept in report.kept}


def test_masks_are_no_large_values(bundle: Path, single_stages: Path) -> None:
    sample = feed(manifest_of(bundle).stages["action"])
    largest = largest_values(single_stages / "action" / "single.onnx", [sample])
    assert max(largest.values()) < 100


def test_padding_beyond_half_keeps_what_reads_it_float32(bundle: Path, single_stages: Path, tmp_path: Path) -> None:
    sample = feed(manifest_of(bundle).stages["action"])
    sample["history"][2, 4, 1] = 1e9
    graph = single_stages / "action" / "single.onnx"
    model = single(single_stages, "action")
    report = to_half(model, largest=largest_values(graph, [sample]))
    assert report.islands["range"] > 0
    found = HalfEvaluator(saved(model, tmp_path)).run(sample)
    assert np.abs(found - HalfEvaluator(graph).run(sample)).max() < TOLERANCE


# int8


def test_int8_stays_and_its_scales_follow_the_floats(bundle: Path, single_stages: Path, tmp_path: Path) -> None:
    sample = feed(manifest_of(bundle).stages["text"])
    largest = largest_values(single_stages / "text" / "single.onnx", [sample])
    model = single(single_stages, "text")
    normalise(model)
    thresholds = {linear.name: largest.get(str(linear.input.name), 8.0) for linear in find_linears(model)}
    place_int8(model, thresholds, [])
    expected = HalfEvaluator(saved(model, tmp_path, "before")).run(sample)
    before = {name: value.const_value.numpy() for name, value in int8_weights(model).items()}
    report = to_half(model)
    graph = saved(model, tmp_path)
    onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert violations(graph, "10.3") == []
    after = int8_weights(model)
    assert before
    assert list(after) == list(before)
    assert all(np.array_equal(value.const_value.numpy(), before[name]) for name, value in after.items())
    for node in model.graph:
        if node.op_type == "DequantizeLinear":
            assert types_around(node) == {HALF}
            assert {use.node.op_type for use in node.outputs[0].uses()} == {"MatMul"}
            if node.inputs[0].producer() is not None:
                source = node.inputs[0].producer()
                np.testing.assert_array_equal(node.inputs[1].const_value, source.inputs[1].const_value)
        elif node.op_type == "QuantizeLinear":
            source = node.inputs[0].producer()
            assert source is None or source.op_type != "Cast"
            assert len(types_around(node)) == 1
    assert report.half_nodes > 0
    assert np.abs(HalfEvaluator(graph).run(sample) - expected).max() < 4 * TOLERANCE


def int8_weights(model: ir.Model) -> dict[str, Any]:
    return {name: value for name, value in model.graph.initializers.items() if value.dtype == ir.DataType.INT8}


def test_a_scale_that_half_cannot_hold_stays_float32() -> None:
    model = built(
        """(float[n,4] x, int8[4,4] q, WEIGHTS) => (float[n,4] y)
        { d = DequantizeLinear(q, s) y = MatMul(x, d) }""",
        s=np.float32(3e-7).reshape(()),
    )
    report = to_half(model)
    assert report.kept == (KeptTensor("s", report.kept[0].reason),)
    assert "moves" in report.kept[0].reason
    assert next(node for node in model.graph if node.op_type == "MatMul").outputs[0].dtype == HALF


# Refusals


def test_an_older_opset_is_refused() -> None:
    model = built("(float[n] x) => (float[n] y) { y = Relu(x) }")
    model.graph.opset_imports[""] = 17
    with pytest.raises(ExportError, match=r"(?s)cannot write a stage in half precision.*opset 19 or newer.*opset 17"):
        to_half(model)


def test_subgraphs_are_refused() -> None:
    model = built("""(bool c, float[n] x) => (float[n] y)
        { y = If (c) <then_branch = a () => (z) { z = Identity(x) }, else_branch = b () => (z) { z = Relu(x) }> }""")
    with pytest.raises(ExportError, match="no operators that hold graphs"):
        to_half(model)


def test_every_island_says_why() -> None:
    assert all(island.reason and island.name for island in ISLANDS)
    assert len({island.name for island in ISLANDS}) == len(ISLANDS)
    assert not any(island.operators & CARRIERS for island in ISLANDS)
