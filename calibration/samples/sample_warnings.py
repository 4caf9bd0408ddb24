"""What is thin about a set of samples: no reason to refuse it, but to trust the result less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trunkline.calibration.samples.sample import CalibrationSample
from trunkline.calibration.samples.split import MIN_EPISODES, Split

#: Fewer pictures leave the tails of activations unseen.
MIN_PICTURES = 64
MIN_INSTRUCTIONS = 8


@dataclass(frozen=True)
class SampleWarning:
    """One thing that is thin.

    Attributes:
        kind: which one, for programs: ``few_pictures``, ``few_instructions``, ``few_episodes``, ``few_proving``,
            ``one_colour``, ``noise``, ``narrow``, ``near_duplicates``.
        message: a sentence for people, with the numbers in it.
        value: what was found.
        limit: what would have been enough, or the most there should be.
    """

    kind: str
    message: str
    value: float
    limit: float

    def __str__(self) -> str:
        return self.message


def thin(calibrating: Sequence[CalibrationSample], noise: Sequence[str], split: Split) -> tuple[SampleWarning, ...]:
    """What is thin about drawn samples.

    Args:
        calibrating: samples that give ranges; their pictures were looked at.
        noise: pictures that were left out because they show noise.
        split: how they were divided; ``episodes`` is 0 where that does not matter.
    """
    pictures = {sample.picture.facts.digest: sample.picture.facts for sample in calibrating}
    instructions = {sample.instruction for sample in calibrating}
    one_colour = sum(facts.constant for facts in pictures.values())
    found = [
        _few("few_pictures", len(pictures), MIN_PICTURES, "different pictures calibrate"),
        _few("few_instructions", len(instructions), MIN_INSTRUCTIONS, "different instructions calibrate"),
        _any("one_colour", one_colour, "calibrating pictures show a single colour"),
        _any("noise", len(noise), "pictures show random noise and were left out"),
    ]
    if split.kind == "picture" and split.episodes > 0:
        what = "episodes, too few to judge on others than those that calibrate"
        found.append(_few("few_episodes", split.episodes, MIN_EPISODES, what))
    return tuple(warning for warning in found if warning is not None)


def _few(kind: str, value: int, limit: int, what: str) -> SampleWarning | None:
    message = f"only {value} {what}; {limit} or more are advised"
    return SampleWarning(kind, message, value, limit) if value < limit else None


def _any(kind: str, value: int, what: str) -> SampleWarning | None:
    return SampleWarning(kind, f"{value} {what}", value, 0) if value else None
