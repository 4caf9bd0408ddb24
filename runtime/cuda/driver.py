"""libcuda: is there a usable NVIDIA driver, what does it drive, and every function of it that is used here.

:func:`probe` never raises, and never ends the process: it loads the driver's library, starts it and asks. Whatever
needs a GPU asks it first. :func:`driver` is for the rest of this package.

A process forked from one that had started CUDA cannot use it, and is told so. One that starts it itself can.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.runtime.errors import BackendError
from trunkline.runtime.missing import Missing

LIBRARY = "libcuda.so.1"
DEVICE = 0
UUID_BYTES = 16
MAX_NAME_BYTES = 256

_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _INTEGRATED = 75, 76, 18

#: Where drivers say which one they are, on PCs and on Jetsons; libcuda itself only tells the newest CUDA it runs.
_VERSION_FILES = (
    (Path("/proc/driver/nvidia/version"), r"\b(\d{3,}\.\d+(?:\.\d+)*)\b"),
    (Path("/etc/nv_tegra_release"), r"R(\d+) .*?REVISION: ([\d.]+)"),
)

_Device = c_int
_Address = c_ulonglong
_Handle = c_void_p

#: Every function of libcuda that is used, with its arguments. All of them return an error code.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(_Device), c_int),
    "cuDeviceGetName": (c_char_p, c_int, _Device),
    "cuDeviceGetUuid_v2": (c_char_p, _Device),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), _Device),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, _Device),
    "cuDevicePrimaryCtxRetain": (POINTER(_Handle), _Device),
    "cuCtxPushCurrent_v2": (_Handle,),
    "cuCtxPopCurrent_v2": (POINTER(_Handle),),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(_Address), c_size_t),
    "cuMemFree_v2": (_Address,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (_Address, c_void_p, c_size_t, _Handle),
    "cuMemcpyDtoHAsync_v2": (c_void_p, _Address, c_size_t, _Handle),
    "cuMemcpyDtoDAsync_v2": (_Address, _Address, c_size_t, _Handle),
    "cuMemcpyDtoH_v2": (c_void_p, _Address, c_size_t),
    "cuStreamCreate": (POINTER(_Handle), c_uint),
    "cuStreamSynchronize": (_Handle,),
    "cuStreamDestroy_v2": (_Handle,),
    "cuStreamBeginCapture_v2": (_Handle, c_int),
    "cuStreamEndCapture": (_Handle, POINTER(_Handle)),
    "cuEventCreate": (POINTER(_Handle), c_uint),
    "cuEventRecord": (_Handle, _Handle),
    "cuEventSynchronize": (_Handle,),
    "cuEventDestroy_v2": (_Handle,),
    "cuGraphInstantiateWithFlags": (POINTER(_Handle), _Handle, c_ulonglong),
    "cuGraphDestroy": (_Handle,),
    "cuGraphLaunch": (_Handle, _Handle),
    "cuGraphExecDestroy": (_Handle,),
}

OUT_OF_MEMORY = 2

_RESTART = "close the process and start it again: after this error the GPU's context is of no use any more"
_DRIVER = "check that `nvidia-smi` works (on a Jetson: that the user is in the groups video and render)"

#: What helps, by error code; the driver has names and sentences of its own for them.
_FIXES = {
    OUT_OF_MEMORY: "close other programs that use the GPU, or take fewer rows per call, int8, or a baked bundle",
    3: "load in the process that uses it; CUDA does not survive a fork",
    100: _DRIVER,
    101: "check CUDA_VISIBLE_DEVICES",
    700: _RESTART,
    702: _RESTART,
    710: _RESTART,
    716: _RESTART,
    719: _RESTART,
    802: "wait until the system has started its GPU services, and try again",
    803: "reboot: the driver was updated, and the old one is still running",
    804: "install a driver that is new enough for this GPU, or remove the CUDA compatibility package",
    999: _DRIVER,
}


@dataclass(frozen=True)
class DriverFacts:
    """What the driver says of itself and of its GPU.

    Attributes:
        name: of the GPU, such as "Orin".
        capability: compute capability, such as (8, 7).
        memory_bytes: of the GPU; all of the machine's where they share it.
        integrated: whether GPU and CPU share memory.
        uuid: 32 hex digits that no other GPU has; empty where the driver gives none.
        cuda: newest CUDA that the driver runs, such as (12, 6).
        driver: version of the driver, as precise as it tells.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    integrated: bool
    uuid: str
    cuda: tuple[int, int]
    driver: str


class Driver:
    """libcuda with its functions declared, and every answer checked. Safe to share between threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Declares the functions.

        Raises:
            AttributeError: the driver is too old to have one of them.
        """
        self._library = library
        for name, arguments in FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int

    def call(self, doing: str, function: str, *arguments: Any) -> None:
        """Calls a function.

        Args:
            doing: what it is called for, to follow "CUDA failed while it".
            function: its name.
            arguments: as libcuda takes them.

        Raises:
            BackendError: it returned an error.
        """
        if code := self.code(function, *arguments):
            raise self.failure(doing, function, code)

    def code(self, function: str, *arguments: Any) -> int:
        """Calls a function and returns its error code, 0 for none."""
        return int(getattr(self._library, function)(*arguments))

    def failure(self, doing: str, function: str, code: int) -> BackendError:
        """The error of our tree for one of the driver's."""
        name, meaning = self._described(code)
        return BackendError(
            f"CUDA failed while it {doing}", where=function, found=f"{name} ({code}): {meaning}", fix=_FIXES.get(code)
        )

    def _described(self, code: int) -> tuple[str, str]:
        texts = []
        for function in ("cuGetErrorName", "cuGetErrorString"):
            text = c_char_p()
            getattr(self._library, function)(code, ctypes.byref(text))
            texts.append((text.value or b"unknown").decode(errors="replace"))
        return texts[0], texts[1]


class _NoDriverError(Exception):
    def __init__(self, missing: Missing) -> None:
        super().__init__(missing.reason)
        self.missing = missing


_lock = threading.Lock()
_started: tuple[int, Driver] | None = None


def probe() -> DriverFacts | Missing:
    """What drives this machine's first GPU, or why nothing does. Any thread may ask; it costs a few milliseconds."""
    try:
        return _facts(_start())
    except _NoDriverError as error:
        return error.missing
    except BackendError as error:
        return Missing(f"{error.problem}: {error.found}", error.fix or _DRIVER)


def driver() -> Driver:
    """The driver, started.

    Raises:
        BackendError: there is none that can be used.
    """
    try:
        return _start()
    except _NoDriverError as error:
        raise BackendError("there is no CUDA here", found=error.missing.reason, fix=error.missing.fix) from error


def _start() -> Driver:
    global _started  # one per process, as the driver itself
    with _lock:
        if _started is not None and _started[0] != os.getpid():
            raise _NoDriverError(
                Missing(
                    "this process was forked from one that had started CUDA, which does not survive that",
                    "start the process with multiprocessing's spawn or forkserver, or fork before anything is loaded",
                )
            )
        if _started is None:
            started = _loaded()
            started.call("started", "cuInit", 0)
            _started = (os.getpid(), started)
        return _started[1]


def _loaded() -> Driver:
    try:
        return Driver(ctypes.CDLL(LIBRARY))
    except OSError as error:
        raise _NoDriverError(
            Missing(
                f"no NVIDIA driver: {error}",
                "install the NVIDIA driver; in a container, start it with `--gpus all` or the NVIDIA runtime",
            )
        ) from error
    except AttributeError as error:
        raise _NoDriverError(
            Missing(f"the NVIDIA driver is too old: {error}", "update it (CUDA 11.4 or newer)")
        ) from error


def _facts(driver: Driver) -> DriverFacts:
    count, device, version, memory = c_int(), _Device(), c_int(), c_size_t()
    driver.call("counted GPUs", "cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        raise _NoDriverError(Missing("the NVIDIA driver shows no GPU", "check `nvidia-smi` and CUDA_VISIBLE_DEVICES"))
    driver.call("looked for the GPU", "cuDeviceGet", ctypes.byref(device), DEVICE)
    driver.call("asked for its version", "cuDriverGetVersion", ctypes.byref(version))
    driver.call("asked for the GPU's memory", "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    name, uuid = ctypes.create_string_buffer(MAX_NAME_BYTES), ctypes.create_string_buffer(UUID_BYTES)
    driver.call("asked for the GPU's name", "cuDeviceGetName", name, MAX_NAME_BYTES, device)
    numbered = driver.code("cuDeviceGetUuid_v2", uuid, device) == 0
    major, minor, integrated = (
        _attribute(driver, device, each) for each in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _INTEGRATED)
    )
    cuda = (version.value // 1000, version.value % 1000 // 10)
    return DriverFacts(
        name=name.value.decode(errors="replace"),
        capability=(major, minor),
        memory_bytes=memory.value,
        integrated=bool(integrated),
        uuid=uuid.raw.hex() if numbered else "",
        cuda=cuda,
        driver=_driver_version(cuda),
    )


def _attribute(driver: Driver, device: Any, attribute: int) -> int:
    value = c_int()
    driver.call("asked what the GPU is like", "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
    return value.value


def _driver_version(cuda: tuple[int, int]) -> str:
    """As much as can be found out: two drivers of one CUDA version compile kernels differently."""
    parts = []
    for path, pattern in _VERSION_FILES:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if found := re.search(pattern, text):
            parts.append(".".join(found.groups()))
    return ", ".join([*parts, f"CUDA {cuda[0]}.{cuda[1]}"])
