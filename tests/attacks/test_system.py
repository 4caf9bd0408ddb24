"""What the machine around the ensemble may do to it: missing libraries, forks, threads, closing, failing back ends.

Numbers are those of the list of bad inputs.
"""

from __future__ import annotations

import builtins
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import frame, windows
from trunkline.runtime import Ensemble, load
from trunkline.runtime.backends import StageFiles, choose
from trunkline.runtime.backends import onnxruntime as backend
from trunkline.runtime.errors import BackendError, CandidateError, ClosedError, InputError, InstructionError

SECONDS = 30


def test_84_library_missing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    for name in (None, "onnxruntime"):
        with pytest.raises(
            BackendError, match=r"no back end(.|\n)*No module named(.|\n)*pip install 'trunkline\[cpu\]'"
        ):
            load(bundle, backend=name)


@pytest.mark.parametrize("name", ["tensorflow", "", "os", "onnxruntime "])
def test_84_unknown_back_end(bundle: Path, name: str) -> None:
    with pytest.raises(BackendError, match=r"no such back end\n.*onnxruntime\n(.|\n)*leave it out"):
        load(bundle, backend=name)


def test_84_a_known_back_end_is_chosen_by_name() -> None:
    assert choose("onnxruntime").NAME == choose(None).NAME == "onnxruntime"


@pytest.fixture
def own(bundle: Path) -> Any:
    """An ensemble that a test may close."""
    with load(bundle, threads=2) as ensemble:
        yield ensemble


def score(ensemble: Ensemble, seed: int = 0) -> Any:
    return ensemble.score(frame(seed), "go", windows(3, seed)).scores


FORKING = """
import os, sys, numpy as np
from trunkline.runtime import load
from trunkline.runtime.errors import ClosedError
ensemble = load(sys.argv[1], threads=2)
image, histories = np.zeros((40, 40, 3), np.uint8), np.zeros((2, 10, 7), np.float32)
before = ensemble.score(image, "go", histories).scores
child = os.fork()
if child == 0:
    try:
        ensemble.score(image, "go", histories)
    except ClosedError as error:
        assert "before this process was forked" in str(error) and "load the bundle in the process" in str(error)
        ensemble.close()
        sys.exit(42)  # an ordinary end, which frees what the child inherited
    sys.exit(1)
status = os.waitpid(child, 0)[1]
assert os.waitstatus_to_exitcode(status) == 42, status
ensemble.forget()
np.testing.assert_array_equal(ensemble.score(image, "go", histories).scores, before)
print("parent works")
"""


def test_85_forked_child_is_refused_and_ends(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(bundle)], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "parent works"), done.stderr


def _score_in_child(ensemble: Ensemble, bundle: str, results: Any) -> None:
    try:
        score(ensemble)
    except ClosedError as error:
        results.put(str(error))
    with load(bundle) as loaded_here:
        results.put(score(loaded_here).tolist())


def test_85_multiprocessing(own: Ensemble, bundle: Path) -> None:
    expected = score(own).tolist()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_score_in_child, args=(own, str(bundle), results))
    process.start()
    assert "before this process was forked" in results.get(timeout=SECONDS)
    assert results.get(timeout=SECONDS) == pytest.approx(expected, abs=1e-6)
    process.join(SECONDS)
    assert process.exitcode == 0


def test_the_library_sends_no_usage_data() -> None:
    """Current releases of ONNX Runtime upload some from the moment they are imported; a robot has no say in it."""
    code = (
        "import os; from trunkline.runtime.backends import choose; choose(None); "
        "print(os.environ['ORT_DISABLE_TELEMETRY'], len(os.listdir('/proc/self/task')))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
        env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.split() == ["1", "1"]  # no thread that would upload anything was started


def test_86_threads_give_the_scores_of_one_thread(ensemble: Ensemble) -> None:
    source = random.Random(0)
    calls = [
        (source.randrange(4), source.choice(["go", "stop", "put it down"]), source.randrange(5)) for _ in range(60)
    ]

    def run(call: tuple[int, str, int]) -> Any:
        image, instruction, candidates = call
        return ensemble.score(frame(image), instruction, windows(2 + candidates, candidates)).scores

    ensemble.forget()
    expected = [run(call) for call in calls]
    ensemble.forget()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(run, calls))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_86_threads_do_not_compute_the_same_frame_twice(ensemble: Ensemble) -> None:
    ensemble.forget()
    before = ensemble.counts()["vision"].computed
    barrier = threading.Barrier(4)

    def run(_: int) -> None:
        barrier.wait()
        score(ensemble, 77)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert ensemble.counts()["vision"].computed == before + 1


def test_closed(own: Ensemble) -> None:
    own.close()
    own.close()
    for use in (lambda: score(own), own.open_stages, lambda: own.select(frame(), "go", windows(2))):
        with pytest.raises(ClosedError, match=r"ensemble is closed\n.*load the bundle again"):
            use()


@pytest.mark.parametrize("delay_s", [0, 0.01, 0.02, 0.03])
def test_closed_while_another_thread_scores(bundle: Path, delay_s: float) -> None:
    ensemble = load(bundle)
    expected = score(ensemble, 0)
    errors: list[BaseException] = []
    started = threading.Event()

    def run() -> None:
        try:
            for _ in range(10_000):
                ensemble.forget()
                np.testing.assert_allclose(score(ensemble, 0), expected, atol=1e-6)
                started.set()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(SECONDS)
    time.sleep(delay_s)
    ensemble.close()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert [type(error) for error in errors] == [ClosedError] * 3, errors
    assert all(node.session is None for node in ensemble._graph.nodes.values())  # none was opened again


def test_68_nothing_to_score(ensemble: Ensemble) -> None:
    with pytest.raises(CandidateError, match="at least one candidate"):
        ensemble.score(frame(), "go", [])
    with pytest.raises(InstructionError, match="there must be an instruction"):
        ensemble.score(frame(), [], windows(2))
    with pytest.raises(CandidateError, match="at least one candidate"):
        ensemble.select(frame(), "go", [])


@pytest.mark.parametrize("instruction", [None, 5, b"go", [None], ["go", 5], [["go"]], {1: 2}])
def test_instructions_of_other_types(ensemble: Ensemble, instruction: Any) -> None:
    for call in (ensemble.score, ensemble.select):
        with pytest.raises(InstructionError, match=r"an instruction must be a string|a list of instructions"):
            call(frame(), instruction, windows(2))


def test_too_many_instructions(ensemble: Ensemble) -> None:
    with pytest.raises(InstructionError, match=r"1 to 256\n.*257"):
        ensemble.score(frame(), ["go"] * 257, windows(2))


@pytest.mark.parametrize("members", [[], [3], [-1], [0, 0], [0.0], [True], ["0"], [None], 1, "01", np.array([0.5])])
def test_members_that_are_none(ensemble: Ensemble, members: Any) -> None:
    with pytest.raises(InputError, match=r"cannot be asked\n.*0 to 2: epoch_0, epoch_1, epoch_2"):
        ensemble.score(frame(), "go", windows(2), members=members)


@pytest.mark.parametrize("repeats", [0, -1, 3, 2.0, "2", None])
def test_groups_that_do_not_divide(ensemble: Ensemble, repeats: Any) -> None:
    with pytest.raises(InputError, match=r"do not divide into groups(.|\n)*4 candidates"):
        ensemble.select(frame(), "go", windows(4), repeats)


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


def test_83_back_end_fails_while_it_runs(own: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = score(own)
    own.forget()
    session: Any = own._graph.nodes["context"].session
    original = session._session
    session._session = type("Failing", (), {"run": staticmethod(failing(RuntimeError("bad_alloc")))})()
    with pytest.raises(BackendError, match=r"failed while it ran a stage\n.*stage context\n.*bad_alloc") as caught:
        score(own)
    assert isinstance(caught.value.__cause__, RuntimeError)
    session._session = original
    np.testing.assert_array_equal(score(own), expected)  # no lock is held, nothing bad is remembered


def test_back_end_returns_another_shape(own: Ensemble) -> None:
    node = own._graph.nodes["action"]
    session: Any = node.session
    original = session.run
    session.run = lambda inputs: {name: value[:, :-1] for name, value in original(inputs).items()}
    with pytest.raises(BackendError, match=r"another shape than it promises\n.*action\n.*\(3, 3, 32\)\n.*\(3, 2, 32\)"):
        score(own)


def test_back_end_is_handed_a_wrong_input(bundle: Path, own: Ensemble) -> None:
    session: Any = own._graph.nodes["action"].session
    with pytest.raises(BackendError, match=r"failed while it ran a stage\n.*stage action"):
        session.run({"history": np.zeros((1, 9, 7), np.float32)})
    with pytest.raises(BackendError, match=r"failed while it ran a stage\n.*stage action"):
        session.run({})


def test_one_stage_that_cannot_be_opened_fails_the_load(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = backend.open_stage

    def open_stage(files: StageFiles) -> Any:
        if files.name == "text":
            raise BackendError("no memory")
        return original(files)

    monkeypatch.setattr(backend, "open_stage", open_stage)
    with pytest.raises(BackendError, match="no memory"):
        load(bundle)
