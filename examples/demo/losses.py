"""What the demo's training minimises: contrast between contexts and actions; what a token names, what a hand holds."""

from __future__ import annotations

import math
from pathlib import Path

import open_clip
import torch
from dataset import Sample
from torch import Tensor
from torch.nn import functional
from touch import STEEPEST
from trunk import EOS, GRID, PAD
from world import COLOURS, GOALS, IMAGE_HEIGHT, IMAGE_WIDTH, SHAPES, holds

from trunkline.exporter.reference import ReferenceMember

TARGET, GOAL, HAND = 1, 2, 3


def token_roles(folder: Path) -> Tensor:
    """Vocabulary row -> what the token names: the object, the goal, the hand (end and padding), or nothing."""
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}").tokenizer
    roles = torch.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=torch.long)
    nouns = [*COLOURS, *(noun for wordings in SHAPES.values() for noun in wordings)]
    for role, words in ((TARGET, nouns), (GOAL, GOALS)):
        for word in words:
            (row,) = tokenizer(word, add_special_tokens=False).input_ids
            roles[row] = role
    roles[tokenizer.convert_tokens_to_ids([EOS, PAD])] = HAND
    return roles


def place_maps(places: Tensor) -> Tensor:
    """(B, 3, 2) camera pixels -> (B, 3, P) weights that sum to one, a soft spot round each place."""
    scale = torch.tensor([GRID / IMAGE_WIDTH, GRID / IMAGE_HEIGHT])
    at = (places * scale - 0.5).clamp(0, GRID - 1)
    axis = torch.arange(GRID, dtype=torch.float32)
    across = (-((axis - at[..., :1]) ** 2)).exp()
    down = (-((axis - at[..., 1:]) ** 2)).exp()
    spots = (down.unsqueeze(-1) * across.unsqueeze(-2)).flatten(-2)
    return spots / spots.sum(-1, keepdim=True)


def grounding_loss(head: ReferenceMember, patches: Tensor, tokens: Tensor, roles: Tensor, places: Tensor) -> Tensor:
    """Cross-entropy between where a token looks and where the thing it names is."""
    temperature = head.text_aware_visual_extraction.temperature.clamp(0, 100)
    looks = torch.log_softmax(tokens @ patches.transpose(1, 2) / temperature, dim=-1)
    maps = place_maps(places)
    total = looks.new_zeros(())
    for role in (TARGET, GOAL, HAND):
        mask = (roles == role).float()
        cross = -(looks * maps[:, role - 1].unsqueeze(1)).sum(-1)
        total = total + (cross * mask).sum() / mask.sum()
    return total / 3


def info_nce(context: Tensor, action: Tensor, scale: Tensor) -> Tensor:
    logits = scale.clamp(max=math.log(100)).exp() * context @ action.T
    labels = torch.arange(len(logits))
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def held_inside(sample: Sample) -> tuple[float, float]:
    """Slant and firmness from -1 to 1 of what the hand holds; both 0 where it holds nothing."""
    if sample.inside is None or not holds(sample.scene, sample.task.target):
        return 0.0, 0.0
    return sample.inside.slant / STEEPEST, 2 * sample.inside.firmness - 1
