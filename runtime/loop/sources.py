"""What the loop is connected to: an ensemble, a camera, a sensor, and whoever has candidates.

All stamps are in the time of the loop's clock (for the real one ``time.monotonic_ns``). A stamp says when light fell on
the image, or when the last sample was taken, not when it arrived: ages are counted from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from trunkline.runtime.ensemble import Camera, Decision, Histories
from trunkline.runtime.sensor.window import SensorWindow


class Frame(NamedTuple):
    """An image, and when it was captured."""

    image: Camera
    captured_ns: int


@dataclass(frozen=True)
class Question:
    """What is to be scored: candidates (see :meth:`Ensemble.score`) under an instruction."""

    instruction: str | Sequence[str]
    histories: Histories


class FrameSource(Protocol):
    """A camera. The loop calls it from one thread, its vision thread."""

    def read(self) -> Frame | None:
        """The newest frame, or None if there is none that was not read before.

        It may block, since only vision waits for it. The image must stay as it is until the next call.
        """


class SensorSource(Protocol):
    """A fast sensor. The loop calls it from one thread, its sensor thread."""

    def latest(self) -> SensorWindow | None:
        """The newest window, or None as long as there is none; ``end_ns`` says when its last sample was taken.

        The samples must stay as they are until the next call.
        """


class QuestionSource(Protocol):
    """Whoever proposes actions. The loop calls it on the thread of :meth:`Loop.run`, once for each scoring tick."""

    def ask(self) -> Question | None:
        """What is to be scored now, or None for nothing. It must not block."""


class Scorer(Protocol):
    """What the loop needs of an ensemble; :class:`~trunkline.runtime.Ensemble` has it. Called from three threads."""

    def encode_frame(self, image: Camera, /) -> Any:
        """Runs vision; the result stands for the image in :meth:`score`."""

    def encode_sensor(self, window: SensorWindow, /) -> Any:
        """Runs the sensor encoder; the result stands for the window in :meth:`score`."""

    def score(self, image: Any, instruction: str | Sequence[str], histories: Histories, /, *, sensor: Any) -> Decision:
        """Scores candidates on features of a frame, and of a window or None."""


@dataclass(frozen=True)
class Sources:
    """What feeds a loop. ``sensor`` is None for an ensemble that has no sensor."""

    camera: FrameSource
    questions: QuestionSource
    sensor: SensorSource | None = None
