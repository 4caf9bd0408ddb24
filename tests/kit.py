"""Small random checkpoints and trunks for tests; nothing here is downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trunkline.exporter.checkpoint.members import Checkpoint, HeadShape, Member, Settings
from trunkline.exporter.reference import ReferenceMember

SMALL = HeadShape(
    trunk_width=32,
    patches=16,
    pool_width=32,
    pool_layers=2,
    embedding=32,
    encoder="transformer",
    encoder_layers=2,
    feedforward=48,
    history_length=10,
    action_dim=7,
    heads=8,
)
SMALL_MLP = replace(SMALL, encoder="mlp", encoder_layers=0, feedforward=40)


def random_member(shape: HeadShape = SMALL, seed: int = 0, name: str | None = None, padding: float = -5.0) -> Member:
    """A member with random weights; seeds give slightly different members of one run."""
    torch.manual_seed(1234)
    module = ReferenceMember(shape, padding)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        module.text_aware_visual_extraction.temperature.fill_(0.07)
    settings = Settings(shape.heads, shape.history_length, shape.action_dim, padding)
    name = name or f"epoch_{seed}"
    return Member(name, f"{name}.pt", module.components(), settings, shape)


def random_checkpoint(count: int = 3, shape: HeadShape = SMALL, backbone: str | None = "test") -> Checkpoint:
    members = tuple(random_member(shape, seed) for seed in range(count))
    return Checkpoint(form="random", members=members, backbone=backbone)


def training_dict(member: Member, frozen: dict[str, torch.Tensor] | None = None) -> dict[str, Any]:
    """A training checkpoint as the published trainer saves it."""
    state = {f"model.{key}": value for key, value in (frozen or {}).items()}
    state |= {"logit_scale": torch.tensor(2.6592)} | member.tensors()
    return {
        "epoch": 7,
        "global_step": 100,
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-4}]},
        "scheduler_state_dict": {"last_epoch": 7},
        "best_val_loss": 0.5,
    }


def save_training(member: Member, path: Path, frozen: dict[str, torch.Tensor] | None = None) -> Path:
    torch.save(training_dict(member, frozen), path)
    return path
