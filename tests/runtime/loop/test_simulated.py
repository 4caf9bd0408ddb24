"""Loops in simulated time: rates, staleness at every tick, deadlines, and parts that are late."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from tests.runtime.loop.fakes import MS, SECOND, FakeCamera, FakeEnsemble, FakeSensor, World, make_world
from trunkline.runtime.loop import Decided, LoopPlan, Rate, SimulatedClock

PLAN = LoopPlan(frame_bound_ms=500, sensor_bound_ms=150, vision=Rate(5), sensor=Rate(20, 3.7), scoring=Rate(10, 1.3))


def phased(clock: SimulatedClock) -> FakeCamera:
    return FakeCamera(clock, phase_ms=37.123)


def starts(world: World) -> list[int]:
    return [outcome.started_ns for outcome in world.outcomes]


def dues(rate: Rate, count: int) -> list[int]:
    return [rate.phase_ns + tick * rate.period_ns for tick in range(count)]


def test_ten_minutes_without_drift() -> None:
    world = make_world(PLAN, camera=phased)
    report = world.run(600)
    assert world.clock.now_ns() == 600 * SECOND
    assert [outcome.tick for outcome in world.outcomes] == list(range(6000))
    assert starts(world) == dues(PLAN.scoring, 6000)
    assert world.begun("sensor") == dues(PLAN.sensor, 12000)
    assert (report.vision.runs, report.sensor.runs, report.scoring.runs) == (3000, 12000, 6000)
    assert (report.vision.rate_hz, report.sensor.rate_hz, report.scoring.rate_hz) == (5, 20, 10)
    assert report.vision.missed == report.sensor.missed == report.scoring.missed == report.late == 0
    assert report.decided == len(world.decided()) == 5998
    assert report.refused == {"no frame": 2, "no sensor": 1}


def test_staleness_at_every_tick() -> None:
    world = make_world(PLAN, camera=phased)
    world.run(60)
    # A frame is 20 ms under way, waits up to 5 ms for the task to look again, is encoded in 60 ms, and is the newest
    # for 200 ms; scoring takes 10 ms.
    assert all(95 * MS <= each.frame_age_ns <= 295 * MS for each in world.decided() if each.frame_age_ns)
    # A window ends up to a sample (1.54 ms) before its tick, is encoded in 8 ms, and is the newest for 50 ms.
    assert all(18 * MS <= each.sensor_age_ns <= (60 + 10) * MS for each in world.decided() if each.sensor_age_ns)
    assert not any(world.must_be_refused(outcome) for outcome in world.decided())


def test_every_decision_is_made_of_the_newest_finished_features() -> None:
    world = make_world(PLAN, camera=phased)
    world.run(30)
    for outcome in world.decided():
        number, stamp = outcome.decision.scores.tolist()
        assert outcome.frame_age_ns == outcome.finished_ns - world.camera.captured_ns(int(number))
        assert abs(outcome.sensor_age_ns - (outcome.finished_ns - stamp)) < 2048  # the stamp went through float32
        assert not outcome.sensor_pending or outcome.sensor_age_ns > 50 * MS


def messy(seed: int) -> World:
    """A world in which everything varies, from any numbers that can occur."""
    source = random.Random(seed)

    def cost(typical: float) -> Any:
        slow = source.random() < 0.5
        return lambda at_ms: typical * source.uniform(0.2, 2.5) * (20 if slow and source.random() < 0.05 else 1)

    def spans(count: int, longest: float) -> list[tuple[float, float]]:
        begins = sorted(source.uniform(0, 18) for _ in range(source.randrange(count)))
        return [(begin, begin + source.uniform(0, longest)) for begin in begins]

    jumps = [(begin, end, source.uniform(-400, 400)) for begin, end in spans(3, 3)]
    plan = LoopPlan(
        frame_bound_ms=source.uniform(250, 700),
        sensor_bound_ms=source.uniform(40, 300),
        vision=Rate(source.choice([3, 5, 30]), source.uniform(0, 30)),
        sensor=Rate(source.choice([10, 20.3, 50]), source.uniform(0, 19)),
        scoring=Rate(source.choice([10, 13.7, 40]), source.uniform(0, 20)),
        deadline_ms=source.choice([None, 20, 60]),
        wait_ms=source.choice([0, 0, 15]),
    )
    return make_world(
        plan,
        camera=lambda clock: FakeCamera(clock, source.uniform(30, 300), source.uniform(0, 29), 13.37, spans(3, 2)),
        sensor=lambda clock: FakeSensor(clock, 650, jumps, spans(3, 1)),
        ensemble=lambda clock: FakeEnsemble(clock, cost(50), cost(8), cost(9)),
    )


@pytest.mark.parametrize("seed", range(40))
def test_any_world(seed: int) -> None:
    """Refused exactly if it must be; nothing early, nothing twice, nothing drifts, everything is counted."""
    world = messy(seed)
    report = world.run(20)
    for outcome in world.outcomes:
        refused = set() if isinstance(outcome, Decided) else set(outcome.reasons)
        assert refused == world.must_be_refused(outcome)
    numbers = [outcome.tick for outcome in world.outcomes]
    assert numbers == sorted(set(numbers))
    for outcome in world.outcomes:
        assert outcome.due_ns == world.plan.scoring.phase_ns + outcome.tick * world.plan.scoring.period_ns
        assert outcome.due_ns <= outcome.started_ns
    for name in ("vision", "sensor"):
        rate, begun = getattr(world.plan, name), world.begun(name)
        assert all(later - begin >= rate.period_ns // 2 for begin, later in itertools.pairwise(begun))
        assert len(begun) <= 20 * rate.hz + 1
        task = getattr(report, name)
        assert task.runs == len(begun)
        past = task.runs + task.missed + task.idle + task.future + task.backward
        # What is missed during the last run is not counted, and that run may last until after the end.
        assert begun[-1] / SECOND * rate.hz - 2 <= past <= world.clock.now_ns() / SECOND * rate.hz + 1
    assert report.scoring.runs == len(numbers) == report.decided + len(world.refused())
    assert report.scoring.runs + report.scoring.missed == numbers[-1] + 1


def test_the_same_world_does_the_same() -> None:
    first, again = messy(3), messy(3)
    assert first.run(10) == again.run(10)
    assert [repr(each) for each in first.outcomes] == [repr(each) for each in again.outcomes]


def test_a_camera_that_blocks_delays_vision_alone() -> None:
    world = make_world(PLAN, camera=lambda clock: FakeCamera(clock, stuck=[(5, 8)]))
    report = world.run(20)
    assert starts(world) == dues(PLAN.scoring, 200)
    assert world.begun("sensor") == dues(PLAN.sensor, 400)
    assert not [begin for begin in world.begun("vision") if 5.1 * SECOND < begin < 8 * SECOND]
    assert report.vision.missed in (14, 15)
    too_old = [each for each in world.refused() if each.reasons == ("frame too old",)]
    assert 5.3 * SECOND < too_old[0].due_ns < 5.6 * SECOND
    assert 8 * SECOND < too_old[-1].due_ns < 8.2 * SECOND  # vision begins with the frame that is there then
    assert [each.tick for each in too_old] == list(range(too_old[0].tick, too_old[-1].tick + 1))


def test_slow_vision_is_marked_and_never_waited_for() -> None:
    world = make_world(PLAN, ensemble=lambda clock: FakeEnsemble(clock, lambda at: 330 if at > 5000 else 60))
    report = world.run(20)
    assert starts(world) == dues(PLAN.scoring, 200)
    late = [each for each in world.decided() if each.due_ns > 6 * SECOND]
    assert sum(each.frame_pending for each in late) > 0.9 * len(late)
    assert report.frame_pending == sum(each.frame_pending for each in world.decided())
    # 330 ms do not fit into 200: vision runs back to back, not at every second tick.
    begun = [begin for begin in world.begun("vision") if begin > 6 * SECOND]
    assert {later - begin for begin, later in itertools.pairwise(begun)} == {330 * MS}


def test_late_decisions_are_marked() -> None:
    plan = LoopPlan(500, 500, scoring=Rate(10), deadline_ms=40)
    world = make_world(plan, ensemble=lambda clock: FakeEnsemble(clock, score_ms=lambda at: 70 if at > 5000 else 30))
    report = world.run(10)
    assert starts(world) == dues(plan.scoring, 100)
    assert [each.late for each in world.decided()] == [each.due_ns > 5 * SECOND for each in world.decided()]
    assert report.late == sum(each.late for each in world.decided()) == 49
    assert {each.deadline_ns - each.due_ns for each in world.outcomes} == {40 * MS}


def test_scoring_that_cannot_meet_its_deadline_any_more_is_missed() -> None:
    plan = LoopPlan(5000, 5000, scoring=Rate(10), deadline_ms=40)
    world = make_world(plan, ensemble=lambda clock: FakeEnsemble(clock, score_ms=150))
    report = world.run(10)
    # The next tick is 50 ms old when one is done, and the one after it is due 50 ms later.
    decided = [each.tick for each in world.decided()]
    assert decided == list(range(decided[0], 100, 2))
    assert all(each.started_ns == each.due_ns for each in world.outcomes)
    assert report.scoring.missed == 100 - len(world.outcomes)


def test_waiting_for_features_that_are_being_computed() -> None:
    frames, vision = {"camera": lambda clock: FakeCamera(clock, transfer_ms=0)}, Rate(5)
    plan = LoopPlan(500, 150, vision=vision, scoring=Rate(5, 20), deadline_ms=100, wait_ms=80)
    fast = make_world(plan, **frames, ensemble=lambda clock: FakeEnsemble(clock, vision_ms=70))
    fast.run(10)
    assert {each.started_ns - each.due_ns for each in fast.decided()} == {50 * MS}
    assert {each.frame_age_ns for each in fast.decided()} == {80 * MS}
    assert not any(each.frame_pending or each.late for each in fast.decided())

    slow = make_world(plan, **frames, ensemble=lambda clock: FakeEnsemble(clock, vision_ms=130))
    slow.run(10)
    assert {each.started_ns - each.due_ns for each in slow.decided()} == {80 * MS}
    assert {each.frame_age_ns for each in slow.decided()} == {(200 + 20 + 80 + 10) * MS}
    assert all(each.frame_pending and not each.late for each in slow.decided())


def test_features_that_pass_their_bound_while_scoring_are_refused() -> None:
    plan = LoopPlan(frame_bound_ms=300, scoring=Rate(10, 50), deadline_ms=1000)
    slow = lambda clock: FakeEnsemble(clock, score_ms=lambda at: 400 if 4000 < at < 4100 else 10)  # noqa: E731
    world = make_world(plan, sensor=None, ensemble=slow)
    world.run(10)
    missed = [each for each in world.refused() if each.due_ns == 4.05 * SECOND]
    assert [each.reasons for each in missed] == [("frame too old",)]
    assert len(world.begun("scoring")) == len(world.decided()) + 1


def test_a_frame_just_after_its_tick_does_not_wait_for_the_next() -> None:
    world = make_world(PLAN, camera=lambda clock: FakeCamera(clock, phase_ms=1, transfer_ms=0))
    world.run(10)
    assert {begin % (200 * MS) for begin in world.begun("vision")} == {5 * MS}


def test_a_camera_without_news_leaves_vision_idle() -> None:
    world = make_world(LoopPlan(500, 150, vision=Rate(20)), camera=phased)
    report = world.run(10)
    assert report.vision.runs == 50
    assert report.vision.idle == 150
    assert report.vision.missed == 0


def test_without_a_sensor() -> None:
    world = make_world(LoopPlan(frame_bound_ms=500), sensor=None)
    report = world.run(5)
    assert report.decided == 49
    assert {each.sensor_age_ns for each in world.decided()} == {None}
    assert {float(each.decision.scores[1]) for each in world.decided()} == {0.0}
    assert report.sensor.runs == 0
