"""Small sources of samples: folders of smooth pictures, sources in memory, and what a bundle asks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.datasets_kit import content, save
from trunkline.calibration.samples.bundle_needs import BundleNeeds
from trunkline.calibration.samples.sample import CalibrationSample, Picture, WindowForm
from trunkline.calibration.samples.synthetic import frame
from trunkline.runtime.errors import ImageError
from trunkline.runtime.manifest import ActionsEntry

ACTIONS = ActionsEntry(history_length=10, action_dim=7, padding_value=-5.0, encoder="transformer")
NEEDS = BundleNeeds(ACTIONS, lambda instruction: None)
Pixels = NDArray[np.uint8]


def scene(index: int, height: int = 48, width: int = 64) -> Pixels:
    """A smooth picture; another one for every index."""
    return frame(np.random.default_rng(index), height, width)


def noise(index: int, height: int = 48, width: int = 64) -> Pixels:
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)


class InMemory:
    """A source as a user would write one; counts how often pictures are opened."""

    def __init__(
        self,
        pictures: Sequence[Pixels | None],
        *,
        episodes: Sequence[int | None] | None = None,
        instructions: Sequence[str] = ("lift the lid",),
        windows: WindowForm | None = None,
        histories: NDArray[np.float32] | None = None,
        name: str = "memory",
    ) -> None:
        self.name, self.windows = name, windows
        self.opened: list[int] = []
        self._episodes = episodes or [None] * len(pictures)
        self._instructions, self._histories = instructions, histories
        self._shown = [Picture(f"{name} {index}", self._source(index, each)) for index, each in enumerate(pictures)]

    def __len__(self) -> int:
        return len(self._shown)

    def __getitem__(self, index: int) -> CalibrationSample:
        instruction = self._instructions[index % len(self._instructions)]
        episode = self._episodes[index]
        return CalibrationSample(f"#{index}", instruction, self._shown[index], self._histories, episode=episode)

    def _source(self, index: int, pixels: Pixels | None) -> Callable[[], Pixels]:
        def opened() -> Pixels:
            self.opened.append(index)
            if pixels is None:
                raise ImageError("the image file cannot be read", found="broken data stream")
            return pixels

        return opened


def save_folder(
    folder: Path, pictures: int = 6, instructions: Sequence[str] = ("lift the lid", "close the drawer")
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(pictures):
        Image.fromarray(scene(index)).save(folder / f"{index}.png")
    (folder / "instructions.txt").write_text("\n".join(instructions) + "\n", encoding="utf-8")
    return folder


def save_scenes(folder: Path, data: dict[str, Any] | None = None) -> Path:
    """The data set of ``datasets_kit`` with scenes instead of single colours; returns the JSON's path."""
    path = save(folder, data or content())
    for image in (folder / "images").iterdir():
        Image.fromarray(scene(int(image.stem))).save(image, quality=95)
    return path
