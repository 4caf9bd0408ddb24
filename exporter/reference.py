"""The ensemble in plain PyTorch, module for module as the published system builds it.

This is the yardstick, not the product: attention is ``torch.nn.MultiheadAttention``, trajectories go through
``torch.nn.TransformerEncoder``, and every candidate carries its own copy of the context. The stages that are
compiled (``exporter/stages``) restructure the same mathematics and are compared with this file.

Parameter names equal the checkpoint's, so ``load_state_dict(strict=True)`` is the whole loading code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trunkline.exporter.checkpoint.members import ALL_COMPONENTS, HeadShape, Member
from trunkline.exporter.reference_sensor import SensorEncoder, SensorFusion
from trunkline.runtime.errors import SensorError
from trunkline.runtime.sensor.form import SensorForm


class TextAwareVisualExtraction(nn.Module):
    """Mixes patches by their similarity to each text token.

    ``softmax(t p^T / clamp(temperature, 0, 100)) (p + pos_emb)``: similarity without, mixture with position.
    """

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.register_buffer("pos_emb", sinusoid(patches, width))
        self.pos_emb: Tensor

    def forward(self, patches: Tensor, tokens: Tensor) -> Tensor:
        similarity = tokens @ patches.transpose(1, 2)  # (B, L, P)
        weights = torch.softmax(similarity / self.temperature.clamp(0, 100), dim=-1)
        return weights @ (patches + self.pos_emb)  # (B, L, D)


def sinusoid(rows: int, width: int) -> Tensor:
    """(rows, width) float32 position code: all sines, then all cosines, frequencies ``10000^(-2j/width)``."""
    frequency = 10000 ** (-2 * torch.arange(width // 2) / width)
    angle = torch.arange(rows).unsqueeze(1) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class PoolMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class PoolBlock(nn.Module):
    """Cross-attention block whose residual carries the *normalised* query."""

    def __init__(self, width: int, token_width: int, heads: int) -> None:
        super().__init__()
        self.q_layer_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, kdim=token_width, vdim=token_width, batch_first=True)
        self.layer_norm = nn.LayerNorm(width)
        self.mlp = PoolMlp(width)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        query = self.q_layer_norm(query)
        query = query + self.attention(query, tokens, tokens, need_weights=False)[0]
        query = self.layer_norm(query)
        return query + self.mlp(query)


class AttentionPool(nn.Module):
    """One learned query reads a token sequence: (B, L, D) -> (B, pool_width)."""

    def __init__(self, width: int, token_width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(PoolBlock(width, token_width, heads) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query.expand(len(tokens), -1, -1)
        for block in self.blocks:
            query = block(query, tokens)
        return self.layer_norm(query).flatten(1)


class ReferenceMember(nn.Module):
    """One head. ``context`` and ``action`` give unit vectors (B, E) whose dot product is the member's score."""

    def __init__(self, shape: HeadShape, padding_value: float, form: SensorForm | None = None) -> None:
        """``form`` is that of the sensor's windows, the published one by default; only its resampling matters here."""
        super().__init__()
        self.shape = shape
        self.padding_value = padding_value
        self.text_aware_visual_extraction = TextAwareVisualExtraction(shape.patches, shape.trunk_width)
        pool = (shape.pool_width, shape.trunk_width, shape.heads, shape.pool_layers)
        self.vision_poolings = AttentionPool(*pool)
        self.text_pooling = AttentionPool(*pool)
        if shape.sensor is None:
            self.input_projection = nn.Linear(2 * shape.pool_width, shape.embedding)
        else:
            self.sensor_encoder = SensorEncoder(shape.sensor, form or SensorForm(), shape.sensor_heads)
            self.sensor_fusion = SensorFusion(shape.sensor, 2 * shape.pool_width, shape.embedding, shape.sensor_heads)
        if shape.encoder == "transformer":
            self.single_step_action_encoder = nn.Linear(shape.action_dim, shape.embedding)
            layer = nn.TransformerEncoderLayer(shape.embedding, shape.heads, shape.feedforward, dropout=0.1)
            self.trajectory_encoder = nn.TransformerEncoder(layer, shape.encoder_layers, enable_nested_tensor=False)
        else:
            self.complex_action_encoder = nn.Sequential(
                nn.Linear(shape.history_length * shape.action_dim, shape.feedforward),
                nn.LayerNorm(shape.feedforward),
                nn.ReLU(),
                nn.Dropout(0.1),
                nn.Linear(shape.feedforward, shape.embedding),
            )

    def context(self, patches: Tensor, tokens: Tensor, sensor: Tensor | None = None) -> Tensor:
        """(B, P, D), (B, L, D), features (B, S) float32 -> (B, E) unit vectors; text comes first in what is joined.

        Members without a sensor ignore ``sensor``.
        """
        extracted = self.text_aware_visual_extraction(patches, tokens)
        joint = torch.cat([self.text_pooling(tokens), self.vision_poolings(extracted)], dim=-1)
        if self.shape.sensor is None:
            return unit(self.input_projection(joint))
        return unit(self.sensor_fusion(joint, sensor))

    def feel(self, windows: Tensor | None) -> Tensor | None:
        """Sensor features (B, S) of windows (B, T, C); of None (1, S), what stands for "no sensor".

        None for a member without a sensor.

        Raises:
            SensorError: there are no windows, and the encoder carries nothing that stands for that.
        """
        if self.shape.sensor is None:
            return None
        if windows is not None:
            return self.sensor_encoder(windows)
        if self.sensor_encoder.absent is None:
            raise SensorError("a member reads a sensor, there is none, and it was not trained for that")
        return self.sensor_encoder.absent.unsqueeze(0)

    def action(self, histories: Tensor) -> Tensor:
        """(N, H, A) float32 -> (N, E) unit vectors."""
        if self.shape.encoder == "mlp":
            return unit(self.complex_action_encoder(histories.flatten(1)))
        padding = histories[:, :, 0] == self.padding_value
        steps = self.single_step_action_encoder(histories).transpose(0, 1)  # (H, N, E)
        encoded = self.trajectory_encoder(steps, src_key_padding_mask=padding).transpose(0, 1)
        real = (~padding).unsqueeze(-1).float()
        return unit((encoded * real).sum(1) / real.sum(1).clamp(min=1e-9))

    def components(self) -> dict[str, dict[str, Tensor]]:
        """The state dict in the nested form that checkpoints use."""
        children = dict(self.named_children())
        return {name: dict(children[name].state_dict()) for name in ALL_COMPONENTS if name in children}


def unit(vectors: Tensor) -> Tensor:
    """Rows scaled to length one, without epsilon, as the published system does it."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


def build_member(member: Member) -> ReferenceMember:
    """The PyTorch module of one checkpoint member, in eval mode and float32."""
    module = ReferenceMember(member.shape, member.settings.padding_value, member.settings.sensor)
    module.load_state_dict(member.tensors(), strict=True)
    return module.float().eval().requires_grad_(False)


def fuse(vectors: Sequence[Tensor]) -> Tensor:
    """Mean of the members' unit vectors, made a unit vector again: K x (B, E) -> (B, E)."""
    return unit(torch.stack(list(vectors)).mean(dim=0))
