"""Each check of the doctor fires on its hazard and is silent without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.kit import FORM, SMALL, SMALL_MLP, random_checkpoint, random_member, with_sensor
from trunkline.exporter.checkpoint import doctor
from trunkline.exporter.checkpoint.doctor import CHECKS, Finding, diagnose, refuse_fatal
from trunkline.exporter.checkpoint.members import Checkpoint, Member, Settings
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.export import build, export
from trunkline.exporter.reference import sinusoid
from trunkline.exporter.trunk import Trunk
from trunkline.runtime.errors import CheckpointError

TAV = "text_aware_visual_extraction"


def edited(member: Member, part: str, key: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Member:
    components = {name: dict(state) for name, state in member.components.items()}
    components[part][key] = edit(components[part][key].clone())
    return replace(member, components=components)


def with_second(checkpoint: Checkpoint, member: Member) -> Checkpoint:
    return replace(checkpoint, members=(checkpoint.members[0], member, *checkpoint.members[2:]))


def second(part: str, key: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Checkpoint:
    checkpoint = random_checkpoint(3)
    return with_second(checkpoint, edited(checkpoint.members[1], part, key, edit))


def filled(value: float, index: int | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    def edit(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[slice(None) if index is None else index] = value
        return tensor

    return edit


def cast(member: Member, dtype: torch.dtype) -> Member:
    return replace(
        member,
        components={part: {key: t.to(dtype) for key, t in state.items()} for part, state in member.components.items()},
    )


def unrelated(seed: int) -> Member:
    return edited(random_member(seed=seed), "input_projection", "weight", lambda tensor: torch.randn(tensor.shape))


def declaring(**declared: object) -> Checkpoint:
    return replace(random_checkpoint(3), declared=declared)


def padded(value: float) -> Checkpoint:
    members = tuple(random_member(seed=seed, padding=value) for seed in range(2))
    return Checkpoint("random", members, "test")


def sensing(fusion: str = "concat", **changes: object) -> Checkpoint:
    return random_checkpoint(1, with_sensor(fusion=fusion, **changes))


def sensor_edited(part: str, key: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Checkpoint:
    checkpoint = sensing()
    return replace(checkpoint, members=(edited(checkpoint.members[0], part, key, edit),))


def deaf() -> Checkpoint:
    """Its fusion has learned to look away: the sensor's columns are zero."""

    def edit(weight: torch.Tensor) -> torch.Tensor:
        weight[:, 2 * SMALL.pool_width :] = 0
        return weight

    return sensor_edited("sensor_fusion", "fusion_proj.weight", edit)


RIGHT = {"num_models": 3, "use_transformer": True, "history_length": 10, "action_dim": 7}
BASE = random_checkpoint(3)

#: check, severity, member, decisive words, checkpoint
FIRES: dict[str, tuple[str, str, str | None, str, Checkpoint]] = {
    "zero": ("temperature", "fatal", "epoch_1", "temperature is 0;", second(TAV, "temperature", filled(0.0))),
    "negative": ("temperature", "fatal", "epoch_1", "temperature is -0.5;", second(TAV, "temperature", filled(-0.5))),
    "huge": ("temperature", "note", "epoch_1", "clamped to 100", second(TAV, "temperature", filled(101.0))),
    "nan": (
        *("finite_weights", "fatal", "epoch_1", "NaN or infinite weights in text_pooling.query"),
        second("text_pooling", "query", filled(float("nan"), 3)),
    ),
    "inf": (
        *("finite_weights", "fatal", "epoch_1", "input_projection.bias"),
        second("input_projection", "bias", filled(float("inf"), 0)),
    ),
    "nan temperature": (
        *("finite_weights", "fatal", "epoch_1", f"{TAV}.temperature"),
        second(TAV, "temperature", filled(float("nan"))),
    ),
    "float64 beyond float32": (
        *("finite_weights", "fatal", "epoch_1", "input_projection.bias"),
        second("input_projection", "bias", lambda tensor: tensor.double() + 1e300),
    ),
    "half": (
        *("stored_dtype", "warning", "epoch_1", "stored as bfloat16"),
        with_second(BASE, cast(BASE.members[1], torch.bfloat16)),
    ),
    "count": ("declared_metadata", "fatal", None, "num_models = 4, the tensors say 3", declaring(num_models=4)),
    "flag": ("declared_metadata", "fatal", None, "use_transformer = False", declaring(use_transformer=False)),
    "window": ("declared_metadata", "fatal", None, "history_length = 16", declaring(history_length=16)),
    "width": ("declared_metadata", "fatal", None, "action_dim = '7'", declaring(action_dim="7")),
    "sources": (
        *("declared_metadata", "warning", None, "2 source names for 3 members"),
        declaring(source_checkpoints=["a.pt", "b.pt"]),
    ),
    "assumed": ("assumed_metadata", "note", None, "taken on trust", replace(BASE, notes=("taken on trust",))),
    "other shape": (
        *("members_belong_together", "fatal", "epoch_9", "patches is 9, epoch_0 has 16"),
        with_second(BASE, random_member(replace(SMALL, patches=9), 9)),
    ),
    "other padding": (
        *("members_belong_together", "fatal", "epoch_9", "padding_value is -4.0, epoch_0 has -5.0"),
        with_second(BASE, random_member(seed=9, padding=-4.0)),
    ),
    "twice": (
        *("duplicates", "warning", "copy", "same weights as epoch_0"),
        with_second(BASE, replace(BASE.members[0], name="copy")),
    ),
    "two runs": ("one_run", "warning", "epoch_9", "unrelated to epoch_0", with_second(BASE, unrelated(9))),
    "order": ("step_order", "note", None, "cannot see the order", BASE),
    "mlp padding": ("padding_value", "note", None, "ordinary numbers", random_checkpoint(2, SMALL_MLP)),
    "padding 0": ("padding_value", "warning", None, "padding value 0 lies within", padded(0.0)),
    "padding 1": ("padding_value", "warning", None, "padding value 1 lies within", padded(1.0)),
    "position": (
        *("position_code", "warning", "epoch_1", "differs from the published formula by up to 0.5"),
        second(TAV, "pos_emb", lambda tensor: tensor + 0.5),
    ),
    "one token": (
        *("ignored_sensor", "warning", "epoch_0", "single vision-language token"),
        sensing("cross-attention, one token"),
    ),
    "deaf": ("ignored_sensor", "warning", "epoch_0", "as different as silence and noise", deaf()),
    "collapsed": (
        *("constant_sensor", "warning", "epoch_0", "very different windows"),
        sensor_edited("sensor_encoder", "projection.0.weight", lambda weight: weight * 0),
    ),
    "resampled": (
        *("window_skew", "warning", None, "windows of 50 samples (0.5 s) are resampled to 5 steps"),
        random_checkpoint(2, with_sensor(), form=replace(FORM, steps=5)),
    ),
    "no absence": ("sensor_absence", "note", "epoch_0", "where there is no sensor", sensing(absent=False)),
    "other rates": (
        *("members_belong_together", "fatal", "epoch_9", "sensor.rate_hz is 99.0, epoch_0 has 100.0"),
        with_second(sensing(), random_member(with_sensor(), 9, form=replace(FORM, rate_hz=99.0))),
    ),
}

SILENT: dict[str, tuple[str, Checkpoint]] = {
    "usual temperature": ("temperature", BASE),
    "small and limit": ("temperature", second(TAV, "temperature", filled(100.0))),
    "finite": ("finite_weights", second("input_projection", "bias", filled(1e30))),
    "float32": ("stored_dtype", BASE),
    "right": ("declared_metadata", declaring(**RIGHT, source_checkpoints=["a", "b", "c"])),
    "nothing declared": ("declared_metadata", BASE),
    "nothing assumed": ("assumed_metadata", BASE),
    "together": ("members_belong_together", BASE),
    "distinct": ("duplicates", second("input_projection", "bias", lambda tensor: tensor + 1e-6)),
    "different sizes": ("duplicates", with_second(BASE, random_member(replace(SMALL, patches=9), 9))),
    "one run": ("one_run", BASE),
    "not comparable": ("one_run", with_second(BASE, random_member(replace(SMALL, pool_width=64), 9))),
    "mlp order": ("step_order", random_checkpoint(2, SMALL_MLP)),
    "padding -5": ("padding_value", BASE),
    "padding just outside": ("padding_value", padded(-1.001)),
    "formula": ("position_code", BASE),
    "concat hears": ("ignored_sensor", sensing()),
    "gated hears": ("ignored_sensor", sensing("gated")),
    "two tokens hear": ("ignored_sensor", sensing("cross-attention")),
    "features vary": ("constant_sensor", sensing()),
    "whole windows": ("window_skew", sensing()),
    "adaptive windows": (
        "window_skew",
        random_checkpoint(1, with_sensor(), form=replace(FORM, steps=5, adaptive=True)),
    ),
    "absence": ("sensor_absence", sensing()),
    "sensor counts": ("stored_dtype", sensing()),
    "with and without sensor": ("members_belong_together", with_second(BASE, random_member(with_sensor(), 9))),
    "two fusions": ("members_belong_together", with_second(sensing(), random_member(with_sensor(fusion="gated"), 9))),
    "rounding": ("position_code", second(TAV, "pos_emb", lambda tensor: tensor + 5e-4)),
}


def found_by(check: str, checkpoint: Checkpoint) -> list[Finding]:
    return [finding for finding in diagnose(checkpoint) if finding.check == check]


@pytest.mark.parametrize("case", FIRES.values(), ids=list(FIRES))
def test_fires(case: tuple[str, str, str | None, str, Checkpoint]) -> None:
    check, severity, member, words, checkpoint = case
    findings = found_by(check, checkpoint)
    assert [(finding.severity, finding.member) for finding in findings] == [(severity, member)]
    assert words in findings[0].problem
    assert findings[0].meaning
    assert findings[0].fix


@pytest.mark.parametrize("case", SILENT.values(), ids=list(SILENT))
def test_silent(case: tuple[str, Checkpoint]) -> None:
    check, checkpoint = case
    assert found_by(check, checkpoint) == []


def test_every_check_has_a_case_that_fires_and_one_that_does_not() -> None:
    names = {check.__name__ for check in CHECKS}
    assert names == {case[0] for case in FIRES.values()} == {case[0] for case in SILENT.values()}


def test_all_wrong_metadata_is_found_at_once() -> None:
    wrong = declaring(num_models=2, use_transformer=False, history_length=9, action_dim=8)
    assert len(found_by("declared_metadata", wrong)) == 4


def test_many_broken_tensors_are_cut_short() -> None:
    member = random_member()
    broken = {part: {key: t * float("nan") for key, t in s.items()} for part, s in member.components.items()}
    (finding,) = found_by("finite_weights", Checkpoint("random", (replace(member, components=broken),), "test"))
    assert finding.problem.endswith("and more")


def test_the_position_formula_is_the_published_one() -> None:
    code = sinusoid(5, 4)
    row = torch.tensor([3.0, 3.0 / 100])
    torch.testing.assert_close(code[3], torch.cat([row.sin(), row.cos()]))


def test_fatal_findings_come_first() -> None:
    checkpoint = second(TAV, "temperature", filled(0.0))
    severities = [finding.severity for finding in diagnose(checkpoint)]
    assert severities[0] == "fatal"
    assert severities == sorted(severities, key=("fatal", "warning", "note").index)


def fatal() -> Checkpoint:
    checkpoint = second(TAV, "temperature", filled(0.0))
    return replace(checkpoint, declared={"num_models": 7})


def test_refuse_fatal_lists_all_of_them_and_returns_the_rest() -> None:
    with pytest.raises(CheckpointError, match=r"(?s)wrong or undefined scores.*trunkline doctor") as caught:
        refuse_fatal(fatal(), "here")
    assert [line.partition(":")[0] for line in caught.value.found] == ["epoch_1", "ensemble"]
    assert [finding.severity for finding in refuse_fatal(BASE, "here")] == ["note"]


def test_fatal_findings_stop_build_and_export(tmp_path: Path, trunk: Trunk, trunk_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="wrong or undefined scores"):
        build(fatal(), trunk, tmp_path / "bundle")
    broken = replace(second(TAV, "temperature", filled(-1.0)), backbone=f"local-dir:{trunk_folder}")
    write_checkpoint(broken, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="temperature is -1"):
        export(tmp_path / "m.safetensors", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_constants() -> None:
    settings: Mapping[str, float] = {"limit": doctor.MAX_TEMPERATURE, "default": Settings().padding_value}
    assert settings == {"limit": 100.0, "default": -5.0}
