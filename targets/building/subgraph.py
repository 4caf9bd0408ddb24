"""A stage's graph up to one of its tensors, without the onnx package: a robot has none.

Requires a graph that :func:`trunkline.runtime.onnx_scan.scan` accepted: nodes in the order they run in, no subgraphs,
one output per name. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trunkline.runtime.onnx_graph import signature
from trunkline.runtime.onnx_scan import varint

#: Name of a cut graph's output, which is float32.
OUTPUT = "trunkline/cut"

_MODEL_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 3, 4, 5
_TENSOR_NAME, _VALUE_NAME, _VALUE_TYPE = 8, 1, 2
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER, _ATTRIBUTE_TYPE = 1, 3, 20
_INTEGER, _FLOAT32 = 2, 1
_TYPE_TENSOR, _ELEMENT = 1, 1
_VARINT, _BYTES = 0, 2


@dataclass(frozen=True)
class Node:
    """One operation: its name, operator, and the tensors it reads and makes."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def nodes(graph: bytes) -> list[Node]:
    """Every node, in the order they run in."""
    return [_node(value) for number, _, value in _fields(_body(graph)) if number == _NODE]


def on_the_way(graph: bytes, tensor: str) -> list[Node]:
    """Nodes between the graph's inputs and a tensor, in order; the last makes it. Constants are left out."""
    all_nodes = nodes(graph)
    needed = _needed(all_nodes, tensor)
    known = {declared.name for declared in signature(graph, "inputs")}
    found = []
    for node in all_nodes:
        if known & set(node.inputs) and needed & set(node.outputs):
            known |= set(node.outputs)
            found.append(node)
    return found


def cut(graph: bytes, tensor: str) -> bytes:
    """The graph that computes one tensor, as float32 under the name ``OUTPUT``, and nothing else.

    Inputs, weights and nodes that the tensor does not depend on are left out.
    """
    needed = _needed(nodes(graph), tensor)
    pieces = []
    for number, raw, value in _fields(memoryview(graph)):
        if number != _MODEL_GRAPH:
            pieces.append(bytes(raw))
            continue
        kept = [bytes(part) for part in _kept(value, needed)]
        pieces.append(_field(_MODEL_GRAPH, b"".join([*kept, _cast(tensor), _output()])))
    return b"".join(pieces)


def _needed(all_nodes: list[Node], tensor: str) -> set[str]:
    """The tensor, and all that it depends on."""
    needed = {tensor}
    for node in reversed(all_nodes):
        if needed & set(node.outputs):
            needed |= set(node.inputs)
    return needed


def _kept(graph: memoryview, needed: set[str]) -> Iterator[memoryview]:
    named = {_INITIALIZER: _TENSOR_NAME, _INPUT: _VALUE_NAME, _VALUE: _VALUE_NAME}
    for number, raw, value in _fields(graph):
        if number == _NODE:
            keep = bool(needed & set(_node(value).outputs))
        elif number in named:
            keep = _name(value, named[number]) in needed
        else:
            keep = number != _OUTPUT
        if keep:
            yield raw


def _cast(tensor: str) -> bytes:
    """A node that turns a tensor of any type into float32."""
    attribute = _field(_ATTRIBUTE_NAME, b"to") + _number(_ATTRIBUTE_INTEGER, _FLOAT32)
    attribute += _number(_ATTRIBUTE_TYPE, _INTEGER)
    texts = {_NODE_INPUT: tensor, _NODE_OUTPUT: OUTPUT, _NODE_NAME: OUTPUT, _NODE_OPERATOR: "Cast"}
    named = b"".join(_field(number, text.encode()) for number, text in texts.items())
    return _field(_NODE, named + _field(_NODE_ATTRIBUTE, attribute))


def _output() -> bytes:
    kind = _field(_TYPE_TENSOR, _number(_ELEMENT, _FLOAT32))
    return _field(_OUTPUT, _field(_VALUE_NAME, OUTPUT.encode()) + _field(_VALUE_TYPE, kind))


def _body(graph: bytes) -> memoryview:
    return next(value for number, _, value in _fields(memoryview(graph)) if number == _MODEL_GRAPH)


def _node(message: memoryview) -> Node:
    texts: dict[int, list[str]] = {number: [] for number in (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATOR)}
    for number, _, value in _fields(message):
        if number in texts:
            texts[number].append(bytes(value).decode())
    inputs, outputs, name, operator = texts.values()
    return Node("".join(name), "".join(operator), _real(inputs), _real(outputs))


def _real(names: Iterable[str]) -> tuple[str, ...]:
    """Inputs that may be left out are written as empty names."""
    return tuple(name for name in names if name)


def _name(message: memoryview, field: int) -> str:
    return next((bytes(value).decode() for number, _, value in _fields(message) if number == field), "")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Number, all bytes, and content of every field; numbers of the message itself have no content."""
    position = 0
    while position < len(message):
        start = position
        key, position = varint(message, position)
        wire, size = key & 7, 0
        if wire == _VARINT:
            _, position = varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(wire, 0)
            if wire == _BYTES:
                size, position = varint(message, position)
        yield key >> 3, message[start : position + size], message[position : position + size]
        position += size


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
