"""Runs an action expert and a sensor encoder on windows as different as silence and noise, and measures what changes.

Everything is float32 on the CPU and the same in every run. A part whose numbers are unusable is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trunkline.exporter.checkpoint.expert import ExpertFile, new_expert
from trunkline.exporter.checkpoint.members import PUBLISHED_HEADS
from trunkline.exporter.checkpoint.sensor_shapes import value_problems
from trunkline.exporter.reference_expert import DiffusionExpert, RegressionExpert
from trunkline.exporter.reference_sensor import SensorEncoder
from trunkline.runtime.sensor.form import SensorForm

STEPS = 65
STRENGTHS = (0.1, 1.0, 10.0)
#: Windows, each of another kind.
KINDS = len(STRENGTHS) + 3
SEED = 20260
#: Actions in a chunk, and a diffusion step in the middle of the published schedule.
HORIZON, MIDDLE_STEP = 8, 50
_TINY = 1e-12


@dataclass(frozen=True)
class Probe:
    """The parts of a file as modules.

    Attributes:
        file: what it holds.
        encoder: its sensor encoder, None without one or where it cannot be run.
        expert: its expert, likewise.
    """

    file: ExpertFile
    encoder: SensorEncoder | None
    expert: RegressionExpert | DiffusionExpert | None

    @classmethod
    def of(cls, file: ExpertFile) -> Probe:
        """The modules of a file, with its weights."""
        return cls(file, _encoder(file), _expert(file))

    @torch.inference_mode()
    def features(self) -> Tensor:
        """(6, S) sensor features of very different windows, random ones where there is no encoder."""
        if self.encoder is None:
            width = 0 if self.expert is None else self.expert.shape.sensor
            return torch.randn(KINDS, width, generator=_random())
        return self.encoder(contrasting_windows(self.encoder.form.channels, STEPS))

    @torch.inference_mode()
    def mean_motion(self) -> float:
        """Mean magnitude of what the regression expert predicts from a chunk of zeros, over all that is seen and felt.

        0 without such an expert.
        """
        if not isinstance(self.expert, RegressionExpert):
            return 0.0
        shape = self.expert.shape
        seen, sensor = self._inputs(shape.seen, shape.sensor)
        actions, _ = self.expert(seen, torch.zeros(len(seen), shape.horizon, shape.action_dim), sensor)
        return float(actions.abs().mean())

    @torch.inference_mode()
    def condition_change(self) -> float:
        """Largest distance between conditions of one view under different windows, relative to their length."""
        if self.expert is None:
            return 0.0
        seen, sensor = self._inputs(self.expert.shape.seen, self.expert.shape.sensor)
        conditions = self.expert.condition(seen, sensor).unflatten(0, (len(STRENGTHS), -1))
        return max(spread(each) for each in conditions)

    @torch.inference_mode()
    def order_effect(self) -> float:
        """How far the noise of a reversed chunk is from the reversed noise of the chunk, relative to its largest.

        0 without a diffusion expert.
        """
        if not isinstance(self.expert, DiffusionExpert):
            return 0.0
        expert, shape = self.expert, self.expert.shape
        seen, sensor = self._inputs(shape.seen, shape.sensor)
        chunk = torch.randn(len(seen), shape.horizon or HORIZON, shape.action_dim, generator=_random())
        step = torch.full((len(seen),), MIDDLE_STEP)
        noise, backward = (expert(each, step, seen, sensor) for each in (chunk, chunk.flip(1)))
        return float((noise - backward.flip(1)).abs().max() / noise.abs().max().clamp(min=_TINY))

    def _inputs(self, seen_width: int, sensor_width: int) -> tuple[Tensor, Tensor]:
        """What is seen (B, V) at several strengths, each with every kind of window's features (B, S)."""
        sensor = self.features()[:, :sensor_width]
        random = _random()
        seen = torch.stack([strength * torch.randn(1, seen_width, generator=random) for strength in STRENGTHS])
        return seen.expand(-1, len(sensor), -1).flatten(0, 1), sensor.repeat(len(STRENGTHS), 1)


def _encoder(file: ExpertFile) -> SensorEncoder | None:
    shape, state = file.encoder_shape, file.encoder_state
    if shape is None or state is None or any(value_problems(state)):
        return None
    encoder = SensorEncoder(shape, SensorForm(channels=shape.channels, samples=STEPS, steps=STEPS), PUBLISHED_HEADS)
    encoder.load_state_dict(dict(state))
    return encoder.float().eval().requires_grad_(False)


def _expert(file: ExpertFile) -> RegressionExpert | DiffusionExpert | None:
    shape, state = file.expert_shape, file.expert.state
    if shape is None or state is None or any(value_problems(state)):
        return None
    expert = new_expert(shape)
    expert.load(state)
    expert.float().eval().requires_grad_(False)
    return expert


def contrasting_windows(channels: int, steps: int) -> Tensor:
    """(6, steps, C) float32: silence, noise of three strengths, a ramp and an oscillation."""
    noise = torch.randn(steps, channels, generator=_random())
    time = torch.linspace(0, 1, steps).unsqueeze(1).expand(-1, channels)
    return torch.stack([0 * noise, *(strength * noise for strength in STRENGTHS), 5 * time, (40 * time).sin()])


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def spread(rows: Tensor) -> float:
    """Largest distance of two rows (N, D), relative to the longest."""
    return float(torch.cdist(rows, rows).max() / rows.norm(dim=1).max().clamp(min=_TINY))
