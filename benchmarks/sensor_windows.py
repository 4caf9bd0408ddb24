"""Reading sensor windows: cut from the npz file each time, as the published data set class does, or from a store.

    python benchmarks/sensor_windows.py [--windows 1000] [--extractions 30] [--write docs/benchmarks.md]

A made-up recording of 5 windows a second (650 samples of 1,026 numbers each; 1,000 windows are 200 s) is written as the
recorder does, and once more with a tenth of its length. Extraction is ``numpy.load``, ``searchsorted`` and
``concatenate`` for every window. A window counts as read when it is copied into an array that is there already, as into
a batch. All ways take turns in one process, in random order of windows, with all files in the system's cache; medians
are reported. Before that, every window of each store is read once more, and resident memory taken after each.

Needs 6 GB of disk for a few minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trunkline.calibration.windows.build import build_store
from trunkline.calibration.windows.plan import STORAGES, WindowPlan
from trunkline.calibration.windows.store import WindowStore
from trunkline.runtime.sensor.form import SensorForm

FORM = SensorForm()
WINDOWS_HZ = 5.0
START_S = 1.7e9
Rows = NDArray[np.float32]


def write_recording(path: Path, seconds: float) -> None:
    """A raw recording: a force that rises, echoes that wander, noise."""
    count, depth = round(seconds * FORM.rate_hz), FORM.channels - 1
    noise = np.random.default_rng(0)  # its own, so that a shorter recording is the beginning of a longer one
    time_s = np.arange(count) / FORM.rate_hz
    echoes = 0.2 * depth * (2 + np.sin(0.7 * time_s))[:, None]
    alines = np.empty((count, depth), np.float32)
    for start in range(0, count, 4096):
        rows = slice(start, start + 4096)
        alines[rows] = np.exp(-(((np.arange(depth) - echoes[rows]) / 25) ** 2), dtype=np.float32)
        alines[rows] += noise.normal(0, 0.02, alines[rows].shape)
    forces = (0.5 * time_s % 8 + np.random.default_rng(1).normal(0, 0.05, count)).astype(np.float32)
    stamps = START_S + time_s
    np.savez(path, timestamps=stamps, send_timestamps=stamps, forces=forces, alines=alines)


def extract(path: Path, moment: float) -> Rows:
    """One window, everything read again."""
    with np.load(path, allow_pickle=False) as recording:
        stamps, forces, alines = (recording[name] for name in ("timestamps", "forces", "alines"))
    end = min(int(np.searchsorted(stamps, moment, side="left")) + 1, len(stamps))
    start = max(0, end - FORM.samples)
    rows = np.concatenate([forces[start:end, None], alines[start:end]], axis=1)
    return np.concatenate([np.zeros((FORM.samples - len(rows), FORM.channels), np.float32), rows])


def timed(read: Callable[[], Rows], batch: Rows) -> float:
    """Milliseconds until the window is in ``batch``."""
    start = time.perf_counter()
    batch[:] = read()
    return (time.perf_counter() - start) * 1e3


def resident_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def measure(
    stores: dict[str, WindowStore], recordings: dict[str, Path], moments: NDArray[np.float64], extractions: int
) -> dict[str, list[float]]:
    """Milliseconds per read, by store or recording. The short recording has the first of the moments only."""
    spent: dict[str, list[float]] = {name: [] for name in (*recordings, *stores)}
    batch = np.empty((FORM.samples, FORM.channels), np.float32)
    short = max(1, len(moments) // 10 - 5)
    for turn, index in enumerate(np.random.default_rng(1).permutation(len(moments)).tolist()):
        if turn % max(1, len(moments) // extractions) == 0:
            for name, path in recordings.items():
                place = index if name == "long" else index % short
                spent[name].append(timed(lambda path=path, place=place: extract(path, moments[place]), batch))  # type: ignore[misc]
                np.testing.assert_array_equal(batch, stores["float32"][place].samples)
        for name, store in stores.items():
            spent[name].append(timed(lambda store=store, index=index: store[index].samples, batch))  # type: ignore[misc]
    return spent


def memory(path: Path) -> tuple[float, float]:
    """Resident MB before, and the most during one read of every window."""
    before = most = resident_mb()
    store = WindowStore(path)
    batch = np.empty((FORM.samples, FORM.channels), np.float32)
    for index in np.random.default_rng(2).permutation(len(store)).tolist():
        batch[:] = store[index].samples
        most = max(most, resident_mb())
    return before, most


def rows_of(
    stores: dict[str, WindowStore],
    spent: dict[str, list[float]],
    built: dict[str, float],
    resident: dict[str, tuple[float, float]],
) -> list[list[str]]:
    medians = {name: float(np.median(values)) for name, values in spent.items()}
    table = []
    for name, store in stores.items():
        (resolution,) = store.record.resolutions
        before, most = resident[name]
        table.append(
            [
                name,
                f"{resolution.data.size / 1e9:.2f} GB",
                f"{built[name]:.1f} s",
                f"{medians[name]:.2f} ms",
                f"{medians['long'] / medians[name]:.0f}",
                f"{medians['short'] / medians[name]:.0f}",
                f"{before:.0f} MB, +{most - before:.0f} MB",
                f"{resolution.max_error:.2%}, {resolution.rms_error:.3%}",
            ]
        )
    return table


def markdown(table: list[list[str]], spent: dict[str, list[float]], windows: int) -> str:
    seconds = windows / WINDOWS_HZ
    times = {name: float(np.median(spent[name])) for name in ("long", "short")}
    mb = {
        "long": seconds * FORM.rate_hz * FORM.channels * 4e-6,
        "short": seconds / 10 * FORM.rate_hz * FORM.channels * 4e-6,
    }
    heads = ["storage", "size", "building", f"one of {windows:,} windows", f"times faster than from {seconds:g} s"]
    heads += [f"than from {seconds / 10:g} s", "resident, growth", "error: largest, rms"]
    lines = [
        f"Extracting one window from an npz file of {seconds:g} s ({mb['long']:.0f} MB): {times['long']:.0f} ms, "
        f"of {seconds / 10:g} s ({mb['short']:.0f} MB): {times['short']:.1f} ms "
        f"(medians of {len(spent['long'])}).",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(row) + " |" for row in table),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--extractions", type=int, default=30)
    parser.add_argument("--work", type=Path, help="folder for the files; by default the system's for temporary ones")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    seconds = arguments.windows / WINDOWS_HZ
    moments = START_S + 0.9 + np.arange(arguments.windows) * ((seconds - 1) / arguments.windows)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        recordings = {name: Path(folder) / f"{name}.npz" for name in ("long", "short")}
        write_recording(recordings["long"], seconds)
        write_recording(recordings["short"], seconds / 10)
        stores, built = {}, {}
        for storage in STORAGES:
            start = time.perf_counter()
            plan = WindowPlan(FORM, moments, storage=storage)
            stores[storage] = build_store(recordings["long"], plan, Path(folder) / storage)
            built[storage] = time.perf_counter() - start
            print(f"built {storage} in {built[storage]:.1f} s", file=sys.stderr, flush=True)
        resident = {name: memory(store.path) for name, store in stores.items()}
        spent = measure(stores, recordings, moments, arguments.extractions)
        table = rows_of(stores, spent, built, resident)
    text = markdown(table, spent, arguments.windows)
    from benchmarks.full_scale import machine, write_into  # imports torch, which would count as resident memory above

    text = f"Machine: {machine()}.\n\n{text}"
    print(text)
    if arguments.write:
        write_into(arguments.write, text, "sensor_windows")


if __name__ == "__main__":
    main()
