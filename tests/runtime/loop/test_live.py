"""A frozen camera: stamps go on, the picture does not."""

from __future__ import annotations

import numpy as np
from PIL import Image

from trunkline.runtime.loop import Frame, LiveFrames


class Scripted:
    """A camera that gives what it is told, a new stamp each time."""

    def __init__(self, *images: object) -> None:
        self._images, self._stamp = list(images), 0

    def read(self) -> Frame | None:
        image, self._stamp = self._images.pop(0), self._stamp + 1
        return None if image is None else Frame(image, self._stamp)  # type: ignore[arg-type]


def picture(value: int) -> np.ndarray:
    return np.full((4, 5, 3), value, np.uint8)


def stamps(camera: LiveFrames, count: int) -> list[int | None]:
    frames = [camera.read() for _ in range(count)]
    return [None if frame is None else frame.captured_ns for frame in frames]


def test_repetitions_are_no_frames() -> None:
    camera = LiveFrames(Scripted(picture(1), picture(1), picture(1), picture(2), None, picture(2), picture(1)))
    assert stamps(camera, 7) == [1, None, None, 4, None, None, 7]
    assert camera.frozen == 3


def test_one_number_is_another_picture() -> None:
    other = picture(1)
    other[3, 4, 2] += 1
    assert stamps(LiveFrames(Scripted(picture(1), other)), 2) == [1, 2]


def test_a_buffer_that_is_overwritten_in_place() -> None:
    buffer = picture(1)
    camera = LiveFrames(Scripted(buffer, buffer, buffer))
    assert stamps(camera, 1) == [1]
    buffer += 1
    assert stamps(camera, 2) == [2, None]


def test_pictures_of_another_size_or_kind() -> None:
    camera = LiveFrames(Scripted(picture(1), picture(1)[:2], Image.fromarray(picture(1)[:2])))
    assert stamps(camera, 3) == [1, 2, None]
