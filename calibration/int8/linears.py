"""The linear layers of a stage: products with a constant matrix, found in its graph.

A layer is a ``MatMul`` with a float32 initializer (K, N) that nothing else uses, and the ``Add`` of its bias if there
is one. :func:`normalise` first turns every ``Gemm`` that is such a layer into that form, so that all later steps know
only one. Back ends fuse the pair again.

Layers belong to *blocks*, the units in which trunks and ensembles repeat: ``features.trunk.blocks.3`` of
``features.trunk.blocks.3.mlp.fc1``, ``member.0`` of everything in the first head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Linear:
    """``output = input (..., K) @ weight (K, N) + bias (N,)``.

    Attributes:
        name: of the weight, without the suffix ``.weight``; unique in a stage.
        node: the ``MatMul``.
        bias_node: the ``Add`` that follows, None without bias.
    """

    name: str
    node: ir.Node
    bias_node: ir.Node | None

    @property
    def input(self) -> ir.Value:
        return _given(self.node.inputs[0])

    @property
    def weight(self) -> ir.Value:
        return _given(self.node.inputs[1])

    @property
    def bias(self) -> ir.Value | None:
        if self.bias_node is None:
            return None
        return next(value for value in self.bias_node.inputs if value is not None and value.is_initializer())

    @property
    def output(self) -> ir.Value:
        return (self.bias_node or self.node).outputs[0]

    @property
    def block(self) -> str:
        return block_of(self.name)

    def matrix(self) -> NDArray[np.float32]:
        """(K, N) float32."""
        return array(self.weight)

    @property
    def size(self) -> tuple[int, int]:
        """K and N."""
        inputs, outputs = _constant(self.weight).shape
        return int(inputs), int(outputs)  # type: ignore[arg-type]


def block_of(name: str) -> str:
    """The path up to its first number, the number included; the whole path if it has none."""
    parts = name.split(".")
    place = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: place + 1])


def find_linears(model: ir.Model) -> list[Linear]:
    """All linear layers of a normalised model, in the order of the graph."""
    return [_linear(node) for node in model.graph if _is_linear(node)]


def normalise(model: ir.Model) -> None:
    """Turns ``Gemm`` with a constant matrix into ``MatMul`` and ``Add``, in place."""
    for node in list(model.graph):
        if node.op_type == "Gemm" and _is_plain_gemm(node):
            _split_gemm(model, node)


def array(value: ir.Value) -> NDArray[np.float32]:
    """An initializer's content; a view of the weight file where possible."""
    return _constant(value).numpy()


def set_array(model: ir.Model, value: ir.Value, content: NDArray[np.generic]) -> None:
    """Replaces an initializer's content, and its shape and type with it."""
    value.const_value = ir.tensor(np.require(content, requirements="C"), name=value.name)
    value.shape, value.dtype = ir.Shape(content.shape), value.const_value.dtype


def add_initializer(model: ir.Model, name: str, content: NDArray[np.generic]) -> ir.Value:
    """A new initializer; one of that name must not exist."""
    tensor = ir.tensor(np.require(content, requirements="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(content.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def replace_constant(model: ir.Model, node: ir.Node, place: int, content: NDArray[np.generic]) -> None:
    """Gives a node new content in place of an initializer; other nodes that read the old one keep it.

    Tracing makes one initializer of equal ones, so that any of them may have readers that have nothing to do with it.
    """
    old = _given(node.inputs[place])
    name = str(old.name)
    if len(old.uses()) == 1:
        node.replace_input_with(place, None)
        del model.graph.initializers[name]
    else:
        name = f"{node.name}.{name.rpartition('.')[2]}"
    node.replace_input_with(place, add_initializer(model, name, content))


def _given(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise TypeError("an input that the operator requires is missing")
    return value


def _constant(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise TypeError(f"{value.name} is no constant")
    return value.const_value


def _is_matrix(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.is_initializer()
        and value.dtype == ir.DataType.FLOAT
        and len(value.shape or ()) == 2
        and len(value.uses()) == 1
    )


def _is_linear(node: ir.Node) -> bool:
    inputs = node.inputs
    return node.op_type == "MatMul" and _is_matrix(inputs[1]) and inputs[0] is not None and not _is_constant(inputs[0])


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _linear(node: ir.Node) -> Linear:
    name = str(_given(node.inputs[1]).name).removesuffix(".weight")
    return Linear(name, node, _bias_node(node))


def _bias_node(node: ir.Node) -> ir.Node | None:
    product = node.outputs[0]
    users = [use.node for use in product.uses()]
    if product.is_graph_output() or len(users) != 1 or users[0].op_type != "Add":
        return None
    others = [value for value in users[0].inputs if value is not None and value is not product]
    if len(others) != 1 or not _is_constant(others[0]):
        return None
    outputs = _constant(_given(node.inputs[1])).shape[1]
    return users[0] if list(_constant(others[0]).shape) in ([outputs], [1, outputs]) else None


def _is_plain_gemm(node: ir.Node) -> bool:
    """One that only multiplies and adds."""
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    plain = values.get("alpha", 1.0) == 1.0 and values.get("beta", 1.0) == 1.0 and not values.get("transA", 0)
    return plain and _is_matrix(node.inputs[1]) and not _is_constant(node.inputs[0])


def _split_gemm(model: ir.Model, node: ir.Node) -> None:
    source, weight = _given(node.inputs[0]), _given(node.inputs[1])
    if node.attributes.get("transB") is not None and node.attributes["transB"].value:
        set_array(model, weight, array(weight).T)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    output, path = node.outputs[0], str(weight.name).removesuffix(".weight")
    product = ir.Value(name=f"{path}/MatMul", shape=output.shape, type=output.type)
    matmul = ir.Node("", "MatMul", [source, weight], outputs=[product], name=f"{path}/MatMul")
    nodes, result = [matmul], product
    if bias is not None:
        result = ir.Value(name=f"{path}/Add", shape=output.shape, type=output.type)
        nodes.append(ir.Node("", "Add", [product, bias], outputs=[result], name=f"{path}/Add"))
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [output], [result])
