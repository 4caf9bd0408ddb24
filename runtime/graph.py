"""The incremental executor: an input that did not change is not recomputed.

A stage has at most one varying dimension in its output, and treats the rows along it independently: a frame, an
instruction, a candidate. So results are kept by row. The key of a row is the key of the rows it was computed from:
inputs that vary along the same dimension contribute their row of that index, other inputs contribute as a whole.
Keys of sources are digests of their content, so a buffer that a camera driver overwrites in place is a new input.

Evaluation pulls: rows that are known are taken from the cache, and only for the others the inputs are asked for.
That one rule gives a text tower that runs once per instruction and a vision tower that runs once per frame, however
many rephrasings and candidates are scored.

Threads: any number may evaluate at once. One lock guards each cache for the moment of a look-up; another is held
while a stage runs, so the same rows are never computed twice and a stage never runs twice at the same time.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import Session
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import Stage, TensorSpec

Array = NDArray[Any]
Keys = tuple[Hashable, ...]


@dataclass(frozen=True)
class CacheLimits:
    """Bounds of one stage's cache; the oldest unused rows go first. A row larger than ``bytes`` is not kept."""

    entries: int = 4096
    bytes: int = 64 << 20


@dataclass(frozen=True)
class Source:
    """Rows from outside the graph: their keys, and how to get the rows of some indices when they are needed."""

    keys: Keys
    load: Callable[[Sequence[int]], Array]


@dataclass
class StageCounts:
    """What a stage has done so far: rows computed, rows taken from the cache, runs, seconds in the back end."""

    computed: int = 0
    reused: int = 0
    runs: int = 0
    seconds: float = 0.0


class RowCache:
    """Least-recently-used rows, bounded in entries and bytes. Every method is safe from any thread."""

    def __init__(self, limits: CacheLimits) -> None:
        self._limits = limits
        self._rows: OrderedDict[Hashable, Array] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, keys: Iterable[Hashable]) -> list[Array | None]:
        with self._lock:
            found = []
            for key in keys:
                row = self._rows.get(key)
                if row is not None:
                    self._rows.move_to_end(key)
                found.append(row)
            return found

    def put(self, keys: Iterable[Hashable], rows: Iterable[Array]) -> None:
        with self._lock:
            for key, row in zip(keys, rows, strict=True):
                self._drop(key)
                if row.nbytes <= self._limits.bytes:
                    self._rows[key] = row
                    self._bytes += row.nbytes
            while len(self._rows) > self._limits.entries or self._bytes > self._limits.bytes:
                self._drop(next(iter(self._rows)))

    def _drop(self, key: Hashable) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self._bytes -= row.nbytes

    def clear(self) -> None:
        with self._lock:
            self._rows.clear()
            self._bytes = 0

    @property
    def bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._rows)


@dataclass
class Node:
    """A stage in the graph. ``open`` compiles it on first use; a stage that is never needed costs nothing."""

    stage: Stage
    open: Callable[[], Session]
    cache: RowCache
    counts: StageCounts = field(default_factory=StageCounts)
    session: Session | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    axis: int = field(init=False)
    along: dict[str, bool] = field(init=False)

    def __post_init__(self) -> None:
        """Finds the output's varying dimension, and the inputs that vary along it."""
        self.axis = varying_axis(self.output)
        letter = self.output.shape[self.axis]
        self.along = {spec.name: letter in spec.shape for spec in self.stage.inputs}

    @property
    def output(self) -> TensorSpec:
        return self.stage.outputs[0]


def varying_axis(tensor: TensorSpec) -> int:
    """Position of a tensor's varying dimension; -1 if it has none."""
    return next((axis for axis, size in enumerate(tensor.shape) if isinstance(size, str)), -1)


class StageGraph:
    """Stages wired by tensor names."""

    def __init__(self, stages: Mapping[str, Stage], open_stage: Callable[[str], Session], limits: CacheLimits) -> None:
        """Wires the stages; nothing is compiled yet.

        Args:
            stages: by name, each with one output.
            open_stage: compiles the stage of a name.
            limits: of each stage's cache.
        """
        self.nodes = {
            name: Node(stage, (lambda name=name: open_stage(name)), RowCache(limits))  # type: ignore[misc]
            for name, stage in stages.items()
        }
        self._producer = {node.output.name: node for node in self.nodes.values()}

    def evaluate(self, tensor: str, sources: Mapping[str, Source]) -> Array:
        """One tensor for the given sources, with all rows that are known reused.

        Returns:
            A new array, or a read-only one; rows in the order of the sources' rows.

        Raises:
            BackendError: a stage failed, or returned a wrong shape or a value that is not finite.
        """
        return self._rows(tensor, self._keys(tensor, sources), None, sources)

    def _keys(self, tensor: str, sources: Mapping[str, Source]) -> Keys:
        """Keys of all rows of a tensor."""
        node = self._producer.get(tensor)
        if tensor in sources or node is None:
            return sources[tensor].keys
        shared: list[Keys] = []
        along: list[Keys] = []
        for name, varies in node.along.items():
            (along if varies else shared).append(self._keys(name, sources))
        return tuple((*rows, *shared) for rows in zip(*along, strict=True))

    def _rows(self, tensor: str, keys: Keys, wanted: Sequence[int] | None, sources: Mapping[str, Source]) -> Array:
        """Rows ``wanted`` (all by default) of a tensor whose rows have ``keys``."""
        indices = range(len(keys)) if wanted is None else wanted
        node = self._producer.get(tensor)
        if tensor in sources or node is None:
            return sources[tensor].load(indices)
        chosen = [keys[index] for index in indices]
        rows = node.cache.get(chosen)
        missing = [place for place, row in enumerate(rows) if row is None]
        node.counts.reused += len(rows) - len(missing)
        if missing:
            # Inputs are fetched before the stage is locked, so a slow stage upstream blocks nobody here.
            inputs = self._inputs(node, [indices[place] for place in missing], sources)
            computed = self._compute(node, [chosen[place] for place in missing], inputs)
            if len(missing) == len(rows):
                return computed
            for place, row in zip(missing, np.moveaxis(computed, node.axis, 0), strict=True):
                rows[place] = row
        return np.stack([row for row in rows if row is not None], axis=node.axis)

    def _inputs(self, node: Node, indices: list[int], sources: Mapping[str, Source]) -> dict[str, Array]:
        inputs = {}
        for name, varies in node.along.items():
            wanted = indices if varies else None
            inputs[name] = self._rows(name, self._keys(name, sources), wanted, sources)
        return inputs

    def _compute(self, node: Node, keys: list[Hashable], inputs: dict[str, Array]) -> Array:
        with node.lock:
            known = node.cache.get(keys)  # another thread may have been faster
            present = [row for row in known if row is not None]
            if len(present) == len(keys):
                return np.stack(present, axis=node.axis)
            session = self.open(node)
            started = time.perf_counter()
            result = session.run(inputs)[node.output.name]
            node.counts.seconds += time.perf_counter() - started
            node.counts.runs += 1
            node.counts.computed += len(keys)
            _check_output(node, result, len(keys))
            # Rows are copied: a view would keep the whole batch alive.
            rows = [row if len(keys) == 1 else row.copy() for row in np.moveaxis(result, node.axis, 0)]
            for array in (result, *rows):  # a single row is kept as it is: whoever is given it must not write into it
                array.setflags(write=False)
            node.cache.put(keys, rows)  # before the next thread may look
            return result

    def open(self, node: Node) -> Session:
        """The compiled stage, compiled now if it was not."""
        with node.lock:
            if node.session is None:
                node.session = node.open()
            return node.session

    def clear(self) -> None:
        """Forgets all rows."""
        for node in self.nodes.values():
            node.cache.clear()

    def close(self) -> None:
        """Frees all sessions and rows."""
        for node in self.nodes.values():
            with node.lock:
                if node.session is not None:
                    node.session.close()
                node.session = None
        self.clear()


def _check_output(node: Node, result: Array, rows: int) -> None:
    expected = tuple(rows if isinstance(size, str) else size for size in node.output.shape)
    if result.shape != expected:
        raise BackendError(
            "a stage returned another shape than it promises",
            where=node.output.name,
            expected=str(expected),
            found=str(result.shape),
            fix="export the bundle again",
        )
    if not np.isfinite(result).all():
        raise BackendError(
            "a stage returned values that are not finite",
            where=node.output.name,
            expected="finite numbers",
            found=f"{np.count_nonzero(~np.isfinite(result))} NaN or infinite values",
            fix="run `trunkline doctor` on the checkpoint and `trunkline verify` on the bundle",
        )
