"""Scores held-out samples with the demo's ensemble, by the published protocol.

    python evaluate.py --samples 400 --seed 7

Each sample's own window competes with 19 distinct windows of other samples; top-1 is the share of samples whose
window wins. Repeated with instructions, and then images, exchanged between samples: both must hurt.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from dataset import write_dataset
from PIL import Image
from torch import Tensor
from trunk import Features, load

from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.reference import ReferenceMember, build_member, fuse

HERE = Path(__file__).resolve().parent
POOL = 20


def read_features(path: Path, trunk: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Patch features, token features and windows of every sample of a dataset file."""
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
    return patches, tokens, windows


def scores(members: Sequence[ReferenceMember], patches: Tensor, tokens: Tensor, windows: Tensor) -> Tensor:
    """(samples, samples): every context against every window."""
    context = fuse([member.context(patches, tokens) for member in members])
    return context @ fuse([member.action(windows) for member in members]).T


def pools(count: int, seed: int = 42) -> list[list[int]]:
    """For each sample its own index, then 19 others."""
    rng = random.Random(seed)
    return [[own, *rng.sample([other for other in range(count) if other != own], POOL - 1)] for own in range(count)]


def top_one(table: Tensor, choices: list[list[int]]) -> float:
    wins = [int(table[row, picked].argmax()) == 0 for row, picked in enumerate(choices)]
    return 100 * sum(wins) / len(wins)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--weights", type=Path, default=HERE, help="folder that holds trunk/ and members/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted((arguments.weights / "members").glob("*.safetensors"))
    members = [build_member(read_checkpoint(file).members[0]) for file in files]
    with tempfile.TemporaryDirectory() as folder:
        path = write_dataset(Path(folder), arguments.samples, arguments.seed)
        patches, tokens, windows = read_features(path, arguments.weights / "trunk")
    choices = pools(len(windows))
    away = torch.arange(len(windows)).roll(len(windows) // 2)
    print(f"ensemble            {top_one(scores(members, patches, tokens, windows), choices):.1f} %")
    for file, member in zip(files, members, strict=True):
        print(f"{file.stem} alone      {top_one(scores([member], patches, tokens, windows), choices):.1f} %")
    print(f"other instructions  {top_one(scores(members, patches, tokens[away], windows), choices):.1f} %")
    print(f"other images        {top_one(scores(members, patches[away], tokens, windows), choices):.1f} %")
    print(f"chance              {100 / POOL:.1f} %")


if __name__ == "__main__":
    main()
