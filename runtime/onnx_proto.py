"""ONNX files as protobuf messages: field numbers, and the wire format, without the onnx package.

Reading trusts the file: it must have passed :func:`trunkline.runtime.onnx_scan.scan`, which looks at every byte with
the distrust that a file from outside deserves, and takes only field numbers and integers from here.

The wire format is documented at protobuf.dev/programming-guides/encoding; field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum


class Model(IntEnum):
    GRAPH = 7
    OPSET = 8
    TRAINING = 20
    FUNCTIONS = 25


class Graph(IntEnum):
    NODE = 1
    INITIALIZER = 5
    INPUT = 11
    OUTPUT = 12
    VALUE = 13
    SPARSE = 15


class Node(IntEnum):
    INPUT = 1
    OUTPUT = 2
    NAME = 3
    OPERATOR = 4
    ATTRIBUTE = 5
    DOMAIN = 7


class Attribute(IntEnum):
    NAME = 1
    INTEGER = 3
    TEXT = 4
    TENSOR = 5
    GRAPH = 6
    INTEGERS = 8
    TENSORS = 10
    GRAPHS = 11
    KIND = 20
    SPARSE = 22
    SPARSES = 23


class Tensor(IntEnum):
    DIMENSIONS = 1
    ELEMENT = 2
    NAME = 8
    RAW = 9
    EXTERNAL = 13
    LOCATION = 14


class Entry(IntEnum):
    KEY = 1
    VALUE = 2


class Value(IntEnum):
    NAME = 1
    TYPE = 2


class Type(IntEnum):
    TENSOR = 1


class TensorType(IntEnum):
    ELEMENT = 1
    SHAPE = 2


class Shape(IntEnum):
    DIMENSION = 1


class Dimension(IntEnum):
    SIZE = 1
    LETTER = 2


class Element(IntEnum):
    """TensorProto.DataType, as far as stages use it."""

    FLOAT32 = 1
    UINT8 = 2
    INT8 = 3
    INT32 = 6
    INT64 = 7
    BOOL = 9
    FLOAT16 = 10
    FLOAT64 = 11
    BFLOAT16 = 16


#: Bytes per element; types that no stage uses are missing.
ITEM_BYTES: Mapping[int, int] = {
    Element.FLOAT32: 4,
    Element.UINT8: 1,
    Element.INT8: 1,
    Element.INT32: 4,
    Element.INT64: 8,
    Element.BOOL: 1,
    Element.FLOAT16: 2,
    Element.FLOAT64: 8,
    Element.BFLOAT16: 2,
}

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
_FIXED_BYTES = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
_SIGN = 1 << 63


class WireError(ValueError):
    """The bytes are no message."""


@dataclass(frozen=True)
class Field:
    """One field of a message.

    Attributes:
        number: which.
        raw: all its bytes, the number's included.
        value: its content; empty if it is an integer.
        integer: unsigned; None if it has a content.
    """

    number: int
    raw: memoryview
    value: memoryview
    integer: int | None

    @property
    def text(self) -> str:
        return bytes(self.value).decode()

    @property
    def integers(self) -> list[int]:
        """Signed; one, or several in one field."""
        if self.integer is not None:
            return [_signed(self.integer)]
        found, position = [], 0
        while position < len(self.value):
            each, position = varint(self.value, position)
            found.append(_signed(each))
        return found


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message, in order."""
    position = 0
    while position < len(message):
        start = position
        key, position = varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            integer, position = varint(message, position)
            yield Field(number, message[start:position], message[:0], integer)
            continue
        size = _FIXED_BYTES.get(wire, 0)
        if wire == BYTES:
            size, position = varint(message, position)
        end = position + size
        yield Field(number, message[start:end], message[position:end], None)
        position = end


def inside(message: memoryview, *path: int) -> memoryview:
    """The content of the first field of a number, then of one in it, and so on; empty if it is not there."""
    for number in path:
        message = next((field.value for field in fields(message) if field.number == number), message[:0])
    return message


def body(model: bytes) -> memoryview:
    """The graph of a model."""
    return inside(memoryview(model), Model.GRAPH)


def encode(number: int, content: bytes | memoryview) -> bytes:
    """A field with a content."""
    return _varint(number << 3 | BYTES) + _varint(len(content)) + bytes(content)


def encode_integer(number: int, value: int) -> bytes:
    """A field that is an unsigned integer."""
    return _varint(number << 3 | VARINT) + _varint(value)


def varint(message: memoryview, position: int) -> tuple[int, int]:
    """The unsigned integer at a position of a message, and the position after it.

    Raises:
        WireError: it is longer than 64 bits.
        IndexError: the message ends within it.
    """
    result = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            if result >= 2 * _SIGN:
                break
            return result, position
    raise WireError("an integer is too long")


def _signed(value: int) -> int:
    return value - 2 * _SIGN if value >= _SIGN else value


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
