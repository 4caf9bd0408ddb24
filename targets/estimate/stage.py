"""Facts about a bundle's stages, and what they would be after an export with other options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BundleError
from trunkline.runtime.manifest import CPU_VARIANT, TRT_VARIANT, Stage
from trunkline.runtime.onnx_nodes import Graph, read_graph
from trunkline.runtime.stage_files import checked_graph
from trunkline.targets.estimate.needs import Needs, Weights, needs

HALF_BYTES, INT8_BYTES = 2, 1


@dataclass(frozen=True)
class StageGraph:
    """A stage, one of its variants, and its graph."""

    name: str
    stage: Stage
    variant: str
    precision: str
    graph: Graph

    def facts(self, most: Mapping[str, int], usual: Mapping[str, int] | None = None) -> StageFacts:
        """What it needs for the largest sizes of varying dimensions, and what values take for the usual ones."""
        found = needs(self.graph, self.stage, most)
        fewer = found if usual is None else needs(self.graph, self.stage, usual)
        return StageFacts(self.name, self.variant, self.precision, found, fewer.activations_bytes)


@dataclass(frozen=True)
class StageFacts:
    """A stage, the variant and precision it runs in, and what it needs.

    Attributes:
        name: of the stage.
        variant: ``cpu`` or ``trt``.
        precision: as the manifest calls it.
        needs: for as many rows as there may be.
        usual_activations_bytes: alive at once for as many rows as there usually are.
    """

    name: str
    variant: str
    precision: str
    needs: Needs
    usual_activations_bytes: int


def read_stages(bundle: Bundle, variant: str) -> tuple[StageGraph, ...]:
    """All stages of a bundle in one variant.

    Raises:
        BundleError: a graph is refused, or a stage lacks the variant.
        IntegrityError: a graph changed since the bundle was opened.
    """
    found = []
    for name, stage in bundle.manifest.stages.items():
        form = stage.variants.get(variant)
        if form is None:
            raise BundleError("a stage lacks a variant", where=f"{bundle.root}, stage {name}", expected=variant)
        graph = read_graph(checked_graph(bundle, form), f"{bundle.root}, {form.graph}")
        found.append(StageGraph(name, stage, variant, form.precision, graph))
    return tuple(found)


def as_half(facts: StageFacts) -> StageFacts:
    """As ``trunkline export --half`` would write the ``trt`` variant: weights of two bytes a number.

    Values count as they are: what halves would save, float32 islands and attention spelled out take again.
    """
    weights = tuple(replace(each, bytes=each.count * HALF_BYTES) for each in facts.needs.weights)
    return replace(facts, variant=TRT_VARIANT, precision="float16", needs=replace(facts.needs, weights=weights))


def as_int8(facts: StageFacts) -> StageFacts:
    """As an int8 export would write it: linear layers in int8, other large weights of ``cpu`` only stored so."""
    stores = facts.variant == CPU_VARIANT
    weights = tuple(_int8(each, stores) for each in facts.needs.weights)
    precision = "int8" if stores else "float16+int8"
    return replace(facts, precision=precision, needs=replace(facts.needs, weights=weights))


def _int8(weights: Weights, stores: bool) -> Weights:
    if weights.kind == "linear":
        return replace(weights, kind="int8", bytes=weights.count * INT8_BYTES)
    if not stores:
        return weights
    if weights.kind == "table":
        return replace(weights, bytes=weights.count * INT8_BYTES)
    return replace(weights, kind="folded") if weights.kind == "matrices" else weights


def with_members(facts: StageFacts, members: int) -> StageFacts:
    """With the first ``members`` members only."""
    kept = tuple(each for each in facts.needs.weights if each.member is None or each.member < members)
    return replace(facts, needs=replace(facts.needs, weights=kept))


def with_usual_rows(facts: StageFacts) -> StageFacts:
    """With no more rows in a call than there usually are."""
    return replace(facts, needs=replace(facts.needs, activations_bytes=facts.usual_activations_bytes))
