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

Two sources come with Trunkline, see ``open_samples`` in the module ``sources``. No picture is decoded, and no window of
a sensor read, before somebody looks at it, and none is kept.
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
from trunkline.runtime.manifest import ActionsEntry
from trunkline.runtime.sensor.window import SensorWindow

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


class SensorExcerpt:
    """A window of a sensor's recording that can be opened any number of times, and is not kept.

    Immutable but for the digest that is remembered: any number of threads may use one.

    Attributes:
        name: unique within its source, such as a file and a row.
    """

    def __init__(self, name: str, source: Callable[[], SensorWindow]) -> None:
        """``source`` gives the window, or raises SensorError or DatasetError."""
        self.name = name
        self._source = source

    def open(self) -> SensorWindow:
        """The window.

        Raises:
            SensorError: it is not one that can be judged.
            DatasetError: it cannot be read.
        """
        return self._source()

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the samples, their shape and their rate; the window is opened the first time.

        Raises:
            SensorError: as :meth:`open`.
            DatasetError: as :meth:`open`.
        """
        window = self.open()
        digest = hashlib.sha256(f"{window.samples.shape} {float(window.rate_hz)!r} ".encode())
        digest.update(np.ascontiguousarray(window.samples, np.float32).data)
        return digest.hexdigest()


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
        sensor: what its fast sensor felt up to this moment, None where there is none.
    """

    id: str
    instruction: str
    picture: Picture
    histories: Floats | None = None
    truth: int | None = None
    episode: int | str | None = None
    sensor: SensorExcerpt | None = None

    def open(self) -> Camera:
        """The frame.

        Raises:
            ImageError: it cannot be read.
        """
        return self.picture.open()

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the picture's pixels, the instruction and the sensor's window if there is one.

        The picture is decoded, and the window opened, the first time.

        Raises:
            ImageError: the picture cannot be read or judged.
            SensorError: the window is not one that can be judged.
            DatasetError: the window cannot be read.
        """
        words = self.instruction.encode("utf-8", "surrogatepass")
        seen = hashlib.sha256(bytes.fromhex(self.picture.facts.digest) + words)
        if self.sensor is None:
            return seen.hexdigest()
        return hashlib.sha256(seen.digest() + bytes.fromhex(self.sensor.digest)).hexdigest()


def window_of(sample: CalibrationSample) -> SensorWindow | None:
    """What the sample's sensor felt, None for a sample without one.

    Raises:
        SensorError: it is not one that can be judged.
        DatasetError: it cannot be read.
    """
    return None if sample.sensor is None else sample.sensor.open()


@dataclass(frozen=True)
class WindowForm:
    """What the windows of a source look like.

    Attributes:
        history_length: H, steps per window.
        action_dim: A, numbers per step.
        padding_value: what padded steps are filled with, None where nobody knows.
        sensor: rows and channels of the sensor's windows, and the rate of their stream in Hz; None without a sensor,
            and where every window has a length of its own.
    """

    history_length: int
    action_dim: int
    padding_value: float | None
    sensor: tuple[int, int, float] | None = None

    @classmethod
    def of(cls, actions: ActionsEntry) -> WindowForm:
        """What a bundle says of its windows of actions."""
        return cls(actions.history_length, actions.action_dim, actions.padding_value)


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
