"""Engines against golden vectors, on the device that built them.

The verdict is the bundle's own gate, about scores and winners (:mod:`trunkline.runtime.parity`). Where ONNX Runtime is
installed, it runs every stage on the CPU as well, on the very inputs that the engine had: that does not judge, it tells
which stage to look at. If the gate fails, each stage in turn is given to the CPU while the others stay engines; the one
without which the scores are right again is the one that breaks them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import Backend, Resident, ResidentSession, Session, StageFiles, described, named
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.engines.cache import Engine, EngineCache
from trunkline.runtime.engines.settings import Builder
from trunkline.runtime.ensemble import Ensemble
from trunkline.runtime.errors import BackendError
from trunkline.runtime.graph import Value, on_host
from trunkline.runtime.parity import ParityReport, check_parity
from trunkline.runtime.progress import Progress, silent

#: What engines are compared with where it is installed.
REFERENCE = "onnxruntime"


@dataclass(frozen=True, eq=False)
class StageRun:
    """One run of a stage: what it was given and what it returned."""

    inputs: Mapping[str, NDArray[np.generic]]
    outputs: Mapping[str, NDArray[np.float32]]


Runs = dict[str, list[StageRun]]


@dataclass(frozen=True, eq=False)
class Verdict:
    """What engines did on the golden vectors.

    Attributes:
        report: judged by the gate; None if what the engines returned could not even be scored.
        refusal: why it could not.
        ran: stages that the golden vectors ran; of others nothing is known.
        broken: stages that returned numbers which are not finite.
        differences: per stage, the largest difference of an output number from the reference's. Empty without one.
        worst: per stage, the run in which it was found; the first without a reference.
        reference: its name and version.
    """

    report: ParityReport | None
    refusal: str | None
    ran: tuple[str, ...]
    broken: tuple[str, ...]
    differences: Mapping[str, float]
    worst: Mapping[str, StageRun]
    reference: str | None

    @property
    def passed(self) -> bool:
        return self.report is not None and self.report.passed and not self.broken


@dataclass(frozen=True)
class Replacement:
    """The golden vectors with one stage on the CPU: the largest change of a score that is left."""

    stage: str
    passed: bool
    max_score_change: float


@dataclass
class EngineBackend:
    """Runs stages on engines of the cache that may not have passed yet. For verification only; one thread.

    Attributes:
        builder: opens engines.
        cache: that they are in.
        engines: held, by stage.
        replaced: sessions of this back end stand in for the engines of these stages.
        runs: filled with every run.
        failures: filled with stages whose session failed, for want of memory for instance.
    """

    builder: Builder
    cache: EngineCache
    engines: Mapping[str, Engine]
    replaced: Mapping[str, Ensemble] = field(default_factory=dict)
    runs: Runs = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    NAME = "engines"
    VARIANT: str = field(init=False)

    def __post_init__(self) -> None:
        """Engines are built from one variant."""
        self.VARIANT = self.builder.variant

    def available(self) -> None:
        return None

    def version(self) -> str:
        return str(self.builder.library)

    def open_stage(self, files: StageFiles) -> Session:
        """A session that remembers its runs.

        Raises:
            BackendError: the engine is damaged or another one than is held.
        """
        if files.name in self.replaced:
            return self._remembered(files.name, self.replaced[files.name].open_stage(files.name))
        held = self.engines[files.name]
        engine = self.cache.find(held.key, unverified=True)
        if engine is None or engine.attestation.plan_sha256 != held.attestation.plan_sha256:
            raise BackendError("an engine was replaced while it was verified", where=f"stage {files.name}")
        try:
            return self._remembered(files.name, self.builder.open_engine(engine.plan(), files.stage))
        finally:
            engine.close()  # the one that is held stays

    def int8_kernels(self, files: StageFiles) -> int:
        return 0

    def _remembered(self, stage: str, session: Session) -> Session:
        kind = _ResidentRemembering if hasattr(session, "run_resident") else _Remembering
        return kind(session, self.runs.setdefault(stage, []), lambda: self.failures.append(stage))


class _Remembering:
    """A session whose runs are kept."""

    def __init__(self, session: Session, runs: list[StageRun], failed: Callable[[], None]) -> None:
        self._session, self._runs, self._failed = session, runs, failed

    def run(self, inputs: Mapping[str, Value]) -> dict[str, NDArray[np.float32]]:
        """Another stage's session may have left an input on the device."""
        given = _on_host(inputs)
        with self._watched():
            outputs = self._session.run(given)
        self._runs.append(StageRun(given, dict(outputs)))
        return outputs

    def close(self) -> None:
        self._session.close()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except BackendError:
            self._failed()
            raise


class _ResidentRemembering(_Remembering):
    """What was verified is what runs: outputs stay on the device here, too, and only copies are kept."""

    _session: ResidentSession

    def run_resident(self, inputs: Mapping[str, Value]) -> Mapping[str, Resident]:
        with self._watched():
            outputs = self._session.run_resident(inputs)
            self._runs.append(StageRun(_on_host(inputs), _on_host(outputs)))
        return outputs


def _on_host(values: Mapping[str, Value]) -> dict[str, NDArray[Any]]:
    return {name: on_host(value) for name, value in values.items()}


def reference_of(bundle: Bundle) -> Backend | None:
    """The back end that engines are compared with: None if it is not installed, or the bundle has no variant for it."""
    reference = named(REFERENCE)
    has_variant = reference.VARIANT in bundle.manifest.variants
    return reference if has_variant and reference.available() is None else None


def verify(
    bundle: Bundle,
    backend: EngineBackend,
    reference: Backend | None,
    progress: Progress = silent,
) -> Verdict:
    """Runs the golden vectors on engines, then the reference on what each stage was given.

    Raises:
        BackendError: an engine cannot be opened or run.
        BundleError: the golden vectors are malformed.
    """
    report, refusal = _judged(bundle, backend, progress)
    runs = {stage: done for stage, done in backend.runs.items() if done}
    broken = tuple(stage for stage, done in runs.items() if not all(map(_finite, done)))
    # Engines are closed by now: a device may not hold them and the reference's weights together.
    differences = _differences(bundle, runs, reference, progress) if reference else {}
    worst = {stage: done[differences.get(stage, (0, 0.0))[0]] for stage, done in runs.items()}
    return Verdict(
        report,
        refusal,
        ran=tuple(runs),
        broken=broken,
        differences={stage: largest for stage, (_, largest) in differences.items()},
        worst=worst,
        reference=described(reference) if reference else None,
    )


def _judged(bundle: Bundle, backend: EngineBackend, progress: Progress) -> tuple[ParityReport | None, str | None]:
    """The gate's report, or why there is none: an ensemble refuses to score vectors that are no unit vectors."""
    try:
        with Ensemble(bundle, backend) as ensemble:
            return check_parity(ensemble, progress=progress), None
    except BackendError as error:
        if backend.failures:
            raise
        return None, f"{error.problem} ({error.where}: {error.found})"


def _finite(run: StageRun) -> bool:
    return all(np.isfinite(output).all() for output in run.outputs.values())


def _differences(bundle: Bundle, runs: Runs, reference: Backend, progress: Progress) -> dict[str, tuple[int, float]]:
    """Per stage, which run differs most, and by how much."""
    result = {}
    with Ensemble(bundle, reference) as ensemble:
        for index, (stage, done) in enumerate(runs.items()):
            progress(f"comparing with {reference.NAME}", index, len(runs))
            session = ensemble.open_stage(stage)
            try:
                found = [_difference(session, run) for run in done]
            finally:
                session.close()
            result[stage] = (found.index(max(found)), max(found))
    return result


def _difference(session: Session, run: StageRun) -> float:
    expected = session.run(run.inputs)
    return max(difference(expected[name], found) for name, found in run.outputs.items())


def difference(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Largest difference of two numbers in one place; infinite if one is not finite, or shapes differ."""
    if expected.shape != found.shape:
        return math.inf
    largest = float(np.abs(expected.astype(np.float64) - found).max(initial=0.0))
    return largest if math.isfinite(largest) else math.inf


def replacements(
    bundle: Bundle, backend: EngineBackend, reference: Backend, progress: Progress = silent
) -> list[Replacement]:
    """The golden vectors again, with each stage in turn on the CPU; the stage that helps most comes first.

    Raises:
        BackendError: an engine, or a stage on the CPU, cannot be opened or run.
    """
    found = []
    with Ensemble(bundle, reference) as stand_in:
        for index, stage in enumerate(backend.engines):
            progress("looking for the stage", index, len(backend.engines))
            mixed = EngineBackend(backend.builder, backend.cache, backend.engines, {stage: stand_in})
            report, _ = _judged(bundle, mixed, silent)
            change = report.fused.max_score_change if report else math.inf
            passed = report is not None and report.passed
            found.append(Replacement(stage, passed, change if math.isfinite(change) else math.inf))
    return sorted(found, key=lambda each: (not each.passed, each.max_score_change))
