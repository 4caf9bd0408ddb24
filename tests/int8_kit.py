"""Stages of the shared test bundle as plain ONNX files, for tests of int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tests.bundles import ACTION_DIM, HISTORY_LENGTH
from tests.trunks import CONTEXT_LENGTH, PATCHES, VISION_WIDTH

WIDTH = VISION_WIDTH["test_vit"]


def stage_inputs(stage: str, seed: int = 0, rows: int = 3) -> dict[str, NDArray[Any]]:
    """Random inputs of a stage of the shared bundle."""
    random = np.random.default_rng(seed)
    if stage == "vision":
        return {"pixels": random.integers(0, 256, (rows, 160, 160, 3), dtype=np.uint8)}
    if stage == "text":
        return {"ids": random.integers(0, 60, (rows, CONTEXT_LENGTH))}
    if stage == "action":
        return {"history": random.normal(0, 1, (rows, HISTORY_LENGTH, ACTION_DIM)).astype(np.float32)}
    return {
        "patches": unit(random.normal(0, 1, (1, PATCHES, WIDTH))),
        "tokens": unit(random.normal(0, 1, (rows, CONTEXT_LENGTH, WIDTH))),
    }


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def run(graph: Path, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The only output of a graph."""
    (output,) = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs)
    return output
