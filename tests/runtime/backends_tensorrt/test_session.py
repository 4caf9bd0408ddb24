"""Engines at work: the right numbers, memory that is given back, and graphs that change nothing but the time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cuda_kit import FakeCuda
from tests.pretended_tensorrt.fixtures import SETTINGS
from tests.pretended_tensorrt.world import World
from tests.small_stages import expected, rows, small
from trunkline.runtime.backends import Resident, ResidentSession, StageFiles
from trunkline.runtime.backends import tensorrt_session as module
from trunkline.runtime.backends.tensorrt_session import OFTEN, TensorRtSession
from trunkline.runtime.engines.settings import BuildRequest, Rows
from trunkline.runtime.errors import BackendError, BundleError
from trunkline.runtime.manifest import TensorSpec
from trunkline.targets.building.network import TensorRtBuilder

#: Runs after which sizes that never change are recorded: those that make them come often, and the context's first.
RECORDED = OFTEN + 1


@pytest.fixture
def files(tmp_path: Path) -> StageFiles:
    return small(tmp_path)


@pytest.fixture
def plan(trt: ModuleType, files: StageFiles) -> bytes:
    return TensorRtBuilder().build(BuildRequest(files, SETTINGS.for_stage(files.stage))).plan


@pytest.fixture
def session(trt: ModuleType, plan: bytes, files: StageFiles) -> Iterator[TensorRtSession]:
    made = TensorRtSession(trt, plan, files.stage, name="small")
    yield made
    made.close()


def check(session: TensorRtSession, files: StageFiles, count: int, seed: int = 0) -> NDArray[np.float32]:
    inputs = {"x": rows(count, seed)}
    found = session.run(inputs)["y"]
    np.testing.assert_allclose(found, expected(files, inputs), atol=1e-2)
    return found


def test_results_are_right_whatever_was_recorded(session: TensorRtSession, files: StageFiles) -> None:
    for seed in range(3 * RECORDED):
        check(session, files, 3, seed)
    assert (session.graphs, session.graph_problem) == (1, None)


def test_a_run_is_recorded_when_its_sizes_keep_coming(
    session: TensorRtSession, files: StageFiles, cuda: FakeCuda, world: World
) -> None:
    for count in range(RECORDED):
        assert cuda.calls("cuGraphLaunch") == 0, count
        check(session, files, 3, count)
    check(session, files, 3)
    assert cuda.calls("cuGraphLaunch") == 2
    assert cuda.calls("cuStreamBeginCapture_v2") == 1
    assert world.contexts == 2  # the one for everything else has never seen these addresses recorded
    assert world.runs == RECORDED + 1  # recording computes nothing


def test_sizes_that_come_rarely_are_not_recorded(session: TensorRtSession, files: StageFiles, world: World) -> None:
    for count in range(1, 17):
        check(session, files, count)
        check(session, files, count)
    assert (session.graphs, world.contexts) == (0, 1)


def test_recorded_sizes_do_not_disturb_each_other(session: TensorRtSession, files: StageFiles) -> None:
    for seed in range(40):
        check(session, files, 1 + seed % 3, seed)
    assert session.graphs == 3


def test_graphs_are_few_and_give_way(
    session: TensorRtSession, files: StageFiles, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_GRAPHS", 2)
    for count in (1, 2, 3):
        for seed in range(RECORDED):
            check(session, files, count, seed)
    assert (session.graphs, world.contexts) == (2, 3)  # the third found both places in use
    for seed in range(module.RECENT):
        check(session, files, 4, seed)
    assert (session.graphs, world.contexts) == (2, 4)


def test_an_engine_that_cannot_be_recorded_still_runs(
    session: TensorRtSession, files: StageFiles, cuda: FakeCuda
) -> None:
    cuda.fail("cuGraphInstantiateWithFlags", 1, 999)
    for seed in range(2 * RECORDED):
        check(session, files, 3, seed)
    assert session.graphs == 0
    assert session.graph_problem is not None
    assert "CUDA_ERROR_UNKNOWN (999)" in session.graph_problem
    assert cuda.calls("cuStreamBeginCapture_v2") == 1
    assert "graph" not in cuda.live()


def test_no_memory_for_another_context_is_no_failure(session: TensorRtSession, files: StageFiles, world: World) -> None:
    world.refuses["ICudaEngine.create_execution_context"] = "OutOfMemory"
    for seed in range(2 * RECORDED):
        check(session, files, 3, seed)
    assert session.graph_problem == "TensorRT did not make a context"


def test_results_are_copies(session: TensorRtSession, files: StageFiles) -> None:
    first = check(session, files, 3)
    kept = first.copy()
    check(session, files, 3, seed=1)
    np.testing.assert_array_equal(first, kept)


def test_memory_is_asked_for_once(session: TensorRtSession, files: StageFiles, cuda: FakeCuda) -> None:
    before = (cuda.calls("cuMemAlloc_v2"), cuda.calls("cuMemHostAlloc"))
    assert before == (3, 2)  # an input, an output, and what the engine works in; both sides of the first two
    for count in (1, 16, 3) * RECORDED:
        check(session, files, count)
    assert (cuda.calls("cuMemAlloc_v2"), cuda.calls("cuMemHostAlloc")) == before


@pytest.mark.parametrize("count", [0, 17])
def test_more_rows_than_the_engine_takes(session: TensorRtSession, files: StageFiles, count: int) -> None:
    with pytest.raises(BackendError) as caught:
        session.run({"x": rows(count)})
    text = str(caught.value)
    assert "another number of rows than the engine was built for" in text
    assert f"N is {count}; the engine takes 1 to 16" in text
    assert "batch profile" in text
    check(session, files, 16)


WRONG: dict[str, dict[str, NDArray[np.generic]]] = {
    "nothing": {},
    "another name": {"z": rows(2)},
    "one more": {"x": rows(2), "z": rows(2)},
    "another type": {"x": rows(2).astype(np.float64)},
    "another width": {"x": rows(2)[:, :5]},
}


@pytest.mark.parametrize("case", WRONG)
def test_inputs_that_are_not_the_stage_s(session: TensorRtSession, files: StageFiles, case: str) -> None:
    with pytest.raises(BackendError, match=r"(?s)TensorRT failed while it ran a stage.*stage small.*the stage has"):
        session.run(WRONG[case])
    check(session, files, 2)


def test_inputs_of_any_layout(session: TensorRtSession, files: StageFiles) -> None:
    array = rows(8)
    array.setflags(write=False)
    for view in (array[::2], array[::-1], np.asfortranarray(array)):
        found = session.run({"x": view})["y"]
        np.testing.assert_array_equal(found, session.run({"x": np.ascontiguousarray(view)})["y"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("IExecutionContext.set_input_shape", "did not take x of shape"),
        ("IExecutionContext.execute_async_v3", "did not start a run"),
    ],
)
def test_a_run_that_tensorrt_refuses(
    session: TensorRtSession, files: StageFiles, world: World, call: str, words: str
) -> None:
    world.refuses[call] = "[executionContext.cpp] Error Code 3"
    with pytest.raises(BackendError) as caught:
        session.run({"x": rows(2)})
    assert words in str(caught.value)
    assert "error: [executionContext.cpp] Error Code 3" in str(caught.value)
    world.refuses.clear()
    check(session, files, 2)


@pytest.mark.parametrize("function", ["cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuEventSynchronize"])
def test_a_run_that_cuda_fails(session: TensorRtSession, files: StageFiles, cuda: FakeCuda, function: str) -> None:
    cuda.fail(function, 1, 700)
    with pytest.raises(BackendError, match=f"(?s)where: stage small, {function}.*CUDA_ERROR_ILLEGAL_ADDRESS"):
        session.run({"x": rows(2)})
    check(session, files, 2)


def test_an_engine_that_computes_other_sizes(
    session: TensorRtSession, files: StageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.api, "shape_of", lambda context, name: (2, 5))
    with pytest.raises(BackendError, match=r"y would be \(2, 5\), the stage promises \(2, 4\)"):
        session.run({"x": rows(2)})


def test_a_closed_session(session: TensorRtSession, cuda: FakeCuda) -> None:
    session.close()
    session.close()
    assert cuda.live() == {}
    with pytest.raises(BackendError, match="the session is closed"):
        session.run({"x": rows(2)})


def test_a_session_that_is_dropped(trt: ModuleType, plan: bytes, files: StageFiles, cuda: FakeCuda) -> None:
    check(TensorRtSession(trt, plan, files.stage), files, 2)
    assert cuda.live() == {}


def test_threads_one_after_the_other(session: TensorRtSession, files: StageFiles) -> None:
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            check(session, files, 3, seed)
        except BaseException as error:
            errors.append(error)

    for seed in range(8):
        thread = threading.Thread(target=work, args=(seed,))
        thread.start()
        thread.join()
    assert errors == []
    assert session.graphs == 1


def test_two_heads_of_one_architecture_compute_their_own(trt: ModuleType, tmp_path: Path) -> None:
    heads = [small(tmp_path / str(seed), seed=seed) for seed in range(2)]
    builder = TensorRtBuilder()
    plans = [builder.build(BuildRequest(each, SETTINGS.for_stage(each.stage))).plan for each in heads]
    sessions = [builder.open_engine(plan, head.stage) for plan, head in zip(plans, heads, strict=True)]
    for _ in range(2 * RECORDED):
        for session, head in zip(sessions, heads, strict=True):
            check(session, head, 3)
    for session in sessions:
        session.close()


BROKEN = {
    "another version": b"plan of an older TensorRT",
    "nothing": b"",
    "truncated": None,
}


@pytest.mark.parametrize("case", BROKEN)
def test_engines_that_are_refused(trt: ModuleType, plan: bytes, files: StageFiles, cuda: FakeCuda, case: str) -> None:
    content = BROKEN[case]
    with pytest.raises(BackendError) as caught:
        TensorRtSession(trt, plan[: len(plan) // 2] if content is None else content, files.stage, name="small")
    text = str(caught.value)
    for part in ("an engine cannot be used", "stage small", "magicTag", "did not open the engine", "trunkline build"):
        assert part in text
    assert cuda.live() == {}


def test_an_engine_of_another_gpu(trt: ModuleType, plan: bytes, files: StageFiles, world: World) -> None:
    world.gpu = "Another GPU"
    with pytest.raises(BackendError, match="built for another device"):
        TensorRtSession(trt, plan, files.stage)


def test_an_engine_of_another_stage(trt: ModuleType, plan: bytes, files: StageFiles, cuda: FakeCuda) -> None:
    other = replace(files.stage, inputs=(TensorSpec("x", "float32", ("N", 7)),))
    with pytest.raises(BundleError, match="inputs are"):
        TensorRtSession(trt, plan, other)
    assert cuda.live() == {}


def test_an_engine_with_memory_on_the_host(trt: ModuleType, plan: bytes, files: StageFiles, world: World) -> None:
    world.refuses["ICudaEngine.get_tensor_location"] = "host"
    with pytest.raises(BackendError, match="is not in GPU memory"):
        TensorRtSession(trt, plan, files.stage)


@pytest.mark.parametrize("nth", range(1, 4))
def test_out_of_memory_while_an_engine_is_opened(
    trt: ModuleType, plan: bytes, files: StageFiles, cuda: FakeCuda, nth: int
) -> None:
    cuda.fail("cuMemAlloc_v2", nth, 2)
    with pytest.raises(BackendError, match=r"(?s)bytes of GPU memory.*CUDA_ERROR_OUT_OF_MEMORY"):
        TensorRtSession(trt, plan, files.stage)
    assert cuda.live() == {}


def test_an_input_that_nothing_uses_may_be_gone(trt: ModuleType, world: World, tmp_path: Path) -> None:
    """TensorRT may drop it; the stage still has it."""
    files = small(tmp_path / "extra", extra=True)
    world.drops = {"shift"}
    builder = TensorRtBuilder()
    session = builder.open_engine(builder.build(BuildRequest(files, SETTINGS.for_stage(files.stage))).plan, files.stage)
    inputs = {"x": rows(2), "shift": np.zeros((1, 4), np.float32)}
    np.testing.assert_allclose(session.run(inputs)["y"], expected(files, inputs), atol=1e-2)
    session.close()


def test_outputs_stay_on_the_gpu_and_feed_the_next_stage(trt: ModuleType, cuda: FakeCuda, tmp_path: Path) -> None:
    first, second = small(tmp_path / "1"), small(tmp_path / "2", letter=1, extra=True)
    builder = TensorRtBuilder()
    plans = [builder.build(BuildRequest(each, SETTINGS.for_stage(each.stage))).plan for each in (first, second)]
    here, there = (builder.open_engine(plan, each.stage) for plan, each in zip(plans, (first, second), strict=True))
    copied_in = cuda.calls("cuMemcpyHtoDAsync_v2")
    resident: ResidentSession = here
    kept: Resident = resident.run_resident({"x": rows(1)})["y"]
    assert (kept.shape, kept.dtype, kept.nbytes) == ((1, 4), np.float32, 16)
    here.run_resident({"x": rows(1, seed=1)})  # does not touch what was kept
    shift = expected(first, {"x": rows(1)})
    np.testing.assert_allclose(kept.numpy(), shift, atol=1e-2)
    assert cuda.calls("cuMemcpyDtoHAsync_v2") == 0
    for seed in range(2 * RECORDED):
        inputs = {"x": rows(1, seed)}
        found = there.run({**inputs, "shift": kept})["y"]
        np.testing.assert_allclose(found, expected(second, {**inputs, "shift": shift}), atol=2e-2)
    assert there.graphs == 1
    assert cuda.calls("cuMemcpyHtoDAsync_v2") == copied_in + 2 + 2 * RECORDED  # never for what was there already
    here.close()
    np.testing.assert_allclose(kept.numpy(), shift, atol=1e-2)  # it outlives the session
    there.close()
    del kept
    assert cuda.live() == {}


def test_kept_outputs_lend_each_other_their_memory(session: TensorRtSession, cuda: FakeCuda) -> None:
    before = cuda.calls("cuMemAlloc_v2")
    for seed in range(10):
        session.run_resident({"x": rows(3, seed)})
    assert cuda.calls("cuMemAlloc_v2") == before + 1


def test_out_of_memory_for_an_output(session: TensorRtSession, files: StageFiles, cuda: FakeCuda) -> None:
    cuda.fail("cuMemAlloc_v2", 1, 2)
    with pytest.raises(BackendError, match="asked for 48 bytes of GPU memory"):
        session.run_resident({"x": rows(3)})
    check(session, files, 3)


def test_a_profile_with_one_size(trt: ModuleType, files: StageFiles) -> None:
    settings = replace(SETTINGS, profile=(Rows("N", 3, 3, 3),))
    builder = TensorRtBuilder()
    session = builder.open_engine(builder.build(BuildRequest(files, settings)).plan, files.stage)
    check(session, files, 3)
    with pytest.raises(BackendError, match="N is 2; the engine takes 3 to 3"):
        session.run({"x": rows(2)})
    session.close()
