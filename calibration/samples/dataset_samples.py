"""Samples from a data set in the published form: each with its right window among windows of other moments."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from trunkline.calibration.evaluation import DEFAULT_POOL, DEFAULT_SEED, DecisionCase, distinct_windows, draw_decision
from trunkline.calibration.samples.bundle_needs import BundleNeeds, check_form, check_samples
from trunkline.calibration.samples.dataset import Dataset
from trunkline.calibration.samples.sample import CalibrationSample, Picture
from trunkline.runtime.image import open_image


class DatasetSamples:
    """All samples of a data set. Pools are drawn when a sample is asked for, the same ones every time.

    Any number of threads may use one.

    Attributes:
        name: of the JSON file.
        windows: as the data set states them.
        notes: what was left out on reading, for people.
    """

    def __init__(self, dataset: Dataset, pool: int = DEFAULT_POOL, seed: int = DEFAULT_SEED) -> None:
        """Prepares the samples.

        Args:
            dataset: as :func:`trunkline.calibration.samples.dataset.read_dataset` gives it.
            pool: windows per sample, the right one included; fewer if the data set has fewer distinct ones.
            seed: of the pools.

        Raises:
            DatasetError: no two windows differ.
        """
        self.name = dataset.path.name
        self.windows = dataset.windows
        self.notes = tuple(f"{count} rows left out: {reason}" for reason, count in dataset.skipped_reasons.items())
        self._samples = dataset.samples
        self._pool, self._seed = pool, seed
        self._distinct = distinct_windows(dataset)
        paths = {sample.image for sample in dataset.samples}
        self._pictures = {path: Picture(str(path), partial(open_image, path)) for path in paths}

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> CalibrationSample:
        sample = self._samples[index]
        case = draw_decision(sample, self._distinct, self._pool, random.Random(f"{self._seed}: {index}"))
        picture = self._pictures[sample.image]
        return CalibrationSample(
            sample.id,
            sample.instruction,
            picture,
            case.histories,
            case.truth,
            episode=sample.episode,
            sensor=sample.sensor,
        )


def sample_of(case: DecisionCase) -> CalibrationSample:
    """An evaluation's decision as a sample."""
    picture = Picture(str(case.image), partial(open_image, case.image))
    return CalibrationSample(case.sample, case.instruction, picture, case.histories, case.truth, sensor=case.sensor)


def check_decisions(dataset: Dataset, cases: Sequence[DecisionCase], needs: BundleNeeds) -> None:
    """Checks that a bundle can take the decisions of an evaluation; no picture is opened.

    Raises:
        DatasetError: the data set is of another kind than the bundle, or cases cannot be scored, with every reason.
    """
    windows, name = dataset.windows, dataset.path.name
    if all(case.sensor is None for case in cases):
        windows = replace(windows, sensor=None)
    check_form(name, windows, needs)
    check_samples(map(sample_of, cases), needs, name)
