"""Packing keeps every tensor, refuses what does not belong together, and never holds the sources in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.expert_kit import expert_state, published, whole_model
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
from trunkline.exporter.checkpoint.members import PUBLISHED_BACKBONE, Checkpoint, HeadShape, Member, Settings
from trunkline.exporter.checkpoint.pack import join, pack
from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.cli import app
from trunkline.exporter.cli.pack import stated_form
from trunkline.runtime.errors import CheckpointError, InputError
from trunkline.runtime.sensor.form import SensorForm

FROZEN = {"visual.weight": torch.ones(6, dtype=torch.bfloat16)}


def sources(folder: Path, count: int = 3, shape: HeadShape = SMALL) -> list[Path]:
    return [save_training(random_member(shape, seed), folder / f"epoch_{seed}.pt", FROZEN) for seed in range(count)]


def alone(member: Member, **changes: object) -> Checkpoint:
    return replace(Checkpoint("random", (member,), None), **changes)  # type: ignore[arg-type]


def refused(*words: str, checkpoints: list[Checkpoint], backbone: str | None = "test") -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        join(checkpoints, backbone=backbone)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    return caught.value


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("shape", [SMALL, SMALL_MLP], ids=["transformer", "mlp"])
def test_members_are_packed_in_order_and_bit_equal(tmp_path: Path, suffix: str, shape: HeadShape) -> None:
    paths = sources(tmp_path, 3, shape)
    report = pack(list(reversed(paths)), tmp_path / f"out{suffix}", backbone="local-dir:trunk")
    found = read_checkpoint(tmp_path / f"out{suffix}")
    assert report.members == ("epoch_2", "epoch_1", "epoch_0") == tuple(member.name for member in found.members)
    assert (report.backbone, found.backbone) == ("local-dir:trunk", "local-dir:trunk")
    assert found.frozen_digest == read_checkpoint(paths[0]).frozen_digest
    for member, seed in zip(found.members, (2, 1, 0), strict=True):
        wanted = random_member(shape, seed).tensors()
        assert member.tensors().keys() == wanted.keys()
        assert all(torch.equal(member.tensors()[key], wanted[key]) for key in wanted)


def test_the_report_tells_sizes_and_assumptions(tmp_path: Path) -> None:
    paths = sources(tmp_path)
    report = pack(paths, tmp_path / "out.pt", backbone="test")
    assert report.output == tmp_path / "out.pt"
    assert report.source_bytes == sum(path.stat().st_size for path in paths)
    assert report.output_bytes == (tmp_path / "out.pt").stat().st_size
    assert len(report.notes) == 1  # the same assumption for all, said once
    assert "assumed" in report.notes[0]


def test_progress_counts_sources(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    pack(sources(tmp_path), tmp_path / "out.pt", backbone="test", progress=lambda *step: steps.append(step))
    reading = [step[1:] for step in steps if step[0] == "reading checkpoints"]
    assert reading == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert ("hashing weights", 12, 12) in steps


def test_settings_reach_the_file(tmp_path: Path) -> None:
    path = save_training(random_member(replace(SMALL, heads=4)), tmp_path / "a.pt")
    settings = Settings(heads=4, history_length=16, padding_value=-7.5)
    pack([path], tmp_path / "out.safetensors", backbone="test", settings=settings)
    assert read_checkpoint(tmp_path / "out.safetensors").members[0].settings == settings


def test_ensembles_and_single_members_become_one(tmp_path: Path) -> None:
    write_checkpoint(random_checkpoint(2), tmp_path / "two.pt")
    path = save_training(random_member(seed=5), tmp_path / "epoch_5.pt")
    report = pack([tmp_path / "two.pt", path], tmp_path / "out.safetensors")
    assert report.members == ("epoch_0", "epoch_1", "epoch_5")
    assert report.backbone == "test"  # known from the first


def test_repeated_names_are_made_unique(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        save_training(random_member(seed=seed), folder / ("Epoch_9.pt" if seed == 1 else "epoch_9.pt"))
    report = pack([next(folder.iterdir()) for folder in folders], tmp_path / "out.pt", backbone="test")
    assert report.members == ("epoch_9", "Epoch_9-2", "epoch_9-3")


def test_the_published_backbone_is_assumed_only_for_its_sizes() -> None:
    tiny = replace(SMALL, trunk_width=1024, patches=576)
    assert join([alone(random_member(tiny))]).backbone == PUBLISHED_BACKBONE
    assert join([alone(random_member(tiny))], backbone="other").backbone == "other"
    for other in (SMALL, replace(tiny, patches=575), replace(tiny, trunk_width=768)):
        refused("do not say which backbone", "--backbone", checkpoints=[alone(random_member(other))], backbone=None)


def test_all_differences_of_all_members_are_listed() -> None:
    shape = replace(SMALL, trunk_width=48, patches=9, encoder_layers=1)
    other = random_member(shape, 1, padding=-9.0)
    mlp = random_member(SMALL_MLP, 2)
    error = refused(
        "do not belong together",
        "compared with epoch_0",
        "epoch_1: trunk_width is 48, epoch_0 has 32",
        "epoch_1: patches is 9, epoch_0 has 16",
        "epoch_1: encoder_layers is 1, epoch_0 has 2",
        "epoch_1: padding_value is -9.0, epoch_0 has -5.0",
        "epoch_2: encoder is mlp, epoch_0 has transformer",
        "epoch_2: feedforward is 40, epoch_0 has 48",
        checkpoints=[alone(random_member()), alone(other), alone(mlp)],
    )
    assert len(error.found) == 4 + 3


def test_different_windows_are_refused() -> None:
    longer = replace(random_member(seed=1), settings=Settings(history_length=12))
    refused("epoch_1: history_length is 12, epoch_0 has 10", checkpoints=[alone(random_member()), alone(longer)])


def test_different_frozen_encoders_are_refused(tmp_path: Path) -> None:
    paths = sources(tmp_path, 2)
    other = save_training(random_member(seed=2), tmp_path / "other.pt", {"visual.weight": FROZEN["visual.weight"] * 2})
    with pytest.raises(
        CheckpointError, match=r"(?s)frozen encoder weights differ: epoch_1 has \w{12}, other has \w{12}"
    ):
        pack([*paths, other], tmp_path / "out.pt", backbone="test")
    assert not (tmp_path / "out.pt").exists()
    bare = save_training(random_member(seed=3), tmp_path / "bare.pt")  # says nothing about its encoder
    pack([bare, *paths], tmp_path / "out.pt", backbone="test")
    assert read_checkpoint(tmp_path / "out.pt").frozen_digest == read_checkpoint(paths[0]).frozen_digest


def test_different_backbones_are_refused() -> None:
    pair = [alone(random_member(seed=seed), backbone=name) for seed, name in enumerate(("one", "two"))]
    refused("backbone names differ", "epoch_0 has one", "epoch_1 has two", checkpoints=pair)


def test_nothing_to_pack(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot pack without a checkpoint"):
        pack([], tmp_path / "out.pt")


def test_the_suffix_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot tell which form to write"):
        pack([tmp_path / "none.pt"], tmp_path / "out.bin")


def test_a_broken_source_leaves_no_output(tmp_path: Path) -> None:
    paths = sources(tmp_path, 1)
    (tmp_path / "torn.pt").write_bytes(paths[0].read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"(?s)restricted loader.*torn\.pt"):
        pack([*paths, tmp_path / "torn.pt"], tmp_path / "out.pt", backbone="test")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_0.pt", "torn.pt"]


def test_the_output_may_replace_a_source(tmp_path: Path) -> None:
    paths = sources(tmp_path, 2)
    pack(paths, paths[0], backbone="test")
    assert [member.name for member in read_checkpoint(paths[0]).members] == ["epoch_0", "epoch_1"]


_MEASURE = """
import json, sys, threading, time
from pathlib import Path
from trunkline.exporter.checkpoint.pack import pack

def anonymous_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

import torch
pack([Path(sys.argv[2])], Path(sys.argv[1]), backbone="test")  # what torch sets up once does not count
before, peak, stop = anonymous_kb(), 0, threading.Event()
def watch():
    global peak
    while not stop.is_set():
        peak = max(peak, anonymous_kb())
        time.sleep(0.0005)
thread = threading.Thread(target=watch); thread.start()
if sys.argv[3] == "pack":
    pack([Path(path) for path in sys.argv[4:]], Path(sys.argv[1]), backbone="test")
else:
    whole = [torch.load(path, weights_only=True) for path in sys.argv[4:]]
stop.set(); thread.join()
print(json.dumps((peak - before) * 1024))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_packing_holds_neither_optimiser_nor_encoder_in_memory(tmp_path: Path, suffix: str) -> None:
    small, paths = save_training(random_member(), tmp_path / "small.pt"), []
    for seed in range(3):
        content = training_dict(
            random_member(seed=seed), {"visual.weight": torch.ones(5_000_000, dtype=torch.bfloat16)}
        )
        content["optimizer_state_dict"]["state"][0] = {"exp_avg": torch.ones(12_500_000)}
        torch.save(content, tmp_path / f"epoch_{seed}.pt")
        paths.append(tmp_path / f"epoch_{seed}.pt")
    assert min(path.stat().st_size for path in paths) > 59_000_000

    def peak_bytes(how: str) -> int:
        command = [sys.executable, "-c", _MEASURE, str(tmp_path / f"out{suffix}"), str(small), how, *map(str, paths)]
        return int(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))

    assert peak_bytes("pack") < 10_000_000
    assert (tmp_path / f"out{suffix}").stat().st_size < 1_500_000
    if suffix == ".pt":
        assert peak_bytes("load") > 100_000_000, "the measurement does not see memory at all"


def unfed(folder: Path, count: int = 2, fusion: str = "concat") -> list[Path]:
    """Training checkpoints of members that fuse a sensor whose encoder lies elsewhere."""
    paths = []
    for seed in range(count):
        member = random_member(with_sensor(fusion=fusion), seed)
        parts = {name: state for name, state in member.components.items() if name != "sensor_encoder"}
        paths.append(save_training(replace(member, components=parts), folder / f"epoch_{seed}.pt"))
    return paths


ENCODER = dict(random_member(with_sensor(), 7).components["sensor_encoder"])
ENCODER_FILES = {
    "bare.pt": ENCODER,
    "named.pt": {"sensor_encoder": ENCODER},
    "model.pt": {"model_state_dict": whole_model(ENCODER, None)},
    "vla.pt": published(ENCODER, expert_state()),
    "verifier.pt": training_dict(random_member(with_sensor(), 7)),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", [*ENCODER_FILES, "bare.safetensors"])
def test_an_encoder_of_its_own_file_joins_members_that_fuse_one(tmp_path: Path, suffix: str, name: str) -> None:
    if name == "bare.safetensors":
        save_file(ENCODER, tmp_path / name)
    else:
        torch.save(ENCODER_FILES[name], tmp_path / name)
    settings = Settings(sensor=FORM)
    paths = unfed(tmp_path)
    pack(paths, tmp_path / f"out{suffix}", backbone="test", settings=settings, sensor_encoder=tmp_path / name)
    found = read_checkpoint(tmp_path / f"out{suffix}")
    assert [member.shape for member in found.members] == [with_sensor()] * 2
    for seed, member in enumerate(found.members):
        wanted = random_member(with_sensor(), seed).tensors()
        wanted |= {f"sensor_encoder.{key}": value for key, value in ENCODER.items()}
        assert member.tensors().keys() == wanted.keys()
        assert all(torch.equal(member.tensors()[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_takes_the_encoder(tmp_path: Path, fusion: str) -> None:
    torch.save(ENCODER, tmp_path / "e.pt")
    pack(unfed(tmp_path, 1, fusion), tmp_path / "out.pt", backbone="test", sensor_encoder=tmp_path / "e.pt")
    assert read_checkpoint(tmp_path / "out.pt").members[0].shape == with_sensor(fusion=fusion)


def test_an_encoder_of_another_width_is_named(tmp_path: Path) -> None:
    torch.save(random_member(with_sensor(features=9)).components["sensor_encoder"], tmp_path / "e.pt")
    with pytest.raises(CheckpointError, match=r"sensor_fusion.fusion_proj.weight is \(32, 84\), expected \(32, 73\)"):
        pack(unfed(tmp_path), tmp_path / "out.pt", backbone="test", sensor_encoder=tmp_path / "e.pt")
    assert not (tmp_path / "out.pt").exists()


def test_a_broken_encoder_is_refused_before_any_member_is_read(tmp_path: Path) -> None:
    torch.save({"sensor_encoder": {}}, tmp_path / "e.pt")
    with pytest.raises(CheckpointError, match="holds no sensor encoder"):
        pack([tmp_path / "none.pt"], tmp_path / "out.pt", sensor_encoder=tmp_path / "e.pt")


def test_members_with_and_without_a_sensor_go_together(tmp_path: Path) -> None:
    members = [random_member(), random_member(with_sensor(), 1), random_member(with_sensor(fusion="gated"), 2)]
    paths = [save_training(member, tmp_path / f"{member.name}.pt") for member in members]
    for order in (paths, paths[::-1]):
        pack(order, tmp_path / "out.safetensors", backbone="test", settings=Settings(sensor=FORM))
        found = read_checkpoint(tmp_path / "out.safetensors")
        shapes = {member.name: member.shape for member in found.members}
        assert shapes == {member.name: member.shape for member in members}
        assert {member.settings.sensor for member in found.members} == {None, FORM}


def test_encoders_that_cannot_share_a_window_are_refused() -> None:
    pair = [alone(random_member(with_sensor())), alone(random_member(with_sensor(channels=9, features=8), 1))]
    refused("epoch_1: sensor.channels is 9, epoch_0 has 6", "sensor.features is 8", checkpoints=pair)
    other = replace(FORM, steps=40, padding="right")
    pair[1] = alone(random_member(with_sensor(), 1, form=other))
    refused("sensor.steps is 40, epoch_0 has 50", "sensor.padding is right", checkpoints=pair)
    # The first member that has a sensor is what the others are held against, wherever it stands.
    refused("epoch_1: sensor.steps is 40", checkpoints=[alone(random_member(seed=4)), *pair])


def test_options_state_a_stream() -> None:
    assert stated_form() is None
    assert stated_form(rate_hz=100.0) == SensorForm(rate_hz=100.0)
    assert stated_form(samples=65) == SensorForm(samples=65, steps=65)
    assert stated_form(samples=650, steps=65) == SensorForm(steps=65)
    assert stated_form(resample="nearest") == SensorForm(resample="nearest")
    assert stated_form(padding="none") == SensorForm(padding="none")
    assert stated_form(adaptive=True) == SensorForm(adaptive=True)
    assert stated_form(adaptive=True, padding="none").padding == "none"  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"(?s)two ways.*never pads.*--sensor-padding right"):
        stated_form(adaptive=True, padding="right")


def command(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["pack", *map(str, words)])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result.stdout + result.stderr


def test_the_command_states_a_stream(tmp_path: Path) -> None:
    path = save_training(random_member(with_sensor()), tmp_path / "a.pt")
    out = tmp_path / "out.safetensors"
    words = (path, "-o", out, "--backbone", "test")
    assert "published 650 Hz" in command(*words)
    stream = (
        "--sensor-rate",
        "100",
        "--sensor-window",
        "50",
        "--sensor-resample",
        "cubic",
        "--sensor-padding",
        "right",
    )
    assert "650 Hz" not in command(*words, *stream, "--sensor-steps", "25")
    stated = read_checkpoint(out).members[0].settings
    assert stated.sensor == SensorForm(6, 100.0, 50, 25, "cubic", "right")
    command(*words, "--sensor-adaptive", "--sensor-window", "80")
    assert read_checkpoint(out).members[0].settings.sensor == SensorForm(6, 650.0, 80, 80, adaptive=True)
    assert "published 650 Hz" in command(*words, "--sensor-heads", "4")  # heads state no stream
    assert read_checkpoint(out).members[0].shape.sensor_heads == 4
    assert "not divisible by 3 heads" in command(*words, "--sensor-heads", "3", code=1)
    assert "sensor.rate_hz is 0" in command(*words, "--sensor-rate", "0", code=1)
    assert "Invalid value" in command(*words, "--sensor-resample", "area", code=2)


def test_the_command_takes_an_encoder(tmp_path: Path) -> None:
    torch.save(published(ENCODER, expert_state()), tmp_path / "vla.pt")
    out = tmp_path / "out.safetensors"
    command(*unfed(tmp_path), "-o", out, "--backbone", "test", "--sensor-encoder", tmp_path / "vla.pt")
    assert read_checkpoint(out).members[1].shape == with_sensor()


def test_what_no_member_uses_is_refused(tmp_path: Path) -> None:
    """An option without effect is a misunderstanding about what the robot will be fed."""
    torch.save(ENCODER, tmp_path / "e.pt")
    plain = save_training(random_member(), tmp_path / "plain.pt")
    whole = save_training(random_member(with_sensor()), tmp_path / "whole.pt")
    out, settings = tmp_path / "out.pt", Settings(sensor=FORM)
    for path in (plain, whole):
        with pytest.raises(CheckpointError, match="no member fuses a sensor and lacks its encoder"):
            pack([path], out, backbone="test", sensor_encoder=tmp_path / "e.pt")
    with pytest.raises(CheckpointError, match="no member has a sensor"):
        pack([plain], out, backbone="test", settings=settings)
    assert not out.exists()
    pack([whole, plain], out, backbone="test", settings=settings)
    pack([out], out, settings=Settings(sensor=replace(FORM, channels=1026)))  # what it states already
    with pytest.raises(CheckpointError, match="other than the one in a source"):
        pack([out], out, settings=Settings(sensor=replace(FORM, rate_hz=50.0)))


def test_info_shows_the_stream(tmp_path: Path) -> None:
    path = save_training(random_member(with_sensor()), tmp_path / "a.pt")
    pack([path], tmp_path / "out.safetensors", backbone="test", settings=Settings(sensor=FORM))
    facts = json.loads(CliRunner().invoke(app, ["info", str(tmp_path / "out.safetensors"), "--json"]).stdout)
    assert facts["sensor"][0].startswith("6 channels at 100 Hz, windows of 50 samples (0.5 s)")
    assert facts["sensor"][1].startswith("concat fusion of 20 features")
    plain = save_training(random_member(), tmp_path / "b.pt")
    assert json.loads(CliRunner().invoke(app, ["info", str(plain), "--json"]).stdout)["sensor"] == "none"


def test_the_help_says_why_the_stream_must_be_stated() -> None:
    text = " ".join(command("--help").replace("│", " ").split())
    assert "weights of the same names and shapes" in text
    assert "Nothing but the --sensor-... options records which one it is" in text
