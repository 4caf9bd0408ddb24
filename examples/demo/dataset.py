"""Writes expert samples of the tabletop in the published dataset form (format 2.1, centred windows).

    python dataset.py --out DIR --samples 200 --seed 7

writes ``DIR/dataset.json`` and ``DIR/images/<i>.jpg``. Episodes come from the "held-out" split of the world, which no
training episode can share whatever the seeds: the split is the first word of the generator's entropy.

    python dataset.py --out DIR --samples 200 --seed 7 --sensor

writes episodes of a hand that feels (``touch.py``), and ``DIR/sensor.npz`` with the window of each sample:
``timestamps`` float64 (N,), seconds at the last row, and ``data`` float32 (N, 160, 25).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from touch import FORM, FRAMES_HZ, Inside, Rows, make_touched
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
SENSOR_FILE = "sensor.npz"
FRAMES_PER_EPISODE = 2
JPEG_QUALITY = 95
#: Episodes begin this far apart on the sensor's clock; none lasts as long.
EPISODE_S = 60.0


@dataclass(frozen=True)
class Sample:
    """One training or test case, its image not yet drawn."""

    scene: Scene
    task: Task
    instruction: str
    window: Floats
    episode: int
    timestep: int
    felt: Rows | None = None
    inside: Inside | None = None


def samples(
    split: Split, seed: int, count: int, frames: int = FRAMES_PER_EPISODE, *, sensor: bool = False
) -> Iterator[Sample]:
    """``count`` samples, ``frames`` steps of each episode, each step with a wording of its own."""
    for number in range(count):
        index, which = divmod(number, frames)
        if which == 0:
            if sensor:
                touched, rng = make_touched(split, seed, index)
                episode = touched.episode
            else:
                episode, rng = make_episode(split, seed, index)
            steps = sorted(rng.choice(len(episode.actions), frames, replace=False).tolist())
        at = steps[which]
        words = instruction(episode.scenes[at], episode.task, rng)
        felt, inside = (touched.window(at), touched.inside) if sensor else (None, None)
        yield Sample(episode.scenes[at], episode.task, words, expert_window(episode, at), index, at, felt, inside)


def write_dataset(folder: Path, count: int, seed: int, *, sensor: bool = False) -> Path:
    """Images, JSON and sensor windows of ``count`` held-out samples; returns the JSON's path."""
    images = folder / IMAGES_FOLDER
    images.mkdir(parents=True, exist_ok=True)
    histories: dict[bytes, str] = {}
    windows: dict[str, list[list[float]]] = {}
    sentences: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    chosen = list(samples("held-out", seed, count, sensor=sensor))
    for number, sample in enumerate(chosen):
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
            | ({"sensor_window": number} if sensor else {})
        )
    path = folder / "dataset.json"
    document = {
        "action_histories": windows,
        "instructions": {name: sentence for sentence, name in sentences.items()},
        "samples": rows,
        "_metadata": metadata(len(windows), len(sentences), count),
    }
    if sensor:
        document["_metadata"]["sensor"] = {"file": SENSOR_FILE, "rate_hz": FORM.rate_hz}
        write_windows(folder / SENSOR_FILE, chosen)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path


def write_windows(path: Path, chosen: Iterable[Sample]) -> None:
    """The windows in the published pre-windowed form, uncompressed, so that they can be mapped."""
    stamps = np.array([EPISODE_S * (sample.episode + 1) + sample.timestep / FRAMES_HZ for sample in chosen])
    np.savez(path, timestamps=stamps, data=np.stack([sample.felt for sample in chosen]))


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
    parser.add_argument("--sensor", action="store_true", help="episodes of a hand that feels, with its windows")
    arguments = parser.parse_args()
    print(write_dataset(arguments.out, arguments.samples, arguments.seed, sensor=arguments.sensor))


if __name__ == "__main__":
    main()
