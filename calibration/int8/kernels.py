"""Every layer that is int8 in the graph must be int8 in what back ends make of it."""

from __future__ import annotations

from trunkline.runtime.backends import StageFiles, described, named, names
from trunkline.runtime.errors import BackendError


def require_int8_kernels(files: StageFiles, layers: int) -> None:
    """Compiles a stage with every installed back end and counts its int8 kernels.

    Args:
        files: the stage.
        layers: how many linear layers are int8 in its graph.

    Raises:
        BackendError: a back end has another number of int8 kernels: it would compute the others in float32, more
            slowly than if they were not quantised.
    """
    installed = [backend for backend in map(named, names("cpu")) if backend.available() is None]
    counted = {described(backend): backend.int8_kernels(files) for backend in installed}
    wrong = [f"{count} in {backend}" for backend, count in counted.items() if count != layers]
    if wrong:
        raise BackendError(
            "a back end does not run the int8 layers of a stage in int8",
            where=f"stage {files.name}",
            expected=f"{layers} int8 kernels",
            found=wrong,
            fix="use the versions of constraints.txt, or leave the back end out of this environment",
        )
