"""A world for loops in simulated time: a camera, a sensor and an ensemble whose work takes what is declared."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime import Decision
from trunkline.runtime.loop import (
    Decided,
    Frame,
    Loop,
    LoopPlan,
    LoopReport,
    Outcome,
    Question,
    Record,
    Refused,
    SimulatedClock,
    Sources,
)
from trunkline.runtime.sensor.window import SensorWindow

MS = 1_000_000
SECOND = 1_000_000_000

#: Milliseconds that work takes, fixed or for work begun at a moment (in milliseconds).
Cost = float | Callable[[float], float]


def picture(number: int) -> NDArray[np.uint8]:
    """(2, 2, 3), a number as colours."""
    return np.tile(np.array([number >> 16, number >> 8 & 255, number & 255], np.uint8), (2, 2, 1))


def number_of(image: Any) -> int:
    high, middle, low = image[0, 0].tolist()
    return (high << 16) + (middle << 8) + low


@dataclass
class FakeCamera:
    """Frames a period apart. Those captured in ``dead`` (s) never come; a read begun in ``stuck`` lasts to its end."""

    clock: SimulatedClock
    period_ms: float = 200.0
    phase_ms: float = 0.0
    transfer_ms: float = 20.0
    dead: Sequence[tuple[float, float]] = ()
    stuck: Sequence[tuple[float, float]] = ()
    shown: int = -1

    def read(self) -> Frame | None:
        for begin, end in self.stuck:
            if begin * SECOND <= self.clock.now_ns() < end * SECOND:
                self.clock.wait_until(round(end * SECOND))
        number = self._newest()
        if number <= self.shown:
            return None
        self.shown = number
        return Frame(picture(number), self.captured_ns(number))

    def captured_ns(self, number: int) -> int:
        return round((self.phase_ms + number * self.period_ms) * MS)

    def _newest(self) -> int:
        number = int((self.clock.now_ns() / MS - self.transfer_ms - self.phase_ms) // self.period_ms)
        while number >= 0 and any(b * SECOND <= self.captured_ns(number) < e * SECOND for b, e in self.dead):
            number -= 1
        return number


@dataclass
class FakeSensor:
    """A stream of 650 Hz. ``jumps`` are (begin s, end s, ms by which stamps are off); ``dead`` ones give no samples."""

    clock: SimulatedClock
    rate_hz: float = 650.0
    jumps: Sequence[tuple[float, float, float]] = ()
    dead: Sequence[tuple[float, float]] = ()

    def latest(self) -> SensorWindow | None:
        now_ns = self.clock.now_ns()
        for begin, end in self.dead:
            if begin * SECOND <= now_ns < end * SECOND:
                now_ns = round(begin * SECOND)
        number = int(now_ns * self.rate_hz // SECOND)
        stamp_ns = round(number * SECOND / self.rate_hz)
        for begin, end, off_ms in self.jumps:
            if begin * SECOND <= now_ns < end * SECOND:
                stamp_ns += round(off_ms * MS)
        return SensorWindow(np.full((4, 3), number, np.float32), self.rate_hz, stamp_ns, position=number)


@dataclass
class FakeEnsemble:
    """Features are what they were made of. ``frames`` and ``windows`` have (finished, number or stamp) of all of them,
    ``begun`` what work began when.
    """

    clock: SimulatedClock
    vision_ms: Cost = 60
    sensor_ms: Cost = 8
    score_ms: Cost = 10
    frames: list[tuple[int, int]] = field(default_factory=list)
    windows: list[tuple[int, int]] = field(default_factory=list)
    begun: list[tuple[str, int]] = field(default_factory=list)

    def _work(self, name: str, cost: Cost) -> None:
        now_ns = self.clock.now_ns()
        self.begun.append((name, now_ns))
        self.clock.spend(round((cost(now_ns / MS) if callable(cost) else cost) * MS))

    def encode_frame(self, image: Any, /) -> int:
        self._work("vision", self.vision_ms)
        self.frames.append((self.clock.now_ns(), number_of(image)))
        return number_of(image)

    def encode_sensor(self, window: SensorWindow, /) -> int:
        self._work("sensor", self.sensor_ms)
        assert window.end_ns is not None
        self.windows.append((self.clock.now_ns(), window.end_ns))
        return window.end_ns

    def score(self, image: Any, instruction: Any, histories: Any, /, *, sensor: Any) -> Decision:
        self._work("scoring", self.score_ms)
        scores = np.array([0.0 if image is None else image, 0.0 if sensor is None else sensor], np.float32)
        return Decision(scores, int(scores.argmax()), 0, scores[None])


class Questions:
    def ask(self) -> Question | None:
        return Question("go", np.zeros((2, 3, 7), np.float32))


@dataclass
class World:
    """A loop in simulated time, and what it did."""

    clock: SimulatedClock
    loop: Loop
    plan: LoopPlan
    camera: Any
    ensemble: Any
    outcomes: list[Outcome] = field(default_factory=list)

    def run(self, seconds: float, act: Callable[[Outcome], None] | None = None) -> LoopReport:
        def both(outcome: Outcome) -> None:
            self.outcomes.append(outcome)
            if act is not None:
                act(outcome)

        return self.loop.run(both, seconds=seconds)

    def decided(self) -> list[Decided]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Decided)]

    def refused(self) -> list[Refused]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Refused)]

    def begun(self, name: str) -> list[int]:
        return [moment for each, moment in self.ensemble.begun if each == name]

    def must_be_refused(self, outcome: Outcome) -> set[str]:
        """The slow reference: what an outcome must be refused for, from what the ensemble finished when."""
        number = newest_before(self.ensemble.frames, outcome.started_ns)
        ages = {"frame": (None if number is None else self.camera.captured_ns(number), self.plan.frame_bound_ms)}
        if self.plan.sensor_bound_ms is not None:
            ages["sensor"] = (newest_before(self.ensemble.windows, outcome.started_ns), self.plan.sensor_bound_ms)
        reasons = {f"no {name}" for name, (stamp, _) in ages.items() if stamp is None}
        present = {name: (stamp, bound) for name, (stamp, bound) in ages.items() if stamp is not None}
        return reasons | {f"{n} too old" for n, (s, bound) in present.items() if outcome.finished_ns - s > bound * MS}


def newest_before(entries: Sequence[tuple[int, int]], moment_ns: int) -> int | None:
    """Of (finished, value) in order, the value that was finished last, at a moment at the latest."""
    place = bisect.bisect_right([finished for finished, _ in entries], moment_ns)
    return entries[place - 1][1] if place else None


def make_world(
    plan: LoopPlan,
    *,
    camera: Callable[[SimulatedClock], Any] = FakeCamera,
    sensor: Callable[[SimulatedClock], Any] | None = FakeSensor,
    ensemble: Callable[[SimulatedClock], Any] = FakeEnsemble,
    questions: Any = None,
    observer: Callable[[Record], None] | None = None,
) -> World:
    clock = SimulatedClock()
    made = camera(clock), ensemble(clock)
    sources = Sources(made[0], questions or Questions(), None if sensor is None else sensor(clock))
    return World(clock, Loop(made[1], sources, plan, clock=clock, observer=observer), plan, *made)
