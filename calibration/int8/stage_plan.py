"""One stage, prepared for int8: smoothed weights, a range for every layer, and what each layer would cost and lose.

A plan is made once from statistics. Any choice of layers can then be written from it as a stage of its own, which is
what the search for a mixed precision does over and over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trunkline.calibration.int8.linears import Linear, block_of, find_linears, normalise
from trunkline.calibration.int8.outcome import LayerPrecision
from trunkline.calibration.int8.placement import place_int8, storable
from trunkline.calibration.int8.ranges import SMALLEST_THRESHOLD, Method, decibels, layer_error
from trunkline.calibration.int8.recipe import Recipe
from trunkline.calibration.int8.rules import PlacementRules
from trunkline.calibration.int8.smoothing import Site, find_sites, smooth
from trunkline.calibration.int8.smoothing_strength import ALPHAS, Smoothing, choose_smoothing
from trunkline.calibration.statistics.collect import TensorStatistics
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.manifest import Stage
from trunkline.runtime.progress import Progress, silent

#: Tensors under this size stay in the graph file, where Netron shows them.
INLINE_BYTES = 512
#: Rows by which a layer's signal-to-noise ratio is measured.
_ROWS = 256


#: Methods that are tried where none is named. Entropy is slow, and smoothing leaves it little to do.
_BEST = (Method("minmax"), Method("percentile"), Method("entropy"), Method("mse"))
_BEST_SMOOTHED = (Method("minmax"), Method("mse"))

#: Precision of layers and other initializers by name; float32 where nothing is said.
Choice = Mapping[str, LayerPrecision]


@dataclass(frozen=True)
class RangeOptions:
    """How ranges are chosen.

    Attributes:
        method: of all layers; None tries several for every layer, and keeps the best by its output.
        smoothing: move outlier channels into the weights first.
    """

    method: Method | None = None
    smoothing: bool = True


@dataclass(frozen=True)
class LayerPlan:
    """A linear layer that may become int8.

    Attributes:
        name: of the layer.
        inputs: K.
        outputs: N.
        rows: input rows per run of the stage, on average over the samples.
        threshold: largest magnitude of its (smoothed) input that int8 covers.
        clipped: ``threshold`` as a share of the largest magnitude that was seen.
        smoothing: strength, None where the input was not smoothed.
        signal_to_noise_db: of its output in int8.
    """

    name: str
    inputs: int
    outputs: int
    rows: float
    threshold: float
    clipped: float
    smoothing: float | None
    signal_to_noise_db: float

    @property
    def block(self) -> str:
        return block_of(self.name)


@dataclass(frozen=True)
class StagePlan:
    """A stage that can be written with any of its units in int8.

    Attributes:
        name: of the stage.
        stage: its manifest entry.
        graph: the prepared float32 graph.
        layers: by name, in the order of the graph.
        others: other initializers that can be stored as int8.
        factors: what was divided out of the layers' inputs, as in :class:`Recipe`.
    """

    name: str
    stage: Stage
    graph: Path
    layers: Mapping[str, LayerPlan]
    others: tuple[str, ...]
    factors: Mapping[frozenset[str], NDArray[np.float32]] = field(default_factory=dict)

    def lowest(self) -> Choice:
        """Everything in int8: layers in arithmetic, other large tensors in the file."""
        layers: dict[str, LayerPrecision] = dict.fromkeys(self.layers, "int8")
        return {**layers, **dict.fromkeys(self.others, "stored")}

    def recipe(self, choice: Choice) -> Recipe:
        """The layers that a choice has in int8, for another variant of the stage."""
        thresholds = {name: self.layers[name].threshold for name, kind in choice.items() if kind == "int8"}
        factors = {names: each for names, each in self.factors.items() if names & set(thresholds)}
        return Recipe(thresholds, factors)

    def write(self, choice: Choice, folder: Path) -> StageFiles:
        """Writes the stage as ``cpu.onnx`` and ``cpu.weights``; what ``choice`` does not name stays float32."""
        model = ir.load(self.graph)
        thresholds = self.recipe(choice).thresholds
        matrices = {linear.name: str(linear.weight.name) for linear in find_linears(model)}
        stored = [matrices.get(name, name) for name, kind in choice.items() if kind == "stored"]
        place_int8(model, thresholds, stored)
        save(model, folder)
        return StageFiles(self.name, self.stage, (folder / "cpu.onnx").read_bytes(), folder)


def watched_values(graph: Path, rules: PlacementRules) -> list[str]:
    """Names of the values in a stage's graph whose statistics a plan needs."""
    model = ir.load(graph)
    normalise(model)
    return list(dict.fromkeys(str(linear.input.name) for linear in find_linears(model) if rules.allow(linear)))


def make_plan(
    stage: StageFiles,
    statistics: Mapping[str, TensorStatistics],
    folder: Path,
    *,
    ranges: RangeOptions,
    rules: PlacementRules,
    runs: int,
    progress: Progress = silent,
) -> StagePlan:
    """Smooths a stage, and chooses a range for every layer.

    Args:
        stage: the float32 stage; its graph file is ``cpu.onnx``.
        statistics: of every value that :func:`watched_values` names; none of them for a stage that nothing was
            collected for, whose layers then stay float32.
        folder: where the prepared graph is written.
        ranges: how ranges are chosen.
        rules: which layers may become int8.
        runs: how often the stage ran for the statistics.
        progress: counts inputs of layers.
    """
    model = ir.load(stage.folder / "cpu.onnx")
    normalise(model)
    linears = [each for each in find_linears(model) if rules.allow(each) and each.input.name in statistics]
    chosen = _smooth_all(model, linears, statistics, ranges, progress)
    layers = {}
    for linear in linears:
        value = str(linear.input.name)
        layers[linear.name] = _layer(linear, statistics[value], chosen[value], runs)
    others = tuple(storable(model, layers))
    save(model, folder)
    factors = {
        frozenset(linear.name for linear in linears if linear.input.name == value): choice.factors
        for value, choice in chosen.items()
        if choice.alpha is not None
    }
    return StagePlan(stage.name, stage.stage, folder / "cpu.onnx", layers, others, factors)


def save(model: ir.Model, folder: Path) -> None:
    """Writes ``cpu.onnx`` and ``cpu.weights``. Types of inner values are left out: they follow from the operators."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(model, folder / "cpu.onnx", external_data="cpu.weights", size_threshold_bytes=INLINE_BYTES)


def _smooth_all(
    model: ir.Model,
    linears: list[Linear],
    statistics: Mapping[str, TensorStatistics],
    ranges: RangeOptions,
    progress: Progress,
) -> dict[str, Smoothing]:
    """Smooths in place. Returns what was chosen for each input of layers, by its name."""
    found = find_sites(model) if ranges.smoothing else []
    sites = {str(site.value.name): site for site in found if _applies(site, linears)}
    readers: dict[str, list[Linear]] = {}
    for linear in linears:
        readers.setdefault(str(linear.input.name), []).append(linear)
    chosen = {}
    for index, (value, group) in enumerate(readers.items()):
        progress("choosing ranges", index, len(readers))
        site = sites.get(value)
        alphas = ALPHAS if site is not None else ()
        several = _BEST_SMOOTHED if site is not None else _BEST
        methods = several if ranges.method is None else (ranges.method,)
        matrices = [linear.matrix() for linear in group]
        tried = [choose_smoothing(statistics[value], matrices, each, alphas=alphas) for each in methods]
        chosen[value] = min(tried, key=lambda choice: choice.error)
        if site is not None and chosen[value].alpha is not None:
            smooth(model, site, chosen[value].factors)
    progress("choosing ranges", len(readers), len(readers))
    return chosen


def _applies(site: Site, linears: list[Linear]) -> bool:
    names = {linear.name for linear in linears}
    return all(linear.name in names for linear in site.linears)


def _layer(linear: Linear, seen: TensorStatistics, choice: Smoothing, runs: int) -> LayerPlan:
    inputs, outputs = linear.size
    sample = seen.reduced(_ROWS)
    return LayerPlan(
        name=linear.name,
        inputs=inputs,
        outputs=outputs,
        rows=seen.count / runs,
        threshold=choice.threshold,
        clipped=min(1.0, choice.threshold / max(float((seen.absmax / choice.factors).max()), SMALLEST_THRESHOLD)),
        smoothing=choice.alpha,
        # The layer's weight is smoothed already.
        signal_to_noise_db=decibels(
            layer_error(sample.rows / choice.factors, linear.matrix(), choice.threshold, weights=sample.weights)
        ),
    )
