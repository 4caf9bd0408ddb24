"""ONNX Runtime on the CPU, running a stage's ``cpu`` variant."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import Arrays, Missing, StageFiles
from trunkline.runtime.backends.contract import Port, check_signature, smallest_inputs
from trunkline.runtime.backends.forks import never_freed_in_a_child
from trunkline.runtime.backends.threads import physical_cores
from trunkline.runtime.errors import BackendError

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
    # A layer that only keeps its weights in int8 computes in float32, and does not quantise its inputs by itself.
    "session.qdq_matmulnbits_accuracy_level": "1",
    # What was scanned is what is read: a file may carry the mark of another format.
    "session.load_model_format": "ONNX",
}

#: Options of a stage with int8 layers, which otherwise become float products before anyone looks for int8, without a
#: word: a product and the sum with its bias where rows are a layer's first dimension, and layers that read one value
#: once their equal quantisers are made one.
INT8_SETTINGS = {
    "optimization.disable_specified_optimizers": SETTINGS["optimization.disable_specified_optimizers"]
    + ";MatMulAddFusion;CommonSubexpressionElimination"
}

#: The first that quantises in the opset of the ``cpu`` variant.
OLDEST_FOR_INT8 = (1, 24)

_DTYPES = {"tensor(uint8)": "uint8", "tensor(int64)": "int64", "tensor(float)": "float32"}

#: Operators that are linear layers in int8 once a graph is optimised.
_INT8_KERNELS = frozenset({"MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm"})


def available() -> Missing | None:
    """None if onnxruntime can be imported, otherwise why not."""
    try:
        library()
    except ImportError as error:
        return Missing(str(error), "pip install 'trunkline[cpu]'")
    return None


def version() -> str:
    return str(library().__version__)


def library() -> ModuleType:
    """onnxruntime, which from 1.29 on uploads usage data from the moment it is imported, unless told not to."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # optional

    if os.environ["ORT_DISABLE_TELEMETRY"] == "1":
        onnxruntime.disable_telemetry_events()  # it may have been imported before
    return onnxruntime


def open_stage(files: StageFiles) -> OnnxSession:
    """A session over checked graph bytes; external tensors are mapped from ``files.folder`` by ONNX Runtime."""
    return OnnxSession(files)


def int8_kernels(files: StageFiles) -> int:
    """Linear layers that run in int8, counted in a profile of one run: the optimised graph holds the weights again."""
    with tempfile.TemporaryDirectory() as folder:
        options = _options(files)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = compiled(files, options)
        try:
            session.run(None, smallest_inputs(files.stage))
        except Exception as error:  # the library's exceptions share no base class
            raise _failed_run(files.name, error) from error
        finally:
            profile = session.end_profiling()
        events = json.loads(Path(profile).read_text())
    # One event per node and run; others tell how long the run as a whole, or loading, took.
    nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
    return sum(node["args"]["op_name"] in _INT8_KERNELS for node in nodes)


class OnnxSession:
    """One stage. ONNX Runtime itself allows several threads; the stage graph uses one at a time."""

    def __init__(self, files: StageFiles) -> None:
        self._name = files.name
        self._session = compiled(files)
        never_freed_in_a_child(self)
        check_signature(files, _ports(self._session.get_inputs()), _ports(self._session.get_outputs()))
        self._outputs = [tensor.name for tensor in files.stage.outputs]

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Runs the stage.

        Raises:
            BackendError: ONNX Runtime failed, out of memory for instance.
        """
        try:
            results = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # the library's exceptions share no base class
            raise _failed_run(self._name, error) from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Drops the session and its memory."""
        del self._session


def is_int8(graph: bytes) -> bool:
    """Whether a stage quantises anything; its operators' names stand in the file as they are."""
    return b"QuantizeLinear" in graph


def _options(files: StageFiles) -> Any:
    options = library().SessionOptions()
    options.intra_op_num_threads = files.threads or physical_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors come as exceptions
    for key, value in (SETTINGS | (INT8_SETTINGS if is_int8(files.graph) else {})).items():
        options.add_session_config_entry(key, value)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(files.folder))
    return options


def compiled(files: StageFiles, options: Any = None) -> Any:
    """The library's own session on a stage, for those who need more of it than :class:`OnnxSession` shows.

    Args:
        files: the stage; its contract is not checked.
        options: the library's; by default those of every session here.

    Raises:
        BackendError: the library refuses the stage.
    """
    _check_int8(files)
    try:
        return library().InferenceSession(files.graph, options or _options(files), providers=PROVIDERS)
    except Exception as error:  # the library's exceptions share no base class
        raise BackendError(
            "ONNX Runtime cannot load a stage",
            where=f"stage {files.name}",
            found=str(error).strip()[:500],
            fix="update onnxruntime (1.23 or newer), or export the bundle again",
        ) from error


def _check_int8(files: StageFiles) -> None:
    """Refuses what the library would refuse in words that tell a user nothing."""
    found = tuple(int(part) for part in version().split(".")[:2])
    if is_int8(files.graph) and found < OLDEST_FOR_INT8:
        raise BackendError(
            "this version of ONNX Runtime cannot run int8 stages",
            where=f"stage {files.name}",
            expected="onnxruntime 1.24 or newer, which needs Python 3.11 or newer",
            found=f"onnxruntime {version()}",
            fix="update it, pip install 'trunkline[openvino]', or copy the float32 bundle here",
        )


def _failed_run(name: str, error: Exception) -> BackendError:
    found = str(error).strip()[:500]
    return BackendError("ONNX Runtime failed while it ran a stage", where=f"stage {name}", found=found)


def _ports(tensors: list[Any]) -> list[Port]:
    return [Port(each.name, _DTYPES.get(each.type, each.type), tuple(each.shape)) for each in tensors]
