"""Our own checkpoint form: one safetensors file, strict and versioned.

Tensors are named ``<member index>.<component>.<tensor>``. The header's single metadata entry ``trunkline`` is a JSON
record: format, schema version, backbone, settings and the members' names. Unknown fields are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trunkline.exporter.checkpoint.members import Checkpoint, Member, Settings, shared_settings
from trunkline.exporter.checkpoint.names import unique_names
from trunkline.exporter.checkpoint.sensor_file import sensor_form
from trunkline.exporter.checkpoint.shapes import read_shape
from trunkline.exporter.checkpoint.weight_file import explained
from trunkline.runtime import record
from trunkline.runtime.errors import CheckpointError

FORMAT = "trunkline-ensemble"
SCHEMA = 1
METADATA_KEY = "trunkline"


@dataclass(frozen=True)
class MemberRecord:
    name: str
    source: str


@dataclass(frozen=True)
class EnsembleRecord:
    """The metadata of an ensemble file. ``frozen_digest``: see :class:`Checkpoint`."""

    format: str
    schema: int
    backbone: str | None
    settings: Settings
    members: tuple[MemberRecord, ...]
    frozen_digest: str | None = None


def write_ensemble_file(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the members to ``path``; tensors that are memory-mapped go straight from file to file."""
    header = EnsembleRecord(
        format=FORMAT,
        schema=SCHEMA,
        backbone=checkpoint.backbone,
        settings=shared_settings(checkpoint),
        members=tuple(MemberRecord(member.name, member.source) for member in checkpoint.members),
        frozen_digest=checkpoint.frozen_digest,
    )
    tensors: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for index, member in enumerate(checkpoint.members):
        for name, tensor in member.tensors().items():
            tensors[f"{index}.{name}"] = tensor = _unshared(tensor.detach().contiguous(), storages)
            storages.add(tensor.untyped_storage().data_ptr())
    save_file(tensors, path, metadata={METADATA_KEY: record.encode(header).decode()})


def _unshared(tensor: torch.Tensor, storages: set[int]) -> torch.Tensor:
    """A copy if another tensor lies in the same storage: safetensors refuses to write shared memory."""
    return tensor.clone() if tensor.untyped_storage().data_ptr() in storages else tensor


def read_ensemble_file(path: Path) -> Checkpoint:
    """Reads an ensemble file.

    Raises:
        CheckpointError: the file is no safetensors file, not ours, of a newer schema, or its tensors do not fit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(path, file.metadata())
            members = [_member(path, header, index, file) for index in range(len(header.members))]
            _refuse_strays(path, header, list(file.keys()))
    except SafetensorError as error:
        raise CheckpointError("cannot read a safetensors file", where=path, **explained(path, error)) from error
    return Checkpoint(
        form="trunkline ensemble file",
        members=unique_names(members),
        backbone=header.backbone,
        declared={
            "num_models": len(members),
            "history_length": header.settings.history_length,
            "action_dim": header.settings.action_dim,
        },
        frozen_digest=header.frozen_digest,
    )


def _header(path: Path, metadata: dict[str, str] | None) -> EnsembleRecord:
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        raise CheckpointError(
            "a safetensors file is not an ensemble",
            where=path,
            expected=f"metadata entry {METADATA_KEY!r}, as `trunkline pack` writes it",
            found=sorted(metadata or {}) or "no metadata",
            fix="pack the training checkpoints with `trunkline pack CKPT... -o FILE.safetensors`",
        )
    try:
        header = record.decode(text.encode(), EnsembleRecord)
    except record.RecordError as error:
        raise CheckpointError(
            "an ensemble file's metadata is malformed", where=path, found=error.differences, fix="pack it again"
        ) from error
    if header.format != FORMAT or header.schema != SCHEMA or not header.members:
        raise CheckpointError(
            "an ensemble file is of another version",
            where=path,
            expected=f"{FORMAT} schema {SCHEMA} with at least one member",
            found=f"{header.format} schema {header.schema} with {len(header.members)} members",
            fix="update trunkline, or pack the sources again with this version",
        )
    return header


def _member(path: Path, header: EnsembleRecord, index: int, file: safe_open) -> Member:
    prefix = f"{index}."
    components: dict[str, dict[str, torch.Tensor]] = {}
    for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
        if name.startswith(prefix):
            part, _, key = name.removeprefix(prefix).partition(".")
            components.setdefault(part, {})[key] = file.get_tensor(name)
    info = header.members[index]
    shape = read_shape(components, header.settings, f"{path}, member {info.name}")
    form = sensor_form(header.settings.sensor, shape.sensor, f"{path}, member {info.name}")
    settings = replace(header.settings, history_length=shape.history_length, action_dim=shape.action_dim, sensor=form)
    return Member(info.name, info.source, components, settings, shape)


def _refuse_strays(path: Path, header: EnsembleRecord, names: list[str]) -> None:
    known = {str(index) for index in range(len(header.members))}
    strays = [name for name in names if name.partition(".")[0] not in known]
    if strays:
        raise CheckpointError(
            "an ensemble file holds tensors of no member", where=path, found=strays[:20], fix="pack it again"
        )
