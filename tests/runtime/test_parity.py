"""How two sets of scores are compared."""

from __future__ import annotations

import numpy as np
import pytest

from trunkline.runtime.parity import compare, regret, spearman


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def average_ranks(values: np.ndarray) -> np.ndarray:
    """By counting, apart from the implementation's sorting."""
    below = (values[None, :] < values[:, None]).sum(1)
    equal = (values[None, :] == values[:, None]).sum(1)
    return below + (equal + 1) / 2


def test_ties_share_their_ranks() -> None:
    assert spearman(scores(0.5, 0.5), scores(0.5000001, 0.5)) == 1.0
    assert spearman(scores(0.5000001, 0.5), scores(0.5, 0.5)) == 0.0
    assert spearman(scores(0.5, 0.5), scores(0.5, 0.5)) == 1.0
    assert spearman(scores(0.1, 0.5, 0.5), scores(0.1, 0.5, 0.6)) == pytest.approx(np.sqrt(3) / 2)
    assert spearman(scores(0.1, 0.5, 0.5), scores(0.1, 0.6, 0.5)) == pytest.approx(np.sqrt(3) / 2)


def test_the_order_of_candidates_does_not_matter() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        one, two = (random.integers(0, 4, 9).astype(np.float32) for _ in range(2))
        order = random.permutation(9)
        assert spearman(one, two) == pytest.approx(spearman(one[order], two[order]), abs=1e-12)
        if np.ptp(one) and np.ptp(two):
            expected = np.corrcoef(average_ranks(one), average_ranks(two))[0, 1]
            assert spearman(one, two) == pytest.approx(expected, abs=1e-12)


def test_rankings_and_their_reverse() -> None:
    values = np.random.default_rng(1).normal(size=50).astype(np.float32)
    assert spearman(values, 3 * values + 1) == pytest.approx(1.0)
    assert spearman(values, -values) == pytest.approx(-1.0)
    assert spearman(scores(0.3), scores(0.7)) == 1.0
    assert compare(values[None], -values[None], 0.1).rank_correlation == pytest.approx(-1.0)


def test_regret_is_what_the_other_winner_scores_less() -> None:
    assert regret(scores(0.1, 0.9, 0.7), scores(0.0, 0.2, 0.3)) == pytest.approx(0.2)
    assert regret(scores(0.1, 0.9, 0.7), scores(0.0, 0.4, 0.3)) == 0.0
    assert regret(scores(0.9, 0.9), scores(0.1, 0.2)) == 0.0
