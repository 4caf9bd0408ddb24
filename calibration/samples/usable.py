"""Looks at the pictures of samples, takes those that can be used, and refuses sets that are no pictures of a world."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from trunkline.calibration.samples.sample import CalibrationSample, Samples
from trunkline.runtime.errors import DatasetError, ImageError

#: So many samples are looked at for each that is wanted, before giving up on a set whose pictures cannot be used.
MAX_LOOKS = 4
MIN_LOOKS = 256
#: Share of noise, among the pictures seen, that a set may hold; it is left out. Broken frames happen to cameras.
MAX_NOISE_SHARE = 0.1
_LISTED = 20


@dataclass
class Usable:
    """Samples taken from one source, and why others were not. Used by one thread.

    Attributes:
        name: of the source.
        samples: taken, in order.
        seen: names of pictures that were read.
        unreadable: pictures that could not be read: what to say of each, by name.
        noise: pictures that show noise, likewise.
        shared: ids of samples left out because their picture is used elsewhere.
    """

    name: str
    samples: list[CalibrationSample] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    unreadable: dict[str, str] = field(default_factory=dict)
    noise: dict[str, str] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)

    def add(self, sample: CalibrationSample, elsewhere: Collection[str]) -> None:
        """Looks at one sample, and takes it or notes why not."""
        name = sample.picture.name
        if name in self.unreadable or not self._read(sample) or name in self.noise:
            return
        if sample.picture.facts.digest in elsewhere:
            self.shared.append(sample.id)
        else:
            self.samples.append(sample)

    def _read(self, sample: CalibrationSample) -> bool:
        name = sample.picture.name
        try:
            facts = sample.picture.facts
        except ImageError as error:
            details = f" ({error.found})" if isinstance(error.found, str) else ""
            self.unreadable[name] = f"{name}: {error.problem}{details}"
            return False
        self.seen.add(name)
        if facts.noise:
            self.noise[name] = f"{name}: correlation of neighbouring pixels {facts.correlation:.2f}"
        return True


def take(
    samples: Samples,
    order: Sequence[int],
    wanted: int,
    elsewhere: Collection[str] = (),
    *,
    skip_unreadable: bool = False,
    report: Callable[[int], None] = lambda taken: None,
) -> Usable:
    """Takes up to ``wanted`` samples in the given order.

    Args:
        samples: the source.
        order: indices.
        wanted: how many; others take the place of those that cannot be used.
        elsewhere: digests of pictures that may not occur.
        skip_unreadable: replace samples whose pictures cannot be read, too. Otherwise the set is going to be refused,
            and it is enough to name what is unreadable among the first ``wanted``.
        report: told how many were taken.
    """
    usable = Usable(samples.name)
    failed = 0
    for index in order[: max(MIN_LOOKS, MAX_LOOKS * wanted)]:
        if len(usable.samples) + (0 if skip_unreadable else failed) >= wanted:
            break
        sample = samples[index]
        usable.add(sample, elsewhere)
        failed += sample.picture.name in usable.unreadable
        report(len(usable.samples))
    return usable


def refuse_unreadable(sides: Iterable[Usable]) -> None:
    """Raises if any picture cannot be read.

    Raises:
        DatasetError: naming all of them.
    """
    found = [problem for side in sides for problem in side.unreadable.values()]
    if found:
        raise DatasetError(
            "pictures of the samples cannot be read",
            found=_listed(found),
            fix="copy them again, or choose to skip unreadable ones",
        )


def refuse_noise(side: Usable) -> None:
    """Raises if more than a broken frame here and there is noise.

    Raises:
        DatasetError: naming the pictures.
    """
    if len(side.noise) > MAX_NOISE_SHARE * len(side.seen):
        raise DatasetError(
            "the pictures are random noise",
            where=side.name,
            expected=f"what the robot's camera sees; at most {MAX_NOISE_SHARE:.0%} of broken frames",
            found=_listed([f"{len(side.noise)} of {len(side.seen)} pictures", *side.noise.values()]),
            fix="what fits noise does not fit pictures: use recorded frames",
        )


def require_variety(sides: Sequence[Usable]) -> None:
    """Raises unless there are samples to calibrate, to judge and to prove, and something to see in them.

    Raises:
        DatasetError: a side is empty, or all pictures are identical, or all of one colour each.
    """
    facts = [sample.picture.facts for side in sides for sample in side.samples]
    shared = sum(len(side.shared) for side in sides)
    same = len({each.digest for each in facts}) < 2 and len(facts) + shared > 1
    if same or (facts and all(each.constant for each in facts)):
        raise DatasetError(
            "all pictures are identical" if same else "every picture shows a single colour",
            where=sides[0].name,
            expected="what the robot sees while it works",
            found=f"{len(facts) + shared} pictures " + ("with the same pixels" if same else "without contrast"),
            fix="check the camera and how its frames were written: it may be frozen or covered",
        )
    for side, verb in zip(sides, ("calibrate", "judge", "prove"), strict=True):
        if not side.samples:
            left_out = [*side.unreadable.values(), *side.noise.values()]
            left_out += [f"{sample_id}: its picture has another use" for sample_id in side.shared]
            raise DatasetError(
                f"no samples are left to {verb}", where=side.name, found=_listed(left_out), fix="add other samples"
            )


def _listed(found: Sequence[str]) -> list[str]:
    return [*found[:_LISTED], *([f"and {len(found) - _LISTED} more"] if len(found) > _LISTED else [])]
