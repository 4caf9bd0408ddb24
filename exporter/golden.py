"""Golden vectors: inputs, and what the PyTorch ensemble in float32 makes of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save

from trunkline.calibration.samples.sample import CalibrationSample, Camera
from trunkline.calibration.samples.synthetic import candidates_for, frame, stream, windows
from trunkline.exporter.checkpoint.members import knows_absence, shared_settings
from trunkline.exporter.probes import FRAME_SIZES, PROBE_INSTRUCTIONS
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.runtime.manifest import ActionsEntry
from trunkline.runtime.parity import golden_name, pixels_digest
from trunkline.runtime.progress import Progress, silent

SEED = 20260
CANDIDATES = 16
MAX_INSTRUCTIONS = 4
SAMPLE_FRAMES = 3


@dataclass(frozen=True, eq=False)
class GoldenInputs:
    """Frames (height, width, 3) uint8, each with its candidates (N, H, A); all are scored under all instructions.

    ``sensors``: samples (n, C) of the stream for each frame, None for a frame without.
    """

    frames: tuple[NDArray[np.uint8], ...]
    histories: tuple[NDArray[np.float32], ...]
    instructions: tuple[str, ...]
    sensors: tuple[NDArray[np.float32] | None, ...]


def probe_inputs(reference: PyTorchEnsemble, baked: Sequence[str] | None) -> GoldenInputs:
    """Made-up frames and candidates, for a bundle that is exported without data."""
    random = np.random.default_rng(SEED)
    frames, histories = [], []
    for height, width in FRAME_SIZES:
        frames.append(frame(random, height, width))
        histories.append(windows(random, CANDIDATES, reference.settings))
    instructions = tuple((baked or PROBE_INSTRUCTIONS)[:MAX_INSTRUCTIONS])
    return GoldenInputs(tuple(frames), tuple(histories), instructions, probe_sensors(reference, random, len(frames)))


def probe_sensors(
    reference: PyTorchEnsemble, random: np.random.Generator, count: int
) -> tuple[NDArray[np.float32] | None, ...]:
    """Made-up samples for each of ``count`` frames; the last one has none if the ensemble knows what absence means."""
    form, absence = shared_settings(reference.checkpoint).sensor, knows_absence(reference.checkpoint)
    if form is None:
        return (None,) * count
    lengths = [form.samples] * count
    if form.adaptive or form.padding != "none":
        lengths[1:] = [max(1, form.samples // 3)] * (count - 1)
    sensors = [stream(random, length, form.channels) for length in lengths]
    return (*sensors[:-1], None) if absence else tuple(sensors)


def sample_inputs(samples: Sequence[CalibrationSample], actions: ActionsEntry) -> GoldenInputs:
    """Real frames, candidates and instructions, evenly spread over the samples."""
    chosen = samples[:: max(1, len(samples) // SAMPLE_FRAMES)][:SAMPLE_FRAMES]
    return GoldenInputs(
        frames=tuple(_rgb(sample.open()) for sample in chosen),
        histories=tuple(candidates_for(sample, actions)[:CANDIDATES] for sample in chosen),
        instructions=tuple(dict.fromkeys(sample.instruction for sample in chosen))[:MAX_INSTRUCTIONS],
        sensors=tuple(None if sample.sensor is None else sample.sensor.open().samples for sample in chosen),
    )


def write_golden(reference: PyTorchEnsemble, inputs: GoldenInputs, path: Path, progress: Progress = silent) -> None:
    """Writes golden vectors."""
    trunk = reference.trunk
    ids = trunk.tokenizer(list(inputs.instructions), context_length=trunk.context_length).numpy()
    tensors: dict[str, NDArray[np.generic]] = {}
    for index, (image, histories, sensor) in enumerate(
        zip(inputs.frames, inputs.histories, inputs.sensors, strict=True)
    ):
        progress("PyTorch reference", index, len(inputs.frames))
        scores, member_scores = reference.score(image, inputs.instructions, histories, sensor)
        parts = {
            "frame": _png(image),
            "pixels": pixels_digest(reference.pixels(image)),
            "normalised": pixels_digest(reference.preprocess(image).numpy()),
            "ids": ids,
            "histories": histories,
            "scores": scores,
            "member_scores": member_scores,
        }
        parts |= {} if sensor is None else {"sensor": sensor}
        tensors |= {golden_name(kind, index): np.ascontiguousarray(value) for kind, value in parts.items()}
    progress("PyTorch reference", len(inputs.frames), len(inputs.frames))
    path.write_bytes(save(tensors))  # save_file does not say that a disk is full in an OSError


def _rgb(image: Camera) -> NDArray[np.uint8]:
    return image if isinstance(image, np.ndarray) else np.asarray(image.convert("RGB"))


def _png(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", optimize=True)
    return np.frombuffer(content.getvalue(), np.uint8)
