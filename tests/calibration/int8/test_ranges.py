"""Ranges by hand and by property; int8 there and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from trunkline.calibration.int8.ranges import (
    SMALLEST_THRESHOLD,
    Method,
    MethodName,
    decibels,
    dequantise,
    layer_error,
    quantise,
    squared_error,
    threshold,
    weight_scales,
)
from trunkline.runtime.errors import InputError

Floats = NDArray[np.float32]
NAMES: tuple[MethodName, ...] = ("minmax", "percentile", "entropy", "mse")
numbers = st.floats(-(2.0**60), 2.0**60, width=32)
matrices = arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(1, 6)), elements=numbers)
methods = st.sampled_from(NAMES).map(Method)


def absmax_of(rows: Floats) -> Floats:
    return np.abs(rows).max(axis=0)


def normal(rows: int = 400, channels: int = 64, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, channels)).astype(np.float32)


def test_minmax_is_exact_and_looks_beyond_the_sampled_rows() -> None:
    rows = np.array([[1, -2], [0.5, 1]], np.float32)
    assert threshold(rows, absmax_of(rows), Method("minmax")) == 2
    assert threshold(rows, np.array([7, 2], np.float32), Method("minmax")) == 7


def test_factors_divide_first() -> None:
    rows, factors = np.array([[8, 3]], np.float32), np.array([4, 0.5], np.float32)
    assert threshold(rows, absmax_of(rows), Method("minmax"), factors=factors) == 6
    for name in NAMES:
        divided = threshold(rows / factors, absmax_of(rows) / factors, Method(name))
        assert threshold(rows, absmax_of(rows), Method(name), factors=factors) == divided


@pytest.mark.parametrize(
    ("percent", "expected"), [(100, 100), (99.5, 100), (99, 99), (98.5, 99), (50, 50), (1, 1), (0.1, 1)]
)
def test_percentiles_of_a_hundred_numbers(percent: float, expected: float) -> None:
    rows = np.arange(1, 101, dtype=np.float32).reshape(20, 5) * np.float32([1, -1, 1, -1, 1])
    np.random.default_rng(0).shuffle(rows)
    assert threshold(rows, absmax_of(rows), Method("percentile", percent)) == expected


def test_a_percentile_counts_what_rows_stand_for() -> None:
    rows = np.array([[100], [1], [2]], np.float32)
    weights = np.array([1, 50, 49], np.float32)
    chosen = {
        percent: threshold(rows, absmax_of(rows), Method("percentile", percent), weights=weights)
        for percent in (100, 99.5, 99, 50.5, 50)
    }
    assert chosen == {100: 100, 99.5: 100, 99: 2, 50.5: 2, 50: 1}


@given(matrices, st.floats(0.01, 100), st.integers(0, 2**32 - 1))
def test_percentiles_by_definition(rows: Floats, percent: float, seed: int) -> None:
    weights = np.random.default_rng(seed).integers(1, 9, len(rows)).astype(np.float32)
    found = threshold(rows, absmax_of(rows), Method("percentile", percent), weights=weights)
    flat, each = np.abs(rows).ravel(), np.repeat(weights, rows.shape[1])
    above = (1 - percent / 100) * each.sum()
    fitting = [value for value in flat if each[flat > value].sum() <= above * (1 + 1e-9)]
    lowest = float(min(fitting))
    if lowest > SMALLEST_THRESHOLD:
        assert found == lowest
    else:
        assert found == max(float(flat.max()), SMALLEST_THRESHOLD) or lowest > 0


@given(matrices, methods)
def test_never_above_the_largest_and_never_zero(rows: Floats, method: Method) -> None:
    found = threshold(rows, absmax_of(rows), method)
    largest = float(np.abs(rows).max())
    assert SMALLEST_THRESHOLD <= found <= max(largest, SMALLEST_THRESHOLD)
    assert np.float32(found) == found
    if method.name == "minmax":
        assert found == max(largest, SMALLEST_THRESHOLD)


@given(matrices, st.integers(-20, 20), methods)
def test_scaled_numbers_have_a_scaled_range(rows: Floats, exponent: int, method: Method) -> None:
    rows = np.where(np.abs(rows) < 2.0**-40, np.float32(0), rows)
    found = threshold(rows, absmax_of(rows), method)
    scaled = rows * np.float32(2.0**exponent)
    if rows.any():
        assert threshold(scaled, absmax_of(scaled), method) == pytest.approx(found * 2.0**exponent, rel=1e-6)


@given(matrices)
def test_mse_is_never_worse_than_minmax(rows: Floats) -> None:
    absmax = absmax_of(rows)
    errors = [squared_error(rows, threshold(rows, absmax, Method(name))) for name in ("mse", "minmax")]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("name", NAMES)
def test_all_zero(name: MethodName) -> None:
    rows = np.zeros((3, 4), np.float32)
    found = threshold(rows, absmax_of(rows), Method(name))
    assert found == SMALLEST_THRESHOLD
    scale = np.float32(found / 127)
    assert scale >= np.finfo(np.float32).tiny, "a kernel may read the scale as zero"
    assert not quantise(rows, found / 127).any()


@pytest.mark.parametrize("name", NAMES)
def test_zeros_in_the_sample_cut_nothing_off(name: MethodName) -> None:
    rows = np.zeros((3, 4), np.float32)
    assert threshold(rows, np.float32([0, 5, 0, 1]), Method(name)) == 5
    rows = np.zeros((200, 100), np.float32)
    rows[0, 0] = 9
    assert threshold(rows, absmax_of(rows), Method(name)) == 9


@pytest.mark.parametrize("name", NAMES)
def test_one_number(name: MethodName) -> None:
    rows = np.array([[-3]], np.float32)
    assert threshold(rows, absmax_of(rows), Method(name)) == pytest.approx(3, rel=0.02)


def test_mse_finds_the_optimum_of_a_normal_distribution() -> None:
    """At 8 bits the best symmetric range of a standard normal ends near 3.92 (Banner et al. 2019)."""
    rows = normal(4000, 64)
    assert threshold(rows, absmax_of(rows), Method("mse")) == pytest.approx(3.92, rel=0.05)


def test_mse_agrees_with_trying_everything() -> None:
    rows = normal(200, 32) ** 3
    rows[3, 4] *= 10
    absmax = absmax_of(rows)
    weights = np.linspace(1, 9, len(rows)).astype(np.float32)
    tried = np.geomspace(absmax.max() / 50, absmax.max(), 2000)
    best = min(squared_error(rows, limit, weights) for limit in tried)
    found = threshold(rows, absmax, Method("mse"), weights=weights)
    assert squared_error(rows, found, weights) <= 1.05 * best


def test_entropy_cuts_a_lonely_outlier_off() -> None:
    rows = normal(2000, 64)
    rows[0, 0] = 60
    assert 2.5 < threshold(rows, absmax_of(rows), Method("entropy")) < 20
    assert threshold(rows, absmax_of(rows), Method("minmax")) == 60


def test_entropy_keeps_what_is_evenly_spread() -> None:
    rows = np.linspace(-1, 1, 64 * 4096, dtype=np.float32).reshape(4096, 64)
    assert threshold(rows, absmax_of(rows), Method("entropy")) > 0.98


def test_entropy_ignores_zeros() -> None:
    rows = normal(500, 64)
    padded = np.concatenate([rows, np.zeros_like(rows)])
    absmax = absmax_of(rows)
    assert threshold(padded, absmax, Method("entropy")) == threshold(rows, absmax, Method("entropy"))


@pytest.mark.parametrize("name", ["entropy", "mse", "percentile"])
def test_weights_are_repetitions(name: MethodName) -> None:
    rows = normal(50, 32)
    rows[7] *= 8
    weights = np.arange(1, 51, dtype=np.float32)
    repeated = np.repeat(rows, np.arange(1, 51), axis=0)
    weighted = threshold(rows, absmax_of(rows), Method(name), weights=weights)
    assert weighted == pytest.approx(threshold(repeated, absmax_of(rows), Method(name)), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"absmax": np.ones(3, np.float32)}, "different shapes"),
        ({"rows": np.ones((0, 2), np.float32)}, "different shapes"),
        ({"weights": np.ones(2, np.float32)}, "different shapes"),
        ({"factors": np.ones((2, 1), np.float32)}, "different shapes"),
        ({"factors": np.array([1, 0], np.float32)}, "not positive"),
        ({"rows": np.array([[1, np.nan]], np.float32)}, "not finite"),
        ({"absmax": np.array([1, np.inf], np.float32)}, "not finite"),
    ],
)
def test_wrong_statistics(change: dict[str, Floats], message: str) -> None:
    given_arguments = {"rows": np.ones((1, 2), np.float32), "absmax": np.ones(2, np.float32)} | change
    rows, absmax = given_arguments.pop("rows"), given_arguments.pop("absmax")
    with pytest.raises(InputError, match=message):
        threshold(rows, absmax, Method(), **given_arguments)


@pytest.mark.parametrize("arguments", [("median",), ("percentile", 0), ("percentile", 100.5), ("percentile", math.nan)])
def test_wrong_methods(arguments: tuple) -> None:
    with pytest.raises(InputError, match="no such way"):
        Method(*arguments)


def test_rounding_is_half_to_even_and_clipping_symmetric() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.4, 200, -127.6, -200], np.float32)
    assert quantise(values, 1.0).tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -127, -127]
    assert quantise(values, 1.0).dtype == np.int8


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scales_along_an_axis(axis: int) -> None:
    array = np.array([[1, -2, 4], [100, 50, -200]], np.float32)
    scales = weight_scales(array, axis)
    wanted = [[4, 200], [100, 50, 200]][axis]
    np.testing.assert_allclose(scales, np.float32(wanted) / 127, rtol=1e-6)
    assert scales.dtype == np.float32
    back = dequantise(quantise(array, scales, axis), scales, axis)
    assert back.dtype == np.float32
    assert np.abs(back - array).max() <= scales.max() / 2 * 1.001


def test_channels_of_zeros_have_a_scale() -> None:
    weight = np.array([[0, 1], [0, 2]], np.float32)
    for clip in ("minmax", "mse"):
        scales = weight_scales(weight, 1, clip)
        assert (scales >= np.finfo(np.float32).tiny).all()
        np.testing.assert_allclose(dequantise(quantise(weight, scales, 1), scales, 1), weight, atol=0.02)


def test_clipping_weights_pays_where_one_stands_out() -> None:
    weight = normal(1 << 16, 3)
    weight[0, 1] = 7
    plain, clipped = weight_scales(weight, 1), weight_scales(weight, 1, "mse")
    assert (clipped <= plain).all()
    assert clipped[1] < 0.9 * plain[1]

    def error(scales: Floats) -> Floats:
        return np.square(weight - dequantise(quantise(weight, scales, 1), scales, 1)).sum(axis=0)

    assert (error(clipped) <= error(plain)).all()


@given(matrices)
def test_there_and_back_within_half_a_step(weight: Floats) -> None:
    scales = weight_scales(weight, 1)
    back = dequantise(quantise(weight, scales, 1), scales, 1)
    assert (np.abs(back - weight) <= scales * 0.5 * (1 + 1e-4)).all()


@pytest.mark.parametrize("weight", [np.zeros((0, 3), np.float32), np.array([[1, np.inf]], np.float32)])
def test_wrong_weights(weight: Floats) -> None:
    with pytest.raises(InputError, match="weight cannot be quantised"):
        weight_scales(weight, 1)


def test_the_error_of_a_layer_by_definition() -> None:
    rows, weight = normal(20, 8), normal(8, 5, seed=1)
    limit, factors = 3.0, np.linspace(0.5, 2, 8).astype(np.float32)
    smoothed = weight * factors[:, None]
    scales = weight_scales(smoothed, 1)
    left = dequantise(quantise(rows / factors, limit / 127), limit / 127).astype(np.float64)
    right = dequantise(quantise(smoothed, scales, 1), scales, 1).astype(np.float64)
    exact = rows.astype(np.float64) @ weight
    wanted = np.square(exact - left @ right).sum() / np.square(exact).sum()
    assert layer_error(rows, weight, limit, factors=factors) == pytest.approx(wanted, rel=1e-3)
    assert decibels(layer_error(rows, weight, limit, factors=factors)) == pytest.approx(
        -10 * math.log10(wanted), abs=0.01
    )


def test_rows_of_a_layer_count_by_weight() -> None:
    rows, weight = normal(2, 8), normal(8, 5, seed=1)
    weights = np.array([3, 1], np.float32)
    repeated = layer_error(rows[[0, 0, 0, 1]], weight, 2.5)
    assert layer_error(rows, weight, 2.5, weights=weights) == pytest.approx(repeated, rel=1e-5)


def test_layers_without_error_or_signal() -> None:
    exact = np.array([[127, -3]], np.float32)
    assert decibels(layer_error(exact, np.eye(2, dtype=np.float32), 127.0)) == math.inf
    zeros = np.zeros((3, 2), np.float32)
    assert layer_error(zeros, np.eye(2, dtype=np.float32), SMALLEST_THRESHOLD) == 0
    assert layer_error(exact, np.zeros((2, 2), np.float32), 127.0) == 0


def test_eight_bits_give_about_forty_decibels() -> None:
    rows, weight = normal(200, 256), normal(256, 64, seed=1)
    limit = threshold(rows, absmax_of(rows), Method("mse"))
    assert 36 < decibels(layer_error(rows, weight, limit)) < 44
