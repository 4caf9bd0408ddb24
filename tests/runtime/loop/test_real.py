"""Real threads: that they start, work side by side, end, and bring home what they raise. Nothing here is timed."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from trunkline.runtime import Decision
from trunkline.runtime.errors import InputError
from trunkline.runtime.loop import (
    CachedSensor,
    Clock,
    Decided,
    Frame,
    Loop,
    LoopPlan,
    Outcome,
    Question,
    Rate,
    Sources,
    SystemClock,
)
from trunkline.runtime.loop import loop as loop_module
from trunkline.runtime.sensor.cache import SensorCache
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.intake import StreamRules
from trunkline.runtime.sensor.window import SensorWindow

PLAN = LoopPlan(60_000, 60_000, vision=Rate(200), sensor=Rate(200), scoring=Rate(100), deadline_ms=60_000)


class Camera:
    """A frame whenever it is asked; ``gate`` keeps it from returning."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()

    def read(self) -> Frame | None:
        now_ns = self.clock.now_ns()
        self.asked.set()
        self.gate.wait(60)
        return Frame(np.zeros((2, 2, 3), np.uint8), now_ns)


class Sensor:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def latest(self) -> SensorWindow:
        return SensorWindow(np.zeros((4, 3), np.float32), 650.0, self.clock.now_ns())


class Threads:
    """An ensemble that remembers which thread did what."""

    def __init__(self) -> None:
        self.used: dict[str, set[str]] = {"frame": set(), "sensor": set(), "score": set()}

    def _note(self, name: str) -> None:
        self.used[name].add(threading.current_thread().name)

    def encode_frame(self, image: Any, /) -> str:
        self._note("frame")
        return "frame"

    def encode_sensor(self, window: SensorWindow, /) -> str:
        self._note("sensor")
        return "sensor"

    def score(self, image: Any, instruction: Any, histories: Any, /, *, sensor: Any) -> Decision:
        self._note("score")
        assert (image, sensor) == ("frame", "sensor")
        return Decision(np.zeros(2, np.float32), 0, 0, np.zeros((1, 2), np.float32))


class Questions:
    def ask(self) -> Question:
        return Question("go", np.zeros((2, 3, 7), np.float32))


class Home:
    """A loop of fakes on the real clock."""

    def __init__(self, plan: LoopPlan = PLAN) -> None:
        self.clock = SystemClock()
        self.camera, self.ensemble = Camera(self.clock), Threads()
        sources = Sources(self.camera, Questions(), Sensor(self.clock))
        self.loop = Loop(self.ensemble, sources, plan, clock=self.clock)
        self.decided = threading.Event()
        self.outcomes: list[Outcome] = []

    def act(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if isinstance(outcome, Decided):
            self.decided.set()

    def until(self, decisions: int) -> Any:
        def act(outcome: Outcome) -> None:
            self.act(outcome)
            if sum(isinstance(each, Decided) for each in self.outcomes) >= decisions:
                self.loop.stop()

        return act


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Any:
    yield
    assert not [each.name for each in threading.enumerate() if each.name.startswith("trunkline-")]


def test_threads_start_in_run_and_end_with_it() -> None:
    home = Home()
    assert home.ensemble.used == {"frame": set(), "sensor": set(), "score": set()}
    report = home.loop.run(home.until(5))
    me = threading.current_thread().name
    assert home.ensemble.used == {"frame": {"trunkline-vision"}, "sensor": {"trunkline-sensor"}, "score": {me}}
    assert report.decided == 5
    assert min(report.vision.runs, report.sensor.runs) >= 1


def test_it_ends_by_itself() -> None:
    home = Home()
    begun = home.clock.now_ns()
    report = home.loop.run(home.act, seconds=0.05)
    assert home.clock.now_ns() - begun >= 50_000_000
    assert report.scoring.runs + report.scoring.missed <= 5


def test_a_blocked_camera_does_not_hold_up_scoring() -> None:
    home = Home()
    encoded: list[int] = []

    def act(outcome: Outcome) -> None:
        home.act(outcome)
        home.camera.gate.clear()  # from the first outcome on no frame comes, but for one that is under way
        encoded.append(home.loop.report().vision.runs)
        if len(home.outcomes) == 10:
            home.camera.gate.set()
            home.loop.stop()

    assert home.loop.run(act).scoring.runs == 10
    assert encoded[-1] <= encoded[0] + 2


def test_on_a_thread_of_its_own() -> None:
    home = Home()
    with ThreadPoolExecutor(1) as pool, home.loop as loop:
        result = pool.submit(loop.run, home.act)
        assert home.decided.wait(60)
    assert result.result(0).decided >= 1  # the block's end has waited for it


def test_leaving_the_block_without_a_run() -> None:
    with Home().loop as loop:
        pass
    assert loop.report().seconds == 0


def test_a_bug_in_a_thread_comes_home() -> None:
    home = Home()
    bug = ZeroDivisionError("bug")

    def broken(image: Any, /) -> str:
        raise bug

    home.ensemble.encode_frame = broken  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError) as raised, home.loop as loop:
        loop.run(home.act)
    assert raised.value is bug


def test_a_camera_that_never_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "SHUTDOWN_S", 0.02)
    home = Home()
    home.camera.gate.clear()

    def act(outcome: Outcome) -> None:
        home.camera.asked.wait(60)
        home.loop.stop()

    with pytest.raises(InputError, match="its thread is left behind"):
        home.loop.run(act)
    home.camera.gate.set()
    for thread in threading.enumerate():
        if thread.name == "trunkline-vision":
            thread.join(60)


def test_with_a_real_cache_and_a_receiving_thread() -> None:
    home = Home()
    form = SensorForm(channels=3, samples=65, steps=65)
    cache = SensorCache(form, rules=StreamRules(offset_ns=0))
    ended = threading.Event()

    def receive() -> None:
        stamps = home.clock.now_ns() + np.arange(10) * 1_538_462
        while not ended.is_set():
            stamps = stamps + 15_384_620
            cache.push(stamps, np.ones((10, 3), np.float32), received_ns=home.clock.now_ns())
            home.clock.wait_until(int(stamps[-1]), ended.is_set)

    receiver = threading.Thread(target=receive)
    receiver.start()
    loop = Loop(home.ensemble, Sources(home.camera, Questions(), CachedSensor(cache)), PLAN, clock=home.clock)
    home.loop = loop
    report = loop.run(home.until(5))
    ended.set()
    home.clock.notify()
    receiver.join(60)
    assert report.decided == 5
    assert report.sensor.runs >= 1
    assert report.sensor.errors == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_may_run_its_own_loop() -> None:
    prepared, inherited = Home(), Home()

    def act(outcome: Outcome) -> None:
        inherited.act(outcome)
        if inherited.decided.is_set() and not children:
            children.append(os.fork())
            if not children[0]:
                try:
                    inherited.loop.stop()  # is the parent's: does nothing here
                    with pytest.raises(InputError, match="a loop runs once"):
                        inherited.loop.run(prepared.act)
                    os._exit(0 if prepared.loop.run(prepared.until(3)).decided == 3 else 1)
                finally:
                    os._exit(2)
            inherited.loop.stop()

    children: list[int] = []
    inherited.loop.run(act)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
