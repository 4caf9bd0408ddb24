"""A stage's graph up to one of its tensors, without the onnx package: a robot has none.

Requires a graph that :func:`trunkline.runtime.onnx_scan.scan` accepted: nodes in the order they run in, no subgraphs,
one output per name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from trunkline.runtime import onnx_proto as proto
from trunkline.runtime.onnx_graph import declaration, signature
from trunkline.runtime.onnx_nodes import Node, read_graph
from trunkline.runtime.onnx_proto import Element, encode, encode_integer, fields, inside

#: Name of a cut graph's output, which is float32.
OUTPUT = "trunkline/cut"
_INTEGER = 2  # AttributeProto.AttributeType


def on_the_way(graph: bytes, tensor: str) -> list[Node]:
    """Nodes between the graph's inputs and a tensor, in order; the last makes it. Constants are left out."""
    all_nodes = _nodes(graph)
    needed = _needed(all_nodes, tensor)
    known = {declared.name for declared in signature(graph, "inputs")}
    found = []
    for node in all_nodes:
        if known & set(node.inputs) and needed & set(node.outputs):
            known.update(filter(None, node.outputs))
            found.append(node)
    return found


def cut(graph: bytes, tensor: str) -> bytes:
    """The graph that computes one tensor, as float32 under the name ``OUTPUT``, and nothing else.

    Inputs, weights and nodes that the tensor does not depend on are left out.
    """
    needed = _needed(_nodes(graph), tensor)
    return b"".join(
        encode(part.number, b"".join([*_kept(part.value, needed), _cast(tensor), _output()]))
        if part.number == proto.Model.GRAPH
        else part.raw
        for part in fields(memoryview(graph))
    )


def _nodes(graph: bytes) -> Sequence[Node]:
    return read_graph(graph, "a stage").nodes


def _needed(nodes: Sequence[Node], tensor: str) -> set[str]:
    """The tensor, and all that it depends on."""
    needed = {tensor}
    for node in reversed(nodes):
        if needed.intersection(filter(None, node.outputs)):
            needed.update(filter(None, node.inputs))
    return needed


def _kept(graph: memoryview, needed: set[str]) -> Iterator[memoryview]:
    names: Mapping[int, int] = {
        proto.Graph.INITIALIZER: proto.Tensor.NAME,
        proto.Graph.INPUT: proto.Value.NAME,
        proto.Graph.VALUE: proto.Value.NAME,
    }
    for part in fields(graph):
        if part.number == proto.Graph.NODE:
            outputs = {field.text for field in fields(part.value) if field.number == proto.Node.OUTPUT}
            keep = bool(needed & outputs)
        elif part.number in names:
            keep = bytes(inside(part.value, names[part.number])).decode() in needed
        else:
            keep = part.number != proto.Graph.OUTPUT
        if keep:
            yield part.raw


def _cast(tensor: str) -> bytes:
    """A node that turns a tensor of any type into float32."""
    attribute = encode(proto.Attribute.NAME, b"to") + encode_integer(proto.Attribute.INTEGER, Element.FLOAT32)
    attribute += encode_integer(proto.Attribute.KIND, _INTEGER)
    texts = {proto.Node.INPUT: tensor, proto.Node.OUTPUT: OUTPUT, proto.Node.NAME: OUTPUT, proto.Node.OPERATOR: "Cast"}
    named = b"".join(encode(number, text.encode()) for number, text in texts.items())
    return encode(proto.Graph.NODE, named + encode(proto.Node.ATTRIBUTE, attribute))


def _output() -> bytes:
    return encode(proto.Graph.OUTPUT, declaration(OUTPUT, Element.FLOAT32, None))
