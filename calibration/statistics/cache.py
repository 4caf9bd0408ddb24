"""Statistics of samples on disk: what was computed once is not computed again, and nothing altered is trusted.

One safetensors file per entry, named after its key and written atomically. Beside its arrays a file holds a digest
over the key and all of them; a file that is torn, altered or not ours is no entry. Entries are small, but there may be
many: what was not used for longest is deleted when all of them together exceed a limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from trunkline.runtime import files
from trunkline.runtime.bundle import cache_directory
from trunkline.runtime.errors import IntegrityError

DEFAULT_LIMIT_BYTES = 8 << 30
#: Entries of a large trunk are a few megabytes. What is larger than this is not one of ours.
MAX_ENTRY_BYTES = 1 << 30
#: A temporary file that was not touched for so long was left behind by a process that died.
ABANDONED_S = 3600
SUFFIX, PARTIAL_SUFFIX = ".safetensors", ".partial"
_DIGEST = "digest"

Arrays = Mapping[str, NDArray[Any]]


def default_folder() -> Path:
    """Where this user's statistics are kept.

    Raises:
        OSError: as :func:`trunkline.runtime.bundle.cache_directory`.
    """
    return cache_directory() / "calibration"


class StatisticsCache:
    """A folder of entries. One object per run: entries that it has read or written are never deleted by it.

    Several processes may share a folder. Within a process an object belongs to one thread.
    """

    def __init__(self, folder: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        """The folder is made when the first entry is written."""
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._used: set[str] = set()

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """The arrays that were put under ``key``, or None if they are not there or not as they were put."""
        name = key + SUFFIX
        try:
            with files.open_inside(self._folder, name) as descriptor:
                content = files.read_bytes(descriptor, MAX_ENTRY_BYTES)
            arrays = dict(load_safetensors(content))
        except (OSError, IntegrityError, SafetensorError, KeyError, ValueError):
            return None
        stored = arrays.pop(_DIGEST, np.empty(0, np.uint8))
        if stored.tobytes() != _digest(key, arrays):
            return None
        self._used.add(name)
        with contextlib.suppress(OSError):  # a folder that may only be read
            os.utime(self._folder / name)
        return arrays

    def put(self, key: str, arrays: Arrays) -> None:
        """Stores arrays and makes room. Best effort: where nothing can be written, the next run computes again."""
        digest = np.frombuffer(_digest(key, arrays), np.uint8)
        name = key + SUFFIX
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with files.replacing(self._folder / name) as temporary:
                temporary.write_bytes(save_safetensors({**arrays, _DIGEST: digest}))
        except OSError:
            return
        self._used.add(name)
        self._make_room()

    def _make_room(self) -> None:
        """Deletes entries until the limit holds, the least recently used first."""
        entries = self._entries()
        excess = sum(status.st_size for _, status in entries) - self._limit_bytes
        for path, status in sorted(entries, key=lambda entry: entry[1].st_mtime_ns):
            if excess <= 0:
                return
            if path.name not in self._used and not _being_written(path, status):
                with contextlib.suppress(OSError):  # another process was faster
                    path.unlink()
                    excess -= status.st_size

    def _entries(self) -> list[tuple[Path, os.stat_result]]:
        """Our own files, finished or not. Anything else in the folder is somebody else's and stays."""
        entries = []
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if path.name.endswith((SUFFIX, PARTIAL_SUFFIX)):
                    with contextlib.suppress(OSError):  # deleted meanwhile
                        entries.append((path, path.lstat()))
        return entries


def _being_written(path: Path, status: os.stat_result) -> bool:
    return path.name.endswith(PARTIAL_SUFFIX) and time.time() - status.st_mtime < ABANDONED_S


def _digest(key: str, arrays: Arrays) -> bytes:
    """SHA-256 over the key and everything about the arrays; names and shapes cannot run into one another."""
    digest = hashlib.sha256(key.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name!r} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
