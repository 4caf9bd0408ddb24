"""A camera whose driver repeats its last image for ever, with stamps that go on, seen for what it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.loop.sources import Frame, FrameSource


class LiveFrames:
    """A camera without its repetitions: an image that equals the one before it, number by number, is no new frame.

    What was seen then ages until its bound, and decisions are refused. A real image sensor never gives the same numbers
    twice; a rendered scene may, so this is not the default.

    Threads: one, the loop's vision thread. ``frozen`` may be read by any.

    Attributes:
        frozen: how many frames were repetitions.
    """

    def __init__(self, camera: FrameSource) -> None:
        self._camera = camera
        self._last: NDArray[np.uint8] | None = None
        self.frozen = 0

    def read(self) -> Frame | None:
        """The camera's newest frame, None also where it shows what the last one showed."""
        frame = self._camera.read()
        if frame is None:
            return None
        image = np.asarray(frame.image)
        if self._last is not None and np.array_equal(image, self._last):
            self.frozen += 1
            return None
        self._last = image.copy()  # the driver may write its next image into the same memory
        return frame
