"""Would TensorRT build this graph, and would it build what was meant? Judged from the graph alone.

TensorRT needs an NVIDIA GPU to build anything, and a graph that its parser refuses, or that it builds more slowly than
float16, is best found before it travels to one. The rules come from its documentation, its parser's change log and
public reports. **They were never run against TensorRT itself**: a graph without violations may still be refused there,
and a parity check on the device is still needed.

Tables say what is allowed; each function of ``RULES`` reads one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trunkline.runtime.errors import InputError

Version = tuple[int, int]
Axis = Callable[[ir.Node, int], int]

#: Oldest supported version: JetPack 6 has 10.3.
OLDEST: Version = (10, 0)

#: Newest opset that the parser reads, by the version that brought it. Below 13 there are no scales per channel.
OPSETS: dict[Version, int] = {(10, 0): 20, (10, 9): 22, (10, 13): 24, (11, 0): 25}
OLDEST_OPSET = 13

_OPERATOR_NAMES = (
    "Abs Add And AveragePool BatchNormalization Cast Ceil Clip Concat Constant Conv ConvTranspose Cos "
    "DequantizeLinear Div Einsum Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm "
    "GlobalAveragePool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization "
    "LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mod Mul Neg Not Or Pad "
    "Pow QuantizeLinear Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu Reshape "
    "Resize Round Shape Sigmoid Sign Sin Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Trilu "
    "Unsqueeze Where Xor"
)
#: Operators that every 10.x parser knows and that stages are made of.
OPERATORS = frozenset(_OPERATOR_NAMES.split())

#: Operators that came later.
OPERATORS_SINCE: dict[str, Version] = {"Attention": (10, 14), "RMSNormalization": (10, 15), "RotaryEmbedding": (10, 15)}

#: What an operator's attributes may be; the first is what holds where nothing is said.
ATTRIBUTES: dict[str, dict[str, tuple[object, ...]]] = {
    "Resize": {
        "mode": ("nearest", "linear"),
        "antialias": (0,),
        "exclude_outside": (0,),
        "coordinate_transformation_mode": (
            *("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn"),
            *("asymmetric", "align_corners"),
        ),
    },
}

DTYPES = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16),
        *(ir.DataType.INT8, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL),
    }
)
#: A type that only crosses the boundary, and what may read or write it there.
BOUNDARY_DTYPE, BOUNDARY_OPERATORS = ir.DataType.UINT8, frozenset({"Cast"})

SCALE_DTYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
#: From this opset on scales may be others than float32.
HALF_SCALES_OPSET = 19

#: Longest sequence for which there are fused attention kernels in int8; above, three slow ones take their place.
MAX_INT8_ATTENTION = 512

#: Operators with quantised weights: which input they are, and the axis of output channels for an operator and a rank.
WEIGHTS: dict[str, tuple[int, Axis]] = {
    "MatMul": (1, lambda node, rank: rank - 1),
    "Gemm": (1, lambda node, rank: 0 if _attribute(node, "transB", 0) else 1),
    "Conv": (1, lambda node, rank: 0),
    "ConvTranspose": (1, lambda node, rank: 1),
}

#: What may lie between the products of an attention and its softmax.
_BETWEEN_NAMES = "Add Mul Div Where Cast Reshape Transpose Unsqueeze Squeeze QuantizeLinear DequantizeLinear"
_BETWEEN = frozenset(_BETWEEN_NAMES.split())
_MAX_BETWEEN = 8


@dataclass(frozen=True)
class Violation:
    """One thing that TensorRT would refuse, or build otherwise than meant.

    Attributes:
        rule: name of the function in ``RULES`` that found it.
        node: name of the node or tensor it concerns.
        problem: what is wrong with it, and what would be right.
    """

    rule: str
    node: str
    problem: str

    def __str__(self) -> str:
        return f"{self.node}: {self.problem}"


Problem = tuple[str, str]


@dataclass(frozen=True)
class _Subject:
    model: ir.Model
    version: Version

    @property
    def opset(self) -> int:
        return self.model.opset_imports.get("", 0)


def violations(model: ir.Model | Path, version: str) -> list[Violation]:
    """What TensorRT would refuse, or build otherwise than meant.

    Args:
        model: a model, or an ONNX file.
        version: of TensorRT, such as "10.3".

    Raises:
        InputError: there is no such version, or it is older than these rules.
    """
    subject = _Subject(ir.load(model) if isinstance(model, Path) else model, _version(version))
    return [Violation(rule.__name__, *problem) for rule in RULES for problem in rule(subject)]


def opset_range(subject: _Subject) -> Iterator[Problem]:
    """The opset is one that the parser of this version reads."""
    newest = OPSETS[max(version for version in OPSETS if version <= subject.version)]
    if not OLDEST_OPSET <= subject.opset <= newest:
        shown = ".".join(map(str, subject.version))
        yield "model", f"opset {subject.opset}; TensorRT {shown} reads {OLDEST_OPSET} to {newest}"


def operators(subject: _Subject) -> Iterator[Problem]:
    """Every operator is a standard one that the parser of this version knows, with attributes it knows."""
    for function in subject.model.functions.values():
        yield f"function {function.name}", "functions of the model's own are not read"
    for node in subject.model.graph.all_nodes():
        since = OPERATORS_SINCE.get(node.op_type)
        if node.domain not in ("", "ai.onnx"):
            yield _named(node), f"the domain {node.domain!r} is not ONNX's own"
        elif since is not None and since > subject.version:
            yield _named(node), f"the parser knows {node.op_type} from TensorRT {since[0]}.{since[1]} on"
        elif since is None and node.op_type not in OPERATORS:
            yield _named(node), f"the parser is not known to read {node.op_type}"
        for name, allowed in ATTRIBUTES.get(node.op_type, {}).items():
            value = _attribute(node, name, allowed[0])
            if value not in allowed:
                yield _named(node), f"{name} is {value!r}, not {' or '.join(map(repr, allowed))}"


def dtypes(subject: _Subject) -> Iterator[Problem]:
    """Every tensor is of a type that layers compute in; uint8 only crosses the boundary, through a Cast."""
    graph = subject.model.graph
    boundary = {id(value) for value in (*graph.inputs, *graph.outputs)}
    produced = (value for node in graph.all_nodes() for value in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *produced):
        if value.dtype == BOUNDARY_DTYPE and id(value) in boundary:
            yield from _beyond_the_boundary(value)
        elif value.dtype is not None and value.dtype not in DTYPES and not _is_quantised(value):
            yield str(value.name), f"{value.dtype.name} is not a type that TensorRT computes in"


def zero_points(subject: _Subject) -> Iterator[Problem]:
    """Quantisation is symmetric: every zero point is constant and 0."""
    for node in _quantisers(subject):
        value = node.inputs[2] if len(node.inputs) > 2 else None
        if value is None:
            continue
        content = _content(value)
        if content is None:
            yield _named(node), f"its zero point {value.name} is computed, not constant"
        elif content.any():
            yield _named(node), f"its zero point is not 0: {_first(content, content != 0)}"


def int8_only(subject: _Subject) -> Iterator[Problem]:
    """What is quantised is int8. A QuantizeLinear that names no type gives uint8."""
    for node in _quantisers(subject):
        kind = _quantised_type(node)
        if kind != ir.DataType.INT8:
            found = kind.name.lower() if kind is not None else "nothing that is stated"
            yield _named(node), f"quantises to {found}, not int8"
        if _attribute(node, "block_size", 0):
            yield _named(node), "quantises in blocks, which TensorRT does for int4 only"


def scales(subject: _Subject) -> Iterator[Problem]:
    """Every scale is a constant, and its numbers are positive and finite."""
    for node in _quantisers(subject):
        value = node.inputs[1]
        content = _content(value)
        if value is None or content is None:
            yield _named(node), f"its scale {value.name if value else ''} is computed, not constant"
            continue
        kind = _dtype(value)
        if kind not in SCALE_DTYPES:
            yield _named(node), f"its scale is {kind.name.lower() if kind else 'of no type'}, not float"
        elif subject.opset < HALF_SCALES_OPSET and kind != ir.DataType.FLOAT:
            yield _named(node), f"its scale is not float32, which there is from opset {HALF_SCALES_OPSET} on"
        numbers = content.astype(np.float64)
        wrong = ~(np.isfinite(numbers) & (numbers > 0))
        if wrong.any():
            yield _named(node), f"its scale is not positive and finite: {_first(numbers, wrong)}"


def activations_per_tensor(subject: _Subject) -> Iterator[Problem]:
    """What is quantised at run time has one scale, and is restored with the same."""
    for node in _quantisers(subject):
        if node.op_type != "QuantizeLinear" or _constant(node.inputs[0]) is not None:
            continue
        scale = _content(node.inputs[1])
        if scale is not None and scale.size != 1:
            yield _named(node), f"quantises an activation with {scale.size} scales; there may be one"
        for use in node.outputs[0].uses():
            if use.node.op_type != "DequantizeLinear":
                yield _named(use.node), f"reads int8 from {_named(node)}; only a DequantizeLinear may"
            elif scale is not None and not _same(scale, _content(use.node.inputs[1])):
                yield _named(use.node), f"restores {_named(node)} with another scale"


def weight_axes(subject: _Subject) -> Iterator[Problem]:
    """Scales of weights are per tensor, or one per output channel of the operator that reads them."""
    for node in _quantisers(subject):
        scale = _content(node.inputs[1])
        if node.op_type != "DequantizeLinear" or scale is None or scale.size == 1 or not _is_weight(node):
            continue
        for use in node.outputs[0].uses():
            yield from _axis_problems(node, scale, use.node, use.idx)


def attention(subject: _Subject) -> Iterator[Problem]:
    """No attention over more than ``MAX_INT8_ATTENTION`` tokens is quantised inside."""
    for node in subject.model.graph.all_nodes():
        if node.op_type == "Attention":
            quantised, length = any(_from_int8(value) for value in node.inputs[:3]), _length(node.inputs[1], -2)
        elif node.op_type == "Softmax":
            quantised, length = _softmax_is_quantised(node), _length(node.inputs[0], -1)
        else:
            continue
        if quantised and (length is None or length > MAX_INT8_ATTENTION):
            shown = "an unknown number of" if length is None else length
            yield _named(node), f"int8 in attention over {shown} tokens; kernels end at {MAX_INT8_ATTENTION}"


#: Every rule, in the order in which violations are listed.
RULES: tuple[Callable[[_Subject], Iterator[Problem]], ...] = (
    *(opset_range, operators, dtypes),
    *(zero_points, int8_only, scales, activations_per_tensor, weight_axes, attention),
)


def _version(text: str) -> Version:
    match = re.fullmatch(r"(\d{1,3})\.(\d{1,3})(\.\d+)*", text)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < OLDEST:
        raise InputError(
            "there are no rules for this version of TensorRT",
            expected=f"{OLDEST[0]}.{OLDEST[1]} or newer, such as 10.3",
            found=repr(text),
        )
    return version


def _beyond_the_boundary(value: ir.Value) -> Iterator[Problem]:
    producer = value.producer()
    nodes = [use.node for use in value.uses()] + ([producer] if producer is not None else [])
    for node in nodes:
        if node.op_type not in BOUNDARY_OPERATORS:
            yield _named(node), f"touches {value.name}, which is uint8; only a Cast may, right at the boundary"


def _is_quantised(value: ir.Value) -> bool:
    """Types of what is quantised have a rule of their own."""
    producer = value.producer()
    readers = [use.node.op_type for use in value.uses()]
    return (producer is not None and producer.op_type == "QuantizeLinear") or "DequantizeLinear" in readers


def _axis_problems(node: ir.Node, scale: NDArray[np.generic], reader: ir.Node, place: int) -> Iterator[Problem]:
    weight, axis_of = WEIGHTS.get(reader.op_type, (None, None))
    if axis_of is None or place != weight:
        yield _named(node), f"has {scale.size} scales, and {_named(reader)} does not read it as its weight"
        return
    shape = _weight_shape(node)
    axis, expected = _attribute(node, "axis", 1), axis_of(reader, len(shape))
    if (axis + len(shape) if axis < 0 else axis) != expected:
        yield _named(node), f"axis {axis}; for {_named(reader)} it must be {expected}"
    elif scale.shape != (shape[expected],):
        yield _named(node), f"scales of shape {scale.shape} for {shape[expected]} output channels"


def _softmax_is_quantised(node: ir.Node) -> bool:
    """Whether int8 goes into the product before a softmax, or comes out of the softmax into the one behind it."""
    before = [found for found in _products(node.inputs[0], "before") if any(_from_int8(each) for each in found.inputs)]
    behind = [use.node.op_type for use in node.outputs[0].uses()]
    return bool(before) or ("QuantizeLinear" in behind and bool(list(_products(node.outputs[0], "behind"))))


def _products(value: ir.Value | None, direction: str) -> Iterator[ir.Node]:
    """Products of two activations that a softmax reads, or that read it, through what may lie between."""
    near = [value]
    for _ in range(_MAX_BETWEEN):
        nodes = [node for each in near if each is not None for node in _neighbours(each, direction)]
        yield from (node for node in nodes if node.op_type == "MatMul" and not _has_weight(node))
        passed = [node for node in nodes if node.op_type in _BETWEEN]
        near = [each for node in passed for each in (node.inputs if direction == "before" else node.outputs)]


def _neighbours(value: ir.Value, direction: str) -> list[ir.Node]:
    if direction == "behind":
        return [use.node for use in value.uses()]
    producer = value.producer()
    return [producer] if producer is not None else []


def _has_weight(node: ir.Node) -> bool:
    return any(_constant(value) is not None or _is_weight(_producer(value)) for value in node.inputs)


def _from_int8(value: ir.Value | None) -> bool:
    """Whether a DequantizeLinear of something computed is behind a value."""
    for _ in range(_MAX_BETWEEN):
        node = _producer(value)
        if node is None or node.op_type not in _BETWEEN:
            return False
        if node.op_type == "DequantizeLinear":
            return not _is_weight(node)
        value = node.inputs[0]
    return False


def _is_weight(node: ir.Node | None) -> bool:
    """Whether a DequantizeLinear restores a constant, stored in int8 or quantised from float."""
    return node is not None and node.op_type == "DequantizeLinear" and _stored(node) is not None


def _weight_shape(node: ir.Node) -> tuple[int, ...]:
    tensor = _stored(node)
    return () if tensor is None else tuple(tensor.shape.numpy())


def _stored(node: ir.Node) -> ir.TensorProtocol | None:
    """The constant that a DequantizeLinear restores."""
    source = _producer(node.inputs[0])
    quantised = source is not None and source.op_type == "QuantizeLinear"
    return _constant(source.inputs[0] if source is not None and quantised else node.inputs[0])


def _quantised_type(node: ir.Node) -> ir.DataType | None:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None:
        return _dtype(zero)
    if node.op_type == "QuantizeLinear":
        return ir.DataType(int(_attribute(node, "output_dtype", 0)) or ir.DataType.UINT8)
    source = _producer(node.inputs[0])
    quantised = source is not None and source.op_type == "QuantizeLinear"
    return _quantised_type(source) if source is not None and quantised else _dtype(node.inputs[0])


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    tensor = _constant(value)
    return tensor.dtype if tensor is not None else value.dtype if value is not None else None


def _quantisers(subject: _Subject) -> Iterator[ir.Node]:
    for node in subject.model.graph.all_nodes():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield node


def _named(node: ir.Node) -> str:
    """A node without a name is called after what it computes."""
    return f"{node.op_type} {node.name or node.outputs[0].name}"


def _attribute(node: ir.Node, name: str, default: object) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def _content(value: ir.Value | None) -> NDArray[np.generic] | None:
    """What a constant consists of, None of anything else."""
    tensor = _constant(value)
    return None if tensor is None else tensor.numpy()


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else ir.convenience.get_const_tensor(value)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _length(value: ir.Value | None, axis: int) -> int | None:
    if value is None or value.shape is None or len(value.shape) < -axis:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _same(one: NDArray[np.generic], two: NDArray[np.generic] | None) -> bool:
    return two is not None and np.array_equal(one.reshape(-1), two.reshape(-1), equal_nan=True)


def _first(content: NDArray[np.generic], wrong: NDArray[np.bool_]) -> str:
    place = int(np.flatnonzero(wrong)[0])
    return f"{content.reshape(-1)[place]} at {place}"
