"""A recorder as the observer of a loop."""

from __future__ import annotations

from trunkline.runtime.loop.loop import Observer
from trunkline.runtime.loop.outcome import Decided, Record
from trunkline.runtime.replay.front import Front, Seen


def recorded_by(recorder: Front) -> Observer:
    """An observer that has every scoring tick recorded, refusals too: what it saw, what came of it, and its marks.

    ::

        with Recorder("logs/today", header_of(ensemble.bundle)) as recorder:
            with Loop(ensemble, sources, plan, observer=recorded_by(recorder)) as loop:
                loop.run(act)

    The sensor's stream and frames that no decision was made on are recorded only by whoever hands them to the recorder.
    """

    def observe(record: Record) -> None:
        outcome, question, frame = record.outcome, record.question, record.frame
        seen = Seen(
            instruction=None if question is None else question.instruction,
            histories=None if question is None else question.histories,
            image=None if frame is None else frame.image,
            frame_ns=None if frame is None else frame.captured_ns,
            window=record.window,
            frame_age_ns=outcome.frame_age_ns,
            sensor_age_ns=outcome.sensor_age_ns,
        )
        decision = outcome.decision if isinstance(outcome, Decided) else None
        recorder.decision(seen, decision, outcome.finished_ns, marks=outcome.marks)

    return observe
