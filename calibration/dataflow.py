"""How tensors of a bundle come from each other, for code that runs its stages one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.manifest import Stage

Tensors = dict[str, NDArray[Any]]
#: (name of a stage, its inputs) -> its output.
Run = Callable[[str, Tensors], NDArray[Any]]


class Dataflow:
    """Stages wired by the names of their tensors. Immutable."""

    def __init__(self, stages: Mapping[str, Stage]) -> None:
        self._inputs = {name: tuple(tensor.name for tensor in stage.inputs) for name, stage in stages.items()}
        self._output = {name: stage.outputs[0].name for name, stage in stages.items()}
        self._producer = {tensor: name for name, tensor in self._output.items()}

    def inputs(self, stage: str, fed: Tensors, run: Run) -> Tensors:
        """What a stage is fed.

        Args:
            stage: its name.
            fed: tensors that are known; what is computed on the way is entered.
            run: runs the stages before it; a stage whose output is known is not asked.
        """
        return {name: self._tensor(name, fed, run) for name in self._inputs[stage]}

    def running(self, fed: Mapping[str, NDArray[np.generic]]) -> set[str]:
        """Stages that a decision needs where these tensors are known: ``sensor`` given, none of the sensor's run."""
        consumed = {tensor for inputs in self._inputs.values() for tensor in inputs}
        last = [name for name, output in self._output.items() if output not in consumed]
        return {stage for name in last for stage in self._running(name, fed)}

    def _running(self, stage: str, fed: Mapping[str, NDArray[np.generic]]) -> set[str]:
        missing = [tensor for tensor in self._inputs[stage] if tensor not in fed]
        return {stage}.union(*(self._running(self._producer[tensor], fed) for tensor in missing))

    def sources(self, stage: str) -> dict[str, str | None]:
        """Which stage gives each input of a stage; None for what comes from outside."""
        return {tensor: self._producer.get(tensor) for tensor in self._inputs[stage]}

    def before(self, stage: str) -> tuple[str, ...]:
        """Stages whose output a stage depends on, itself included, in the order in which they run."""
        found: list[str] = []
        for tensor in self._inputs[stage]:
            if tensor in self._producer:
                found += self.before(self._producer[tensor])
        return tuple(dict.fromkeys([*found, stage]))

    def output(self, stage: str, fed: Tensors, run: Run) -> NDArray[Any]:
        """What a stage gives, known or computed now; arguments as of :meth:`inputs`."""
        return self._tensor(self._output[stage], fed, run)

    def _tensor(self, name: str, fed: Tensors, run: Run) -> NDArray[Any]:
        if name not in fed:
            stage = self._producer[name]
            fed[name] = run(stage, self.inputs(stage, fed, run))
        return fed[name]
