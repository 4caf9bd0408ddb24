"""The whole PyTorch system that a bundle must agree with: open_clip trunk, hooks, members, fusion.

It runs in float32, which is what bundles are compared with, and in bfloat16 for the trunk, which is what the
published system runs: the difference of the two is the original's own rounding noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.reference import ReferenceMember, build_member, fuse
from trunkline.exporter.trunk import TextFeatures, Trunk, VisionFeatures


class PyTorchEnsemble:
    """Scores with torch. Not thread-safe: features are caught by hooks on the shared model."""

    def __init__(self, trunk: Trunk, checkpoint: Checkpoint, *, trunk_dtype: torch.dtype = torch.float32) -> None:
        """Builds the members; ``trunk_dtype`` bfloat16 casts the trunk's weights in place."""
        self.trunk = trunk
        self.checkpoint = checkpoint
        self.dtype = trunk_dtype
        self.members: list[ReferenceMember] = [build_member(member) for member in checkpoint.members]
        self.settings = checkpoint.members[0].settings
        self._model: Any = trunk.model.to(trunk_dtype)
        self._vision, self._text = VisionFeatures(self._model), TextFeatures(self._model)
        config = open_clip.transform.PreprocessCfg(**self._model.visual.preprocess_cfg)
        self._preprocess: Any = open_clip.transform.image_transform_v2(config, is_train=False)

    def preprocess(self, image: NDArray[np.uint8] | Image.Image) -> Tensor:
        """open_clip's own evaluation transform: (3, height, width) float32."""
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        return self._preprocess(picture)

    @torch.inference_mode()
    def features(self, image: NDArray[np.uint8] | Image.Image, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Patches (1, P, D) and tokens (I, L, D), float32 unit rows."""
        batch = self.preprocess(image).unsqueeze(0).to(self.dtype)
        ids = self.trunk.tokenizer(list(instructions), context_length=self.trunk.context_length)
        return self._vision(batch), self._text(ids)

    @torch.inference_mode()
    def embed(self, patches: Tensor, tokens: Tensor, histories: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """The members' unit vectors: (K, I, E) and (K, N, E)."""
        windows = torch.from_numpy(np.asarray(histories, np.float32))
        repeated = patches.expand(len(tokens), -1, -1)
        context = torch.stack([member.context(repeated, tokens) for member in self.members])
        return context, torch.stack([member.action(windows) for member in self.members])

    def score(
        self, image: NDArray[np.uint8] | Image.Image, instructions: Sequence[str], histories: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Fused scores (I, N) and members' scores (K, I, N) of full windows (N, H, A)."""
        context, action = self.embed(*self.features(image, instructions), histories)
        fused = fuse(list(context)) @ fuse(list(action)).T
        return fused.numpy(), (context @ action.transpose(1, 2)).numpy()
