"""Each rule has a graph that breaks it, and the message names the node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests import qdq_kit
from tests.qdq_kit import Form
from trunkline.calibration import tensorrt_rules
from trunkline.calibration.tensorrt_rules import violations
from trunkline.runtime.errors import InputError

FLOAT = TensorProto.FLOAT
GOOD = Form(opset=20)


def check(made: ModelProto, version: str = "10.3") -> list[str]:
    return [str(each) for each in violations(ir.from_proto(made), version)]


def only(made: ModelProto, rule: str, *parts: str, version: str = "10.3") -> None:
    """The graph breaks one rule, and the message holds these parts."""
    found = violations(ir.from_proto(made), version)
    assert {each.rule for each in found} == {rule}, [str(each) for each in found]
    for part in parts:
        assert any(part in str(each) for each in found), [str(each) for each in found]


def constant(made: ModelProto, name: str, value: Any) -> None:
    place = next(index for index, each in enumerate(made.graph.initializer) if each.name == name)
    made.graph.initializer[place].CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def node(made: ModelProto, name: str) -> NodeProto:
    return next(each for each in made.graph.node if each.name == name)


def small(
    *nodes: NodeProto, shape: tuple[Any, ...] = ("B", 4), opset: int = 20, kind: int = FLOAT, **constants: Any
) -> ModelProto:
    """A graph from x to y."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize(
    "form",
    [
        GOOD,
        Form(opset=20, rank=2),
        Form(opset=20, bias=1, batch=2),
        Form(opset=20, product="Gemm", rank=2, bias="inside"),
        Form(opset=20, product="Gemm", rank=2),
    ],
    ids=str,
)
def test_good_layers(form: Form) -> None:
    assert check(qdq_kit.model(form)) == []


def test_good_convolution() -> None:
    made = small(
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], name="w/DQ", axis=0),
        helper.make_node("Conv", ["x", "f"], ["y"], name="patch"),
        shape=("B", 3, 32, 32),
        w=np.ones((8, 3, 16, 16), np.int8),
        s=np.ones(8, np.float32),
        z=np.zeros(8, np.int8),
    )
    assert check(made) == []


def test_weights_quantised_from_float() -> None:
    made = small(
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], name="w/Q", axis=1),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["f"], name="w/DQ", axis=1),
        helper.make_node("MatMul", ["x", "f"], ["y"], name="fc"),
        w=np.ones((4, 8), np.float32),
        s=np.ones(8, np.float32),
        z=np.zeros(8, np.int8),
    )
    assert check(made) == []


def test_zero_point_of_a_weight_may_be_absent() -> None:
    made = qdq_kit.model(GOOD)
    del node(made, "weight/DQ").input[2]
    del node(made, "x/DQ").input[2]
    assert check(made) == []


def test_constants_may_be_nodes() -> None:
    made = qdq_kit.model(GOOD)
    scale = next(each for each in made.graph.initializer if each.name == "x_scale")
    made.graph.node.insert(0, helper.make_node("Constant", [], ["x_scale"], value=scale))
    made.graph.initializer.remove(scale)
    assert check(made) == []


def test_files(tmp_path: Path) -> None:
    onnx.save(qdq_kit.model(Form(opset=23)), tmp_path / "trt.onnx")
    assert [each.rule for each in violations(tmp_path / "trt.onnx", "10.3")] == ["opset_range"]


@pytest.mark.parametrize(
    ("version", "newest"), [("10.0", 20), ("10.3", 20), ("10.8.0.43", 20), ("10.9", 22), ("10.13.3", 24), ("11.4", 25)]
)
def test_opsets(version: str, newest: int) -> None:
    def at(opset: int) -> ModelProto:
        return small(helper.make_node("Relu", ["x"], ["y"]), opset=opset)

    assert check(at(newest), version) == []
    only(at(newest + 1), "opset_range", f"opset {newest + 1}", f"13 to {newest}", version=version)
    only(at(12), "opset_range", "opset 12", version=version)


@pytest.mark.parametrize("version", ["", "ten", "9.3", "8.6.1", "10", "10.3-rc1"])
def test_versions_without_rules(version: str) -> None:
    with pytest.raises(InputError, match=r"no rules for this version of TensorRT\n.*10.0 or newer"):
        violations(ir.from_proto(qdq_kit.model(GOOD)), version)


@pytest.mark.parametrize(
    ("operator", "inputs", "since", "before"),
    [("Attention", ["x", "x", "x"], "10.14", "10.13"), ("RMSNormalization", ["x", "one"], "10.15", "10.14")],
)
def test_operators_that_came_later(operator: str, inputs: list[str], since: str, before: str) -> None:
    made = small(
        helper.make_node(operator, inputs, ["y"], name="late"),
        shape=("B", 2, 8, 4),
        opset=23,
        **({"one": np.ones(4, np.float32)} if "one" in inputs else {}),
    )
    assert check(made, since) == []
    only(made, "operators", f"{operator} late: ", f"from TensorRT {since} on", version=before)


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        (helper.make_node("MatMulInteger", ["x", "x"], ["y"], name="odd"), ("MatMulInteger odd", "not known to read")),
        (helper.make_node("Evil", ["x"], ["y"], name="odd", domain="com.evil"), ("Evil odd", "'com.evil'")),
        (helper.make_node("Resize", ["x"], ["y"], name="odd", antialias=1, mode="linear"), ("Resize odd", "antialias")),
        (helper.make_node("Resize", ["x"], ["y"], name="odd", mode="cubic"), ("Resize odd: mode is 'cubic'",)),
        (
            helper.make_node("Resize", ["x"], ["y"], name="odd", coordinate_transformation_mode="tf_crop_and_resize"),
            ("Resize odd", "'tf_crop_and_resize', not"),
        ),
    ],
    ids=["unknown", "domain", "antialias", "cubic", "coordinates"],
)
def test_operators(bad: NodeProto, parts: tuple[str, ...]) -> None:
    only(small(bad), "operators", *parts)


def test_operators_without_a_name_are_called_after_what_they_compute() -> None:
    only(small(helper.make_node("Unique", ["x"], ["y"])), "operators", "Unique y: ")


def test_functions() -> None:
    made = small(helper.make_node("Relu", ["x"], ["y"]))
    body = [helper.make_node("Relu", ["a"], ["b"])]
    made.functions.append(helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))
    only(made, "operators", "function F")


def test_dtypes() -> None:
    made = small(helper.make_node("Cast", ["x"], ["y"], name="down", to=FLOAT), kind=TensorProto.DOUBLE)
    only(made, "dtypes", "x: DOUBLE")
    made = small(helper.make_node("Add", ["x", "c"], ["y"]), kind=TensorProto.DOUBLE, c=np.ones(4))
    only(made, "dtypes", "x: DOUBLE is not a type that TensorRT computes in", "c: DOUBLE")


def test_uint8_only_crosses_the_boundary() -> None:
    cast = helper.make_node("Cast", ["x"], ["f"], name="cast", to=FLOAT)
    turn = helper.make_node("Transpose", ["f"], ["y"], name="turn", perm=[1, 0])
    assert check(small(cast, turn, kind=TensorProto.UINT8)) == []
    turn = helper.make_node("Transpose", ["x"], ["t"], name="turn", perm=[1, 0])
    cast = helper.make_node("Cast", ["t"], ["y"], name="cast", to=FLOAT)
    made = small(turn, cast, kind=TensorProto.UINT8)
    only(made, "dtypes", "Transpose turn: touches x, which is uint8")


QUANTISERS: dict[str, tuple[Callable[[ModelProto], object], str, tuple[str, ...]]] = {
    "input off centre": (
        lambda made: constant(made, "x_zero", np.int8(3)),
        "zero_points",
        ("QuantizeLinear x/Q: its zero point is not 0: 3", "DequantizeLinear x/DQ"),
    ),
    "one weight off centre": (
        lambda made: constant(made, "weight_zero", np.eye(1, qdq_kit.N, 5, dtype=np.int8)[0]),
        "zero_points",
        ("DequantizeLinear weight/DQ: its zero point is not 0: 1 at 5",),
    ),
    "scale of zero": (
        lambda made: constant(made, "x_scale", np.float32(0)),
        "scales",
        ("QuantizeLinear x/Q: its scale is not positive and finite: 0.0",),
    ),
    "negative scale": (
        lambda made: constant(made, "weight_scale", np.full(qdq_kit.N, -1, np.float32)),
        "scales",
        ("DequantizeLinear weight/DQ: its scale is not positive and finite: -1.0 at 0",),
    ),
    "infinite scale": (
        lambda made: constant(made, "x_scale", np.float32(np.inf)),
        "scales",
        ("DequantizeLinear x/DQ", "inf at 0"),
    ),
    "scale that is no number": (
        lambda made: constant(made, "x_scale", np.float32(np.nan)),
        "scales",
        ("QuantizeLinear x/Q", "nan at 0"),
    ),
    "weight along the wrong axis": (
        lambda made: node(made, "weight/DQ").attribute[0].CopyFrom(helper.make_attribute("axis", 0)),
        "weight_axes",
        ("DequantizeLinear weight/DQ: axis 0; for MatMul product it must be 1",),
    ),
    "scales that are too few": (
        lambda made: constant(made, "weight_scale", np.ones(7, np.float32)),
        "weight_axes",
        ("DequantizeLinear weight/DQ: scales of shape (7,) for 96 output channels",),
    ),
    "input with several scales": (
        lambda made: constant(made, "x_scale", np.ones(qdq_kit.K, np.float32)),
        "activations_per_tensor",
        ("QuantizeLinear x/Q: quantises an activation with 64 scales",),
    ),
    "blocks": (
        lambda made: node(made, "x/Q").attribute.append(helper.make_attribute("block_size", 16)),
        "int8_only",
        ("QuantizeLinear x/Q: quantises in blocks",),
    ),
    "type left open": (
        lambda made: node(made, "x/Q").input.pop(),
        "int8_only",
        ("QuantizeLinear x/Q: quantises to uint8",),
    ),
}


@pytest.mark.parametrize(("change", "rule", "parts"), QUANTISERS.values(), ids=QUANTISERS)
def test_quantisers(change: Callable[[ModelProto], object], rule: str, parts: tuple[str, ...]) -> None:
    made = qdq_kit.model(GOOD)
    change(made)
    only(made, rule, *parts)


def test_weight_of_a_transposed_gemm_along_the_wrong_axis() -> None:
    made = qdq_kit.model(Form(opset=20, product="Gemm", rank=2))
    node(made, "weight/DQ").attribute[0].i = 1
    only(made, "weight_axes", "weight/DQ: axis 1; for Gemm product it must be 0")


def test_weight_of_a_convolution_along_the_wrong_axis() -> None:
    made = small(
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"], name="w/DQ", axis=1),
        helper.make_node("Conv", ["x", "f"], ["y"], name="patch"),
        shape=("B", 8, 32, 32),
        w=np.ones((8, 8, 16, 16), np.int8),
        s=np.ones(8, np.float32),
    )
    only(made, "weight_axes", "w/DQ: axis 1; for Conv patch it must be 0")


def test_scales_per_channel_of_what_is_no_weight() -> None:
    made = small(
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"], name="w/DQ", axis=1),
        helper.make_node("Add", ["x", "f"], ["y"], name="add"),
        w=np.ones((1, 4), np.int8),
        s=np.ones(4, np.float32),
    )
    only(made, "weight_axes", "DequantizeLinear w/DQ", "Add add does not read it as its weight")


@pytest.mark.parametrize("kind", [np.uint8, np.int16])
def test_other_types(kind: type[np.generic]) -> None:
    made = qdq_kit.model(Form(opset=21))
    constant(made, "x_zero", kind(0))
    only(made, "int8_only", f"QuantizeLinear x/Q: quantises to {kind.__name__}", version="10.9")


def test_bias_in_int32() -> None:
    made = small(
        helper.make_node("DequantizeLinear", ["b", "s"], ["f"], name="b/DQ"),
        helper.make_node("Add", ["x", "f"], ["y"], name="add"),
        b=np.ones(4, np.int32),
        s=np.float32(1),
    )
    only(made, "int8_only", "DequantizeLinear b/DQ: quantises to int32")


def computed(made: ModelProto, name: str) -> None:
    """Makes a constant a result."""
    made.graph.initializer.add().CopyFrom(next(each for each in made.graph.initializer if each.name == name))
    made.graph.initializer[-1].name = f"{name}_before"
    made.graph.initializer.remove(next(each for each in made.graph.initializer if each.name == name))
    made.graph.node.insert(0, helper.make_node("Identity", [f"{name}_before"], [name], name="made"))


def test_computed_scale_and_zero_point() -> None:
    made = qdq_kit.model(GOOD)
    computed(made, "x_scale")
    only(made, "scales", "QuantizeLinear x/Q: its scale x_scale is computed, not constant")
    made = qdq_kit.model(GOOD)
    computed(made, "weight_zero")
    made = onnx.shape_inference.infer_shapes(made)
    only(made, "zero_points", "DequantizeLinear weight/DQ: its zero point weight_zero is computed, not constant")


def test_scales_in_half_precision() -> None:
    def at(opset: int) -> ModelProto:
        return small(
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="x/Q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="x/DQ"),
            kind=TensorProto.FLOAT16,
            opset=opset,
            s=np.float16(1),
            z=np.int8(0),
        )

    assert check(at(19)) == []
    only(at(18), "scales", "QuantizeLinear x/Q: its scale is not float32, which there is from opset 19 on")


def test_int8_that_is_not_restored() -> None:
    made = qdq_kit.model(GOOD)
    made.graph.node.append(helper.make_node("Transpose", ["x_int8"], ["t"], name="turn"))
    only(made, "activations_per_tensor", "Transpose turn: reads int8 from QuantizeLinear x/Q")


def test_restored_with_another_scale() -> None:
    made = qdq_kit.model(GOOD)
    made.graph.initializer.append(numpy_helper.from_array(np.float32(1), "other"))
    node(made, "x/DQ").input[1] = "other"
    only(made, "activations_per_tensor", "DequantizeLinear x/DQ: restores QuantizeLinear x/Q with another scale")


def attention(tokens: int | str, before: bool = False, behind: bool = False) -> ModelProto:
    """Attention spelt out over (batch, tokens, 4), with int8 in its first product or its second."""
    nodes, q, p = [], "x", "p"
    if before:
        nodes += quantised("x", "xq")
        q = "xq"
    nodes += [
        helper.make_node("Transpose", [q], ["k"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", [q, "k"], ["scores"], name="qk"),
        helper.make_node("Mul", ["scores", "half"], ["scaled"], name="scale"),
        helper.make_node("Softmax", ["scaled"], ["p"], name="softmax"),
    ]
    if behind:
        nodes += quantised("p", "pq")
        p = "pq"
    nodes.append(helper.make_node("MatMul", [p, "x"], ["y"], name="pv"))
    made = small(*nodes, shape=("B", tokens, 4), half=np.float32(0.5), s=np.float32(0.1), z=np.int8(0))
    return onnx.shape_inference.infer_shapes(made)


def quantised(source: str, target: str) -> list[NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [source, "s", "z"], [f"{source}_int8"], name=f"{source}/Q"),
        helper.make_node("DequantizeLinear", [f"{source}_int8", "s", "z"], [target], name=f"{source}/DQ"),
    ]


@pytest.mark.parametrize(("before", "behind"), [(True, False), (False, True), (True, True)])
def test_int8_in_attention(before: bool, behind: bool) -> None:
    assert check(attention(512, before, behind)) == []
    only(attention(576, before, behind), "attention", "Softmax softmax: int8 in attention over 576 tokens", "512")
    only(attention("T", before, behind), "attention", "Softmax softmax", "an unknown number of tokens")


def test_float_attention_may_be_long() -> None:
    assert check(attention(576)) == []


def test_int8_layers_around_attention_are_fine() -> None:
    """The projection before and behind it, which is where int8 pays."""
    made = attention(576)
    made.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.int8), "w"))
    made.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "ws"))
    for each in made.graph.node:
        each.input[:] = ["projected" if name == "x" else name for name in each.input]
    first = [
        *quantised("x", "xq"),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wf"], name="w/DQ", axis=1),
        helper.make_node("MatMul", ["xq", "wf"], ["projected"], name="qkv"),
    ]
    for each in reversed(first):
        made.graph.node.insert(0, each)
    assert check(onnx.shape_inference.infer_shapes(made)) == []


def test_int8_in_an_attention_operator() -> None:
    def over(tokens: int) -> ModelProto:
        nodes = [*quantised("x", "xq"), helper.make_node("Attention", ["xq", "xq", "xq"], ["y"], name="mha")]
        made = small(*nodes, shape=("B", 2, tokens, 4), opset=23, s=np.float32(0.1), z=np.int8(0))
        return onnx.shape_inference.infer_shapes(made)

    assert check(over(256), "10.14") == []
    only(over(576), "attention", "Attention mha: int8 in attention over 576 tokens", version="10.14")


def test_every_rule_has_a_name_and_a_reason() -> None:
    assert all(rule.__doc__ for rule in tensorrt_rules.RULES)
    assert len({rule.__name__ for rule in tensorrt_rules.RULES}) == len(tensorrt_rules.RULES)


def test_tables_agree_with_each_other() -> None:
    assert not tensorrt_rules.OPERATORS & set(tensorrt_rules.OPERATORS_SINCE)
    assert set(tensorrt_rules.WEIGHTS) | set(tensorrt_rules.ATTRIBUTES) <= tensorrt_rules.OPERATORS
    assert list(tensorrt_rules.OPSETS.values()) == sorted(tensorrt_rules.OPSETS.values())
