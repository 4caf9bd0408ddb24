"""TensorRT, running engines that were built on this device from a stage's ``trt`` variant.

A stage is not compiled here: ``trunkline build`` does that, judges the engines, and keeps them in the cache
(:mod:`trunkline.runtime.engines`). Without one there is an error that says so. An engine is code for the GPU, so what
is opened are the very bytes that were seen to decide as the PyTorch ensemble does; an engine that brings code for the
processor, or needs a plugin, is refused.

The driver is asked before TensorRT is touched: without one, the lean runtime ends the process instead of raising.

*Lean.* Where only ``tensorrt_lean`` is installed, it runs engines that were built version-compatible by the full
library of the same version, on this device. It is some hundred megabytes instead of some thousand. Such engines may be
slower, and what kernels they consist of cannot be seen.

**Never run on a device.** Calls were checked against the bindings of 10.3 to 11.4, the rest with a pretended GPU.
"""

from __future__ import annotations

import contextlib
from types import ModuleType

from trunkline.runtime.backends import Missing, StageFiles
from trunkline.runtime.backends import tensorrt_api as api
from trunkline.runtime.backends.contract import check_declared
from trunkline.runtime.backends.tensorrt_layers import int8_products
from trunkline.runtime.backends.tensorrt_log import asking
from trunkline.runtime.backends.tensorrt_members import INSPECT, RUN, lacking
from trunkline.runtime.backends.tensorrt_session import REBUILD, TensorRtSession
from trunkline.runtime.cuda import driver
from trunkline.runtime.engines.cache import Engine, EngineCache
from trunkline.runtime.engines.device import Device, Library, this_system
from trunkline.runtime.engines.sets import EngineSets
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import TRT_VARIANT

NAME = "tensorrt"
VARIANT = TRT_VARIANT

INSTALL = (
    "on a Jetson, `sudo apt install tensorrt` and make the virtual environment with --system-site-packages; elsewhere "
    "`pip install tensorrt`"
)


def available() -> Missing | None:
    """None if there is a driver with a GPU and a TensorRT that can be used, otherwise why not."""
    found = driver.probe()
    if isinstance(found, Missing):
        return found
    try:
        trt = api.library()
    except ImportError as error:
        return Missing(str(error), INSTALL)
    if api.is_too_old(trt):
        return Missing(f"TensorRT {api.version(trt)} is older than {'.'.join(map(str, api.OLDEST))}", INSTALL)
    if gone := lacking(trt, RUN):
        return Missing(
            f"TensorRT {api.version(trt)} lacks {', '.join(gone)}", "update trunkline, or install an older one"
        )
    return None


def version() -> str:
    """Of TensorRT, and whether it is the lean runtime.

    Raises:
        ImportError: there is none.
    """
    trt = api.library()
    return api.version(trt) + (" (lean)" if api.is_lean(trt) else "")


def library() -> Library:
    """What compiles engines and runs them. The lean runtime runs what the full one of its version compiled.

    Raises:
        ImportError: there is none.
    """
    return Library(NAME, api.version(api.library()))


def device() -> Device:
    """The GPU that engines are built for.

    Raises:
        BackendError: there is none that can be used.
    """
    found = driver.probe()
    if isinstance(found, Missing):
        raise BackendError("there is no GPU here", found=found.reason, fix=found.fix)
    capability = ".".join(map(str, found.capability))
    return Device(name=found.name, compute_capability=capability, driver=found.driver, system=this_system())


def open_stage(files: StageFiles) -> TensorRtSession:
    """A session on the engine that was built and judged for this stage on this device; the cache keeps it meanwhile.

    Raises:
        BackendError: there is none, it is refused, or TensorRT cannot be used.
        BundleError: the graph's inputs or outputs are not the manifest's.
    """
    trt = _usable()
    check_declared(files)
    engine = _engine(files)
    with contextlib.ExitStack() as held:
        held.callback(engine.close)
        session = TensorRtSession(trt, engine.plan(), files.stage, name=files.name)
        session.keep(held.pop_all())
    session.judged_with = engine.judged_with
    engine.forget_plan()
    return session


def int8_kernels(files: StageFiles) -> int:
    """How many linear layers of a stage's graph run in int8 in its engine, as the engine itself tells.

    Raises:
        BackendError: there is no engine, it is refused, or it does not tell.
    """
    trt = _usable()
    if api.is_lean(trt) or (gone := lacking(trt, INSPECT)):
        raise BackendError(
            "this TensorRT does not tell which layers of an engine run in int8",
            where=f"stage {files.name}",
            found="the lean runtime" if api.is_lean(trt) else f"it lacks {', '.join(gone)}",
            fix="ask where the full library is installed, which is where the engine was built",
        )
    engine = _engine(files)
    try:
        return int8_layers_of(trt, engine.plan(), files)
    finally:
        engine.close()


def int8_layers_of(trt: ModuleType, plan: bytes, files: StageFiles) -> int:
    """As :func:`int8_kernels`, of an engine that is at hand.

    Raises:
        BackendError: TensorRT refuses the engine, or it does not tell.
    """
    with asking("an engine cannot be looked into", where=f"stage {files.name}", fix=REBUILD):
        _runtime, engine = api.open_engine(trt, plan)
        return int8_products(api.layers(trt, engine), files.graph)


def _usable() -> ModuleType:
    """The library, after everything that could be wrong was asked.

    Raises:
        BackendError: something is.
    """
    missing = available()
    if missing is not None:
        raise BackendError("TensorRT cannot be used here", found=missing.reason, fix=missing.fix)
    return api.library()


def _engine(files: StageFiles) -> Engine:
    return EngineSets(EngineCache(), library(), device()).open(files, VARIANT, files.bundle)
