"""Resampling gives PyTorch's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from trunkline.runtime.sensor.cache import SensorCache
from trunkline.runtime.sensor.form import Resample, SensorForm
from trunkline.runtime.sensor.resample import KEYS, resample
from trunkline.runtime.sensor.window import SensorWindow, encoder_rows

Rows = NDArray[np.float32]

CHANNELS, LONGEST, PERIOD_NS = 3, 3000, 1_000_000
SAMPLED = (250, 324, 325, 326, 500, 649, 650, 651, 700, 975, 1000, 1023, 1024, 1299, 1300, 1301, 1950, 2047, 2999, 3000)
LENGTHS = (*range(1, 201), *SAMPLED)


def in_pytorch(rows: Rows, steps: int, mode: Resample) -> Rows:
    """(T_in, C) -> (T_out, C)."""
    columns = torch.from_numpy(rows.T.copy())[None]  # (1, C, T_in)
    if mode == "cubic":
        return F.interpolate(columns[..., None], size=(steps, 1), mode="bicubic")[0, ..., 0].numpy().T
    return F.interpolate(columns, size=steps, mode=mode)[0].numpy().T


def keys_formula(rows: Rows, steps: int) -> NDArray[np.float64]:
    """Keys' cubic convolution, written down sample by sample in float64, at PyTorch's float32 positions."""
    scale = np.float64(np.float32(len(rows)) / np.float32(steps))
    values, out = rows.astype(np.float64), np.zeros((steps, rows.shape[1]))
    for row in range(steps):
        position = float(np.float32((row + 0.5) * scale - 0.5))
        for place in range(int(np.floor(position)) - 1, int(np.floor(position)) + 3):
            x = abs(position - place)
            if x <= 1:
                weight = (KEYS + 2) * x**3 - (KEYS + 3) * x**2 + 1
            else:
                weight = KEYS * x**3 - 5 * KEYS * x**2 + 8 * KEYS * x - 4 * KEYS
            out[row] += weight * values[min(max(place, 0), len(rows) - 1)]
    return out


@pytest.fixture(scope="module")
def cache() -> SensorCache:
    """The newest 3,000 rows of a longer stream, so that every window lies across the ring's seam sooner or later."""
    form = SensorForm(channels=CHANNELS, rate_hz=1000.0, samples=LONGEST, steps=650, adaptive=True)
    cache = SensorCache(form, seconds=4.0)
    samples = np.random.default_rng().uniform(-1, 1, (9000, CHANNELS)).astype(np.float32)
    cache.push(np.arange(9000) * PERIOD_NS, samples)
    return cache


def newest(cache: SensorCache, rows: int, form: SensorForm) -> SensorWindow:
    last = 8999 * PERIOD_NS
    window = cache.interval(last - (rows - 1) * PERIOD_NS, last, clock="sensor")
    assert window is not None
    assert len(window.samples) == rows
    return window


def adaptive(steps: int, mode: Resample) -> SensorForm:
    return SensorForm(channels=CHANNELS, rate_hz=1000.0, samples=LONGEST, steps=steps, resample=mode, adaptive=True)


@pytest.mark.parametrize("steps", [650, 65])
@pytest.mark.parametrize(("mode", "tolerance"), [("linear", 1e-6), ("nearest", 0), ("cubic", 1e-5)])
def test_windows_of_a_cache_become_pytorchs_rows(
    cache: SensorCache, mode: Resample, tolerance: float, steps: int
) -> None:
    form, out = adaptive(steps, mode), np.empty((steps, CHANNELS), np.float32)
    for length in LENGTHS:
        window = newest(cache, length, form)
        rows = encoder_rows(window, form, out)
        assert rows is out
        np.testing.assert_allclose(rows, in_pytorch(window.samples, steps, mode), rtol=0, atol=tolerance)
        np.testing.assert_array_equal(encoder_rows(window, form), rows)


@pytest.mark.parametrize("steps", [65, 31])
def test_cubic_is_keys_formula(cache: SensorCache, steps: int) -> None:
    form = adaptive(steps, "cubic")
    for length in LENGTHS[::3]:
        window = newest(cache, length, form)
        expected = keys_formula(window.samples, steps)
        np.testing.assert_allclose(encoder_rows(window, form), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_any_length_to_any_length(mode: Resample) -> None:
    random = np.random.default_rng()
    for length, steps in random.integers(1, 300, (60, 2)).tolist():
        rows = random.uniform(-1, 1, (length, 2)).astype(np.float32)
        np.testing.assert_allclose(resample(rows, steps, mode), in_pytorch(rows, steps, mode), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_strides_do_not_matter_and_input_stays(mode: Resample) -> None:
    whole = np.random.default_rng().uniform(-1, 1, (120, 8)).astype(np.float32)
    kept, rows = whole.copy(), whole[::-2, 1::3]
    np.testing.assert_array_equal(resample(rows, 65, mode), resample(np.ascontiguousarray(rows), 65, mode))
    np.testing.assert_array_equal(whole, kept)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_the_right_number_of_rows_is_left_alone(mode: Resample) -> None:
    rows, out = np.random.default_rng().random((65, 2), np.float32), np.empty((65, 2), np.float32)
    assert resample(rows, 65, mode) is rows
    assert resample(rows, 65, mode, out) is out
    np.testing.assert_array_equal(out, rows)


def test_a_single_row_is_repeated() -> None:
    row = np.array([[1.5, -2.0]], np.float32)
    for mode in ("linear", "nearest", "cubic"):
        np.testing.assert_allclose(resample(row, 7, mode), row.repeat(7, axis=0), rtol=1e-6)
