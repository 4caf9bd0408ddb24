"""Stages of one product in half precision, with their weights in a file, as exported ones have them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trunkline.runtime.backends import StageFiles
from trunkline.runtime.manifest import Stage, TensorSpec, Variant

K, N = 6, 4


def small(folder: Path, name: str = "small", seed: int = 0, letter: str | int = "N", extra: bool = False) -> StageFiles:
    """``y = x W + b`` for rows of x; ``extra`` adds an input of fixed shape that is added to every row."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((K, N)).astype(np.float16), rng.standard_normal(N).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["x_half"], name="x/Cast", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["x_half", "weight"], ["product"], name="layer/MatMul"),
        helper.make_node("Add", ["product", "bias"], ["sum"], name="layer/Add"),
        helper.make_node("Cast", ["sum"], ["added" if extra else "y"], name="y/Cast", to=TensorProto.FLOAT),
    ]
    inputs = [TensorSpec("x", "float32", (letter, K))]
    if extra:
        nodes.append(helper.make_node("Add", ["added", "shift"], ["y"], name="shift/Add"))
        inputs.append(TensorSpec("shift", "float32", (1, N)))
    stage = Stage(tuple(inputs), (TensorSpec("y", "float32", (letter, N)),), {"trt": Variant("", None, 20, "float16")})
    return written(folder, name, stage, nodes, {"weight": weight, "bias": bias})


def written(
    folder: Path, name: str, stage: Stage, nodes: list[onnx.NodeProto], constants: dict[str, NDArray[np.generic]]
) -> StageFiles:
    """A stage's file, with every constant in its weight file."""
    ports = [
        [helper.make_tensor_value_info(each.name, TensorProto.FLOAT, each.shape) for each in tensors]
        for tensors in (stage.inputs, stage.outputs)
    ]
    tensors = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, *ports, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trt.onnx"
    onnx.save(model, path, save_as_external_data=True, location="trt.weights", size_threshold=0)
    digest = hashlib.sha256((folder / "trt.weights").read_bytes()).hexdigest()
    return StageFiles(name, stage, path.read_bytes(), folder, weights_digest=digest)


def rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, K)).astype(np.float32)


def expected(files: StageFiles, inputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The stage in numpy."""
    model = onnx.load(files.folder / "trt.onnx")
    constants = {each.name: numpy_helper.to_array(each).astype(np.float32) for each in model.graph.initializer}
    product = inputs["x"].astype(np.float16).astype(np.float32) @ constants["weight"] + constants["bias"]
    return product + inputs.get("shift", np.float32(0))
