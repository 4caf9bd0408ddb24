"""A sensor window, features, or nothing, as a source of the stage graph.

Nothing is a state of its own: members that need a window are refused without one, unless their encoders carry what
stands for absence. Zeros are never made up.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BundleError, SensorError
from trunkline.runtime.features import SensorFeatures
from trunkline.runtime.graph import CacheLimits, ContentNames, Source, StageGraph
from trunkline.runtime.manifest import SensorEntry
from trunkline.runtime.sensor.steps import SlidingSteps, StepCounts, to_blocks
from trunkline.runtime.sensor.window import SensorWindow, check_window, fitted

Floats = NDArray[np.float32]
Sensed = SensorWindow | SensorFeatures | None
#: How many different windows, and how many bytes of them, are recognised when they come again.
WINDOWS = CacheLimits(entries=4, bytes=64 << 20)


class SensorSources:
    """Of one ensemble. Any number of threads may ask."""

    def __init__(self, bundle: Bundle, graph: StageGraph) -> None:
        """Reads what stands for absence.

        Raises:
            BundleError: it is malformed.
        """
        self.entry = bundle.manifest.sensor
        self._bundle, self._names = bundle.digest, ContentNames(WINDOWS)
        self._absent = _read_absent(bundle, self.entry) if self.entry and self.entry.absent else None
        self._steps = None
        if self.entry is not None:
            self._steps = SlidingSteps(self.entry, lambda samples: graph.run("steps", {"samples": samples}))

    @property
    def counts(self) -> StepCounts:
        """How windows were computed; zeros for an ensemble without a sensor."""
        return StepCounts() if self._steps is None else self._steps.counts

    def of(self, sensor: Sensed, members: Sequence[int] | None = None) -> dict[str, Source]:
        """The source for a call, by tensor name; none for an ensemble without a sensor.

        Args:
            sensor: what there is.
            members: those that are asked; all by default.

        Raises:
            SensorError: the window cannot be read, or there is none where one is needed, or one where none is used.
            InputError: features were computed by another bundle.
        """
        if self.entry is None or self._steps is None:
            _refuse_unused(sensor)
            return {}
        if sensor is None:
            return {"sensor": self._nothing(self.entry, members)}
        if isinstance(sensor, SensorFeatures):
            return {"sensor": sensor.source(self._bundle)}
        if not isinstance(sensor, SensorWindow):
            raise SensorError(
                "a sensor window must say which stream it is from",
                expected="a SensorWindow, or the features that encode_sensor gave",
                found=type(sensor).__name__,
                fix="pass SensorWindow(samples, rate_hz=...), or a window of a SensorCache",
            )
        check_window(sensor, self.entry.form)
        window, steps = sensor, self._steps
        return {"steps": Source((self._name(window),), lambda wanted: steps(window))}

    def inputs(self, sensor: SensorWindow | None) -> dict[str, Floats]:
        """What the first of the sensor's stages is fed: ``samples`` of a whole window, or ``sensor`` for none.

        Raises:
            SensorError: as :meth:`of`.
        """
        found = self.of(sensor)
        if self.entry is None:
            return {}
        if sensor is None:
            return {"sensor": cast(Floats, found["sensor"].load((0,)))}
        return {"samples": to_blocks(fitted(sensor.samples, self.entry.form), self.entry.stride)}

    def forget(self) -> None:
        """Nothing is reused for the next window."""
        self._names.clear()
        if self._steps is not None:
            self._steps.forget()

    def _name(self, window: SensorWindow) -> Hashable:
        """Rows of a known stream are known by their place in it, others by content."""
        samples = window.samples
        if window.stream is not None:
            return (window.stream, window.position, len(samples))
        return self._names.name(samples.tobytes(), samples.shape)

    def _nothing(self, entry: SensorEntry, members: Sequence[int] | None) -> Source:
        asked = range(len(entry.encoder_of)) if members is None else members
        needing = [index for index in asked if entry.encoder_of[index] is not None]
        if self._absent is not None:
            absent = self._absent
            return Source(("absent",), lambda wanted: absent)
        if needing:
            raise SensorError(
                "there is no sensor window, and members need one",
                expected=f"{entry.form.samples} samples of {entry.form.channels} numbers at {entry.form.rate_hz:g} Hz",
                found=f"None; members {', '.join(map(str, needing))} read a sensor and say nothing of its absence",
                fix="pass sensor=, ask only members without a sensor, or train a vector for absence",
            )
        # The stage wants the tensor; only members that ignore it are asked.
        unread = np.zeros((entry.encoders, 1, entry.features), np.float32)
        return Source(("unread",), lambda wanted: unread)


def _refuse_unused(sensor: Sensed) -> None:
    if sensor is not None:
        raise SensorError(
            "the ensemble has no sensor, so the window would be ignored",
            found=type(sensor).__name__,
            fix="leave sensor= out, or load the bundle of the ensemble that reads it",
        )


def _read_absent(bundle: Bundle, entry: SensorEntry) -> Floats:
    absent = bundle.tensors(cast(str, entry.absent)).get("absent")
    expected = (entry.encoders, 1, entry.features)
    if not isinstance(absent, np.ndarray) or absent.dtype != np.float32 or absent.shape != expected:
        found = f"{absent.dtype} {absent.shape}" if isinstance(absent, np.ndarray) else "no such tensor"
        raise BundleError(
            "what stands for an absent sensor is malformed",
            where=f"{bundle.root}, {entry.absent}",
            expected=f"absent: float32 {expected}",
            found=found,
            fix="export the bundle again",
        )
    if not np.isfinite(absent).all():
        raise BundleError("what stands for an absent sensor is malformed", where=bundle.root, found="NaN or infinite")
    return absent
