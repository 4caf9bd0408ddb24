"""Durations counted in bins of fixed number: memory is the same after a second and after a month.

Bins are exact below 16 ns, and above it an eighth of a power of two wide, so a quantile is at most 12.5 % too high; it
is never too low. Least, largest and mean are exact. Up to 4.9 hours; anything longer counts as that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_SUB_BITS = 3
_MAX_BITS = 44
_LARGEST = (1 << _MAX_BITS) - 1


def _bin(value: int) -> int:
    shift = max(0, value.bit_length() - _SUB_BITS - 1)
    return (shift << _SUB_BITS) + (value >> shift)


def _upper_edge(index: int) -> int:
    """Largest value that falls into a bin."""
    shift = max(0, (index >> _SUB_BITS) - 1)
    return ((index - (shift << _SUB_BITS) + 1) << shift) - 1


BINS = _bin(_LARGEST) + 1


@dataclass(frozen=True)
class Spread:
    """How durations are spread, in milliseconds; all zero where there were none.

    ``median`` and ``p99`` are at most 12.5 % too high, the others exact.
    """

    count: int = 0
    least: float = 0.0
    mean: float = 0.0
    median: float = 0.0
    p99: float = 0.0
    largest: float = 0.0


class Histogram:
    """Counts of durations in nanoseconds. Threads: no lock; its owner keeps others away."""

    def __init__(self) -> None:
        self._counts = [0] * BINS
        self._count = 0
        self._sum = 0
        self._least = _LARGEST
        self._largest = 0

    def add(self, nanoseconds: int) -> None:
        """Counts a duration; a negative one as 0."""
        value = min(max(0, nanoseconds), _LARGEST)
        self._counts[_bin(value)] += 1
        self._count += 1
        self._sum += value
        self._least = min(self._least, value)
        self._largest = max(self._largest, value)

    def quantile_ns(self, share: float) -> int:
        """A duration that this share of all (above 0, up to 1) does not exceed; 0 if there are none."""
        rank, seen = math.ceil(share * self._count), 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(_upper_edge(index), self._largest)
        return 0

    def spread(self) -> Spread:
        """The summary as of now."""
        if not self._count:
            return Spread()
        exact = (self._least, self._sum / self._count, self.quantile_ns(0.5), self.quantile_ns(0.99), self._largest)
        least, mean, median, p99, largest = (value / 1e6 for value in exact)
        return Spread(self._count, least, mean, median, p99, largest)
