"""The ``trt`` variant of a stage: opset 20, attention spelled out, half precision with float32 islands.

Opset 20 is the newest that TensorRT 10.3 parses; GELU and layer normalisation are single operators in it, attention is
not. What becomes half is decided in ``calibration/half.py``. Two habits of torch's exporter do not suit TensorRT and
are undone first, both without changing a number:

1. Bytes are transposed before they become floats; TensorRT reads uint8 with a ``Cast`` and nothing else.
2. Where a softmax is masked, a NaN in its result is replaced by 0. Masks are the lowest finite number, so none is made,
   and what stands between softmax and product keeps attention from being fused.

Nothing here has run on a GPU. :func:`check_trt_variant` runs the graph with ONNX Runtime on the CPU, which computes
most of it in float32: it finds graphs that are wrong, not precision that is too low.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray

from trunkline.calibration.half import HalfReport, to_half
from trunkline.calibration.half_ranges import largest_values
from trunkline.exporter.stages.trace import Contract, check_contract, lower, save
from trunkline.runtime.backends import StageFiles, ort
from trunkline.runtime.errors import ExportError
from trunkline.runtime.manifest import TRT_VARIANT, Stage, Variant

TRT_OPSET = 20
#: Largest difference of a number of a stage's output that half precision explains; outputs are rows of length one.
TOLERANCE = 2e-2

Feed = Mapping[str, NDArray[np.generic]]


def lower_for_trt(program: torch.export.ExportedProgram, contract: Contract) -> onnx_ir.Model:
    """A stage's float32 model as TensorRT can read it, from :func:`trunkline.exporter.stages.trace.capture`.

    Raises:
        ExportError: see :func:`trunkline.exporter.stages.trace.lower`.
    """
    model = lower(program, contract, TRT_OPSET)
    for value in model.graph.inputs:
        if value.dtype == onnx_ir.DataType.UINT8:
            _cast_at_the_boundary(model, value)
    for node in list(model.graph):
        if node.op_type == "IsNaN":
            _drop_guard(model, node)
    return model


def _cast_at_the_boundary(model: onnx_ir.Model, value: onnx_ir.Value) -> None:
    """Case 1: everything that reads bytes reads floats instead; the cast that came later has nothing left to do."""
    floats = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    name = f"{value.name}/Cast"
    result = onnx_ir.Value(name=name, shape=value.shape, type=floats)
    cast = onnx_ir.Node(
        "", "Cast", [value], [onnx_ir.AttrInt64("to", onnx_ir.DataType.FLOAT)], outputs=[result], name=name
    )
    value.replace_all_uses_with(result)
    cast.replace_input_with(0, value)
    model.graph.insert_before(model.graph[0], cast)
    for node in list(model.graph):
        if node is not cast and node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].type is floats:
            _skip(model, node, node.inputs[0])
        elif any(used is not None and used.type is floats for used in node.inputs):
            for made in node.outputs:
                made.type = floats if made.dtype == onnx_ir.DataType.UINT8 else made.type


def _drop_guard(model: onnx_ir.Model, test: onnx_ir.Node) -> None:
    """Case 2: ``Where(IsNaN(x), 0, x)`` becomes x."""
    guarded = test.inputs[0]
    for reader in [use.node for use in test.outputs[0].uses()]:
        if guarded is not None and reader.op_type == "Where" and reader.inputs[2] is guarded:
            _skip(model, reader, guarded)
    if not test.outputs[0].uses():
        model.graph.remove(test, safe=True)


def _skip(model: onnx_ir.Model, node: onnx_ir.Node, value: onnx_ir.Value) -> None:
    """What a node made is ``value`` from now on."""
    node.outputs[0].replace_all_uses_with(value)
    model.graph.remove(node, safe=True)


def write_trt_variant(
    model: onnx_ir.Model, contract: Contract, folder: Path, samples: Sequence[Feed] = (), precision: str = "float16"
) -> tuple[Variant, HalfReport]:
    """Writes ``folder/<stage>/trt.onnx`` and its weights.

    Args:
        model: from :func:`lower_for_trt`, with int8 placed in it or not. It is changed.
        contract: the stage's.
        folder: the bundle's ``stages`` directory.
        samples: inputs by name; what comes near the end of half's range on them stays float32. Without samples only
            weights are looked at.
        precision: what the manifest calls it.

    Raises:
        ExportError: the model is not one that can be converted.
    """
    largest = _largest(model, contract, folder, samples) if samples else None
    report = to_half(model, largest=largest)
    check_contract(model, contract)
    return save(model, contract, folder, TRT_VARIANT, precision), report


def check_trt_variant(root: Path, name: str, stage: Stage, samples: Sequence[Feed], cpu_variant: str = "cpu") -> float:
    """Runs both variants of a stage on the CPU; see the module for what this cannot find.

    Args:
        root: the bundle's directory.
        name: of the stage, for messages.
        stage: its manifest entry, with both variants.
        samples: inputs by name.
        cpu_variant: what to compare with.

    Returns:
        The largest difference of a number of the output.

    Raises:
        ExportError: it is larger than ``TOLERANCE``, or something is not finite.
        BackendError: ONNX Runtime cannot load one of them, or failed.
    """
    graphs = [root / stage.variants[variant].graph for variant in (cpu_variant, TRT_VARIANT)]
    files = [StageFiles(name, stage, graph.read_bytes(), graph.parent.resolve()) for graph in graphs]
    sessions = [ort.session(each, ort.options(each, {}), [ort.CPU]) for each in files]
    worst = 0.0
    for sample in samples:
        expected, found = (ort.run(session, name, None, sample)[0] for session in sessions)
        difference = np.abs(found - expected).max() if np.isfinite(found).all() else np.inf
        worst = max(worst, float(difference))
    if worst > TOLERANCE:
        raise ExportError(
            "the trt variant of a stage does not compute what the cpu variant does",
            where=f"stage {name}",
            expected=f"outputs that differ by at most {TOLERANCE}",
            found=f"a difference of {worst:.3g}" if np.isfinite(worst) else "numbers that are not finite",
            fix="export in float32, and please report the architecture",
        )
    return worst


def _largest(model: onnx_ir.Model, contract: Contract, folder: Path, samples: Sequence[Feed]) -> dict[str, float]:
    """Beside what is written, where there must be room: a stage is larger than many folders for temporary files."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".largest.", dir=folder) as place:
        save(model, contract, Path(place), TRT_VARIANT, "float32")
        return largest_values(Path(place) / contract.name / f"{TRT_VARIANT}.onnx", samples)
