"""A miniature data set in the published form, and in the legacy one; tests change the content before it is written."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WINDOWS = 8
FRAMES = 6
INSTRUCTIONS = ("put the red block in the bowl", "place the red cube into the bowl", "open the drawer\u2019s lid")
SHAPE = (10, 7)
PADDING = -5.0


def window(index: int) -> list[list[float]]:
    """Window ``index``, padded at the start (0), at the end (1) or not at all."""
    values = np.random.default_rng(index).uniform(-1, 1, SHAPE).round(4)
    if index == 0:
        values[:3] = PADDING
    if index == 1:
        values[-2:] = PADDING
    return values.tolist()


def content(samples: int = 24) -> dict[str, Any]:
    """The JSON's content, metadata last."""
    return {
        "action_histories": {f"action_{index}": window(index) for index in range(WINDOWS)},
        "instructions": {f"instr_{index}": sentence for index, sentence in enumerate(INSTRUCTIONS)},
        "samples": [
            {
                "action_history_id": f"action_{index % WINDOWS}",
                "agent_view_image_file": f"{index % FRAMES}.jpg",
                "instruction_id": f"instr_{index % len(INSTRUCTIONS)}",
                "episode_id": index // 6,
                "timestep": index % 6,
            }
            for index in range(samples)
        ],
        "_metadata": {
            "action_dim": SHAPE[1],
            "window_before": 6,
            "window_after": 3,
            "total_window_size": SHAPE[0],
            "history_length": SHAPE[0],
            "images_folder": "images",
            "format_version": "2.1_centered_window",
            "padding_value": PADDING,
        },
    }


def legacy(samples: int = 6) -> dict[str, Any]:
    return {
        sentence: {
            "samples": [
                {
                    "agent_view_image_file": f"{index % FRAMES}.jpg",
                    "action_history": window(index % 4),
                    "language_instruction": sentence,
                }
                for index in range(samples)
            ]
        }
        for sentence in INSTRUCTIONS
    }


def save(folder: Path, data: object, *, images: bool = True) -> Path:
    """Writes ``dataset.json`` and ``images/``; returns the JSON's path."""
    folder.mkdir(parents=True, exist_ok=True)
    if images:
        save_images(folder / "images")
    path = folder / "dataset.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data, indent=2), encoding="utf-8")
    return path


def save_images(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for index in range(FRAMES):
        colour = np.random.default_rng(index).integers(0, 256, 3)
        Image.fromarray(np.full((24, 32, 3), colour, np.uint8)).save(folder / f"{index}.jpg")


def changed(data: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    """A copy in which the entry at ``path`` is another."""
    result = copy.deepcopy(data)
    *parents, last = path
    target: Any = result
    for key in parents:
        target = target[key]
    target[last] = to
    return result
