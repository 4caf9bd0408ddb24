"""Small random checkpoints and trunks for tests; nothing here is downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trunkline.exporter.checkpoint.members import Checkpoint, FusionKind, HeadShape, Member, SensorShape, Settings
from trunkline.exporter.reference import ReferenceMember
from trunkline.runtime.sensor.form import SensorForm

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
#: A small sensor: 6 numbers a sample, windows of 50 samples that are 50 steps.
SENSOR = SensorShape(
    channels=6, conv=(8, 16, 16, 16), layers=2, feedforward=32, projection=12, features=20, fusion="concat", absent=True
)
FORM = SensorForm(channels=6, rate_hz=100.0, samples=50, steps=50)
FUSIONS: dict[str, tuple[FusionKind, int, int]] = {
    "concat": ("concat", 0, 1),
    "gated": ("gated", 24, 1),
    "cross-attention": ("cross_attention", 24, 2),
    "cross-attention, one token": ("cross_attention", 24, 1),
}


def sensor_shape(fusion: str = "concat", **changes: Any) -> SensorShape:
    kind, width, tokens = FUSIONS[fusion]
    return replace(SENSOR, fusion=kind, fusion_width=width, tokens=tokens, **changes)


def with_sensor(shape: HeadShape = SMALL, fusion: str = "concat", **changes: Any) -> HeadShape:
    return replace(shape, sensor=sensor_shape(fusion, **changes))


def random_member(
    shape: HeadShape = SMALL,
    seed: int = 0,
    name: str | None = None,
    padding: float = -5.0,
    form: SensorForm | None = None,
) -> Member:
    """A member with random weights; seeds give slightly different members of one run."""
    form = None if shape.sensor is None else replace(form or FORM, channels=shape.sensor.channels)
    torch.manual_seed(1234)
    module = ReferenceMember(shape, padding, form)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        module.text_aware_visual_extraction.temperature.fill_(0.07)
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm1d):
                layer.running_mean.copy_(torch.randn_like(layer.running_mean) * 0.2)
                layer.running_var.copy_(torch.rand_like(layer.running_var) + 0.5)
    settings = Settings(shape.heads, shape.history_length, shape.action_dim, padding, form)
    name = name or f"epoch_{seed}"
    return Member(name, f"{name}.pt", module.components(), settings, shape)


def random_checkpoint(
    count: int = 3, shape: HeadShape = SMALL, backbone: str | None = "test", form: SensorForm | None = None
) -> Checkpoint:
    members = tuple(random_member(shape, seed, form=form) for seed in range(count))
    return Checkpoint(form="random", members=members, backbone=backbone)


def sensor_checkpoint(
    shape: HeadShape, *fusions: str | None, form: SensorForm | None = None, **changes: Any
) -> Checkpoint:
    """One member of ``shape`` per fusion; None is a member without a sensor."""
    shapes = [shape if fusion is None else with_sensor(shape, fusion, **changes) for fusion in fusions]
    members = tuple(random_member(each, seed, form=form) for seed, each in enumerate(shapes))
    return Checkpoint("random", members, "test")


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
