"""Draws the samples of a calibration: some give ranges, others judge choices, and the rest prove what was chosen.

Promises: the same arguments give the same samples; no picture has two of these uses; every sample that is returned can
be read, and scored by the bundle. Only as many pictures are opened as it takes, and none is kept.

Refuses: nothing to draw from, a single picture, pictures that are all alike or of one colour each, random noise,
windows and instructions that the bundle cannot take, and unreadable pictures unless the caller chose to go on without
them. What is merely thin is told in ``warnings``, with numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from trunkline.calibration.defaults import CALIBRATING_SAMPLES, JUDGING_SAMPLES, PROVING_SAMPLES
from trunkline.calibration.samples.bundle_needs import BundleNeeds, check_form, check_samples
from trunkline.calibration.samples.overlap import short_digests
from trunkline.calibration.samples.sample import CalibrationSample, Samples
from trunkline.calibration.samples.sample_warnings import SampleWarning, thin
from trunkline.calibration.samples.split import Split, split_samples
from trunkline.calibration.samples.usable import Usable, refuse_noise, refuse_unreadable, require_variety, take
from trunkline.runtime.errors import DatasetError, InputError
from trunkline.runtime.progress import Progress, silent

DEFAULT_SEED = 42
_STEP = "reading samples"


@dataclass(frozen=True)
class DrawOptions:
    """How many samples, and which.

    Attributes:
        calibrate: samples that give ranges; fewer if there are fewer.
        judge: samples that layers are chosen by; fewer if there are fewer.
        prove: samples that prove the choice. If there are too few samples, at least half of them do.
        seed: the same one draws the same samples.
        skip_unreadable: go on without pictures that cannot be read, and name them in the result.
    """

    calibrate: int = CALIBRATING_SAMPLES
    judge: int = JUDGING_SAMPLES
    prove: int = PROVING_SAMPLES
    seed: int = DEFAULT_SEED
    skip_unreadable: bool = False


@dataclass(frozen=True, eq=False)
class DrawnSamples:
    """What a calibration works with.

    Attributes:
        name: of the source.
        calibrating: samples that give ranges.
        judging: samples that layers are chosen by; they show none of the pictures of ``calibrating``.
        proving: samples that prove the choice; they show none of the pictures of the other two.
        kept_together: ``episode`` or ``picture``: what lies on one side as a whole.
        unreadable: pictures that could not be read, each with the reason.
        noise: pictures that show random noise and were left out, each with its number.
        shared: ids of samples that do not judge or prove because a picture with the same pixels has another use.
        warnings: what is thin.
    """

    name: str
    calibrating: tuple[CalibrationSample, ...]
    judging: tuple[CalibrationSample, ...]
    proving: tuple[CalibrationSample, ...]
    kept_together: str
    unreadable: tuple[str, ...]
    noise: tuple[str, ...]
    shared: tuple[str, ...]
    warnings: tuple[SampleWarning, ...]

    @property
    def digests(self) -> tuple[str, ...]:
        """Short digests of the calibrating pictures, to be kept in the bundle; see the module ``overlap``."""
        return short_digests(self.calibrating)


def draw_samples(
    samples: Samples,
    needs: BundleNeeds,
    options: DrawOptions | None = None,
    *,
    judge: Samples | None = None,
    progress: Progress = silent,
) -> DrawnSamples:
    """Draws samples that calibrate, that judge and that prove.

    Args:
        samples: what to draw from.
        needs: of the bundle.
        options: how many.
        judge: another source to judge and prove on; by default a part of ``samples``.
        progress: counts samples whose pictures were looked at.

    Raises:
        DatasetError: the samples cannot be used, as the module's description lists.
        InputError: the numbers asked for are under 1.
    """
    options = options or DrawOptions()
    _check_options(options)
    _check_source(samples, needs)
    if judge is not None:
        _check_source(judge, needs)
    _require_pictures(samples)
    split = _split(samples, judge, options)
    sides = _look(samples, judge or samples, split, options, progress)
    if not options.skip_unreadable:
        refuse_unreadable(sides)
    for side in sides:
        refuse_noise(side)
    require_variety(sides)
    for side in sides:
        check_samples(side.samples, needs, side.name)
    noise = [each for side in sides for each in side.noise.values()]
    calibrating, judging, proving = (tuple(side.samples) for side in sides)
    return DrawnSamples(
        name=samples.name,
        calibrating=calibrating,
        judging=judging,
        proving=proving,
        kept_together=split.kind,
        unreadable=tuple(each for side in sides for each in side.unreadable.values()),
        noise=tuple(noise),
        shared=tuple(each for side in sides for each in side.shared),
        warnings=thin(calibrating, noise, split),
    )


def _check_options(options: DrawOptions) -> None:
    if min(options.calibrate, options.judge, options.prove) < 1:
        raise InputError(
            "there must be samples to calibrate, to judge and to prove",
            expected="at least 1 of each",
            found=f"{options.calibrate} to calibrate, {options.judge} to judge, {options.prove} to prove",
        )


def _check_source(samples: Samples, needs: BundleNeeds) -> None:
    if not len(samples):
        raise DatasetError("there are no samples", where=samples.name, fix="record what the robot sees, and use that")
    check_form(samples.name, samples.windows, needs)


def _require_pictures(samples: Samples) -> None:
    first = samples[0].picture.name
    if all(samples[index].picture.name == first for index in range(1, len(samples))):
        raise DatasetError(
            "all samples show one picture",
            where=samples.name,
            expected="at least three, to calibrate on one, judge on another and prove on a third; better hundreds",
            found=first,
            fix="record more of what the robot sees",
        )


def _split(samples: Samples, judge: Samples | None, options: DrawOptions) -> Split:
    wanted = (options.calibrate, options.judge, options.prove)
    if judge is None:
        return split_samples(samples, _affordable(wanted, len(samples)), options.seed)
    (calibrating,) = split_samples(samples, wanted[:1], options.seed).sides
    judging = split_samples(judge, _affordable(wanted[1:], len(judge)), options.seed)
    return Split((calibrating, *judging.sides), kind="picture", episodes=0)


def _affordable(wanted: tuple[int, ...], there: int) -> tuple[int, ...]:
    """What each use gets of so many samples: all it wants, or the last one half and more, the others their ratio."""
    first = sum(wanted[:-1])
    if there >= sum(wanted):
        return wanted
    share = min(1.0, there / 2 / first)
    given = [max(1, int(share * each)) for each in wanted[:-1]]
    return (*given, max(1, there - sum(given)))


def _look(
    samples: Samples, judge: Samples, split: Split, options: DrawOptions, progress: Progress
) -> tuple[Usable, ...]:
    """Takes each side's samples; a picture whose pixels were taken for one side is not taken for a later one."""
    wanted = (options.calibrate, options.judge, options.prove)
    total = sum(min(count, len(side)) for count, side in zip(wanted, split.sides, strict=True))
    sides: list[Usable] = []
    known: set[str] = set()
    done = 0
    for source, order, count in zip((samples, judge, judge), split.sides, wanted, strict=True):
        side = take(
            source,
            order,
            count,
            known,
            skip_unreadable=options.skip_unreadable,
            report=lambda taken, done=done: progress(_STEP, done + taken, total),  # type: ignore[misc]
        )
        sides.append(side)
        known = known | {sample.picture.facts.digest for sample in side.samples}
        done += len(side.samples)
    return tuple(sides)
