"""Engines that must never run: stale, foreign, damaged, planted; and machines that die, fill up or refuse to write.

Numbers are those of the list of bad inputs. What is done to a GPU's own engine format is up to the library; here it is
never shown one that is not, to the byte, what was attested.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engines_kit import BUNDLE, DEVICE, LIBRARY, a_key, a_run, a_set, attested
from trunkline.runtime import record
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.engines import folder
from trunkline.runtime.engines.attestation import Attestation
from trunkline.runtime.engines.cache import RECORD_BYTES, EngineCache
from trunkline.runtime.engines.key import EngineKey
from trunkline.runtime.engines.sets import EngineSets
from trunkline.runtime.engines.timing import TimingCache
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import Stage

PLAN = bytes(range(48))
GRAPH = b"a graph"
FILES = StageFiles("vision", Stage((), (), {}), GRAPH, Path("/"), None, "2" * 64)
KEY = a_key(graph=hashlib.sha256(GRAPH).hexdigest())


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def put(cache: EngineCache, key: EngineKey = KEY, plan: bytes = PLAN) -> Attestation:
    found = attested(key, plan, a_run())
    with cache.building(key):
        cache.publish(plan, found).close()
    return found


def used(cache: EngineCache, key: EngineKey = KEY, plan: bytes = PLAN, bundle: str = BUNDLE) -> EngineSets:
    """A cache whose one engine is in use."""
    sets = EngineSets(cache, key.library, key.device)
    found = put(cache, key, plan)
    with sets.assembling(bundle):
        sets.use(replace(a_set({key.stage: found}, bundle), library=key.library, device=key.device))
    return sets


def place(cache: EngineCache, key: EngineKey = KEY) -> Path:
    return cache.root / key.digest


def refused(cache: EngineCache, reason: str, key: EngineKey = KEY) -> None:
    """Never run, named with the reason, and built again by the next builder."""
    with pytest.raises(BackendError, match="an engine in the cache is refused") as caught:
        cache.find(key)
    message = str(caught.value)
    for part in (reason, f"stage {key.stage}", key.digest, "trunkline build"):
        assert part in message
    with cache.building(key):
        assert cache.find_or_remove(key) == (None, caught.value.found)
        assert cache.find_or_remove(key) == (None, None)
    put(cache, key)
    engine = cache.find(key)
    assert engine is not None
    assert engine.plan() == PLAN
    engine.close()


def rewritten(cache: EngineCache, change: Callable[[dict[str, Any]], object]) -> None:
    path = place(cache) / "attestation.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# 51, 52, 56, 58: engines of something else


@pytest.mark.parametrize(
    ("library", "device", "decisive"),
    [
        (LIBRARY, replace(DEVICE, name="Thor", compute_capability="11.0"), "Fake Orin, compute capability 8.7"),
        (LIBRARY, replace(DEVICE, driver="600.1"), "driver 540.4.0"),
        (LIBRARY, replace(DEVICE, system="linux-x86_64"), "linux-aarch64"),
        (replace(LIBRARY, version="1.0.1"), DEVICE, "fake 1.0.0"),
        (replace(LIBRARY, name="other"), DEVICE, "fake 1.0.0"),
    ],
)
@pytest.mark.parametrize("bundle", [BUNDLE, None])
def test_51_52_another_device_or_library(
    cache: EngineCache, library: Any, device: Any, decisive: str, bundle: str | None
) -> None:
    used(cache)
    with pytest.raises(BackendError, match="there is no engine for a stage on this device") as caught:
        EngineSets(cache, library, device).open(FILES, "cpu", bundle)
    assert f"one that fake 1.0.0 built on {DEVICE}" in str(caught.value)
    assert decisive in str(caught.value)
    assert f"{library} on {device}" in str(caught.value)


@pytest.mark.parametrize("bundle", [BUNDLE, None])
def test_56_another_head_of_the_same_architecture(cache: EngineCache, bundle: str | None) -> None:
    """The same graph to the byte; only the weights' digest differs."""
    sets = used(cache)
    sets.open(FILES, "cpu", bundle).close()
    other = replace(FILES, weights_digest="3" * 64)
    with pytest.raises(BackendError, match="there is no engine for a stage on this device"):
        sets.open(other, "cpu", bundle)
    put(cache, replace(KEY, weights="3" * 64), b"another head")
    engine = sets.open(FILES, "cpu", bundle)
    assert engine.plan() == PLAN
    engine.close()


def test_56_a_head_under_the_name_of_another(cache: EngineCache) -> None:
    """Someone copied a folder."""
    other = replace(KEY, weights="3" * 64)
    put(cache, other, b"another head")
    put(cache)
    shutil.rmtree(place(cache))
    shutil.copytree(place(cache, other), place(cache))
    refused(cache, f"it is another engine's: weights: '{'2' * 57}... here, '{'3' * 57}... there"[:60])


@pytest.mark.parametrize("bundle", [BUNDLE, None])
def test_58_an_engine_older_than_its_graph(cache: EngineCache, bundle: str | None) -> None:
    sets = used(cache)
    with pytest.raises(BackendError, match=r"there is no engine for a stage(.|\n)*no engines of this stage"):
        sets.open(replace(FILES, graph=b"a newer graph"), "cpu", bundle)


def test_58_an_engine_of_another_trunkline(cache: EngineCache) -> None:
    sets = used(cache, replace(KEY, recipe=KEY.recipe + 1))
    with pytest.raises(BackendError, match="one of an older or newer Trunkline"):
        sets.open(FILES, "cpu", BUNDLE)


def test_an_engine_that_was_built_again_since(cache: EngineCache) -> None:
    """It rounds differently, and nobody saw how this bundle decides with it."""
    sets = used(cache)
    put(cache, KEY, b"built again")
    with pytest.raises(BackendError, match=r"is refused(.|\n)*built again since this bundle's decisions were checked"):
        sets.open(FILES, "cpu", BUNDLE)


def test_an_engine_that_is_gone(cache: EngineCache) -> None:
    sets = used(cache)
    shutil.rmtree(place(cache))
    with pytest.raises(BackendError, match=r"gone from the cache\n(.|\n)*within its limit\n.*trunkline build"):
        sets.open(FILES, "cpu", BUNDLE)


# 53, 54: damage


@pytest.mark.parametrize("size", [0, 1, len(PLAN) - 1])
def test_53_truncated(cache: EngineCache, size: int) -> None:
    put(cache)
    os.truncate(place(cache) / "engine.plan", size)
    refused(cache, f"engine.plan has {size} bytes, {len(PLAN)} were attested")


def test_53_longer(cache: EngineCache) -> None:
    put(cache)
    (place(cache) / "engine.plan").write_bytes(PLAN + b"\0")
    refused(cache, f"more than {len(PLAN)}")


def test_54_every_bit_of_an_engine(cache: EngineCache) -> None:
    put(cache)
    path = place(cache) / "engine.plan"
    for position in range(len(PLAN)):
        for bit in range(8):
            spoilt = bytearray(PLAN)
            spoilt[position] ^= 1 << bit
            path.write_bytes(spoilt)
            with pytest.raises(BackendError, match="its SHA-256 differs"):
                cache.find(KEY)
    path.write_bytes(PLAN)
    refused_not = cache.find(KEY)
    assert refused_not is not None


def test_54_a_bit_of_every_byte_of_a_record(cache: EngineCache) -> None:
    """Whatever it says then: the plan of this very key comes out, or nothing."""
    put(cache)
    path = place(cache) / "attestation.json"
    text = path.read_bytes()
    for position in range(len(text)):
        spoilt = bytearray(text)
        spoilt[position] ^= 1 << position % 8
        path.write_bytes(spoilt)
        try:
            engine = cache.find(KEY)
        except BackendError as error:
            assert error.problem == "an engine in the cache is refused"  # noqa: PT017 - some bits change nothing
            continue
        assert engine is not None
        assert (engine.plan(), engine.key, engine.attestation.passed) == (PLAN, KEY, True)
        engine.close()


@pytest.mark.parametrize(
    ("change", "decisive"),
    [
        (lambda text: text.clear(), "its record is malformed"),
        (lambda text: text.update(more=1), "unknown field more"),
        (lambda text: text.pop("plan_sha256"), "missing field plan_sha256"),
        (lambda text: text.update(schema=2), "schema 2"),
        (lambda text: text.update(format="x"), "not trunkline-engine"),
        (lambda text: text.update(plan_bytes=-1), "plan_bytes is -1"),
        (lambda text: text.update(plan_bytes=1 << 60), "were attested"),
        (lambda text: text.update(plan_sha256="0" * 64), "its SHA-256 differs"),
        (lambda text: text.update(plan_sha256="x"), "plan_sha256 is not"),
        (lambda text: text["key"].update(stage="text"), "it is another engine's: stage"),
        (lambda text: text["key"]["library"].update(version="2"), "it is another engine's: library.version"),
        (lambda text: text["key"]["settings"].update(workspace_bytes=1), "settings.workspace_bytes"),
        (lambda text: text["parity"].update(max_score_change=0.5), "its own numbers say that it did not"),
        (lambda text: text["parity"].update(winners_changed=1), "its own numbers say that it did not"),
        (lambda text: text["parity"].update(decisions=0), "its own numbers say that it did not"),
    ],
)
def test_54_records_that_do_not_hold(
    cache: EngineCache, change: Callable[[dict[str, Any]], object], decisive: str
) -> None:
    put(cache)
    rewritten(cache, change)
    refused(cache, decisive)


def test_a_record_of_megabytes_is_not_read(cache: EngineCache) -> None:
    put(cache)
    (place(cache) / "attestation.json").write_bytes(b" " * (record.MAX_TEXT_BYTES + 1))
    refused(cache, "more than")


# Links, and files of others


def _linked(path: Path, tmp_path: Path) -> None:
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")


def _hard_linked(path: Path, tmp_path: Path) -> None:
    os.link(path, tmp_path / "elsewhere")


def _fifo(path: Path, tmp_path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path, tmp_path: Path) -> None:
    path.unlink()
    path.mkdir()


def _missing(path: Path, tmp_path: Path) -> None:
    path.unlink()


def _writable(path: Path, tmp_path: Path) -> None:
    path.chmod(0o666)


def _group_writable(path: Path, tmp_path: Path) -> None:
    path.chmod(0o620)


PLANTED = {
    _linked: "is a link",
    _hard_linked: "has 2 names",
    _fifo: "is no plain file",
    _folder: "is no plain file",
    _missing: "is missing",
    _writable: "its group or everybody may write",
    _group_writable: "its group or everybody may write",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("name", ["engine.plan", "attestation.json"])
def test_planted_files(cache: EngineCache, tmp_path: Path, name: str, plant: Callable[[Path, Path], None]) -> None:
    put(cache)
    plant(place(cache) / name, tmp_path)
    refused(cache, PLANTED[plant])
    if (tmp_path / "elsewhere").exists():  # what a link led to is nobody's business
        assert (tmp_path / "elsewhere").stat().st_size > 0


@pytest.mark.parametrize(
    ("plant", "decisive"),
    [
        (_linked, "a link or a file stands in its place"),
        (lambda path, tmp_path: (shutil.rmtree(path), path.write_bytes(PLAN)), "a link or a file stands in its place"),
        (lambda path, tmp_path: path.chmod(0o777), "its mode is 777"),
        (lambda path, tmp_path: (shutil.rmtree(path), path.mkdir()), "attestation.json is missing"),
    ],
)
def test_planted_folders(
    cache: EngineCache, tmp_path: Path, plant: Callable[[Path, Path], object], decisive: str
) -> None:
    put(cache)
    plant(place(cache), tmp_path)
    refused(cache, decisive)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o702])
def test_a_cache_that_others_can_write_is_not_used(tmp_path: Path, mode: int) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines").chmod(mode)
    with pytest.raises(BackendError, match=rf"others could put engines into it(.|\n)*mode is {mode:o}(.|\n)*chmod 700"):
        EngineCache(tmp_path / "engines")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_cache_of_someone_else_is_not_used(cache: EngineCache) -> None:
    put(cache)
    os.chown(place(cache) / "engine.plan", 12345, -1)
    refused(cache, "it belongs to user 12345")
    os.chown(cache.root, 12345, -1)
    with pytest.raises(BackendError, match=r"others could put engines into it(.|\n)*user 12345"):
        EngineCache(cache.root)


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b""), lambda path: path.symlink_to("/nowhere")])
def test_a_cache_that_is_no_folder(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "engines")
    with pytest.raises(BackendError, match="the engine cache cannot be used"):
        EngineCache(tmp_path / "engines")


# The file that says which engines are used


@pytest.mark.parametrize(
    ("change", "decisive"),
    [
        (lambda text: text.update(bundle="c" * 64), "did not pass, as this bundle's"),
        (lambda text: text["parity"].update(passed=False), "did not pass"),
        (lambda text: text["device"].update(name="Thor"), "another stage's, library's or device's"),
        (lambda text: text["engines"]["vision"]["key"].update(stage="text"), "another stage's"),
        (lambda text: text.update(schema=7), "schema 7"),
        (lambda text: text.clear(), "its record is malformed"),
    ],
)
def test_a_set_that_does_not_hold(
    cache: EngineCache, change: Callable[[dict[str, Any]], object], decisive: str
) -> None:
    sets = used(cache)
    (path,) = (cache.root / "sets").iterdir()
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(BackendError, match="is refused") as caught:
        sets.open(FILES, "cpu", BUNDLE)
    assert decisive in str(caught.value)
    with pytest.raises(BackendError, match="there is no engine for a stage"):
        sets.open(FILES, "cpu")


def test_a_set_of_another_bundle_under_this_name(cache: EngineCache) -> None:
    sets = used(cache, bundle="c" * 64)
    (path,) = (cache.root / "sets").iterdir()
    path.rename(path.with_name(path.name.replace("c" * 64, BUNDLE)))
    with pytest.raises(BackendError, match=r"is refused(.|\n)*another bundle's or device's set"):
        sets.open(FILES, "cpu", BUNDLE)


@pytest.mark.parametrize("plant", [_linked, _hard_linked, _fifo, _folder, _writable], ids=lambda plant: plant.__name__)
def test_a_planted_set(cache: EngineCache, tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    sets = used(cache)
    (path,) = (cache.root / "sets").iterdir()
    plant(path, tmp_path)
    with pytest.raises(BackendError, match="is refused"):
        sets.open(FILES, "cpu", BUNDLE)


def test_bundles_that_share_a_stage_do_not_share_an_unseen_engine(cache: EngineCache) -> None:
    """Built with other settings, for another bundle: which one runs must be said."""
    sets = used(cache)
    other = replace(KEY, settings=replace(KEY.settings, optimization_level=5))
    used(cache, other, b"other settings", "c" * 64)
    with pytest.raises(BackendError, match="several bundles have this stage, each with another engine"):
        sets.open(FILES, "cpu")
    for bundle, plan in ((BUNDLE, PLAN), ("c" * 64, b"other settings")):
        engine = sets.open(FILES, "cpu", bundle)
        assert engine.plan() == plan
        engine.close()


# 57: measurements


def test_57_a_stale_timing_cache_is_dropped(cache: EngineCache) -> None:
    TimingCache(cache, LIBRARY, DEVICE).keep(b"measured")
    assert TimingCache(cache, LIBRARY, DEVICE).find() == (b"measured", None)
    newer = TimingCache(cache, replace(LIBRARY, version="2"), DEVICE)
    content, note = newer.find()
    assert content == b""
    assert "were dropped: fake 1.0.0 made them on Fake Orin" in str(note)
    assert newer.find() == (b"", None)


def test_57_a_driver_update_drops_it(cache: EngineCache) -> None:
    TimingCache(cache, LIBRARY, DEVICE).keep(b"measured")
    content, note = TimingCache(cache, LIBRARY, replace(DEVICE, driver="600")).find()
    assert (content, "driver 540.4.0" in str(note)) == (b"", True)


def test_57_other_devices_have_their_own(cache: EngineCache) -> None:
    one, two = TimingCache(cache, LIBRARY, DEVICE), TimingCache(cache, LIBRARY, replace(DEVICE, name="Thor"))
    one.keep(b"one")
    two.keep(b"two")
    assert (one.find(), two.find()) == ((b"one", None), (b"two", None))


@pytest.mark.parametrize("name", ["timing.cache", "record.json"])
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_57_a_planted_timing_cache(
    cache: EngineCache, tmp_path: Path, name: str, plant: Callable[[Path, Path], None]
) -> None:
    timing = TimingCache(cache, LIBRARY, DEVICE)
    timing.keep(b"measured")
    (entry,) = (cache.root / "timing").iterdir()
    plant(entry / name, tmp_path)
    content, note = timing.find()
    assert content == b""
    assert PLANTED[plant] in str(note)
    timing.keep(b"again")
    assert timing.find() == (b"again", None)


def test_57_every_bit_of_a_timing_cache(cache: EngineCache) -> None:
    timing, content = TimingCache(cache, LIBRARY, DEVICE), bytes(range(16))
    for position in range(len(content)):
        for bit in range(8):
            timing.keep(content)
            (entry,) = (cache.root / "timing").iterdir()
            spoilt = bytearray(content)
            spoilt[position] ^= 1 << bit
            (entry / "timing.cache").write_bytes(spoilt)
            found, note = timing.find()
            assert found == b""
            assert "size or SHA-256 differs" in str(note)


def test_57_what_is_empty_or_huge_is_not_kept(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    timing = TimingCache(cache, LIBRARY, DEVICE)
    monkeypatch.setattr("trunkline.runtime.engines.timing.MAX_BYTES", 4)
    timing.keep(b"good")
    timing.keep(b"")
    timing.keep(b"huge!")
    assert timing.find() == (b"good", None)


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


def test_79_a_read_only_cache_takes_none(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache)
    with monkeypatch.context() as patch:
        read_only(patch)
        with (
            pytest.raises(BackendError, match=r"the engine cache cannot be written(.|\n)*Read-only(.|\n)*TRUNKLINE_ENGINES"),
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


def _die_at(step: int) -> None:
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
        creates = (lambda path, flags, *_: bool(flags & os.O_CREAT)) if name == "open" else (lambda *_: True)
        setattr(os, name, counted(getattr(os, name), creates))
    folder.WRITE_CHUNK_BYTES = 400


def killed_at_every_step(work: Callable[[], object], check: Callable[[], object]) -> int:
    """Runs ``work`` in children that die one step later each, until one comes through; ``check`` after each."""
    for step in range(200):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _die_at(step)
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
