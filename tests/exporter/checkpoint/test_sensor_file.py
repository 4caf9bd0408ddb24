"""Sensor encoders are found in every form a file may have, whole and unaltered; what is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.expert_kit import encoder_state, expert_state, published, save, whole_model
from tests.kit import FORM, SENSOR, SMALL, random_checkpoint, random_member, training_dict, with_sensor
from trunkline.exporter.checkpoint.members import Checkpoint, StateDict
from trunkline.exporter.checkpoint.sensor_file import (
    copies,
    declared_form,
    fusions,
    read_sensor_encoder,
    sensor_form,
    with_counters,
)
from trunkline.exporter.reference_sensor import SensorEncoder
from trunkline.runtime.errors import CheckpointError
from trunkline.runtime.sensor.form import SensorForm

FORMS: dict[str, Callable[[StateDict], object]] = {
    "bare": dict,
    "under its name": lambda state: {"sensor_encoder": state, "note": "a run"},
    "inside model_state_dict": lambda state: {"model_state_dict": whole_model(state, expert_state())},
    "inside a state dict": lambda state: whole_model(state, None),
    "inside a wrapped model": lambda state: {"model_state_dict": whole_model(state, None, prefix="module.")},
    "both, as the trainer saves it": lambda state: published(state, expert_state()),
    "its own entry is empty": lambda state: {"sensor_encoder": {}, "model_state_dict": whole_model(state, None)},
    "in a verifier's training checkpoint": lambda state: training_dict(
        replace(
            random_member(with_sensor()), components=random_member(with_sensor()).components | {"sensor_encoder": state}
        )
    ),
}


def same(one: StateDict, two: StateDict) -> bool:
    """The same tensors, to the bit and the type."""
    return one.keys() == two.keys() and all(
        one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]) for key in one
    )


def refused(path: Path, *words: str) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_sensor_encoder(path)
    missing = [word for word in (*words, str(path)) if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    return caught.value


def edited(**tensors: Any) -> dict[str, torch.Tensor]:
    """The kit's encoder with other tensors (None: without); ``__`` stands for the dots."""
    state = encoder_state() | {key.replace("__", "."): value for key, value in tensors.items()}
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_form_gives_the_same_tensors(
    tmp_path: Path, form: Callable[[StateDict], object], dtype: torch.dtype
) -> None:
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in encoder_state().items()}
    assert same(read_sensor_encoder(save(tmp_path / "e.pt", form(state))), state)


@pytest.mark.parametrize(
    "changes", [{"layers": 0, "feedforward": 0}, {"absent": True}, {"channels": 1}, {"conv": (8, 8)}]
)
def test_every_kind_of_encoder(tmp_path: Path, changes: dict[str, Any]) -> None:
    state = encoder_state(**changes)
    assert same(read_sensor_encoder(save(tmp_path / "e.pt", state)), state)


@pytest.mark.parametrize("prefix", ["", "sensor_encoder."])
def test_safetensors(tmp_path: Path, prefix: str) -> None:
    state = encoder_state()
    save_file({f"{prefix}{key}": value for key, value in state.items()}, tmp_path / "e.safetensors")
    assert same(read_sensor_encoder(tmp_path / "e.safetensors"), state)


def test_an_encoder_stored_in_bfloat16_computes_in_float32(tmp_path: Path) -> None:
    """The published wrappers cast the whole module, statistics of the batch norms included."""
    encoder = SensorEncoder(replace(SENSOR, absent=False), FORM, 8)
    encoder.load_state_dict(encoder_state())
    stored = encoder.to(torch.bfloat16).state_dict()
    state = read_sensor_encoder(save(tmp_path / "e.pt", stored))
    assert state["conv_backbone.1.running_var"].dtype == torch.bfloat16
    assert state["conv_backbone.1.num_batches_tracked"].dtype == torch.int64
    again = SensorEncoder(replace(SENSOR, absent=False), FORM, 8)
    again.load_state_dict(dict(state))
    windows = torch.randn(3, FORM.steps, FORM.channels)
    assert torch.equal(again.eval()(windows), encoder.float().eval()(windows))


def test_missing_counters_are_filled_in(tmp_path: Path) -> None:
    whole = encoder_state()
    state = {key: value for key, value in whole.items() if not key.endswith("num_batches_tracked")}
    assert len(state) == len(whole) - len(SENSOR.conv)
    for content in (state, published(state, None)):
        found = read_sensor_encoder(save(tmp_path / "e.pt", content))
        assert found.keys() == whole.keys()
        assert all(found[f"conv_backbone.{4 * index + 1}.num_batches_tracked"] == 0 for index in range(4))
    assert with_counters(whole) is whole


def test_pytorch_fills_them_in_as_well() -> None:
    """Strict loading of a plain dict does not ask for them, so leaving them out is no sign of another network."""
    state = {key: value for key, value in encoder_state().items() if not key.endswith("num_batches_tracked")}
    SensorEncoder(replace(SENSOR, absent=False), FORM, 8).load_state_dict(state, strict=True)


def test_two_copies_that_differ_are_refused(tmp_path: Path) -> None:
    content = published(encoder_state(), None, model_state_dict=whole_model(encoder_state(seed=1), None))
    error = refused(save(tmp_path / "e.pt", content), "holds two sensor encoders", "which one was trained")
    assert "conv_backbone.0.weight differs" in error.found
    other = edited(extra=torch.zeros(1), projection__4__bias=None)
    content = published(encoder_state(), None, model_state_dict=whole_model(other, None))
    assert refused(save(tmp_path / "e.pt", content)).found == ["extra differs", "projection.4.bias differs"]


def test_copies_that_differ_in_type_or_shape_only() -> None:
    state = {"a": torch.zeros(4), "b": torch.tensor([float("nan"), 1.0])}
    assert (
        copies(
            {"part": state, "model_state_dict": {"part.a": torch.zeros(4), "part.b": state["b"].clone()}}, "part", ""
        ).differing()
        == []
    )
    for other in (torch.zeros(2, 2), torch.zeros(4, dtype=torch.float64), -torch.zeros(4)):
        assert copies({"part": {"a": state["a"]}, "part.a": other}, "part", "").differing() == ["a"]


def test_all_tensors_that_are_wrong_are_named(tmp_path: Path) -> None:
    state = edited(
        conv_backbone__1__running_var=None,
        conv_backbone__9__running_mean=torch.zeros(3),
        projection__1__bias=torch.zeros(12, 1),
        extra=torch.zeros(2),
    )
    error = refused(
        save(tmp_path / "e.pt", state), "do not fit together", "6 channels, 4 convolutions, 2 transformer layers"
    )
    assert sorted(error.found) == [
        "conv_backbone.9.running_mean is (3,), expected (16,)",
        "missing conv_backbone.1.running_var (8,)",
        "projection.1.bias is (12, 1), expected (12,)",
        "unexpected extra (2,)",
    ]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"conv_backbone__0__weight": torch.zeros(8, 6, 5)}, "conv_backbone.0.weight (8, 6, 5)"),
        ({"conv_backbone__0__weight": None}, "no conv_backbone.0.weight"),
        ({"projection__4__weight": None}, "missing projection.4.weight"),
        ({"projection__0__weight": torch.zeros(())}, "cannot read a sensor encoder's sizes"),
        ({"transformer__layers__0__linear1__weight": None}, "missing transformer.layers.0.linear1.weight"),
        ({"conv_backbone__4__weight": torch.zeros(16, 9, 3)}, "conv_backbone.4.weight is (16, 9, 3), expected"),
        ({"projection__0__bias": torch.full((12,), float("nan"))}, "projection.0.bias holds NaN"),
        ({"conv_backbone__0__bias": torch.tensor([float("inf")] * 8)}, "conv_backbone.0.bias holds NaN or infinite"),
        ({"conv_backbone__1__running_var": -torch.ones(8)}, "conv_backbone.1.running_var holds variances below 0"),
        ({"conv_backbone__1__weight": torch.ones(8, dtype=torch.int8)}, "conv_backbone.1.weight is int8"),
        ({"note": "text"}, "more than tensors"),
    ],
)
def test_wrong_tensors(tmp_path: Path, tensors: dict[str, Any], words: str) -> None:
    refused(save(tmp_path / "e.pt", edited(**tensors)), words)
    if "note" not in tensors:
        refused(save(tmp_path / "e.pt", {"sensor_encoder": edited(**tensors)}), words)


@pytest.mark.parametrize("part", [[1], 3, torch.zeros(2), {"a": 1}, {1: torch.zeros(1)}], ids=repr)
def test_an_entry_that_is_no_state_dict(tmp_path: Path, part: object) -> None:
    refused(save(tmp_path / "e.pt", {"sensor_encoder": part}), "not a state dict", "sensor_encoder")


@pytest.mark.parametrize(
    "content",
    [{}, {"weights": torch.zeros(1)}, {"model_state_dict": 3}, {"sensor_encoder": None}, {"model_state_dict": {}}],
)
def test_files_without_an_encoder(tmp_path: Path, content: object) -> None:
    refused(save(tmp_path / "e.pt", content), "holds no sensor encoder", "bare, under sensor_encoder")


def test_unreadable_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "no such file")
    refused(tmp_path / "none.safetensors", "no such file")
    (tmp_path / "e.safetensors").write_bytes(b"torn")
    refused(tmp_path / "e.safetensors", "cannot read a safetensors file")
    (tmp_path / "e.pt").write_bytes(b"torn")
    refused(tmp_path / "e.pt", "restricted loader")


def test_the_stream_is_the_stated_or_the_published_one_with_the_channels_of_the_weights() -> None:
    assert sensor_form(None, SENSOR, "here") == SensorForm(channels=6)
    assert sensor_form(SensorForm(rate_hz=50.0, steps=19), SENSOR, "here") == SensorForm(6, 50.0, steps=19)
    assert sensor_form(SensorForm(), None, "here") is None


def test_windows_that_the_convolutions_reduce_to_one_step() -> None:
    assert sensor_form(SensorForm(steps=17), SENSOR, "here") == SensorForm(channels=6, steps=17)
    with pytest.raises(CheckpointError, match=r"(?s)single step.*here.*more than 16 steps.*16 steps.*--sensor-steps"):
        sensor_form(SensorForm(steps=16), SENSOR, "here")


def test_the_stream_of_a_merged_file() -> None:
    stated = {
        "channels": 6,
        "rate_hz": 100.0,
        "samples": 50,
        "steps": 50,
        "resample": "cubic",
        "padding": "none",
        "adaptive": True,
    }
    assert declared_form({"sensor": stated}, None, "f") == SensorForm(6, 100.0, 50, 50, "cubic", "none", True)
    assert declared_form({}, FORM, "f") is FORM
    for wrong, words in (
        ({"rate": 1}, "unknown field"),
        (stated | {"resample": "area"}, "resample"),
        (stated | {"samples": "50"}, "samples"),
        (stated | {"adaptive": 1}, "adaptive"),
        ([], "top level"),
    ):
        with pytest.raises(CheckpointError, match=rf"(?s)metadata is not usable.*f, sensor.*{words}"):
            declared_form({"sensor": wrong}, None, "f")


def test_how_members_fuse_a_sensor() -> None:
    assert fusions(random_checkpoint(2)) == []
    members = (
        random_member(),
        random_member(with_sensor(), 1),
        random_member(with_sensor(fusion="cross-attention"), 2),
        random_member(with_sensor(), 3),
    )
    assert fusions(Checkpoint("random", members, None)) == [
        "no sensor: epoch_0",
        "concat fusion of 20 features, with an answer to a missing sensor: epoch_1, epoch_3",
        "cross-attention fusion over 2 tokens of 20 features, with an answer to a missing sensor: epoch_2",
    ]
    without = Checkpoint("random", (random_member(with_sensor(SMALL, "gated", absent=False)),), None)
    assert "gated fusion of 20 features, without an answer" in fusions(without)[0]
