"""The ``steps`` and ``sensor`` stages: a window's samples to encoder steps, and those to features.

Same mathematics as ``exporter/reference_sensor.py``. Three things are rearranged:

1. Batch norm is folded into the convolution before it, in float64 (it is an affine map of each channel).
2. A convolution of three samples with stride 2 is one linear layer over rows ``[x[2j-1], x[2j], x[2j+1]]``. Rows of
   pairs are there already, so only the odd neighbour is moved. As a linear layer it is quantised like any other.
3. The convolutions work on *blocks* of as many samples as lie between two of their outputs (16 for four layers), one
   output per block. An output reads its own block and 15 samples before it, nothing behind. So block 0, which begins
   the window, may be followed by any other: its output needs none of them. Blocks from 1 on are consecutive and end
   with the window's end; the first of them follows a block that is not its neighbour, so its output is wrong and nobody
   reads it. A whole window is fed as its first block and then all blocks, the first again. A window that has slid by
   whole blocks needs only its first block, the block before the first one that is new or touches the end, and those:
   the other outputs are the old ones, moved.

What is cut off at the end: a window is seldom a multiple of 16 samples. Behind the last sample come zeros, and after
each layer there are zeros again instead of outputs, which is the padding the next layer expects. A
window has two blocks at least, so that its first and its last are not the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trunkline.exporter.reference_sensor import BLOCK, SensorEncoder
from trunkline.exporter.stages.action import packed_qkv


def folded(convolution: nn.Conv1d, norm: nn.BatchNorm1d) -> nn.Linear:
    """Both as one linear layer over ``[x[2j-1], x[2j], x[2j+1]]``: (rows, 3 C_in) -> (rows, C_out)."""
    scale = norm.weight.double() / (cast(Tensor, norm.running_var).double() + norm.eps).sqrt()
    weight = convolution.weight.double() * scale[:, None, None]  # (C_out, C_in, 3)
    bias = cast(Tensor, convolution.bias).double() - cast(Tensor, norm.running_mean).double()
    linear = nn.Linear(3 * convolution.in_channels, convolution.out_channels)
    state = {"weight": weight.permute(0, 2, 1).flatten(1), "bias": bias * scale + norm.bias.double()}
    linear.load_state_dict({name: value.float() for name, value in state.items()})
    return linear


class EncoderSteps(nn.Module):
    """One encoder's convolutions: (Q, stride, C) -> (Q, W); see the module for the order of blocks."""

    def __init__(self, source: SensorEncoder, steps: int) -> None:
        """``steps``: rows of a whole window after resampling."""
        super().__init__()
        layers = list(source.conv_backbone)
        pairs = zip(layers[::BLOCK], layers[1::BLOCK], strict=True)
        self.conv = nn.ModuleList(folded(cast(nn.Conv1d, one), cast(nn.BatchNorm1d, two)) for one, two in pairs)
        self.beyond = _rows_beyond_the_end(steps, len(self.conv))

    def forward(self, samples: Tensor) -> Tensor:
        x = samples.flatten(0, 1)  # (Q stride, C)
        for linear, beyond in zip(self.conv, self.beyond, strict=True):
            pairs = x.reshape(-1, 2 * x.shape[1])  # rows (x[2j], x[2j+1])
            before = torch.cat([torch.zeros(1, x.shape[1]), pairs[:-1, x.shape[1] :]])  # x[2j-1]
            read = torch.cat([before, pairs], dim=1)
            x = functional.gelu(linear(read[:-beyond] if beyond else read))
            if beyond:
                x = torch.cat([x, torch.zeros(beyond, x.shape[1])])
        return x


def _rows_beyond_the_end(steps: int, layers: int) -> list[int]:
    """After each layer, rows of the last block that lie behind the window's end."""
    rows = -(-steps // 2**layers) * 2**layers
    beyond = []
    for _ in range(layers):
        steps, rows = -(-steps // 2), rows // 2
        beyond.append(rows - steps)
    return beyond


class StepsStage(nn.Module):
    """All encoders: ``samples`` (Q, stride, C) -> ``steps`` (J, Q, W)."""

    def __init__(self, encoders: Sequence[SensorEncoder]) -> None:
        super().__init__()
        with torch.no_grad():
            self.encoder = nn.ModuleList(EncoderSteps(encoder, encoder.form.steps) for encoder in encoders)
        self.requires_grad_(False)

    def forward(self, samples: Tensor) -> Tensor:
        return torch.stack([encoder(samples) for encoder in self.encoder])


class PreNormLayer(nn.Module):
    """Pre-norm encoder layer with ReLU: (1, M, W) -> (1, M, W)."""

    def __init__(self, source: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.heads = source.self_attn.num_heads
        self.qkv = packed_qkv(source)
        self.out_proj = nn.Linear(source.self_attn.embed_dim, source.self_attn.embed_dim)
        self.out_proj.load_state_dict(source.self_attn.out_proj.state_dict())
        self.linear1, self.linear2 = source.linear1, source.linear2
        self.norm1, self.norm2 = source.norm1, source.norm2

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)  # (1, h, M, W/h)
        x = x + self.out_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.linear2(functional.relu(self.linear1(self.norm2(x))))


class EncoderFeatures(nn.Module):
    """One encoder behind its convolutions: steps (M, W) -> features (1, S)."""

    def __init__(self, source: SensorEncoder) -> None:
        super().__init__()
        layers = [] if source.transformer is None else source.transformer.layers
        self.layers = nn.ModuleList(PreNormLayer(cast(nn.TransformerEncoderLayer, layer)) for layer in layers)
        first, norm, _, _, last = source.projection
        self.hidden, self.norm, self.projection = first, norm, last

    def forward(self, steps: Tensor) -> Tensor:
        x = steps.unsqueeze(0)
        for layer in self.layers:
            x = layer(x)
        return self.projection(functional.gelu(self.norm(self.hidden(x.mean(dim=1)))))


class SensorStage(nn.Module):
    """All encoders: ``steps`` (J, M + 1, W) as the steps stage gives them for a window -> ``sensor`` (J, 1, S)."""

    def __init__(self, encoders: Sequence[SensorEncoder]) -> None:
        super().__init__()
        with torch.no_grad():
            self.encoder = nn.ModuleList(EncoderFeatures(encoder) for encoder in encoders)
        self.requires_grad_(False)

    def forward(self, steps: Tensor) -> Tensor:
        # Row 1 is the first block once more, with a border that is not the window's.
        read = [torch.cat([rows[:1], rows[2:]]) for rows in steps.unbind(0)]
        return torch.stack([encoder(rows) for encoder, rows in zip(self.encoder, read, strict=True)])
