"""What to do where a bundle does not fit: each change saves what it says, and fits if it says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trunkline.exporter.cli import app
from trunkline.runtime.bundle import Bundle
from trunkline.targets.advice import WORTH, Advice, advise
from trunkline.targets.estimate.stage import StageFacts, as_int8, read_stages, with_members, with_usual_rows
from trunkline.targets.memory import Case, estimate
from trunkline.targets.plan import make_plan
from trunkline.targets.profile import VARIANTS, profiles

KNOWN = profiles(Path("/nonexistent"))
#: A bundle of the tests is small beside the process that runs it; as much larger it is one of the published size.
SCALE = 1000


def larger(facts: StageFacts) -> StageFacts:
    weights = tuple(replace(each, count=each.count * SCALE, bytes=each.bytes * SCALE) for each in facts.needs.weights)
    needs = replace(facts.needs, weights=weights, activations_bytes=facts.needs.activations_bytes * SCALE)
    return replace(facts, needs=needs, usual_activations_bytes=facts.usual_activations_bytes * SCALE)


def case(bundle: Path, target: str = "x86-cpu", backend: str | None = None) -> Case:
    opened, profile = Bundle(bundle), KNOWN[target]
    chosen = backend or profile.backends[0]
    usual = {each.letter: each.optimum for each in profile.rows}
    stages = [each.facts(profile.most_rows, usual) for each in read_stages(opened, VARIANTS[chosen])]
    return Case(opened.manifest, tuple(map(larger, stages)), profile, chosen)


def by_name(found: tuple[Advice, ...]) -> dict[str, Advice]:
    return {each.name: each for each in found}


def peak(of: Case) -> int:
    return estimate(of).peak_bytes


def test_advice_says_what_it_saves_and_whether_that_suffices(half_bundle: Path) -> None:
    asked = case(half_bundle)
    free = peak(asked) * 3 // 4
    found, _ = advise(asked, free)
    assert len(found) >= 4
    for each in found:
        assert each.saves_bytes == peak(asked) - each.peak_bytes >= WORTH * peak(asked)
        assert each.fits == (each.peak_bytes <= free)
        assert each.what
    assert [each.saves_bytes for each in found] == sorted((each.saves_bytes for each in found), reverse=True)


def test_every_change_is_what_it_says(half_bundle: Path) -> None:
    """Recomputed from the outside, change by change."""
    asked = case(half_bundle)
    found = by_name(advise(asked, 0)[0])
    changed = {
        "bake": replace(asked, stages=tuple(each for each in asked.stages if each.name != "text")),
        "int8": replace(asked, stages=tuple(map(as_int8, asked.stages))),
        "fewer members": replace(asked, stages=tuple(with_members(each, 1) for each in asked.stages)),
        "onnxruntime": replace(asked, backend="onnxruntime"),
    }
    rows = tuple(replace(each, maximum=each.optimum) for each in asked.profile.rows)
    stages = tuple(map(with_usual_rows, asked.stages))
    changed["fewer rows"] = replace(asked, profile=replace(asked.profile, rows=rows), stages=stages)
    assert set(found) <= set(changed)
    assert {"bake", "int8", "fewer members", "fewer rows"} <= set(found)
    assert {name: found[name].peak_bytes for name in found} == {name: peak(changed[name]) for name in found}


def test_baking_is_what_a_baked_bundle_needs(bundle: Path, baked_bundle: Path) -> None:
    """But for the tokens themselves."""
    baked = case(baked_bundle)
    tokens = baked.manifest.files[str(baked.manifest.text.baked)].size
    found = by_name(advise(case(bundle), 0)[0])["bake"]
    assert found.peak_bytes == peak(baked) - tokens


def test_int8_is_what_an_int8_bundle_needs(bundle: Path, int8_bundle: Path) -> None:
    found = by_name(advise(case(bundle), 0)[0])["int8"]
    assert found.peak_bytes == pytest.approx(peak(case(int8_bundle)), rel=0.05)


def test_what_cannot_be_changed_is_not_advised(
    bundle: Path, half_bundle: Path, int8_bundle: Path, baked_bundle: Path
) -> None:
    assert "bake" in by_name(advise(case(bundle), 0)[0])
    assert "bake" not in by_name(advise(case(baked_bundle), 0)[0])
    assert "int8" not in by_name(advise(case(int8_bundle), 0)[0]), "a search has chosen already"
    assert "--half-int8" in by_name(advise(case(half_bundle, "rtx-40"), 0)[0])["int8"].what
    assert "--half-int8" not in by_name(advise(case(bundle), 0)[0])["int8"].what
    alone = case(bundle)
    alone = replace(alone, manifest=replace(alone.manifest, members=alone.manifest.members[:1]))
    assert "fewer members" not in by_name(advise(alone, 0)[0])
    usual = replace(alone.profile, rows=tuple(replace(each, maximum=each.optimum) for each in alone.profile.rows))
    assert "fewer rows" not in by_name(advise(replace(alone, profile=usual), 0)[0])


def test_other_back_ends_of_the_same_variant(half_bundle: Path) -> None:
    """A processor's back end is no way out for a GPU."""
    profile = KNOWN["jetson-orin-nano-8gb"]
    found = by_name(make_plan(Bundle(half_bundle), profile).advice)
    assert set(found) & set(profile.backends) == {"onnxruntime-cuda"}
    assert "--backend onnxruntime-cuda" in found["onnxruntime-cuda"].what


@pytest.mark.parametrize("keep", [2, 1])
def test_as_many_members_are_kept_as_fit(bundle: Path, keep: int) -> None:
    asked = case(bundle)
    free = peak(replace(asked, stages=tuple(with_members(each, keep) for each in asked.stages)))
    found = by_name(advise(asked, free)[0])["fewer members"]
    assert found.what.startswith(f"keep {keep} of 3 members")
    assert (found.fits, found.peak_bytes) == (True, free)


def test_one_member_is_kept_where_none_fit(bundle: Path) -> None:
    found = by_name(advise(case(bundle), 0)[0])["fewer members"]
    assert found.what.startswith("keep 1 of 3 members")
    assert not found.fits


def test_where_one_change_suffices_there_is_no_second(bundle: Path) -> None:
    asked = case(bundle)
    found, together = advise(asked, peak(asked) - 1)
    assert any(each.fits for each in found)
    assert together == ()


def test_changes_that_suffice_together_and_not_without_the_last(half_bundle: Path) -> None:
    asked = case(half_bundle)
    first, second, *_ = advise(asked, 0)[0]
    free = first.peak_bytes - 1
    found, together = advise(asked, free)
    assert not any(each.fits for each in found)
    assert together[:2] == (first.name, second.name)
    assert together == tuple(each.name for each in found[: len(together)])


def test_where_nothing_suffices_nothing_is_promised(half_bundle: Path) -> None:
    found, together = advise(case(half_bundle), 1 << 20)
    assert found
    assert not any(each.fits for each in found)
    assert together == ()


def test_what_saves_next_to_nothing_is_not_worth_a_word(bundle: Path) -> None:
    """In a bundle this small int8 saves less than a hundredth of what the process takes."""
    plan = make_plan(Bundle(bundle), KNOWN["x86-cpu"])
    assert "int8" not in by_name(plan.advice)
    assert "bake" in by_name(plan.advice), "the cache of tokens goes, too"


def test_a_profile_with_fewer_rows_needs_what_was_promised(bundle: Path) -> None:
    opened, profile = Bundle(bundle), KNOWN["x86-cpu"]
    promised = by_name(make_plan(opened, profile).advice)["fewer rows"]
    rows = tuple(replace(each, maximum=each.optimum) for each in profile.rows)
    assert make_plan(opened, replace(profile, rows=rows)).estimate.peak_bytes == promised.peak_bytes
    assert "I 1, N 20, Q 7" in promised.what


def test_another_back_end_needs_what_was_promised(half_bundle: Path) -> None:
    opened, profile = Bundle(half_bundle), KNOWN["jetson-orin-nano-4gb"]
    promised = by_name(make_plan(opened, profile).advice)["onnxruntime-cuda"]
    real = make_plan(opened, profile, backend="onnxruntime-cuda")
    assert real.estimate.peak_bytes == promised.peak_bytes


def test_commands_that_are_advised_exist(bundle: Path) -> None:
    advice = advise(case(bundle), 0)[0]
    text = " ".join(each.what for each in advice)
    shown = CliRunner().invoke(app, ["export", "--help"], env={"COLUMNS": "200"}).stdout
    for option in ("--bake", "--precision", "--calibrate"):
        assert option in text
        assert option in shown
    for command in ("pack", "targets"):
        assert f"trunkline {command}" in text
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
