"""Bundles that plans are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import made_once
from tests.samples_kit import ACTIONS, InMemory, scene
from trunkline.calibration.int8.compress import CompressOptions
from trunkline.calibration.int8.outcome import Budget
from trunkline.calibration.int8.ranges import Method
from trunkline.calibration.int8.stage_plan import RangeOptions
from trunkline.calibration.samples.draw import DrawOptions
from trunkline.calibration.samples.synthetic import windows
from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.export import build
from trunkline.exporter.options import ExportOptions, Int8Options
from trunkline.exporter.trunk import Trunk

#: Random heads: what matters here are sizes, not how good the decisions are.
BUDGET = Budget(max_score_change=0.5, min_agreement=0.2)


@pytest.fixture(scope="session")
def int8_bundle(shared: Path, trunk: Trunk, checkpoint: Checkpoint) -> Path:
    """The ensemble of ``bundle`` in int8. Never write into it."""
    histories = windows(np.random.default_rng(1), 40, ACTIONS)
    samples = InMemory([scene(index) for index in range(24)], histories=histories)
    quick = CompressOptions(BUDGET, RangeOptions(Method("minmax"), smoothing=False))
    int8 = Int8Options(samples, draw=DrawOptions(calibrate=10, judge=6, prove=8), compress=quick)
    target = shared / "planned_int8"
    return made_once(target, lambda: (build(checkpoint, trunk, target, options=ExportOptions(int8=int8)), None)[1])


@pytest.fixture(scope="session")
def baked_bundle(shared: Path, trunk: Trunk, checkpoint: Checkpoint) -> Path:
    """The ensemble of ``bundle`` with two instructions in place of the text tower. Never write into it."""
    target, options = shared / "planned_baked", ExportOptions(bake=("lift the lid", "close the drawer"))
    return made_once(target, lambda: (build(checkpoint, trunk, target, options=options), None)[1])
