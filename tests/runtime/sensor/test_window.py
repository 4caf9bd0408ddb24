"""Cutting, padding and checking of windows, against the published rules written down plainly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trunkline.runtime.errors import SensorError
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.window import SensorWindow, check_window, encoder_rows, interval_range, point_range

FORM = SensorForm(channels=2, rate_hz=100.0, samples=20, steps=20)

stamps = st.lists(st.integers(-50, 50), min_size=1, max_size=40, unique=True).map(sorted)


def rows(count: int, channels: int = 2) -> NDArray[np.float32]:
    return np.random.default_rng().standard_normal((count, channels), np.float32)


def of(samples: NDArray[np.float32], **facts: object) -> SensorWindow:
    return replace(SensorWindow(samples, rate_hz=100.0), **facts)  # type: ignore[arg-type]


@given(stamps, st.integers(-60, 60), st.integers(1, 50))
def test_point_rule(stream: list[int], at: int, samples: int) -> None:
    not_before = [index for index, stamp in enumerate(stream) if stamp >= at]
    last = not_before[0] if not_before else len(stream) - 1  # one sample of look-ahead at most
    expected = list(range(len(stream)))[: last + 1][-samples:]
    assert list(range(*point_range(np.array(stream), at, samples))) == expected


@given(stamps, st.integers(-60, 60), st.integers(-60, 60))
def test_interval_rule(stream: list[int], start: int, end: int) -> None:
    expected = [index for index, stamp in enumerate(stream) if start <= stamp <= end]
    assert list(range(*interval_range(np.array(stream), start, end))) == expected


def test_rules_hold_for_seconds_too() -> None:
    seconds = np.array([0.0, 0.5, 1.0])
    assert point_range(seconds, 0.5, 10) == (0, 2)
    assert point_range(seconds, 0.51, 2) == (1, 3)
    assert interval_range(seconds, 0.5, 1.0) == (1, 3)


@given(st.integers(1, 60), st.sampled_from(["left", "right"]))
def test_too_short_is_padded_and_of_too_long_the_last_rows_stay(count: int, side: str) -> None:
    samples = rows(count)
    found = encoder_rows(of(samples), replace(FORM, padding=side))  # type: ignore[arg-type]
    kept = samples[-20:]
    begin = 20 - len(kept) if side == "left" else 0
    assert found.shape == (20, 2)
    np.testing.assert_array_equal(found[begin : begin + len(kept)], kept)
    assert not np.delete(found, range(begin, begin + len(kept)), axis=0).any()


def test_padding_comes_before_resampling() -> None:
    form = replace(FORM, steps=10, resample="nearest")
    found = encoder_rows(of(np.ones((10, 2), np.float32)), form)
    np.testing.assert_array_equal(found[:, 0], [0] * 5 + [1] * 5)


def test_adaptive_windows_are_stretched_and_not_padded() -> None:
    form = replace(FORM, adaptive=True, padding="none")
    assert encoder_rows(of(np.ones((3, 2), np.float32)), form).all()


def test_nothing_is_copied_that_fits_and_out_is_written() -> None:
    samples, out = rows(20), np.empty((20, 2), np.float32)
    assert np.shares_memory(encoder_rows(of(samples), FORM), samples)
    assert encoder_rows(of(samples), FORM, out) is out
    np.testing.assert_array_equal(out, samples)


WRONG = {
    "double precision": (of(rows(20).astype(np.float64)), {}, "float64 (20, 2) instead of float32"),
    "one dimension": (of(rows(20)[:, 0]), {}, "float32 (20,) instead of"),
    "no array": (of([[1.0, 2.0]]), {}, "list instead of"),  # type: ignore[arg-type]
    "channels": (of(rows(20, 3)), {}, "3 numbers per sample instead of 2"),
    "empty": (of(rows(0)), {}, "no samples"),
    "too long for an adaptive form": (of(rows(21)), {"adaptive": True}, "21 samples, more than the 20"),
    "too short and not padded": (of(rows(19)), {"padding": "none"}, "19 samples, and short windows are not padded"),
    "rate": (of(rows(20), rate_hz=103.0), {}, "a stream of 103 Hz"),
    "no rate": (of(rows(20), rate_hz=float("nan")), {}, "a stream of nan Hz"),
    "a rate in words": (of(rows(20), rate_hz="100"), {}, "a stream of 100 Hz"),
    "a matrix": (of(rows(20).view(np.matrix)), {}, "numpy.matrix of float32 (20, 2) instead of"),
    "masked": (of(np.ma.masked_array(rows(20), True)), {}, "numpy.ma.MaskedArray of float32 (20, 2) instead of"),
    "an end of NaN": (of(rows(20), end_ns=float("nan")), {}, "end_ns is float nan, not whole nanoseconds"),
    "an end of 32 bits": (of(rows(20), end_ns=np.int32(7)), {}, "end_ns is int32 np.int32(7), not whole"),
    "NaN missing": (of(rows(20), missing=float("nan")), {}, "missing is float nan, not a whole number"),
    "a place in words": (of(rows(20), stream=3, position="16"), {}, "position is str '16', not a whole number"),
    "gaps": (of(rows(20), missing=2), {}, "gaps that swallowed 2 samples"),
    "NaN": (of(np.full((20, 2), np.nan, np.float32)), {}, "NaN or infinite"),
    "infinite": (of(np.full((20, 2), np.inf, np.float32)), {}, "NaN or infinite"),
}


@pytest.mark.parametrize(("window", "changes", "found"), WRONG.values(), ids=WRONG)
def test_refused(window: SensorWindow, changes: dict[str, object], found: str) -> None:
    form = replace(FORM, **changes)  # type: ignore[arg-type]
    with pytest.raises(SensorError) as caught:
        encoder_rows(window, form)
    assert found in str(caught.value)


def test_all_reasons_are_listed() -> None:
    window = of(np.full((20, 2), np.nan, np.float32), rate_hz=65.0, missing=9)
    with pytest.raises(SensorError) as caught:
        check_window(window, FORM)
    assert len(caught.value.found) == 3  # type: ignore[arg-type]


def test_what_is_within_the_tolerances_passes() -> None:
    check_window(of(rows(20), rate_hz=101.9, missing=1), FORM)
    check_window(of(rows(50)), replace(FORM, padding="none"))
