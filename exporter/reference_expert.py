"""The action experts of the published sensor-action system in PyTorch, as far as the doctor needs them.

They are no verifiers: an expert proposes motions and scores nothing. Both kinds start from a condition, what is seen
and read joined with a sensor's features. The *regression* expert decodes it with learned positions; the *diffusion*
expert predicts the noise in a chunk of actions. Sampling with a noise schedule is not here, since nothing runs experts.

Sizes are read from tensors. :meth:`Expert.published` and :meth:`Expert.load` speak the names of the published files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trunkline.exporter.checkpoint.members import PUBLISHED_HEADS, FusionKind, SensorShape
from trunkline.exporter.reference_sensor import DROPOUT, SensorFusion

ExpertKind = Literal["regression", "diffusion"]
#: "unknown": without the sensor's encoder, concatenation and no fusion at all have the same tensors.
ExpertFusion = Literal["concat", "gated", "cross_attention", "none", "unknown"]

#: Longest period of the code of a diffusion step, in steps.
PERIOD = 10000


@dataclass(frozen=True)
class ExpertShape:
    """Sizes of an expert.

    Attributes:
        kind: what it predicts: a correction of actions, or the noise in them.
        fusion: how a sensor joins what is seen.
        seen: V, width of the pooled vision-language token.
        sensor: S, width of the sensor's features, 0 where it takes none.
        width: h, width of the condition and of the layers.
        layers: of the decoder, or of the diffusion's encoder.
        feedforward: their hidden width.
        horizon: H, actions per chunk as its position code says; 0 without one.
        action_dim: A, numbers per action.
        time_width: width of the code of a diffusion step, 0 for regression.
        heads: attention heads, which tensors do not tell.
    """

    kind: ExpertKind
    fusion: ExpertFusion
    seen: int
    sensor: int
    width: int
    layers: int
    feedforward: int
    horizon: int
    action_dim: int
    time_width: int = 0
    heads: int = PUBLISHED_HEADS


class Expert(nn.Module):
    """What both kinds share: the condition (B, h) of what is seen (B, V) and of sensor features (B, S)."""

    #: What the published files call the last layer of the fusion.
    last = "fusion_proj"

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__()
        self.shape = shape
        self.fusion = SensorFusion(_fusion_shape(shape), shape.seen, shape.width, shape.heads)

    def condition(self, seen: Tensor, sensor: Tensor) -> Tensor:
        """(B, V), (B, S) float32 -> (B, h)."""
        return self.fusion(seen, sensor)

    def published(self) -> dict[str, Tensor]:
        """The state dict under the names of the published files."""
        return {self._published(name): tensor for name, tensor in self.state_dict().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over all tensors of a published state dict."""
        self.load_state_dict({name: state[self._published(name)] for name in self.state_dict()})

    def _published(self, name: str) -> str:
        return name.removeprefix("fusion.").replace("fusion_proj.", f"{self.last}.")


def _fusion_shape(shape: ExpertShape) -> SensorShape:
    """Only what fusion reads of a sensor's shape; taking no sensor is joining nothing."""
    kind: FusionKind = "concat" if shape.fusion == "none" or shape.fusion == "unknown" else shape.fusion
    return SensorShape(
        channels=0,
        conv=(),
        layers=0,
        feedforward=0,
        projection=0,
        features=shape.sensor,
        fusion=kind,
        fusion_width=shape.width,
        tokens=1,
    )


class RegressionExpert(Expert):
    """Learned positions read the condition; ``delta`` is what is added to the actions that were handed in."""

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__(shape)
        self.pos_embed = nn.Parameter(torch.randn(1, shape.horizon, shape.width))
        layer = nn.TransformerDecoderLayer(
            shape.width, shape.heads, shape.feedforward, dropout=DROPOUT, batch_first=True
        )
        self.temporal_decoder = nn.TransformerDecoder(layer, shape.layers)
        self.output_head = nn.Sequential(nn.LayerNorm(shape.width), nn.Linear(shape.width, shape.action_dim))

    def forward(self, seen: Tensor, chunk: Tensor, sensor: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and what was added to ``chunk``: (B, V), (B, H, A), (B, S) -> (B, H, A), (B, H, A)."""
        memory = self.condition(seen, sensor).unsqueeze(1)
        delta = self.output_head(self.temporal_decoder(self.pos_embed.expand(len(seen), -1, -1), memory))
        return chunk + delta, delta


class DiffusionExpert(Expert):
    """The noise in a chunk of actions. The published one has no position code, ours takes one where a file has it."""

    last = "cond_proj"

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__(shape)
        width = shape.width
        self.pos_embed = nn.Parameter(torch.randn(1, shape.horizon, width)) if shape.horizon else None
        self.time_embed = nn.Sequential(nn.Linear(shape.time_width, width), nn.SiLU(), nn.Linear(width, width))
        self.action_embed = nn.Linear(shape.action_dim, width)
        layer = nn.TransformerEncoderLayer(
            width, shape.heads, shape.feedforward, dropout=DROPOUT, batch_first=True, norm_first=True
        )
        self.temporal_encoder = nn.TransformerEncoder(layer, shape.layers, enable_nested_tensor=False)
        self.output_head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, shape.action_dim)
        )

    def forward(self, actions: Tensor, step: Tensor, seen: Tensor, sensor: Tensor) -> Tensor:
        """(B, H, A) noisy actions, (B,) diffusion steps, (B, V), (B, S) -> (B, H, A) noise."""
        known = self.time_embed(step_code(step, self.shape.time_width)) + self.condition(seen, sensor)
        tokens = self.action_embed(actions) + known.unsqueeze(1)
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        return self.output_head(self.temporal_encoder(tokens))


def step_code(step: Tensor, width: int) -> Tensor:
    """(B,) diffusion steps -> (B, width) float32: all sines, then all cosines."""
    half = width // 2
    frequency = torch.exp(-math.log(PERIOD) * torch.arange(half) / (half - 1))
    angle = step.float().unsqueeze(1) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)
