"""The ``context`` stage: one frame's patches, I instructions' tokens and what is felt to K x I unit vectors.

Same mathematics as ``exporter/reference.py``, with the work rearranged around one fact: a pool has a single
query, so its keys and values need never be formed. With ``x`` the tokens and ``h`` a head,

    (q_h W_k,h) x^T              instead of   q_h (x W_k,h^T)^T       logits
    (softmax(.) x) W_v,h^T       instead of   softmax(.) (x W_v,h^T)  result

which turns two products over all L tokens into two over one query. The key bias adds the same number to all
logits of a head and drops out of the softmax; the value bias passes through, since weights sum to one. The first
block's query is a learned constant, so its logit weights are computed here once. Token similarities are shared by
all members; only their temperatures differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trunkline.exporter.reference import AttentionPool, PoolBlock, ReferenceMember, unit
from trunkline.exporter.stages.fusion import fusion_stage


class SingleQueryAttention(nn.Module):
    """Attention of one query per row over tokens, without keys or values: (I, E), (I, L, D) -> (I, E)."""

    def __init__(self, source: nn.MultiheadAttention, constant_query: Tensor | None) -> None:
        """Takes the weights of ``source``; with ``constant_query`` (E,) the query side becomes a constant."""
        super().__init__()
        heads, width = source.num_heads, source.embed_dim
        query_weight, key_weight, value_weight = _projections(source)
        query_bias, _, value_bias = source.in_proj_bias.chunk(3)
        scale = (width // heads) ** -0.5
        self.heads = heads
        self.query_weight = nn.Parameter((query_weight * scale).T.contiguous())  # (E, E)
        self.query_bias = nn.Parameter(query_bias * scale)
        self.key_weight = nn.Parameter(key_weight.reshape(heads, width // heads, -1).contiguous())  # (h, E/h, D)
        self.value_weight = nn.Parameter(
            value_weight.reshape(heads, width // heads, -1).transpose(1, 2).contiguous()  # (h, D, E/h)
        )
        self.value_bias = nn.Parameter(value_bias.clone())
        self.out_weight = nn.Parameter(source.out_proj.weight.T.contiguous())
        self.out_bias = nn.Parameter(source.out_proj.bias.clone())
        self.logit_weight: nn.Parameter | None = None
        if constant_query is not None:
            self.logit_weight = nn.Parameter(self._logit_weight(constant_query.unsqueeze(0)))  # (h, 1, D)
            del self.query_weight, self.query_bias, self.key_weight

    def _logit_weight(self, query: Tensor) -> Tensor:
        """(I, E) -> (h, I, D): what each head's logits multiply the tokens with."""
        projected = query @ self.query_weight + self.query_bias
        return projected.reshape(-1, self.heads, self.key_weight.shape[1]).transpose(0, 1) @ self.key_weight

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        by_head = self._logit_weight(query) if self.logit_weight is None else self.logit_weight
        logits = by_head.transpose(0, 1) @ tokens.transpose(1, 2)  # (I, h, L)
        read = torch.softmax(logits, dim=-1) @ tokens  # (I, h, D)
        values = (read.transpose(0, 1) @ self.value_weight).transpose(0, 1).flatten(1)  # (I, E)
        return (values + self.value_bias) @ self.out_weight + self.out_bias


def _projections(source: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value weights; torch packs them in one tensor where the widths are equal."""
    if source.in_proj_weight is not None:
        query, key, value = source.in_proj_weight.chunk(3)
        return query, key, value
    return source.q_proj_weight, source.k_proj_weight, source.v_proj_weight


class ContextBlock(nn.Module):
    """One pool block; see :class:`trunkline.exporter.reference.PoolBlock` for its unusual residual."""

    def __init__(self, source: PoolBlock, constant_query: Tensor | None) -> None:
        super().__init__()
        self.q_layer_norm = source.q_layer_norm
        normalised = None if constant_query is None else source.q_layer_norm(constant_query)
        self.attention = SingleQueryAttention(source.attention, normalised)
        self.layer_norm = source.layer_norm
        self.mlp = source.mlp

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        query = self.q_layer_norm(query)
        query = query + self.attention(query, tokens)
        query = self.layer_norm(query)
        return query + self.mlp(query)


class ContextPool(nn.Module):
    """One learned query reads L tokens: (I, L, D) -> (I, pool width)."""

    def __init__(self, source: AttentionPool) -> None:
        super().__init__()
        self.query = nn.Parameter(source.query.detach()[0].clone())  # (1, E)
        blocks = [
            ContextBlock(block, self.query[0] if index == 0 else None)
            for index, block in enumerate(source.blocks)
            if isinstance(block, PoolBlock)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.layer_norm = source.layer_norm

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query
        for block in self.blocks:
            query = block(query, tokens)  # (1, E) broadcasts to (I, E) in the first block
        return self.layer_norm(query)


class MemberContext(nn.Module):
    """One member's part after the shared similarities."""

    def __init__(self, source: ReferenceMember) -> None:
        super().__init__()
        extraction = source.text_aware_visual_extraction
        self.temperature = nn.Parameter(extraction.temperature.detach().clamp(0, 100).clone())
        self.pos_emb = nn.Parameter(extraction.pos_emb.clone())
        self.vision_pool = ContextPool(source.vision_poolings)
        self.text_pool = ContextPool(source.text_pooling)
        self.input_projection: nn.Module | None = None
        if source.shape.sensor is None:
            self.input_projection = source.input_projection
        else:
            self.sensor_fusion = fusion_stage(source.sensor_fusion, 2 * source.shape.pool_width)

    def forward(self, similarity: Tensor, patches: Tensor, tokens: Tensor, sensor: Tensor | None) -> Tensor:
        weights = torch.softmax(similarity / self.temperature, dim=-1)  # (I, L, P)
        extracted = weights @ (patches + self.pos_emb)  # (I, L, D)
        joint = torch.cat([self.text_pool(tokens), self.vision_pool(extracted)], dim=-1)
        if self.input_projection is not None:
            return unit(self.input_projection(joint))
        return unit(self.sensor_fusion(joint, sensor))


class ContextStage(nn.Module):
    """All members: ``patches`` (1, P, D), ``tokens`` (I, L, D), ``sensor`` (J, 1, S) -> ``context`` (K, I, E).

    An ensemble without sensor encoders has no third input.
    """

    def __init__(self, members: Sequence[ReferenceMember], encoder_of: Sequence[int | None] | None = None) -> None:
        """``encoder_of``: which of the J encoders each member reads, None for none."""
        super().__init__()
        self.encoder_of = tuple(encoder_of or [None] * len(members))
        with torch.no_grad():
            self.member = nn.ModuleList(MemberContext(member) for member in members)
        self.requires_grad_(False)

    def forward(self, patches: Tensor, tokens: Tensor, sensor: Tensor | None = None) -> Tensor:
        similarity = tokens @ patches.transpose(1, 2)  # (I, L, P)
        felt = [None if index is None or sensor is None else sensor[index] for index in self.encoder_of]
        contexts = [member(similarity, patches, tokens, each) for member, each in zip(self.member, felt, strict=True)]
        return torch.stack(contexts)
