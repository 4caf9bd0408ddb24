"""The search for the fastest mix, on layers whose damage is known and adds up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trunkline.calibration.int8.judge import Verdict
from trunkline.calibration.int8.outcome import Budget, Damage
from trunkline.calibration.int8.rules import CPU
from trunkline.calibration.int8.search import Assignment, Search

BLOCKS, LAYERS = 12, 4
BUDGET = Budget(max_score_change=0.05, min_agreement=0.5)
NAMES = [f"blocks.{block}.{layer}" for block in range(BLOCKS) for layer in range(LAYERS)]


class Plan:
    """A stage whose layers all may be int8."""

    name = "vision"

    def __init__(self, damages: dict[str, float]) -> None:
        self.layers = {
            name: SimpleNamespace(rows=64, inputs=64, outputs=64, signal_to_noise_db=40 - 1000 * damages[name])
            for name in damages
        }

    def lowest(self) -> dict[str, str]:
        return dict.fromkeys(self.layers, "int8")


class Known:
    """Judges by adding up the damage of the layers in int8; counts how often."""

    def __init__(self, damages: dict[str, float]) -> None:
        self._damages, self.judged = damages, 0

    def judge(self, assignment: Assignment) -> Verdict:
        self.judged += 1
        total = sum(self._damages[name] for name, kind in assignment["vision"].items() if kind == "int8")
        return Verdict(Damage(100, total, total / 4, 100, 0.0, 0.0, 1.0), (), (), ())


def searched(damages: dict[str, float], *budgets: Budget) -> tuple[list[Any], Known]:
    known = Known(damages)
    search = Search({"vision": Plan(damages)}, known, CPU)  # type: ignore[dict-item, arg-type]
    return [search.run(budget) for budget in budgets], known


def in_int8(found: Any) -> set[str]:
    return {name for name, kind in found.assignment["vision"].items() if kind == "int8"}


def test_all_in_int8_is_tried_first() -> None:
    (found,), known = searched(dict.fromkeys(NAMES, 0.0005), BUDGET)
    assert in_int8(found) == set(NAMES)
    assert found.met
    assert found.steps == ()
    assert known.judged == 1


def test_one_bad_layer_alone_falls_back() -> None:
    damages = dict.fromkeys(NAMES, 0.0002) | {"blocks.7.2": 0.2}
    (found,), _ = searched(damages, BUDGET)
    assert in_int8(found) == set(NAMES) - {"blocks.7.2"}
    assert found.verdict.fused.max_score_change == pytest.approx(0.0002 * 47)


def test_most_layers_come_back_at_once() -> None:
    """Every block holds a layer that does much damage, so that all blocks must leave, and 36 clean layers come back."""
    damages = {name: 0.03 if name.endswith(".0") else 0.0001 for name in NAMES}
    (found,), known = searched(damages, BUDGET)
    assert {name for name in NAMES if not name.endswith(".0")} <= in_int8(found)
    assert len(in_int8(found)) == 37
    trials = [step for step in found.steps if step.what.endswith("cleanest layers")]
    assert 0 < len(trials) <= 6
    assert known.judged < 1 + 1 + BLOCKS + 5 + 6 + 24


def test_another_budget_costs_no_second_look_at_every_block() -> None:
    damages = dict.fromkeys(NAMES, 0.00199)
    (loose, tight), known = searched(damages, BUDGET, Budget(0.02, 0.5))
    assert (len(in_int8(loose)), len(in_int8(tight))) == (25, 10)
    assert known.judged < 1 + 1 + BLOCKS + 2 * (5 + 6 + 24)


def test_what_cannot_be_met_is_said() -> None:
    (found,), _ = searched(dict.fromkeys(NAMES, 1.0), BUDGET)
    assert found.met  # nothing is left in int8, which the caller refuses
    assert in_int8(found) == set()
