"""Names in a traced graph that a person can read: nodes by the module they come from, constants by their use.

Cases:

1. A node is named ``module.path/Operator``; a second one of that name in the same module gets ``_2``, and so on.
2. A value between nodes takes the name of the node that makes it.
3. A constant without a parameter name (a transposed weight, a shape) takes the name of its first user's module:
   ``module.path.weight`` for the second factor of a product, ``module.path.constant`` otherwise.

Inputs, outputs and parameters keep their names. The module path is what the exporter recorded for each node, so names
change only when the torch module does.
"""

from __future__ import annotations

import ast

import onnx_ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_PRODUCTS = ("MatMul", "Gemm")


def name_by_module(model: onnx_ir.Model) -> None:
    """Renames nodes, intermediate values and constants of ``model`` in place."""
    taken = {value.name for value in [*model.graph.inputs, *model.graph.outputs]}
    parameters = {value.name for value in model.graph.initializers.values() if value.name and "." in value.name}
    taken |= parameters
    for node in model.graph:
        scope = _scope(node)
        node.name = _unique(f"{scope}/{node.op_type}" if scope else node.op_type, taken)
        for value in node.outputs:
            if not value.is_graph_output():  # case 2
                value.name = node.name if len(node.outputs) == 1 else _unique(f"{node.name}.out", taken)
        for position, used in enumerate(node.inputs):
            if used is not None and used.is_initializer() and used.name not in taken:  # case 3
                is_weight = node.op_type in _PRODUCTS and position == 1
                used.name = _unique(f"{scope or node.op_type}.{'weight' if is_weight else 'constant'}", taken)


def _scope(node: onnx_ir.Node) -> str:
    """Path of the innermost module; the last entry of the record is the operation itself."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    path = str(scopes[-2]) if len(scopes) > 1 else ""
    return "" if path.startswith("_") else path  # torch's placeholder where a node has no module


def _unique(name: str, taken: set[str | None]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate
