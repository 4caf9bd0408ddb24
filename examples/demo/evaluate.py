"""Scores held-out samples with the demo's ensemble, by the published protocol.

    python evaluate.py --samples 400 --seed 7

Each sample's own window competes with 19 distinct windows of other samples; top-1 is the share of samples whose
window wins. Repeated with instructions, and then images, exchanged between samples: both must hurt.

    python evaluate.py --samples 400 --seed 7 --sensor [--baseline DIR]

does the same with the members that feel, and further without their sensor, with another sample's, with another's force
or A-scan only, and with a window that repeats its last row, which leaves them every number but no course of time.
``--baseline``: members that were trained on the same samples without a sensor (``train.py --sensor --baseline DIR``).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from dataset import write_dataset
from PIL import Image
from torch import Tensor
from trunk import Features, load

from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.reference import ReferenceMember, build_member, fuse

HERE = Path(__file__).resolve().parent
POOL = 20


@dataclass(frozen=True)
class Seen:
    """What the members are given of every sample: patch features, token features, sensor windows or None."""

    patches: Tensor
    tokens: Tensor
    felt: Tensor | None


def read_samples(path: Path, trunk: Path) -> tuple[Seen, Tensor]:
    """What is seen and felt in every sample of a dataset file, and the samples' action windows."""
    document = json.loads(path.read_text(encoding="utf-8"))
    images = path.parent / document["_metadata"]["images_folder"]
    model, preprocess, tokenizer = load(trunk)
    features = Features(model)
    rows = document["samples"]
    pictures = torch.stack([preprocess(Image.open(images / row["agent_view_image_file"])) for row in rows])
    ids = tokenizer([document["instructions"][row["instruction_id"]] for row in rows])
    windows = torch.tensor([document["action_histories"][row["action_history_id"]] for row in rows])
    patches = torch.cat([features.patches(chunk) for chunk in pictures.split(64)])
    tokens = torch.cat([features.tokens(chunk) for chunk in ids.split(64)])
    sensor, felt = document["_metadata"].get("sensor"), None
    if sensor is not None:
        data = np.load(path.parent / sensor["file"])["data"]
        felt = torch.from_numpy(data[[row["sensor_window"] for row in rows]])
    return Seen(patches, tokens, felt), windows


def scores(members: Sequence[ReferenceMember], seen: Seen, windows: Tensor) -> Tensor:
    """(samples, samples): every context against every window."""
    return fuse([context(member, seen) for member in members]) @ fuse([member.action(windows) for member in members]).T


def context(member: ReferenceMember, seen: Seen) -> Tensor:
    """(samples, E)."""
    felt = member.feel(seen.felt)
    return member.context(seen.patches, seen.tokens, None if felt is None else felt.expand(len(seen.patches), -1))


def pools(count: int, seed: int = 42) -> list[list[int]]:
    """For each sample its own index, then 19 others."""
    rng = random.Random(seed)
    return [[own, *rng.sample([other for other in range(count) if other != own], POOL - 1)] for own in range(count)]


def top_one(table: Tensor, choices: list[list[int]]) -> float:
    wins = [int(table[row, picked].argmax()) == 0 for row, picked in enumerate(choices)]
    return 100 * sum(wins) / len(wins)


def variants(seen: Seen) -> Iterator[tuple[str, Seen]]:
    """What the ensemble is given beside the truth."""
    away = torch.arange(len(seen.patches)).roll(len(seen.patches) // 2)
    yield "other instructions", replace(seen, tokens=seen.tokens[away])
    yield "other images", replace(seen, patches=seen.patches[away])
    if seen.felt is not None:
        others, force = seen.felt[away], seen.felt[:, :, :1]
        yield "no sensor", replace(seen, felt=None)
        yield "other sensor", replace(seen, felt=others)
        yield "other force", replace(seen, felt=torch.cat([others[:, :, :1], seen.felt[:, :, 1:]], dim=2))
        yield "other A-scan", replace(seen, felt=torch.cat([force, others[:, :, 1:]], dim=2))
        yield "last row only", replace(seen, felt=seen.felt[:, -1:].expand_as(seen.felt))


def read_members(folder: Path) -> dict[str, ReferenceMember]:
    return {file.stem: build_member(read_checkpoint(file).members[0]) for file in sorted(folder.glob("*.safetensors"))}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--weights", type=Path, default=HERE, help="folder that holds trunk/ and members")
    parser.add_argument("--sensor", action="store_true", help="the members that feel, on samples of a hand that does")
    parser.add_argument("--baseline", type=Path, help="folder of members that do not, to compare with")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    members = read_members(arguments.weights / ("sensor_members" if arguments.sensor else "members"))
    with tempfile.TemporaryDirectory() as folder:
        path = write_dataset(Path(folder), arguments.samples, arguments.seed, sensor=arguments.sensor)
        seen, windows = read_samples(path, arguments.weights / "trunk")
    choices = pools(len(windows))
    print(f"{'ensemble':19} {top_one(scores([*members.values()], seen, windows), choices):.1f} %")
    for name, member in members.items():
        print(f"{name + ' alone':19} {top_one(scores([member], seen, windows), choices):.1f} %")
    for name, given in variants(seen):
        print(f"{name:19} {top_one(scores([*members.values()], given, windows), choices):.1f} %")
    if arguments.baseline is not None:
        baseline = read_members(arguments.baseline).values()
        print(f"{'baseline':19} {top_one(scores([*baseline], seen, windows), choices):.1f} %")
    print(f"{'chance':19} {100 / POOL:.1f} %")


if __name__ == "__main__":
    main()
