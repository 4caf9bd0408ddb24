"""Engines that must never run: stale, foreign, damaged, planted.

Numbers are those of docs/security.md, "Engines". What is done to a GPU's own engine format is up to the library; here
it is never shown one that is not, to the byte, what was attested.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.cuda_kit import FakeCuda
from tests.engines_kit import (
    BUNDLE,
    DEVICE,
    FILES,
    KEY,
    LIBRARY,
    PLAN,
    PLANTED,
    linked,
    place,
    put,
    used,
)
from tests.pretended_tensorrt.engines import compatible_plan
from tests.pretended_tensorrt.fixtures import SETTINGS, Install
from tests.pretended_tensorrt.library import NEWEST, OLDEST
from tests.pretended_tensorrt.world import World
from tests.small_stages import expected, rows, small
from trunkline.runtime import record
from trunkline.runtime.backends import StageFiles, tensorrt
from trunkline.runtime.engines.cache import FOLDER_VARIABLE, EngineCache
from trunkline.runtime.engines.key import EngineKey, engine_key
from trunkline.runtime.engines.sets import EngineSets
from trunkline.runtime.engines.settings import BuildRequest
from trunkline.runtime.errors import BackendError
from trunkline.targets.building.network import TensorRtBuilder


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
        (linked, "a link or a file stands in its place"),
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


# With TensorRT: what it refuses itself, where our record was believed


@pytest.fixture
def of_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    """The cache that the back end looks into."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "engines"))
    return EngineCache()


def key_of(files: StageFiles) -> EngineKey:
    return engine_key(files, SETTINGS, variant="trt", library=tensorrt.library(), device=tensorrt.device())


def compiled(files: StageFiles) -> bytes:
    return TensorRtBuilder().build(BuildRequest(files, SETTINGS.for_stage(files.stage))).plan


def of_another_version(files: StageFiles, install: Install, world: World) -> bytes:
    install(OLDEST)
    return compiled(files)


def of_another_gpu(files: StageFiles, install: Install, world: World) -> bytes:
    install(NEWEST)
    world.gpu = "Another GPU"
    plan = compiled(files)
    world.gpu = "Pretended GPU"
    return plan


def truncated(files: StageFiles, install: Install, world: World) -> bytes:
    install(NEWEST)
    return compiled(files)[:-100]


def with_code(files: StageFiles, install: Install, world: World) -> bytes:
    return compatible_plan(files, install(NEWEST), with_code=True)


@pytest.mark.parametrize(
    ("plan_of", "decisive"),
    [
        (of_another_gpu, "built for another device"),
        (of_another_version, f"the plan is of TensorRT {OLDEST}"),
        (truncated, "magicTag"),
        (with_code, "code for the processor"),
    ],
    ids=["51 another GPU", "52 another version", "53 truncated", "55 code"],
)
def test_engines_that_were_attested_as_something_else(
    of_tensorrt: EngineCache,
    install: Install,
    world: World,
    tmp_path: Path,
    plan_of: Callable[..., bytes],
    decisive: str,
) -> None:
    """As if a library had been exchanged under one version number, or a builder had been deceived."""
    files = small(tmp_path / "stage")
    plan = plan_of(files, install, world)
    install(NEWEST)
    used(of_tensorrt, key_of(files), plan)
    with pytest.raises(BackendError, match=r"an engine cannot be used\n.*stage small(.|\n)*trunkline build") as caught:
        tensorrt.open_stage(files)
    assert decisive in str(caught.value)
    assert (world.runs, world.host_code_ran) == (0, 0)


def test_56_two_heads_of_one_architecture_run_their_own_engines(
    of_tensorrt: EngineCache, trt: ModuleType, cuda: FakeCuda, tmp_path: Path
) -> None:
    """Equal graphs to the byte, equal names and shapes; built one after the other, in use at once."""
    heads = [small(tmp_path / str(seed), seed=seed) for seed in range(2)]
    assert heads[0].graph == heads[1].graph
    for number, head in enumerate(heads):
        used(of_tensorrt, key_of(head), compiled(head), bundle=f"{number}" * 64)
    sessions = [tensorrt.open_stage(head) for head in heads]
    for head, session in zip(heads, sessions, strict=True):
        found = session.run({"x": rows(3)})["y"]
        np.testing.assert_allclose(found, expected(head, {"x": rows(3)}), atol=1e-2)
        session.close()
    nobody = replace(heads[0], weights_digest=None)
    with pytest.raises(BackendError, match="there is no engine for a stage on this device"):
        tensorrt.open_stage(nobody)
