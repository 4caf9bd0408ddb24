"""What every back end owes the manifest: the graph's own inputs and outputs are those the stage promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import Resident, StageFiles
from trunkline.runtime.errors import BundleError
from trunkline.runtime.manifest import Stage, TensorSpec, fewest
from trunkline.runtime.onnx_graph import signature

#: A dimension that a library reports as varying, without its letter.
VARYING = "?"


@dataclass(frozen=True)
class Port:
    """An input or output as a library reports it. ``shape`` holds sizes, letters, or ``VARYING``."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def check_signature(files: StageFiles, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Compares what a library found in a graph with the stage, in order.

    An output may vary where the stage promises a size: libraries differ in how far they infer shapes, and what a stage
    returns is compared with its promise at every run.

    Raises:
        BundleError: listing what differs.
    """
    differences = []
    for role, expected, found in (("input", files.stage.inputs, inputs), ("output", files.stage.outputs, outputs)):
        pairs = zip(expected, found, strict=False)
        if len(expected) != len(found) or not all(_same(*pair, role) for pair in pairs):
            wanted = [_shown(each) for each in expected]
            differences.append(f"{role}s are {[_shown(each) for each in found]}, the manifest says {wanted}")
    if differences:
        raise BundleError(
            "a stage's graph is not the one its manifest describes",
            where=f"stage {files.name}",
            found=differences,
            fix="export the bundle again",
        )


def check_declared(files: StageFiles) -> None:
    """Compares what a graph itself declares with the stage, letter by letter.

    Raises:
        BundleError: listing what differs.
    """
    inputs, outputs = signature(files.graph, "inputs"), signature(files.graph, "outputs")
    check_signature(
        files, *([Port(each.name, each.dtype, each.shape) for each in ports] for ports in (inputs, outputs))
    )


def input_problem(stage: Stage, inputs: Mapping[str, NDArray[np.generic] | Resident]) -> str | None:
    """What is wrong with the inputs of a run, for libraries that would read past the end of an array of another shape.

    Letters stand for one size in all inputs.
    """
    sizes: dict[str, int] = {}
    fits = set(inputs) == {spec.name for spec in stage.inputs} and all(
        inputs[spec.name].dtype == spec.dtype and _fits(inputs[spec.name].shape, spec, sizes) for spec in stage.inputs
    )
    if fits:
        return None
    found = [_shown(Port(name, str(value.dtype), value.shape)) for name, value in inputs.items()]
    return f"inputs are {found}, the stage has {[_shown(spec) for spec in stage.inputs]}"


def smallest_inputs(stage: Stage) -> dict[str, NDArray[np.generic]]:
    """Zeros for every input of a stage, with every varying dimension as small as it gets."""
    return {
        spec.name: np.zeros([size if isinstance(size, int) else fewest(size) for size in spec.shape], spec.dtype)
        for spec in stage.inputs
    }


def _fits(shape: tuple[int, ...], spec: TensorSpec, sizes: dict[str, int]) -> bool:
    return len(shape) == len(spec.shape) and all(
        size == (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
        for size, wanted in zip(shape, spec.shape, strict=True)
    )


def _same(expected: TensorSpec, found: Port, role: str) -> bool:
    if (expected.name, expected.dtype, len(expected.shape)) != (found.name, found.dtype, len(found.shape)):
        return False
    return all(
        wanted == size or (size == VARYING and (role == "output" or isinstance(wanted, str)))
        for wanted, size in zip(expected.shape, found.shape, strict=True)
    )


def _shown(tensor: TensorSpec | Port) -> str:
    return f"{tensor.name} {tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
