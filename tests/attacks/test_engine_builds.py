"""Machines that die, fill up or refuse to write while engines are built, and builders that meet.

Numbers are those of docs/security.md, "The machine".
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engines_kit import (
    BUNDLE,
    DEVICE,
    FILES,
    KEY,
    LIBRARY,
    PLAN,
    SETTINGS,
    FakeBuilder,
    a_run,
    a_set,
    attested,
    put,
    used,
)
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.engines import folder
from trunkline.runtime.engines.cache import RECORD_BYTES, EngineCache
from trunkline.runtime.engines.key import EngineKey
from trunkline.runtime.engines.sets import EngineSets
from trunkline.runtime.engines.settings import Rows
from trunkline.runtime.engines.timing import TimingCache
from trunkline.runtime.errors import BackendError
from trunkline.targets.building.run import Target, build, verify_again
from trunkline.targets.building.verify import verify

# 78, 79: disks


def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["write", "fsync", "mkdir"])
def test_78_a_full_disk(cache: EngineCache, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    """The engine of before, of the same name, is still there."""
    put(cache)
    newer = attested(KEY, b"newer", a_run())
    with monkeypatch.context() as patch, cache.building(KEY):
        failing(patch, call, code)
        with pytest.raises(BackendError, match="there is no room on the disk for engines"):
            cache.publish(b"newer", newer)
    engine = cache.find(KEY)
    assert engine is not None
    assert engine.plan() == PLAN
    assert not list(cache.root.glob(".*"))


@pytest.mark.parametrize("nth", [1, 2])
def test_78_a_disk_that_is_full_when_a_name_is_given(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """Whether the old engine cannot be moved away or the new one not into its place: the old one is there."""
    put(cache)
    renamed, left = os.rename, [nth]

    def rename(one: Path, other: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        renamed(one, other)

    with monkeypatch.context() as patch, cache.building(KEY):
        patch.setattr(os, "rename", rename)
        with pytest.raises(BackendError, match="there is no room on the disk for engines"):
            cache.publish(b"newer", attested(KEY, b"newer", a_run()))
    engine = cache.find(KEY)
    assert engine is not None
    assert engine.plan() == PLAN
    assert not list(cache.root.glob(".*"))


def in_a_process(action: Callable[[], object]) -> None:
    """Runs something in a child that may do to itself what it likes."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_78_the_kernel_stops_a_write(cache: EngineCache) -> None:
    """Nothing is pretended: files of this process may not grow beyond 2000 bytes."""
    put(cache)

    def build_a_large_one() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        large = bytes(5000)
        refused = pytest.raises(BackendError, match=r"no room on the disk for engines(.|\n)*File too large")
        with refused, cache.building(KEY):
            cache.publish(large, attested(KEY, large, a_run()))

    in_a_process(build_a_large_one)
    assert found(cache) == sha(PLAN)
    no_leftovers(cache)


def test_78_a_full_disk_while_engines_are_taken_into_use(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = used(cache)
    found = attested(KEY, PLAN, a_run())
    with monkeypatch.context() as patch, sets.assembling(BUNDLE):
        failing(patch, "fsync", errno.ENOSPC)
        with pytest.raises(BackendError, match="no room on the disk"):
            sets.use(a_set({"vision": found, "text": attested(replace(KEY, stage="text"), b"x", a_run())}))
    kept = sets.of(BUNDLE)
    assert kept is not None
    assert list(kept.engines) == ["vision"]


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system of the cache, mounted read-only; tests may run as root, whom modes do not stop."""
    for name in ("mkdir", "rename", "replace", "unlink", "utime", "chmod"):
        failing(monkeypatch, name, errno.EROFS)
    opened = os.open

    def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", open_)


def test_79_a_read_only_cache_serves_engines(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = used(cache)
    shutil.rmtree(cache.root / "locks")  # as in an image that was made elsewhere
    read_only(monkeypatch)
    with_engine = sets.open(FILES, "cpu", BUNDLE)
    assert with_engine.plan() == PLAN
    with_engine.close()


def test_79_a_folder_without_permission_to_write_serves_engines(cache: EngineCache, tmp_path: Path) -> None:
    """Nothing is pretended, and root, whom permissions do not stop, becomes somebody else."""
    used(cache)
    shutil.rmtree(cache.root / "locks")
    nobody = 12345 if os.getuid() == 0 else os.getuid()
    for path in [*cache.root.rglob("*"), cache.root]:
        os.chown(path, nobody, -1)
        path.chmod(0o500 if path.is_dir() else 0o400)
    for path in tmp_path.parents:  # pytest's own folders are closed to others
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)

    def look() -> None:
        os.setuid(nobody)
        mine = EngineCache(cache.root)
        engine = EngineSets(mine, LIBRARY, DEVICE).open(FILES, "cpu", BUNDLE)
        assert engine.plan() == PLAN
        engine.close()
        with pytest.raises(BackendError, match="the engine cache cannot be written"), mine.building(KEY):
            pytest.fail("nobody can build there")

    try:
        in_a_process(look)
    finally:
        for path in [cache.root, *cache.root.rglob("*")]:
            path.chmod(0o700)


def test_79_a_read_only_cache_takes_none(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache)
    with monkeypatch.context() as patch:
        read_only(patch)
        with (
            pytest.raises(
                BackendError, match=r"the engine cache cannot be written(.|\n)*Read-only(.|\n)*TRUNKLINE_ENGINES"
            ),
            cache.building(KEY),
        ):
            pytest.fail("nobody can build there")
    with monkeypatch.context() as patch, cache.building(KEY):
        read_only(patch)
        with pytest.raises(BackendError, match="the engine cache cannot be written"):
            cache.publish(PLAN, attested(KEY, PLAN))
        with pytest.raises(BackendError, match="the engine cache cannot be written"):
            cache.remove(KEY)


def test_79_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_only(monkeypatch)
    with pytest.raises(BackendError, match="the engine cache cannot be written"):
        EngineCache(tmp_path / "engines")


def test_a_failing_disk_is_no_damage(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is removed for it: the next read may succeed."""
    put(cache)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, cache.building(KEY):
        patch.setattr(folder.files, "read_bytes", fail)
        with pytest.raises(BackendError, match=r"cannot be used(.|\n)*Input/output error"):
            cache.find_or_remove(KEY)
    assert cache.find(KEY) is not None


# 80: kill -9


LONG = bytes(1000)  # written in three pieces
STEPS = ("open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir", "utime", "chmod")


def _die_at(step: int, chunk_bytes: int) -> None:
    """Kills this process before its ``step``-th change of the file system, the pieces of a write among them."""
    left = [step]

    def counted(call: Callable[..., Any], changes: Callable[..., bool]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if changes(*args):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
            return call(*args, **kwargs)

        return wrapped

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name), _creates if name == "open" else lambda *_: True))
    folder.WRITE_CHUNK_BYTES = chunk_bytes


def _creates(path: Any, flags: int, *_: Any) -> bool:
    return bool(flags & os.O_CREAT) and not os.path.lexists(path)


def killed_at_every_step(work: Callable[[], object], check: Callable[[], object], chunk_bytes: int = 400) -> int:
    """Runs ``work`` in children that die one step later each, until one comes through; ``check`` after each."""
    for step in range(200):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _die_at(step, chunk_bytes)
                work()
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        check()
        if os.waitstatus_to_exitcode(status) == 0:
            return step
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    raise AssertionError("it never came through")


def found(cache: EngineCache, key: EngineKey = KEY) -> bytes | None:
    engine = cache.find(key, unverified=True)
    if engine is None:
        return None
    engine.close()
    return engine.attestation.plan_sha256.encode()


def sha(plan: bytes) -> bytes:
    return hashlib.sha256(plan).hexdigest().encode()


def no_leftovers(cache: EngineCache, key: EngineKey = KEY) -> None:
    with cache.building(key):
        assert not list(cache.root.glob(".*"))


def test_80_killed_while_an_engine_is_kept(cache: EngineCache) -> None:
    def check() -> None:
        assert found(cache) in (None, sha(LONG))
        no_leftovers(cache)

    assert killed_at_every_step(lambda: put(cache, KEY, LONG), check) > 10
    assert found(cache) == sha(LONG)


def test_80_killed_while_an_engine_is_replaced(cache: EngineCache) -> None:
    """The old one, none, or the new one; what follows works."""
    put(cache, KEY, LONG)
    seen = set()

    def check() -> None:
        seen.add(found(cache))
        no_leftovers(cache)
        put(cache, KEY, LONG)

    killed_at_every_step(lambda: put(cache, KEY, b"newer"), check)
    assert seen == {sha(LONG), None, sha(b"newer")}


def test_80_killed_while_room_is_made(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    other = replace(KEY, stage="text")
    put(cache, other, LONG)
    cache.limit_bytes = RECORD_BYTES + 2000

    def check() -> None:
        assert found(cache, other) in (None, sha(LONG))
        assert found(cache) in (None, sha(LONG))

    killed_at_every_step(lambda: put(cache, KEY, LONG), check)
    assert (found(cache), found(cache, other)) == (sha(LONG), None)
    no_leftovers(cache)


def test_80_killed_while_engines_are_taken_into_use(cache: EngineCache) -> None:
    """Those of before, or the new ones; never a mixture, and never none."""
    sets = used(cache, KEY, LONG)
    newer = replace(KEY, settings=replace(KEY.settings, optimization_level=5))
    record_of_newer = put(cache, newer, b"newer")
    seen = set()

    def work() -> None:
        with sets.assembling(BUNDLE):
            sets.use(a_set({"vision": record_of_newer}))

    def check() -> None:
        engine = sets.open(FILES, "cpu", BUNDLE)
        seen.add(engine.plan())
        engine.close()
        with sets.assembling(BUNDLE):
            assert not list((cache.root / "sets").glob(".*"))

    killed_at_every_step(work, check)
    assert seen == {LONG, b"newer"}


def test_80_killed_while_an_engine_is_attested(cache: EngineCache) -> None:
    with cache.building(KEY):
        cache.publish(LONG, attested(KEY, LONG)).close()
    seen = set()

    def work() -> None:
        engine = cache.find(KEY, unverified=True)
        assert engine is not None
        cache.attest(engine, a_run())

    def check() -> None:
        engine = cache.find(KEY, unverified=True)
        assert engine is not None
        seen.add(engine.attestation.passed)
        engine.close()

    killed_at_every_step(work, check)
    assert seen == {False, True}


def test_80_killed_while_measurements_are_kept(cache: EngineCache) -> None:
    timing = TimingCache(cache, LIBRARY, DEVICE)
    timing.keep(b"older")
    seen = set()

    def check() -> None:
        seen.add(timing.find())
        timing.keep(b"older")
        assert not list((cache.root / "timing").glob(".*"))

    killed_at_every_step(lambda: timing.keep(b"newer"), check)
    assert seen == {(b"older", None), (b"", None), (b"newer", None)}


# 80: kill -9, the whole of a build


STAGE = "action"
OLD, NEW = (
    Target("old", SETTINGS),
    Target("new", replace(SETTINGS, profile=(*SETTINGS.profile[:2], Rows("N", 1, 8, 99)))),
)


def plans_in_use(bundle: Bundle, cache: EngineCache) -> dict[str, bytes]:
    """What a back end would run, stage by stage."""
    in_use, plans = EngineSets(cache, LIBRARY, DEVICE).of(bundle.digest), {}
    assert in_use is not None
    for stage, pinned in in_use.engines.items():
        engine = cache.find(pinned.key)
        assert engine is not None
        assert engine.attestation.plan_sha256 == pinned.plan_sha256
        plans[stage] = engine.plan()
        engine.close()
    return plans


class _NumberedBuilder(FakeBuilder):
    """Its engines tell which build they are of."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def build(self, request: Any, progress: Any) -> Any:
        built = super().build(request, progress)
        head, _, graph = built.plan.partition(b"\n")
        return replace(built, plan=head[:-1] + b', "build": %d}\n' % self._number + graph)


def test_80_killed_at_every_step_of_a_build(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first lock to the set that is taken into use: the bundle runs the old engines or the new ones.

    Nothing is written while engines are judged, so that is done once, before.
    """
    opened, clean = Bundle(bundle), EngineCache(tmp_path / "clean")
    build(opened, _NumberedBuilder(1), OLD, cache=clean)
    old = plans_in_use(opened, clean)
    judged = passing(opened, clean)
    monkeypatch.setattr("trunkline.targets.building.run.verify", lambda *_: judged)
    root, seen = tmp_path / "engines", []

    def work() -> None:
        build(opened, _NumberedBuilder(2), NEW, cache=EngineCache(root))

    def afresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(clean.root, root)

    def check() -> None:
        found = plans_in_use(opened, EngineCache(root))
        assert {**found, STAGE: old[STAGE]} == old
        seen.append(found[STAGE] != old[STAGE])
        build(opened, _NumberedBuilder(3), NEW, cache=EngineCache(root))
        assert {path.parent.name for path in root.rglob(".*")} <= {"timing"}  # which go when something is compiled
        afresh()

    afresh()
    steps = killed_at_every_step(work, check, chunk_bytes=20_000)
    assert steps > 30
    assert seen == sorted(seen)  # the old ones until some step, and the new ones from then on
    assert set(seen) == {False, True}


def passing(bundle: Bundle, cache: EngineCache) -> Any:
    """What the judge says of engines that are right."""
    verdicts = []

    def remember(*arguments: Any) -> Any:
        verdicts.append(verify(*arguments))
        return verdicts[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trunkline.targets.building.run.verify", remember)
        verify_again(bundle, FakeBuilder(), cache=cache)
    return verdicts[0]
