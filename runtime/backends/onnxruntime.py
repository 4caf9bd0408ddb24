"""ONNX Runtime on the CPU, running a stage's ``cpu`` variant."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import Arrays, Missing, StageFiles, ort
from trunkline.runtime.backends.contract import check_signature, smallest_inputs
from trunkline.runtime.backends.forks import never_freed_in_a_child
from trunkline.runtime.backends.ort import is_int8, library
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import CPU_VARIANT

NAME = "onnxruntime"
VARIANT = CPU_VARIANT
PROVIDERS = [ort.CPU]

#: Options of every session here; docs/benchmarks.md has the measurements.
SETTINGS = {
    # Its kernel for a sum with a normalisation is slower than the two kernels it replaces.
    "optimization.disable_specified_optimizers": "SkipLayerNormFusion",
    # A layer that only keeps its weights in int8 computes in float32, and does not quantise its inputs by itself.
    "session.qdq_matmulnbits_accuracy_level": "1",
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


def available() -> Missing | None:
    """None if onnxruntime can be imported, otherwise why not."""
    try:
        library()
    except ImportError as error:
        return Missing(str(error), "pip install 'trunkline[cpu]'")
    return None


def version() -> str:
    return str(library().__version__)


def open_stage(files: StageFiles) -> OnnxSession:
    """A session over checked graph bytes; external tensors are mapped from ``files.folder`` by ONNX Runtime."""
    return OnnxSession(files)


def int8_kernels(files: StageFiles) -> int:
    """Linear layers that run in int8, counted in one run."""
    options = _options(files)
    with ort.profiling(options):
        session = compiled(files, options)
        ran = ort.kernels(session, files.name, lambda: session.run(None, smallest_inputs(files.stage)))
    return sum(kernel.operator in ort.INT8_KERNELS for kernel in ran)


class OnnxSession:
    """One stage. ONNX Runtime itself allows several threads; the stage graph uses one at a time."""

    def __init__(self, files: StageFiles) -> None:
        self._name = files.name
        self._session = compiled(files)
        never_freed_in_a_child(self)
        check_signature(files, ort.ports(self._session.get_inputs()), ort.ports(self._session.get_outputs()))
        self._outputs = [tensor.name for tensor in files.stage.outputs]

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Runs the stage.

        Raises:
            BackendError: ONNX Runtime failed, out of memory for instance.
        """
        results = ort.run(self._session, self._name, self._outputs, inputs)
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Drops the session and its memory."""
        del self._session


def _options(files: StageFiles) -> Any:
    return ort.options(files, SETTINGS | (INT8_SETTINGS if is_int8(files.graph) else {}))


def compiled(files: StageFiles, options: Any = None) -> Any:
    """The library's own session on a stage, for those who need more of it than :class:`OnnxSession` shows.

    Args:
        files: the stage; its contract is not checked.
        options: the library's; by default those of every session here.

    Raises:
        BackendError: the library refuses the stage.
    """
    _check_int8(files)
    return ort.session(files, options or _options(files), PROVIDERS)


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
