"""A bundle opened for reading: manifest checked, every file accounted for, every digest known to match.

Digests are checked when a bundle is opened. Hashing gigabytes at every start would cost seconds, so what was hashed
once is remembered in the user's cache directory by the file's identity (device, inode, size, modification and
change time). Promise: a file whose content was changed through the file system since it was last hashed on this
machine, is hashed again. The kernel sets the change time; a program without control of the clock cannot set it back.
Not covered: bits that rot on the disk without a write, and a disk that was edited in another machine.
``recheck=True`` hashes everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from trunkline.runtime import files, record
from trunkline.runtime.backends.threads import physical_cores
from trunkline.runtime.errors import BundleError, IntegrityError
from trunkline.runtime.files import Identity
from trunkline.runtime.manifest import MANIFEST_NAME, Manifest, read_manifest
from trunkline.runtime.progress import Progress, silent

#: A file changed this recently may change again within one tick of a coarse file-system clock: not remembered.
RACY_NS = 2_000_000_000
#: Files that are read as a whole, rather than mapped by a back end, are at most this large.
MAX_READ_BYTES = 2 << 30
#: Directories of a bundle are at most this deep.
MAX_DEPTH = 8


@dataclass(frozen=True)
class Remembered:
    """What the cache directory keeps for one bundle."""

    manifest: str
    files: dict[str, Identity]


class Bundle:
    """A checked bundle. Safe to share between threads; holds no descriptors.

    Attributes:
        root: the directory.
        manifest: its manifest.
        digest: SHA-256 of the manifest file, which pins everything else.
    """

    def __init__(self, root: Path | str, *, recheck: bool = False, progress: Progress = silent) -> None:
        """Opens and checks a bundle.

        Args:
            root: the directory that ``trunkline export`` wrote.
            recheck: hash every file, also those that did not change since they were last hashed.
            progress: told about hashing, in bytes.

        Raises:
            BundleError: the manifest is malformed or of another version.
            IntegrityError: a file is missing, unlisted, linked, or not what the manifest says.
        """
        self.root = Path(root)
        text = self._manifest_text()
        self.digest = hashlib.sha256(text).hexdigest()
        self.manifest: Manifest = read_manifest(text, self.root / MANIFEST_NAME)
        self._check_listing()
        self._verified = self._verify(recheck, progress)

    def _manifest_text(self) -> bytes:
        if not os.path.isdir(self.root):  # unlike Path.is_dir, it never raises
            raise BundleError(
                "cannot open a bundle",
                where=self.root,
                found="no such directory, or not allowed to look",
                fix="check the path of the bundle and its permissions",
            )
        if not os.path.lexists(self.root / MANIFEST_NAME):
            raise BundleError(
                "a directory is not a bundle",
                where=self.root,
                expected=MANIFEST_NAME,
                found="no such file",
                fix="point at the directory that `trunkline export` wrote",
            )
        with files.open_inside(self.root, MANIFEST_NAME) as descriptor:
            size = os.fstat(descriptor).st_size
            if size > record.MAX_TEXT_BYTES:
                raise BundleError(
                    "the manifest is malformed", where=self.root / MANIFEST_NAME, found=f"{size} bytes: too large"
                )
            return files.read_bytes(descriptor, record.MAX_TEXT_BYTES + 1)

    def _check_listing(self) -> None:
        listed = set(self.manifest.files) | {MANIFEST_NAME}
        present = set(_walk(self.root))
        unlisted = sorted(present - listed)
        if unlisted:
            raise IntegrityError(
                "a bundle holds files that its manifest does not list",
                where=self.root,
                found=record.shortened([record.shown(name) for name in unlisted]),
                fix="remove them, or copy the bundle again; a bundle is never edited in place",
            )

    def _verify(self, recheck: bool, progress: Progress) -> dict[str, Identity]:
        started = time.time_ns()
        known = {} if recheck else _recall(self)
        found, pending = {}, []
        for name, entry in self.manifest.files.items():
            with files.open_inside(self.root, name) as descriptor:
                identity = Identity.of(os.fstat(descriptor))
            if identity.size != entry.size:
                raise _altered(self.root, name, f"{entry.size} bytes", f"{identity.size} bytes")
            if known.get(name) == identity:
                found[name] = identity
            else:
                pending.append(name)
        found |= self._hash(pending, progress)
        if pending:
            quiet = {name: each for name, each in found.items() if each.ctime_ns < started - RACY_NS}
            _remember(self, quiet)
        return found

    def _hash(self, names: list[str], progress: Progress) -> dict[str, Identity]:
        total = sum(self.manifest.files[name].size for name in names)
        done, result = 0, {}
        with ThreadPoolExecutor(max_workers=physical_cores()) as pool:
            for name, identity in zip(names, pool.map(self._hash_one, names), strict=True):
                result[name] = identity
                done += identity.size
                progress("checking digests", done, total)
        return result

    def _hash_one(self, name: str) -> Identity:
        with files.open_inside(self.root, name) as descriptor:
            identity = Identity.of(os.fstat(descriptor))
            digest = files.sha256(descriptor)
        if digest != self.manifest.files[name].sha256:
            raise _altered(self.root, name, f"sha256 {self.manifest.files[name].sha256}", f"sha256 {digest}")
        return identity

    def read(self, name: str, most: int = MAX_READ_BYTES) -> bytes:
        """A small file's content, up to ``most`` bytes. The bytes returned are the bytes that were hashed.

        Raises:
            BundleError: the file is larger than that.
            IntegrityError: the file changed since the bundle was opened.
        """
        size = self.manifest.files[name].size
        if size > most:
            raise BundleError(
                "a file of the bundle is too large",
                where=f"{self.root}, {name}",
                expected=f"at most {most} bytes",
                found=f"{size} bytes",
                fix="use bundles that `trunkline export` wrote",
            )
        with files.open_inside(self.root, name) as descriptor:
            content = files.read_bytes(descriptor, size + 1)
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.manifest.files[name].sha256:
            raise _altered(self.root, name, f"sha256 {self.manifest.files[name].sha256}", f"sha256 {digest}")
        return content

    def tensors(self, name: str) -> dict[str, object]:
        """Arrays of a safetensors file, from checked bytes.

        Raises:
            BundleError: the file is no safetensors file.
        """
        try:
            return dict(load_safetensors(self.read(name)))
        except (SafetensorError, KeyError, ValueError) as error:
            raise BundleError(
                "a tensor file of the bundle is malformed",
                where=f"{self.root}, {name}",
                expected="safetensors of types that numpy has",
                found=f"{error!s:.300}",
                fix="export the bundle again",
            ) from error

    @contextlib.contextmanager
    def unchanged(self, name: str) -> Iterator[None]:
        """Holds a back end to the verified content of ``name`` while it opens the file by its path.

        The content is hashed again if it changed since it was verified. Right content before and after is not enough,
        since a file can be swapped and swapped back: during the block nothing on the path may have changed at all.

        Raises:
            IntegrityError: the content is not what the manifest says, or the file was touched meanwhile.
        """
        before = files.path_identities(self.root, name)
        if before[-1] != self._verified[name]:
            self._verified[name] = self._hash_one(name)
        try:
            yield
        finally:  # also when the back end failed: then this is why
            if self._verified[name] != before[-1] or files.path_identities(self.root, name) != before:
                raise IntegrityError(
                    "a file of the bundle was touched while it was loaded",
                    where=f"{self.root}, {name}",
                    fix="load again when nothing writes to the bundle; a bundle is replaced as a whole, never edited",
                )


def _altered(root: Path, name: str, expected: str, found: str) -> IntegrityError:
    return IntegrityError(
        "a file of the bundle is not what the manifest says",
        where=f"{root}, {name}",
        expected=expected,
        found=found,
        fix="copy the bundle again; if it still differs, do not run it",
    )


def _walk(root: Path, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Names of everything below ``root`` that is not a directory, without following links."""
    if depth > MAX_DEPTH:
        raise IntegrityError("a bundle is nested too deep", where=f"{root}, {prefix}", expected=f"{MAX_DEPTH} levels")
    try:
        entries = sorted(os.scandir(root / prefix), key=lambda entry: entry.name)
    except OSError as error:
        raise IntegrityError(
            "a directory of the bundle cannot be read",
            where=f"{root}, {prefix}",
            found=error.strerror,
            fix="chmod -R u+rX the bundle",
        ) from error
    for entry in entries:
        name = prefix + entry.name
        if entry.is_symlink():
            raise files.link_found(f"{root}, {name!r}")
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, name + "/", depth + 1)
        else:
            yield name


def cache_directory() -> Path:
    """Where this user's trunkline keeps what can be made again.

    Raises:
        OSError: this user has no home directory, as in a container that runs under a random user id.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base and os.path.isabs(base):
        return Path(base) / "trunkline"
    try:
        return Path.home() / ".cache" / "trunkline"
    except RuntimeError as error:
        raise FileNotFoundError("no home directory") from error


def _memory_file(bundle: Bundle) -> Path:
    key = hashlib.sha256(os.fsencode(os.path.realpath(bundle.root))).hexdigest()[:32]
    return cache_directory() / "verified" / f"{key}.json"


def _recall(bundle: Bundle) -> dict[str, Identity]:
    """Identities of files hashed before; empty if there is no memory, or anyone else could have written it."""
    try:
        path = _memory_file(bundle)
        with files.open_inside(path.parent, path.name) as descriptor:
            if not (_only_ours(path.parent.stat()) and _only_ours(os.fstat(descriptor))):
                return {}
            memory = record.decode(files.read_bytes(descriptor, record.MAX_TEXT_BYTES + 1), Remembered)
    except (OSError, IntegrityError, record.RecordError):
        return {}
    return memory.files if memory.manifest == bundle.digest else {}


def _only_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o022


def _remember(bundle: Bundle, identities: dict[str, Identity]) -> None:
    """Best effort: on a read-only file system the next start hashes again."""
    try:
        path = _memory_file(bundle)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with files.replacing(path) as temporary:
            temporary.write_bytes(record.encode(Remembered(bundle.digest, identities)))
    except OSError:
        return
