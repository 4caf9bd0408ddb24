"""Whether samples were used before: a bundle keeps short digests of the pictures that calibrated it.

Pictures are compared by their pixels, whatever their files are called. The instruction does not count: a picture that
gave ranges under one instruction is no fresh picture under another. 16 hex digits tell any number of pictures apart
that anybody records, and give away nothing of what they show.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from trunkline.calibration.samples.sample import CalibrationSample

DIGEST_CHARS = 16


@dataclass(frozen=True)
class Overlap:
    """Samples that were used: their ids, and how many samples were looked at."""

    used: tuple[str, ...]
    total: int

    def __str__(self) -> str:
        return f"{len(self.used)} of {self.total} samples were used in calibration"


def short_digests(samples: Iterable[CalibrationSample]) -> tuple[str, ...]:
    """The first 16 hex digits of each picture's digest, each once, sorted.

    Raises:
        ImageError: a picture cannot be read.
    """
    return tuple(sorted({sample.picture.facts.digest[:DIGEST_CHARS] for sample in samples}))


def overlap(digests: Collection[str], samples: Iterable[CalibrationSample]) -> Overlap:
    """Which samples show a picture that was used.

    Args:
        digests: as :func:`short_digests` gave them.
        samples: to look at; their pictures are decoded, if nobody did it before.

    Raises:
        ImageError: a picture cannot be read.
    """
    known = frozenset(digests)
    samples = list(samples)
    used = [sample.id for sample in samples if sample.picture.facts.digest[:DIGEST_CHARS] in known]
    return Overlap(tuple(used), len(samples))
