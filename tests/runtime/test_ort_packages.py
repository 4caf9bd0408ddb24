"""Why ONNX Runtime has no GPU here: package, provider, driver and library are told apart, each with a fix."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.bundles import copied, edit_manifest
from tests.pretended_gpu import CUDA, TENSORRT
from trunkline.runtime import load
from trunkline.runtime.backends import (
    Missing,
    choose,
    named,
    names,
    onnxruntime_cuda,
    onnxruntime_tensorrt,
    ort,
    ort_packages,
)
from trunkline.runtime.cuda import driver
from trunkline.runtime.errors import BackendError

DRIVER = SimpleNamespace(name="a GPU")
ORIN = driver.DriverFacts("Orin", (8, 7), 8 << 30, True, "0" * 32, (12, 6), "36.4, CUDA 12.6")
NO_DRIVER = Missing("no NVIDIA driver: libcuda.so.1", "install the NVIDIA driver")
#: What no message may hold: where to get things is said in words.
HOSTS = ("http", "www.", ".com", ".org")

Install = Callable[..., SimpleNamespace]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Pretends distributions, what the package in place of them offers, and a driver."""

    def install(
        *there: str, providers: tuple[str, ...] = ("CPUExecutionProvider",), gpu: bool = True
    ) -> SimpleNamespace:
        (tmp_path / "capi").mkdir(exist_ok=True)
        library = SimpleNamespace(
            __version__="1.31.1",
            __file__=str(tmp_path / "__init__.py"),
            get_available_providers=lambda: list(providers),
        )

        def version(name: str) -> str:
            if name in there:
                return "1.31.1"
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(ort, "library", lambda: library)
        monkeypatch.setattr(driver, "probe", lambda: DRIVER if gpu else NO_DRIVER)
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        return library

    return install


@pytest.fixture
def no_library_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        pytest.fail("hundreds of megabytes were mapped for nothing")

    monkeypatch.setattr(ort_packages.ctypes, "CDLL", load)


def missing() -> Missing:
    found = onnxruntime_cuda.available()
    assert found is not None
    assert not any(host in found.reason + found.fix for host in HOSTS)
    return found


@pytest.mark.usefixtures("no_library_is_loaded")
class TestPackages:
    def test_none(self, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
        install()
        monkeypatch.setattr(ort, "library", ORIGINAL)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        assert missing().fix == "pip install 'trunkline[gpu]'"

    def test_the_one_for_processors(self, install: Install) -> None:
        install("onnxruntime")
        found = missing()
        assert found.reason == f"onnxruntime 1.31.1 has no {CUDA}"
        assert found.fix == "pip uninstall -y onnxruntime, then pip install 'trunkline[gpu]'"

    def test_both_where_the_wrong_one_came_last(self, install: Install) -> None:
        install("onnxruntime", "onnxruntime-gpu")
        found = missing()
        assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1" in found.reason
        assert "side by side they share one folder" in found.reason
        assert found.fix == "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'trunkline[gpu]'"

    def test_one_of_the_users_own(self, install: Install) -> None:
        """A build from source may be known to nobody."""
        install()
        assert missing() == Missing(f"onnxruntime 1.31.1 has no {CUDA}", "pip install 'trunkline[gpu]'")

    def test_on_a_jetson(self, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the public registry does not have is not what the user is sent for."""
        install("onnxruntime")
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
        fix = missing().fix
        for part in ("pip uninstall -y onnxruntime, then", "Jetson package index", "JetPack", "back end tensorrt"):
            assert part in fix
        assert "trunkline[gpu]" not in fix

    def test_a_driver_is_missing_too(self, install: Install) -> None:
        install("onnxruntime", gpu=False)
        found = missing()
        assert found.reason.endswith(f"has no {CUDA}; {NO_DRIVER.reason}")
        assert found.fix.endswith(f"; {NO_DRIVER.fix}")

    def test_only_the_driver(self, install: Install) -> None:
        install("onnxruntime-gpu", providers=(TENSORRT, CUDA))
        assert install("onnxruntime-gpu", providers=(TENSORRT, CUDA), gpu=False)
        assert missing() == NO_DRIVER

    def test_a_build_without_tensorrt(self, install: Install) -> None:
        install("onnxruntime-gpu", providers=(CUDA, "CPUExecutionProvider"))
        found = onnxruntime_tensorrt.available()
        assert found is not None
        assert found.reason == f"onnxruntime-gpu 1.31.1 has no {TENSORRT}"


ORIGINAL = ort.library


class TestLibraries:
    """The provider is there and cannot be loaded: onnxruntime itself would say so on stderr, and use the processor."""

    def test_everything_is_there(self, install: Install) -> None:
        """Providers that are built into the library have no file of their own."""
        install("onnxruntime-gpu", providers=(TENSORRT, CUDA))
        assert onnxruntime_cuda.available() is None
        assert onnxruntime_tensorrt.available() is None

    def test_in_the_words_of_the_system(self, install: Install, tmp_path: Path) -> None:
        install("onnxruntime-gpu", providers=(CUDA,))
        (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
        found = missing()
        assert found.reason.startswith("libonnxruntime_providers_cuda.so cannot be loaded: ")
        assert "too short" in found.reason or "invalid ELF header" in found.reason
        for part in ("CUDA and cuDNN", "onnxruntime-gpu[cuda,cudnn]", "nvidia-jetpack"):
            assert part in found.fix

    def test_a_library_that_is_missing(self, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        install("onnxruntime-gpu", providers=(TENSORRT, CUDA))
        (tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so").touch()

        def load(*_: object) -> None:
            raise OSError("libnvinfer.so.10: cannot open shared object file")

        monkeypatch.setattr(ort_packages.ctypes, "CDLL", load)
        found = onnxruntime_tensorrt.available()
        assert found is not None
        assert found.reason == (
            "libonnxruntime_providers_tensorrt.so cannot be loaded: libnvinfer.so.10: cannot open shared object file"
        )
        assert "TensorRT" in found.fix

    def test_the_library_prints_nothing(
        self, install: Install, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """It looks for CUDA from pip itself, and prints what it did not find."""

        def preload_dlls() -> None:
            print("Failed to load libcudnn.so.9: no such file")
            print("Please follow the instructions of a page")

        library = install("onnxruntime-gpu", providers=(CUDA,))
        library.preload_dlls = preload_dlls
        (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").touch()
        assert missing().reason.endswith("; Failed to load libcudnn.so.9: no such file")
        assert capfd.readouterr().out == ""


@pytest.mark.skipif(onnxruntime_cuda.available() is None, reason="there is a GPU here")
class TestHere:
    """On this machine, with the onnxruntime that is installed."""

    def test_loading_a_gpu_bundle(self, half_bundle: Path) -> None:
        """84: the package is named, and no other back end is taken, although the bundle would run on it."""
        with pytest.raises(BackendError) as caught:
            load(half_bundle, backend="onnxruntime-cuda")
        for part in ("the back end that was asked for is not here", "expected: onnxruntime-cuda", "trunkline[gpu]"):
            assert part in str(caught.value)

    def test_a_bundle_for_gpus_alone(self, half_bundle: Path, tmp_path: Path) -> None:
        folder = copied(half_bundle, tmp_path / "bundle")

        def without_cpu(manifest: dict[str, object]) -> None:
            for stage in manifest["stages"].values():  # type: ignore[attr-defined]
                variant = stage["variants"].pop("cpu")
                for name in (variant["graph"], variant["weights"]):
                    del manifest["files"][name]  # type: ignore[attr-defined]
                    (folder / name).unlink()
            del manifest["parity"]["gates"]["cpu"]  # type: ignore[attr-defined]

        edit_manifest(folder, without_cpu)
        with pytest.raises(BackendError) as caught:
            load(folder)
        for part in ("no back end can run this bundle here", "onnxruntime-cuda: ", "pip install 'trunkline[gpu]'"):
            assert part in str(caught.value)
        assert "openvino" not in str(caught.value)
        with pytest.raises(BackendError, match=r"holds no variant that the back end runs\n.*onnxruntime\n") as caught:
            load(folder, backend="onnxruntime")
        assert "onnxruntime-cuda" in str(caught.value.fix)

    def test_both_variants_run_on_the_processor(self, half_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(driver, "probe", lambda: NO_DRIVER)
        with load(half_bundle) as ensemble:
            assert ensemble.backend.VARIANT == "cpu"

    def test_an_idle_gpu_is_an_error(self, half_bundle: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody wants the slow robot that a forgotten package would give."""
        monkeypatch.setattr(driver, "probe", lambda: ORIN)
        with pytest.raises(BackendError) as caught:
            load(half_bundle)
        for part in ("there is a GPU and a bundle for it", "Orin", "CUDAExecutionProvider", "[gpu]", "processor: "):
            assert part in str(caught.value)
        for folder, asked in ((half_bundle, "onnxruntime"), (bundle, None)):  # asked for by name; nothing for GPUs
            with load(folder, backend=asked) as ensemble:
                assert ensemble.backend.VARIANT == "cpu"


def test_a_bundle_without_half_variants(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "available", lambda: None)
    with pytest.raises(BackendError, match="holds no variant that the back end runs") as caught:
        load(bundle, backend="onnxruntime-cuda")
    for part in ("expected: variant trt", "found: cpu", "trunkline export --half", "openvino"):
        assert part in str(caught.value)


def test_who_compiles_for_minutes_is_never_taken_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(names("trt")) - {"onnxruntime-tensorrt"}:
        monkeypatch.setattr(named(name), "available", lambda: NO_DRIVER)
    monkeypatch.setattr(onnxruntime_tensorrt, "available", lambda: None)
    with pytest.raises(BackendError, match="no back end can run this bundle here"):
        choose(None, {"trt"})
    assert choose("onnxruntime-tensorrt", {"trt"}).NAME == "onnxruntime-tensorrt"
