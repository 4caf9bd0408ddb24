"""Windows in batches of one length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import InputError


class Batches:
    """Indices in batches; windows of a batch have one length. A ``batch_sampler`` for a data loader.

    Without a seed, windows of one length stay in order, short lengths first. With one, windows and batches are
    shuffled, in another order for each pass; the same seed and pass give the same batches. The last batch of each
    length may be smaller than the others. Used by one thread.

    Attributes:
        passes: how many passes began. Set it to go on where an interrupted training stopped.
    """

    def __init__(self, lengths: Sequence[int] | NDArray[np.int64], size: int, seed: int | None = None) -> None:
        """Groups windows by their length.

        Args:
            lengths: of all windows.
            size: windows per batch.
            seed: of the order; by default windows are not shuffled.

        Raises:
            InputError: ``size`` is under 1.
        """
        if size < 1:
            raise InputError("a batch must hold something", expected="at least 1 window", found=size)
        lengths = np.asarray(lengths)
        self._groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
        self._size, self._seed = size, seed
        self.passes = 0

    def __len__(self) -> int:
        return sum(math.ceil(len(group) / self._size) for group in self._groups)

    def __iter__(self) -> Iterator[list[int]]:
        generator = None if self._seed is None else np.random.default_rng((self._seed, self.passes))
        self.passes += 1
        groups = self._groups if generator is None else [generator.permutation(group) for group in self._groups]
        starts = [(group, start) for group in groups for start in range(0, len(group), self._size)]
        batches = [group[start : start + self._size].tolist() for group, start in starts]
        if generator is not None:
            batches = [batches[place] for place in generator.permutation(len(batches)).tolist()]
        return iter(batches)
