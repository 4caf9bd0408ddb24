"""Finding in a log what a decision was made from."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.ensemble import Camera
from trunkline.runtime.errors import ImageError
from trunkline.runtime.manifest import ActionsEntry
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.replay.frames import Pixels, decoded
from trunkline.runtime.replay.payloads import (
    Array,
    Candidates,
    Decided,
    Frame,
    Header,
    Instruction,
    Meta,
    SensorBlock,
    WindowRows,
    WindowSource,
)
from trunkline.runtime.replay.reader import Entry, ReplayLog
from trunkline.runtime.sensor.window import SensorWindow

Kind = TypeVar("Kind", bound=Meta)
Rows = NDArray[np.float32]

NO_SCORES = "it has no scores: there was no decision"
NOT_FINITE = "its scores are not finite"
NO_FRAME = "it was made without a frame"
FRAME_GONE = "its frame is no longer in the log, or damaged"
INSTRUCTION_GONE = "its instruction is no longer in the log, or damaged"
CANDIDATES_GONE = "its candidates are no longer in the log, or damaged"
OTHER_CANDIDATES = "its candidates are not as many as its scores"
WINDOW_GONE = "samples of its sensor window are no longer in the log, were dropped, or are damaged"


@dataclass(frozen=True)
class _Place:
    segment: int
    offset: int
    kind: int


@dataclass(frozen=True)
class _Block:
    row: int
    rows: int
    number: int


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a decision was made from.

    Attributes:
        pixels: of the frame; the same object for decisions on the same frame in a row.
        frame: number of the frame's record.
        instructions: one or more.
        single: one instruction was asked, not a list of one.
        candidates: (N, H, A) float32.
        window: of the sensor, None without one.
    """

    pixels: Pixels
    frame: int
    instructions: tuple[str, ...]
    single: bool
    candidates: NDArray[np.float32]
    window: SensorWindow | None

    @property
    def image(self) -> Camera:
        """As the ensemble was given it: (height, width, 3) uint8, read-only, or a PIL image."""
        return self.pixels.image

    @property
    def instruction(self) -> str | list[str]:
        """As the ensemble was asked."""
        return self.instructions[0] if self.single else list(self.instructions)


@dataclass(frozen=True, eq=False)
class RecordedDecision:
    """A decision in a log.

    Attributes:
        entry: its record.
        meta: what it says.
        header: what its segment says about the bundle, None if that is damaged.
    """

    entry: Entry
    meta: Decided
    header: Header | None

    @property
    def scores(self) -> Rows:
        """(N,) or (I, N) float32."""
        return cast(Rows, self.entry.arrays[0])


class LogIndex:
    """Where everything is. It holds places and not content, about 200 bytes a record.

    Threads: for one at a time. A log that is being written may lose its oldest records afterwards; what needs them is
    then reported as gone.

    Attributes:
        log: what it was made of.
        decisions: numbers of all decisions, oldest first.
    """

    def __init__(self, log: ReplayLog, progress: Progress = silent) -> None:
        """Reads the whole log once.

        Raises:
            ReplayError: as :meth:`ReplayLog.items`.
        """
        self.log = log
        self.decisions: list[int] = []
        self.headers: dict[int, Header] = {}
        self._places: dict[int, _Place] = {}
        self._blocks: defaultdict[int, list[_Block]] = defaultdict(list)
        for entry in log.entries(progress):
            self._add(entry)
        for session, blocks in self._blocks.items():
            self._blocks[session] = _apart(sorted(blocks, key=lambda block: block.row))
        self._held: dict[int, Entry] = {}
        self._frame: tuple[int, Pixels] | None = None

    def decision(self, number: int) -> RecordedDecision | None:
        """A decision, None if it is no longer there."""
        entry = self._entry(number, Decided.kind)
        if entry is None:
            return None
        return RecordedDecision(entry, cast(Decided, entry.meta), self.headers.get(entry.segment))

    def actions(self, decision: RecordedDecision) -> ActionsEntry | None:
        """The windows of the bundle that decided, None where no header that is left tells them."""
        if decision.header is not None:
            return decision.header.actions
        same = (header for header in self.headers.values() if header.bundle == decision.meta.bundle)
        return next((header.actions for header in same), None)

    def inputs(self, decision: RecordedDecision) -> Inputs | str:
        """What a decision was made from, or what of it is missing."""
        meta = decision.meta
        if problem := _score_problem(decision):
            return problem
        instruction = self._get(meta.instruction, Instruction)
        candidates = self._get(meta.candidates, Candidates)
        window = None if meta.window is None else self.window(meta.window, decision.entry.session)
        if meta.frame is None:
            return NO_FRAME
        if instruction is None:
            return INSTRUCTION_GONE
        if candidates is None:
            return CANDIDATES_GONE
        if not _fits(meta, instruction[0], candidates[0]):
            return OTHER_CANDIDATES
        if window is None and meta.window is not None:
            return WINDOW_GONE
        pixels = self._pixels(meta.frame)
        if pixels is None:
            return FRAME_GONE
        texts, single = instruction[0].texts, instruction[0].single
        return Inputs(pixels, meta.frame, texts, single, cast(Rows, candidates[1][0]), window)

    def window(self, source: WindowSource, session: int) -> SensorWindow | None:
        """The very rows of a sensor window, None if they are not all there."""
        if source.record is not None:
            found = self._get(source.record, WindowRows)
            samples = None if found is None or found[0].rows != source.rows else cast(Rows, found[1][0])
        else:
            samples = self._rows(source, session)
        if samples is None:
            return None
        return SensorWindow(samples, source.rate_hz, source.end_ns, source.missing)

    def _add(self, entry: Entry) -> None:
        meta = entry.meta
        self._places[entry.number] = _Place(entry.segment, entry.offset, meta.kind)
        if isinstance(meta, Header):
            self.headers[entry.segment] = meta
        elif isinstance(meta, Decided):
            self.decisions.append(entry.number)
        elif isinstance(meta, SensorBlock):
            self._blocks[entry.session].append(_Block(meta.row, meta.rows, entry.number))

    def _rows(self, source: WindowSource, session: int) -> Rows | None:
        """The rows of a window from the blocks that hold them, which must follow each other without a hole."""
        row = source.row or 0
        blocks = self._covering(self._blocks.get(session, []), row, row + source.rows)
        entries = [self._held.get(block.number) or self._entry(block.number, SensorBlock.kind) for block in blocks]
        found = [entry for entry in entries if entry is not None]
        if not blocks or len(found) < len(blocks) or len({entry.arrays[1].shape[1] for entry in found}) > 1:
            return None
        self._held = {entry.number: entry for entry in found}  # the next window overlaps this one
        cut = slice(row - blocks[0].row, row - blocks[0].row + source.rows)
        stamps = np.concatenate([entry.arrays[0] for entry in found])[cut]
        if (int(stamps[0]), int(stamps[-1])) != (source.first_ns, source.last_ns):
            return None
        return np.concatenate([cast(Rows, entry.arrays[1]) for entry in found])[cut]

    @staticmethod
    def _covering(blocks: list[_Block], begin: int, end: int) -> list[_Block]:
        """Blocks in a row that hold the rows from ``begin`` up to ``end``; none if some are missing."""
        place = bisect_right(blocks, begin, key=lambda block: block.row) - 1
        if place < 0 or blocks[place].row + blocks[place].rows <= begin:
            return []
        chosen = [blocks[place]]
        while (following := chosen[-1].row + chosen[-1].rows) < end:
            place += 1
            if place == len(blocks) or blocks[place].row != following:
                return []
            chosen.append(blocks[place])
        return chosen

    def _pixels(self, number: int) -> Pixels | None:
        """A frame; the one asked for last is kept."""
        if self._frame is None or self._frame[0] != number:
            found = self._get(number, Frame)
            if found is None:
                return None
            data, *colours = cast(tuple[NDArray[np.uint8], ...], found[1])
            try:
                palette = b"".join(each.tobytes() for each in colours)
                pixels = decoded(found[0], data, palette, f"{self.log.folder}, {number}")
            except ImageError:
                return None
            self._frame = number, pixels
        return self._frame[1]

    def _get(self, number: int | None, kind: type[Kind]) -> tuple[Kind, tuple[Array, ...]] | None:
        entry = None if number is None else self._entry(number, kind.kind)
        return None if entry is None else (cast(Kind, entry.meta), entry.arrays)

    def _entry(self, number: int, kind: int) -> Entry | None:
        """A record, None if there is no such one or it is of another kind."""
        place = self._places.get(number)
        if place is None or place.kind != kind:
            return None
        return self.log.read(place.segment, place.offset, number)


def _apart(blocks: list[_Block]) -> list[_Block]:
    """Blocks without those that claim a row that another one claims, too."""
    ends = [0, *(block.row + block.rows for block in blocks)]
    begins = [*(block.row for block in blocks[1:]), None]
    return [
        block
        for block, before, behind in zip(blocks, itertools.accumulate(ends, max), begins, strict=False)
        if before <= block.row and (behind is None or block.row + block.rows <= behind)
    ]


def _score_problem(decision: RecordedDecision) -> str | None:
    if not decision.meta.scores:
        return NO_SCORES
    return None if np.isfinite(decision.scores).all() else NOT_FINITE


def _fits(meta: Decided, instruction: Instruction, candidates: Candidates) -> bool:
    """Whether scores are those of these instructions and candidates."""
    rephrasings = () if instruction.single else (len(instruction.texts),)
    return meta.scores == (*rephrasings, candidates.count)
