"""The files that say which engines a bundle runs, and what was measured: foreign, damaged, planted, swapped.

Numbers are those of docs/security.md, "Engines" and "The machine".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.engines_kit import (
    BUNDLE,
    DEVICE,
    FILES,
    KEY,
    LIBRARY,
    PLAN,
    PLANTED,
    a_folder,
    fifo,
    hard_linked,
    linked,
    put,
    used,
    writable,
)
from tests.pretended_tensorrt.fixtures import SETTINGS
from tests.small_stages import expected, rows, small
from trunkline.runtime.backends import tensorrt
from trunkline.runtime.engines import room
from trunkline.runtime.engines.cache import FOLDER_VARIABLE, RECORD_BYTES, Engine, EngineCache
from trunkline.runtime.engines.key import EngineKey, engine_key
from trunkline.runtime.engines.settings import BuildRequest
from trunkline.runtime.engines.timing import TimingCache
from trunkline.runtime.errors import BackendError
from trunkline.targets.building.network import TensorRtBuilder

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


@pytest.mark.parametrize("plant", [linked, hard_linked, fifo, a_folder, writable], ids=lambda plant: plant.__name__)
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


# 82: swapped


def test_82_a_set_that_is_swapped_while_an_engine_runs(
    trt: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who runs the old engine keeps it, also on the disk; who comes later gets the new one."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "engines"))
    files, other = small(tmp_path / "stage"), small(tmp_path / "other", seed=1)
    builder, settings = TensorRtBuilder(), SETTINGS.for_stage(files.stage)
    plans = [builder.build(BuildRequest(each, settings)).plan for each in (files, other)]
    key = engine_key(files, SETTINGS, variant="trt", library=tensorrt.library(), device=tensorrt.device())
    newer = replace(key, settings=replace(key.settings, optimization_level=5))
    cache = EngineCache()
    used(cache, key, plans[0])
    running, inputs = tensorrt.open_stage(files), {"x": rows(3)}
    before = running.run(inputs)["y"]
    used(cache, newer, plans[1])  # computes something else, so that it can be told apart
    cache.limit_bytes = sum(each.bytes for each in room.kept(cache.root)) + RECORD_BYTES
    put(cache, replace(newer, stage="text"), plans[1])  # there is no room for three, and the second is nobody's
    np.testing.assert_array_equal(running.run(inputs)["y"], before)
    assert cache.find(key) is not None
    assert cache.find(newer) is None
    used(cache, newer, plans[1])
    later = tensorrt.open_stage(files)
    np.testing.assert_allclose(later.run(inputs)["y"], expected(other, inputs), atol=1e-2)
    np.testing.assert_array_equal(running.run(inputs)["y"], before)
    for session in (running, later):
        session.close()


def test_82_a_set_that_is_swapped_while_an_engine_is_opened(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old engine is gone when it is asked for: what was taken into use instead is opened."""
    sets, right = used(cache), cache.find
    newer = replace(KEY, settings=replace(KEY.settings, optimization_level=5))

    def swapped_first(key: EngineKey, **_: Any) -> Engine | None:
        if key == KEY:
            used(cache, newer, b"newer")
            with cache.building(KEY):
                cache.remove(KEY)
        return right(key)

    monkeypatch.setattr(cache, "find", swapped_first)
    engine = sets.open(FILES, "cpu", BUNDLE)
    assert engine.plan() == b"newer"
    engine.close()
