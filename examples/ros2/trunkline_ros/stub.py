"""A ROS that is not there: messages with the fields of the real ones, and a world that sends them.

Images are noise at 10 Hz, candidates random at 5 Hz, numbered in their label; the instruction is said once. It shows
that bundle, node and loop work on a machine. It says nothing about a camera, a network or ROS itself.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trunkline_ros.judge import Judge

IMAGE_PERIOD_NS, CANDIDATES_EVERY = 100_000_000, 2
HEIGHT, WIDTH, CANDIDATES = 240, 320, 20


@dataclass
class Time:
    sec: int = 0
    nanosec: int = 0


@dataclass
class Header:
    stamp: Time = field(default_factory=Time)
    frame_id: str = ""


@dataclass
class Image:
    header: Header = field(default_factory=Header)
    height: int = 0
    width: int = 0
    encoding: str = ""
    is_bigendian: int = 0
    step: int = 0
    data: Any = b""


@dataclass
class MultiArrayDimension:
    label: str = ""
    size: int = 0
    stride: int = 0


@dataclass
class MultiArrayLayout:
    dim: list[MultiArrayDimension] = field(default_factory=list)
    data_offset: int = 0


@dataclass
class Float32MultiArray:
    layout: MultiArrayLayout = field(default_factory=MultiArrayLayout)
    data: Any = ()


@dataclass
class Int32:
    data: int = 0


@dataclass
class String:
    data: str = ""


def time_of(nanoseconds: int) -> Time:
    return Time(*divmod(nanoseconds, 1_000_000_000))


def image_message(pixels: np.ndarray, stamp_ns: int, encoding: str = "rgb8", spare: int = 0) -> Image:
    """Pixels (height, width, 3) uint8 in the order of ``encoding``; ``spare`` bytes at the end of each row."""
    height, width, channels = pixels.shape
    step = width * channels + spare
    rows = np.zeros((height, step), np.uint8)
    rows[:, : width * channels] = pixels.reshape(height, -1)
    return Image(Header(time_of(stamp_ns), "camera"), height, width, encoding, 0, step, rows.tobytes())


def candidates_message(candidates: np.ndarray, label: str) -> Float32MultiArray:
    """Candidates (N, H, A)."""
    count, steps, width = candidates.shape
    dim = [
        MultiArrayDimension(label, count, count * steps * width),
        MultiArrayDimension("step", steps, steps * width),
        MultiArrayDimension("number", width, width),
    ]
    return Float32MultiArray(MultiArrayLayout(dim), candidates.astype(np.float32).reshape(-1).tolist())


class World:
    """Sends messages to a judge on a thread of its own while it is entered."""

    def __init__(self, judge: Judge, history_length: int, action_dim: int, instruction: str) -> None:
        self._judge, self._shape, self._instruction = judge, (CANDIDATES, history_length, action_dim), instruction
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._send, daemon=True)

    def _send(self) -> None:
        random, number, due_ns = np.random.default_rng(0), 0, time.monotonic_ns()
        self._judge.on_instruction(String(self._instruction))
        while not self._ended.wait(max(0, due_ns - time.monotonic_ns()) / 1e9):
            pixels = random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            self._judge.on_image(image_message(pixels, time.time_ns()))
            if number % CANDIDATES_EVERY == 0:
                self._judge.on_candidates(candidates_message(random.normal(0, 1, self._shape), str(number)))
            number, due_ns = number + 1, due_ns + IMAGE_PERIOD_NS

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
