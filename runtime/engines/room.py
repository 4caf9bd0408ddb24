"""Keeps a folder of engines within its limit.

What was not used for longest goes first. An engine that some process holds stays, whatever the limit: if what stays
leaves too little, nothing is written. What a dead process left goes before any engine does.

The order is that of marks on the engines. A mark is the time, or the newest mark plus a nanosecond where the clock was
set back, so that the order is right whatever happens to the clock.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from trunkline.runtime.engines import folder
from trunkline.runtime.engines.locks import FileLock
from trunkline.runtime.errors import BackendError

LOCKS, PLAN = "locks", "engine.plan"
_ENTRY = re.compile(r"[0-9a-f]{64}")
_LEFTOVER = re.compile(r"\.([0-9a-f]{64})\.[0-9a-f]+")


@dataclass(frozen=True)
class Kept:
    """An engine in the folder: its bytes on the disk, and its mark."""

    place: Path
    bytes: int
    used_ns: int


def kept(root: Path) -> list[Kept]:
    """Every engine, what was not used for longest first."""
    found = [_kept(path) for path in root.iterdir() if _ENTRY.fullmatch(path.name)]
    return sorted(found, key=lambda each: (each.used_ns, each.place.name))


def _kept(place: Path) -> Kept:
    used_ns = 0  # what is damaged goes first
    with contextlib.suppress(OSError):
        used_ns = os.lstat(place / PLAN).st_mtime_ns
    return Kept(place, folder.size_of(place), used_ns)


def mark_used(place: Path) -> None:
    """Puts an engine last in the order. A folder that cannot be written stays as it is: nothing is removed there."""
    others = [each.used_ns for each in kept(place.parent) if each.place != place]
    mark = max([time.time_ns(), *(used_ns + 1 for used_ns in others)])
    with contextlib.suppress(OSError):
        os.utime(place / PLAN, ns=(mark, mark), follow_symlinks=False)


def make(place: Path, needed_bytes: int, limit_bytes: int) -> None:
    """Removes other engines until one of ``needed_bytes`` fits in its place. The caller is alone in the folder.

    Raises:
        BackendError: they do not fit beside what is held.
        OSError: the folder cannot be written.
    """
    root = place.parent
    _remove_leftovers(root)
    engines = [each for each in kept(root) if each.place != place]  # what is there is replaced
    total = sum(each.bytes for each in engines)
    while total + needed_bytes > limit_bytes and engines:
        oldest = engines.pop(0)
        if remove(oldest.place):
            total -= oldest.bytes
    if total + needed_bytes > limit_bytes:
        raise BackendError(
            "an engine does not fit into the cache",
            where=root,
            expected=f"at most {limit_bytes} bytes of engines",
            found=f"{needed_bytes} bytes for the new one, {total} bytes that are in use and stay",
            fix="allow more with --cache-limit, or end the processes that use old engines",
        )


def _remove_leftovers(root: Path) -> None:
    for path in root.iterdir():
        match = _LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        with FileLock(root / LOCKS / f"{match.group(1)}.build") as lock:
            if lock.try_to_take():
                folder.remove_leftovers(root / match.group(1))


def remove(place: Path) -> bool:
    """Whether an engine could be removed: nobody may hold it. The caller is alone in the folder."""
    with FileLock(place.parent / LOCKS / f"{place.name}.use") as lock:
        if not lock.try_to_take():
            return False
        folder.remove_entry(place)
    return True
