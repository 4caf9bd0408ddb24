"""Nodes and constants of a checked ONNX graph as records, without the onnx package.

Requires a graph that :func:`trunkline.runtime.onnx_scan.scan` accepted; its rules are not checked again. What the scan
does not look into (names, attributes) may still be malformed, and is refused here. Weights are not read: of a tensor in
the weight file only name, type and shape are known.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from trunkline.runtime import onnx_proto as proto
from trunkline.runtime.errors import BundleError
from trunkline.runtime.onnx_proto import ITEM_BYTES, Element, fields

#: Constants of at most so many integers are read; they are shapes, axes and positions.
MAX_INTEGERS = 64


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

    name: str
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
        return _graph(proto.body(model))
    except (IndexError, ValueError) as error:
        raise BundleError(
            "a stage's graph is malformed", where=where, found=str(error), fix="export the bundle again"
        ) from error


def _graph(message: memoryview) -> Graph:
    nodes, constants = [], {}
    for part in fields(message):
        if part.number == proto.Graph.NODE:
            nodes.append(_node(part.value))
        elif part.number == proto.Graph.INITIALIZER:
            tensor = _tensor(part.value)
            constants[tensor.name] = tensor
    return Graph(tuple(nodes), constants)


def _node(message: memoryview) -> Node:
    inputs, outputs, name, operator = [], [], "", ""
    integers: dict[str, tuple[int, ...]] = {}
    texts: dict[str, str] = {}
    tensor = None
    for part in fields(message):
        if part.number == proto.Node.INPUT:
            inputs.append(part.text)
        elif part.number == proto.Node.OUTPUT:
            outputs.append(part.text)
        elif part.number == proto.Node.NAME:
            name = part.text
        elif part.number == proto.Node.OPERATOR:
            operator = part.text
        elif part.number == proto.Node.ATTRIBUTE:
            tensor = _attribute(part.value, integers, texts) or tensor
    return Node(name, operator, tuple(inputs), tuple(outputs), integers, texts, tensor)


def _attribute(message: memoryview, integers: dict[str, tuple[int, ...]], texts: dict[str, str]) -> Tensor | None:
    """Puts an attribute where it belongs; a tensor is returned."""
    name, found, text, tensor = "", [], None, None
    for part in fields(message):
        if part.number == proto.Attribute.NAME:
            name = part.text
        elif part.number in (proto.Attribute.INTEGER, proto.Attribute.INTEGERS):
            found += part.integers
        elif part.number == proto.Attribute.TEXT:
            text = part.text
        elif part.number == proto.Attribute.TENSOR:
            tensor = _tensor(part.value)
    if found:
        integers[name] = tuple(found)
    if text is not None:
        texts[name] = text
    return tensor


def _tensor(message: memoryview) -> Tensor:
    name, element, raw = "", 0, b""
    shape: list[int] = []
    for part in fields(message):
        if part.number == proto.Tensor.NAME:
            name = part.text
        elif part.number == proto.Tensor.ELEMENT:
            element = part.integer or 0
        elif part.number == proto.Tensor.DIMENSIONS:
            shape += part.integers
        elif part.number == proto.Tensor.RAW and len(part.value) <= 8 * MAX_INTEGERS:
            raw = bytes(part.value)
    count = math.prod(shape)
    known = element == Element.INT64 and len(raw) == 8 * count
    return Tensor(name, element, tuple(shape), struct.unpack(f"<{count}q", raw) if known else None)
