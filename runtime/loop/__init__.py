"""A loop in which vision, sensor encoding and scoring each run at their own rate over one ensemble.

::

    from trunkline.runtime import load
    from trunkline.runtime.loop import Decided, Loop, LoopPlan, Rate, Sources

    def act(outcome):
        if isinstance(outcome, Decided) and not outcome.late:
            robot.execute(plans[outcome.decision.best])
        else:
            robot.hold()

    plan = LoopPlan(frame_bound_ms=500, sensor_bound_ms=150, vision=Rate(10), sensor=Rate(20), scoring=Rate(10))
    with load("bundle/") as ensemble, Loop(ensemble, Sources(camera, questions, sensor), plan) as loop:
        report = loop.run(act, seconds=30)

Scoring takes the newest features that are finished, and never waits for a camera. It tells how old they are, and
refuses what is older than the bounds: a :class:`Refused` has reasons and no scores. Ticks lie on an absolute grid of
time; see :mod:`trunkline.runtime.loop.schedule` for the rules, and :mod:`trunkline.runtime.loop.features` for which
stamps are believed. With a :class:`SimulatedClock` the same loop runs in simulated time.

What a camera, a sensor or the ensemble raises of the kinds in ``plan.TOLERATED`` is counted, and its task goes on at
its next tick. Anything else is a bug: it ends the loop and is raised by :meth:`Loop.run`.
"""

from trunkline.runtime.loop.cached import CachedSensor
from trunkline.runtime.loop.clock import Clock, SystemClock
from trunkline.runtime.loop.histogram import Spread
from trunkline.runtime.loop.live import LiveFrames
from trunkline.runtime.loop.loop import Loop
from trunkline.runtime.loop.outcome import Decided, Outcome, Record, Refused
from trunkline.runtime.loop.plan import LoopPlan, Rate
from trunkline.runtime.loop.recording import recorded_by
from trunkline.runtime.loop.simulation import SimulatedClock
from trunkline.runtime.loop.sources import (
    Frame,
    FrameSource,
    Question,
    QuestionSource,
    Scorer,
    SensorSource,
    Sources,
)
from trunkline.runtime.loop.statistics import LoopReport, TaskReport

__all__ = [
    "CachedSensor",
    "Clock",
    "Decided",
    "Frame",
    "FrameSource",
    "LiveFrames",
    "Loop",
    "LoopPlan",
    "LoopReport",
    "Outcome",
    "Question",
    "QuestionSource",
    "Rate",
    "Record",
    "Refused",
    "Scorer",
    "SensorSource",
    "SimulatedClock",
    "Sources",
    "Spread",
    "SystemClock",
    "TaskReport",
    "recorded_by",
]
