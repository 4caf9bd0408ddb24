"""The folder that engines are kept in: found again only if nothing about them changed.

::

    engines/                         0700; refused if others could write to it
    |-- <digest of an EngineKey>/
    |   |-- engine.plan
    |   `-- attestation.json         what it is, its SHA-256, and what it did where it was built
    |-- sets/<bundle>.<device>.json  which engines a bundle runs (trunkline.runtime.engines.sets)
    |-- timing/<device>/             what the compiler measured (trunkline.runtime.engines.timing)
    `-- locks/

Promises: an engine is handed out only if its record names the whole key that was asked for, and its bytes are those
that were attested; the caller gets these bytes, not a path. Processes that want the same engine build it one after the
other. A process that dies leaves what was there before. The folder stays within its limit, and never loses an engine
that somebody holds (:mod:`trunkline.runtime.engines.room`).

Refuses, by name and with the reason: engines whose record is another key's, truncated or altered ones, links, and those
that were not seen to decide as the PyTorch ensemble does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from trunkline.runtime import bundle, files, record
from trunkline.runtime.engines import attestation, folder, room
from trunkline.runtime.engines.attestation import Attestation, ParityRun
from trunkline.runtime.engines.folder import RefusedError, disk_errors
from trunkline.runtime.engines.key import EngineKey
from trunkline.runtime.engines.locks import FileLock
from trunkline.runtime.engines.room import LOCKS, PLAN
from trunkline.runtime.errors import BackendError
from trunkline.runtime.progress import Progress, silent

ATTESTATION = "attestation.json"
#: Of the environment: a service's engines may lie outside any home directory.
FOLDER_VARIABLE = "TRUNKLINE_ENGINES"
DEFAULT_LIMIT_BYTES = 8 << 30
#: Room for a record, with the verdict that is entered later.
RECORD_BYTES = 8 << 10
BUILD = "run `trunkline build BUNDLE` on this device"


def default_folder() -> Path:
    """Where this user's engines are: the folder that ``FOLDER_VARIABLE`` names, or one in the user's cache directory.

    Raises:
        BackendError: this user has no home directory.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named and os.path.isabs(named):
        return Path(named)
    try:
        return bundle.cache_directory() / "engines"
    except OSError as error:
        raise BackendError(
            "there is no place for engines", found=str(error), fix=f"name a folder in {FOLDER_VARIABLE}"
        ) from error


class Engine:
    """An engine that stays in the cache until this is closed. One thread at a time.

    Attributes:
        attestation: what is known of it.
        judged_with: identity of the set that it was opened from, None outside of one.
    """

    def __init__(self, found: Attestation, plan: bytes, lock: FileLock) -> None:
        self.attestation = found
        self.judged_with: str | None = None
        self._plan: bytes | None = plan
        self._lock = lock

    @property
    def key(self) -> EngineKey:
        """What made it."""
        return self.attestation.key

    def plan(self) -> bytes:
        """The bytes that were checked.

        Raises:
            ValueError: they were dropped with :meth:`forget_plan`.
        """
        if self._plan is None:
            raise ValueError("the plan was dropped")
        return self._plan

    def forget_plan(self) -> None:
        """Frees the bytes; the engine stays held."""
        self._plan = None

    def close(self) -> None:
        """Lets the cache remove the engine. Calling it twice is fine."""
        self._plan = None
        self._lock.close()


class EngineCache:
    """A folder of engines. Any thread and any number of processes may use one folder at once."""

    def __init__(self, root: Path | None = None, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        """Opens the folder, and makes it if it is not there.

        Args:
            root: by default :func:`default_folder`.
            limit_bytes: what engines may take together.

        Raises:
            BackendError: it cannot be made, or others could write to it.
        """
        self.root = default_folder() if root is None else root
        self.limit_bytes = limit_bytes
        folder.make_private(self.root)

    def find(self, key: EngineKey, *, unverified: bool = False) -> Engine | None:
        """An engine, checked and held; None if there is none of this key.

        Args:
            key: what made it.
            unverified: also one that no run has judged yet, for the run that will.

        Raises:
            BackendError: there is one that must not be used, and why; or the folder cannot be read.
        """
        try:
            return self._examined(key, unverified)
        except RefusedError as error:
            raise refused(f"stage {key.stage}, {self.root / key.digest}", str(error)) from error

    def find_or_remove(self, key: EngineKey) -> tuple[Engine | None, str | None]:
        """As :meth:`find` with ``unverified``, for builders: what is refused is removed, and the reason returned.

        The caller holds the key's :meth:`building`.

        Raises:
            BackendError: the folder cannot be read or written.
        """
        try:
            return self._examined(key, unverified=True), None
        except RefusedError as error:
            self.remove(key)
            return None, str(error)

    @contextlib.contextmanager
    def building(self, key: EngineKey, progress: Progress = silent) -> Iterator[None]:
        """For builders: nobody else builds, publishes or removes the engine of this key meanwhile.

        What another one left that died is removed. Told to ``progress`` if another process has to be waited for.

        Raises:
            BackendError: the folder cannot be written.
        """
        with self.alone(f"{key.digest}.build", "waiting: another process is building this engine", progress):
            with disk_errors(self.root):
                folder.remove_leftovers(self.root / key.digest)
            yield

    def publish(self, plan: bytes, found: Attestation) -> Engine:
        """Keeps an engine, and holds it. The caller holds the key's :meth:`building`.

        Args:
            plan: the engine.
            found: what is known of it.

        Raises:
            BackendError: there is no room within the limit or on the disk, or the folder cannot be written.
        """
        place = self.root / found.key.digest
        with disk_errors(place), contextlib.ExitStack() as held:
            lock = held.enter_context(self._in_use(place))
            with self.alone("room"):
                room.make(place, len(plan) + RECORD_BYTES, self.limit_bytes)
                folder.write_entry(place, {PLAN: plan, ATTESTATION: record.encode(found)})
            room.mark_used(place)
            held.pop_all()  # the lock goes with the engine
            return Engine(found, plan, lock)

    def attest(self, engine: Engine, parity: ParityRun) -> None:
        """Writes down what a held engine did in a run that judged it. Nobody holds the key's :meth:`building`.

        Raises:
            BackendError: it is not in the cache any more, or the folder cannot be written.
        """
        place = self.root / engine.key.digest
        with self.building(engine.key), disk_errors(place):
            there = self._attested(place, engine.key)
            if there is None or there.plan_sha256 != engine.attestation.plan_sha256:
                raise BackendError("an engine was removed or replaced while it was judged", where=place, fix=BUILD)
            engine.attestation = replace(engine.attestation, parity=parity)
            folder.remove_leftovers(place / ATTESTATION)
            with files.replacing(place / ATTESTATION) as temporary:
                temporary.write_bytes(record.encode(engine.attestation))

    def remove(self, key: EngineKey) -> None:
        """Removes an engine. The caller holds the key's :meth:`building`; who holds the engine keeps what was read.

        Raises:
            BackendError: the folder cannot be written.
        """
        place = self.root / key.digest
        with disk_errors(place), self.alone("room"):
            folder.remove_entry(place)

    def remove_unless_held(self, key: EngineKey) -> bool:
        """As :meth:`remove`, but not what somebody holds: another build may be judging it. Whether it was removed.

        Raises:
            BackendError: the folder cannot be written.
        """
        place = self.root / key.digest
        with disk_errors(place), self.alone("room"):
            return room.remove(place)

    @contextlib.contextmanager
    def alone(self, name: str, waiting: str | None = None, progress: Progress = silent) -> Iterator[None]:
        """Holds one of the folder's locks; says ``waiting`` if another process has it.

        Raises:
            BackendError: the folder cannot be written.
        """
        with contextlib.ExitStack() as held:
            with disk_errors(self.root):
                lock = held.enter_context(self._lock(name))
                if not lock.try_to_take():
                    if waiting:
                        progress(waiting, 0, 1)
                    lock.take()
            yield

    def _examined(self, key: EngineKey, unverified: bool) -> Engine | None:
        place = self.root / key.digest
        with disk_errors(place), contextlib.ExitStack() as held:
            if not os.path.lexists(place):
                return None
            lock = held.enter_context(self._in_use(place))
            checked = _checked(place, key, unverified)
            if checked is None:
                return None
            room.mark_used(place)
            held.pop_all()  # the lock goes with the engine
            return Engine(*checked, lock)

    def _attested(self, place: Path, key: EngineKey) -> Attestation | None:
        try:
            with folder.opened(place) as descriptor:
                return None if descriptor is None else _record(descriptor, key)
        except RefusedError as error:
            raise refused(f"stage {key.stage}, {place}", str(error)) from error

    def _in_use(self, place: Path) -> FileLock:
        """A lock that keeps an engine in the cache; who is removing it now does so first."""
        lock = self._lock(f"{place.name}.use", shared=True)
        lock.take()
        return lock

    def _lock(self, name: str, *, shared: bool = False) -> FileLock:
        return FileLock(self.root / LOCKS / name, shared=shared)


def refused(where: str, reason: str) -> BackendError:
    """The error for an engine that must not be used."""
    return BackendError(
        "an engine in the cache is refused",
        where=where,
        found=reason,
        fix=f"{BUILD}, which removes it and builds it again",
    )


def _checked(place: Path, key: EngineKey, unverified: bool) -> tuple[Attestation, bytes] | None:
    with folder.opened(place) as descriptor:
        if descriptor is None:
            return None
        found = _record(descriptor, key)
        if not (found.passed or unverified):
            raise RefusedError("it was not seen to decide as the PyTorch ensemble does")
        plan = folder.read_plain(descriptor, PLAN, found.plan_bytes)
    if len(plan) != found.plan_bytes:
        raise RefusedError(f"{PLAN} has {len(plan)} bytes, {found.plan_bytes} were attested")
    if hashlib.sha256(plan).hexdigest() != found.plan_sha256:
        raise RefusedError(f"{PLAN} is not what was attested: its SHA-256 differs")
    return found, plan


def _record(descriptor: int, key: EngineKey) -> Attestation:
    found = attestation.read(folder.read_plain(descriptor, ATTESTATION, record.MAX_TEXT_BYTES), Attestation)
    if found.key != key:
        raise RefusedError("it is another engine's: " + "; ".join(key.differences(found.key)))
    return found
