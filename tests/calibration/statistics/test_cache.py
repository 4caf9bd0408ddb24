"""What the cache gives back is what was put in, or nothing; and it stays within its bounds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from trunkline.calibration.statistics.cache import SUFFIX, StatisticsCache, default_folder

ARRAYS = {"rows": np.arange(12, dtype=np.float32).reshape(3, 4), "count": np.array([3], np.int64)}


def entry(folder: Path, key: str = "key") -> Path:
    return folder / (key + SUFFIX)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_what_was_put_is_found(tmp_path: Path) -> None:
    StatisticsCache(tmp_path).put("key", ARRAYS)
    found = StatisticsCache(tmp_path).get("key")
    assert found is not None
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert StatisticsCache(tmp_path).get("other") is None
    assert StatisticsCache(tmp_path / "nowhere").get("key") is None


def test_it_lies_in_the_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "trunkline" / "calibration"


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def renamed(content: bytes) -> bytes:
    arrays = load(content)
    return save({("lines" if name == "rows" else name): array for name, array in arrays.items()})


def reshaped(content: bytes) -> bytes:
    arrays = load(content)
    return save({**arrays, "rows": arrays["rows"].reshape(4, 3)})


def without_digest(content: bytes) -> bytes:
    arrays = load(content)
    del arrays["digest"]
    return save(arrays)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[:4],
        lambda content: content[:-3],
        lambda content: content + b"\0",
        lambda content: b"\xff" * len(content),
        lambda content: save({}),
        flipped,
        renamed,
        reshaped,
        without_digest,
    ],
)
def test_altered_entries_are_none(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    cache = StatisticsCache(tmp_path)
    cache.put("key", ARRAYS)
    path = entry(tmp_path)
    path.write_bytes(spoil(path.read_bytes()))
    assert cache.get("key") is None
    cache.put("key", ARRAYS)
    assert cache.get("key") is not None


def test_the_entry_of_another_key_is_none(tmp_path: Path) -> None:
    cache = StatisticsCache(tmp_path)
    cache.put("key", ARRAYS)
    entry(tmp_path).rename(entry(tmp_path, "other"))
    assert cache.get("other") is None


def test_links_and_directories_are_none(tmp_path: Path) -> None:
    cache = StatisticsCache(tmp_path / "cache")
    cache.put("key", ARRAYS)
    entry(tmp_path / "cache").rename(tmp_path / "elsewhere")
    entry(tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    entry(tmp_path / "cache", "folder").mkdir()
    assert cache.get("key") is None
    assert cache.get("folder") is None


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    before = StatisticsCache(tmp_path)
    for index, key in enumerate(("a", "b", "c", "d")):
        before.put(key, ARRAYS)
        age(entry(tmp_path, key), 1000 - index)
    size = entry(tmp_path, "a").stat().st_size
    assert StatisticsCache(tmp_path).get("a") is not None  # used again, in another run
    StatisticsCache(tmp_path, limit_bytes=3 * size).put("e", ARRAYS)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "d", "e"]


def test_what_this_run_uses_stays(tmp_path: Path) -> None:
    StatisticsCache(tmp_path).put("old", ARRAYS)
    StatisticsCache(tmp_path).put("read", ARRAYS)
    for path in tmp_path.iterdir():
        age(path, 1000)
    cache = StatisticsCache(tmp_path, limit_bytes=1)
    cache.get("read")
    for key in ("x", "y"):
        cache.put(key, ARRAYS)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["read", "x", "y"]


def test_leftovers_of_a_crash_go_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / ".old.safetensors.1.partial").write_bytes(b"half")
    age(tmp_path / ".old.safetensors.1.partial", 10_000)
    (tmp_path / ".new.safetensors.2.partial").write_bytes(b"half")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    StatisticsCache(tmp_path, limit_bytes=1).put("key", ARRAYS)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {".new.safetensors.2.partial", "notes.txt", "key.safetensors"}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = StatisticsCache(tmp_path / "file" / "cache")
    cache.put("key", ARRAYS)
    assert cache.get("key") is None
