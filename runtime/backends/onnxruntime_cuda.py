"""ONNX Runtime with its CUDA provider, running a stage's ``trt`` variant: float16 with float32 islands.

Outputs stay on the GPU between stages. What is float32 in the graph is computed in float32, not in TF32.

Its sessions were tested on a processor, through everything but the provider itself. **It has never run on a GPU.**
"""

from __future__ import annotations

from trunkline.runtime.backends import Missing, StageFiles, ort, ort_packages
from trunkline.runtime.backends.ort_device import DEVICE_ID, OrtDeviceSession, Placement
from trunkline.runtime.manifest import TRT_VARIANT

NAME = "onnxruntime-cuda"
VARIANT = TRT_VARIANT
PROVIDER = "CUDAExecutionProvider"

OPTIONS = {
    "device_id": str(DEVICE_ID),
    # Float32 stays float32: by default its products would be rounded to ten bits.
    "use_tf32": "0",
    # The default tries convolutions out and takes the fastest, which is another one now and then, with other scores.
    "cudnn_conv_algo_search": "HEURISTIC",
    # The default doubles its memory at each request, on a GPU that may be the whole machine's memory.
    "arena_extend_strategy": "kSameAsRequested",
}

_LIBRARIES = (
    "install the CUDA and cuDNN that this onnxruntime-gpu was built with: on a desktop pip install "
    "'onnxruntime-gpu[cuda,cudnn]', on a Jetson with apt (nvidia-jetpack)"
)


def available() -> Missing | None:
    """None if onnxruntime-gpu, its CUDA provider and a driver are here, otherwise all that is missing."""
    return ort_packages.missing([PROVIDER], _LIBRARIES)


def version() -> str:
    return str(ort.library().__version__)


def open_stage(files: StageFiles) -> OrtDeviceSession:
    """A session over checked graph bytes; external tensors are read from ``files.folder`` by ONNX Runtime."""
    return OrtDeviceSession(files, Placement(((PROVIDER, dict(OPTIONS)),)))


def int8_kernels(files: StageFiles) -> int:
    """Linear layers that run in int8, counted in one run. The provider computes quantised layers in float."""
    session = open_stage(files)
    try:
        return sum(kernel.operator in ort.INT8_KERNELS for kernel in session.kernels)
    finally:
        session.close()
