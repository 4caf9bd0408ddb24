"""Finds hazards in checkpoints of the published sensor-action system, in the form of the verifiers' doctor.

One function per check. What can be shown by running the expert or the encoder on windows as different as silence and
noise is run, in float32, on the CPU. ``fatal`` here means that nobody can say what a robot would do with the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trunkline.exporter.checkpoint.expert import ACTION_EXPERT, ExpertFile
from trunkline.exporter.checkpoint.expert_probes import Probe, spread
from trunkline.exporter.checkpoint.findings import Finding
from trunkline.exporter.checkpoint.members import SENSOR_ENCODER, StateDict
from trunkline.exporter.checkpoint.sensor_file import Copies
from trunkline.exporter.checkpoint.sensor_shapes import value_problems
from trunkline.exporter.reference_expert import DiffusionExpert, RegressionExpert
from trunkline.runtime.errors import InputError

#: Size of a number in the published actions: raw millimetres and degrees per step, and a constant 1 in the last place.
PUBLISHED_ACTION_SCALE = 1.0
#: Mean predicted motion, as a share of that scale, under which an expert counts as collapsed. One that learned no more
#: than the published constant is at 1/7; of one trained with the answer as input, a root mean square of 1/40 is known.
COLLAPSED_SHARE = 0.05
#: Largest difference of conditions or features, relative to their length, that counts as none.
SMALLEST_CHANGE = 1e-3
SMALLEST_DIFFERENCE = 1e-4
#: Share by which rounding to bfloat16 may change a number.
BFLOAT16_ROUNDING = 2.0**-8
LISTED = 5


def diagnose_expert(file: ExpertFile, *, action_scale: float = PUBLISHED_ACTION_SCALE) -> list[Finding]:
    """All findings, fatal ones first.

    Args:
        file: from :func:`trunkline.exporter.checkpoint.expert.read_sensor_action`.
        action_scale: size of a usual number in the actions of the training data; it says which motion is none.

    Raises:
        InputError: the scale is no positive number.
    """
    if not 0 < action_scale < math.inf:
        raise InputError("an action scale cannot be used", expected="a positive number", found=repr(action_scale))
    probe = Probe.of(file)
    found = [*delta_collapse(probe, action_scale)] + [finding for check in EXPERT_CHECKS for finding in check(probe)]
    return sorted(found, key=lambda finding: ("fatal", "warning", "note").index(finding.severity))


def finite_weights(probe: Probe) -> Iterator[Finding]:
    for part, state in ((SENSOR_ENCODER, probe.file.encoder_state), (ACTION_EXPERT, probe.file.expert.state)):
        problems = [] if state is None else list(value_problems(state))
        if problems:
            yield Finding(
                "fatal",
                "finite_weights",
                part,
                "; ".join(problems[:LISTED]) + (" and more" if len(problems) > LISTED else ""),
                "whatever it computes is NaN or meaningless, so the other checks leave it out",
                "take an earlier epoch of the run",
            )


def delta_collapse(probe: Probe, action_scale: float) -> Iterator[Finding]:
    if not isinstance(probe.expert, RegressionExpert):
        return
    threshold = COLLAPSED_SHARE * action_scale
    motion = probe.mean_motion()
    if motion < threshold:
        yield Finding(
            "warning",
            "delta_collapse",
            ACTION_EXPERT,
            f"handed a neutral chunk of zeros, it adds {motion:.2g} on average, whatever it sees: under {threshold:g}, "
            f"which is {COLLAPSED_SHARE:.0%} of the action scale {action_scale:g}",
            "it was trained with the answer as input, so the best it could learn was to add nothing: on a robot, which "
            "has no answer to hand in, it predicts hardly any motion, and errors measured with the answer as input are "
            "no errors of prediction",
            "train with a chunk that does not contain the answer (zeros, or the last action), and measure with zeros; "
            "if its actions really are this small, state their scale with --action-scale",
        )


def ignored_sensor(probe: Probe) -> Iterator[Finding]:
    if probe.expert is None or probe.expert.shape.fusion == "unknown":
        return
    fusion = probe.expert.shape.fusion
    if fusion == "none":
        if probe.file.encoder_shape is not None:
            yield _ignored(
                "it was built without fusion and has no input for the sensor, though the file holds a sensor encoder",
                "nothing ever trained its encoder",
                "train with gated or concat fusion",
            )
        return
    change = probe.condition_change()
    if fusion == "cross_attention":
        yield _ignored(
            "cross-attention over a single vision-language token: the softmax has one entry, which is always 1. "
            f"Windows as different as silence and noise move the condition by {change:.2g} of its length",
            "nothing ever trained its encoder",
            "train with gated or concat fusion, or let the sensor attend to all vision-language tokens",
        )
    elif change < SMALLEST_CHANGE:
        yield _ignored(
            f"windows as different as silence and noise move the condition by {change:.2g} of its length",
            "what its encoder learned is lost",
            "check that the sensor's gradient reaches its encoder in training",
        )


def _ignored(problem: str, consequence: str, fix: str) -> Finding:
    meaning = f"actions do not depend on the sensor, whatever it measures, and {consequence}"
    return Finding("warning", "ignored_sensor", ACTION_EXPERT, problem, meaning, fix)


def constant_sensor(probe: Probe) -> Iterator[Finding]:
    if probe.encoder is None:
        return
    difference = spread(probe.features())
    if difference < SMALLEST_DIFFERENCE:
        yield Finding(
            "warning",
            "constant_sensor",
            SENSOR_ENCODER,
            f"features of very different windows differ by {difference:.2g} of their length",
            "the encoder has collapsed, or was never trained: it says the same of every window",
            "take an earlier epoch, or check the encoder's training; a verifier that fuses it gains nothing",
        )


def rounded_statistics(probe: Probe) -> Iterator[Finding]:
    state = probe.file.encoder_state or {}
    norms = [name.removesuffix(".running_var") for name in state if name.endswith(".running_var")]
    rounded = [norm for norm in norms if _rounded(state, norm)]
    if rounded:
        worst = max(_largest_offset(state, norm) for norm in rounded) * BFLOAT16_ROUNDING
        yield Finding(
            "warning",
            "rounded_statistics",
            SENSOR_ENCODER,
            f"batch-norm statistics of {', '.join(rounded)} are bfloat16 numbers; the rounding may move a channel by "
            f"{worst:.2g} of its standard deviation",
            "means and variances kept in bfloat16 stand still in training as soon as an update is under 1/256 of them. "
            "A bundle folds them into the convolutions as they are, in full precision: nothing more is lost, but it "
            "agrees with the original's own bfloat16 run only within that run's rounding",
            "keep batch norm in float32 in training, or take the statistics again over the training windows",
        )


def _rounded(state: StateDict, norm: str) -> bool:
    """Whether the statistics are bfloat16 numbers, but not those they have before any training."""
    mean, variance = (state[f"{norm}.running_{name}"] for name in ("mean", "var"))
    untouched = not mean.any() and bool((variance == 1).all())
    return not untouched and all(_is_bfloat16(each) for each in (mean, variance))


def _is_bfloat16(tensor: Tensor) -> bool:
    numbers = tensor.float()
    return bool(torch.equal(numbers.bfloat16().float(), numbers))


def _largest_offset(state: StateDict, norm: str) -> float:
    """The largest mean in standard deviations of its channel."""
    mean, variance = (state[f"{norm}.running_{name}"].float() for name in ("mean", "var"))
    return float((mean.abs() / variance.clamp(min=0).add(1e-5).sqrt()).max())


def unknown_window(probe: Probe) -> Iterator[Finding]:
    if probe.file.encoder_shape is not None:
        yield Finding(
            "note",
            "unknown_window",
            SENSOR_ENCODER,
            "nothing in the file tells the sensor's rate, or how many samples a window has",
            "an encoder trained on 650 samples (1 s) and one on 65 (0.1 s) have interchangeable weights, and a window "
            "of any length is resampled: one of another time scale gives other features without any error. The "
            "published asynchronous model was trained on 1 s brought to 65 steps and is served 0.1 s",
            "ask who trained it, and state it when packing: --sensor-rate, --sensor-window, --sensor-steps",
        )


def step_order(probe: Probe) -> Iterator[Finding]:
    if not isinstance(probe.expert, DiffusionExpert) or probe.expert.pos_embed is not None:
        return
    yield Finding(
        "warning",
        "step_order",
        ACTION_EXPERT,
        "the diffusion expert has no pos_embed, no position code over the horizon. A chunk in reverse gives the "
        f"same noise in reverse, to within {probe.order_effect():.1g} of its size",
        "it cannot know which action of a chunk comes first; only the random start tells them apart",
        "train with a position code, as the regression expert has one",
    )


def clipped_actions(probe: Probe) -> Iterator[Finding]:
    shape = probe.file.expert_shape
    if shape is not None and shape.kind == "diffusion":
        yield Finding(
            "note",
            "clipped_actions",
            ACTION_EXPERT,
            "the published sampler clips every clean action to -1 .. 1, and published actions are raw millimetres and "
            "degrees per step; the file does not say how these were scaled",
            "a motion beyond one unit per step is cut off without any error",
            "normalise actions to -1 .. 1 in training, or sample without the clip",
        )


def unstored_schedule(probe: Probe) -> Iterator[Finding]:
    shape = probe.file.expert_shape
    if shape is not None and shape.kind == "diffusion":
        yield Finding(
            "note",
            "unstored_schedule",
            ACTION_EXPERT,
            "the noise schedule is no tensor of the file: 100 steps of a cosine are what the published code builds",
            "sampled with another schedule it gives other actions without any error. With 10 steps, the published "
            "sampler starts at step 90 of 99, where the training noise is not yet full",
            "keep the schedule's kind and length beside the file",
        )


def loaded_parts(probe: Probe) -> Iterator[Finding]:
    if probe.file.bare:
        return
    if probe.file.wrapped:
        yield Finding(
            "warning",
            "loaded_parts",
            None,
            "names of tensors begin with module., which saving a wrapped model leaves",
            "the published receivers load with strict off: they take none of these tensors and run on random weights",
            "save the unwrapped model's state_dict()",
        )
    for part, held in ((SENSOR_ENCODER, probe.file.encoder), (ACTION_EXPERT, probe.file.expert)):
        yield from _loading(probe.file, part, held)


def _loading(file: ExpertFile, part: str, held: Copies) -> Iterator[Finding]:
    needless = part == SENSOR_ENCODER and file.expert_shape is not None and file.expert_shape.fusion == "none"
    if held.state is None and not needless:
        yield Finding(
            "warning",
            "loaded_parts",
            part,
            f"the file holds no {part}",
            "the published loaders skip what is absent without a word: it keeps its random weights",
            "take the file that holds both parts",
        )
    elif held.own is None and held.inside is not None:
        yield Finding(
            "warning",
            "loaded_parts",
            part,
            f"it lies among the whole model's tensors only, there is no entry {part}",
            "stage-2 training looks for that entry and skips it silently where it is absent: it starts from random "
            "weights",
            f"save {part}.state_dict() under {part} as well",
        )
    elif held.own is not None and held.inside is None and file.whole_model:
        yield Finding(
            "warning",
            "loaded_parts",
            part,
            "it has an entry of its own, but model_state_dict does not hold it",
            "the published receivers load model_state_dict with strict off: the part keeps its random weights",
            "save the whole model's state_dict()",
        )
    elif differing := held.differing():
        yield Finding(
            "fatal",
            "loaded_parts",
            part,
            f"its entry and its copy inside model_state_dict differ in {len(differing)} tensors: "
            + ", ".join(differing[:LISTED]),
            "stage-2 training and receivers load different weights from one file",
            "find out which copy was trained, and save that one",
        )


EXPERT_CHECKS: tuple[Callable[[Probe], Iterator[Finding]], ...] = (
    finite_weights,
    loaded_parts,
    ignored_sensor,
    constant_sensor,
    rounded_statistics,
    step_order,
    unknown_window,
    clipped_actions,
    unstored_schedule,
)
