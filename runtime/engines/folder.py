"""A folder that only its owner writes, of entries that are there as a whole or not at all.

Whoever can write an engine runs code on the GPU of whoever loads it. So the folder must belong to this user (or to the
administrator) and be closed to writers besides, and so must every file that is read. Nothing is reached through a link.

An entry is a folder of its own. It is written beside its place, flushed, and renamed; a process that dies at any point
leaves the entry that was there, or none, and leftovers whose names begin with a dot. Those are removed by whoever next
holds the entry's lock, since only its holder makes them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from trunkline.runtime import files
from trunkline.runtime.errors import BackendError

WRITE_CHUNK_BYTES = 8 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


class RefusedError(Exception):
    """Why something in the folder must not be used, in words that follow its name."""


def make_private(folder: Path) -> None:
    """Makes a folder that only this user may enter, unless it is there.

    Raises:
        BackendError: it cannot be made, or others could write to the one that is there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except OSError as error:
        raise disk_error(error, folder) from error
    if problem := _writers(status):
        raise BackendError(
            "the engine cache is not used, since others could put engines into it",
            where=folder,
            expected="a folder that only you, or the administrator, can write",
            found=problem,
            fix=f"chmod 700 {folder} if you trust what is in it, or name another folder",
        )


def _writers(status: os.stat_result) -> str | None:
    """Who besides this user and the administrator may write a file or folder."""
    if status.st_uid not in (os.getuid(), 0):
        return f"it belongs to user {status.st_uid}"
    mode = stat.S_IMODE(status.st_mode)
    return f"its mode is {mode:o}: its group or everybody may write" if mode & 0o022 else None


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int | None]:
    """A descriptor of an entry; None if there is nothing of this name. What is replaced meanwhile stays readable.

    Raises:
        RefusedError: it is no folder, or others could write to it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise RefusedError("a link or a file stands in its place") from error
        raise
    try:
        if problem := _writers(os.fstat(descriptor)):
            raise RefusedError(problem)
        yield descriptor
    finally:
        os.close(descriptor)


def read_plain(folder: int, name: str, most: int) -> bytes:
    """Content of a plain file in an opened folder, at most ``most`` bytes.

    Raises:
        RefusedError: it is missing, linked, no plain file, too large, or others could write to it.
        OSError: the disk fails.
    """
    # O_NONBLOCK: a FIFO must not hang the open; it is refused right after.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError as error:
        raise RefusedError(f"{name} is missing") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise RefusedError(f"{name} is a link, or no plain file") from error
        raise
    try:
        status = os.fstat(descriptor)
        _require_plain(status, name, most)
        return files.read_bytes(descriptor, status.st_size)  # not ``most``, which a forged record may have named
    finally:
        os.close(descriptor)


def _require_plain(status: os.stat_result, name: str, most: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError(f"{name} is no plain file")
    if status.st_nlink != 1:
        raise RefusedError(f"{name} has {status.st_nlink} names, so that another one can change it unseen")
    if problem := _writers(status):
        raise RefusedError(f"{name}: {problem}")
    if status.st_size > most:
        raise RefusedError(f"{name} has {status.st_size} bytes, more than {most}")


def write_entry(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Puts an entry in its place, as a whole. The caller holds the entry's lock.

    Raises:
        OSError: the disk is full, or cannot be written; what was there is still there.
    """
    staged = _beside(folder)
    try:
        staged.mkdir(mode=0o700)
        for name, content in contents.items():
            _write(staged / name, content)
        _sync(staged)
        gone = _renamed(folder)
        try:
            os.rename(staged, folder)
        except OSError:
            if gone is not None:
                os.rename(gone, folder)
            raise
        _sync(folder.parent)
    except OSError:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    if gone is not None:
        _remove(gone)


def remove_entry(folder: Path) -> None:
    """Takes an entry out of its place at once, then removes what it held. The caller holds the entry's lock."""
    gone = _renamed(folder)
    if gone is not None:
        _sync(folder.parent)
        _remove(gone)


def _renamed(folder: Path) -> Path | None:
    """Where an entry is after it was taken out of its place; None if there was none."""
    gone = _beside(folder)
    try:
        os.rename(folder, gone)
    except FileNotFoundError:
        return None
    return gone


def remove_leftovers(folder: Path) -> None:
    """Removes what writers of an entry left that died. The caller holds the entry's lock."""
    for path in folder.parent.glob(f".{folder.name}.*"):
        _remove(path)


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest[:WRITE_CHUNK_BYTES]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """Makes what was renamed in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_of(path: Path) -> int:
    """Bytes of all files in an entry or a leftover; what vanishes meanwhile counts nothing."""
    total = 0
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
    return total


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Maps the system's errors to our tree.

    Raises:
        BackendError: instead of any OSError of the block.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(error, where) from error


def disk_error(error: OSError, where: Path) -> BackendError:
    """The error of our tree for one of the system's."""
    if error.errno in _FULL:
        return BackendError(
            "there is no room on the disk for engines",
            where=where,
            found=error.strerror,
            fix="free some space, or put the cache elsewhere; engines that were there before are still used",
        )
    if error.errno in _FORBIDDEN:
        return BackendError(
            "the engine cache cannot be written",
            where=where,
            found=error.strerror,
            fix="name a folder that you may write in TRUNKLINE_ENGINES; a finished cache may be read-only",
        )
    return BackendError(
        "the engine cache cannot be used",
        where=where,
        found=error.strerror or str(error),
        fix="check the disk, and `ulimit -n` for the number of open files",
    )
