"""Reads and rewrites a checked ONNX graph, without the onnx package, for back ends that need help with it.

:func:`signature` is for libraries that do not tell the letters of varying dimensions, or drop inputs that nothing uses.

:func:`detach` is for libraries that follow paths to weights from a graph *file* only. A checked graph is bytes in
memory, and writing it down again would not do: the bundle may be read-only, and a file elsewhere may not point into it.
So tensors that lie in the weight file become inputs of the graph, for the back end to bind to mapped memory. Small ones
are put into the graph instead, since readers look at the constants they consist of, such as shapes and scales.

Requires a graph that :func:`trunkline.runtime.onnx_scan.scan` accepted, with its weight file; the same rules hold here
(each field once, raw bytes, decimal offsets), and are not checked again. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from trunkline.runtime.onnx_scan import varint

#: Tensors of at most so many bytes are put into the graph.
INLINE_BYTES = 64 << 10

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 5, 11, 12
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 2, 8, 9, 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_TYPE_ELEMENT, _TENSOR_TYPE_SHAPE = 1, 2
_SHAPE_DIMENSION = 1
_DIMENSION_SIZE, _DIMENSION_LETTER = 1, 2

_VARINT, _BYTES = 0, 2

#: numpy's names of the types that may cross a stage's boundary, by TensorProto.DataType.
_DTYPES = {1: "float32", 2: "uint8", 7: "int64"}


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
    field = _GRAPH_INPUT if role == "inputs" else _GRAPH_OUTPUT
    declared, constants = [], set()
    for number, part in _fields(_inside(memoryview(graph), _MODEL_GRAPH)):
        if number == field:
            declared.append(_value(part.value))
        elif number == _GRAPH_INITIALIZER:
            constants.add(_declared(part.value)[0])
    return [each for each in declared if each.name not in constants]


def weight_file(graph: bytes) -> str | None:
    """Name of the one file that a graph's external tensors lie in, None if it has none."""
    for number, part in _fields(_inside(memoryview(graph), _MODEL_GRAPH)):
        if number == _GRAPH_INITIALIZER and (location := _external(part.value).get("location")):
            return location
    return None


def detach(graph: bytes, weights: memoryview) -> Detached:
    """Takes the weight file out of a graph.

    Args:
        graph: the ONNX file.
        weights: content of the weight file.
    """
    inputs: dict[str, Place] = {}
    pieces = []
    for number, part in _fields(memoryview(graph)):
        pieces.append(
            _field(_MODEL_GRAPH, b"".join(_without_weights(part.value, weights, inputs)))
            if number == _MODEL_GRAPH
            else part.raw
        )
    return Detached(b"".join(pieces), inputs)


@dataclass(frozen=True)
class _Part:
    """One field: all its bytes, those of its value if it has a length, and the integer if it is one."""

    raw: memoryview
    value: memoryview
    integer: int | None


def _without_weights(graph: memoryview, weights: memoryview, inputs: dict[str, Place]) -> Iterator[bytes | memoryview]:
    for number, part in _fields(graph):
        external = _external(part.value) if number == _GRAPH_INITIALIZER else {}
        if not external:
            yield part.raw
            continue
        place = Place(int(external.get("offset", 0)), int(external["length"]))
        if place.length <= INLINE_BYTES:
            yield _field(_GRAPH_INITIALIZER, _inlined(part.value, weights[place.offset : place.end]))
        else:
            name, declaration = _declared(part.value)
            inputs[name] = place
            yield _field(_GRAPH_INPUT, declaration)


def _inlined(tensor: memoryview, content: memoryview) -> bytes:
    kept = [part.raw for number, part in _fields(tensor) if number not in (_TENSOR_EXTERNAL, _TENSOR_LOCATION)]
    return b"".join([*kept, _field(_TENSOR_RAW, content)])


def _declared(tensor: memoryview) -> tuple[str, bytes]:
    """A tensor's name, and the declaration of an input of its name, type and shape."""
    name, element, sizes = b"", 0, []
    for number, part in _fields(tensor):
        if number == _TENSOR_NAME:
            name = bytes(part.value)
        elif number == _TENSOR_TYPE:
            element = part.integer or 0
        elif number == _TENSOR_DIMS:
            sizes += list(_packed(part.value)) if part.integer is None else [part.integer]
    shape = b"".join(_field(_SHAPE_DIMENSION, _number(_DIMENSION_SIZE, size)) for size in sizes)
    kind = _number(_TENSOR_TYPE_ELEMENT, element) + _field(_TENSOR_TYPE_SHAPE, shape)
    return name.decode(), _field(_VALUE_NAME, name) + _field(_VALUE_TYPE, _field(_TYPE_TENSOR, kind))


def _value(value: memoryview) -> Declared:
    """Anything but a tensor has type 0 and no dimensions."""
    tensor = _inside(_inside(value, _VALUE_TYPE), _TYPE_TENSOR)
    element = next((part.integer or 0 for number, part in _fields(tensor) if number == _TENSOR_TYPE_ELEMENT), 0)
    sizes = _fields(_inside(tensor, _TENSOR_TYPE_SHAPE))
    shape = tuple(_dimension(part.value) for number, part in sizes if number == _SHAPE_DIMENSION)
    return Declared(bytes(_inside(value, _VALUE_NAME)).decode(), _DTYPES.get(element, str(element)), shape)


def _inside(message: memoryview, wanted: int) -> memoryview:
    """The bytes of a field, empty if it is not there."""
    return next((part.value for number, part in _fields(message) if number == wanted), message[:0])


def _dimension(dimension: memoryview) -> int | str:
    for number, part in _fields(dimension):
        if number == _DIMENSION_SIZE and part.integer is not None:
            return part.integer
        if number == _DIMENSION_LETTER and part.value:
            return bytes(part.value).decode()
    return "None"


def _external(tensor: memoryview) -> dict[str, str]:
    """Where a tensor lies; empty if its bytes are in the graph."""
    entries = [
        {key: bytes(each.value).decode() for key, each in _fields(part.value)}
        for number, part in _fields(tensor)
        if number == _TENSOR_EXTERNAL
    ]
    return {entry[_ENTRY_KEY]: entry.get(_ENTRY_VALUE, "") for entry in entries}


def _fields(message: memoryview) -> Iterator[tuple[int, _Part]]:
    position = 0
    while position < len(message):
        start = position
        key, position = varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            integer, position = varint(message, position)
            yield number, _Part(message[start:position], message[:0], integer)
            continue
        size = {1: 8, 5: 4}.get(wire, 0)
        if wire == _BYTES:
            size, position = varint(message, position)
        yield number, _Part(message[start : position + size], message[position : position + size], None)
        position += size


def _packed(value: memoryview) -> Iterator[int]:
    position = 0
    while position < len(value):
        number, position = varint(value, position)
        yield number


def _field(number: int, content: bytes | memoryview) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + bytes(content)


def _number(number: int, value: int) -> bytes:
    return _encoded(number << 3 | _VARINT) + _encoded(value)


def _encoded(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
