"""Opens PyTorch files with the restricted unpickler, memory-mapped. There is no second, weaker attempt."""

from __future__ import annotations

import pickle  # noqa: TID251 - only its exception is caught; nothing is unpickled here
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trunkline.runtime.errors import CheckpointError

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
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="save plain state dicts again with torch.save; files that need full unpickling are never opened",
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            "the file is not a verifier checkpoint", where=path, expected="a dict", found=type(content).__name__
        )
    return content


def is_state_dict(state: object) -> bool:
    """Whether it maps names to tensors and nothing else."""
    return isinstance(state, Mapping) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    )
