"""What may be promised of decisions that nobody has judged, and the mix of layers that is proved to keep it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.samples_kit import InMemory, scene
from trunkline.calibration.defaults import INT8_AGREEMENT, PROVING_SAMPLES
from trunkline.calibration.int8 import proof as proofs
from trunkline.calibration.int8.judge import damage
from trunkline.calibration.int8.outcome import Budget, Damage, Proof, promised
from trunkline.calibration.int8.proof import (
    DOUBT,
    MAX_DECISIONS,
    decisions_needed,
    few_proving,
    least_decisions,
    lower_bound,
    provable,
    prove,
)
from trunkline.calibration.int8.proven_mix import HEADROOM, proven_mix
from trunkline.calibration.int8.search import Assignment, SearchResult
from trunkline.calibration.samples.synthetic import windows
from trunkline.runtime import Ensemble
from trunkline.runtime.errors import ParityError

BUDGET = Budget(max_score_change=0.05, min_agreement=0.97)


@pytest.mark.parametrize(
    ("hits", "total", "bound"),
    # Lower ends of two-sided 95 % Clopper-Pearson intervals, which are one-sided ones with a doubt of 2.5 %.
    [(0, 10, 0.0), (10, 10, 0.691503), (5, 10, 0.187086), (95, 100, 0.887165), (133, 137, 0.926932), (0, 0, 0.0)],
)
def test_bounds_of_the_literature(hits: int, total: int, bound: float) -> None:
    assert lower_bound(hits, total) == pytest.approx(bound, abs=1e-6)


def binomial(hits: int, total: int, share: float) -> float:
    return math.comb(total, hits) * share**hits * (1 - share) ** (total - hits)


@pytest.mark.parametrize("total", [1, 8, 60, 137, 300])
def test_a_bound_is_wrong_as_seldom_as_it_says(total: int) -> None:
    bounds = [lower_bound(hits, total) for hits in range(total + 1)]
    assert bounds == sorted(bounds)
    for share in (0.3, 0.5, 0.9, 0.95, 0.97, 0.99, 0.999):
        wrong = sum(binomial(hits, total, share) for hits, bound in enumerate(bounds) if bound > share)
        assert wrong <= DOUBT + 1e-12


def test_how_many_decisions_a_promise_needs() -> None:
    assert decisions_needed(INT8_AGREEMENT) == PROVING_SAMPLES == 1145
    assert least_decisions(0.97) == 122
    assert lower_bound(122, 122) >= 0.97 > lower_bound(121, 121)
    assert provable(0.97, 122) == 0.97
    assert provable(0.97, 60) == lower_bound(60, 60) < 0.95
    for share in (0.5, 0.9, 0.95, 0.97):
        needed = decisions_needed(share)
        failures = math.ceil((1 - share) * 2 / 3 * needed)
        assert lower_bound(needed - failures, needed) >= share
        assert least_decisions(share) < needed < decisions_needed(share + 0.01)
    assert decisions_needed(1.0) == least_decisions(1.0) == MAX_DECISIONS
    assert least_decisions(0.0) == 1


def test_what_few_decisions_cannot_promise_is_said_in_numbers() -> None:
    assert few_proving(0.97, 1145) is None
    weak, lucky = few_proving(0.97, 60), few_proving(0.97, 137)
    assert weak is not None
    assert lucky is not None
    assert (weak.kind, weak.value, weak.limit) == ("few_proving", 60, 1145)
    assert "only that 94.0% of all decisions are kept, where 97.0% was asked for; 122 would be the least" in str(weak)
    assert "only 137 samples prove: they prove that 97.0% of all decisions are kept only if at most 0 of" in str(lucky)
    assert "1145 are advised" in str(lucky)


def test_damage_counts_ties_as_kept_and_says_what_was_lost() -> None:
    before = [np.array(each, np.float32) for each in ([0.9, 0.9, 0.1], [0.5, 0.4], [0.3, 0.2])]
    after = [np.array(each, np.float32) for each in ([0.8, 0.9, 0.1], [0.41, 0.42], [0.3, 0.25])]
    found = damage(before, after)
    assert (found.decisions, found.winners_kept) == (3, 2)
    assert found.winner_agreement == pytest.approx(2 / 3)
    assert found.max_regret == pytest.approx(0.1)
    assert found.mean_regret == pytest.approx(0.1 / 3)
    assert found.max_score_change == pytest.approx(0.1)


def test_a_proof_does_not_depend_on_how_many_decisions_are_taken_at_once(
    ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions = ensemble.bundle.manifest.actions
    source = InMemory([scene(index) for index in range(7)], histories=windows(np.random.default_rng(1), 6, actions))
    samples, seen = [source[index] for index in range(7)], []
    whole = prove(ensemble, {}, samples, BUDGET)
    monkeypatch.setattr(proofs, "_AT_ONCE", 3)
    assert prove(ensemble, {}, samples, BUDGET, lambda *each: seen.append(each)) == whole
    assert (whole.damage.decisions, whole.damage.winners_kept, whole.scores_within) == (7, 7, 7)
    assert whole.damage.max_score_change == 0.0
    assert whole.winners == whole.scores == whole.asked == lower_bound(7, 7)
    assert whole.met
    assert seen == [("proving", done, 7) for done in (0, 3, 6, 7)]


def made_up(kept: int, within: int | None = None, total: int = 522) -> Proof:
    within = total if within is None else within
    done = Damage(total, 0.04, 0.01, kept, 0.0001, 0.02, 0.99)
    return Proof(done, provable(0.97, total), lower_bound(kept, total), within, lower_bound(within, total))


class Scripted:
    """A search that finds what it was told to, in order, and remembers what it was asked."""

    def __init__(self, *found: Assignment | None) -> None:
        self._found, self.asked = list(found), list[Budget]()

    def run(self, budget: Budget) -> SearchResult:
        self.asked.append(budget)
        mix = self._found.pop(0)
        verdict = type("Verdict", (), {"fused": Damage(137, 0.2, 0.1, 130, 0.001, 0.05, 0.9)})()
        return SearchResult(mix or {"vision": {"a": "stored"}}, verdict, verdict, mix is not None, ())


ALL = {"vision": {"a": "int8", "b": "int8"}}
SOME = {"vision": {"a": "int8", "b": "stored"}}


def chosen(search: Scripted, *found: Proof) -> tuple[Assignment, Proof]:
    left = list(found)
    result, proof = proven_mix(search, BUDGET, lambda mix: left.pop(0), "dataset.json")  # type: ignore[arg-type]
    assert not left
    return result.assignment, proof


def test_the_fastest_mix_that_is_proved_ships() -> None:
    search = Scripted(ALL)
    assert chosen(search, made_up(518)) == (ALL, made_up(518))
    assert search.asked == [Budget(0.05 * (1 - HEADROOM), 0.97)]


def test_what_is_not_proved_makes_way_for_a_cleaner_mix() -> None:
    search, first = Scripted(ALL, ALL, SOME), made_up(505)
    assert chosen(search, first, made_up(520)) == (SOME, made_up(520))
    missed = 0.03 / (1 - first.winners)
    assert missed < 1
    parts = [1, 0.75 * missed, 0.5 * missed]
    assert [each.max_score_change / 0.05 / (1 - HEADROOM) for each in search.asked] == pytest.approx(parts)
    assert [(1 - each.min_agreement) / 0.03 for each in search.asked] == pytest.approx(parts)
    search, first = Scripted(ALL, SOME), made_up(522, within=500)
    chosen(search, first, made_up(520))
    part = 0.75 * 0.03 / (1 - first.scores)
    assert search.asked[1].max_score_change == pytest.approx(0.05 * (1 - HEADROOM) * part)
    assert search.asked[1].min_agreement == pytest.approx(1 - 0.03 * part)


def test_only_so_many_mixes_are_proved() -> None:
    with pytest.raises(ParityError) as caught:
        chosen(Scripted(ALL, SOME), made_up(500), made_up(508, within=515))
    text = str(caught.value)
    assert "no choice of int8 layers was proved to keep the decisions within the budget" in text
    assert "of 522 decisions that nothing was chosen by, 508 kept their winner and 515 their scores" in text
    assert "--min-agreement 0.95" in text
    assert caught.value.exit_code == 3


def test_a_budget_that_the_judging_decisions_refuse_is_not_proved() -> None:
    with pytest.raises(ParityError, match="no choice of int8 layers keeps the decisions within the budget"):
        chosen(Scripted(None))
    with pytest.raises(ParityError, match="was proved"):
        chosen(Scripted(ALL, None), made_up(500))


def test_a_promise_in_words() -> None:
    found, promise = promised(made_up(518), BUDGET)
    assert "of 522 decisions that nothing was chosen by, 518 keep their winner and 522 their scores" in found
    assert "other winners cost 0.0001 of a score on average, 0.02 at most" in found
    assert promise == (
        "promised with 95 % confidence: at least 98.0% of all decisions keep their winner, and 99.2% their scores "
        "(97.0% asked for)"
    )
