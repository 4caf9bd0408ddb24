"""A store holds what its plan says, is found again by its content, and appears whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.windows_kit import CHANNELS, FORM, extracted, raw, save, windowed
from trunkline.calibration.windows import build as module
from trunkline.calibration.windows.build import build_store
from trunkline.calibration.windows.plan import AS_CUT, STORAGES, Storage, WindowPlan
from trunkline.calibration.windows.store import WindowStore
from trunkline.runtime.errors import DatasetError, InputError, TrunklineError
from trunkline.runtime.sensor.form import RESAMPLES, Resample
from trunkline.runtime.sensor.resample import resample
from trunkline.runtime.sensor.window import encoder_rows

TIMES = 1000 + np.array([0.3, 0.01, 0.5, 0.1])
PLAN = WindowPlan(FORM, TIMES)
TOLERANCE: dict[Storage, float] = {"float32": 0.0, "float16": 0.005, "int8": 0.02}


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return save(tmp_path / "r.npz", raw())


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("mode", RESAMPLES)
def test_windows_at_several_resolutions(tmp_path: Path, recording: Path, storage: Storage, mode: Resample) -> None:
    form = replace(FORM, resample=mode)
    build_store(recording, WindowPlan(form, TIMES, (40, 7, AS_CUT, 55), storage), tmp_path / "s")
    for steps in (40, 7, AS_CUT, 55):
        store = WindowStore(tmp_path / "s", steps=steps, recheck=True)
        assert len(store) == len(TIMES)
        for index, moment in enumerate(TIMES):
            window = store[index]
            expected = resample(extracted(raw(), form, moment), steps or 40, mode)
            np.testing.assert_allclose(window.samples, expected, rtol=0, atol=TOLERANCE[storage])
            assert window.rate_hz == pytest.approx(650 * (steps or 40) / 40)
    assert store.rows.tolist() == [40, 8, 40, 40]
    assert store.record.padded == 1


def test_by_default_a_store_holds_what_the_encoder_reads(tmp_path: Path, recording: Path) -> None:
    form = replace(FORM, steps=16)
    store = build_store(recording, replace_plan(PLAN, form=form), tmp_path / "s")
    short = WindowStore(build_store(recording, PLAN, tmp_path / "cut").path)
    for index in range(len(TIMES)):
        np.testing.assert_array_equal(store[index].samples, encoder_rows(short[index], form))
    own = replace(form, rate_hz=store[0].rate_hz, samples=16)
    assert encoder_rows(store[0], own).shape == (16, CHANNELS)
    with pytest.raises(TrunklineError, match="a stream of 260 Hz"):
        encoder_rows(store[0], form)  # 16 rows of the whole window are not 16 consecutive samples


def replace_plan(plan: WindowPlan, **changes: Any) -> WindowPlan:
    return replace(plan, **changes)


def test_adaptive_windows_keep_their_lengths(tmp_path: Path, recording: Path) -> None:
    form = replace(FORM, adaptive=True)
    intervals = np.array([[1000.1, 1000.15], [1000.2, 1000.23], [1000.3, 1000.35]])
    store = build_store(recording, WindowPlan(form, intervals, (AS_CUT, 9)), tmp_path / "s")
    for index, interval in enumerate(intervals):
        np.testing.assert_array_equal(store[index].samples, extracted(raw(), form, interval))
    assert store.lengths.tolist() == [len(extracted(raw(), form, each)) for each in intervals]
    nine = WindowStore(store.path, steps=9)
    assert nine.lengths.tolist() == [9, 9, 9]
    assert nine[1].rate_hz == pytest.approx(650 * 9 / store.lengths[1])
    assert WindowPlan(form, intervals).steps == (AS_CUT,)


def test_a_recording_of_windows(tmp_path: Path) -> None:
    arrays = windowed()
    arrays["data"][:3, :5] = 0
    arrays["data"][4:6, 38:] = 0
    source = save(tmp_path / "r.npz", arrays)
    store = build_store(source, WindowPlan(FORM), tmp_path / "s")
    for index in range(12):
        np.testing.assert_array_equal(store[index].samples, arrays["data"][index])
    assert (store.record.zeros_left, store.record.zeros_right, store.record.padded) == (3, 2, 0)
    assert store.record.recording.form == "windowed"
    assert store.record.cut.rule == "windowed"


def test_a_store_that_is_there_is_taken_as_it_is(tmp_path: Path, recording: Path) -> None:
    steps: list[str] = []
    first = build_store(recording, PLAN, tmp_path / "s", progress=lambda step, done, total: steps.append(step))
    assert "cutting windows" in steps
    before = (tmp_path / "s" / "windows.json").stat()
    steps.clear()
    again = build_store(recording, PLAN, tmp_path / "s", progress=lambda step, done, total: steps.append(step))
    assert "cutting windows" not in steps
    assert again.record == first.record
    assert (tmp_path / "s" / "windows.json").stat().st_ino == before.st_ino
    assert entries(tmp_path) == ["r.npz", "s"]


def test_the_key_depends_on_content_alone(tmp_path: Path, recording: Path) -> None:
    key = build_store(recording, PLAN, tmp_path / "a").record.key
    copy = tmp_path / "elsewhere" / "other.npz"
    copy.parent.mkdir()
    copy.write_bytes(recording.read_bytes())
    plan = replace_plan(PLAN, form=replace(FORM, rate_hz=650), resolutions=(40,))
    assert build_store(copy, plan, tmp_path / "b").record.key == key


@pytest.mark.parametrize(
    "plan",
    [
        replace_plan(PLAN, storage="int8"),
        replace_plan(PLAN, resolutions=(40, 20)),
        replace_plan(PLAN, times=TIMES + 1e-9),
        replace_plan(PLAN, times=TIMES[:3]),
        replace_plan(PLAN, times=np.sort(TIMES.reshape(-1, 2))),
        replace_plan(PLAN, skip_unusable=True),
        replace_plan(PLAN, form=replace(FORM, padding="right")),
        replace_plan(PLAN, form=replace(FORM, rate_hz=651.0)),
        replace_plan(PLAN, form=replace(FORM, samples=39)),
    ],
)
def test_another_plan_is_another_store(tmp_path: Path, recording: Path, plan: WindowPlan) -> None:
    first = build_store(recording, PLAN, tmp_path / "s").record
    with pytest.raises(DatasetError, match="a store of other windows is in the place"):
        build_store(recording, plan, tmp_path / "s")
    assert WindowStore(tmp_path / "s").record == first
    second = build_store(recording, plan, tmp_path / "s", overwrite=True).record
    assert second.key != first.key
    assert WindowStore(tmp_path / "s").record == second
    assert entries(tmp_path) == ["r.npz", "s"]


def test_all_differences_are_named(tmp_path: Path, recording: Path) -> None:
    build_store(recording, PLAN, tmp_path / "s")
    plan = WindowPlan(replace(FORM, padding="right", samples=30), TIMES[:2], (40, 20), "int8")
    with pytest.raises(DatasetError) as caught:
        build_store(save(recording, raw(seed=1)), plan, tmp_path / "s")
    assert [each.split(":")[0] for each in caught.value.found] == [
        *("recording", "storage", "steps", "form.samples", "form.padding", "cut.times_sha256")
    ]
    assert "storage: 'float32' instead of 'int8'" in caught.value.found


def test_another_recording_is_another_store(tmp_path: Path, recording: Path) -> None:
    store = build_store(recording, PLAN, tmp_path / "s")
    assert WindowStore(store.path, recording=recording).record == store.record
    arrays = raw()
    arrays["alines"][399, 3] += 1e-6
    save(recording, arrays)
    with pytest.raises(DatasetError, match="a store of other windows is in the place"):
        build_store(recording, PLAN, tmp_path / "s")
    with pytest.raises(DatasetError, match="windows of another recording"):
        WindowStore(store.path, recording=recording)


def test_a_damaged_store_is_not_taken(tmp_path: Path, recording: Path) -> None:
    data = build_store(recording, PLAN, tmp_path / "s").path / "windows-40.bin"
    data.write_bytes(data.read_bytes()[:-64])
    with pytest.raises(DatasetError, match="damaged"):
        build_store(recording, PLAN, tmp_path / "s")
    assert build_store(recording, PLAN, tmp_path / "s", overwrite=True)[0].samples.shape == (40, CHANNELS)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_store_is_left_alone(tmp_path: Path, recording: Path, overwrite: bool, kind: str) -> None:
    target = tmp_path / "s"
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        (target / "photos").mkdir(parents=True)
    else:
        target.symlink_to(build_store(recording, PLAN, tmp_path / "real").path)
    with pytest.raises(DatasetError, match="something else is in the place of the store"):
        build_store(recording, PLAN, target, overwrite=overwrite)
    assert target.is_symlink() or target.is_file() or (target / "photos").is_dir()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("after", range(4))
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, recording: Path, stop: Any, after: int) -> None:
    def progress(step: str, done: int, total: int) -> None:
        if step == "cutting windows" and done == after:
            raise stop

    with pytest.raises(stop):
        build_store(recording, PLAN, tmp_path / "s", progress=progress)
    assert entries(tmp_path) == ["r.npz"]


def test_an_interrupted_replacement_leaves_what_was_there(tmp_path: Path, recording: Path) -> None:
    first = build_store(recording, PLAN, tmp_path / "s").record

    def progress(step: str, done: int, total: int) -> None:
        if step == "cutting windows" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_store(recording, replace_plan(PLAN, storage="int8"), tmp_path / "s", overwrite=True, progress=progress)
    assert WindowStore(tmp_path / "s", recheck=True).record == first
    assert entries(tmp_path) == ["r.npz", "s"]


def test_a_killed_build_leaves_no_store_and_is_cleared_away_later(tmp_path: Path, recording: Path) -> None:
    code = f"""
import os, signal, numpy as np
from tests.windows_kit import FORM
from trunkline.calibration.windows.build import build_store
from trunkline.calibration.windows.plan import WindowPlan
def progress(step, done, total):
    if step == "cutting windows" and done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
plan = WindowPlan(FORM, np.array({TIMES.tolist()}))
build_store({str(recording)!r}, plan, {str(tmp_path / "s")!r}, progress=progress)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = [name for name in entries(tmp_path) if name != "r.npz"]
    assert left.startswith(".s.")
    with pytest.raises(DatasetError, match="not a store of windows"):
        WindowStore(tmp_path / left)
    build_store(recording, PLAN, tmp_path / "s")
    assert left in entries(tmp_path)  # its writer might still live
    for path in [*(tmp_path / left).iterdir(), tmp_path / left]:
        os.utime(path, (0, 0))
    build_store(recording, replace_plan(PLAN, storage="int8"), tmp_path / "s", overwrite=True)
    assert entries(tmp_path) == ["r.npz", "s"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_builders_end_with_one_store(tmp_path: Path, recording: Path, overwrite: bool) -> None:
    barrier, found = threading.Barrier(2), []

    def progress(step: str, done: int, total: int) -> None:
        if step == "cutting windows" and done in (0, total):
            barrier.wait(timeout=60)

    def build() -> None:
        found.append(build_store(recording, PLAN, tmp_path / "s", overwrite=overwrite, progress=progress).record)

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == WindowStore(tmp_path / "s", recheck=True).record
    assert entries(tmp_path) == ["r.npz", "s"]


def test_two_builders_of_different_stores_end_with_the_first(tmp_path: Path, recording: Path) -> None:
    def progress(step: str, done: int, total: int) -> None:
        if step == "cutting windows" and done == total:
            build_store(recording, replace_plan(PLAN, storage="float16"), tmp_path / "s")

    with pytest.raises(DatasetError, match="a store of other windows is in the place"):
        build_store(recording, PLAN, tmp_path / "s", progress=progress)
    assert WindowStore(tmp_path / "s").record.storage == "float16"
    assert entries(tmp_path) == ["r.npz", "s"]


def test_a_recording_that_changes_meanwhile(tmp_path: Path, recording: Path) -> None:
    def progress(step: str, done: int, total: int) -> None:
        if step == "cutting windows" and done == 1:
            os.utime(recording)

    with pytest.raises(DatasetError, match="changed while it was read"):
        build_store(recording, PLAN, tmp_path / "s", progress=progress)
    assert entries(tmp_path) == ["r.npz"]


def test_a_recording_with_a_flipped_bit(tmp_path: Path, recording: Path) -> None:
    content = bytearray(recording.read_bytes())
    content[content.index(raw()["alines"][300:301].tobytes())] ^= 1
    recording.write_bytes(content)
    with pytest.raises(DatasetError, match=r"(?s)damaged.*alines.*checksum"):
        build_store(recording, PLAN, tmp_path / "s")
    assert entries(tmp_path) == ["r.npz"]


def test_numbers_that_float16_cannot_hold(tmp_path: Path) -> None:
    arrays = raw()
    arrays["forces"][190] = 70000
    source = save(tmp_path / "r.npz", arrays)
    with pytest.raises(DatasetError, match=r"(?s)cannot be stored as float16.*window 0.*70000 at row 34, channel 0"):
        build_store(source, replace_plan(PLAN, storage="float16"), tmp_path / "s")
    assert entries(tmp_path) == ["r.npz"]
    assert build_store(source, replace_plan(PLAN, storage="int8"), tmp_path / "s").record.windows == 4


def test_broken_samples_stop_the_build(tmp_path: Path) -> None:
    arrays = raw()
    arrays["alines"][190, 2] = np.nan
    with pytest.raises(DatasetError, match=r"sample 190, channel 3: nan"):
        build_store(save(tmp_path / "r.npz", arrays), PLAN, tmp_path / "s")


def test_skipped_windows_are_counted(tmp_path: Path, recording: Path) -> None:
    plan = replace_plan(PLAN, times=np.append(5.0, TIMES), skip_unusable=True)
    store = build_store(recording, plan, tmp_path / "s")
    assert (store.record.skipped, store.moments.tolist()) == (1, [1, 2, 3, 4])
    np.testing.assert_array_equal(store[0].samples, extracted(raw(), FORM, TIMES[0]))


def test_the_error_is_in_the_record(tmp_path: Path, recording: Path) -> None:
    for storage, largest in (("float32", 0.0), ("float16", 5e-4), ("int8", 0.004)):
        store = build_store(recording, replace_plan(PLAN, storage=storage), tmp_path / storage)
        exact = np.stack([extracted(raw(), FORM, moment) for moment in TIMES]).astype(np.float64)
        extent = exact.max(axis=(0, 1)) - exact.min(axis=(0, 1))
        shares = np.abs(store.stack(range(4)) - exact) / extent
        (resolution,) = store.record.resolutions
        assert resolution.max_error == pytest.approx(shares.max(), rel=1e-4)
        assert resolution.rms_error == pytest.approx(np.sqrt(np.mean(shares**2)), rel=1e-4)
        assert resolution.max_error <= largest


def test_no_room_on_the_disk(tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=3199))
    with pytest.raises(DatasetError, match="the disk has no room"):
        build_store(recording, PLAN, tmp_path / "s")  # 4 windows of 40 rows of 5 numbers: 4 x 832 bytes
    assert entries(tmp_path) == ["r.npz"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, recording: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="cannot be written"):
        build_store(recording, PLAN, tmp_path / "file" / "s")


def test_no_plan(tmp_path: Path, recording: Path) -> None:
    with pytest.raises(InputError, match="0 times"):
        build_store(recording, replace_plan(PLAN, times=np.zeros(0)), tmp_path / "s")


def test_names_that_look_like_patterns(tmp_path: Path, recording: Path) -> None:
    assert len(build_store(recording, PLAN, tmp_path / "s[0-9]*")) == 4
