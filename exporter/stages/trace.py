"""Traces a torch module into one stage of a bundle: an ONNX graph, and a weight file beside it.

Three steps, so that one trace serves every variant of a stage: :func:`capture` runs the module once and records what it
does, :func:`lower` writes the record in the operators of one opset, :func:`save` writes the files. What depends on
constants alone is computed on the way (:mod:`trunkline.exporter.stages.folding`).

Requires: a module whose forward takes the contract's inputs in order and returns its output.
Ensures: inputs, output, names, types and varying dimensions of the graph are the contract's; weights above a few
hundred bytes lie in one external file; every operator depends on an input; nothing in the graph tells of the machine it
was made on; the same module gives the same bytes.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from trunkline.calibration.int8.stage_plan import INLINE_BYTES
from trunkline.exporter.stages.folding import constant_nodes, fold, fold_lowered
from trunkline.exporter.stages.naming import name_by_module
from trunkline.runtime.errors import ExportError
from trunkline.runtime.manifest import BLOCKS, CPU_VARIANT, Stage, TensorSpec, Variant, fewest

#: Attention stays one ``Attention`` operator from this opset on.
CPU_OPSET = 23
#: Rows of the example that is traced; two, since a dimension of one would be taken for fixed.
EXAMPLE_ROWS = 2
MAX_ROWS = 4096
#: Rows of the example where they are blocks of a sensor window.
EXAMPLE_BLOCKS = 4

_DTYPES = {"uint8": torch.uint8, "int64": torch.int64, "float32": torch.float32}


@dataclass(frozen=True)
class Contract:
    """What a stage promises: see "Stages" in docs/design.md."""

    name: str
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec


def trace(module: nn.Module, contract: Contract, folder: Path) -> Stage:
    """Writes ``folder/<stage>/cpu.onnx`` and its weights.

    Args:
        module: in eval mode, float32.
        contract: names, types and shapes of the stage's tensors.
        folder: the bundle's ``stages`` directory.

    Returns:
        The stage's manifest entry; file names are relative to the bundle.

    Raises:
        ExportError: the module cannot be traced, or the graph breaks the contract.
    """
    model = lower(capture(module, contract), contract, CPU_OPSET)
    variant = save(model, contract, folder, CPU_VARIANT, "float32")
    return Stage(inputs=contract.inputs, outputs=(contract.output,), variants={CPU_VARIANT: variant})


def capture(module: nn.Module, contract: Contract) -> torch.export.ExportedProgram:
    """Runs a module on an example and records it; results of what depends on weights alone become weights.

    Raises:
        ExportError: its code depends on the numbers it is given.
    """
    examples = tuple(_example(tensor) for tensor in contract.inputs)

    def export(module: nn.Module) -> torch.export.ExportedProgram:
        return torch.export.export(module, examples, dynamic_shapes=_varying(contract), strict=False)

    with _quiet(), _explained(contract):
        return fold(export(module.eval()), export)


def lower(program: torch.export.ExportedProgram, contract: Contract, opset: int) -> onnx_ir.Model:
    """Writes a record in the operators of an opset: float32, with readable names.

    Args:
        program: from :func:`capture`; it stays as it is and can be lowered again.
        contract: the one it was captured with.
        opset: ``CPU_OPSET`` or that of another variant.

    Raises:
        ExportError: torch knows no such operators, an operator depends on constants alone, or the graph breaks the
            contract.
    """
    with _quiet(), _explained(contract):
        written = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=_varying(contract),
            input_names=[tensor.name for tensor in contract.inputs],
            output_names=[contract.output.name],
            verbose=False,
        )
    if written is None:
        raise ExportError("torch traced nothing", where=f"stage {contract.name}")
    model = written.model
    fold_lowered(model)
    name_by_module(model)
    _require_folded(model, contract)
    ClearMetadataAndDocStringPass()(model)
    model.producer_name, model.producer_version = "trunkline", None
    model.graph.name = contract.name
    check_contract(model, contract)
    return model


def save(model: onnx_ir.Model, contract: Contract, folder: Path, name: str, precision: str) -> Variant:
    """Writes ``folder/<stage>/<name>.onnx`` and its weights; file names in the result are relative to the bundle."""
    target = folder / contract.name
    target.mkdir(parents=True, exist_ok=True)
    weights = f"{name}.weights"
    onnx_ir.save(model, target / f"{name}.onnx", external_data=weights, size_threshold_bytes=INLINE_BYTES)
    prefix = f"{folder.name}/{contract.name}/"
    return Variant(
        graph=f"{prefix}{name}.onnx",
        weights=prefix + weights if (target / weights).is_file() else None,
        opset=model.opset_imports[""],
        precision=precision,
    )


def _varying(contract: Contract) -> tuple[dict[int, torch.export.Dim], ...]:
    letters = {size for tensor in contract.inputs for size in tensor.shape if isinstance(size, str)}
    dimensions = {letter: torch.export.Dim(letter, min=fewest(letter), max=MAX_ROWS) for letter in sorted(letters)}
    return tuple(
        {axis: dimensions[size] for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
        for tensor in contract.inputs
    )


@contextlib.contextmanager
def _explained(contract: Contract) -> Iterator[None]:
    """Maps what torch raises."""
    try:
        yield
    except (torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
        raise ExportError(
            "torch cannot trace a stage",
            where=f"stage {contract.name}",
            found=str(error).strip()[:800],
            fix="use the torch version of constraints.txt; for other models please report the architecture",
        ) from error


def _example(tensor: TensorSpec) -> torch.Tensor:
    rows = EXAMPLE_BLOCKS if BLOCKS in tensor.shape else EXAMPLE_ROWS
    shape = [rows if isinstance(size, str) else size for size in tensor.shape]
    if tensor.dtype == "float32":
        return torch.randn(shape)
    return torch.zeros(shape, dtype=_DTYPES[tensor.dtype])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns and logs about its own internals on every run."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _require_folded(model: onnx_ir.Model, contract: Contract) -> None:
    """Back ends compute the same constants differently, and no input shows it."""
    left = constant_nodes(model)
    if left:
        raise ExportError(
            "operators of a stage depend on constants alone, and back ends compute those differently",
            where=f"stage {contract.name}",
            expected="their results as weights",
            found=[str(node.name) for node in left[:20]],
            fix="use the torch version of constraints.txt; for other models please report the architecture",
        )


def check_contract(model: onnx_ir.Model, contract: Contract) -> None:
    """Raises ExportError unless names, shapes and varying dimensions of a graph are the contract's."""
    wanted = [_shown(contract.inputs), _shown((contract.output,))]
    found = [_found(model.graph.inputs), _found(model.graph.outputs)]
    if found != wanted:
        raise ExportError(
            "a traced graph breaks the stage's contract",
            where=f"stage {contract.name}",
            expected=" -> ".join(wanted),
            found=" -> ".join(found),
            fix="a dimension that became fixed means that the module's code depends on it",
        )


def _shown(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in tensors)


def _found(values: Sequence[onnx_ir.Value]) -> str:
    return ", ".join(
        f"{value.name} {[size if isinstance(size, int) else size.value for size in value.shape or []]}"
        for value in values
    )
