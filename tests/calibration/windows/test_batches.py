"""Batches of one length, and what a PyTorch data loader makes of a store, whatever way its workers are started."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.windows_kit import FORM, extracted, raw, save
from trunkline.calibration.windows.batches import Batches
from trunkline.calibration.windows.build import build_store
from trunkline.calibration.windows.plan import WindowPlan
from trunkline.calibration.windows.store import WindowStore
from trunkline.calibration.windows.training import TrainingWindows
from trunkline.runtime.errors import InputError

INTERVALS = np.array([[1000.1 + 0.02 * index, 1000.1 + 0.02 * index + 0.01 * (1 + index % 3)] for index in range(14)])


@pytest.fixture
def store(tmp_path: Path) -> WindowStore:
    plan = WindowPlan(replace(FORM, adaptive=True), INTERVALS)
    return build_store(save(tmp_path / "r.npz", raw()), plan, tmp_path / "s")


LENGTHS = st.lists(st.integers(1, 5), max_size=40)


@given(LENGTHS, st.integers(1, 9), st.none() | st.integers(0, 9))
def test_every_window_is_in_one_batch_with_others_of_its_length(
    lengths: list[int], size: int, seed: int | None
) -> None:
    batches = Batches(lengths, size, seed)
    for _ in range(2):
        found = list(batches)
        assert len(found) == len(batches)
        assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
        for batch in found:
            assert len({lengths[index] for index in batch}) == 1
            assert 1 <= len(batch) <= size
        for length in set(lengths):
            sizes = sorted(len(batch) for batch in found if lengths[batch[0]] == length)
            assert all(each == size for each in sizes[1:])


def test_order() -> None:
    lengths = [3, 1, 3, 3, 1, 3]
    assert list(Batches(lengths, 2)) == [[1, 4], [0, 2], [3, 5]]
    once, again = Batches(range(60), 1, seed=3), Batches(range(60), 1, seed=3)
    passes = [list(once) for _ in range(3)]
    assert [list(again) for _ in range(3)] == passes
    assert passes[0] != passes[1] != passes[2]
    again.passes = 1
    assert list(again) == passes[1]
    assert list(Batches(range(60), 1, seed=4)) != passes[0]
    assert list(Batches([2] * 60, 60, seed=3)) != list(Batches([2] * 60, 60, seed=4))


def test_batches_of_nothing() -> None:
    assert list(Batches([], 3)) == []
    with pytest.raises(InputError, match="a batch must hold something"):
        Batches([1], 0)


def test_items_are_arrays_of_their_own(store: WindowStore) -> None:
    windows = TrainingWindows(store)
    item = windows[3]
    np.testing.assert_array_equal(item["samples"], extracted(raw(), replace(FORM, adaptive=True), INTERVALS[3]))
    item["samples"][:] = 0
    assert windows[3]["samples"].any()
    assert (item["rows"], item["stamp_ns"], item["moment"]) == (store.lengths[3], store.stamps_ns[3], 3)
    assert len(windows) == 14
    with pytest.raises(IndexError):
        windows[14]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_data_loader_with_workers(store: WindowStore, context: str) -> None:
    loader: Any = DataLoader(
        TrainingWindows(store),
        batch_sampler=store.batches(4, seed=0),
        num_workers=2,
        multiprocessing_context=context,
        persistent_workers=True,
    )
    for _ in range(2):
        seen = []
        for batch in loader:
            assert batch["samples"].dtype == torch.float32
            assert batch["samples"].shape[1:] == (int(batch["rows"][0]), FORM.channels)
            for samples, moment in zip(batch["samples"], batch["moment"].tolist(), strict=True):
                np.testing.assert_array_equal(samples.numpy(), store[moment].samples)
                seen.append(moment)
        assert sorted(seen) == list(range(14))


def test_a_data_loader_that_shuffles_by_itself(tmp_path: Path) -> None:
    times = np.linspace(1000.1, 1000.5, 9)
    store = build_store(save(tmp_path / "r.npz", raw()), WindowPlan(FORM, times, storage="int8"), tmp_path / "s")
    loader: Any = DataLoader(TrainingWindows(store), batch_size=4, shuffle=True)
    assert sorted(moment for batch in loader for moment in batch["moment"].tolist()) == list(range(9))


def test_reading_needs_no_exporter_library(store: WindowStore) -> None:
    code = (
        "import sys; from trunkline.calibration.windows.training import TrainingWindows;"
        "from trunkline.calibration.windows.store import WindowStore; import trunkline.calibration.windows.build;"
        f"TrainingWindows(WindowStore({str(store.path)!r}))[0];"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'open_clip', 'typer', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
