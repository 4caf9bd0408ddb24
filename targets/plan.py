"""Before anything is built: what of a bundle will run in which precision on a device, whether it fits, and what to do.

Nothing is built and nothing runs. Weights are counted in the graphs and not read. Numbers for a back end on processors
rest on measurements, those for GPUs on documentation; :attr:`Plan.measured` says which, docs/targets.md how far off
they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trunkline.runtime import backends
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.manifest import CPU_VARIANT
from trunkline.targets.advice import Advice, advise
from trunkline.targets.errors import TargetError
from trunkline.targets.estimate.footprint import FOOTPRINTS
from trunkline.targets.estimate.stage import StageFacts, as_half, read_stages
from trunkline.targets.machine import Machine
from trunkline.targets.memory import Case, Estimate, estimate
from trunkline.targets.profile import VARIANTS, Profile


@dataclass(frozen=True)
class Budget:
    """A device's memory, what of it is free for a bundle, and who says so."""

    total_bytes: int
    free_bytes: int
    source: str


@dataclass(frozen=True)
class Plan:
    """What will run, what it needs, and what to do.

    Attributes:
        bundle: its digest.
        target: name of the profile.
        backend: that will run it.
        memory: of the device.
        estimate: what is needed of it.
        measured: whether numbers for this back end rest on measurements.
        fits: whether the memory suffices.
        missing: what the bundle or the device lacks apart from memory; it will not run before that is mended.
        advice: changes that save memory, the one that saves most first.
        together: names of changes that suffice together where none does alone.
        notes: what else is to be known.
    """

    bundle: str
    target: str
    backend: str
    memory: Budget
    estimate: Estimate
    measured: bool
    fits: bool
    missing: tuple[str, ...]
    advice: tuple[Advice, ...]
    together: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether the bundle will run on the device as both are."""
        return self.fits and not self.missing


def make_plan(bundle: Bundle, profile: Profile, *, backend: str | None = None, machine: Machine | None = None) -> Plan:
    """Plans a bundle on a device.

    Args:
        bundle: an opened bundle.
        profile: of the device.
        backend: one of the profile's; by default the first, on ``machine`` the first of the same variant that is there.
        machine: this machine, if it is the device: then its own memory counts, and what is installed.

    Raises:
        TargetError: nothing runs on the device, or not on this back end.
        BundleError: a graph is refused.
    """
    if profile.unsupported is not None:
        raise TargetError(
            "the target is not supported",
            where=f"{profile.name}, {profile.title}",
            found=profile.unsupported,
            fix="use another device; `trunkline targets` lists those that are supported",
        )
    chosen, absent = _choose(profile, backend, machine)
    stages, lacks = _stages(bundle, profile, VARIANTS[chosen])
    case = Case(bundle.manifest, stages, profile, chosen)
    needed, memory = estimate(case), budget(profile, machine)
    fits = needed.peak_bytes <= memory.free_bytes
    advice, together = advise(case, memory.free_bytes)
    return Plan(
        bundle=bundle.digest,
        target=profile.name,
        backend=chosen,
        memory=memory,
        estimate=needed,
        measured=FOOTPRINTS[chosen].measured,
        fits=fits,
        missing=(*lacks, *absent, *_window_problems(case)),
        advice=advice,
        together=() if fits else together,
        notes=tuple(_notes(case, needed)),
    )


def budget(profile: Profile, machine: Machine | None = None) -> Budget:
    """A device's memory: this machine's own if it is the device and is known, otherwise the profile's."""
    stated = profile.memory
    if machine is None:
        return Budget(stated.total_bytes, stated.free_bytes, "the profile")
    if stated.shared_with_cpu and machine.memory_bytes and machine.free_bytes is not None:
        return Budget(machine.memory_bytes, machine.free_bytes, "this machine, now")
    gpu = machine.gpu
    if not stated.shared_with_cpu and gpu is not None and gpu.memory_bytes:
        free = max(0, gpu.memory_bytes - stated.system_bytes)
        return Budget(gpu.memory_bytes, free, "this machine's GPU, less what the profile says its driver takes")
    return Budget(stated.total_bytes, stated.free_bytes, "the profile")


def building_bytes(bundle: Bundle, profile: Profile, backend: str = "tensorrt") -> int:
    """What must be free on a device before engines of a bundle are built there.

    Raises:
        TargetError: nothing runs on the device, or not on this back end.
        BundleError: a graph is refused.
    """
    return make_plan(bundle, profile, backend=backend).estimate.building_bytes


def _choose(profile: Profile, wanted: str | None, machine: Machine | None) -> tuple[str, list[str]]:
    """A back end, and why it cannot run here if it cannot."""
    if wanted is not None and wanted not in profile.backends:
        raise TargetError(
            "the target does not run this back end",
            where=profile.name,
            expected=", ".join(profile.backends),
            found=wanted,
            fix="leave --backend out for the first of them",
        )
    first = wanted or profile.backends[0]
    if machine is None:
        return first, []
    asked_for = backends.ONLY_BY_NAME
    same = [name for name in profile.backends if VARIANTS[name] == VARIANTS[first] and name not in asked_for]
    absent = []
    for name in [wanted] if wanted else same:
        missing = backends.named(name).available()
        if missing is None:
            return name, []
        absent.append(f"{name} is not here: {missing.reason}; {missing.fix}")
    return first, absent


def _stages(bundle: Bundle, profile: Profile, variant: str) -> tuple[tuple[StageFacts, ...], list[str]]:
    """Facts about the stages in a variant, made up from the other one where the bundle lacks it."""
    most, usual = profile.most_rows, {each.letter: each.optimum for each in profile.rows}
    if variant in bundle.manifest.variants:
        return tuple(each.facts(most, usual) for each in read_stages(bundle, variant)), []
    if variant == CPU_VARIANT:
        raise TargetError(
            "the bundle holds nothing that this back end runs",
            where=bundle.root,
            expected=f"variant {variant}",
            found=", ".join(sorted(bundle.manifest.variants)),
            fix="export the bundle again",
        )
    stages = tuple(as_half(each.facts(most, usual)) for each in read_stages(bundle, CPU_VARIANT))
    return stages, [
        f"the bundle has no {variant} variant, which `trunkline export --half` writes; what it will need is estimated "
        f"from the {CPU_VARIANT} variant"
    ]


def _window_problems(case: Case) -> Iterator[str]:
    """Engines are built for as many rows as the profile says; other back ends take what comes."""
    if case.manifest.sensor is None or FOOTPRINTS[case.backend].build is None:
        return
    blocks, most = case.manifest.sensor.blocks + 1, case.profile.most_rows["Q"]
    if blocks > most:
        yield f"a whole sensor window has {blocks} blocks, and the profile takes {most} (rows, letter Q)"


def _notes(case: Case, needed: Estimate) -> Iterator[str]:
    for name, advised in case.profile.precisions.items():
        stages = [each.name for each in case.stages if name in each.precision]
        if stages and advised.use != "default":
            yield f"{', '.join(stages)}: {name} on this device {advised.use}: {advised.why}"
    guessed = sum(each.guessed for each in needed.stages)
    if guessed:
        yield f"the size of {guessed} values could not be derived; each counts as the largest input of its operator"
    if not FOOTPRINTS[case.backend].measured:
        yield f"{case.backend} was never measured: its part of the estimate comes from documentation and reports"
