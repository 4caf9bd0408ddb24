"""One quantised linear layer with GELU behind it, in the forms that exporters and their graphs come in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from trunkline.runtime.backends import StageFiles
from trunkline.runtime.manifest import Stage, TensorSpec, Variant

#: Inputs and outputs of the layer, rows of a sample where there are any.
K, N, ROWS = 64, 96, 5


@dataclass(frozen=True)
class Form:
    """How the layer is written.

    Attributes:
        product: "MatMul" with (K, N) weights, or "Gemm" with transposed ones.
        rank: of the input: 2 is (batch, K), 3 is (batch, rows, K).
        bias: rank of the bias, which is added behind the product; 0 has none, "inside" is Gemm's own third input.
        batch: a letter if it may vary.
        opset: of the graph.
    """

    product: str = "MatMul"
    rank: int = 3
    bias: int | str = 2
    batch: int | str = "B"
    opset: int = 23

    def __str__(self) -> str:
        return f"{self.product} rank {self.rank} bias {self.bias} batch {self.batch} opset {self.opset}"

    @property
    def shape(self) -> tuple[int | str, ...]:
        return (self.batch, K) if self.rank == 2 else (self.batch, ROWS, K)


def model(form: Form = Form()) -> ModelProto:
    """Symmetric int8: one scale for the input, one per output for the weight, zero points spelt out."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((K, N)).astype(np.float32) / 8
    scales = (np.abs(matrix).max(axis=0) / 127).astype(np.float32)
    weight = np.rint(matrix / scales).astype(np.int8)
    bias = rng.standard_normal(N).astype(np.float32)
    transposed = form.product == "Gemm"
    constants = {
        "x_scale": np.float32(4 / 127),
        "x_zero": np.int8(0),
        "weight": weight.T if transposed else weight,
        "weight_scale": scales,
        "weight_zero": np.zeros(N, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_int8"], name="x/Q"),
        helper.make_node("DequantizeLinear", ["x_int8", "x_scale", "x_zero"], ["x_float"], name="x/DQ"),
        helper.make_node(
            "DequantizeLinear",
            ["weight", "weight_scale", "weight_zero"],
            ["weight_float"],
            name="weight/DQ",
            axis=0 if transposed else 1,
        ),
    ]
    operands = ["x_float", "weight_float", *(["bias"] if form.bias == "inside" else [])]
    options = {"transB": 1} if transposed else {}
    nodes.append(helper.make_node(form.product, operands, ["product"], name="product", **options))
    if form.bias == "inside":
        constants["bias"] = bias
    elif isinstance(form.bias, int) and form.bias:
        constants["bias"] = bias.reshape((1,) * (form.bias - 1) + (N,))
        nodes.append(helper.make_node("Add", ["product", "bias"], ["sum"], name="add"))
    nodes.append(helper.make_node("Gelu", [nodes[-1].output[0]], ["y"], name="gelu"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, form.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (*form.shape[:-1], N))],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", form.opset)], ir_version=10)
    checker.check_model(made, full_check=True)
    return made


def stored(weight_only: str) -> ModelProto:
    """The same layer with weights stored in int8 and arithmetic in float32, written in one of two ways."""
    made = model(Form())
    nodes = {each.name: each for each in made.graph.node}
    nodes["product"].input[0] = "x"
    made.graph.node.remove(nodes["x/Q"])
    made.graph.node.remove(nodes["x/DQ"])
    if weight_only == "Cast":
        made.graph.node.remove(nodes["weight/DQ"])
        made.graph.node.insert(0, helper.make_node("Mul", ["weight_cast", "weight_scale"], ["weight_float"]))
        made.graph.node.insert(0, helper.make_node("Cast", ["weight"], ["weight_cast"], to=TensorProto.FLOAT))
    return made


def expected(form: Form, x: np.ndarray) -> np.ndarray:
    """The layer's output, computed from its constants."""
    constants = {each.name: numpy_helper.to_array(each) for each in model(form).graph.initializer}
    quantised = np.clip(np.rint(x / constants["x_scale"]), -128, 127) * constants["x_scale"]
    return output(form, quantised)


def output(form: Form, x: np.ndarray) -> np.ndarray:
    """The layer's output for an input that is not quantised."""
    constants = {each.name: numpy_helper.to_array(each) for each in model(form).graph.initializer}
    weight = constants["weight"].astype(np.float32)
    scales = constants["weight_scale"]
    weight = (weight.T if form.product == "Gemm" else weight) * scales
    total = x @ weight + constants.get("bias", np.float32(0)).reshape(-1)
    return total * (1 + np.vectorize(erf)(total / np.sqrt(2))) / 2


def erf(value: float) -> float:
    import math

    return math.erf(value)


def stage_files(made: ModelProto, form: Form, folder: Path) -> StageFiles:
    """The layer as a stage."""
    stage = Stage(
        inputs=(TensorSpec("x", "float32", form.shape),),
        outputs=(TensorSpec("y", "float32", (*form.shape[:-1], N)),),
        variants={"cpu": Variant("cpu.onnx", None, form.opset, "int8")},
    )
    return StageFiles("layer", stage, made.SerializeToString(), folder, threads=1)
