"""Small recordings of a fast sensor in both forms, and a slow account of how windows are cut from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.sensor.form import SensorForm

CHANNELS, RATE_HZ = 5, 650.0
FORM = SensorForm(CHANNELS, RATE_HZ, samples=40, steps=40)


def stamps_of(count: int, seed: int = 0, *, start: float = 1000.0, rate_hz: float = RATE_HZ) -> NDArray[np.float64]:
    """Ascending seconds with a little jitter."""
    jitter = np.random.default_rng(seed).uniform(-0.2, 0.2, count)
    return start + (np.arange(count) + jitter) / rate_hz


def stream(count: int, seed: int = 0, channels: int = CHANNELS) -> NDArray[np.float32]:
    """Samples (N, C): a slow force around 5, and noise."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 1, (count, channels)).astype(np.float32)
    rows[:, 0] = 5 + np.sin(np.arange(count) / 30)
    return rows


def raw(count: int = 400, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """The arrays of a raw recording; an array that is None is left out."""
    rows = stream(count, seed)
    stamps = stamps_of(count, seed)
    arrays = {"timestamps": stamps, "send_timestamps": stamps + 0.001, "forces": rows[:, 0], "alines": rows[:, 1:]}
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def windowed(count: int = 12, samples: int = 40, hop: int = 30, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """The arrays of a recording of windows that overlap, each stamped with its last sample."""
    rows, stamps = stream(samples + hop * count, seed), stamps_of(samples + hop * count, seed)
    starts = range(0, hop * count, hop)
    data = np.stack([rows[start : start + samples] for start in starts])
    arrays = {"timestamps": stamps[[start + samples - 1 for start in starts]], "data": data}
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def save(path: Path, arrays: dict[str, Any], *, compressed: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def samples_of(arrays: dict[str, Any]) -> NDArray[np.float32]:
    """The stream (N, C) of a raw recording, force first."""
    return np.concatenate([arrays["forces"][:, None], arrays["alines"]], axis=1)


def extracted(arrays: dict[str, Any], form: SensorForm, at: Any) -> NDArray[np.float32]:
    """The window of a moment, or of a start and an end, sample by sample."""
    rows, stamps = samples_of(arrays), arrays["timestamps"]
    if np.ndim(at) == 0:
        after = [index for index, stamp in enumerate(stamps) if stamp >= at]
        end = after[0] if after else len(stamps) - 1
        chosen = [index for index in range(end + 1) if index > end - form.samples]
    else:
        chosen = [index for index, stamp in enumerate(stamps) if at[0] <= stamp <= at[1]]
        if not form.adaptive:
            chosen = chosen[-form.samples :]
    if form.adaptive:
        return rows[chosen]
    result = np.zeros((form.samples, rows.shape[1]), np.float32)
    first = form.samples - len(chosen) if form.padding == "left" else 0
    for place, index in enumerate(chosen):
        result[first + place] = rows[index]
    return result
