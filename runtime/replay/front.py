"""What a control loop hands over to be recorded: checked, and copied where others may write to it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.runtime import candidates
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.ensemble import Camera, Decision, Histories
from trunkline.runtime.errors import CandidateError, ImageError, SensorError
from trunkline.runtime.replay.payloads import Array, Header
from trunkline.runtime.replay.scribe import Scene, Scribe
from trunkline.runtime.sensor.window import SensorWindow

What = Literal["frame", "sensor", "decision", "note"]
Write = Callable[[Scribe], None]
Number = TypeVar("Number", np.uint8, np.float32)
AnyFront = TypeVar("AnyFront", bound="Front")

#: Stands for candidates that a refused decision was given and that are none.
UNUSABLE = "unusable candidates"


@dataclass(frozen=True, eq=False)
class Seen:
    """What a decision was made from, as it was handed to the ensemble.

    Attributes:
        instruction: one, or a list of rephrasings, None without one.
        histories: the candidates, None without any.
        image: (height, width, 3) uint8, or an RGB image of PIL; None without a frame.
        frame_ns: when it was captured.
        window: of the sensor, None without one.
        frame_age_ns: how old the frame was when the decision was there.
        sensor_age_ns: how old the window's last sample was.
    """

    instruction: str | Sequence[str] | None
    histories: Histories | None
    image: Camera | None = None
    frame_ns: int | None = None
    window: SensorWindow | None = None
    frame_age_ns: int | None = None
    sensor_age_ns: int | None = None


class Front(ABC):
    """Checks what it is given, copies what others may write to, and has it written."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._rows = 0

    def frame(self, image: Camera, stamp_ns: int) -> None:
        """A camera frame; those that decisions are made on are recorded with them in any case.

        Args:
            image: (height, width, 3) uint8, or an RGB image of PIL.
            stamp_ns: when it was captured.

        Raises:
            ImageError: it is no such image.
            ReplayError: the log is closed.
        """
        pixels, captured_ns = _pixels(image), int(stamp_ns)
        self._do("frame", pixels.nbytes, lambda scribe: scribe.frame(pixels, captured_ns))

    def sensor(self, stamps_ns: NDArray[np.int64], samples: NDArray[np.float32]) -> None:
        """Samples of the sensor's stream, in the order in which windows hold them; call it from one thread.

        Args:
            stamps_ns: (n,) int64.
            samples: (n, C) float32.

        Raises:
            SensorError: they are not, or the bundle has no sensor.
            ReplayError: the log is closed.
        """
        _check_samples(stamps_ns, samples, self._header)
        if len(samples):
            row, self._rows = self._rows, self._rows + len(samples)
            stamps, block = stamps_ns.copy(), samples.copy()
            self._do("sensor", block.nbytes, lambda scribe: scribe.sensor(row, stamps, block))

    def decision(self, seen: Seen, decision: Decision | None, stamp_ns: int, *, marks: Sequence[str] = ()) -> None:
        """A decision; without one, that there was none.

        Arrays that own their memory and are read-only are not copied.

        Args:
            seen: what it was made from.
            decision: what the ensemble answered, None if it was not asked or refused.
            stamp_ns: when it was there.
            marks: words about it, such as "late", or why there is none.

        Raises:
            ImageError: the image is neither of the two kinds.
            CandidateError: there is a decision on candidates that are none.
            ReplayError: the log is closed.
        """
        words, moment_ns, histories = tuple(marks), int(stamp_ns), None
        if seen.histories is not None:
            try:
                histories = candidates.prepare(seen.histories, self._header.actions)
            except CandidateError:
                if decision is not None:
                    raise
                words += (UNUSABLE,)
        scene = _scene(seen, histories)
        arrays = [scene.image, histories, None if scene.window is None else scene.window.samples]
        size = sum(each.nbytes for each in arrays if each is not None)
        self._do("decision", size, lambda scribe: scribe.decision(scene, decision, moment_ns, words))

    def note(self, text: str) -> None:
        """Free text.

        Raises:
            ReplayError: the log is closed.
        """
        self._do("note", len(text), lambda scribe: scribe.note(text))

    @abstractmethod
    def close(self) -> None:
        """Writes what is left, and gives the log back. Calling it twice is fine."""

    @abstractmethod
    def _do(self, what: What, size: int, write: Write) -> None: ...

    def __enter__(self: AnyFront) -> AnyFront:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def header_of(bundle: Bundle) -> Header:
    """What a log says about the bundle that decides."""
    manifest = bundle.manifest
    form = None if manifest.sensor is None else manifest.sensor.form
    return Header(bundle.digest, manifest.actions, form, time.time_ns())


def _scene(seen: Seen, histories: NDArray[np.float32] | None) -> Scene:
    instruction = (
        seen.instruction if seen.instruction is None or isinstance(seen.instruction, str) else tuple(seen.instruction)
    )
    window = seen.window
    if window is not None and not _kept(window.samples):
        window = replace(window, samples=_copied(window.samples))
    return Scene(
        image=None if seen.image is None else _pixels(seen.image),
        frame_ns=seen.frame_ns,
        instruction=instruction,
        candidates=histories,
        window=window,
        frame_age_ns=seen.frame_age_ns,
        sensor_age_ns=seen.sensor_age_ns,
    )


def _pixels(image: Camera) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 that nobody writes to."""
    if isinstance(image, Image.Image) and image.mode == "RGB":
        return np.asarray(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else getattr(image, "mode", type(image))
        raise ImageError(
            "this image cannot be recorded",
            expected="uint8 (height, width, 3), or an RGB image",
            found=found,
            fix="convert it before it is scored: image.convert('RGB')",
        )
    return image if _kept(image) else _copied(image)


def _kept(array: Array) -> bool:
    """Whether nobody can write to an array: it is read-only and no view of something that may not be."""
    return array.base is None and not array.flags.writeable


def _copied(array: NDArray[Number]) -> NDArray[Number]:
    copy = array.copy()
    copy.setflags(write=False)
    return copy


def _check_samples(stamps: NDArray[np.int64], samples: NDArray[np.float32], header: Header) -> None:
    form = header.sensor
    if form is None:
        raise SensorError(
            "the bundle has no sensor", fix="make the header with the form of the stream, or record no samples"
        )
    found = [
        (str(each.dtype), each.shape) if isinstance(each, np.ndarray) else type(each).__name__
        for each in (stamps, samples)
    ]
    count = len(stamps) if isinstance(stamps, np.ndarray) and stamps.ndim == 1 else 0
    if found != [("int64", (count,)), ("float32", (count, form.channels))]:
        raise SensorError(
            "these samples cannot be recorded",
            expected=f"stamps int64 (n,) in nanoseconds, samples float32 (n, {form.channels})",
            found=[str(each) for each in found],
        )
