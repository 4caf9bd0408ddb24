"""The last seconds of one sensor's stream, in memory that is taken once.

A receiving thread pushes blocks of any size, other threads take windows. No lock is held over a copy, no reader delays
the writer, and the memory does not grow. Windows are cut by the rules of :mod:`trunkline.runtime.sensor.window`; which
samples are kept is told in :mod:`trunkline.runtime.sensor.intake`.

*Views.* A window's samples are a read-only view. The writer leaves it alone until at least ``form.samples`` more rows
have come, and ``intact`` tells whether it still is what it was. With ``out`` the rows are copied, and they are whole.

*Clocks.* A robot's moments (frames, now) are the host's, stamps are the sensor's. Times that go in and out are the
host's; the offset between the clocks is applied both ways. While it is not known, a moment is refused and ``end_ns`` of
a window is None; neither is taken for the other. ``clock="sensor"`` leaves times as they are.

*Refused* are blocks of a wrong type or shape, moments that the history no longer covers, and rows that the writer
overtook. ``None`` in place of a window is no error: there are no samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import SensorError
from trunkline.runtime.exact import described, is_number, is_plain, is_whole, whole_ns
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.intake import Counts, StreamRules
from trunkline.runtime.sensor.ring import Ring
from trunkline.runtime.sensor.window import MISSING_TOLERANCE, Rows, SensorWindow, interval_range, point_range
from trunkline.runtime.sensor.writer import State, StreamWriter

Clock = Literal["host", "sensor"]

#: Steps the encoder reads for one that it hands to its transformer; windows that slide by anything else share nothing.
TOTAL_STRIDE = 16
#: The rate is measured over at least this many rows; over fewer, the jitter of two stamps would show.
RATE_ROWS = 100
#: A longer history is a slip of units.
MAX_SECONDS = 1e6
#: A read that the writer overtook this often is given up.
ATTEMPTS = 64

_INT64: Final = np.iinfo(np.int64)
#: Streams of different caches in one process never have the same number.
_caches = count(1)


class _Cut(NamedTuple):
    """Rows of a window, or why it cannot be had."""

    first: int
    end: int
    error: SensorError | None = None


class SensorCache:
    """A ring of the last seconds of one stream.

    ::

        cache = SensorCache(ensemble.bundle.manifest.sensor.form)
        cache.push(stamps, samples, received_ns=time.monotonic_ns())  # the receiving thread
        window = cache.window(frame_ns)                               # any other thread

    Threads: one pushes at a time (two at once are refused); any may call everything else, at any time, without waiting.

    Args:
        form: of the stream and its windows.
        seconds: of history that windows can be cut from, at least one window.
        rules: what is taken for a fault of the stream.

    Raises:
        SensorError: form, seconds or rules cannot be, or take more memory than the rules allow.
    """

    def __init__(self, form: SensorForm, *, seconds: float = 10.0, rules: StreamRules | None = None) -> None:
        rules = StreamRules() if rules is None else rules
        self.form = form
        self._ring = Ring(_history(form, seconds, rules), form.samples, form.channels)
        self._writer = StreamWriter(form, rules, self._ring)
        self._streams = next(_caches) << 48

    def push(self, timestamps_ns: NDArray[np.int64], samples: Rows, *, received_ns: int | None = None) -> None:
        """Takes a block of samples; readers see it when this returns, parts of a long one earlier.

        Args:
            timestamps_ns: (n,) int64, the sensor's stamps.
            samples: (n, C) float32, any strides; they are copied.
            received_ns: the host's time of arrival, whole nanoseconds. It gives the offset between the clocks.

        Raises:
            SensorError: wrong types or shapes, a time that is not whole, or another thread is pushing. Nothing was
                stored or counted then.
        """
        self._writer.push(timestamps_ns, samples, received_ns)

    def window(self, at_ns: int, *, clock: Clock = "host", out: Rows | None = None) -> SensorWindow | None:
        """The window that belongs to a moment: it ends with the first sample at or after it, or with the newest.

        Args:
            at_ns: the moment.
            clock: whose time that is, and whose ``end_ns`` shall be.
            out: (samples, C) float32 to copy into; the window's samples are its first rows then.

        Returns:
            Up to ``form.samples`` rows, fewer where the stream is younger; None before the first sample.

        Raises:
            SensorError: the history no longer covers the moment, the writer was faster than the copy in every attempt,
                ``at_ns`` is not whole, ``out`` does not fit, or the offset between the clocks is not known.
        """

        def cut(state: State, stamps: NDArray[np.int64]) -> _Cut:
            at = _sensor_time(at_ns, clock, state)
            first, end = point_range(stamps, at, self.form.samples)
            forgotten = state.low > state.begin and (end < self.form.samples or at < stamps[0])
            return _Cut(state.low + first, state.low + end, _forgotten(at_ns) if forgotten else None)

        return self._read(cut, clock, out)

    def interval(
        self, start_ns: int, end_ns: int, *, clock: Clock = "host", out: Rows | None = None
    ) -> SensorWindow | None:
        """All samples from a start to an end, both included; of more than ``form.samples`` the last ones.

        Arguments, errors and result are those of ``window``; None if no sample lies between. An adaptive form has no
        rule for what is too long, so that is an error there.
        """

        def cut(state: State, stamps: NDArray[np.int64]) -> _Cut:
            start, end = _sensor_time(start_ns, clock, state), _sensor_time(end_ns, clock, state)
            first, behind = interval_range(stamps, start, end)
            rows, limit = behind - first, self.form.samples
            if state.low > state.begin and start < stamps[0] and (rows < limit or self.form.adaptive):
                return _Cut(0, 0, _forgotten(start_ns))
            if rows > limit and self.form.adaptive:
                return _Cut(0, 0, _too_long(rows, limit))
            return _Cut(state.low + max(first, behind - limit), state.low + behind)

        return self._read(cut, clock, out)

    def latest(self, *, clock: Clock = "host", out: Rows | None = None) -> SensorWindow | None:
        """The newest up to ``form.samples`` rows; None before the first sample. Otherwise like ``window``."""
        return self._read(lambda state, _: _Cut(max(state.low, state.end - self.form.samples), state.end), clock, out)

    def aligned(
        self, hop: int = 64, *, after: SensorWindow | None = None, clock: Clock = "host", out: Rows | None = None
    ) -> SensorWindow | None:
        """The newest whole window whose position in its stream is a multiple of ``hop``: the one to encode next.

        Two windows of one stream that were had this way lie a multiple of ``hop`` apart, whatever the moments at which
        they were asked for, so that an incremental encoder can always reuse what they share. Windows that the encoder
        would refuse (too short, or too much of them swallowed by gaps) are not handed out.

        Args:
            hop: rows, a multiple of 16; a decision is made on samples that are up to ``hop`` rows old.
            after: the window that was encoded last.
            clock: whose time ``end_ns`` shall be.
            out: see ``window``.

        Returns:
            None if there is nothing newer than ``after``, or no whole window yet.

        Raises:
            SensorError: ``hop`` is not such a number, or see ``window``.
        """
        self._check_hop(hop)

        def cut(state: State, _: NDArray[np.int64]) -> _Cut:
            run, samples = self._ring.run(state.end - 1), self.form.samples
            first = run + (state.end - samples - run) // hop * hop
            end = first + samples
            if first < state.low or end <= run or self._lost(first, end) > MISSING_TOLERANCE * samples:
                return _Cut(0, 0)
            known = after is not None and (after.stream, after.position) == (self._streams + run, first - run)
            return _Cut(0, 0) if known else _Cut(first, end)

        return self._read(cut, clock, out)

    def intact(self, window: SensorWindow) -> bool:
        """Whether a view still holds what it held; True for good if its rows were copied with ``out``.

        Ask after the rows were used: what was computed from them before is sound then.

        Raises:
            SensorError: the window is not from this cache.
        """
        if window.stream is None or window.stream >> 48 != self._streams >> 48:
            raise SensorError("a window of another sensor cache cannot be judged by this one")
        first = window.stream - self._streams + window.position
        return first >= self._ring.overwritten or not self._ring.owns(window.samples)

    @property
    def nbytes(self) -> int:
        """Memory of the history, all of it taken when the cache was made."""
        return self._ring.nbytes

    @property
    def fill(self) -> float:
        """How much of a window there is, 0 to 1; it grows from 0 again when the history begins anew."""
        state = self._writer.state
        return min(1.0, (state.end - state.begin) / self.form.samples)

    @property
    def counts(self) -> Counts:
        """What became of every sample so far."""
        state = self._writer.state
        return replace(state.counts, accepted=state.end)

    @property
    def dropped(self) -> int:
        """Samples that were pushed and not kept."""
        return self._writer.state.counts.dropped

    @property
    def offset_ns(self) -> int | None:
        """Host clock minus sensor clock, as applied; None while it is not known."""
        return self._writer.state.offset_ns

    def staleness_ns(self, now_ns: int, *, clock: Clock = "host") -> int | None:
        """Age of the newest sample; None before the first.

        Raises:
            SensorError: ``now_ns`` is not whole, or the offset between the clocks is not known.
        """
        state = self._writer.state
        return None if state.newest_ns is None else _sensor_time(now_ns, clock, state) - state.newest_ns

    def _read(
        self, cut: Callable[[State, NDArray[np.int64]], _Cut], clock: Clock, out: Rows | None
    ) -> SensorWindow | None:
        """Cuts and checks until the writer was not in the way."""
        self._check_out(out)
        for _ in range(ATTEMPTS):
            state = self._writer.state
            if state.low == state.end:
                return None
            first, end, error = cut(state, self._ring.stamps(state.low, state.end))
            window = self._window(state, first, end, clock) if end > first and error is None else None
            if self._ring.overwritten > state.low:
                continue  # what was read of stamps may have been overwritten meanwhile
            if error is not None:
                raise error
            if window is None or out is None:
                return window
            rows = out[: end - first]
            rows[:] = window.samples
            if self._ring.overwritten <= first:
                return replace(window, samples=rows)
        raise SensorError(
            "the rows of a sensor window were overwritten while they were read",
            found=f"{ATTEMPTS} attempts",
            fix="give the cache more seconds, or push a recording not much faster than it was made",
        )

    def _window(self, state: State, first: int, end: int, clock: Clock) -> SensorWindow:
        run, stamp, offset_ns = self._ring.run(end - 1), self._ring.stamp(end - 1), _offset(clock, state)
        return SensorWindow(
            self._ring.view(first, end),
            rate_hz=self._rate(state, end),
            end_ns=None if offset_ns is None else stamp + offset_ns,
            missing=self._lost(first, end),
            stream=self._streams + run,
            position=first - run,
        )

    def _lost(self, first: int, end: int) -> int:
        return self._ring.missing(end - 1) - self._ring.missing(first)

    def _rate(self, state: State, end: int) -> float:
        """Measured over the history up to a window's end; the form's where that is too short to tell."""
        periods = end - 1 - state.low
        if periods < RATE_ROWS:
            return self.form.rate_hz
        span_ns = self._ring.stamp(end - 1) - self._ring.stamp(state.low)
        return (periods + self._lost(state.low, end)) * 1e9 / max(1, span_ns)

    def _check_hop(self, hop: int) -> None:
        most = self._ring.history - self.form.samples
        if not (is_whole(hop) and 0 < hop <= most and hop % TOTAL_STRIDE == 0):
            raise SensorError(
                f"windows cannot slide by {hop} samples",
                expected=f"a multiple of {TOTAL_STRIDE}, the encoder's total stride, up to {most}",
                fix="take 64; for windows at any moment there is `window`, at the cost of a full encoding; a cache of "
                "more seconds allows longer hops",
            )

    def _check_out(self, out: object) -> None:
        shape = (self.form.samples, self.form.channels)
        if out is None:
            return
        if not is_plain(out) or out.dtype != np.float32 or out.shape != shape or not out.flags.writeable:
            found = described(out) + (
                ", not writeable" if isinstance(out, np.ndarray) and not out.flags.writeable else ""
            )
            raise SensorError("a sensor window cannot be copied into this", expected=f"float32 {shape}", found=found)


def _history(form: SensorForm, seconds: float, rules: StreamRules) -> int:
    """Rows of history, or every reason why there cannot be any."""
    problems = [*form.problems(), *rules.problems()]
    if not (is_number(seconds) and form.duration_s <= seconds <= MAX_SECONDS):
        problems.append(f"seconds is {seconds}, not from one window ({form.duration_s:g}) to {MAX_SECONDS:g}")
    if not problems:
        # A product like 0.1 * 650 must not become one row more.
        rows = max(form.samples, math.ceil(seconds * form.rate_hz - 1e-6))
        nbytes = Ring.bytes_for(rows, form.samples, form.channels)
        if nbytes <= rules.max_bytes:
            return rows
        problems.append(f"{seconds:g} s take {nbytes} bytes, more than max_bytes, {rules.max_bytes}")
    raise SensorError("a sensor cache cannot be made like this", found=problems)


def _sensor_time(time_ns: int, clock: Clock, state: State) -> int:
    """A time in the sensor's clock, kept within what stamps can be."""
    time_ns = whole_ns(time_ns, "a time that the cache is asked about", SensorError)
    offset_ns = _offset(clock, state)
    if offset_ns is None:
        raise SensorError(
            "a host time cannot be brought to the sensor's clock, since the offset between them is not known",
            fix="push with received_ns, or fix StreamRules.offset_ns (0 if the host stamps the samples), or ask "
            'with clock="sensor"',
        )
    return min(max(time_ns - offset_ns, _INT64.min), _INT64.max)


def _offset(clock: Clock, state: State) -> int | None:
    """What a clock is ahead of the sensor's."""
    if clock not in ("host", "sensor"):
        raise SensorError("there is no such clock", expected="'host' or 'sensor'", found=repr(clock))
    return state.offset_ns if clock == "host" else 0


def _forgotten(time_ns: int) -> SensorError:
    return SensorError(
        "a sensor window lies further back than the history", found=f"{time_ns} ns", fix="give the cache more seconds"
    )


def _too_long(rows: int, limit: int) -> SensorError:
    return SensorError(
        "an interval holds more samples than the longest window of an adaptive form",
        expected=f"up to {limit} samples",
        found=f"{rows} samples",
        fix="ask for a shorter interval",
    )
