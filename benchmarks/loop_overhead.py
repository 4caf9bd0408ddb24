"""What a tick of the loop costs beside the ensemble's own work.

    python benchmarks/loop_overhead.py [--rounds 20] [--write docs/benchmarks.md]

The ensemble does nothing, and time does not pass: a wait ends at once. So what lies between two ticks is the loop's own
work, and nothing else. The tasks take turns in one process. Then the real clock, to show how late a
thread wakes up on this machine; that is the operating system's part.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.full_scale import machine, write_into
from trunkline.runtime import Decision
from trunkline.runtime.loop import Frame, Loop, LoopPlan, Question, Rate, Record, Sources, SystemClock
from trunkline.runtime.loop.clock import Predicate, never
from trunkline.runtime.loop.encoding import Encoder, Encoding, Patience
from trunkline.runtime.loop.features import Features, Newest
from trunkline.runtime.loop.plan import TOLERATED
from trunkline.runtime.loop.schedule import Grid, Ticker
from trunkline.runtime.loop.statistics import TaskStatistics
from trunkline.runtime.sensor.window import SensorWindow

PLAN = LoopPlan(10_000, 10_000, vision=Rate(100), sensor=Rate(100), scoring=Rate(100))


class InstantClock:
    """Waits end at once, and threads do nothing."""

    name = "instant"

    def __init__(self) -> None:
        self.moment_ns = 0

    def now_ns(self) -> int:
        return self.moment_ns

    def wait_until(self, at_ns: int, done: Predicate = never) -> None:
        self.moment_ns = max(self.moment_ns, at_ns)

    def notify(self) -> None:
        pass

    def start(self, name: str, body: Callable[[], None]) -> InstantClock:
        return self

    def join(self, seconds: float) -> bool:
        return True


class Nothing:
    """A camera, a sensor, candidates and an ensemble that cost nothing."""

    def __init__(self, clock: Any) -> None:
        self.clock, self.encoded = clock, list[int]()
        self.image, self.window = np.zeros((240, 320, 3), np.uint8), np.zeros((650, 1026), np.float32)
        self.question = Question("go", np.zeros((20, 10, 7), np.float32))
        self.decision = Decision(np.zeros(20, np.float32), 0, 0, np.zeros((3, 20), np.float32))

    def read(self) -> Frame:
        return Frame(self.image, self.clock.now_ns())

    def latest(self) -> SensorWindow:
        return SensorWindow(self.window, 650.0, self.clock.now_ns())

    def ask(self) -> Question:
        return self.question

    def encode_frame(self, image: Any, /) -> None:
        self.encoded.append(time.perf_counter_ns())

    def encode_sensor(self, window: SensorWindow, /) -> None:
        pass

    def score(self, image: Any, instruction: Any, histories: Any, /, *, sensor: Any) -> Decision:
        return self.decision


def scoring(ticks: int, observer: Callable[[Record], None] | None) -> list[int]:
    """Nanoseconds from each scoring tick to the next."""
    clock = InstantClock()
    nothing = Nothing(clock)
    loop = Loop(nothing, Sources(nothing, nothing, nothing), PLAN, clock=clock, observer=observer)
    loop._frames.finished = Features(None, nothing.read(), 0)
    loop._windows.finished = Features(None, nothing.latest(), 0)
    acted: list[int] = []
    loop.run(lambda outcome: acted.append(time.perf_counter_ns()), seconds=ticks / PLAN.scoring.hz)
    return np.diff(acted).tolist()


def encoding(ticks: int) -> list[int]:
    """Nanoseconds from each encoding tick to the next."""
    clock = InstantClock()
    nothing = Nothing(clock)
    encoder = Encoder(nothing.read, lambda frame: frame.captured_ns, nothing.encode_frame, lambda frame: frame)
    task = Encoding(encoder, Newest[Frame](), Patience(5_000_000, 10_000_000), TaskStatistics(TOLERATED))
    task.run(Ticker(Grid(0, PLAN.vision.period_ns)), clock, lambda: len(nothing.encoded) > ticks)
    return np.diff(nothing.encoded).tolist()


def row(name: str, nanoseconds: list[int]) -> str:
    median, high = np.percentile(nanoseconds[len(nanoseconds) // 10 :], (50, 99)) / 1e3
    return f"| {name} | {median:.1f} µs | {high:.1f} µs |"


def wake_up(seconds: float) -> str:
    nothing = Nothing(SystemClock())
    loop = Loop(nothing, Sources(nothing, nothing, nothing), PLAN, clock=nothing.clock)
    late = loop.run(lambda outcome: None, seconds=seconds).scoring.lateness
    return f"| waking up at a tick, real time | {late.median * 1e3:.0f} µs | {late.p99 * 1e3:.0f} µs |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    spent: dict[str, list[int]] = {"scoring": [], "scoring, with an observer": [], "encoding": []}
    for _ in range(arguments.rounds):
        spent["scoring"] += scoring(900, None)
        spent["scoring, with an observer"] += scoring(900, lambda record: None)
        spent["encoding"] += encoding(900)
    lines = [f"Machine: {machine()}.", "", "| the loop's own work in a tick | median | 99 % |", "|---|---|---|"]
    lines += [row(name, nanoseconds) for name, nanoseconds in spent.items()]
    lines.append(wake_up(5.0))
    print("\n".join(lines))
    if arguments.write:
        write_into(arguments.write, "\n".join(lines), "loop_overhead")


if __name__ == "__main__":
    main()
