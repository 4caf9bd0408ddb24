"""Why ONNX Runtime has no GPU here, and what to install.

ONNX Runtime is published as several distributions that install one package: ``onnxruntime`` computes on processors,
``onnxruntime-gpu`` on GPUs, too. Installed side by side they overwrite each other's files, and whichever came last is
there. What the public registry has of ``onnxruntime-gpu`` for ARM holds no kernels for Orin or Thor. And where the
right one is installed, its provider is a library of its own that needs CUDA, cuDNN or TensorRT: if one of them is
missing, ONNX Runtime writes a line to stderr and computes on the processor.

So the reasons are told apart before a session is made: the package, its providers, the driver, and only then, since it
maps hundreds of megabytes, the provider's library.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType

from trunkline.runtime.backends import Missing, ort

ON_PROCESSORS, ON_GPUS = "onnxruntime", "onnxruntime-gpu"
#: Whatever else installs the package ``onnxruntime``.
_OTHERS = ("onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn", "onnxruntime-training", "ort-nightly-gpu")

_INSTALL = "pip install 'trunkline[gpu]'"
_INSTALL_ON_ARM = (
    "install the onnxruntime-gpu wheel that NVIDIA's Jetson package index, or your own build, has for this JetPack and "
    "Python (those of the public registry have no kernels for Orin or Thor); or use the back end tensorrt, which needs "
    "none"
)

#: Libraries of a provider, each loaded before the next.
_LIBRARIES = {
    "CUDAExecutionProvider": ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"),
    "TensorrtExecutionProvider": ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_tensorrt.so"),
}


def missing(providers: Sequence[str], libraries_fix: str) -> Missing | None:
    """Why ONNX Runtime cannot use these providers here; None if it can.

    Args:
        providers: as the library calls them.
        libraries_fix: what to do if a provider's library cannot be loaded.
    """
    try:
        library = ort.library()
    except ImportError as error:
        return _joined(Missing(str(error), _install()), _no_driver())
    lacking = [name for name in providers if name not in library.get_available_providers()]
    if lacking:
        return _joined(_without_provider(library, lacking), _no_driver())
    if (no_driver := _no_driver()) is not None:
        return no_driver
    problem = libraries_problem(library, providers)
    return None if problem is None else Missing(problem, libraries_fix)


def installed() -> dict[str, str]:
    """Distributions that install the package ``onnxruntime``, with their versions."""
    found = {}
    for name in (ON_PROCESSORS, ON_GPUS, *_OTHERS):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def libraries_problem(library: ModuleType, providers: Sequence[str]) -> str | None:
    """The system's own words for why a provider's library cannot be loaded; None if all can. Loads them.

    CUDA that was installed by pip is not where the system looks; the library knows how to find it.
    """
    said = _preload(library)
    folder = Path(str(library.__file__)).parent / "capi"
    for provider in providers:
        for name in _LIBRARIES[provider]:
            if not (folder / name).exists():
                continue  # built into the library
            try:
                ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
            except OSError as error:
                return "; ".join([f"{name} cannot be loaded: {error}", *said])
    return None


def _preload(library: ModuleType) -> list[str]:
    """Loads CUDA and cuDNN from installed packages; returns what the library would have printed."""
    preload = getattr(library, "preload_dlls", None)  # from 1.21 on
    if preload is None:
        return []
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        preload()
    return [line for line in text.getvalue().splitlines() if line.startswith("Failed to load")]


def _without_provider(library: ModuleType, lacking: Sequence[str]) -> Missing:
    there = installed()
    names = " and ".join(f"{name} {version}" for name, version in there.items()) or f"onnxruntime {library.__version__}"
    reason = f"{names} has no {' and no '.join(lacking)}"
    if ON_PROCESSORS in there and len(there) > 1:
        reason += "; installed side by side they share one folder, and the one that was installed last is there"
    remove = f"pip uninstall -y {' '.join(there)}, then " if there else ""
    return Missing(reason, remove + _install())


def _install() -> str:
    return _INSTALL_ON_ARM if platform.machine().lower() in ("aarch64", "arm64") else _INSTALL


def _no_driver() -> Missing | None:
    from trunkline.runtime.cuda import driver  # only where somebody asks for a GPU

    found = driver.probe()
    return found if isinstance(found, Missing) else None


def _joined(first: Missing, second: Missing | None) -> Missing:
    if second is None:
        return first
    return Missing(f"{first.reason}; {second.reason}", f"{first.fix}; {second.fix}")
