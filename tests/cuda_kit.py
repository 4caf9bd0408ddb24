"""A CUDA without a GPU: ``tests/runtime/cuda/fake_libcuda.c``, compiled and put in the driver's place."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trunkline.runtime.cuda import context, driver

SOURCE = Path(__file__).parent / "runtime" / "cuda" / "fake_libcuda.c"
KINDS = ("device", "pinned", "stream", "event", "graph", "executable")
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class FakeCuda:
    """What tests ask of the pretended library, and tell it."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self._library = ctypes.CDLL(str(library))
        self._library.fake_limit.argtypes = (ctypes.c_size_t,)
        self._library.fake_inside.argtypes = (ctypes.c_uint64, ctypes.c_size_t)
        self._library.cuLaunchHostFunc.argtypes = (ctypes.c_void_p, HOST_FUNCTION, ctypes.c_void_p)
        self._kept: list[Any] = []

    def fail(self, function: str, nth: int, code: int) -> None:
        """The nth call from now on returns a code."""
        self._library.fake_fail(function.encode(), nth, code)

    def calls(self, function: str) -> int:
        return int(self._library.fake_calls(function.encode()))

    def live(self) -> dict[str, int]:
        """What was lent and not given back, by kind."""
        if self._live():
            gc.collect()  # what only holds itself; it takes a second
        return self._live()

    def _live(self) -> dict[str, int]:
        counts = {kind: int(self._library.fake_live(number)) for number, kind in enumerate(KINDS)}
        return {kind: count for kind, count in counts.items() if count}

    def limit(self, nbytes: int) -> None:
        """The GPU has so much memory."""
        self._library.fake_limit(nbytes)

    def device(self, name: str, count: int = 1, *, shares_memory: bool = True) -> None:
        self._library.fake_device(name.encode(), count, shares_memory)

    @property
    def depth(self) -> int:
        """Contexts that this thread has not given back."""
        return int(self._library.fake_depth())

    def inside(self, address: int, nbytes: int) -> bool:
        """Whether so many bytes from an address on are the GPU's and were not given back."""
        return bool(self._library.fake_inside(address, nbytes))

    def fault(self) -> None:
        """The work that runs now touched other memory: its stream is of no use any more."""
        self._library.fake_fault()

    def launch(self, stream: int, work: Callable[[], None]) -> bool:
        """Gives a stream work, as a library would that runs kernels."""
        run = HOST_FUNCTION(lambda _: work())
        self._kept.append(run)
        return not self._library.cuLaunchHostFunc(stream, run, None)


@pytest.fixture(scope="session")
def compiled_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc, which makes the pretended CUDA library, is not installed")
    target = tmp_path_factory.mktemp("cuda") / "libfake.so"
    options = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
    subprocess.run(["gcc", *options, "-shared", "-fPIC", "-pthread", "-o", str(target), str(SOURCE)], check=True)
    return target


@pytest.fixture
def leaky_cuda(compiled_cuda: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """A library of the test's own, which may end with something not given back."""
    library = tmp_path / "libcuda.so.1"  # another path is another library, with a state of its own
    shutil.copyfile(compiled_cuda, library)
    yield installed(library, monkeypatch)
    context._context_of.cache_clear()


def installed(library: Path, patch: pytest.MonkeyPatch) -> FakeCuda:
    """Puts the pretended library in the driver's place, not started yet."""
    patch.setattr(driver, "LIBRARY", str(library))
    patch.setattr(driver, "_started", None)
    context._context_of.cache_clear()
    return FakeCuda(library)


@pytest.fixture
def cuda(leaky_cuda: FakeCuda) -> Iterator[FakeCuda]:
    """A library of the test's own; everything must have been given back in the end."""
    yield leaky_cuda
    assert (leaky_cuda.live(), leaky_cuda.depth) == ({}, 0)
