"""Shapes of a member, read from its tensors.

A few key tensors give the sizes; the PyTorch module of those sizes, built without memory, then says which
tensors there must be. Everything missing, unexpected or of another shape is reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trunkline.exporter.checkpoint.members import (
    ACTION_COMPONENTS,
    JOINT_COMPONENT,
    SENSOR_FUSION,
    ActionEncoderKind,
    HeadShape,
    Settings,
    StateDict,
    flat,
)
from trunkline.exporter.checkpoint.sensor_shapes import sensor_problems, sensor_shape, tensor_differences
from trunkline.exporter.checkpoint.tensors import refuse_unusable, refuse_wrapped
from trunkline.exporter.reference import ReferenceMember
from trunkline.runtime.errors import CheckpointError

Components = Mapping[str, StateDict]


def read_shape(components: Components, settings: Settings, where: str) -> HeadShape:
    """The shape of one member.

    Args:
        components: component name -> state dict.
        settings: heads, and the sizes that tensors leave open.
        where: file and member, for messages.

    Raises:
        CheckpointError: naming every tensor that is missing, unexpected, not of the expected shape, or no weight.
    """
    tensors = flat(components)
    refuse_wrapped(tensors, where)
    refuse_unusable(tensors, where)
    _check_settings(settings, where)
    encoder = _encoder_kind(components, where)
    try:
        shape = _key_sizes(components, settings, encoder)
        misfits = _widths(components, shape)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            "cannot read the member's sizes from its tensors",
            where=where,
            expected="the components and tensor names of a verifier head",
            found=f"{type(error).__name__}: {error}",
            fix="check that the file is a verifier checkpoint; `trunkline info FILE` lists what it holds",
        ) from error
    differences = misfits or _differences(components, shape)
    if differences:
        raise CheckpointError(
            "a member's tensors do not fit together",
            where=where,
            expected=f"a {encoder} verifier head of trunk width {shape.trunk_width}",
            found=differences,
            fix="re-export the checkpoint, or correct what its metadata says of heads and window size",
        )
    return shape


def _check_settings(settings: Settings, where: str) -> None:
    counts = {"heads": settings.heads, "history_length": settings.history_length, "action_dim": settings.action_dim}
    counts["sensor_heads"] = settings.sensor_heads
    wrong = [f"{name} is {value}" for name, value in counts.items() if value < 1]
    wrong += settings.sensor.problems() if settings.sensor else []
    if not abs(settings.padding_value) <= torch.finfo(torch.float32).max:
        wrong.append(f"padding_value is {settings.padding_value}, no finite float32")
    if wrong:
        raise CheckpointError(
            "a member's settings are not usable",
            where=where,
            expected="positive counts and a finite padding value",
            found=wrong,
            fix="state them when packing: --history-length, --padding-value, --heads, --sensor-rate, --sensor-window",
        )


def _encoder_kind(components: Components, where: str) -> ActionEncoderKind:
    kinds = [kind for kind, parts in ACTION_COMPONENTS.items() if all(part in components for part in parts)]
    if len(kinds) == 1:
        return kinds[0]
    raise CheckpointError(
        "cannot tell how the member encodes actions",
        where=where,
        expected="either single_step_action_encoder with trajectory_encoder, or complex_action_encoder",
        found=sorted(components) or "no components",
        fix="a member needs exactly one action encoder; export the checkpoint again with the flag it was trained with",
    )


def _key_sizes(components: Components, settings: Settings, encoder: ActionEncoderKind) -> HeadShape:
    patches, trunk_width = components["text_aware_visual_extraction"]["pos_emb"].shape
    pool = components["vision_poolings"]
    projected = components[SENSOR_FUSION] if SENSOR_FUSION in components else components[JOINT_COMPONENT]
    projection = projected["fusion_proj.weight" if SENSOR_FUSION in components else "weight"]
    history_length, action_dim, layers = settings.history_length, settings.action_dim, 0
    if encoder == "transformer":
        action_dim = components["single_step_action_encoder"]["weight"].shape[1]
        trajectory = components["trajectory_encoder"]
        layers = _count(trajectory, "layers.")
        feedforward = trajectory["layers.0.linear1.weight"].shape[0]
    else:
        feedforward, flat = components["complex_action_encoder"]["0.weight"].shape
        history_length = flat // action_dim
        if history_length * action_dim != flat:
            raise ValueError(f"the MLP reads {flat} numbers, which is no multiple of action_dim {action_dim}")
    return HeadShape(
        trunk_width=trunk_width,
        patches=patches,
        pool_width=pool["query"].shape[-1],
        pool_layers=_count(pool, "blocks."),
        embedding=projection.shape[0],
        encoder=encoder,
        encoder_layers=layers,
        feedforward=feedforward,
        history_length=history_length,
        action_dim=action_dim,
        heads=settings.heads,
        sensor=sensor_shape(components, pool["query"].shape[-1]),
        sensor_heads=settings.sensor_heads,
    )


def _count(state: StateDict, prefix: str) -> int:
    """How many numbered blocks ``prefix0.``, ``prefix1.``, ... a state dict holds."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def _widths(components: Components, shape: HeadShape) -> list[str]:
    """Differences that would stop the module from being built, in words."""
    found = []
    readouts = components["vision_poolings"]["query"].shape[1]
    if readouts != 1:
        found.append(f"the pools have {readouts} readouts; only one is supported")
    joint = components.get(JOINT_COMPONENT, {}).get("weight")
    if joint is not None and joint.shape[1] == 3 * shape.pool_width:
        found.append("input_projection reads three vectors: a two-view (DROID) member, which is not supported")
    widths = {"pool": shape.pool_width} | ({"embedding": shape.embedding} if shape.encoder == "transformer" else {})
    found += [
        f"{name} width {width} is not divisible by {shape.heads} heads"
        for name, width in widths.items()
        if width % shape.heads
    ]
    return found + sensor_problems(shape)


def _differences(components: Components, shape: HeadShape) -> list[str]:
    with torch.device("meta"):
        expected = ReferenceMember(shape, 0.0).state_dict()
    return tensor_differences(expected, flat(components))
