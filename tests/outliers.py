"""The demo ensemble on a trunk with outlier channels, as large trained transformers have them and small ones do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from trunkline.exporter.checkpoint.pack import pack
from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.export import build
from trunkline.exporter.trunk import Trunk, load_trunk

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples" / "demo"
#: Channels that are made large, and how much larger they become.
CHANNELS, FACTOR = (3, 41, 77), 100.0


def enlarge(
    norm: nn.LayerNorm, reader: nn.Linear, channels: tuple[int, ...] = CHANNELS, factor: float = FACTOR
) -> None:
    """Makes some outputs of a normalisation larger and divides what reads them: the function stays."""
    with torch.no_grad():
        for channel in channels:
            norm.weight[channel] *= factor
            norm.bias[channel] *= factor
            reader.weight[:, channel] /= factor


def demo_trunk(blocks: tuple[int, ...]) -> Trunk:
    """The demo's trunk with outliers before attention and MLP of these blocks."""
    trunk = load_trunk(f"local-dir:{DEMO / 'trunk'}")
    for index in blocks:
        block = trunk.model.visual.trunk.blocks[index]
        enlarge(block.norm1, block.attn.qkv)
        enlarge(block.norm2, block.mlp.fc1)
    return trunk


def demo_bundle(folder: Path, blocks: tuple[int, ...]) -> Path:
    """A float32 bundle of the demo ensemble on such a trunk."""
    packed = folder.with_suffix(".safetensors")
    pack(sorted((DEMO / "members").glob("*.safetensors")), packed)
    build(read_checkpoint(packed), demo_trunk(blocks), folder)
    return folder


def demo_data(folder: Path, samples: int, seed: int) -> None:
    """Held-out samples of the demo's world, as a program of its own writes them."""
    words = ["--out", folder, "--samples", samples, "--seed", seed]
    command = [sys.executable, DEMO / "dataset.py", *words]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
