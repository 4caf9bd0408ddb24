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
from torch.nn import functional
from torchvision import transforms

from trunkline.exporter.checkpoint.members import Checkpoint, shared_settings
from trunkline.exporter.cut import TextFeatures, VisionFeatures
from trunkline.exporter.reference import ReferenceMember, build_member, fuse
from trunkline.exporter.trunk import Trunk


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
        config = open_clip.transform.PreprocessCfg(**trunk.preprocess)
        self._preprocess: Any = open_clip.transform.image_transform_v2(config, is_train=False)

    def preprocess(self, image: NDArray[np.uint8] | Image.Image) -> Tensor:
        """open_clip's own evaluation transform: (3, height, width) float32."""
        return self._preprocess(_picture(image))

    def pixels(self, image: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
        """(height, width, 3): what the same transform has before mean and std."""
        *before, _normalize = self._preprocess.transforms
        scaled = transforms.Compose(before)(_picture(image))
        return (scaled * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()

    @torch.inference_mode()
    def features(self, image: NDArray[np.uint8] | Image.Image, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Patches (1, P, D) and tokens (I, L, D), float32 unit rows."""
        batch = self.preprocess(image).unsqueeze(0).to(self.dtype)
        ids = self.trunk.tokenizer(list(instructions), context_length=self.trunk.context_length)
        return self._vision(batch), self._text(ids)

    @torch.inference_mode()
    def embed(
        self, patches: Tensor, tokens: Tensor, histories: NDArray[np.float32], sensor: NDArray[np.float32] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The members' unit vectors: (K, I, E) and (K, N, E)."""
        windows = torch.from_numpy(np.asarray(histories, np.float32))
        repeated = patches.expand(len(tokens), -1, -1)
        felt = None if sensor is None else self.sensor_batch(sensor)
        contexts = [_context(member, repeated, tokens, felt) for member in self.members]
        return torch.stack(contexts), torch.stack([member.action(windows) for member in self.members])

    def sensor_batch(self, samples: NDArray[np.float32]) -> Tensor:
        """Samples (n, C) of a stream as a batch of one window, cut or padded as in training; not yet resampled."""
        form = shared_settings(self.checkpoint).sensor
        rows = torch.from_numpy(np.asarray(samples, np.float32))
        if form is None or form.adaptive:
            return rows.unsqueeze(0)
        rows = rows[-form.samples :]
        short = form.samples - len(rows)
        padding = (0, 0, short, 0) if form.padding == "left" else (0, 0, 0, short)
        return functional.pad(rows, padding).unsqueeze(0)

    def score(
        self,
        image: NDArray[np.uint8] | Image.Image,
        instructions: Sequence[str],
        histories: NDArray[np.float32],
        sensor: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Fused scores (I, N) and members' scores (K, I, N) of full windows (N, H, A).

        ``sensor`` holds samples (n, C) of the stream; None is for members without a sensor, or trained for its absence.
        """
        context, action = self.embed(*self.features(image, instructions), histories, sensor)
        fused = fuse(list(context)) @ fuse(list(action)).T
        return fused.numpy(), (context @ action.transpose(1, 2)).numpy()


def _picture(image: NDArray[np.uint8] | Image.Image) -> Image.Image:
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _context(member: ReferenceMember, patches: Tensor, tokens: Tensor, windows: Tensor | None) -> Tensor:
    """(I, E) unit vectors of one member under I instructions, all with the same window."""
    felt = member.feel(windows)
    return member.context(patches, tokens, None if felt is None else felt.expand(len(tokens), -1))
