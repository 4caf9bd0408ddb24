"""Sensor encoders as they lie in files of their own or inside larger ones, and the stream they were trained on.

Three forms: a bare state dict (``conv_backbone.0.weight`` ...), a dict with such a state dict under ``sensor_encoder``
(the published training checkpoint), and one whose ``model_state_dict`` has that prefix. A file that holds the encoder
twice must hold the same one.

An encoder is read whole or not at all: tensors that are missing, unexpected, of another shape, NaN or infinite are
refused by name. Only ``num_batches_tracked`` may be missing, since nothing is computed with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from trunkline.exporter.checkpoint.members import SENSOR_ENCODER, Checkpoint, SensorShape, StateDict
from trunkline.exporter.checkpoint.sensor_shapes import encoder_problems, encoder_shape, value_problems
from trunkline.exporter.checkpoint.tensors import COUNTER, refuse_unusable, refuse_wrapped
from trunkline.exporter.checkpoint.torch_file import is_state_dict, load
from trunkline.exporter.checkpoint.weight_file import explained
from trunkline.runtime import record
from trunkline.runtime.errors import CheckpointError
from trunkline.runtime.sensor.form import SensorForm

BACKBONE = "conv_backbone."
#: What saving a model wrapped for several devices puts before every name.
WRAPPED_PREFIX = "module."
#: What a message lists of a file's own entries, and of tensors that differ.
_LISTED = 12


@dataclass(frozen=True)
class Copies:
    """Where a file holds one part of a model.

    Attributes:
        own: as an entry of the part's name, None if there is none or it is empty.
        inside: among the whole model's tensors, under the part's name as a prefix; None if there are none.
    """

    own: StateDict | None
    inside: StateDict | None

    @property
    def state(self) -> StateDict | None:
        """The part; its own entry if there are both."""
        return self.inside if self.own is None else self.own

    def differing(self) -> list[str]:
        """Names of tensors that the two copies do not agree on; none where there is only one."""
        if self.own is None or self.inside is None:
            return []
        names = self.own.keys() | self.inside.keys()
        return sorted(name for name in names if not _same(self.own.get(name), self.inside.get(name)))


def _same(one: torch.Tensor | None, two: torch.Tensor | None) -> bool:
    """Bit for bit, so that NaN equals itself."""
    if one is None or two is None or one.dtype != two.dtype or one.shape != two.shape:
        return False
    return bool(torch.equal(_bytes(one), _bytes(two)))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def copies(content: Mapping[str, Any], part: str, where: object) -> Copies:
    """Where a file holds a part.

    Args:
        content: what :func:`open_file` gave.
        part: its name, such as ``sensor_encoder``.
        where: the file, for messages.

    Raises:
        CheckpointError: what lies under its name is no state dict, of a wrapped model, or holds what is no weight.
    """
    own, model = content.get(part), content.get("model_state_dict", content)
    inside: dict[str, Any] = {}
    for key, value in model.items() if isinstance(model, Mapping) else ():
        name = str(key).removeprefix(WRAPPED_PREFIX)
        if name.startswith(f"{part}."):
            inside[name.removeprefix(f"{part}.")] = value
    for state in ({} if own is None else own, inside):
        if not is_state_dict(state):
            raise CheckpointError(
                "a part of a checkpoint is not a state dict",
                where=f"{where}, {part}",
                expected="name -> tensor",
                found=_not_tensors(state),
                fix="save the part's plain state_dict()",
            )
        _refuse_unfit({f"{part}.{name}": tensor for name, tensor in state.items()}, where)
    return Copies(own or None, inside or None)


def _refuse_unfit(state: StateDict, where: object) -> None:
    refuse_wrapped(state, where)
    refuse_unusable(state, where)


def _not_tensors(state: object) -> object:
    if not isinstance(state, Mapping):
        return type(state).__name__
    wrong = [f"{key}: {type(value).__name__}" for key, value in state.items() if not is_state_dict({key: value})]
    return record.shortened(wrong)


def open_file(path: Path) -> Mapping[str, Any]:
    """What a ``.safetensors`` or PyTorch file holds.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if not path.is_file():
        raise CheckpointError("cannot read a checkpoint", where=path, found="no such file", fix="check the path")
    if path.suffix != ".safetensors":
        return load(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError("cannot read a safetensors file", where=path, **explained(path, error)) from error


def read_sensor_encoder(path: Path) -> StateDict:
    """The state dict of a sensor encoder, whole and nothing else; types of numbers are the file's.

    Raises:
        CheckpointError: the file is unreadable, holds no sensor encoder or two different ones, or the encoder's tensors
            are not those of an encoder; all differences are listed.
    """
    path = Path(path)
    content = open_file(path)
    if is_bare_encoder(content):
        return checked_encoder(content, path)
    found = copies(content, SENSOR_ENCODER, path)
    if found.state is None:
        model = content.get("model_state_dict", content)
        refuse_wrapped(map(str, model if isinstance(model, Mapping) else ()), path)
        raise CheckpointError(
            "the file holds no sensor encoder",
            where=path,
            expected=f"a state dict with {BACKBONE}0.weight, bare, under {SENSOR_ENCODER}, or inside model_state_dict",
            found=", ".join(sorted(map(str, content))[:_LISTED]) or "an empty dict",
            fix="pass the checkpoint of the training run, or its sensor_encoder.state_dict()",
        )
    if differing := found.differing():
        raise CheckpointError(
            f"the file holds two sensor encoders, under {SENSOR_ENCODER} and inside model_state_dict",
            where=path,
            expected="the same tensors in both",
            found=[f"{name} differs" for name in differing[:_LISTED]],
            fix="find out which one was trained, and save its state_dict() in a file of its own",
        )
    return checked_encoder(found.state, path)


def is_bare_encoder(content: Mapping[str, Any]) -> bool:
    """Whether a file is the state dict of a sensor encoder, and nothing around it."""
    return any(str(key).startswith(BACKBONE) for key in content)


def checked_encoder(state: Mapping[str, Any], where: object) -> StateDict:
    """An encoder's state dict, with its counters and usable numbers.

    Raises:
        CheckpointError: as :func:`whole_encoder`, or naming tensors that are not finite.
    """
    whole, _ = whole_encoder(state, where)
    if problems := list(value_problems(whole)):
        raise CheckpointError(
            "a sensor encoder's weights are not usable",
            where=where,
            expected="finite numbers",
            found=record.shortened(problems),
            fix="take an earlier epoch of the run",
        )
    return whole


def whole_encoder(state: Mapping[str, Any], where: object) -> tuple[StateDict, SensorShape]:
    """An encoder's state dict with its counters, and its sizes.

    Raises:
        CheckpointError: naming every tensor that is missing, unexpected, of another shape or no weight.
    """
    try:
        if not is_state_dict(state):
            raise ValueError("it holds more than tensors")
        _refuse_unfit(state, where)
        whole = with_counters(state)
        shape = encoder_shape(whole)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            "cannot read a sensor encoder's sizes from its tensors",
            where=where,
            expected="the tensor names of a sensor encoder",
            found=f"missing {error.args[0]}" if isinstance(error, KeyError) else str(error),
            fix="pass the checkpoint of the training run, or its sensor_encoder.state_dict()",
        ) from error
    if problems := encoder_problems(whole, shape):
        raise CheckpointError(
            "a sensor encoder's tensors do not fit together",
            where=where,
            expected=f"an encoder of {shape.channels} channels, {len(shape.conv)} convolutions, {shape.layers} "
            f"transformer layers and {shape.features} features",
            found=record.shortened(problems),
            fix="save the trained encoder's state_dict() again",
        )
    return whole, shape


def with_counters(state: StateDict) -> StateDict:
    """The state dict with the batch norms' counters, 0 where they are missing.

    Encoders that were written by hand, or by a PyTorch before 0.4.1, have none. In evaluation nothing reads them, and
    PyTorch itself fills them in when it loads a plain dict.
    """
    norms = [name.removesuffix("running_var") for name in state if name.endswith(".running_var")]
    missing = [f"{norm}{COUNTER}" for norm in norms if f"{norm}{COUNTER}" not in state]
    return {**state, **{name: torch.zeros((), dtype=torch.int64) for name in missing}} if missing else state


def sensor_form(stated: SensorForm | None, shape: SensorShape | None, where: object) -> SensorForm | None:
    """The stream of a member with this encoder: what was stated, or the published one, with the tensors' channels.

    Raises:
        CheckpointError: windows are too short for the encoder's convolutions.
    """
    if shape is None:
        return None
    form = replace(stated or SensorForm(), channels=shape.channels)
    if form.steps <= shape.stride:
        raise CheckpointError(
            "a sensor encoder reads windows that its convolutions reduce to a single step",
            where=where,
            expected=f"more than {shape.stride} steps, since {len(shape.conv)} convolutions halve them",
            found=f"{form.steps} steps",
            fix="state the steps it was trained with when packing: --sensor-steps",
        )
    return form


def declared_form(declared: Mapping[str, object], default: SensorForm | None, where: object) -> SensorForm | None:
    """The form that a merged file states under ``sensor``.

    Raises:
        CheckpointError: it states something else there.
    """
    if declared.get("sensor") is None:
        return default
    try:
        return record.build(declared["sensor"], SensorForm)
    except record.RecordError as error:
        raise CheckpointError(
            "a merged file's metadata is not usable",
            where=f"{where}, sensor",
            expected=f"the fields {', '.join(asdict(SensorForm()))}",
            found=error.differences,
            fix="pack the source checkpoints again",
        ) from error


def fusions(checkpoint: Checkpoint) -> list[str]:
    """How its members fuse a sensor, in words: each way with the members that go it. Empty without a sensor."""
    ways: dict[str, list[str]] = {}
    for member in checkpoint.members:
        ways.setdefault(_way(member.shape.sensor), []).append(member.name)
    return [] if set(ways) == {_way(None)} else [f"{way}: {', '.join(names)}" for way, names in ways.items()]


def _way(shape: SensorShape | None) -> str:
    if shape is None:
        return "no sensor"
    kind = shape.fusion.replace("_", "-")
    tokens = f" over {shape.tokens} token{'s' * (shape.tokens > 1)}" if shape.fusion == "cross_attention" else ""
    absent = "with" if shape.absent else "without"
    return f"{kind} fusion{tokens} of {shape.features} features, {absent} an answer to a missing sensor"
