"""The incremental executor: an input that did not change is not recomputed.

A stage's output varies along at most one dimension, and its rows along it (frames, instructions, candidates) do not
influence each other. So results are kept in *parts*: an entry of the varying dimension, or several that always come
together, such as the candidates of one call or the samples of one window; where nothing varies, the whole output is one
part. The key of a part is the key of what it was computed from: inputs that
vary along the same dimension contribute their part of that index, other inputs contribute as a whole. Keys of sources
are content or digests of content, so a buffer that a camera driver overwrites in place is a new input.

Evaluation pulls: parts that are known are taken from the cache, and only for the others the inputs are asked for.
That one rule gives a text tower that runs once per instruction and a vision tower that runs once per frame, however
many rephrasings and candidates are scored.

Outputs stay where they were computed if the back end can leave them there, and are copied to the host only for who asks
from outside, or where parts are cut apart or put together: what a frame gives is one part, so it never is.

Threads: any number may evaluate at once. One lock guards each cache for the moment of a look-up; another is held
while a stage runs, so it never runs twice at the same time, and threads that want the same parts compute them once.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import Resident, Session
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import Stage, TensorSpec

Array = NDArray[Any]
#: A stage's output: read-only, on the host or where it was computed.
Value = Array | Resident
Keys = tuple[Hashable, ...]


def on_host(value: Value) -> Array:
    """The value as a read-only array; a copy of one that stays elsewhere."""
    if isinstance(value, np.ndarray):
        return value
    array = value.numpy()
    array.setflags(write=False)
    return array


@dataclass(frozen=True)
class CacheLimits:
    """Bounds of one stage's cache; what was not used for longest goes first. A part above ``bytes`` is not kept."""

    entries: int = 4096
    bytes: int = 64 << 20


@dataclass(frozen=True)
class Source:
    """Parts from outside the graph: their keys, and how to get the parts of some indices when they are needed."""

    keys: Keys
    load: Callable[[Sequence[int]], Value]


@dataclass
class StageCounts:
    """What a stage has done so far: parts computed, parts taken from the cache, runs, seconds in the back end."""

    computed: int = 0
    reused: int = 0
    runs: int = 0
    seconds: float = 0.0


class PartCache:
    """Least-recently-used parts, bounded in entries and bytes. Every method is safe from any thread."""

    def __init__(self, limits: CacheLimits) -> None:
        self._limits = limits
        self._parts: OrderedDict[Hashable, Value] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, keys: Iterable[Hashable]) -> list[Value | None]:
        with self._lock:
            found = []
            for key in keys:
                part = self._parts.get(key)
                if part is not None:
                    self._parts.move_to_end(key)
                found.append(part)
            return found

    def put(self, keys: Iterable[Hashable], parts: Iterable[Value]) -> None:
        with self._lock:
            for key, part in zip(keys, parts, strict=True):
                if key in self._parts:
                    self._drop(key)
                if part.nbytes <= self._limits.bytes:
                    self._parts[key] = part
                    self._bytes += part.nbytes
            while len(self._parts) > self._limits.entries or self._bytes > self._limits.bytes:
                self._drop(next(iter(self._parts)))

    def _drop(self, key: Hashable) -> None:
        self._bytes -= self._parts.pop(key).nbytes

    def clear(self) -> None:
        with self._lock:
            self._parts.clear()
            self._bytes = 0

    @property
    def bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._parts)


class ContentNames:
    """Short names for large contents: equal contents get the same name for as long as they are remembered.

    Contents are compared byte by byte with the last few, newest first, which settles most differences within the first
    bytes and costs a fraction of any digest; and no two can be confused. What was not used for longest is forgotten
    first; seen again, it gets a new name and is computed anew. Safe from any thread.
    """

    def __init__(self, limits: CacheLimits) -> None:
        self._limits = limits
        self._known: list[tuple[int, bytes, Hashable]] = []
        self._next = 0
        self._lock = threading.Lock()

    def name(self, content: bytes, form: Hashable) -> int:
        """The name of a content; the same bytes in another ``form``, such as another shape, are another content."""
        with self._lock:
            for place, (name, known, known_form) in enumerate(self._known):
                if known == content and known_form == form:
                    self._known.insert(0, self._known.pop(place))
                    return name
            self._next += 1
            self._known.insert(0, (self._next, content, form))
            while len(self._known) > self._limits.entries or self._held() > self._limits.bytes:
                self._known.pop()
            return self._next

    def _held(self) -> int:
        return sum(len(content) for _, content, _ in self._known)

    def clear(self) -> None:
        with self._lock:
            self._known.clear()


@dataclass
class Node:
    """A stage in the graph. ``open`` compiles it on first use; a stage that is never needed costs nothing."""

    stage: Stage
    open: Callable[[], Session]
    cache: PartCache
    counts: StageCounts = field(default_factory=StageCounts)
    session: Session | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    axis: int = field(init=False)
    along: dict[str, bool] = field(init=False)
    counted: TensorSpec | None = field(init=False)

    def __post_init__(self) -> None:
        """Finds the output's varying dimension, the inputs that vary along it, and one to count its rows on."""
        self.axis = varying_axis(self.output)
        letter = self.output.shape[self.axis] if self.axis >= 0 else None
        along = {spec.name: letter in spec.shape for spec in self.stage.inputs}
        # Inputs that vary along come first: they are usually known, and looked up before a slow stage runs.
        self.along = dict(sorted(along.items(), key=lambda item: not item[1]))
        self.counted = next((spec for spec in self.stage.inputs if along[spec.name]), None)

    @property
    def output(self) -> TensorSpec:
        return self.stage.outputs[0]

    def split(self, result: Value, count: int) -> list[Value]:
        """An output cut into equal parts, each with memory of its own: a view would keep the whole output alive."""
        if count == 1:
            return [result]
        whole, before, rows = on_host(result), (slice(None),) * self.axis, result.shape[self.axis] // count
        parts = [whole[(*before, slice(part * rows, (part + 1) * rows))].copy() for part in range(count)]
        for part in parts:
            part.setflags(write=False)
        return list(parts)

    def join(self, parts: list[Value]) -> Value:
        """The output that consists of these parts."""
        return parts[0] if len(parts) == 1 else np.concatenate([on_host(part) for part in parts], axis=self.axis)


def varying_axis(tensor: TensorSpec) -> int:
    """Position of a tensor's varying dimension; -1 if it has none."""
    return next((axis for axis, size in enumerate(tensor.shape) if isinstance(size, str)), -1)


@dataclass(frozen=True)
class _Pull:
    """One evaluation: its sources, and the keys of every tensor it may touch."""

    sources: Mapping[str, Source]
    keys: Mapping[str, Keys]


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
            name: Node(stage, (lambda name=name: open_stage(name)), PartCache(limits))  # type: ignore[misc]
            for name, stage in stages.items()
        }
        self._producer = {node.output.name: node for node in self.nodes.values()}

    def evaluate(self, tensors: Sequence[str], sources: Mapping[str, Source]) -> list[Array]:
        """Tensors for the given sources, with all parts that are known reused.

        Returns:
            Read-only arrays, in the order of the sources' parts.

        Raises:
            BackendError: a stage failed, or returned a wrong shape.
        """
        return [on_host(value) for value in self.evaluate_resident(tensors, sources)]

    def evaluate_resident(self, tensors: Sequence[str], sources: Mapping[str, Source]) -> list[Value]:
        """As :meth:`evaluate`, left where it was computed: for who will give it back as a source."""
        keys: dict[str, Keys] = {name: source.keys for name, source in sources.items()}
        for tensor in tensors:
            self._find_keys(tensor, keys)
        pull = _Pull(sources, keys)
        return [self._parts(tensor, None, pull) for tensor in tensors]

    def keys(self, tensor: str, sources: Mapping[str, Source]) -> Keys:
        """Keys of a tensor's parts: a source that gives it under the same keys is the same to every stage behind it."""
        return self._find_keys(tensor, {name: source.keys for name, source in sources.items()})

    def run(self, stage: str, inputs: Mapping[str, Value]) -> Array:
        """Runs a stage for one part, whatever is known; its output, read-only.

        Raises:
            BackendError: the stage failed, or returned a wrong shape.
        """
        node = self.nodes[stage]
        result = self._run(node, inputs, 1)
        node.counts.runs += 1
        return on_host(result)

    def _find_keys(self, tensor: str, keys: dict[str, Keys]) -> Keys:
        """Keys of all parts of a tensor, entered into ``keys``."""
        if tensor not in keys:
            shared: list[Keys] = []
            along: list[Keys] = []
            for name, varies in self._producer[tensor].along.items():
                (along if varies else shared).append(self._find_keys(name, keys))
            keys[tensor] = tuple((*parts, *shared) for parts in zip(*along, strict=True)) if along else (tuple(shared),)
        return keys[tensor]

    def _parts(self, tensor: str, wanted: Sequence[int] | None, pull: _Pull) -> Value:
        """Parts ``wanted`` (all by default) of a tensor, as one value."""
        keys = pull.keys[tensor]
        indices = range(len(keys)) if wanted is None else wanted
        if tensor in pull.sources:
            return pull.sources[tensor].load(indices)
        node = self._producer[tensor]
        chosen = [keys[index] for index in indices]
        runs = node.counts.runs
        parts = node.cache.get(chosen)
        missing = [place for place, part in enumerate(parts) if part is None]
        node.counts.reused += len(parts) - len(missing)
        if missing:
            # Inputs are fetched before the stage is locked, so a slow stage upstream blocks nobody here.
            places = [indices[place] for place in missing]
            inputs = {name: self._parts(name, places if varies else None, pull) for name, varies in node.along.items()}
            computed = self._compute(node, [chosen[place] for place in missing], inputs, runs)
            if len(missing) == len(parts):
                return computed
            for place, part in zip(missing, node.split(computed, len(missing)), strict=True):
                parts[place] = part
        return node.join([part for part in parts if part is not None])

    def _compute(self, node: Node, keys: list[Hashable], inputs: Mapping[str, Value], runs: int) -> Value:
        """Runs a stage for parts that were not in the cache when it had run ``runs`` times."""
        with node.lock:
            if node.counts.runs != runs:  # another thread may have been faster
                present = [part for part in node.cache.get(keys) if part is not None]
                if len(present) == len(keys):
                    return node.join(present)
            result = self._run(node, inputs, len(keys))
            if len(keys) > 1:
                result = on_host(result)  # it is cut apart there
            node.cache.put(keys, node.split(result, len(keys)))  # before the next thread may look
            node.counts.runs += 1  # last: who waits for the lock takes it for "there is something new in the cache"
            return result

    def _run(self, node: Node, inputs: Mapping[str, Value], parts: int) -> Value:
        """Runs a stage, whatever is known; whoever is given the output must not write into it."""
        with node.lock:
            session = node.session or self.open(node)
            started = time.perf_counter()
            result = _run_session(session, inputs)[node.output.name]
            node.counts.seconds += time.perf_counter() - started
            _check_output(node, result, inputs)
            if isinstance(result, np.ndarray):
                result.setflags(write=False)
            node.counts.computed += parts
            return result

    def open(self, node: Node) -> Session:
        """The compiled stage, compiled now if it was not."""
        with node.lock:
            if node.session is None:
                node.session = node.open()
            return node.session

    def clear(self) -> None:
        """Forgets all parts."""
        for node in self.nodes.values():
            node.cache.clear()

    def close(self) -> None:
        """Frees all sessions and parts."""
        for node in self.nodes.values():
            with node.lock:
                if node.session is not None:
                    node.session.close()
                node.session = None
        self.clear()


def _run_session(session: Session, inputs: Mapping[str, Value]) -> Mapping[str, Value]:
    """Outputs by name, left where they are computed if the session can do that."""
    leaving: Callable[[Mapping[str, Value]], Mapping[str, Value]] | None = getattr(session, "run_resident", None)
    return session.run(cast(Mapping[str, Array], inputs)) if leaving is None else leaving(inputs)


def _check_output(node: Node, result: Value, inputs: Mapping[str, Value]) -> None:
    expected = list(node.output.shape)
    if node.counted is not None:
        expected[node.axis] = inputs[node.counted.name].shape[varying_axis(node.counted)]
    if list(result.shape) != expected:
        raise BackendError(
            "a stage returned another shape than it promises",
            where=node.output.name,
            expected=str(tuple(expected)),
            found=str(result.shape),
            fix="export the bundle again",
        )
