"""Golden vectors: inputs, and what the PyTorch ensemble in float32 makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from trunkline.exporter.probes import FRAME_SIZES, PROBE_INSTRUCTIONS, frame, windows
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.runtime.image import to_pixels
from trunkline.runtime.parity import golden_name
from trunkline.runtime.progress import Progress, silent

SEED = 20260
CANDIDATES = 16
MAX_INSTRUCTIONS = 4


def write_golden(
    reference: PyTorchEnsemble, path: Path, baked: Sequence[str] | None, progress: Progress = silent
) -> tuple[str, ...]:
    """Writes golden vectors and returns the instructions they use."""
    random = np.random.default_rng(SEED)
    instructions = tuple((baked or PROBE_INSTRUCTIONS)[:MAX_INSTRUCTIONS])
    ids = reference.trunk.tokenizer(list(instructions), context_length=reference.trunk.context_length).numpy()
    tensors: dict[str, NDArray[np.generic]] = {}
    for index, (height, width) in enumerate(FRAME_SIZES):
        progress("PyTorch reference", index, len(FRAME_SIZES))
        image = frame(random, height, width)
        histories = windows(random, CANDIDATES, reference.settings)
        scores, member_scores = reference.score(image, instructions, histories)
        parts = {
            "frame": image,
            "pixels": to_pixels(image, reference.trunk.image),
            "ids": ids,
            "histories": histories,
            "scores": scores,
            "member_scores": member_scores,
        }
        tensors |= {golden_name(kind, index): np.ascontiguousarray(value) for kind, value in parts.items()}
    progress("PyTorch reference", len(FRAME_SIZES), len(FRAME_SIZES))
    save_file(tensors, path)
    return instructions
