"""Nodes and constants as the onnx package reads them, for every graph of an exported bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as some
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests import qdq_kit
from tests.qdq_kit import Form
from trunkline.runtime import onnx_proto as proto
from trunkline.runtime.errors import BundleError
from trunkline.runtime.onnx_nodes import Node, Tensor, read_graph
from trunkline.runtime.onnx_proto import WireError, encode, encode_integer, fields, inside, varint


def expected_node(node: onnx.NodeProto) -> Node:
    integers = {each.name: (each.i,) for each in node.attribute if each.type == AttributeProto.INT}
    integers |= {each.name: tuple(each.ints) for each in node.attribute if each.type == AttributeProto.INTS}
    texts = {each.name: each.s.decode() for each in node.attribute if each.type == AttributeProto.STRING}
    tensors = [expected_tensor(each.t) for each in node.attribute if each.type == AttributeProto.TENSOR]
    return Node(
        node.name, node.op_type, tuple(node.input), tuple(node.output), integers, texts, tensors[0] if tensors else None
    )


def expected_tensor(tensor: onnx.TensorProto) -> Tensor:
    known = tensor.data_type == TensorProto.INT64 and tensor.data_location != TensorProto.EXTERNAL
    values = tuple(numpy_helper.to_array(tensor).ravel().tolist()) if known else None
    return Tensor(tensor.name, tensor.data_type, tuple(tensor.dims), values)


def test_every_stage_is_read_as_onnx_reads_it(bundle: Path) -> None:
    graphs = sorted(bundle.rglob("*.onnx"))
    assert len(graphs) >= 4
    for path in graphs:
        model = onnx.load_model(path, load_external_data=False)
        found = read_graph(path.read_bytes(), path)
        assert list(found.nodes) == [expected_node(each) for each in model.graph.node]
        assert found.constants == {each.name: expected_tensor(each) for each in model.graph.initializer}


def test_a_quantised_graph() -> None:
    model = qdq_kit.model(Form(opset=20))
    found = read_graph(model.SerializeToString(), "here")
    assert list(found.nodes) == [expected_node(each) for each in model.graph.node]
    assert {each.name: each.nbytes for each in found.constants.values()} == {
        each.name: numpy_helper.to_array(each).nbytes for each in model.graph.initializer
    }


def test_negative_and_packed_integers() -> None:
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[2, 0, 1])
    last = helper.make_node("Softmax", ["y"], ["z"], axis=-1)
    constant = numpy_helper.from_array(np.array([-1, 0, 1 << 40], np.int64), "sizes")
    model = helper.make_model(helper.make_graph([node, last], "g", [], [], [constant]))
    found = read_graph(model.SerializeToString(), "here")
    assert found.nodes[0].integers == {"perm": (2, 0, 1)}
    assert found.nodes[1].integer("axis", 0) == -1
    assert found.nodes[1].integer("absent", 7) == 7
    assert found.constants["sizes"].integers == (-1, 0, 1 << 40)


def test_names_that_are_no_text_are_refused() -> None:
    node = encode(proto.Node.OPERATOR, b"Add") + encode(proto.Node.OUTPUT, b"\xff")
    graph = encode(proto.Model.GRAPH, encode(proto.Graph.NODE, node))
    with pytest.raises(BundleError, match="a stage's graph is malformed"):
        read_graph(graph, "here")


Value = some.one_of(some.binary(max_size=200), some.integers(0, (1 << 64) - 1))
Written = some.tuples(some.integers(1, 1 << 20), Value)


@given(some.lists(Written, max_size=8))
def test_what_is_written_is_read(written: list[tuple[int, bytes | int]]) -> None:
    pieces = [
        encode_integer(number, value) if isinstance(value, int) else encode(number, value) for number, value in written
    ]
    found = list(fields(memoryview(b"".join(pieces))))
    assert [(each.number, bytes(each.raw)) for each in found] == [
        (number, piece) for (number, _), piece in zip(written, pieces, strict=True)
    ]
    assert [each.integer if each.integer is not None else bytes(each.value) for each in found] == [
        value for _, value in written
    ]


def test_a_path_through_messages() -> None:
    message = memoryview(encode(1, encode(2, b"first")) + encode(1, encode(2, b"second")))
    assert bytes(inside(message, 1, 2)) == b"first"
    assert bytes(inside(message, 1, 3)) == b""
    assert bytes(inside(message, 9, 2)) == b""


def test_integers_of_more_than_64_bits() -> None:
    assert varint(memoryview(b"\xff" * 9 + b"\x01"), 0) == ((1 << 64) - 1, 10)
    for content in (b"\xff" * 9 + b"\x02", b"\x80" * 11):
        with pytest.raises(WireError):
            varint(memoryview(content), 0)
    with pytest.raises(IndexError):
        varint(memoryview(b"\x80"), 0)
