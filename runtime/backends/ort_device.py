"""Sessions of ONNX Runtime on a GPU: outputs stay there, and nothing is computed anywhere else without a word.

ONNX Runtime falls back in silence in two ways, and both are errors here. A provider that cannot be loaded is left out
of the session: the session's own list of providers is compared with what was asked for. An operator that the provider
does not have runs on the processor: the first run, which is part of opening a stage, is looked at operator by operator.

``session.disable_cpu_ep_fallback`` would be simpler and is of no use: ONNX Runtime itself puts the arithmetic of shapes
on the processor, where it belongs, and the option refuses every graph that has any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import Arrays, Resident, StageFiles, ort
from trunkline.runtime.backends.contract import check_signature, input_problem, smallest_inputs
from trunkline.runtime.backends.denormals import flushed
from trunkline.runtime.backends.forks import never_freed_in_a_child
from trunkline.runtime.backends.ort import Kernel
from trunkline.runtime.errors import BackendError

DEVICE_ID = 0

#: What may run in another provider than the first: it computes nothing.
_MOVES = frozenset({"Cast", "MemcpyFromHost", "MemcpyToHost"})


@dataclass(frozen=True)
class Placement:
    """Where a session runs.

    Attributes:
        providers: with their options, the one that must compute everything first. The processor is not named: the
            library adds it, for shapes.
        device: where outputs are left, in the library's words.
        settings: options of the session.
    """

    providers: tuple[tuple[str, dict[str, str]], ...]
    device: str = "cuda"
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.providers]


class OrtResident:
    """An output in the memory of the GPU. It keeps the session alive whose memory it is in; any thread may read it."""

    def __init__(self, value: Any, session: Any, stage: str) -> None:
        self.value, self._session, self._stage = value, session, stage
        self.shape: tuple[int, ...] = tuple(value.shape())
        self.dtype: np.dtype[np.float32] = np.dtype(np.float32)
        never_freed_in_a_child(self)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def numpy(self) -> NDArray[np.float32]:
        """A copy on the host, after everything before it has been computed.

        Raises:
            BackendError: the GPU failed.
        """
        try:
            return np.array(self.value.numpy())
        except Exception as error:  # the library's exceptions share no base class
            raise ort.failed_run(self._stage, error) from error


class OrtDeviceSession:
    """One stage on a GPU. One thread at a time; what it returns belongs to whoever gets it."""

    def __init__(self, files: StageFiles, placement: Placement) -> None:
        """Loads the stage and runs it once.

        Raises:
            BackendError: the library refuses the stage, leaves a provider out, or computes something elsewhere.
            BundleError: the graph's inputs or outputs are not the manifest's.
        """
        self._name, self._stage, self._device = files.name, files.stage, placement.device
        self._outputs = [tensor.name for tensor in files.stage.outputs]
        options = ort.options(files, placement.settings)
        with ort.profiling(options):
            self._session = ort.session(files, options, placement.providers)
            never_freed_in_a_child(self)
            _require_providers(files, placement, self._session.get_providers())
            check_signature(files, ort.ports(self._session.get_inputs()), ort.ports(self._session.get_outputs()))
            self.kernels = ort.kernels(self._session, files.name, lambda: self.run(smallest_inputs(files.stage)))
        _require_placement(files, placement, self.kernels)

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Runs the stage, from host to host.

        Raises:
            BackendError: ONNX Runtime failed, or an input is not one of the stage's.
        """
        return {name: value.numpy() for name, value in self.run_resident(inputs).items()}

    def run_resident(self, inputs: Mapping[str, NDArray[np.generic] | Resident]) -> dict[str, OrtResident]:
        """Runs the stage; what is on the GPU already is read there, and outputs stay there.

        Raises:
            BackendError: ONNX Runtime failed, or an input is not one of the stage's.
        """
        if problem := input_problem(self._stage, inputs):
            raise ort.failed_run(self._name, problem)
        try:
            found = self._bound(inputs)
        except Exception as error:  # the library's exceptions share no base class
            raise ort.failed_run(self._name, error) from error
        return {name: OrtResident(value, self._session, self._name) for name, value in found.items()}

    def _bound(self, inputs: Mapping[str, NDArray[np.generic] | Resident]) -> dict[str, Any]:
        """The library's values; a binding of its own for each run, so that no run sees another's."""
        binding = self._session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, OrtResident):
                binding.bind_ortvalue_input(name, value.value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in self._outputs:
            binding.bind_output(name, self._device, DEVICE_ID)
        with flushed():
            self._session.run_with_iobinding(binding)
        return dict(zip(self._outputs, binding.get_outputs(), strict=True))

    def close(self) -> None:
        """Drops the session; its memory goes with the last output that is still held."""
        del self._session


def _require_providers(files: StageFiles, placement: Placement, found: Sequence[str]) -> None:
    """Refuses a session that lacks a provider."""
    asked = placement.names
    if list(found[: len(asked)]) != asked:
        raise BackendError(
            "ONNX Runtime left out a provider that was asked for",
            where=f"stage {files.name}",
            expected=", ".join(asked),
            found=", ".join(found),
            fix="`trunkline info BUNDLE` says what is missing; a provider that is left out has said why on stderr",
        )


def _require_placement(files: StageFiles, placement: Placement, kernels: Sequence[Kernel]) -> None:
    """Refuses a session that computes outside its first provider; shapes and masks may be anywhere."""
    first, *others = placement.names
    counted: dict[str, int] = {}
    for kernel in kernels:
        moves = kernel.provider in others and kernel.operator in _MOVES
        if kernel.floats and kernel.provider != first and not moves:
            where = f"{kernel.operator} in {kernel.provider}"
            counted[where] = counted.get(where, 0) + 1
    if counted:
        raise BackendError(
            "ONNX Runtime would not compute a stage where it was asked to",
            where=f"stage {files.name}",
            expected=f"all arithmetic in {first}",
            found=[f"{count} x {where}" for where, count in counted.items()],
            fix="update onnxruntime-gpu, or name another back end, and please report it",
        )
