"""A recorder is told everything that a scoring tick saw and gave."""

from __future__ import annotations

from typing import Any, cast

from tests.runtime.loop.fakes import SECOND, FakeCamera, FakeEnsemble, World, make_world
from trunkline.runtime import Decision
from trunkline.runtime.loop import Decided, LoopPlan, Rate, Record, Refused, recorded_by
from trunkline.runtime.replay.front import Front, Seen

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


def test_marks() -> None:
    _, _, world = recorded()
    assert isinstance(world.outcomes[0], Refused)
    assert world.outcomes[0].marks == ("no frame", "no sensor")
    assert {each.marks for each in world.refused() if each.due_ns > 5 * SECOND} == {("frame too old",)}
    assert {each.marks for each in world.decided() if each.due_ns < 4 * SECOND} == {(), ("frame pending",)}
    assert {each.marks for each in world.decided() if each.due_ns > 9 * SECOND} == {("late",)}
