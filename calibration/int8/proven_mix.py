"""The fastest mix of int8 and float that is not only found to keep the decisions, but proved to.

1. The search finds a mix that keeps to the budget on the judging decisions.
2. Other decisions prove it, or not.
3. If not, a tighter budget is searched for, in what the proof missed, until the mix is another one, which is proved in
   its turn. There are only so many proofs: each more would make one that passes by luck more likely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from trunkline.calibration.int8.outcome import Budget, Proof, at_least
from trunkline.calibration.int8.proof import CONFIDENCE, MAX_PROOFS
from trunkline.calibration.int8.search import Assignment, Search, SearchResult
from trunkline.runtime.errors import ParityError

#: The search leaves this share of the budget to other back ends, which round a little differently.
HEADROOM = 0.1
#: What is tried for if a mix kept to the budget and did not prove it: these parts of what would just have proved it.
TIGHTER = (0.75, 0.5, 0.25)


def proven_mix(
    search: Search, budget: Budget, prove: Callable[[Assignment], Proof], where: str
) -> tuple[SearchResult, Proof]:
    """The fastest mix that keeps to the budget on the judging decisions, and of others promises what was asked.

    Args:
        search: finds a mix within a budget.
        budget: what is asked.
        prove: takes decisions that nothing was chosen by.
        where: name of the samples.

    Raises:
        ParityError: no mix keeps to the budget on the judging decisions, or none is proved to on others.
    """
    proofs: list[Proof] = []
    tried: Assignment | None = None
    for aim in aims(budget, proofs):
        found = search.run(aim)
        if not _met(found):
            break
        if found.assignment == tried:
            continue
        tried = found.assignment
        proofs.append(prove(found.assignment))
        if proofs[-1].met:
            return found, proofs[-1]
        if len(proofs) == MAX_PROOFS:
            break
    raise _unproven(proofs, budget, where) if proofs else _missed(found, budget, where)


def aims(budget: Budget, proofs: Sequence[Proof]) -> Iterator[Budget]:
    """The budget less what is left to other back ends; then ever smaller parts of what would just have been proved.

    Scores must move less, too, if it was winners that were lost: few decisions may hold no loser to tell mixes apart.
    """
    aim = replace(budget, max_score_change=budget.max_score_change * (1 - HEADROOM))
    yield aim
    for part in TIGHTER:
        last = proofs[-1]
        part *= (1 - last.asked) / max(1 - last.asked, 1 - min(last.winners, last.scores))
        yield Budget(aim.max_score_change * part, 1 - (1 - aim.min_agreement) * part)


def _met(found: SearchResult) -> bool:
    """Whether the budget holds, with something in int8."""
    return found.met and any("int8" in choice.values() for choice in found.assignment.values())


def _unproven(proofs: Sequence[Proof], budget: Budget, where: str) -> ParityError:
    best = max(proofs, key=lambda proof: min(proof.winners, proof.scores))
    asked = f"{best.asked:.1%} of all decisions"
    return ParityError(
        "no choice of int8 layers was proved to keep the decisions within the budget",
        where=where,
        expected=f"{asked} with the same winner, and {asked} with scores within {budget.max_score_change:g}, "
        f"{CONFIDENCE:.0%} sure",
        found=f"of {best.damage.decisions} decisions that nothing was chosen by, {best.damage.winners_kept} kept their "
        f"winner and {best.scores_within} their scores, which proves {at_least(best.winners)} and "
        f"{at_least(best.scores)}; the winners that were lost cost {best.damage.max_regret:.2g} at most",
        fix=f"allow more (--min-agreement {math.floor(min(best.winners, best.scores) * 100) / 100}, "
        "--max-score-change), give more samples, or export float32",
    )


def _missed(found: SearchResult, budget: Budget, where: str) -> ParityError:
    damage = found.all_int8.fused
    return ParityError(
        "no choice of int8 layers keeps the decisions within the budget",
        where=where,
        expected=f"scores within {budget.max_score_change:g}, less {HEADROOM:.0%} that is left to other back ends, and "
        f"the same winner in {budget.min_agreement:.1%} of decisions",
        found=f"in int8 throughout, a score moves by {damage.max_score_change:.3g} and winners agree in "
        f"{damage.winner_agreement:.1%} of {damage.decisions}; only without int8 arithmetic does the budget hold",
        fix="allow more (--max-score-change, --min-agreement), calibrate on more samples, or export float32",
    )
