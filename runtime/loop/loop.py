"""The loop: vision, sensor encoding and scoring over one ensemble, each at its own rate."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from types import TracebackType

import numpy as np

from trunkline.runtime.errors import InputError
from trunkline.runtime.exact import is_number
from trunkline.runtime.loop.clock import Clock, Started, SystemClock
from trunkline.runtime.loop.encoding import Encoder, Encoding, Patience
from trunkline.runtime.loop.features import Newest
from trunkline.runtime.loop.outcome import Outcome, Record
from trunkline.runtime.loop.plan import TOLERATED, LoopPlan, Rate, nanoseconds
from trunkline.runtime.loop.schedule import Grid, Tick, Ticker
from trunkline.runtime.loop.scoring import Scoring
from trunkline.runtime.loop.sources import Frame, Scorer, SensorSource, Sources
from trunkline.runtime.loop.statistics import LoopReport, LoopStatistics
from trunkline.runtime.sensor.window import SensorWindow

Act = Callable[[Outcome], None]
Observer = Callable[[Record], None]

#: How long the end of a loop waits for a camera, a sensor or an encoder that is at work.
SHUTDOWN_S = 5.0


class Loop:
    """Vision, sensor encoding and scoring, each at its own rate. A loop runs once.

    Threads: :meth:`run` scores on the thread that calls it, and starts one thread for vision and one for the sensor,
    which end before it returns. :meth:`stop` and :meth:`report` may be called from any thread. A process that is forked
    while a loop runs does not have the loop; it may run one of its own, over an ensemble of its own.
    """

    def __init__(
        self,
        scorer: Scorer,
        sources: Sources,
        plan: LoopPlan,
        *,
        clock: Clock | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Prepares a loop; nothing is read and no thread is started before :meth:`run`.

        Args:
            scorer: an ensemble, or what behaves like one.
            sources: what feeds it.
            plan: rates and bounds.
            clock: real time by default.
            observer: is told of every scoring tick, after the outcome was acted on, on the thread that scores.

        Raises:
            InputError: no loop can run by this plan, with every reason.
        """
        plan.check(with_sensor=sources.sensor is not None)
        self._scorer, self._sources, self._plan = scorer, sources, plan
        self._clock = SystemClock() if clock is None else clock
        self._observer = observer
        tolerated = (*TOLERATED, *plan.tolerated)
        self._statistics = LoopStatistics(tolerated, self._clock.now_ns)
        self._frames, self._windows = Newest[Frame](), Newest[SensorWindow]()
        self._claim = threading.Lock()
        self._ended = threading.Event()
        self._stopped = False
        self._failure: BaseException | None = None
        self._claim_failure = threading.Lock()
        self._process = os.getpid()

    def run(self, act: Act, *, seconds: float | None = None) -> LoopReport:
        """Runs until the time is over or :meth:`stop` is called.

        Args:
            act: is given the outcome of every scoring tick, at once. The next tick waits for it to return.
            seconds: how long; by default until :meth:`stop`.

        Returns:
            What happened.

        Raises:
            InputError: the loop ran before, ``seconds`` is no duration, or a source did not return at the end.
            Exception: whatever ``act``, a source, the ensemble or the observer raised that is not tolerated.
        """
        if seconds is not None and not (is_number(seconds) and seconds > 0):
            raise InputError("a loop cannot run for this long", expected="seconds above 0", found=seconds)
        if not self._claim.acquire(blocking=False):
            raise InputError("a loop runs once", fix="make another Loop")
        self._process = os.getpid()
        try:
            self._run(act, seconds)
        finally:
            self._ended.set()
        return self.report()

    def stop(self) -> None:
        """Ends the loop soon, from any thread, also before it runs; it does not wait."""
        if os.getpid() == self._process:
            self._stopped = True
            self._clock.notify()

    def report(self) -> LoopReport:
        """Rates, ages, refusals and errors so far, from any thread."""
        return self._statistics.report()

    def __enter__(self) -> Loop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the loop, and waits for its end if it runs on another thread."""
        self.stop()
        if self._claim.locked() and os.getpid() == self._process:
            self._ended.wait()

    def _run(self, act: Act, seconds: float | None) -> None:
        self._statistics.begin()
        begin_ns = self._clock.now_ns()
        workers: list[Started] = []
        try:
            workers.append(self._start("vision", self._vision(), self._ticker(self._plan.vision, begin_ns)))
            if (sensor := self._sources.sensor) is not None:
                workers.append(self._start("sensor", self._sensor(sensor), self._ticker(self._plan.sensor, begin_ns)))
            self._score_until(None if seconds is None else begin_ns + round(seconds * 1e9), act, begin_ns)
        except BaseException as failure:  # raised by run(), once the threads have ended
            self._fail(failure)
        finally:
            self.stop()
            self._statistics.end()
            stuck = [worker.name for worker in workers if not worker.join(SHUTDOWN_S)]
        if self._failure is not None:
            raise self._failure
        if stuck:
            raise InputError(
                f"a task did not end within {SHUTDOWN_S:g} s of the loop's end; its thread is left behind",
                found=stuck,
                fix="let sources return, or raise, within that time",
            )

    def _score_until(self, end_ns: int | None, act: Act, begin_ns: int) -> None:
        ticker = self._ticker(self._plan.scoring, begin_ns, self._plan.deadline_ns)
        scoring = self._scoring()
        while not self._stopped:
            self._clock.wait_until(ticker.next_ns if end_ns is None else min(ticker.next_ns, end_ns), self._is_stopped)
            now_ns = self._clock.now_ns()
            if end_ns is not None and now_ns >= end_ns:
                return
            tick = ticker.take(now_ns)
            self._statistics.scoring.missed(ticker.missed)
            if tick is not None and not self._stopped:
                ticker.began(now_ns)
                self._score(scoring, tick, act)

    def _score(self, scoring: Scoring, tick: Tick, act: Act) -> None:
        record = scoring.run(tick, self._clock, self._is_stopped)
        self._statistics.outcome(record.outcome)
        act(record.outcome)
        if self._observer is not None:
            with self._statistics.observer.tolerated():
                self._observer(record)

    def _ticker(self, rate: Rate, begin_ns: int, patience_ns: int | None = None) -> Ticker:
        return Ticker(Grid(begin_ns + rate.phase_ns, rate.period_ns), patience_ns)

    def _vision(self) -> Encoding[Frame]:
        camera, scorer = self._sources.camera, self._scorer
        encoder = Encoder(
            camera.read,
            lambda frame: frame.captured_ns,
            lambda frame: scorer.encode_frame(frame.image),
            self._kept_frame,
        )
        return Encoding(encoder, self._frames, self._patience(), self._statistics.vision)

    def _sensor(self, sensor: SensorSource) -> Encoding[SensorWindow]:
        encoder = Encoder(sensor.latest, lambda window: window.end_ns, self._scorer.encode_sensor, self._kept_window)
        return Encoding(encoder, self._windows, self._patience(), self._statistics.sensor)

    def _scoring(self) -> Scoring:
        return Scoring(
            self._scorer,
            self._sources.questions,
            self._plan,
            frames=self._frames,
            windows=None if self._sources.sensor is None else self._windows,
            statistics=self._statistics.scoring,
        )

    def _patience(self) -> Patience:
        return Patience(nanoseconds(self._plan.poll_ms), nanoseconds(self._plan.future_ms))

    def _kept_frame(self, frame: Frame) -> Frame:
        """What an observer is shown must not change when the camera writes the next image."""
        if self._observer is None:
            return frame
        image = frame.image.copy()
        if isinstance(image, np.ndarray):
            image.setflags(write=False)
        return Frame(image, frame.captured_ns)

    def _kept_window(self, window: SensorWindow) -> SensorWindow:
        if self._observer is None:
            return window
        samples = window.samples.copy()
        samples.setflags(write=False)
        return dataclasses.replace(window, samples=samples)

    def _start(self, name: str, task: Encoding[Frame] | Encoding[SensorWindow], ticker: Ticker) -> Started:
        def body() -> None:
            try:
                task.run(ticker, self._clock, self._is_stopped)
            except BaseException as failure:  # carried to the thread that called run(), and raised there
                self._fail(failure)

        return self._clock.start(f"trunkline-{name}", body)

    def _fail(self, failure: BaseException) -> None:
        """Keeps what is to be raised to the caller; a second failure shows both, wherever it ends."""
        with self._claim_failure:
            first = self._failure
            self._failure = first or failure
        self.stop()
        if first is not None:
            raise failure from first

    def _is_stopped(self) -> bool:
        return self._stopped
