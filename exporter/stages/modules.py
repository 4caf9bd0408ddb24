"""Which torch module each stage is traced from."""

from __future__ import annotations

from torch import nn

from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.exporter.sensor_entry import distinct_encoders
from trunkline.exporter.stages.action import ActionStage
from trunkline.exporter.stages.context import ContextStage
from trunkline.exporter.stages.sensor import SensorStage, StepsStage
from trunkline.exporter.stages.towers import TextStage, VisionStage


def stage_module(stage: str, reference: PyTorchEnsemble) -> nn.Module:
    """The module of a stage, in eval mode; it shares weights with the reference where nothing is rearranged."""
    trunk, members = reference.trunk, reference.members
    if stage in ("vision", "text"):
        return VisionStage(trunk) if stage == "vision" else TextStage(trunk)
    if stage == "action":
        return ActionStage(members)
    first, encoder_of = distinct_encoders(reference.checkpoint)
    if stage == "context":
        return ContextStage(members, encoder_of)
    encoders = [members[index].sensor_encoder for index in first]
    return StepsStage(encoders) if stage == "steps" else SensorStage(encoders)
