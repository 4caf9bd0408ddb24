"""Sensor encoders as they lie in files of their own or inside larger ones, and the stream they were trained on.

Three forms: a bare state dict (``conv_backbone.0.weight`` ...), a dict with such a state dict under ``sensor_encoder``
(the published training checkpoint), and one whose ``model_state_dict`` has that prefix. A file that holds the encoder
twice is taken at its ``sensor_encoder``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from trunkline.exporter.checkpoint.members import SENSOR_ENCODER, SensorShape, StateDict
from trunkline.exporter.checkpoint.sensor_shapes import encoder_shape
from trunkline.exporter.checkpoint.torch_file import is_state_dict, load
from trunkline.runtime import record
from trunkline.runtime.errors import CheckpointError
from trunkline.runtime.sensor.form import SensorForm

_FIRST = "conv_backbone.0.weight"


def read_sensor_encoder(path: Path) -> StateDict:
    """The state dict of a sensor encoder, whole and nothing else.

    Raises:
        CheckpointError: the file is unreadable, or holds no sensor encoder.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError("cannot read a sensor encoder", where=path, found="no such file", fix="check the path")
    content = _safetensors(path) if path.suffix == ".safetensors" else load(path)
    state = _encoder_state(content)
    try:
        if not is_state_dict(state) or _FIRST not in state:
            raise KeyError(_FIRST)
        encoder_shape(state)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            "the file holds no sensor encoder",
            where=path,
            expected=f"a state dict with {_FIRST}, bare, under {SENSOR_ENCODER}, or inside model_state_dict",
            found=", ".join(sorted(map(str, content))[:12]) or "an empty dict",
            fix="pass the checkpoint of the training run, or its sensor_encoder.state_dict()",
        ) from error
    return state


def _safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            "cannot read a safetensors file", where=path, found=str(error), fix="copy or write the file again"
        ) from error


def _encoder_state(content: Mapping[str, Any]) -> Any:
    """Where the encoder is; the content itself if nothing better is found."""
    if SENSOR_ENCODER in content:
        return content[SENSOR_ENCODER]
    state = content.get("model_state_dict", content)
    prefix = f"{SENSOR_ENCODER}."
    if isinstance(state, Mapping) and any(str(key).startswith(prefix) for key in state):
        return {key.removeprefix(prefix): value for key, value in state.items() if str(key).startswith(prefix)}
    return state


def sensor_form(stated: SensorForm | None, shape: SensorShape | None) -> SensorForm | None:
    """The stream of a member with this encoder: what was stated, or the published one, with the tensors' channels."""
    return None if shape is None else replace(stated or SensorForm(), channels=shape.channels)


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
            fix="merge the source checkpoints again",
        ) from error
