"""A trunk's weights, looked at before open_clip's loader sees them: what it makes of a damaged file is a riddle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from open_clip.factory import HF_HUB_PREFIX, LOCAL_DIR_PREFIX, _find_checkpoint_in_dir
from open_clip.pretrained import download_pretrained_from_hf
from safetensors import SafetensorError, safe_open

from trunkline.exporter.checkpoint.tensors import refuse_unusable
from trunkline.exporter.checkpoint.torch_file import is_state_dict, load
from trunkline.exporter.checkpoint.weight_file import damage, explained, is_lfs_pointer, lfs_fix
from trunkline.runtime.errors import CheckpointError, TrunkError
from trunkline.runtime.record import shortened

_NUMPY_SUFFIXES = (".npz", ".npy")  # big_vision's own files
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", *_NUMPY_SUFFIXES)
#: How names of parameters end; towers also keep whole numbers, such as indices of positions.
_PARAMETERS = ("weight", "bias", "embedding", "projection", "embed")
_PROBLEM = "cannot read the trunk's weights"
_CONVERT = "convert the file to .safetensors with software that you trust; files with code are never opened here"


def require_readable(name: str, weights: Path | None) -> None:
    """Opens the weights that open_clip will load for a trunk, and looks at the tensors' kinds.

    Args:
        name: the trunk's name, as for :func:`trunkline.exporter.trunk.load_trunk`.
        weights: of a built-in model.

    Raises:
        TrunkError: the file is not what it should be.
    """
    path = weights
    if name.startswith(LOCAL_DIR_PREFIX):
        found = _find_checkpoint_in_dir(Path(name.removeprefix(LOCAL_DIR_PREFIX)))
        path = Path(found) if found else None
    elif name.startswith(HF_HUB_PREFIX):
        path = Path(download_pretrained_from_hf(name.removeprefix(HF_HUB_PREFIX)))
    if path is not None:
        _require_tensors(Path(path))


def refuse_pointers(name: str) -> None:
    """Looks for Git LFS pointers among the files of a local trunk, other than weights: some lie there unused.

    Raises:
        TrunkError: the tokenizer or the configuration is one.
    """
    folder = Path(name.removeprefix(LOCAL_DIR_PREFIX))
    if not name.startswith(LOCAL_DIR_PREFIX) or not folder.is_dir():
        return
    needed = (path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix not in _WEIGHT_SUFFIXES)
    if pointers := [path for path in needed if is_lfs_pointer(path)]:
        raise TrunkError(
            "cannot read a trunk's folder",
            where=folder,
            found=[f"{path.name} is a Git LFS pointer, not the file itself" for path in pointers],
            fix=lfs_fix(pointers[0]),
        )


def _require_tensors(path: Path) -> None:
    try:
        if damaged := damage(path):
            raise TrunkError(_PROBLEM, where=path, found=damaged.found, fix=damaged.fix)
        if path.suffix in _NUMPY_SUFFIXES:
            return
        tensors = _tensors(path)
        if not is_state_dict(tensors) or not tensors:
            raise TrunkError(_PROBLEM, where=path, expected="tensors by name", found=_described(tensors), fix=_CONVERT)
        refuse_unusable({name: tensor for name, tensor in tensors.items() if name.endswith(_PARAMETERS)}, path)
        refuse_unusable(tensors, path, buffers=True)
    except SafetensorError as error:
        raise TrunkError(_PROBLEM, where=path, **explained(path, error)) from error
    except CheckpointError as error:
        raise TrunkError(_PROBLEM, where=path, expected=error.expected, found=error.found, fix=error.fix) from error


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """The state dict that open_clip's loader takes from a file; PyTorch reads tensors when they are used."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    try:
        content = load(path)
    except CheckpointError as error:
        raise TrunkError(_PROBLEM, where=path, expected=error.expected, found=error.found, fix=_CONVERT) from error
    return content.get("state_dict", content)


def _described(content: object) -> object:
    if not isinstance(content, Mapping):
        return type(content).__name__
    wrong = [f"{key}: {type(value).__name__}" for key, value in content.items() if not is_state_dict({key: value})]
    return shortened(wrong) or "no tensors"
