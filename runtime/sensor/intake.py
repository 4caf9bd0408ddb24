"""Rules of intake: which samples of a live stream are kept, and what is said of those that are not.

A sample is judged by its stamp's distance to the last one kept, in this order:

==============  ==========================================================================  ==============
verdict         when                                                                        kept
==============  ==========================================================================  ==============
``not_finite``  it holds NaN or infinity, whatever its stamp                                no
``next``        later by at most 1.5 periods                                                yes
``duplicate``   at most ``backward_s`` earlier, and the history has that stamp              no
``backward``    earlier by at most ``backward_s`` (reordered on its way)                    no
``gap``         later by at most ``ahead_s``, and not in the host's future                  yes, new stream
``future``      later than the host's clock allows, by more than ``future_s``               not at first
``ahead``       later by more than ``ahead_s``                                              not at first
``backward``    earlier by more than ``backward_s``                                         not at first
``restart``     the ``confirm``-th of the last three kinds in ascending order, none         yes, new history
                kept between them
==============  ==========================================================================  ==============

So one wild stamp costs one sample. A clock that was really set, in either direction, or a sensor that was silent for
longer than a window costs ``confirm - 1`` samples and the history: nothing in it belongs into one window with what
comes. A clock that jumps and jumps back is followed both times. ``break`` is a ``next`` after a ``backward``: whether
samples are missing between the two cannot be told, so it begins a new stream too.

What is wrong with the *content of the wire* is counted and never raised: a receiving thread that dies of one bad sample
would take the stream with it. That includes NaN: the row is dropped and leaves a gap that windows report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.exact import is_number, is_stamp, is_whole, told
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.ring import PIECE

Kept = Literal["start", "next", "break", "gap", "restart"]
Refused = Literal["duplicate", "backward", "ahead", "future", "not_finite"]

REFUSED: Final = frozenset({"duplicate", "backward", "ahead", "future", "not_finite"})
#: Two samples further apart than this many periods have lost others between them.
GAP_PERIODS = 1.5
#: A bound in seconds above this is a slip of units.
MAX_BOUND_S = 1e6


@dataclass(frozen=True)
class StreamRules:
    """What is taken for a fault of the stream, and what for a change of its clock.

    Attributes:
        backward_s: reordered samples are at most this late; what is earlier may be a clock that was set back.
        ahead_s: a gap lasts at most this long; what is later may be a clock that was set. None: a window's duration, or
            ``confirm`` periods if that is longer.
        future_s: a sample may seem this much later than the host's clock. Judged only where a gap precedes it, since a
            sample that follows on cannot be wrong.
        confirm: samples in a new time before the sensor is believed.
        offset_blocks: blocks over which the least delay is sought.
        offset_ns: host clock minus sensor clock where it is known, 0 for samples stamped by the host. None: estimated.
            With a fixed offset, samples in the future are never believed.
        max_bytes: a cache that would take more memory is refused.
    """

    backward_s: float = 0.05
    ahead_s: float | None = None
    future_s: float = 0.1
    confirm: int = 16
    offset_blocks: int = 512
    offset_ns: int | None = None
    max_bytes: int = 1 << 30

    def problems(self) -> Iterator[str]:
        """What cannot be, in words."""
        for name in ("backward_s", "ahead_s", "future_s"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0 < value <= MAX_BOUND_S):
                yield f"{name} is {value}, not above 0 and up to {MAX_BOUND_S:g}"
        for name in ("confirm", "offset_blocks", "max_bytes"):
            value = getattr(self, name)
            if not (is_whole(value) and value >= 1):
                yield f"{name} is {value}, not a whole number from 1"
        if self.offset_ns is not None and not is_stamp(self.offset_ns):
            yield f"offset_ns is {told(self.offset_ns)}, not whole nanoseconds"


@dataclass(frozen=True)
class Counts:
    """What became of every sample that was pushed: it is in exactly one of the first six.

    Attributes:
        accepted: kept.
        duplicate: the stamp was there already.
        backward: earlier than the last one kept.
        ahead: so much later than the last one kept that it is no gap, and not confirmed.
        future: later than the host's clock allows.
        not_finite: NaN or infinity.
        gaps: holes between samples that were kept.
        missing: samples that these swallowed, estimated from the rate.
        restarts: how often the history began anew.
    """

    accepted: int = 0
    duplicate: int = 0
    backward: int = 0
    ahead: int = 0
    future: int = 0
    not_finite: int = 0
    gaps: int = 0
    missing: int = 0
    restarts: int = 0

    @property
    def dropped(self) -> int:
        """Samples that were not kept."""
        return self.duplicate + self.backward + self.ahead + self.future + self.not_finite


class Intake:
    """Judges stamps one after the other.

    Threads: the writer of a cache only.

    Attributes:
        last_ns: stamp of the last sample kept.
        missing: samples swallowed by gaps so far.
    """

    def __init__(self, form: SensorForm, rules: StreamRules) -> None:
        self._period_ns = 1e9 / form.rate_hz
        self._gap_ns = math.floor(GAP_PERIODS * self._period_ns)
        self._backward_ns = math.floor(rules.backward_s * 1e9)
        longest_s = max(form.samples, rules.confirm) / form.rate_hz
        self._ahead_ns = math.floor((longest_s if rules.ahead_s is None else rules.ahead_s) * 1e9)
        self._confirm, self._trusts_host = rules.confirm, rules.offset_ns is not None
        self._distances: NDArray[np.int64] = np.empty(PIECE, np.int64)
        self._stray_ns: int | None = None
        self._strays = 0
        self._doubtful = False
        self.last_ns: int | None = None
        self.missing = 0

    def all_follow(self, stamps: NDArray[np.int64]) -> bool:
        """Whether every one of these (n,) stamps is a ``next``; they are taken as kept then. n is at most a piece."""
        first, last = int(stamps[0]), int(stamps[-1])
        if self.last_ns is None or self._doubtful or not 0 < first - self.last_ns <= self._gap_ns:
            return False
        if len(stamps) > 1:
            distances = np.subtract(stamps[1:], stamps[:-1], out=self._distances[: len(stamps) - 1])
            # The last condition is for stamps so wild that their differences wrap around.
            if not (distances.min() > 0 and distances.max() <= self._gap_ns and last > first):
                return False
        self._keep(last)
        return True

    def judge(self, stamp: int, limit_ns: int | None, known: Callable[[int], bool]) -> Kept | Refused:
        """What becomes of a sample.

        Args:
            stamp: in nanoseconds.
            limit_ns: the latest stamp that the host's clock allows now, None if that is not known.
            known: whether the history holds a stamp.
        """
        verdict = self._verdict(stamp, limit_ns, known)
        if verdict == "gap" and self.last_ns is not None:
            self.missing += max(1, round((stamp - self.last_ns) / self._period_ns) - 1)
        if verdict == "backward":
            self._doubtful = True
        elif verdict not in REFUSED:
            self._keep(stamp)
        return verdict

    def _keep(self, stamp: int) -> None:
        self.last_ns, self._stray_ns, self._strays, self._doubtful = stamp, None, 0, False

    def _verdict(self, stamp: int, limit_ns: int | None, known: Callable[[int], bool]) -> Kept | Refused:
        future = limit_ns is not None and stamp > limit_ns
        if self.last_ns is None:
            return "future" if future else "start"
        distance = stamp - self.last_ns
        if 0 < distance <= self._gap_ns:
            return "break" if self._doubtful else "next"
        if -self._backward_ns <= distance <= 0:
            return "duplicate" if known(stamp) else "backward"
        if 0 < distance <= self._ahead_ns and not future:
            return "gap"
        if not (future and self._trusts_host) and self._confirmed(stamp):
            return "restart"
        return "future" if future else "ahead" if distance > 0 else "backward"

    def _confirmed(self, stamp: int) -> bool:
        ascends = self._stray_ns is not None and stamp > self._stray_ns
        self._strays = self._strays + 1 if ascends else 1
        self._stray_ns = stamp
        return self._strays >= self._confirm
