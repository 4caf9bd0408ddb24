"""What may go wrong is counted and the loop goes on; what may not is raised to the caller."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runtime.loop.fakes import (
    MS,
    SECOND,
    FakeCamera,
    FakeEnsemble,
    FakeSensor,
    Questions,
    World,
    make_world,
    number_of,
    picture,
)
from trunkline.runtime.errors import BackendError, CandidateError, ClosedError, ImageError, InputError
from trunkline.runtime.loop import (
    Decided,
    Frame,
    Loop,
    LoopPlan,
    Outcome,
    Question,
    Rate,
    Record,
    Refused,
    SimulatedClock,
    Sources,
)
from trunkline.runtime.sensor.window import SensorWindow

PLAN = LoopPlan(500, 200, vision=Rate(5, 25), sensor=Rate(20, 3.7), scoring=Rate(10, 1.3))


class Driver(Exception):
    """What a camera's own library raises."""


def failing(kind: type, method: str, error: BaseException, begin_s: float = 2, end_s: float = 3) -> Any:
    """A fake that raises instead of working, for a while."""

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if begin_s * SECOND <= self.clock.now_ns() < end_s * SECOND:
            raise error
        return getattr(kind, method)(self, *arguments, **named)

    return type("Failing", (kind,), {method: call})


class TimedQuestions(Questions):
    """Questions that know the clock; there are none in ``silent`` (s)."""

    silent = (0, 0)

    def __init__(self) -> None:
        self.clock = SimulatedClock()

    def ask(self) -> Question | None:
        begin, end = self.silent
        return None if begin * SECOND <= self.clock.now_ns() < end * SECOND else super().ask()


def with_questions(kind: type[TimedQuestions], **parts: Any) -> World:
    questions = kind()
    world = make_world(PLAN, questions=questions, **parts)
    questions.clock = world.clock
    return world


@pytest.mark.parametrize("error", [OSError("no cable"), ImageError("black"), TimeoutError("late"), Driver("E17")])
def test_a_camera_that_raises(error: Exception) -> None:
    plan = LoopPlan(500, 200, vision=Rate(5, 25), sensor=Rate(20, 3.7), scoring=Rate(10, 1.3), tolerated=(Driver,))
    world = make_world(plan, camera=failing(FakeCamera, "read", error))
    report = world.run(6)
    assert report.vision.errors == 5
    assert report.vision.last_error == f"{type(error).__name__}: {error}"
    assert report.vision.missed == report.vision.idle == 0
    assert [each.tick for each in world.refused() if each.due_ns > SECOND] == list(range(23, 31))
    assert report.scoring.runs == 60


@pytest.mark.parametrize("error", [ImageError("torn"), BackendError("out of memory")])
def test_vision_that_raises(error: Exception) -> None:
    world = make_world(PLAN, ensemble=failing(FakeEnsemble, "encode_frame", error))
    report = world.run(6)
    assert report.vision.errors == 5
    assert report.vision.runs == 30  # those that failed among them
    assert not [each for each in world.decided() if each.frame_age_ns > 500 * MS]
    assert len(world.begun("sensor")) == 120


@pytest.mark.parametrize("error", [CandidateError("half padding"), BackendError("stage failed")])
def test_scoring_that_raises(error: Exception) -> None:
    world = make_world(PLAN, ensemble=failing(FakeEnsemble, "score", error))
    report = world.run(6)
    refused = [each for each in world.refused() if each.due_ns > SECOND]
    assert [each.tick for each in refused] == list(range(20, 30))
    assert {each.reasons for each in refused} == {("error",)}
    assert all(each.error is error for each in refused)
    assert report.refused["error"] == report.scoring.errors == 10


def test_questions_that_raise_or_are_not_there() -> None:
    class Silent(TimedQuestions):
        silent = (4, 5)

    world = with_questions(failing(Silent, "ask", CandidateError("the policy has none")))
    report = world.run(6)
    reasons = {each.tick: each.reasons for each in world.refused() if each.due_ns > SECOND}
    assert reasons == dict.fromkeys(range(20, 30), ("error",)) | dict.fromkeys(range(40, 50), ("no question",))
    assert report.scoring.errors == 10


def test_an_observer_that_raises_keeps_nobody_from_acting() -> None:
    def full(record: Record) -> None:
        raise OSError("no space left on device")

    world = make_world(PLAN, observer=full)
    report = world.run(3)
    assert len(world.outcomes) == report.observer_errors == 30
    assert report.last_observer_error == "OSError: no space left on device"


BUGS: dict[str, Callable[[Exception], dict[str, Any]]] = {
    "camera": lambda bug: {"camera": failing(FakeCamera, "read", bug)},
    "sensor": lambda bug: {"sensor": failing(FakeSensor, "latest", bug)},
    "vision": lambda bug: {"ensemble": failing(FakeEnsemble, "encode_frame", bug)},
    "encoder": lambda bug: {"ensemble": failing(FakeEnsemble, "encode_sensor", bug)},
    "score": lambda bug: {"ensemble": failing(FakeEnsemble, "score", bug)},
}


@pytest.mark.parametrize("bug", [ZeroDivisionError("bug"), ClosedError("closed"), KeyboardInterrupt(), Driver("E17")])
@pytest.mark.parametrize("place", BUGS)
def test_bugs_end_the_loop(place: str, bug: Exception) -> None:
    world = make_world(PLAN, **BUGS[place](bug))
    with pytest.raises(type(bug)) as raised:
        world.run(60)
    assert raised.value is bug
    assert 2 * SECOND <= world.clock.now_ns() < 2.5 * SECOND
    assert not [each.name for each in threading.enumerate() if each.name.startswith("trunkline-")]
    assert len(world.outcomes) >= 20


def test_bugs_of_questions_act_and_observer_end_the_loop() -> None:
    bug = ZeroDivisionError("bug")

    def broken(thing: object) -> None:
        raise bug

    worlds = [
        (with_questions(failing(TimedQuestions, "ask", bug)), None),
        (make_world(PLAN), broken),
        (make_world(PLAN, observer=broken), None),
    ]
    for world, act in worlds:
        with pytest.raises(ZeroDivisionError) as raised:
            world.run(60, act)
        assert raised.value is bug


def test_of_two_bugs_none_is_lost() -> None:
    first, second = ZeroDivisionError("vision"), KeyError("scoring")

    class Two(FakeEnsemble):
        def encode_frame(self, image: Any, /) -> int:
            self.clock.spend(100 * MS)
            raise first

        def score(self, *arguments: Any, **named: Any) -> Any:
            raise AssertionError("there are no features")

    class Slow(TimedQuestions):
        def ask(self) -> Question | None:
            self.clock.spend(500 * MS)
            raise second

    with pytest.raises(KeyError) as raised:
        with_questions(Slow, ensemble=Two).run(60)
    assert raised.value is second
    assert raised.value.__cause__ is first


class StampedCamera(FakeCamera):
    """Every second frame has a stamp that is none."""

    stamp: Any = None

    def read(self) -> Frame | None:
        frame = super().read()
        return None if frame is None else frame._replace(captured_ns=[frame.captured_ns, self.stamp][self.shown % 2])


@pytest.mark.parametrize("stamp", [None, math.nan, 3.5e9, "12", True, np.int32(7), np.float64(9), 1 << 63, np.array(3)])
def test_stamps_of_a_wrong_kind(stamp: object) -> None:
    world = make_world(PLAN, camera=type("Camera", (StampedCamera,), {"stamp": stamp}))
    report = world.run(10)
    assert report.vision.errors == 25
    assert report.vision.last_error is not None
    assert "a time is not whole nanoseconds" in report.vision.last_error
    assert "when a Frame was captured" in report.vision.last_error
    assert repr(stamp) in report.vision.last_error
    assert report.vision.runs == 25


def test_numpy_stamps() -> None:
    world = make_world(PLAN, camera=type("Camera", (StampedCamera,), {"stamp": np.int64(0)}))
    report = world.run(10)
    assert report.vision.errors == 0
    assert report.vision.backward == 24  # the first stamp of 0 is that of the first frame, so it is nothing new


def test_frames_from_the_future() -> None:
    """They are not taken, so that the last one that can be true ages until its bound."""
    world = make_world(PLAN, camera=type("Camera", (StampedCamera,), {"stamp": 10**15}))
    report = world.run(10)
    assert report.vision.future == 25
    assert report.vision.runs == 25
    assert report.frame_age.largest <= 500
    assert not any(world.must_be_refused(each) for each in world.decided())


def test_a_window_without_a_stamp_has_no_age() -> None:
    class Unstamped(FakeSensor):
        def latest(self) -> SensorWindow | None:
            return SensorWindow(np.zeros((4, 3), np.float32), 650.0)

    world = make_world(PLAN, sensor=Unstamped)
    report = world.run(2)
    assert report.decided == 0
    assert report.sensor.errors == 40
    assert report.refused["no sensor"] == 20


def test_a_refusal_is_no_decision() -> None:
    world = make_world(LoopPlan(frame_bound_ms=500, sensor_bound_ms=1))
    report = world.run(2)
    assert report.decided == 0
    assert all(isinstance(each, Refused) and not isinstance(each, Decided) for each in world.outcomes)
    with pytest.raises(AttributeError):
        _ = world.outcomes[0].decision  # type: ignore[union-attr]
    assert not hasattr(world.outcomes[0], "scores")
    assert not hasattr(world.outcomes[0], "best")


def test_what_an_observer_sees() -> None:
    """Copies, since a driver writes the next image over the last."""
    shared, windows = picture(0), np.zeros((4, 3), np.float32)

    class InPlace(FakeCamera):
        def read(self) -> Frame | None:
            frame = super().read()
            if frame is None:
                return None
            shared[:] = frame.image
            return Frame(shared, frame.captured_ns)

    class InPlaceSensor(FakeSensor):
        def latest(self) -> SensorWindow | None:
            window = super().latest()
            assert window is not None
            windows[:] = window.samples
            return SensorWindow(windows, 650.0, window.end_ns)

    records: list[Record] = []
    world = make_world(PLAN, camera=InPlace, sensor=InPlaceSensor, observer=records.append)
    world.run(5)
    assert [record.outcome for record in records] == world.outcomes
    for record in records:
        assert record.question is not None
        if isinstance(record.outcome, Decided):
            assert record.frame is not None
            assert record.window is not None
            number, stamp = record.outcome.decision.scores.tolist()
            assert number_of(record.frame.image) == number
            assert record.frame.captured_ns == world.camera.captured_ns(int(number))
            assert record.window.samples[0, 0] == round(record.window.end_ns * 650 / SECOND)
            assert record.window.end_ns == pytest.approx(stamp, abs=1024)
            assert not record.frame.image.flags.writeable
            assert not record.window.samples.flags.writeable
    frames = [record.frame for record in records if record.frame is not None]
    assert len({id(frame) for frame in frames}) == len({frame.captured_ns for frame in frames}) == 25


def test_an_observer_sees_pillow_images() -> None:
    class Pillow(FakeCamera):
        def read(self) -> Frame | None:
            frame = super().read()
            return None if frame is None else Frame(Image.fromarray(frame.image), frame.captured_ns)

    class Opening(FakeEnsemble):
        def encode_frame(self, image: Any, /) -> int:
            return super().encode_frame(np.asarray(image))

    records: list[Record] = []
    make_world(PLAN, camera=Pillow, ensemble=Opening, observer=records.append).run(2)
    assert records[-1].frame is not None
    assert isinstance(records[-1].frame.image, Image.Image)


def test_stopping_from_inside() -> None:
    world = make_world(PLAN)

    def act(outcome: Outcome) -> None:
        if outcome.tick == 7:
            world.loop.stop()

    report = world.run(60, act)
    assert [each.tick for each in world.outcomes] == list(range(8))
    assert world.clock.now_ns() < SECOND
    assert report.seconds < 1


def test_a_loop_that_was_stopped_before_it_runs() -> None:
    world = make_world(PLAN)
    world.loop.stop()
    assert world.run(60).scoring.runs == 0


def test_a_loop_runs_once() -> None:
    world = make_world(PLAN)
    world.run(1)
    with pytest.raises(InputError, match="a loop runs once"):
        world.run(1)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, "3", True])
def test_no_duration(seconds: Any) -> None:
    with pytest.raises(InputError, match="cannot run for this long"):
        make_world(PLAN).run(seconds)


def test_a_camera_that_never_returns_is_named() -> None:
    world = make_world(PLAN, camera=lambda clock: FakeCamera(clock, stuck=[(1, 1000)]))
    with pytest.raises(InputError) as raised:
        world.run(3)
    assert "did not end within 5 s" in str(raised.value)
    assert "trunkline-vision" in str(raised.value)
    assert len(world.outcomes) == 30
    world.clock.wait_until(2000 * SECOND)  # lets the thread end


def test_plans_that_cannot_be() -> None:
    plan = LoopPlan(
        frame_bound_ms=0,
        sensor_bound_ms=None,
        vision=Rate(0),
        sensor=Rate(math.nan),
        scoring=Rate(10, 100),
        deadline_ms=-1,
        wait_ms=math.inf,
        poll_ms=math.nan,
        future_ms=-3,
    )
    with pytest.raises(InputError) as raised:
        make_world(plan)
    assert raised.value.found == [
        "vision.hz is 0, not 0.001 to 1000",
        "sensor.hz is nan, not 0.001 to 1000",
        "scoring.phase_ms is 100, not from 0 to less than a period, 100",
        "frame_bound_ms is 0, not above 0 and up to 3.6e+06",
        "poll_ms is nan, not above 0 and up to 3.6e+06",
        "deadline_ms is -1, not above 0 and up to 3.6e+06",
        "wait_ms is inf, not 0 to 3.6e+06",
        "future_ms is -3, not 0 to 3.6e+06",
        "there is a sensor, and sensor_bound_ms does not say how old its samples may be",
    ]


def test_bounds_that_are_no_numbers() -> None:
    plan = LoopPlan("500", np.float32(math.nan), vision=Rate("10"), deadline_ms=True, wait_ms=None)  # type: ignore[arg-type]
    with pytest.raises(InputError) as raised:
        make_world(plan)
    assert sorted(map(str, raised.value.found)) == [  # type: ignore[call-overload]
        "deadline_ms is bool True, not a number",
        "frame_bound_ms is str '500', not a number",
        "sensor_bound_ms is float32 np.float32(nan), not a number",
        "vision.hz is str '10', not a number",
        "wait_ms is NoneType None, not a number",
    ]


def test_more_plans_that_cannot_be() -> None:
    with pytest.raises(InputError, match="sensor_bound_ms is set, and there is no sensor"):
        make_world(PLAN, sensor=None)
    with pytest.raises(InputError, match="wait_ms is 60, behind the deadline"):
        make_world(LoopPlan(500, 200, deadline_ms=50, wait_ms=60))
    with pytest.raises(InputError, match=r"scoring\.hz is 0"):
        make_world(LoopPlan(500, 200, scoring=Rate(0)))


def test_a_report_at_any_time() -> None:
    clock = SimulatedClock()
    loop = Loop(FakeEnsemble(clock), Sources(FakeCamera(clock), Questions()), LoopPlan(500), clock=clock)
    assert loop.report().seconds == 0
    assert loop.report().scoring.rate_hz == 0
    reports = []
    loop.run(lambda outcome: reports.append(loop.report()), seconds=2)
    assert [each.decided for each in reports][-1] == loop.report().decided == 19
    assert reports[-1].seconds < loop.report().seconds == 2
