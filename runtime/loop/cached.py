"""A sensor cache as the source of a loop."""

from __future__ import annotations

import numpy as np

from trunkline.runtime.sensor.cache import TOTAL_STRIDE, SensorCache
from trunkline.runtime.sensor.window import SensorWindow


class CachedSensor:
    """The newest window of a cache that was not had before, copied into memory of its own.

    By default windows lie a multiple of the encoder's total stride apart, so that incremental encoding can always reuse
    what they share, and only whole windows are handed out. With ``hop=None`` it is the newest window as it is, up to 15
    samples younger, and a short one too; each is then encoded in full.

    Threads: one, the loop's sensor thread. The cache may be fed by any other.
    """

    def __init__(self, cache: SensorCache, *, hop: int | None = TOTAL_STRIDE) -> None:
        """Takes the memory of one window.

        Raises:
            SensorError: windows of this cache cannot slide by ``hop``.
        """
        self._cache = cache
        self._hop = hop
        self._rows = np.empty((cache.form.samples, cache.form.channels), np.float32)
        self._last: SensorWindow | None = None
        if hop is not None:
            cache.aligned(hop, clock="sensor")

    def latest(self) -> SensorWindow | None:
        """A window whose samples stay until the next call; None if there is none that is newer than the last.

        Raises:
            SensorError: the writer was faster than the copy in every attempt.
        """
        window = self._next()
        if window is None or _same(window, self._last):
            return None
        self._last = window
        return window

    def _next(self) -> SensorWindow | None:
        if self._hop is None:
            return self._cache.latest(out=self._rows)
        return self._cache.aligned(self._hop, after=self._last, out=self._rows)


def _same(window: SensorWindow, last: SensorWindow | None) -> bool:
    """Not told by stamps: the estimate of the offset between the clocks may move them."""
    ends = [(each.stream, each.position + len(each.samples)) for each in (window, last) if each is not None]
    return len(ends) == 2 and ends[0] == ends[1]
