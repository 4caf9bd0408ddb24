"""Writes expert samples of the tabletop in the published dataset form (format 2.1, centred windows).

    python dataset.py --out DIR --samples 200 --seed 7

writes ``DIR/dataset.json`` and ``DIR/images/<i>.jpg``. Episodes come from the "held-out" split of the world, which no
training episode can share whatever the seeds: the split is the first word of the generator's entropy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from world import (
    ACTION_DIM,
    PADDING_VALUE,
    WINDOW,
    WINDOW_AFTER,
    WINDOW_BEFORE,
    Floats,
    Scene,
    Split,
    Task,
    expert_window,
    instruction,
    make_episode,
    render,
)

IMAGES_FOLDER = "images"
FRAMES_PER_EPISODE = 2
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Sample:
    """One training or test case, its image not yet drawn."""

    scene: Scene
    task: Task
    instruction: str
    window: Floats
    episode: int
    timestep: int


def samples(split: Split, seed: int, count: int, frames: int = FRAMES_PER_EPISODE) -> Iterator[Sample]:
    """``count`` samples, ``frames`` steps of each episode, each step with a wording of its own."""
    for number in range(count):
        index, which = divmod(number, frames)
        if which == 0:
            episode, rng = make_episode(split, seed, index)
            steps = sorted(rng.choice(len(episode.actions), frames, replace=False).tolist())
        at = steps[which]
        words = instruction(episode.scenes[at], episode.task, rng)
        yield Sample(episode.scenes[at], episode.task, words, expert_window(episode, at), index, at)


def write_dataset(folder: Path, count: int, seed: int) -> Path:
    """Images and JSON of ``count`` held-out samples; returns the JSON's path."""
    images = folder / IMAGES_FOLDER
    images.mkdir(parents=True, exist_ok=True)
    histories: dict[bytes, str] = {}
    windows: dict[str, list[list[float]]] = {}
    sentences: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for number, sample in enumerate(samples("held-out", seed, count)):
        Image.fromarray(render(sample.scene)).save(images / f"{number}.jpg", quality=JPEG_QUALITY, subsampling=0)
        history = histories.setdefault(sample.window.tobytes(), f"action_{len(histories)}")
        windows[history] = sample.window.tolist()
        rows.append(
            {
                "action_history_id": history,
                "agent_view_image_file": f"{number}.jpg",
                "instruction_id": sentences.setdefault(sample.instruction, f"instr_{len(sentences)}"),
                "episode_id": sample.episode,
                "timestep": sample.timestep,
            }
        )
    path = folder / "dataset.json"
    document = {
        "action_histories": windows,
        "instructions": {name: sentence for sentence, name in sentences.items()},
        "samples": rows,
        "_metadata": metadata(len(windows), len(sentences), count),
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path


def metadata(windows: int, sentences: int, count: int) -> dict[str, Any]:
    return {
        "action_dim": ACTION_DIM,
        "window_before": WINDOW_BEFORE,
        "window_after": WINDOW_AFTER,
        "total_window_size": WINDOW,
        "history_length": WINDOW,
        "total_images": count,
        "images_folder": IMAGES_FOLDER,
        "total_instructions": sentences,
        "total_samples": count,
        "total_unique_action_histories": windows,
        "compression_ratio": round(count / windows, 2) if windows else 0.0,
        "format_version": "2.1_centered_window",
        "padding_value": PADDING_VALUE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    print(write_dataset(arguments.out, arguments.samples, arguments.seed))


if __name__ == "__main__":
    main()
