"""What is stored comes back as exactly as its storage allows, and what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trunkline.calibration.windows.plan import STORAGES, Storage
from trunkline.calibration.windows.storage import ErrorMeter, UnstorableError, decode, encode, encoded_bytes

LARGEST = float(np.finfo(np.float32).max)


def stored(rows: NDArray[np.float32], storage: Storage) -> NDArray[np.float32]:
    content = encode(rows, storage)
    assert content.nbytes == encoded_bytes(storage, *rows.shape)
    assert content.nbytes % 64 == 0
    found = decode(content, storage, *rows.shape)
    assert (found.dtype, found.shape) == (np.float32, rows.shape)
    return found


def rows_of(seed: int, scale: float = 1.0, offset: float = 0.0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 40)), int(rng.integers(1, 9)))
    return (rng.normal(offset, scale, shape)).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-30, 1e30), st.floats(-1e6, 1e6))
def test_float32_is_exact(seed: int, scale: float, offset: float) -> None:
    rows = rows_of(seed, scale, offset)
    np.testing.assert_array_equal(stored(rows, "float32"), rows)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-9, 1e4))
def test_float16_is_numpys(seed: int, scale: float) -> None:
    rows = rows_of(seed, scale).clip(-65504, 65504)
    np.testing.assert_array_equal(stored(rows, "float16"), rows.astype(np.float16).astype(np.float32))


def test_every_float16_is_read_as_numpy_reads_it() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    found = decode(halves.view(np.uint8).reshape(-1), "float16", 256, 256)
    np.testing.assert_array_equal(found.view(np.uint32), halves.astype(np.float32).view(np.uint32))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-20, 1e20), st.floats(-1e3, 1e3))
def test_int8_is_off_by_half_a_step_of_its_channel_at_most(seed: int, scale: float, offset: float) -> None:
    rows = rows_of(seed, scale, offset * scale)
    step = (rows.max(axis=0).astype(np.float64) - rows.min(axis=0)) / 254
    rounding = np.abs(rows).max(axis=0) * 2.0**-22
    assert (np.abs(stored(rows, "int8").astype(np.float64) - rows) <= step / 2 + rounding).all()


def test_int8_of_channels_that_do_not_vary() -> None:
    rows = np.repeat(np.float32([[0.0, 0.1, -3.7, 65504.0, 1e-44, LARGEST]]), 5, axis=0)
    np.testing.assert_array_equal(stored(rows, "int8"), rows)


def test_a_large_value_of_one_channel_costs_the_others_nothing() -> None:
    rows = rows_of(0)
    wide = np.concatenate([rows, np.full((len(rows), 1), 1e6, np.float32)], axis=1)
    wide[0, -1] = -1e6
    np.testing.assert_array_equal(stored(wide, "int8")[:, :-1], stored(rows, "int8"))


@pytest.mark.parametrize("value", [65505.0, -65520.0, 1e9])
def test_float16_beyond_its_end_is_refused_by_name(value: float) -> None:
    rows = rows_of(3)
    rows[-1, -1] = value
    place = f"row {len(rows) - 1}, channel {rows.shape[1] - 1}"
    with pytest.raises(UnstorableError, match=rf"{value:g} at {place}: float16 ends at 65504".replace("+", r"\+")):
        encode(rows, "float16")
    assert np.isfinite(stored(rows.clip(-65504, 65504), "float16")).all()


def test_int8_whose_steps_do_not_fit_float32() -> None:
    rows = np.float32([[LARGEST], [-LARGEST], [0.0]])
    with pytest.raises(UnstorableError, match="a step of int8 is lost"):
        encode(rows, "int8")


@pytest.mark.parametrize("storage", STORAGES)
def test_float32_is_read_in_place_and_others_are_new(storage: Storage) -> None:
    rows = rows_of(1)
    content = encode(rows, storage)
    assert np.shares_memory(decode(content, storage, *rows.shape), content) == (storage == "float32")


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_the_error_that_is_stated_is_the_error(storage: Storage) -> None:
    windows = [rows_of(seed)[:, :1] * [1.0, 1e-3, 40.0] + [0.0, 5.0, 0.0] for seed in range(9)]
    windows = [np.concatenate([each, np.full((len(each), 1), 0.1)], axis=1).astype(np.float32) for each in windows]
    meter = ErrorMeter(4)
    for each in windows:
        meter.add(each, stored(each, storage))
    before = np.concatenate(windows).astype(np.float64)
    after = np.concatenate([stored(each, storage) for each in windows]).astype(np.float64)
    extent = before.max(axis=0) - before.min(axis=0)
    extent[3] = before[0, 3]  # it never changes
    shares = np.abs(before - after) / extent
    found = meter.result()
    assert found.max == pytest.approx(shares.max(), rel=1e-5)
    assert found.rms == pytest.approx(np.sqrt(np.mean(shares**2)), rel=1e-5)
    assert 0 < found.rms < found.max


def test_nothing_measured_is_no_error() -> None:
    found = ErrorMeter(3).result()
    assert (found.max, found.rms) == (0.0, 0.0)
