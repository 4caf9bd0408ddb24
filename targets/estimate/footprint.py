"""What a back end makes of a stage's needs: how often it keeps a weight, what it sets aside, what it takes by itself.

Numbers for ONNX Runtime and OpenVINO on processors were measured with ``benchmarks/memory_plan.py``; docs/targets.md
has the table. **Those for GPUs were not.** They come from documentation and public reports, named beside them, and from
what the same library does on processors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trunkline.targets.estimate.needs import Kind, Needs

_MIB = 1 << 20


@dataclass(frozen=True)
class Process:
    """What is there before the first weight: interpreter, libraries, contexts. ``device_bytes`` lie on a GPU."""

    host_bytes: int
    device_bytes: int = 0


@dataclass(frozen=True)
class Build:
    """Compiling a stage on the device.

    Attributes:
        process: with the compiler loaded.
        host_weights: how often weights are in the host's memory.
        device_weights: how often on the device.
    """

    process: Process
    host_weights: float
    device_weights: float


@dataclass(frozen=True)
class Footprint:
    """Of one back end.

    Attributes:
        process: see above.
        weights: how often a byte of each kind is kept.
        node_bytes: what an operator takes by itself.
        activations: bytes set aside per byte that is alive at once.
        build: how engines are compiled, None where nothing is.
        measured: whether the numbers are.
    """

    process: Process
    weights: Mapping[Kind, float]
    node_bytes: int
    activations: float
    build: Build | None = None
    measured: bool = False

    def weights_bytes(self, needs: Needs) -> int:
        """Weights of a stage as this back end keeps them, with what its operators take."""
        kept = sum(each.bytes * self.weights[each.kind] for each in needs.weights)
        return int(kept) + needs.nodes * self.node_bytes

    def activations_bytes(self, needs: Needs) -> int:
        """What is set aside for values."""
        return int(needs.activations_bytes * self.activations)


_ONCE: dict[Kind, float] = dict.fromkeys(("table", "int8", "linear", "matrices", "folded", "other"), 1.0)

#: ONNX Runtime packs matrices of linear layers for its kernels and lets go of the file's. Other matrices it uses where
#: they are mapped, unless they are folded: then they are there as made and as packed. Its arena plans a stage's values
#: a second time, and rounds up.
_ONNXRUNTIME = Footprint(
    process=Process(85 * _MIB),
    weights={**_ONCE, "table": 0.0, "folded": 2.0},
    node_bytes=10 << 10,
    activations=7.0,
    measured=True,
)

#: OpenVINO keeps matrices that are no linear layers once for a single row and once for several.
_OPENVINO = Footprint(
    process=Process(160 * _MIB),
    weights={**_ONCE, "table": 0.0, "matrices": 2.0, "folded": 3.0},
    node_bytes=60 << 10,
    activations=2.0,
    measured=True,
)

#: Starting CUDA took 229 to 331 MiB of the host's memory (github.com/NVIDIA/TensorRT, issue 2217; wang-xinyu/tensorrtx,
#: issue 1320), a context a few hundred on the device. With the builder's kernels it is 1097 and 519 (NVIDIA/TensorRT,
#: issue 3834). TensorRT's documentation says that there are at least two copies of the weights in the host's memory
#: during a build, and a third on the device while kernels are timed.
_TENSORRT = Footprint(
    process=Process(400 * _MIB, 300 * _MIB),
    weights=_ONCE,
    node_bytes=0,
    activations=2.0,
    build=Build(Process(1100 * _MIB, 520 * _MIB), 2.0, 1.0),
)

#: cuBLAS adds 159 MiB to the host's memory and 182 to the device's, cuDNN 240 and 241 (NVIDIA/TensorRT, issue 2217).
_ONNXRUNTIME_CUDA = Footprint(
    process=Process(800 * _MIB, 720 * _MIB),
    weights=_ONCE,
    node_bytes=0,
    activations=7.0,
)

_ONNXRUNTIME_TENSORRT = Footprint(
    process=Process(800 * _MIB, 720 * _MIB),
    weights=_ONCE,
    node_bytes=0,
    activations=2.0,
    build=Build(Process(1500 * _MIB, 940 * _MIB), 2.0, 1.0),
)

FOOTPRINTS: Mapping[str, Footprint] = {
    "tensorrt": _TENSORRT,
    "onnxruntime-tensorrt": _ONNXRUNTIME_TENSORRT,
    "onnxruntime-cuda": _ONNXRUNTIME_CUDA,
    "openvino": _OPENVINO,
    "onnxruntime": _ONNXRUNTIME,
}
