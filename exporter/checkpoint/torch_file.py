"""Opens PyTorch files with the restricted unpickler, memory-mapped. There is no second, weaker attempt."""

from __future__ import annotations

import contextlib
import pickle  # noqa: TID251 - only its exception is caught; nothing is unpickled here
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trunkline.exporter.checkpoint.weight_file import damage
from trunkline.runtime.errors import CheckpointError
from trunkline.runtime.record import shortened, shown

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

#: Causes in our words. PyTorch's own advise to unpickle the file without its restrictions.
_CAUSES = {
    "TorchScript archive": "a TorchScript archive, which holds code",
    "legacy .tar": "a tar archive, PyTorch's first format",
    "to load DTensors": "DTensors, the shards of a distributed model",
    "jagged": "nested tensors",
}
_DETAIL = "WeightsUnpickler error:"
_FIX = "save plain state dicts again with torch.save; files that need full unpickling are never opened"


def load(path: Path) -> Mapping[str, Any]:
    """The dict in a PyTorch file; tensors are read from the disk when they are used.

    Raises:
        CheckpointError: the file is damaged, holds code, or is no dict.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on files that are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except _LOADER_ERRORS as error:
        raise CheckpointError(
            "cannot open a checkpoint with the restricted loader",
            where=path,
            expected="a PyTorch file of tensors, dicts, lists, strings and numbers",
            **_explained(path, error),
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            "the file is not a verifier checkpoint", where=path, expected="a dict", found=type(content).__name__
        )
    return content


def _explained(path: Path, error: BaseException) -> dict[str, Any]:
    """What was found and how to mend it, without the library's advice and colours."""
    if damaged := damage(path):
        return {"found": damaged.found, "fix": damaged.fix}
    if needed := _needed(path, str(error)):
        numpy = any(name.startswith("numpy") for name in needed)
        plain = "save float(x) in place of a number of numpy's, such as a loss, and torch.from_numpy(x) of an array; "
        found = shortened([f"an object that needs {shown(name)[1:-1]}" for name in needed])
        return {"found": found, "fix": plain * numpy + _FIX}
    cause = next((words for mark, words in _CAUSES.items() if mark in str(error)), None)
    if cause is None:
        lines = str(error).rpartition(_DETAIL)[2].strip().splitlines()
        cause = lines[0] if lines and "weights_only" not in lines[0] else type(error).__name__
    return {"found": cause, "fix": _FIX}


def _needed(path: Path, message: str) -> list[str]:
    """Classes and functions that the restricted unpickler does not know."""
    first = re.findall(r"GLOBAL (\S+)", message)
    if first:
        with contextlib.suppress(*_LOADER_ERRORS):  # it reads archives only
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return first


def is_state_dict(state: object) -> bool:
    """Whether it maps names to tensors and nothing else."""
    return isinstance(state, Mapping) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    )
