"""Latency of a bundle on this machine: percentiles per stage, and for the calls a control loop makes.

Three everyday cases, all with instructions that were seen before:

- ``new frame``: a new image, one instruction, N candidates;
- ``new candidates``: the same image and instruction, N new candidates;
- ``rephrasings``: a new image, I instructions, N candidates.

An ensemble with a sensor has two more, with the image and candidates of before: ``new sensor window``, which shares
nothing with the last one, and ``sensor window slid by ...``, which has moved by a few blocks of its stream. In the
other cases the window stays what it was.

Frames are random noise at twice the model's size, so that the resize is part of the measurement; noise costs the same
as any image. Each case is warmed up first. ``outside`` is what a call spends outside the back end: checking, resizing,
hashing, cache and fusion.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import described
from trunkline.runtime.ensemble import Ensemble
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.window import SensorWindow

REPHRASINGS = (
    "put the red block in the bowl",
    "place the red block into the bowl",
    "move the red cube to the bowl",
    "pick up the red block and drop it in the bowl",
    "the red block belongs in the bowl",
    "set the red block inside the bowl",
    "take the red cube and put it in the bowl",
    "drop the red block into the bowl",
)


#: By how many blocks a window slides; 64 samples of the published encoder.
HOP_BLOCKS = 4


@dataclass(frozen=True, eq=False)
class Call:
    """What :meth:`Ensemble.score` is given."""

    image: NDArray[np.uint8]
    instructions: list[str]
    histories: NDArray[np.float32]
    sensor: SensorWindow | None

    def score(self, ensemble: Ensemble) -> None:
        ensemble.score(self.image, self.instructions, self.histories, sensor=self.sensor)


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Percentiles:
        values = np.asarray(seconds) * 1e3
        p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
        return cls(p50, p90, p99, float(values.max()))


@dataclass(frozen=True)
class CaseLatency:
    """One kind of call: whole calls, time outside the back end, and each stage that ran."""

    name: str
    calls: int
    total: Percentiles
    outside: Percentiles
    stages: dict[str, Percentiles]


@dataclass(frozen=True)
class LatencyReport:
    backend: str
    candidates: int
    instructions: int
    cases: tuple[CaseLatency, ...]


def measure(
    ensemble: Ensemble,
    *,
    iterations: int = 30,
    warm_up: int = 3,
    candidates: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> LatencyReport:
    """Measures the everyday cases.

    Args:
        ensemble: a loaded bundle; its caches are emptied.
        iterations: measured calls per case.
        warm_up: calls before.
        candidates: N.
        seed: of frames and candidates.
        progress: counts cases.
    """
    make = _Inputs(ensemble, candidates, seed)
    instructions = list(ensemble.bundle.manifest.text.instructions[:8] or REPHRASINGS)
    one, still, same, felt = instructions[:1], make.frame(), make.windows(), make.sensor()
    cases: list[tuple[str, Callable[[], Call]]] = [
        ("new frame", lambda: Call(make.frame(), one, make.windows(), felt)),
        ("new candidates", lambda: Call(still, one, make.windows(), felt)),
        (f"{len(instructions)} rephrasings", lambda: Call(make.frame(), instructions, make.windows(), felt)),
    ]
    if felt is not None:
        cases.append(("new sensor window", lambda: Call(still, one, same, make.sensor())))
        cases.append((make.slid_name, lambda: Call(still, one, same, make.slid())))
    ensemble.forget()
    results = []
    for index, (name, prepare) in enumerate(cases):
        progress("measuring", index, len(cases))
        for _ in range(warm_up):
            prepare().score(ensemble)
        results.append(_measure_case(ensemble, name, [prepare() for _ in range(iterations)]))
    progress("measuring", len(cases), len(cases))
    return LatencyReport(described(ensemble.backend), candidates, len(instructions), tuple(results))


def _measure_case(ensemble: Ensemble, name: str, calls: Sequence[Call]) -> CaseLatency:
    totals, outside = [], []
    stages: dict[str, list[float]] = {}
    for call in calls:
        before = {stage: counts.seconds for stage, counts in ensemble.counts().items()}
        started = time.perf_counter()
        call.score(ensemble)
        totals.append(time.perf_counter() - started)
        spent = {stage: counts.seconds - before[stage] for stage, counts in ensemble.counts().items()}
        outside.append(totals[-1] - sum(spent.values()))
        for stage, seconds in spent.items():
            if seconds > 0:
                stages.setdefault(stage, []).append(seconds)
    percentiles = {stage: Percentiles.of(seconds) for stage, seconds in stages.items()}
    return CaseLatency(name, len(calls), Percentiles.of(totals), Percentiles.of(outside), percentiles)


class _Inputs:
    """Random frames, windows and sensor streams of the sizes an ensemble takes."""

    def __init__(self, ensemble: Ensemble, candidates: int, seed: int) -> None:
        self._manifest = ensemble.bundle.manifest
        self._candidates = candidates
        self._random = np.random.default_rng(seed)
        self._sensor, self._position, self._rows = self._manifest.sensor, 0, np.empty((0, 0), np.float32)

    def frame(self) -> NDArray[np.uint8]:
        image = self._manifest.image
        return self._random.integers(0, 256, (2 * image.height, 2 * image.width, 3), dtype=np.uint8)

    def windows(self) -> NDArray[np.float32]:
        actions = self._manifest.actions
        shape = (self._candidates, actions.history_length, actions.action_dim)
        return self._random.normal(0, 1, shape).astype(np.float32)

    def sensor(self) -> SensorWindow | None:
        """A window that shares nothing with any other; None for an ensemble without a sensor."""
        return None if self._sensor is None else SensorWindow(self._samples(), self._sensor.form.rate_hz)

    @property
    def slid_name(self) -> str:
        return f"sensor window slid by {self._hop} samples"

    def slid(self) -> SensorWindow | None:
        """The next window of one stream, ``HOP_BLOCKS`` blocks after the last."""
        if self._sensor is None:
            return None
        form = self._sensor.form
        fresh = self._random.normal(0, 1, (self._hop, form.channels)).astype(np.float32)
        self._rows = np.concatenate([self._rows[self._hop :], fresh]) if len(self._rows) else self._samples()
        self._position += self._hop
        return SensorWindow(self._rows, form.rate_hz, stream=id(self), position=self._position)

    @property
    def _hop(self) -> int:
        return 0 if self._sensor is None else HOP_BLOCKS * self._sensor.stride

    def _samples(self) -> NDArray[np.float32]:
        form = self._manifest.sensor.form if self._manifest.sensor else SensorForm()
        return self._random.normal(0, 1, (form.samples, form.channels)).astype(np.float32)
