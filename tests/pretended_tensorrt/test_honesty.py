"""The pretended library refuses what the real one does: a session that gets away with something here may not there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.cuda_kit import FakeCuda
from tests.pretended_tensorrt.engines import compatible_plan
from tests.pretended_tensorrt.fixtures import SETTINGS, Install
from tests.pretended_tensorrt.library import NEWEST, VERSIONS
from tests.pretended_tensorrt.world import SCRATCH_BYTES, World
from tests.small_stages import expected, rows, small
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.backends import tensorrt_api as api
from trunkline.runtime.backends.tensorrt_log import TensorRtError
from trunkline.runtime.cuda.context import context
from trunkline.runtime.cuda.graph import capture
from trunkline.runtime.cuda.memory import DeviceBuffer, PinnedBuffer, copy_to_device
from trunkline.runtime.cuda.stream import Stream
from trunkline.runtime.engines.settings import BuildRequest
from trunkline.runtime.errors import BackendError
from trunkline.targets.building.network import TensorRtBuilder


def built(files: StageFiles) -> bytes:
    settings = SETTINGS.for_stage(files.stage)
    return TensorRtBuilder().build(BuildRequest(files, settings)).plan


class Bench:
    """An engine with everything that a run takes, for tests to take something away."""

    def __init__(self, trt: ModuleType, files: StageFiles) -> None:
        self.gpu, self.files = context(), files
        _runtime, engine = api.open_engine(trt, built(files))
        self.stream = Stream(self.gpu)
        self.scratch, self.x, self.y = (
            DeviceBuffer(self.gpu, size) for size in (SCRATCH_BYTES, 16 * 6 * 4, 16 * 4 * 4)
        )
        self.context = api.new_context(trt, engine, self.scratch.address, SCRATCH_BYTES)
        api.bind(self.context, "x", self.x.address)
        api.bind(self.context, "y", self.y.address)
        api.set_shape(self.context, "x", (2, 6))

    def feed(self) -> None:
        host = PinnedBuffer(self.gpu, self.x.nbytes)
        host.write(rows(2))
        copy_to_device(self.x, host, host.nbytes, self.stream)
        self.stream.synchronize()
        host.close()

    def queue(self) -> None:
        api.enqueue(self.context, self.stream.handle)

    def close(self) -> None:
        for each in (self.stream, self.scratch, self.x, self.y):
            each.close()


@pytest.fixture
def bench(trt: ModuleType, tmp_path: Path, cuda: FakeCuda) -> Iterator[Bench]:
    made = Bench(trt, small(tmp_path))
    with made.gpu.current():
        made.feed()
        yield made
        made.close()


def test_a_run_that_is_right(bench: Bench, world: World) -> None:
    bench.queue()
    bench.stream.synchronize()
    np.testing.assert_allclose(bench.y.read(np.float32, (2, 4)), expected(bench.files, {"x": rows(2)}), atol=1e-2)
    assert world.faults == []


REFUSED: dict[str, Callable[[Bench], object]] = {
    "a shape below the profile": lambda bench: api.set_shape(bench.context, "x", (0, 6)),
    "a shape above it": lambda bench: api.set_shape(bench.context, "x", (17, 6)),
    "another fixed size": lambda bench: api.set_shape(bench.context, "x", (2, 7)),
    "another rank": lambda bench: api.set_shape(bench.context, "x", (2,)),
    "a shape of an output": lambda bench: api.set_shape(bench.context, "y", (2, 4)),
    "a shape of nothing": lambda bench: api.set_shape(bench.context, "z", (2, 6)),
    "an address of nothing": lambda bench: api.bind(bench.context, "z", bench.x.address),
    "an address that is not aligned": lambda bench: api.bind(bench.context, "x", bench.x.address + 4),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_at_once(bench: Bench, case: str) -> None:
    with pytest.raises(TensorRtError):
        REFUSED[case](bench)


def test_a_run_needs_every_address_and_every_shape(trt: ModuleType, bench: Bench, world: World) -> None:
    _runtime, engine = api.open_engine(trt, built(bench.files))
    bare = api.new_context(trt, engine, bench.scratch.address, SCRATCH_BYTES)
    bench.context = bare
    for step, words in (
        (lambda: None, "no address was set for ['x', 'y']"),
        (lambda: api.bind(bare, "x", bench.x.address), "no address was set for ['y']"),
        (lambda: api.bind(bare, "y", bench.y.address), "no shape was set for ['x']"),
    ):
        step()
        mark = api.LOG.mark()
        with pytest.raises(TensorRtError, match="did not start a run"):
            bench.queue()
        assert api.LOG.since(mark) == [f"error: {words}"]
    api.set_shape(bare, "x", (2, 6))
    bench.queue()
    bench.stream.synchronize()


@pytest.mark.parametrize(("address", "nbytes"), [(0, SCRATCH_BYTES), (None, SCRATCH_BYTES - 1), (4, SCRATCH_BYTES)])
def test_a_run_needs_memory_to_work_in(bench: Bench, address: int | None, nbytes: int) -> None:
    bench.context.set_device_memory(bench.scratch.address if address is None else address, nbytes)
    with pytest.raises(TensorRtError, match="did not start a run"):
        bench.queue()


@pytest.mark.parametrize("what", ["scratch", "x", "y"])
def test_memory_that_was_given_back(bench: Bench, world: World, what: str) -> None:
    getattr(bench, what).close()
    bench.queue()  # nobody has looked yet
    with pytest.raises(BackendError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        bench.stream.synchronize()
    assert "memory that is not there" in world.faults[0]
    with pytest.raises(BackendError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):  # and never again
        bench.stream.synchronize()


@pytest.mark.parametrize("name", ["x", "y"])
def test_memory_that_is_too_small(bench: Bench, name: str) -> None:
    little = DeviceBuffer(bench.gpu, 2 * 4 * 4 - 1)
    api.bind(bench.context, name, little.address)
    bench.queue()
    with pytest.raises(BackendError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        bench.stream.synchronize()
    little.close()


def test_nothing_survives_where_an_engine_works(bench: Bench) -> None:
    bench.queue()
    bench.stream.synchronize()
    assert set(bench.scratch.read(np.uint8, (SCRATCH_BYTES,))) == {0x5A}


CHANGED: dict[str, Callable[[Bench], object]] = {
    "shape": lambda bench: api.set_shape(bench.context, "x", (3, 6)),
    "address": lambda bench: api.bind(bench.context, "y", bench.y.address),
    "memory": lambda bench: bench.context.set_device_memory(bench.scratch.address, SCRATCH_BYTES),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_recorded_run_whose_context_changed(bench: Bench, world: World, what: str) -> None:
    bench.queue()
    graph = capture(bench.gpu, bench.stream, bench.queue)
    graph.launch(bench.stream)
    bench.stream.synchronize()
    assert world.runs == 2
    CHANGED[what](bench)
    graph.launch(bench.stream)
    with pytest.raises(BackendError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        bench.stream.synchronize()
    graph.close()


def refused(install: Install, plan: bytes, version: str) -> str:
    mark = api.LOG.mark()
    with pytest.raises(TensorRtError, match="did not open the engine"):
        api.open_engine(install(version), plan)
    (line,) = api.LOG.since(mark)
    return line


@pytest.mark.parametrize(("by", "here"), [(VERSIONS[0], NEWEST), (NEWEST, VERSIONS[0]), (VERSIONS[-2], NEWEST)])
def test_a_plan_of_another_version(install: Install, tmp_path: Path, by: str, here: str) -> None:
    install(by)
    plan = built(small(tmp_path))
    assert f"the plan is of TensorRT {by}, this is {here}" in refused(install, plan, here)


def test_a_compatible_plan_runs_on_newer_versions_only(install: Install, tmp_path: Path) -> None:
    files = small(tmp_path)
    older = compatible_plan(files, install(VERSIONS[0]), with_code=False)
    newer = compatible_plan(files, install(NEWEST), with_code=False)
    api.open_engine(install(NEWEST), older)
    assert "the plan is of TensorRT" in refused(install, newer, VERSIONS[0])


def test_code_inside_a_plan_never_runs(install: Install, world: World, tmp_path: Path) -> None:
    """An engine that was planted could bring any."""
    trt = install(NEWEST)
    plan = compatible_plan(small(tmp_path), trt, with_code=True)
    assert "code for the processor" in refused(install, plan, NEWEST)
    assert world.host_code_ran == 0
    trt.Runtime(api._logger(trt)).deserialize_cuda_engine(plan)  # as somebody would who does not forbid it
    assert world.host_code_ran == 1


@pytest.mark.parametrize(
    "shapes", [{}, {"x": ((1, 7),) * 3}, {"x": ((1,),) * 3}, {"x": ((1, 6),) * 3, "z": ((1,),) * 3}]
)
def test_a_profile_that_does_not_fit_the_network(trt: ModuleType, tmp_path: Path, shapes: dict[str, Any]) -> None:
    files = small(tmp_path)
    builder = api.new_builder(trt)
    network = api.new_network(trt, builder)
    _parser, _problems = api.parse(trt, network, files.graph, str(files.folder / "stage.onnx"))
    config = api.new_config(trt, builder, workspace_bytes=1, optimization_level=1)
    api.add_profile(builder, config, shapes)
    with pytest.raises(TensorRtError, match="did not build an engine"):
        api.build(builder, network, config)


def test_the_pretended_gpu_is_the_process_s_memory(bench: Bench) -> None:
    """What these tests rely on: a read past the end would be noticed."""
    assert ctypes.c_float.from_address(bench.x.address).value == pytest.approx(float(rows(2)[0, 0]))
