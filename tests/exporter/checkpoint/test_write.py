"""What is written is the published form to the letter, or ours, and reads back bit for bit."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.kit import FORM, FUSIONS, SMALL, SMALL_MLP, random_checkpoint, random_member, with_sensor
from trunkline.exporter.checkpoint.members import Checkpoint, HeadShape
from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.runtime.errors import CheckpointError
from trunkline.runtime.sensor.form import SensorForm

PUBLISHED_KEYS = [
    *("ensemble_components", "num_models", "backbone", "use_transformer", "history_length", "action_dim"),
    "source_checkpoints",
]
CONTEXT = ["text_aware_visual_extraction", "vision_poolings", "text_pooling", "input_projection"]
WIDE = replace(SMALL, trunk_width=48, patches=9, heads=4)


@pytest.mark.parametrize(
    ("shape", "encoders"),
    [(SMALL, ["single_step_action_encoder", "trajectory_encoder"]), (SMALL_MLP, ["complex_action_encoder"])],
    ids=["transformer", "mlp"],
)
def test_the_published_form_to_the_letter(tmp_path: Path, shape: HeadShape, encoders: list[str]) -> None:
    checkpoint = random_checkpoint(3, shape)
    write_checkpoint(checkpoint, tmp_path / "m.pt")
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    assert list(content)[:7] == PUBLISHED_KEYS
    assert set(content) - set(PUBLISHED_KEYS) == {"attention_heads"}
    assert type(content["ensemble_components"]) is list
    assert (content["num_models"], content["backbone"]) == (3, "test")
    assert content["use_transformer"] is (shape.encoder == "transformer")
    assert (content["history_length"], content["action_dim"]) == (10, 7)
    assert content["source_checkpoints"] == ["epoch_0.pt", "epoch_1.pt", "epoch_2.pt"]
    for part, member in zip(content["ensemble_components"], checkpoint.members, strict=True):
        assert sorted(part) == sorted([*CONTEXT, *encoders, "action_padding_value"])  # missing, not null
        assert type(part["action_padding_value"]) is float
        assert part["action_padding_value"] == -5.0
        assert all(type(part[name]) is dict for name in [*CONTEXT, *encoders])
        for name, state in member.components.items():
            assert list(part[name]) == list(state)
            assert all(torch.equal(part[name][key], tensor) for key, tensor in state.items())
            assert {tensor.dtype for tensor in part[name].values()} == {torch.float32}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("shape", [SMALL, SMALL_MLP, WIDE], ids=["transformer", "mlp", "unpacked, 4 heads"])
@pytest.mark.parametrize("count", [1, 5])
def test_round_trips_are_bit_equal(tmp_path: Path, suffix: str, shape: HeadShape, count: int) -> None:
    checkpoint = replace(random_checkpoint(count, shape), frozen_digest="12" * 32)
    path = tmp_path / "deep" / f"m{suffix}"
    write_checkpoint(checkpoint, path)
    found = read_checkpoint(path)
    assert (found.backbone, found.frozen_digest) == ("test", "12" * 32)
    assert len(found.members) == count
    for one, two in zip(found.members, checkpoint.members, strict=True):
        assert (one.name, one.source, one.settings, one.shape) == (two.name, two.source, two.settings, two.shape)
        ours, theirs = one.tensors(), two.tensors()
        assert ours.keys() == theirs.keys()
        assert all(ours[key].numpy().tobytes() == theirs[key].numpy().tobytes() for key in ours)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_without_backbone_stays_without(tmp_path: Path, suffix: str) -> None:
    write_checkpoint(random_checkpoint(1, backbone=None), tmp_path / f"m{suffix}")
    assert read_checkpoint(tmp_path / f"m{suffix}").backbone is None


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_same_content_gives_the_same_size_whatever_it_was_cut_from(tmp_path: Path, suffix: str) -> None:
    """Tensors that are slices of a large one do not drag it along."""
    member = random_member()
    large = torch.zeros(1_000_000)
    components = {name: dict(state) for name, state in member.components.items()}
    weight = components["input_projection"]["weight"]
    view = large[: weight.numel()].view_as(weight)
    view.copy_(weight)
    components["input_projection"]["weight"] = view
    sizes = []
    for each in (member, replace(member, components=components)):
        write_checkpoint(Checkpoint("random", (each,), "test"), tmp_path / f"m{suffix}")
        sizes.append((tmp_path / f"m{suffix}").stat().st_size)
        tensors = read_checkpoint(tmp_path / f"m{suffix}").members[0].tensors()
        assert torch.equal(tensors["input_projection.weight"], weight)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_members_that_share_tensors(tmp_path: Path, suffix: str) -> None:
    member = random_member()
    twice = Checkpoint("random", (member, replace(member, name="again", source="again.pt")), "test")
    write_checkpoint(twice, tmp_path / f"m{suffix}")
    found = read_checkpoint(tmp_path / f"m{suffix}")
    for each in found.members:
        assert all(torch.equal(each.tensors()[key], tensor) for key, tensor in member.tensors().items())


@pytest.mark.parametrize("name", ["m", "m.ckpt", "m.pth", "m.PT"])
def test_unknown_suffixes(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)which form to write.*\.pt or \.safetensors"):
        write_checkpoint(random_checkpoint(1), tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def _no_space() -> Iterator[None]:
    """No file may grow beyond 20 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_no_space")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_text("old")
    with pytest.raises(CheckpointError, match=r"(?s)cannot write a checkpoint.*space"):
        write_checkpoint(random_checkpoint(1), path)
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_text() == "old"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_folder_that_is_a_file(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write a checkpoint"):
        write_checkpoint(random_checkpoint(1), tmp_path / "file" / f"m{suffix}")


def test_an_output_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"(?s)cannot write a checkpoint.*directory"):
        write_checkpoint(random_checkpoint(1), tmp_path / "m.pt")
    assert os.listdir(tmp_path) == ["m.pt"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_are_readable_by_others(tmp_path: Path, suffix: str) -> None:
    write_checkpoint(random_checkpoint(1), tmp_path / f"m{suffix}")
    assert (tmp_path / f"m{suffix}").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"absent": False}, {"layers": 0, "feedforward": 0}, {"channels": 33}],
    ids=["usual", "no absence", "no transformer", "33 channels"],
)
def test_sensor_members_round_trip_bit_equal(tmp_path: Path, suffix: str, fusion: str, changes: dict) -> None:
    form = SensorForm(1, 33.5, 40, 21, "cubic", "none", True)
    checkpoint = random_checkpoint(2, with_sensor(fusion=fusion, **changes), form=form)
    write_checkpoint(checkpoint, tmp_path / f"m{suffix}")
    found = read_checkpoint(tmp_path / f"m{suffix}")
    assert found.notes == ()
    for one, two in zip(found.members, checkpoint.members, strict=True):
        assert (one.name, one.source, one.settings, one.shape) == (two.name, two.source, two.settings, two.shape)
        ours, theirs = one.tensors(), two.tensors()
        assert ours.keys() == theirs.keys()
        assert all(ours[key].dtype == theirs[key].dtype for key in ours)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("first", ["plain", "sensing"])
def test_mixed_ensembles_round_trip(tmp_path: Path, suffix: str, first: str) -> None:
    """The stream is written once, for whichever members have a sensor."""
    members = [
        random_member(),
        random_member(with_sensor(), 1),
        random_member(seed=2),
        random_member(with_sensor(fusion="cross-attention, one token"), 3),
    ]
    if first == "sensing":
        members.reverse()
    write_checkpoint(Checkpoint("random", tuple(members), "test"), tmp_path / f"m{suffix}")
    found = read_checkpoint(tmp_path / f"m{suffix}")
    assert [member.shape for member in found.members] == [member.shape for member in members]
    assert [member.settings.sensor for member in found.members] == [member.settings.sensor for member in members]
    for one, two in zip(found.members, members, strict=True):
        assert one.tensors().keys() == two.tensors().keys()
        assert all(torch.equal(one.tensors()[key], tensor) for key, tensor in two.tensors().items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_heads_of_the_sensor_are_written(tmp_path: Path, suffix: str) -> None:
    shape = replace(with_sensor(), sensor_heads=4)
    member = random_member(shape)
    member = replace(member, settings=replace(member.settings, sensor_heads=4))
    write_checkpoint(Checkpoint("random", (random_member(), member), "test"), tmp_path / f"m{suffix}")
    found = read_checkpoint(tmp_path / f"m{suffix}").members[1]
    assert (found.shape, found.settings) == (shape, member.settings)


def test_a_sensor_adds_to_the_published_form_and_changes_nothing_in_it(tmp_path: Path) -> None:
    write_checkpoint(random_checkpoint(1, with_sensor()), tmp_path / "m.pt")
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    assert set(content) - set(PUBLISHED_KEYS) == {"attention_heads", "sensor", "sensor_heads"}
    assert content["sensor"] == asdict(FORM)
    parts = set(content["ensemble_components"][0])
    assert parts - set(CONTEXT) == {
        *("sensor_encoder", "sensor_fusion", "action_padding_value"),
        *("single_step_action_encoder", "trajectory_encoder"),
    }
    assert "input_projection" not in parts
