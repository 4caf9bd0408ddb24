"""What a control loop hands over to be recorded: checked, and copied where others may write to it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime import candidates
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.ensemble import Camera, Decision, Histories
from trunkline.runtime.errors import InputError, ReplayError, SensorError
from trunkline.runtime.exact import whole_ns
from trunkline.runtime.instructions import as_list
from trunkline.runtime.replay.frames import Pixels, unchanging
from trunkline.runtime.replay.payloads import Array, Decided, Header, Instruction, Note, WindowSource
from trunkline.runtime.replay.scribe import Scene, Scribe, packed
from trunkline.runtime.sensor.window import SensorWindow, window_problems
from trunkline.runtime.sensor.writer import check_block

What = Literal["frame", "sensor", "decision", "note"]
Write = Callable[[Scribe], None]
Taken = TypeVar("Taken")
AnyFront = TypeVar("AnyFront", bound="Front")


@dataclass(frozen=True, eq=False)
class Seen:
    """What a decision was made from, as it was handed to the ensemble.

    Attributes:
        instruction: one, or a list of rephrasings, None without one.
        histories: the candidates, None without any.
        image: as the ensemble takes it, an array or a PIL image; None without a frame.
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
            image: any that the ensemble takes.
            stamp_ns: when it was captured.

        Raises:
            ImageError: the ensemble would refuse it.
            InputError: the stamp is not whole nanoseconds.
            ReplayError: the log is closed.
        """
        pixels, captured_ns = Pixels.of(image), whole_ns(stamp_ns, "stamp_ns of a frame")
        self._do("frame", pixels.data.nbytes, lambda scribe: scribe.frame(pixels, captured_ns))

    def sensor(self, stamps_ns: NDArray[np.int64], samples: NDArray[np.float32]) -> None:
        """Samples of the sensor's stream, in the order in which windows hold them; call it from one thread.

        Args:
            stamps_ns: (n,) int64.
            samples: (n, C) float32.

        Raises:
            SensorError: they are not, or the bundle has no sensor.
            ReplayError: the log is closed.
        """
        form = self._header.sensor
        if form is None:
            raise SensorError(
                "the bundle has no sensor", fix="make the header with the form of the stream, or record no samples"
            )
        check_block(stamps_ns, samples, form.channels)
        if len(samples):
            row, self._rows = self._rows, self._rows + len(samples)
            stamps, block = np.array(stamps_ns), np.array(samples, order="C")
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
            InputError: a stamp is not whole nanoseconds, or there is a decision on an image, instruction, candidates or
                window that no ensemble takes, or with another number of scores. Without a decision, what does not pass
                is left out, and marked as "unusable".
            ReplayError: the log is closed, or would not be read again as it is.
        """
        taking = _Taking(decided=decision is not None)
        actions, scores = self._header.actions, _scores(decision)
        frame = taking(seen.image, Pixels.of, "frame")
        histories = taking(seen.histories, lambda each: candidates.prepare(each, actions), "candidates")
        instruction = taking(seen.instruction, _instruction, "instruction")
        window, source = taking(seen.window, _window, "sensor window") or (None, None)
        facts = _facts(seen, stamp_ns, decision, scores)
        words = (*([marks] if isinstance(marks, str) else marks), *taking.marks)
        meta = Decided(bundle=self._header.bundle, window=source, marks=words, **facts)
        if scores and histories is not None and meta.scores[-1:] != histories.shape[:1]:
            raise InputError(
                "a decision is not on these candidates", expected=f"{len(histories)} scores", found=f"{meta.scores}"
            )
        packed(meta, *scores)  # what could not be written is told here, not in the thread that writes
        scene = Scene(frame, instruction, histories, window)
        size = 0 if frame is None else frame.data.nbytes
        size += 0 if histories is None else histories.nbytes
        size += 0 if window is None else window.samples.nbytes
        self._do("decision", size, lambda scribe: scribe.decision(scene, meta, scores))

    def note(self, text: str) -> None:
        """Free text.

        Raises:
            ReplayError: it is no text, too long, or the log is closed.
        """
        payload = packed(Note(text))
        self._do("note", len(payload), lambda scribe: scribe.note(payload))

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


class _Taking:
    """Checks what a decision was made from, by the ensemble's own rules.

    What a decision was made on must pass. Where there was none, whatever does not pass is left out and marked, since it
    may be the very reason.
    """

    def __init__(self, *, decided: bool) -> None:
        self._decided = decided
        self.marks: list[str] = []

    def __call__(self, value: object, take: Callable[[Any], Taken], name: str) -> Taken | None:
        if value is None:
            return None
        try:
            return take(value)
        except (InputError, ReplayError):
            if self._decided:
                raise
            self.marks.append(f"unusable {name}")
            return None


def _scores(decision: Decision | None) -> tuple[Array, ...]:
    if decision is None:
        return ()
    if not isinstance(decision, Decision):
        raise InputError(
            "this is no decision", expected="what Ensemble.score gave, or None", found=type(decision).__name__
        )
    return tuple(np.array(each) for each in (decision.scores, decision.member_scores))


def _facts(seen: Seen, stamp_ns: int, decision: Decision | None, scores: tuple[Array, ...]) -> dict[str, Any]:
    """Stamps and result as fields of a record, which gets the numbers of other records later."""
    return {
        "stamp_ns": whole_ns(stamp_ns, "stamp_ns of a decision"),
        **{name: _maybe_ns(getattr(seen, name), name) for name in ("frame_ns", "frame_age_ns", "sensor_age_ns")},
        **dict.fromkeys(("frame", "instruction", "candidates")),
        "best": None if decision is None else decision.best,
        "best_instruction": None if decision is None else decision.instruction,
        "scores": scores[0].shape if scores else (),
        "members": next(iter(scores[1].shape), 0) if scores else 0,
    }


def _instruction(instruction: str | Sequence[str]) -> bytes:
    """The payload of its record."""
    single = isinstance(instruction, str)
    texts = as_list([instruction] if isinstance(instruction, str) else instruction)
    return packed(Instruction(tuple(texts), single))


def _window(window: SensorWindow) -> tuple[SensorWindow, WindowSource]:
    """A window whose samples nobody writes to, and what is recorded of it beside where they are."""
    if not isinstance(window, SensorWindow) or (problems := window_problems(window)):
        found = problems if isinstance(window, SensorWindow) else type(window).__name__
        raise SensorError("this is no sensor window", expected="float32 (samples, channels)", found=found)
    source = WindowSource(
        rows=len(window.samples),
        row=None,
        record=0,  # until it is known
        first_ns=None,
        last_ns=None,
        end_ns=None if window.end_ns is None else int(window.end_ns),
        rate_hz=float(window.rate_hz),
        missing=int(window.missing),
    )
    samples = unchanging(window.samples)
    return window if samples is window.samples else replace(window, samples=samples), source


def _maybe_ns(value: int | None, what: str) -> int | None:
    return None if value is None else whole_ns(value, what)
