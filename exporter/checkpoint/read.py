"""Reads every checkpoint form our users have, without building the backbone and without unsafe unpickling.

Four forms (docs/checkpoints.md):

1. training checkpoint: a dict with ``model_state_dict``, or, older, the bare state dict;
2. merged file: ``ensemble_components`` with metadata;
3. weights-only merged file: ``ensemble_components`` alone, the rest takes the published defaults;
4. our own safetensors form, strict and versioned.

``.pt`` files are opened with the restricted unpickler and memory-mapped: tensors are read from the disk when they
are used. There is no second, weaker attempt.
"""

from __future__ import annotations

import hashlib
import pickle  # noqa: TID251 - only its exception is caught; nothing is unpickled here
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import torch

from trunkline.exporter.checkpoint.ensemble_file import read_ensemble_file
from trunkline.exporter.checkpoint.members import (
    ALL_COMPONENTS,
    PUBLISHED_BACKBONE,
    PUBLISHED_PADDING_VALUE,
    Checkpoint,
    Member,
    Settings,
    StateDict,
)
from trunkline.exporter.checkpoint.names import unique_names
from trunkline.exporter.checkpoint.shapes import read_shape
from trunkline.runtime.errors import CheckpointError
from trunkline.runtime.progress import Progress, silent

FROZEN_PREFIX = "model."
IGNORED_KEYS = ("logit_scale",)
WRAPPED_PREFIX = "module."

_UNWRAP = "a `module.` prefix comes from saving a wrapped model: save the unwrapped one"

#: What the restricted unpickler lets through when the bytes of a file are damaged.
_LOADER_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OSError,
    struct.error,
)


def read_checkpoint(path: Path, *, settings: Settings | None = None, progress: Progress = silent) -> Checkpoint:
    """Reads a checkpoint of any known form.

    Args:
        path: a ``.pt`` / ``.pth`` / ``.bin`` or ``.safetensors`` file.
        settings: what the tensors cannot tell, for forms that do not say it themselves; published values by default.
        progress: told about the hashing of frozen weights, in bytes.

    Raises:
        CheckpointError: the file is unreadable, holds code, is of no known form, or its tensors do not fit together.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError("cannot read a checkpoint", where=path, found="no such file", fix="check the path")
    if path.suffix == ".safetensors":
        return read_ensemble_file(path)
    content = _load(path)
    if "ensemble_components" in content:
        return _merged(path, content, settings)
    state = content.get("model_state_dict", content)
    if isinstance(state, Mapping) and any(str(key).startswith(ALL_COMPONENTS) for key in state):
        return _training(path, state, settings or Settings(), progress, bare=state is content)
    names = sorted(map(str, state if isinstance(state, Mapping) else content))
    wrapped = any(name.startswith(WRAPPED_PREFIX) for name in names)
    raise CheckpointError(
        "the file is not a verifier checkpoint",
        where=path,
        expected="ensemble_components, model_state_dict, or a state dict with verifier components",
        found=", ".join(names[:12]) or "an empty dict",
        fix=_UNWRAP if wrapped else "pass a training checkpoint or a merged ensemble",
    )


def _load(path: Path) -> Mapping[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on files that are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except _LOADER_ERRORS as error:
        raise CheckpointError(
            "cannot open a checkpoint with the restricted loader",
            where=path,
            expected="a PyTorch file of tensors, dicts, lists, strings and numbers",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="save plain state dicts again with torch.save; files that need full unpickling are never opened",
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            "the file is not a verifier checkpoint", where=path, expected="a dict", found=type(content).__name__
        )
    return content


def _merged(path: Path, content: Mapping[str, Any], settings: Settings | None) -> Checkpoint:
    weights_only = "backbone" not in content
    parts = content["ensemble_components"]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, Mapping) for part in parts):
        raise CheckpointError(
            "a merged file holds no members",
            where=path,
            expected="ensemble_components: a list of at least one component dict",
            found=f"{type(parts).__name__} of {len(parts) if hasattr(parts, '__len__') else '?'}",
            fix="merge the source checkpoints again with `trunkline merge`",
        )
    declared = {key: value for key, value in content.items() if key != "ensemble_components"}
    sources = _source_names(declared.get("source_checkpoints"), len(parts), path)
    defaults = settings or Settings()
    shared = replace(
        defaults,
        heads=_integer(declared, "attention_heads", defaults.heads, path),
        history_length=_integer(declared, "history_length", defaults.history_length, path),
        action_dim=_integer(declared, "action_dim", defaults.action_dim, path),
    )
    members = [_component_member(path, part, name, shared) for part, name in zip(parts, sources, strict=True)]
    notes = ("metadata is missing: published backbone, window and padding are assumed",) if weights_only else ()
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
    if name is None or (isinstance(name, str) and name):
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


def _component_member(path: Path, part: Mapping[str, Any], source: str, shared: Settings) -> Member:
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
            else "merge the source checkpoints again with `trunkline merge`",
        )
    settings = replace(shared, padding_value=float(padding))
    return _member(states, source, settings, where)


def is_state_dict(state: object) -> bool:
    return isinstance(state, Mapping) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    )


def _member(states: Mapping[str, StateDict], source: str, settings: Settings, where: str) -> Member:
    shape = read_shape(states, settings, where)
    settings = replace(settings, history_length=shape.history_length, action_dim=shape.action_dim)
    return Member(name=Path(source).stem, source=source, components=states, settings=settings, shape=shape)


def _training(
    path: Path, state: Mapping[str, torch.Tensor], settings: Settings, progress: Progress, *, bare: bool
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
            fix=f"{_UNWRAP}; action_pos_embedding marks a two-view (DROID) verifier, which is not supported",
        )
    return Checkpoint(
        form="training checkpoint (bare state dict)" if bare else "training checkpoint",
        members=(_member(parts, path.name, settings, str(path)),),
        backbone=None,
        notes=("window length, padding value and attention heads are not stored in this form: assumed",),
        frozen_digest=digest_tensors(frozen.items(), progress) if frozen else None,
    )


def digest_tensors(tensors: Iterable[tuple[str, torch.Tensor]], progress: Progress = silent) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, independent of the order of the tensors."""
    items = sorted(tensors)
    total = sum(tensor.numel() * tensor.element_size() for _, tensor in items)
    digest, done = hashlib.sha256(), 0
    for name, tensor in items:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(flat.data)
        done += flat.nbytes
        progress("hashing weights", done, total)
    return digest.hexdigest()
