"""The stages of the tests' bundle in float32 at the opset of the ``trt`` variant, and inputs for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.exporter.stages.action import ActionStage
from trunkline.exporter.stages.context import ContextStage
from trunkline.exporter.stages.towers import TextStage, VisionStage
from trunkline.exporter.stages.trace import Contract, capture, save
from trunkline.exporter.stages.trt import lower_for_trt
from trunkline.exporter.trunk import Trunk
from trunkline.runtime.manifest import Manifest, Stage, read_manifest

STAGES = ("vision", "text", "context", "action")
SINGLE = "single"
PADDING = -5.0


def manifest_of(bundle: Path) -> Manifest:
    return read_manifest((bundle / "manifest.json").read_bytes(), bundle)


def contract_of(name: str, stage: Stage) -> Contract:
    return Contract(name, stage.inputs, stage.outputs[0])


def write_single(folder: Path, bundle: Path, trunk: Trunk, checkpoint: Checkpoint) -> None:
    """``folder/<stage>/single.onnx`` for every stage."""
    members = PyTorchEnsemble(trunk, checkpoint).members
    modules = {
        "vision": VisionStage(trunk),
        "text": TextStage(trunk),
        "context": ContextStage(members),
        "action": ActionStage(members),
    }
    for name, stage in manifest_of(bundle).stages.items():
        contract = contract_of(name, stage)
        save(lower_for_trt(capture(modules[name], contract), contract), contract, folder, SINGLE, "float32")


def single(folder: Path, stage: str) -> ir.Model:
    """A fresh copy to convert."""
    return ir.load(folder / stage / f"{SINGLE}.onnx")


def feed(stage: Stage, rows: int = 3, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Inputs as the stage gets them: bytes, ids, unit rows, windows of which the last is padded at the start."""
    generator = np.random.default_rng(seed)
    result: dict[str, NDArray[Any]] = {}
    for tensor in stage.inputs:
        shape = [rows if isinstance(size, str) else size for size in tensor.shape]
        if tensor.dtype == "uint8":
            result[tensor.name] = generator.integers(0, 256, shape, dtype=np.uint8)
        elif tensor.dtype == "int64":
            result[tensor.name] = generator.integers(1, 200, shape)
        else:
            numbers = generator.normal(0, 1, shape).astype(np.float32)
            if tensor.name == "history":
                numbers[-1, :3] = PADDING
            else:
                numbers /= np.linalg.norm(numbers, axis=-1, keepdims=True)
            result[tensor.name] = numbers
    return result
