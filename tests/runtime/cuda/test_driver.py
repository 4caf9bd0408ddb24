"""Whether there is a GPU is found out without an exception and without ending the process."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_kit import FakeCuda
from trunkline.runtime.backends import Missing
from trunkline.runtime.cuda import driver
from trunkline.runtime.cuda.context import context
from trunkline.runtime.cuda.driver import FUNCTIONS, DriverFacts, probe
from trunkline.runtime.errors import BackendError


def missing() -> Missing:
    found = probe()
    assert isinstance(found, Missing)
    return found


def test_what_a_driver_says(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_VERSION_FILES", ())
    cuda.device("Orin")
    assert probe() == DriverFacts(
        name="Orin",
        capability=(8, 7),
        memory_bytes=8 << 30,
        integrated=True,
        uuid=bytes(range(16)).hex(),
        cuda=(12, 6),
        driver="CUDA 12.6",
    )


def test_a_gpu_may_have_no_number(cuda: FakeCuda) -> None:
    cuda.fail("cuDeviceGetUuid_v2", 1, 801)
    found = probe()
    assert isinstance(found, DriverFacts)
    assert found.uuid == ""


def test_a_card_has_memory_of_its_own(cuda: FakeCuda) -> None:
    cuda.device("NVIDIA GeForce RTX 4090", shares_memory=False)
    found = probe()
    assert isinstance(found, DriverFacts)
    assert (found.name, found.integrated) == ("NVIDIA GeForce RTX 4090", False)


PC = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:  12.3.0\n"
JETSON = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"


@pytest.mark.parametrize(
    ("text", "expected"), [(PC, "550.54.15, CUDA 12.6"), (JETSON, "36.4.3, CUDA 12.6"), ("?", "CUDA 12.6")]
)
def test_the_driver_is_named_as_precisely_as_it_can_be(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    path = tmp_path / "version"
    path.write_text(text)
    patterns = [pattern for _, pattern in driver._VERSION_FILES]
    monkeypatch.setattr(driver, "_VERSION_FILES", tuple((path, pattern) for pattern in patterns))
    found = probe()
    assert isinstance(found, DriverFacts)
    assert found.driver == expected


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-that-is-not-there.so.1")
    monkeypatch.setattr(driver, "_started", None)
    assert "no NVIDIA driver" in missing().reason
    assert "--gpus all" in missing().fix
    with pytest.raises(BackendError, match="there is no CUDA here"):
        driver.driver()


def test_a_file_that_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"text")
    monkeypatch.setattr(driver, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    monkeypatch.setattr(driver, "_started", None)
    assert "no NVIDIA driver" in missing().reason


def test_a_driver_that_lacks_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "libc.so.6")
    monkeypatch.setattr(driver, "_started", None)
    assert "too old" in missing().reason
    assert "cuInit" in missing().reason


@pytest.mark.parametrize(
    ("code", "name", "fix"),
    [
        (100, "CUDA_ERROR_NO_DEVICE", "nvidia-smi"),
        (999, "CUDA_ERROR_UNKNOWN", "nvidia-smi"),
        (803, "unknown", "reboot"),
    ],
)
def test_a_driver_that_does_not_start(cuda: FakeCuda, code: int, name: str, fix: str) -> None:
    cuda.fail("cuInit", 1, code)
    found = missing()
    assert f"{name} ({code})" in found.reason
    assert fix in found.fix
    assert isinstance(probe(), DriverFacts)  # it may have recovered


def test_no_gpu(cuda: FakeCuda) -> None:
    cuda.device("none", count=0)
    assert missing().reason == "the NVIDIA driver shows no GPU"


@pytest.mark.parametrize("function", ["cuDeviceGetCount", "cuDeviceGetName", "cuDeviceTotalMem_v2"])
def test_every_question_may_fail(cuda: FakeCuda, function: str) -> None:
    cuda.fail(function, 1, 999)
    assert "CUDA_ERROR_UNKNOWN (999)" in missing().reason


FORKED = """
import os, sys
from trunkline.runtime.cuda import driver
driver.LIBRARY = sys.argv[1]
if sys.argv[2] == "started":
    driver.probe()
child = os.fork()
if child == 0:
    print(type(driver.probe()).__name__, getattr(driver.probe(), "reason", ""))
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert type(driver.probe()).__name__ == "DriverFacts"
"""


@pytest.mark.parametrize(
    ("when", "expected"),
    [("started", "Missing this process was forked from one that had started CUDA"), ("fresh", "DriverFacts")],
)
def test_a_fork(compiled_cuda: Path, when: str, expected: str) -> None:
    command = [sys.executable, "-c", FORKED, str(compiled_cuda), when]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected)


INHERITED = """
import os, sys
from trunkline.runtime.cuda import driver
driver.LIBRARY = sys.argv[1]
from trunkline.runtime.cuda.context import context
from trunkline.runtime.cuda.memory import DeviceBuffer, PinnedBuffer
parts = [DeviceBuffer(context(), 8), PinnedBuffer(context(), 8)]
child = os.fork()
if child == 0:
    del parts
    sys.exit(0)  # an ordinary end, which frees what the child inherited
assert os.waitpid(child, 0)[1] == 0
for part in parts:
    part.close()
print("given back by the parent")
"""


def test_a_forked_child_gives_nothing_back(compiled_cuda: Path) -> None:
    command = [sys.executable, "-c", INHERITED, str(compiled_cuda)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "given back by the parent", "")


def test_all_functions_are_declared(cuda: FakeCuda) -> None:
    """An argument that ctypes has to guess is cut to 32 bits."""
    library = driver.driver()._library
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, name)
        assert (tuple(function.argtypes), function.restype) == (arguments, ctypes.c_int)


def test_one_context_for_the_process(cuda: FakeCuda) -> None:
    assert context() is context()
    assert cuda.calls("cuDevicePrimaryCtxRetain") == 1
    with context().current(), context().current():
        assert cuda.depth == 2


def test_a_context_is_given_back_when_work_fails(cuda: FakeCuda) -> None:
    with pytest.raises(ZeroDivisionError), context().current():
        _ = 1 / 0
    assert cuda.depth == 0


def test_a_gpu_that_somebody_else_has(cuda: FakeCuda) -> None:
    cuda.fail("cuDevicePrimaryCtxRetain", 1, 2)
    with pytest.raises(BackendError, match="CUDA failed while it opened the GPU") as caught:
        context()
    assert "CUDA_ERROR_OUT_OF_MEMORY (2): out of memory" in str(caught.value)
    assert caught.value.fix is not None
    assert "close other programs" in caught.value.fix
    assert context().driver is driver.driver()


def test_the_probe_is_cheap_to_repeat(cuda: FakeCuda) -> None:
    for _ in range(3):
        probe()
    assert cuda.calls("cuInit") == 1
    assert os.getpid() == driver._started[0]  # type: ignore[index]
