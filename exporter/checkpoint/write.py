"""Writes an ensemble: the published merged ``.pt`` form, or our safetensors form, chosen by the suffix."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError

from trunkline.exporter.checkpoint.ensemble_file import write_ensemble_file
from trunkline.exporter.checkpoint.members import Checkpoint, Member, shared_settings
from trunkline.runtime.errors import CheckpointError
from trunkline.runtime.files import replacing

SUFFIXES = (".pt", ".safetensors")


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes ``checkpoint`` to ``path`` atomically.

    Raises:
        CheckpointError: the suffix is neither ``.pt`` nor ``.safetensors``, or the disk is full or read-only.
    """
    path = Path(path)
    check_suffix(path)
    write = _write_merged if path.suffix == ".pt" else write_ensemble_file
    try:
        with replacing(path) as temporary:
            write(checkpoint, temporary)
    except (OSError, SafetensorError, RuntimeError) as error:  # the two libraries report a full disk in their own way
        found = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise CheckpointError(
            "cannot write a checkpoint", where=path, found=found, fix="check space and permissions"
        ) from error


def check_suffix(path: Path) -> None:
    """Raises CheckpointError unless the suffix names a form we write."""
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            "cannot tell which form to write",
            where=path,
            expected=" or ".join(SUFFIXES),
            found=path.suffix or "no suffix",
            fix="name the output FILE.safetensors, or FILE.pt for the published form",
        )


def _write_merged(checkpoint: Checkpoint, path: Path) -> None:
    first = checkpoint.members[0]
    content: dict[str, object] = {
        "ensemble_components": [_component_dict(member) for member in checkpoint.members],
        "num_models": len(checkpoint.members),
        "backbone": checkpoint.backbone,
        "use_transformer": first.shape.encoder == "transformer",
        "history_length": first.settings.history_length,
        "action_dim": first.settings.action_dim,
        "source_checkpoints": [member.source for member in checkpoint.members],
        # Keys the published readers do not know and do not look for.
        "attention_heads": first.settings.heads,
    }
    settings = shared_settings(checkpoint)
    if settings.sensor is not None:
        content |= {"sensor": asdict(settings.sensor), "sensor_heads": settings.sensor_heads}
    if checkpoint.frozen_digest:
        content["frozen_digest"] = checkpoint.frozen_digest
    torch.save(content, path)


def _component_dict(member: Member) -> dict[str, object]:
    parts: dict[str, object] = {
        name: {key: _own_storage(tensor) for key, tensor in state.items()} for name, state in member.components.items()
    }
    return parts | {"action_padding_value": member.settings.padding_value}


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """torch.save writes whole storages, so a slice of a larger one is copied first."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()
