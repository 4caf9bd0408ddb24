"""How strongly the input of linear layers is smoothed, by the error that is left.

A channel that is a hundred times as large as the others takes the steps of a per-tensor scale for itself, and the
others are rounded away. Smoothing divides channel j of the input by a factor s_j and multiplies row j of the weight by
it: the product stays, and some of the range moves to the weight, which has scales of its own.

The factors are those of SmoothQuant (Xiao et al. 2022, arXiv:2211.10438, equation 4):

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

with the maximum over all layers that read the input. One strength alpha does not fit all layers, and some are better
off without. So each is tried on sampled rows, with the range that would be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trunkline.calibration.int8 import ranges
from trunkline.calibration.int8.ranges import Method
from trunkline.calibration.statistics.collect import TensorStatistics
from trunkline.runtime.errors import InputError

Floats = NDArray[np.float32]

#: Strengths that are tried besides none at all.
ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
#: A factor is at most this far from the mean of all: more would only move the problem into the weight.
MAX_FACTOR = 1e3
#: Rows by which strengths are compared; time grows in proportion.
DEFAULT_ROWS = 256


@dataclass(frozen=True, eq=False)
class Smoothing:
    """The choice for one input.

    Attributes:
        alpha: strength; None for no smoothing.
        factors: (K,) float32, by which the input is divided; ones for no smoothing.
        threshold: of the divided input.
        error: mean over the layers of :func:`trunkline.calibration.int8.ranges.layer_error`.
        error_unsmoothed: the same without smoothing; never below ``error``.
    """

    alpha: float | None
    factors: Floats
    threshold: float
    error: float
    error_unsmoothed: float


def choose_smoothing(
    statistics: TensorStatistics,
    weights: Sequence[Floats],
    method: Method,
    *,
    alphas: Sequence[float] = ALPHAS,
    rows: int = DEFAULT_ROWS,
) -> Smoothing:
    """Tries all strengths, and none, and takes the one with the smallest error of the layers' outputs.

    Args:
        statistics: of the input.
        weights: (K, N) float32 of every linear layer that reads it; N may differ.
        method: how the threshold is chosen.
        alphas: strengths to try, in [0, 1].
        rows: at most so many rows are compared.

    Raises:
        InputError: there is no weight, one does not fit the input, or a strength is outside of [0, 1].
    """
    _check(statistics, weights, alphas, rows)
    trial = _Trial(statistics, weights, method, statistics.reduced(rows))
    plain = trial.smoothing(None, np.ones(len(statistics.absmax), np.float32))
    best = plain
    largest = weight_maxima(weights)
    for alpha in alphas:
        tried = trial.smoothing(alpha, smoothing_factors(statistics.absmax, largest, alpha), plain)
        if tried.error < best.error:
            best = tried
    return best


def smoothing_factors(absmax: Floats, weight_absmax: Floats, alpha: float) -> Floats:
    """Factors (K,) of one strength, with geometric mean 1 over the channels that are alive.

    A channel that is always zero, or that no weight reads, has the factor 1: nothing is known, or nothing matters.

    Args:
        absmax: (K,) largest magnitude per channel of the input.
        weight_absmax: (K,) largest magnitude per row of the weights.
        alpha: 0 moves the weights' range into the input, 1 the input's into the weights.
    """
    alive = (absmax > 0) & (weight_absmax > 0)
    factors = np.ones(len(absmax), np.float32)
    if alive.any():
        logarithm = alpha * np.log(absmax[alive], dtype=np.float64)
        logarithm -= (1 - alpha) * np.log(weight_absmax[alive], dtype=np.float64)
        bound = np.log(MAX_FACTOR)
        factors[alive] = np.exp(np.clip(logarithm - logarithm.mean(), -bound, bound))
    return factors


def weight_maxima(weights: Sequence[Floats]) -> Floats:
    """(K,) largest magnitude per row over all weights (K, N)."""
    return np.max([np.maximum(np.abs(weight.max(axis=1)), np.abs(weight.min(axis=1))) for weight in weights], axis=0)


@dataclass(frozen=True, eq=False)
class _Trial:
    """What stays the same while strengths are tried; ``compared`` holds the rows by which they are."""

    statistics: TensorStatistics
    weights: Sequence[Floats]
    method: Method
    compared: TensorStatistics

    def smoothing(self, alpha: float | None, factors: Floats, plain: Smoothing | None = None) -> Smoothing:
        """One strength with its error, for comparison with the error of ``plain`` smoothing by ones."""
        seen = self.statistics
        limit = ranges.threshold(seen.rows, seen.absmax, self.method, factors=factors, weights=seen.weights)
        errors = [
            ranges.layer_error(self.compared.rows, weight, limit, factors=factors, weights=self.compared.weights)
            for weight in self.weights
        ]
        error = float(np.mean(errors))
        return Smoothing(alpha, factors, limit, error, error if plain is None else plain.error)


def _check(statistics: TensorStatistics, weights: Sequence[Floats], alphas: Sequence[float], rows: int) -> None:
    channels = len(statistics.absmax)
    wrong = [weight.shape for weight in weights if weight.ndim != 2 or weight.shape[0] != channels]
    if not weights or wrong:
        raise InputError(
            "weights do not belong to this input",
            expected=f"at least one, each ({channels}, N)",
            found=[str(shape) for shape in wrong] or "none",
        )
    if rows < 1 or any(not 0 <= alpha <= 1 for alpha in alphas):
        raise InputError(
            "cannot choose how strongly to smooth",
            expected="at least one row, strengths from 0 to 1",
            found=f"{rows} rows, strengths {list(alphas)}",
        )
