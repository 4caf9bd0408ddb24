"""Moves outlier channels from activations into weights, without changing the function (SmoothQuant).

Requires: a normalised model (:mod:`trunkline.calibration.int8.linears`).
Ensures: what the model computes in float32 stays the same up to rounding.

Trained vision transformers have a few channels a hundred times larger than the rest, and one int8 range for all of them
leaves the others two or three levels. Where a linear layer's input comes from something that can absorb a factor per
channel, the input is divided by s and the weight's rows are multiplied by it. Sources that can:

1. a ``LayerNormalization``: its scale and bias are divided;
2. another linear layer, directly or through ReLU, which commutes with positive factors: its columns are divided;
3. the value part of a projection, through attention, be it one operator or its second product: attention mixes tokens,
   never channels.

Between source and layer there may be operators that only move numbers. Which channel arrives where is found by sending
channel numbers along that path. A source is left alone if anything else reads its channels, such as a residual sum.

Source of the idea: Xiao et al., SmoothQuant, 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trunkline.calibration.int8.linears import Linear, array, find_linears, replace_constant

Floats = NDArray[np.float32]
Channels = NDArray[np.int64]

#: Stands for a varying dimension while channel numbers are sent along a path; not 1, so that broadcasts show.
_ROWS = 2


@dataclass(frozen=True, eq=False)
class Site:
    """A place where factors can be moved.

    Attributes:
        source: the normalisation, or the linear layer whose columns absorb the factors.
        channels: (K,) int64, for each input channel of the layers the source's channel that it comes from.
        linears: all layers that read the same value.
    """

    source: ir.Node | Linear
    channels: Channels
    linears: tuple[Linear, ...]

    @property
    def value(self) -> ir.Value:
        """What the layers read, (..., K)."""
        return self.linears[0].input


def find_sites(model: ir.Model) -> list[Site]:
    """All places of a normalised model where factors can be moved, in the order of the graph."""
    linears = find_linears(model)
    by_output = {id(linear.output): linear for linear in linears}
    readers: dict[int, list[Linear]] = {}
    for linear in linears:
        readers.setdefault(id(linear.input), []).append(linear)
    sites = []
    for group in readers.values():
        site = _site(tuple(group), by_output)
        if site is not None:
            sites.append(site)
    return sites


def smooth(model: ir.Model, site: Site, factors: Floats) -> None:
    """Divides what the site's layers read by ``factors`` (K,), all positive, and multiplies their weights' rows."""
    width = site.source.size[1] if isinstance(site.source, Linear) else _shape(site.source.inputs[1])[-1]
    divisors = np.ones(width, np.float32)
    divisors[site.channels] = factors
    if isinstance(site.source, Linear):
        replace_constant(model, site.source.node, 1, array(site.source.weight) / divisors)
        if site.source.bias_node is not None and site.source.bias is not None:
            place = list(site.source.bias_node.inputs).index(site.source.bias)
            replace_constant(model, site.source.bias_node, place, array(site.source.bias) / divisors)
    else:
        for place in range(1, len(site.source.inputs)):
            value = site.source.inputs[place]
            if value is not None:
                replace_constant(model, site.source, place, array(value) / divisors)
    for linear in site.linears:
        replace_constant(model, linear.node, 1, array(linear.weight) * factors[:, None])


def _site(linears: tuple[Linear, ...], by_output: Mapping[int, Linear]) -> Site | None:
    path: list[ir.Node] = []
    value = linears[0].input
    if len(value.uses()) != len(linears) or value.is_graph_output():
        return None
    while True:
        linear, node = by_output.get(id(value)), value.producer()
        if linear is not None:
            return _complete(linear, value, path, linears)
        if node is None:
            return None
        if node.op_type == "LayerNormalization":
            constant = all(each is None or each.is_initializer() for each in node.inputs[1:])
            return _complete(node, value, path, linears) if constant else None
        step = _STEPS.get(node.op_type)
        if step is None:
            return None
        path.append(node)
        upstream = _upstream(node)
        if upstream is None or upstream.is_graph_output() or not _only_reader(upstream, node):
            return None
        value = upstream


def _only_reader(value: ir.Value, node: ir.Node) -> bool:
    """Whether nothing but ``node`` reads a value, or all readers take parts of it; parts are compared afterwards."""
    users = {use.node for use in value.uses()}
    return users == {node} or all(user.op_type in _SELECTING for user in users)


def _complete(
    source: ir.Node | Linear, value: ir.Value, path: Sequence[ir.Node], linears: tuple[Linear, ...]
) -> Site | None:
    """The site, if every input channel of the layers comes from one channel of the source, and from no other's."""
    try:
        numbers = _numbered(value)
        for node in reversed(path):
            numbers = _STEPS[node.op_type](node, numbers)
    except (ValueError, IndexError, TypeError):  # a shape that depends on the input
        return None
    rows = numbers.reshape(-1, numbers.shape[-1])
    if not (rows == rows[0]).all() or len(set(rows[0].tolist())) != len(rows[0]):
        return None
    if rows.shape[1] != linears[0].size[0] or _read_elsewhere(value, path, set(rows[0].tolist())):
        return None
    return Site(source, rows[0], linears)


def _read_elsewhere(value: ir.Value, path: Sequence[ir.Node], channels: set[int]) -> bool:
    """Whether another branch beside the path takes some of these channels."""
    numbers = _numbered(value)
    for node in reversed(path):
        current = _upstream(node)
        for use in current.uses() if current is not None else ():
            if use.node is not node and channels & set(np.unique(_STEPS[use.node.op_type](use.node, numbers)).tolist()):
                return True
        numbers = _STEPS[node.op_type](node, numbers)
    return False


def _numbered(value: ir.Value) -> Channels:
    """A tensor of the value's shape that holds its own channel numbers, those of the last axis."""
    shape = tuple(size if isinstance(size, int) else _ROWS for size in value.shape or ())
    return np.broadcast_to(np.arange(shape[-1], dtype=np.int64), shape)


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    return tuple(int(size) for size in (value.shape if value is not None else None) or ())  # type: ignore[arg-type]


def _integers(node: ir.Node, place: int) -> list[int]:
    value = node.inputs[place] if place < len(node.inputs) else None
    if value is None or value.const_value is None:
        raise TypeError("not a constant")
    return [int(number) for number in np.atleast_1d(value.const_value.numpy())]


def _upstream(node: ir.Node) -> ir.Value | None:
    """The input whose channels a node on a path hands on."""
    return node.inputs[_CHANNELS_FROM.get(node.op_type, 0)]


def _keep(node: ir.Node, numbers: Channels) -> Channels:
    return numbers


def _mix_rows(node: ir.Node, numbers: Channels) -> Channels:
    """A product from the left: what comes out of a column was in that column, of some row."""
    if not (numbers == numbers[..., :1, :]).all():
        raise ValueError("rows hold different channels")
    return numbers


def _transpose(node: ir.Node, numbers: Channels) -> Channels:
    return numbers.transpose(node.attributes["perm"].as_ints())


def _reshape(node: ir.Node, numbers: Channels) -> Channels:
    target = [numbers.shape[axis] if size == 0 else size for axis, size in enumerate(_integers(node, 1))]
    return numbers.reshape(target)


def _squeeze(node: ir.Node, numbers: Channels) -> Channels:
    return np.squeeze(numbers, tuple(_integers(node, 1)))


def _unsqueeze(node: ir.Node, numbers: Channels) -> Channels:
    return np.expand_dims(numbers, tuple(_integers(node, 1)))


def _slice(node: ir.Node, numbers: Channels) -> Channels:
    starts, ends = _integers(node, 1), _integers(node, 2)
    axes = _integers(node, 3) if len(node.inputs) > 3 else list(range(len(starts)))
    steps = _integers(node, 4) if len(node.inputs) > 4 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        numbers = np.take(numbers, range(numbers.shape[axis])[start:end:step], axis=axis)
    return numbers


def _gather(node: ir.Node, numbers: Channels) -> Channels:
    index = node.inputs[1]
    if index is None or index.const_value is None:
        raise TypeError("not a constant")
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return np.take(numbers, index.const_value.numpy(), axis=axis)


#: Where it is not the first input.
_CHANNELS_FROM = {"Attention": 2, "MatMul": 1}
#: What each operator on a path does to the channels of its input.
_STEPS: dict[str, Callable[[ir.Node, Channels], Channels]] = {
    "Identity": _keep,
    "Relu": _keep,
    "Attention": _keep,
    "MatMul": _mix_rows,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Gather": _gather,
}
_SELECTING = frozenset({"Slice", "Gather"})
