"""What may be promised of decisions that nobody has judged.

A share that was counted on a few decisions is no promise: 133 of 137 are 97.1 %, and the ensemble may keep 93 % of all
others. So whatever the search found is held against decisions that neither it nor the ranges have seen, and what is
promised is the lower end of a one-sided 95 % interval (Clopper and Pearson 1934, exact for every number of decisions).
The same bound serves scores: k of n decisions moved a score further than allowed, so at most so many of all others do.
With k = 0 that is the distribution-free bound of the largest of n (Wilks 1941).

It holds for decisions drawn as these were, independently of each other. The draw spreads them over pictures and
episodes; frames of one episode resemble each other, so that ten episodes say less than their frames' number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from trunkline.calibration.int8.judge import Floats, Judge, damage
from trunkline.calibration.int8.outcome import Budget, Proof, at_least
from trunkline.calibration.int8.stage_inputs import StageInputs
from trunkline.calibration.samples.sample import CalibrationSample
from trunkline.calibration.samples.sample_warnings import SampleWarning
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.ensemble import Ensemble
from trunkline.runtime.progress import Progress, silent

#: How sure a promise is.
CONFIDENCE = 0.95
#: Mixes of layers that may be proved one after the other. Each gets its part of the doubt (Bonferroni).
MAX_PROOFS = 2
#: Chance that one proof passes by luck.
DOUBT = (1 - CONFIDENCE) / MAX_PROOFS
#: Of the failures that are allowed, this part is taken to occur: proving more would take a multiple of decisions.
LIKELY = 2 / 3
#: More decisions than this are not drawn unless somebody asks for them.
MAX_DECISIONS = 2000
#: Decisions that are taken at once: their patches are in memory together.
_AT_ONCE = 256


def lower_bound(hits: int, total: int) -> float:
    """The share of all decisions that is at least like these ``hits`` of ``total``, with a doubt of :data:`DOUBT`."""
    low, high = 0.0, hits / total if total else 0.0
    for _ in range(60):  # halvings; beyond float64's precision
        middle = (low + high) / 2
        low, high = (middle, high) if _luck(total - hits, total, middle) <= DOUBT else (low, middle)
    return low


def provable(share: float, total: int) -> float:
    """What may be asked of ``total`` decisions: ``share``, or what they prove where none of them fails."""
    return min(share, lower_bound(total, total))


def decisions_needed(share: float) -> int:
    """Decisions that prove ``share`` if two thirds of the failures that it allows occur; :data:`MAX_DECISIONS` at most.

    With fewer, an ensemble that is good enough would too often be refused by bad luck.
    """
    for total in range(1, MAX_DECISIONS):
        if _luck(math.ceil((1 - share) * LIKELY * total), total, share) <= DOUBT:
            return total
    return MAX_DECISIONS


def least_decisions(share: float) -> int:
    """Decisions that prove ``share`` if none of them fails; :data:`MAX_DECISIONS` at most."""
    if share >= 1:
        return MAX_DECISIONS
    return min(MAX_DECISIONS, max(1, math.ceil(math.log(DOUBT) / math.log(share)))) if share > 0 else 1


def few_proving(share: float, total: int) -> SampleWarning | None:
    """What so few decisions cannot promise, or only with luck, if ``share`` is asked for; None if they are enough."""
    wanted, least = decisions_needed(share), least_decisions(share)
    if total >= wanted:
        return None
    if total >= least:
        allowed = max(k for k in range(total) if _luck(k, total, share) <= DOUBT)
        outcome = f"they prove that {share:.1%} of all decisions are kept only if at most {allowed} of them fail"
    else:
        outcome = (
            f"they can promise only that {at_least(provable(share, total))} of all decisions are kept, where "
            f"{share:.1%} was asked for; {least} would be the least for that"
        )
    return SampleWarning("few_proving", f"only {total} samples prove: {outcome}; {wanted} are advised", total, wanted)


def prove(
    ensemble: Ensemble,
    replaced: Mapping[str, StageFiles],
    samples: Sequence[CalibrationSample],
    budget: Budget,
    progress: Progress = silent,
) -> Proof:
    """Takes decisions that nothing was chosen by, and says what they promise.

    Args:
        ensemble: the float32 bundle, loaded.
        replaced: stages in int8.
        samples: of the decisions, at least 1.
        budget: what is asked.
        progress: counts decisions.
    """
    reference: list[Floats] = []
    found: list[Floats] = []
    for start in range(0, len(samples), _AT_ONCE):
        progress("proving", start, len(samples))
        with StageInputs(ensemble, samples[start : start + _AT_ONCE]) as inputs:
            verdict = Judge(ensemble, inputs.whole()).judge(replaced)
        reference += verdict.reference
        found += verdict.found
    progress("proving", len(samples), len(samples))
    total = len(samples)
    done = damage(reference, found)
    within = sum(
        float(np.abs(one - two).max()) <= budget.max_score_change for one, two in zip(reference, found, strict=True)
    )
    return Proof(
        damage=done,
        asked=provable(budget.min_agreement, total),
        winners=lower_bound(done.winners_kept, total),
        scores_within=within,
        scores=lower_bound(within, total),
    )


def _luck(failures: int, total: int, share: float) -> float:
    """Chance of so few failures or fewer in ``total`` decisions, if ``share`` of all decisions succeed."""
    if failures >= total or share <= 0:
        return 1.0 if failures >= total else 0.0
    if share >= 1:
        return 1.0
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        + k * math.log1p(-share) + (total - k) * math.log(share)
        for k in range(failures + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(math.exp(each) for each in logs))
