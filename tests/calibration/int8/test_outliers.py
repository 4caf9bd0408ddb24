"""Outlier channels: min-max ranges without smoothing lose the decisions, ours keep them; and the search earns its keep.

The demo ensemble is used, whose decisions mean something.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import made_once
from tests.outliers import demo_bundle, demo_data
from trunkline.calibration.int8.compress import CompressOptions, make_plans
from trunkline.calibration.int8.judge import Judge
from trunkline.calibration.int8.linears import block_of
from trunkline.calibration.int8.outcome import Budget, Damage
from trunkline.calibration.int8.ranges import Method
from trunkline.calibration.int8.rules import CPU
from trunkline.calibration.int8.search import Assignment, Search, Trials, cost_ms
from trunkline.calibration.int8.stage_inputs import StageInputs
from trunkline.calibration.int8.stage_plan import RangeOptions, StagePlan
from trunkline.calibration.samples.bundle_needs import BundleNeeds
from trunkline.calibration.samples.draw import DrawnSamples, DrawOptions, draw_samples
from trunkline.calibration.samples.sources import open_samples
from trunkline.runtime import Ensemble, load

NAIVE = RangeOptions(Method("minmax"), smoothing=False)
BUDGET = Budget(max_score_change=0.08, min_agreement=0.95)
#: Blocks with outliers: all of them, or a few that a search has to find.
EVERYWHERE, SOMEWHERE = tuple(range(9)), (1, 4, 6)


@pytest.fixture(scope="module")
def data(shared: Path) -> Path:
    folder = shared / "demo_data"
    made_once(folder, lambda: demo_data(folder, samples=160, seed=23))
    return folder / "dataset.json"


@pytest.fixture(scope="module", params=[EVERYWHERE], ids=["everywhere"])
def outliers(request: pytest.FixtureRequest, shared: Path) -> Path:
    return made(shared, request.param)


def made(shared: Path, blocks: tuple[int, ...]) -> Path:
    folder = shared / f"demo_outliers_{len(blocks)}"
    return made_once(folder, lambda: (demo_bundle(folder, blocks), None)[1])


@dataclass
class Bench:
    """A loaded bundle with samples and a judge."""

    ensemble: Ensemble
    samples: DrawnSamples
    judge: Judge
    work: Path

    def plans(self, ranges: RangeOptions) -> dict[str, StagePlan]:
        folder = self.work / f"plans_{ranges.smoothing}_{ranges.method and ranges.method.name}"
        return make_plans(self.ensemble, self.samples.calibrating, CompressOptions(ranges=ranges), folder)

    def damage(self, plans: dict[str, StagePlan]) -> Damage:
        return self.trials(plans).judge({stage: plan.lowest() for stage, plan in plans.items()}).fused

    def trials(self, plans: dict[str, StagePlan]) -> Trials:
        return Trials(plans, self.judge, plans["vision"].graph.parent.with_name("trials"))


def bench(bundle: Path, data: Path, work: Path) -> Iterator[Bench]:
    with load(bundle, backend="onnxruntime") as ensemble:
        options = DrawOptions(calibrate=64, judge=64, prove=16)
        samples = draw_samples(open_samples(data), BundleNeeds.of(ensemble.bundle), options)
        with StageInputs(ensemble, samples.judging) as inputs:
            judged = inputs.whole()
        yield Bench(ensemble, samples, Judge(ensemble, judged), work)


@pytest.fixture(scope="module")
def with_outliers(outliers: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield from bench(outliers, data, tmp_path_factory.mktemp("outliers"))


def test_naive_ranges_lose_the_decisions_and_ours_keep_them(with_outliers: Bench) -> None:
    naive = with_outliers.damage(with_outliers.plans(NAIVE))
    ours = with_outliers.damage(with_outliers.plans(RangeOptions()))
    assert naive.winner_agreement < 0.8
    assert not BUDGET.met(naive)
    assert ours.winner_agreement >= 0.95
    assert BUDGET.met(ours)


def test_the_fp32_function_did_not_change(with_outliers: Bench, shared: Path) -> None:
    """The outliers are invisible in float32: the golden vectors came from PyTorch with them in it."""
    from trunkline.runtime.parity import check_parity

    assert check_parity(with_outliers.ensemble).fused.max_score_change < 1e-4


def test_the_search_beats_random_choices_of_equal_cost(
    shared: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Naive ranges, outliers in a third of the blocks: the search must find them; 20 random draws must not."""
    work = tmp_path_factory.mktemp("search")
    for on in bench(made(shared, SOMEWHERE), data, work):
        plans = on.plans(NAIVE)
        assert not BUDGET.met(on.damage(plans))
        found = Search(plans, Trials(plans, on.judge, work / "search"), CPU).run(BUDGET)
        assert found.met
        moved = {
            block_of(name)
            for name, kind in found.assignment["vision"].items()
            if name in plans["vision"].layers and kind != "int8"
        }
        assert {f"features.trunk.blocks.{index}" for index in SOMEWHERE} <= moved
        cost = cost_ms(plans, found.assignment, CPU)
        trials = on.trials(plans)
        damages = [trials.judge(random_of_cost(plans, cost, seed)).fused for seed in range(20)]
        assert found.verdict.fused.max_score_change < min(each.max_score_change for each in damages)


def random_of_cost(plans: dict[str, StagePlan], cost: float, seed: int) -> Assignment:
    """Layers leave int8 in random order until the assignment costs at least as much."""
    random = np.random.default_rng(seed)
    assignment = {stage: dict(plan.lowest()) for stage, plan in plans.items()}
    layers = [(stage, name) for stage, plan in plans.items() for name in plan.layers]
    for place in random.permutation(len(layers)):
        if cost_ms(plans, assignment, CPU) >= cost:
            break
        stage, name = layers[place]
        assignment[stage][name] = "stored"
    return assignment
