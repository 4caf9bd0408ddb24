"""Looks into an ONNX file before a back end does, without the onnx package.

A stage is data from outside. Back ends follow paths found in it, allocate what its shapes say and run whatever
operators they know. So the few protobuf messages that matter are read here, and a stage is refused unless

- it is a protobuf message that every reader understands alike: no field twice that may be there once, no oversized
  numbers, nothing that ONNX Runtime would take for its own binary format;
- its operators are standard ones from the list below, none of them holds a graph of its own, and it has no functions;
- its opset is the one the manifest states and not newer than this runtime knows;
- every tensor's bytes are as many as its shape and type say;
- external tensors lie inside the one weight file that the manifest names, at an offset and length within it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from trunkline.runtime import onnx_proto as proto
from trunkline.runtime.errors import BundleError
from trunkline.runtime.onnx_proto import ITEM_BYTES, WireError, varint
from trunkline.runtime.record import shown

MAX_OPSET = 23
#: A weightless graph of a few hundred nodes is well under this.
MAX_GRAPH_BYTES = 64 << 20
MAX_DIMENSIONS = 8
#: Fields and integers looked at before giving up; a few seconds. Graphs of large ensembles have some hundred thousand.
MAX_READ = 2 << 20
MAX_PROBLEMS = 20

#: At byte 4 of a file, this makes ONNX Runtime read a flatbuffer, and nothing of what is checked here would hold.
ORT_FORMAT_MARK = b"ORTM"

STANDARD_DOMAINS = ("", "ai.onnx")

#: What exported stages consist of. Control flow, sequences, optional values, random numbers and operators that
#: build a tensor from a shape alone are left out on purpose: with them a small file can ask for any amount of memory.
_OPERATOR_NAMES = (
    "Abs Add And Attention AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant Conv Cos "
    "DequantizeLinear Div Einsum Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm "
    "GlobalAveragePool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization "
    "LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul MatMulInteger Max MaxPool Mean Min Mish Mod "
    "Mul Neg Not Or Pad Pow QuantizeLinear RMSNormalization Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin "
    "ReduceSum ReduceSumSquare Relu Reshape Resize RotaryEmbedding Round Shape Sigmoid Sign Sin Slice Softmax Softplus "
    "Split Sqrt Squeeze Sub Sum Swish Tanh Tile Transpose Trilu Unsqueeze Where Xor"
)
OPERATORS = frozenset(_OPERATOR_NAMES.split())

# Fields that may be repeated, of each message.
_MODEL_MANY = frozenset({8, 14, 20, 25, 26})
_GRAPH_MANY = frozenset({1, 5, 11, 12, 13, 14, 15, 16})
_NODE_MANY = frozenset({1, 2, 5, 9, 10})
_ATTRIBUTE_MANY = frozenset({7, 8, 9, 10, 11, 15, 23})
_TENSOR_MANY = frozenset({1, 4, 5, 6, 7, 10, 11, 13, 16})
_ONCE: frozenset[int] = frozenset()

_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_TENSOR_TYPED = (4, 5, 6, 7, 10, 11)  # float, int32, string, int64, double, uint64 data

Value = int | memoryview


@dataclass
class GraphFacts:
    """What a scan found. ``operators`` counts node types."""

    opset: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    external_tensors: int = 0


def scan(graph: bytes, *, opset: int, weights: str | None, weights_bytes: int, where: object) -> GraphFacts:
    """Checks a graph.

    Args:
        graph: the ONNX file.
        opset: what the manifest states.
        weights: base name of the file that external tensors may lie in, or None if there may be none.
        weights_bytes: its size.
        where: bundle and file, for messages.

    Raises:
        BundleError: listing what is not allowed, up to ``MAX_PROBLEMS``.
    """
    scanner, problems = _Scanner(weights, weights_bytes), []
    try:
        for problem in itertools.islice(scanner.problems(graph), MAX_PROBLEMS):
            problems.append(problem)
    except (WireError, IndexError, UnicodeDecodeError) as error:
        problems.append(f"not an ONNX file: {error}")
    facts = scanner.facts
    if not problems and facts.opset != opset:
        problems.append(f"opset {facts.opset}, but the manifest says {shown(opset)}")
    if problems:
        raise BundleError(
            "a stage's graph is refused",
            where=where,
            expected=f"standard operators of opset {MAX_OPSET} or older, tensors inside {weights or 'the graph'}",
            found=list(dict.fromkeys(problems)),
            fix="use bundles that `trunkline export` wrote, with a runtime of the same version or newer",
        )
    return facts


class _Scanner:
    """One pass over one graph. Methods yield what is not allowed, and raise where reading must stop."""

    def __init__(self, weights: str | None, weights_bytes: int) -> None:
        self.facts = GraphFacts()
        self._weights = weights
        self._weights_bytes = weights_bytes
        self._left = MAX_READ

    def problems(self, graph: bytes) -> Iterator[str]:
        if len(graph) > MAX_GRAPH_BYTES:
            raise WireError(f"{len(graph)} bytes: too large")
        if graph[4:8] == ORT_FORMAT_MARK:
            raise WireError("ONNX Runtime would read it in its own format")
        yield from self._model(memoryview(graph))

    def _model(self, model: memoryview) -> Iterator[str]:
        graphs = 0
        for number, value in self._fields(model, _MODEL_MANY):
            if number == proto.Model.OPSET:
                yield from self._opset(_message(value))
            elif number == proto.Model.FUNCTIONS:
                yield "holds functions of its own"
            elif number == proto.Model.TRAINING:
                yield "holds graphs for training"
            elif number == proto.Model.GRAPH:
                graphs += 1
                yield from self._graph(_message(value))
        if graphs != 1 or not self.facts.operators:
            raise WireError("no graph with nodes")

    def _opset(self, opset: memoryview) -> Iterator[str]:
        values = dict(self._fields(opset, _ONCE))
        domain, version = _text(values.get(_OPSET_DOMAIN, b"")), _integer(values.get(_OPSET_VERSION, 0))
        if domain not in STANDARD_DOMAINS:
            yield f"operators of the domain {shown(domain)}"
        elif not 0 < version <= MAX_OPSET:
            yield f"opset {version} is not one of 1 to {MAX_OPSET}"
        elif self.facts.opset:
            yield "states its opset twice"
        else:
            self.facts.opset = version

    def _graph(self, graph: memoryview) -> Iterator[str]:
        for number, value in self._fields(graph, _GRAPH_MANY):
            if number == proto.Graph.NODE:
                yield from self._node(_message(value))
            elif number == proto.Graph.INITIALIZER:
                yield from self._tensor(_message(value), self._weights)
            elif number == proto.Graph.SPARSE:
                yield "holds sparse tensors"

    def _node(self, node: memoryview) -> Iterator[str]:
        operator, domain = "", ""
        for number, value in self._fields(node, _NODE_MANY):
            if number == proto.Node.OPERATOR:
                operator = _text(value)
            elif number == proto.Node.DOMAIN:
                domain = _text(value)
            elif number == proto.Node.ATTRIBUTE:
                yield from self._attribute(_message(value))
        if domain not in STANDARD_DOMAINS:
            yield f"operator {shown(operator)} of the domain {shown(domain)}"
        elif operator not in OPERATORS:
            yield f"operator {shown(operator)} is not allowed"
        self.facts.operators[operator] = self.facts.operators.get(operator, 0) + 1

    def _attribute(self, attribute: memoryview) -> Iterator[str]:
        for number, value in self._fields(attribute, _ATTRIBUTE_MANY):
            if number in (proto.Attribute.GRAPH, proto.Attribute.GRAPHS):
                yield "an operator holds a graph of its own"
            elif number in (proto.Attribute.SPARSE, proto.Attribute.SPARSES):
                yield "an operator holds a sparse tensor"
            elif number in (proto.Attribute.TENSOR, proto.Attribute.TENSORS):
                yield from self._tensor(_message(value), None)

    def _tensor(self, tensor: memoryview, weights: str | None) -> Iterator[str]:
        dims: list[int] = []
        kind, name, stored, external = 0, "''", 0, {}
        is_external = False
        for number, value in self._fields(tensor, _TENSOR_MANY):
            if number == proto.Tensor.DIMENSIONS:
                dims += self._integers(value)
            elif number == proto.Tensor.ELEMENT:
                kind = _integer(value)
            elif number == proto.Tensor.NAME:
                name = shown(_text(value))
            elif number == proto.Tensor.RAW:
                stored = len(_message(value))
            elif number == proto.Tensor.EXTERNAL:
                entry = dict(self._fields(_message(value), _ONCE))
                key = _text(entry.get(proto.Entry.KEY, b""))
                if key in external:
                    yield f"tensor {name} states its {shown(key)} twice"
                external[key] = _text(entry.get(proto.Entry.VALUE, b""))
            elif number == proto.Tensor.LOCATION:
                is_external = _integer(value) != 0
            elif number in _TENSOR_TYPED:
                yield f"tensor {name} is not stored as raw bytes"
        if kind not in ITEM_BYTES or len(dims) > MAX_DIMENSIONS or any(not 0 <= size < 1 << 40 for size in dims):
            yield f"tensor {name} has type {kind} and shape {shown(dims)}"
            return
        needed = math.prod(dims) * ITEM_BYTES[kind]
        if is_external or external:
            self.facts.external_tensors += 1
            yield from self._external_problems(name, external, needed, weights)
        elif stored != needed:
            yield f"tensor {name} of shape {dims} needs {needed} bytes and has {stored}"

    def _external_problems(
        self, name: str, external: dict[str, str], needed: int, weights: str | None
    ) -> Iterator[str]:
        if unknown := sorted(set(external) - {"location", "offset", "length"}):
            yield f"tensor {name} has external attributes {shown(unknown)}"
        location = external.get("location")
        if location != weights or weights is None:
            yield f"tensor {name} lies in {shown(location)}, outside the stage's weight file"
        offset, length = external.get("offset", "0"), external.get("length", "")
        if not (_is_size(offset) and _is_size(length)):
            yield f"tensor {name} has offset {shown(offset)} and length {shown(length)}"
        elif int(length) != needed or int(offset) + int(length) > self._weights_bytes:
            yield (
                f"tensor {name} at {offset}+{length} does not fit: {needed} bytes in a file of {self._weights_bytes}"
            )

    def _fields(self, message: memoryview, many: frozenset[int]) -> Iterator[tuple[int, Value]]:
        """Field numbers and values of one message: integers for varints, bytes for everything else.

        A field that may be there once is there once: of two, some readers take the last and some join them.
        """
        seen: set[int] = set()
        position, end = 0, len(message)
        while position < end:
            self._spend()
            key, position = varint(message, position)
            number, wire = key >> 3, key & 7
            if not 0 < number < 1 << 29:
                raise WireError(f"field number {number}")
            if number in seen:
                raise WireError(f"field {number} twice")
            if number not in many:
                seen.add(number)
            if wire == proto.VARINT:
                value, position = varint(message, position)
                yield number, value
                continue
            if wire == proto.BYTES:
                size, position = varint(message, position)
            elif wire in (proto.EIGHT_BYTES, proto.FOUR_BYTES):
                size = 8 if wire == proto.EIGHT_BYTES else 4
            else:
                raise WireError(f"wire type {wire}")
            if position + size > end:
                raise WireError("a field runs past the end")
            yield number, message[position : position + size]
            position += size

    def _integers(self, value: Value) -> list[int]:
        """A repeated integer, packed or not."""
        if isinstance(value, int):
            return [value]
        result, position = [], 0
        while position < len(value):
            self._spend()
            item, position = varint(value, position)
            result.append(item)
        return result

    def _spend(self) -> None:
        """A file of millions of tiny fields would keep the scan, and then the back end, busy for minutes."""
        self._left -= 1
        if self._left < 0:
            raise WireError(f"more than {MAX_READ} fields")


def _is_size(text: str) -> bool:
    """A decimal number that every reader reads alike; ``isdecimal`` alone takes digits of all scripts."""
    return text.isascii() and text.isdecimal() and len(text) < 16


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise WireError("an integer where a message belongs")
    return value


def _text(value: Value | bytes) -> str:
    if isinstance(value, int):
        raise WireError("an integer where text belongs")
    return bytes(value).decode()


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise WireError("bytes where an integer belongs")
    return value
