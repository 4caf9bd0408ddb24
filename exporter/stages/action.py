"""The ``action`` stage: N candidate windows to K x N unit vectors.

Same mathematics as ``exporter/reference.py``. In the first layer the step encoder and the query/key/value projection
are two linear maps in a row; they are multiplied once at export, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trunkline.exporter.reference import ReferenceMember, unit


class TrajectoryLayer(nn.Module):
    """Post-norm encoder layer with ReLU; ``inputs`` feed the projections, ``residual`` the sum."""

    def __init__(self, source: nn.TransformerEncoderLayer, inputs: nn.Linear) -> None:
        super().__init__()
        self.heads = source.self_attn.num_heads
        self.qkv = inputs
        self.out_proj = nn.Linear(source.self_attn.embed_dim, source.self_attn.embed_dim)
        self.out_proj.load_state_dict(source.self_attn.out_proj.state_dict())
        self.linear1, self.linear2 = source.linear1, source.linear2
        self.norm1, self.norm2 = source.norm1, source.norm2

    def forward(self, inputs: Tensor, residual: Tensor, mask: Tensor) -> Tensor:
        """(N, H, A or E), (N, H, E), (N, 1, H, H) bool -> (N, H, E)."""
        query, key, value = self.qkv(inputs).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (N, h, H, E/h)
        x = self.norm1(residual + self.out_proj(mixed.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.linear2(functional.relu(self.linear1(x))))


class TrajectoryAction(nn.Module):
    """One member's transformer path: (N, H, A) -> (N, E) unit vectors."""

    def __init__(self, source: ReferenceMember) -> None:
        super().__init__()
        self.padding_value = source.padding_value
        self.step = source.single_step_action_encoder
        layers = [layer for layer in source.trajectory_encoder.layers if isinstance(layer, nn.TransformerEncoderLayer)]
        first, *rest = layers
        self.layers = nn.ModuleList(
            [TrajectoryLayer(first, _composed(self.step, packed_qkv(first)))]
            + [TrajectoryLayer(layer, packed_qkv(layer)) for layer in rest]
        )

    def forward(self, history: Tensor) -> Tensor:
        real = history[:, :, 0] != self.padding_value  # (N, H)
        # One row per query: onnxruntime does not broadcast the mask over queries.
        mask = real[:, None, None, :].expand(-1, 1, real.shape[1], -1)
        inputs, x = history, self.step(history)
        for layer in self.layers:
            x = layer(inputs, x, mask)
            inputs = x
        weights = real.unsqueeze(-1).to(x.dtype)
        return unit((x * weights).sum(1) / weights.sum(1).clamp(min=1e-9))


def packed_qkv(layer: nn.TransformerEncoderLayer) -> nn.Linear:
    """Query, key and value projection of a layer as one linear map."""
    attention = layer.self_attn
    linear = nn.Linear(attention.embed_dim, 3 * attention.embed_dim)
    linear.load_state_dict({"weight": attention.in_proj_weight, "bias": attention.in_proj_bias})
    return linear


def _composed(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """``second(first(x))`` as one linear map."""
    weight = second.weight.double() @ first.weight.double()
    bias = second.weight.double() @ first.bias.double() + second.bias.double()
    linear = nn.Linear(first.in_features, second.out_features)
    linear.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return linear


class MlpAction(nn.Module):
    """One member's MLP path; padding enters as ordinary numbers, as in training."""

    def __init__(self, source: ReferenceMember) -> None:
        super().__init__()
        self.encoder = source.complex_action_encoder

    def forward(self, history: Tensor) -> Tensor:
        return unit(self.encoder(history.flatten(1)))


class ActionStage(nn.Module):
    """All members: ``history`` (N, H, A) -> ``action`` (K, N, E)."""

    def __init__(self, members: Sequence[ReferenceMember]) -> None:
        super().__init__()
        kind = TrajectoryAction if members[0].shape.encoder == "transformer" else MlpAction
        with torch.no_grad():
            self.member = nn.ModuleList(kind(member) for member in members)
        self.requires_grad_(False)

    def forward(self, history: Tensor) -> Tensor:
        return torch.stack([member(history) for member in self.member])
