"""What a sensor encoder was trained on: the facts that its weights do not tell.

An encoder for windows of 650 samples and one for 65 have interchangeable weights, so nothing but these facts shows that
a window of the wrong time scale is being fed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Resample = Literal["linear", "nearest", "cubic"]
Padding = Literal["left", "right", "none"]

RESAMPLES: tuple[Resample, ...] = ("linear", "nearest", "cubic")
PADDINGS: tuple[Padding, ...] = ("left", "right", "none")

#: One second of the published stream; longer windows than this many samples are refused.
MAX_SAMPLES = 1 << 16
MAX_CHANNELS = 1 << 14
MAX_RATE_HZ = 1e6


@dataclass(frozen=True)
class SensorForm:
    """A stream, and how windows are cut from it.

    Attributes:
        channels: C, numbers per sample; the published stream has the force first, then 1,025 of an A-scan.
        rate_hz: samples per second of the stream.
        samples: rows of a window as it is cut from the stream. ``samples / rate_hz`` is its duration in seconds.
        steps: rows the encoder reads; a window of another length is resampled to it.
        resample: how.
        padding: on which side zeros fill a window that is too short; "none" refuses such a window.
        adaptive: windows keep whatever length they have, from 1 to ``samples`` rows, and are never padded.
    """

    channels: int = 1026
    rate_hz: float = 650.0
    samples: int = 650
    steps: int = 650
    resample: Resample = "linear"
    padding: Padding = "left"
    adaptive: bool = False

    @property
    def duration_s(self) -> float:
        """Seconds of the stream in one window."""
        return self.samples / self.rate_hz

    def in_words(self) -> str:
        """The stream and its windows, for people."""
        cut = f"{'up to ' if self.adaptive else ''}{self.samples} samples ({self.duration_s:g} s)"
        resampled = f", resampled ({self.resample}) to {self.steps} steps"
        read = resampled if self.samples != self.steps or self.adaptive else ""
        short = "refused" if self.padding == "none" else f"padded {self.padding}"
        return f"{self.channels} channels at {self.rate_hz:g} Hz, windows of {cut}{read}" + (
            "" if self.adaptive else f", short ones {short}"
        )

    def problems(self) -> Iterator[str]:
        """What cannot be, in words."""
        counts = {"channels": (self.channels, MAX_CHANNELS), "samples": (self.samples, MAX_SAMPLES)}
        counts["steps"] = (self.steps, MAX_SAMPLES)
        for name, (value, limit) in counts.items():
            if not 0 < value <= limit:
                yield f"sensor.{name} is {value}, not 1 to {limit}"
        if not 0 < self.rate_hz <= MAX_RATE_HZ:
            yield f"sensor.rate_hz is {self.rate_hz:g}, not above 0 and up to {MAX_RATE_HZ:g}"
