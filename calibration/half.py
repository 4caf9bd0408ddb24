"""Half precision as casts in a stage's graph, for back ends that run what the graph says (TensorRT, CUDA).

Requires: a float32 model without subgraphs, opset 19 or newer; it may hold int8 already (``placement.py``).
Ensures: the same function with float16 weights and arithmetic, except on *islands*, which stay float32 because half
precision breaks them. Inputs and outputs of the stage keep their types. Nothing is left to a builder's flag.

How it is decided, in this order:

1. A node that an :class:`Island` names is float32. The table of what each island is worth is in docs/benchmarks.md.
2. A node that reads a weight which half cannot hold (too large, or too small to keep its digits) is float32.
3. A node that makes or reads a value which was seen to come near the end of half's range is float32.
4. What only moves numbers (``CARRIERS``) is float32 between float32 neighbours and half elsewhere: a cast comes where
   an island ends, and neighbouring islands are one. A table of tokens is half, whoever reads it.
5. Everything else is half.

One cast serves all readers of a value. Scales of ``QuantizeLinear`` and ``DequantizeLinear`` have the type of the float
on that side of the pair, since ONNX wants that: a normalisation that stays float32 is quantised with a float32 scale,
and int8 becomes half with a half scale, with no cast in between that could hide the pattern from TensorRT. Both are the
same number, the one that half can hold. Half scales are legal from opset 19 on. Int8 weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

from trunkline.runtime.errors import ExportError

MIN_OPSET = 19  # half scales of Q/DQ
HALF_MAX = 65504.0
#: Share of half's range that a value may have reached in the samples: others may be larger.
HEADROOM = 0.25
#: A weight fits if its rounding to half moves it by less, relative to its length. Rounding of ordinary weights gives
#: 2e-4; more means that a good part of it lies below 6e-5, where half has fewer digits.
MAX_ROUNDING = 1e-3
#: Numbers from here on mean "never" or "everything", not themselves.
MASK = 1e38
CHUNK = 1 << 22  # numbers looked at together; token tables have hundreds of millions

_CARRIER_NAMES = (
    "Concat Expand Flatten Gather GatherElements GatherND Identity Reshape Slice Split Squeeze Tile Transpose "
    "Unsqueeze Where"
)
#: Operators that move numbers without computing with them.
CARRIERS = frozenset(_CARRIER_NAMES.split())
#: Operators that look at a tensor of any type.
_INDIFFERENT = frozenset({"Shape", "Size"})
#: Operators that change a type; the float side of them has no arithmetic of its own.
_CONVERTERS = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear"})
_SCALED = frozenset({"DequantizeLinear", "QuantizeLinear"})
#: What an island of the kind ``before`` may consist of.
_ELEMENTWISE = CARRIERS | {"Add", "Cast", "Div", "Mul", "Sub"}


@dataclass(frozen=True)
class Island:
    """A rule that keeps nodes in float32.

    Attributes:
        name: shown in reports.
        reason: what goes wrong in half.
        operators: node types it names.
        read_by: if not empty, only those whose result a node of these types reads, directly or through carriers.
        readers: node types it names besides, where they read a result of ``operators``, directly or through carriers.
        before: node types; what they are computed from belongs to the island, back to the stage's inputs.
    """

    name: str
    reason: str
    operators: frozenset[str] = frozenset()
    read_by: frozenset[str] = frozenset()
    readers: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()


LAYER_NORM = Island(
    "layer normalisation",
    "squares of the residual stream's giant channels (|x| up to 1400 in trained towers) pass 65504 at 256",
    operators=frozenset({"LayerNormalization"}),
)
RESIDUAL = Island(
    "residual stream",
    "at 1000, half counts in steps of 0.5: giants that are rounded shift a row's mean, and with it all other channels",
    operators=frozenset({"Add"}),
    read_by=frozenset({"LayerNormalization"}),
)
UNIT_LENGTH = Island(
    "unit length",
    "a row's sum of squares passes 65504 where its length passes 256, and a stage's output is float32 anyway",
    operators=frozenset({"ReduceL2"}),
    readers=frozenset({"Div"}),
)
INPUT_SCALING = Island(
    "input scaling",
    "a byte over 255 is no half number, and the error would enter before the first layer",
    before=frozenset({"Conv"}),
)
PATCH_CONVOLUTION = Island(
    "patch convolution",
    "giant channels begin here: at 1000, half counts in steps of 0.5; it is 0.3 % of the work",
    operators=frozenset({"Conv"}),
)
COMPARISON = Island(
    "comparison",
    "padding is recognised by equality; rounded to half, other numbers equal it too",
    operators=frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}),
)

ISLANDS = (LAYER_NORM, RESIDUAL, UNIT_LENGTH, INPUT_SCALING, PATCH_CONVOLUTION, COMPARISON)
_WEIGHT, _RANGE = "weight", "range"


@dataclass(frozen=True)
class KeptTensor:
    """A float32 weight, and why it is not half: the island it lies in, or what half would do to it."""

    name: str
    reason: str


@dataclass(frozen=True)
class HalfReport:
    """What a conversion did.

    Attributes:
        islands: nodes in float32 by rule; besides the islands' names there are ``weight`` and ``range``.
        half_nodes: nodes that compute in half.
        casts: ``Cast`` nodes that were added.
        kept: float32 weights, in the order of the graph.
    """

    islands: dict[str, int]
    half_nodes: int
    casts: int
    kept: tuple[KeptTensor, ...]


def to_half(
    model: ir.Model, *, islands: Sequence[Island] = ISLANDS, largest: Mapping[str, float] | None = None
) -> HalfReport:
    """Turns a float32 model into half precision with float32 islands, in place.

    Args:
        model: see the module; its values must have names.
        islands: what stays float32.
        largest: largest magnitude seen of each value between nodes, by name, from
            :func:`trunkline.calibration.half_ranges.largest_values`. Without it, only weights are checked.

    Raises:
        ExportError: the model is of an older opset, or holds subgraphs.
    """
    _check(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_types(model)
    plan = _Plan(model, islands, largest or {})
    halves = sum(_computes(node) and node not in plan.rules for node in plan.floats)
    casts = _Writer(model, plan).write()
    kept = tuple(
        KeptTensor(name, plan.unfit.get(name) or _island_of(value, plan))
        for name, value in model.graph.initializers.items()
        if value.dtype == ir.DataType.FLOAT
    )
    return HalfReport(_counted(plan.rules.values()), halves, casts, kept)


def infer_types(model: ir.Model) -> None:
    """Gives every value between nodes its type; graphs that torch wrote have them."""
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        ShapeInferencePass()(model)


def half_problem(content: NDArray[np.float32]) -> str | None:
    """Why a weight cannot be half, None if it can. Masks can, see :func:`half_of`."""
    flat = content.reshape(-1)
    length = error = 0.0
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        part = part[np.abs(part) < MASK]
        if part.size and (largest := float(np.abs(part).max())) > HALF_MAX:
            return f"reaches {largest:.6g}; half ends at {HALF_MAX:.0f}"
        wide = part.astype(np.float64)
        length += float((wide**2).sum())
        error += float(((part.astype(np.float16) - wide) ** 2).sum())
    moved = (error / length) ** 0.5 if length else 0.0
    return f"so small that rounding to half moves it by {moved:.2g} of its length" if moved > MAX_ROUNDING else None


def half_of(content: NDArray[np.float32]) -> NDArray[np.float16]:
    """Rounded to half. The ends of float32's range, which mask a softmax, become the ends of half's."""
    if content.size and max(float(content.max()), -float(content.min())) < MASK:
        return content.astype(np.float16)
    masks = np.isfinite(content) & (np.abs(content) >= MASK)
    return np.where(masks, np.copysign(np.float32(HALF_MAX), content), content).astype(np.float16)


def scale_problem(content: NDArray[np.float32]) -> str | None:
    """The same for the scales of a quantiser, which are positive; each one counts, since it has a column of its own."""
    if half_problem(content) is not None:
        return half_problem(content)
    wide = content.astype(np.float64)
    moved = float((np.abs(content.astype(np.float16) - wide) / wide).max())
    return f"a scale that half moves by {moved:.2g} of its size" if moved > MAX_ROUNDING else None


def _check(model: ir.Model) -> None:
    opset = model.opset_imports.get("", 0)
    inner = [
        str(node.name)
        for node in model.graph
        if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in _attributes(node))
    ]
    if opset < MIN_OPSET or inner:
        raise ExportError(
            "cannot write a stage in half precision",
            where=model.graph.name,
            expected=f"opset {MIN_OPSET} or newer, no operators that hold graphs",
            found=[f"opset {opset}", *inner],
            fix="trace the stage for the trt variant",
        )


def _attributes(node: ir.Node) -> Iterator[ir.Attr]:
    yield from node.attributes.values()


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _float_inputs(node: ir.Node) -> list[tuple[int, ir.Value]]:
    if node.op_type in _INDIFFERENT:
        return []
    return [(place, value) for place, value in enumerate(node.inputs) if value is not None and _is_float(value)]


def _makes_float(node: ir.Node) -> bool:
    return any(_is_float(value) for value in node.outputs)


def _computes(node: ir.Node) -> bool:
    """Neither moves numbers nor only changes or tests them."""
    return node.op_type not in CARRIERS | _CONVERTERS and bool(_float_inputs(node)) and _makes_float(node)


def _readers(value: ir.Value) -> list[ir.Node]:
    return [use.node for use in value.uses() if use.node.op_type not in _INDIFFERENT]


def _counted(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _island_of(value: ir.Value, plan: _Plan) -> str:
    rules = [plan.rules[use.node] for use in value.uses() if use.node in plan.rules]
    return rules[0] if rules else "between islands"


class _Plan:
    """Which nodes stay float32, and why; nothing is changed yet.

    Attributes:
        floats: nodes that read or make floats, in order.
        rules: rule by node, for steps 1 to 3 of the module's list.
        single: those nodes, and what lies between them (step 4).
        unfit: reason by name of a weight that half cannot hold.
    """

    def __init__(self, model: ir.Model, islands: Sequence[Island], largest: Mapping[str, float]) -> None:
        self.floats = [node for node in model.graph if _float_inputs(node) or _makes_float(node)]
        self.rules: dict[ir.Node, str] = {}
        for island in islands:
            for node in self._named(island):
                self.rules.setdefault(node, island.name)
        self.unfit = self._unfit_weights(model)
        for node in self.floats:
            if any(value.name in self.unfit for _, value in _float_inputs(node)):
                self.rules.setdefault(node, _WEIGHT)
            elif any(largest.get(str(value.name), 0) > HALF_MAX * HEADROOM for value in _touched(node)):
                self.rules.setdefault(node, _RANGE)
        self.single = self._with_what_lies_between(set(self.rules))

    def _named(self, island: Island) -> Iterator[ir.Node]:
        for node in self.floats:
            if node.op_type in island.operators and (not island.read_by or any(_readers_of(node, island.read_by))):
                yield node
                yield from _readers_of(node, island.readers)
            if node.op_type in island.before:
                yield from self._sources_of(node, set())

    def _sources_of(self, node: ir.Node, seen: set[ir.Node]) -> Iterator[ir.Node]:
        for _, value in _float_inputs(node):
            source = value.producer()
            if source is not None and source not in seen and source.op_type in _ELEMENTWISE:
                seen.add(source)
                yield source
                yield from self._sources_of(source, seen)

    def _unfit_weights(self, model: ir.Model) -> dict[str, str]:
        """Only of weights that would become half."""
        problems = {}
        for name, value in model.graph.initializers.items():
            readers = _readers(value) if _is_float(value) else []
            if any(node not in self.rules for node in readers):
                is_scale = all(node.op_type in _SCALED for node in readers)
                problem = scale_problem(_content(value)) if is_scale else half_problem(_content(value))
                if problem is not None:
                    problems[name] = problem
        return problems

    def _with_what_lies_between(self, single: set[ir.Node]) -> set[ir.Node]:
        """Adds nodes that have no arithmetic of their own and lie between float32 neighbours.

        Forward: what can be float32 because it reads nothing else. Backward: which of it should be, because a reader
        is float32, or because none is half. Last, nodes that make no floats take what they get.
        """
        movable = [node for node in self.floats if not _computes(node) and node not in self.rules]
        possible = set(single)
        for node in movable:
            if _reads_only(node, possible) and not _looks_up(node):
                possible.add(node)
        chosen = set(single)
        for node in reversed(movable):
            if node in possible and _makes_float(node) and _should_be_single(node, chosen):
                chosen.add(node)
        for node in movable:
            if not _makes_float(node) and _reads_only(node, chosen):
                chosen.add(node)
        return chosen


def _readers_of(node: ir.Node, kinds: frozenset[str]) -> Iterator[ir.Node]:
    """Nodes of these types that read what a node makes, directly or through carriers."""
    for reader in (reader for value in node.outputs for reader in _readers(value)):
        if reader.op_type in kinds:
            yield reader
        elif reader.op_type in CARRIERS:
            yield from _readers_of(reader, kinds)


def _looks_up(node: ir.Node) -> bool:
    """Reads a table of weights. It is stored in half like any weight; in float32 a token table is a gigabyte."""
    return node.op_type == "Gather" and all(value.is_initializer() for _, value in _float_inputs(node))


def _reads_only(node: ir.Node, singles: set[ir.Node]) -> bool:
    sources = [value.producer() for _, value in _float_inputs(node)]
    return all(source is None or source in singles for source in sources)


def _should_be_single(node: ir.Node, chosen: set[ir.Node]) -> bool:
    values = [value for value in node.outputs if _is_float(value)]
    readers = [reader for value in values for reader in _readers(value)]
    singles = [reader for reader in readers if reader in chosen]
    halves = [reader for reader in readers if reader not in singles and _makes_float(reader)]
    is_read = any(value.is_graph_output() for value in values) or bool(singles)
    return not halves or (is_read and node.op_type in CARRIERS)


def _touched(node: ir.Node) -> list[ir.Value]:
    """What a node reads and makes."""
    return [value for _, value in _float_inputs(node)] + [value for value in node.outputs if _is_float(value)]


def _content(value: ir.Value) -> NDArray[np.float32]:
    if value.const_value is None:
        raise TypeError(f"{value.name} is no constant")
    return value.const_value.numpy()


class _Writer:
    """Changes the model as planned."""

    def __init__(self, model: ir.Model, plan: _Plan) -> None:
        self._graph, self._plan = model.graph, plan
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def write(self) -> int:
        """Returns how many casts were added."""
        wanted = [
            (node, place, value, self._type_of(node))
            for node in self._plan.floats
            for place, value in _float_inputs(node)
        ]
        for node in self._plan.floats:
            if node not in self._plan.single:
                self._make_half(node)
        for node, place, value, kind in wanted:
            node.replace_input_with(place, self._as(value, kind))
        for position, value in enumerate(self._graph.outputs):
            if value.dtype == ir.DataType.FLOAT16:
                self._restore_output(position, value)
        self._drop_unused()
        self._agree_on_scales()
        return sum(not value.is_initializer() for value in self._cast.values())

    def _type_of(self, node: ir.Node) -> ir.DataType:
        return ir.DataType.FLOAT if node in self._plan.single else ir.DataType.FLOAT16

    def _make_half(self, node: ir.Node) -> None:
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(ir.DataType.FLOAT16)  # a new one: values may share theirs
                if node.op_type == "Cast":
                    node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)

    def _as(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """``value`` in a type: itself, a weight stored in it, or the result of a cast that all readers share."""
        if value.dtype == kind:
            return value
        if (value, kind) not in self._cast:
            make = self._half_weight if value.is_initializer() else self._insert_cast
            self._cast[value, kind] = make(value, kind)
        return self._cast[value, kind]

    def _half_weight(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        name = f"{value.name}.half"
        tensor = ir.tensor(half_of(_content(value)), name=name)
        half = ir.Value(name=name, shape=value.shape, type=ir.TensorType(kind), const_value=tensor)
        self._graph.register_initializer(half)
        return half

    def _insert_cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        name = f"{value.name}/{'half' if kind == ir.DataType.FLOAT16 else 'float'}"
        result = ir.Value(name=name, shape=value.shape, type=ir.TensorType(kind))
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", kind)], outputs=[result], name=name)
        source = value.producer()
        if source is not None:
            self._graph.insert_after(source, node)
        else:
            self._graph.insert_before(self._graph[0], node)
        return result

    def _restore_output(self, position: int, value: ir.Value) -> None:
        """The stage's output is float32 under its own name."""
        name = str(value.name)
        value.name = f"{name}/half"
        result = self._as(value, ir.DataType.FLOAT)
        self._graph.outputs[position] = result
        result.name = name

    def _agree_on_scales(self) -> None:
        """A pair quantises and restores with the same number, also where its two sides are of different types."""
        for (value, _), half in self._cast.items():
            if value.is_initializer() and value.uses() and all(use.node.op_type in _SCALED for use in value.uses()):
                value.const_value = ir.tensor(_content(half).astype(np.float32), name=value.name)

    def _drop_unused(self) -> None:
        """Weights that are half now; those take the names over."""
        for (value, _), half in self._cast.items():
            if value.is_initializer() and not value.uses():
                name = str(value.name)
                del self._graph.initializers[name]
                half.name = name
