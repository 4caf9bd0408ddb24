"""A window's encoder steps, computed from its samples as far as they are new.

The convolutions of a sensor encoder give one step per block of ``stride`` samples. Where a window has slid by whole
blocks, most steps are those of the window before, moved: only the first step (it touches the window's beginning), the
steps of new samples, and those that touch the end are computed. The order in which the ``steps`` stage takes blocks and
gives steps is described in exporter/stages/sensor.py.

What can be reused is decided here and nowhere else: the windows must be of one uninterrupted stream, whole, not
resampled, and a multiple of ``stride`` samples apart. Everything else takes the full path; both give the same steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.manifest import SensorEntry
from trunkline.runtime.sensor.window import SensorWindow, fitted

Floats = NDArray[np.float32]
#: Runs the ``steps`` stage: (Q, stride, C) -> (J, Q, W).
RunSteps = Callable[[Floats], Floats]


def to_blocks(rows: Floats, stride: int) -> Floats:
    """(T, C) -> (M + 1, stride, C) float32: the first block, then all of them; zeros fill the last one."""
    count = -(-len(rows) // stride)
    blocks = np.zeros((count + 1, stride, rows.shape[1]), np.float32)
    blocks[1:].reshape(count * stride, -1)[: len(rows)] = rows
    blocks[0] = blocks[1]
    return blocks


@dataclass(frozen=True, eq=False)
class _Known:
    """Steps (J, M + 1, W) of the window that begins at ``position`` of a stream."""

    stream: int
    position: int
    steps: Floats


@dataclass
class StepCounts:
    """How many windows were computed in full, and how many from the window before."""

    full: int = 0
    slid: int = 0


class SlidingSteps:
    """Steps of one stream's windows. Any number of threads may ask; one computes at a time."""

    def __init__(self, entry: SensorEntry, run: RunSteps) -> None:
        self._entry, self._run = entry, run
        self._form, self._stride, self._blocks = entry.form, entry.stride, entry.blocks
        #: The first step that a sample behind the window's end would influence.
        self._border = -(-(self._form.steps - (entry.stride - 1)) // entry.stride)
        self._reusable = self._form.samples == self._form.steps and not self._form.adaptive
        self._known: _Known | None = None
        self._lock = threading.Lock()
        self.counts = StepCounts()

    def __call__(self, window: SensorWindow) -> Floats:
        """(J, M + 1, W) float32 of a window that :func:`check_window` has accepted; row 1 is meaningless.

        Raises:
            BackendError: the stage failed.
        """
        with self._lock:
            steps = self._slid(window)
            if steps is None:
                self.counts.full += 1
                steps = self._run(to_blocks(fitted(window.samples, self._form), self._stride))
            else:
                self.counts.slid += 1
            self._known = self._remembered(window, steps) or self._known
            return steps

    def forget(self) -> None:
        """The next window is computed in full."""
        with self._lock:
            self._known = None

    def _remembered(self, window: SensorWindow, steps: Floats) -> _Known | None:
        """What the next window may be computed from."""
        start = len(window.samples) - self._form.samples
        if not self._reusable or window.stream is None or start < 0:
            return None
        return _Known(window.stream, window.position + start, steps)

    def _slid(self, window: SensorWindow) -> Floats | None:
        """The steps, from those of the window before; None where that is not possible or not worth it."""
        known, start = self._known, len(window.samples) - self._form.samples
        if known is None or window.stream != known.stream or start < 0:
            return None
        hop, remainder = divmod(window.position + start - known.position, self._stride)
        first = self._border - hop  # the first step that the old window does not have
        if remainder or hop < 0 or first < 2:
            return None
        if hop == 0:
            return known.steps
        rows = window.samples[start:]
        computed = self._run(self._fresh_blocks(rows, first))
        steps = np.empty_like(known.steps)
        steps[:, 0] = computed[:, 0]
        steps[:, 2 : first + 1] = known.steps[:, 2 + hop : first + 1 + hop]
        steps[:, first + 1 :] = computed[:, 2:]
        return steps

    def _fresh_blocks(self, rows: Floats, first: int) -> Floats:
        """The first block, the one before block ``first``, and everything from there on."""
        tail = rows[(first - 1) * self._stride :]
        blocks = np.zeros((self._blocks - first + 2, self._stride, rows.shape[1]), np.float32)
        blocks[0] = rows[: self._stride]
        blocks[1:].reshape(-1, rows.shape[1])[: len(tail)] = tail
        return blocks
