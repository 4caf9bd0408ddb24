"""What is wrong with a file of weights that no library can read: looked up in its bytes, nothing is loaded.

The libraries say what they stumbled over. What users need to know is mostly one of a few things: Git LFS left a pointer
in place of the file, a download or copy was cut short, a web page was saved, or a file lies under a wrong suffix.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_WEB_PAGE = (b"<!doctype html", b"<html")
_ZIP, _PICKLE, _NUMPY = b"PK\x03\x04", b"\x80", b"\x93NUMPY"
_HEAD_BYTES = 512
#: safetensors: the length of the header as a little-endian integer, the header as JSON, the tensors.
_LENGTH_BYTES = 8
#: The largest header that the safetensors library reads.
_MAX_HEADER_BYTES = 100_000_000
_AGAIN = "copy or download the file again"


@dataclass(frozen=True)
class Damage:
    """What a file is in place of weights, and what to do."""

    found: str
    fix: str


def is_lfs_pointer(path: Path) -> bool:
    """Whether Git left a pointer where the file should be."""
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def damage(path: Path) -> Damage | None:
    """Why a ``.safetensors``, PyTorch or numpy file cannot be read, or None if its bytes do not tell.

    Raises:
        OSError: the file cannot be read at all.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    size = path.stat().st_size
    if head.startswith(_LFS_POINTER):
        return Damage(f"a Git LFS pointer of {size} bytes, not the weights themselves", lfs_fix(path))
    if not size:
        return Damage("an empty file", _AGAIN)
    if head.lstrip().lower().startswith(_WEB_PAGE):
        return Damage("a web page, as failed downloads leave it", "download the file again")
    if head.startswith(_ZIP) and not zipfile.is_zipfile(path):
        return Damage(f"a zip archive that was cut short after {size} bytes", _AGAIN)
    if path.suffix == ".safetensors":
        return _not_safetensors(path, head, size)
    if head.startswith((_ZIP, _PICKLE, _NUMPY)):
        return None
    if _header_length(head) and head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{":
        return Damage("a safetensors file under another suffix", f"name it {path.stem}.safetensors")
    return Damage("bytes that are neither an archive nor a pickle, the kinds that PyTorch writes", _AGAIN)


def explained(path: Path, error: Exception) -> dict[str, str]:
    """``found`` and ``fix`` for a file that a library did not read: its damage, or what the library said."""
    damaged = damage(path) or Damage(str(error) or type(error).__name__, _AGAIN)
    return {"found": damaged.found, "fix": damaged.fix}


def lfs_fix(path: Path) -> str:
    """How to get the file for which a pointer stands."""
    return f"install git-lfs and run `git lfs pull` in {path.parent}"


def _header_length(head: bytes) -> int | None:
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    return length if len(head) > _LENGTH_BYTES and 0 < length <= _MAX_HEADER_BYTES else None


def _not_safetensors(path: Path, head: bytes, size: int) -> Damage | None:
    if head.startswith((_ZIP, _PICKLE)):
        return Damage("a PyTorch file under the suffix of safetensors", f"name it {path.stem}.bin")
    length = _header_length(head)
    if length is None or head[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        return Damage("no safetensors header at its start", _AGAIN)
    start = _LENGTH_BYTES + length
    if size < start:
        return Damage(f"its header was cut short: the file has {size} bytes, the header alone {start}", _AGAIN)
    with path.open("rb") as file:
        file.seek(_LENGTH_BYTES)
        ends = _ends(file.read(length))
    if ends is None:
        return Damage("no safetensors header at its start", _AGAIN)
    if size < start + ends:
        return Damage(f"it was cut short: {size} bytes of the {start + ends} that its header speaks of", _AGAIN)
    return None


def _ends(header: bytes) -> int | None:
    """Where the last tensor ends, or None if a header is none."""
    try:
        entries: dict[str, Any] = json.loads(header)
        return max(
            (int(entry["data_offsets"][1]) for key, entry in entries.items() if key != "__metadata__"), default=0
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
