"""An engine at work: arrays in, arrays out, on the host or left on the GPU for the next stage.

Memory is asked for once, for the largest sizes that the engine was built for: a buffer on the GPU and a pinned one of
this process per input and output, and what the engine itself works in. A run writes its inputs to pinned memory, gives
the stream copies, engine and copies back, and sleeps until all of it is done. An output that stays on the GPU is copied
there into memory of its own, so the next run does not touch it.

*Graphs.* Starting dozens of kernels one by one takes the processor longer than some stages take the GPU. So where the
same sizes keep coming, the engine's run is recorded and from then on started as a whole. Recorded work must not see its
context change, so each such size has a context of its own; all work in the same memory, since runs do not overlap. The
first run of a context is never recorded, because libraries prepare things in it. There are at most ``MAX_GRAPHS``, and
one gives way when its sizes stopped coming. If something cannot be recorded, runs are started the ordinary way from
then on, with the same results, and :attr:`TensorRtSession.graph_problem` says why.

**This has run with a pretended GPU only.**
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import Arrays, Resident, StageFiles
from trunkline.runtime.backends import tensorrt_api as api
from trunkline.runtime.backends.contract import Port, check_signature, input_problem
from trunkline.runtime.backends.forks import never_freed_in_a_child
from trunkline.runtime.backends.tensorrt_log import TensorRtError, asking
from trunkline.runtime.cuda.context import context
from trunkline.runtime.cuda.graph import Graph, capture
from trunkline.runtime.cuda.memory import (
    BufferPool,
    DeviceBuffer,
    PinnedBuffer,
    copy_on_device,
    copy_to_device,
    copy_to_host,
)
from trunkline.runtime.cuda.stream import Event, Stream
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import Stage, TensorSpec

MAX_GRAPHS = 8
#: Sizes that came ``OFTEN`` times among the last ``RECENT`` runs are recorded.
RECENT, OFTEN = 32, 3

REBUILD = "run `trunkline build BUNDLE` on this device, which builds the engine again"
#: The lean runtime runs no others.
REBUILD_FOR_LEAN = (
    "run `trunkline build BUNDLE --version-compatible` on this device, where the full TensorRT of this version is "
    "installed"
)

#: Letters of varying dimensions with their sizes, in alphabetical order.
Sizes = tuple[tuple[str, int], ...]

#: Engines are opened one after the other: opening one takes its size in memory twice for a moment.
_opening = threading.Lock()


@dataclass(frozen=True)
class _Tensor:
    """An input or output with its memory on both sides."""

    spec: TensorSpec
    host: PinnedBuffer
    device: DeviceBuffer

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        return shape_at(self.spec, dict(sizes))

    def nbytes(self, sizes: Sizes) -> int:
        return math.prod(self.shape(sizes)) * np.dtype(self.spec.dtype).itemsize


def shape_at(spec: TensorSpec, sizes: dict[str, int]) -> tuple[int, ...]:
    """A tensor's shape with letters replaced by sizes."""
    return tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)


class TensorRtSession:
    """One stage's engine. One thread at a time; results are copies.

    Attributes:
        graph_problem: why runs are not recorded, None as long as nothing speaks against it.
        graphs: how many sizes are recorded.
        judged_with: see :class:`trunkline.runtime.backends.Session`.
    """

    def __init__(self, trt: ModuleType, plan: bytes, stage: Stage, *, name: str = "") -> None:
        """Opens an engine, and asks for all memory that it will need.

        Args:
            trt: the library.
            plan: the engine.
            stage: its contract.
            name: of the stage, for messages.

        Raises:
            BackendError: TensorRT refuses the engine, or there is too little memory.
            BundleError: its inputs or outputs are not the stage's.
        """
        self._trt, self._stage, self._where = trt, stage, f"stage {name}" if name else "an engine"
        self._held = contextlib.ExitStack()
        self._recorded: OrderedDict[Sizes, _Recorded] = OrderedDict()
        self._recent: deque[Sizes] = deque(maxlen=RECENT)
        self._ordinary: Any = None
        self._engine: Any = None
        self._runtime: Any = None
        self._closed = True
        self.graph_problem: str | None = None
        self.judged_with: str | None = None
        never_freed_in_a_child(self)
        try:
            self._context = context()
            fix = REBUILD_FOR_LEAN if api.is_lean(trt) else REBUILD
            with _opening, self._context.current(), asking("an engine cannot be used", where=self._where, fix=fix):
                self._open(plan, name)
        except BaseException:
            self.close()
            raise

    def _open(self, plan: bytes, name: str) -> None:
        self._runtime, self._engine = api.open_engine(self._trt, plan)
        inputs, outputs = api.engine_ports(self._trt, self._engine)
        used = [port.name for port in inputs]
        _check(self._stage, name, inputs, outputs)
        self._ranges = _ranges(self._engine, [spec for spec in self._stage.inputs if spec.name in used])
        self._pool = BufferPool(self._context)
        self._held.callback(self._pool.close)
        self._stream = self._held.enter_context(Stream(self._context))
        self._done = self._held.enter_context(Event(self._context))
        self._inputs = [self._tensor(spec) for spec in self._stage.inputs if spec.name in used]
        self._outputs = [self._tensor(spec) for spec in self._stage.outputs]
        scratch = api.scratch_bytes(self._engine)
        self._scratch = self._held.enter_context(DeviceBuffer(self._context, max(1, scratch)))
        self._ordinary = self._lane()
        self._closed = False

    def _tensor(self, spec: TensorSpec) -> _Tensor:
        """Memory for the largest that an input or output may be."""
        largest = shape_at(spec, {letter: most for letter, (_, most) in self._ranges.items()})
        nbytes = math.prod(largest) * np.dtype(spec.dtype).itemsize
        host = self._held.enter_context(PinnedBuffer(self._context, nbytes))
        return _Tensor(spec, host, self._held.enter_context(DeviceBuffer(self._context, nbytes)))

    def _lane(self) -> _Lane:
        return _Lane(self._trt, self._engine, self._inputs, self._outputs, self._scratch, self._stream)

    @property
    def graphs(self) -> int:
        return sum(each.graph is not None for each in self._recorded.values())

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Runs the stage, from host to host.

        Raises:
            BackendError: an input is not one of the stage's, there are more or fewer rows than the engine was built
                for, or TensorRT or CUDA failed.
        """
        with self._computed(inputs) as sizes:
            for tensor in self._outputs:
                copy_to_host(tensor.host, tensor.device, tensor.nbytes(sizes), self._stream)
            self._wait()
            return {each.spec.name: each.host.read(each.spec.dtype, each.shape(sizes)) for each in self._outputs}

    def run_resident(self, inputs: Mapping[str, NDArray[np.generic] | Resident]) -> dict[str, DeviceArray]:
        """Runs the stage; what is on the GPU already is read there, and outputs stay there.

        Raises:
            BackendError: as :meth:`run`.
        """
        with self._computed(inputs) as sizes:
            kept = {each.spec.name: self._pool.take(each.nbytes(sizes)) for each in self._outputs}
            for tensor in self._outputs:
                copy_on_device(kept[tensor.spec.name], tensor.device, tensor.nbytes(sizes), self._stream)
            self._wait()
            return {
                each.spec.name: DeviceArray(kept[each.spec.name], each.shape(sizes), self._pool)
                for each in self._outputs
            }

    @contextlib.contextmanager
    def _computed(self, inputs: Mapping[str, NDArray[np.generic] | Resident]) -> Iterator[Sizes]:
        """Queues inputs and engine; the block queues what is to become of the outputs, and waits."""
        problem = "the session is closed" if self._closed else input_problem(self._stage, inputs)
        if problem:
            raise BackendError("TensorRT failed while it ran a stage", where=self._where, found=problem)
        sizes = self._sizes(inputs)
        with self._context.current(), asking("TensorRT failed while it ran a stage", where=self._where):
            for tensor in self._inputs:
                self._feed(tensor, inputs[tensor.spec.name], tensor.nbytes(sizes))
            self._start(sizes)
            yield sizes

    def _feed(self, tensor: _Tensor, value: NDArray[np.generic] | Resident, nbytes: int) -> None:
        if isinstance(value, DeviceArray):
            copy_on_device(tensor.device, value.buffer, nbytes, self._stream)
        else:
            tensor.host.write(value if isinstance(value, np.ndarray) else value.numpy())
            copy_to_device(tensor.device, tensor.host, nbytes, self._stream)

    def _wait(self) -> None:
        self._done.record(self._stream)
        self._done.wait()

    def _sizes(self, inputs: Mapping[str, NDArray[np.generic] | Resident]) -> Sizes:
        sizes = {
            letter: inputs[spec.name].shape[axis]
            for spec in self._stage.inputs
            for axis, letter in enumerate(spec.shape)
            if isinstance(letter, str)
        }
        wrong = [
            f"{letter} is {size}; the engine takes {self._ranges[letter][0]} to {self._ranges[letter][1]}"
            for letter, size in sizes.items()
            if letter in self._ranges and not self._ranges[letter][0] <= size <= self._ranges[letter][1]
        ]
        if wrong:
            raise BackendError(
                "a call has another number of rows than the engine was built for",
                where=self._where,
                found=wrong,
                fix="pass fewer at once, or raise the largest size in the target's batch profile and build again",
            )
        return tuple(sorted(sizes.items()))

    def _start(self, sizes: Sizes) -> None:
        """Queues a run: as a whole if it is recorded, otherwise piece by piece."""
        self._recent.append(sizes)
        if not self._start_recorded(sizes):
            self._ordinary.queue(sizes)

    def _start_recorded(self, sizes: Sizes) -> bool:
        """Queues a run in a context of its own, recorded from the second time on, if there is to be one."""
        try:
            recorded = self._recorded.get(sizes) or self._new_recorded(sizes)
            if recorded is None:
                return False
            self._recorded.move_to_end(sizes)
            if recorded.graph is None and recorded.warm:
                recorded.graph = capture(self._context, self._stream, lambda: recorded.lane.queue(sizes))
        except (BackendError, TensorRtError) as error:
            self.graph_problem = str(error)
            self._close_recorded()
            return False
        if recorded.graph is None:
            recorded.lane.queue(sizes)
            recorded.warm = True
        else:
            recorded.graph.launch(self._stream)
        return True

    def _new_recorded(self, sizes: Sizes) -> _Recorded | None:
        """A context of their own for sizes that keep coming, if there is room for one."""
        if self.graph_problem is not None or self._recent.count(sizes) < OFTEN:
            return None
        if len(self._recorded) >= MAX_GRAPHS:
            unused = next((each for each in self._recorded if each not in self._recent), None)
            if unused is None:
                return None
            self._recorded.pop(unused).close()
        self._recorded[sizes] = _Recorded(self._lane())
        return self._recorded[sizes]

    def keep(self, held: contextlib.ExitStack) -> None:
        """Closes something else together with this."""
        self._held.push(held)

    def _close_recorded(self) -> None:
        while self._recorded:
            self._recorded.popitem()[1].close()

    def close(self) -> None:
        """Gives all memory back. Calling it twice is fine."""
        self._closed = True
        try:
            self._close_recorded()
        finally:
            self._ordinary = self._engine = self._runtime = None  # contexts before their engine, before its runtime
            self._held.close()


class DeviceArray:
    """A stage's output on the GPU, float32. It is never written again, and any thread may read it.

    Attributes:
        buffer: its memory.
        shape: of the output.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, buffer: DeviceBuffer, shape: tuple[int, ...], pool: BufferPool) -> None:
        """Takes over a buffer, which goes back to the pool when nobody holds this any more."""
        self.buffer, self.shape = buffer, shape
        weakref.finalize(self, pool.give, buffer).atexit = False
        never_freed_in_a_child(self)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def numpy(self) -> NDArray[np.float32]:
        """A copy on the host.

        Raises:
            BackendError: the GPU failed.
        """
        return self.buffer.read(self.dtype, self.shape)


class _Lane:
    """A context with its inputs and outputs bound."""

    def __init__(
        self,
        trt: ModuleType,
        engine: Any,
        inputs: list[_Tensor],
        outputs: list[_Tensor],
        scratch: DeviceBuffer,
        stream: Stream,
    ) -> None:
        self._inputs, self._outputs, self._stream = inputs, outputs, stream
        self._sizes: Sizes | None = None
        self._context = api.new_context(trt, engine, scratch.address, scratch.nbytes)
        for tensor in (*inputs, *outputs):
            api.bind(self._context, tensor.spec.name, tensor.device.address)

    def queue(self, sizes: Sizes) -> None:
        """Queues the engine."""
        self._resize(sizes)
        api.enqueue(self._context, self._stream.handle)

    def _resize(self, sizes: Sizes) -> None:
        if sizes == self._sizes:
            return
        self._sizes = None
        for tensor in self._inputs:
            if tensor.shape(sizes) != tensor.spec.shape:
                api.set_shape(self._context, tensor.spec.name, tensor.shape(sizes))
        for tensor in self._outputs:
            found = api.shape_of(self._context, tensor.spec.name)
            if found != tensor.shape(sizes):
                raise TensorRtError(f"{tensor.spec.name} would be {found}, the stage promises {tensor.shape(sizes)}")
        self._sizes = sizes


@dataclass
class _Recorded:
    """Sizes that keep coming: their context, whether it has run, and the recorded run."""

    lane: _Lane
    warm: bool = False
    graph: Graph | None = None

    def close(self) -> None:
        if self.graph is not None:
            self.graph.close()


def _check(stage: Stage, name: str, inputs: list[Port], outputs: list[Port]) -> None:
    """Compares an engine with the contract; an input that nothing uses may have been dropped."""
    found = {port.name: port for port in inputs}
    expected = [found.pop(spec.name, Port(spec.name, spec.dtype, spec.shape)) for spec in stage.inputs]
    check_signature(StageFiles(name, stage, b"", Path()), [*expected, *found.values()], outputs)


def _ranges(engine: Any, inputs: list[TensorSpec]) -> dict[str, tuple[int, int]]:
    """Smallest and largest size of every letter."""
    ranges: dict[str, tuple[int, int]] = {}
    for spec in inputs:
        if not any(isinstance(size, str) for size in spec.shape):
            continue
        smallest, largest = api.shape_range(engine, spec.name)
        for letter, least, most in zip(spec.shape, smallest, largest, strict=True):
            if isinstance(letter, str):
                low, high = ranges.get(letter, (least, most))
                ranges[letter] = (max(low, least), min(high, most))
    return ranges
