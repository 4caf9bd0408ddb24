"""What a loop has done so far: rates, missed ticks, ages, refusals, errors. Bounded memory, readable at any time.

Durations are counted in histograms, errors in a counter and the text of the last one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from trunkline.runtime.loop.features import Verdict
from trunkline.runtime.loop.histogram import Histogram, Spread
from trunkline.runtime.loop.outcome import REASONS, Decided, Outcome, Reason

#: Of an error's text.
MAX_ERROR_CHARS = 2000


@dataclass(frozen=True)
class TaskReport:
    """One task.

    Attributes:
        runs: ticks whose work was done, also if it failed.
        rate_hz: runs per second of the loop.
        missed: ticks that did not run since the task was busy.
        idle: ticks at which the source had nothing new.
        future: items refused since their stamp lay ahead of the clock.
        backward: items refused since their stamp lay before that of the features in use.
        errors: exceptions that were tolerated.
        last_error: type and text of the last of them.
        run: how long runs took in which the ensemble had something to do.
        lateness: from the moment a tick was due to the start of its run.
        interval: from one run's start to the next one's.
    """

    runs: int
    rate_hz: float
    missed: int
    idle: int
    future: int
    backward: int
    errors: int
    last_error: str | None
    run: Spread
    lateness: Spread
    interval: Spread


@dataclass(frozen=True)
class LoopReport:
    """The whole loop.

    Attributes:
        seconds: since it started.
        vision: encoding of frames.
        sensor: encoding of windows; all zero without a sensor.
        scoring: one run for each outcome.
        decided: outcomes with a decision.
        refused: outcomes without, by reason; one that had two reasons counts under both.
        late: decisions after their deadline.
        frame_pending: decisions while a newer frame was being encoded.
        sensor_pending: the same for a newer window.
        frame_age: of the frame at each decision.
        sensor_age: of the sensor's last sample at each decision.
        observer_errors: exceptions of the observer that were tolerated.
        last_observer_error: type and text of the last of them.
    """

    seconds: float
    vision: TaskReport
    sensor: TaskReport
    scoring: TaskReport
    decided: int
    refused: Mapping[Reason, int]
    late: int
    frame_pending: int
    sensor_pending: int
    frame_age: Spread
    sensor_age: Spread
    observer_errors: int
    last_observer_error: str | None


class Errors:
    """Exceptions that are counted instead of raised. Threads: any."""

    def __init__(self, tolerated: tuple[type[Exception], ...]) -> None:
        self._tolerated = tolerated
        self._lock = threading.Lock()
        self.count = 0
        self.last: str | None = None

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Counts what the body raises, if it is of a tolerated kind; anything else passes."""
        try:
            yield
        except self._tolerated as error:
            self.add(error)

    def add(self, error: Exception) -> None:
        """Counts one."""
        with self._lock:
            self.count += 1
            self.last = f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]


class TaskStatistics:
    """Counts of one task. Threads: the task writes, any thread reads; a lock is held for a moment."""

    def __init__(self, tolerated: tuple[type[Exception], ...]) -> None:
        self.errors = Errors(tolerated)
        self._lock = threading.Lock()
        self._run, self._lateness, self._interval = Histogram(), Histogram(), Histogram()
        self._started_ns: int | None = None
        self._missed = self._runs = self._idle = 0
        self._verdicts: dict[Verdict, int] = {"future": 0, "backward": 0}

    def started(self, due_ns: int, now_ns: int) -> None:
        """A run begins."""
        with self._lock:
            self._lateness.add(now_ns - due_ns)
            if self._started_ns is not None:
                self._interval.add(now_ns - self._started_ns)
            self._started_ns = now_ns

    def ended(self, duration_ns: int | None) -> None:
        """A run is over; None if the ensemble had nothing to do in it."""
        with self._lock:
            self._runs += 1
            if duration_ns is not None:
                self._run.add(duration_ns)

    def missed(self, count: int) -> None:
        """So many ticks were missed up to now."""
        with self._lock:
            self._missed = count

    def idle(self) -> None:
        """A tick had nothing to work on."""
        with self._lock:
            self._idle += 1

    def refused(self, verdict: Verdict) -> None:
        """An item was not taken."""
        with self._lock:
            self._verdicts[verdict] += 1

    def report(self, seconds: float) -> TaskReport:
        """As of now, ``seconds`` after the start."""
        with self._lock:
            return TaskReport(
                runs=self._runs,
                rate_hz=self._runs / seconds if seconds > 0 else 0.0,
                missed=self._missed,
                idle=self._idle,
                future=self._verdicts["future"],
                backward=self._verdicts["backward"],
                errors=self.errors.count,
                last_error=self.errors.last,
                run=self._run.spread(),
                lateness=self._lateness.spread(),
                interval=self._interval.spread(),
            )


class LoopStatistics:
    """Counts of a loop. Threads: the loop writes, any thread reads."""

    def __init__(self, tolerated: tuple[type[Exception], ...], now_ns: Callable[[], int]) -> None:
        self.vision, self.sensor = TaskStatistics(tolerated), TaskStatistics(tolerated)
        self.scoring, self.observer = TaskStatistics(tolerated), Errors(tolerated)
        self._now_ns = now_ns
        self._span_ns: tuple[int, int | None] | None = None
        self._lock = threading.Lock()
        self._refused: dict[Reason, int] = dict.fromkeys(REASONS, 0)
        self._decided = self._late = self._frame_pending = self._sensor_pending = 0
        self._frame_age, self._sensor_age = Histogram(), Histogram()

    def begin(self) -> None:
        """The loop starts now."""
        self._span_ns = (self._now_ns(), None)

    def end(self) -> None:
        """The loop has ended; time stands still from here."""
        if self._span_ns is not None:
            self._span_ns = (self._span_ns[0], self._now_ns())

    def outcome(self, outcome: Outcome) -> None:
        """Counts what a scoring tick gave."""
        with self._lock:
            if isinstance(outcome, Decided):
                self._count_decision(outcome)
            else:
                for reason in outcome.reasons:
                    self._refused[reason] += 1

    def _count_decision(self, decided: Decided) -> None:
        self._decided += 1
        self._late += decided.late
        self._frame_pending += decided.frame_pending
        self._sensor_pending += decided.sensor_pending
        for age_ns, histogram in ((decided.frame_age_ns, self._frame_age), (decided.sensor_age_ns, self._sensor_age)):
            if age_ns is not None:
                histogram.add(age_ns)

    def report(self) -> LoopReport:
        """As of now."""
        seconds = self._seconds()
        tasks = {name: getattr(self, name).report(seconds) for name in ("vision", "sensor", "scoring")}
        with self._lock:
            return LoopReport(
                seconds=seconds,
                **tasks,
                decided=self._decided,
                refused={reason: count for reason, count in self._refused.items() if count},
                late=self._late,
                frame_pending=self._frame_pending,
                sensor_pending=self._sensor_pending,
                frame_age=self._frame_age.spread(),
                sensor_age=self._sensor_age.spread(),
                observer_errors=self.observer.count,
                last_observer_error=self.observer.last,
            )

    def _seconds(self) -> float:
        if self._span_ns is None:
            return 0.0
        begin_ns, end_ns = self._span_ns
        return ((self._now_ns() if end_ns is None else end_ns) - begin_ns) / 1e9
