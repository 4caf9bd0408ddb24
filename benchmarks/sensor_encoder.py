"""The published sensor encoder on this machine: PyTorch, the stages in full, and the stages on windows that slide.

Random weights of the published size (1,026 channels, 650 samples, 47 million parameters), random streams. All ways take
turns in one process, with the same number of threads; medians of milliseconds. Every window is also compared with
PyTorch's features, and every slid window with the same window computed in full.

    python benchmarks/sensor_encoder.py [--write docs/benchmarks.md]

With ``--denormals``: the same encoder on windows of denormal numbers (those of a stream, times 1e-39), with the switch
of ``runtime/backends/denormals.py`` on and off.

    python benchmarks/sensor_encoder.py --denormals [--write docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.full_scale import machine, write_into
from tests.kit import SMALL, random_member
from tests.sensor_kit import Floats, TracedEncoder
from trunkline.calibration.samples.synthetic import stream
from trunkline.exporter.checkpoint.members import SensorShape
from trunkline.runtime.backends import denormals, named, names, ort
from trunkline.runtime.backends.threads import physical_cores
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.steps import SlidingSteps
from trunkline.runtime.sensor.window import SensorWindow

PUBLISHED = SensorShape(
    channels=1026, conv=(512, 1024, 1024, 1024), layers=2, feedforward=4096, projection=3072, features=3072
)
FORM = SensorForm()
TURNS, WARM_UP = 40, 5
HOPS = (64, 16, 160)
DENORMAL_TURNS = 15
SCALES = {"usual": np.float32(1), "denormal": np.float32(1e-39)}


@dataclass
class Times:
    """Milliseconds of each way, and the largest differences seen."""

    of: dict[str, list[float]] = field(default_factory=dict)
    from_pytorch: float = 0.0
    from_full: float = 0.0

    def take(self, way: str, call: Callable[[], Floats]) -> Floats:
        started = time.perf_counter()
        result = call()
        self.of.setdefault(way, []).append((time.perf_counter() - started) * 1e3)
        return result

    def median(self, way: str) -> float:
        return statistics.median(self.of[way][WARM_UP:])


class Ways:
    """One back end: the same windows in full and sliding, convolutions apart from the rest."""

    def __init__(self, encoder: TracedEncoder, hop: int) -> None:
        self.encoder, self.hop = encoder, hop
        self.rows = stream(np.random.default_rng(), FORM.samples + hop * (TURNS + 1), FORM.channels)
        self.sliding = SlidingSteps(encoder.entry, encoder.run_steps)

    def window(self, turn: int, known: bool) -> SensorWindow:
        start = turn * self.hop
        samples = self.rows[start : start + FORM.samples]
        return SensorWindow(samples, FORM.rate_hz, stream=1 if known else None, position=start)

    def turn(self, turn: int, times: Times) -> None:
        encoder, window = self.encoder, self.window(turn, known=True)
        batch = torch.from_numpy(window.samples[None])
        expected = times.take("PyTorch", lambda: encoder.reference(batch).numpy())
        alone = self.window(turn, known=False)
        full = times.take("convolutions in full", lambda: SlidingSteps(encoder.entry, encoder.run_steps)(alone))
        slid = times.take("convolutions slid", lambda: self.sliding(window))
        features = times.take("the rest", lambda: encoder.run_sensor(slid))
        times.from_full = max(times.from_full, float(np.abs(np.delete(full - slid, 1, axis=1)).max()))
        times.from_pytorch = max(times.from_pytorch, float(np.abs(features - expected).max()))


def measure(folder: Path) -> list[str]:
    member = random_member(replace(SMALL, sensor=PUBLISHED), form=FORM)
    rows = []
    for backend in names("cpu"):
        if (missing := named(backend).available()) is not None:
            rows.append(f"| {backend} | {missing.reason} |" + " |" * 8)
            continue
        with TracedEncoder(member, folder / backend, backend) as encoder, torch.inference_mode():
            rows += [row(backend, hop, timed(encoder, hop)) for hop in HOPS]
    return rows


def timed(encoder: TracedEncoder, hop: int) -> Times:
    times, ways = Times(), Ways(encoder, hop)
    for turn in range(TURNS):
        ways.turn(turn, times)
    return times


def row(backend: str, hop: int, times: Times) -> str:
    pytorch, full, slid, rest = map(times.median, ("PyTorch", "convolutions in full", "convolutions slid", "the rest"))
    whole = (full + rest) / (slid + rest)
    numbers = f"{pytorch:.1f} | {full + rest:.1f} | {slid + rest:.1f} | {full:.1f} | {slid:.1f}"
    ratios = f"{full / slid:.1f} | {whole:.2f} | {pytorch / (slid + rest):.1f}"
    return f"| {backend} | {hop} | {numbers} | {ratios} | {times.from_full:.1e} | {times.from_pytorch:.1e} |"


def measure_denormals(folder: Path) -> list[str]:
    member = random_member(replace(SMALL, sensor=PUBLISHED), form=FORM)
    rows = stream(np.random.default_rng(), FORM.samples, FORM.channels)
    windows = {name: SensorWindow(rows * scale, FORM.rate_hz) for name, scale in SCALES.items()}
    found = []
    for backend in names("cpu"):
        with contextlib.ExitStack() as opened:  # OpenVINO would give the threads of a closed stage to the next one
            for switch in (True, False):
                times = Times()
                with switched(switch):
                    place = folder / f"{backend}{switch}"
                    encoder = opened.enter_context(TracedEncoder(member, place, backend))
                    for _ in range(DENORMAL_TURNS):
                        for name, window in windows.items():
                            times.take(name, lambda encoder=encoder, window=window: encoder.features(window))
                usual, tiny = map(times.median, SCALES)
                state = "on" if switch else "off"
                found.append(f"| {backend} | {state} | {usual:.1f} | {tiny:.1f} | {tiny / usual:.2f} |")
    return found


def switched(on: bool) -> contextlib.AbstractContextManager[object]:
    """As it is, or as the libraries are without it."""
    stack = contextlib.ExitStack()
    if not on:
        stack.enter_context(mock.patch.object(denormals, "_library", return_value=None))
        stack.enter_context(mock.patch.dict(ort.SETTINGS, {"session.set_denormal_as_zero": "0"}))
    return stack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="replace the table in this page")
    parser.add_argument("--denormals", action="store_true", help="measure windows of denormal numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(physical_cores())
    columns = ["back end", "hop", "PyTorch", "full", "slid", "convolutions full", "convolutions slid"]
    columns += ["convolutions, times faster", "whole, times faster", "slid against PyTorch"]
    columns += ["slid from full", "from PyTorch"]
    take, marker = measure, "sensor_encoder"
    if arguments.denormals:
        take, marker = measure_denormals, "sensor_denormals"
        columns = ["back end", "switch", "usual window, ms", "denormal window, ms", "times slower"]
    with tempfile.TemporaryDirectory() as folder:
        rows = take(Path(folder))
    head = f"| {' | '.join(columns)} |"
    text = "\n".join([machine(), "", head, "|---" * len(columns) + "|", *rows])
    print(text)
    if arguments.write:
        write_into(arguments.write, text, marker)


if __name__ == "__main__":
    main()
