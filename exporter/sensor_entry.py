"""What a bundle says of its sensor, and which encoders are in it: those that members share are there once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trunkline.exporter.checkpoint.members import (
    SENSOR_ENCODER,
    Checkpoint,
    Member,
    knows_absence,
    shared_settings,
)
from trunkline.exporter.checkpoint.read import digest_tensors
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.runtime.manifest import SensorEntry

ABSENT_NAME = "absent_sensor.safetensors"


def distinct_encoders(checkpoint: Checkpoint) -> tuple[list[int], tuple[int | None, ...]]:
    """The first member of each distinct encoder, and for each member which of them it reads, None for none."""
    found: dict[str, int] = {}
    encoder_of: list[int | None] = []
    for index, member in enumerate(checkpoint.members):
        if member.shape.sensor is None:
            encoder_of.append(None)
            continue
        found.setdefault(_digest(member), index)
        encoder_of.append(list(found).index(_digest(member)))
    return list(found.values()), tuple(encoder_of)


def _digest(member: Member) -> str:
    return digest_tensors(member.components[SENSOR_ENCODER].items())


def sensor_entry(checkpoint: Checkpoint) -> SensorEntry | None:
    """The manifest's entry, None for an ensemble without a sensor."""
    form = shared_settings(checkpoint).sensor
    shape = next((member.shape.sensor for member in checkpoint.members if member.shape.sensor), None)
    if form is None or shape is None:
        return None
    encoders, encoder_of = distinct_encoders(checkpoint)
    absent = ABSENT_NAME if knows_absence(checkpoint) else None
    return SensorEntry(form, len(encoders), encoder_of, shape.stride, shape.conv[-1], shape.features, absent)


def absent_features(reference: PyTorchEnsemble) -> NDArray[np.float32]:
    """(J, 1, S) float32: what stands for each encoder's features where there is no sensor."""
    encoders, _ = distinct_encoders(reference.checkpoint)
    features = [reference.members[index].feel(None) for index in encoders]
    return np.stack([each.detach().numpy() for each in features if each is not None])
