"""Decisions and selections against plain formulas over the members' vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.bundles import frame, windows
from trunkline.runtime import Ensemble
from trunkline.runtime.errors import InputError

REPHRASINGS = ["put the red block in the bowl", "place the block into the bowl", "move the cube to the bowl"]


def fused(ensemble: Ensemble, image: Any, instructions: list[str], histories: Any) -> Any:
    """(I, N) float64: cosine of the normalised means, one pair at a time."""
    context, action = (part.astype(np.float64) for part in ensemble.embed(image, instructions, histories))
    one, two = context.mean(axis=0), action.mean(axis=0)
    scores = [[c @ a / np.sqrt(c @ c) / np.sqrt(a @ a) for a in two] for c in one]
    return np.array(scores)


def test_a_decision_for_one_instruction(ensemble: Ensemble) -> None:
    decision = ensemble.score(frame(), REPHRASINGS[0], windows(6))
    expected = fused(ensemble, frame(), REPHRASINGS[:1], windows(6))[0]
    np.testing.assert_allclose(decision.scores, expected, atol=1e-6)
    assert (decision.scores.shape, decision.scores.dtype) == ((6,), np.float32)
    assert decision.best == int(expected.argmax())
    assert decision.instruction == 0
    assert decision.member_scores.shape == (3, 6)
    np.testing.assert_allclose(decision.disagreement, decision.member_scores.std(axis=0), atol=1e-7)


def test_a_decision_for_several_instructions(ensemble: Ensemble) -> None:
    decision = ensemble.score(frame(), REPHRASINGS, windows(6))
    expected = fused(ensemble, frame(), REPHRASINGS, windows(6))
    np.testing.assert_allclose(decision.scores, expected, atol=1e-6)
    assert (decision.instruction, decision.best) == np.unravel_index(expected.argmax(), expected.shape)
    assert decision.member_scores.shape == (3, 3, 6)
    assert decision.disagreement.shape == (3, 6)


def test_the_first_of_equal_scores_wins(ensemble: Ensemble) -> None:
    """Equal candidates may differ in the last bit: libraries add up full vectors and remainders in different orders."""
    decision = ensemble.score(frame(), "go", np.repeat(windows(1), 5, axis=0))
    scores = decision.scores.tolist()
    assert decision.best == scores.index(max(scores))
    assert max(scores) - min(scores) < 1e-7


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_selection_with_one_instruction(ensemble: Ensemble, repeats: int) -> None:
    """As the newest published version: the group with the highest mean, then its best candidate."""
    histories = windows(8)
    chosen = ensemble.select(frame(), REPHRASINGS[0], histories, repeats=repeats)
    scores = fused(ensemble, frame(), REPHRASINGS[:1], histories)[0].reshape(-1, repeats)
    group = int(scores.mean(axis=1).argmax())
    assert (chosen.group, chosen.best) == (group, group * repeats + int(scores[group].argmax()))
    assert chosen.score == pytest.approx(scores[group].max(), abs=1e-6)
    assert chosen.instruction == REPHRASINGS[0]
    np.testing.assert_allclose(chosen.scores, scores, atol=1e-6)
    np.testing.assert_allclose(chosen.group_scores, scores.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_selection_judges_each_group_by_its_own_instruction(ensemble: Ensemble, seed: int) -> None:
    histories = windows(6, seed=seed)
    chosen = ensemble.select(frame(seed), REPHRASINGS, histories, repeats=2)
    pairs = fused(ensemble, frame(seed), REPHRASINGS, histories)
    scores = np.stack([pairs[group, 2 * group : 2 * group + 2] for group in range(3)])
    group = int(scores.mean(axis=1).argmax())
    assert (chosen.group, chosen.best) == (group, 2 * group + int(scores[group].argmax()))
    assert chosen.instruction == REPHRASINGS[group]
    np.testing.assert_allclose(chosen.scores, scores, atol=1e-6)


def test_one_instruction_per_candidate_is_the_published_calling_form(ensemble: Ensemble) -> None:
    histories = windows(6)
    per_candidate = [name for name in REPHRASINGS for _ in range(2)]
    one = ensemble.select(frame(), per_candidate, histories, repeats=2)
    two = ensemble.select(frame(), REPHRASINGS, histories, repeats=2)
    assert (one.best, one.group, one.instruction) == (two.best, two.group, two.instruction)


@pytest.mark.parametrize(
    ("instructions", "count", "repeats", "decisive"),
    [
        ("go", 5, 2, "do not divide into groups"),
        ("go", 4, 0, "whole number"),
        (REPHRASINGS, 4, 2, "do not fit the groups"),
        (["a", "b", "b", "b"], 4, 2, "different instructions"),
    ],
)
def test_selection_refuses(ensemble: Ensemble, instructions: Any, count: int, repeats: int, decisive: str) -> None:
    with pytest.raises(InputError, match=decisive):
        ensemble.select(frame(), instructions, windows(count), repeats=repeats)


def test_decisions_do_not_share_memory_with_caches(ensemble: Ensemble) -> None:
    first = ensemble.score(frame(), "go", windows(3))
    kept = first.scores.copy()
    first.scores[:] = 0
    first.member_scores[:] = 0
    np.testing.assert_array_equal(ensemble.score(frame(), "go", windows(3)).scores, kept)
