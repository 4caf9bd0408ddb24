"""Memory, streams, events and graphs against a pretended driver that does nothing before somebody waits for it."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cuda_kit import FakeCuda
from trunkline.runtime.cuda.context import Context, Owned, context
from trunkline.runtime.cuda.graph import capture
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

N = 100


@pytest.fixture
def here(cuda: FakeCuda) -> Context:
    return context()


def numbers(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((10, 10)).astype(np.float32)


class Round:
    """A way to the GPU and back, with an addition on it."""

    def __init__(self, here: Context, cuda: FakeCuda) -> None:
        self.here, self.cuda = here, cuda
        self.stream, self.event = Stream(here), Event(here)
        self.source, self.target = PinnedBuffer(here, 4 * N), PinnedBuffer(here, 4 * N)
        self.device = DeviceBuffer(here, 4 * N)
        self.parts = (self.device, self.target, self.source, self.event, self.stream)

    def queue(self) -> None:
        copy_to_device(self.device, self.source, 4 * N, self.stream)
        assert self.cuda.launch(self.stream.handle, self._add_one)
        copy_to_host(self.target, self.device, 4 * N, self.stream)

    def _add_one(self) -> None:
        content = (ctypes.c_float * N).from_address(self.device.address)
        np.frombuffer(content, np.float32)[:] += 1

    def result(self) -> NDArray[np.float32]:
        self.event.record(self.stream)
        self.event.wait()
        return self.target.read(np.float32, (10, 10))

    def close(self) -> None:
        for part in self.parts:
            part.close()


@pytest.fixture
def way(here: Context, cuda: FakeCuda) -> Round:
    made = Round(here, cuda)
    yield made  # type: ignore[misc]
    made.close()


def test_there_and_back(way: Round) -> None:
    with way.here.current():
        way.source.write(numbers())
        way.queue()
        assert not np.array_equal(way.target.read(np.float32, (10, 10)), numbers() + 1)  # nobody has waited
        np.testing.assert_array_equal(way.result(), numbers() + 1)


def test_a_stream_may_be_waited_for_as_a_whole(way: Round) -> None:
    with way.here.current():
        way.source.write(numbers())
        way.queue()
        way.stream.synchronize()
        np.testing.assert_array_equal(way.target.read(np.float32, (10, 10)), numbers() + 1)


def test_work_is_recorded_and_repeated(way: Round, cuda: FakeCuda) -> None:
    with way.here.current():
        graph = capture(way.here, way.stream, way.queue)
        way.stream.synchronize()
        assert cuda.live() == {"device": 1, "pinned": 2, "stream": 1, "event": 1, "executable": 1}
        for seed in range(3):
            way.source.write(numbers(seed))
            graph.launch(way.stream)
            np.testing.assert_array_equal(way.result(), numbers(seed) + 1)
        graph.close()


def test_work_that_fails_while_it_is_recorded(way: Round, cuda: FakeCuda) -> None:
    def work() -> None:
        way.queue()
        raise KeyError("no")

    with way.here.current():
        with pytest.raises(KeyError):
            capture(way.here, way.stream, work)
        way.source.write(numbers())
        way.queue()  # the stream is as it was
        np.testing.assert_array_equal(way.result(), numbers() + 1)
    assert cuda.live() == {"device": 1, "pinned": 2, "stream": 1, "event": 1}


@pytest.mark.parametrize("what", ["memory", "waiting"])
def test_what_may_not_be_recorded(way: Round, what: str) -> None:
    def work() -> None:
        way.queue()
        if what == "memory":
            DeviceBuffer(way.here, 10)
        else:
            way.stream.synchronize()

    with way.here.current():
        with pytest.raises(BackendError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
            capture(way.here, way.stream, work)
        way.source.write(numbers())
        way.queue()
        np.testing.assert_array_equal(way.result(), numbers() + 1)


def test_a_recording_that_was_spoilt_in_silence(way: Round) -> None:
    def work() -> None:
        way.queue()
        way.here.driver.code("cuStreamSynchronize", way.stream.handle)

    with way.here.current(), pytest.raises(BackendError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        capture(way.here, way.stream, work)


@pytest.mark.parametrize("function", ["cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags"])
def test_every_step_of_recording_may_fail(way: Round, cuda: FakeCuda, function: str) -> None:
    cuda.fail(function, 1, 999)
    with way.here.current(), pytest.raises(BackendError, match=f"(?s)CUDA failed.*{function}"):
        capture(way.here, way.stream, way.queue)
    assert "graph" not in cuda.live()


STEPS: dict[str, Callable[[Round], object]] = {
    "cuMemcpyHtoDAsync_v2": lambda way: way.queue(),
    "cuMemcpyDtoHAsync_v2": lambda way: way.queue(),
    "cuEventRecord": lambda way: way.result(),
    "cuEventSynchronize": lambda way: way.result(),
    "cuStreamSynchronize": lambda way: way.stream.synchronize(),
    "cuMemcpyDtoH_v2": lambda way: way.device.read(np.float32, (N,)),
}


@pytest.mark.parametrize("function", STEPS)
def test_errors_of_earlier_work_come_with_their_name(way: Round, cuda: FakeCuda, function: str) -> None:
    cuda.fail(function, 1, 700)
    with way.here.current(), pytest.raises(BackendError) as caught:
        STEPS[function](way)
    text = str(caught.value)
    assert f"where: {function}" in text
    assert "CUDA_ERROR_ILLEGAL_ADDRESS (700)" in text
    assert "start it again" in text


MADE: dict[str, Callable[[Context], object]] = {
    "cuMemAlloc_v2": lambda here: DeviceBuffer(here, 8),
    "cuMemHostAlloc": lambda here: PinnedBuffer(here, 8),
    "cuStreamCreate": Stream,
    "cuEventCreate": Event,
}


@pytest.mark.parametrize("function", MADE)
def test_nothing_is_left_of_what_could_not_be_made(here: Context, cuda: FakeCuda, function: str) -> None:
    cuda.fail(function, 1, 999)
    with pytest.raises(BackendError, match="CUDA failed"):
        MADE[function](here)
    assert (cuda.live(), cuda.depth) == ({}, 0)


GIVEN_BACK: dict[str, Callable[[Context], Owned]] = {
    "cuMemFree_v2": lambda here: DeviceBuffer(here, 8),
    "cuMemFreeHost": lambda here: PinnedBuffer(here, 8),
    "cuStreamDestroy_v2": Stream,
    "cuEventDestroy_v2": Event,
}


@pytest.mark.parametrize("function", GIVEN_BACK)
def test_giving_back_may_fail_and_is_not_tried_again(leaky_cuda: FakeCuda, function: str) -> None:
    part = GIVEN_BACK[function](context())
    leaky_cuda.fail(function, 1, 700)
    with pytest.raises(BackendError, match=f"(?s){function}.*CUDA_ERROR_ILLEGAL_ADDRESS"):
        part.close()
    part.close()
    assert (leaky_cuda.calls(function), leaky_cuda.depth) == (1, 0)


def test_out_of_memory_tells_how_much_there_is(here: Context, cuda: FakeCuda) -> None:
    cuda.limit(1000)
    with DeviceBuffer(here, 400), pytest.raises(BackendError) as caught:
        DeviceBuffer(here, 700)
    text = str(caught.value)
    for part in (
        "asked for 700 bytes of GPU memory",
        "CUDA_ERROR_OUT_OF_MEMORY (2)",
        "600 of the GPU's 1000 bytes are free",
    ):
        assert part in text
    assert "baked bundle" in text


def test_pinned_memory_may_run_out_too(here: Context, cuda: FakeCuda) -> None:
    cuda.fail("cuMemHostAlloc", 1, 2)
    with pytest.raises(BackendError, match="asked for 64 bytes of pinned memory"):
        PinnedBuffer(here, 64)


def test_arrays_that_do_not_fit(way: Round) -> None:
    large = np.zeros(N + 1, np.float32)
    for call in (
        lambda: way.source.write(large),
        lambda: way.target.read(np.float32, (N + 1,)),
        lambda: way.device.read(np.float32, (N + 1,)),
        lambda: way.device.read(np.float32, (0,)),
    ):
        with pytest.raises(BackendError, match="does not fit into its buffer"):
            call()


@pytest.mark.parametrize("nbytes", [0, -1, 4 * N + 1])
def test_copies_stay_inside(way: Round, nbytes: int) -> None:
    for copy in (
        lambda: copy_to_device(way.device, way.source, nbytes, way.stream),
        lambda: copy_to_host(way.target, way.device, nbytes, way.stream),
        lambda: copy_on_device(way.device, way.device, nbytes, way.stream),
    ):
        with pytest.raises(BackendError, match="would run past the end"):
            copy()


def test_closed_buffers_are_not_used(way: Round) -> None:
    way.device.close()
    way.source.close()
    with pytest.raises(BackendError, match="would run past the end"):
        way.queue()
    with pytest.raises(BackendError, match="at most 0 bytes"):
        way.source.write(numbers())
    with pytest.raises(BackendError, match="at most 0 bytes"):
        way.device.read(np.float32, (N,))


def test_nothing_works_in_a_thread_without_the_context(way: Round) -> None:
    errors: list[str] = []

    def work(inside: bool) -> None:
        try:
            if inside:
                with way.here.current():
                    way.queue()
                    way.result()
            else:
                way.queue()
        except BackendError as error:
            errors.append(str(error))

    for inside in (True, False):
        thread = threading.Thread(target=work, args=(inside,))
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert "CUDA_ERROR_INVALID_CONTEXT" in errors[0]


def test_what_is_dropped_is_given_back(here: Context, cuda: FakeCuda) -> None:
    parts = [DeviceBuffer(here, 8), PinnedBuffer(here, 8), Stream(here), Event(here)]
    assert len(cuda.live()) == 4
    del parts
    gc.collect()
    assert cuda.live() == {}


def test_what_is_written_is_a_copy_of_any_layout(here: Context) -> None:
    with PinnedBuffer(here, 4 * N) as buffer:
        array = numbers()
        buffer.write(array[::-1].T)
        found = buffer.read(np.float32, (10, 10))
        np.testing.assert_array_equal(found, array[::-1].T)
        buffer.write(np.zeros((10, 10), np.float32))
        np.testing.assert_array_equal(found, array[::-1].T)


def test_a_pool_lends_the_same_memory_again(here: Context, cuda: FakeCuda) -> None:
    pool = BufferPool(here, most=2)
    first, other = pool.take(64), pool.take(128)
    address = first.address
    pool.give(other)
    pool.give(first)
    assert pool.take(64).address == address
    assert cuda.calls("cuMemAlloc_v2") == 2
    pool.close()


def test_a_pool_keeps_few(here: Context, cuda: FakeCuda) -> None:
    pool = BufferPool(here, most=2)
    for buffer in [pool.take(64) for _ in range(5)]:
        pool.give(buffer)
    del buffer
    assert cuda.live() == {"device": 2}
    late = pool.take(64)
    pool.close()
    assert cuda.live() == {"device": 1}
    pool.give(late)
    assert cuda.live() == {}
