"""Reads every checkpoint form our users have, without building the backbone and without unsafe unpickling.

Four forms (docs/checkpoints.md):

1. training checkpoint: a dict with ``model_state_dict``, or, older, the bare state dict;
2. merged file: ``ensemble_components`` with metadata;
3. weights-only merged file: ``ensemble_components`` alone, the rest takes the published defaults;
4. our own safetensors form, strict and versioned.

A member that fuses a sensor may lie in a file without the sensor's encoder, where several share one that was trained
before; it is then given by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import torch

from trunkline.exporter.checkpoint.ensemble_file import read_ensemble_file
from trunkline.exporter.checkpoint.expert import refuse_sensor_action
from trunkline.exporter.checkpoint.members import (
    ALL_COMPONENTS,
    PUBLISHED_BACKBONE,
    PUBLISHED_PADDING_VALUE,
    SENSOR_ENCODER,
    SENSOR_FUSION,
    Checkpoint,
    Member,
    Settings,
    StateDict,
)
from trunkline.exporter.checkpoint.names import unique_names
from trunkline.exporter.checkpoint.sensor_file import declared_form, sensor_form, with_counters
from trunkline.exporter.checkpoint.shapes import read_shape
from trunkline.exporter.checkpoint.tensors import refuse_unusable, refuse_wrapped
from trunkline.exporter.checkpoint.torch_file import is_state_dict, load
from trunkline.runtime.errors import CheckpointError
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.record import is_text

FROZEN_PREFIX = "model."
#: The published trainer stores the frozen trunk in bfloat16; one that is stored in more is compared after this cast.
FROZEN_CASTS = (torch.bfloat16,)
IGNORED_KEYS = ("logit_scale",)


def read_checkpoint(
    path: Path,
    *,
    settings: Settings | None = None,
    sensor_encoder: StateDict | None = None,
    progress: Progress = silent,
) -> Checkpoint:
    """Reads a checkpoint of any known form.

    Args:
        path: a ``.pt`` / ``.pth`` / ``.bin`` or ``.safetensors`` file.
        settings: what the tensors cannot tell, for forms that do not say it themselves; published values by default.
        sensor_encoder: of members that fuse a sensor and carry no encoder themselves; from
            :func:`trunkline.exporter.checkpoint.sensor_file.read_sensor_encoder`.
        progress: told about the hashing of frozen weights, in bytes.

    Raises:
        CheckpointError: the file is unreadable, holds code, is of no known form, is a sensor-action checkpoint, or its
            tensors do not fit together.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError("cannot read a checkpoint", where=path, found="no such file", fix="check the path")
    if not is_text(str(path)):
        raise CheckpointError("a checkpoint's path is not UTF-8", where=ascii(str(path)), fix="rename file or folder")
    if path.suffix == ".safetensors":
        return read_ensemble_file(path)
    content = load(path)
    refuse_sensor_action(content, path)
    if "ensemble_components" in content:
        return _merged(path, content, settings, sensor_encoder)
    state = content.get("model_state_dict", content)
    refuse_wrapped(map(str, state if isinstance(state, Mapping) else ()), path)
    if isinstance(state, Mapping) and any(str(key).startswith(ALL_COMPONENTS) for key in state):
        read = _training(path, state, settings or Settings(), sensor_encoder, progress)
        return replace(read, form=f"{read.form} (bare state dict)") if state is content else read
    names = sorted(map(str, state if isinstance(state, Mapping) else content))
    raise CheckpointError(
        "the file is not a verifier checkpoint",
        where=path,
        expected="ensemble_components, model_state_dict, or a state dict with verifier components",
        found=", ".join(names[:12]) or "an empty dict",
        fix="pass a training checkpoint or an ensemble",
    )


def _merged(
    path: Path, content: Mapping[str, Any], settings: Settings | None, sensor_encoder: StateDict | None
) -> Checkpoint:
    weights_only = "backbone" not in content
    parts = content["ensemble_components"]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, Mapping) for part in parts):
        raise CheckpointError(
            "a merged file holds no members",
            where=path,
            expected="ensemble_components: a list of at least one component dict",
            found=f"{type(parts).__name__} of {len(parts) if hasattr(parts, '__len__') else '?'}",
            fix="pack the source checkpoints again with `trunkline pack`",
        )
    declared = {key: value for key, value in content.items() if key != "ensemble_components"}
    sources = _source_names(declared.get("source_checkpoints"), len(parts), path)
    defaults = settings or Settings()
    shared = replace(
        defaults,
        heads=_integer(declared, "attention_heads", defaults.heads, path),
        history_length=_integer(declared, "history_length", defaults.history_length, path),
        action_dim=_integer(declared, "action_dim", defaults.action_dim, path),
        sensor=declared_form(declared, defaults.sensor, path),
        sensor_heads=_integer(declared, "sensor_heads", defaults.sensor_heads, path),
    )
    members = [
        _component_member(path, part, name, shared, sensor_encoder) for part, name in zip(parts, sources, strict=True)
    ]
    assumed = ("metadata is missing: published backbone, window and padding are assumed",) if weights_only else ()
    notes = (*assumed, *_sensor_notes(shared, members))
    return Checkpoint(
        form="weights-only merged file" if weights_only else "merged file",
        members=unique_names(members),
        backbone=PUBLISHED_BACKBONE if weights_only else _backbone(declared["backbone"], path),
        declared=declared,
        notes=notes,
        frozen_digest=str(declared["frozen_digest"]) if "frozen_digest" in declared else None,
    )


def _integer(declared: Mapping[str, object], key: str, default: int, path: Path) -> int:
    value = declared.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20:
        return value
    raise CheckpointError(
        "a merged file's metadata is not usable",
        where=f"{path}, {key}",
        expected="a positive integer",
        found=repr(value),
    )


def _backbone(name: object, path: Path) -> str | None:
    if name is None or (isinstance(name, str) and name and is_text(name)):
        return name
    raise CheckpointError(
        "a merged file's metadata is not usable",
        where=f"{path}, backbone",
        expected="an open_clip model name",
        found=repr(name),
    )


def _source_names(names: object, count: int, path: Path) -> list[str]:
    if isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names):
        return [PureWindowsPath(name).name or f"{path.stem}[{index}]" for index, name in enumerate(names)]
    return [f"{path.stem}[{index}]" for index in range(count)]


def _component_member(
    path: Path, part: Mapping[str, Any], source: str, shared: Settings, sensor_encoder: StateDict | None
) -> Member:
    where = f"{path}, member {source}"
    padding = part.get("action_padding_value", PUBLISHED_PADDING_VALUE)
    if type(padding) not in (int, float):
        raise CheckpointError(
            "a member's padding value is not a number", where=where, expected="a float", found=type(padding).__name__
        )
    states = {key: state for key, state in part.items() if key != "action_padding_value" and state is not None}
    wrong = [f"{key}: {type(state).__name__}" for key, state in states.items() if not is_state_dict(state)]
    if wrong:
        raise CheckpointError(
            "a member's components are not state dicts",
            where=where,
            expected="name -> tensor",
            found=wrong,
            fix="action_pos_embedding marks a two-view (DROID) verifier, which is not supported"
            if "action_pos_embedding" in states
            else "pack the source checkpoints again with `trunkline pack`",
        )
    settings = replace(shared, padding_value=float(padding))
    return _member(states, source, settings, sensor_encoder, where)


def _member(
    states: Mapping[str, StateDict],
    source: str,
    settings: Settings,
    sensor_encoder: StateDict | None,
    where: str,
) -> Member:
    if sensor_encoder is not None and SENSOR_FUSION in states and SENSOR_ENCODER not in states:
        states = {**states, SENSOR_ENCODER: sensor_encoder}
    if SENSOR_ENCODER in states:
        states = {**states, SENSOR_ENCODER: with_counters(states[SENSOR_ENCODER])}
    shape = read_shape(states, settings, where)
    form = sensor_form(settings.sensor, shape.sensor, where)
    settings = replace(settings, history_length=shape.history_length, action_dim=shape.action_dim, sensor=form)
    return Member(name=Path(source).stem, source=source, components=states, settings=settings, shape=shape)


def _sensor_notes(stated: Settings, members: Iterable[Member]) -> tuple[str, ...]:
    if stated.sensor is not None or all(member.shape.sensor is None for member in members):
        return ()
    return (
        "the sensor's rate and windows are not stated: the published 650 Hz and 650 samples, read as 650 steps and "
        "padded on the left, are assumed",
    )


def _training(
    path: Path,
    state: Mapping[str, torch.Tensor],
    settings: Settings,
    sensor_encoder: StateDict | None,
    progress: Progress,
) -> Checkpoint:
    if not is_state_dict(state):
        raise CheckpointError(
            "a training checkpoint's state dict holds more than tensors",
            where=path,
            expected="name -> tensor",
            found=[f"{key}: {type(value).__name__}" for key, value in state.items() if not is_state_dict({key: value})],
            fix="save the model's plain state_dict()",
        )
    parts: dict[str, dict[str, torch.Tensor]] = {}
    frozen: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state.items():
        part, _, rest = key.partition(".")
        if part in ALL_COMPONENTS:
            parts.setdefault(part, {})[rest] = tensor
        elif key.startswith(FROZEN_PREFIX):
            frozen[key.removeprefix(FROZEN_PREFIX)] = tensor
        elif key not in IGNORED_KEYS:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            "a training checkpoint holds tensors that belong to no known component",
            where=path,
            expected=[FROZEN_PREFIX + "*", *IGNORED_KEYS, *ALL_COMPONENTS],
            found=unknown[:20],
            fix="save the verifier's state_dict() alone; action_pos_embedding marks a two-view (DROID) verifier, which "
            "is not supported",
        )
    refuse_unusable({FROZEN_PREFIX + key: tensor for key, tensor in frozen.items()}, path, buffers=True)
    member = _member(parts, path.name, settings, sensor_encoder, str(path))
    notes = ("window length, padding value and attention heads are not stated in this form: assumed",)
    return Checkpoint(
        form="training checkpoint",
        members=unique_names([member]),
        backbone=None,
        notes=notes + _sensor_notes(settings, [member]),
        frozen_digest=digest_tensors(frozen.items(), progress, FROZEN_CASTS) if frozen else None,
    )


def digest_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]], progress: Progress = silent, casts: Iterable[torch.dtype] = ()
) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, independent of the order of the tensors.

    ``casts`` are applied to floating-point tensors first, one after the other and one tensor at a time.
    """
    items = sorted(tensors)
    total = sum(tensor.numel() * tensor.element_size() for _, tensor in items)
    digest, done = hashlib.sha256(), 0
    for name, tensor in items:
        done += tensor.numel() * tensor.element_size()
        for dtype in casts if tensor.is_floating_point() else ():
            tensor = tensor.to(dtype)
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(flat.data)
        progress("hashing weights", done, total)
    return digest.hexdigest()
