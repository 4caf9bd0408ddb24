"""Which samples of a recording each window takes, told from its stamps alone.

The rules are those of :mod:`trunkline.runtime.sensor.window`. They were made for streams without holes: where one falls
into a gap, "the first sample at or after the moment" may lie far in the future, and a moment before the recording has
nothing but future. Such windows are unusable here, as are those that :func:`check_window` would refuse at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.calibration.windows.plan import WindowPlan
from trunkline.calibration.windows.rates import require_rate
from trunkline.calibration.windows.recording import RawRecording, Recording, WindowedRecording
from trunkline.runtime.errors import DatasetError
from trunkline.runtime.record import shortened
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.window import MISSING_TOLERANCE, Rows, interval_range, pad, point_range

#: A window ends with the first sample at or after its moment; with steady stamps that is less than one period away.
LOOK_AHEAD_PERIODS = 2.0

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cut:
    """W windows.

    Attributes:
        read: gives window ``index`` as it is cut: (lengths[index], C) float32, padded if the form says so.
        lengths: (W,) rows of each.
        rows: (W,) how many of them are samples; the rest is padding.
        missing: (W,) samples that gaps swallowed.
        stamps_ns: (W,) of the last samples.
        moments: (W,) which of the plan's times, or of the recording's windows, each belongs to.
        skipped: what was left out, in words.
    """

    read: Callable[[int], Rows]
    lengths: Integers
    rows: Integers
    missing: Integers
    stamps_ns: Integers
    moments: Integers
    skipped: tuple[str, ...]


def cut(recording: Recording, plan: WindowPlan) -> Cut:
    """Decides on every window; no samples are read.

    Raises:
        DatasetError: the recording has another rate or other channels than the form, is of the other kind than the
            plan, or windows are unusable and not to be skipped; all of them are listed.
    """
    form = plan.form
    if recording.channels != form.channels:
        raise DatasetError(
            "a recording has other channels than were stated",
            where=recording.path,
            expected=form.channels,
            found=recording.channels,
            fix="state the channels of the recording: the force and the numbers of the A-scan",
        )
    require_rate(recording.rate_hz, form.rate_hz, recording.path)
    _require_kind(recording, plan)
    if isinstance(recording, RawRecording):
        return _cut_raw(recording, plan)
    return _cut_windowed(recording, plan)


def _require_kind(recording: Recording, plan: WindowPlan) -> None:
    if isinstance(recording, RawRecording) == (plan.rule == "windowed"):
        raw = isinstance(recording, RawRecording)
        raise DatasetError(
            "a raw recording needs moments or intervals" if raw else "a recording of windows cannot be cut again",
            where=recording.path,
            expected="times to cut at" if raw else "no times: every window is taken as it is",
            fix="name the cameras' stamps, or a distance" if raw else "leave the times out, or use the raw recording",
        )


def _cut_raw(recording: RawRecording, plan: WindowPlan) -> Cut:
    form = plan.form
    ranges = _ranges(recording, plan)
    problems = [_problem(recording, form, *each) for each in ranges]
    kept, skipped = _kept(problems, recording, plan)
    first, stop = np.array([(start, end) for start, end, _ in ranges], np.int64)[kept].T
    rows = stop - first

    def read(index: int) -> Rows:
        samples = recording.samples(int(first[index]), int(stop[index]))
        return samples if form.adaptive else pad(samples, form)

    return Cut(
        read,
        rows if form.adaptive else np.full(len(kept), form.samples, np.int64),
        rows,
        np.array([_missing(recording, int(a), int(b)) for a, b in zip(first, stop, strict=True)], np.int64),
        _ns(recording.stamps[stop - 1]),
        kept,
        skipped,
    )


def _ranges(recording: RawRecording, plan: WindowPlan) -> list[tuple[int, int, float | None]]:
    """First row and the row behind the last of each window, and its moment if it has one."""
    stamps, samples = recording.stamps, plan.form.samples
    if plan.rule == "points":
        return [(*point_range(stamps, moment, samples), moment) for moment in _listed(plan)]
    ranges = [interval_range(stamps, start, end) for start, end in _listed(plan)]
    return [(first if plan.form.adaptive else max(first, stop - samples), stop, None) for first, stop in ranges]


def _listed(plan: WindowPlan) -> list[Any]:
    return [] if plan.times is None else plan.times.tolist()


def _problem(recording: RawRecording, form: SensorForm, first: int, stop: int, moment: float | None) -> str | None:
    """Why a window cannot be used, None if it can."""
    if first >= stop:
        return "no samples"
    if moment is not None:
        ahead_s, limit_s = recording.stamps[stop - 1] - moment, LOOK_AHEAD_PERIODS / form.rate_hz
        if ahead_s > limit_s:
            return f"the next sample comes {ahead_s:.4g} s after the moment, so the window would be from the future"
        if -ahead_s > limit_s:
            return f"the recording ends {-ahead_s:.4g} s before the moment"
    if form.adaptive and stop - first > form.samples:
        return f"{stop - first} samples, more than the {form.samples} of the longest window"
    if not form.adaptive and form.padding == "none" and stop - first < form.samples:
        return f"{stop - first} samples, and short windows are not padded"
    missing = _missing(recording, first, stop)
    return f"gaps that swallowed {missing} samples" if missing > MISSING_TOLERANCE * form.samples else None


def _missing(recording: RawRecording, first: int, stop: int) -> int:
    """Samples that the time between first and last row has room for, and that are not there."""
    if stop - first < 2:
        return 0
    span_s = recording.stamps[stop - 1] - recording.stamps[first]
    return max(0, round(span_s * (recording.rate_hz or 0.0)) - (stop - first - 1))


def _cut_windowed(recording: WindowedRecording, plan: WindowPlan) -> Cut:
    form, count = plan.form, recording.samples_per_window
    problem = None
    if form.adaptive and count > form.samples:
        problem = f"windows of {count} samples, more than the {form.samples} of the longest window"
    elif not form.adaptive and form.padding == "none" and count < form.samples:
        problem = f"windows of {count} samples, and short windows are not padded"
    if problem:
        raise _unusable(recording, [problem])

    def read(index: int) -> Rows:
        rows = recording.window(index)
        return rows if form.adaptive else pad(rows[-form.samples :], form)

    windows = len(recording)
    return Cut(
        read,
        np.full(windows, count if form.adaptive else form.samples, np.int64),
        np.full(windows, count if form.adaptive else min(count, form.samples), np.int64),
        np.zeros(windows, np.int64),
        _ns(recording.stamps),
        np.arange(windows, dtype=np.int64),
        (),
    )


def _kept(problems: list[str | None], recording: RawRecording, plan: WindowPlan) -> tuple[Integers, tuple[str, ...]]:
    """Indices of usable windows, and what is said of the others."""
    found = [f"window {index}: {problem}" for index, problem in enumerate(problems) if problem]
    kept = np.array([index for index, problem in enumerate(problems) if not problem], np.int64)
    if found and not (plan.skip_unusable and len(kept)):
        raise _unusable(recording, found)
    return kept, tuple(found)


def _unusable(recording: Recording, found: list[str]) -> DatasetError:
    return DatasetError(
        "windows cannot be cut from a recording",
        where=recording.path,
        found=shortened(found),
        fix="leave these times out, or choose to skip windows that are unusable; times must be on the sensor's clock",
    )


def _ns(stamps: NDArray[np.float64]) -> Integers:
    return np.rint(stamps * 1e9).astype(np.int64)
