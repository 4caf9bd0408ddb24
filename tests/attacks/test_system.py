"""What the machine around the ensemble may do to it: missing libraries, forks, threads, closing, failing back ends.

Numbers are those of docs/security.md, "The machine" and "Candidates, instructions and choices".
"""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.bundles import frame, windows
from trunkline.calibration.int8.linears import find_linears, normalise
from trunkline.calibration.int8.placement import place_int8
from trunkline.calibration.int8.stage_plan import save
from trunkline.runtime import Ensemble, load
from trunkline.runtime.backends import StageFiles, choose, named, names, onnxruntime
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BackendError, CandidateError, ClosedError, InputError, InstructionError

SECONDS = 30


def without(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    """Lets libraries seem not to be installed."""
    for library in libraries:
        monkeypatch.setitem(sys.modules, library, None)


def test_84_no_library(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, *names())
    with pytest.raises(BackendError) as caught:
        load(bundle)
    for part in ("no back end can run this bundle here", "openvino: ", "onnxruntime: "):
        assert part in str(caught.value)
    fixes = {"pip install 'trunkline[cpu]'", "pip install --upgrade 'trunkline[openvino]'"}
    assert set(str(caught.value.fix).split(" or ")) == fixes


@pytest.mark.parametrize(("name", "extra"), [("onnxruntime", "cpu"), ("openvino", "openvino")])
def test_84_the_library_that_was_asked_for_is_missing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    """The other one may be there: it is not taken instead."""
    without(monkeypatch, name)
    match = rf"asked for is not here\n.*expected: {name}\n.*{name}: .*\n.*pip install .*'trunkline\[{extra}\]'"
    with pytest.raises(BackendError, match=match):
        load(bundle, backend=name)


@pytest.mark.parametrize("name", names("cpu"))
def test_84_what_is_there_is_taken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    without(monkeypatch, *set(names()) - {name})
    assert choose(None, {"cpu"}).NAME == choose(name).NAME == name


@pytest.mark.parametrize(("version", "good"), [("2025.4.1-20426-82bbf0292c5", False), ("2026.1.0-1", True)])
def test_84_library_too_old(monkeypatch: pytest.MonkeyPatch, version: str, good: bool) -> None:
    """It would know no attention; ONNX Runtime, which may be there, is taken instead of failing later."""
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(__version__=version))
    missing = named("openvino").available()
    assert good == (missing is None)
    assert missing is None or missing.reason == "openvino 2025.4.1 is older than 2026.1"


@pytest.mark.parametrize(("version", "good"), [("1.23.2", False), ("1.24.0", True), ("1.31.1", True)])
def test_84_onnxruntime_too_old_for_int8(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, good: bool
) -> None:
    """JetPack 6 has Python 3.10, for which onnxruntime ends at 1.23: it has no kernel that quantises at opset 23."""
    stage = Bundle(bundle).manifest.stages["vision"]
    model = ir.load(bundle / stage.variants["cpu"].graph)
    normalise(model)
    place_int8(model, {find_linears(model)[0].name: 1.0}, [])
    save(model, tmp_path)
    files = StageFiles("vision", stage, (tmp_path / "cpu.onnx").read_bytes(), tmp_path)
    monkeypatch.setattr(onnxruntime, "version", lambda: version)
    if good:
        onnxruntime.open_stage(files).close()
        return
    with pytest.raises(BackendError, match=r"cannot run int8 stages(.|\n)*1\.24(.|\n)*1\.23\.2(.|\n)*openvino"):
        onnxruntime.open_stage(files)


@pytest.mark.parametrize("name", ["tensorflow", "", "os", "onnxruntime "])
def test_84_unknown_back_end(bundle: Path, name: str) -> None:
    with pytest.raises(BackendError, match=r"no such back end\n.*onnxruntime(.|\n)*leave it out"):
        load(bundle, backend=name)


@pytest.mark.parametrize(
    ("machine", "fastest"), [("x86_64", "openvino"), ("AMD64", "openvino"), ("aarch64", "onnxruntime")]
)
def test_the_fastest_depends_on_the_processor(machine: str, fastest: str) -> None:
    code = (
        f"import platform; platform.machine = lambda: {machine!r}\n"
        "from trunkline.runtime.backends import names; print(names('cpu')[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True)
    assert done.stdout.strip() == fastest


@pytest.fixture(params=names("cpu"))
def name(request: pytest.FixtureRequest) -> str:
    """Every back end that is installed here."""
    if (missing := named(request.param).available()) is not None:
        pytest.skip(missing.reason)
    return str(request.param)


@pytest.fixture
def own(bundle: Path, name: str) -> Any:
    """An ensemble that a test may close."""
    with load(bundle, backend=name, threads=2) as ensemble:
        yield ensemble


def score(ensemble: Ensemble, seed: int = 0) -> Any:
    return ensemble.score(frame(seed), "go", windows(3, seed)).scores


def _score_in_child(ensemble: Ensemble, bundle: str, results: Any) -> None:
    try:
        score(ensemble)
    except ClosedError as error:
        results.put(str(error))
    with load(bundle) as loaded_here:  # with ONNX Runtime, if OpenVINO was started before the fork
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
def test_closed_while_another_thread_scores(bundle: Path, name: str, delay_s: float) -> None:
    ensemble = load(bundle, backend=name)
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


def test_83_back_end_fails_while_it_runs(own: Ensemble) -> None:
    expected = score(own)
    own.forget()
    session: Any = own._graph.nodes["context"].session
    attribute = {"onnxruntime": "_session", "openvino": "_request"}[own.backend.NAME]
    original = getattr(session, attribute)
    fail = staticmethod(failing(RuntimeError("bad_alloc")))
    setattr(session, attribute, type("Failing", (), {"run": fail, "infer": fail})())
    with pytest.raises(BackendError, match=r"failed while it ran a stage\n.*stage context\n.*bad_alloc") as caught:
        score(own)
    assert isinstance(caught.value.__cause__, RuntimeError)
    setattr(session, attribute, original)
    np.testing.assert_array_equal(score(own), expected)  # no lock is held, nothing bad is remembered


def test_back_end_returns_another_shape(own: Ensemble) -> None:
    node = own._graph.nodes["action"]
    session: Any = node.session
    original = session.run
    session.run = lambda inputs: {name: value[:, :-1] for name, value in original(inputs).items()}
    with pytest.raises(BackendError, match=r"another shape than it promises\n.*action\n.*\(3, 3, 32\)\n.*\(3, 2, 32\)"):
        score(own)


def test_one_stage_that_cannot_be_opened_fails_the_load(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = named(name)
    original = backend.open_stage

    def open_stage(files: StageFiles) -> Any:
        if files.name == "text":
            raise BackendError("no memory")
        return original(files)

    monkeypatch.setattr(backend, "open_stage", open_stage)
    with pytest.raises(BackendError, match="no memory"):
        load(bundle, backend=name)
