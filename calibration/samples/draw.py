"""Draws the samples of a calibration: some that give ranges, others that judge. Everything is checked first.

Promises: the same arguments give the same samples; no picture calibrates and judges; every sample that is returned can
be read, and scored by the bundle. Only as many pictures are opened as it takes, and none is kept.

Refuses: nothing to draw from, a single picture, pictures that are all alike or of one colour each, random noise,
windows and instructions that the bundle cannot take, and unreadable pictures unless the caller chose to go on without
them. What is merely thin is told in ``warnings``, with numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from trunkline.calibration.defaults import CALIBRATING_SAMPLES, JUDGING_SAMPLES
from trunkline.calibration.samples.bundle_needs import BundleNeeds, check_form, check_samples
from trunkline.calibration.samples.overlap import short_digests
from trunkline.calibration.samples.sample import CalibrationSample, Samples
from trunkline.calibration.samples.sample_warnings import SampleWarning, thin
from trunkline.calibration.samples.split import Split, split_samples, spread_samples
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
        judge: samples that judge; fewer if there are fewer.
        seed: the same one draws the same samples.
        skip_unreadable: go on without pictures that cannot be read, and name them in the result.
    """

    calibrate: int = CALIBRATING_SAMPLES
    judge: int = JUDGING_SAMPLES
    seed: int = DEFAULT_SEED
    skip_unreadable: bool = False


@dataclass(frozen=True, eq=False)
class DrawnSamples:
    """What a calibration works with.

    Attributes:
        name: of the source.
        calibrating: samples that give ranges.
        judging: samples that judge; they show none of the pictures of ``calibrating``.
        kept_together: ``episode`` or ``picture``: what lies on one side as a whole.
        unreadable: pictures that could not be read, each with the reason.
        noise: pictures that show random noise and were left out, each with its number.
        shared: ids of samples that do not judge because a picture with the same pixels calibrates.
        warnings: what is thin.
    """

    name: str
    calibrating: tuple[CalibrationSample, ...]
    judging: tuple[CalibrationSample, ...]
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
    """Draws samples that calibrate and samples that judge.

    Args:
        samples: what to draw from.
        needs: of the bundle.
        options: how many; by default 128 of each.
        judge: another source to judge on; by default a part of ``samples``.
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
    calibrating, judging = _look(samples, judge or samples, split, options, progress)
    if not options.skip_unreadable:
        refuse_unreadable((calibrating, judging))
    refuse_noise(calibrating)
    refuse_noise(judging)
    require_variety(calibrating, judging)
    check_samples(calibrating.samples, needs, calibrating.name)
    check_samples(judging.samples, needs, judging.name)
    noise = (*calibrating.noise.values(), *judging.noise.values())
    return DrawnSamples(
        name=samples.name,
        calibrating=tuple(calibrating.samples),
        judging=tuple(judging.samples),
        kept_together=split.kind,
        unreadable=(*calibrating.unreadable.values(), *judging.unreadable.values()),
        noise=noise,
        shared=tuple(judging.shared),
        warnings=thin(calibrating.samples, judging.samples, noise, split),
    )


def _check_options(options: DrawOptions) -> None:
    if options.calibrate < 1 or options.judge < 1:
        raise InputError(
            "there must be samples to calibrate and samples to judge",
            expected="at least 1 of each",
            found=f"{options.calibrate} to calibrate, {options.judge} to judge",
        )


def _check_source(samples: Samples, needs: BundleNeeds) -> None:
    if not len(samples):
        raise DatasetError("there are no samples", where=samples.name, fix="record what the robot sees, and use that")
    check_form(samples, needs.actions)


def _require_pictures(samples: Samples) -> None:
    first = samples[0].picture.name
    if all(samples[index].picture.name == first for index in range(1, len(samples))):
        raise DatasetError(
            "all samples show one picture",
            where=samples.name,
            expected="at least two, to calibrate on one and judge on another; better hundreds",
            found=first,
            fix="record more of what the robot sees",
        )


def _split(samples: Samples, judge: Samples | None, options: DrawOptions) -> Split:
    if judge is None:
        return split_samples(samples, options.calibrate, options.judge, options.seed)
    calibrating, judging = (spread_samples(source, options.seed) for source in (samples, judge))
    return Split(calibrating, judging, kind="picture", episodes=0)


def _look(
    samples: Samples, judge: Samples, split: Split, options: DrawOptions, progress: Progress
) -> tuple[Usable, Usable]:
    total = min(options.calibrate, len(split.calibrating)) + min(options.judge, len(split.judging))
    skip = options.skip_unreadable
    calibrating = take(
        samples,
        split.calibrating,
        options.calibrate,
        skip_unreadable=skip,
        report=lambda taken: progress(_STEP, taken, total),
    )
    known = {sample.picture.facts.digest for sample in calibrating.samples}
    done = len(calibrating.samples)
    judging = take(
        judge,
        split.judging,
        options.judge,
        known,
        skip_unreadable=skip,
        report=lambda taken: progress(_STEP, done + taken, total),
    )
    return calibrating, judging
