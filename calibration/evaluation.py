"""The published evaluation: does the right window of actions win against windows from other moments?

Whatever scores - PyTorch, a bundle, a compiled engine - is asked through one function on the same cases, so that two
results differ only by who scored.

Kept from the published protocol: samples drawn at random with seed 42, the right window among up to ``pool - 1``
others that are not equal to it, in random order; rank = 1 + how many score strictly higher; distance = Euclidean norm
of the flattened difference between chosen and right window, 0 when right.

Different, on purpose: the other windows are distinct from each other, where the published pools may hold one window
several times; they are drawn from the distinct windows of all samples, each as likely as any other; the generator is
our own, so that the cases depend on the arguments alone and not on what else used ``random``. Hence the cases of one
seed are not those of the published script. Accuracy comes with its 95 % interval: 50 decisions tell little.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.calibration.samples.dataset import Dataset, Sample
from trunkline.calibration.samples.pools import WindowPool
from trunkline.calibration.samples.sample import SensorExcerpt
from trunkline.runtime.errors import DatasetError, ImageError, InputError
from trunkline.runtime.image import open_image
from trunkline.runtime.parity import regret
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.sensor.window import SensorWindow

DEFAULT_SAMPLES = 50
DEFAULT_POOL = 20
DEFAULT_SEED = 42
#: Two-sided 95 % quantile of the normal distribution.
Z_95 = 1.959963984540054
_LISTED = 20

Floats = NDArray[np.float32]
#: (image, instruction, histories (N, H, A), sensor window) -> fused scores (N,), members' scores (K, N).
Score = Callable[[Image.Image, str, Floats, SensorWindow | None], tuple[Floats, Floats]]


@dataclass(frozen=True, eq=False)
class DecisionCase:
    """One decision to take: N candidates, of which ``histories[truth]`` is right; ``sample`` is the sample's id.

    ``sensor`` is what the sample's fast sensor measured, None for a sample without one.
    """

    sample: str
    image: Path
    instruction: str
    histories: Floats
    truth: int
    sensor: SensorExcerpt | None = None


@dataclass(frozen=True, eq=False)
class CaseResult:
    """What came of one case.

    Attributes:
        case: what was asked.
        scores: (N,) float32.
        member_scores: (K, N) float32.
        winner: index of the highest score; the first of equals.
        rank: 1 + how many candidates score strictly higher than the right one.
        distance: Euclidean norm of winner minus right window.
    """

    case: DecisionCase
    scores: Floats
    member_scores: Floats
    winner: int
    rank: int
    distance: float


@dataclass(frozen=True)
class Proportion:
    """``hits`` of ``total``, and the Wilson score interval that holds the true rate with 95 % confidence."""

    hits: int
    total: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class MemberResult:
    """How one member would have decided alone."""

    accuracy: Proportion
    mean_rank: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Decisions of one scorer.

    Attributes:
        results: one per case that was scored, in order.
        accuracy: how often the right window won.
        mean_rank: 1 is best.
        mean_distance: mean of the results' distances.
        members: each member on its own, in order.
        chance: accuracy of drawing a candidate at random.
        decisions_per_second: by the time spent in ``score`` alone; images are opened outside of it.
        unreadable: images that could not be read; their cases were skipped.
    """

    results: tuple[CaseResult, ...]
    accuracy: Proportion
    mean_rank: float
    mean_distance: float
    members: tuple[MemberResult, ...]
    chance: float
    decisions_per_second: float
    unreadable: tuple[str, ...]

    @property
    def decisions(self) -> int:
        """How many cases were scored."""
        return len(self.results)


@dataclass(frozen=True)
class Agreement:
    """Two scorers on the same cases.

    Attributes:
        decisions: how many.
        same_winner: how often both choose the same candidate, or one that the first scores equally.
        winner_agreement: the share of those.
        max_score_change: largest change of a score.
        mean_regret: mean score that is lost, by the first scorer, with the second's choice.
        max_regret: the most that is lost in one decision.
    """

    decisions: int
    same_winner: int
    winner_agreement: float
    max_score_change: float
    mean_regret: float
    max_regret: float


def draw_decisions(
    dataset: Dataset, samples: int = DEFAULT_SAMPLES, pool: int = DEFAULT_POOL, seed: int = DEFAULT_SEED
) -> list[DecisionCase]:
    """Draws the cases of an evaluation; the same arguments give the same cases.

    Args:
        dataset: what to draw from.
        samples: how many cases, each from another sample.
        pool: candidates per case, the right one included; fewer if the data set has fewer distinct windows.
        seed: of the draw.

    Raises:
        DatasetError: the data set has fewer samples, or no two windows that differ.
        InputError: ``samples`` is under 1 or ``pool`` under 2.
    """
    if samples < 1 or pool < 2:
        raise InputError(
            "cannot draw decisions", expected="samples of at least 1, a pool of at least 2", found=f"{samples}, {pool}"
        )
    windows = distinct_windows(dataset)
    if samples > len(dataset.samples):
        raise DatasetError(
            "the data set has fewer samples than were asked for",
            where=dataset.path,
            expected=f"at least {samples}",
            found=len(dataset.samples),
            fix=f"ask for {len(dataset.samples)}",
        )
    generator = random.Random(seed)
    return [draw_decision(sample, windows, pool, generator) for sample in generator.sample(dataset.samples, samples)]


def distinct_windows(dataset: Dataset) -> WindowPool:
    """The windows that occur in samples, each once.

    Raises:
        DatasetError: there are no two that differ.
    """
    windows = WindowPool(sample.history for sample in dataset.samples)
    if len(windows) < 2:
        raise DatasetError(
            "the data set leaves nothing to choose from", where=dataset.path, found="all windows are equal"
        )
    return windows


def draw_decision(sample: Sample, windows: WindowPool, pool: int, generator: random.Random) -> DecisionCase:
    """One case: the sample's window among up to ``pool - 1`` others."""
    histories, truth = windows.draw_with(sample.history, pool, generator)
    return DecisionCase(sample.id, sample.image, sample.instruction, histories, truth, sample.sensor)


def evaluate(
    cases: Sequence[DecisionCase], score: Score, progress: Progress = silent, *, skip_unreadable: bool = False
) -> Evaluation:
    """Takes every decision and sums up.

    Args:
        cases: as :func:`draw_decisions` gives them.
        score: who decides.
        progress: counts decisions.
        skip_unreadable: leave out cases whose image cannot be read, and name the images in the result.

    Raises:
        DatasetError: images cannot be read (all of them are named), or no case is left.
        InputError: ``score`` returned something other than finite scores of the right shape.
        TrunklineError: as ``score``.
    """
    unreadable = _unreadable(cases)
    readable = [case for case in cases if case.image not in unreadable]
    if (unreadable and not skip_unreadable) or not readable:
        raise _cannot_evaluate(unreadable, len(readable))
    results, spent_s = [], 0.0
    for index, case in enumerate(readable):
        progress("decisions", index, len(readable))
        image, window = open_image(case.image), case.sensor.open() if case.sensor else None
        start = time.perf_counter()
        fused, members = score(image, case.instruction, case.histories, window)
        spent_s += time.perf_counter() - start
        results.append(_result(case, fused, members))
    progress("decisions", len(readable), len(readable))
    return _summary(results, spent_s, tuple(f"{path}: {problem}" for path, problem in unreadable.items()))


def _unreadable(cases: Sequence[DecisionCase]) -> dict[Path, str]:
    """Images that cannot be read; found before anything is scored, since scoring may take hours."""
    problems = {}
    for path in dict.fromkeys(case.image for case in cases):
        try:
            open_image(path)
        except ImageError as error:
            problems[path] = error.problem
    return problems


def _cannot_evaluate(unreadable: dict[Path, str], readable: int) -> DatasetError:
    found = [f"{path}: {problem}" for path, problem in unreadable.items()]
    more = len(found) - _LISTED
    return DatasetError(
        "images of the data set cannot be read" if found else "there are no decisions to take",
        found=(found[:_LISTED] + ([f"and {more} more"] if more > 0 else [])) or "no cases",
        fix="copy the images again, or choose to skip unreadable ones" if readable else "copy the images again",
    )


def _result(case: DecisionCase, fused: Floats, members: Floats) -> CaseResult:
    fused, members = np.asarray(fused), np.asarray(members)
    count = len(case.histories)
    if fused.shape != (count,) or members.ndim != 2 or members.shape[1:] != (count,) or not len(members):
        raise InputError(
            "the scorer returned scores of another shape",
            where=case.sample,
            expected=f"fused ({count},) and members (K, {count})",
            found=f"{fused.shape} and {members.shape}",
        )
    if not (np.isfinite(fused).all() and np.isfinite(members).all()):
        raise InputError(
            "the scorer returned scores that are not finite", where=case.sample, fix="run `trunkline doctor`"
        )
    winner = int(fused.argmax())
    difference = case.histories[winner].astype(np.float64) - case.histories[case.truth]
    return CaseResult(case, fused, members, winner, _rank(fused, case.truth), float(np.linalg.norm(difference.ravel())))


def _rank(scores: Floats, truth: int) -> int:
    return 1 + int((scores > scores[truth]).sum())


def _summary(results: Sequence[CaseResult], spent_s: float, unreadable: tuple[str, ...]) -> Evaluation:
    count = len(results)
    if len({len(result.member_scores) for result in results}) > 1:
        raise InputError("the scorer changed its number of members between two decisions")
    return Evaluation(
        results=tuple(results),
        accuracy=wilson(sum(result.winner == result.case.truth for result in results), count),
        mean_rank=sum(result.rank for result in results) / count,
        mean_distance=sum(result.distance for result in results) / count,
        members=tuple(_member(results, index) for index in range(len(results[0].member_scores))),
        chance=sum(1 / len(result.scores) for result in results) / count,
        decisions_per_second=count / spent_s if spent_s > 0 else math.inf,
        unreadable=unreadable,
    )


def _member(results: Sequence[CaseResult], index: int) -> MemberResult:
    scores = [(result.member_scores[index], result.case.truth) for result in results]
    hits = sum(int(each.argmax()) == truth for each, truth in scores)
    return MemberResult(wilson(hits, len(scores)), sum(_rank(each, truth) for each, truth in scores) / len(scores))


def wilson(hits: int, total: int) -> Proportion:
    """The rate ``hits / total`` with its Wilson score interval (95 %), which stays honest near 0 and 1."""
    if not 0 <= hits <= total or total < 1:
        raise InputError(
            "not a proportion", expected="0 <= hits <= total, total at least 1", found=f"{hits} of {total}"
        )
    rate, square = hits / total, Z_95 * Z_95
    centre = (rate + square / (2 * total)) / (1 + square / total)
    half = Z_95 / (1 + square / total) * math.sqrt(rate * (1 - rate) / total + square / (4 * total * total))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Proportion(hits, total, rate, 0.0 if hits == 0 else low, 1.0 if hits == total else high)


def agreement(a: Evaluation, b: Evaluation) -> Agreement:
    """How far two scorers agree.

    Raises:
        InputError: the evaluations are not of the same cases; the first differences are named.
    """
    different = [f"{a.decisions} decisions against {b.decisions}"] if a.decisions != b.decisions else []
    pairs = list(zip(a.results, b.results, strict=False))
    different += [f"{one.case.sample} against {two.case.sample}" for one, two in pairs if not _same(one.case, two.case)]
    if different:
        raise InputError(
            "only evaluations of the same cases can be compared",
            found=different[:_LISTED],
            fix="draw the cases once and evaluate both on them",
        )
    regrets = [regret(one.scores, two.scores) for one, two in pairs]
    same = regrets.count(0.0)
    change = max(float(np.abs(one.scores.astype(np.float64) - two.scores).max()) for one, two in pairs)
    return Agreement(len(pairs), same, same / len(pairs), change, sum(regrets) / len(pairs), max(regrets))


def _same(one: DecisionCase, two: DecisionCase) -> bool:
    return (
        (one.sample, one.image, one.instruction, one.truth) == (two.sample, two.image, two.instruction, two.truth)
    ) and np.array_equal(one.histories, two.histories)
