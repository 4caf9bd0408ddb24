"""One pass over the samples sees what all of them hold, however often it is interrupted."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.statistics_kit import VALUES, batch, expected, samples, save_stage
from trunkline.calibration.statistics import collect as statistics
from trunkline.calibration.statistics.collect import Sampling, TensorStatistics, collect, merge, summarise
from trunkline.calibration.statistics.watch import Watch
from trunkline.runtime.errors import BackendError, InputError

COUNT = 7
Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_stage(tmp_path_factory.mktemp("stage"))


@pytest.fixture
def watch(stage: Path) -> Iterator[Watch]:
    with Watch("toy", stage, VALUES) as watch:
        yield watch


def content(found: Mapping[str, TensorStatistics]) -> bytes:
    return b"".join(
        name.encode() + part.tobytes()
        for name, each in found.items()
        for part in (each.absmax, each.rows, each.weights, np.int64(each.count))
    )


def test_one_pass_equals_all_data_at_once(watch: Watch) -> None:
    found = collect(watch, samples(COUNT))
    assert list(found) == list(VALUES)
    for name, everything in expected(range(COUNT)).items():
        each = found[name]
        np.testing.assert_allclose(each.absmax, np.abs(everything).max(axis=0), rtol=1e-5)
        assert each.absmax.dtype == each.rows.dtype == each.weights.dtype == np.float32
        assert each.count == len(everything)
        distances = np.abs(each.rows[:, None] - everything[None]).max(axis=2).min(axis=1)
        assert distances.max() < 1e-5, "a sampled row is not one of the data"


def test_rows_stand_for_all_rows(watch: Watch) -> None:
    found = collect(watch, samples(COUNT), sampling=Sampling(rows=2))
    for each in found.values():
        assert len(each.rows) == len(each.weights) == 3 * COUNT
        assert each.weights.sum() == pytest.approx(each.count)


def test_the_row_with_the_largest_number_is_kept(watch: Watch) -> None:
    found = collect(watch, samples(COUNT), sampling=Sampling(rows=1))
    for each in found.values():
        assert np.abs(each.rows).max() == each.absmax.max()
        assert (each.weights[::2] == 1).all()


def test_all_rows_of_a_small_sample_are_kept_once(watch: Watch) -> None:
    found = collect(watch, samples(2), sampling=Sampling(rows=100))["x"]
    assert len(found.rows) == found.count
    assert (found.weights == 1).all()
    everything = expected(range(2))["x"]
    assert {row.tobytes() for row in found.rows} == {row.tobytes() for row in everything}


def test_weighted_rows_estimate_without_bias() -> None:
    tensor = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    tensor[17] *= 40
    estimates = []
    for seed in range(2000):
        part = summarise(tensor, 4, random.Random(seed), "here")
        estimates.append((np.square(part.rows).sum(axis=1) * part.weights).sum())
    assert np.mean(estimates) == pytest.approx(np.square(tensor).sum(), rel=0.01)


def test_the_draw_depends_on_seed_sample_and_tensor(watch: Watch) -> None:
    def drawn(seed: int = 42) -> bytes:
        return content(collect(watch, samples(COUNT), sampling=Sampling(rows=1, seed=seed)))

    assert drawn() == drawn()
    assert drawn() != drawn(seed=43)


@pytest.mark.parametrize("at", [0, 1, 4, COUNT - 1])
@pytest.mark.parametrize("where", ["progress", "load"])
def test_an_interrupted_run_continues(watch: Watch, tmp_path: Path, at: int, where: str) -> None:
    whole = content(collect(watch, samples(COUNT)))

    def stop(step: str, done: int, total: int) -> None:
        if done == at and where == "progress":
            raise KeyboardInterrupt

    def interrupted() -> dict[str, NDArray[Any]]:
        raise KeyboardInterrupt

    first: list[str] = []
    todo = samples(COUNT, first)
    if where == "load":
        todo[at] = (todo[at][0], interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(watch, todo, tmp_path, stop)
    second: list[str] = []
    resumed = collect(watch, samples(COUNT, second), tmp_path)
    assert first == [f"sample-{index}" for index in range(at)]
    assert second == [f"sample-{index}" for index in range(at, COUNT)], "what was done is done again"
    assert content(resumed) == whole


def test_a_full_cache_needs_no_session(stage: Path, watch: Watch, tmp_path: Path) -> None:
    whole = collect(watch, samples(COUNT), tmp_path)
    loaded: list[str] = []
    unused = Watch("toy", stage, VALUES)
    assert content(collect(unused, samples(COUNT, loaded), tmp_path)) == content(whole)
    assert loaded == []
    assert unused._session is None


def test_overlapping_samples_share_work(watch: Watch, tmp_path: Path) -> None:
    collect(watch, samples(4), tmp_path)
    loaded: list[str] = []
    part = list(reversed(samples(6, loaded)))[:4]
    shared = collect(watch, part, tmp_path)
    assert loaded == ["sample-5", "sample-4"]
    assert content(shared) == content(collect(watch, part))


def test_torn_and_foreign_entries_are_computed_again(watch: Watch, tmp_path: Path) -> None:
    whole = content(collect(watch, samples(COUNT), tmp_path))
    torn, foreign, flipped, *_ = sorted(tmp_path.iterdir())
    torn.write_bytes(torn.read_bytes()[:-10])
    foreign.write_bytes(sorted(tmp_path.iterdir())[-1].read_bytes())
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"\x55")
    loaded: list[str] = []
    assert content(collect(watch, samples(COUNT, loaded), tmp_path)) == whole
    assert len(loaded) == 3


@pytest.mark.parametrize("change", ["rows", "seed", "values", "weights", "version"])
def test_other_conditions_share_nothing(
    watch: Watch, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    collect(watch, samples(2), cache)
    sampling = {"rows": Sampling(rows=3), "seed": Sampling(seed=1)}.get(change)
    if change == "values":
        watch = Watch("toy", save_stage(tmp_path / "same"), VALUES[:1])
    if change == "weights":
        watch = Watch("toy", save_stage(tmp_path / "other", seed=1), VALUES)
    if change == "version":
        monkeypatch.setattr(statistics, "VERSION", 0)
    loaded: list[str] = []
    collect(watch, samples(2, loaded), cache, sampling=sampling)
    assert len(loaded) == 2


def test_samples_are_counted(watch: Watch) -> None:
    calls = []
    collect(watch, samples(3), progress=lambda *call: calls.append(call))
    assert calls == [("calibration samples", done, 3) for done in range(4)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(watch: Watch, tmp_path: Path, value: float) -> None:
    def poisoned() -> dict[str, NDArray[Any]]:
        x = batch(1)
        x[0, 2, 3] = value
        return {"x": x}

    todo = samples(3)
    todo[1] = ("sample-bad", poisoned)
    with pytest.raises(BackendError) as caught:
        collect(watch, todo, tmp_path)
    assert caught.value.where == "stage toy, tensor x, sample sample-bad"
    assert "1 of 40" in str(caught.value)
    assert "channel 3" in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 1, "a sample that failed must not be remembered"


@pytest.mark.parametrize(("count", "rows"), [(0, 1), (1, 0), (1, -1)])
def test_nothing_to_collect(watch: Watch, count: int, rows: int) -> None:
    with pytest.raises(InputError, match="cannot collect statistics"):
        collect(watch, samples(count), sampling=Sampling(rows=rows))


def test_an_empty_tensor_is_named() -> None:
    with pytest.raises(InputError, match=r"empty[\s\S]*over here"):
        summarise(np.zeros((0, 4), np.float32), 1, random.Random(0), "over here")


def test_channels_that_change_are_refused() -> None:
    parts = [summarise(np.ones((2, width), np.float32), 1, random.Random(0), "") for width in (3, 4)]
    with pytest.raises(BackendError, match=r"number of channels[\s\S]*over here[\s\S]*3, 4"):
        merge(parts, "over here")


def test_one_row_and_signs() -> None:
    part = summarise(np.array([[-3, 0, 2]], np.float32), 4, random.Random(0), "")
    assert part.absmax.tolist() == [3, 0, 2]
    assert not np.signbit(part.absmax).any()
    assert part.rows.tolist() == [[-3, 0, 2]]
    assert part.weights.tolist() == [1]


def test_fewer_rows_are_not_only_outliers() -> None:
    """Rows come in groups of five, the outlier first: every fifth would be outliers only."""
    weights = np.tile(np.float32([1, 9, 9, 9, 9]), 100)
    rows = np.arange(500, dtype=np.float32)[:, None]
    whole = TensorStatistics(np.float32([499]), rows, weights, 3700)
    fewer = whole.reduced(100)
    assert fewer.rows.shape == (100, 1)
    assert 5 < (fewer.weights == 1).sum() < 40
    np.testing.assert_array_equal(fewer.weights, weights[fewer.rows[:, 0].astype(int)])
    np.testing.assert_array_equal(whole.reduced(100).rows, fewer.rows)
    assert whole.reduced(500) is whole


class Large:
    """Eight tensors of 4 MB a sample, made when they are asked for."""

    stage, values, digest = "large", tuple("abcdefgh"), "digest"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, Floats]]:
        for name in self.values:
            yield name, np.full((1024, 1024), ord(name), np.float32)


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    todo = [(str(index), dict) for index in range(30)]  # 960 MB in all
    tracemalloc.start()
    try:
        found = collect(Large(), todo, tmp_path, sampling=Sampling(rows=1))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    kept_bytes = sum(each.rows.nbytes for each in found.values())
    assert kept_bytes == 30 * 8 * 2 * 4096
    assert peak_bytes < 4 * (4 << 20) + 2 * kept_bytes
