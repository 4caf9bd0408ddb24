"""What engines are built with on this machine: the target's settings, a compiler, and how much memory is free.

Everything that is missing is told at once, with what brings it to such a device. On a Jetson that is JetPack: what
package indexes call TensorRT is not made for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from trunkline.runtime.backends import Missing
from trunkline.runtime.backends import tensorrt_api as api
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.cuda import driver
from trunkline.runtime.engines.settings import Builder
from trunkline.runtime.errors import BackendError
from trunkline.targets.building.network import TensorRtBuilder
from trunkline.targets.building.run import Memory, Target
from trunkline.targets.detect import Chosen, choose
from trunkline.targets.machine import look
from trunkline.targets.plan import budget, building_bytes
from trunkline.targets.profile import AUTO, Profile

BACKEND = "tensorrt"

_JETSON = (
    "`sudo apt install nvidia-jetpack`, which brings the driver and TensorRT; then make the virtual environment with "
    "`python3 -m venv --system-site-packages`. Never `pip install tensorrt` on a Jetson"
)
_GPU = "install NVIDIA's driver (in a container, start it with `--gpus all`) and `pip install tensorrt`"
_CPU = (
    "nothing has to be built for a processor: `trunkline verify` runs the bundle as it is. If there is an NVIDIA GPU, "
    "`trunkline targets` says why it was not recognised"
)
_FIXES = {"jetson": _JETSON, "gpu": _GPU, "cpu": _CPU}


@dataclass(frozen=True)
class Workbench:
    """What a build needs of this machine, and how its profile was found."""

    chosen: Chosen
    builder: Builder

    def target(self, bundle: Bundle, *, version_compatible: bool = False) -> Target:
        """What to build of a bundle.

        Args:
            bundle: an opened bundle.
            version_compatible: whether the lean runtime may run the engines.

        Raises:
            TargetError: nothing is compiled for the profile.
        """
        profile = self.chosen.profile
        memory = Memory(partial(building_bytes, bundle, profile, BACKEND), partial(_free_bytes, profile))
        settings = replace(profile.settings(), version_compatible=version_compatible)
        return Target(profile.name, settings, memory)


def workbench(target: str = AUTO) -> Workbench:
    """The compiler of this machine, for a target.

    Args:
        target: ``auto``, or a profile's name or file; it must be one of this machine's GPU.

    Raises:
        TargetError: there is no such profile, or nothing is compiled for it.
        BackendError: driver or TensorRT are missing, or the GPU is another one.
    """
    chosen = choose(target)
    profile = chosen.profile
    if profile.unsupported is None:
        _require(chosen)
    profile.settings()  # an unsupported one says why
    builder = TensorRtBuilder()
    if builder.device.compute_capability != profile.compute_capability:
        raise BackendError(
            "engines are built on the device that runs them, and this is another one",
            where=f"target {profile.name}",
            expected=f"compute capability {profile.compute_capability}",
            found=f"{builder.device}",
            fix="leave --target out, or run this on the device",
        )
    return Workbench(chosen, builder)


def _require(chosen: Chosen) -> None:
    """Everything that is missing, rather than what is missed first."""
    found = [_driver_problem(), _library_problem()]
    missing = [problem for problem in found if problem]
    profile = chosen.profile
    if not missing and BACKEND in profile.backends:
        return
    how = "; ".join(chosen.recognition.how) if chosen.recognition else "named"
    raise BackendError(
        "engines cannot be built here",
        where=f"target {profile.name}, {profile.title} ({how})",
        expected="an NVIDIA GPU, its driver, and TensorRT",
        found=missing or ["a profile that does not run TensorRT"],
        fix=_FIXES[profile.kind],
    )


def _driver_problem() -> str | None:
    found = driver.probe()
    return found.reason if isinstance(found, Missing) else None


def _library_problem() -> str | None:
    try:
        api.library()
    except ImportError as error:
        return f"no TensorRT: {error}"
    return None


def _free_bytes(profile: Profile) -> int:
    return budget(profile, look()).free_bytes
