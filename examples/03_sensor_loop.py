"""A control loop in real time: a fast sensor, a camera of 5 Hz, decisions at 10 Hz. Parts of it fail on purpose.

    python examples/03_sensor_loop.py BUNDLE [--seconds 30] [--plots DIR] [--record LOG]

The devices are simulated: frames, samples and candidates are random, at the rates of the real ones. After 30 % of the
time the camera hangs for 10 % of it, and from 65 to 80 % the sensor's clock is five seconds ahead. Scoring goes on at
its own rate and refuses what is too old. With --plots, ages and rates are drawn (this needs matplotlib); with --record,
everything is written down for `trunkline replay LOG`.
"""

import argparse
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trunkline.runtime import Ensemble, load
from trunkline.runtime.loop import (
    CachedSensor,
    Frame,
    Loop,
    LoopPlan,
    LoopReport,
    Outcome,
    Question,
    Rate,
    Sources,
    recorded_by,
)
from trunkline.runtime.replay import Recorder, header_of
from trunkline.runtime.sensor.cache import SensorCache
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.window import SensorWindow

HANGS, CLOCK_IS_OFF = (0.30, 0.40), (0.65, 0.80)  # shares of the whole time
BLOCK = 10  # samples that the sensor sends together


class Story:
    """What happens when, in seconds since the start."""

    def __init__(self, seconds: float) -> None:
        self.hangs = (seconds * HANGS[0], seconds * HANGS[1])
        self.clock_is_off = (seconds * CLOCK_IS_OFF[0], seconds * CLOCK_IS_OFF[1])
        self.begun_ns = time.monotonic_ns()

    def now_s(self) -> float:
        return (time.monotonic_ns() - self.begun_ns) / 1e9


class Camera:
    """5 frames a second. While it hangs, whoever reads from it waits."""

    def __init__(self, story: Story) -> None:
        self.story, self.random, self.last = story, np.random.default_rng(0), -1

    def read(self) -> Frame | None:
        while self.story.hangs[0] <= self.story.now_s() < self.story.hangs[1]:
            time.sleep(0.005)
        number = int(self.story.now_s() * 5)
        if number == self.last:
            return None
        self.last = number
        image = self.random.integers(0, 256, (240, 320, 3), dtype=np.uint8)
        return Frame(image, self.story.begun_ns + number * 200_000_000)


class Sensor:
    """Sends blocks of samples, with stamps of its own clock, into a cache."""

    def __init__(self, story: Story, form: SensorForm, recorder: Recorder | None) -> None:
        self.story, self.form, self.cache, self.recorder = story, form, SensorCache(form), recorder
        self.ended, self.thread = threading.Event(), threading.Thread(target=self.send, daemon=True)

    def send(self) -> None:
        random, number = np.random.default_rng(1), 0
        while not self.ended.wait(max(0.0, (number + BLOCK) / self.form.rate_hz - self.story.now_s())):
            stamps = ((number + np.arange(BLOCK)) * 1e9 / self.form.rate_hz).astype(np.int64)
            if self.story.clock_is_off[0] <= self.story.now_s() < self.story.clock_is_off[1]:
                stamps += 5_000_000_000
            samples = random.standard_normal((BLOCK, self.form.channels), np.float32)
            self.cache.push(stamps, samples, received_ns=time.monotonic_ns())
            if self.recorder:
                self.recorder.sensor(stamps, samples)
            number += BLOCK

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


class Policy:
    """Proposes 20 actions whenever it is asked."""

    def __init__(self, ensemble: Ensemble) -> None:
        actions = ensemble.bundle.manifest.actions
        self.random, self.shape = np.random.default_rng(2), (20, actions.history_length, actions.action_dim)

    def ask(self) -> Question:
        return Question("put the red block in the bowl", self.random.normal(0, 1, self.shape))


class Diary:
    """What a robot would do with an outcome; this one writes it down, and once a second how the loop is doing."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.outcomes: list[Outcome] = []
        self.reports: list[LoopReport] = []

    def act(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if self.story.now_s() >= len(self.reports):
            self.reports.append(self.loop.report())

    def close(self, report: LoopReport) -> None:
        if len(self.reports) > 1 and report.seconds - self.reports[-1].seconds < 0.5:
            self.reports.pop()
        self.reports.append(report)


def warm_up(ensemble: Ensemble, policy: Policy) -> None:
    """The text tower runs once for each instruction, and that would make the first decision late."""
    form, question = ensemble.sensor, policy.ask()
    window = form and SensorWindow(np.zeros((form.samples, form.channels), np.float32), form.rate_hz)
    image = np.zeros((240, 320, 3), np.uint8)
    ensemble.score(image, question.instruction, question.histories, sensor=window)


def run(ensemble: Ensemble, seconds: float, recorder: Recorder | None) -> tuple[Diary, LoopPlan, LoopReport]:
    policy = Policy(ensemble)
    warm_up(ensemble, policy)
    story = Story(seconds)
    diary, sensor = Diary(story), None if ensemble.sensor is None else Sensor(story, ensemble.sensor, recorder)
    plan = LoopPlan(
        frame_bound_ms=500,
        sensor_bound_ms=300 if sensor else None,
        vision=Rate(10),  # at most: a frame is encoded once, as soon as it is there
        sensor=Rate(20),
        scoring=Rate(10, phase_ms=90),
    )
    sources = Sources(Camera(story), policy, CachedSensor(sensor.cache) if sensor else None)
    observer = recorded_by(recorder) if recorder else None
    with sensor or contextlib.nullcontext(), Loop(ensemble, sources, plan, observer=observer) as diary.loop:
        report = diary.loop.run(diary.act, seconds=seconds)
    diary.close(report)
    return diary, plan, report


def summary(report: LoopReport) -> Iterator[str]:
    for name in ("vision", "sensor", "scoring"):
        task = getattr(report, name)
        run = f"{task.rate_hz:5.1f} Hz, {task.run.median:5.1f} ms a run"
        yield f"{name:8}{run}, {task.missed} ticks missed, {task.errors} errors"
    yield f"{report.decided} decisions, {report.late} of them late; refused: " + (
        ", ".join(f"{count} for {reason}" for reason, count in report.refused.items()) or "none"
    )
    for name, age in (("frame", report.frame_age), ("sensor", report.sensor_age)):
        yield f"age of the {name} at a decision: median {age.median:.0f} ms, largest {age.largest:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--plots", type=Path, help="folder for loop_ages.svg and loop_rates.svg")
    parser.add_argument("--record", type=Path, metavar="LOG", help="folder for a log")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        ensemble = stack.enter_context(load(arguments.bundle))
        recorder = arguments.record and stack.enter_context(Recorder(arguments.record, header_of(ensemble.bundle)))
        diary, plan, report = run(ensemble, arguments.seconds, recorder)
    print("\n".join(summary(report)))
    if arguments.plots:
        from sensor_loop_plots import draw_ages, draw_rates

        draw_ages(arguments.plots / "loop_ages.svg", diary, plan)
        draw_rates(arguments.plots / "loop_rates.svg", diary, plan)


if __name__ == "__main__":
    main()
