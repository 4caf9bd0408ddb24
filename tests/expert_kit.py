"""Small random checkpoints of the sensor-action system for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.kit import SENSOR, random_member, with_sensor
from trunkline.exporter.checkpoint.expert import ExpertFile, new_expert, read_sensor_action
from trunkline.exporter.checkpoint.members import StateDict
from trunkline.exporter.reference_expert import ExpertFusion, ExpertShape

SEEN, WIDTH = 40, 16
REGRESSION = ExpertShape("regression", "concat", SEEN, SENSOR.features, WIDTH, 2, 24, horizon=8, action_dim=7)
DIFFUSION = replace(REGRESSION, kind="diffusion", horizon=0, time_width=12)
FUSIONS: tuple[ExpertFusion, ...] = ("concat", "gated", "cross_attention", "none")


def fused(fusion: ExpertFusion, shape: ExpertShape = REGRESSION) -> ExpertShape:
    return replace(shape, fusion=fusion, sensor=0 if fusion == "none" else SENSOR.features)


def expert_state(shape: ExpertShape = REGRESSION, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return new_expert(shape).published()


def encoder_state(seed: int = 0, **changes: Any) -> dict[str, torch.Tensor]:
    """Of the kit's sensor, as the published system has it: without an answer to a missing sensor."""
    member = random_member(with_sensor(**{"absent": False, **changes}), seed)
    return dict(member.components["sensor_encoder"])


def whole_model(
    encoder: StateDict | None, expert: StateDict | None, *, language: int | None = None, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """``model_state_dict``: the language model with both parts."""
    width = SEEN if language is None else language
    state = {f"{prefix}vl_model.model.language_model.embed_tokens.weight": torch.zeros(3, width)}
    for name, part in (("sensor_encoder", encoder), ("action_expert", expert)):
        state |= {f"{prefix}{name}.{key}": tensor for key, tensor in (part or {}).items()}
    return state


def published(encoder: StateDict | None, expert: StateDict | None, **changes: Any) -> dict[str, Any]:
    """What the published trainer saves."""
    content = {
        "epoch": 3,
        "model_state_dict": whole_model(encoder, expert),
        "sensor_encoder": encoder,
        "action_expert": expert,
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "scheduler_state_dict": {"last_epoch": 3},
        "val_loss": 0.1,
    } | changes
    return {key: value for key, value in content.items() if value is not None}


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def read(folder: Path, content: object) -> ExpertFile:
    file = read_sensor_action(save(folder / "vla.pt", content))
    assert file is not None
    return file
