"""What is no weight is refused by name at every door, with its own cause; names of wrapped models are told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.kit import SMALL, random_checkpoint, random_member, training_dict, with_sensor
from trunkline.exporter.checkpoint.doctor import diagnose
from trunkline.exporter.checkpoint.expert import read_sensor_action
from trunkline.exporter.checkpoint.pack import pack
from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.checkpoint.sensor_file import read_sensor_encoder
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.reference import build_member
from trunkline.exporter.reference_expert import ExpertShape, RegressionExpert
from trunkline.runtime.errors import CheckpointError

Tensor = torch.Tensor
Change = Callable[[Tensor], Tensor]

#: What a tensor becomes, the words of the refusal, and whether safetensors can hold it.
NO_WEIGHTS: dict[str, tuple[Change, str, bool]] = {
    "int8": (lambda tensor: tensor.to(torch.int8), "is int8", True),
    "uint8": (lambda tensor: tensor.to(torch.uint8), "is uint8", True),
    "int32": (lambda tensor: tensor.to(torch.int32), "is int32", True),
    "int64": (lambda tensor: tensor.to(torch.int64), "is int64", True),
    "bool": (lambda tensor: tensor > 0, "is bool", True),
    "complex": (lambda tensor: tensor.to(torch.complex64), "is complex64", True),
    "float8": (lambda tensor: tensor.to(torch.float8_e4m3fn), "is float8_e4m3fn", True),
    "quantised": (
        lambda tensor: torch.quantize_per_tensor(tensor.detach(), 0.1, 0, torch.qint8),
        "is quantised (qint8)",
        False,
    ),
    "sparse": (lambda tensor: tensor.detach().to_sparse(), "is sparse (sparse_coo)", False),
    "without values": (lambda tensor: tensor.to("meta"), "is a meta tensor, without values", False),
    "empty": (lambda tensor: tensor[:0], "is of shape (0,", True),
    "endless": (lambda tensor: torch.zeros(1).expand(1 << 40, *tensor.shape), "is of shape (1099511627776,", False),
    "nested": (lambda tensor: torch.nested.nested_tensor([tensor.detach().flatten()]), "is nested", False),
}
#: What a trunk's buffers may be.
BUFFERS = ("int32", "int64", "bool", "empty", "endless")
#: Only a matrix can be of this layout.
ROWS: tuple[Change, str, bool] = (lambda tensor: tensor.detach().to_sparse_csr(), "is sparse (sparse_csr)", False)

KEY = "input_projection.weight"
ENCODER_KEY = "projection.0.weight"


def encoder() -> dict[str, Tensor]:
    return dict(random_member(with_sensor()).components["sensor_encoder"])


def expert() -> dict[str, Tensor]:
    shape = ExpertShape("regression", "concat", 24, 20, 32, 2, 48, 10, 7)
    return RegressionExpert(shape).published()


def with_changed(state: dict[str, Tensor], key: str, change: Change) -> dict[str, Tensor]:
    return state | {key: change(state[key])}


def training(change: Change, path: Path) -> Path:
    content = training_dict(random_member())
    content["model_state_dict"] = with_changed(content["model_state_dict"], KEY, change)
    torch.save(content, path)
    return path


def bare(change: Change, path: Path) -> Path:
    torch.save(with_changed(training_dict(random_member())["model_state_dict"], KEY, change), path)
    return path


def merged(change: Change, path: Path, **metadata: Any) -> Path:
    member = random_member()
    part, _, key = KEY.partition(".")
    components = {name: dict(state) for name, state in member.components.items()}
    components[part] = with_changed(components[part], key, change)
    torch.save({"ensemble_components": [components], **metadata}, path)
    return path


def published(change: Change, path: Path) -> Path:
    return merged(change, path, backbone="hf-hub:timm/some", num_models=1)


DOORS = {"training": training, "bare": bare, "merged": published, "weights only": merged}


def refusal(read: Callable[[], object], *words: str) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    assert "space" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", [*NO_WEIGHTS, "rows"])
@pytest.mark.parametrize("door", DOORS)
def test_a_head_of_what_is_no_weight(door: str, kind: str, tmp_path: Path) -> None:
    change, words, _ = NO_WEIGHTS.get(kind, ROWS)
    path = DOORS[door](change, tmp_path / "a.pt")
    error = refusal(lambda: read_checkpoint(path), "cannot be used as weights", f"{KEY} {words}", "dense float32")
    assert len(error.found) == 1
    refusal(lambda: pack([path], tmp_path / "m.safetensors", backbone="x"), words)
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("kind", [kind for kind, (_, _, storable) in NO_WEIGHTS.items() if storable])
def test_an_ensemble_file_of_what_is_no_weight(kind: str, tmp_path: Path) -> None:
    change, words, _ = NO_WEIGHTS[kind]
    member = random_member()
    part, _, key = KEY.partition(".")
    spoilt = member.components | {part: with_changed(dict(member.components[part]), key, change)}
    path = tmp_path / "e.safetensors"
    write_checkpoint(replace(random_checkpoint(1), members=(replace(member, components=spoilt),)), path)
    refusal(lambda: read_checkpoint(path), f"{KEY} {words}", "member epoch_0")


def test_all_tensors_are_named_and_each_kind_says_how_to_mend_it(tmp_path: Path) -> None:
    content = training_dict(random_member())
    state = content["model_state_dict"]
    kinds = [*NO_WEIGHTS]
    names = [name for name in state if state[name].ndim >= 1][: len(kinds)]
    for name, kind in zip(names, kinds, strict=True):
        state[name] = NO_WEIGHTS[kind][0](state[name])
    torch.save(content, tmp_path / "a.pt")
    error = refusal(lambda: read_checkpoint(tmp_path / "a.pt"), "in float32", "dequantize()", "to_dense()", "load the")
    expected = [f"{name} {NO_WEIGHTS[kind][1]}" for name, kind in zip(names, kinds, strict=True)]
    assert [found[: len(words)] for found, words in zip(error.found, expected, strict=True)] == expected


@pytest.mark.parametrize("kind", NO_WEIGHTS)
@pytest.mark.parametrize("form", ["bare", "entry", "inside", "second copy"])
def test_a_sensor_encoder_of_what_is_no_weight(form: str, kind: str, tmp_path: Path) -> None:
    change, words, _ = NO_WEIGHTS[kind]
    state = with_changed(encoder(), ENCODER_KEY, change)
    inside = {"model_state_dict": {f"sensor_encoder.{key}": value for key, value in state.items()}}
    content = {
        "bare": state,
        "entry": {"sensor_encoder": state},
        "inside": inside,
        "second copy": {"sensor_encoder": encoder()} | inside,
    }[form]
    path = tmp_path / "s.pt"
    torch.save(content, path)
    refusal(lambda: read_sensor_encoder(path), f"{ENCODER_KEY} {words}")
    refusal(lambda: read_sensor_action(path), f"{ENCODER_KEY} {words}")


@pytest.mark.parametrize("kind", [kind for kind, (_, _, storable) in NO_WEIGHTS.items() if storable])
def test_a_sensor_encoder_in_safetensors(kind: str, tmp_path: Path) -> None:
    change, words, _ = NO_WEIGHTS[kind]
    state = {key: value.detach().contiguous() for key, value in with_changed(encoder(), ENCODER_KEY, change).items()}
    save_file(state, tmp_path / "s.safetensors")
    refusal(lambda: read_sensor_encoder(tmp_path / "s.safetensors"), f"{ENCODER_KEY} {words}")


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_an_action_expert_of_what_is_no_weight(kind: str, tmp_path: Path) -> None:
    change, words, _ = NO_WEIGHTS[kind]
    state = with_changed(expert(), "fusion_proj.weight", change)
    torch.save({"action_expert": state}, tmp_path / "x.pt")
    refusal(lambda: read_sensor_action(tmp_path / "x.pt"), f"action_expert.fusion_proj.weight {words}")


def test_a_member_with_a_sensor_keeps_its_counters(tmp_path: Path) -> None:
    content = training_dict(random_member(with_sensor()))
    name = "sensor_encoder.conv_backbone.1.num_batches_tracked"
    assert content["model_state_dict"][name].dtype == torch.int64
    torch.save(content, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").members[0].shape.sensor is not None
    content["model_state_dict"][name] = torch.tensor(1).to_sparse()
    torch.save(content, tmp_path / "b.pt")
    refusal(lambda: read_checkpoint(tmp_path / "b.pt"), f"{name} is sparse")


@pytest.mark.parametrize("kind", [kind for kind in NO_WEIGHTS if kind not in BUFFERS])
def test_a_frozen_trunk_of_what_is_no_weight(kind: str, tmp_path: Path) -> None:
    change, words, _ = NO_WEIGHTS[kind]
    frozen = {"visual.weight": change(torch.randn(4, 4)), "visual.index": torch.arange(3)}
    torch.save(training_dict(random_member(), frozen), tmp_path / "a.pt")
    error = refusal(lambda: read_checkpoint(tmp_path / "a.pt"), "cannot be used as weights")
    assert error.found == [f"model.visual.weight {words}"]


def test_a_frozen_trunk_has_one_digest_in_whatever_it_is_stored(tmp_path: Path) -> None:
    weight, index = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    digests = {}
    for name, dtype in {"a": torch.bfloat16, "b": torch.float32, "c": torch.float64, "d": torch.float16}.items():
        torch.save(training_dict(random_member(), {"w": weight.to(dtype), "index": index}), tmp_path / f"{name}.pt")
        digests[name] = read_checkpoint(tmp_path / f"{name}.pt").frozen_digest
    assert digests["a"] == digests["b"] == digests["c"]
    assert digests["d"] != digests["a"]  # rounded twice; the trunk tells (tests/exporter/test_export.py)
    pack([tmp_path / "a.pt", tmp_path / "b.pt"], tmp_path / "m.safetensors", backbone="x")
    assert read_checkpoint(tmp_path / "m.safetensors").frozen_digest == digests["a"]


KEPT: dict[str, Change] = {
    "float16": lambda tensor: tensor.half(),
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "float64": lambda tensor: tensor.double(),
    "a parameter": lambda tensor: torch.nn.Parameter(tensor.detach().clone()),
    "not contiguous": lambda tensor: tensor.detach().t().contiguous().t(),
    "a slice of more": lambda tensor: torch.cat([tensor.detach(), tensor.detach()])[: len(tensor)],
    "every other": lambda tensor: tensor.detach().repeat_interleave(2, 1)[:, ::2],
    "negated in place of a copy": lambda tensor: torch.complex(torch.zeros(()), -tensor.detach()).conj().imag,
}


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_ways_of_storing_a_weight_are_kept(kind: str, suffix: str, tmp_path: Path) -> None:
    source = training(KEPT[kind], tmp_path / "a.pt")
    expected = KEPT[kind](random_member().tensors()[KEY]).detach()
    pack([source], tmp_path / f"m{suffix}", backbone="x")
    member = read_checkpoint(tmp_path / f"m{suffix}").members[0]
    found = member.tensors()[KEY]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.detach().double().numpy(), expected.double().resolve_neg().numpy())
    loaded = build_member(member).input_projection.weight.detach()
    np.testing.assert_array_equal(loaded.numpy(), expected.float().resolve_neg().numpy())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_share_memory(suffix: str, tmp_path: Path) -> None:
    content = training_dict(random_member())
    state = content["model_state_dict"]
    state["text_pooling.query"] = state["vision_poolings.query"]
    state["vision_poolings.norm_out.bias"] = torch.zeros(1).expand(32)
    state = {key: value for key, value in state.items() if key in training_dict(random_member())["model_state_dict"]}
    torch.save(content | {"model_state_dict": state}, tmp_path / "a.pt")
    pack([tmp_path / "a.pt"], tmp_path / f"m{suffix}", backbone="x")
    found = read_checkpoint(tmp_path / f"m{suffix}").members[0].tensors()
    assert torch.equal(found["text_pooling.query"], state["vision_poolings.query"])


def test_what_the_doctor_says_of_float64(tmp_path: Path) -> None:
    double = read_checkpoint(training(KEPT["float64"], tmp_path / "a.pt"))
    (found,) = [each for each in diagnose(double) if each.check == "stored_dtype"]
    assert (found.severity, "float64" in found.problem) == ("note", True)
    half = read_checkpoint(training(KEPT["float16"], tmp_path / "b.pt"))
    (found,) = [each for each in diagnose(half) if each.check == "stored_dtype"]
    assert (found.severity, "float16" in found.problem) == ("warning", True)


WRAPPED = {
    "module.": "model.module.state_dict()",
    "_orig_mod.": "model._orig_mod",
    "_fsdp_wrapped_module.": "get_model_state_dict",
    "_checkpoint_wrapped_module.": "get_model_state_dict",
    "_orig_mod.module.": "model.module.state_dict()",
}


def prefixed(state: dict[str, Tensor], where: str, prefix: str) -> dict[str, Tensor]:
    """``prefix`` before every name, or behind the names of one part."""
    if where == "whole":
        return {prefix + key: value for key, value in state.items()}
    return {key.replace(where, where + prefix, 1) if key.startswith(where) else key: state[key] for key in state}


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("where", ["whole", "vision_poolings.", "model."])
def test_wrapped_verifiers(where: str, prefix: str, tmp_path: Path) -> None:
    content = training_dict(random_member(), {"visual.weight": torch.ones(2)})
    state = prefixed(content["model_state_dict"], where, prefix)
    for name, saved in {"a.pt": content | {"model_state_dict": state}, "b.pt": state}.items():
        torch.save(saved, tmp_path / name)
        words = [f"`{part}.`" for part in prefix.split(".")[:-1]]
        refusal(lambda path=tmp_path / name: read_checkpoint(path), "wrapped model", *words, WRAPPED[prefix])


@pytest.mark.parametrize("prefix", WRAPPED)
def test_wrapped_components_of_a_merged_file(prefix: str, tmp_path: Path) -> None:
    components = {name: prefixed(dict(state), "whole", prefix) for name, state in random_member().components.items()}
    torch.save({"ensemble_components": [components]}, tmp_path / "m.pt")
    refusal(lambda: read_checkpoint(tmp_path / "m.pt"), "wrapped model", f"visual_extraction.{prefix}", WRAPPED[prefix])


@pytest.mark.parametrize("prefix", WRAPPED)
def test_wrapped_sensor_encoders(prefix: str, tmp_path: Path) -> None:
    """The published loaders' `module.` before whole models is known, and read (tests of sensor files)."""
    wrapped = prefixed(encoder(), "whole", prefix)
    contents: dict[str, Any] = {
        "bare": wrapped,
        "entry": {"sensor_encoder": wrapped},
        "inside": {"model_state_dict": {f"sensor_encoder.{key}": value for key, value in wrapped.items()}},
    }
    if prefix != "module.":
        contents["whole"] = {"model_state_dict": {f"{prefix}sensor_encoder.{key}": encoder()[key] for key in encoder()}}
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pt")
        path = tmp_path / f"{name}.pt"
        refusal(lambda path=path: read_sensor_encoder(path), "wrapped model", WRAPPED[prefix])


@pytest.mark.parametrize("prefix", WRAPPED)
def test_a_wrapped_action_expert(prefix: str, tmp_path: Path) -> None:
    torch.save({"action_expert": prefixed(expert(), "whole", prefix)}, tmp_path / "x.pt")
    refusal(lambda: read_sensor_action(tmp_path / "x.pt"), "wrapped model", WRAPPED[prefix])


def test_a_word_that_a_wrapper_uses_too(tmp_path: Path) -> None:
    """Further inside, `module` is a name like others: a trunk may have one."""
    frozen = {"visual.trunk.module.weight": torch.ones(2)}
    torch.save(training_dict(random_member(), frozen), tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").members[0].shape == SMALL
