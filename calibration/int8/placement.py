"""Writes int8 into a stage's graph: Q/DQ pairs around linear layers, int8 storage for other large tensors.

Requires: a normalised model, whose weights are already smoothed if they are to be.
Ensures: outside what is listed here, every operator stays float32. No output is quantised: residual sums,
normalisations, softmax, GELU and attention's own products lose too much, and requantising what a back end fuses anyway
costs time.

A layer in int8 is written as TensorRT, ONNX Runtime and OpenVINO all recognise it:

    x -> QuantizeLinear -> DequantizeLinear -> MatMul <- DequantizeLinear <- int8 weight (K, N), a scale per column
                                                 |
                                                Add <- bias (1, N)

symmetric, zero point 0. Each layer has a Q/DQ pair of its own, also where several read one x: of a shared pair ONNX
Runtime makes float products and says nothing. So it does with a bias of rank 1 and a static batch; the bias has rank 2.

A *stored* tensor is int8 in the file and float32 in arithmetic: ``Cast``, then ``Mul`` by a scale. Back ends compute
that once, when they load; only a token table is looked up first and scaled after, so that it stays small in memory too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trunkline.calibration.int8.linears import Linear, add_initializer, array, find_linears, replace_constant, set_array
from trunkline.calibration.int8.ranges import INT8_MAX, quantise, weight_scales

#: Tensors with fewer numbers stay as they are: what they would save is less than the scales and nodes cost.
MIN_STORED = 2048


def place_int8(model: ir.Model, thresholds: Mapping[str, float], stored: Collection[str]) -> None:
    """Writes int8 into a model, in place.

    Args:
        model: a normalised model.
        thresholds: for each linear layer in int8, by name, the largest input magnitude that its int8 range covers.
        stored: names of initializers to keep as int8; see :func:`storable`.
    """
    for linear in [each for each in find_linears(model) if each.name in thresholds]:
        dequantised = _quantised_input(model, linear, thresholds[linear.name] / INT8_MAX)
        linear.node.replace_input_with(0, dequantised)
        _quantise_weight(model, linear)
        _raise_bias(model, linear)
    for name in stored:
        _store(model, model.graph.initializers[name])


def storable(model: ir.Model, linears: Collection[str]) -> list[str]:
    """Initializers that can be stored as int8 and are not the matrix of one of these ``linears``, in graph order."""
    matrices = {linear.weight.name for linear in find_linears(model) if linear.name in linears}
    return [name for name, value in model.graph.initializers.items() if name not in matrices and _is_storable(value)]


def _is_storable(value: ir.Value) -> bool:
    shape = value.shape or ()
    floats = value.dtype == ir.DataType.FLOAT and len(shape) >= 2 and not value.is_graph_output()
    return floats and int(np.prod([int(size) for size in shape])) >= MIN_STORED  # type: ignore[arg-type]


def _quantised_input(model: ir.Model, linear: Linear, scale: float) -> ir.Value:
    source, path = linear.input, f"{linear.name}.input"
    scales = add_initializer(model, f"{path}_scale", np.array(scale, np.float32))
    zero = _shared_zero(model, ())
    quantised = ir.Value(name=f"{path}/Q", shape=source.shape, type=ir.TensorType(ir.DataType.INT8))
    result = ir.Value(name=f"{path}/DQ", shape=source.shape, type=source.type)
    nodes = [
        ir.Node("", "QuantizeLinear", [source, scales, zero], outputs=[quantised], name=quantised.name),
        ir.Node("", "DequantizeLinear", [quantised, scales, zero], outputs=[result], name=result.name),
    ]
    model.graph.insert_before(linear.node, nodes)
    return result


def _quantise_weight(model: ir.Model, linear: Linear) -> None:
    matrix, weight = linear.matrix(), linear.weight
    scales = weight_scales(matrix, axis=1)
    set_array(model, weight, quantise(matrix, scales, axis=1))
    scale = add_initializer(model, f"{linear.name}.weight_scale", scales)
    name = f"{linear.name}.weight/DQ"
    result = ir.Value(name=name, shape=weight.shape, type=ir.TensorType(ir.DataType.FLOAT))
    inputs = [weight, scale, _shared_zero(model, scales.shape)]
    node = ir.Node("", "DequantizeLinear", inputs, [ir.AttrInt64("axis", 1)], outputs=[result], name=name)
    model.graph.insert_before(linear.node, node)
    linear.node.replace_input_with(1, result)


def _raise_bias(model: ir.Model, linear: Linear) -> None:
    node, bias = linear.bias_node, linear.bias
    if node is not None and bias is not None and len(bias.shape or ()) == 1:
        replace_constant(model, node, list(node.inputs).index(bias), array(bias)[None])


def _shared_zero(model: ir.Model, shape: tuple[int, ...]) -> ir.Value:
    """The int8 zero point of a shape; back ends want it spelt out, and one serves all."""
    name = f"zero_point.{shape[0]}" if shape else "zero_point"
    return model.graph.initializers.get(name) or add_initializer(model, name, np.zeros(shape, np.int8))


def _store(model: ir.Model, value: ir.Value) -> None:
    uses = [(use.node, use.idx) for use in value.uses()]
    content, name = array(value), str(value.name)
    readers = {node for node, _ in uses}
    first = next(node for node in model.graph if node in readers)
    scales = _scales_along(content, _summed_axis(uses[0][0], uses[0][1], content.ndim))
    set_array(model, value, np.clip(np.rint(content / scales), -INT8_MAX, INT8_MAX).astype(np.int8))
    if all(node.op_type == "Gather" and place == 0 and _axis(node) == 0 for node, place in uses):
        scale = add_initializer(model, f"{name}_scale", scales)
        for node, _ in uses:
            _scale_gathered(model, node, scale)
        return
    if first.op_type == "Conv":
        # A product would mark an int8 convolution for OpenVINO, which then rounds the pixels too.
        scale = add_initializer(model, f"{name}_steps", 1 / scales)
        restored = _restored(model, first, value, "Div", scale)
    else:
        scale = add_initializer(model, f"{name}_scale", scales)
        restored = _restored(model, first, value, "Mul", scale)
    for node, place in uses:
        node.replace_input_with(place, restored)


def _scale_gathered(model: ir.Model, node: ir.Node, scale: ir.Value) -> None:
    """Looks up int8 rows and their scales, and multiplies what was looked up only."""
    output, path = node.outputs[0], str(node.name)
    rows = ir.Value(name=f"{path}.int8", shape=output.shape, type=ir.TensorType(ir.DataType.INT8))
    scales = ir.Value(name=f"{path}.scale", type=ir.TensorType(ir.DataType.FLOAT))
    axis = [ir.AttrInt64("axis", 0)]
    gathers = [
        ir.Node("", "Gather", [node.inputs[0], node.inputs[1]], axis, outputs=[rows], name=f"{path}.int8"),
        ir.Node("", "Gather", [scale, node.inputs[1]], axis, outputs=[scales], name=f"{path}.scale"),
    ]
    floats = ir.Value(name=f"{path}/Cast", shape=output.shape, type=output.type)
    result = ir.Value(name=f"{path}/Mul", shape=output.shape, type=output.type)
    nodes = [*gathers, _cast(rows, floats), ir.Node("", "Mul", [floats, scales], outputs=[result], name=result.name)]
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [output], [result])


def _restored(model: ir.Model, before: ir.Node, value: ir.Value, operator: str, scale: ir.Value) -> ir.Value:
    """Float32 of a stored tensor, made before the first node that reads it."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    floats = ir.Value(name=f"{value.name}/Cast", shape=value.shape, type=kind)
    result = ir.Value(name=f"{value.name}/{operator}", shape=value.shape, type=kind)
    scaled = ir.Node("", operator, [floats, scale], outputs=[result], name=result.name)
    model.graph.insert_before(before, [_cast(value, floats), scaled])
    return result


def _cast(value: ir.Value, result: ir.Value) -> ir.Node:
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", ir.DataType.FLOAT)], outputs=[result], name=result.name)


def _axis(node: ir.Node) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 0


def _summed_axis(node: ir.Node, place: int, rank: int) -> int | tuple[int, ...]:
    """The axes that one scale covers: those that a product sums over, so that each output has a scale of its own."""
    if node.op_type == "Conv":
        return tuple(range(1, rank))
    if node.op_type == "MatMul" and place == 1:
        return rank - 2
    return rank - 1


def _scales_along(content: NDArray[np.float32], axes: int | tuple[int, ...]) -> NDArray[np.float32]:
    largest = np.abs(content).max(axis=axes, keepdims=True)
    return np.where(largest > 0, largest / INT8_MAX, 1).astype(np.float32)
