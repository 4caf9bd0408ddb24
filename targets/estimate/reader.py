"""Nodes and constants of a checked ONNX graph, without the onnx package.

Requires a graph that :func:`trunkline.runtime.onnx_scan.scan` accepted; its rules are not checked again. What the scan
does not look into (names, attributes) may still be malformed, and is refused here. Weights are not read: of a tensor in
the weight file only name, type and shape are known. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from trunkline.runtime.errors import BundleError
from trunkline.runtime.onnx_scan import ITEM_BYTES

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER, _ATTRIBUTE_TEXT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_INTEGERS = 1, 3, 4, 5, 8
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9

#: Constants of at most so many integers are read; they are shapes, axes and positions.
MAX_INTEGERS = 64
FLOAT32, UINT8, INT8, INT64, BOOL, FLOAT16 = 1, 2, 3, 7, 9, 10
_SIGNED = 1 << 63

Bytes = memoryview


@dataclass(frozen=True)
class Tensor:
    """A constant. ``element`` is a TensorProto.DataType; ``integers`` are its values if it is int64 and small."""

    name: str
    element: int
    shape: tuple[int, ...]
    integers: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * ITEM_BYTES[self.element]


@dataclass(frozen=True)
class Node:
    """One operator. An input that is left out has an empty name."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    tensor: Tensor | None = None

    def integer(self, name: str, default: int) -> int:
        """An attribute that is one integer."""
        return self.integers.get(name, (default,))[0]


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they run, and constants by name."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]


def read_graph(model: bytes, where: object) -> Graph:
    """A checked graph as records.

    Args:
        model: the ONNX file.
        where: bundle and file, for messages.

    Raises:
        BundleError: something in it cannot be read.
    """
    try:
        return _graph(_inside(memoryview(model), _MODEL_GRAPH))
    except (IndexError, ValueError) as error:
        raise BundleError(
            "a stage's graph is malformed", where=where, found=str(error), fix="export the bundle again"
        ) from error


def _graph(message: Bytes) -> Graph:
    nodes, constants = [], {}
    for number, value in _fields(message):
        if number == _GRAPH_NODE:
            nodes.append(_node(_message(value)))
        elif number == _GRAPH_INITIALIZER:
            tensor = _tensor(_message(value))
            constants[tensor.name] = tensor
    return Graph(tuple(nodes), constants)


def _node(message: Bytes) -> Node:
    inputs, outputs, operator = [], [], ""
    integers: dict[str, tuple[int, ...]] = {}
    texts: dict[str, str] = {}
    tensor = None
    for number, value in _fields(message):
        if number == _NODE_INPUT:
            inputs.append(_text(value))
        elif number == _NODE_OUTPUT:
            outputs.append(_text(value))
        elif number == _NODE_OPERATOR:
            operator = _text(value)
        elif number == _NODE_ATTRIBUTE:
            tensor = _attribute(_message(value), integers, texts) or tensor
    return Node(operator, tuple(inputs), tuple(outputs), integers, texts, tensor)


def _attribute(message: Bytes, integers: dict[str, tuple[int, ...]], texts: dict[str, str]) -> Tensor | None:
    """Puts an attribute where it belongs; a tensor is returned."""
    name, found, text, tensor = "", [], None, None
    for number, value in _fields(message):
        if number == _ATTRIBUTE_NAME:
            name = _text(value)
        elif number in (_ATTRIBUTE_INTEGER, _ATTRIBUTE_INTEGERS):
            found += _integers(value)
        elif number == _ATTRIBUTE_TEXT:
            text = _text(value)
        elif number == _ATTRIBUTE_TENSOR:
            tensor = _tensor(_message(value))
    if found:
        integers[name] = tuple(found)
    if text is not None:
        texts[name] = text
    return tensor


def _tensor(message: Bytes) -> Tensor:
    name, element, raw = "", 0, b""
    shape: list[int] = []
    for number, value in _fields(message):
        if number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_TYPE:
            element = _integer(value)
        elif number == _TENSOR_DIMS:
            shape += _integers(value)
        elif number == _TENSOR_RAW and len(_message(value)) <= 8 * MAX_INTEGERS:
            raw = bytes(_message(value))
    count = math.prod(shape)
    known = element == INT64 and len(raw) == 8 * count
    return Tensor(name, element, tuple(shape), struct.unpack(f"<{count}q", raw) if known else None)


def _inside(message: Bytes, wanted: int) -> Bytes:
    return next((_message(value) for number, value in _fields(message) if number == wanted), message[:0])


def _fields(message: Bytes) -> Iterator[tuple[int, int | Bytes]]:
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        wire = key & 7
        if wire == 0:
            integer, position = _varint(message, position)
            yield key >> 3, integer
            continue
        size = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            size, position = _varint(message, position)
        yield key >> 3, message[position : position + size]
        position += size


def _integers(value: int | Bytes) -> list[int]:
    """One integer, or several packed ones."""
    if isinstance(value, int):
        return [_signed(value)]
    result, position = [], 0
    while position < len(value):
        item, position = _varint(value, position)
        result.append(_signed(item))
    return result


def _signed(value: int) -> int:
    return value - 2 * _SIGNED if value >= _SIGNED else value


def _integer(value: int | Bytes) -> int:
    return _signed(value) if isinstance(value, int) else 0


def _message(value: int | Bytes) -> Bytes:
    return memoryview(b"") if isinstance(value, int) else value


def _text(value: int | Bytes) -> str:
    return "" if isinstance(value, int) else bytes(value).decode()


def _varint(message: Bytes, position: int) -> tuple[int, int]:
    """The integer at a position of a message, and the position after it."""
    result = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & (2 * _SIGNED - 1), position
    raise ValueError("an integer is too long")
