"""Variety of embeddings: numbers that follow by hand, and the demo's."""

from __future__ import annotations

import numpy as np
import pytest

from trunkline.calibration.samples.coverage import coverage
from trunkline.runtime.errors import InputError


def kinds(vectors: np.ndarray) -> list[str]:
    return [warning.kind for warning in coverage(vectors).warnings]


def test_orthogonal_vectors_count_each() -> None:
    found = coverage(np.eye(12) * 3)
    assert found.effective_number == pytest.approx(12)
    assert found.mean_cosine == pytest.approx(0)
    assert (found.samples, found.near_duplicates, found.warnings) == (12, 0, ())


def test_equal_vectors_count_as_one() -> None:
    found = coverage(np.tile(np.float32([1, 2, 3]), (50, 1)))
    assert found.effective_number == pytest.approx(1)
    assert found.mean_cosine == pytest.approx(1)
    assert found.near_duplicates == 50
    assert [warning.kind for warning in found.warnings] == ["narrow", "near_duplicates"]
    assert "count as 1.0 different situations" in str(found.warnings[0])
    assert "50 of 50 samples" in str(found.warnings[1])


def test_lengths_and_order_do_not_matter() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(30, 8))
    one = coverage(vectors)
    two = coverage((vectors * random.uniform(0.1, 9, (30, 1)))[::-1])
    assert one.effective_number == pytest.approx(two.effective_number)
    assert one.near_duplicates == two.near_duplicates


def test_grain_around_one_situation_is_no_variety() -> None:
    random = np.random.default_rng(0)
    assert kinds(random.normal(size=32) + 0.005 * random.normal(size=(100, 32))) == ["narrow", "near_duplicates"]


def test_a_few_recordings_are_near_duplicates() -> None:
    random = np.random.default_rng(0)
    scenes = random.normal(size=(8, 64))
    assert kinds(np.repeat(scenes, 16, axis=0) + 0.01 * random.normal(size=(128, 64))) == ["near_duplicates"]
    assert kinds(random.normal(size=(128, 64))) == []


def test_more_vectors_than_a_block_of_rows() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(2500, 16))
    vectors[2400] = vectors[3] * 2
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(2500)
    found = coverage(vectors)
    assert found.near_duplicates == int((cosines.max(axis=1) > 0.99).sum()) >= 2
    assert found.mean_cosine == pytest.approx(cosines[~np.eye(2500, dtype=bool)].mean(), abs=1e-9)


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (3, 4), (5,), (3, 0)])
@pytest.mark.parametrize("value", [0, np.nan])
def test_what_cannot_be_measured_is_refused(shape: tuple[int, ...], value: float) -> None:
    with pytest.raises(InputError, match=r"(?s)coverage cannot be measured.*shape"):
        coverage(np.full(shape, value))
