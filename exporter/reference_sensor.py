"""The sensor side of a member in PyTorch, as the published system computes it: encoder, and fusion with what is seen.

Names of modules are those of the published state dicts. What differs from the published code changes no number: sizes
are arguments, and ``cubic`` resampling works (PyTorch has none for one dimension; its ``bicubic`` is taken along time).
``absent`` is ours: what stands for the features where there is no sensor.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from trunkline.runtime.sensor.form import Resample, SensorForm

if TYPE_CHECKING:
    from trunkline.exporter.checkpoint.members import SensorShape

KERNEL, STRIDE = 3, 2
#: Modules of one convolution block in ``conv_backbone``: convolution, batch norm, GELU, dropout.
BLOCK = 4
DROPOUT = 0.1


class SensorEncoder(nn.Module):
    """Windows (B, T, C) float32 to features (B, S); batch norm with running statistics, so use it in eval mode."""

    def __init__(self, shape: SensorShape, form: SensorForm, heads: int) -> None:
        super().__init__()
        self.shape, self.form = shape, form
        widths = [shape.channels, *shape.conv]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            convolution = nn.Conv1d(before, after, KERNEL, stride=STRIDE, padding=1)
            layers += [convolution, nn.BatchNorm1d(after), nn.GELU(), nn.Dropout(DROPOUT)]
        self.conv_backbone = nn.Sequential(*layers)
        self.transformer: nn.TransformerEncoder | None = None
        if shape.layers:
            layer = nn.TransformerEncoderLayer(
                widths[-1], heads, shape.feedforward, dropout=DROPOUT, batch_first=True, norm_first=True
            )
            self.transformer = nn.TransformerEncoder(layer, shape.layers, enable_nested_tensor=False)
        hidden = shape.projection
        self.projection = nn.Sequential(
            nn.Linear(widths[-1], hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(hidden, shape.features),
        )
        self.absent = nn.Parameter(torch.zeros(shape.features)) if shape.absent else None

    def forward(self, windows: Tensor) -> Tensor:
        """(B, any T, C) -> (B, S)."""
        x = self.conv_backbone(self.resampled(windows).transpose(1, 2)).transpose(1, 2)
        if self.transformer is not None:
            x = self.transformer(x)
        return self.projection(x.mean(dim=1))

    def resampled(self, windows: Tensor) -> Tensor:
        """(B, T, C) at the encoder's number of steps."""
        if windows.shape[1] == self.form.steps:
            return windows
        return resample(windows.transpose(1, 2), self.form.steps, self.form.resample).transpose(1, 2)


def resample(x: Tensor, steps: int, mode: Resample) -> Tensor:
    """(B, C, T) -> (B, C, steps) by PyTorch's own interpolation."""
    if mode == "cubic":
        image = functional.interpolate(x.unsqueeze(-1), size=(steps, 1), mode="bicubic", align_corners=False)
        return image.squeeze(-1)
    if mode == "nearest":  # which refuses to be told about corners
        return functional.interpolate(x, size=steps, mode="nearest")
    return functional.interpolate(x, size=steps, mode="linear", align_corners=False)


class SensorFusion(nn.Module):
    """What is seen and read, ``seen`` (B, V), joined with sensor features (B, S) to (B, E); no unit vectors yet.

    ``concat``: one linear map of both. ``gated``: a learned mix of both projections. ``cross_attention``: the sensor
    asks, and the vision-language tokens answer; with a single token the answer does not depend on the question.
    """

    def __init__(self, shape: SensorShape, seen: int, embedding: int, heads: int) -> None:
        super().__init__()
        self.kind, self.tokens = shape.fusion, shape.tokens
        if shape.fusion == "concat":
            self.fusion_proj = nn.Linear(seen + shape.features, embedding)
            return
        width = shape.fusion_width
        self.vl_proj = nn.Linear(seen // shape.tokens, width)
        self.sensor_proj = nn.Linear(shape.features, width)
        if shape.fusion == "gated":
            self.gate = nn.Sequential(OrderedDict([("0", nn.Linear(2 * width, width)), ("1", nn.Sigmoid())]))
        else:
            self.cross_attn = nn.MultiheadAttention(width, heads, dropout=DROPOUT, batch_first=True)
        self.fusion_proj = nn.Linear(width, embedding)

    def forward(self, seen: Tensor, sensor: Tensor) -> Tensor:
        if self.kind == "concat":
            return self.fusion_proj(torch.cat([seen, sensor], dim=-1))
        asked = self.sensor_proj(sensor)
        if self.kind == "gated":
            known = self.vl_proj(seen)
            gate = self.gate(torch.cat([known, asked], dim=-1))
            return self.fusion_proj(gate * known + (1 - gate) * asked)
        known = self.vl_proj(seen.unflatten(-1, (self.tokens, -1)))  # (B, tokens, width)
        return self.fusion_proj(self.cross_attn(asked.unsqueeze(1), known, known, need_weights=False)[0].squeeze(1))
