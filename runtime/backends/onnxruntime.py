"""ONNX Runtime on the CPU, running a stage's ``cpu`` variant."""

from __future__ import annotations

import ctypes
import os
import weakref
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import Arrays, StageFiles
from trunkline.runtime.errors import BackendError, BundleError
from trunkline.runtime.manifest import TensorSpec

NAME = "onnxruntime"
VARIANT = "cpu"
PROVIDERS = ["CPUExecutionProvider"]

#: Options of every session; docs/benchmarks.md has the measurements.
SETTINGS = {
    # Idle worker threads sleep instead of spinning: stages run one after another, and a spinning pool of the stage
    # before would take the cores of the next.
    "session.intra_op.allow_spinning": "0",
    # Its kernel for a sum with a normalisation is slower than the two kernels it replaces.
    "optimization.disable_specified_optimizers": "SkipLayerNormFusion",
    # What was scanned is what is read: a file may carry the mark of another format.
    "session.load_model_format": "ONNX",
}

_DTYPES = {"tensor(uint8)": "uint8", "tensor(int64)": "int64", "tensor(float)": "float32"}


#: Sessions that a forked child inherits.
_open: weakref.WeakSet[OnnxSession] = weakref.WeakSet()


def _abandon_inherited() -> None:
    """In a forked child: keeps inherited sessions from ever being freed.

    Freeing one joins its worker threads, which the fork did not copy, so that the child would hang when it ends.
    """
    for session in _open:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_inherited)


def available() -> str | None:
    """None if onnxruntime can be imported, otherwise why not."""
    try:
        _library()
    except ImportError as error:
        return f"{error}; pip install 'trunkline[cpu]'"
    return None


def version() -> str:
    return str(_library().__version__)


def _library() -> ModuleType:
    """onnxruntime, which from 1.29 on uploads usage data from the moment it is imported, unless told not to."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # optional

    if os.environ["ORT_DISABLE_TELEMETRY"] == "1":
        onnxruntime.disable_telemetry_events()  # it may have been imported before
    return onnxruntime


def open_stage(files: StageFiles) -> OnnxSession:
    """A session over checked graph bytes; external tensors are mapped from ``files.folder`` by ONNX Runtime."""
    return OnnxSession(files)


class OnnxSession:
    """One stage. ONNX Runtime itself allows several threads; the stage graph uses one at a time."""

    def __init__(self, files: StageFiles) -> None:
        ort = _library()
        options = ort.SessionOptions()
        options.intra_op_num_threads = files.threads or physical_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors come as exceptions
        for key, value in SETTINGS.items():
            options.add_session_config_entry(key, value)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(files.folder))
        self._name = files.name
        try:
            self._session = ort.InferenceSession(files.graph, options, providers=PROVIDERS)
        except Exception as error:  # the library's exceptions share no base class
            raise BackendError(
                "ONNX Runtime cannot load a stage",
                where=f"stage {files.name}",
                found=str(error).strip()[:500],
                fix="update onnxruntime (1.23 or newer), or export the bundle again",
            ) from error
        _open.add(self)
        _check_signature(files, self._session.get_inputs(), self._session.get_outputs())
        self._outputs = [tensor.name for tensor in files.stage.outputs]

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Runs the stage.

        Raises:
            BackendError: ONNX Runtime failed, out of memory for instance.
        """
        try:
            results = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # the library's exceptions share no base class
            raise BackendError(
                "ONNX Runtime failed while it ran a stage", where=f"stage {self._name}", found=str(error).strip()[:500]
            ) from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Drops the session and its memory."""
        del self._session


def _check_signature(files: StageFiles, inputs: list, outputs: list) -> None:
    """The graph's own inputs and outputs must be the manifest's, dynamic where it says so."""
    differences = []
    for role, expected, actual in (("input", files.stage.inputs, inputs), ("output", files.stage.outputs, outputs)):
        found = [_shown(tensor.name, _DTYPES.get(tensor.type, tensor.type), tensor.shape) for tensor in actual]
        wanted = [_described(tensor) for tensor in expected]
        if found != wanted:
            differences.append(f"{role}s are {found}, the manifest says {wanted}")
    if differences:
        raise BundleError(
            "a stage's graph is not the one its manifest describes",
            where=f"stage {files.name}",
            found=differences,
            fix="export the bundle again",
        )


def _described(tensor: TensorSpec) -> str:
    return _shown(tensor.name, tensor.dtype, list(tensor.shape))


def _shown(name: str, dtype: str, shape: list[int | str]) -> str:
    return f"{name} {dtype} [{', '.join(map(str, shape))}]"


def physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once where the kernel tells."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for core in usable:
        try:
            with open(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list") as file:
                siblings.add(file.read().strip())
        except OSError:
            return max(1, len(usable))
    return max(1, len(siblings))
