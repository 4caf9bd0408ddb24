"""Hazards on the sensor side of a member: a sensor that changes nothing, and windows of another time scale."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trunkline.exporter.checkpoint.expert_probes import KINDS, contrasting_windows
from trunkline.exporter.checkpoint.findings import Finding
from trunkline.exporter.checkpoint.members import Checkpoint, Member
from trunkline.exporter.reference import ReferenceMember, build_member, unit

#: Change of a unit vector under which a sensor counts as ignored; different windows move a sound one by over 0.01.
SMALLEST_CHANGE = 1e-3
#: Relative change of features under which an encoder counts as constant.
SMALLEST_DIFFERENCE = 1e-4
ROWS = 4
SEED = 20260


def ignored_sensor(checkpoint: Checkpoint) -> Iterator[Finding]:
    for member, module in _with_sensor(checkpoint):
        sensor = member.shape.sensor
        if sensor is not None and sensor.fusion == "cross_attention" and sensor.tokens == 1:
            yield Finding(
                "warning",
                "ignored_sensor",
                member.name,
                "cross-attention over a single vision-language token: the softmax has one entry, which is always 1",
                "scores do not depend on the sensor, whatever it measures, and its encoder was never trained",
                "train with text and vision as two tokens, or with gated or concat fusion",
            )
        elif (change := _context_change(module)) < SMALLEST_CHANGE:
            yield Finding(
                "warning",
                "ignored_sensor",
                member.name,
                f"windows as different as silence and noise move the context vector by {change:.2g} at most",
                "scores hardly depend on the sensor",
                "check that the sensor's gradient reaches its encoder in training",
            )


def constant_sensor(checkpoint: Checkpoint) -> Iterator[Finding]:
    for member, module in _with_sensor(checkpoint):
        features = _features(module)
        spread = float((features - features[:1]).norm(dim=1).max() / features.norm(dim=1).max().clamp(min=1e-12))
        if spread < SMALLEST_DIFFERENCE:
            yield Finding(
                "warning",
                "constant_sensor",
                member.name,
                f"features of very different windows differ by {spread:.2g} of their length",
                "the encoder has collapsed: it says the same of every window",
                "take an earlier epoch, or check the encoder's training",
            )


def window_skew(checkpoint: Checkpoint) -> Iterator[Finding]:
    form = next((member.settings.sensor for member in checkpoint.members if member.settings.sensor), None)
    if form is None or form.steps == form.samples or form.adaptive:
        return
    ratio = form.samples / form.steps
    yield Finding(
        "warning",
        "window_skew",
        None,
        f"windows of {form.samples} samples ({form.duration_s:g} s) are resampled to {form.steps} steps "
        f"without a filter: about every {ratio:.3g}th sample is seen",
        f"the weights fit a window of {form.steps} consecutive samples ({form.steps / form.rate_hz:g} s) as well, "
        "and a receiver that feeds those gives other scores without any error",
        "the bundle refuses windows of another duration; check that training really used these",
    )


def sensor_absence(checkpoint: Checkpoint) -> Iterator[Finding]:
    for member in checkpoint.members:
        if member.shape.sensor is not None and not member.shape.sensor.absent:
            yield Finding(
                "note",
                "sensor_absence",
                member.name,
                "nothing says what it should see where there is no sensor",
                "scoring without a window is an error; windows of zeros would be taken for a measurement",
                "train a vector for absence (`sensor_encoder.absent`) if the sensor may fail",
            )


def _with_sensor(checkpoint: Checkpoint) -> Iterator[tuple[Member, ReferenceMember]]:
    for member in checkpoint.members:
        if member.shape.sensor is not None and all(torch.isfinite(t).all() for t in member.tensors().values()):
            yield member, build_member(member)


@torch.inference_mode()
def _features(module: ReferenceMember) -> Tensor:
    """(KINDS, S) features of silence, noise of three strengths, a ramp and an oscillation."""
    encoder = module.sensor_encoder
    return encoder(contrasting_windows(encoder.shape.channels, encoder.form.steps))


@torch.inference_mode()
def _context_change(module: ReferenceMember) -> float:
    """Largest distance between context vectors of one view under different windows."""
    features = _features(module)
    random = torch.Generator().manual_seed(SEED)
    largest = 0.0
    for _ in range(ROWS):
        seen = torch.randn(1, 2 * module.shape.pool_width, generator=random).expand(KINDS, -1)
        vectors = unit(module.sensor_fusion(seen, features))
        largest = max(largest, float(torch.cdist(vectors, vectors).max()))
    return largest
