"""Samples: what a robot sees, is told, and chooses among. What calibration and its judgement are fed with.

Anything that has a length and gives a :class:`CalibrationSample` for an index is a source of samples::

    class Recorded:
        name = "tuesday"
        windows = None

        def __len__(self) -> int:
            return len(self.frames)

        def __getitem__(self, index: int) -> CalibrationSample:
            frame = self.frames[index]  # (h, w, 3) uint8
            return CalibrationSample(f"frame {index}", "lift the lid", Picture(f"frame {index}", lambda: frame))

Two sources come with Trunkline, see ``open_samples`` in the module ``sources``. No picture is decoded before somebody
looks at it, and none is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.calibration.samples.frame_facts import FrameFacts, look_at

Floats = NDArray[np.float32]
Camera = NDArray[np.uint8] | Image.Image


class Picture:
    """A frame that can be opened any number of times. Samples that show the same frame share one.

    Immutable but for what is remembered about the frame: any number of threads may use one.

    Attributes:
        name: unique within its source, such as a path.
    """

    def __init__(self, name: str, source: Callable[[], Camera]) -> None:
        """``source`` gives the frame, or raises ImageError."""
        self.name = name
        self._source = source

    def open(self) -> Camera:
        """The frame, a PIL image or (h, w, 3) uint8 RGB.

        Raises:
            ImageError: it cannot be read.
        """
        return self._source()

    @cached_property
    def facts(self) -> FrameFacts:
        """What the frame shows; it is decoded the first time.

        Raises:
            ImageError: it cannot be read or judged.
        """
        return look_at(self.open())


@dataclass(frozen=True, eq=False)
class CalibrationSample:
    """One moment of a robot.

    Attributes:
        id: unique within its source.
        instruction: what the robot is told.
        picture: what it sees.
        histories: (N, H, A) float32 windows it would choose among, N >= 1; None where only pictures and instructions
            are known, which calibrates everything but the action encoder.
        truth: index of the right window, None where nobody knows.
        episode: the recording it belongs to, None where nobody knows. Frames of one episode look alike.
    """

    id: str
    instruction: str
    picture: Picture
    histories: Floats | None = None
    truth: int | None = None
    episode: int | str | None = None

    def open(self) -> Camera:
        """The frame.

        Raises:
            ImageError: it cannot be read.
        """
        return self.picture.open()

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the picture's pixels and the instruction; the picture is decoded the first time.

        Raises:
            ImageError: the picture cannot be read or judged.
        """
        words = self.instruction.encode("utf-8", "surrogatepass")
        return hashlib.sha256(bytes.fromhex(self.picture.facts.digest) + words).hexdigest()


@dataclass(frozen=True)
class WindowForm:
    """What the windows of a source look like.

    Attributes:
        history_length: H, steps per window.
        action_dim: A, numbers per step.
        padding_value: what padded steps are filled with, None where nobody knows.
    """

    history_length: int
    action_dim: int
    padding_value: float | None


class Samples(Protocol):
    """A source of samples. Indices run from 0; the same index always gives the same sample.

    Attributes:
        name: for messages and records.
        windows: what the samples' windows look like, None for a source without any.
    """

    @property
    def name(self) -> str: ...
    @property
    def windows(self) -> WindowForm | None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> CalibrationSample: ...
