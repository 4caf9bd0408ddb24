"""Reads and rewrites a checked ONNX graph, without the onnx package, for back ends that need help with it.

:func:`signature` is for libraries that do not tell the letters of varying dimensions, or drop inputs that nothing uses.

:func:`detach` is for libraries that follow paths to weights from a graph *file* only. A checked graph is bytes in
memory, and writing it down again would not do: the bundle may be read-only, and a file elsewhere may not point into it.
So tensors that lie in the weight file become inputs of the graph, for the back end to bind to mapped memory. Small ones
are put into the graph instead, since readers look at the constants they consist of, such as shapes and scales.

Requires a graph that :func:`trunkline.runtime.onnx_scan.scan` accepted, with its weight file; the same rules hold here
(each field once, raw bytes, decimal offsets), and are not checked again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from trunkline.runtime import onnx_proto as proto
from trunkline.runtime.onnx_proto import Element, encode, encode_integer, fields, inside

#: Tensors of at most so many bytes are put into the graph.
INLINE_BYTES = 64 << 10

#: numpy's names of the types that may cross a stage's boundary.
_DTYPES: Mapping[int, str] = {Element.FLOAT32: "float32", Element.UINT8: "uint8", Element.INT64: "int64"}


@dataclass(frozen=True)
class Declared:
    """An input or output as a graph declares it. A dimension without size and letter is "None"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Place:
    """Where in the weight file a tensor lies, in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True)
class Detached:
    """A graph without its weight file.

    Attributes:
        graph: ONNX bytes.
        inputs: by name, what the inputs that were tensors must be bound to.
    """

    graph: bytes
    inputs: Mapping[str, Place]


def signature(graph: bytes, role: Literal["inputs", "outputs"]) -> list[Declared]:
    """The inputs or outputs that a graph declares, in order; initializers that it lists among them are left out."""
    number = proto.Graph.INPUT if role == "inputs" else proto.Graph.OUTPUT
    declared, constants = [], set()
    for part in fields(proto.body(graph)):
        if part.number == number:
            declared.append(_value(part.value))
        elif part.number == proto.Graph.INITIALIZER:
            constants.add(_declared(part.value)[0])
    return [each for each in declared if each.name not in constants]


def weight_file(graph: bytes) -> str | None:
    """Name of the one file that a graph's external tensors lie in, None if it has none."""
    for part in fields(proto.body(graph)):
        if part.number == proto.Graph.INITIALIZER and (location := _external(part.value).get("location")):
            return location
    return None


def detach(graph: bytes, weights: memoryview) -> Detached:
    """Takes the weight file out of a graph.

    Args:
        graph: the ONNX file.
        weights: content of the weight file.
    """
    inputs: dict[str, Place] = {}
    pieces = [
        encode(part.number, b"".join(_without_weights(part.value, weights, inputs)))
        if part.number == proto.Model.GRAPH
        else part.raw
        for part in fields(memoryview(graph))
    ]
    return Detached(b"".join(pieces), inputs)


def _without_weights(graph: memoryview, weights: memoryview, inputs: dict[str, Place]) -> Iterator[bytes | memoryview]:
    for part in fields(graph):
        external = _external(part.value) if part.number == proto.Graph.INITIALIZER else {}
        if not external:
            yield part.raw
            continue
        place = Place(int(external.get("offset", 0)), int(external["length"]))
        if place.length <= INLINE_BYTES:
            yield encode(proto.Graph.INITIALIZER, _inlined(part.value, weights[place.offset : place.end]))
        else:
            name, declaration = _declared(part.value)
            inputs[name] = place
            yield encode(proto.Graph.INPUT, declaration)


def _inlined(tensor: memoryview, content: memoryview) -> bytes:
    outside = (proto.Tensor.EXTERNAL, proto.Tensor.LOCATION)
    kept = [part.raw for part in fields(tensor) if part.number not in outside]
    return b"".join([*kept, encode(proto.Tensor.RAW, content)])


def _declared(tensor: memoryview) -> tuple[str, bytes]:
    """A tensor's name, and the declaration of an input of its name, type and shape."""
    name, element, sizes = "", 0, []
    for part in fields(tensor):
        if part.number == proto.Tensor.NAME:
            name = part.text
        elif part.number == proto.Tensor.ELEMENT:
            element = part.integer or 0
        elif part.number == proto.Tensor.DIMENSIONS:
            sizes += part.integers
    return name, declaration(name, element, sizes)


def declaration(name: str, element: int, sizes: list[int] | None) -> bytes:
    """An input or output of a graph, as a message; without sizes its shape is open."""
    kind = encode_integer(proto.TensorType.ELEMENT, element)
    if sizes is not None:
        dimensions = [encode(proto.Shape.DIMENSION, encode_integer(proto.Dimension.SIZE, size)) for size in sizes]
        kind += encode(proto.TensorType.SHAPE, b"".join(dimensions))
    return encode(proto.Value.NAME, name.encode()) + encode(proto.Value.TYPE, encode(proto.Type.TENSOR, kind))


def _value(value: memoryview) -> Declared:
    """Anything but a tensor has type 0 and no dimensions."""
    tensor = inside(value, proto.Value.TYPE, proto.Type.TENSOR)
    element = next((part.integer or 0 for part in fields(tensor) if part.number == proto.TensorType.ELEMENT), 0)
    sizes = fields(inside(tensor, proto.TensorType.SHAPE))
    shape = tuple(_dimension(part.value) for part in sizes if part.number == proto.Shape.DIMENSION)
    name = bytes(inside(value, proto.Value.NAME)).decode()
    return Declared(name, _DTYPES.get(element, str(element)), shape)


def _dimension(dimension: memoryview) -> int | str:
    for part in fields(dimension):
        if part.number == proto.Dimension.SIZE and part.integer is not None:
            return part.integer
        if part.number == proto.Dimension.LETTER and part.value:
            return part.text
    return "None"


def _external(tensor: memoryview) -> dict[str, str]:
    """Where a tensor lies; empty if its bytes are in the graph."""
    entries = [
        {field.number: field.text for field in fields(part.value)}
        for part in fields(tensor)
        if part.number == proto.Tensor.EXTERNAL
    ]
    return {entry[proto.Entry.KEY]: entry.get(proto.Entry.VALUE, "") for entry in entries}
