"""What every back end owes the runtime. Each test runs on every back end that is installed here.

Back ends of the ``trt`` variant get a bundle that has one, and tolerances of half precision. Two stand-ins run
everything of them but the GPU: ONNX Runtime's device sessions on the processor, and TensorRT's sessions on a pretended
library and driver. TensorRT gets engines that ``build`` made of the bundles before.

A test that does not concern a back end is not run on it, and the list of those that it concerns says why.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests import bound_backend, qdq_kit
from tests.bundles import copied, frame, windows
from tests.conftest import made_once
from tests.pretended_tensorrt.engines import PROFILE, Built, pretend
from tests.pretended_tensorrt.fixtures import compiled_cuda, cuda, leaky_cuda
from tests.qdq_kit import Form
from trunkline.calibration.samples.synthetic import stream
from trunkline.runtime import backends, load, onnx_graph
from trunkline.runtime.backends import Backend, ResidentSession, StageFiles, choose, contract, named, names, tensorrt
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BackendError, BundleError
from trunkline.runtime.manifest import Stage, TensorSpec
from trunkline.runtime.parity import check_parity
from trunkline.runtime.sensor.window import SensorWindow

__all__ = ["compiled_cuda", "cuda", "leaky_cuda"]

#: TensorRT without a GPU, beside the real one, which is only run where there is one.
PRETENDED = "tensorrt-pretended"
BACKENDS = [*names(), bound_backend.NAME, PRETENDED]
#: They run engines that were compiled before, for so many rows and no more.
ENGINES = [tensorrt.NAME, PRETENDED]
#: They compile when a stage is opened, so graph and weights are read there. Engines hold both: that nothing else is
#: compiled is tested with their builder, and that no other stage's engine is opened, in tests/attacks/test_engines.py.
COMPILING = [each for each in BACKENDS if each not in ENGINES]
#: They may leave outputs where they were computed. Those of the processor have no other place.
LEAVING = [*names("trt"), bound_backend.NAME, PRETENDED]

SECONDS = 60
STAGES = ("vision", "text", "context", "action")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Tolerance:
    """By how much numbers may differ: scores from PyTorch's, a part computed alone, another back end."""

    scores: float
    parts: float
    others: float


#: Half precision moves scores of the demo by about 1e-3 (docs/benchmarks.md), these by a few times 1e-4.
TOLERANCES = {"cpu": Tolerance(1e-5, 2e-5, 5e-6), "trt": Tolerance(2e-3, 5e-3, 5e-3)}


@pytest.fixture(params=BACKENDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which back end a test runs on, stand-ins among them."""
    return str(request.param)


@pytest.fixture
def backend(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setitem(backends._MODULES, bound_backend.NAME, bound_backend.__name__)
    if kind == PRETENDED:
        built = request.getfixturevalue("built_with_pretended")
        pretend(request.getfixturevalue("cuda").path, monkeypatch)
        built.use(monkeypatch)
        return named(tensorrt.NAME)
    found = installed(kind)
    if kind == tensorrt.NAME:
        request.getfixturevalue("built_with_real").use(monkeypatch)
    return found


@pytest.fixture(scope="session")
def built_with_pretended(shared: Path, half_bundle: Path, sensor_bundle: Path, compiled_cuda: Path) -> Built:
    """Bundles and engines of the pretended TensorRT."""

    def make() -> None:
        with pytest.MonkeyPatch.context() as patch:
            pretend(compiled_cuda, patch)
            built.make(half_bundle, sensor_bundle)

    built = Built(shared / "built_with_pretended_tensorrt")
    made_once(built.root, make)
    return built


@pytest.fixture(scope="session")
def built_with_real(shared: Path, half_bundle: Path, sensor_bundle: Path) -> Built:
    """Bundles and engines of this machine's TensorRT."""
    built = Built(shared / "built_with_tensorrt")
    made_once(built.root, lambda: built.make(half_bundle, sensor_bundle))
    return built


@pytest.fixture(params=names("cpu"))
def on_processor(request: pytest.FixtureRequest) -> Backend:
    return installed(request.param)


def installed(name: str) -> Backend:
    found = named(name)
    if (missing := found.available()) is not None:
        pytest.skip(missing.reason)
    return found


def another(backend: Backend) -> Backend:
    """ONNX Runtime on the processor, with the variant's settings: with the others it crashes on a half graph."""
    return named("onnxruntime") if backend.VARIANT == "cpu" else cast(Backend, bound_backend)


@pytest.fixture
def tolerance(backend: Backend) -> Tolerance:
    return TOLERANCES[backend.VARIANT]


BUILT = {tensorrt.NAME: "built_with_real", PRETENDED: "built_with_pretended"}


@pytest.fixture
def own(backend: Backend, kind: str, request: pytest.FixtureRequest) -> Path:
    """A bundle with the back end's variant."""
    if kind in BUILT:
        return request.getfixturevalue(BUILT[kind]).half
    return request.getfixturevalue("bundle" if backend.VARIANT == "cpu" else "half_bundle")


@pytest.fixture
def felt(backend: Backend, kind: str, request: pytest.FixtureRequest) -> Path:
    """A bundle with a sensor, in the back end's variant."""
    return request.getfixturevalue(BUILT[kind]).sensor if kind in BUILT else request.getfixturevalue("sensor_bundle")


@pytest.fixture
def start(kind: str, request: pytest.FixtureRequest) -> str:
    """What a fresh process runs first, to have a stand-in where a test has one."""
    if kind == PRETENDED:
        return PRETEND.format(library=str(request.getfixturevalue("compiled_cuda")))
    return REGISTER if kind == bound_backend.NAME else ""


REGISTER = "from tests import bound_backend; bound_backend.register()\n"
PRETEND = """
import pathlib, pytest
from tests.pretended_tensorrt import engines
engines.pretend(pathlib.Path({library!r}), pytest.MonkeyPatch())
"""


def stage_files(bundle: Path, name: str, threads: int = 1, variant: str = "cpu") -> StageFiles:
    opened = Bundle(bundle)
    stage = opened.manifest.stages[name]
    found = stage.variants[variant]
    path = bundle / found.graph
    digest = opened.manifest.files[found.weights].sha256 if found.weights else None
    return StageFiles(name, stage, path.read_bytes(), path.parent, threads, digest)


@dataclass(frozen=True)
class Stages:
    """Stages of a bundle as a back end runs them."""

    bundle: Path
    variant: str

    def __call__(self, name: str, threads: int = 1) -> StageFiles:
        return stage_files(self.bundle, name, threads, self.variant)


@pytest.fixture
def files_of(backend: Backend, own: Path) -> Stages:
    return Stages(own, backend.VARIANT)


def sample(stage: Stage, count: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Inputs of a stage with ``count`` entries along every dimension that varies."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, NDArray[Any]] = {}
    for spec in stage.inputs:
        shape = [size if isinstance(size, int) else count for size in spec.shape]
        if spec.dtype == "float32":
            inputs[spec.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            inputs[spec.name] = rng.integers(0, 20, shape).astype(spec.dtype)
    return inputs


def test_there_is_one() -> None:
    assert set(names("cpu")) == {"openvino", "onnxruntime"}
    assert set(names("trt")) == {"tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda"}
    assert set(names()) == {*names("cpu"), *names("trt")}
    assert all(name == named(name).NAME for name in names())
    assert choose(None, {"cpu"}).available() is None


def test_golden_vectors(backend: Backend, own: Path, tolerance: Tolerance) -> None:
    with load(own, backend=backend.NAME) as ensemble:
        assert ensemble.backend.NAME == backend.NAME
        report = check_parity(ensemble)
    assert report.fused.max_score_change < tolerance.scores
    assert (report.fused.winners_changed, report.pixels_changed, report.ids_changed) == (0, 0, 0)


def test_golden_vectors_with_a_sensor(backend: Backend, felt: Path, tolerance: Tolerance) -> None:
    with load(felt, backend=backend.NAME) as ensemble:
        report = check_parity(ensemble)
    assert report.fused.max_score_change < tolerance.scores
    assert report.fused.winners_changed == 0


def test_windows_that_slide_give_what_whole_ones_give(backend: Backend, felt: Path, tolerance: Tolerance) -> None:
    with load(felt, backend=backend.NAME) as ensemble:
        assert ensemble.sensor is not None
        form, rows = ensemble.sensor, stream(np.random.default_rng(), 200, 6)
        for position in (0, 16, 48, 64):
            samples = rows[position : position + form.samples]
            slid = ensemble.encode_sensor(SensorWindow(samples, form.rate_hz, stream=7, position=position)).values
            whole = ensemble.encode_sensor(SensorWindow(samples, form.rate_hz)).values
            np.testing.assert_allclose(slid, whole, atol=tolerance.parts)
        assert ensemble.sensor_counts.slid > 0


@pytest.mark.parametrize("name", ["steps", "sensor", "context"])
def test_stages_of_a_sensor(backend: Backend, felt: Path, tolerance: Tolerance, name: str) -> None:
    """What lies along blocks does influence each other, so sizes are compared with another back end."""
    files = stage_files(felt, name, variant=backend.VARIANT)
    assert {"steps": "Q", "context": "I"}.get(name) == next(
        (size for spec in files.stage.inputs for size in spec.shape if isinstance(size, str)), None
    )
    session, other = backend.open_stage(files), another(backend).open_stage(files)
    for count in (3, 5, 4):
        inputs = sample(files.stage, count, seed=count)
        for output, found in session.run(inputs).items():
            np.testing.assert_allclose(found, other.run(inputs)[output], atol=tolerance.others)


def test_the_smallest_inputs_are_some_that_a_robot_could_send(sensor_bundle: Path) -> None:
    """Two blocks of a window would be none: the first one is there twice."""
    manifest = Bundle(sensor_bundle).manifest
    found = {name: contract.smallest_inputs(stage) for name, stage in manifest.stages.items()}
    assert found["steps"]["samples"].shape == (3, 16, 6)
    assert found["action"]["history"].shape == (1, 10, 7)


@pytest.mark.parametrize("name", STAGES)
def test_each_part_by_itself_or_with_others(
    backend: Backend, files_of: Stages, tolerance: Tolerance, name: str
) -> None:
    """Sizes 1 to 5, up and down again, as a control loop asks for them."""
    files = files_of(name)
    output = files.stage.outputs[0]
    axis = next(place for place, size in enumerate(output.shape) if isinstance(size, str))
    session = backend.open_stage(files)
    whole = sample(files.stage, 5)
    alone = []
    for index in range(5):
        part = {
            spec.name: whole[spec.name][index : index + 1] if isinstance(spec.shape[0], str) else whole[spec.name]
            for spec in files.stage.inputs
        }
        alone.append(session.run(part)[output.name])
    for count in (5, 3, 1, 2, 4):
        part = {
            spec.name: whole[spec.name][:count] if isinstance(spec.shape[0], str) else whole[spec.name]
            for spec in files.stage.inputs
        }
        result = session.run(part)[output.name]
        assert result.dtype == np.float32
        assert type(result) is np.ndarray
        np.testing.assert_allclose(result, np.concatenate(alone[:count], axis=axis), atol=tolerance.parts)
    session.close()


@pytest.mark.parametrize("name", STAGES)
def test_back_ends_agree(backend: Backend, files_of: Stages, tolerance: Tolerance, name: str) -> None:
    """In float32 to far below 1e-4, so no library took a shorter format."""
    files = files_of(name)
    inputs = sample(files.stage, 3, seed=1)
    other = another(backend).open_stage(files).run(inputs)
    found = backend.open_stage(files).run(inputs)
    for output in files.stage.outputs:
        np.testing.assert_allclose(found[output.name], other[output.name], atol=tolerance.others)


@pytest.mark.parametrize("kind", LEAVING)
@pytest.mark.parametrize("name", STAGES)
def test_what_stays_is_what_would_have_come(
    backend: Backend, files_of: Stages, tolerance: Tolerance, name: str
) -> None:
    """Nor is it touched by later runs, by the session's end, or by who reads it."""
    files = files_of(name)
    output = files.stage.outputs[0].name
    session = cast(ResidentSession, backend.open_stage(files))
    inputs = [sample(files.stage, count, seed=count) for count in (2, 2, 3)]
    expected = [session.run(each)[output] for each in inputs]
    kept = [session.run_resident(each)[output] for each in inputs]
    session.close()
    for found, wanted in zip(kept, expected, strict=True):
        assert (found.shape, found.dtype, found.nbytes) == (wanted.shape, wanted.dtype, wanted.nbytes)
        read = found.numpy()
        np.testing.assert_allclose(read, wanted, atol=tolerance.parts)
        read[...] = 0
        np.testing.assert_allclose(in_a_thread(found.numpy), wanted, atol=tolerance.parts)


def in_a_thread(action: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result(SECONDS)


@pytest.mark.parametrize("kind", LEAVING)
def test_a_stage_reads_what_others_left(backend: Backend, files_of: Stages, tolerance: Tolerance) -> None:
    """Both inputs, one of them, again and again, and in the order of a run that is refused in between."""
    sessions = {name: cast(ResidentSession, backend.open_stage(files_of(name))) for name in STAGES[:3]}
    patches = sessions["vision"].run_resident(sample(files_of("vision").stage, 1, seed=1))["patches"]
    for count in (1, 3, 3, 3, 3, 3):
        tokens = sessions["text"].run_resident(sample(files_of("text").stage, count, seed=count))["tokens"]
        expected = sessions["context"].run({"patches": patches.numpy(), "tokens": tokens.numpy()})["context"]
        for left in (tokens, tokens.numpy()):
            found = sessions["context"].run_resident({"patches": patches, "tokens": left})["context"]
            np.testing.assert_allclose(found.numpy(), expected, atol=tolerance.parts)
        with pytest.raises(BackendError, match=r"failed while it ran a stage\n.*stage context"):
            sessions["context"].run_resident({"patches": tokens, "tokens": patches})
    for session in sessions.values():
        session.close()


@pytest.mark.parametrize("kind", ENGINES)
def test_more_rows_than_an_engine_takes(backend: Backend, own: Path) -> None:
    """Others take any number. Nothing of the call is computed, and the next one is right."""
    most = {rows.letter: rows.maximum for rows in PROFILE}
    with load(own, backend=backend.NAME) as ensemble:
        expected = ensemble.score(frame(), "go", windows(4)).scores
        for instructions, candidates in ((1, most["N"] + 1), (most["I"] + 1, 4)):
            texts = [f"go {candidates} {index}" for index in range(instructions)]  # what is known costs no rows
            with pytest.raises(BackendError, match=r"another number of rows(.|\n)*the engine takes 1 to(.|\n)*profile"):
                ensemble.score(frame(), texts, windows(candidates))
            np.testing.assert_array_equal(ensemble.score(frame(), "go", windows(4)).scores, expected)
        assert ensemble.score(frame(), "go", windows(most["N"])).scores.shape == (most["N"],)


def test_denormal_inputs_are_nothing(backend: Backend, files_of: Stages, tolerance: Tolerance) -> None:
    """Beside usual numbers and alone; and the caller's own denormals stay what they are."""
    files = files_of("action")
    session = backend.open_stage(files)
    usual = sample(files.stage, 4)["history"]
    gone = usual * (np.arange(usual.shape[2]) % 2).astype(np.float32)
    gone[3] = 0
    tiny = np.where(gone == 0, usual * np.float32(1e-39), gone)
    assert (tiny[3] != 0).all()
    expected, found = (session.run({"history": each})["action"] for each in (gone, tiny))
    np.testing.assert_allclose(found, expected, atol=tolerance.parts)
    assert np.float32(1e-40) * np.float32(1) != 0


def test_results_outlive_the_next_run(backend: Backend, files_of: Stages) -> None:
    files = files_of("action")
    session = backend.open_stage(files)
    first = session.run(sample(files.stage, 2, seed=1))["action"]
    kept = first.copy()
    session.run(sample(files.stage, 2, seed=2))
    np.testing.assert_array_equal(first, kept)
    session.close()
    np.testing.assert_array_equal(first, kept)
    assert first.flags.writeable


def test_inputs_are_left_alone_and_may_be_read_only(backend: Backend, files_of: Stages) -> None:
    files = files_of("context")
    session = backend.open_stage(files)
    inputs = sample(files.stage, 2)
    kept = {name: value.copy() for name, value in inputs.items()}
    for value in inputs.values():
        value.setflags(write=False)
    strided = {name: np.repeat(value, 2, axis=-1)[..., ::2] for name, value in inputs.items()}
    np.testing.assert_array_equal(session.run(inputs)["context"], session.run(strided)["context"])
    for name, value in inputs.items():
        np.testing.assert_array_equal(value, kept[name])


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"history": np.zeros((1, 9, 7), np.float32)},
        {"history": np.zeros((1, 10, 7), np.float64)},
        {"history": np.zeros((10, 7), np.float32)},
        {"histories": np.zeros((1, 10, 7), np.float32)},
    ],
    ids=["none", "size", "type", "rank", "name"],
)
def test_wrong_inputs(backend: Backend, files_of: Stages, inputs: dict[str, Any]) -> None:
    session = backend.open_stage(files_of("action"))
    good = {"history": np.ones((1, 10, 7), np.float32)}
    before = session.run(good)["action"]
    with pytest.raises(BackendError, match=r"failed while it ran a stage\n.*stage action"):
        session.run(inputs)
    np.testing.assert_array_equal(session.run(good)["action"], before)


def test_from_several_threads_one_at_a_time(backend: Backend, files_of: Stages) -> None:
    files = files_of("action", threads=2)
    session = backend.open_stage(files)
    inputs = [sample(files.stage, 1 + seed, seed) for seed in range(4)]
    expected = [session.run(each)["action"] for each in inputs]
    lock, wrong = threading.Lock(), []

    def work(index: int) -> None:
        for _ in range(10):
            with lock:
                found = session.run(inputs[index])["action"]
            if not np.allclose(found, expected[index], atol=1e-6):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert wrong == []


def test_two_sessions_at_once(backend: Backend, files_of: Stages) -> None:
    files = [files_of(name, threads=2) for name in ("action", "text")]
    sessions = [backend.open_stage(each) for each in files]
    inputs = [sample(each.stage, 2) for each in files]
    expected = [session.run(given) for session, given in zip(sessions, inputs, strict=True)]
    found: list[Any] = [None, None]

    def work(index: int) -> None:
        for _ in range(20):
            found[index] = sessions[index].run(inputs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    for one, other in zip(expected, found, strict=True):
        for name, value in one.items():
            np.testing.assert_allclose(other[name], value, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, None])
def test_threads(backend: Backend, files_of: Stages, threads: int | None) -> None:
    files = replace(files_of("action"), threads=threads)
    session = backend.open_stage(files)
    assert session.run(sample(files.stage, 2))["action"].shape == (3, 2, 32)


def broken(graph: bytes) -> bytes:
    """A graph that passes the scanner and that no library can compile: a product of shapes that do not fit."""
    model = onnx.load_from_string(graph)
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.input[0], node.input[1] = node.input[1], node.input[1]
    return model.SerializeToString()


@pytest.mark.parametrize("kind", COMPILING)
@pytest.mark.parametrize("graph", [b"", b"\0" * 100, None], ids=["empty", "zeros", "shapes"])
def test_broken_graph(backend: Backend, files_of: Stages, graph: bytes | None) -> None:
    files = files_of("action")
    with pytest.raises(BackendError, match=r"cannot load a stage\n.*stage action") as caught:
        backend.open_stage(replace(files, graph=broken(files.graph) if graph is None else graph))
    assert caught.value.__cause__ is not None


def spoilt(stage: Stage, role: str, **changes: Any) -> Stage:
    spec = replace(getattr(stage, role)[0], **changes)
    return replace(stage, **{role: (spec, *getattr(stage, role)[1:])})


@pytest.mark.parametrize(
    ("role", "changes"),
    [
        ("inputs", {"name": "other"}),
        ("inputs", {"dtype": "uint8"}),
        ("inputs", {"shape": ("N", 10, 8)}),
        ("inputs", {"shape": (1, 10, 7)}),
        ("inputs", {"shape": ("N", "H", 7)}),
        ("inputs", {"shape": ("N", 10)}),
        ("inputs", {"shape": ()}),
        ("outputs", {"name": "other"}),
        ("outputs", {"dtype": "int64"}),
        ("outputs", {"shape": (3, "N", 33)}),
        ("outputs", {"shape": ("N", 32)}),
    ],
)
def test_graph_of_another_signature(backend: Backend, files_of: Stages, role: str, changes: dict[str, Any]) -> None:
    files = files_of("action")
    with pytest.raises(BundleError, match=rf"not the one its manifest describes\n.*stage action\n.*{role} are"):
        backend.open_stage(replace(files, stage=spoilt(files.stage, role, **changes)))


@pytest.mark.parametrize("role", ["inputs", "outputs"])
def test_graph_with_fewer_tensors_than_promised(backend: Backend, files_of: Stages, role: str) -> None:
    files = files_of("action")
    more = (*getattr(files.stage, role), TensorSpec("more", "float32", (1,)))
    with pytest.raises(BundleError, match=r"more float32 \[1\]"):
        backend.open_stage(replace(files, stage=replace(files.stage, **{role: more})))


def test_an_output_may_vary_where_a_size_is_promised_and_an_input_may_not(bundle: Path) -> None:
    files = stage_files(bundle, "action")
    history, action = (
        contract.Port("history", "float32", ("?", 10, 7)),
        contract.Port("action", "float32", (3, "?", 32)),
    )
    contract.check_signature(files, [history], [action])
    contract.check_signature(files, [history], [replace(action, shape=("?", "?", "?"))])
    with pytest.raises(BundleError):
        contract.check_signature(files, [replace(history, shape=("?", "?", 7))], [action])


@pytest.mark.parametrize("kind", COMPILING)
def test_weight_file_missing(backend: Backend, files_of: Stages, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=rf"stage action(.|\n)*{backend.VARIANT}.weights"):
        backend.open_stage(replace(files_of("action"), folder=tmp_path))


@pytest.mark.parametrize("kind", COMPILING)
@pytest.mark.parametrize("size", [0, 1000])
def test_weight_file_too_short(backend: Backend, files_of: Stages, tmp_path: Path, size: int) -> None:
    files = files_of("vision")
    name = f"{backend.VARIANT}.weights"
    (tmp_path / name).write_bytes((files.folder / name).read_bytes()[:size])
    with pytest.raises(BackendError, match="stage vision"):
        backend.open_stage(replace(files, folder=tmp_path))


def test_nothing_is_written(backend: Backend, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write into a read-only folder, so what is in it is compared, too."""
    copy, elsewhere = copied(own, tmp_path / "bundle"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    files = stage_files(copy, "action", variant=backend.VARIANT)
    files.folder.chmod(0o555)
    before = sorted(os.listdir(files.folder))
    backend.open_stage(files).run({"history": np.zeros((1, 10, 7), np.float32)})
    backend.int8_kernels(files)
    assert sorted(os.listdir(files.folder)) == before
    assert os.listdir(elsewhere) == []
    files.folder.chmod(0o755)


def test_closing_frees(backend: Backend, files_of: Stages) -> None:
    """Fifty sessions of 12 MB fit into what one leaves behind."""
    files = files_of("vision")

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(10):
        backend.open_stage(files).close()
    before = resident_bytes()
    for _ in range(50):
        backend.open_stage(files).close()
    assert resident_bytes() - before < 24 << 20


FORKING = """
import os, sys, numpy as np
from trunkline.runtime import load, onnx_graph
from trunkline.runtime.errors import ClosedError
name = sys.argv[2]
ensemble = load(sys.argv[1], backend=name, threads=2)
image, histories = np.zeros((40, 40, 3), np.uint8), np.zeros((2, 10, 7), np.float32)
before = ensemble.score(image, "go", histories).scores
child = os.fork()
if child == 0:
    try:
        ensemble.score(image, "go", histories)
    except ClosedError:
        pass
    if sys.argv[3] == "load":
        with load(sys.argv[1], threads=2) as own:  # OpenVINO would hang now and then
            assert own.backend.NAME == "onnxruntime" or name != "openvino"
            np.testing.assert_allclose(own.score(image, "go", histories).scores, before, atol=float(sys.argv[4]))
    if sys.argv[3] == "forget":
        del ensemble
    sys.exit(42)  # an ordinary end, which frees what the child inherited
status = os.waitpid(child, 0)[1]
assert os.waitstatus_to_exitcode(status) == 42, status
ensemble.forget()
np.testing.assert_array_equal(ensemble.score(image, "go", histories).scores, before)
print("parent works")
"""


@pytest.mark.parametrize("what", ["end", "forget", "load"])
def test_a_forked_child_ends(backend: Backend, start: str, own: Path, tolerance: Tolerance, what: str) -> None:
    done = run_python(start + FORKING, str(own), backend.NAME, what, str(tolerance.scores))
    assert (done.returncode, done.stdout.strip()) == (0, "parent works"), done.stderr


FORKED_BY_NAME = """
import os, sys
from trunkline.runtime import load
from trunkline.runtime.errors import BackendError
if sys.argv[2] == "started":
    load(sys.argv[1], backend="openvino").close()
child = os.fork()
if child == 0:
    try:
        load(sys.argv[1], backend="openvino").close()
    except BackendError as error:
        print(error)
    sys.exit(42)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
"""


def test_openvino_is_refused_where_it_would_hang(bundle: Path) -> None:
    assert named("openvino").available() is None
    done = run_python(FORKED_BY_NAME, str(bundle), "started")
    assert done.returncode == 0, done.stderr
    for part in ("that was asked for is not here", "forked from one that had started it", "multiprocessing's spawn"):
        assert part in done.stdout


def test_openvino_may_be_loaded_after_a_fork_if_not_before(bundle: Path) -> None:
    done = run_python(FORKED_BY_NAME, str(bundle), "not started")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


QUIET = """
import os, sys
from trunkline.runtime.backends import choose
choose(sys.argv[1]).version()
children = [open(f"/proc/self/task/{task}/children").read() for task in os.listdir("/proc/self/task")]
telemetry = [module for module in sys.modules if module.startswith("openvino_telemetry")]
told = "onnxruntime" not in sys.modules or os.environ["ORT_DISABLE_TELEMETRY"] == "1"
print(told, "".join(children).split(), telemetry, len(os.listdir("/proc/self/task")))
"""


UNTOLD = 'import os; os.environ.pop("ORT_DISABLE_TELEMETRY", None)'


def test_no_usage_data_is_sent(backend: Backend, start: str, tmp_path: Path) -> None:
    """Both libraries send some from the moment they are imported; a robot has no say in it."""
    home = tmp_path / "home"
    home.mkdir()
    quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HOME": str(home)}
    # A stand-in's library is imported by the tests themselves; every other one has to be told by its back end.
    prepared = 'import os; os.environ["ORT_DISABLE_TELEMETRY"] = "1"' if start else UNTOLD
    done = run_python(f"{prepared}\n{start}{QUIET}", backend.NAME, **quiet)
    told, children, telemetry, threads = done.stdout.split("\n")[0].split()
    assert (told, children, telemetry) == ("True", "[]", "[]"), done.stdout + done.stderr  # no process that could
    assert threads == "1" or backend.VARIANT == "trt"  # nor a thread, but those of a GPU's driver
    assert os.listdir(home) == []


#: All of these compute the same; for each, the back ends that run the layer in int8.
FORMS = {
    **{
        Form(rank=rank, bias=bias, batch=batch, opset=opset): set(names("cpu"))
        for rank, bias in ((3, 0), (3, 1), (3, 2), (3, 3), (2, 0), (2, 1), (2, 2))
        for batch in ("B", 2)
        for opset in (20, 23)
    },
    **{
        Form(product="Gemm", rank=2, bias=bias, batch=batch): set(names("cpu"))
        for bias in (0, 1, 2)
        for batch in ("B", 2)
    },
    # ONNX Runtime wants such a bias as int32, and computes in float otherwise.
    **{Form(product="Gemm", rank=2, bias="inside", batch=batch): {"openvino"} for batch in ("B", 2)},
}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_forms_of_a_quantised_layer(on_processor: Backend, form: Form, tmp_path: Path) -> None:
    files = qdq_kit.stage_files(qdq_kit.model(form), form, tmp_path)
    assert on_processor.int8_kernels(files) == (on_processor.NAME in FORMS[form])
    x = np.random.default_rng(1).standard_normal([2 if isinstance(size, str) else size for size in form.shape])
    found = on_processor.open_stage(files).run({"x": x.astype(np.float32)})["y"]
    np.testing.assert_allclose(found, qdq_kit.expected(form, x.astype(np.float32)), atol=1e-4)


@pytest.mark.parametrize("form", [Form(rank=2), Form(bias=1, batch=2, opset=20)], ids=str)
def test_what_onnxruntime_does_in_silence_if_it_is_let(
    form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Product and bias become one float operator, with results as good as in int8: only counting finds out."""
    files = qdq_kit.stage_files(qdq_kit.model(form), form, tmp_path)
    backend = named("onnxruntime")
    assert backend.int8_kernels(files) == 1
    monkeypatch.setattr(backend, "INT8_SETTINGS", {})
    assert backend.int8_kernels(files) == 0


def test_float_layers_are_not_counted(backend: Backend, files_of: Stages) -> None:
    for name in STAGES:
        assert backend.int8_kernels(files_of(name)) == 0


@pytest.mark.parametrize("way", ["Cast", "DequantizeLinear"])
def test_layers_that_only_store_int8_are_float(on_processor: Backend, way: str, tmp_path: Path) -> None:
    """OpenVINO would quantise their inputs by itself, block by block."""
    files = qdq_kit.stage_files(qdq_kit.stored(way), Form(), tmp_path)
    assert on_processor.int8_kernels(files) == 0
    x = np.random.default_rng(1).standard_normal((2, qdq_kit.ROWS, qdq_kit.K)).astype(np.float32)
    np.testing.assert_allclose(on_processor.open_stage(files).run({"x": x})["y"], qdq_kit.output(Form(), x), atol=2e-5)


def test_int8_weights_in_the_weight_file(
    on_processor: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As exported: what is small is still recognised as a constant, what is large is mapped."""
    monkeypatch.setattr(onnx_graph, "INLINE_BYTES", 512)
    form = Form()
    made = qdq_kit.model(form)
    path = tmp_path / "cpu.onnx"
    onnx.save(made, path, save_as_external_data=True, location="cpu.weights", size_threshold=0)
    files = replace(qdq_kit.stage_files(made, form, tmp_path), graph=path.read_bytes())
    assert on_processor.int8_kernels(files) == 1
    x = np.random.default_rng(1).standard_normal((2, qdq_kit.ROWS, qdq_kit.K)).astype(np.float32)
    np.testing.assert_allclose(on_processor.open_stage(files).run({"x": x})["y"], qdq_kit.expected(form, x), atol=1e-4)


def test_scores_are_the_same_on_all(backend: Backend, own: Path, tolerance: Tolerance) -> None:
    with load(own, backend=backend.NAME) as ensemble, load(own, backend="onnxruntime") as other:
        found, expected = (each.score(frame(), ["go", "stop"], windows(4)) for each in (ensemble, other))
    np.testing.assert_allclose(found.member_scores, expected.member_scores, atol=max(1e-6, tolerance.scores / 10))
