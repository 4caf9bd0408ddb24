"""What the user asks of the loop: how often each part runs, and how old its input may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trunkline.runtime.errors import BackendError, InputError
from trunkline.runtime.exact import is_number, told

#: A period shorter than this is not kept by an operating system that is not made for it.
MAX_HZ = 1000.0
MIN_HZ = 0.001
MAX_BOUND_MS = 3_600_000.0
_DURATIONS = ("frame_bound", "sensor_bound", "deadline", "wait", "poll", "future")
#: What a camera, a sensor or the ensemble may raise without ending the loop. ClosedError is none of them.
TOLERATED: tuple[type[Exception], ...] = (InputError, BackendError, OSError)


@dataclass(frozen=True)
class Rate:
    """How often a task runs.

    Attributes:
        hz: ticks per second. The period is a whole number of nanoseconds.
        phase_ms: when the first tick is due, after the loop has started; less than a period.
    """

    hz: float
    phase_ms: float = 0.0

    @property
    def period_ns(self) -> int:
        """Nanoseconds from tick to tick."""
        return round(1e9 / self.hz)

    @property
    def phase_ns(self) -> int:
        """Nanoseconds from the start of the loop to the first tick."""
        return nanoseconds(self.phase_ms)


@dataclass(frozen=True)
class LoopPlan:
    """Rates and bounds of a loop. All durations are in milliseconds.

    Attributes:
        frame_bound_ms: a decision on a frame that was captured longer ago than this is refused. No default: how fast
            the scene changes is known to the user alone.
        sensor_bound_ms: the same for the last sample of the sensor's window; needed if the loop has a sensor.
        vision: how often a frame is encoded, at most. Above the camera's rate, each frame is encoded once, as soon as
            it is there; at just the camera's rate, it may wait for up to a period, as the phases will have it.
        sensor: how often a sensor window is encoded, at most.
        scoring: how often candidates are scored.
        deadline_ms: after its tick a decision is late from then on; by default a period of ``scoring``.
        wait_ms: so long after its tick a scoring waits for features that are being computed; then it takes what is
            finished.
        poll_ms: a task whose source had nothing new at its tick looks again in such steps.
        future_ms: a stamp this far ahead of the clock is still taken, for clocks that agree only roughly.
        tolerated: further exceptions that a source may raise without ending the loop, such as a camera driver's own.
    """

    frame_bound_ms: float
    sensor_bound_ms: float | None = None
    vision: Rate = Rate(10)
    sensor: Rate = Rate(10)
    scoring: Rate = Rate(10)
    deadline_ms: float | None = None
    wait_ms: float = 0.0
    poll_ms: float = 5.0
    future_ms: float = 10.0
    tolerated: tuple[type[Exception], ...] = ()

    @property
    def deadline_ns(self) -> int:
        """Nanoseconds from a scoring tick to its deadline."""
        return self.scoring.period_ns if self.deadline_ms is None else nanoseconds(self.deadline_ms)

    def check(self, *, with_sensor: bool) -> None:
        """Raises InputError, with every reason, if no loop can run by this plan."""
        problems = list(self._not_numbers()) or [*self._rate_problems(), *self._duration_problems()]
        problems += self._sensor_problems(with_sensor)
        if problems:
            raise InputError("no loop can run by this plan", found=problems)

    def _not_numbers(self) -> Iterator[str]:
        """What cannot be compared with anything; NaN and infinity are told with the bounds that they break."""
        values: dict[str, object] = {f"{name}_ms": getattr(self, f"{name}_ms") for name in _DURATIONS}
        for name in ("vision", "sensor", "scoring"):
            rate = getattr(self, name)
            values |= {f"{name}.hz": rate.hz, f"{name}.phase_ms": rate.phase_ms}
        optional = ("sensor_bound_ms", "deadline_ms")
        for name, value in values.items():
            if not (is_number(value) or isinstance(value, float) or (value is None and name in optional)):
                yield f"{name} is {told(value)}, not a number"

    def _rate_problems(self) -> Iterator[str]:
        for name, rate in (("vision", self.vision), ("sensor", self.sensor), ("scoring", self.scoring)):
            if not MIN_HZ <= rate.hz <= MAX_HZ:
                yield f"{name}.hz is {rate.hz:g}, not {MIN_HZ:g} to {MAX_HZ:g}"
            elif not 0 <= rate.phase_ms < 1000 / rate.hz:
                yield f"{name}.phase_ms is {rate.phase_ms:g}, not from 0 to less than a period, {1000 / rate.hz:g}"

    def _duration_problems(self) -> Iterator[str]:
        durations = {"frame_bound_ms": self.frame_bound_ms, "poll_ms": self.poll_ms}
        if self.sensor_bound_ms is not None:
            durations["sensor_bound_ms"] = self.sensor_bound_ms
        if self.deadline_ms is not None:
            durations["deadline_ms"] = self.deadline_ms
        for name, value in durations.items():
            if not 0 < value <= MAX_BOUND_MS:
                yield f"{name} is {value:g}, not above 0 and up to {MAX_BOUND_MS:g}"
        for name, value in {"wait_ms": self.wait_ms, "future_ms": self.future_ms}.items():
            if not 0 <= value <= MAX_BOUND_MS:
                yield f"{name} is {value:g}, not 0 to {MAX_BOUND_MS:g}"
        if is_number(self.wait_ms) and self.scoring.hz > 0 and nanoseconds(self.wait_ms) > self.deadline_ns:
            yield f"wait_ms is {self.wait_ms:g}, behind the deadline"

    def _sensor_problems(self, with_sensor: bool) -> Iterator[str]:
        if with_sensor and self.sensor_bound_ms is None:
            yield "there is a sensor, and sensor_bound_ms does not say how old its samples may be"
        if not with_sensor and self.sensor_bound_ms is not None:
            yield "sensor_bound_ms is set, and there is no sensor"


def nanoseconds(milliseconds: float) -> int:
    """A duration as a whole number of nanoseconds."""
    return round(milliseconds * 1e6)
