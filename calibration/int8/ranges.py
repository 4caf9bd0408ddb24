"""Symmetric int8: where a range ends, how numbers become int8 and back, and what a layer loses by it.

A tensor of activations has one threshold T. Its numbers are divided by T / 127, rounded half to even and clipped to
[-127, 127]; -128 is left out, so that zero is the middle. What lies above T is cut off, and a smaller T makes the
steps between all other numbers finer: each method is one answer to that exchange. A weight has a scale per output
channel.

Activations come as sampled rows, each with the number of rows it stands for (``weights``, see
:class:`trunkline.calibration.statistics.collect.TensorStatistics`), and the exact largest magnitude of every channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import InputError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
MethodName = Literal["minmax", "percentile", "entropy", "mse"]

#: Largest int8 number in use; the smallest is its negative.
INT8_MAX = 127
#: Threshold of a tensor that is zero everywhere: the smallest whose scale is a normal float32 number. Kernels may
#: read smaller scales as zero, and divide by it.
SMALLEST_THRESHOLD = float(INT8_MAX * np.finfo(np.float32).tiny)

#: "entropy": bins of the histogram, the fewest that may be kept, and the distance between two thresholds tried.
_ENTROPY_BINS, _ENTROPY_LEVELS, _ENTROPY_STRIDE = 2048, 128, 8
#: Probability that stands for none, so that a divergence stays finite.
_ENTROPY_FLOOR = 1e-9
#: "mse": thresholds tried, and how far below the largest number they go.
_MSE_STEPS, _MSE_LOWEST = 96, 1 / 128
#: "mse": leading bits of a number's mantissa by which numbers are counted together. 2**-9 = 0.2 % is well below the
#: 1 / 127 of a quantisation step at the threshold, and steps are relatively larger everywhere below it.
_MANTISSA_BITS, _FLOAT32_MANTISSA_BITS = 9, 23
#: Clipping of weights by "mse": fractions of a channel's largest weight that are tried.
_WEIGHT_FRACTIONS = tuple(1 - step / 40 for step in range(21))


@dataclass(frozen=True)
class Method:
    """How a threshold is chosen.

    Attributes:
        name: "minmax", the largest magnitude: nothing is cut off. "percentile": a share of all numbers lies within.
            "entropy": the distribution changes least. "mse": the mean squared error is smallest.
        percentile: of "percentile", in percent.
    """

    name: MethodName = "mse"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        """Refuses what is no method.

        Raises:
            InputError: unknown name, or a percentile outside (0, 100].
        """
        if self.name not in get_args(MethodName) or not 0 < self.percentile <= 100:
            raise InputError(
                "there is no such way to choose a range",
                expected=", ".join(get_args(MethodName)) + "; a percentile above 0, up to 100",
                found=f"{self.name}, percentile {self.percentile}",
            )


def threshold(
    rows: Floats,
    absmax: Floats,
    method: Method,
    *,
    factors: Floats | None = None,
    weights: Floats | None = None,
) -> float:
    """Clipping threshold T of a symmetric per-tensor int8 quantiser; its scale is T / 127.

    Args:
        rows: (n, C) float32, sampled rows.
        absmax: (C,) float32, largest magnitude per channel over everything seen.
        method: how to choose.
        factors: (C,) float32 positive; rows and absmax are divided by them first. None for no division.
        weights: (n,) float32, how many rows each row stands for; None where all stand for the same number.

    Returns:
        A float32 number, never above the largest magnitude of ``absmax / factors`` and never below
        ``SMALLEST_THRESHOLD``.

    Raises:
        InputError: shapes do not fit, numbers are not finite, or factors are not positive.
    """
    _check(rows, absmax, factors, weights)
    largest = float((absmax if factors is None else absmax / factors).max())
    if largest <= SMALLEST_THRESHOLD:
        return SMALLEST_THRESHOLD
    if method.name == "minmax":
        return largest
    magnitudes = np.abs(rows if factors is None else rows / factors)
    # Rows are a sample: their largest number may be below that of everything seen, and rounding may put it above.
    np.minimum(magnitudes, np.float32(largest), out=magnitudes)
    each = np.ones(len(rows), np.float32) if weights is None else weights
    if method.name == "percentile":
        chosen = _percentile(magnitudes, each, method.percentile)
    else:
        chosen = {"entropy": _entropy, "mse": _mse}[method.name](magnitudes, each, largest)
    # Nothing but zeros in the sample says nothing about the numbers that it missed.
    return max(float(np.float32(min(chosen, largest))), SMALLEST_THRESHOLD) if chosen > 0 else largest


def _check(rows: Floats, absmax: Floats, factors: Floats | None, weights: Floats | None) -> None:
    shapes_fit = (
        rows.ndim == 2
        and rows.size > 0
        and absmax.shape == rows.shape[1:]
        and (factors is None or factors.shape == absmax.shape)
        and (weights is None or weights.shape == rows.shape[:1])
    )
    if not shapes_fit:
        raise InputError(
            "statistics of different shapes do not go together",
            expected="rows (n, C), absmax (C,), factors (C,), weights (n,), none of them empty",
            found=", ".join(str(None if each is None else each.shape) for each in (rows, absmax, factors, weights)),
        )
    if not (np.isfinite(rows).all() and np.isfinite(absmax).all()):
        raise InputError("statistics are not finite", expected="finite rows and absmax", fix="collect them again")
    if factors is not None and not (np.isfinite(factors).all() and (factors > 0).all()):
        raise InputError("smoothing factors are not positive numbers", found=f"smallest {factors.min()}")


def _percentile(magnitudes: Floats, weights: Floats, percent: float) -> float:
    """Smallest magnitude such that ``percent`` of all numbers, counted by weight, are not above it."""
    total = float(weights.sum(dtype=np.float64)) * magnitudes.shape[1]
    above = (1 - percent / 100) * total
    lightest = float(weights.min())
    flat = magnitudes.ravel()
    # No more numbers than this can lie above the threshold, so that only they need to be sorted.
    most = min(flat.size, int(above / lightest) + 2) if lightest > 0 else flat.size
    tail = np.argpartition(flat, flat.size - most)[flat.size - most :]
    tail = tail[np.argsort(-flat[tail], kind="stable")]
    # Weight at or above each number of the tail; the threshold is the last with too little of it strictly above.
    strictly_above = np.cumsum(weights[tail // magnitudes.shape[1]], dtype=np.float64)
    strictly_above = np.concatenate([[0.0], strictly_above[:-1]])
    last = int(np.searchsorted(strictly_above, above * (1 + 1e-12), side="right")) - 1
    return float(flat[tail[last]])


def _entropy(magnitudes: Floats, weights: Floats, largest: float) -> float:
    """Threshold with the smallest Kullback-Leibler divergence between a histogram and its int8 version.

    The method is that of S. Migacz, "8-bit Inference with TensorRT" (GTC 2017). For every candidate the histogram up to
    it, with what lies above gathered in its last bin, is compared to what 128 levels can say: neighbouring bins
    share a level, and a level's numbers are spread evenly over those of its bins that are not empty.

    Numbers that are exactly zero are left out: every threshold represents them exactly.
    """
    counts = _linear_histogram(magnitudes, weights, largest)
    total = counts.sum()
    if total == 0:
        return largest
    best, smallest = _ENTROPY_BINS, np.inf
    # From wide to narrow: of equal divergences, the one that cuts off least.
    for bins in range(_ENTROPY_BINS, _ENTROPY_LEVELS - 1, -_ENTROPY_STRIDE):
        divergence = _divergence(counts[:bins], total)
        if divergence < smallest:
            best, smallest = bins, divergence
    return best / _ENTROPY_BINS * largest


def _linear_histogram(magnitudes: Floats, weights: Floats, largest: float) -> Doubles:
    """(2048,) float64: weight of the numbers in equal bins over (0, largest]."""
    bins = (magnitudes * np.float32(_ENTROPY_BINS / largest)).astype(np.int32)
    np.minimum(bins, _ENTROPY_BINS - 1, out=bins)
    return _weighted_counts(bins, np.where(magnitudes > 0, weights[:, None], np.float32(0)), _ENTROPY_BINS)


def _weighted_counts(bins: NDArray[np.int32], weights: Floats, length: int) -> Doubles:
    counts = np.bincount(bins.ravel(), weights.ravel(), minlength=length)
    return counts.astype(np.float64, copy=False)


def _divergence(kept: Doubles, total: float) -> float:
    """Kullback-Leibler divergence, in nats, of 128 levels from a histogram whose tail was cut off."""
    edges = np.arange(_ENTROPY_LEVELS) * len(kept) // _ENTROPY_LEVELS
    filled = kept > 0
    levels = np.add.reduceat(kept, edges) / np.maximum(np.add.reduceat(filled, edges, dtype=np.int64), 1)
    spread = np.repeat(levels, np.diff(np.append(edges, len(kept)))) * filled
    reference = kept / total
    reference[-1] += 1 - kept.sum() / total
    used = reference > 0
    said = np.maximum(spread[used] / max(float(kept.sum()), np.finfo(np.float64).tiny), _ENTROPY_FLOOR)
    return float((reference[used] * np.log(reference[used] / said)).sum())


def _mse(magnitudes: Floats, weights: Floats, largest: float) -> float:
    """Threshold with the smallest mean squared error of the quantised numbers, among a logarithmic grid.

    The grid is searched on a histogram; in the end the choice is held against no clipping on the numbers themselves,
    so that it is never the worse of the two.
    """
    values, counts = _relative_histogram(magnitudes, weights)
    grid = largest * np.geomspace(1, _MSE_LOWEST, _MSE_STEPS)
    errors = [float((counts * _rounding_errors(values, limit) ** 2).sum()) for limit in grid]
    chosen = float(np.float32(grid[int(np.argmin(errors))]))
    worse = squared_error(magnitudes, chosen, weights) > squared_error(magnitudes, largest, weights)
    return largest if worse else chosen


def squared_error(values: Floats, limit: float, weights: Floats | None = None) -> float:
    """Mean squared error of numbers (n, C) that are quantised with threshold ``limit``."""
    scale = limit / INT8_MAX
    back = np.clip(np.rint(values / np.float32(scale)), -INT8_MAX, INT8_MAX) * np.float32(scale)
    by_row = np.square(values - back, dtype=np.float64).mean(axis=1)
    return float(np.average(by_row, weights=weights))


def _rounding_errors(values: Doubles, limit: float) -> Doubles:
    scale = limit / INT8_MAX
    return values - np.minimum(np.rint(values / scale), INT8_MAX) * scale


def _relative_histogram(magnitudes: Floats, weights: Floats) -> tuple[Doubles, Doubles]:
    """Values and how often each occurs, where numbers are put together that agree in their leading bits.

    As the bits of a float32 are its exponent followed by its mantissa, cutting off low bits gives bins of equal
    relative width, which hold both the bulk and outliers a thousand times as large.
    """
    shift = _FLOAT32_MANTISSA_BITS - _MANTISSA_BITS
    bins = np.ascontiguousarray(magnitudes).view(np.int32) >> shift
    lowest = int(bins.max()) - (20 << _MANTISSA_BITS)  # 2**-20 of the largest: far below half a step, so it is zero
    bins = np.maximum(bins - max(lowest, 0), 0)
    counts = _weighted_counts(bins, np.broadcast_to(weights[:, None], bins.shape), 1)
    used = np.flatnonzero(counts)
    starts = (used.astype(np.int32) + max(lowest, 0)) << shift
    middles = (starts | 1 << (shift - 1)).astype(np.int32).view(np.float32)
    return np.where(starts == 0, 0.0, middles), counts[used]


def weight_scales(weight: Floats, axis: int, clip: Literal["minmax", "mse"] = "minmax") -> Floats:
    """Scales of a weight, one for each index along ``axis``.

    Args:
        weight: float32 of any shape.
        axis: the dimension of output channels, N long.
        clip: "minmax" keeps every weight, "mse" cuts off what makes a channel's mean squared error smaller.

    Returns:
        (N,) float32, positive.

    Raises:
        InputError: the weight is empty or not finite.
    """
    if weight.size == 0 or not np.isfinite(weight).all():
        raise InputError("a weight cannot be quantised", expected="finite numbers", found=f"shape {weight.shape}")
    others = tuple(each for each in range(weight.ndim) if each != axis % weight.ndim)
    largest = np.maximum(np.abs(weight.max(axis=others)), np.abs(weight.min(axis=others)))
    scales = _scales(largest)
    if clip == "minmax":
        return scales
    least = np.full(len(largest), np.inf)
    best = scales.copy()
    for fraction in _WEIGHT_FRACTIONS:  # from no clipping on, so that of equals the widest stays
        tried = _scales(largest * np.float32(fraction))
        back = dequantise(quantise(weight, tried, axis), tried, axis)
        errors = np.square(weight - back).sum(axis=others, dtype=np.float64)
        better = errors < least
        best[better], least[better] = tried[better], errors[better]
    return best


def _scales(largest: Floats) -> Floats:
    return (np.maximum(largest, SMALLEST_THRESHOLD) / INT8_MAX).astype(np.float32)


def quantise(array: Floats, scale: Floats | float, axis: int | None = None) -> NDArray[np.int8]:
    """Int8 numbers: divided by the scale, rounded half to even, clipped to [-127, 127].

    Args:
        array: float32 of any shape.
        scale: one number, or (N,) with one for each index along ``axis``.
        axis: the dimension of a scale that has one; None for one number.
    """
    return _rounded(array, _along(scale, axis, array.ndim)).astype(np.int8)


def dequantise(array: NDArray[np.int8], scale: Floats | float, axis: int | None = None) -> Floats:
    """Float32 numbers that int8 numbers stand for. Arguments as in :func:`quantise`."""
    return array.astype(np.float32) * _along(scale, axis, array.ndim)


def _along(scale: Floats | float, axis: int | None, ndim: int) -> Floats:
    """A scale in the shape that multiplies along an axis."""
    if axis is None:
        return np.asarray(scale, np.float32)
    shape = [1] * ndim
    shape[axis] = -1
    return np.asarray(scale, np.float32).reshape(shape)


def _rounded(array: Floats, scale: Floats) -> Floats:
    """Whole numbers from -127 to 127 as float32, which holds them exactly and multiplies faster than int8."""
    rounded = np.divide(array, scale, dtype=np.float32)
    np.rint(rounded, out=rounded)
    return np.clip(rounded, -INT8_MAX, INT8_MAX, out=rounded)


def layer_error(
    rows: Floats,
    weight: Floats,
    limit: float,
    *,
    factors: Floats | None = None,
    scales: Floats | None = None,
    weights: Floats | None = None,
) -> float:
    """Error of a linear layer in int8, as a share of its output: |X W - Q(X / s) Q(s W)|^2 / |X W|^2.

    Args:
        rows: (n, K) float32, X.
        weight: (K, N) float32, W.
        limit: threshold of X / s.
        factors: (K,) float32, s; None for none.
        scales: (N,) float32 of s W; None for those of its largest weights.
        weights: (n,) float32, how many rows each row stands for; None where all stand for the same number.

    Returns:
        0 for a layer without error, about 1 for one whose output is lost; 0 where the output is zero and stays so.
    """
    smoothed = weight if factors is None else weight * factors[:, None]
    scales = weight_scales(smoothed, axis=1) if scales is None else scales
    scale = np.asarray(limit / INT8_MAX, np.float32)
    left = _rounded(rows if factors is None else rows / factors, scale)
    exact = rows @ weight
    difference = exact - (left @ _rounded(smoothed, scales)) * (scales * scale)
    noise, signal = _power(difference, weights), _power(exact, weights)
    if signal == 0:
        return 0.0 if noise == 0 else float("inf")
    return noise / signal


def _power(array: Floats, weights: Floats | None) -> float:
    """Sum of squares, each row as often as it is to be counted."""
    by_row = np.einsum("ij,ij->i", array, array, dtype=np.float64)
    return float(by_row.sum() if weights is None else by_row @ weights.astype(np.float64))


def decibels(error: float) -> float:
    """Signal-to-noise ratio in dB of an error that is a share of the signal's power; infinite without error."""
    return float("inf") if error == 0 else float(-10 * np.log10(error))
