"""Looks into an ONNX file before a back end does, without the onnx package.

A stage is data from outside. Back ends follow paths found in it, allocate what its shapes say and run whatever
operators they know. So the few protobuf messages that matter are read here, and a stage is refused unless

- its operators are standard ones from the list below, none of them holds a graph of its own, and it has no functions;
- its opset is the one the manifest states and not newer than this runtime knows;
- every tensor's bytes are as many as its shape and type say;
- external tensors lie inside the one weight file that the manifest names, at an offset and length within it.

The wire format is documented at protobuf.dev/programming-guides/encoding; field numbers are those of onnx.proto3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from trunkline.runtime.errors import BundleError

MAX_OPSET = 23
#: A weightless graph of a few hundred nodes is well under this.
MAX_GRAPH_BYTES = 64 << 20
MAX_DIMENSIONS = 8

STANDARD_DOMAINS = ("", "ai.onnx")

#: What exported stages consist of. Control flow, sequences, optional values, random numbers and operators that
#: build a tensor from a shape alone are left out on purpose: with them a small file can ask for any amount of memory.
OPERATORS = frozenset(
    "Abs Add And Attention AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant Conv Cos "
    "DequantizeLinear Div Einsum Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm "
    "GlobalAveragePool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization "
    "LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul MatMulInteger Max MaxPool Mean Min Mish Mod "
    "Mul Neg Not Or Pad Pow QuantizeLinear RMSNormalization Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin "
    "ReduceSum ReduceSumSquare Relu Reshape Resize RotaryEmbedding Round Shape Sigmoid Sign Sin Slice Softmax Softplus Split "
    "Sqrt Squeeze Sub Sum Swish Tanh Tile Transpose Trilu Unsqueeze Where Xor".split()
)

#: Bytes per element by TensorProto.DataType; types that no stage uses are missing.
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 16: 2}

# Field numbers.
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_FUNCTIONS = 7, 8, 25
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = 5, (6, 11), (22, 23)
_ATTRIBUTE_TENSORS = 10
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 2, 8, 9, 13, 14
_TENSOR_TYPED = {4: 4, 5: None, 7: None, 10: 8, 11: None}  # float, int32, int64, double, uint64 data
_ENTRY_KEY, _ENTRY_VALUE = 1, 2


class _Malformed(Exception):
    pass


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
        BundleError: listing everything that is not allowed.
    """
    facts, problems = GraphFacts(), []
    try:
        if len(graph) > MAX_GRAPH_BYTES:
            raise _Malformed(f"{len(graph)} bytes: too large")
        problems += _scan_model(memoryview(graph), facts, weights, weights_bytes)
    except (_Malformed, IndexError, UnicodeDecodeError) as error:
        problems.append(f"not an ONNX file: {error}")
    if not problems and facts.opset != opset:
        problems.append(f"opset {facts.opset}, but the manifest says {opset}")
    if problems:
        raise BundleError(
            "a stage's graph is refused",
            where=where,
            expected=f"standard operators of opset {MAX_OPSET} or older, tensors inside {weights or 'the graph'}",
            found=list(dict.fromkeys(problems))[:20],
            fix="use bundles that `trunkline export` wrote, with a runtime of the same version or newer",
        )
    return facts


def _scan_model(model: memoryview, facts: GraphFacts, weights: str | None, weights_bytes: int) -> Iterator[str]:
    graphs = 0
    for number, value in _fields(model):
        if number == _MODEL_OPSET:
            yield from _scan_opset(_message(value), facts)
        elif number == _MODEL_FUNCTIONS:
            yield "holds functions of its own"
        elif number == _MODEL_GRAPH:
            graphs += 1
            yield from _scan_graph(_message(value), facts, weights, weights_bytes)
    if graphs != 1 or not facts.operators:
        raise _Malformed("no graph with nodes")


def _scan_opset(opset: memoryview, facts: GraphFacts) -> Iterator[str]:
    values = dict(_fields(opset))
    domain, version = _text(values.get(_OPSET_DOMAIN, b"")), values.get(_OPSET_VERSION, 0)
    if domain not in STANDARD_DOMAINS:
        yield f"operators of the domain {domain!r}"
    elif not isinstance(version, int) or not 0 < version <= MAX_OPSET:
        yield f"opset {version} is newer than {MAX_OPSET}"
    else:
        facts.opset = version


def _scan_graph(graph: memoryview, facts: GraphFacts, weights: str | None, weights_bytes: int) -> Iterator[str]:
    for number, value in _fields(graph):
        if number == _GRAPH_NODE:
            yield from _scan_node(_message(value), facts, weights_bytes)
        elif number == _GRAPH_INITIALIZER:
            yield from _scan_tensor(_message(value), facts, weights, weights_bytes)
        elif number == _GRAPH_SPARSE:
            yield "holds sparse tensors"


def _scan_node(node: memoryview, facts: GraphFacts, weights_bytes: int) -> Iterator[str]:
    operator, domain = "", ""
    for number, value in _fields(node):
        if number == _NODE_OP:
            operator = _text(value)
        elif number == _NODE_DOMAIN:
            domain = _text(value)
        elif number == _NODE_ATTRIBUTE:
            yield from _scan_attribute(_message(value), facts, weights_bytes)
    if domain not in STANDARD_DOMAINS:
        yield f"operator {operator!r} of the domain {domain!r}"
    elif operator not in OPERATORS:
        yield f"operator {operator!r} is not allowed"
    facts.operators[operator] = facts.operators.get(operator, 0) + 1


def _scan_attribute(attribute: memoryview, facts: GraphFacts, weights_bytes: int) -> Iterator[str]:
    for number, value in _fields(attribute):
        if number in _ATTRIBUTE_GRAPHS:
            yield "an operator holds a graph of its own"
        elif number in _ATTRIBUTE_SPARSE:
            yield "an operator holds a sparse tensor"
        elif number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            yield from _scan_tensor(_message(value), facts, None, weights_bytes)


def _scan_tensor(tensor: memoryview, facts: GraphFacts, weights: str | None, weights_bytes: int) -> Iterator[str]:
    dims: list[int] = []
    kind, name, stored, external = 0, "", 0, {}
    is_external = False
    for number, value in _fields(tensor):
        if number == _TENSOR_DIMS:
            dims += _integers(value)
        elif number == _TENSOR_TYPE:
            kind = _integer(value)
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_RAW:
            stored += len(_message(value))
        elif number == _TENSOR_EXTERNAL:
            entry = dict(_fields(_message(value)))
            external[_text(entry.get(_ENTRY_KEY, b""))] = _text(entry.get(_ENTRY_VALUE, b""))
        elif number == _TENSOR_LOCATION:
            is_external = value == 1
        elif number in _TENSOR_TYPED:
            yield f"tensor {name!r} is not stored as raw bytes"
    if kind not in ITEM_BYTES or len(dims) > MAX_DIMENSIONS or any(not 0 <= size < 1 << 40 for size in dims):
        yield f"tensor {name!r} has type {kind} and shape {dims}"
        return
    needed = math.prod(dims) * ITEM_BYTES[kind]
    if is_external or external:
        facts.external_tensors += 1
        yield from _external_problems(name, external, needed, weights, weights_bytes)
    elif stored != needed:
        yield f"tensor {name!r} of shape {dims} needs {needed} bytes and has {stored}"


def _external_problems(
    name: str, external: dict[str, str], needed: int, weights: str | None, weights_bytes: int
) -> Iterator[str]:
    if unknown := sorted(set(external) - {"location", "offset", "length"}):
        yield f"tensor {name!r} has external attributes {unknown}"
    if external.get("location") != weights or weights is None:
        yield f"tensor {name!r} lies in {external.get('location')!r}, outside the stage's weight file"
    offset, length = external.get("offset", "0"), external.get("length", "")
    if not (offset.isdecimal() and length.isdecimal() and len(offset) < 16 and len(length) < 16):
        yield f"tensor {name!r} has offset {offset!r} and length {length!r}"
    elif int(length) != needed or int(offset) + int(length) > weights_bytes:
        yield f"tensor {name!r} at {offset}+{length} does not fit: {needed} bytes in a file of {weights_bytes}"


Value = int | memoryview


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Field numbers and values of one message: integers for varints, bytes for everything else."""
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(message, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _Malformed(f"wire type {wire}")
        if number == 0 or position + size > end:
            raise _Malformed("a field runs past the end")
        yield number, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise _Malformed("an integer is too long")


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise _Malformed("an integer where a message belongs")
    return value


def _text(value: Value | bytes) -> str:
    if isinstance(value, int):
        raise _Malformed("an integer where text belongs")
    return bytes(value).decode()


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise _Malformed("bytes where an integer belongs")
    return value


def _integers(value: Value) -> list[int]:
    """A repeated integer, packed or not."""
    if isinstance(value, int):
        return [value]
    result, position = [], 0
    while position < len(value):
        item, position = _varint(value, position)
        result.append(item)
    return result
