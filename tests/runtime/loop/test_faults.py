"""The camera dies and comes back, the sensor's clock jumps: refusals exactly while they must be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.runtime.loop.fakes import MS, SECOND, FakeCamera, FakeEnsemble, FakeSensor, World, make_world
from trunkline.runtime.errors import SensorError
from trunkline.runtime.loop import CachedSensor, Decided, LoopPlan, LoopReport, Outcome, Rate, SimulatedClock
from trunkline.runtime.sensor.cache import SensorCache
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.intake import StreamRules
from trunkline.runtime.sensor.window import SensorWindow

PLAN = LoopPlan(500, 200, vision=Rate(5, 25), sensor=Rate(20, 3.7), scoring=Rate(10, 1.3))
DEAD = (20.0, 26.0)
JUMP = (40.0, 50.0)


def refused_between(world: World, begin_s: float, end_s: float) -> list[int]:
    return [each.tick for each in world.refused() if begin_s * SECOND <= each.due_ns < end_s * SECOND]


def check_refusals(world: World) -> None:
    """No decision is older than its bound, and nothing was refused that need not be."""
    assert world.plan.sensor_bound_ms is not None
    for outcome in world.outcomes:
        refused = set() if isinstance(outcome, Decided) else set(outcome.reasons)
        assert refused == world.must_be_refused(outcome)
    for decided in world.decided():
        assert 0 <= decided.frame_age_ns <= world.plan.frame_bound_ms * MS
        assert 0 <= decided.sensor_age_ns <= world.plan.sensor_bound_ms * MS


@pytest.mark.parametrize("off_ms", [5000.0, -5000.0])
def test_camera_dies_and_comes_back_and_the_sensor_clock_jumps(off_ms: float) -> None:
    world = make_world(
        PLAN,
        camera=lambda clock: FakeCamera(clock, dead=[DEAD]),
        sensor=lambda clock: FakeSensor(clock, jumps=[(*JUMP, off_ms)]),
    )
    report = world.run(60)
    check_refusals(world)
    # The last frame is of 19.8 s and is refused from 20.3 s on; that of 26 s is finished at 26.085 s.
    assert refused_between(world, 1, 30) == list(range(203, 261))
    # The last sample believed is of 39.95 s, the first one of 50 s; before that, no stamp can be true.
    assert refused_between(world, 30, 60) == list(range(402, 501))
    assert {each.reasons for each in world.refused() if each.due_ns > 30 * SECOND} == {("sensor too old",)}
    # Stamps that lie 5 s back are refused for 5 s, while they lie before the last one believed; then they are believed,
    # and too old.
    assert (report.sensor.future, report.sensor.backward) == ((200, 0) if off_ms > 0 else (0, 99))


def test_both_at_once_have_both_reasons() -> None:
    world = make_world(
        PLAN,
        camera=lambda clock: FakeCamera(clock, dead=[DEAD]),
        sensor=lambda clock: FakeSensor(clock, dead=[(22, 23)]),
    )
    world.run(30)
    check_refusals(world)
    assert ("frame too old", "sensor too old") in {each.reasons for each in world.refused()}


def test_a_stamp_a_little_ahead_is_taken_for_now() -> None:
    world = make_world(PLAN, sensor=lambda clock: FakeSensor(clock, jumps=[(0, 60, 9.9)]))
    report = world.run(5)
    assert report.sensor.future == 0
    assert all(each.sensor_age_ns >= 0 for each in world.decided())


class TrueTimes:
    """A sensor thread that feeds a real cache. Samples hold the true time at which they were taken, in ms."""

    def __init__(self, clock: SimulatedClock, seconds: float, jumps: list[tuple[float, float, float]]) -> None:
        self.form = SensorForm(channels=3, samples=65, steps=65)
        self.cache = SensorCache(self.form, seconds=2, rules=StreamRules())
        self._clock, self._end_ns, self._jumps = clock, round(seconds * SECOND), jumps
        clock.start("feeder", self._feed)

    def _feed(self) -> None:
        block, number = 10, 0
        while (arrival_ns := self._at(number + block - 1) + 2 * MS) < self._end_ns:
            self._clock.wait_until(arrival_ns)
            taken = np.array([self._at(row) for row in range(number, number + block)], np.int64)
            stamps = taken + 7_000 * SECOND + round(self._off_ms(taken[-1] / SECOND) * MS)
            samples = np.repeat((taken / MS).astype(np.float32)[:, None], 3, axis=1)
            self.cache.push(stamps, samples, received_ns=arrival_ns)
            number += block

    def _at(self, row: int) -> int:
        return round(row * SECOND / self.form.rate_hz)

    def _off_ms(self, at_s: float) -> float:
        return sum(off_ms for begin, end, off_ms in self._jumps if begin <= at_s < end)


class Seeing(FakeEnsemble):
    """Remembers what the windows really were: (finished, true time of the last sample)."""

    def encode_sensor(self, window: SensorWindow, /) -> int:
        self.true = [*getattr(self, "true", []), round(float(window.samples[-1, 0]) * MS)]
        assert (np.diff(window.samples[:, 0]) > 1.4).all()  # of one stream, in order
        return super().encode_sensor(window)


@pytest.mark.parametrize("off_ms", [5000.0, -5000.0, 300.0, -300.0])
@pytest.mark.parametrize("hop", [16, 64, None])
def test_with_a_real_cache(off_ms: float, hop: int | None) -> None:
    made: list[TrueTimes] = []

    def sensor(clock: SimulatedClock) -> CachedSensor:
        made.append(TrueTimes(clock, 29.9, [(15, 20, off_ms)]))
        return CachedSensor(made[0].cache, hop=hop)

    camera: Callable[[SimulatedClock], FakeCamera] = lambda clock: FakeCamera(clock, dead=[(8, 11)])  # noqa: E731
    world = make_world(PLAN, camera=camera, sensor=sensor, ensemble=Seeing)
    report = world.run(30)
    check_refusals(world)
    assert made[0].cache.counts.restarts == 2  # the clock was set, and set back
    # What a window says of its age is true, but for the 2 ms that blocks are under way.
    for (_, stamp_ns), true_ns in zip(world.ensemble.windows, world.ensemble.true, strict=True):
        assert abs(stamp_ns - true_ns - 2 * MS) < 0.01 * MS
    # A cache follows a clock that was set within 16 samples, and then needs a window of 100 ms.
    for jump_s in (15.0, 20.0):
        assert len(refused_between(world, jump_s, jump_s + 1)) <= 2
        assert not refused_between(world, jump_s + 0.5, jump_s + 2)
    assert refused_between(world, 8, 12) == list(range(83, 111))
    assert report.sensor.errors == report.sensor.future == report.sensor.backward == 0


def test_an_encoder_that_refuses_windows() -> None:
    class Refusing(FakeEnsemble):
        def encode_sensor(self, window: SensorWindow, /) -> int:
            if 10 * SECOND < self.clock.now_ns() < 12 * SECOND:
                raise SensorError("a sensor window is not one", found="NaN or infinite values")
            return super().encode_sensor(window)

    world = make_world(PLAN, ensemble=Refusing)
    report = world.run(20)
    check_refusals(world)
    assert report.sensor.errors == 40
    assert report.sensor.last_error is not None
    assert report.sensor.last_error.startswith("SensorError: a sensor window is not one\n  found: NaN")
    assert refused_between(world, 5, 20) == list(range(102, 121))
    assert isinstance(report, LoopReport)


def test_decisions_after_any_outage_resume_with_the_first_frame() -> None:
    def resumed(world: World) -> Outcome:
        return next(each for each in world.decided() if each.due_ns > DEAD[1] * SECOND)

    world = make_world(PLAN, camera=lambda clock: FakeCamera(clock, dead=[DEAD], phase_ms=0))
    world.run(30)
    first_finished = next(finished for finished, number in world.ensemble.frames if number >= 26 * 5)
    assert resumed(world).started_ns - first_finished < 100 * MS
