"""Fixed memory, and quantiles that are never too low."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from trunkline.runtime.loop.histogram import BINS, Histogram, Spread, _bin, _upper_edge

values = st.lists(st.integers(0, 1 << 44) | st.integers(0, 100), min_size=1, max_size=200)


@given(values, st.floats(0.001, 1))
def test_quantiles(durations: list[int], share: float) -> None:
    histogram = Histogram()
    for value in durations:
        histogram.add(value)
    capped = sorted(min(value, (1 << 44) - 1) for value in durations)
    exact = capped[math.ceil(share * len(capped)) - 1]
    assert exact <= histogram.quantile_ns(share) <= exact * 1.125
    spread = histogram.spread()
    assert spread.count == len(durations)
    assert spread.least == capped[0] / 1e6
    assert spread.largest == capped[-1] / 1e6
    assert math.isclose(spread.mean, sum(capped) / len(capped) / 1e6)
    assert spread.least <= spread.median <= spread.p99 <= spread.largest


@given(st.integers(0, (1 << 44) - 1))
def test_bins_are_in_order(value: int) -> None:
    index = _bin(value)
    assert 0 <= index < BINS
    assert value <= _upper_edge(index)
    assert index == 0 or _upper_edge(index - 1) < value


def test_nothing_and_less() -> None:
    histogram = Histogram()
    assert histogram.spread() == Spread()
    assert histogram.quantile_ns(0.5) == 0
    histogram.add(-5)
    assert histogram.spread() == Spread(count=1)
