"""What a stage needs: its weights by kind, and how many bytes of values are alive at once.

**Weights.** What is made of constants alone (a matrix stored in int8 and scaled to float32) is made once, when a stage
is loaded, and counts as it is then. A weight that a layer reads through ``DequantizeLinear`` stays as small as it is
stored.

**Activations.** Nodes run in the graph's order. A value lives from the node that makes it to the last one that reads
it; results live to the end. A reshaped value is the same memory. Nothing else shares memory, although back ends
overwrite inputs and fuse operators. So for a back end that keeps to this order the number is what it must keep at most.
It says nothing of what a back end sets aside besides; see :mod:`~trunkline.targets.estimate.footprint`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from trunkline.runtime.manifest import Stage
from trunkline.runtime.onnx_nodes import Graph, Node
from trunkline.runtime.onnx_proto import ITEM_BYTES
from trunkline.targets.estimate.shapes import Known, sizes

#: How a weight is used:
#:
#: - table: looked up row by row;
#: - int8: of a layer that computes in int8;
#: - linear: a matrix of a linear layer in floating point;
#: - matrices: other weights of products and convolutions, such as one matrix per attention head;
#: - folded: such weights, made when the stage is loaded from what is stored in int8;
#: - other: biases, norms, positions, constants.
Kind = Literal["table", "int8", "linear", "matrices", "folded", "other"]

_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_MOVES = frozenset({"Transpose", "Reshape"})


@dataclass(frozen=True)
class Weights:
    """Weights of one kind that belong to one member, or to none: how many numbers, and their bytes once loaded."""

    kind: Kind
    member: int | None
    count: int
    bytes: int


@dataclass(frozen=True)
class Needs:
    """Of one variant of one stage.

    Attributes:
        weights: by kind and member.
        activations_bytes: alive at once, for the rows that were asked for.
        nodes: how many operators run.
        guessed: values whose size could not be derived.
    """

    weights: tuple[Weights, ...]
    activations_bytes: int
    nodes: int
    guessed: int

    @property
    def weights_bytes(self) -> int:
        return sum(each.bytes for each in self.weights)


def needs(graph: Graph, stage: Stage, rows: Mapping[str, int]) -> Needs:
    """What a stage needs for given rows.

    Args:
        graph: of one of its variants.
        stage: its contract.
        rows: how large each varying dimension is, by letter.
    """
    found = sizes(graph, stage, rows)
    constant = _constant(graph)
    computed = [node for node in graph.nodes if not constant.issuperset(node.outputs)]
    alive = _alive(computed, stage, found.values)
    weights = _weights(computed, graph, found.values, constant)
    return Needs(weights, max(alive, default=0), len(computed), len(found.guessed))


def _constant(graph: Graph) -> set[str]:
    """Names of constants, and of what is made of nothing else."""
    constant = set(graph.constants)
    for node in graph.nodes:
        if constant.issuperset(name for name in node.inputs if name):
            constant.update(node.outputs)
    return constant


def _alive(nodes: list[Node], stage: Stage, values: Mapping[str, Known]) -> Iterator[int]:
    """Bytes alive while each node runs."""
    home = _homes(nodes)
    last = {home.get(name, name): place for place, node in enumerate(nodes) for name in node.inputs}
    kept = {home.get(spec.name, spec.name) for spec in stage.outputs + stage.inputs}
    alive = {spec.name: values[spec.name].nbytes for spec in stage.inputs}
    for place, node in enumerate(nodes):
        made = {name for name in node.outputs if name and home.get(name, name) == name}
        alive |= {name: values[name].nbytes for name in made}
        yield sum(alive.values()) + _scratch(node, values)
        for name in {home.get(each, each) for each in node.inputs} | made:
            if name not in kept and last.get(name, place) <= place:
                alive.pop(name, None)


def _homes(nodes: Iterable[Node]) -> dict[str, str]:
    """For each view, the value whose memory it is."""
    home: dict[str, str] = {}
    for node in nodes:
        if node.operator in _VIEWS and node.inputs and node.outputs:
            home[node.outputs[0]] = home.get(node.inputs[0], node.inputs[0])
    return home


def _scratch(node: Node, values: Mapping[str, Known]) -> int:
    """What an operator keeps besides inputs and outputs: attention its scores, (batch, heads, queries, keys)."""
    if node.operator != "Attention" or len(node.inputs) < 2:
        return 0
    query, key = values[node.inputs[0]], values[node.inputs[1]]
    if len(query.shape) == len(key.shape) == 4:
        scores = (*query.shape[:3], key.shape[2])
    elif len(query.shape) == len(key.shape) == 3:
        scores = (*query.shape[:2], key.shape[1], node.integer("q_num_heads", 1))
    else:
        return 0
    return math.prod(scores) * ITEM_BYTES.get(query.element, 4)


def _weights(nodes: list[Node], graph: Graph, values: Mapping[str, Known], constant: set[str]) -> tuple[Weights, ...]:
    """Weights that the nodes read, each once."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    kinds: dict[str, Kind] = {}
    for node in nodes:
        for place, name in enumerate(node.inputs):
            if name in constant:
                stored, kind = _read(node, place, name, makers, values)
                kinds[stored] = kind if kinds.get(stored, kind) == kind else "other"
    sums: dict[tuple[Kind, int | None], tuple[int, int]] = {}
    for name, kind in kinds.items():
        count, size = sums.get((kind, _member(name)), (0, 0))
        known = values[name]
        sums[kind, _member(name)] = count + math.prod(known.shape), size + known.nbytes
    return tuple(Weights(kind, member, *both) for (kind, member), both in sums.items())


def _read(
    node: Node, place: int, name: str, makers: Mapping[str, Node], values: Mapping[str, Known]
) -> tuple[str, Kind]:
    """The value that is kept for what a node reads, and its kind."""
    if node.operator == "Gather" and place == 0:
        return name, "table"
    if node.operator not in _PRODUCTS or place > 1:
        return name, "other"
    maker = makers.get(name)
    while maker is not None and maker.operator in _MOVES:
        maker = makers.get(maker.inputs[0])
    if maker is not None and maker.operator == "DequantizeLinear":
        return maker.inputs[0], "int8"
    if maker is not None:
        return name, "folded"
    return name, "linear" if node.operator != "Conv" and len(values[name].shape) == 2 else "matrices"


def _member(name: str) -> int | None:
    """Whose weight it is: their names begin with ``member.<index>.``."""
    found = re.match(r"member\.([0-9]{1,9})\.", name)
    return int(found.group(1)) if found else None
