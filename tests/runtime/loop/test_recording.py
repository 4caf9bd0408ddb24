"""A recorder is told everything that a scoring tick saw and gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from tests.replay_kit import HEADER, UNSYNCED, histories, image, of_kind
from tests.runtime.loop.fakes import SECOND, FakeCamera, FakeEnsemble, World, make_world
from trunkline.runtime import Decision
from trunkline.runtime.loop import Decided, Frame, LoopPlan, Question, Rate, Record, Refused, recorded_by
from trunkline.runtime.replay import Recorder
from trunkline.runtime.replay.front import Front, Seen
from trunkline.runtime.replay.payloads import Decided as RecordedDecision

PLAN = LoopPlan(500, 200, vision=Rate(5, 150), sensor=Rate(20, 3.7), scoring=Rate(10, 1.3), deadline_ms=30)


class Noting:
    """Stands for a recorder."""

    def __init__(self) -> None:
        self.calls: list[tuple[Seen, Decision | None, int, tuple[str, ...]]] = []

    def decision(self, seen: Seen, decision: Decision | None, stamp_ns: int, *, marks: Any = ()) -> None:
        self.calls.append((seen, decision, stamp_ns, tuple(marks)))


def recorded() -> tuple[Noting, list[Record], World]:
    noting, records = Noting(), list[Record]()
    record_it = recorded_by(cast(Front, noting))

    def observer(record: Record) -> None:
        records.append(record)
        record_it(record)

    world = make_world(
        PLAN,
        camera=lambda clock: FakeCamera(clock, dead=[(4, 6)]),
        ensemble=lambda clock: FakeEnsemble(clock, score_ms=lambda at: 35 if at > 8000 else 10),
        observer=observer,
    )
    world.run(10)
    return noting, records, world


def test_every_tick_is_recorded_as_it_was() -> None:
    noting, records, world = recorded()
    assert len(noting.calls) == len(world.outcomes) == 100
    for (seen, decision, stamp_ns, marks), record in zip(noting.calls, records, strict=True):
        outcome = record.outcome
        assert stamp_ns == outcome.finished_ns
        assert (seen.frame_age_ns, seen.sensor_age_ns) == (outcome.frame_age_ns, outcome.sensor_age_ns)
        assert seen.window is record.window
        assert record.question is not None
        assert seen.histories is record.question.histories
        assert seen.instruction == "go"
        assert marks == outcome.marks
        if isinstance(outcome, Decided):
            assert record.frame is not None
            assert decision is outcome.decision
            assert seen.image is record.frame.image
            assert seen.frame_ns == record.frame.captured_ns
            assert seen.frame_ns + outcome.frame_age_ns == outcome.finished_ns
        else:
            assert decision is None


def test_what_a_refusal_saw_is_recorded_as_far_as_it_can_be(tmp_path: Path) -> None:
    """The camera's stamps are numpy's; the question is none that an ensemble takes, so there is no decision."""
    moment = {"tick": 0, "due_ns": 1, "started_ns": 2, "finished_ns": 9, "deadline_ns": 5, "frame_age_ns": 3}
    facts: dict[str, Any] = {**moment, "sensor_age_ns": None, "frame_pending": False, "sensor_pending": False}
    frame, bad = Frame(image(1), np.int64(6)), [np.full((4, 2), np.nan)]  # type: ignore[arg-type]
    with Recorder(tmp_path, HEADER, UNSYNCED) as recorder:
        observe = recorded_by(recorder)
        for question in (Question(7, bad), Question("go", histories(0)), None):  # type: ignore[arg-type]
            observe(Record(Refused(**facts, reasons=("error",)), frame, None, question))
    assert (recorder.dropped, recorder.failure) == ({}, None)
    metas = [entry.meta for entry in of_kind(tmp_path, RecordedDecision)]
    assert [meta.marks for meta in metas] == [
        ("error", "late", "unusable candidates", "unusable instruction"),
        ("error", "late"),
        ("error", "late"),
    ]
    assert [(meta.stamp_ns, meta.frame_ns, meta.frame_age_ns) for meta in metas] == [(9, 6, 3)] * 3
    assert [meta.candidates is None for meta in metas] == [True, False, True]


def test_marks() -> None:
    _, _, world = recorded()
    assert isinstance(world.outcomes[0], Refused)
    assert world.outcomes[0].marks == ("no frame", "no sensor")
    assert {each.marks for each in world.refused() if each.due_ns > 5 * SECOND} == {("frame too old",)}
    assert {each.marks for each in world.decided() if each.due_ns < 4 * SECOND} == {(), ("frame pending",)}
    assert {each.marks for each in world.decided() if each.due_ns > 9 * SECOND} == {("late",)}
