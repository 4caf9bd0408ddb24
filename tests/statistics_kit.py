"""A stage of two linear layers, small enough to compute by hand in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trunkline.calibration.statistics.collect import StageInput

WIDTH, HIDDEN, OUT, TOKENS = 8, 16, 4, 5
#: Every value that a linear layer reads: an input of the graph, and one from inside.
VALUES = ("x", "hidden")


def layers(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    return (
        generator.standard_normal((WIDTH, HIDDEN)).astype(np.float32),
        generator.standard_normal((HIDDEN, OUT)).astype(np.float32),
    )


def save_stage(folder: Path, seed: int = 0) -> Path:
    """relu(x W1) W2 with its weights in a file of their own."""
    first, second = layers(seed)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["product"]),
            helper.make_node("Relu", ["product"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "second"], ["y"]),
        ],
        "stage",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", TOKENS, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", TOKENS, OUT])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cpu.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="cpu.weights", size_threshold=0)
    return path


def batch(index: int) -> NDArray[np.float32]:
    """(B, tokens, width) of one sample; every third has two entries."""
    generator = np.random.default_rng(1000 + index)
    return generator.standard_normal((1 + (index % 3 == 0), TOKENS, WIDTH)).astype(np.float32)


def samples(count: int, loaded: list[str] | None = None) -> list[StageInput]:
    """Inputs of the stage; ``loaded`` is told each digest when its inputs are asked for."""

    def loader(index: int) -> Callable[[], dict[str, NDArray[Any]]]:
        def load() -> dict[str, NDArray[Any]]:
            if loaded is not None:
                loaded.append(f"sample-{index}")
            return {"x": batch(index)}

        return load

    return [(f"sample-{index}", loader(index)) for index in range(count)]


def expected(indices: Sequence[int]) -> dict[str, NDArray[np.float32]]:
    """Both values for all samples at once: (rows, C)."""
    first, _ = layers()
    x = np.concatenate([batch(index).reshape(-1, WIDTH) for index in indices])
    return {"x": x, "hidden": np.maximum(x @ first, 0)}
