"""Finds the fastest mix of int8 and float that keeps the decisions within a budget.

1. Everything is tried in int8. If that is within the budget, it is the answer.
2. Each stage alone, and each block alone, is tried in int8, all else in float32: its damage.
3. Blocks leave int8 arithmetic one after the other, those first that do most damage for the time they save, until the
   budget is met. Their weights stay int8 in the file. The number of blocks is found by bisection.
4. Layers of those blocks come back, the cleanest first: as many at once as the budget bears, found by bisection, and
   then one by one.
5. If the budget is not met with every block out of int8 arithmetic, stored weights become float32 in the same way.

Damage is judged on decisions, never on tensors. Times come from constants (the module ``rules``), so that
the same data gives the same choice.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trunkline.calibration.int8.judge import Judge, Verdict
from trunkline.calibration.int8.linears import block_of
from trunkline.calibration.int8.outcome import CLEANEST, Budget, LayerPrecision, SearchStep, Sensitivity
from trunkline.calibration.int8.rules import RUNS_PER_FRAME, Costs, PlacementRules
from trunkline.calibration.int8.stage_plan import Choice, StagePlan
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.progress import Progress, silent

#: Precision of every stage's layers and stored tensors.
Assignment = Mapping[str, Choice]
#: Trials of single layers that come back; each may take minutes on a large trunk.
MAX_RETURNS = 24
#: Written stages that are kept on the disk while searching.
_FOLDERS = 12


@dataclass(frozen=True)
class SearchResult:
    """What was found. ``met`` says whether the budget holds; ``steps`` are in order."""

    assignment: Assignment
    verdict: Verdict
    all_int8: Verdict
    met: bool
    steps: tuple[SearchStep, ...]


class Trials:
    """Writes assignments and has them judged."""

    def __init__(self, plans: Mapping[str, StagePlan], judge: Judge, work: Path) -> None:
        self._plans, self._judge, self._work = plans, judge, work
        self._written: OrderedDict[Path, StageFiles] = OrderedDict()

    def judge(self, assignment: Assignment) -> Verdict:
        """Decisions of an assignment; stages without a choice are the bundle's own."""
        return self._judge.judge(self.replaced(assignment))

    def replaced(self, assignment: Assignment) -> dict[str, StageFiles]:
        """The stages of an assignment that are not the bundle's own."""
        return {stage: self.files(stage, choice) for stage, choice in assignment.items() if choice}

    def files(self, stage: str, choice: Choice) -> StageFiles:
        """The stage in this form, written now if it is not on the disk."""
        name = hashlib.sha256(json.dumps(sorted(choice.items())).encode()).hexdigest()[:16]
        folder = self._work / f"{stage}-{name}"
        if folder not in self._written:
            self._written[folder] = self._plans[stage].write(choice, folder)
        self._written.move_to_end(folder)
        while len(self._written) > _FOLDERS:
            old, _ = self._written.popitem(last=False)
            shutil.rmtree(old)
        return self._written[folder]


class Search:
    """Searches, as the module says; again with another budget, if need be, from what it has learned by then."""

    def __init__(
        self, plans: Mapping[str, StagePlan], trials: Trials, rules: PlacementRules, progress: Progress = silent
    ) -> None:
        """Prepares a search.

        Args:
            plans: of every stage that may become int8.
            trials: has assignments judged.
            rules: for the costs.
            progress: counts trials of each phase.
        """
        self.plans, self.trials, self.rules, self.progress = plans, trials, rules, progress
        self._lowest: Assignment = {stage: plan.lowest() for stage, plan in plans.items()}

    def run(self, budget: Budget) -> SearchResult:
        """The fastest mix that keeps to a budget on the judging decisions, or the cleanest one, which misses it."""
        self.budget, self.steps = budget, list[SearchStep]()
        assignment, verdict = self._lowest, self._all_int8
        if not self._met(verdict):
            order = self._order()
            assignment, verdict = self._withdraw(assignment, order, "int8", "stored")
            if self._met(verdict):
                assignment, verdict = self._bring_back(assignment, verdict)
            else:
                assignment, verdict = self._withdraw(assignment, order, "stored", "float32")
        return SearchResult(assignment, verdict, self._all_int8, self._met(verdict), tuple(self.steps))

    @cached_property
    def _all_int8(self) -> Verdict:
        return self.trials.judge(self._lowest)

    def _met(self, verdict: Verdict) -> bool:
        return self.budget.met(verdict.fused)

    @cached_property
    def sensitivities(self) -> tuple[Sensitivity, ...]:
        """Damage of each stage and each block alone; judged when it is first asked for."""
        places = [(stage, "") for stage in self._lowest]
        places += [(stage, block) for stage, choice in self._lowest.items() for block in _blocks(choice)]
        found = []
        for index, (stage, block) in enumerate(places):
            self.progress("sensitivity of stages and blocks", index, len(places))
            choice = {name: kind for name, kind in self._lowest[stage].items() if not block or block_of(name) == block}
            found.append(Sensitivity(stage, block, self.trials.judge({stage: choice}).fused))
        self.progress("sensitivity of stages and blocks", len(places), len(places))
        return tuple(found)

    def _order(self) -> list[Sensitivity]:
        """Blocks, the one with most damage for the time it saves first."""

        def rank(each: Sensitivity) -> tuple[float, str, str]:
            return (-each.damage.max_score_change / max(self._saved_ms(each), 1e-6), each.stage, each.block)

        return sorted((each for each in self.sensitivities if each.block), key=rank)

    def _saved_ms(self, block: Sensitivity) -> float:
        plan = self.plans[block.stage]
        return sum(saved_ms(plan, name, self.rules) for name in plan.layers if block_of(name) == block.block)

    def _withdraw(
        self, assignment: Assignment, order: Sequence[Sensitivity], old: LayerPrecision, new: LayerPrecision
    ) -> tuple[Assignment, Verdict]:
        """Moves the fewest blocks of ``order`` from one precision to another that meet the budget, or else all."""

        def moved(count: int) -> Assignment:
            chosen = {(each.stage, each.block) for each in order[:count]}
            return _changed(assignment, lambda stage, name: (stage, block_of(name)) in chosen, old, new)

        step = f"blocks from {old} to {new}"
        low, high = 0, len(order)  # ``low`` blocks are too few
        verdict = self._try(f"all {high} blocks", new, moved(high), step)
        best = verdict
        while self._met(best) and high - low > 1:
            middle = (low + high) // 2
            verdict = self._try(f"the {middle} most damaging blocks", new, moved(middle), step)
            if self._met(verdict):
                high, best = middle, verdict
            else:
                low = middle
        for each in order[:high]:
            why = f"alone it does this much damage and saves {self._saved_ms(each):.3g} ms"
            self.steps.append(SearchStep(f"{each.stage} {each.block}", new, each.damage, True, why))
        return moved(high), best

    def _bring_back(self, assignment: Assignment, verdict: Verdict) -> tuple[Assignment, Verdict]:
        """Returns layers to int8 while the budget holds, the cleanest and most useful first."""
        lowest = self._lowest
        layers = [
            (stage, name)
            for stage, choice in assignment.items()
            for name in self.plans[stage].layers
            if choice[name] != lowest[stage][name]
        ]
        layers.sort(key=lambda place: (-self.plans[place[0]].layers[place[1]].signal_to_noise_db, place))
        low, high = 0, len(layers)  # with all of them it is where it came from, or nearly so
        while high - low > 1:
            middle = (low + high) // 2
            tried = _returned(assignment, lowest, layers[:middle])
            found = self._try(f"the {middle} {CLEANEST}", "int8", tried, "layers of withdrawn blocks")
            low, high = (middle, high) if self._met(found) else (low, middle)
            verdict = found if self._met(found) else verdict
        assignment = _returned(assignment, lowest, layers[:low])
        singles = layers[low + 1 :][:MAX_RETURNS]
        for index, (stage, name) in enumerate(singles):
            self.progress("returning layers to int8", index, len(singles))
            tried = _returned(assignment, lowest, [(stage, name)])
            found = self._try(f"{stage} {name}", "int8", tried, "a layer of a withdrawn block")
            if self._met(found):
                assignment, verdict = tried, found
        self.progress("returning layers to int8", len(singles), len(singles))
        return assignment, verdict

    def _try(self, what: str, to: LayerPrecision, assignment: Assignment, why: str) -> Verdict:
        self.progress("searching", len(self.steps), len(self.steps) + 1)
        verdict = self.trials.judge(assignment)
        met = self._met(verdict)
        self.steps.append(SearchStep(what, to, verdict.fused, met, f"{why}: {self._reason(verdict)}"))
        return verdict

    def _reason(self, verdict: Verdict) -> str:
        if self._met(verdict):
            return "the budget holds"
        found, budget = verdict.fused, self.budget
        reasons = []
        if found.max_score_change > budget.max_score_change:
            reasons.append(f"a score moves by {found.max_score_change:.3g}, {budget.max_score_change:g} is allowed")
        if found.winner_agreement < budget.min_agreement:
            reasons.append(f"winners agree in {found.winner_agreement:.1%}, {budget.min_agreement:.1%} is asked for")
        return "; ".join(reasons)


def saved_ms(plan: StagePlan, layer: str, rules: PlacementRules) -> float:
    """Milliseconds that int8 saves in one layer, for one new frame of a control loop."""
    return _cost_ms(plan, layer, rules.float32) - _cost_ms(plan, layer, rules.int8)


def cost_ms(plans: Mapping[str, StagePlan], assignment: Assignment, rules: PlacementRules) -> float:
    """Milliseconds of all linear layers for one new frame."""
    return sum(
        _cost_ms(plan, name, rules.int8 if assignment.get(stage, {}).get(name) == "int8" else rules.float32)
        for stage, plan in plans.items()
        for name in plan.layers
    )


def _cost_ms(plan: StagePlan, name: str, costs: Costs) -> float:
    layer = plan.layers[name]
    return RUNS_PER_FRAME.get(plan.name, 1.0) * costs.milliseconds(layer.rows, layer.inputs, layer.outputs)


def _returned(assignment: Assignment, lowest: Assignment, layers: Iterable[tuple[str, str]]) -> Assignment:
    """The assignment with these layers as they are in ``lowest``."""
    changed = {stage: dict(choice) for stage, choice in assignment.items()}
    for stage, name in layers:
        changed[stage][name] = lowest[stage][name]
    return changed


def _blocks(choice: Choice) -> list[str]:
    return list(dict.fromkeys(block_of(name) for name in choice))


def _changed(
    assignment: Assignment, applies: Callable[[str, str], bool], old: LayerPrecision, new: LayerPrecision
) -> Assignment:
    return {
        stage: {name: new if kind == old and applies(stage, name) else kind for name, kind in choice.items()}
        for stage, choice in assignment.items()
    }
