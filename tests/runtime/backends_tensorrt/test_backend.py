"""TensorRT as a back end: refused where it cannot run, and from bundle to decision where it can."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from tests import qdq_kit
from tests.bundles import copied, edit_manifest, frame, windows
from tests.cuda_kit import FakeCuda
from tests.pretended_tensorrt.fixtures import SETTINGS, Install
from tests.pretended_tensorrt.library import LEAN_VERSIONS, NEWEST, OLDEST, VERSIONS
from tests.pretended_tensorrt.world import World
from tests.qdq_kit import Form
from tests.small_stages import small
from trunkline.runtime import backends
from trunkline.runtime.backends import Backend, Missing, StageFiles, choose, tensorrt, tensorrt_api
from trunkline.runtime.backends.tensorrt_session import TensorRtSession
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.cuda import driver
from trunkline.runtime.engines.cache import EngineCache
from trunkline.runtime.engines.settings import BuildRequest, Rows
from trunkline.runtime.ensemble import load
from trunkline.runtime.errors import BackendError, BundleError
from trunkline.runtime.manifest import TensorSpec
from trunkline.runtime.parity import check_parity
from trunkline.targets.building.network import TensorRtBuilder
from trunkline.targets.building.run import Target, build

PROFILE = (Rows("B", 1, 1, 2), Rows("I", 1, 2, 16), Rows("N", 1, 4, 64), Rows("Q", 3, 8, 64))
TARGET = Target("pretended", replace(SETTINGS, profile=PROFILE))


@pytest.fixture(autouse=True)
def _listed_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._MODULES, "tensorrt", tensorrt.__name__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_it_is_a_back_end(trt: ModuleType) -> None:
    backend: Backend = tensorrt
    assert (backend.NAME, backend.VARIANT, backend.available(), backend.version()) == ("tensorrt", "trt", None, NEWEST)


@pytest.fixture
def bundle(half_bundle: Path) -> Path:
    return half_bundle


def missing() -> Missing:
    found = tensorrt.available()
    assert found is not None
    return found


def test_without_a_driver_tensorrt_is_not_even_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lean runtime would end the process."""
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-that-is-not-there.so.1")
    monkeypatch.setattr(driver, "_started", None)
    monkeypatch.setattr(tensorrt_api, "library", lambda: pytest.fail("it was imported"))
    assert "no NVIDIA driver" in missing().reason
    for call in (tensorrt.device, lambda: choose("tensorrt")):
        with pytest.raises(BackendError, match="no NVIDIA driver"):
            call()


def test_without_the_library(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "tensorrt" in missing().reason
    assert "apt install tensorrt" in missing().fix
    assert "--system-site-packages" in missing().fix


def test_an_older_version(trt: ModuleType) -> None:
    trt.__version__ = "10.2.0.post1"
    assert missing().reason == "TensorRT 10.2.0.post1 is older than 10.3"


def test_a_version_that_dropped_something(trt: ModuleType) -> None:
    del trt.IExecutionContext.set_device_memory
    del trt.TensorLocation
    assert missing().reason == f"TensorRT {NEWEST} lacks IExecutionContext.set_device_memory, TensorLocation.DEVICE"


def test_no_engine_was_built(trt: ModuleType, half_bundle: Path) -> None:
    with pytest.raises(BackendError) as caught:
        load(half_bundle, backend="tensorrt")
    text = str(caught.value)
    for part in ("there is no engine for a stage on this device", f"tensorrt {NEWEST}", "trunkline build BUNDLE"):
        assert part in text


def scored(bundle: Path, backend: str) -> np.ndarray:
    with load(bundle, backend=backend) as ensemble:
        for _ in range(6):  # the last runs are recorded ones
            ensemble.forget()
            decision = ensemble.score(frame(), ["go", "stop"], windows(4))
        assert check_parity(ensemble).passed
        return decision.member_scores


def test_from_a_bundle_to_decisions(trt: ModuleType, world: World, bundle: Path) -> None:
    report = build(Bundle(bundle), TensorRtBuilder(), TARGET, cache=EngineCache())
    assert [each.compiled for each in report.stages] == [True] * 4
    assert len(world.built) == 4
    np.testing.assert_allclose(scored(bundle, "tensorrt"), scored(bundle, "onnxruntime"), atol=2e-3)
    again = build(Bundle(bundle), TensorRtBuilder(), TARGET, cache=EngineCache())
    assert [each.compiled for each in again.stages] == [False] * 4
    assert len(world.built) == 4


def test_two_bundles_with_the_same_stages_run_on_their_own_engines(
    trt: ModuleType, world: World, bundle: Path, tmp_path: Path
) -> None:
    """Each was judged with the engines of its own batch profile."""
    other = copied(bundle, tmp_path / "other")
    edit_manifest(other, lambda manifest: manifest["producer"].update(note="the same stages in another bundle"))
    (first, *rest) = TARGET.settings.profile
    wider = replace(TARGET.settings, profile=(replace(first, maximum=first.maximum + 1), *rest))
    build(Bundle(bundle), TensorRtBuilder(), TARGET, cache=EngineCache())
    build(Bundle(other), TensorRtBuilder(), replace(TARGET, settings=wider), cache=EngineCache())
    assert len(world.built) > 4
    np.testing.assert_allclose(scored(bundle, "tensorrt"), scored(other, "tensorrt"), atol=2e-3)
    third = copied(bundle, tmp_path / "third")
    edit_manifest(third, lambda manifest: manifest["producer"].update(note="never judged"))
    with pytest.raises(BackendError, match="there is no engine for a stage on this device"):
        load(third, backend="tensorrt")


def test_engines_that_are_replaced_while_a_bundle_loads(
    trt: ModuleType, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """82: some stages would run on engines that were never judged with those of the others."""
    build(Bundle(bundle), TensorRtBuilder(), TARGET, cache=EngineCache())
    (first, *rest) = TARGET.settings.profile
    wider = replace(TARGET.settings, profile=(replace(first, maximum=first.maximum + 1), *rest))
    open_stage, turn, opened = tensorrt.open_stage, threading.Lock(), []

    def interrupted(files: StageFiles) -> TensorRtSession:
        with turn:
            opened.append(files.name)
            if len(opened) == 3:
                build(Bundle(bundle), TensorRtBuilder(), replace(TARGET, settings=wider), cache=EngineCache())
            return open_stage(files)

    monkeypatch.setattr(tensorrt, "open_stage", interrupted)
    with pytest.raises(BackendError, match="engines were replaced while the bundle was loaded"):
        load(bundle, backend="tensorrt")
    with load(bundle, backend="tensorrt") as ensemble:
        assert check_parity(ensemble).passed


def test_a_sensor_from_samples_to_decisions(trt: ModuleType, sensor_bundle: Path) -> None:
    build(Bundle(sensor_bundle), TensorRtBuilder(), TARGET, cache=EngineCache())
    with load(sensor_bundle, backend="tensorrt") as ensemble:
        assert check_parity(ensemble).passed


def test_engines_of_another_version_are_not_used(install: Install, bundle: Path) -> None:
    install(VERSIONS[-2])
    build(Bundle(bundle), TensorRtBuilder(), TARGET, cache=EngineCache())
    install(NEWEST)
    with pytest.raises(BackendError, match=f"one that tensorrt {VERSIONS[-2]} built"):
        load(bundle, backend="tensorrt")


def test_an_altered_engine_is_refused(trt: ModuleType, bundle: Path) -> None:
    build(Bundle(bundle), TensorRtBuilder(), TARGET, cache=EngineCache())
    plan = next(EngineCache().root.glob("*/engine.plan"))
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    with pytest.raises(BackendError, match=r"(?s)an engine in the cache is refused.*SHA-256 differs"):
        load(bundle, backend="tensorrt")


def test_a_graph_that_is_not_the_manifest_s(trt: ModuleType, tmp_path: Path) -> None:
    files = small(tmp_path / "stage")
    other = replace(files.stage, inputs=(TensorSpec("x", "float32", ("I", 6)),))
    with pytest.raises(BundleError, match="is not the one its manifest describes"):
        tensorrt.open_stage(replace(files, stage=other))


@pytest.mark.parametrize("version", LEAN_VERSIONS)
def test_the_lean_runtime_runs_what_the_full_one_built(install: Install, bundle: Path, version: str) -> None:
    install(version)
    compatible = replace(TARGET, settings=replace(TARGET.settings, version_compatible=True))
    build(Bundle(bundle), TensorRtBuilder(), compatible, cache=EngineCache())
    install(version, "lean")
    assert tensorrt.version() == f"{version} (lean)"
    with load(bundle, backend="tensorrt") as ensemble:
        assert check_parity(ensemble).passed


def test_the_lean_runtime_runs_no_other_engines(install: Install, tmp_path: Path) -> None:
    install(NEWEST)
    files = small(tmp_path / "stage")
    plan = TensorRtBuilder().build(request_for(files)).plan
    with pytest.raises(BackendError, match=r"(?s)Unexpected call to stub loadRunner.*--version-compatible"):
        TensorRtSession(install(NEWEST, "lean"), plan, files.stage)


def test_the_lean_runtime_does_not_tell_what_is_int8(install: Install, tmp_path: Path) -> None:
    install(LEAN_VERSIONS[0], "lean")
    with pytest.raises(BackendError, match=r"(?s)does not tell which layers.*the lean runtime"):
        tensorrt.int8_kernels(small(tmp_path / "stage"))


def request_for(files: StageFiles) -> BuildRequest:
    return BuildRequest(files, TARGET.settings.for_stage(files.stage))


def quantised(folder: Path) -> StageFiles:
    form = Form(opset=20)
    return qdq_kit.stage_files(qdq_kit.model(form), form, folder)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_int8_layers_of_an_engine(install: Install, tmp_path: Path, version: str) -> None:
    install(version)
    files, builder = quantised(tmp_path), TensorRtBuilder()
    plan = builder.build(request_for(files)).plan
    assert builder.int8_layers(plan, files) == 1
    with_float = small(tmp_path / "float")
    assert builder.int8_layers(builder.build(request_for(with_float)).plan, with_float) == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"Layers": ["a", "b"]}, "without a description of its layers"),
        ({"layers": []}, "in a form that is not known"),
        ({"Layers": [{"Name": "product"}]}, "does not tell which nodes"),
    ],
)
def test_an_engine_that_does_not_tell(
    trt: ModuleType, world: World, tmp_path: Path, answer: object, words: str
) -> None:
    world.layers = lambda model: answer
    files, builder = quantised(tmp_path), TensorRtBuilder()
    plan = builder.build(request_for(files)).plan
    with pytest.raises(BackendError, match=words):
        builder.int8_layers(plan, files)


def test_a_float_layer_is_not_counted(trt: ModuleType, world: World, tmp_path: Path) -> None:
    def in_half(model: onnx.ModelProto) -> dict[str, object]:
        names = [node.name for node in model.graph.node]
        return {
            "Layers": [{"Metadata": f"[ONNX Layer: {name}]", "Inputs": [{"Format/Datatype": "Half"}]} for name in names]
        }

    world.layers = in_half
    files, builder = quantised(tmp_path), TensorRtBuilder()
    assert builder.int8_layers(builder.build(request_for(files)).plan, files) == 0


def test_warnings_do_not_reach_later_errors(trt: ModuleType, world: World, tmp_path: Path) -> None:
    files, builder = small(tmp_path / "stage"), TensorRtBuilder()
    plan = builder.build(request_for(files)).plan
    world.log("WARNING", "something of long ago")
    with pytest.raises(BackendError) as caught:
        builder.open_engine(plan[:-9], files.stage)
    assert "long ago" not in str(caught.value)


def test_what_is_logged_is_bounded(trt: ModuleType, world: World, tmp_path: Path) -> None:
    builder = TensorRtBuilder()
    builder.build(request_for(small(tmp_path / "stage")))
    for number in range(1000):
        world.log("ERROR", f"line {number}")
        world.log("INFO", "noise")
    assert len(tensorrt_api.LOG.since(0)) <= 50
    assert "error: line 999" in tensorrt_api.LOG.since(0)


UNTOUCHED = """
import sys
from trunkline.runtime.backends import tensorrt
from trunkline.targets.building import network
tensorrt.available()
print(sorted(name for name in sys.modules if name.split(".")[0] in ("tensorrt", "tensorrt_lean", "torch", "onnx")))
"""


def test_nothing_is_imported_before_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", UNTOUCHED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
