"""What a sensor cache costs: a push, a window, and ten minutes of a stream.

    python benchmarks/sensor_cache.py [--recording 20] [--rounds 300] [--write docs/benchmarks.md]

The published stream (650 samples a second of 1,026 numbers) is written as a raw recording (`timestamps`, `forces`,
`alines` in one npz) and pushed into a cache. Windows of random moments are then had from both, in turn, in one process:
as a view, as a copy into a given array, and rebuilt from the file, which is opened for each window as the published
training code does. Beside them, plain copies of as many rows of one array. Rows are compared before anything is timed.
Memory is the process's resident set over ten minutes of stream, and what one call allocates at its peak, numbers and
views of the interpreter included.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trunkline.runtime.sensor.cache import SensorCache
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.window import point_range

FORM = SensorForm()
BLOCK, PERIOD_NS = 10, round(1e9 / 650)
#: Calls per measurement, so that the clock is no part of it.
INNER = 20
MINUTES = 10

Rows = NDArray[np.float32]


def record(file: Path, seconds: float) -> tuple[NDArray[np.int64], Rows]:
    """Writes a raw recording; stamps and samples of it."""
    rows = round(seconds * FORM.rate_hz)
    samples = np.random.default_rng(0).standard_normal((rows, FORM.channels), np.float32)
    stamps = np.arange(rows) * PERIOD_NS
    np.savez(file, timestamps=stamps / 1e9, send_timestamps=stamps / 1e9, forces=samples[:, 0], alines=samples[:, 1:])
    return stamps, samples


def rebuild(file: Path, at_s: float) -> Rows:
    """The window that belongs to a moment, from the file."""
    with np.load(file) as recording:
        timestamps, forces, alines = recording["timestamps"], recording["forces"], recording["alines"]
    first, end = point_range(timestamps, at_s, FORM.samples)
    return np.concatenate([forces[first:end, None], alines[first:end]], axis=1).astype(np.float32)


class Pusher:
    """Pushes blocks of one stream for ever."""

    def __init__(self, cache: SensorCache, samples: Rows) -> None:
        self.cache, self.samples = cache, samples
        self.stamps = np.arange(BLOCK) * PERIOD_NS
        self.row = 0

    def __call__(self) -> None:
        self.cache.push(self.stamps, self.samples[self.row : self.row + BLOCK], received_ns=int(self.stamps[-1]))
        self.stamps += BLOCK * PERIOD_NS
        self.row = (self.row + BLOCK) % (len(self.samples) // BLOCK * BLOCK)


def filled(samples: Rows) -> tuple[SensorCache, Pusher]:
    """A cache that has gone around once, and what feeds it."""
    cache = SensorCache(FORM)
    push = Pusher(cache, samples)
    for _ in range(1000):
        push()
    return cache, push


def calls(file: Path, stamps: NDArray[np.int64], samples: Rows) -> dict[str, Callable[[], object]]:
    """What is timed, by the name of a row."""
    cache = SensorCache(FORM)
    cache.push(stamps, samples, received_ns=int(stamps[-1]))
    random = np.random.default_rng(1)
    moments = iter(random.integers(int(stamps[-5800]), int(stamps[-1]), 1 << 20).tolist())
    slices = (samples[end - FORM.samples : end] for end in random.integers(-5800, -1, 1 << 20).tolist())
    out = np.empty((FORM.samples, FORM.channels), np.float32)
    for at_ns in (next(moments) for _ in range(5)):
        view, copied, rebuilt = cache.window(at_ns), cache.window(at_ns, out=out), rebuild(file, at_ns / 1e9)
        if view is None or copied is None or not np.array_equal(view.samples, rebuilt):
            raise SystemExit("the cache and the recording give different windows")
    return {
        f"push of {BLOCK} samples": filled(samples)[1],
        "window, a view": lambda: cache.window(next(moments)),
        "newest window, a view": cache.latest,
        "window, copied into an array": lambda: cache.window(next(moments), out=out),
        "np.copy of as many rows": lambda: np.copy(next(slices)),
        "np.copyto of as many rows": lambda: np.copyto(out, next(slices)),
        "window, rebuilt from the npz": lambda: rebuild(file, next(moments) / 1e9),
    }


def timed(what: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median microseconds per call; all take turns, slow ones less often."""
    found: dict[str, list[float]] = {name: [] for name in what}
    for index in range(rounds):
        for name, call in what.items():
            slow = name.endswith("npz")
            if slow and index % 10:
                continue
            inner = 1 if slow else INNER
            started = time.perf_counter()
            for _ in range(inner):
                call()
            found[name].append((time.perf_counter() - started) / inner * 1e6)
    return {name: median(values) for name, values in found.items()}


def resident_bytes() -> int:
    """Of this process, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ten_minutes(samples: Rows) -> list[str]:
    """Resident memory after each minute of stream, while windows are read at 20 Hz."""
    cache = SensorCache(FORM)
    push = Pusher(cache, samples)
    out, after = np.empty((FORM.samples, FORM.channels), np.float32), []
    for block in range(MINUTES * 60 * 65):
        push()
        if block % 3 == 0:
            cache.latest()
            cache.latest(out=out)
        if block % (60 * 65) == 60 * 65 - 1:
            after.append(resident_bytes() / 1e6)
    if cache.counts.accepted != MINUTES * 60 * 650 or cache.dropped:
        raise SystemExit(f"samples are missing: {cache.counts}")
    return [
        f"The cache takes {cache.nbytes / 1e6:.1f} MB for 10 s of history. {cache.counts.accepted:,} samples, "
        f"{MINUTES} minutes of stream: resident memory after the first minute {after[0]:.1f} MB, after the last "
        f"{after[-1]:.1f} MB, at most {max(after):.1f} MB."
    ]


def allocated(samples: Rows) -> list[str]:
    """Bytes that one call takes at its peak, after warm-up."""
    cache, push = filled(samples)
    out = np.empty((FORM.samples, FORM.channels), np.float32)
    cells = []
    tracemalloc.start()
    for name, call in {"push": push, "view": cache.latest, "copy": lambda: cache.latest(out=out)}.items():
        peaks = []
        for _ in range(1000):
            tracemalloc.reset_peak()
            before, _peak = tracemalloc.get_traced_memory()
            call()
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        cells.append(f"{name} {max(peaks[10:]):,} bytes")
    tracemalloc.stop()
    return [f"Allocated at the peak of a call, largest of 990: {', '.join(cells)}. Nothing of it stays."]


def markdown(found: dict[str, float], notes: list[str]) -> str:
    from benchmarks.full_scale import machine  # imports PyTorch, which would drown the resident memory of a cache

    copy, rebuilt = found["np.copy of as many rows"], found["window, rebuilt from the npz"]
    lines = [machine(), "", "| call | median µs | of np.copy | npz against it |", "|---|---|---|---|"]
    for name, value in found.items():
        lines.append(f"| {name} | {value:,.1f} | {value / copy:.2f} | {rebuilt / value:,.0f} times |")
    return "\n".join([*lines, "", *notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=float, default=20.0, help="seconds of the raw recording")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sensor_data.npz"
        stamps, samples = record(file, arguments.recording)
        found = timed(calls(file, stamps, samples), arguments.rounds)
        notes = [f"Recording: {arguments.recording:g} s, {file.stat().st_size / 1e6:.0f} MB, in the page cache."]
    text = markdown(found, notes + ten_minutes(samples) + allocated(samples))
    print(text)
    if arguments.write:
        from benchmarks.full_scale import write_into

        write_into(arguments.write, text, "sensor_cache")


if __name__ == "__main__":
    main()
