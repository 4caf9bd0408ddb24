"""How large the values between a stage's nodes become, so that none leaves half's range.

The float32 graph is run on samples with one more output per value, its largest magnitude; values themselves stay
inside. Masks (the ends of float32's range before a softmax) do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trunkline.calibration.half import MASK, infer_types
from trunkline.runtime.backends import StageFiles, ort
from trunkline.runtime.manifest import Stage

_SUFFIX = "/largest"


def largest_values(graph: Path, samples: Iterable[Mapping[str, NDArray[np.generic]]]) -> dict[str, float]:
    """Largest magnitude of every float between two nodes, and of every float input, over all samples.

    Args:
        graph: a float32 stage, its weight file beside it.
        samples: inputs by name.

    Raises:
        BackendError: ONNX Runtime cannot load the graph, or failed.
    """
    model = ir.load(graph)
    infer_types(model)
    names = _measure(model)
    files = StageFiles(
        graph.parent.name, Stage((), (), {}), ir.to_proto(model).SerializeToString(), graph.parent.resolve()
    )
    session = ort.session(files, ort.options(files, {}), [ort.CPU])
    largest = dict.fromkeys(names, 0.0)
    for sample in samples:
        found = ort.run(session, files.name, [name + _SUFFIX for name in names], sample)
        for name, value in zip(names, found, strict=True):
            largest[name] = max(largest[name], float(value))
    return largest


def _measure(model: ir.Model) -> list[str]:
    """Adds an output per value; returns the values' names."""
    made = [value for node in model.graph for value in node.outputs]
    values = [value for value in [*model.graph.inputs, *made] if value.dtype == ir.DataType.FLOAT]
    mask = _constant(model, "largest.mask", MASK)
    zero = _constant(model, "largest.zero", 0.0)
    for value in values:
        nodes = _magnitude(value, mask, zero)
        model.graph.extend(nodes)
        model.graph.outputs.append(nodes[-1].outputs[0])
    return [str(value.name) for value in values]


def _magnitude(value: ir.Value, mask: ir.Value, zero: ir.Value) -> list[ir.Node]:
    size = ir.Node("", "Abs", [value])
    counts = ir.Node("", "Less", [size.outputs[0], mask])
    kept = ir.Node("", "Where", [counts.outputs[0], size.outputs[0], zero])
    output = ir.Value(name=f"{value.name}{_SUFFIX}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
    result = ir.Node("", "ReduceMax", [kept.outputs[0]], [ir.AttrInt64("keepdims", 0)], outputs=[output])
    return [size, counts, kept, result]


def _constant(model: ir.Model, name: str, number: float) -> ir.Value:
    tensor = ir.tensor(np.float32(number), name=name)
    value = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    model.graph.register_initializer(value)
    return value
