"""Back ends: what turns a stage of a bundle into a callable.

A back end is a module with ``NAME``, ``VARIANT`` (the stage variant it runs), ``version()``,
``available() -> str | None`` (why not, or None) and ``open_stage(files) -> Session``. To add one, write the module and
list it in ``_MODULES``, fastest first.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import Stage

Arrays = Mapping[str, NDArray[np.generic]]

_MODULES = {"onnxruntime": "trunkline.runtime.backends.onnxruntime"}


@dataclass(frozen=True)
class StageFiles:
    """A stage ready to be compiled: contract, checked graph bytes, and the folder its weight file lies in."""

    name: str
    stage: Stage
    graph: bytes
    folder: Path
    threads: int | None = None


class Session(Protocol):
    """One compiled stage. ``run`` may be called from one thread at a time."""

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Outputs by name."""

    def close(self) -> None:
        """Frees what the session holds."""


class Backend(Protocol):
    """What a back end's module offers."""

    NAME: str
    VARIANT: str

    def available(self) -> str | None:
        """None if this back end can run here, otherwise what is missing and how to install it."""

    def version(self) -> str:
        """Of the library."""

    def open_stage(self, files: StageFiles) -> Session:
        """Compiles a stage.

        Raises:
            BackendError: the library refuses the stage.
            BundleError: the graph's inputs or outputs are not the manifest's.
        """


def choose(name: str | None) -> Backend:
    """The named back end, or the fastest that is installed.

    Raises:
        BackendError: it is unknown or not installed. There is no silent fallback to another one.
    """
    if name is not None and name not in _MODULES:
        raise BackendError(
            "there is no such back end", expected=", ".join(_MODULES), found=name, fix="leave it out for the fastest"
        )
    missing = []
    for candidate in [name] if name else list(_MODULES):
        module: ModuleType = importlib.import_module(_MODULES[candidate])
        backend = cast(Backend, module)
        reason = backend.available()
        if reason is None:
            return backend
        missing.append(f"{candidate}: {reason}")
    raise BackendError(
        "no back end can run this bundle here",
        expected=name or "one of " + ", ".join(_MODULES),
        found=missing,
        fix="pip install 'trunkline[cpu]'",
    )
