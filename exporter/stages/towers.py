"""The ``vision`` and ``text`` stages: the trunk's two features, from the bytes a camera gives and from token ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trunkline.exporter.cut import TextFeatures, VisionFeatures
from trunkline.exporter.trunk import Trunk


class VisionStage(nn.Module):
    """``pixels`` (B, height, width, 3) uint8 RGB -> ``patches`` (B, P, D).

    Scaling and normalisation are done as torchvision does them: divide by 255, subtract, divide.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.features = VisionFeatures(trunk.model)
        self.mean = nn.Parameter(torch.tensor(trunk.image.mean).reshape(3, 1, 1), requires_grad=False)
        self.std = nn.Parameter(torch.tensor(trunk.image.std).reshape(3, 1, 1), requires_grad=False)

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255  # (B, 3, height, width)
        return self.features((images - self.mean) / self.std)


class TextStage(nn.Module):
    """``ids`` (I, L) int64 -> ``tokens`` (I, L, D)."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.features = TextFeatures(trunk.model)

    def forward(self, ids: Tensor) -> Tensor:
        return self.features(ids)
