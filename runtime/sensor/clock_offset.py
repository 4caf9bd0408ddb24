"""How far the host's clock is ahead of the sensor's.

Every block of samples comes with the host's time of arrival. Arrival minus stamp is the difference of the clocks plus
the block's delay, so the smallest difference seen is the best estimate: the block with the least delay. What remains of
that delay stays in the estimate; samples seem younger than they are by it, never older. The minimum is taken over a
bounded number of blocks, so that it follows clocks that drift.
"""

from __future__ import annotations


class ClockOffset:
    """Least delay over the last ``blocks`` to ``2 * blocks`` blocks, or a value that was fixed.

    Two minima, of the present and of the previous run of blocks, cost no memory and no search.

    Threads: the writer of a cache only.

    Args:
        blocks: see above.
        fixed_ns: host minus sensor where it is known; nothing is estimated then.
    """

    def __init__(self, blocks: int, fixed_ns: int | None = None) -> None:
        self._blocks, self._fixed_ns = blocks, fixed_ns
        self._present_ns: int | None = None
        self._previous_ns: int | None = None
        self._seen = 0

    @property
    def value_ns(self) -> int | None:
        """Host minus sensor in nanoseconds; None before the first block with a time of arrival."""
        if self._fixed_ns is not None:
            return self._fixed_ns
        if self._present_ns is None or self._previous_ns is None:
            return self._present_ns if self._previous_ns is None else self._previous_ns
        return min(self._present_ns, self._previous_ns)

    def update(self, received_ns: int, stamp_ns: int) -> None:
        """A block arrived whose newest sample has this stamp."""
        delay = received_ns - stamp_ns
        if self._seen == self._blocks:
            self._previous_ns, self._present_ns, self._seen = self._present_ns, None, 0
        self._present_ns = delay if self._present_ns is None else min(self._present_ns, delay)
        self._seen += 1

    def forget(self) -> None:
        """The sensor's clock was set: what was estimated holds no more."""
        self._present_ns = self._previous_ns = None
        self._seen = 0
