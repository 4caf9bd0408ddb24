"""The folder of engines: what goes in comes out unchanged, what nobody uses goes first, and processes take turns."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines_kit import LIBRARY, a_key, a_run, attested
from trunkline.runtime.engines import cache as cache_module
from trunkline.runtime.engines import room
from trunkline.runtime.engines.attestation import Attestation
from trunkline.runtime.engines.cache import RECORD_BYTES, Engine, EngineCache, default_folder
from trunkline.runtime.engines.key import EngineKey
from trunkline.runtime.engines.locks import FileLock
from trunkline.runtime.errors import BackendError

PLAN = b"an engine " * 10_000
FORK = multiprocessing.get_context("fork")
SECONDS = 300  # a machine may be busy; nothing waits so long where all is well


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def put(cache: EngineCache, key: EngineKey, plan: bytes = PLAN, *, passed: bool = True) -> Attestation:
    """An engine that nobody holds."""
    found = attested(key, plan, a_run() if passed else None)
    with cache.building(key):
        cache.publish(plan, found).close()
    return found


def key_number(number: int) -> EngineKey:
    return a_key(graph=f"{number:064x}")


def held(cache: EngineCache, key: EngineKey) -> Engine:
    engine = cache.find(key)
    assert engine is not None
    return engine


def test_what_goes_in_comes_out(cache: EngineCache) -> None:
    assert cache.find(a_key()) is None
    found = put(cache, a_key())
    engine = held(cache, a_key())
    assert (engine.plan(), engine.attestation, engine.key) == (PLAN, found, a_key())
    engine.forget_plan()
    with pytest.raises(ValueError, match="dropped"):
        engine.plan()
    engine.close()
    engine.close()


def test_the_folder_is_private(cache: EngineCache) -> None:
    put(cache, a_key())
    assert cache.root.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o022 == 0 for path in cache.root.rglob("*"))


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "trunkline" / "engines"
    assert EngineCache().root.is_dir()
    monkeypatch.setenv("TRUNKLINE_ENGINES", "relative")
    assert default_folder() == tmp_path / "trunkline" / "engines"
    monkeypatch.setenv("TRUNKLINE_ENGINES", str(tmp_path / "of a service"))
    assert default_folder() == tmp_path / "of a service"


def test_without_a_home_there_is_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise FileNotFoundError("no home directory")

    monkeypatch.setattr(cache_module.bundle, "cache_directory", nowhere)
    with pytest.raises(BackendError, match=r"no place for engines\n.*no home directory\n.*TRUNKLINE_ENGINES"):
        EngineCache()


def test_an_engine_that_was_not_judged_is_for_the_judge_only(cache: EngineCache) -> None:
    put(cache, a_key(), passed=False)
    with pytest.raises(BackendError, match=r"is refused\n.*stage vision(.|\n)*not seen to decide(.|\n)*build"):
        cache.find(a_key())
    engine = cache.find(a_key(), unverified=True)
    assert engine is not None
    cache.attest(engine, a_run())
    engine.close()
    assert held(cache, a_key()).attestation.passed


def test_an_engine_that_is_removed_while_it_is_judged(cache: EngineCache) -> None:
    """Otherwise a set would name an engine that is not there, beside a record of it."""
    put(cache, a_key(), passed=False)
    engine = cache.find(a_key(), unverified=True)
    assert engine is not None
    with cache.building(a_key()):
        cache.remove(a_key())
    with pytest.raises(BackendError, match=r"removed or replaced while it was judged(.|\n)*trunkline build"):
        cache.attest(engine, a_run())
    put(cache, a_key(), b"another", passed=False)
    with pytest.raises(BackendError, match="removed or replaced while it was judged"):
        cache.attest(engine, a_run())
    (cache.root / a_key().digest / "attestation.json").write_bytes(b"{}")
    with pytest.raises(BackendError, match="is refused"):
        cache.attest(engine, a_run())
    engine.close()
    assert cache.find_or_remove(a_key())[0] is None


def test_what_a_judge_that_died_left_is_removed(cache: EngineCache) -> None:
    put(cache, a_key(), passed=False)
    left = cache.root / a_key().digest / ".attestation.json.abc.partial"
    left.write_bytes(b"{")
    engine = cache.find(a_key(), unverified=True)
    assert engine is not None
    cache.attest(engine, a_run())
    engine.close()
    assert not left.exists()


def test_what_somebody_holds_is_not_removed_for_having_failed(cache: EngineCache) -> None:
    """It may be another build that is judging it now; what is damaged goes all the same."""
    put(cache, a_key(), passed=False)
    engine = cache.find(a_key(), unverified=True)
    assert engine is not None
    with cache.building(a_key()):
        assert not cache.remove_unless_held(a_key())
        assert cache.find(a_key(), unverified=True) is not None
        engine.close()
        assert cache.remove_unless_held(a_key())
        assert cache.find(a_key(), unverified=True) is None


def test_one_that_failed_is_refused(cache: EngineCache) -> None:
    with cache.building(a_key()):
        cache.publish(PLAN, attested(a_key(), PLAN, a_run(passed=False))).close()
    with pytest.raises(BackendError, match="not seen to decide"):
        cache.find(a_key())


def test_other_keys_find_nothing(cache: EngineCache) -> None:
    put(cache, a_key())
    for other in (a_key("text"), a_key(weights="3" * 64), a_key(library=replace(LIBRARY, version="1.0.1"))):
        assert cache.find(other) is None


def test_removing(cache: EngineCache) -> None:
    put(cache, a_key())
    with cache.building(a_key()):
        cache.remove(a_key())
        cache.remove(a_key())
    assert cache.find(a_key()) is None
    assert [path.name for path in cache.root.iterdir()] == ["locks"]


def test_publishing_again_replaces(cache: EngineCache) -> None:
    put(cache, a_key())
    put(cache, a_key(), b"newer")
    assert held(cache, a_key()).plan() == b"newer"
    assert len([path for path in cache.root.iterdir() if path.name != "locks"]) == 1


# The limit


def sized(tmp_path: Path, engines: float) -> EngineCache:
    """Room for so many engines of ``PLAN``, with their records."""
    probe = EngineCache(tmp_path / "probe")
    put(probe, key_number(0))
    (one,) = room.kept(probe.root)
    return EngineCache(tmp_path / "engines", int(engines * one.bytes) + RECORD_BYTES)


def present(cache: EngineCache, count: int) -> list[int]:
    return [number for number in range(count) if (cache.root / key_number(number).digest).exists()]


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = sized(tmp_path, 3)
    for number in range(3):
        put(cache, key_number(number))
    held(cache, key_number(0)).close()
    put(cache, key_number(3))
    assert present(cache, 4) == [0, 2, 3]
    put(cache, key_number(4))
    assert present(cache, 5) == [0, 3, 4]


def test_the_limit_holds_while_engines_come_and_go(tmp_path: Path) -> None:
    cache = sized(tmp_path, 3.5)
    for number in range(10):
        put(cache, key_number(number))
        assert sum(each.bytes for each in room.kept(cache.root)) <= cache.limit_bytes
    assert present(cache, 10) == [7, 8, 9]


def test_an_engine_in_use_stays(tmp_path: Path) -> None:
    cache = sized(tmp_path, 2)
    put(cache, key_number(0))
    oldest = held(cache, key_number(0))
    for number in (1, 2, 3):
        put(cache, key_number(number))
    assert present(cache, 4) == [0, 3]
    oldest.close()
    put(cache, key_number(4))
    assert present(cache, 5) == [3, 4]


def test_an_engine_in_use_elsewhere_stays(tmp_path: Path) -> None:
    cache = sized(tmp_path, 1)
    put(cache, key_number(0))
    ready, done = FORK.Event(), FORK.Event()

    def hold() -> None:
        engine = EngineCache(cache.root).find(key_number(0))
        ready.set()
        done.wait(SECONDS)
        assert engine is not None

    child = FORK.Process(target=hold)
    child.start()
    try:
        assert ready.wait(SECONDS)
        with pytest.raises(BackendError, match="does not fit"):
            put(cache, key_number(1))
        assert present(cache, 2) == [0]
    finally:
        child.kill()  # the kernel releases what it held
        child.join()
    put(cache, key_number(1))
    assert present(cache, 2) == [1]


def test_what_is_being_kept_is_not_removed_for_the_next(tmp_path: Path) -> None:
    """A build of four stages holds the first while it makes room for the fourth."""
    cache = sized(tmp_path, 2)
    engines = []
    for number in range(2):
        with cache.building(key_number(number)):
            engines.append(cache.publish(PLAN, attested(key_number(number), PLAN)))
    with pytest.raises(BackendError, match=r"does not fit(.|\n)*at most \d+(.|\n)*in use and stay(.|\n)*--cache-limit"):
        put(cache, key_number(2))
    assert present(cache, 3) == [0, 1]


def test_one_larger_than_the_limit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", 100)
    with pytest.raises(BackendError, match="does not fit"):
        put(cache, a_key())
    assert [path.name for path in cache.root.iterdir()] == ["locks"]


def test_leftovers_of_dead_builders_go_before_engines(tmp_path: Path) -> None:
    cache = sized(tmp_path, 2)
    put(cache, key_number(0))
    leftover = cache.root / f".{key_number(7).digest}.00ff00ff"
    leftover.mkdir()
    (leftover / "engine.plan").write_bytes(PLAN)
    put(cache, key_number(1))
    assert not leftover.exists()
    assert present(cache, 2) == [0, 1]


def test_leftovers_of_living_builders_stay(tmp_path: Path) -> None:
    cache = sized(tmp_path, 5)
    written = cache.root / f".{key_number(7).digest}.00ff00ff"
    with FileLock(cache.root / "locks" / f"{key_number(7).digest}.build") as lock:
        lock.take()
        written.mkdir()
        put(cache, key_number(1))
        assert written.exists()
    with cache.building(key_number(7)):
        assert not written.exists()


# Turns


def test_a_second_builder_waits_and_says_so(cache: EngineCache) -> None:
    first, told, order = threading.Event(), threading.Event(), []

    def wait() -> None:
        def progress(step: str, done: int, total: int) -> None:
            order.append(step)
            told.set()

        with EngineCache(cache.root).building(a_key(), progress):
            order.append("second")

    other = threading.Thread(target=wait)
    with cache.building(a_key()):
        first.set()
        other.start()
        assert told.wait(SECONDS)
        order.append("first")
    other.join(SECONDS)
    assert order == ["waiting: another process is building this engine", "first", "second"]


def test_builders_of_other_engines_do_not_wait(cache: EngineCache) -> None:
    with cache.building(key_number(0)), cache.building(key_number(1)):
        put(cache, key_number(2))


PROCESSES = 6


class _Meeting:
    """Lets nobody go on before all have come: to the lock, or past it."""

    def __init__(self) -> None:
        self._come, self._all, self.compiled = FORK.Value("i", 0), FORK.Event(), FORK.Value("i", 0)
        self._here = False

    def come(self) -> None:
        if not self._here:
            self._here = True
            with self._come.get_lock():
                self._come.value += 1
                if self._come.value == PROCESSES:
                    self._all.set()

    def build_once(self, root: Path) -> None:
        cache = EngineCache(root)
        with cache.building(a_key(), lambda *_: self.come()):
            engine, _ = cache.find_or_remove(a_key())
            if engine is None:
                self.come()
                assert self._all.wait(SECONDS)
                with self.compiled.get_lock():
                    self.compiled.value += 1
                engine = cache.publish(PLAN, attested(a_key(), PLAN, a_run()))
        assert engine.plan() == PLAN


def test_81_processes_at_once_end_with_one_engine(cache: EngineCache) -> None:
    meeting = _Meeting()
    children = [FORK.Process(target=meeting.build_once, args=(cache.root,)) for _ in range(PROCESSES)]
    for child in children:
        child.start()
    for child in children:
        child.join(SECONDS)
    assert [child.exitcode for child in children] == [0] * PROCESSES
    assert meeting.compiled.value == 1
    assert held(cache, a_key()).plan() == PLAN


def test_a_builder_that_is_killed_lets_the_next_one_in(cache: EngineCache) -> None:
    ready = FORK.Event()

    def die() -> None:
        with cache.building(a_key()):
            ready.set()
            threading.Event().wait(SECONDS)

    child = FORK.Process(target=die)
    child.start()
    assert ready.wait(SECONDS)
    child.kill()
    child.join()
    put(cache, a_key())


def _in_child(action: Callable[[], object]) -> int:
    child = FORK.Process(target=action)
    child.start()
    child.join(SECONDS)
    assert child.exitcode is not None
    return child.exitcode


def test_85_a_forked_child_holds_no_lock_of_its_parent(cache: EngineCache) -> None:
    """Otherwise a camera process, forked during a build, would keep every later build waiting."""
    start, done = FORK.Event(), FORK.Event()
    with cache.building(a_key()):
        child = FORK.Process(target=lambda: (start.set(), done.wait(SECONDS)))
        child.start()
        assert start.wait(SECONDS)
    with FileLock(cache.root / "locks" / f"{a_key().digest}.build") as lock:
        assert lock.try_to_take()
    done.set()
    child.join(SECONDS)


def test_85_a_forked_child_releases_nothing_of_its_parent(cache: EngineCache) -> None:
    put(cache, a_key())
    engine = held(cache, a_key())
    assert _in_child(engine.close) == 0
    with FileLock(cache.root / "locks" / f"{a_key().digest}.use") as lock:
        assert not lock.try_to_take()
    engine.close()
    with FileLock(cache.root / "locks" / f"{a_key().digest}.use") as lock:
        assert lock.try_to_take()


def test_no_descriptors_are_lost(cache: EngineCache) -> None:
    put(cache, a_key())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        held(cache, a_key()).close()
        put(cache, key_number(1))
        (cache.root / key_number(1).digest / "engine.plan").write_bytes(b"x")
        with pytest.raises(BackendError, match="is refused"):
            cache.find(key_number(1))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lock_that_is_lost_without_closing_is_released(cache: EngineCache) -> None:
    put(cache, a_key())
    held(cache, a_key())
    with FileLock(cache.root / "locks" / f"{a_key().digest}.use") as lock:
        assert lock.try_to_take()


def test_87_a_clock_that_was_set_back_changes_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = sized(tmp_path, 3)
    for number in range(3):
        put(cache, key_number(number))
    monkeypatch.setattr(room.time, "time_ns", lambda: 0)
    held(cache, key_number(0)).close()
    held(cache, key_number(1)).close()
    put(cache, key_number(3))
    assert present(cache, 4) == [0, 1, 3]
    put(cache, key_number(4))
    assert present(cache, 5) == [1, 3, 4]


def test_the_digest_on_the_disk_is_that_of_the_plan(cache: EngineCache) -> None:
    found = put(cache, a_key())
    assert found.plan_sha256 == hashlib.sha256((cache.root / a_key().digest / "engine.plan").read_bytes()).hexdigest()
