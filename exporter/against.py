"""Verification against the checkpoint: fresh random inputs through the bundle and through PyTorch.

Two references: float32, which the bundle must equal, and the trunk in bfloat16, which the published system runs. The
second shows how much the original rounds by itself, so that our error can be seen beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trunkline.calibration.samples.synthetic import frame, windows
from trunkline.exporter.golden import probe_sensors
from trunkline.exporter.own_preprocessing import in_words
from trunkline.exporter.probes import FRAME_SIZES, PROBE_INSTRUCTIONS
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.runtime.ensemble import Ensemble
from trunkline.runtime.image import normalised
from trunkline.runtime.parity import Comparison, clear_margin, compare
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.sensor.window import SensorWindow


@dataclass(frozen=True)
class AgainstReport:
    """``ours``: bundle against PyTorch float32. ``original``: PyTorch with a bfloat16 trunk against the same.

    ``preprocessing`` says what differs between the bundle's preprocessing and the trunk's own, if their vision towers
    would not be given the same numbers.
    """

    ours: Comparison
    original: Comparison
    preprocessing: str | None
    seed: int
    allowed_score_change: float
    passed: bool

    def problems(self) -> list[str]:
        """What differs more than the gate allows, in words."""
        found = [] if self.preprocessing is None else [self.preprocessing]
        if self.ours.max_score_change > self.allowed_score_change:
            found.append(f"a score changed by {self.ours.max_score_change:.3g}")
        if self.ours.winners_changed:
            found.append(f"{self.ours.winners_changed} of {self.ours.decisions} decisions have another winner")
        return found


def verify_against(
    ensemble: Ensemble,
    reference: PyTorchEnsemble,
    *,
    frames: int = 4,
    candidates: int = 20,
    seed: int | None = None,
    progress: Progress = silent,
) -> AgainstReport:
    """Compares a bundle with the checkpoint it should have come from.

    Args:
        ensemble: the loaded bundle.
        reference: the same ensemble in PyTorch, float32. Its trunk is cast to bfloat16 in place: it is used up.
        frames: random frames, each scored under all probe instructions.
        candidates: windows per frame.
        seed: of the random inputs; a new one by default, and reported.
        progress: counts frames of both references.
    """
    seed = int(np.random.SeedSequence().entropy) % (1 << 32) if seed is None else seed  # type: ignore[arg-type]
    instructions = ensemble.bundle.manifest.text.instructions[:4] or PROBE_INSTRUCTIONS
    random = np.random.default_rng(seed)
    sensors = probe_sensors(reference, random, frames)
    cases = []
    for index, samples in enumerate(sensors):
        size = FRAME_SIZES[index % len(FRAME_SIZES)]
        cases.append((frame(random, *size), windows(random, candidates, reference.settings), samples))
    preprocessing = _preprocessing(ensemble, reference, [image for image, _, _ in cases])
    ours = [_score(ensemble, image, instructions, histories, samples) for image, histories, samples in cases]
    scored: dict[torch.dtype, list[NDArray[np.float32]]] = {}
    for step, dtype in enumerate((torch.float32, torch.bfloat16)):
        if dtype != reference.dtype:
            reference = PyTorchEnsemble(reference.trunk, reference.checkpoint, trunk_dtype=dtype)
        scored[dtype] = []
        for index, (image, histories, samples) in enumerate(cases):
            progress("PyTorch reference", step * frames + index, 2 * frames)
            scored[dtype].append(reference.score(image, instructions, histories, samples)[0])
    progress("PyTorch reference", 2 * frames, 2 * frames)
    allowed = ensemble.allowed_score_change
    margin = clear_margin(allowed)
    exact = np.stack(scored[torch.float32])
    mine = compare(exact, np.stack(ours), margin)
    original = compare(exact, np.stack(scored[torch.bfloat16]), margin)
    passed = mine.max_score_change <= allowed and mine.winners_changed == 0 and preprocessing is None
    return AgainstReport(mine, original, preprocessing, seed, allowed, passed)


def _preprocessing(ensemble: Ensemble, reference: PyTorchEnsemble, frames: Sequence[NDArray[np.uint8]]) -> str | None:
    """What differs between the bundle's preprocessing and the trunk's own; None if nothing does on these frames."""
    mine = ensemble.bundle.manifest.image
    given = [normalised(ensemble.pixels(image), mine) for image in frames]
    if all(np.array_equal(one, reference.preprocess(image)) for one, image in zip(given, frames, strict=True)):
        return None
    theirs = in_words(reference.trunk.preprocess)
    return f"preprocessing differs: {mine.in_words()} in the bundle, the trunk's own is {theirs}"


def _score(
    ensemble: Ensemble,
    image: NDArray[np.uint8],
    instructions: Sequence[str],
    histories: NDArray[np.float32],
    samples: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Fused scores (I, N); ``samples`` are of the bundle's own stream."""
    form = ensemble.sensor
    window = None if form is None or samples is None else SensorWindow(samples, form.rate_hz)
    return ensemble.score(image, instructions, histories, sensor=window).scores
