"""A store is read as it was written, in bounded memory, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.windows_kit import FORM, extracted, raw, save
from trunkline.calibration.windows.build import build_store
from trunkline.calibration.windows.plan import AS_CUT, STORAGES, Storage, WindowPlan
from trunkline.calibration.windows.store import WindowStore
from trunkline.runtime.errors import DatasetError, InputError
from trunkline.runtime.sensor.window import check_window

TIMES = 1000 + np.array([0.3, 0.01, 0.5, 0.1])


@pytest.fixture
def store(tmp_path: Path) -> WindowStore:
    plan = WindowPlan(FORM, TIMES, (40, 8))
    return build_store(save(tmp_path / "r.npz", raw()), plan, tmp_path / "s")


def test_windows_come_with_their_stamps_and_rates(store: WindowStore) -> None:
    stamps = raw()["timestamps"]
    for index, moment in enumerate(TIMES):
        window = store[index]
        last_ns = round(float(stamps[np.searchsorted(stamps, moment)]) * 1e9)
        assert (window.end_ns, window.rate_hz, window.missing, window.stream) == (last_ns, 650.0, 0, None)
        check_window(window, FORM)
        assert store.stamps_ns[index] == last_ns
    np.testing.assert_array_equal(store[-1].samples, store[3].samples)
    assert store[-1].end_ns == store[3].end_ns
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"window {index} of 4"):
            store[index]
    assert len(list(store)) == 4


def test_missing_samples_are_counted_in_rows_of_the_resolution(tmp_path: Path) -> None:
    arrays = {name: np.delete(array, 190, axis=0) for name, array in raw().items()}
    plan = WindowPlan(FORM, TIMES[:1], (40, 20, 8))
    build_store(save(tmp_path / "r.npz", arrays), plan, tmp_path / "s")
    assert [WindowStore(tmp_path / "s", steps=steps)[0].missing for steps in (40, 20, 8)] == [1, 0, 0]


@pytest.mark.parametrize("storage", STORAGES)
def test_windows_are_read_only(tmp_path: Path, storage: Storage) -> None:
    plan = WindowPlan(FORM, TIMES, storage=storage)
    window = build_store(save(tmp_path / "r.npz", raw()), plan, tmp_path / "s")[0]
    with pytest.raises(ValueError, match="read-only"):
        window.samples[0, 0] = 1
    assert window.samples.flags.aligned
    assert window.samples.flags.c_contiguous


def test_float32_windows_are_views_of_the_file(store: WindowStore) -> None:
    before = store[1].samples
    with (store.path / "windows-40.bin").open("r+b") as file:
        file.seek(before.nbytes + (-before.nbytes % 64))
        file.write(np.float32(77).tobytes())
    assert before[0, 0] == 77


def test_resolutions_are_chosen_by_their_rows(store: WindowStore) -> None:
    assert (store.steps, WindowStore(store.path).steps) == (40, 40)
    assert WindowStore(store.path, steps=8)[0].samples.shape == (8, FORM.channels)
    with pytest.raises(InputError, match=r"(?s)no such resolution.*40 or 8.*found: 7"):
        WindowStore(store.path, steps=7)
    with pytest.raises(InputError, match="no such resolution"):
        WindowStore(store.path, steps=AS_CUT)


def test_stacks(store: WindowStore) -> None:
    found = store.stack([2, 0, 2])
    np.testing.assert_array_equal(found, [extracted(raw(), FORM, TIMES[index]) for index in (2, 0, 2)])
    assert found.flags.writeable
    with pytest.raises(InputError, match="cannot be stacked"):
        store.stack([])


def test_windows_of_several_lengths_are_no_stack(tmp_path: Path) -> None:
    form = replace(FORM, adaptive=True)
    intervals = np.array([[1000.1, 1000.15], [1000.2, 1000.23]])
    store = build_store(save(tmp_path / "r.npz", raw()), WindowPlan(form, intervals), tmp_path / "s")
    lengths = [len(extracted(raw(), form, each)) for each in intervals]
    with pytest.raises(InputError, match=rf"\n    - {min(lengths)}\n    - {max(lengths)}"):
        store.stack([0, 1])
    assert [store.stack(batch).shape[1] for batch in store.batches(8)] == sorted(lengths)


def test_pickles_send_no_data_and_refuse_another_store(store: WindowStore) -> None:
    for steps in (40, 8):
        content = ForkingPickler.dumps(WindowStore(store.path, steps=steps))
        assert len(content) < 1000
        found = ForkingPickler.loads(content)
        assert found.steps == steps
        np.testing.assert_array_equal(found[2].samples, WindowStore(store.path, steps=steps)[2].samples)
    build_store(store.path.parent / "r.npz", WindowPlan(FORM, TIMES[:2], (40, 8)), store.path, overwrite=True)
    with pytest.raises(DatasetError, match="holds other windows than are wanted"):
        ForkingPickler.loads(content)
    np.testing.assert_array_equal(store[3].samples, extracted(raw(), FORM, TIMES[3]))  # still open


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda path: shutil.rmtree(path), "not a store of windows"),
        (lambda path: (path / "windows.json").unlink(), "not a store of windows"),
        (lambda path: (path / "windows.json").write_text("{}"), "not a store of windows that this version reads"),
        (lambda path: (path / "windows.json").write_text("{"), "not JSON"),
        (lambda path: (path / "windows.json").write_bytes(b"x" * (1 << 21)), "too large"),
        (lambda path: changed(path / "windows.json", lambda c: c.update(schema=2)), "schema 2"),
        (lambda path: changed(path / "windows.json", lambda c: c.update(format="x")), "format 'x'"),
        (lambda path: changed(path / "windows.json", lambda c: c.update(extra=1)), "unknown field extra"),
        (lambda path: changed(path / "windows.json", lambda c: c.pop("key")), "missing field key"),
        (
            lambda path: changed(path / "windows.json", lambda c: c.update(padded=3)),
            "its seal is not that of its content",
        ),
        (lambda path: changed(path / "windows.json", lambda c: c["form"].update(rate_hz=65.0)), "its seal is not"),
        (lambda path: changed(path / "windows.json", lambda c: c["form"].update(channels=0)), "sensor.channels is 0"),
        (lambda path: changed(path / "windows.json", lambda c: c.update(resolutions=[])), "4 windows with [] rows"),
        (lambda path: (path / "index.safetensors").unlink(), "no such file"),
        (lambda path: (path / "index.safetensors").write_bytes(b""), "another size or digest"),
        (lambda path: (path / "windows-40.bin").unlink(), "No such file"),
        (lambda path: (path / "windows-40.bin").write_bytes(b""), "an empty file"),
        (lambda path: os.truncate(path / "windows-40.bin", 64), "64 bytes, 3328 recorded"),
        (lambda path: os.truncate(path / "windows-40.bin", 4000), "4000 bytes, 3328 recorded"),
        (lambda path: shutil.copy(path / "windows-8.bin", path / "windows-40.bin"), "bytes, 3328 recorded"),
    ],
)
def test_damaged_stores(store: WindowStore, damage: Callable[[Path], None], word: str) -> None:
    damage(store.path)
    with pytest.raises(DatasetError) as caught:
        WindowStore(store.path)
    assert word in str(caught.value)
    assert str(store.path) in str(caught.value)


def test_data_is_checked_where_it_is_asked_for(store: WindowStore) -> None:
    steps = []
    WindowStore(store.path, recheck=True, progress=lambda step, done, total: steps.append((step, done, total)))
    assert steps == [("checking digests", 0, 2), ("checking digests", 1, 2)]
    path = store.path / "windows-8.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    WindowStore(store.path)
    with pytest.raises(DatasetError, match=r"(?s)damaged.*windows-8\.bin.*another digest"):
        WindowStore(store.path, recheck=True)


def test_only_the_wanted_key_will_do(store: WindowStore) -> None:
    assert WindowStore(store.path, key=store.record.key).record == store.record
    with pytest.raises(DatasetError, match="holds other windows than are wanted"):
        WindowStore(store.path, key="0" * 64)
    with pytest.raises(DatasetError, match=r"(?s)cannot read a recording.*none\.npz"):
        WindowStore(store.path, recording=store.path / "none.npz")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["windows.json", "index.safetensors"]), st.floats(0, 1, exclude_max=True), st.integers(0, 255))
def test_no_byte_of_record_or_index_can_be_changed(store: WindowStore, name: str, place: float, byte: int) -> None:
    path = store.path / name
    before = path.read_bytes()
    content = bytearray(before)
    content[int(place * len(content))] = byte
    path.write_bytes(content)
    try:
        if content != before:
            with pytest.raises(DatasetError):
                WindowStore(store.path)
    finally:
        path.write_bytes(before)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["windows.json", "index.safetensors", "windows-40.bin"]), st.floats(0, 1, exclude_max=True))
def test_no_file_can_be_cut_short(store: WindowStore, name: str, share: float) -> None:
    path = store.path / name
    before = path.read_bytes()
    path.write_bytes(before[: int(share * len(before))])
    try:
        with pytest.raises(DatasetError):
            WindowStore(store.path)
    finally:
        path.write_bytes(before)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(("release_bytes", "bounded"), [(1 << 20, True), (1 << 40, False)])
def test_memory_stays_bounded_while_windows_are_read(tmp_path: Path, release_bytes: int, bounded: bool) -> None:
    """Pages of mapped files count as resident; 24 MB of windows are read with and without giving them back."""
    rows = np.zeros((300, 1000), np.float32)
    arrays = {"timestamps": np.arange(300) / 100.0, "forces": rows[:, 0], "alines": rows}
    form = replace(FORM, channels=1001, rate_hz=100.0, samples=60, steps=60)
    plan = WindowPlan(form, np.linspace(0.6, 2.9, 100))
    build_store(save(tmp_path / "r.npz", arrays), plan, tmp_path / "s")
    code = f"""
from trunkline.calibration.windows import mapped_file
from trunkline.calibration.windows.store import WindowStore
mapped_file.RELEASE_BYTES = {release_bytes}
def mapped():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("RssFile")).split()[1]) << 10
store = WindowStore({str(tmp_path / "s")!r})
store[0].samples.sum()
before, held, most = mapped(), store[1], 0
for index in range(len(store)):
    assert store[index].samples.sum() == 0
    most = max(most, mapped())
assert held.samples.sum() == 0
print(most - before)
"""
    grown = int(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert (grown < 4 << 20) if bounded else (grown > 16 << 20)
