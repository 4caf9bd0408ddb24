"""What the hand feels: a contact force and an ultrasonic A-scan, and an expert that acts on what they tell.

Every object hides two things that no picture shows: a layer inside it that lies aslant, and how firm it is. On the way,
the expert rolls the object until the layer is level, and pitches it, the further the softer. The probe, a single
element in a finger, is wobbled along the object's side, slowly forward and fast back, twice a second. So the layer's
echo goes deeper with each slow stroke, or less deep, and how far is the slant; where it stands at a moment says
nothing, since layers lie at all depths. Phase of the echo, a back wall that stays put, fading, speckle and the probe's
own ringing are drawn as well. The gripper holds everything with the same force but works it by a hair, four times a
second: the ripple in the force is the firmness, whereas its level is not, because the gauge's zero is off by up to
1.5 N. Without contact there is noise, and nothing but the probe's ringing.

A stream has 160 samples a second of 25 numbers: the force in newtons, then 24 depths of the A-scan, a millimetre apart.
It begins a second before the first frame. Frames come at 5 Hz, so a hop between them is 32 samples.

Everything comes from the episode's own generator, and scene and task are those of the episode without a sensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from world import (
    GOALS,
    Episode,
    Floats,
    Split,
    Task,
    Tilt,
    episode_rng,
    holds,
    random_scene,
    roll_out,
)

from trunkline.runtime.sensor.form import SensorForm

Rows = NDArray[np.float32]

DEPTHS = 24
FORM = SensorForm(channels=1 + DEPTHS, rate_hz=160.0, samples=160, steps=160)
FRAMES_HZ = 5.0
LEAD_S = 1.0

STEEPEST = 0.5  # rad
FURTHEST = 0.6  # rad
GRIP_N, RIPPLE_N, ZERO_N, FORCE_NOISE_N = 4.0, (0.2, 1.6), 1.5, 0.12
RIPPLE_HZ, WOBBLE_HZ = 4.0, 2.0
WOBBLE_MM, FORWARD = 6.0, 0.8
WAVELENGTH_MM, PULSE_MM = 3.0, 1.3
SPECKLE, SCAN_NOISE = 0.25, 0.08


@dataclass(frozen=True)
class Inside:
    """What no picture shows of the object to be moved: slant of its layer (rad), firmness from 0 to 1."""

    slant: float
    firmness: float

    @property
    def tilt(self) -> Tilt:
        """How far the expert turns it on its way."""
        return Tilt(-self.slant, FURTHEST * (1 - self.firmness))


@dataclass(frozen=True)
class Touched:
    """An episode and what the hand felt: ``stream`` (samples, 25) float32, ``LEAD_S`` before the first frame on."""

    episode: Episode
    inside: Inside
    stream: Rows

    def window(self, at: int) -> Rows:
        """(160, 25): the second that ends with the first sample at or after frame ``at``."""
        end = round((LEAD_S + at / FRAMES_HZ) * FORM.rate_hz) + 1
        return self.stream[end - FORM.samples : end]


def make_touched(split: Split, seed: int, index: int) -> tuple[Touched, np.random.Generator]:
    """One expert episode that is felt as well as seen, and its generator for whatever else the caller draws."""
    rng = episode_rng(split, seed, index)
    scene = random_scene(rng)
    task = Task(int(rng.integers(len(scene.things))), tuple(GOALS)[rng.integers(len(GOALS))])
    inside = Inside(float(rng.uniform(-STEEPEST, STEEPEST)), float(rng.uniform()))
    episode = roll_out(scene, task, rng, inside.tilt)
    return Touched(episode, inside, feel(episode, inside, rng)), rng


def feel(episode: Episode, inside: Inside, rng: np.random.Generator) -> Rows:
    """The whole stream of an episode, up to the last frame."""
    frames = np.arange(len(episode.scenes)) / FRAMES_HZ
    time = np.arange(round((LEAD_S + frames[-1]) * FORM.rate_hz) + 1) / FORM.rate_hz - LEAD_S
    held = [float(holds(scene, episode.task.target)) for scene in episode.scenes]
    contact = np.interp(time, frames, held)  # fingers close, and open, within a frame
    force = contact_force(time, contact, inside.firmness, rng)
    return np.concatenate([force[:, None], a_scan(time, contact, inside.slant, rng)], axis=1).astype(np.float32)


def contact_force(time: Floats, contact: Floats, firmness: float, rng: np.random.Generator) -> Floats:
    """(samples,) newtons."""
    ripple = RIPPLE_N[0] + (RIPPLE_N[1] - RIPPLE_N[0]) * firmness
    phase, zero = rng.uniform(0, 2 * np.pi), rng.uniform(-ZERO_N, ZERO_N)
    worked = GRIP_N + ripple * np.sin(2 * np.pi * RIPPLE_HZ * time + phase)
    return zero + contact * worked + rng.normal(0, FORCE_NOISE_N, len(time))


def a_scan(time: Floats, contact: Floats, slant: float, rng: np.random.Generator) -> Floats:
    """(samples, depths): echoes as the probe receives them, oscillating at its frequency."""
    layer_mm, wall_mm = rng.uniform(9, 14), rng.uniform(19, 22)
    phases = rng.uniform(0, 2 * np.pi, 2)
    depth = layer_mm + np.tan(slant) * wobble(time, rng.uniform())
    fading = 1 + 0.2 * smooth_noise((len(time), 1), rng)
    speckle = SPECKLE * smooth_noise((len(time), DEPTHS), rng)
    inside = fading * echo(depth[:, None], phases[0]) + 0.5 * echo(np.full((1, 1), wall_mm), phases[1]) + speckle
    ringing = 1.2 * np.exp(-np.arange(DEPTHS) / 1.5) * np.cos(2 * np.pi * np.arange(DEPTHS) / WAVELENGTH_MM)
    return ringing + contact[:, None] * inside + rng.normal(0, SCAN_NOISE, (len(time), DEPTHS))


def wobble(time: Floats, start: float) -> Floats:
    """Millimetres along the object's side: a slow stroke forward, a fast one back."""
    turn = (time * WOBBLE_HZ + start) % 1
    return WOBBLE_MM * np.interp(turn, [0, FORWARD, 1], [-1, 1, -1])


def echo(depth_mm: Floats, phase: float) -> Floats:
    """A short pulse round each depth (n, 1), at all depths (n, 24)."""
    away = np.arange(DEPTHS) - depth_mm
    return np.exp(-((away / PULSE_MM) ** 2) / 2) * np.cos(2 * np.pi * away / WAVELENGTH_MM + phase)


def smooth_noise(shape: tuple[int, int], rng: np.random.Generator, samples: int = 8) -> Floats:
    """Unit variance, alike over about ``samples`` samples in time."""
    sums = np.cumsum(rng.standard_normal((shape[0] + samples, shape[1])), axis=0)
    return (sums[samples:] - sums[:-samples]) / np.sqrt(samples)
