"""Sizes of values: those of real stages are what ONNX Runtime gives, and nothing in a graph breaks the rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trunkline.runtime.bundle import Bundle
from trunkline.runtime.manifest import MAX_RANK, Stage, TensorSpec
from trunkline.runtime.onnx_nodes import Graph, Node, Tensor, read_graph
from trunkline.runtime.onnx_scan import OPERATORS
from trunkline.targets.estimate import shapes
from trunkline.targets.estimate.shapes import Known, broadcast, sizes
from trunkline.targets.estimate.stage import StageGraph, read_stages

#: Windows of a sensor have three blocks or more.
ROWS = ({"B": 1, "I": 1, "N": 1, "Q": 3}, {"B": 3, "I": 2, "N": 5, "Q": 4}, {"B": 2, "I": 7, "N": 20, "Q": 11})
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def feed(stage: Stage, rows: dict[str, int]) -> dict[str, NDArray[Any]]:
    """Zeros would do: sizes depend on nothing else."""
    dtypes = {"float32": np.float32, "uint8": np.uint8, "int64": np.int64}
    return {
        spec.name: np.ones([rows.get(str(size), 0) or size for size in spec.shape], dtypes[spec.dtype])
        for spec in stage.inputs
    }


def run_all(model: onnx.ModelProto, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every value of a graph, as ONNX Runtime computes it when it changes nothing."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    names = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, inputs), strict=True))


def check_stage(bundle: Path, stage: StageGraph) -> None:
    model = onnx.load(bundle / stage.stage.variants[stage.variant].graph)
    for rows in ROWS:
        found = sizes(stage.graph, stage.stage, rows)
        assert found.guessed == [], stage.name
        real = run_all(model, feed(stage.stage, rows))
        assert len(real) > 10
        wrong = {
            name: (found.values[name], value.shape, value.dtype)
            for name, value in real.items()
            if (found.values[name].shape, found.values[name].nbytes) != (value.shape, value.nbytes)
        }
        assert wrong == {}, (stage.name, rows)
        numbers = {name: each.integers for name, each in found.values.items() if name in real and each.integers}
        assert all(real[name].ravel().tolist() == list(integers) for name, integers in numbers.items())


@pytest.mark.parametrize("variant", ["cpu", "trt"])
def test_values_of_every_stage(half_bundle: Path, variant: str) -> None:
    found = read_stages(Bundle(half_bundle), variant)
    assert {each.name for each in found} == {"vision", "text", "context", "action"}
    for stage in found:
        check_stage(half_bundle, stage)


@pytest.mark.parametrize("variant", ["cpu", "trt"])
def test_values_of_every_stage_with_a_sensor(sensor_bundle: Path, variant: str) -> None:
    found = read_stages(Bundle(sensor_bundle), variant)
    assert {"steps", "sensor", "context"} <= {each.name for each in found}
    for stage in found:
        check_stage(sensor_bundle, stage)


def test_values_of_every_int8_stage(int8_bundle: Path) -> None:
    found = read_stages(Bundle(int8_bundle), "cpu")
    assert {each.name for each in found if "int8" in each.precision} == {"vision", "text", "context", "action"}
    for stage in found:
        check_stage(int8_bundle, stage)


# Operators one by one, against ONNX Runtime


def constant(name: str, value: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def single(node: onnx.NodeProto, shape: tuple[int, ...], *constants: TensorProto, opset: int = 20) -> onnx.ModelProto:
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", FLOAT, shape)], [onnx.ValueInfoProto(name="y")], constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def floats(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


CASES: dict[str, tuple[onnx.NodeProto, tuple[int, ...], dict[str, NDArray[Any]]]] = {
    "matmul of a row": (helper.make_node("MatMul", ["x", "w"], ["y"]), (2, 3, 4, 5), {"w": floats(3, 5, 6)}),
    "gemm": (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1), (5, 2), {"w": floats(7, 5)}),
    "convolution": (
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 0, 2, 1], strides=[2, 3], dilations=[1, 2]),
        (2, 3, 11, 13),
        {"w": floats(5, 3, 3, 4)},
    ),
    "convolution of a line": (
        helper.make_node("Conv", ["x", "w"], ["y"], group=2),
        (1, 4, 9),
        {"w": floats(6, 2, 3)},
    ),
    "gather of rows": (helper.make_node("Gather", ["x", "i"], ["y"]), (5, 3), {"i": ints(0, 4, 4)}),
    "gather of one": (helper.make_node("Gather", ["x", "i"], ["y"], axis=-1), (5, 3), {"i": np.array(1)}),
    "gather of a table": (
        helper.make_node("Gather", ["x", "i"], ["y"], axis=1),
        (5, 3, 2),
        {"i": np.zeros((2, 4), np.int64)},
    ),
    "reshape": (helper.make_node("Reshape", ["x", "s"], ["y"]), (4, 6), {"s": ints(0, -1, 2)}),
    "reshape to nothing": (
        helper.make_node("Reshape", ["x", "s"], ["y"], allowzero=1),
        (0, 6),
        {"s": ints(3, 0)},
    ),
    "flatten": (helper.make_node("Flatten", ["x"], ["y"], axis=2), (2, 3, 4, 5), {}),
    "flatten from the end": (helper.make_node("Flatten", ["x"], ["y"], axis=-1), (2, 3, 4), {}),
    "flatten all": (helper.make_node("Flatten", ["x"], ["y"], axis=0), (2, 3), {}),
    "expand": (helper.make_node("Expand", ["x", "s"], ["y"]), (3, 1), {"s": ints(2, 1, 4)}),
    "transpose": (helper.make_node("Transpose", ["x"], ["y"]), (2, 3, 4), {}),
    "transpose with an order": (helper.make_node("Transpose", ["x"], ["y"], perm=[1, 2, 0]), (2, 3, 4), {}),
    "squeeze": (helper.make_node("Squeeze", ["x"], ["y"]), (1, 3, 1), {}),
    "squeeze one": (helper.make_node("Squeeze", ["x", "a"], ["y"]), (1, 3, 1), {"a": ints(-1)}),
    "unsqueeze": (helper.make_node("Unsqueeze", ["x", "a"], ["y"]), (2, 3), {"a": ints(-1, 0)}),
    "slice": (
        helper.make_node("Slice", ["x", "b", "e", "a", "s"], ["y"]),
        (7, 9),
        {"b": ints(-2, 1), "e": ints(-(1 << 40), 1 << 40), "a": ints(0, -1), "s": ints(-2, 3)},
    ),
    "slice of the first": (helper.make_node("Slice", ["x", "b", "e"], ["y"]), (7, 9), {"b": ints(1), "e": ints(3)}),
    "slice of nothing": (helper.make_node("Slice", ["x", "b", "e"], ["y"]), (7,), {"b": ints(3), "e": ints(1)}),
    "concat": (helper.make_node("Concat", ["x", "c", "x"], ["y"], axis=-2), (2, 3, 4), {"c": floats(2, 5, 4)}),
    "split": (helper.make_node("Split", ["x", "s"], ["y", "z"], axis=1), (2, 7), {"s": ints(3, 4)}),
    "split evenly": (helper.make_node("Split", ["x"], ["y", "z", "w"], num_outputs=3), (7, 2), {}),
    "shape": (helper.make_node("Shape", ["x"], ["y"], start=1, end=-1), (2, 3, 4, 5), {}),
    "mean": (helper.make_node("ReduceMean", ["x", "a"], ["y"], keepdims=0), (2, 3, 4), {"a": ints(-1, 0)}),
    "sum of everything": (helper.make_node("ReduceSum", ["x"], ["y"]), (2, 3), {}),
    "sum of nothing": (helper.make_node("ReduceSum", ["x"], ["y"], noop_with_empty_axes=1), (2, 3), {}),
    "comparison": (helper.make_node("Greater", ["x", "c"], ["y"]), (2, 1, 3), {"c": floats(5, 1)}),
    "cast": (helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16), (2, 3), {}),
    "layer norm": (helper.make_node("LayerNormalization", ["x", "w"], ["y"]), (2, 3), {"w": floats(3)}),
    "quantise": (
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"]),
        (2, 3),
        {"s": np.float32(1), "z": np.int8(0)},
    ),
    "quantise to bytes": (helper.make_node("QuantizeLinear", ["x", "s"], ["y"]), (2, 3), {"s": np.float32(1)}),
    "maximum": (helper.make_node("Max", ["x", "c", "c"], ["y"]), (2, 1), {"c": floats(4)}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operator(case: str) -> None:
    node, shape, constants = CASES[case]
    model = single(node, shape, *(constant(name, value) for name, value in constants.items()))
    graph = read_graph(model.SerializeToString(), case)
    stage = Stage((TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", ("N",)),), {})
    found = sizes(graph, stage, {})
    assert found.guessed == []
    for name, value in run_all(model, {"x": np.ones(shape, np.float32)}).items():
        assert (found.values[name].shape, found.values[name].nbytes) == (value.shape, value.nbytes), name
        if found.values[name].integers is not None:
            assert value.tolist() == list(found.values[name].integers or ())


@pytest.mark.parametrize(
    ("query", "key", "value", "attributes"),
    [
        ((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6), {}),
        ((2, 5, 32), (2, 7, 32), (2, 7, 24), {"q_num_heads": 4, "kv_num_heads": 4}),
        ((2, 5, 32), (2, 7, 16), (2, 7, 12), {"q_num_heads": 4, "kv_num_heads": 2}),
    ],
)
def test_attention(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], attributes: dict[str, int]
) -> None:
    node = helper.make_node("Attention", ["x", "k", "v"], ["y"], **attributes)
    model = single(node, query, constant("k", floats(*key)), constant("v", floats(*value)), opset=23)
    stage = Stage((TensorSpec("x", "float32", query),), (), {})
    found = sizes(read_graph(model.SerializeToString(), "attention"), stage, {})
    assert found.values["y"].shape == run_all(model, {"x": floats(*query)})["y"].shape
    assert found.guessed == []


def test_shapes_that_are_computed_are_followed() -> None:
    """Shape, Gather, Slice, Unsqueeze and Concat of numbers, down to the Reshape that reads them."""
    nodes = [
        helper.make_node("Shape", ["x"], ["whole"]),
        helper.make_node("Gather", ["whole", "first"], ["rows"]),
        helper.make_node("Unsqueeze", ["rows", "zero"], ["rows_1"]),
        helper.make_node("Slice", ["whole", "one", "end", "zero"], ["rest"]),
        helper.make_node("Concat", ["rest", "rows_1"], ["wanted"], axis=0),
        helper.make_node("Identity", ["wanted"], ["same"]),
        helper.make_node("Reshape", ["x", "same"], ["y"]),
    ]
    constants = {"first": np.array(0), "zero": ints(0), "one": ints(1), "end": ints(9)}
    inputs = [helper.make_tensor_value_info("x", FLOAT, ("N", 3, 4))]
    tensors = [constant(name, value) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="y")], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    stage = Stage((TensorSpec("x", "float32", ("N", 3, 4)),), (), {})
    found = sizes(read_graph(model.SerializeToString(), "g"), stage, {"N": 5})
    assert found.guessed == []
    assert found.values["same"] == Known(INT64, (3,), (3, 4, 5))
    assert found.values["y"].shape == run_all(model, {"x": floats(5, 3, 4)})["y"].shape


# What is not known


def guessing(*nodes: Node, constants: dict[str, Tensor] | None = None, shape: tuple[int, ...] = (4, 5)) -> shapes.Sizes:
    stage = Stage((TensorSpec("x", "float32", shape),), (), {})
    return sizes(Graph(nodes, constants or {}), stage, {})


def node(operator: str, inputs: tuple[str, ...], outputs: tuple[str, ...] = ("y",), **integers: int) -> Node:
    return Node("", operator, inputs, outputs, {name: (value,) for name, value in integers.items()})


def test_an_operator_without_a_rule_counts_as_its_largest_input() -> None:
    small = Tensor("w", FLOAT, (2,))
    found = guessing(node("Einsum", ("w", "x")), node("Relu", ("y",), ("z",)), constants={"w": small})
    assert found.guessed == ["y"]
    assert found.values["y"].shape == found.values["z"].shape == (4, 5)


def test_a_second_output_without_a_rule_is_guessed() -> None:
    found = guessing(node("LayerNormalization", ("x", "x"), ("y", "mean", "")))
    assert found.guessed == ["mean"]
    assert "" not in found.values


@pytest.mark.parametrize(
    "broken",
    [
        node("MatMul", ("x", "x")[:1]),
        node("Relu", ()),
        node("Relu", ("missing",)),
        node("Reshape", ("x", "x")),
        node("Reshape", ("x", "s")),
        node("Expand", ("x", "s")),
        node("Transpose", ("x",), perm=7),
        node("Concat", ()),
        node("Split", ("x", "s")),
        node("Slice", ("x", "s", "s", "s", "zero")),
        node("Squeeze", ("scalar", "s")),
        node("Gather", ("scalar", "s")),
        node("Conv", ("image", "x")),
        node("Conv", ("image", "image"), strides=0),
        node("Conv", ("image", "wide")),
        node("Attention", ("x", "x")),
        node("Attention", ("cube", "cube", "cube"), kv_num_heads=0),
        node("Add", ("x", "image")),
        node("Add", ()),
        node("Constant", ()),
    ],
    ids=lambda each: each.operator,
)
def test_a_node_that_is_not_what_its_rule_expects(broken: Node) -> None:
    constants = {
        "s": Tensor("s", INT64, (2,), (-7, 1 << 62)),
        "zero": Tensor("zero", INT64, (2,), (0, 0)),
        "scalar": Tensor("scalar", FLOAT, ()),
        "image": Tensor("image", FLOAT, (1, 2, 3, 3)),
        "wide": Tensor("wide", FLOAT, (1, 2, 9, 9)),
        "cube": Tensor("cube", FLOAT, (2, 2, 2)),
    }
    assert guessing(broken, constants=constants).guessed == ["y"]


def test_numbers_that_double_do_not_fill_the_memory() -> None:
    """Concat of a value with itself: after 60 nodes it would have more numbers than there are bytes."""
    nodes = [node("Shape", ("x",), ("v0",))]
    nodes += [node("Concat", (f"v{place}", f"v{place}"), (f"v{place + 1}",)) for place in range(60)]
    found = guessing(*nodes)
    assert found.values["v5"].integers == (4, 5) * 32
    assert found.values["v6"].integers is None
    assert found.values["v6"].shape == (128,)
    assert found.values["v60"].shape[0] <= 1 << 40


def test_ranks_that_double_do_not_fill_the_memory() -> None:
    """Gather of a value by itself: its rank would be 2^60."""
    nodes = [node("Gather", ("x" if place == 0 else f"v{place}",) * 2, (f"v{place + 1}",)) for place in range(60)]
    found = guessing(*nodes)
    assert all(len(each.shape) <= MAX_RANK for each in found.values.values())
    assert found.guessed


def test_sizes_that_double_stay_numbers_of_a_processor() -> None:
    nodes = [node("Concat", ("x" if place == 0 else f"v{place}",) * 2, (f"v{place + 1}",)) for place in range(5000)]
    found = guessing(*nodes)
    assert max(size for each in found.values.values() for size in each.shape) <= 1 << 40


NAMES = ("x", "a", "b", "s", "t", "e", "")


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any operators with any inputs and attributes."""
    numbers = st.sampled_from([0, 1, 2, 3, 8, -1, -2, 1 << 40, 1 << 62, -(1 << 63), (1 << 63) - 1])
    constants = {}
    for name in ("s", "t", "e"):
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        count = int(np.prod(shape, dtype=np.int64))
        constants[name] = Tensor(name, INT64, shape, tuple(draw(st.lists(numbers, min_size=count, max_size=count))))
    attributes = ("axis", "keepdims", "start", "end", "perm", "strides", "pads", "dilations", "to", "axes", "transB")
    nodes = []
    for place in range(draw(st.integers(1, 8))):
        inputs = draw(st.lists(st.sampled_from([*NAMES, *(f"v{each}" for each in range(place))]), max_size=4))
        chosen = draw(st.lists(st.sampled_from(attributes), max_size=4))
        integers = {name: tuple(draw(st.lists(numbers, min_size=1, max_size=4))) for name in chosen}
        operator = draw(st.sampled_from(sorted(OPERATORS)))
        nodes.append(Node("", operator, tuple(inputs), (f"v{place}", f"w{place}"), integers))
    return Graph(tuple(nodes), constants)


@settings(deadline=None, max_examples=300)
@given(graphs(), st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_whatever_a_graph_says_every_value_has_a_size(graph: Graph, shape: list[int]) -> None:
    found = sizes(graph, Stage((TensorSpec("x", "float32", tuple(shape)),), (), {}), {})
    for each in graph.nodes:
        for name in each.outputs:
            known = found.values[name]
            assert len(known.shape) <= MAX_RANK
            assert known.nbytes >= 0
            assert known.integers is None or len(known.integers) == np.prod(known.shape, dtype=np.int64)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=4))
def test_broadcasting_is_numpys(tried: list[list[int]]) -> None:
    arrays = [tuple(shape) for shape in tried]
    try:
        expected = np.broadcast_shapes(*arrays)
    except ValueError:
        with pytest.raises(ValueError, match="do not fit"):
            broadcast(*arrays)
    else:
        assert broadcast(*arrays) == expected


def test_there_is_a_rule_for_standard_operators_only() -> None:
    assert set(shapes._RULES) <= OPERATORS
