from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trunkline.runtime import onnx_graph
from trunkline.runtime.onnx_graph import INLINE_BYTES, Declared, Place, detach, signature, weight_file
from trunkline.runtime.onnx_scan import scan

LARGE = INLINE_BYTES // 4 + 4


def model(sizes: dict[str, tuple[int, ...]]) -> tuple[bytes, bytes]:
    """A graph that adds up tensors of these shapes, each in the weight file, and that file."""
    weights, tensors = b"", []
    for index, (name, shape) in enumerate(sizes.items()):
        content = np.full(shape, index, np.float32).tobytes()
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in {"location": "cpu.weights", "offset": len(weights), "length": len(content)}.items():
            tensor.external_data.add(key=key, value=str(value))
        weights += content
        tensors.append(tensor)
    tensors.append(numpy_helper.from_array(np.zeros(1, np.float32), "inside"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Sum", ["x", "inside", *sizes], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return made.SerializeToString(), weights


def detached(sizes: dict[str, tuple[int, ...]]) -> tuple[onnx.ModelProto, onnx_graph.Detached, bytes]:
    graph, weights = model(sizes)
    scan(graph, opset=23, weights="cpu.weights", weights_bytes=len(weights), where="here")
    assert weight_file(graph) == "cpu.weights"
    result = detach(graph, memoryview(weights))
    assert weight_file(result.graph) is None
    return onnx.load_from_string(result.graph), result, weights


def test_large_tensors_become_inputs_and_small_ones_move_in() -> None:
    made, result, weights = detached({"small": (3,), "large": (2, LARGE), "scalar": ()})
    assert result.inputs == {"large": Place(12, 8 * LARGE)}
    declared = {each.name: each.type.tensor_type for each in made.graph.input}
    assert set(declared) == {"x", "large"}
    kind = declared["large"]
    assert kind.elem_type == TensorProto.FLOAT
    assert [size.dim_value for size in kind.shape.dim] == [2, LARGE]
    inside = {each.name: numpy_helper.to_array(each) for each in made.graph.initializer}
    assert set(inside) == {"inside", "small", "scalar"}
    np.testing.assert_array_equal(inside["small"], np.zeros(3))
    np.testing.assert_array_equal(inside["scalar"], 2)
    place = result.inputs["large"]
    assert weights[place.offset : place.end] == np.full((2, LARGE), 1, np.float32).tobytes()


def test_all_else_stays_as_it_was() -> None:
    graph, _ = model({"small": (3,)})
    made, _, _ = detached({"small": (3,)})
    before = onnx.load_from_string(graph)
    assert made.graph.node == before.graph.node
    assert made.graph.output == before.graph.output
    assert (made.ir_version, made.opset_import) == (before.ir_version, before.opset_import)


@pytest.mark.parametrize("size", [INLINE_BYTES // 4, INLINE_BYTES // 4 + 1])
def test_the_limit(size: int) -> None:
    _, result, _ = detached({"w": (size,)})
    assert bool(result.inputs) == (size * 4 > INLINE_BYTES)


def test_without_a_weight_file() -> None:
    graph, _ = model({})
    assert weight_file(graph) is None
    assert detach(graph, memoryview(b"")).graph == graph


PACKED = bytes([0x0A, 2, 2, 5])  # field 1, two bytes: the integers 2 and 5
SEPARATE = bytes([0x08, 2, 0x08, 5])  # field 1, an integer, twice


@pytest.mark.parametrize("dims", [PACKED, SEPARATE], ids=["packed", "separate"])
def test_both_ways_to_write_a_shape(dims: bytes) -> None:
    name, declared = onnx_graph._declared(memoryview(dims + bytes([0x10, 1, 0x42, 1]) + b"w"))
    kind = onnx.ValueInfoProto.FromString(declared).type.tensor_type
    assert (name, kind.elem_type) == ("w", TensorProto.FLOAT)
    assert [size.dim_value for size in kind.shape.dim] == [2, 5]


def test_signature() -> None:
    graph, _ = model({"small": (3,)})
    assert signature(graph, "inputs") == [Declared("x", "float32", ("N", 1))]
    assert signature(graph, "outputs") == [Declared("y", "float32", ())]


def test_signature_of_odd_declarations() -> None:
    made = onnx.load_from_string(model({"small": (3,)})[0])
    nameless = helper.make_tensor_value_info("a", TensorProto.INT64, [None, 3])
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1])
    constant = helper.make_tensor_value_info("inside", TensorProto.FLOAT, [1])
    made.graph.input.extend([nameless, helper.make_tensor_value_info("d", TensorProto.DOUBLE, []), constant])
    assert signature(made.SerializeToString(), "inputs")[1:] == [
        Declared("a", "int64", ("None", 3)),
        Declared("d", "11", ()),
    ]
    made.graph.output.extend([sequence, onnx.ValueInfoProto()])
    assert [each.name for each in signature(made.SerializeToString(), "outputs")] == ["y", "s", ""]
