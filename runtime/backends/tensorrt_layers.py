"""Which linear layers of a stage TensorRT computes in int8, by its own account of an engine.

An engine's layer tells which nodes of the graph it computes, and the types of what it reads. A product of the graph
counts as int8 if both its sides come out of a ``DequantizeLinear``, so that int8 was meant, and a layer that computes
it reads int8. Layers that were fused into one are still counted one by one, since each names its own node.

The form of that account was read from its documentation and from public examples of 10.x. **It was never seen here.**
An account without node names or types is refused rather than counted as nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trunkline.runtime.backends.tensorrt_log import TensorRtError
from trunkline.runtime.onnx_nodes import read_graph

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_RESTORES = "DequantizeLinear"

_NAMED = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_TYPE_KEYS = ("Format/Datatype", "Datatype")


def int8_products(layers: Sequence[Mapping[str, Any]], graph: bytes) -> int:
    """How many products of a graph run in int8.

    Args:
        layers: the engine's, as :func:`trunkline.runtime.backends.tensorrt_api.layers` gives them.
        graph: the checked graph that it was built from.

    Raises:
        TensorRtError: the engine does not tell.
    """
    meant = quantised_products(graph)
    if not meant:
        return 0
    if not any(_nodes_of(layer) for layer in layers):
        raise TensorRtError("the engine does not tell which nodes of the graph its layers compute")
    if not any(_types(layer) for layer in layers):
        raise TensorRtError("the engine does not tell which types its layers read")
    found = {name for layer in layers if any("int8" in kind for kind in _types(layer)) for name in _nodes_of(layer)}
    return len(meant & found)


def quantised_products(graph: bytes) -> set[str]:
    """Names of the nodes that multiply what was quantised on both sides."""
    found = read_graph(graph, "the stage").nodes
    restored = {name for node in found if node.operator == _RESTORES for name in node.outputs}
    return {node.name for node in found if node.operator in _PRODUCTS and set(node.inputs[:2]) <= restored}


def _nodes_of(layer: Mapping[str, Any]) -> list[str]:
    return _NAMED.findall(str(layer.get("Metadata", "")))


def _types(layer: Mapping[str, Any]) -> list[str]:
    """Types of what a layer reads, in small letters; layouts stand beside them."""
    inputs = layer.get("Inputs")
    ports = [each for each in inputs if isinstance(each, dict)] if isinstance(inputs, list) else []
    return [str(port[key]).lower() for port in ports for key in _TYPE_KEYS if key in port]
