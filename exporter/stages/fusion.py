"""What is seen joined with what is felt, inside the context stage.

Same mathematics as :class:`trunkline.exporter.reference_sensor.SensorFusion`. One window belongs to all instructions
of a call, so what the sensor contributes is computed once and added: a linear map of two vectors side by side is the
sum of two linear maps.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from trunkline.exporter.reference_sensor import SensorFusion


def fusion_stage(source: SensorFusion, seen: int) -> nn.Module:
    """The module for a fusion: ``seen`` (I, V) and ``sensor`` (1, S) to (I, E)."""
    if source.kind == "concat":
        return ConcatFusion(source, seen)
    return GatedFusion(source) if source.kind == "gated" else CrossAttentionFusion(source)


def split(linear: nn.Linear, first: int) -> tuple[nn.Linear, nn.Linear]:
    """``linear`` of two vectors side by side as two maps to be added; the bias stays with the first, ``first`` wide."""
    one = nn.Linear(first, linear.out_features)
    two = nn.Linear(linear.in_features - first, linear.out_features, bias=False)
    one.load_state_dict({"weight": linear.weight[:, :first], "bias": linear.bias})
    two.load_state_dict({"weight": linear.weight[:, first:]})
    return one, two


class ConcatFusion(nn.Module):
    def __init__(self, source: SensorFusion, seen: int) -> None:
        super().__init__()
        self.seen, self.felt = split(source.fusion_proj, seen)

    def forward(self, seen: Tensor, sensor: Tensor) -> Tensor:
        return self.seen(seen) + self.felt(sensor)


class GatedFusion(nn.Module):
    def __init__(self, source: SensorFusion) -> None:
        super().__init__()
        self.vl_proj, self.sensor_proj, self.fusion_proj = source.vl_proj, source.sensor_proj, source.fusion_proj
        self.gate_known, self.gate_asked = split(cast(nn.Linear, source.gate[0]), source.vl_proj.out_features)

    def forward(self, seen: Tensor, sensor: Tensor) -> Tensor:
        known, asked = self.vl_proj(seen), self.sensor_proj(sensor)
        gate = torch.sigmoid(self.gate_known(known) + self.gate_asked(asked))
        return self.fusion_proj(gate * known + (1 - gate) * asked)


class CrossAttentionFusion(nn.Module):
    """The sensor's query over one or two tokens; of one token the weight is 1 and nobody needs to ask."""

    def __init__(self, source: SensorFusion) -> None:
        super().__init__()
        self.tokens, self.heads = source.tokens, source.cross_attn.num_heads
        width = source.cross_attn.embed_dim
        self.vl_proj, self.sensor_proj, self.fusion_proj = source.vl_proj, source.sensor_proj, source.fusion_proj
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        weights, biases = source.cross_attn.in_proj_weight.chunk(3), source.cross_attn.in_proj_bias.chunk(3)
        for layer, weight, bias in zip((self.query, self.key, self.value), weights, biases, strict=True):
            layer.load_state_dict({"weight": weight, "bias": bias})
        self.out.load_state_dict(source.cross_attn.out_proj.state_dict())
        if self.tokens == 1:
            del self.query, self.key, self.sensor_proj

    def forward(self, seen: Tensor, sensor: Tensor) -> Tensor:
        if self.tokens == 1:
            return self.fusion_proj(self.out(self.value(self.vl_proj(seen))))
        known = self.vl_proj(seen.unflatten(-1, (self.tokens, -1)))  # (I, t, w)
        query = self.query(self.sensor_proj(sensor)).unflatten(-1, (self.heads, -1))  # (1, h, w/h)
        key = self.key(known).unflatten(-1, (self.heads, -1))  # (I, t, h, w/h)
        value = self.value(known).unflatten(-1, (self.heads, -1))
        logits = (query.unsqueeze(1) * key).sum(-1, keepdim=True) * query.shape[-1] ** -0.5  # (I, t, h, 1)
        answer = (torch.softmax(logits, dim=1) * value).sum(1)  # (I, h, w/h)
        return self.fusion_proj(self.out(answer.flatten(1)))
