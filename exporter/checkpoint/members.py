"""Members of an ensemble as they lie in a checkpoint: tensors, and the shapes they imply.

A *member* is one trained verifier head: a dict of components, each an ordinary state dict, plus the value
that marks padded action steps. Shapes are read from the tensors and never assumed. What tensors cannot tell
(attention heads, history length of a transformer encoder, padding value) is carried beside them in
:class:`Settings` and defaults to the published values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

PUBLISHED_BACKBONE = "hf-hub:timm/ViT-L-16-SigLIP2-384"
PUBLISHED_HEADS = 8
PUBLISHED_HISTORY_LENGTH = 10
PUBLISHED_ACTION_DIM = 7
PUBLISHED_PADDING_VALUE = -5.0

ActionEncoderKind = Literal["transformer", "mlp"]
StateDict = Mapping[str, torch.Tensor]

CONTEXT_COMPONENTS = ("text_aware_visual_extraction", "vision_poolings", "text_pooling", "input_projection")
ACTION_COMPONENTS: dict[ActionEncoderKind, tuple[str, ...]] = {
    "transformer": ("single_step_action_encoder", "trajectory_encoder"),
    "mlp": ("complex_action_encoder",),
}
ALL_COMPONENTS = CONTEXT_COMPONENTS + ACTION_COMPONENTS["transformer"] + ACTION_COMPONENTS["mlp"]


@dataclass(frozen=True)
class Settings:
    """What tensors cannot tell about a member. Members of one ensemble share it.

    Attributes:
        heads: attention heads of the pools and of the trajectory encoder.
        history_length: steps H in an action window.
        action_dim: numbers A per step.
        padding_value: a step whose component 0 equals this value exactly is padding.
    """

    heads: int = PUBLISHED_HEADS
    history_length: int = PUBLISHED_HISTORY_LENGTH
    action_dim: int = PUBLISHED_ACTION_DIM
    padding_value: float = PUBLISHED_PADDING_VALUE


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
        return {f"{part}.{key}": value for part, state in self.components.items() for key, value in state.items()}

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
        frozen_digest: SHA-256 over the frozen trunk weights a training checkpoint carries, else None.
    """

    form: str
    members: tuple[Member, ...]
    backbone: str | None
    declared: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    frozen_digest: str | None = None
