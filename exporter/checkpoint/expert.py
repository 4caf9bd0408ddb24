"""Reads checkpoints of the published sensor-action system, for the doctor.

Such a file holds an action expert and a sensor encoder, each under an entry of its own (``action_expert``,
``sensor_encoder``), inside ``model_state_dict`` together with the whole language model, or both. Its expert proposes
motions and scores nothing, so the file is no verifier: it is examined, and its encoder may be taken, but it is never
exported. A sensor encoder alone is read as such a file as well.

Sizes are read from tensors. Whether the expert takes a sensor at all is sometimes told by other tensors of the file
only: by the encoder's width, or by the language model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trunkline.exporter.checkpoint.members import (
    ALL_COMPONENTS,
    PUBLISHED_HEADS,
    SENSOR_ENCODER,
    SensorShape,
    StateDict,
)
from trunkline.exporter.checkpoint.sensor_file import WRAPPED_PREFIX, Copies, copies, is_bare_encoder, whole_encoder
from trunkline.exporter.checkpoint.sensor_shapes import tensor_differences
from trunkline.exporter.checkpoint.torch_file import load
from trunkline.exporter.reference_expert import (
    DiffusionExpert,
    ExpertFusion,
    ExpertKind,
    ExpertShape,
    RegressionExpert,
)
from trunkline.runtime import record
from trunkline.runtime.errors import CheckpointError

ACTION_EXPERT = "action_expert"
#: What ends the name of the language model's token table, whose width is V.
_TOKEN_TABLE = "embed_tokens.weight"
_STACKS: dict[ExpertKind, str] = {"regression": "temporal_decoder", "diffusion": "temporal_encoder"}


@dataclass(frozen=True)
class ExpertFile:
    """A checkpoint of the sensor-action system.

    Attributes:
        path: the file.
        encoder: where it holds the sensor encoder.
        expert: where it holds the action expert.
        encoder_state: the encoder, with its batch norms' counters; None if there is none.
        encoder_shape: its sizes.
        expert_shape: sizes of the expert, None if there is none.
        whole_model: it has a ``model_state_dict``.
        wrapped: names in that begin with ``module.``.
        bare: it is an encoder's state dict and nothing else.
        language_width: V as the language model's token table has it, None if that is not in the file.
    """

    path: Path
    encoder: Copies
    expert: Copies
    encoder_state: StateDict | None
    encoder_shape: SensorShape | None
    expert_shape: ExpertShape | None
    whole_model: bool = False
    wrapped: bool = False
    bare: bool = False
    language_width: int | None = None

    def describe(self) -> str:
        """What it is, in words."""
        parts = [_expert_words(self.expert_shape), _encoder_words(self.encoder_shape)]
        return "sensor-action checkpoint, no verifier: " + " and ".join(part for part in parts if part)


def _expert_words(shape: ExpertShape | None) -> str:
    if shape is None:
        return ""
    sensor = f" with {shape.sensor} of a sensor" if shape.sensor else ""
    chunk = f"chunks of {shape.horizon}" if shape.horizon else "chunks"
    return (
        f"a {shape.kind} expert ({shape.fusion.replace('_', '-')} fusion of {shape.seen} numbers seen{sensor}, "
        f"{shape.layers} layers of {shape.width}, {chunk} of {shape.action_dim} numbers per action)"
    )


def _encoder_words(shape: SensorShape | None) -> str:
    if shape is None:
        return ""
    layers = f", {shape.layers} transformer layers" if shape.layers else ""
    return f"a sensor encoder ({shape.channels} channels{layers}, {shape.features} features)"


def is_sensor_action(content: Mapping[str, Any]) -> bool:
    """Whether a PyTorch file's dict is of the sensor-action system rather than a verifier's."""
    model = content.get("model_state_dict", content)
    keys = [str(key).removeprefix(WRAPPED_PREFIX) for key in model] if isinstance(model, Mapping) else []
    parts = {key.partition(".")[0] for key in keys} | {str(key) for key in content}
    if parts & ({"ensemble_components", *ALL_COMPONENTS} - {SENSOR_ENCODER}):
        return False
    return bool(parts & {ACTION_EXPERT, SENSOR_ENCODER}) or is_bare_encoder(content)


def refuse_sensor_action(content: Mapping[str, Any], where: object) -> None:
    """Raises CheckpointError if a file is of the sensor-action system: it holds no member."""
    if not is_sensor_action(content):
        return
    bare = is_bare_encoder(content)
    raise CheckpointError(
        "the file is not a verifier checkpoint but " + ("a sensor encoder" if bare else "a sensor-action checkpoint"),
        where=where,
        expected="a verifier, which scores candidate actions",
        found="an encoder that scores nothing" if bare else "an action expert, which proposes actions and scores none",
        fix="`trunkline pack VERIFIER.pt --sensor-encoder FILE` takes the sensor encoder of such a file for members "
        "that fuse one; `trunkline doctor FILE` examines it",
    )


def read_sensor_action(path: Path) -> ExpertFile | None:
    """Reads a checkpoint of the sensor-action system, None if the file is none (or is not there).

    Raises:
        CheckpointError: the file cannot be opened, or is such a checkpoint and its tensors do not fit together.
    """
    path = Path(path)
    if path.suffix == ".safetensors" or not path.is_file():
        return None
    content = load(path)
    if not is_sensor_action(content):
        return None
    model = content.get("model_state_dict", content)
    names = list(map(str, model)) if isinstance(model, Mapping) else []
    bare = is_bare_encoder(content)
    encoder = Copies(dict(content), None) if bare else copies(content, SENSOR_ENCODER, path)
    expert = copies(content, ACTION_EXPERT, path)
    if encoder.state is None and expert.state is None:
        raise CheckpointError(
            "a sensor-action checkpoint holds neither an expert nor a sensor encoder",
            where=path,
            expected=f"{ACTION_EXPERT} or {SENSOR_ENCODER}",
            found="entries of these names without tensors",
            fix="save the parts' state_dict() again",
        )
    whole, shape = (None, None) if encoder.state is None else _encoder(encoder.state, path)
    language = _language_width(model)
    return ExpertFile(
        path=path,
        encoder=encoder,
        expert=expert,
        encoder_state=whole,
        encoder_shape=shape,
        expert_shape=_checked_expert(expert.state, None if shape is None else shape.features, language, path),
        whole_model="model_state_dict" in content,
        wrapped=any(name.startswith(WRAPPED_PREFIX) for name in names),
        bare=bare,
        language_width=language,
    )


def _encoder(state: StateDict, path: Path) -> tuple[StateDict, SensorShape]:
    where = f"{path}, {SENSOR_ENCODER}"
    whole, shape = whole_encoder(state, where)
    if shape.layers and shape.conv[-1] % PUBLISHED_HEADS:
        raise CheckpointError(
            "a sensor encoder cannot be examined",
            where=where,
            expected=f"a transformer with the published {PUBLISHED_HEADS} attention heads, which tensors do not tell",
            found=f"width {shape.conv[-1]}",
            fix="pack it with members and --sensor-heads, and examine the ensemble",
        )
    return whole, shape


def _language_width(model: object) -> int | None:
    if not isinstance(model, Mapping):
        return None
    tables = [value for key, value in model.items() if str(key).endswith(_TOKEN_TABLE)]
    whole = [table for table in tables if isinstance(table, torch.Tensor) and not table.is_nested]
    widths = {table.shape[1] for table in whole if table.ndim == 2}
    return widths.pop() if len(widths) == 1 else None


def _checked_expert(
    state: StateDict | None, features: int | None, language: int | None, path: Path
) -> ExpertShape | None:
    if state is None:
        return None
    try:
        shape = expert_shape(state, features, language)
        problems = _misfits(shape, features) or tensor_differences(_expected(shape), state)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            "cannot read an action expert's sizes from its tensors",
            where=path,
            expected="the tensor names of a regression or diffusion expert",
            found=f"missing {error.args[0]}" if isinstance(error, KeyError) else str(error),
            fix="save the trained expert's state_dict() again",
        ) from error
    if problems:
        raise CheckpointError(
            "an action expert's tensors do not fit together",
            where=path,
            expected=f"a {shape.kind} expert with {shape.fusion.replace('_', '-')} fusion, width {shape.width}",
            found=record.shortened(problems),
            fix="save the trained expert's state_dict() again",
        )
    return shape


def expert_shape(state: StateDict, features: int | None = None, language: int | None = None) -> ExpertShape:
    """Sizes of an action expert's state dict.

    Args:
        state: under the published names.
        features: width of the sensor encoder beside it, None without one.
        language: width of the language model beside it, None where the file does not hold it.

    Raises:
        KeyError, IndexError, ValueError: it is none.
    """
    kind: ExpertKind = "diffusion" if "action_embed.weight" in state else "regression"
    regression, stack = kind == "regression", _STACKS[kind]
    last = state["fusion_proj.weight" if regression else "cond_proj.weight"]
    fusion, seen, sensor = _inputs(state, last.shape[1], features, language)
    positions = state["pos_embed"] if regression else state.get("pos_embed")
    return ExpertShape(
        kind=kind,
        fusion=fusion,
        seen=seen,
        sensor=sensor,
        width=last.shape[0],
        layers=len({key.split(".")[2] for key in state if key.startswith(f"{stack}.layers.")}),
        feedforward=state[f"{stack}.layers.0.linear1.weight"].shape[0],
        horizon=0 if positions is None else positions.shape[1],
        action_dim=state["output_head.1.weight"].shape[0] if regression else state["action_embed.weight"].shape[1],
        time_width=0 if regression else state["time_embed.0.weight"].shape[1],
    )


def _inputs(
    state: StateDict, columns: int, features: int | None, language: int | None
) -> tuple[ExpertFusion, int, int]:
    """How the expert fuses, V and S; ``columns`` is what its last projection reads."""
    crossed = any(key.startswith("cross_attn.") for key in state)
    if crossed or any(key.startswith("gate.") for key in state):
        seen, sensor = state["vl_proj.weight"].shape[1], state["sensor_proj.weight"].shape[1]
        return "cross_attention" if crossed else "gated", seen, sensor
    if language is not None and columns >= language:
        return ("concat" if columns > language else "none"), language, columns - language
    if features is None:
        return "unknown", columns, 0
    return ("concat", columns - features, features) if columns > features else ("none", columns, 0)


def _misfits(shape: ExpertShape, features: int | None) -> list[str]:
    """Differences that would stop the module from being built, in words."""
    found = []
    if shape.seen < 1:
        found.append("sizes of 0")
    if shape.width % shape.heads:
        found.append(f"width {shape.width} is not divisible by {shape.heads} heads")
    if shape.kind == "diffusion" and (shape.time_width < 4 or shape.time_width % 2):
        found.append(f"time_embed.0.weight reads {shape.time_width} numbers, not sines and as many cosines")
    if features is not None and shape.sensor not in (0, features):
        found.append(f"it reads {shape.sensor} sensor features, the sensor encoder gives {features}")
    return found


def _expected(shape: ExpertShape) -> StateDict:
    with torch.device("meta"):
        return new_expert(shape).published()


def new_expert(shape: ExpertShape) -> RegressionExpert | DiffusionExpert:
    """A module of these sizes, with random weights."""
    return RegressionExpert(shape) if shape.kind == "regression" else DiffusionExpert(shape)
