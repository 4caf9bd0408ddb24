"""Each check of the sensor-action system's checkpoints fires on its hazard and is silent without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.expert_kit import (
    DIFFUSION,
    REGRESSION,
    SEEN,
    encoder_state,
    expert_state,
    fused,
    published,
    read,
    save,
    whole_model,
)
from tests.kit import random_member, save_training, with_sensor
from trunkline.exporter.checkpoint.expert import new_expert
from trunkline.exporter.checkpoint.expert_doctor import (
    COLLAPSED_SHARE,
    EXPERT_CHECKS,
    PUBLISHED_ACTION_SCALE,
    delta_collapse,
    diagnose_expert,
)
from trunkline.exporter.checkpoint.findings import Finding
from trunkline.exporter.checkpoint.pack import pack
from trunkline.exporter.cli import app
from trunkline.runtime.errors import CheckpointError, InputError

State = dict[str, Tensor]


def sound(encoder: State | None = None, expert: State | None = None, **changes: Any) -> dict[str, Any]:
    return published(encoder or encoder_state(), expert or expert_state(), **changes)


def scaled(state: State, factor: float, *names: str) -> State:
    return state | {name: state[name] * factor for name in names}


def collapsed(factor: float = 0.01) -> dict[str, Any]:
    """What training with the answer as input leaves: a head that adds nothing."""
    return sound(expert=scaled(expert_state(), factor, "output_head.1.weight", "output_head.1.bias"))


def deaf() -> dict[str, Any]:
    expert = expert_state()
    expert["fusion_proj.weight"][:, SEEN:] = 0
    return sound(expert=expert)


def rounded(state: State, dtype: torch.dtype = torch.float32) -> State:
    """Statistics that were kept in bfloat16, whatever they are stored in."""
    return {
        name: value.bfloat16().to(dtype) if name.endswith(("running_mean", "running_var")) else value
        for name, value in state.items()
    }


def untrained(state: State) -> State:
    return {
        name: torch.zeros_like(value)
        if name.endswith("running_mean")
        else torch.ones_like(value)
        if name.endswith("running_var")
        else value
        for name, value in state.items()
    }


def one_expert_off() -> dict[str, Any]:
    other = scaled(expert_state(), 1.5, "pos_embed", "output_head.1.bias")
    return sound(model_state_dict=whole_model(encoder_state(), other))


def wrapped() -> dict[str, Any]:
    return {"model_state_dict": whole_model(encoder_state(), expert_state(), prefix="module.")}


def broken(state: State, name: str, value: float = float("nan")) -> State:
    return state | {name: torch.full_like(state[name], value)}


DIFFUSED = expert_state(DIFFUSION)
PLACED = expert_state(replace(DIFFUSION, horizon=8))
ENTRIES = {"sensor_encoder": encoder_state(), "action_expert": expert_state()}
NO_FUSION = expert_state(fused("none"))

#: check, severity, part, decisive words, what the file holds
FIRES: dict[str, tuple[str, str, str | None, str, Any]] = {
    "collapsed": (
        "delta_collapse",
        "warning",
        "action_expert",
        "under 0.05, which is 5% of the action scale 1",
        collapsed(),
    ),
    "one token": (
        *("ignored_sensor", "warning", "action_expert", "single vision-language token"),
        sound(expert=expert_state(fused("cross_attention"))),
    ),
    "deaf": ("ignored_sensor", "warning", "action_expert", "silence and noise move the condition by 0 of", deaf()),
    "built without fusion": (
        *("ignored_sensor", "warning", "action_expert", "no input for the sensor"),
        sound(expert=NO_FUSION),
    ),
    "diffusion over one token": (
        *("ignored_sensor", "warning", "action_expert", "single vision-language token"),
        sound(expert=expert_state(fused("cross_attention", DIFFUSION))),
    ),
    "same of every window": (
        *("constant_sensor", "warning", "sensor_encoder", "features of very different windows differ by"),
        sound(encoder=scaled(encoder_state(), 0, "projection.0.weight")),
    ),
    "bare encoder that is constant": (
        *("constant_sensor", "warning", "sensor_encoder", "very different windows"),
        scaled(encoder_state(), 0, "projection.4.weight"),
    ),
    "bfloat16 statistics": (
        *("rounded_statistics", "warning", "sensor_encoder", "conv_backbone.1, conv_backbone.5"),
        sound(encoder=rounded(encoder_state(), torch.bfloat16)),
    ),
    "rounded statistics in float32": (
        *("rounded_statistics", "warning", "sensor_encoder", "of its standard deviation"),
        sound(encoder=rounded(encoder_state())),
    ),
    "window": ("unknown_window", "note", "sensor_encoder", "how many samples a window has", sound()),
    "blind": ("step_order", "warning", "action_expert", "no pos_embed", sound(expert=DIFFUSED)),
    "clip": ("clipped_actions", "note", "action_expert", "clips every clean action to -1 .. 1", sound(expert=PLACED)),
    "schedule": ("unstored_schedule", "note", "action_expert", "noise schedule is no tensor", sound(expert=DIFFUSED)),
    "no expert": (
        *("loaded_parts", "warning", "action_expert", "holds no action_expert"),
        {"sensor_encoder": encoder_state()},
    ),
    "no encoder": (
        *("loaded_parts", "warning", "sensor_encoder", "holds no sensor_encoder"),
        {"action_expert": expert_state(fused("gated"))},
    ),
    "encoder only inside": (
        *("loaded_parts", "warning", "sensor_encoder", "no entry sensor_encoder"),
        {key: value for key, value in sound().items() if key != "sensor_encoder"},
    ),
    "expert only outside": (
        *("loaded_parts", "warning", "action_expert", "model_state_dict does not hold it"),
        sound(model_state_dict=whole_model(encoder_state(), None)),
    ),
    "two experts": (
        *("loaded_parts", "fatal", "action_expert", "differ in 2 tensors: output_head.1.bias, pos_embed"),
        one_expert_off(),
    ),
    "nan in the expert": (
        *("finite_weights", "fatal", "action_expert", "pos_embed holds NaN"),
        sound(expert=broken(expert_state(), "pos_embed")),
    ),
    "nan in the encoder": (
        *("finite_weights", "fatal", "sensor_encoder", "conv_backbone.0.bias holds NaN"),
        sound(encoder=broken(encoder_state(), "conv_backbone.0.bias")),
    ),
    "variance below 0": (
        *("finite_weights", "fatal", "sensor_encoder", "conv_backbone.1.running_var holds variances below 0"),
        sound(encoder=broken(encoder_state(), "conv_backbone.1.running_var", -1.0)),
    ),
}

SILENT: dict[str, tuple[str, Any]] = {
    "moves": ("delta_collapse", sound()),
    "half the size is motion still": ("delta_collapse", collapsed(0.5)),
    "diffusion has no delta": ("delta_collapse", sound(expert=DIFFUSED)),
    "concat hears": ("ignored_sensor", sound()),
    "gated hears": ("ignored_sensor", sound(expert=expert_state(fused("gated")))),
    "gated diffusion hears": ("ignored_sensor", sound(expert=expert_state(fused("gated", DIFFUSION)))),
    "nothing to ignore": (
        "ignored_sensor",
        {"action_expert": NO_FUSION, "model_state_dict": whole_model(None, NO_FUSION)},
    ),
    "nobody can tell": ("ignored_sensor", {"action_expert": expert_state()}),
    "features vary": ("constant_sensor", sound()),
    "no encoder to be constant": ("constant_sensor", {"action_expert": expert_state()}),
    "float32 statistics": ("rounded_statistics", sound()),
    "statistics of no training": ("rounded_statistics", sound(encoder=untrained(encoder_state()))),
    "bfloat16 weights, float32 statistics": (
        "rounded_statistics",
        sound(encoder=encoder_state() | {"projection.0.weight": encoder_state()["projection.0.weight"].bfloat16()}),
    ),
    "no window": ("unknown_window", {"action_expert": expert_state()}),
    "regression knows its places": ("step_order", sound()),
    "diffusion with places": ("step_order", sound(expert=PLACED)),
    "regression is not clipped": ("clipped_actions", sound()),
    "regression has no schedule": ("unstored_schedule", sound()),
    "both, twice, the same": ("loaded_parts", sound()),
    "entries alone": ("loaded_parts", ENTRIES),
    "an encoder and nothing else": ("loaded_parts", encoder_state()),
    "no encoder needed": (
        "loaded_parts",
        {"action_expert": NO_FUSION, "model_state_dict": whole_model(None, NO_FUSION)},
    ),
    "finite": ("finite_weights", sound(expert=broken(expert_state(), "pos_embed", 1e30))),
}


def found_by(check: str, folder: Path, content: object, **options: float) -> list[Finding]:
    return [finding for finding in diagnose_expert(read(folder, content), **options) if finding.check == check]


@pytest.mark.parametrize("case", FIRES.values(), ids=list(FIRES))
def test_fires(tmp_path: Path, case: tuple[str, str, str | None, str, Any]) -> None:
    check, severity, part, words, content = case
    findings = found_by(check, tmp_path, content)
    assert [(finding.severity, finding.member) for finding in findings] == [(severity, part)]
    assert words in findings[0].problem
    assert findings[0].meaning
    assert findings[0].fix


@pytest.mark.parametrize("case", SILENT.values(), ids=list(SILENT))
def test_silent(tmp_path: Path, case: tuple[str, Any]) -> None:
    check, content = case
    assert found_by(check, tmp_path, content) == []


def test_every_check_has_a_case_that_fires_and_one_that_does_not() -> None:
    names = {check.__name__ for check in EXPERT_CHECKS} | {delta_collapse.__name__}
    assert names == {case[0] for case in FIRES.values()} == {case[0] for case in SILENT.values()}


def test_a_sound_file_has_nothing_but_the_window_that_nobody_knows(tmp_path: Path) -> None:
    for expert in (expert_state(), expert_state(fused("gated"))):
        assert [each.check for each in diagnose_expert(read(tmp_path, sound(expert=expert)))] == ["unknown_window"]


def test_a_whole_model_that_was_saved_wrapped(tmp_path: Path) -> None:
    findings = found_by("loaded_parts", tmp_path, wrapped())
    assert [finding.member for finding in findings] == [None, "sensor_encoder", "action_expert"]
    assert "strict off" in findings[0].meaning


def test_the_threshold_is_relative_to_the_action_scale(tmp_path: Path) -> None:
    assert (COLLAPSED_SHARE, PUBLISHED_ACTION_SCALE) == (0.05, 1.0)
    assert found_by("delta_collapse", tmp_path, collapsed(), action_scale=0.01) == []
    (finding,) = found_by("delta_collapse", tmp_path, sound(), action_scale=1000.0)
    assert "under 50, which is 5% of the action scale 1000" in finding.problem
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"(?s)action scale.*positive"):
            diagnose_expert(read(tmp_path, sound()), action_scale=scale)


def test_a_trained_expert_shows_what_it_was_trained_on(tmp_path: Path) -> None:
    """Two experts learn the same motions; the one that is handed the answer learns to add nothing."""
    answers = torch.randn(8, 8, 7, generator=torch.Generator().manual_seed(1)) * 0.3
    answers[..., 6] = 1.0  # the published actions end in a constant
    found = []
    for handed in (answers, torch.zeros_like(answers)):
        found.append(found_by("delta_collapse", tmp_path, sound(expert=trained(handed, answers))))
    assert [len(findings) for findings in found] == [1, 0]


def trained(handed: Tensor, answers: Tensor) -> State:
    """The kit's expert after some steps of the published training, of its head alone."""
    torch.manual_seed(0)
    expert = new_expert(REGRESSION).eval()
    seen, sensor = torch.randn(len(answers), SEEN), torch.randn(len(answers), REGRESSION.sensor)
    decoded = []
    expert.output_head.register_forward_pre_hook(lambda _, inputs: decoded.append(inputs[0].detach()))
    expert(seen, handed, sensor)
    optimiser = torch.optim.Adam(expert.output_head.parameters(), 0.05)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(handed + expert.output_head(decoded[0]), answers).backward()
        optimiser.step()
    return {name: value.detach() for name, value in expert.published().items()}


def test_rounding_is_measured_in_standard_deviations(tmp_path: Path) -> None:
    encoder = rounded(encoder_state())
    for index in (1, 5, 9, 13):
        encoder[f"conv_backbone.{index}.running_mean"].fill_(0.5)
        encoder[f"conv_backbone.{index}.running_var"].fill_(0.25)
    encoder["conv_backbone.5.running_mean"][3] = -64.0
    (finding,) = found_by("rounded_statistics", tmp_path, sound(encoder=encoder))
    assert "by 0.5 of its standard deviation" in finding.problem  # 64 / 0.5 / 256


def test_a_blind_diffusion_expert_is_shown_to_be_one(tmp_path: Path) -> None:
    (finding,) = found_by("step_order", tmp_path, sound(expert=DIFFUSED))
    share = float(finding.problem.rpartition("within ")[2].partition(" ")[0])
    assert share < 1e-4


def test_fatal_findings_come_first(tmp_path: Path) -> None:
    severities = [finding.severity for finding in diagnose_expert(read(tmp_path, one_expert_off()))]
    assert severities == ["fatal", "note"]


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def test_the_command_says_what_the_file_is(tmp_path: Path) -> None:
    path = save(tmp_path / "vla.pt", collapsed())
    text = run("doctor", path).stdout
    assert text.startswith("sensor-action checkpoint, no verifier: a regression expert")
    assert "warning: delta_collapse in action_expert: handed a neutral chunk of zeros" in text
    assert "on the robot: it was trained with the answer as input" in text
    assert "2 findings, 0 fatal" in text
    assert "delta_collapse" not in run("doctor", path, "--action-scale", "0.01").stdout
    report = json.loads(run("doctor", path, "--json").stdout)
    assert report["kind"].startswith("sensor-action checkpoint")
    assert [finding["check"] for finding in report["findings"]] == ["delta_collapse", "unknown_window"]
    run("doctor", save(tmp_path / "two.pt", one_expert_off()), code=1)
    assert "positive number" in run("doctor", path, "--action-scale", "0", code=1).stderr


def test_the_command_says_what_a_verifier_reads_of_a_sensor(tmp_path: Path) -> None:
    path = save_training(random_member(with_sensor(fusion="gated")), tmp_path / "a.pt")
    text = run("doctor", path).stdout
    assert text.startswith("training checkpoint\n")
    assert "sensor: 6 channels at 650 Hz, windows of 650 samples (1 s)" in text
    assert "sensor: gated fusion of 20 features, with an answer to a missing sensor: a" in text
    assert "sensor:" not in run("doctor", save_training(random_member(), tmp_path / "b.pt")).stdout


@pytest.mark.parametrize("content", [sound, encoder_state, lambda: ENTRIES], ids=["published", "bare", "entries"])
def test_such_a_file_is_no_member(tmp_path: Path, content: Callable[[], object]) -> None:
    path = save(tmp_path / "vla.pt", content())
    with pytest.raises(CheckpointError, match=r"(?s)not a verifier checkpoint but.*scores.*--sensor-encoder"):
        pack([path], tmp_path / "out.pt")
    for name, output in (("pack", "out.pt"), ("export", "bundle")):
        assert "not a verifier checkpoint but" in run(name, path, "-o", tmp_path / output, code=1).stderr
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "out.pt").exists()
