"""How far a build is, and how it is stopped.

TensorRT tells of phases inside phases, each with its own number of steps. What is passed on is one number per outermost
phase: a step counts as far as the phases inside it are.

It tells so from threads of its own, which know no exceptions. Whatever is raised meanwhile, Ctrl-C included, is kept;
TensorRT is asked to stop, and the caller raises it when it has.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from trunkline.runtime.progress import Progress

#: What ``done`` and ``total`` count.
PARTS = 1000


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """Passes on what a builder tells. Any thread may call; the callback is called by one at a time."""

    def __init__(self, stage: str, progress: Progress) -> None:
        """Passes on to ``progress``, in thousandths, under the name of the stage and the phase."""
        self._stage, self._progress = stage, progress
        self._phases: dict[str, _Phase] = {}
        self._told: dict[str, int] = {}
        self._stopped: BaseException | None = None
        self._lock = threading.RLock()

    def begin(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[phase] = _Phase(parent, max(1, steps))
            self._tell(phase)

    def step(self, phase: str, step: int) -> bool:
        """Whether to go on."""
        with self._lock:
            if phase in self._phases:
                self._phases[phase].done = step + 1
                self._tell(phase)
            return self._stopped is None

    def end(self, phase: str) -> None:
        with self._lock:
            if phase in self._phases:
                self._phases[phase].done = self._phases[phase].steps
                self._tell(phase)
                del self._phases[phase]

    def raise_if_stopped(self) -> None:
        """Raises what stopped the build, if something did."""
        if self._stopped is not None:
            raise self._stopped

    def _tell(self, phase: str) -> None:
        root = self._root(phase)
        done = int(PARTS * self._fraction(root))
        if self._stopped is not None or done <= self._told.get(root, -1):
            return
        self._told[root] = done
        try:
            self._progress(f"{self._stage}: {root}", done, PARTS)
        except BaseException as error:  # it must not reach a thread of TensorRT's; raise_if_stopped raises it
            self._stopped = error

    def _root(self, phase: str) -> str:
        parent = self._phases[phase].parent
        return phase if parent is None or parent not in self._phases else self._root(parent)

    def _fraction(self, phase: str) -> float:
        own = self._phases[phase]
        inside = [self._fraction(name) for name, each in self._phases.items() if each.parent == phase]
        return min(1.0, (own.done + max(inside, default=0.0)) / own.steps)
