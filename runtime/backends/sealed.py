"""A folder that a library fills with compiled stages itself, sealed by us: what changed since then is never loaded.

::

    <root>/                     0700; refused if others could write to it
    |-- <digest of what made them>/
    |   |-- ...                 whatever the library writes
    |   `-- seal.json           size and SHA-256 of each of these files
    `-- .lock

The library reads by path, so the folder belongs to one process while a stage is opened: it waits for others. A folder
without a seal, which is what a killed process leaves, or with one that does not fit, is emptied, and the library
compiles again. What was not used for longest goes when all folders together pass the limit.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trunkline.runtime import files, record
from trunkline.runtime.engines import folder as private
from trunkline.runtime.engines.locks import FileLock
from trunkline.runtime.errors import IntegrityError
from trunkline.runtime.manifest import FileEntry

FORMAT, SCHEMA = "trunkline-sealed-folder", 1
SEAL, LOCK = "seal.json", ".lock"
LIMIT_BYTES = 8 << 30
_ENTRY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Seal:
    """What a folder held when the library had opened a stage from it."""

    format: str
    schema: int
    files: dict[str, FileEntry]


@contextlib.contextmanager
def sealed(root: Path, digest: str, limit_bytes: int = LIMIT_BYTES) -> Iterator[Path]:
    """A folder for the library to read and write, whole or empty; sealed when the block ends without an error.

    Args:
        root: of all such folders; made if it is not there.
        digest: of everything that makes the content what it is.
        limit_bytes: what all folders may take together; the one that is being used stays in any case.

    Raises:
        BackendError: the folder cannot be written, or others could write to it.
    """
    private.make_private(root)
    place = root / digest
    with contextlib.ExitStack() as held:
        with private.disk_errors(root):
            held.enter_context(FileLock(root / LOCK)).take()
            if not _intact(place):
                shutil.rmtree(place, ignore_errors=True)
            place.mkdir(mode=0o700, exist_ok=True)
        yield place
        with private.disk_errors(place):
            _seal(place)
            _make_room(root, place, limit_bytes)


def _intact(place: Path) -> bool:
    """Whether a folder holds what was sealed and nothing else."""
    try:
        with files.open_inside(place, SEAL) as descriptor:
            found = record.decode(files.read_bytes(descriptor, record.MAX_TEXT_BYTES), Seal)
        return found == Seal(FORMAT, SCHEMA, _content(place))
    except (OSError, IntegrityError, record.RecordError):
        return False


def _content(place: Path) -> dict[str, FileEntry]:
    entries = {}
    for name in sorted(set(os.listdir(place)) - {SEAL}):
        with files.open_inside(place, name) as descriptor:
            entries[name] = FileEntry(os.fstat(descriptor).st_size, files.sha256(descriptor))
    return entries


def _seal(place: Path) -> None:
    """Seals what the library left; the seal's time says when a folder was last used."""
    if _intact(place):
        os.utime(place / SEAL)
        return
    text = record.encode(Seal(FORMAT, SCHEMA, _content(place)))  # before there is a temporary file
    with files.replacing(place / SEAL) as temporary:
        temporary.write_bytes(text)


def _make_room(root: Path, used: Path, limit_bytes: int) -> None:
    places = [path for path in root.iterdir() if _ENTRY.fullmatch(path.name) and path != used]
    places.sort(key=_last_used)
    total = private.size_of(used) + sum(private.size_of(path) for path in places)
    while places and total > limit_bytes:
        oldest = places.pop(0)
        total -= private.size_of(oldest)
        shutil.rmtree(oldest, ignore_errors=True)


def _last_used(place: Path) -> float:
    try:
        return (place / SEAL).stat().st_mtime
    except OSError:
        return 0.0  # never finished
