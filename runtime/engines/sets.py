"""Which engines a bundle runs on this device.

A bundle's engines are taken into use together, by replacing one small file after all of them passed together. Until
then, and if anything goes wrong before, those that were used before stay in use. The file pins every engine to the
byte: the next build of the same stage rounds a little differently, and has to pass with the others first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trunkline.runtime import files, record
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.engines import attestation, folder
from trunkline.runtime.engines.attestation import ParityRun, form_problems
from trunkline.runtime.engines.cache import BUILD, Engine, EngineCache, refused
from trunkline.runtime.engines.device import Device, Library
from trunkline.runtime.engines.folder import RefusedError, disk_errors
from trunkline.runtime.engines.key import RECIPE, EngineKey, digest_of
from trunkline.runtime.errors import BackendError
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.record import shortened, shown

FORMAT, SCHEMA = "trunkline-engine-set", 1
SETS = "sets"


@dataclass(frozen=True)
class Pinned:
    """An engine that belongs to a set: its key, and the SHA-256 of the very plan that passed."""

    key: EngineKey
    plan_sha256: str


@dataclass(frozen=True)
class EngineSet:
    """The engines that a bundle runs on a device.

    Attributes:
        format: ``FORMAT``.
        schema: ``SCHEMA``.
        bundle: digest of the bundle.
        library: what compiled them.
        device: what they run on.
        engines: by stage.
        parity: the run that judged them together.
        verified: when, in UTC, as the device's clock had it.
    """

    format: str
    schema: int
    bundle: str
    library: Library
    device: Device
    engines: dict[str, Pinned]
    parity: ParityRun
    verified: str

    @property
    def identity(self) -> str:
        """SHA-256 over the plans by stage: shared by engines that were judged together, however often."""
        plans = (f"{stage} {self.engines[stage].plan_sha256}\n" for stage in sorted(self.engines))
        return hashlib.sha256("".join(plans).encode()).hexdigest()

    def problems(self) -> Iterator[str]:
        """What cannot be, in words."""
        yield from form_problems(self, FORMAT, SCHEMA)
        yield from self.parity.problems()
        if not self.parity.passed or self.parity.bundle != self.bundle:
            yield "the set was not judged, or did not pass, as this bundle's"
        for stage, pinned in self.engines.items():
            yield from pinned.key.problems()
            if (pinned.key.stage, pinned.key.library, pinned.key.device) != (stage, self.library, self.device):
                yield f"engines[{shown(stage)}] is another stage's, library's or device's"


@dataclass(frozen=True)
class Site:
    """What a set of engines is bound to besides its bundle."""

    library: Library
    device: Device


class EngineSets:
    """The sets of a cache that belong to one library on one device. Any thread and process."""

    def __init__(self, cache: EngineCache, library: Library, device: Device) -> None:
        self._cache = cache
        self._site = Site(library, device)
        self._folder = cache.root / SETS

    @contextlib.contextmanager
    def assembling(self, bundle: str, progress: Progress = silent) -> Iterator[None]:
        """For builders: nobody else decides meanwhile which engines a bundle runs here.

        Raises:
            BackendError: the cache cannot be written.
        """
        place = self._place(bundle)
        with self._cache.alone(f"{place.stem}.set", "waiting: another process is building this bundle", progress):
            with disk_errors(place):
                folder.remove_leftovers(place)
            yield

    def use(self, engines: EngineSet) -> None:
        """Takes engines into use, all at once. The caller holds :meth:`assembling`.

        Raises:
            BackendError: the cache cannot be written; the engines of before stay in use.
        """
        place = self._place(engines.bundle)
        with disk_errors(place):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with files.replacing(place) as temporary:
                temporary.write_bytes(record.encode(engines))

    def withdraw(self, bundle: str) -> None:
        """Takes a bundle's engines out of use: they failed. The caller holds :meth:`assembling`.

        Raises:
            BackendError: the cache cannot be written.
        """
        with disk_errors(self._folder):
            self._place(bundle).unlink(missing_ok=True)

    def of(self, bundle: str) -> EngineSet | None:
        """The engines of a bundle, by its digest; None if none were built for this library on this device.

        Raises:
            BackendError: the set's file is refused, or the cache cannot be read.
        """
        place = self._place(bundle)
        with disk_errors(place):
            try:
                found = _read(place)
                if found is not None and (found.bundle, Site(found.library, found.device)) != (bundle, self._site):
                    raise RefusedError("it is another bundle's or device's set")
            except RefusedError as error:
                raise refused(str(place), str(error)) from error
        return found

    def open(self, files: StageFiles, variant: str, bundle: str | None = None) -> Engine:
        """The engine that a stage runs on, checked and held; it knows which others it was judged with.

        Args:
            files: the stage.
            variant: that it holds.
            bundle: digest of the bundle it belongs to; without it, all sets with this stage must agree.

        Raises:
            BackendError: there is none, or it must not be used; the message says why, and what to run.
        """
        pinned, judged_with = self._pinned(files, variant, bundle)
        try:
            engine = self._held(files.name, pinned)
        except BackendError:
            if self._pinned(files, variant, bundle)[0] == pinned:
                raise
            return self.open(files, variant, bundle)  # others were taken into use meanwhile, and these removed
        engine.judged_with = judged_with
        return engine

    def runs(self, engine: Engine, *, besides: str) -> bool:
        """Whether an engine is in use by another bundle than ``besides``, which is a digest.

        Raises:
            BackendError: the cache cannot be read.
        """
        pinned = Pinned(engine.key, engine.attestation.plan_sha256)
        return any(each.bundle != besides and pinned in each.engines.values() for each in self._all())

    def _held(self, stage: str, pinned: Pinned) -> Engine:
        engine = self._cache.find(pinned.key)
        where = f"stage {stage}, {self._cache.root / pinned.key.digest}"
        if engine is None:
            raise BackendError(
                "an engine is gone from the cache",
                where=where,
                found="nothing; it may have been removed to keep the cache within its limit",
                fix=BUILD,
            )
        if engine.attestation.plan_sha256 != pinned.plan_sha256:
            engine.close()
            raise refused(where, "it was built again since this bundle's decisions were checked with it")
        return engine

    def _pinned(self, files: StageFiles, variant: str, bundle: str | None) -> tuple[Pinned, str]:
        """The engine of a stage, and the identity of its set."""
        sets = list(self._all()) if bundle is None else [each for each in [self.of(bundle)] if each is not None]
        here = [each for each in sets if Site(each.library, each.device) == self._site]
        found = {each.engines[files.name]: each.identity for each in here if files.name in each.engines}
        fitting = [(each, identity) for each, identity in found.items() if not _misfits(files, variant, each)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            reasons = ["several bundles have this stage, each with another engine"]
        else:
            reasons = [reason for each in self._all() for reason in self._why_not(files, variant, each)]
        raise BackendError(
            "there is no engine for a stage on this device",
            where=f"stage {files.name}, {self._cache.root}",
            expected=f"one built by {self._site.library} on {self._site.device}",
            found=shortened(list(dict.fromkeys(reasons))) or "no engines of this stage",
            fix=BUILD,
        )

    def _why_not(self, files: StageFiles, variant: str, other: EngineSet) -> Iterator[str]:
        """Why a stage's engine in some set is not the one that is looked for; nothing if it is another stage's."""
        pinned = other.engines.get(files.name)
        if pinned is None or (pinned.key.graph, pinned.key.weights) != _content(files):
            return
        if Site(other.library, other.device) != self._site:
            yield f"one that {other.library} built on {other.device}"
        for problem in _misfits(files, variant, pinned):
            yield f"one of {problem}"

    def _all(self) -> Iterator[EngineSet]:
        """Every set that can be read, of any bundle, library and device."""
        with disk_errors(self._folder):
            for place in sorted(self._folder.glob("*.json")):
                with contextlib.suppress(RefusedError):
                    if (found := _read(place)) is not None:
                        yield found

    def _place(self, bundle: str) -> Path:
        return self._folder / f"{bundle}.{digest_of(self._site)[:16]}.json"


def _content(files: StageFiles) -> tuple[str, str | None]:
    return hashlib.sha256(files.graph).hexdigest(), files.weights_digest


def _misfits(files: StageFiles, variant: str, pinned: Pinned) -> list[str]:
    """In what an engine is not the one of a stage."""
    key = pinned.key
    wrong = {
        "another graph or other weights": (key.graph, key.weights) != _content(files),
        "another variant": key.variant != variant,
        "an older or newer Trunkline": key.recipe != RECIPE,
    }
    return [name for name, differs in wrong.items() if differs]


def _read(place: Path) -> EngineSet | None:
    with folder.opened(place.parent) as descriptor:
        if descriptor is None or not os.path.lexists(place):
            return None
        return attestation.read(folder.read_plain(descriptor, place.name, record.MAX_TEXT_BYTES), EngineSet)
