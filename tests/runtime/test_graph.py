"""What did not change is not computed again, what changed is, and caches stay within their bounds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundles import frame, windows
from trunkline.runtime import CacheLimits, Ensemble, load
from trunkline.runtime.graph import ContentNames, PartCache

ROW = np.zeros(25, np.float32)  # 100 bytes


class TestPartCache:
    def test_entries_are_bounded(self) -> None:
        cache = PartCache(CacheLimits(entries=3, bytes=1 << 20))
        for key in range(10):
            cache.put([key], [ROW])
            assert len(cache) <= 3
        assert [row is not None for row in cache.get(range(10))] == [False] * 7 + [True] * 3

    def test_bytes_are_bounded(self) -> None:
        cache = PartCache(CacheLimits(entries=100, bytes=350))
        cache.put(range(10), [ROW] * 10)
        assert (len(cache), cache.bytes) == (3, 300)

    def test_a_row_that_is_too_large_is_not_kept_and_evicts_nothing(self) -> None:
        cache = PartCache(CacheLimits(entries=100, bytes=350))
        cache.put(["small"], [ROW])
        cache.put(["large"], [np.zeros(1000, np.float32)])
        assert cache.get(["small", "large"])[1] is None
        assert (len(cache), cache.bytes) == (1, 100)

    def test_the_oldest_unused_row_goes_first(self) -> None:
        cache = PartCache(CacheLimits(entries=2))
        cache.put(["a", "b"], [ROW, ROW])
        cache.get(["a"])
        cache.put(["c"], [ROW])
        assert [row is not None for row in cache.get(["a", "b", "c"])] == [True, False, True]

    def test_replacing_a_row_counts_it_once(self) -> None:
        cache = PartCache(CacheLimits())
        cache.put(["a", "a"], [ROW, ROW])
        cache.put(["a"], [np.zeros(50, np.float32)])
        assert (len(cache), cache.bytes) == (1, 200)
        cache.clear()
        assert (len(cache), cache.bytes) == (0, 0)

    @pytest.mark.parametrize("limits", [CacheLimits(entries=0), CacheLimits(bytes=0)])
    def test_no_cache_at_all(self, limits: CacheLimits) -> None:
        cache = PartCache(limits)
        cache.put(["a"], [ROW])
        assert cache.get(["a"]) == [None]


class Counted:
    """How many rows each stage computed since the last look."""

    def __init__(self, ensemble: Ensemble) -> None:
        self._ensemble = ensemble
        self._seen = self._now()

    def _now(self) -> dict[str, int]:
        return {name: counts.computed for name, counts in self._ensemble.counts().items()}

    def __call__(self) -> dict[str, int]:
        now = self._now()
        new = {name: now[name] - self._seen[name] for name in now if now[name] != self._seen[name]}
        self._seen = now
        return new


@pytest.fixture
def counted(ensemble: Ensemble) -> Counted:
    ensemble.forget()
    return Counted(ensemble)


@pytest.fixture
def small(bundle: Path) -> Iterator[Ensemble]:
    """Keeps one row per stage."""
    with load(bundle, cache=CacheLimits(entries=1)) as ensemble:
        yield ensemble


def test_first_call_computes_each_stage_once(ensemble: Ensemble, counted: Counted) -> None:
    ensemble.score(frame(), "go", windows(5))
    assert counted() == {"vision": 1, "text": 1, "context": 1, "action": 1}


def test_same_call_computes_nothing(ensemble: Ensemble, counted: Counted) -> None:
    first = ensemble.score(frame(), "go", windows(5))
    counted()
    second = ensemble.score(frame(), "go", windows(5))
    assert counted() == {}
    np.testing.assert_array_equal(first.scores, second.scores)


def test_new_frame(ensemble: Ensemble, counted: Counted) -> None:
    ensemble.score(frame(0), "go", windows(5))
    counted()
    ensemble.score(frame(1), "go", windows(5))
    assert counted() == {"vision": 1, "context": 1}


def test_new_candidates_on_the_same_frame(ensemble: Ensemble, counted: Counted) -> None:
    ensemble.score(frame(), "go", windows(5))
    counted()
    ensemble.score(frame(), "go", windows(5, seed=1))
    assert counted() == {"action": 1}


def test_candidates_are_known_as_a_set(ensemble: Ensemble, counted: Counted) -> None:
    old = windows(4)
    ensemble.score(frame(), "go", old)
    counted()
    scores = ensemble.score(frame(), "go", old[::-1]).scores
    assert counted() == {"action": 1}
    np.testing.assert_allclose(ensemble.score(frame(), "go", old).scores, scores[::-1], atol=1e-6)
    assert counted() == {}


def test_rephrasings(ensemble: Ensemble, counted: Counted) -> None:
    rephrasings = [f"put the block {index}" for index in range(8)]
    together = ensemble.score(frame(), rephrasings, windows(3)).scores
    assert counted() == {"vision": 1, "text": 8, "context": 8, "action": 1}
    one_by_one = [ensemble.score(frame(), each, windows(3)).scores for each in rephrasings]
    assert counted() == {}
    np.testing.assert_allclose(together, np.stack(one_by_one), atol=1e-6)
    ensemble.score(frame(1), [*rephrasings[::-1], "something new"], windows(3))
    assert counted() == {"vision": 1, "text": 1, "context": 9}


def test_order_of_cached_and_new_instructions(ensemble: Ensemble, counted: Counted) -> None:
    known = ensemble.score(frame(), ["b", "d"], windows(3)).scores
    mixed = ensemble.score(frame(), ["a", "b", "c", "d"], windows(3)).scores
    np.testing.assert_allclose(mixed[[1, 3]], known, atol=1e-6)
    ensemble.forget()
    np.testing.assert_allclose(ensemble.score(frame(), ["a", "b", "c", "d"], windows(3)).scores, mixed, atol=1e-6)


def test_patches_are_not_needed_while_contexts_are_known(small: Ensemble) -> None:
    counted = Counted(small)
    small.score(frame(0), "go", windows(1))
    small._graph.nodes["vision"].cache.clear()
    small._graph.nodes["text"].cache.clear()
    counted()
    small.score(frame(0), "go", windows(1, seed=1))
    assert counted() == {"action": 1}


def test_evicted_rows_are_computed_again_and_right(small: Ensemble, ensemble: Ensemble) -> None:
    counted = Counted(small)
    expected = ensemble.score(frame(0), ["a", "b"], windows(3)).scores
    for _ in range(2):
        np.testing.assert_allclose(small.score(frame(0), ["a", "b"], windows(3)).scores, expected, atol=1e-6)
        small.score(frame(1), "c", windows(2, seed=1))
    assert counted()["vision"] == 4
    assert all(len(node.cache) <= 1 for node in small._graph.nodes.values())


def test_buffer_that_is_overwritten_in_place(ensemble: Ensemble, counted: Counted) -> None:
    buffer = frame(0)
    first = ensemble.score(buffer, "go", windows(3)).scores
    buffer[:] = frame(1)
    counted()
    second = ensemble.score(buffer, "go", windows(3)).scores
    assert counted() == {"vision": 1, "context": 1}
    assert np.abs(first - second).max() > 1e-4
    np.testing.assert_allclose(ensemble.score(frame(1), "go", windows(3)).scores, second, atol=1e-6)


def test_one_pixel_is_another_frame(ensemble: Ensemble, counted: Counted) -> None:
    image = frame()
    ensemble.score(image, "go", windows(1))
    image[-1, -1, -1] ^= 1
    counted()
    ensemble.score(image, "go", windows(1))
    assert counted() == {"vision": 1, "context": 1}


def test_equal_bytes_of_another_shape_are_another_frame(ensemble: Ensemble, counted: Counted) -> None:
    ensemble.score(frame(height=40, width=60), "go", windows(1))
    counted()
    ensemble.score(frame(height=40, width=60).reshape(60, 40, 3), "go", windows(1))
    assert counted() == {"vision": 1, "context": 1}


def test_strided_arrays_and_pictures_are_known_by_content(ensemble: Ensemble, counted: Counted) -> None:
    image = frame()
    ensemble.score(image, "go", windows(1))
    counted()
    ensemble.score(np.repeat(image, 2, axis=0)[::2], "go", windows(1))
    assert counted() == {}
    picture = Image.fromarray(image)
    ensemble.score(picture, "go", windows(1))
    ensemble.score(picture.copy(), "go", windows(1))
    assert counted()["vision"] == 1


def test_the_driver_may_write_the_next_frame_while_this_one_is_scored(
    ensemble: Ensemble, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next frame's patches would be remembered as this frame's."""
    expected = ensemble.score(frame(0), "go", windows(2)).scores
    ensemble.forget()
    buffer = frame(0)
    original = ensemble._graph.evaluate

    def evaluate(tensor: str, sources: object) -> object:
        buffer[:] = frame(1)
        return original(tensor, sources)  # type: ignore[arg-type]

    monkeypatch.setattr(ensemble._graph, "evaluate", evaluate)
    np.testing.assert_allclose(ensemble.score(buffer, "go", windows(2)).scores, expected, atol=1e-6)
    monkeypatch.undo()
    np.testing.assert_allclose(ensemble.score(frame(0), "go", windows(2)).scores, expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_results_cannot_be_used_to_change_what_is_remembered(ensemble: Ensemble, count: int) -> None:
    ensemble.forget()
    expected = ensemble.score(frame(), "go", windows(count)).scores
    ensemble.forget()
    for _ in range(2):
        for vectors in ensemble.embed(frame(), ["go"], windows(count)):
            with contextlib.suppress(ValueError):  # read-only, or a copy
                vectors[:] = 7
    np.testing.assert_allclose(ensemble.score(frame(), "go", windows(count)).scores, expected, atol=1e-6)


def test_forget(ensemble: Ensemble, counted: Counted) -> None:
    ensemble.score(frame(), "go", windows(2))
    ensemble.forget()
    counted()
    ensemble.score(frame(), "go", windows(2))
    assert counted() == {"vision": 1, "text": 1, "context": 1, "action": 1}


def test_counts_of_reuse_and_runs(bundle: Path) -> None:
    with load(bundle) as ensemble:
        ensemble.score(frame(), ["a", "b"], windows(3))
        ensemble.score(frame(), ["a", "b"], windows(4))
        counts = ensemble.counts()
    assert (counts["context"].computed, counts["context"].reused, counts["context"].runs) == (2, 2, 1)
    assert (counts["action"].computed, counts["action"].reused) == (2, 0)
    assert (counts["vision"].runs, counts["text"].runs) == (1, 1)
    assert counts["vision"].seconds > 0


class TestContentNames:
    def test_equal_contents_have_one_name(self) -> None:
        names = ContentNames(CacheLimits(entries=3))
        first = names.name(b"abc", (3,))
        assert names.name(b"abd", (3,)) != first
        assert names.name(bytes(bytearray(b"abc")), (3,)) == first

    def test_the_form_is_part_of_the_content(self) -> None:
        names = ContentNames(CacheLimits())
        assert names.name(b"abcdef", (2, 3)) != names.name(b"abcdef", (3, 2))

    def test_the_oldest_unused_is_forgotten_and_named_anew(self) -> None:
        names = ContentNames(CacheLimits(entries=2))
        first = names.name(b"a", None)
        names.name(b"b", None)
        assert names.name(b"a", None) == first
        second = names.name(b"c", None)  # forgets b
        assert names.name(b"a", None) == first
        assert names.name(b"b", None) > second

    def test_bytes_are_bounded(self) -> None:
        names = ContentNames(CacheLimits(entries=100, bytes=10))
        large = names.name(b"x" * 11, None)
        assert names.name(b"x" * 11, None) != large
        small = names.name(b"x" * 6, None)
        names.name(b"y" * 6, None)
        assert names.name(b"x" * 6, None) != small
