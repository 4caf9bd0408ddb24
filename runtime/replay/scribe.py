"""From what a control loop saw and decided to records, none of them written twice without need.

A decision's record names the records of its frame, instruction, candidates and window by number. They lie in the
decision's own segment, so that whoever drops older segments takes no decision's input away; only the rows of a sensor
window may lie in the segment before. What is in this segment already is named again instead of being written again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import ReplayError
from trunkline.runtime.replay.frames import Pixels, encoded
from trunkline.runtime.replay.framing import FRAME_BYTES, segment_of
from trunkline.runtime.replay.payloads import (
    Array,
    Candidates,
    Decided,
    Dropped,
    Encoding,
    Frame,
    Header,
    Instruction,
    Meta,
    Note,
    PayloadError,
    SensorBlock,
    WindowRows,
    WindowSource,
    pack,
)
from trunkline.runtime.replay.row_tail import RowTail
from trunkline.runtime.replay.writer import LogWriter
from trunkline.runtime.sensor.window import SensorWindow

Floats = NDArray[np.float32]
Stamps = NDArray[np.int64]

#: How many windows the rows of the stream are kept for: one may be cut a while before it is handed over.
_WINDOWS_KEPT = 2
#: A decision's record without its scores takes less.
_DECISION_BYTES = 2048


@dataclass(frozen=True, eq=False)
class Scene:
    """What a decision was made from, checked, and never written to any more.

    Attributes:
        image: None without a frame.
        instruction: payload of its record, None without one.
        candidates: (N, H, A) float32, None without any.
        window: of the sensor, None without one.
    """

    image: Pixels | None
    instruction: bytes | None
    candidates: Floats | None
    window: SensorWindow | None


@dataclass
class _Part:
    """A payload, and the number of the record in which it was written last."""

    kind: int
    payload: bytes
    number: int | None = None


@dataclass(frozen=True, eq=False)
class _Window:
    """A window that was looked up: ``place`` is of its rows among recorded blocks, ``part`` what was written otherwise.

    ``place`` is the number of the first row, and the stamps of the first and the last.
    """

    window: SensorWindow
    place: tuple[int, int, int] | None
    part: _Part | None

    def source(self, facts: WindowSource) -> WindowSource:
        """Where the rows are, beside what is known of the window."""
        row, first_ns, last_ns = self.place or (None, None, None)
        return replace(facts, row=row, record=_number(self.part), first_ns=first_ns, last_ns=last_ns)


class Scribe:
    """Writes scenes and decisions to a log. Threads: for one at a time."""

    def __init__(self, writer: LogWriter, header: Header, frames: Encoding) -> None:
        self._writer = writer
        self._header = header
        self._encoding = frames
        form = header.sensor
        self._tail = RowTail(_WINDOWS_KEPT * form.samples, form.channels) if form else None
        self._image: Pixels | None = None
        self._window: _Window | None = None
        self._parts: dict[int, _Part] = {}

    def frame(self, image: Pixels, stamp_ns: int) -> None:
        """A frame, whether or not anything is decided on it."""
        self._place([self._frame(image, stamp_ns)], 0)

    def sensor(self, row: int, stamps: Stamps, samples: Floats) -> None:
        """Samples (n, C) of the stream; ``row`` is the number of the first."""
        meta = SensorBlock(row, *samples.shape)
        self._writer.append(meta.kind, packed(meta, stamps, samples))
        if self._tail is not None:
            self._tail.append(row, stamps, samples)

    def note(self, payload: bytes) -> None:
        """Free text, packed."""
        self._writer.append(Note.kind, payload)

    def dropped(self, counts: dict[str, int]) -> None:
        """What could not be written."""
        self._writer.append(Dropped.kind, packed(Dropped(counts)))

    def decision(self, scene: Scene, meta: Decided, scores: tuple[Array, ...]) -> None:
        """A decision, or that there was none, with all that it was made from; ``meta`` lacks the records' numbers."""
        frame = None if scene.image is None else self._frame(scene.image, meta.frame_ns)
        instruction = None if scene.instruction is None else self._part(Instruction.kind, scene.instruction)
        candidates = None if scene.candidates is None else self._candidates(scene.candidates)
        window = None if scene.window is None else self._found(scene.window)
        parts = [frame, instruction, candidates, None if window is None else window.part]
        self._place([part for part in parts if part], _DECISION_BYTES + sum(each.nbytes for each in scores))
        meta = replace(
            meta,
            frame=_number(frame),
            instruction=_number(instruction),
            candidates=_number(candidates),
            window=window.source(meta.window) if window and meta.window else None,
        )
        self._writer.append(meta.kind, packed(meta, *scores), grouped=True)

    def _frame(self, image: Pixels, stamp_ns: int | None) -> _Part:
        known = self._parts.get(Frame.kind)
        if known is None or self._image is None or not image.same(self._image):
            data, palette = encoded(image, self._encoding), np.frombuffer(image.palette, np.uint8)
            meta = Frame(stamp_ns, image.height, image.width, self._encoding, len(data), image.mode, len(palette))
            payload = packed(meta, data, palette) if len(palette) else packed(meta, data)
            known = self._parts[Frame.kind] = _Part(Frame.kind, payload)
        self._image = image
        return known

    def _candidates(self, candidates: Floats) -> _Part:
        count, steps, numbers = candidates.shape
        return self._part(Candidates.kind, packed(Candidates(count, steps, numbers), candidates))

    def _part(self, kind: int, payload: bytes) -> _Part:
        known = self._parts.get(kind)
        if known is None or known.payload != payload:
            known = self._parts[kind] = _Part(kind, payload)
        return known

    def _found(self, window: SensorWindow) -> _Window:
        """Where the window's rows are; if they are not, bit for bit, among the recorded ones, they are written."""
        if self._window is None or self._window.window is not window:
            place, part = None if self._tail is None else self._tail.find(window.samples), None
            if place is None:
                part = self._part(WindowRows.kind, packed(WindowRows(*window.samples.shape), window.samples))
            self._window = _Window(window, place, part)
        return self._window

    def _place(self, parts: list[_Part], further: int) -> None:
        """Writes those parts that are not in this segment, in one with so many further bytes if it has room."""
        absent = [part for part in parts if not self._here(part)]
        self._writer.begin(sum(len(part.payload) + FRAME_BYTES for part in absent) + further)
        for part in parts:
            if not self._here(part):
                part.number = self._writer.append(part.kind, part.payload, grouped=True)

    def _here(self, part: _Part) -> bool:
        return part.number is not None and segment_of(part.number) == self._writer.segment


def packed(meta: Meta, *arrays: Array) -> bytes:
    """A payload.

    Raises:
        ReplayError: it would not be read again as it is.
    """
    try:
        return pack(meta, *arrays)
    except PayloadError as error:
        raise ReplayError(
            "this cannot be recorded", where=type(meta).__name__, found=str(error), fix="record what it says it is"
        ) from error


def _number(part: _Part | None) -> int | None:
    return None if part is None else part.number
