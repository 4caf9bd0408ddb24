"""Builds a bundle's engines where they will run, and takes them into use once they were seen to decide there.

1. What the golden vectors feed is held against the batch profile, and free memory against what a build needs.
2. Each stage is compiled, unless an engine of the same key is in the cache and undamaged. It is kept at once, marked as
   not judged: an interrupted build goes on where it stopped.
3. All engines together run the golden vectors (:mod:`trunkline.targets.building.verify`).
4. If the gate passes, every engine is attested, and one file is replaced: from then on the bundle runs on them. Until
   then, and if anything fails, it runs on those of before.

If the gate fails, the engine that breaks it is found and removed (:mod:`trunkline.targets.building.failure`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trunkline.runtime.bundle import Bundle
from trunkline.runtime.engines import attestation, sets
from trunkline.runtime.engines.attestation import Attestation, ParityRun
from trunkline.runtime.engines.cache import Engine, EngineCache
from trunkline.runtime.engines.device import Device, Library
from trunkline.runtime.engines.key import EngineKey, engine_key
from trunkline.runtime.engines.sets import EngineSet, EngineSets, Pinned
from trunkline.runtime.engines.settings import Builder, BuildRequest, BuildSettings
from trunkline.runtime.engines.timing import TimingCache
from trunkline.runtime.ensemble import Ensemble
from trunkline.runtime.errors import BackendError, InputError
from trunkline.runtime.parity import golden_calls
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.stage_files import stage_files
from trunkline.targets.building import failure
from trunkline.targets.building.verify import EngineBackend, Verdict, reference_of, verify


@dataclass(frozen=True)
class Memory:
    """Asked once, before the first stage is compiled; in bytes of the memory that the compiler uses."""

    needed_bytes: Callable[[], int]
    free_bytes: Callable[[], int]


@dataclass(frozen=True)
class Target:
    """What to build for: the name of the device profile, its settings, and how to tell whether a build fits."""

    name: str
    settings: BuildSettings
    memory: Memory | None = None


@dataclass(frozen=True)
class StageResult:
    """An engine that is in use now.

    Attributes:
        stage: its name.
        key: digest of its key, the name of its folder.
        compiled: now; otherwise it was in the cache.
        build_seconds: how long that took, whenever it was.
        plan_bytes: its size.
    """

    stage: str
    key: str
    compiled: bool
    build_seconds: float
    plan_bytes: int


@dataclass(frozen=True)
class BuildReport:
    """What a build did. ``notes`` tell what was removed, dropped or left unjudged, and why."""

    bundle: str
    target: str
    library: Library
    device: Device
    stages: tuple[StageResult, ...]
    parity: ParityRun
    notes: tuple[str, ...]


def build(
    bundle: Bundle,
    builder: Builder,
    target: Target,
    *,
    cache: EngineCache,
    bisect: bool = False,
    progress: Progress = silent,
) -> BuildReport:
    """Compiles what is not in the cache, verifies all engines together, and takes them into use.

    Another process that builds the same is waited for, and what it built is not built again.

    Args:
        bundle: an opened bundle.
        builder: compiles, on this device.
        target: what for.
        cache: where engines are kept.
        bisect: if the gate fails, compile parts of the stage to find the layer.
        progress: told about waiting, compiling and verifying.

    Raises:
        ParityError: the gate failed; the message names the stage. The engines of before stay in use.
        BackendError: a stage cannot be compiled, memory, disk or cache do not suffice.
        InputError: the target's settings do not fit the bundle.
        IntegrityError: the bundle was touched meanwhile.
    """
    work = _Work(bundle, builder, cache, progress)
    work.require_golden_fits(target.settings)
    with work.sets.assembling(bundle.digest, progress), work:
        for index, stage in enumerate(bundle.manifest.stages):
            progress("engines", index, len(bundle.manifest.stages))
            work.add(stage, target)
        progress("engines", len(bundle.manifest.stages), len(bundle.manifest.stages))
        return work.judged(target.name, bisect)


def verify_again(
    bundle: Bundle, builder: Builder, *, cache: EngineCache, bisect: bool = False, progress: Progress = silent
) -> BuildReport:
    """Runs the golden vectors on the engines that are in use; compiles nothing. They go out of use if the gate fails.

    Raises:
        ParityError: the gate failed.
        BackendError: no engines are in use here, or one is damaged.
    """
    work = _Work(bundle, builder, cache, progress)
    with work.sets.assembling(bundle.digest, progress), work:
        for stage in bundle.manifest.stages:
            work.hold(stage)
        return work.judged(next(iter(work.engines.values())).attestation.target, bisect)


class _Work:
    """One build. Engines are held until it ends, so that making room for one does not remove another."""

    def __init__(self, bundle: Bundle, builder: Builder, cache: EngineCache, progress: Progress) -> None:
        self.bundle, self.builder, self.cache, self._progress = bundle, builder, cache, progress
        self.sets = EngineSets(cache, builder.library, builder.device)
        self.engines: dict[str, Engine] = {}
        self._timing = TimingCache(cache, builder.library, builder.device)
        self._compiled: set[str] = set()
        self._notes: list[str] = []

    def __enter__(self) -> _Work:
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self.engines.values():
            engine.close()

    def require_golden_fits(self, settings: BuildSettings) -> None:
        """Refuses, before minutes are spent, a profile under which the engines could not be verified."""
        problems = sorted(set(_outside(self.bundle, self._backend(), settings)))
        if problems:
            raise InputError(
                "engines of this batch profile could not run the bundle's golden vectors",
                where=self.bundle.root,
                found=problems,
                fix="widen the batch profile of the target",
            )

    def add(self, stage: str, target: Target) -> None:
        """Finds or compiles a stage's engine."""
        key = self._key(stage, target.settings)
        with self.cache.building(key, self._progress):
            engine, reason = self.cache.find_or_remove(key)
            if reason:
                self._notes.append(f"{stage}: the engine in the cache was refused and removed: {reason}")
            self._hold(stage, engine or self._compile(stage, key, target))

    def hold(self, stage: str) -> None:
        """Finds the engine that a stage runs on."""
        variant, digest = self.builder.variant, self.bundle.digest
        with stage_files(self.bundle, stage, variant) as files:
            self._hold(stage, self.sets.open(files, variant, digest))

    def _hold(self, stage: str, engine: Engine) -> None:
        engine.forget_plan()
        self.engines[stage] = engine

    def _key(self, stage: str, settings: BuildSettings) -> EngineKey:
        variant, library, device = self.builder.variant, self.builder.library, self.builder.device
        with stage_files(self.bundle, stage, variant) as files:
            return engine_key(files, settings, variant=variant, library=library, device=device)

    def _compile(self, stage: str, key: EngineKey, target: Target) -> Engine:
        if not self._compiled:
            _require_memory(target.memory, self.bundle)
        measured, note = self._timing.find()
        self._notes += [note] if note else []
        started = time.perf_counter()
        with stage_files(self.bundle, stage, self.builder.variant) as files:
            built = self.builder.build(BuildRequest(files, key.settings, measured), self._progress)
        found = Attestation(
            attestation.FORMAT,
            attestation.SCHEMA,
            key,
            plan_bytes=len(built.plan),
            plan_sha256=hashlib.sha256(built.plan).hexdigest(),
            build_seconds=time.perf_counter() - started,
            built=attestation.now(),
            target=target.name,
            versions=attestation.versions_here(),
        )
        engine = self.cache.publish(built.plan, found)
        self._timing.keep(built.timing_cache)
        self._compiled.add(stage)
        return engine

    def judged(self, target: str, bisect: bool) -> BuildReport:
        """Verifies all engines together, and takes them into use."""
        reference = reference_of(self.bundle)
        verdict = verify(self.bundle, self._backend(), reference, self._progress)
        report = verdict.report
        if report is None or not verdict.passed:
            self._stop_using()
            raise failure.explained(self.bundle, self._backend(), verdict, bisect=bisect, progress=self._progress)
        parity = ParityRun.of(self.bundle.digest, report, verdict.differences, verdict.reference)
        for engine in self.engines.values():
            self.cache.attest(engine, parity)
        self.sets.use(self._set(parity))
        return self._report(target, parity, verdict)

    def _set(self, parity: ParityRun) -> EngineSet:
        library, device = self.builder.library, self.builder.device
        return EngineSet(
            sets.FORMAT,
            sets.SCHEMA,
            self.bundle.digest,
            library,
            device,
            self._pinned(),
            parity,
            attestation.now(),
        )

    def _stop_using(self) -> None:
        """Engines that were in use and fail now are not used any more; other ones stay."""
        used = self.sets.of(self.bundle.digest)
        if used is not None and used.engines == self._pinned():
            self.sets.withdraw(self.bundle.digest)

    def _pinned(self) -> dict[str, Pinned]:
        return {stage: Pinned(each.key, each.attestation.plan_sha256) for stage, each in self.engines.items()}

    def _report(self, target: str, parity: ParityRun, verdict: Verdict) -> BuildReport:
        unjudged = [stage for stage in self.engines if stage not in verdict.ran]
        notes = [f"{stage}: the golden vectors do not run it, so nothing is known of its engine" for stage in unjudged]
        stages = tuple(
            StageResult(
                stage,
                engine.key.digest,
                stage in self._compiled,
                engine.attestation.build_seconds,
                engine.attestation.plan_bytes,
            )
            for stage, engine in self.engines.items()
        )
        library, device = self.builder.library, self.builder.device
        return BuildReport(self.bundle.digest, target, library, device, stages, parity, (*self._notes, *notes))

    def _backend(self) -> EngineBackend:
        return EngineBackend(self.builder, self.cache, self.engines)


def _require_memory(memory: Memory | None, bundle: Bundle) -> None:
    if memory is None:
        return
    needed, free = memory.needed_bytes(), memory.free_bytes()
    if needed > free:
        raise BackendError(
            "there is not enough free memory to build engines",
            where=bundle.root,
            expected=f"{needed >> 20} MiB, as `trunkline plan` estimates",
            found=f"{free >> 20} MiB free",
            fix="end other programs, the desktop among them; `trunkline plan BUNDLE` shows what would need less",
        )


def _outside(bundle: Bundle, backend: EngineBackend, settings: BuildSettings) -> Iterator[str]:
    """Golden inputs with more or fewer rows than the engines would take."""
    with Ensemble(bundle, backend) as ensemble:
        for call in golden_calls(ensemble):
            fed = ensemble.inputs(call.image, call.instructions, call.histories, call.sensor)
            for stage in bundle.manifest.stages.values():
                for spec in stage.inputs:
                    shape = fed[spec.name].shape if spec.name in fed else ()
                    for letter, size in zip(spec.shape, shape, strict=False):
                        rows = settings.rows(letter) if isinstance(letter, str) else None
                        if rows and not rows.minimum <= size <= rows.maximum:
                            yield f"{letter} is {size}, the profile has {rows.minimum} to {rows.maximum}"
