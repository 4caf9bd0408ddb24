"""``calibration.json``: how a bundle got its int8 layers, as frozen records.

The file lies in the bundle, listed in its manifest. It says what was asked (budget, method), what it was judged on,
what every layer became and why, and what was measured on the way, so that a person can check the choice without
repeating it. ``trunkline report`` draws it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from trunkline.runtime import record
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BundleError

FORMAT = "trunkline-calibration"
SCHEMA = 2
CALIBRATION_NAME = "calibration.json"

#: ``int8``: int8 product. ``stored``: weights kept as int8, product in float32. ``float32``: untouched.
LayerPrecision = Literal["int8", "stored", "float32"]


@dataclass(frozen=True)
class Damage:
    """Decisions held against those of the float32 ensemble.

    Attributes:
        decisions: how many.
        max_score_change: largest absolute difference of a score.
        mean_score_change: mean absolute difference.
        winners_kept: decisions whose winner still is one, ties of the float32 ensemble included.
        mean_regret: mean score that is lost, by the float32 ensemble, with the other's winner; 0 where it is kept.
        max_regret: the most that is lost in one decision. A lost winner that cost nothing was a near tie.
        rank_correlation: mean Spearman correlation of a decision's scores.
    """

    decisions: int
    max_score_change: float
    mean_score_change: float
    winners_kept: int
    mean_regret: float
    max_regret: float
    rank_correlation: float

    @property
    def winner_agreement(self) -> float:
        """Share of decisions that keep their winner, 0 to 1."""
        return self.winners_kept / self.decisions


@dataclass(frozen=True)
class Budget:
    """What the int8 ensemble may do to decisions.

    Attributes:
        max_score_change: by how much a score may move.
        min_agreement: share of all decisions that must keep their winner, and their scores within that.
    """

    max_score_change: float
    min_agreement: float

    def met(self, damage: Damage) -> bool:
        return damage.max_score_change <= self.max_score_change and damage.winner_agreement >= self.min_agreement


@dataclass(frozen=True)
class Proof:
    """What decisions promise that nothing was chosen by; see the module ``proof``.

    Attributes:
        damage: done to them.
        asked: share of all decisions that was to be proved: the budget's, or what so few decisions can prove.
        winners: at least this share of all decisions keeps its winner, by a one-sided 95 % bound.
        scores_within: decisions in which no score moved further than the budget allows.
        scores: at least this share of all decisions is like them, by the same bound.
    """

    damage: Damage
    asked: float
    winners: float
    scores_within: int
    scores: float

    @property
    def met(self) -> bool:
        return min(self.winners, self.scores) >= self.asked


@dataclass(frozen=True)
class SampleSummary:
    """What was used.

    Attributes:
        source: name of the data set or folder, without its path.
        calibrating: samples that gave the ranges.
        judging: decisions that layers were chosen by.
        proving: decisions that proved the choice. No image is in two of the three.
        digests: of the calibrating samples, 16 hex digits each, so that an evaluation can tell an overlap.
        warnings: what is thin about the set, with numbers.
        skipped: images that could not be read.
    """

    source: str
    calibrating: int
    judging: int
    proving: int
    digests: tuple[str, ...]
    warnings: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class LayerOutcome:
    """A linear layer, or another large tensor, for which only the first four are set.

    Attributes:
        stage: of the bundle.
        block: the search moves layers of a block together at first.
        name: of the layer or the tensor in the graph.
        precision: what it became.
        inputs: K.
        outputs: N.
        signal_to_noise_db: of the layer's own output in int8, on sampled inputs.
        smoothing: SmoothQuant strength, None where none was applied.
        clipped: share of the largest input value that the int8 range covers; 1 clips nothing.
    """

    stage: str
    block: str
    name: str
    precision: LayerPrecision
    inputs: int | None = None
    outputs: int | None = None
    signal_to_noise_db: float | None = None
    smoothing: float | None = None
    clipped: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """What int8 in one block (or, with ``block`` empty, in one whole stage) does to decisions, all else float32."""

    stage: str
    block: str
    damage: Damage


#: How a step's ``what`` ends that moved many layers at once, the cleanest ones first.
CLEANEST = "cleanest layers"


@dataclass(frozen=True)
class SearchStep:
    """One trial of the search: ``what`` was moved ``to`` a precision, and whether it stayed."""

    what: str
    to: LayerPrecision
    damage: Damage
    kept: bool
    why: str


@dataclass(frozen=True)
class ScorePairs:
    """Scores of judged decisions, float32 against int8, for plotting; in order, possibly cut short."""

    reference: tuple[float, ...]
    found: tuple[float, ...]


@dataclass(frozen=True)
class CalibrationRecord:
    """The whole file.

    Attributes:
        method: how activation ranges were chosen.
        backend: name and version of what judged.
        all_int8: damage before any layer fell back.
        fused: damage of what was shipped, on the decisions that it was chosen by.
        members: the same for each member alone.
        proof: what it promises of others.
        cost_int8: estimated milliseconds of the linear layers of one new frame as shipped.
        cost_float32: the same in float32.
    """

    format: str
    schema: int
    method: str
    backend: str
    budget: Budget
    samples: SampleSummary
    layers: tuple[LayerOutcome, ...]
    sensitivities: tuple[Sensitivity, ...]
    steps: tuple[SearchStep, ...]
    all_int8: Damage
    fused: Damage
    members: tuple[Damage, ...]
    proof: Proof
    scores: ScorePairs
    cost_int8: float
    cost_float32: float


def promised(proof: Proof, budget: Budget) -> tuple[str, str]:
    """What was found on the decisions that proved, and what it promises of others, in words."""
    done = proof.damage
    return (
        f"of {done.decisions} decisions that nothing was chosen by, {done.winners_kept} keep their winner and "
        f"{proof.scores_within} their scores within {budget.max_score_change:g} (largest change "
        f"{done.max_score_change:.2g}); other winners cost {done.mean_regret:.2g} of a score on average, "
        f"{done.max_regret:.2g} at most",
        f"promised with 95 % confidence: at least {at_least(proof.winners)} of all decisions keep their winner, and "
        f"{at_least(proof.scores)} their scores ({proof.asked:.1%} asked for)",
    )


def at_least(share: float) -> str:
    """A lower bound for people; rounded down, as only that is true."""
    return f"{math.floor(share * 1000) / 1000:.1%}"


def read_calibration(bundle: Bundle) -> CalibrationRecord | None:
    """A bundle's calibration record, None if it was not calibrated.

    Raises:
        BundleError: the record is malformed.
    """
    name = bundle.manifest.parity.calibration
    if name is None:
        return None
    try:
        found = record.build(record.parse(bundle.read(name)), CalibrationRecord)
    except record.RecordError as error:
        raise BundleError(
            "the calibration record is malformed",
            where=f"{bundle.root}, {name}",
            expected=f"{FORMAT}, schema {SCHEMA}",
            found=error.differences,
            fix="export the bundle again",
        ) from error
    if (found.format, found.schema) != (FORMAT, SCHEMA):
        raise BundleError(
            "the calibration record is of another version",
            where=f"{bundle.root}, {name}",
            expected=f"{FORMAT}, schema {SCHEMA}",
            found=f"{found.format!r}, schema {found.schema}",
            fix="update trunkline on this machine",
        )
    return found
