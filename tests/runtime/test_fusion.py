"""Fusion against a plain float64 formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.bundles import frame, windows
from trunkline.runtime import Ensemble
from trunkline.runtime.errors import BackendError
from trunkline.runtime.fusion import disagreement, fuse, subset


def unit_vectors(*shape: int, seed: int = 0) -> Any:
    vectors = np.random.default_rng(seed).normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def fused_scores(context: Any, action: Any) -> Any:
    return fuse(context, action)[0]


def member_scores(context: Any, action: Any) -> Any:
    return fuse(context, action)[1]


def plain_cosine(one: Any, two: Any) -> float:
    return float(one @ two / np.sqrt(one @ one) / np.sqrt(two @ two))


@pytest.mark.parametrize("members", [1, 2, 3, 7])
@pytest.mark.parametrize(("instructions", "candidates"), [(1, 1), (1, 9), (4, 5)])
def test_fused_scores(members: int, instructions: int, candidates: int) -> None:
    context = unit_vectors(members, instructions, 32)
    action = unit_vectors(members, candidates, 32, seed=1)
    scores = fused_scores(context, action)
    assert (scores.shape, scores.dtype) == ((instructions, candidates), np.float32)
    for i in range(instructions):
        for n in range(candidates):
            one = sum(context[k, i].astype(np.float64) for k in range(members)) / members
            two = sum(action[k, n].astype(np.float64) for k in range(members)) / members
            assert scores[i, n] == pytest.approx(plain_cosine(one, two), abs=1e-6)


def test_member_scores_and_disagreement() -> None:
    context, action = unit_vectors(3, 2, 16), unit_vectors(3, 4, 16, seed=1)
    scores = member_scores(context, action)
    assert (scores.shape, scores.dtype) == ((3, 2, 4), np.float32)
    for k, i, n in np.ndindex(3, 2, 4):
        assert scores[k, i, n] == pytest.approx(float(context[k, i].astype(float) @ action[k, n]), abs=1e-6)
    spread = disagreement(scores)
    assert spread.shape == (2, 4)
    for i, n in np.ndindex(2, 4):
        values = scores[:, i, n].astype(np.float64)
        assert spread[i, n] == pytest.approx(np.sqrt(np.mean((values - values.mean()) ** 2)), abs=1e-6)


def test_one_member_is_its_own_ensemble() -> None:
    context, action = unit_vectors(1, 2, 16), unit_vectors(1, 4, 16, seed=1)
    np.testing.assert_allclose(fused_scores(context, action), member_scores(context, action)[0], atol=1e-6)
    assert not disagreement(member_scores(context, action)).any()


def test_fusion_is_not_the_mean_of_the_members_scores() -> None:
    context, action = unit_vectors(3, 1, 16), unit_vectors(3, 6, 16, seed=1)
    assert np.abs(fused_scores(context, action) - member_scores(context, action).mean(axis=0)).max() > 0.01


def test_equal_vectors_score_exactly_one_at_most() -> None:
    vectors = unit_vectors(5, 50, 32)
    assert fused_scores(vectors, vectors).max() <= 1
    assert member_scores(vectors, vectors).max() <= 1
    assert fused_scores(vectors, -vectors).min() >= -1


def test_subset() -> None:
    vectors = unit_vectors(4, 2, 8)
    assert subset(vectors, None) is vectors
    np.testing.assert_array_equal(subset(vectors, [2, 0]), np.stack([vectors[2], vectors[0]]))


def test_members_that_cancel_out_give_no_score() -> None:
    one = unit_vectors(1, 3, 16)
    opposite = np.concatenate([one, -one])
    opposite[:, 1] = one[0, 1]
    with pytest.raises(BackendError, match=r"cancel out(.|\n)*context(.|\n)*members="):
        fused_scores(opposite, unit_vectors(2, 4, 16))
    with pytest.raises(BackendError, match="cancel out"):
        fused_scores(unit_vectors(2, 4, 16), opposite)


@pytest.mark.parametrize("factor", [0, 0.98, 1.02, 1e30, float("nan")])
def test_vectors_that_are_not_of_length_one(factor: float) -> None:
    vectors = unit_vectors(2, 3, 16)
    vectors[1, 2] *= np.float32(factor)
    good = unit_vectors(2, 4, 16, seed=1)
    with np.errstate(over="ignore"), pytest.raises(BackendError, match=r"not of length 1\n.*context"):
        fuse(vectors, good)
    with np.errstate(over="ignore"), pytest.raises(BackendError, match=r"not of length 1\n.*action"):
        fuse(good, vectors)


def test_vectors_that_were_rounded_to_float16_pass() -> None:
    rounded = unit_vectors(2, 300, 512).astype(np.float16).astype(np.float32)
    fused, members = fuse(rounded, rounded)
    assert fused.max() <= 1
    assert members.max() <= 1


def test_subset_of_an_ensemble(ensemble: Ensemble) -> None:
    everyone = ensemble.score(frame(), "go", windows(4))
    assert everyone.member_scores.shape == (3, 4)
    for member in range(3):
        alone = ensemble.score(frame(), "go", windows(4), members=[member])
        np.testing.assert_allclose(alone.scores, everyone.member_scores[member], atol=1e-6)
        assert not alone.disagreement.any()
    context, action = ensemble.embed(frame(), ["go"], windows(4))
    pair = ensemble.score(frame(), "go", windows(4), members=[2, 0])
    np.testing.assert_allclose(pair.scores, fused_scores(context[[0, 2]], action[[0, 2]])[0], atol=1e-6)
    assert everyone.best == int(np.argmax(everyone.scores))
