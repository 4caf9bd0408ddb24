"""ROS messages to what an ensemble is asked with, and decisions back. Any object with the messages' fields will do.

A message that is not exactly what it should be is refused: nothing is guessed, cut, converted or filled up. Errors are
those of the runtime, so that they can be counted and shown by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.ensemble import Decision
from trunkline.runtime.errors import CandidateError, ImageError, InputError

ENCODINGS = ("rgb8", "bgr8")
CHANNELS = 3
#: Rows of the message that carries a decision.
ROWS = "score,disagreement"


def stamp_ns(stamp: Any) -> int:
    """A builtin_interfaces/Time in nanoseconds of ROS time.

    Raises:
        InputError: it is zero, which is what drivers send that do not stamp, or no time at all.
    """
    if stamp.sec < 0 or not 0 <= stamp.nanosec < 1_000_000_000 or stamp.sec == stamp.nanosec == 0:
        raise InputError(
            "an image has no stamp, so that nobody knows how old it is",
            where="header.stamp",
            expected="the time of the capture",
            found=f"{stamp.sec} s and {stamp.nanosec} ns",
            fix="let the camera's driver stamp its images",
        )
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def image_array(message: Any) -> NDArray[np.uint8]:
    """A sensor_msgs/Image as (height, width, 3) uint8 RGB, over the message's own memory.

    Rows may be longer than their pixels (``step``). ``is_bigendian`` may be anything: a channel is one byte.

    Raises:
        ImageError: another encoding than rgb8 and bgr8, or sizes that contradict each other.
    """
    if message.encoding not in ENCODINGS:
        raise ImageError(
            "an image of this encoding is not scored",
            where="encoding",
            expected=" or ".join(ENCODINGS),
            found=repr(message.encoding),
            fix="have the driver send one of them, or convert it, with image_proc for instance",
        )
    height, width, step = int(message.height), int(message.width), int(message.step)
    row = width * CHANNELS
    if height < 1 or width < 1 or step < row or len(message.data) != height * step:
        raise ImageError(
            "an image's sizes contradict each other",
            expected="step of at least 3 * width bytes, and height * step bytes",
            found=f"height {height}, width {width}, step {step}, {len(message.data)} bytes",
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(height, step)
    pixels = rows[:, :row].reshape(height, width, CHANNELS)
    return pixels if message.encoding == "rgb8" else pixels[:, :, ::-1]


def candidates_array(message: Any) -> tuple[NDArray[np.float32], str]:
    """A std_msgs/Float32MultiArray as (N, H, A) float32, and the label of its first dimension.

    The label is whatever the sender wants to see again with the decision, a number that counts up for instance.

    Raises:
        CandidateError: the layout does not describe a dense array of three dimensions, or not this data.
    """
    layout = message.layout
    sizes = tuple(int(each.size) for each in layout.dim)
    strides = [int(each.stride) for each in layout.dim]
    dense = [int(np.prod(sizes[place:])) for place in range(len(sizes))]
    found = f"sizes {sizes}, strides {strides}, offset {layout.data_offset}, {len(message.data)} numbers"
    right = len(sizes) == 3 and min(sizes) > 0 and strides == dense and layout.data_offset == 0
    if not right or len(message.data) != dense[0]:
        raise CandidateError(
            "a candidates message is not a dense array of three dimensions",
            where="layout",
            expected="dim: candidates N, steps H, numbers A with strides N*H*A, H*A, A; offset 0; N*H*A numbers",
            found=found,
        )
    return np.array(message.data, np.float32).reshape(sizes), str(layout.dim[0].label)


def fill_decision(message: Any, dimension: Any, decision: Decision, label: str) -> Any:
    """Puts a decision into a std_msgs/Float32MultiArray of two rows, scores and disagreement, and returns it.

    Args:
        message: an empty one.
        dimension: the type of its dimensions.
        decision: on a single instruction.
        label: of the candidates; it becomes that of the second dimension.
    """
    rows = np.stack([decision.scores, decision.disagreement]).astype(np.float32)
    count = rows.shape[1]
    message.layout.dim = [
        dimension(label=ROWS, size=2, stride=2 * count),
        dimension(label=label, size=count, stride=count),
    ]
    message.data = rows.reshape(-1).tolist()
    return message
