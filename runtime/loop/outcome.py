"""What comes out of a scoring tick: a decision, or a refusal that no one can take for one.

Every tick that runs gives exactly one :data:`Outcome`. A :class:`Refused` has no scores and no winner; a program that
reads ``outcome.decision`` without looking fails at once, in the type checker and at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trunkline.runtime.ensemble import Decision
from trunkline.runtime.loop.sources import Frame, Question
from trunkline.runtime.sensor.window import SensorWindow

Reason = Literal["no frame", "frame too old", "no sensor", "sensor too old", "no question", "error"]

REASONS: tuple[Reason, ...] = ("no frame", "frame too old", "no sensor", "sensor too old", "no question", "error")


@dataclass(frozen=True)
class Moment:
    """When a scoring tick ran, and on what.

    Times are the loop's clock in nanoseconds.

    Attributes:
        tick: its number on the grid, from 0; numbers that are left out were missed.
        due_ns: when it was due.
        started_ns: when scoring began.
        finished_ns: when the outcome was there.
        deadline_ns: after this it is late.
        frame_age_ns: from the capture of the frame to ``finished_ns``; None if no frame was ever encoded.
        sensor_age_ns: from the last sample of the window to ``finished_ns``; None without a sensor or a window.
        frame_pending: a newer frame had arrived, but its features were not finished when scoring began.
        sensor_pending: the same for a newer window.
    """

    tick: int
    due_ns: int
    started_ns: int
    finished_ns: int
    deadline_ns: int
    frame_age_ns: int | None
    sensor_age_ns: int | None
    frame_pending: bool
    sensor_pending: bool

    @property
    def late(self) -> bool:
        """It came after its deadline."""
        return self.finished_ns > self.deadline_ns

    @property
    def marks(self) -> tuple[str, ...]:
        """What is to be known of it, in words: "late", "frame pending", "sensor pending"."""
        marked = {"late": self.late, "frame pending": self.frame_pending, "sensor pending": self.sensor_pending}
        return tuple(words for words, holds in marked.items() if holds)


@dataclass(frozen=True)
class Decided(Moment):
    """A decision, none of whose features was older than its bound when it was handed over."""

    decision: Decision


@dataclass(frozen=True)
class Refused(Moment):
    """No decision, with every reason. ``error`` is what scoring raised, if that was the reason."""

    reasons: tuple[Reason, ...]
    error: Exception | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """The reasons, and what else is to be known."""
        return (*self.reasons, *super().marks)


Outcome = Decided | Refused


@dataclass(frozen=True)
class Record:
    """All that a scoring tick saw and gave, for whoever records or draws.

    ``frame`` and ``window`` are copies that nobody writes to, the same object for as long as the same features are
    used. Those of a refusal are what it would have been decided on.
    """

    outcome: Outcome
    frame: Frame | None
    window: SensorWindow | None
    question: Question | None
