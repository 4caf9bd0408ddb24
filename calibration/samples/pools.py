"""Distinct action windows, and pools of candidates drawn from them."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class WindowPool:
    """Windows (H, A) float32 that all differ, in the order in which they were first seen.

    Immutable: any number of threads may draw from it, each with a generator of its own.
    """

    def __init__(self, windows: Iterable[Floats]) -> None:
        """Keeps the distinct ones; they are not copied."""
        distinct = {_key(window): window for window in windows}
        self._windows = list(distinct.values())
        self._places = {key: place for place, key in enumerate(distinct)}

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, A) of every window."""
        steps, width = self._windows[0].shape
        return steps, width

    def draw(self, count: int, generator: random.Random) -> Floats:
        """``count`` windows (N, H, A), fewer if there are fewer, in random order."""
        return np.stack(generator.sample(self._windows, min(count, len(self))))

    def draw_with(self, right: Floats, count: int, generator: random.Random) -> tuple[Floats, int]:
        """``right``, which must be one of the windows, among up to ``count - 1`` others, in random order.

        Returns:
            (N, H, A) float32, and the place of the right one.
        """
        own = self._places[_key(right)]
        others = generator.sample(range(len(self) - 1), min(count, len(self)) - 1)
        places = [own, *(place + (place >= own) for place in others)]
        generator.shuffle(places)
        return np.stack([self._windows[place] for place in places]), places.index(own)


def _key(window: Floats) -> bytes:
    """Equal for equal windows; adding zero makes -0.0 and 0.0 one number."""
    return (window + np.float32(0)).tobytes()
