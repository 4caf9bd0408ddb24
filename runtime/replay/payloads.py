"""What a record holds: a small JSON text that says what it is, then plain arrays.

A payload is the length of the text (4 bytes, little-endian), the text, and the arrays one behind the other without
gaps, little-endian, in C order. Which arrays there are and how large follows from the text alone, see the ``arrays`` of
each class. A payload of another length is refused, and so is whatever :mod:`trunkline.runtime.record` refuses.
Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime import record
from trunkline.runtime.image import MAX_PIXELS
from trunkline.runtime.manifest import ActionsEntry
from trunkline.runtime.sensor.form import MAX_CHANNELS, MAX_SAMPLES, SensorForm

Array = NDArray[np.generic]
#: Type and shape of an array.
Layout = tuple[str, tuple[int, ...]]
Encoding = Literal["png", "raw"]
Mode = Literal["RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr"]

MAX_TEXT_CHARS = 1 << 16
MAX_TEXTS = 256
_LENGTH = struct.Struct("<I")
_INT64 = range(-(1 << 63), 1 << 63)
_UINT64 = range(1 << 64)
_UINT32 = range(1 << 32)
#: Bits of a pixel. Rows begin with a byte.
_BITS: dict[Mode, int] = {"RGB": 24, "L": 8, "LA": 16, "RGBA": 32, "P": 8, "1": 1, "CMYK": 32, "YCbCr": 24}
_COLOURS = range(3, 3 * 256 + 1, 3)


class PayloadError(Exception):
    """A payload is not one; its argument says why."""


@dataclass(frozen=True)
class Header:
    """What every segment begins with.

    Attributes:
        bundle: SHA-256 of the manifest of the bundle that decides.
        actions: its windows; recorded candidates have their full length.
        sensor: the stream of the recorded sensor, None without one.
        opened_ns: when the log was opened, nanoseconds since 1970.
    """

    kind: ClassVar[int] = 1
    bundle: str
    actions: ActionsEntry
    sensor: SensorForm | None = None
    opened_ns: int = 0

    def arrays(self) -> list[Layout]:
        return []

    def problems(self) -> Iterator[str]:
        yield from self.sensor.problems() if self.sensor else ()
        yield from _out_of(_INT64, opened_ns=self.opened_ns)


@dataclass(frozen=True)
class Frame:
    """A camera frame.

    Attributes:
        stamp_ns: when it was captured, None where nobody knows.
        height: in pixels.
        width: in pixels.
        encoding: what the first array is: "raw" pixels as PIL packs them, or a "png" file of them.
        bytes: of that array.
        mode: of PIL, in which the image was handed over.
        palette: bytes of the second array, RGB of the colours; 0 and no array for modes without a palette.
    """

    kind: ClassVar[int] = 2
    stamp_ns: int | None
    height: int
    width: int
    encoding: Encoding
    bytes: int
    mode: Mode = "RGB"
    palette: int = 0

    def arrays(self) -> list[Layout]:
        colours: list[Layout] = [("<u1", (self.palette,))] if self.palette else []
        return [("<u1", (self.bytes,)), *colours]

    def problems(self) -> Iterator[str]:
        yield from _out_of(_INT64, stamp_ns=self.stamp_ns)
        yield from _out_of(range(1, MAX_PIXELS + 1), height=self.height, width=self.width)
        row = (self.width * _BITS[self.mode] + 7) // 8
        if self.encoding == "raw" and self.bytes != self.height * row:
            yield f"{self.bytes} bytes for {self.height} x {self.width} pixels of mode {self.mode}"
        if self.palette not in _COLOURS if self.mode == "P" else self.palette:
            yield f"a palette of {self.palette} bytes for mode {self.mode}"


@dataclass(frozen=True)
class SensorBlock:
    """Consecutive samples: stamps (rows,) int64 in nanoseconds, and samples (rows, channels) float32.

    ``row`` is the number of the first one. Rows are counted from 0 in each session, those included that were never
    written, so that a missing block is a hole in the numbers.
    """

    kind: ClassVar[int] = 3
    row: int
    rows: int
    channels: int

    def arrays(self) -> list[Layout]:
        return [("<i8", (self.rows,)), ("<f4", (self.rows, self.channels))]

    def problems(self) -> Iterator[str]:
        yield from _out_of(_INT64, row=self.row)
        yield from _out_of(range(1, _UINT32.stop), rows=self.rows)
        yield from _out_of(range(1, MAX_CHANNELS + 1), channels=self.channels)


@dataclass(frozen=True)
class Instruction:
    """What the robot was told. ``single``: one instruction; otherwise rephrasings, each with scores of its own."""

    kind: ClassVar[int] = 4
    texts: tuple[str, ...]
    single: bool

    def arrays(self) -> list[Layout]:
        return []

    def problems(self) -> Iterator[str]:
        if not 0 < len(self.texts) <= MAX_TEXTS or (self.single and len(self.texts) != 1):
            yield f"{len(self.texts)} instructions"
        if any(len(text) > MAX_TEXT_CHARS for text in self.texts):
            yield f"an instruction of more than {MAX_TEXT_CHARS} characters"


@dataclass(frozen=True)
class Candidates:
    """Candidate windows (count, steps, numbers) float32, padded to their full length."""

    kind: ClassVar[int] = 5
    count: int
    steps: int
    numbers: int

    def arrays(self) -> list[Layout]:
        return [("<f4", (self.count, self.steps, self.numbers))]

    def problems(self) -> Iterator[str]:
        yield from _out_of(range(1, _UINT32.stop), count=self.count, steps=self.steps, numbers=self.numbers)


@dataclass(frozen=True)
class WindowRows:
    """The samples (rows, channels) float32 of a sensor window that is not made of recorded blocks."""

    kind: ClassVar[int] = 6
    rows: int
    channels: int

    def arrays(self) -> list[Layout]:
        return [("<f4", (self.rows, self.channels))]

    def problems(self) -> Iterator[str]:
        yield from _out_of(range(1, MAX_SAMPLES + 1), rows=self.rows)
        yield from _out_of(range(1, MAX_CHANNELS + 1), channels=self.channels)


@dataclass(frozen=True)
class WindowSource:
    """Where the samples of a decision's sensor window are.

    Attributes:
        rows: how many there are.
        row: number of the first one among the blocks of the session, None if the window was recorded by itself.
        record: number of its :class:`WindowRows`, None if it is made of blocks.
        first_ns: stamp of the first sample, None where nobody knows.
        last_ns: stamp of the last sample, None where nobody knows.
        end_ns: what the window said about its end, None if it did not.
        rate_hz: of the stream.
        missing: samples that gaps swallowed inside it.
    """

    rows: int
    row: int | None
    record: int | None
    first_ns: int | None
    last_ns: int | None
    end_ns: int | None
    rate_hz: float
    missing: int

    def problems(self) -> Iterator[str]:
        yield from _out_of(range(1, MAX_SAMPLES + 1), rows=self.rows)
        yield from _out_of(_INT64, row=self.row, missing=self.missing)
        yield from _out_of(_INT64, first_ns=self.first_ns, last_ns=self.last_ns, end_ns=self.end_ns)
        yield from _out_of(_UINT64, record=self.record)
        if (self.row is None) == (self.record is None):
            yield "a window that is neither of blocks nor by itself"
        if not self.rate_hz > 0:
            yield f"a stream of {self.rate_hz} Hz"


@dataclass(frozen=True)
class Decided:
    """A decision or, without scores, that there was none; scores and member scores are float32.

    Attributes:
        stamp_ns: when it was taken, on the clock of whoever took it.
        bundle: SHA-256 of the manifest of the bundle that decided.
        frame: number of the frame's record, None without a frame.
        frame_ns: when that frame was captured.
        instruction: number of the instruction's record, None without one.
        candidates: number of the candidates' record, None without any.
        window: the sensor window, None without one.
        frame_age_ns: how old the frame was, None where nobody knows.
        sensor_age_ns: how old the last sample was, None where nobody knows.
        marks: words about it, such as "late".
        best: the winner, None if there are no scores.
        best_instruction: under which instruction it won.
        scores: shape of the scores, (N,), (I, N) for rephrasings, or () for none.
        members: K, how many members scored.
    """

    kind: ClassVar[int] = 7
    stamp_ns: int
    bundle: str
    frame: int | None
    frame_ns: int | None
    instruction: int | None
    candidates: int | None
    window: WindowSource | None
    frame_age_ns: int | None
    sensor_age_ns: int | None
    marks: tuple[str, ...]
    best: int | None
    best_instruction: int | None
    scores: tuple[int, ...]
    members: int

    def arrays(self) -> list[Layout]:
        return [("<f4", self.scores), ("<f4", (self.members, *self.scores))] if self.scores else []

    def problems(self) -> Iterator[str]:
        yield from _out_of(_INT64, stamp_ns=self.stamp_ns, frame_ns=self.frame_ns)
        yield from _out_of(_INT64, frame_age_ns=self.frame_age_ns, sensor_age_ns=self.sensor_age_ns)
        yield from _out_of(_UINT64, frame=self.frame, instruction=self.instruction, candidates=self.candidates)
        yield from self.window.problems() if self.window else ()
        yield from self._score_problems()

    def _score_problems(self) -> Iterator[str]:
        if not self.scores:
            if self.best is not None or self.best_instruction is not None or self.members:
                yield "a winner without scores"
            return
        if len(self.scores) > 2 or min(self.scores) < 1 or self.members < 1:
            yield f"scores of shape {self.scores} by {self.members} members"
            return
        instructions = self.scores[0] if len(self.scores) == 2 else 1
        if self.best not in range(self.scores[-1]) or self.best_instruction not in range(instructions):
            yield f"winner {self.best} under instruction {self.best_instruction} of scores {self.scores}"


@dataclass(frozen=True)
class Note:
    """Free text."""

    kind: ClassVar[int] = 8
    text: str

    def arrays(self) -> list[Layout]:
        return []

    def problems(self) -> Iterator[str]:
        if len(self.text) > MAX_TEXT_CHARS:
            yield f"a note of more than {MAX_TEXT_CHARS} characters"


@dataclass(frozen=True)
class Dropped:
    """What was not written since the last such record, by what it was, whatever the reason."""

    kind: ClassVar[int] = 9
    counts: dict[str, int] = field(default_factory=dict)

    def arrays(self) -> list[Layout]:
        return []

    def problems(self) -> Iterator[str]:
        yield from _out_of(_INT64, **self.counts)


Meta = Header | Frame | SensorBlock | Instruction | Candidates | WindowRows | Decided | Note | Dropped
KINDS: dict[int, type[Meta]] = {
    each.kind: each
    for each in (Header, Frame, SensorBlock, Instruction, Candidates, WindowRows, Decided, Note, Dropped)
}


def _out_of(allowed: range, **values: int | None) -> Iterator[str]:
    for name, value in values.items():
        if value is not None and value not in allowed:
            yield f"{name} is {record.shown(value)}"


def pack(meta: Meta, *arrays: Array) -> bytes:
    """A payload.

    Raises:
        PayloadError: it would not be read again as it is: a number out of range, half a character, another array.
    """
    try:
        text = record.encode(meta, compact=True)
        same = record.decode(text, type(meta)) == meta
    except (TypeError, ValueError, record.RecordError) as error:
        raise PayloadError(f"its text cannot be written: {error}") from error
    problems = list(meta.problems()) if same else ["its text would be read as something else"]
    found = [(each.dtype.str.replace("|", "<"), each.shape) for each in arrays]
    if not problems and found != meta.arrays():
        problems.append(f"arrays {found} instead of {meta.arrays()}")
    if problems:
        raise PayloadError(", ".join(problems))
    return b"".join((_LENGTH.pack(len(text)), text, *(array.tobytes() for array in arrays)))


def unpack(kind: int, payload: bytes) -> tuple[Meta, tuple[Array, ...]]:
    """What a payload holds; the arrays are read-only.

    Raises:
        PayloadError: it is malformed.
    """
    if kind not in KINDS:
        raise PayloadError(f"records of kind {kind} do not exist")
    if len(payload) < _LENGTH.size:
        raise PayloadError("no text")
    begin = _LENGTH.size + _LENGTH.unpack_from(payload)[0]
    try:
        meta = record.decode(payload[_LENGTH.size : begin], KINDS[kind])
    except record.RecordError as error:
        raise PayloadError(str(error)) from error
    if problems := list(meta.problems()):
        raise PayloadError(", ".join(problems))
    return meta, _cut(payload, begin, meta.arrays())


def _cut(payload: bytes, begin: int, layouts: Sequence[Layout]) -> tuple[Array, ...]:
    sizes = [int(dtype[2:]) * math.prod(shape) for dtype, shape in layouts]
    if begin + sum(sizes) != len(payload):
        raise PayloadError(f"{len(payload) - begin} bytes of numbers instead of {sum(sizes)}")
    arrays = []
    for (dtype, shape), size in zip(layouts, sizes, strict=True):
        # A copy: what stands behind a text of any length is not aligned.
        array = np.frombuffer(bytearray(payload[begin : begin + size]), dtype).reshape(shape)
        array.setflags(write=False)
        arrays.append(array)
        begin += size
    return tuple(arrays)
