"""One scoring tick: the newest finished features are looked up, judged by their ages, and scored.

Ages are counted to the moment at which the outcome is handed over, so they are judged twice: before scoring, since
nothing is computed that must be refused, and after it, since features may have passed their bound meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from trunkline.runtime.loop.clock import Clock, Predicate
from trunkline.runtime.loop.features import Features, Item, Newest
from trunkline.runtime.loop.outcome import Decided, Outcome, Reason, Record, Refused
from trunkline.runtime.loop.plan import TOLERATED, LoopPlan, nanoseconds
from trunkline.runtime.loop.schedule import Tick
from trunkline.runtime.loop.sources import Frame, Question, QuestionSource, Scorer
from trunkline.runtime.loop.statistics import TaskStatistics
from trunkline.runtime.sensor.window import SensorWindow

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Seen:
    """The features that a tick works with."""

    frame: Features[Frame] | None
    window: Features[SensorWindow] | None
    frame_pending: bool
    sensor_pending: bool


class Scoring:
    """The task. Thread: the one that runs the loop."""

    def __init__(
        self,
        scorer: Scorer,
        questions: QuestionSource,
        plan: LoopPlan,
        *,
        frames: Newest[Frame],
        windows: Newest[SensorWindow] | None,
        statistics: TaskStatistics,
    ) -> None:
        self._scorer, self._questions, self._plan = scorer, questions, plan
        self._frames, self._windows = frames, windows
        self._statistics = statistics
        self._tolerated = (*TOLERATED, *plan.tolerated)
        self._wait_ns = nanoseconds(plan.wait_ms)

    def run(self, tick: Tick, clock: Clock, stopped: Predicate) -> Record:
        """What is decided or refused at a tick. What is not tolerated is raised."""
        if self._wait_ns:
            clock.wait_until(tick.due_ns + self._wait_ns, lambda: stopped() or not self._any_pending())
        started_ns = clock.now_ns()
        self._statistics.started(tick.due_ns, started_ns)
        question, error = self._tried(self._questions.ask)
        seen = self._look()
        reasons = (*self._too_old(seen, clock.now_ns()), *_unasked(question, error))
        decision, refused_at_once = None, bool(reasons)
        if question is not None and not reasons:
            decision, error = self._tried(lambda: self._score(seen, question))
        finished_ns = clock.now_ns()
        if not reasons:
            reasons = ("error",) if decision is None else tuple(self._too_old(seen, finished_ns))
        self._statistics.ended(None if refused_at_once else finished_ns - started_ns)
        moment = self._moment(tick, seen, started_ns, finished_ns)
        outcome: Outcome
        if decision is not None and not reasons:
            outcome = Decided(**moment, decision=decision)
        else:
            outcome = Refused(**moment, reasons=reasons, error=error)
        return Record(outcome, _item(seen.frame), _item(seen.window), question)

    def _look(self) -> _Seen:
        frame, frame_pending = self._frames.look()
        window, sensor_pending = self._windows.look() if self._windows else (None, False)
        return _Seen(frame, window, frame_pending, sensor_pending)

    def _any_pending(self) -> bool:
        seen = self._look()
        return seen.frame_pending or seen.sensor_pending

    def _too_old(self, seen: _Seen, now_ns: int) -> Iterator[Reason]:
        if seen.frame is None:
            yield "no frame"
        elif seen.frame.age_ns(now_ns) > nanoseconds(self._plan.frame_bound_ms):
            yield "frame too old"
        if self._plan.sensor_bound_ms is None:
            return
        if seen.window is None:
            yield "no sensor"
        elif seen.window.age_ns(now_ns) > nanoseconds(self._plan.sensor_bound_ms):
            yield "sensor too old"

    def _score(self, seen: _Seen, question: Question) -> Any:
        frame = seen.frame and seen.frame.value
        window = seen.window and seen.window.value
        return self._scorer.score(frame, question.instruction, question.histories, sensor=window)

    def _tried(self, call: Callable[[], Answer]) -> tuple[Answer | None, Exception | None]:
        """What a call returned, or the tolerated error that it raised, which is counted."""
        try:
            return call(), None
        except self._tolerated as error:
            self._statistics.errors.add(error)
            return None, error

    def _moment(self, tick: Tick, seen: _Seen, started_ns: int, finished_ns: int) -> dict[str, Any]:
        return {
            "tick": tick.number,
            "due_ns": tick.due_ns,
            "started_ns": started_ns,
            "finished_ns": finished_ns,
            "deadline_ns": tick.due_ns + self._plan.deadline_ns,
            "frame_age_ns": seen.frame.age_ns(finished_ns) if seen.frame else None,
            "sensor_age_ns": seen.window.age_ns(finished_ns) if seen.window else None,
            "frame_pending": seen.frame_pending,
            "sensor_pending": seen.sensor_pending,
        }


def _unasked(question: Question | None, error: Exception | None) -> Iterator[Reason]:
    if error is not None:
        yield "error"
    elif question is None:
        yield "no question"


def _item(features: Features[Item] | None) -> Item | None:
    return None if features is None else features.item
