"""Back ends: what turns a stage of a bundle into a callable.

A back end is a module that offers what :class:`Backend` lists. To add one, write the module and list it in
``_FASTEST_FIRST``. ``tests/runtime/test_backends.py`` holds every one that is installed to the same promises.

Sessions take and give arrays. Those of a GPU may also be asked to leave an output where it was computed
(:class:`ResidentSession`), so that the next stage finds it there.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.cuda import driver
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import TRT_VARIANT, Stage
from trunkline.runtime.missing import Missing as Missing

Arrays = Mapping[str, NDArray[np.generic]]

_X86 = platform.machine().lower() in ("x86_64", "amd64")

#: GPUs before processors. On x86, OpenVINO runs int8 stages half again as fast as ONNX Runtime; elsewhere it has fewer
#: kernels of its own.
_FASTEST_FIRST = (
    *("tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda"),
    *(("openvino", "onnxruntime") if _X86 else ("onnxruntime", "openvino")),
)
#: Nobody gets these without asking: they compile for minutes when a bundle is first loaded.
ONLY_BY_NAME = frozenset({"onnxruntime-tensorrt"})
_MODULES = {name: f"trunkline.runtime.backends.{name.replace('-', '_')}" for name in _FASTEST_FIRST}

#: How a bundle gets a variant that it lacks.
_EXPORTS = {TRT_VARIANT: "run `trunkline export --half` on the workstation"}


@dataclass(frozen=True)
class StageFiles:
    """A stage ready to be compiled: contract, checked graph bytes, and the folder its weight file lies in.

    For back ends that keep what they compiled, ``weights_digest`` is the SHA-256 of the weight file in hex, None where
    there is no such file, and ``bundle`` the digest of the bundle; both are None where nobody knows.
    """

    name: str
    stage: Stage
    graph: bytes
    folder: Path
    threads: int | None = None
    weights_digest: str | None = None
    bundle: str | None = None


class Session(Protocol):
    """One compiled stage. ``run`` may be called from one thread at a time.

    A session on something that was compiled and judged before has an attribute ``judged_with``: stages of one bundle
    that do not share its value were never judged together.
    """

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Outputs by name."""

    def close(self) -> None:
        """Frees what the session holds."""


class Resident(Protocol):
    """A stage's output that stays where it was computed, float32. It is never written again."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[np.float32]: ...

    @property
    def nbytes(self) -> int:
        """Size of the output, wherever it is."""

    def numpy(self) -> NDArray[np.float32]:
        """A copy on the host.

        Raises:
            BackendError: the device failed.
        """


class ResidentSession(Session, Protocol):
    """A session whose outputs may stay on its device. The stage graph asks for that; others call ``run``."""

    def run_resident(self, inputs: Mapping[str, NDArray[np.generic] | Resident]) -> Mapping[str, Resident]:
        """As ``run``. Inputs may be what any session of the same back end has left on the device."""


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


def names(variant: str | None = None) -> tuple[str, ...]:
    """All back ends there are, or those that run a variant, fastest first on this machine."""
    return tuple(name for name in _MODULES if variant in (None, named(name).VARIANT))


def named(name: str) -> Backend:
    """One of :func:`names`, installed or not."""
    module: ModuleType = importlib.import_module(_MODULES[name])
    return cast(Backend, module)


def described(backend: Backend) -> str:
    """Name and version, as results state them."""
    return f"{backend.NAME} {backend.version()}"


def choose(name: str | None, variants: Collection[str] | None = None) -> Backend:
    """The named back end, or the fastest that is installed and runs one of a bundle's variants.

    Args:
        name: of the back end; None for the fastest.
        variants: that the bundle holds; None if nobody knows yet.

    Raises:
        BackendError: it is unknown, not installed, or runs none of the variants. There is no silent fallback: neither
            from one that was named, nor, where the bundle has a variant for GPUs and there is one, to the processor.
    """
    if name is not None and name not in _MODULES:
        raise BackendError(
            "there is no such back end", expected=", ".join(_MODULES), found=name, fix="leave it out for the fastest"
        )
    wanted = [named(name)] if name else [named(each) for each in names() if each not in ONLY_BY_NAME]
    fitting = [each for each in wanted if variants is None or each.VARIANT in variants]
    if not fitting:
        raise _no_variant(wanted, variants or ())
    missing: dict[str, Missing] = {}
    for backend in fitting:
        found = backend.available()
        if found is None:
            if name is None and backend.VARIANT != TRT_VARIANT:
                _require_no_idle_gpu(missing, backend)
            return backend
        missing[backend.NAME] = found
    reasons, fix = _in_words(missing)
    raise BackendError(
        "no back end can run this bundle here" if name is None else "the back end that was asked for is not here",
        expected=name or "one of " + ", ".join(missing),
        found=reasons,
        fix=fix,
    )


def _require_no_idle_gpu(missing: Mapping[str, Missing], instead: Backend) -> None:
    """Refuses to run on the processor, slowly and in silence, what a GPU that is here could run.

    Args:
        missing: back ends that were looked for, none of which can run.
        instead: what would be taken.
    """
    for_gpus = {name: why for name, why in missing.items() if named(name).VARIANT == TRT_VARIANT}
    if not for_gpus:
        return
    gpu = driver.probe()
    if isinstance(gpu, Missing):
        return
    reasons, fix = _in_words(for_gpus)
    raise BackendError(
        "there is a GPU and a bundle for it, but no back end that can use it",
        where=gpu.name,
        expected="one of " + ", ".join(for_gpus),
        found=reasons,
        fix=f"{fix}; or name a back end for the processor: {instead.NAME}",
    )


def _in_words(missing: Mapping[str, Missing]) -> tuple[list[str], str]:
    """Why each cannot run, and what helps."""
    fixes = dict.fromkeys(why.fix for why in missing.values())
    return [f"{name}: {why.reason}" for name, why in missing.items()], " or ".join(fixes)


def _no_variant(wanted: list[Backend], variants: Collection[str]) -> BackendError:
    needed = sorted({backend.VARIANT for backend in wanted})
    others = [each for variant in sorted(variants) for each in names(variant)]
    ways = [_EXPORTS[each] for each in needed if each in _EXPORTS]
    ways += [f"name another back end: {', '.join(others)}"] if others else []
    return BackendError(
        "the bundle holds no variant that the back end runs",
        where=", ".join(backend.NAME for backend in wanted),
        expected="variant " + " or ".join(needed),
        found=", ".join(sorted(variants)),
        fix=", or ".join(ways) or "export the bundle again",
    )
