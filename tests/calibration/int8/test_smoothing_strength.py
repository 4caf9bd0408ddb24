"""Smoothing is chosen where it helps, left where it does not, and never makes a layer worse."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trunkline.calibration.int8 import ranges
from trunkline.calibration.int8.ranges import Method, MethodName
from trunkline.calibration.int8.smoothing_strength import (
    MAX_FACTOR,
    choose_smoothing,
    smoothing_factors,
    weight_maxima,
)
from trunkline.calibration.statistics.collect import TensorStatistics
from trunkline.runtime.errors import InputError

Floats = NDArray[np.float32]
K, N = 96, 48
OUTLIERS = (3, 17, 40, 41, 95)


def seen(rows: Floats) -> TensorStatistics:
    return TensorStatistics(np.abs(rows).max(axis=0), rows, np.ones(len(rows), np.float32), len(rows))


def layer(seed: int = 0, outlier: float = 1.0, count: int = 300) -> tuple[TensorStatistics, Floats]:
    """Random input and weight; five channels are ``outlier`` times as large, and their weights as much smaller."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, K)).astype(np.float32)
    weight = generator.standard_normal((K, N)).astype(np.float32)
    rows[:, OUTLIERS] *= outlier
    weight[list(OUTLIERS)] /= outlier
    return seen(rows), weight


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_outlier_channels_are_smoothed(method: MethodName) -> None:
    statistics, weight = layer(outlier=100)
    found = choose_smoothing(statistics, [weight], Method(method))
    assert found.alpha is not None
    assert found.error < found.error_unsmoothed / 100
    others = np.delete(found.factors, OUTLIERS)
    assert found.factors[list(OUTLIERS)].min() > 20 * others.max()
    assert found.threshold <= float((statistics.absmax / found.factors).max())


def test_the_result_is_what_it_says() -> None:
    statistics, weight = layer(outlier=30)
    found = choose_smoothing(statistics, [weight], Method("mse"), rows=1000)
    limit = ranges.threshold(statistics.rows, statistics.absmax, Method("mse"), factors=found.factors)
    assert found.threshold == limit
    assert found.error == pytest.approx(ranges.layer_error(statistics.rows, weight, limit, factors=found.factors))
    plain = ranges.threshold(statistics.rows, statistics.absmax, Method("mse"))
    assert found.error_unsmoothed == pytest.approx(ranges.layer_error(statistics.rows, weight, plain))


def test_none_is_chosen_where_all_strengths_are_worse() -> None:
    """Strength 0 flattens the weight only, and so widens the input's channels that are large already."""
    statistics, weight = layer(outlier=5)
    weight[list(OUTLIERS)] *= 100
    harmed = choose_smoothing(statistics, [weight], Method("minmax"), alphas=(0.0,))
    assert harmed.alpha is None
    assert (harmed.factors == 1).all()
    assert harmed.error == harmed.error_unsmoothed


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("outlier", [1, 10])
def test_never_worse_than_none(seed: int, outlier: float) -> None:
    statistics, weight = layer(seed, outlier)
    found = choose_smoothing(statistics, [weight], Method("mse"))
    assert found.error <= found.error_unsmoothed


def test_no_strength_to_try() -> None:
    statistics, weight = layer(outlier=100)
    found = choose_smoothing(statistics, [weight], Method("minmax"), alphas=())
    assert found.alpha is None
    assert found.threshold == statistics.absmax.max()


def test_layers_that_share_an_input_share_the_factors() -> None:
    statistics, weight = layer(outlier=100)
    _, other = layer(seed=1, outlier=100)
    found = choose_smoothing(statistics, [weight, other[:, :7]], Method("mse"), rows=1000)
    errors = [
        ranges.layer_error(statistics.rows, each, found.threshold, factors=found.factors)
        for each in (weight, other[:, :7])
    ]
    assert found.error == pytest.approx(np.mean(errors))
    np.testing.assert_array_equal(
        weight_maxima([weight, other[:, :7]]), np.abs(np.hstack([weight, other[:, :7]])).max(axis=1)
    )


def test_the_choice_is_the_same_every_time() -> None:
    statistics, weight = layer(outlier=20, count=900)
    one, two = (choose_smoothing(statistics, [weight], Method("mse"), rows=64) for _ in range(2))
    assert (one.alpha, one.threshold, one.error) == (two.alpha, two.threshold, two.error)
    np.testing.assert_array_equal(one.factors, two.factors)


def test_factors_by_hand() -> None:
    absmax, weights = np.float32([16, 1, 4]), np.float32([1, 1, 4])
    np.testing.assert_allclose(smoothing_factors(absmax, weights, 0.5), [4, 1, 1] / np.cbrt(4), rtol=1e-6)
    np.testing.assert_allclose(smoothing_factors(absmax, weights, 1.0), [4, 0.25, 1], rtol=1e-6)


def test_dead_channels_stay_and_factors_are_bounded() -> None:
    absmax, weights = np.float32([0, 5, 1e30, 1e-30, 1]), np.float32([1, 0, 1, 1, 1])
    factors = smoothing_factors(absmax, weights, 0.9)
    assert factors.dtype == np.float32
    assert factors[:2].tolist() == [1, 1]
    np.testing.assert_allclose(factors[2:], [MAX_FACTOR, 1 / MAX_FACTOR, 1], rtol=1e-5)
    assert (smoothing_factors(np.zeros(3, np.float32), np.ones(3, np.float32), 0.5) == 1).all()


def test_a_dead_layer() -> None:
    statistics, weight = seen(np.zeros((4, K), np.float32)), np.zeros((K, N), np.float32)
    found = choose_smoothing(statistics, [weight], Method("mse"))
    assert (found.alpha, found.error) == (None, 0.0)
    assert found.threshold == ranges.SMALLEST_THRESHOLD


def test_one_row() -> None:
    statistics, weight = layer(count=1, outlier=50)
    found = choose_smoothing(statistics, [weight], Method("entropy"))
    assert 0 <= found.error <= found.error_unsmoothed


@pytest.mark.parametrize("weights", [[], [np.ones((K + 1, 2), np.float32)], [np.ones(K, np.float32)]])
def test_wrong_weights(weights: list[Floats]) -> None:
    with pytest.raises(InputError, match=rf"do not belong[\s\S]*\({K}, N\)"):
        choose_smoothing(layer()[0], weights, Method())


@pytest.mark.parametrize("change", [{"alphas": (0.5, 1.5)}, {"alphas": (-0.1,)}, {"rows": 0}])
def test_wrong_strengths(change: dict) -> None:
    statistics, weight = layer()
    with pytest.raises(InputError, match="how strongly to smooth"):
        choose_smoothing(statistics, [weight], Method(), **change)
