"""The sessions of the CUDA back end, on the processor: everything of them but the GPU.

Outputs are bound, kept and handed on as on a GPU, and every copy to the host is counted. It runs the ``trt`` variant.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime import backends
from trunkline.runtime.backends import Missing, StageFiles, ort
from trunkline.runtime.backends.ort_device import OrtDeviceSession, OrtResident, Placement

NAME = "onnxruntime-bound"
VARIANT = "trt"
PLACEMENT = Placement(((ort.CPU, {}),), device="cpu")

#: Names of stages whose outputs were copied to the host, in order.
copied: list[str] = []


def register() -> None:
    """Lets ``load`` find it under its name, for the rest of this process."""
    backends._MODULES[NAME] = __name__


def available() -> Missing | None:
    return None


def version() -> str:
    return str(ort.library().__version__)


class Counted(OrtResident):
    def numpy(self) -> NDArray[np.float32]:
        copied.append(self._stage)
        return super().numpy()


class Session(OrtDeviceSession):
    def run_resident(self, inputs: object) -> dict[str, OrtResident]:
        found = super().run_resident(inputs)  # type: ignore[arg-type]
        return {name: Counted(each.value, each._session, each._stage) for name, each in found.items()}


def open_stage(files: StageFiles) -> Session:
    return Session(files, PLACEMENT)


def int8_kernels(files: StageFiles) -> int:
    return sum(kernel.operator in ort.INT8_KERNELS for kernel in open_stage(files).kernels)
