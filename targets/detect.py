"""Which profile this machine is, and how that is known.

Questions are asked in this order; the first that applies decides, and its answer is final:

1. Does the device tree name a module? Then it is that Jetson.
2. Does the device tree name a Jetson's chip? Then it is the nearest profile of the same chip: the largest whose memory
   is not larger than this machine's.
3. Is this a Jetson whose device tree cannot be seen, as in most containers? ``/etc/nv_tegra_release`` is there, or the
   GPU shares memory with the processor. Then the driver's compute capability and memory tell, or nobody.
4. Is there another GPU? Then its name tells; else the nearest profile of the same compute capability.
5. Otherwise the processor's architecture tells.

What is not found is an error with everything that was seen, never a guess. In particular a GPU that no profile fits
does not make this machine a processor: that must be asked for by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from trunkline.targets.errors import TargetError
from trunkline.targets.machine import Gpu, Machine, look
from trunkline.targets.profile import AUTO, Profile, named, profiles

#: Firmware, kernel and driver keep up to so much of what a device is sold with.
_VISIBLE = 0.75


@dataclass(frozen=True)
class Recognition:
    """A machine's profile.

    Attributes:
        profile: its own, or the nearest.
        exact: whether it is its own.
        how: what told, one fact per line.
        concerns: what is not as the profile expects.
    """

    profile: Profile
    exact: bool
    how: tuple[str, ...]
    concerns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """What ``--target`` stands for.

    Attributes:
        profile: of the device.
        machine: this machine, if it is the device.
        recognition: how that is known.
    """

    profile: Profile
    machine: Machine | None = None
    recognition: Recognition | None = None


def choose(target: str = AUTO) -> Chosen:
    """The device of a name, of a profile's file, or with ``auto`` this machine.

    A device that is named is planned for as its profile says, whatever this machine is.

    Raises:
        TargetError: there is no such profile, this machine is not recognised, or a profile is malformed.
    """
    known = profiles()
    if target != AUTO:
        return Chosen(named(target, known))
    machine = look()
    recognition = recognise(machine, known)
    return Chosen(recognition.profile, machine, recognition)


def recognise(machine: Machine, known: Mapping[str, Profile]) -> Recognition:
    """The profile of a machine.

    Args:
        machine: facts about it.
        known: profiles by name; where two fit, the later one is taken, which is the user's own.

    Raises:
        TargetError: no profile fits, with everything that was seen.
    """
    latest = list(known.values())[::-1]
    found = _jetson(machine, latest) or _hidden_jetson(machine, latest)
    found = found or _with_gpu(machine, latest) or _processor(machine, latest)
    if found is None:
        raise _unknown(machine, "no profile is for this processor")
    return Recognition(found.profile, found.exact, found.how, tuple(_concerns(machine, found.profile)))


def _jetson(machine: Machine, known: list[Profile]) -> Recognition | None:
    """Cases 1 and 2."""
    board = f"device tree: {machine.model or 'no model'}, {', '.join(machine.compatible) or 'no names'}"
    names = _words(machine.compatible)
    fitting = [each for each in known if names & set(each.recognised_by.modules)]
    if fitting:
        module = min(names & set(fitting[0].recognised_by.modules))
        return Recognition(fitting[0], True, (board, f"module {module} is {fitting[0].title}", *_others(fitting)))
    same_chip = [each for each in known if each.recognised_by.chip in names]
    if not same_chip:
        if any(name.startswith("tegra") for name in names):
            raise _unknown(machine, "this is a Jetson, or another device with an NVIDIA chip, that no profile is for")
        return None
    nearest, why = _nearest(same_chip, _board_bytes(machine))
    of_chip = f"no profile names this module; of those of its chip, {nearest.recognised_by.chip}, {why}"
    return Recognition(nearest, False, (board, of_chip))


def _words(compatible: Iterable[str]) -> set[str]:
    """``nvidia,p3768-0000+p3767-0005`` names a carrier board and a module."""
    return {word for name in compatible for word in name.rpartition(",")[2].split("+")}


def _hidden_jetson(machine: Machine, known: list[Profile]) -> Recognition | None:
    """Case 3."""
    gpu = machine.gpu
    if machine.l4t is None and not (gpu and gpu.integrated):
        return None
    if gpu is None or gpu.compute_capability is None:
        raise _unknown(machine, "this is a Jetson, but neither device tree nor driver tell which one")
    same = [each for each in known if each.kind == "jetson" and each.compute_capability == gpu.compute_capability]
    if not same:
        raise _unknown(machine, "this is a Jetson, or its like, that no profile is for")
    nearest, why = _nearest(same, _board_bytes(machine))
    release = [f"/etc/nv_tegra_release: Jetson Linux {machine.l4t}"] if machine.l4t else []
    how = f"the device tree cannot be seen here; of the Jetsons of compute capability {gpu.compute_capability}, {why}"
    return Recognition(nearest, False, (*release, f"driver: {_shown(gpu)}", how))


def _board_bytes(machine: Machine) -> int | None:
    """Memory of a board, which the driver knows also where a container may use but a part of it."""
    gpu = machine.gpu
    return gpu.memory_bytes if gpu and gpu.integrated and gpu.memory_bytes else machine.memory_bytes


def _with_gpu(machine: Machine, known: list[Profile]) -> Recognition | None:
    """Case 4."""
    gpu = machine.gpu
    if gpu is None:
        return None
    source = "driver" if gpu.compute_capability else "/proc/driver/nvidia"
    how = [f"{source}: {_shown(gpu)}" + (f", the first of {machine.gpus} GPUs" if machine.gpus > 1 else "")]
    if gpu.compute_capability is None and machine.no_driver:
        how.append(f"the driver cannot be asked: {machine.no_driver}")
    fitting = [each for each in known if any(fnmatchcase(gpu.name, name) for name in each.recognised_by.gpu_names)]
    if fitting:
        return Recognition(fitting[0], True, (*how, f"by its name it is {fitting[0].title}", *_others(fitting)))
    same = [
        each
        for each in known
        if each.kind == "gpu" and gpu.compute_capability and each.compute_capability == gpu.compute_capability
    ]
    if not same:
        raise _unknown(machine, "no profile is for this GPU")
    nearest, why = _nearest(same, gpu.memory_bytes)
    how.append(f"no profile names this GPU; of those of compute capability {gpu.compute_capability}, {why}")
    return Recognition(nearest, False, tuple(how))


def _processor(machine: Machine, known: list[Profile]) -> Recognition | None:
    """Case 5."""
    fitting = [each for each in known if machine.architecture in each.recognised_by.architectures]
    if not fitting:
        return None
    flags = f", {', '.join(machine.flags)}" if machine.flags else ""
    how = (f"processor: {machine.architecture}, {machine.processor or 'no name'}{flags}", "no NVIDIA GPU")
    return Recognition(fitting[0], True, (*how, *_others(fitting)))


def _nearest(known: list[Profile], memory_bytes: int | None) -> tuple[Profile, str]:
    """The largest that is not larger than the machine, or the smallest of all; and which of the two it is."""
    fitting = [each for each in known if memory_bytes and each.memory.total_bytes * _VISIBLE <= memory_bytes]
    seen = f"{memory_bytes / 2**30:.1f} GiB" if memory_bytes else "an unknown amount of memory"
    if fitting:
        largest = max(fitting, key=lambda each: each.memory.total_bytes)
        return largest, f"{largest.title} is the largest that fits {seen}"
    smallest = min(known, key=lambda each: each.memory.total_bytes)
    return smallest, f"{smallest.title} is the smallest, for {seen}"


def _others(fitting: list[Profile]) -> list[str]:
    return [f"{each.name} fits, too" for each in fitting[1:]]


def _shown(gpu: Gpu) -> str:
    known = [gpu.name]
    known += [f"compute capability {gpu.compute_capability}"] if gpu.compute_capability else []
    known += [f"{gpu.memory_bytes / 2**30:.0f} GiB"] if gpu.memory_bytes else []
    return ", ".join(known)


def _concerns(machine: Machine, profile: Profile) -> Iterable[str]:
    """What speaks against a profile that was recognised."""
    if profile.unsupported:
        yield profile.unsupported
        return
    fitting = [each for each in profile.software if each.l4t is None or (machine.l4t or "0") in each.l4t]
    if not fitting:
        names = ", ".join(f"{each.name} ({each.l4t})" for each in profile.software)
        yield f"Jetson Linux {machine.l4t or 'of an unknown release'} is not among the supported ones: {names}"
    elif not any(machine.python in each.python for each in fitting):
        wanted = ", ".join(str(each.python) for each in fitting)
        yield f"Python {machine.python} is not what comes with it: {wanted}"
    if profile.kind != "cpu" and machine.no_driver:
        yield f"the GPU cannot be used now: {machine.no_driver}"


def _unknown(machine: Machine, problem: str) -> TargetError:
    seen = [
        f"device tree: {machine.model or 'no model'}, {', '.join(machine.compatible) or 'no names'}",
        f"Jetson Linux: {machine.l4t or 'no'}",
        f"GPU: {_shown(machine.gpu) if machine.gpu else machine.no_driver or 'none'}",
        f"processor: {machine.architecture}, {machine.processor or 'no name'}",
    ]
    return TargetError(
        "this machine is not recognised",
        expected="one of the profiles that `trunkline targets` lists",
        found=[problem, *seen],
        fix="name a profile with --target, or write one of your own (docs/targets.md)",
    )
