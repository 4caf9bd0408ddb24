"""Every checkpoint form is read to the same members; what is damaged, unsafe or foreign is refused in words."""

from __future__ import annotations

import argparse
import io
import pickle  # noqa: TID251 - makes files that must be refused
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.kit import (
    FORM,
    FUSIONS,
    SMALL,
    SMALL_MLP,
    random_checkpoint,
    random_member,
    save_training,
    training_dict,
    with_sensor,
)
from trunkline.exporter.checkpoint.doctor import refuse_fatal
from trunkline.exporter.checkpoint.members import PUBLISHED_BACKBONE, Checkpoint, HeadShape, Member, Settings
from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.reference import ReferenceMember, build_member
from trunkline.runtime.errors import CheckpointError
from trunkline.runtime.sensor.form import SensorForm

WIDE = replace(SMALL, trunk_width=48, patches=9, pool_width=40, embedding=24, pool_layers=3, encoder_layers=1)
LONG_MLP = replace(SMALL_MLP, trunk_width=40, history_length=6, action_dim=4, feedforward=20)
SHAPES = {"transformer packed": SMALL, "transformer unpacked": WIDE, "mlp packed": SMALL_MLP, "mlp unpacked": LONG_MLP}


SENSING = {
    **{fusion: with_sensor(fusion=fusion) for fusion in FUSIONS},
    "no transformer": with_sensor(layers=0, feedforward=0),
    "no absence": with_sensor(fusion="gated", absent=False),
    "one channel": with_sensor(fusion="cross-attention", channels=1),
    "many channels": with_sensor(channels=1026, conv=(4, 8)),
    "mlp": with_sensor(SMALL_MLP),
}


def settings_of(shape: HeadShape, sensor: SensorForm | None = None) -> Settings:
    return Settings(shape.heads, shape.history_length, shape.action_dim, sensor=sensor)


def merged_dict(members: list[Member]) -> dict[str, Any]:
    """As the published exporter writes it."""
    first = members[0]
    return {
        "ensemble_components": [
            {part: dict(state) for part, state in member.components.items()}
            | {"action_padding_value": member.settings.padding_value}
            for member in members
        ],
        "num_models": len(members),
        "backbone": "hf-hub:timm/some",
        "use_transformer": first.shape.encoder == "transformer",
        "history_length": first.shape.history_length,
        "action_dim": first.shape.action_dim,
        "source_checkpoints": [member.source for member in members],
    }


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def equal(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def refused(path: Path, *words: str, settings: Settings | None = None) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, settings=settings)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    return caught.value


def test_the_kit_covers_both_ways_of_storing_attention() -> None:
    packed, unpacked = (random_member(shape).tensors() for shape in (SMALL, WIDE))
    assert "vision_poolings.blocks.0.attention.in_proj_weight" in packed
    assert "vision_poolings.blocks.0.attention.q_proj_weight" in unpacked


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("bare", [False, True], ids=["new", "bare"])
def test_training_checkpoints(tmp_path: Path, shape: HeadShape, bare: bool) -> None:
    member = random_member(shape)
    content = training_dict(member, {"visual.weight": torch.ones(3, dtype=torch.bfloat16)})
    path = save(tmp_path / "run_epoch_7.pt", content["model_state_dict"] if bare else content)
    found = read_checkpoint(path, settings=settings_of(shape))
    assert found.form == ("training checkpoint (bare state dict)" if bare else "training checkpoint")
    assert (found.members[0].name, found.members[0].source) == ("run_epoch_7", "run_epoch_7.pt")
    assert found.members[0].shape == shape
    assert equal(found.members[0].tensors(), member.tensors())
    assert found.backbone is None
    assert "assumed" in found.notes[0]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("count", [1, 3, 5])
def test_merged_files(tmp_path: Path, shape: HeadShape, count: int) -> None:
    members = [random_member(shape, seed) for seed in range(count)]
    found = read_checkpoint(save(tmp_path / "m.pt", merged_dict(members)), settings=settings_of(shape))
    assert (found.form, found.backbone, found.notes) == ("merged file", "hf-hub:timm/some", ())
    assert [member.name for member in found.members] == [member.name for member in members]
    assert all(equal(one.tensors(), two.tensors()) for one, two in zip(found.members, members, strict=True))
    assert {member.shape for member in found.members} == {shape}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_our_own_form(tmp_path: Path, shape: HeadShape) -> None:
    checkpoint = replace(random_checkpoint(3, shape), frozen_digest="ab" * 32)
    write_checkpoint(checkpoint, tmp_path / "e.safetensors")
    found = read_checkpoint(tmp_path / "e.safetensors")
    assert (found.form, found.backbone, found.frozen_digest) == ("trunkline ensemble file", "test", "ab" * 32)
    for one, two in zip(found.members, checkpoint.members, strict=True):
        assert (one.name, one.source, one.shape, one.settings) == (two.name, two.source, two.shape, two.settings)
        assert equal(one.tensors(), two.tensors())


def test_weights_only_files_take_the_published_defaults(tmp_path: Path) -> None:
    content = {
        "ensemble_components": merged_dict([random_member(seed=seed) for seed in range(3)])["ensemble_components"]
    }
    found = read_checkpoint(save(tmp_path / "cover.pt", content))
    assert (found.form, found.backbone) == ("weights-only merged file", PUBLISHED_BACKBONE)
    assert [member.name for member in found.members] == ["cover[0]", "cover[1]", "cover[2]"]
    assert found.members[0].settings == Settings(heads=8, history_length=10, action_dim=7, padding_value=-5.0)
    assert "assumed" in found.notes[0]


def test_padding_value_is_the_members_own_or_the_published_one(tmp_path: Path) -> None:
    content = merged_dict([random_member(padding=-9.5), random_member(seed=1)])
    del content["ensemble_components"][1]["action_padding_value"]
    found = read_checkpoint(save(tmp_path / "m.pt", content))
    assert [member.settings.padding_value for member in found.members] == [-9.5, -5.0]


def test_absent_components_may_be_null(tmp_path: Path) -> None:
    content = merged_dict([random_member()])
    content["ensemble_components"][0]["complex_action_encoder"] = None
    assert read_checkpoint(save(tmp_path / "m.pt", content)).members[0].shape == SMALL


def test_heads_are_what_the_file_or_the_caller_says(tmp_path: Path) -> None:
    content = merged_dict([random_member(replace(SMALL, heads=4))])
    path = save(tmp_path / "m.pt", content)
    assert read_checkpoint(path, settings=Settings(heads=4)).members[0].shape.heads == 4
    path = save(tmp_path / "m.pt", content | {"attention_heads": 2})
    assert read_checkpoint(path, settings=Settings(heads=4)).members[0].shape.heads == 2


def test_older_files_that_are_no_archives(tmp_path: Path) -> None:
    member = random_member()
    torch.save(training_dict(member), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert equal(read_checkpoint(tmp_path / "old.pt").members[0].tensors(), member.tensors())


def test_frozen_weights_are_hashed_in_any_order(tmp_path: Path) -> None:
    frozen = {"visual.a": torch.randn(4, 3).bfloat16(), "text.b": torch.randn(5).bfloat16()}
    backwards = dict(reversed(frozen.items()))
    other = frozen | {"text.b": frozen["text.b"] + 1}
    digests = [
        read_checkpoint(save_training(random_member(), tmp_path / "a.pt", each)).frozen_digest
        for each in (frozen, backwards, other, None)
    ]
    assert digests[0] == digests[1]
    assert digests[2] not in (digests[0], None)
    assert digests[3] is None


def test_members_give_the_same_vectors_as_the_module_they_came_from(tmp_path: Path) -> None:
    member = random_member(WIDE)
    save_training(member, tmp_path / "a.pt")
    modules = [build_member(each) for each in (member, read_checkpoint(tmp_path / "a.pt").members[0])]
    histories = torch.randn(3, 10, 7)
    assert torch.equal(modules[0].action(histories), modules[1].action(histories))


@pytest.mark.parametrize("names", [None, ["only one"], [1, 2], "ab"], ids=["absent", "too few", "numbers", "string"])
def test_unusable_source_names_give_numbered_members(tmp_path: Path, names: object) -> None:
    content = merged_dict([random_member(), random_member(seed=1)]) | {"source_checkpoints": names}
    found = read_checkpoint(save(tmp_path / "m.pt", content))
    assert [member.name for member in found.members] == ["m[0]", "m[1]"]


def test_member_names_are_made_unique_and_fit_for_a_bundle(tmp_path: Path) -> None:
    names = ["/data/run/a.pt", "D:\\run\\A.pt", "a.pt", "b:\nc.pt", "", "x" * 300]
    content = merged_dict([random_member(seed=seed) for seed in range(6)]) | {"source_checkpoints": names}
    found = read_checkpoint(save(tmp_path / "m.pt", content))
    assert [member.name for member in found.members] == ["a", "A-2", "a-3", "_c", "m[4]", "x" * 100]


def test_file_names_that_differ_only_in_unicode_form_are_told_apart(tmp_path: Path) -> None:
    content = merged_dict([random_member(), random_member(seed=1)]) | {"source_checkpoints": ["\ufb01ne.pt", "fine.pt"]}
    found = read_checkpoint(save(tmp_path / "m.pt", content))
    assert [member.name for member in found.members] == ["\ufb01ne", "fine-2"]


@pytest.mark.parametrize("key", ["attention_heads", "history_length", "action_dim"])
@pytest.mark.parametrize("value", [0, -1, "10", 1.5, True, None, 1 << 20])
def test_metadata_nonsense(tmp_path: Path, key: str, value: object) -> None:
    path = save(tmp_path / "m.pt", merged_dict([random_member()]) | {key: value})
    refused(path, "metadata is not usable", key, "positive integer", repr(value))


@pytest.mark.parametrize("value", [3, "", ["x"]])
def test_backbone_nonsense(tmp_path: Path, value: object) -> None:
    path = save(tmp_path / "m.pt", merged_dict([random_member()]) | {"backbone": value})
    refused(path, "metadata is not usable", "backbone", repr(value))


def test_a_backbone_that_is_null_is_unknown(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", merged_dict([random_member()]) | {"backbone": None})
    assert read_checkpoint(path).backbone is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.tensor(-5.0), "padding value is not a number"),
        ("-5", "padding value is not a number"),
        (True, "padding value is not a number"),
        (None, "padding value is not a number"),
        (float("nan"), "no finite float32"),
        (float("-inf"), "no finite float32"),
        (1e39, "no finite float32"),
    ],
)
def test_padding_nonsense(tmp_path: Path, value: object, words: str) -> None:
    content = merged_dict([random_member()])
    content["ensemble_components"][0]["action_padding_value"] = value
    refused(save(tmp_path / "m.pt", content), words, "epoch_0.pt")


@pytest.mark.parametrize("parts", [[], {}, None, [None], [[1]], "abc"])
def test_merged_files_without_members(tmp_path: Path, parts: object) -> None:
    path = save(tmp_path / "m.pt", merged_dict([random_member()]) | {"ensemble_components": parts})
    refused(path, "holds no members", "at least one component dict")


@pytest.mark.parametrize("settings", [Settings(heads=0), Settings(history_length=-1), Settings(action_dim=0)])
@pytest.mark.parametrize("shape", [SMALL, SMALL_MLP], ids=["transformer", "mlp"])
def test_settings_nonsense(tmp_path: Path, settings: Settings, shape: HeadShape) -> None:
    path = save_training(random_member(shape), tmp_path / "a.pt")
    refused(path, "settings are not usable", "positive counts", settings=settings)


def test_all_missing_unexpected_and_misshaped_tensors_are_listed(tmp_path: Path) -> None:
    content = training_dict(random_member(WIDE))
    state = content["model_state_dict"]
    del state["input_projection.bias"], state["trajectory_encoder.layers.0.norm2.weight"]
    state["text_pooling.extra"] = torch.zeros(2)
    state["single_step_action_encoder.bias"] = torch.zeros(5)
    error = refused(
        save(tmp_path / "a.pt", content),
        "tensors do not fit together",
        "missing input_projection.bias (24,)",
        "missing trajectory_encoder.layers.0.norm2.weight (24,)",
        "unexpected text_pooling.extra (2,)",
        "single_step_action_encoder.bias is (5,), expected (24,)",
    )
    assert len(error.found) == 4


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("text_aware_visual_extraction.pos_emb", (16,)),
        ("vision_poolings.query", ()),
        ("vision_poolings.query", (32,)),
        ("input_projection.weight", (32,)),
        ("single_step_action_encoder.weight", (32,)),
        ("trajectory_encoder.layers.0.linear1.weight", ()),
    ],
)
def test_key_tensors_of_the_wrong_rank(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    content = training_dict(random_member())
    content["model_state_dict"][key] = torch.zeros(shape)
    refused(save(tmp_path / "a.pt", content), "cannot read the member's sizes", str(tmp_path / "a.pt"))


@pytest.mark.parametrize("part", ["text_aware_visual_extraction", "vision_poolings", "input_projection"])
def test_missing_components(tmp_path: Path, part: str) -> None:
    content = merged_dict([random_member()])
    del content["ensemble_components"][0][part]
    refused(save(tmp_path / "m.pt", content), "cannot read the member's sizes", part, "member epoch_0.pt")


def test_a_missing_text_pool_is_listed_tensor_by_tensor(tmp_path: Path) -> None:
    content = merged_dict([random_member()])
    del content["ensemble_components"][0]["text_pooling"]
    refused(save(tmp_path / "m.pt", content), "missing text_pooling.query (1, 1, 32)")


@pytest.mark.parametrize("present", ["none", "half", "both"])
def test_exactly_one_action_encoder(tmp_path: Path, present: str) -> None:
    content = merged_dict([random_member()])
    part = content["ensemble_components"][0]
    if present == "both":
        part["complex_action_encoder"] = dict(random_member(SMALL_MLP).components["complex_action_encoder"])
    else:
        del part["trajectory_encoder"]
    if present == "none":
        del part["single_step_action_encoder"]
    refused(save(tmp_path / "m.pt", content), "cannot tell how the member encodes actions", "exactly one")


def test_mlp_whose_input_is_no_whole_number_of_steps(tmp_path: Path) -> None:
    path = save_training(random_member(SMALL_MLP), tmp_path / "a.pt")
    refused(path, "reads 70 numbers", "no multiple of action_dim 9", settings=Settings(action_dim=9))


def test_heads_that_do_not_divide_the_widths(tmp_path: Path) -> None:
    path = save_training(random_member(), tmp_path / "a.pt")
    refused(path, "pool width 32", "embedding width 32", "not divisible by 5 heads", settings=Settings(heads=5))


def test_several_readouts(tmp_path: Path) -> None:
    content = training_dict(random_member())
    content["model_state_dict"]["vision_poolings.query"] = torch.zeros(1, 4, 32)
    refused(save(tmp_path / "a.pt", content), "4 readouts; only one is supported")


def test_two_view_verifiers_are_named(tmp_path: Path) -> None:
    content = training_dict(random_member())
    content["model_state_dict"]["input_projection.weight"] = torch.zeros(32, 96)
    refused(save(tmp_path / "a.pt", content), "two-view (DROID) member, which is not supported")
    content["model_state_dict"]["action_pos_embedding"] = torch.zeros(1, 31, 32)
    refused(
        save(tmp_path / "a.pt", content), "belong to no known component", "action_pos_embedding", "two-view (DROID)"
    )
    merged = merged_dict([random_member()])
    merged["ensemble_components"][0]["action_pos_embedding"] = torch.zeros(1, 31, 32)
    refused(save(tmp_path / "m.pt", merged), "action_pos_embedding: Tensor", "two-view (DROID)")


def test_unknown_tensors_beside_the_components(tmp_path: Path) -> None:
    content = training_dict(random_member())
    content["model_state_dict"] |= {"critic.weight": torch.zeros(2), "head.bias": torch.zeros(1)}
    refused(save(tmp_path / "a.pt", content), "belong to no known component", "critic.weight", "head.bias")


def test_state_dicts_of_more_than_tensors(tmp_path: Path) -> None:
    content = training_dict(random_member())
    content["model_state_dict"] |= {"text_pooling.note": "x", 3: torch.zeros(1)}
    refused(save(tmp_path / "a.pt", content), "more than tensors", "text_pooling.note: str", "3: Tensor")
    merged = merged_dict([random_member()])
    merged["ensemble_components"][0]["text_pooling"]["note"] = 1
    merged["ensemble_components"][0]["vision_poolings"] = [1]
    refused(save(tmp_path / "m.pt", merged), "not state dicts", "text_pooling: dict", "vision_poolings: list")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "a dict"),
        (torch.zeros(3), "a dict"),
        ({}, "an empty dict"),
        ({"weights": torch.zeros(1)}, "weights"),
        ({"model_state_dict": {"layer.weight": torch.zeros(1)}}, "layer.weight"),
        ({"model_state_dict": 3}, "model_state_dict"),
    ],
    ids=["list", "tensor", "empty", "foreign", "foreign training", "number"],
)
def test_files_that_are_no_verifiers(tmp_path: Path, content: object, words: str) -> None:
    refused(save(tmp_path / "a.pt", content), "not a verifier checkpoint", words)


class Trap:
    """Unpickled without care, this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "ran"))


@pytest.mark.parametrize("form", ["archive", "old", "plain"])
def test_files_with_code_are_refused_and_do_not_run(tmp_path: Path, form: str) -> None:
    trap = tmp_path / "ran"
    content = training_dict(random_member()) | {"args": Trap(trap)}
    path = tmp_path / "a.pt"
    if form == "plain":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "archive")
    refused(path, "restricted loader", "never opened")
    assert not trap.exists()
    Trap(trap).__reduce__()[0](*Trap(trap).__reduce__()[1])
    assert trap.exists(), "the trap itself does not work, so the test above shows nothing"


def test_plain_pickles_and_arrays_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"weights": [1.0]}, protocol=4))
    np.savez(tmp_path / "arrays.npz", weights=np.zeros(3))
    (tmp_path / "text.pt").write_text("epoch,loss\n1,0.5\n")
    (tmp_path / "empty.pt").touch()
    for name in ("plain.pt", "arrays.npz", "text.pt", "empty.pt"):
        refused(tmp_path / name, "restricted loader", name)


FOREIGN: dict[str, tuple[object, list[str], str]] = {
    "numpy number": (np.float64(0.5), ["numpy._core.multiarray.scalar", "numpy.dtype"], "save float(x)"),
    "numpy array": (
        np.zeros(2),
        ["numpy._core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray"],
        "torch.from_numpy(x)",
    ),
    "path": (Path("runs"), ["pathlib.PosixPath"], "plain state dicts"),
    "arguments": (argparse.Namespace(lr=0.1), ["argparse.Namespace"], "plain state dicts"),
    "layer": (torch.nn.ReLU(), ["torch.nn.modules.activation.ReLU"], "plain state dicts"),
    "several": (
        [np.float32(1), Path()],
        ["numpy._core.multiarray.scalar", "numpy.dtype", "pathlib.PosixPath"],
        "float",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "old"])
def test_objects_that_are_no_tensors_are_named_without_advice_to_trust_them(
    tmp_path: Path, kind: str, archive: bool
) -> None:
    value, needed, fix = FOREIGN[kind]
    path = tmp_path / "a.pt"
    content = training_dict(random_member()) | {"best_val_loss": value}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    error = refused(path, "restricted loader", "never opened", fix)
    named = needed if archive else needed[:1]
    if kind in ("numpy number", "several") or archive:  # of the old form, only what comes first is told
        assert error.found == [f"an object that needs {name}" for name in named]
    assert without_advice(error)


def without_advice(error: CheckpointError) -> bool:
    text = str(error)
    return not any(word in text for word in ("\x1b", "weights_only", "add_safe_globals", "trust", "http"))


def test_archives_of_code(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(tmp_path / "script.pt")  # type: ignore[no-untyped-call]
    error = refused(tmp_path / "script.pt", "a TorchScript archive", "never opened")
    assert without_advice(error)


def test_shards_of_a_distributed_model(tmp_path: Path) -> None:
    """In a program of its own: once torch.distributed.tensor is imported, such a file opens, and its tensors tell."""
    path = tmp_path / "a.pt"
    program = f"""
import torch
from torch.distributed.tensor import DTensor, init_device_mesh, Shard, distribute_tensor
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
sharded = distribute_tensor(torch.ones(4, 4), init_device_mesh("cpu", (1,)), [Shard(0)])
torch.save({{"input_projection.weight": sharded}}, {str(path)!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=300)
    error = refused(path, "DTensor")
    assert without_advice(error)


def test_truncated_and_damaged_files(tmp_path: Path) -> None:
    """Whatever is wrong with the bytes, the answer is a CheckpointError; damage that goes unseen leaves a member."""
    generator = random.Random(0)
    path, kinds, advised = tmp_path / "x.pt", set(), set()
    for archive in (True, False):
        buffer = io.BytesIO()
        torch.save(training_dict(random_member()), buffer, _use_new_zipfile_serialization=archive)
        whole = buffer.getvalue()
        for attempt in range(60):
            data = bytearray(whole)
            if attempt % 2:
                data = data[: generator.randrange(len(data))]
            else:
                for _ in range(20):
                    data[generator.randrange(4000)] = generator.randrange(256)
            path.write_bytes(data)
            try:
                kinds.add(type(read_checkpoint(path)).__name__)
            except CheckpointError as error:
                kinds.add(error.problem)
                advised |= set() if without_advice(error) else {str(error)}
    assert advised == set()
    assert "cannot open a checkpoint with the restricted loader" in kinds


def test_missing_files_and_folders(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "no such file")
    refused(tmp_path, "no such file")


def safetensors(path: Path, header: str | None, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    if tensors is None:
        tensors = {f"0.{name}": value for name, value in random_member().tensors().items()}
    save_file(tensors, path, metadata=None if header is None else {"trunkline": header})
    return path


HEADER = (
    '{"format": "trunkline-ensemble", "schema": 1, "backbone": null, "members": [{"name": "a", "source": "a.pt"}],'
    '"settings": {"heads": 8, "history_length": 10, "action_dim": 7, "padding_value": -5.0}}'
)


def test_the_header_of_our_form_is_what_it_should_be(tmp_path: Path) -> None:
    assert read_checkpoint(safetensors(tmp_path / "e.safetensors", HEADER)).members[0].name == "a"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (None, "not an ensemble"),
        ("{", "malformed"),
        (HEADER.replace("}}", '}, "extra": 1}'), "unknown field extra"),
        (HEADER.replace('"schema": 1', '"schema": 2'), "another version"),
        (HEADER.replace("trunkline-ensemble", "other"), "another version"),
        (HEADER.replace('[{"name": "a", "source": "a.pt"}]', "[]"), "with 0 members"),
        (HEADER.replace('"heads": 8', '"heads": "8"'), "settings.heads: expected int"),
        (HEADER.replace('"heads": 8', '"heads": 0'), "heads is 0"),
        (HEADER.replace('"heads": 8', '"heads": 3'), "not divisible by 3 heads"),
        (HEADER.replace("-5.0", "1e300"), "no finite float32"),
        (HEADER.replace('"a.pt"}', '"a.pt"}, {"name": "b", "source": "b"}'), "member b"),
    ],
)
def test_headers_of_our_form(tmp_path: Path, header: str | None, words: str) -> None:
    refused(safetensors(tmp_path / "e.safetensors", header), words)


def test_stray_tensors_and_broken_files_of_our_form(tmp_path: Path) -> None:
    tensors = {f"0.{name}": value for name, value in random_member().tensors().items()}
    path = safetensors(tmp_path / "e.safetensors", HEADER, tensors | {"7.text_pooling.query": torch.zeros(1)})
    refused(path, "tensors of no member", "7.text_pooling.query")
    path = safetensors(tmp_path / "e.safetensors", HEADER)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "cannot read a safetensors file")
    path.write_bytes(b"")
    refused(path, "cannot read a safetensors file")


def test_repeated_names_in_our_form_are_told_apart(tmp_path: Path) -> None:
    header = HEADER.replace('"a.pt"}', '"a.pt"}, {"name": "A", "source": "b.pt"}')
    tensors = {f"{i}.{name}": value.clone() for i in (0, 1) for name, value in random_member().tensors().items()}
    found = read_checkpoint(safetensors(tmp_path / "e.safetensors", header, tensors))
    assert [member.name for member in found.members] == ["a", "A-2"]


def test_reading_builds_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape check uses modules without memory only."""
    path = save_training(random_member(), tmp_path / "a.pt")
    built: list[str] = []
    original = ReferenceMember.__init__

    def spy(self: ReferenceMember, *args: Any) -> None:
        original(self, *args)
        built.append(str(self.input_projection.weight.device))

    monkeypatch.setattr(ReferenceMember, "__init__", spy)
    read_checkpoint(path)
    assert built == ["meta"]


@pytest.mark.parametrize("shape", SENSING.values(), ids=list(SENSING))
def test_training_checkpoints_with_a_sensor(tmp_path: Path, shape: HeadShape) -> None:
    member = random_member(shape)
    path = save_training(member, tmp_path / "a.pt")
    found = read_checkpoint(path, settings=settings_of(shape, FORM))
    assert found.members[0].shape == shape
    assert found.members[0].settings == member.settings  # the channels are the tensors'
    assert equal(found.members[0].tensors(), member.tensors())
    assert not any("sensor" in note for note in found.notes)


@pytest.mark.parametrize("shape", SENSING.values(), ids=list(SENSING))
@pytest.mark.parametrize("weights_only", [False, True], ids=["merged", "weights only"])
def test_merged_files_with_a_sensor(tmp_path: Path, shape: HeadShape, weights_only: bool) -> None:
    members = [random_member(shape, seed) for seed in range(2)]
    content = merged_dict(members)
    if weights_only:
        content = {"ensemble_components": content["ensemble_components"]}
    found = read_checkpoint(save(tmp_path / "m.pt", content), settings=settings_of(shape, FORM))
    assert all(equal(one.tensors(), two.tensors()) for one, two in zip(found.members, members, strict=True))
    assert {member.shape for member in found.members} == {shape}
    assert found.members[0].settings == members[0].settings


def test_a_stream_that_nobody_stated_is_the_published_one_and_noted(tmp_path: Path) -> None:
    member = random_member(with_sensor())
    for path in (save_training(member, tmp_path / "a.pt"), save(tmp_path / "m.pt", merged_dict([member]))):
        found = read_checkpoint(path)
        assert found.members[0].settings.sensor == SensorForm(channels=6)
        assert any("650 Hz" in note and "assumed" in note for note in found.notes)
        assert not any("650 Hz" in note for note in read_checkpoint(path, settings=Settings(sensor=FORM)).notes)


def test_a_merged_file_that_states_its_stream_is_believed(tmp_path: Path) -> None:
    form = {"channels": 6, "rate_hz": 50.0, "samples": 60, "steps": 20, "resample": "nearest", "padding": "right"}
    content = merged_dict([random_member(with_sensor())]) | {"sensor": form | {"adaptive": False}, "sensor_heads": 4}
    found = read_checkpoint(save(tmp_path / "m.pt", content), settings=Settings(sensor=FORM))
    assert found.members[0].settings.sensor == SensorForm(6, 50.0, 60, 20, "nearest", "right")
    assert found.members[0].settings.sensor_heads == found.members[0].shape.sensor_heads == 4
    assert found.notes == ()
    refused(save(tmp_path / "m.pt", content | {"sensor": form | {"rate": 3.0}}), "m.pt, sensor", "rate")
    refused(save(tmp_path / "m.pt", content | {"sensor_heads": True}), "sensor_heads", "positive integer")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (SensorForm(rate_hz=0.0), "sensor.rate_hz is 0"),
        (SensorForm(rate_hz=float("nan")), "sensor.rate_hz is nan"),
        (SensorForm(samples=0), "sensor.samples is 0"),
        (SensorForm(steps=1 << 17), "sensor.steps is 131072"),
    ],
)
def test_streams_that_cannot_be(tmp_path: Path, form: SensorForm, words: str) -> None:
    path = save_training(random_member(with_sensor()), tmp_path / "a.pt")
    refused(path, "settings are not usable", words, settings=Settings(sensor=form))


def test_members_with_and_without_a_sensor_in_one_file(tmp_path: Path) -> None:
    members = [random_member(), random_member(with_sensor(fusion="gated"), 1), random_member(seed=2)]
    found = read_checkpoint(save(tmp_path / "m.pt", merged_dict(members)), settings=Settings(sensor=FORM))
    assert [member.shape.sensor is None for member in found.members] == [True, False, True]
    assert [member.settings.sensor for member in found.members] == [None, FORM, None]
    assert all(equal(one.tensors(), two.tensors()) for one, two in zip(found.members, members, strict=True))


def test_wrong_tensors_of_a_sensor_are_named(tmp_path: Path) -> None:
    content = training_dict(random_member(with_sensor(fusion="gated")))
    state = content["model_state_dict"]
    del state["sensor_encoder.conv_backbone.5.running_var"]
    state["sensor_encoder.projection.7.weight"] = torch.zeros(2)
    state["sensor_fusion.gate.0.weight"] = torch.zeros(24, 24)
    error = refused(
        save(tmp_path / "a.pt", content),
        "missing sensor_encoder.conv_backbone.5.running_var (16,)",
        "unexpected sensor_encoder.projection.7.weight (2,)",
        "sensor_fusion.gate.0.weight is (24, 24), expected (24, 48)",
    )
    assert len(error.found) == 3
    state["sensor_encoder.conv_backbone.8.weight"] = torch.zeros(16, 16, 5)
    refused(save(tmp_path / "a.pt", content), "convolutions (out, in, 3), found conv_backbone.8.weight (16, 16, 5)")


def test_a_sensor_with_nan_is_refused_before_it_scores(tmp_path: Path) -> None:
    content = training_dict(random_member(with_sensor()))
    content["model_state_dict"]["sensor_encoder.conv_backbone.1.running_mean"][2] = float("nan")
    path = save(tmp_path / "a.pt", content)
    with pytest.raises(CheckpointError, match=r"(?s)NaN or infinite weights in sensor_encoder\.conv_backbone\.1\."):
        refuse_fatal(read_checkpoint(path), path)


def test_a_sensor_encoder_stored_in_bfloat16_is_kept_and_computes_in_float32(tmp_path: Path) -> None:
    content = training_dict(random_member(with_sensor()))
    state = content["model_state_dict"]
    for key in [key for key in state if key.startswith("sensor_encoder.") and state[key].is_floating_point()]:
        state[key] = state[key].bfloat16()
    read = read_checkpoint(save(tmp_path / "a.pt", content), settings=Settings(sensor=FORM))
    write_checkpoint(replace(read, backbone="test"), tmp_path / "e.safetensors")
    rounded = {key: state[key].float() if state[key].is_floating_point() else state[key] for key in state}
    plain = read_checkpoint(
        save(tmp_path / "b.pt", content | {"model_state_dict": rounded}), settings=Settings(sensor=FORM)
    )
    windows = torch.randn(2, FORM.steps, FORM.channels)
    wanted = build_member(plain.members[0]).feel(windows)
    for found in (read, read_checkpoint(tmp_path / "e.safetensors")):
        assert found.members[0].components["sensor_encoder"]["conv_backbone.1.running_var"].dtype == torch.bfloat16
        features = build_member(found.members[0]).feel(windows)
        assert features is not None
        assert wanted is not None
        assert torch.equal(features, wanted)


def without_encoder(member: Member) -> Member:
    return replace(member, components={key: part for key, part in member.components.items() if key != "sensor_encoder"})


def test_a_member_whose_encoder_lies_elsewhere(tmp_path: Path) -> None:
    member = random_member(with_sensor(fusion="cross-attention"))
    path = save_training(without_encoder(member), tmp_path / "a.pt")
    refused(path, "carries no sensor_encoder", "--sensor-encoder")
    found = read_checkpoint(path, sensor_encoder=member.components["sensor_encoder"])
    assert found.members[0].shape == member.shape
    assert equal(found.members[0].tensors(), member.tensors())


def test_an_encoder_that_is_given_replaces_none(tmp_path: Path) -> None:
    """Members that carry an encoder keep theirs; members without a sensor get none."""
    other = random_member(with_sensor(), 5).components["sensor_encoder"]
    members = [random_member(), random_member(with_sensor(), 1), without_encoder(random_member(with_sensor(), 2))]
    path = save(tmp_path / "m.pt", merged_dict(members))
    found = read_checkpoint(path, settings=Settings(sensor=FORM), sensor_encoder=other)
    assert "sensor_encoder" not in found.members[0].components
    assert equal(found.members[1].tensors(), members[1].tensors())
    assert equal(found.members[2].components["sensor_encoder"], other)


def test_a_reloaded_sensor_member_gives_the_same_vectors(tmp_path: Path) -> None:
    for fusion in FUSIONS:
        member = random_member(with_sensor(fusion=fusion))
        write_checkpoint(Checkpoint("random", (member,), "test"), tmp_path / "e.safetensors")
        again = read_checkpoint(tmp_path / "e.safetensors").members[0]
        patches, tokens = torch.randn(2, 16, 32), torch.randn(2, 5, 32)
        contexts = []
        for module in map(build_member, (member, again)):
            for windows in (torch.full((2, 50, 6), 0.3), None):
                features = module.feel(windows)
                assert features is not None
                contexts.append(module.context(patches, tokens, features.expand(2, -1)))
        assert torch.equal(contexts[0], contexts[2])
        assert torch.equal(contexts[1], contexts[3])


def test_missing_counters_of_a_sensor_are_filled_in(tmp_path: Path) -> None:
    member = random_member(with_sensor())
    content = training_dict(member)
    state = content["model_state_dict"]
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        del state[key]
    for path in (save(tmp_path / "a.pt", content), save(tmp_path / "b.pt", merged_dict([member]))):
        assert equal(read_checkpoint(path).members[0].tensors(), member.tensors())
