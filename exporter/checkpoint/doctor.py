"""Finds hazards in a checkpoint before a robot does.

One function per check; each yields findings that say what is wrong, what it means for the robot and what to do.
``fatal`` findings would give wrong or undefined scores: the exporter refuses such a checkpoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from trunkline.exporter.checkpoint.findings import Check, Finding
from trunkline.exporter.checkpoint.members import JOINT_COMPONENT, SENSOR_FUSION, Checkpoint, Member, misfits
from trunkline.exporter.checkpoint.sensor_doctor import constant_sensor, ignored_sensor, sensor_absence, window_skew
from trunkline.exporter.reference import sinusoid
from trunkline.runtime.errors import CheckpointError

#: Largest entry by which a stored position code may differ from the formula; it is computed in float32.
POSITION_TOLERANCE = 1e-3
#: The published clamp on the temperature.
MAX_TEMPERATURE = 100.0
#: Cosine between two members' projection weights under which they hardly come from one run.
RELATED_COSINE = 0.2


def diagnose(checkpoint: Checkpoint) -> list[Finding]:
    """All findings, fatal ones first."""
    found = [finding for check in CHECKS for finding in check(checkpoint)]
    return sorted(found, key=lambda finding: ("fatal", "warning", "note").index(finding.severity))


def refuse_fatal(checkpoint: Checkpoint, where: object) -> list[Finding]:
    """The findings that are not fatal.

    Raises:
        CheckpointError: at least one is.
    """
    findings = diagnose(checkpoint)
    fatal = [f"{each.member or 'ensemble'}: {each.problem}" for each in findings if each.severity == "fatal"]
    if fatal:
        raise CheckpointError(
            "the checkpoint would give wrong or undefined scores",
            where=where,
            found=fatal,
            fix="run `trunkline doctor` on it for what each finding means",
        )
    return findings


def temperature(checkpoint: Checkpoint) -> Iterator[Finding]:
    for member in checkpoint.members:
        value = float(member.components["text_aware_visual_extraction"]["temperature"])
        if value <= 0:
            yield Finding(
                "fatal",
                "temperature",
                member.name,
                f"temperature is {value:g}; the clamp turns it into 0 and the softmax divides by it",
                "every score of this member is NaN",
                "drop the member, or train it again with a floor under the temperature",
            )
        elif value > MAX_TEMPERATURE:
            yield Finding(
                "note",
                "temperature",
                member.name,
                f"temperature {value:g} is clamped to {MAX_TEMPERATURE:g}",
                "all patches weigh nearly the same, so the member hardly looks at the image",
                "check the training run",
            )


def finite_weights(checkpoint: Checkpoint) -> Iterator[Finding]:
    for member in checkpoint.members:
        broken = [name for name, tensor in member.tensors().items() if not torch.isfinite(tensor.float()).all()]
        if broken:
            yield Finding(
                "fatal",
                "finite_weights",
                member.name,
                f"NaN or infinite weights in {', '.join(broken[:5])}" + (" and more" if len(broken) > 5 else ""),
                "scores become NaN and the winner is arbitrary",
                "take an earlier epoch of the run",
            )


def stored_dtype(checkpoint: Checkpoint) -> Iterator[Finding]:
    for member in checkpoint.members:
        floats = [tensor.dtype for tensor in member.tensors().values() if tensor.is_floating_point()]
        kinds = sorted({str(dtype).removeprefix("torch.") for dtype in floats} - {"float32", "float64"})
        if torch.float64 in floats:
            yield Finding(
                "note",
                "stored_dtype",
                member.name,
                "weights are stored as float64; the published system trains and stores float32",
                "they are rounded to float32, as by PyTorch when it loads them into the published system",
                "nothing, if the run was trained in float32",
            )
        if kinds:
            yield Finding(
                "warning",
                "stored_dtype",
                member.name,
                f"weights are stored as {', '.join(kinds)}; the published system trains and stores float32",
                "the member was rounded once already; scores are those of the rounded weights",
                "pack from the original float32 checkpoints if they exist",
            )


def declared_metadata(checkpoint: Checkpoint) -> Iterator[Finding]:
    first = checkpoint.members[0].shape
    facts = {
        "num_models": len(checkpoint.members),
        "use_transformer": first.encoder == "transformer",
        "history_length": first.history_length,
        "action_dim": first.action_dim,
    }
    for name, actual in facts.items():
        stated = checkpoint.declared.get(name, actual)
        if stated != actual:
            yield Finding(
                "fatal",
                "declared_metadata",
                None,
                f"metadata says {name} = {stated!r}, the tensors say {actual!r}",
                "a reader that believes the metadata builds another network, or leaves members out",
                "pack the source checkpoints again",
            )
    sources = checkpoint.declared.get("source_checkpoints")
    if isinstance(sources, list) and len(sources) != len(checkpoint.members):
        yield Finding(
            "warning",
            "declared_metadata",
            None,
            f"{len(sources)} source names for {len(checkpoint.members)} members",
            "members cannot be traced back to the checkpoints they came from",
            "pack the source checkpoints again",
        )


def assumed_metadata(checkpoint: Checkpoint) -> Iterator[Finding]:
    for note in checkpoint.notes:
        yield Finding(
            "note",
            "assumed_metadata",
            None,
            note,
            "a run with other settings would be scored with the wrong window, padding or heads",
            "state them when packing: --history-length, --padding-value, --heads, and --sensor-rate, --sensor-window, "
            "--sensor-steps for a sensor",
        )


def members_belong_together(checkpoint: Checkpoint) -> Iterator[Finding]:
    found: dict[str, list[str]] = {}
    for member, difference in misfits(checkpoint.members):
        found.setdefault(member.name, []).append(difference)
    for name, differences in found.items():
        yield Finding(
            "fatal",
            "members_belong_together",
            name,
            "shape or settings differ: " + "; ".join(differences),
            "their vectors cannot be averaged, or the same window is padded for one member and real for another",
            "pack only checkpoints of one training run",
        )


def duplicates(checkpoint: Checkpoint) -> Iterator[Finding]:
    for one, other in itertools.combinations(checkpoint.members, 2):
        ours, theirs = one.tensors(), other.tensors()
        if ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours):
            yield Finding(
                "warning",
                "duplicates",
                other.name,
                f"has the same weights as {one.name}",
                "it votes twice and disagreement between members is understated",
                "leave one of them out",
            )


def one_run(checkpoint: Checkpoint) -> Iterator[Finding]:
    first = checkpoint.members[0]
    for member in checkpoint.members[1:]:
        if member.shape != first.shape:
            continue
        cosine = _projection_cosine(first, member)
        if cosine < RELATED_COSINE:
            yield Finding(
                "warning",
                "one_run",
                member.name,
                f"its projection weights are unrelated to {first.name}'s (cosine {cosine:.2f})",
                "the fusion averages unit vectors, which means something only in a shared embedding space",
                "use epochs of one run as members, or compare members apart",
            )


def _projection_cosine(one: Member, other: Member) -> float:
    flat = [_projection(member).float().flatten() for member in (one, other)]
    return float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0))


def _projection(member: Member) -> torch.Tensor:
    """The matrix that makes a member's context vector."""
    if member.shape.sensor is None:
        return member.components[JOINT_COMPONENT]["weight"]
    return member.components[SENSOR_FUSION]["fusion_proj.weight"]


def step_order(checkpoint: Checkpoint) -> Iterator[Finding]:
    if checkpoint.members[0].shape.encoder == "transformer":
        yield Finding(
            "note",
            "step_order",
            None,
            "the action encoder has no positional code and pools by a mean, so it cannot see the order of steps",
            "a window and its reverse score the same; the ensemble cannot tell approaching from retreating by order",
            "expected for the published system; train with a positional code if order matters to your task",
        )


def padding_value(checkpoint: Checkpoint) -> Iterator[Finding]:
    shape, value = checkpoint.members[0].shape, checkpoint.members[0].settings.padding_value
    if shape.encoder == "mlp":
        yield Finding(
            "note",
            "padding_value",
            None,
            f"the MLP action encoder reads padding ({value:g}) as ordinary numbers",
            "short histories are scored by how the padding happened to be seen in training",
            "pass full windows where you can",
        )
    elif abs(value) <= 1.0:
        yield Finding(
            "warning",
            "padding_value",
            None,
            f"padding value {value:g} lies within the usual range of actions",
            "a real step whose first component equals it exactly is taken for padding and ignored",
            "train with a padding value that no action can reach, such as -5",
        )


def position_code(checkpoint: Checkpoint) -> Iterator[Finding]:
    for member in checkpoint.members:
        stored = member.components["text_aware_visual_extraction"]["pos_emb"].float()
        distance = float((stored - sinusoid(*stored.shape)).abs().max())
        if distance > POSITION_TOLERANCE:
            yield Finding(
                "warning",
                "position_code",
                member.name,
                f"the stored position code differs from the published formula by up to {distance:.3g}",
                "the stored code is used, as in training; code that recomputes it gives other scores",
                "make sure that no other reader of this file recomputes the buffer",
            )


CHECKS: tuple[Check, ...] = (
    temperature,
    finite_weights,
    declared_metadata,
    members_belong_together,
    stored_dtype,
    duplicates,
    one_run,
    padding_value,
    position_code,
    ignored_sensor,
    constant_sensor,
    window_skew,
    sensor_absence,
    assumed_metadata,
    step_order,
)
