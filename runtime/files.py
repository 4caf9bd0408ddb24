"""Files read without trusting their names, and written so that a crash leaves no half of one.

Names inside a bundle are checked before they are used (section "Names" of docs/bundle.md), directories are walked
one component at a time without following links, and what is opened must be a plain file with one name. Readers get
a descriptor, so nobody can swap the file between check and use.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trunkline.runtime.errors import IntegrityError

MAX_NAME_CHARS = 200
#: Of a name, in that of its temporary sibling: with all of it and more, file systems would take it no longer.
_HINT_BYTES = 200
#: What the kernel answers where a link, a file or a socket stands in the place of something else.
_NOT_PLAIN = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO)
HASH_CHUNK_BYTES = 8 << 20

_FORBIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # control, format (bidi marks too), unassigned


def name_problem(name: str) -> str | None:
    """Why ``name`` may not be a relative path inside a bundle, or None if it may."""
    if not name or len(name) > MAX_NAME_CHARS:
        return f"empty or longer than {MAX_NAME_CHARS} characters"
    if any(unicodedata.category(char) in _FORBIDDEN_CATEGORIES for char in name):
        return "holds control, format or unassigned characters"
    if unicodedata.normalize("NFC", name) != name:
        return "is not in Unicode normal form C"
    if "\\" in name or ":" in name:
        return "holds a backslash or a colon, which other systems read as a path"
    if name.startswith("/"):
        return "is absolute"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "holds an empty, '.' or '..' part"
    return None


def ambiguous(names: list[str]) -> list[str]:
    """Names that some file system would take for another name of the list."""
    seen: dict[str, str] = {}
    clashes = []
    for name in names:
        key = unicodedata.normalize("NFKC", name).casefold()
        if key in seen:
            clashes.append(f"{name!r} and {seen[key]!r}")
        seen[key] = name
    return clashes


@dataclass(frozen=True)
class Identity:
    """What tells whether a file may have changed since it was hashed. Times in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextlib.contextmanager
def open_inside(root: Path, name: str) -> Iterator[int]:
    """A descriptor of a plain file below ``root``, opened without following any link on the way.

    Raises:
        IntegrityError: a link (also a hard link), a directory, a device, a missing or unreadable file.
    """
    with _opened(root, name) as path:
        yield path[-1]


def path_identities(root: Path, name: str) -> tuple[Identity, ...]:
    """Identities of ``root``, of every directory on the way, and of the file: equal as long as nothing was exchanged.

    Renaming or replacing an entry changes the modification time of the directory it is in, so that a file swapped
    and swapped back shows, too. What happens to the directories above ``root`` does not show.

    Raises:
        IntegrityError: as :func:`open_inside`.
    """
    with _opened(root, name) as path:
        return tuple(Identity.of(os.fstat(descriptor)) for descriptor in path)


@contextlib.contextmanager
def _opened(root: Path, name: str) -> Iterator[list[int]]:
    """Descriptors of ``root``, of every directory on the way, and of the file."""
    where = f"{root}, {name}"
    if problem := name_problem(name):
        raise IntegrityError("a bundle names a file it may not name", where=f"{root}, {name!r}", found=f"it {problem}")
    *folders, leaf = name.split("/")
    with contextlib.ExitStack() as stack:
        path = [_open(str(root), os.O_DIRECTORY, None, str(root), follow=True)]
        stack.callback(os.close, path[-1])
        for part in folders:
            path.append(_open(part, os.O_DIRECTORY, path[-1], where))
            stack.callback(os.close, path[-1])
        # O_NONBLOCK: a FIFO must not hang the open; it is refused right after.
        path.append(_open(leaf, os.O_NONBLOCK | os.O_NOCTTY, path[-1], where))
        stack.callback(os.close, path[-1])
        _require_plain(os.fstat(path[-1]), where)
        yield path


def _open(name: str, flags: int, folder: int | None, where: str, *, follow: bool = False) -> int:
    nofollow = 0 if follow else os.O_NOFOLLOW
    try:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | nofollow | flags, dir_fd=folder)
    except FileNotFoundError as error:
        raise IntegrityError(
            "a file of the bundle is missing", where=where, fix="copy the whole bundle again, with every file in it"
        ) from error
    except PermissionError as error:
        raise IntegrityError(
            "a file of the bundle cannot be read",
            where=where,
            found="permission denied",
            fix="chmod -R u+rX the bundle",
        ) from error
    except OSError as error:
        if error.errno in _NOT_PLAIN:
            raise link_found(where) from error
        raise IntegrityError(
            "a file of the bundle cannot be read",
            where=where,
            found=error.strerror,
            fix="check the disk, and `ulimit -n` for the number of open files",
        ) from error


def link_found(where: str) -> IntegrityError:
    """The error for anything that is neither a plain file nor a directory of the bundle's own."""
    return IntegrityError(
        "a bundle holds something that is not a plain file or directory",
        where=where,
        found="a link, or a file where a directory belongs",
        fix="a download cache made of links is no bundle: copy it with `cp -rL CACHE BUNDLE`",
    )


def _require_plain(status: os.stat_result, where: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise IntegrityError("a bundle holds something that is not a plain file", where=where, fix="remove it")
    if status.st_nlink != 1:
        raise IntegrityError(
            "a file of the bundle is a hard link: another name can change it unseen",
            where=where,
            found=f"{status.st_nlink} names",
            fix="copy the bundle with `cp -r`, which gives each file its own content",
        )


def read_bytes(descriptor: int, most: int) -> bytes:
    """The file behind a descriptor, up to ``most`` bytes: it may have grown since its size was checked."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return file.read(most)


def sha256(descriptor: int) -> str:
    """SHA-256 of the file behind a descriptor, in lower-case hex."""
    digest = hashlib.sha256()
    buffer = bytearray(HASH_CHUNK_BYTES)
    view = memoryview(buffer)
    offset = 0
    while count := os.preadv(descriptor, [view], offset):
        digest.update(view[:count])
        offset += count
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file of our own."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sha256(descriptor)
    finally:
        os.close(descriptor)


def _hidden(path: Path) -> str:
    """What the name of a temporary sibling begins with."""
    return f".{os.fsencode(path.name)[:_HINT_BYTES].decode(errors='ignore')}."


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling that becomes ``path`` when the block ends without an error, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_hidden(path), suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Makes a file or directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Flushes every file and directory below ``root`` to the disk."""
    for path in [*sorted(root.rglob("*")), root]:
        _sync(path)


@contextlib.contextmanager
def becoming(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A hidden sibling directory that becomes ``output`` when the block ends without an error, and vanishes otherwise.

    It is flushed to the disk first. With ``overwrite``, a directory of that name is replaced.
    """
    output = Path(output).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_hidden(output), suffix=".partial", dir=output.parent))
    try:
        yield folder
        folder.chmod(0o755)
        sync_tree(folder)
        if overwrite and output.exists():
            with tempfile.TemporaryDirectory(prefix=_hidden(output), suffix=".old", dir=output.parent) as aside:
                replaced = output.rename(Path(aside) / output.name)
                try:
                    folder.rename(output)
                except BaseException:
                    replaced.rename(output)
                    raise
        else:
            folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
