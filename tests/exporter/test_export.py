"""Checkpoint in, bundle out: what fits is exported and scores as PyTorch does; everything else leaves nothing behind.

Tracing takes most of an export. Tests that are about something else take the stages of the shared bundle instead
(``quick``), which is the same: two exports give equal bytes (tests/exporter/test_stages.py).
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kit import SMALL_MLP, random_checkpoint, random_member, save_training
from tests.trunks import head_shape, save_trunk
from trunkline.calibration.samples.synthetic import frame, windows
from trunkline.exporter import export as module
from trunkline.exporter.against import verify_against
from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.checkpoint.pack import pack
from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.export import ExportReport, build, export, require_fit
from trunkline.exporter.options import ExportOptions
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.exporter.trunk import Trunk, load_trunk
from trunkline.runtime import Ensemble, load
from trunkline.runtime.errors import CheckpointError, ExportError, InstructionError, ParityError, TrunkError
from trunkline.runtime.manifest import Manifest, Stage, draft_problems, read_manifest, verifier_contract
from trunkline.runtime.progress import silent

BAKE = [
    "Put the RED block in the bowl.",
    "open the drawer",
    "  put the red block in the bowl  ",
    "",
    "OPEN the drawer!",
]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    """Stages are copied from the shared bundle instead of traced."""
    stages = read_manifest((bundle / "manifest.json").read_bytes(), bundle).stages

    def copied(draft: Manifest, reference: object, folder: Path, progress: object) -> dict[str, Stage]:
        names = list(verifier_contract(draft))
        for name in names:
            shutil.copytree(bundle / "stages" / name, folder / "stages" / name)
        return {name: stages[name] for name in names}

    monkeypatch.setattr(module, "_trace_stages", copied)


@pytest.fixture
def never_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        pytest.fail("something was traced")

    monkeypatch.setattr(module, "_trace_stages", fail)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_parity(bundle: Path, checkpoint: Checkpoint, trunk_name: str) -> None:
    """The trunk is loaded anew, since the comparison casts it."""
    with load(bundle) as ensemble:
        for seed in (1, 2):
            reference = PyTorchEnsemble(load_trunk(trunk_name), checkpoint)
            report = verify_against(ensemble, reference, frames=3, candidates=12, seed=seed)
            assert report.passed
            assert report.seed == seed
            assert report.ours.decisions >= 6
            assert report.ours.max_score_change <= 1e-4
            assert (report.ours.winners_changed, report.ours.winners_close) == (0, 0)
            assert report.original.max_score_change > report.ours.max_score_change  # bfloat16 rounds more


# Parity


def test_parity_of_three_members_on_a_trunk_with_a_class_token(bundle: Path, checkpoint: Checkpoint) -> None:
    assert_parity(bundle, checkpoint, str(checkpoint.backbone))


def test_parity_is_lost_with_another_checkpoint(bundle: Path, checkpoint: Checkpoint) -> None:
    other = replace(checkpoint, members=checkpoint.members[:2])
    with load(bundle) as ensemble:
        reference = PyTorchEnsemble(load_trunk(str(checkpoint.backbone)), other)
        report = verify_against(ensemble, reference, frames=2, candidates=8, seed=1)
    assert not report.passed
    assert report.ours.max_score_change > 1e-3


def test_parity_of_one_member_from_a_weights_only_file_on_another_trunk(tmp_path: Path) -> None:
    """Without class token, width 96 instead of 64."""
    name = save_trunk(tmp_path / "vit4", "test_vit4", seed=3)
    write_checkpoint(random_checkpoint(1, head_shape("test_vit4")), tmp_path / "whole.pt")
    content = torch.load(tmp_path / "whole.pt", weights_only=True)
    torch.save({"ensemble_components": content["ensemble_components"]}, tmp_path / "cover.pt")
    steps: list[str] = []
    report = export(
        tmp_path / "cover.pt", tmp_path / "bundle", backbone=name, progress=lambda step, *_: steps.append(step)
    )
    assert report.members == ("cover[0]",)
    assert any("assumed" in finding.problem for finding in report.findings)
    assert {"tracing vision", "tracing text", "tracing context", "tracing action", "golden vectors"} <= set(steps)
    assert_parity(tmp_path / "bundle", read_checkpoint(tmp_path / "cover.pt"), name)


@pytest.fixture(scope="module")
def mlp_baked(tmp_path_factory: pytest.TempPathFactory, trunk: Trunk, trunk_folder: Path) -> Iterator[Any]:
    """Five MLP members, packed from training checkpoints that hold the frozen trunk; instructions baked."""
    folder = tmp_path_factory.mktemp("mlp")
    frozen = {key: value.bfloat16() for key, value in trunk.model.state_dict().items()}
    shape = head_shape(shape=SMALL_MLP)
    paths = [save_training(random_member(shape, seed), folder / f"epoch_{seed}.pt", frozen) for seed in range(5)]
    pack(paths, folder / "packed.pt", backbone=f"local-dir:{trunk_folder}")
    return export(folder / "packed.pt", folder / "bundle", options=ExportOptions(bake=BAKE)), folder


def test_parity_of_five_mlp_members(mlp_baked: tuple[ExportReport, Path]) -> None:
    report, folder = mlp_baked
    checkpoint = read_checkpoint(folder / "packed.pt")
    assert checkpoint.frozen_digest is not None
    assert report.members == tuple(f"epoch_{seed}" for seed in range(5))
    assert_parity(folder / "bundle", checkpoint, str(checkpoint.backbone))


def test_a_baked_bundle_has_neither_text_tower_nor_tokenizer(mlp_baked: tuple[ExportReport, Path]) -> None:
    report, folder = mlp_baked
    assert set(report.stage_bytes) == {"vision", "context", "action"}
    assert left_in(folder / "bundle") == ["golden.safetensors", "instructions.safetensors", "manifest.json", "stages"]
    assert left_in(folder / "bundle" / "stages") == ["action", "context", "vision"]


def test_the_report_tells_what_lies_on_the_disk(mlp_baked: tuple[ExportReport, Path]) -> None:
    report, folder = mlp_baked
    files = [path for path in (folder / "bundle").rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert report.bundle_bytes == sum(path.stat().st_size for path in files)
    for name, size in report.stage_bytes.items():
        assert size == sum(path.stat().st_size for path in (folder / "bundle" / "stages" / name).iterdir())
    assert report.output == folder / "bundle"
    manifest = read_manifest((folder / "bundle" / "manifest.json").read_bytes(), folder)
    assert manifest.parity.measured_score_change == report.parity.fused.max_score_change <= 1e-4
    assert (manifest.parity.decisions, manifest.parity.winners_changed) == (report.parity.fused.decisions, 0)
    assert manifest.actions.encoder == "mlp"


# Baking


@pytest.mark.usefixtures("quick")
def test_baked_instructions_score_as_the_text_tower_does(
    tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint, ensemble: Ensemble
) -> None:
    build(checkpoint, trunk, tmp_path / "baked", options=ExportOptions(bake=BAKE))
    random = np.random.default_rng(5)
    with load(tmp_path / "baked") as baked:
        assert baked.bundle.manifest.text.instructions == ("Put the RED block in the bowl.", "open the drawer")
        for _ in range(3):
            image, histories = frame(random, 90, 120), windows(random, 9, checkpoint.members[0].settings)
            names = ["put the red block in the bowl", "Open the drawer."]
            ours, whole = baked.score(image, names, histories), ensemble.score(image, names, histories)
            np.testing.assert_allclose(ours.scores, whole.scores, atol=1e-6)
            np.testing.assert_allclose(ours.member_scores, whole.member_scores, atol=1e-6)
            assert np.abs(ours.scores[0] - ours.scores[1]).max() > 1e-3
        with pytest.raises(InstructionError, match=r"(?s)not one of them.*open the drawer.*close the drawer.*--bake"):
            baked.score(image, "close the drawer", histories)


@pytest.mark.usefixtures("quick")
def test_many_instructions_are_baked_in_batches(
    tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"put block {number} in the bowl" for number in range(7)]
    tokens = []
    for batch in (16, 3):
        monkeypatch.setattr(module, "BAKE_BATCH", batch)
        build(checkpoint, trunk, tmp_path / f"by{batch}", options=ExportOptions(bake=names))
        with load(tmp_path / f"by{batch}") as baked:
            tokens.append(baked.bundle.tensors("instructions.safetensors")["tokens"])
    assert tokens[0].shape == (7, trunk.context_length, trunk.width)
    np.testing.assert_allclose(tokens[0], tokens[1], atol=1e-6)


@pytest.mark.usefixtures("never_traced")
@pytest.mark.parametrize("bake", [[], ["", "  "], ["!?."]])
def test_nothing_to_bake(tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint, bake: list[str]) -> None:
    with pytest.raises(ExportError, match=r"(?s)no instructions to bake.*--bake"):
        build(checkpoint, trunk, tmp_path / "bundle", options=ExportOptions(bake=bake))
    assert left_in(tmp_path) == []


# Members and trunk


@pytest.mark.usefixtures("never_traced")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trunk_width": 32}, "tokens of width 32, the trunk gives 64"),
        ({"patches": 99}, "read 99 patches, the trunk gives 100"),
    ],
)
def test_members_of_another_trunk(tmp_path: Path, trunk: Trunk, change: dict[str, int], words: str) -> None:
    other = random_checkpoint(2, replace(head_shape(), **change))
    with pytest.raises(TrunkError, match=f"(?s)trained on another trunk.*{words}.*--backbone"):
        build(other, trunk, tmp_path / "bundle")
    assert left_in(tmp_path) == []


def test_frozen_weights_must_be_the_trunks(tmp_path: Path, trunk: Trunk) -> None:
    frozen = {key: value.bfloat16() for key, value in trunk.model.state_dict().items()}
    member = random_member(head_shape())
    require_fit(read_checkpoint(save_training(member, tmp_path / "a.pt", frozen)), trunk)
    for dtype in (torch.float32, torch.float64, torch.float16):
        stored = {key: value.to(dtype) for key, value in trunk.model.state_dict().items()}
        require_fit(read_checkpoint(save_training(member, tmp_path / "c.pt", stored)), trunk)
    stored["visual.trunk.patch_embed.proj.weight"] = stored["visual.trunk.patch_embed.proj.weight"] * 1.02
    with pytest.raises(TrunkError, match="frozen weights"):
        require_fit(read_checkpoint(save_training(member, tmp_path / "c.pt", stored)), trunk)
    name = "visual.trunk.patch_embed.proj.weight"
    frozen[name] = frozen[name] * 1.5
    other = read_checkpoint(save_training(member, tmp_path / "b.pt", frozen))
    with pytest.raises(TrunkError, match=r"(?s)another trunk.*frozen weights.*are not the trunk's"):
        require_fit(other, trunk)
    with pytest.raises(TrunkError, match="frozen weights"):
        build(other, trunk, tmp_path / "bundle")


def test_a_built_in_backbone_needs_weights(tmp_path: Path) -> None:
    write_checkpoint(random_checkpoint(1, head_shape()), tmp_path / "m.pt")
    with pytest.raises(TrunkError, match=r"(?s)random weights.*ViT-B-16-SigLIP2.*--trunk-weights"):
        export(tmp_path / "m.pt", tmp_path / "bundle", backbone="ViT-B-16-SigLIP2")
    with pytest.raises(TrunkError, match=r"(?s)cannot read the trunk's weights.*no such file"):
        export(tmp_path / "m.pt", tmp_path / "b", backbone="ViT-B-16-SigLIP2", trunk_weights=tmp_path / "none.pt")


def test_a_local_trunk_needs_its_weights(tmp_path: Path, trunk_folder: Path) -> None:
    shutil.copytree(trunk_folder, tmp_path / "trunk")
    (tmp_path / "trunk" / "open_clip_model.safetensors").unlink()
    write_checkpoint(random_checkpoint(1, head_shape()), tmp_path / "m.pt")
    with pytest.raises(TrunkError, match=r"(?s)open_clip cannot build the trunk.*with its weights"):
        export(tmp_path / "m.pt", tmp_path / "bundle", backbone=f"local-dir:{tmp_path / 'trunk'}")
    with pytest.raises(TrunkError, match="for built-in model names only"):
        export(tmp_path / "m.pt", tmp_path / "b", backbone=f"local-dir:{trunk_folder}", trunk_weights=tmp_path / "m.pt")
    assert left_in(tmp_path) == ["m.pt", "trunk"]


def test_a_checkpoint_that_does_not_name_its_trunk(tmp_path: Path) -> None:
    save_training(random_member(head_shape()), tmp_path / "a.pt")
    with pytest.raises(TrunkError, match=r"(?s)does not say which trunk.*--backbone"):
        export(tmp_path / "a.pt", tmp_path / "bundle")


# The output


@pytest.mark.usefixtures("never_traced")
def test_an_output_that_exists(tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "manifest.json").write_text("{}")
    with pytest.raises(ExportError, match=r"(?s)exists already.*a bundle.*--overwrite"):
        build(checkpoint, trunk, old)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(old)
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    for name in ("file", "folder", "link", "dangling"):
        with pytest.raises(ExportError, match=r"(?s)exists already.*not a bundle.*another path"):
            build(checkpoint, trunk, tmp_path / name, options=ExportOptions(overwrite=True))
    assert left_in(tmp_path) == ["dangling", "file", "folder", "link", "old"]
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ExportError, match="exists already"):
        export(tmp_path / "none.pt", old)  # before the checkpoint is even read


@pytest.mark.usefixtures("quick")
def test_overwrite_replaces_the_whole_bundle(tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "manifest.json").write_text("{}")
    (output / "stray").write_text("old")
    build(checkpoint, trunk, output, options=ExportOptions(overwrite=True))
    assert left_in(tmp_path) == ["bundle"]
    assert left_in(output) == ["golden.safetensors", "manifest.json", "stages", "tokenizer.json"]
    with load(output) as ensemble:
        assert ensemble.members == ("epoch_0", "epoch_1", "epoch_2")


@pytest.mark.usefixtures("quick")
def test_files_may_be_read_by_everyone_and_parents_are_made(
    tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint
) -> None:
    output = tmp_path / "deep" / "er" / "bundle"
    build(checkpoint, trunk, output)
    modes = {path.stat().st_mode & 0o777 for path in output.rglob("*") if path.is_file()}
    assert modes == {0o644}
    assert output.stat().st_mode & 0o777 == 0o755


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


SYNC = "trunkline.runtime.files.sync_tree"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("step", [f"{module.__name__}.write_golden", f"{module.__name__}._measure", SYNC])
@pytest.mark.parametrize(("failure", "error"), [(interrupted, KeyboardInterrupt), (full, ExportError)])
def test_an_export_that_stops_half_way_leaves_nothing(
    tmp_path: Path,
    trunk: Trunk,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    overwrite: bool,
    failure: Callable[..., None],
    error: type[BaseException],
) -> None:
    output = tmp_path / "bundle"
    if overwrite:
        output.mkdir()
        (output / "manifest.json").write_text("old")
    monkeypatch.setattr(step, failure)
    with pytest.raises(error, match="No space left" if failure is full else None):
        build(checkpoint, trunk, output, options=ExportOptions(overwrite=overwrite))
    assert left_in(tmp_path) == (["bundle"] if overwrite else [])
    if overwrite:
        assert (output / "manifest.json").read_text() == "old"


@pytest.mark.usefixtures("quick")
def test_the_old_bundle_comes_back_when_the_last_step_fails(
    tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "manifest.json").write_text("old")
    rename = Path.rename

    def second_fails(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(ExportError, match=r"(?s)cannot write the bundle.*Input/output error"):
        build(checkpoint, trunk, output, options=ExportOptions(overwrite=True))
    assert left_in(tmp_path) == ["bundle"]
    assert (output / "manifest.json").read_text() == "old"


@pytest.mark.usefixtures("quick")
def test_a_bundle_that_does_not_score_as_pytorch_does_is_not_kept(
    tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint
) -> None:
    """The stages are those of the shared checkpoint, the reference is another one's."""
    other = replace(checkpoint, members=tuple(random_member(head_shape(), seed) for seed in (7, 8, 9)))
    with pytest.raises(ParityError, match=r"(?s)does not decide as the PyTorch ensemble did.*a score changed by"):
        build(other, trunk, tmp_path / "bundle")
    assert left_in(tmp_path) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("limit", "baked"),
    [(3_000, None), (100_000, None), (100_000, BAKE)],
    ids=["tokenizer", "golden vectors", "baked instructions"],
)
def test_a_full_disk_whichever_library_writes(
    tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint, limit: int, baked: list[str] | None
) -> None:
    """Stages are made first; of what is written after them, no file may grow beyond the limit."""
    sizes = resource.getrlimit(resource.RLIMIT_FSIZE)
    made = module._trace_stages

    def then_full(*arguments: Any) -> dict[str, Stage]:
        stages = made(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, sizes[1]))
        return stages

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_trace_stages", then_full)
        try:
            with pytest.raises(ExportError, match=r"(?s)cannot write the bundle.*File too large.*space") as caught:
                build(checkpoint, trunk, tmp_path / "bundle", options=ExportOptions(bake=baked))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, sizes)
    assert caught.value.where == tmp_path / "bundle"
    assert left_in(tmp_path) == []


@pytest.mark.usefixtures("never_traced")
def test_an_output_where_nothing_can_be_written(tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="cannot write the bundle"):
        build(checkpoint, trunk, tmp_path / "file" / "bundle")


#: The last part of a file's name, and what a bundle calls the member and its source.
FILES = [
    ("run_2026-11-21T10:32:00.pt", "run_2026-11-21T10_32_00", "run_2026-11-21T10_32_00.pt"),
    ("gru\u0308n.pt", "gr\u00fcn", "gr\u00fcn.pt"),
    ("a\\b.pt", "a_b", "a_b.pt"),
    ("a\u200db\n.pt", "a_b_", "a_b_.pt"),
    ("n\u00f6\u00a0\x1b[31m.pt", "n\u00f6__[31m", "n\u00f6__[31m.pt"),
    ("x" * 240 + ".pt", "x" * 100, "x" * 100 + ".pt"),
]


@pytest.mark.usefixtures("quick")
def test_names_of_files_that_a_bundle_may_not_hold(tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint) -> None:
    """A training checkpoint and the file that it was packed into, of the same member: both export, under one name."""
    member, folder = checkpoint.members[0], tmp_path / "tr\u00fcb:\n folder"
    folder.mkdir()
    shutil.copytree(trunk.name.partition(":")[2], folder / "u\u0308 trunk\u200b")
    odd = replace(trunk, name=f"local-dir:{folder}/u\u0308 trunk\u200b")
    for index, (file, name, source) in enumerate(FILES):
        path = save_training(member, folder / file)
        pack([path], folder / f"{index}.safetensors", backbone=odd.name)
        pack([path], folder / f"{index}.pt", backbone=odd.name)
        for each in (path, folder / f"{index}.safetensors", folder / f"{index}.pt"):
            read = read_checkpoint(each)
            assert [(found.name, found.source) for found in read.members] == [(name, source)]
            draft = module._draft(read, odd, None, silent)
            assert draft.trunk.name == "local-dir:\u00fc trunk_"
            assert draft_problems(draft) == []
    sources = [save_training(each, folder / FILES[index][0]) for index, each in enumerate(checkpoint.members)]
    pack(sources, folder / "m.pt", backbone=odd.name)
    report = export(folder / "m.pt", folder / "b:undle")
    assert report.members == tuple(name for _, name, _ in FILES[:3])
    with load(folder / "b:undle") as ensemble:
        assert ensemble.members == report.members


@pytest.mark.usefixtures("never_traced")
@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("a:b",), "member name 'a:b' holds a backslash or a colon, which other systems read as a path"),
        (("a/b",), "member name 'a/b' holds a slash"),
        (("",), "member name '' empty or longer than 200 characters"),
        (("a\udcff",), r"members[0].name: expected text without half characters, found 'a\udcff'"),
        (("Best", "bEST"), "member names are not distinct: 'bEST' and 'Best'"),
        (("gr\u00fcn", "GR\u00dcN"), "member names are not distinct: 'GR\u00dcN' and 'gr\u00fcn'"),
        (("fine", "\ufb01ne"), "member names are not distinct: '\ufb01ne' and 'fine'"),
        (tuple(map(str, range(257))), "257 members; there must be 1 to 256"),
    ],
    ids=ascii,
)
def test_members_that_no_runtime_would_read_are_refused_before_tracing(
    tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint, names: tuple[str, ...], found: str
) -> None:
    """Of checkpoints that are in memory; those that are read are renamed."""
    members = tuple(replace(checkpoint.members[0], name=name) for name in names)
    with pytest.raises(ExportError, match="the bundle would hold what no runtime reads") as caught:
        build(replace(checkpoint, members=members), trunk, tmp_path / "bundle")
    assert caught.value.found == [found]
    assert left_in(tmp_path) == []


@pytest.mark.usefixtures("never_traced")
def test_texts_that_no_runtime_would_read_are_refused_before_tracing(
    tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint
) -> None:
    member = replace(checkpoint.members[0], source="a\n.pt")
    odd = replace(checkpoint, members=(member,)), replace(trunk, name="hf-hub:a\x1b")
    with pytest.raises(ExportError) as caught:
        build(*odd, tmp_path / "bundle")
    assert caught.value.found == [
        "trunk.name holds characters that cannot be shown",
        "members[0].source holds characters that cannot be shown",
    ]
    with pytest.raises(ExportError, match="text without half characters"):
        build(checkpoint, trunk, tmp_path / "bundle", options=ExportOptions(bake=["go \udc80"]))
    assert left_in(tmp_path) == []


@pytest.mark.usefixtures("never_traced")
def test_paths_that_are_not_utf8(tmp_path: Path, trunk: Trunk, checkpoint: Checkpoint) -> None:
    odd = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(ExportError, match=r"(?s)output's path is not UTF-8.*\\udcff"):
        build(checkpoint, trunk, odd / "bundle")
    odd.mkdir()
    save_training(checkpoint.members[0], odd / "a.pt")
    with pytest.raises(CheckpointError, match=r"(?s)path is not UTF-8.*\\udcff"):
        read_checkpoint(odd / "a.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(odd)
        with pytest.raises(ExportError, match="output's path is not UTF-8"):
            build(checkpoint, trunk, Path("bundle"))
    assert left_in(odd) == ["a.pt"]


def test_the_manifest_names_members_versions_and_digests(bundle: Path, trunk: Trunk, checkpoint: Checkpoint) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [(each["name"], each["source"]) for each in manifest["members"]] == [
        (member.name, member.source) for member in checkpoint.members
    ]
    assert len({each["digest"] for each in manifest["members"]}) == 3
    assert manifest["trunk"]["digest"] == trunk.digest()
    assert manifest["producer"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"trunkline", "torch", "open_clip_torch", "onnxruntime", "pillow", "python"} <= set(manifest["producer"])
