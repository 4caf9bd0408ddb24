"""Which windows are wanted of a recording, and in what form they are stored."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import InputError
from trunkline.runtime.sensor.form import MAX_SAMPLES, PADDINGS, RESAMPLES, SensorForm

Storage = Literal["float32", "float16", "int8"]
Rule = Literal["points", "intervals", "windowed"]
Times = NDArray[np.float64]

STORAGES: tuple[Storage, ...] = ("float32", "float16", "int8")
#: In place of a number of rows: windows as they are cut, padded but not resampled.
AS_CUT = 0
MAX_RESOLUTIONS = 16
MAX_TIMES = 1 << 24


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """What is to be stored.

    Attributes:
        form: the stream, and how an encoder wants its windows cut.
        times: on the sensor's clock, in seconds: (N,) float64 for windows that end at a moment, (N, 2) for intervals,
            in any order. None for a recording that holds windows already.
        resolutions: rows of the windows that are stored, one set for each number; ``AS_CUT`` (0) among them stands for
            windows as they are cut. By default what the encoder reads: ``form.steps``, or ``AS_CUT`` if the form is
            adaptive.
        storage: "float32", "float16", or "int8" with a scale per window and channel.
        skip_unusable: leave out windows that cannot be cut, and say how many, in place of refusing all.
    """

    form: SensorForm
    times: Times | None = None
    resolutions: tuple[int, ...] = ()
    storage: Storage = "float32"
    skip_unusable: bool = False

    @property
    def rule(self) -> Rule:
        """How windows are cut."""
        if self.times is None:
            return "windowed"
        return "points" if self.times.ndim == 1 else "intervals"

    @property
    def steps(self) -> tuple[int, ...]:
        """Resolutions, defaults filled in."""
        return self.resolutions or ((AS_CUT,) if self.form.adaptive else (self.form.steps,))

    @property
    def times_sha256(self) -> str:
        """Of shape and numbers, in hex; of nothing if there are none."""
        if self.times is None:
            return hashlib.sha256(b"").hexdigest()
        return hashlib.sha256(f"{self.times.shape} ".encode() + self.times.tobytes()).hexdigest()

    def require(self) -> None:
        """Raises InputError, with every reason, if this is no plan."""
        problems = [*self.form.problems(), *self._form_problems(), *self._problems()]
        if problems:
            raise InputError("windows cannot be cut like this", found=problems, fix="correct these settings")

    def _form_problems(self) -> Iterator[str]:
        if self.form.resample not in RESAMPLES:
            yield f"resample is {self.form.resample!r}, not one of {', '.join(RESAMPLES)}"
        if self.form.padding not in PADDINGS:
            yield f"padding is {self.form.padding!r}, not one of {', '.join(PADDINGS)}"

    def _problems(self) -> Iterator[str]:
        if self.storage not in STORAGES:
            yield f"storage is {self.storage!r}, not one of {', '.join(STORAGES)}"
        wrong = [steps for steps in self.resolutions if type(steps) is not int or not 0 <= steps <= MAX_SAMPLES]
        if wrong or len(self.resolutions) > MAX_RESOLUTIONS or len(set(self.resolutions)) < len(self.resolutions):
            yield (
                f"resolutions are {self.resolutions}, not up to {MAX_RESOLUTIONS} different numbers, "
                f"each 0 (as cut) to {MAX_SAMPLES}"
            )
        if self.times is not None:
            yield from _time_problems(self.times)


def _time_problems(times: Times) -> Iterator[str]:
    if times.dtype != np.float64 or times.ndim not in (1, 2) or (times.ndim == 2 and times.shape[1] != 2):
        yield f"times are {times.dtype} {times.shape} instead of float64 (N,) or (N, 2)"
    elif not 0 < len(times) <= MAX_TIMES:
        yield f"{len(times)} times, not 1 to {MAX_TIMES}"
    elif not np.isfinite(times).all():
        yield "times hold NaN or infinite values"
    elif times.ndim == 2 and (times[:, 0] > times[:, 1]).any():
        yield f"interval {int(np.argmax(times[:, 0] > times[:, 1]))} ends before it begins"


def every(stamps: Times, form: SensorForm, seconds: float) -> Times:
    """Moments at equal distances, from the end of the first whole window to the end of the recording.

    Args:
        stamps: (N,) of a raw recording, ascending.
        form: how long a window is.
        seconds: between two moments, above 0.

    Raises:
        InputError: there are none, or too many.
    """
    first = float(stamps[0]) + (form.samples - 1) / form.rate_hz
    span = float(stamps[-1]) - first
    count = math.floor(span / seconds) + 1 if seconds > 0 and span / seconds < MAX_TIMES else 0
    if count < 1:
        raise InputError(
            "no moments to cut windows at",
            expected=f"a recording longer than {form.duration_s:g} s, and a distance in seconds, above 0 and not tiny",
            found=f"{stamps[-1] - stamps[0]:g} s, a distance of {seconds:g} s",
            fix="name moments yourself; windows at the start may be short",
        )
    return first + np.arange(count, dtype=np.float64) * seconds
