"""Windows: which samples of a stream belong to a moment, and what an encoder is given of them.

Rules of the published training code, kept because the encoders were trained with them:

*point*
    the window ends with the first sample at or after the moment, so it may look one sample ahead.
*interval*
    all samples from a start to an end, both included.
*too long*
    the last rows stay. *Too short*: zeros on the side that :class:`SensorForm` names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import SensorError
from trunkline.runtime.exact import described, fix_for, is_number, is_plain, is_stamp, is_whole, told
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.resample import resample

Rows = NDArray[np.float32]
Stamps = NDArray[np.int64] | NDArray[np.float64]

#: A stream whose rate is off by more than this share is another stream.
RATE_TOLERANCE = 0.02
#: Share of a window's duration that may be missing because of gaps.
MISSING_TOLERANCE = 0.05


@dataclass(frozen=True, eq=False)
class SensorWindow:
    """Consecutive samples of a stream.

    Attributes:
        samples: (n, C) float32, oldest first, n >= 1. It may be a read-only view of a cache.
        rate_hz: of the stream; it is held against the encoder's.
        end_ns: stamp of the last sample in nanoseconds, None where nobody knows.
        missing: samples that gaps swallowed between the first and the last row.
        stream: which uninterrupted stream this is cut from; equal values are one stream. None: not known, so nothing
            can be reused from the window before.
        position: number of the first row in that stream; negative where rows lie before the stream's beginning, since a
            gap begins a new one.
    """

    samples: Rows
    rate_hz: float
    end_ns: int | None = None
    missing: int = 0
    stream: int | None = None
    position: int = 0


def point_range(stamps: Stamps, at: float, samples: int) -> tuple[int, int]:
    """First row and the row behind the last of the window that belongs to a moment.

    Args:
        stamps: (N,) in ascending order.
        at: the moment, in the unit of the stamps.
        samples: rows of a whole window; there are fewer where the stream is younger.
    """
    end = min(int(np.searchsorted(stamps, at, side="left")) + 1, len(stamps))
    return max(0, end - samples), end


def interval_range(stamps: Stamps, start: float, end: float) -> tuple[int, int]:
    """First row and the row behind the last of all samples from ``start`` to ``end``, both included."""
    return int(np.searchsorted(stamps, start, side="left")), int(np.searchsorted(stamps, end, side="right"))


def encoder_rows(window: SensorWindow, form: SensorForm, out: Rows | None = None) -> Rows:
    """What an encoder reads of a window.

    Args:
        window: any number of rows; what is too long is cut, what is too short padded, as the encoder was trained.
        form: what it was trained on.
        out: (steps, C) float32 to write into.

    Returns:
        (steps, C) float32. Without ``out`` it may be a view of the window's own samples.

    Raises:
        SensorError: the window is not one that the encoder can read, with every reason.
    """
    check_window(window, form)
    return fitted(window.samples, form, out)


def fitted(rows: Rows, form: SensorForm, out: Rows | None = None) -> Rows:
    """:func:`encoder_rows` for the rows of a window that :func:`check_window` has accepted."""
    if not form.adaptive:
        rows = pad(rows[-form.samples :], form)
    return resample(rows, form.steps, form.resample, out)


def pad(rows: Rows, form: SensorForm) -> Rows:
    """Rows (n, C) with zeros up to ``form.samples`` on the side the form names; n is at most that."""
    short = form.samples - len(rows)
    if not short:
        return rows
    zeros = np.zeros((short, rows.shape[1]), np.float32)
    return np.concatenate([zeros, rows] if form.padding == "left" else [rows, zeros])


def check_window(window: SensorWindow, form: SensorForm) -> None:
    """Raises SensorError, with every reason, if an encoder of this form cannot read the window."""
    problems = window_problems(window) or _shape_problems(window.samples, form) or _stream_problems(window, form)
    if problems:
        raise SensorError(
            "a sensor window is not one that the encoder was trained on",
            expected=f"{form.samples} samples of {form.channels} numbers at {form.rate_hz:g} Hz, "
            f"{form.duration_s:g} s" + (", or fewer" if form.adaptive or form.padding != "none" else ""),
            found=problems,
            fix=fix_for(
                "feed the stream of the training recordings; if it really is that one, state its rate and duration "
                "when the ensemble is packed",
                window.samples,
            ),
        )


def window_problems(window: SensorWindow) -> list[str]:
    """Why this cannot be a window of any stream, in words; nothing if it can."""
    samples, problems = window.samples, []
    if not is_plain(samples) or samples.dtype != np.float32 or samples.ndim != 2:
        problems.append(f"{described(samples)} instead of float32 (samples, channels)")
    elif len(samples) == 0:
        problems.append("no samples")
    if not (is_number(window.rate_hz) and window.rate_hz > 0):
        problems.append(f"a stream of {window.rate_hz} Hz")
    if window.end_ns is not None and not is_stamp(window.end_ns):
        problems.append(f"end_ns is {told(window.end_ns)}, not whole nanoseconds")
    counts = {"missing": window.missing, "position": window.position, "stream": window.stream or 0}
    problems += [
        f"{name} is {told(value)}, not a whole number" for name, value in counts.items() if not is_whole(value)
    ]
    return problems


def _shape_problems(samples: Rows, form: SensorForm) -> list[str]:
    problems = []
    if samples.shape[1] != form.channels:
        problems.append(f"{samples.shape[1]} numbers per sample instead of {form.channels}")
    if form.adaptive and len(samples) > form.samples:
        problems.append(f"{len(samples)} samples, more than the {form.samples} of the longest window")
    elif not form.adaptive and form.padding == "none" and len(samples) < form.samples:
        problems.append(f"{len(samples)} samples, and short windows are not padded")
    return problems


def _stream_problems(window: SensorWindow, form: SensorForm) -> list[str]:
    problems = []
    if not abs(window.rate_hz - form.rate_hz) <= RATE_TOLERANCE * form.rate_hz:
        problems.append(f"a stream of {window.rate_hz:g} Hz")
    if window.missing > MISSING_TOLERANCE * form.samples:
        problems.append(f"gaps that swallowed {window.missing} samples")
    # The sum is a quick test; it may overflow where every number is finite.
    if not math.isfinite(np.add.reduce(window.samples, axis=None)) and not np.isfinite(window.samples).all():
        problems.append("NaN or infinite values")
    return problems
