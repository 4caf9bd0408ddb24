"""Back ends: what turns a stage of a bundle into a callable.

A back end is a module that offers what :class:`Backend` lists. To add one, write the module and list it in
``_FASTEST_FIRST``. ``tests/runtime/test_backends.py`` holds every one that is installed to the same promises.
"""

from __future__ import annotations

import importlib
import platform
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

_X86 = platform.machine().lower() in ("x86_64", "amd64")

#: On x86, OpenVINO runs int8 stages half again as fast as ONNX Runtime; elsewhere it has fewer kernels of its own.
_FASTEST_FIRST = ("openvino", "onnxruntime") if _X86 else ("onnxruntime", "openvino")
_MODULES = {name: f"trunkline.runtime.backends.{name}" for name in _FASTEST_FIRST}


@dataclass(frozen=True)
class StageFiles:
    """A stage ready to be compiled: contract, checked graph bytes, and the folder its weight file lies in.

    ``weights_digest`` is the SHA-256 of the weight file in hex, for back ends that keep what they compiled; None where
    there is no such file, or nobody knows.
    """

    name: str
    stage: Stage
    graph: bytes
    folder: Path
    threads: int | None = None
    weights_digest: str | None = None


@dataclass(frozen=True)
class Missing:
    """Why a back end cannot run here, and what helps."""

    reason: str
    fix: str


class Session(Protocol):
    """One compiled stage. ``run`` may be called from one thread at a time."""

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Outputs by name."""

    def close(self) -> None:
        """Frees what the session holds."""


class Backend(Protocol):
    """What a back end's module offers. ``VARIANT`` is the stage variant it runs."""

    NAME: str
    VARIANT: str

    def available(self) -> Missing | None:
        """None if this back end can run here."""

    def version(self) -> str:
        """Of the library."""

    def open_stage(self, files: StageFiles) -> Session:
        """Compiles a stage.

        Raises:
            BackendError: the library refuses the stage.
            BundleError: the graph's inputs or outputs are not the manifest's.
        """

    def int8_kernels(self, files: StageFiles) -> int:
        """How many linear layers of a stage run in int8, as this back end compiles it.

        A library that does not recognise a quantised layer computes it in float32, more slowly than if it were not
        quantised, and says nothing.

        Raises:
            BackendError: the library refuses the stage.
        """


def names() -> tuple[str, ...]:
    """All back ends there are, fastest first on this machine."""
    return tuple(_MODULES)


def named(name: str) -> Backend:
    """One of :func:`names`, installed or not."""
    module: ModuleType = importlib.import_module(_MODULES[name])
    return cast(Backend, module)


def described(backend: Backend) -> str:
    """Name and version, as results state them."""
    return f"{backend.NAME} {backend.version()}"


def choose(name: str | None) -> Backend:
    """The named back end, or the fastest that is installed.

    Raises:
        BackendError: it is unknown or not installed. There is no silent fallback to another one.
    """
    if name is not None and name not in _MODULES:
        raise BackendError(
            "there is no such back end", expected=", ".join(_MODULES), found=name, fix="leave it out for the fastest"
        )
    wanted = [named(each) for each in ([name] if name else names())]
    missing = {}
    for backend in wanted:
        found = backend.available()
        if found is None:
            return backend
        missing[backend.NAME] = found
    raise BackendError(
        "no back end can run this bundle here" if name is None else "the back end that was asked for is not here",
        expected=name or "one of " + ", ".join(_MODULES),
        found=[f"{each}: {why.reason}" for each, why in missing.items()],
        fix=" or ".join(why.fix for why in missing.values()),
    )
