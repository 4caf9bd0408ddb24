"""The writing half of a cache: blocks come in, rows go into the ring, and readers are shown a new state.

A state is one immutable object and is replaced as a whole, so that what a reader finds in it always belongs together.
Blocks go through in pieces. A piece in which every sample follows on the one before is checked and copied as a whole;
any other is judged sample by sample.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import SensorError
from trunkline.runtime.exact import described, fix_for, is_plain, whole_ns
from trunkline.runtime.sensor.clock_offset import ClockOffset
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.intake import REFUSED, Counts, Intake, StreamRules
from trunkline.runtime.sensor.ring import Ring
from trunkline.runtime.sensor.window import Rows

Stamps = NDArray[np.int64]


class State(NamedTuple):
    """What readers see.

    Attributes:
        begin: first row of the present history; it moves when the history begins anew.
        low: first row of it that may be asked for.
        end: row behind the newest.
        counts: without ``accepted``, which is ``end``.
        newest_ns: stamp of the newest row, None before the first.
        offset_ns: host clock minus sensor clock, None while it is not known.
    """

    begin: int
    low: int
    end: int
    counts: Counts
    newest_ns: int | None
    offset_ns: int | None


class StreamWriter:
    """Judges and stores blocks.

    Threads: one calls ``push`` at a time; ``state`` may be read by any.

    Attributes:
        state: replaced after every piece of a block.
    """

    def __init__(self, form: SensorForm, rules: StreamRules, ring: Ring) -> None:
        self._channels, self._ring = form.channels, ring
        self._future_ns = math.floor(rules.future_s * 1e9)
        self._intake = Intake(form, rules)
        self._offset = ClockOffset(rules.offset_blocks, rules.offset_ns)
        self._writing = threading.Lock()
        self._begin = self._run = 0
        self._counts = Counts()
        self.state = State(0, 0, 0, self._counts, None, self._offset.value_ns)

    def push(self, stamps: Stamps, samples: Rows, received_ns: int | None) -> None:
        """See :meth:`trunkline.runtime.sensor.cache.SensorCache.push`."""
        check_block(stamps, samples, self._channels)
        if received_ns is not None:
            received_ns = whole_ns(received_ns, "received_ns", SensorError)
        if not self._writing.acquire(blocking=False):
            raise SensorError("two threads push into one sensor cache", fix="give each stream one receiving thread")
        try:
            self._push(stamps, samples, received_ns)
        finally:
            self._writing.release()

    def _push(self, stamps: Stamps, samples: Rows, received_ns: int | None) -> None:
        before, start = self._ring.end, 0
        while start < len(stamps):
            stop = start + self._ring.room
            self._take(stamps[start:stop], samples[start:stop], received_ns)
            if stop < len(stamps):
                self._publish()
            start = stop
        if received_ns is not None and self._ring.end > before and self._intake.last_ns is not None:
            self._offset.update(received_ns, self._intake.last_ns)
        self._publish()

    def _take(self, stamps: Stamps, samples: Rows, received_ns: int | None) -> None:
        if all_finite(samples) and self._intake.all_follow(stamps):
            self._ring.write(stamps, samples, self._intake.missing, self._run)
        else:
            self._sift(stamps, samples, received_ns)

    def _sift(self, stamps: Stamps, samples: Rows, received_ns: int | None) -> None:
        tally: Counter[str] = Counter()
        finite: list[bool] = np.isfinite(samples).all(axis=1).tolist()  # type: ignore[assignment]
        for row, stamp in enumerate(stamps.tolist()):
            verdict = self._judge(stamp, received_ns) if finite[row] else "not_finite"
            tally[verdict] += 1
            if verdict not in REFUSED:
                self._store(verdict, stamps[row : row + 1], samples[row : row + 1])
        self._counts = added(self._counts, tally, self._intake.missing)

    def _judge(self, stamp: int, received_ns: int | None) -> str:
        offset_ns = self._offset.value_ns
        if received_ns is None or offset_ns is None:
            return self._intake.judge(stamp, None, self._holds)
        return self._intake.judge(stamp, received_ns - offset_ns + self._future_ns, self._holds)

    def _holds(self, stamp: int) -> bool:
        """Whether the history has a sample with this stamp."""
        low, end = max(self._begin, self._ring.end - self._ring.history), self._ring.end
        stamps = self._ring.stamps(low, end)
        place = int(np.searchsorted(stamps, stamp))
        return place < len(stamps) and int(stamps[place]) == stamp

    def _store(self, verdict: str, stamp: Stamps, sample: Rows) -> None:
        if verdict != "next":
            self._run = self._ring.end
        if verdict == "restart":
            self._begin = self._ring.end
            self._offset.forget()
        self._ring.write(stamp, sample, self._intake.missing, self._run)

    def _publish(self) -> None:
        end = self._ring.end
        low = max(self._begin, end - self._ring.history)
        self.state = State(self._begin, low, end, self._counts, self._intake.last_ns, self._offset.value_ns)


def all_finite(samples: Rows) -> bool:
    """False if anything is NaN or infinite. Also, harmlessly, if the sum overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(np.add.reduce(samples, axis=None))


def added(counts: Counts, tally: Counter[str], missing: int) -> Counts:
    """Counts after some verdicts."""
    refused = {name: getattr(counts, name) + tally[name] for name in REFUSED}
    gaps, restarts = counts.gaps + tally["gap"], counts.restarts + tally["restart"]
    return replace(counts, gaps=gaps, restarts=restarts, missing=missing, **refused)


def check_block(stamps: object, samples: object, channels: int) -> None:
    """Raises SensorError, with every reason, unless these are plain arrays (n,) int64 and (n, channels) float32."""
    problems = []
    if not is_plain(stamps) or stamps.dtype != np.int64 or stamps.ndim != 1:
        problems.append(f"timestamps_ns: {described(stamps)}")
    if not is_plain(samples) or samples.dtype != np.float32 or samples.ndim != 2:
        problems.append(f"samples: {described(samples)}")
    elif samples.shape[1] != channels:
        problems.append(f"samples: {samples.shape[1]} numbers each")
    if not problems and len(stamps) != len(samples):  # type: ignore[arg-type]
        problems.append(f"{len(stamps)} stamps for {len(samples)} samples")  # type: ignore[arg-type]
    if problems:
        raise SensorError(
            "a block of sensor samples cannot be taken",
            expected=f"timestamps_ns (n,) int64 and samples (n, {channels}) float32",
            found=problems,
            fix=fix_for(
                "convert where the datagram is read; stamps in seconds lose digits as float32 and must become whole "
                "nanoseconds",
                stamps,
                samples,
            ),
        )
