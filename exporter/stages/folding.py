"""Computes what depends on constants alone before a stage is written, as PyTorch computes it.

Back ends compute it again when they open a stage, each in its own way: OpenVINO resamples a position embedding with
other weights than PyTorch, and no input of a robot ever shows it. So :func:`fold` runs such operations once, in torch,
and their results become weights; :func:`fold_lowered` does the same with what the exporter itself adds when it writes a
record in the operators of an opset (masks, scales, transposed weights); :func:`constant_nodes` finds what is left.

Results are stored whole, whatever their size: a robot's back end would hold them in memory all the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import onnx_ir
import torch
from onnxscript.optimizer import fold_constants
from torch import Tensor, fx
from torch.export import ExportedProgram

#: More elements than a tensor can have.
_NO_LIMIT = 1 << 62


def fold(program: ExportedProgram, export: Callable[[fx.GraphModule], ExportedProgram]) -> ExportedProgram:
    """A record without operations on constants, or the same one if it has none.

    Args:
        program: from ``torch.export``; it stays as it is.
        export: records a module with the inputs and varying dimensions that ``program`` was recorded with.
    """
    if any(_writes(node) for node in program.graph.nodes):
        program = program.run_decompositions({})  # an operation that writes into a tensor becomes one that makes it
    module = program.module(check_guards=False)
    known = _known(module)
    inside = [node for node in known if node.op == "call_function"]
    edge = [node for node in inside if any(user not in known for user in node.users)]
    if not edge:
        return program
    for number, node in enumerate(edge):
        name = _same(known, known[node])
        if name is None:
            name = f"folded_{number}"
            module.register_buffer(name, known[node].clone(memory_format=torch.contiguous_format))
        with module.graph.inserting_before(node):
            stored = module.graph.get_attr(name)
        stored.meta = dict(node.meta)
        node.replace_all_uses_with(stored, delete_user_cb=lambda user: user not in known)
    for node in reversed(inside):
        module.graph.erase_node(node)
    module.recompile()
    return export(module)


def _known(module: fx.GraphModule) -> dict[fx.Node, Any]:
    """What can be computed without the inputs: the values of weights and of operations on them, in order."""
    known: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "get_attr":
                known[node] = operator.attrgetter(node.target)(module)
            elif _repeatable(node) and all(each in known for each in node.all_input_nodes):
                arguments, keywords = fx.map_arg((node.args, node.kwargs), known.__getitem__)
                value = node.target(*arguments, **keywords)
                if not isinstance(value, bool | int | float):  # what torch took out of a tensor is no weight
                    known[node] = value
    return known


def _repeatable(node: fx.Node) -> bool:
    """Whether a node gives the same every time: random numbers do not, and of what holds a graph nobody knows."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem
    return torch.Tag.nondeterministic_seeded not in node.target.tags


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _same(known: dict[fx.Node, Any], value: Tensor) -> str | None:
    """The weight that a value merely is another view of, element for element: it keeps its name."""
    weights = ((node.target, weight) for node, weight in known.items() if node.op == "get_attr")
    return next((str(name) for name, weight in weights if isinstance(weight, Tensor) and weight.is_set_to(value)), None)


def fold_lowered(model: onnx_ir.Model) -> None:
    """Folds what :func:`constant_nodes` finds; torch's exporter does so for small tensors only."""
    left = set(constant_nodes(model))
    if left:
        fold_constants(
            model,
            onnx_shape_inference=False,
            input_size_limit=_NO_LIMIT,
            output_size_limit=_NO_LIMIT,
            should_fold=lambda node: node in left or None,
        )


def constant_nodes(model: onnx_ir.Model) -> list[onnx_ir.Node]:
    """Nodes that depend on no input of the graph, in order; a node without inputs is one."""
    constant: set[onnx_ir.Value] = set()
    found = []
    for node in model.graph:
        if all(value is None or value.is_initializer() or value in constant for value in node.inputs):
            found.append(node)
            constant.update(node.outputs)
    return found
