"""Names the layer at which a compiled stage leaves what the graph says.

The stage's graph is cut at one tensor (:mod:`trunkline.targets.building.subgraph`), compiled as the stage was, and run
on an input that the stage had; ONNX Runtime on the CPU runs the same cut graph. Halving the way to a wrong tensor finds
a wrong one that comes right after a right one, in as many builds as the number of nodes has binary digits. If what it
is computed from is right, too, that is the layer; where branches run side by side it may not be, and the way to what is
wrong there is halved again. What lies between may cancel out, so other layers may be wrong besides the one that is
found.

Requires ONNX Runtime beside the compiler. It is done here rather than by NVIDIA's Polygraphy, since that needs the onnx
package on the device, and its search over precisions sets types per layer, which TensorRT 11 does not know any more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import StageFiles, onnxruntime
from trunkline.runtime.engines.settings import Builder, BuildRequest, BuildSettings
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import Stage, TensorSpec
from trunkline.runtime.onnx_graph import signature
from trunkline.runtime.onnx_nodes import Node
from trunkline.runtime.progress import Progress, silent
from trunkline.targets.building import subgraph
from trunkline.targets.building.subgraph import OUTPUT

#: A tensor agrees if no number is off by more than this share of its largest one. Half precision alone stays below it.
TOLERANCE = 0.02
#: Where the stage's own output is off by less than that, a layer is looked for that is off by this share of it.
SHARE = 0.5

Inputs = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Suspect:
    """The layer that was found.

    Attributes:
        node: its name in the graph.
        operator: of the node.
        difference: how far its result is off, as a share of its largest number.
        before: how far what it is computed from is off, at most.
        tolerance: between the two.
    """

    node: str
    operator: str
    difference: float
    before: float
    tolerance: float


def find_layer(
    builder: Builder,
    files: StageFiles,
    settings: BuildSettings,
    inputs: Inputs,
    *,
    timing_cache: bytes = b"",
    progress: Progress = silent,
) -> Suspect | None:
    """The layer at which a compiled stage goes wrong; None if its output agrees exactly.

    Args:
        builder: compiles.
        files: the stage.
        settings: that it was compiled with.
        inputs: what the stage was fed, by name.
        timing_cache: for the compiler.
        progress: counts builds.

    Raises:
        BackendError: a cut stage cannot be compiled, or there is no ONNX Runtime.
    """
    if (missing := onnxruntime.available()) is not None:
        raise BackendError("layers can only be compared with ONNX Runtime", found=missing.reason, fix=missing.fix)
    (output,) = files.stage.outputs
    search = _Search(_Trial(builder, files, settings, inputs, timing_cache), progress)
    whole = search.difference(output.name)
    if whole == 0:
        return None
    search.tolerance = min(TOLERANCE, SHARE * whole)
    node, before = search.first_wrong(output.name)
    return Suspect(node.name, node.operator, search.difference(node.outputs[0]), before, search.tolerance)


class _Search:
    """Halves ways through a graph. Every tensor is compiled once."""

    tolerance = TOLERANCE

    def __init__(self, trial: _Trial, progress: Progress) -> None:
        self._trial, self._progress = trial, progress
        self._known: dict[str, float] = {}

    def first_wrong(self, tensor: str) -> tuple[Node, float]:
        """The node that makes a wrong tensor of right ones, on the way to a wrong tensor; and how far those are off."""
        while True:
            way = subgraph.on_the_way(self._trial.files.graph, tensor)
            node = self._halved(way)
            makers = {output for each in way for output in each.outputs}
            parents = {name: self.difference(name) for name in node.inputs if name in makers}
            worst = max(parents, key=lambda name: parents[name], default=None)
            if worst is None or parents[worst] <= self.tolerance:
                return node, parents[worst] if worst else 0.0
            tensor = worst  # it lies before the node, so this comes to an end

    def difference(self, tensor: str) -> float:
        """How far a compiled tensor is off."""
        if tensor not in self._known:
            self._tell(1)
            self._known[tensor] = self._trial.difference(tensor)
            self._tell(0)
        return self._known[tensor]

    def _halved(self, way: Sequence[Node]) -> Node:
        """A node with a wrong result, right after one with a right result; the last one's is wrong."""
        right, wrong = -1, len(way) - 1
        while wrong - right > 1:
            middle = (right + wrong) // 2
            if self.difference(way[middle].outputs[0]) > self.tolerance:
                wrong = middle
            else:
                right = middle
        return way[wrong]

    def _tell(self, left: int) -> None:
        """Nobody knows how many builds there will be."""
        self._progress("looking for the layer", len(self._known), len(self._known) + left)


@dataclass(frozen=True)
class _Trial:
    """Compiles and compares a stage up to a tensor."""

    builder: Builder
    files: StageFiles
    settings: BuildSettings
    inputs: Inputs
    timing_cache: bytes

    def difference(self, tensor: str) -> float:
        """How far the compiled tensor is off, as a share of its largest number."""
        graph = subgraph.cut(self.files.graph, tensor)
        stage = Stage(self._inputs(graph), (TensorSpec(OUTPUT, "float32", ()),), self.files.stage.variants)
        files = replace(self.files, name=f"{self.files.name} up to {tensor}", stage=stage, graph=graph)
        fed = {spec.name: self.inputs[spec.name] for spec in stage.inputs}
        expected, shape = _expected(files, fed)
        files = replace(files, stage=replace(stage, outputs=(TensorSpec(OUTPUT, "float32", shape),)))
        settings = self.settings.for_stage(files.stage)
        built = self.builder.build(BuildRequest(files, settings, self.timing_cache), silent)
        session = self.builder.open_engine(built.plan, files.stage)
        try:
            return _share(expected, session.run(fed)[OUTPUT])
        finally:
            session.close()

    def _inputs(self, graph: bytes) -> tuple[TensorSpec, ...]:
        left = {declared.name for declared in signature(graph, "inputs")}
        return tuple(spec for spec in self.files.stage.inputs if spec.name in left)


def _expected(files: StageFiles, inputs: Inputs) -> tuple[NDArray[np.float32], tuple[int | str, ...]]:
    """What ONNX Runtime computes, and the shape it reports; sizes where it has no letter for a dimension."""
    session: Any = onnxruntime.compiled(files)
    try:
        result = session.run(None, dict(inputs))[0]
    except Exception as error:  # the library's exceptions share no base class
        raise BackendError("ONNX Runtime failed on a part of a stage", where=files.name, found=str(error)) from error
    reported = session.get_outputs()[0].shape
    letters = {size for spec in files.stage.inputs for size in spec.shape if isinstance(size, str)}
    shape = tuple(name if name in letters else size for name, size in zip(reported, result.shape, strict=True))
    return result, shape


def _share(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Infinity agrees with infinity: masks are made of it."""
    if expected.shape != found.shape:
        return math.inf
    differs = ~((expected == found) | (np.isnan(expected) & np.isnan(found)))
    apart = np.abs(expected[differs].astype(np.float64) - found[differs])
    if not np.isfinite(apart).all():
        return math.inf
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=np.finfo(np.float32).tiny)
    return float(apart.max(initial=0.0) / largest)
