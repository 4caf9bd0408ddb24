"""ONNX Runtime with its TensorRT provider, running a stage's ``trt`` variant: float16 with float32 islands.

The provider compiles a stage when it is first opened, which takes minutes, and keeps the engine. Left alone, it names
engines after a graph's structure, so that a head would be given the engine of another one of its architecture. Here an
engine's name is the digest of everything that made it, as for the native back end, and a folder that changed since it
was written is compiled again (:mod:`trunkline.runtime.backends.sealed`).

Precision is in the graph: the provider builds a strongly typed network as long as no precision is switched on, and none
is. A call with more rows than ``SETTINGS`` allow is refused; nothing is compiled while a robot moves. No parity was
judged when an engine is made: run ``trunkline verify`` once after that.

Names and values of the options were taken by the provider's own parser (onnxruntime-gpu 1.23.2 and 1.31.1).
**Nothing of it has run in TensorRT.**
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from pathlib import Path

from trunkline.runtime.backends import Missing, StageFiles, ort, ort_packages
from trunkline.runtime.backends.ort_device import DEVICE_ID, OrtDeviceSession, Placement
from trunkline.runtime.backends.sealed import sealed
from trunkline.runtime.cuda import driver
from trunkline.runtime.engines.cache import default_folder
from trunkline.runtime.engines.device import Device, Library, this_system
from trunkline.runtime.engines.key import EngineKey, engine_key
from trunkline.runtime.engines.settings import BuildSettings, Rows
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import BLOCKS, FEWEST_BLOCKS, TRT_VARIANT, Stage, TensorSpec

NAME = "onnxruntime-tensorrt"
VARIANT = TRT_VARIANT
PROVIDER, HELPER = "TensorrtExecutionProvider", "CUDAExecutionProvider"

#: Rows that engines are made for: frames, instructions, candidates, blocks of a sensor window.
SETTINGS = BuildSettings(
    workspace_bytes=1 << 30,
    profile=(Rows("B", 1, 1, 8), Rows("I", 1, 1, 32), Rows("N", 1, 32, 256), Rows(BLOCKS, FEWEST_BLOCKS, 8, 512)),
)

#: Engines are looked for under each of these; the provider is linked with one.
_TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvinfer.so.11")

_LIBRARIES = (
    "install the TensorRT that this onnxruntime-gpu was built with, where the system finds its libraries: on a Jetson "
    "with apt (nvidia-jetpack), on a desktop NVIDIA's packages or pip install 'tensorrt<11'; CUDA and cuDNN come with "
    "pip install 'onnxruntime-gpu[cuda,cudnn]'"
)


def available() -> Missing | None:
    """None if onnxruntime-gpu, its TensorRT provider and a driver are here, otherwise all that is missing."""
    if not isinstance(driver.probe(), Missing):  # without one, TensorRT's libraries are not touched
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt_libs")  # TensorRT from pip: loads its libraries where they are
    return ort_packages.missing([PROVIDER, HELPER], _LIBRARIES)


def version() -> str:
    return str(ort.library().__version__)


def open_stage(files: StageFiles) -> OrtDeviceSession:
    """A session over checked graph bytes, compiled now if it was not before.

    Raises:
        BackendError: the provider cannot be loaded or refuses the stage, or its folder cannot be written.
        BundleError: the graph's inputs or outputs are not the manifest's.
    """
    key = _key(files)
    with sealed(default_folder() / NAME, key.digest) as folder:
        options = provider_options(files.stage, key.settings, folder, f"{files.name}_{key.digest[:16]}")
        helper = {"device_id": str(DEVICE_ID), "use_tf32": "0"}
        return OrtDeviceSession(files, Placement(((PROVIDER, options), (HELPER, helper))))


def provider_options(stage: Stage, settings: BuildSettings, folder: Path, prefix: str) -> dict[str, str]:
    """The provider's options, in the words of its parser: flags are True and False.

    Args:
        stage: whose varying inputs get the settings' sizes.
        settings: for this stage.
        folder: where the engine is, and what was measured for it.
        prefix: of the engine's file name.
    """
    options = {
        "device_id": str(DEVICE_ID),
        "trt_max_workspace_size": str(settings.workspace_bytes),
        "trt_builder_optimization_level": str(settings.optimization_level),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_engine_cache_prefix": prefix,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        # Measurements of another version or device are not used.
        "trt_force_timing_cache": "False",
    }
    varying = [spec for spec in stage.inputs if any(isinstance(size, str) for size in spec.shape)]
    if varying:
        for end, which in (("min", "minimum"), ("opt", "optimum"), ("max", "maximum")):
            shapes = [f"{spec.name}:{_sizes(spec, settings, which)}" for spec in varying]
            options[f"trt_profile_{end}_shapes"] = ",".join(shapes)
    return options


def int8_kernels(files: StageFiles) -> int:
    """Linear layers that run in int8: none in a stage that quantises nothing.

    Raises:
        BackendError: the stage does quantise. The provider shows an engine as one operator and does not say what is
            in it.
    """
    if ort.is_int8(files.graph):
        raise BackendError(
            "int8 layers cannot be counted in this back end",
            where=f"{NAME}, stage {files.name}",
            fix="use the back end tensorrt, which can look into its engines",
        )
    return 0


def _sizes(spec: TensorSpec, settings: BuildSettings, which: str) -> str:
    sizes = [size if isinstance(size, int) else getattr(settings.rows(size), which) for size in spec.shape]
    return "x".join(map(str, sizes))


def _key(files: StageFiles) -> EngineKey:
    facts = driver.probe()
    if isinstance(facts, Missing):
        raise BackendError("there is no CUDA here", found=facts.reason, fix=facts.fix)
    capability = ".".join(map(str, facts.capability))
    device = Device(facts.name, capability, facts.driver, this_system())
    library = Library(NAME, f"{version()} with TensorRT {tensorrt_version()}")
    return engine_key(files, SETTINGS, variant=VARIANT, library=library, device=device)


def tensorrt_version() -> str:
    """Of the library that the provider has loaded, such as 10.3.0.

    Raises:
        BackendError: it has loaded none.
    """
    if problem := ort_packages.libraries_problem(ort.library(), [PROVIDER]):
        raise BackendError("TensorRT cannot be loaded", found=problem, fix=_LIBRARIES)
    for name in _TENSORRT_LIBRARIES:
        with contextlib.suppress(OSError):
            number = ctypes.CDLL(name, os.RTLD_NOLOAD | os.RTLD_NOW).getInferLibVersion()
            return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    raise BackendError(
        "TensorRT does not say which version it is",
        expected=" or ".join(_TENSORRT_LIBRARIES),
        fix="use the back end tensorrt, or a version of onnxruntime-gpu that is linked with TensorRT 10 or 11",
    )
