"""Type and size of every value of a graph for given rows, without running it.

Letters are bound to numbers first, so that everything here is about whole numbers. Each operator has one small rule in
``_RULES``. Integers that shapes are computed from (``Shape``, ``Slice``, ``Concat``, ...) are followed as numbers.

Where there is no rule, or a rule does not apply, a value is taken to be as large as the node's largest input. How often
that happened is told (:attr:`Sizes.guessed`). Graphs come from outside, so the same is done where a value would have a
rank or a size that no stage has: nothing here takes longer or more memory for larger numbers in a graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from trunkline.runtime.manifest import MAX_RANK, Stage
from trunkline.runtime.onnx_nodes import MAX_INTEGERS, Graph, Node
from trunkline.runtime.onnx_proto import ITEM_BYTES, Element

Shape = tuple[int, ...]

_MAX_SIZE = 1 << 40
_ELEMENTS = {"float32": Element.FLOAT32, "uint8": Element.UINT8, "int64": Element.INT64}


@dataclass(frozen=True)
class Known:
    """Of one value: TensorProto.DataType, shape, and its numbers where they are small integers."""

    element: int
    shape: Shape
    integers: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES.get(self.element, 4)


@dataclass
class Sizes:
    """What is known of each value, constants included, and the names of those that are guessed."""

    values: dict[str, Known]
    guessed: list[str] = field(default_factory=list)


def sizes(graph: Graph, stage: Stage, rows: Mapping[str, int]) -> Sizes:
    """Sizes of all values.

    Args:
        graph: the stage's.
        stage: its contract, whose inputs are taken as they are.
        rows: how large each varying dimension is, by letter; 1 where nothing is said.
    """
    found = Sizes({name: Known(each.element, each.shape, each.integers) for name, each in graph.constants.items()})
    for spec in stage.inputs:
        shape = tuple(size if isinstance(size, int) else rows.get(size, 1) for size in spec.shape)
        found.values[spec.name] = Known(_ELEMENTS[spec.dtype], shape)
    for node in graph.nodes:
        _follow(node, found)
    return found


def _follow(node: Node, found: Sizes) -> None:
    inputs = [found.values.get(name) for name in node.inputs]
    try:
        results = _results(node, inputs)
    except (IndexError, KeyError, ValueError, ZeroDivisionError):
        results = []  # an input is unknown, or the node is not what its operator's rule expects
    for place, name in enumerate(node.outputs):
        if not name:
            continue
        if place < len(results):
            found.values[name] = results[place]
        else:
            found.guessed.append(name)
            known = [each for each in inputs if each is not None]
            found.values[name] = max(known, key=lambda each: each.nbytes, default=Known(Element.FLOAT32, ()))


def _results(node: Node, inputs: Sequence[Known | None]) -> list[Known]:
    if node.operator == "Constant":
        tensor = node.tensor
        return [] if tensor is None else [Known(tensor.element, tensor.shape, tensor.integers)]
    shapes = _RULES[node.operator](node, inputs)
    if any(len(shape) > MAX_RANK or not all(0 <= size <= _MAX_SIZE for size in shape) for shape in shapes):
        return []
    kind = _element(node, inputs)
    return [Known(kind, shape, _checked(_numbers(node, inputs, shape), shape)) for shape in shapes]


def _element(node: Node, inputs: Sequence[Known | None]) -> int:
    operator = node.operator
    if operator == "Cast":
        return node.integer("to", Element.FLOAT32)
    if operator in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or"):
        return Element.BOOL
    if operator == "Shape":
        return Element.INT64
    if operator == "QuantizeLinear":
        return inputs[2].element if len(inputs) > 2 and inputs[2] else Element.INT8
    place = {"DequantizeLinear": 1, "Where": 1}.get(operator, 0)
    return _known(inputs, place).element


def _known(inputs: Sequence[Known | None], place: int) -> Known:
    value = inputs[place]
    if value is None:
        raise KeyError(place)
    return value


def _integers(inputs: Sequence[Known | None], place: int) -> tuple[int, ...]:
    numbers = _known(inputs, place).integers
    if numbers is None:
        raise KeyError(place)
    return numbers


def _axes(node: Node, inputs: Sequence[Known | None], place: int = 1) -> tuple[int, ...] | None:
    """An operator's axes: an input since opset 13 or 18, an attribute before; None where all are meant."""
    if len(inputs) > place and inputs[place] is not None:
        return _integers(inputs, place)
    return node.integers.get("axes")


def _numbers(node: Node, inputs: Sequence[Known | None], shape: Shape) -> tuple[int, ...] | None:
    """A result's numbers, where they are integers that a shape may be made of."""
    if node.operator == "Shape":
        whole = _known(inputs, 0).shape
        return whole[node.integer("start", 0) : node.integer("end", len(whole))]
    parts = [None if each is None else each.integers for each in inputs]
    first = parts[0] if parts else None
    if first is None or len(shape) > 1 or math.prod(shape) > MAX_INTEGERS:
        return None
    if node.operator in ("Identity", "Reshape", "Squeeze", "Unsqueeze"):
        return first
    if node.operator == "Concat" and None not in parts:
        return tuple(number for part in parts if part is not None for number in part)
    if node.operator == "Slice":
        begin, stop, _, step = _cuts(inputs)[0]
        return tuple(first[place] for place in range(begin, stop, step))
    if node.operator == "Gather":
        return tuple(first[place] for place in parts[1]) if parts[1] is not None else None
    return None


def _checked(numbers: tuple[int, ...] | None, shape: Shape) -> tuple[int, ...] | None:
    """Numbers of a value, if there are as many as its shape says."""
    return numbers if numbers is not None and len(numbers) == math.prod(shape) else None


def _same(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    return [_known(inputs, 0).shape]


def _broadcast(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    return [broadcast(*(_known(inputs, place).shape for place in range(len(inputs))))]


def broadcast(*shapes: Shape) -> Shape:
    """The shape that numpy would give.

    Raises:
        ValueError: the shapes do not fit.
    """
    rank = max(len(shape) for shape in shapes)
    result = []
    for column in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        wide = set(column) - {1}
        if len(wide) > 1:
            raise ValueError(f"{shapes} do not fit")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def _matmul(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    left, right = _known(inputs, 0).shape, _known(inputs, 1).shape
    return [(*broadcast(left[:-2], right[:-2]), left[-2], right[-1])]


def _gemm(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    left, right = _known(inputs, 0).shape, _known(inputs, 1).shape
    return [(left[1 if node.integer("transA", 0) else 0], right[0 if node.integer("transB", 0) else 1])]


def _attention(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    query, value = _known(inputs, 0).shape, _known(inputs, 2).shape
    if len(query) == 4:
        return [(*query[:3], value[3])]
    heads, value_heads = node.integer("q_num_heads", 1), node.integer("kv_num_heads", 1)
    return [(query[0], query[1], value[2] // value_heads * heads)]


def _conv(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    data, kernel = _known(inputs, 0).shape, _known(inputs, 1).shape
    if node.texts.get("auto_pad", "NOTSET") != "NOTSET":
        raise ValueError("automatic padding")
    axes = len(data) - 2
    pads = node.integers.get("pads", (0,) * 2 * axes)
    strides, dilations = node.integers.get("strides", (1,) * axes), node.integers.get("dilations", (1,) * axes)
    spatial = [
        (data[2 + i] + pads[i] + pads[axes + i] - dilations[i] * (kernel[2 + i] - 1) - 1) // strides[i] + 1
        for i in range(axes)
    ]
    return [(data[0], kernel[0], *spatial)]


def _gather(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    data, indices = _known(inputs, 0).shape, _known(inputs, 1).shape
    axis = node.integer("axis", 0) % len(data)
    return [(*data[:axis], *indices, *data[axis + 1 :])]


def _reshape(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    data, wanted = _known(inputs, 0).shape, list(_integers(inputs, 1))
    if not node.integer("allowzero", 0):
        wanted = [data[place] if size == 0 else size for place, size in enumerate(wanted)]
    if -1 in wanted:
        rest = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = math.prod(data) // rest
    if math.prod(wanted) != math.prod(data):
        raise ValueError("a reshape changes how many numbers there are")
    return [tuple(wanted)]


def _flatten(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    data = _known(inputs, 0).shape
    axis = node.integer("axis", 1)
    return [(math.prod(data[:axis]), math.prod(data[axis:]))]


def _expand(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    return [broadcast(_known(inputs, 0).shape, _integers(inputs, 1))]


def _transpose(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    data = _known(inputs, 0).shape
    return [tuple(data[axis] for axis in node.integers.get("perm", tuple(range(len(data)))[::-1]))]


def _squeeze(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    data, axes = _known(inputs, 0).shape, _axes(node, inputs)
    dropped = {axis % len(data) for axis in axes} if axes else {i for i, size in enumerate(data) if size == 1}
    return [tuple(size for place, size in enumerate(data) if place not in dropped)]


def _unsqueeze(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    data, axes = list(_known(inputs, 0).shape), _axes(node, inputs) or ()
    rank = len(data) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data.insert(axis, 1)
    return [tuple(data)]


def _cuts(inputs: Sequence[Known | None]) -> list[tuple[int, int, int, int]]:
    """Begin, end, axis and step of each axis that is sliced, as Python's ``range`` counts them."""
    shape = _known(inputs, 0).shape
    starts, ends = _integers(inputs, 1), _integers(inputs, 2)
    axes = _integers(inputs, 3) if len(inputs) > 3 and inputs[3] else tuple(range(len(starts)))
    steps = _integers(inputs, 4) if len(inputs) > 4 and inputs[4] else (1,) * len(starts)
    cuts = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(shape)
        begin, stop, stride = slice(start, end, step).indices(shape[axis])
        cuts.append((begin, stop, axis, stride))
    return cuts


def _sliced(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    data = list(_known(inputs, 0).shape)
    for begin, stop, axis, step in _cuts(inputs):
        data[axis] = len(range(begin, stop, step))
    return [tuple(data)]


def _concat(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    shapes = [_known(inputs, place).shape for place in range(len(inputs))]
    axis = node.integer("axis", 0) % len(shapes[0])
    return [(*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])]


def _split(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    data, count = _known(inputs, 0).shape, len(node.outputs)
    axis = node.integer("axis", 0) % len(data)
    part = -(-data[axis] // count)
    parts = _integers(inputs, 1) if len(inputs) > 1 else (*(part,) * (count - 1), data[axis] - part * (count - 1))
    return [(*data[:axis], size, *data[axis + 1 :]) for size in parts]


def _shape(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    data = _known(inputs, 0).shape
    return [(len(data[node.integer("start", 0) : node.integer("end", len(data))]),)]


def _reduce(node: Node, inputs: Sequence[Known | None]) -> list[Shape]:
    data, axes = _known(inputs, 0).shape, _axes(node, inputs)
    if not axes and node.integer("noop_with_empty_axes", 0):
        return [data]
    reduced = {axis % len(data) for axis in axes} if axes else set(range(len(data)))
    if node.integer("keepdims", 1):
        return [tuple(1 if place in reduced else size for place, size in enumerate(data))]
    return [tuple(size for place, size in enumerate(data) if place not in reduced)]


Rule = Callable[[Node, Sequence[Known | None]], list[Shape]]

_SAME = (
    "Abs Cast Ceil Clip Cos DequantizeLinear Erf Exp Floor Gelu HardSigmoid HardSwish Identity LayerNormalization "
    "LeakyRelu Log LogSoftmax Mish Neg Not QuantizeLinear RMSNormalization Reciprocal Relu Round Sigmoid Sign Sin "
    "Softmax Softplus Sqrt Swish Tanh Trilu"
)
_BROADCAST = "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow Sub Sum Where Xor"
_REDUCE = "ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare"

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(_BROADCAST.split(), _broadcast),
    **dict.fromkeys(_REDUCE.split(), _reduce),
    "Attention": _attention,
    "Concat": _concat,
    "Conv": _conv,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _sliced,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
