"""Members of an ensemble as they lie in a checkpoint: tensors, and the shapes they imply.

A *member* is one trained verifier head: a dict of components, each an ordinary state dict, plus the value
that marks padded action steps. Shapes are read from the tensors and never assumed. What tensors cannot tell
(attention heads, history length of a transformer encoder, padding value) is carried beside them in
:class:`Settings` and defaults to the published values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch

from trunkline.runtime.sensor.form import SensorForm

PUBLISHED_BACKBONE = "hf-hub:timm/ViT-L-16-SigLIP2-384"
PUBLISHED_HEADS = 8
PUBLISHED_HISTORY_LENGTH = 10
PUBLISHED_ACTION_DIM = 7
PUBLISHED_PADDING_VALUE = -5.0

ActionEncoderKind = Literal["transformer", "mlp"]
FusionKind = Literal["concat", "gated", "cross_attention"]
StateDict = Mapping[str, torch.Tensor]

POOL_COMPONENTS = ("text_aware_visual_extraction", "vision_poolings", "text_pooling")
#: Without a sensor, what is seen and read is projected; with one, it is fused with the sensor's features instead.
JOINT_COMPONENT = "input_projection"
SENSOR_ENCODER, SENSOR_FUSION = "sensor_encoder", "sensor_fusion"
CONTEXT_COMPONENTS = (*POOL_COMPONENTS, JOINT_COMPONENT, SENSOR_ENCODER, SENSOR_FUSION)
ACTION_COMPONENTS: dict[ActionEncoderKind, tuple[str, ...]] = {
    "transformer": ("single_step_action_encoder", "trajectory_encoder"),
    "mlp": ("complex_action_encoder",),
}
ALL_COMPONENTS = CONTEXT_COMPONENTS + ACTION_COMPONENTS["transformer"] + ACTION_COMPONENTS["mlp"]


def flat(components: Mapping[str, StateDict]) -> dict[str, torch.Tensor]:
    """All tensors of a member's components under ``component.tensor`` names, in file order."""
    return {f"{part}.{key}": value for part, state in components.items() for key, value in state.items()}


@dataclass(frozen=True)
class Settings:
    """What tensors cannot tell about a member. Members of one ensemble share it.

    Attributes:
        heads: attention heads of the pools and of the trajectory encoder.
        history_length: steps H in an action window.
        action_dim: numbers A per step.
        padding_value: a step whose component 0 equals this value exactly is padding.
        sensor: the stream its sensor encoder was trained on, None for a member without one.
        sensor_heads: attention heads of the sensor encoder and of its fusion.
    """

    heads: int = PUBLISHED_HEADS
    history_length: int = PUBLISHED_HISTORY_LENGTH
    action_dim: int = PUBLISHED_ACTION_DIM
    padding_value: float = PUBLISHED_PADDING_VALUE
    sensor: SensorForm | None = None
    sensor_heads: int = PUBLISHED_HEADS


@dataclass(frozen=True)
class SensorShape:
    """Sizes of a member's sensor encoder and of its fusion, read from tensors.

    Attributes:
        channels: C, numbers per sample.
        conv: output width of each convolution block; each halves the number of steps.
        layers: transformer layers after them, 0 for none.
        feedforward: hidden width of those.
        projection: width between the projection's two layers.
        features: S, width of the features.
        fusion: how they join what is seen and read.
        fusion_width: width in which both meet; 0 for ``concat``.
        tokens: vision-language tokens that ``cross_attention`` chooses among: 2 (text, vision) or 1 (both in one).
        absent: the encoder carries features that stand for "no sensor".
    """

    channels: int
    conv: tuple[int, ...]
    layers: int
    feedforward: int
    projection: int
    features: int
    fusion: FusionKind = "concat"
    fusion_width: int = 0
    tokens: int = 1
    absent: bool = False

    @property
    def stride(self) -> int:
        """Samples per step behind the convolutions."""
        return int(2 ** len(self.conv))


@dataclass(frozen=True)
class HeadShape:
    """Sizes of one member, all of them read from its tensors except where :class:`Settings` says otherwise.

    Attributes:
        trunk_width: D, width of the trunk's patch and text tokens.
        patches: P, rows of the positional buffer of the visual extraction.
        pool_width: width of the attention pools.
        pool_layers: cross-attention blocks per pool.
        embedding: E, width of the two vectors whose cosine is the score.
        encoder: how action windows are encoded.
        encoder_layers: layers of the trajectory encoder (0 for an MLP).
        feedforward: hidden width of the trajectory encoder or of the MLP.
        history_length: H.
        action_dim: A.
        heads: attention heads.
        sensor: of its sensor side, None for a member without one.
        sensor_heads: attention heads of that.
    """

    trunk_width: int
    patches: int
    pool_width: int
    pool_layers: int
    embedding: int
    encoder: ActionEncoderKind
    encoder_layers: int
    feedforward: int
    history_length: int
    action_dim: int
    heads: int
    sensor: SensorShape | None = None
    sensor_heads: int = PUBLISHED_HEADS


@dataclass(frozen=True)
class Member:
    """One trained head.

    Attributes:
        name: unique within the ensemble, usually the source file's stem.
        source: base name of the file it came from.
        components: component name -> state dict, tensors on the CPU (possibly memory-mapped).
        settings: what the tensors cannot tell.
        shape: what they can.
    """

    name: str
    source: str
    components: Mapping[str, StateDict]
    settings: Settings
    shape: HeadShape

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors under flat ``component.tensor`` names, in file order."""
        return flat(self.components)

    def parameter_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())


@dataclass(frozen=True)
class Checkpoint:
    """K members that belong to one trunk.

    Attributes:
        form: which of the known file forms it was read from.
        members: in file order.
        backbone: open_clip name of the trunk, or None where the file does not say.
        declared: metadata as the file states it, for the doctor to hold against the tensors.
        notes: what the reader had to assume.
        frozen_digest: SHA-256 over the frozen trunk weights a training checkpoint carries, cast to bfloat16; else None.
    """

    form: str
    members: tuple[Member, ...]
    backbone: str | None
    declared: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    frozen_digest: str | None = None


def shared_settings(checkpoint: Checkpoint) -> Settings:
    """What the members' tensors cannot tell, for all of them: with a sensor if any member has one."""
    with_sensor = [member.settings for member in checkpoint.members if member.settings.sensor is not None]
    return (with_sensor or [checkpoint.members[0].settings])[0]


def knows_absence(checkpoint: Checkpoint) -> bool:
    """Whether every member that reads a sensor was trained for its absence."""
    return all(member.shape.sensor is None or member.shape.sensor.absent for member in checkpoint.members)


def misfits(members: Sequence[Member]) -> Iterator[tuple[Member, str]]:
    """Facts in which a member differs from the first; members with and without a sensor may be mixed."""
    with_sensor = [member for member in members if member.shape.sensor is not None]
    for member in members[1:]:
        references = {members[0].name: members[0]}
        if member in with_sensor:
            references[with_sensor[0].name] = with_sensor[0]
        for problem in dict.fromkeys(each for other in references.values() for each in _differences(member, other)):
            yield member, problem


def _differences(member: Member, other: Member) -> Iterator[str]:
    ours, theirs = _facts(member), _facts(other)
    for name in ours:
        if name in theirs and ours[name] != theirs[name]:
            yield f"{name} is {ours[name]}, {other.name} has {theirs[name]}"


def _facts(member: Member) -> dict[str, object]:
    facts = asdict(member.shape) | asdict(member.settings)
    sensor, shape = facts.pop("sensor"), member.shape.sensor
    if sensor is None or shape is None:
        facts.pop("sensor_heads")
        return facts
    # Encoders and fusions may differ; what every encoder is fed and gives may not.
    facts |= {f"sensor.{name}": value for name, value in sensor.items()}
    return facts | {"sensor.features": shape.features, "sensor.conv": shape.conv, "sensor.absent": shape.absent}
