"""Preprocessing comes from a trunk's makers or from the user, never from a default; and two witnesses must agree."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.constants import INCEPTION_MEAN, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.kit import random_checkpoint
from tests.tokenizers_kit import save_bpe
from tests.trunks import CONTEXT_LENGTH, head_shape, model_config
from trunkline.exporter import own_preprocessing
from trunkline.exporter.against import verify_against
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.cli import app
from trunkline.exporter.export import build
from trunkline.exporter.own_preprocessing import (
    REQUIRED,
    in_words,
    own_settings,
    read_statement,
    require_agreement,
    tag_settings,
    tower_settings,
)
from trunkline.exporter.preprocessing import spec_of
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.exporter.trunk import Trunk, load_trunk
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.ensemble import load
from trunkline.runtime.errors import InputError, ParityError, TrunkError
from trunkline.runtime.image import ImageSpec, normalised

HALF = (0.5, 0.5, 0.5)
SIGLIP = {"mean": HALF, "std": HALF, "interpolation": "bicubic", "resize_mode": "squash", "fill_color": 0}
CLIP = {
    "mean": OPENAI_DATASET_MEAN,
    "std": OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def tower(architecture: str | None) -> Any:
    """A model whose vision tower is called so by timm."""
    named = SimpleNamespace(pretrained_cfg={"architecture": architecture} if architecture else None)
    return SimpleNamespace(visual=SimpleNamespace(trunk=named))


# What the user states


class TestStatement:
    def test_entries(self) -> None:
        stated = read_statement("mean=0.5,0.45,0.4 std=0.5  interpolation=bilinear resize_mode=longest fill_color=7")
        assert stated == {
            "mean": [0.5, 0.45, 0.4],
            "std": 0.5,
            "interpolation": "bilinear",
            "resize_mode": "longest",
            "fill_color": 7,
        }
        assert read_statement("size=96,160") == {"size": [96, 160]}

    def test_what_a_message_shows_can_be_stated(self) -> None:
        assert spec_of(read_statement(in_words(CLIP))) == spec_of(CLIP)

    @pytest.mark.parametrize("whole", [False, True])
    def test_a_file(self, whole: bool, tmp_path: Path) -> None:
        settings = {"mean": [0.1, 0.2, 0.3], "resize_mode": "squash"}
        content = {"model_cfg": {}, "preprocess_cfg": settings} if whole else settings
        (tmp_path / "s.json").write_text(json.dumps(content))
        assert read_statement(str(tmp_path / "s.json")) == settings

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("", "nothing"),
            ("mean", "'mean', which has no value"),
            ("mean=0.5 mean=0.4", "'mean=0.4', which says it again"),
            ("means=0.5 size=4 resize=squash", "unknown: means.*unknown: resize"),
            ("settings", "'settings', which has no value"),
            ("mean= std=0.5", "no value: mean"),
            ("none.json", "none.json"),
        ],
    )
    def test_refused(self, text: str, found: str) -> None:
        with pytest.raises(InputError, match=rf"(?s)stated preprocessing cannot be read.*found: .*{found}"):
            read_statement(text)

    @pytest.mark.parametrize("content", ["[1]", "{", '{"mean": NaN}', '{"mean": 0.5, "mean": 0.4}', "\udcff"])
    def test_files_refused(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "s.json").write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(InputError, match=r"(?s)cannot be read.*s\.json"):
            read_statement(str(tmp_path / "s.json"))


# Built-in names


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ViT-B-16-SigLIP", SIGLIP),
        ("ViT-L-16-SigLIP2-384", SIGLIP),
        ("ViT-B-16", CLIP),
        ("ViT-B/16", CLIP),
        ("PE-Core-B-16", SIGLIP | {"interpolation": "bilinear"}),
        ("MobileCLIP-B", CLIP | {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}),
    ],
)
def test_a_built_in_name_has_the_preprocessing_of_its_published_weights(name: str, settings: dict[str, Any]) -> None:
    assert own_settings(name, {}) == settings


def test_published_weights_that_disagree_are_listed_and_have_to_be_chosen() -> None:
    with pytest.raises(TrunkError) as caught:
        own_settings("ViT-L-14", {})
    text = str(caught.value)
    assert "expected: mean, std, once and for certain" in text
    assert f"- weights laion2b_s32b_b82k: {in_words(SIGLIP | {'resize_mode': 'shortest'})}" in text
    assert "- weights openai, laion400m_e31, laion400m_e32, datacomp_xl_s13b_b90k, " in text
    assert "--preprocess" in text
    assert own_settings("ViT-L-14", {"mean": HALF, "std": HALF}) == CLIP | {"mean": HALF, "std": HALF}
    with pytest.raises(TrunkError, match="expected: resize_mode, once"):
        own_settings("ViT-H-14", {})


def test_a_built_in_name_without_published_weights_has_to_be_stated_in_full() -> None:
    with pytest.raises(TrunkError, match=r"(?s)mean, std, interpolation, resize_mode, once.*no published weights"):
        own_settings("convnext_tiny", {})
    with pytest.raises(TrunkError, match=r"expected: interpolation, resize_mode, once"):
        own_settings("convnext_tiny", {"mean": HALF, "std": HALF})
    assert own_settings("convnext_tiny", SIGLIP) == SIGLIP


def test_every_built_in_name_has_one_preprocessing_or_is_refused() -> None:
    refused = set()
    for name in open_clip.list_models():
        published = {in_words(each) for each in tag_settings(name).values()}
        try:
            assert published == {in_words(own_settings(name, {}))}
        except TrunkError:
            refused.add(name)
            assert len(published) != 1
    assert {"ViT-L-14", "ViT-H-14", "ViT-H-14-quickgelu", "convnext_tiny"} <= refused
    assert not any("SigLIP" in name for name in refused)


# Folders


@pytest.fixture
def folder(trunk_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trunk_folder, tmp_path / "copied")


def say(folder: Path, settings: Any, **changes: Any) -> str:
    """Writes the folder's ``preprocess_cfg``, or none, and gives the trunk's name."""
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config.pop("preprocess_cfg", None)
    config |= {} if settings is None else {"preprocess_cfg": settings | changes}
    file.write_text(json.dumps(config))
    return f"local-dir:{folder}"


@pytest.mark.parametrize("settings", [None, {}, {"size": 160, "mode": "RGB", "fill_color": 0}])
def test_a_folder_that_says_nothing(settings: Any, folder: Path) -> None:
    with pytest.raises(TrunkError, match=r"(?s)not certain how.*mean, std, interpolation, resize_mode, once.*--prepro"):
        load_trunk(say(folder, settings))


def test_a_repository_says_it_in_the_same_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, filename: str) -> str:
        asked.append((repository, filename))
        return str(folder / filename)

    monkeypatch.setattr(own_preprocessing, "download_pretrained_from_hf", download)
    say(folder, SIGLIP)
    assert own_settings("hf-hub:org/repo", {}) == SIGLIP | {"mean": [0.5] * 3, "std": [0.5] * 3}
    say(folder, None)
    with pytest.raises(TrunkError, match=r"(?s)where: hf-hub:org/repo.*resize_mode, once"):
        own_settings("hf-hub:org/repo", {})
    assert asked == [("org/repo", "open_clip_config.json")] * 2


@pytest.mark.parametrize("key", REQUIRED)
@pytest.mark.parametrize("null", [False, True])
def test_a_folder_that_says_a_part(key: str, null: bool, folder: Path) -> None:
    """open_clip takes null for silence, too."""
    part = {each: value for each, value in SIGLIP.items() if each != key} | ({key: None} if null else {})
    name = say(folder, part)
    for stated in ({}, {key: None}):
        with pytest.raises(TrunkError, match=rf"(?s)expected: {key}, once.*without {key} in open_clip_config"):
            load_trunk(name, stated=stated)
    trunk = load_trunk(name, stated={key: SIGLIP[key]})
    assert trunk.image == ImageSpec(160, 160, "squash", "bicubic", 0, HALF, HALF)
    assert spec_of(trunk.preprocess) == trunk.image


@pytest.mark.parametrize("empty", [[], "", False])
def test_what_open_clip_takes_for_silence(empty: Any, folder: Path) -> None:
    with pytest.raises(TrunkError, match=r"(?s)expected: mean, once"):
        load_trunk(say(folder, SIGLIP | {"mean": empty}))
    with pytest.raises(TrunkError, match=r"(?s)expected: mean, once"):
        load_trunk(say(folder, None), stated=SIGLIP | {"mean": empty})


def test_a_single_zero_is_a_mean_and_no_silence(folder: Path) -> None:
    """open_clip reads it as if nothing had been said."""
    with pytest.raises(
        TrunkError, match=r"(?s)mean: \(0\.0, 0\.0, 0\.0\) by open_clip_config\.json, \(0\.48.* in the model"
    ):
        load_trunk(say(folder, SIGLIP | {"mean": 0}))
    trunk = load_trunk(say(folder, SIGLIP), stated={"mean": 0, "std": 1})
    assert (trunk.image.mean, trunk.image.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert spec_of(trunk.preprocess) == trunk.image


def test_what_is_stated_comes_before_what_the_folder_says(folder: Path) -> None:
    trunk = load_trunk(say(folder, SIGLIP), stated={"mean": [0.1, 0.2, 0.3], "resize_mode": "longest", "fill_color": 9})
    assert trunk.image == ImageSpec(160, 160, "longest", "bicubic", 9, (0.1, 0.2, 0.3), HALF)
    assert spec_of(trunk.preprocess) == trunk.image


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("size", [224, [160, 96]])
def test_a_size_that_is_not_the_models(size: Any, stated: bool, folder: Path) -> None:
    name = say(folder, SIGLIP if stated else SIGLIP | {"size": size})
    by = "--preprocess" if stated else "open_clip_config.json"
    with pytest.raises(
        TrunkError, match=rf"(?s)two sources disagree.*(height: 224|width: 96) by {by}, 160 in the model"
    ):
        load_trunk(name, stated={"size": size} if stated else {})


def test_the_models_own_size_may_be_stated(folder: Path) -> None:
    assert load_trunk(say(folder, SIGLIP, size=160), stated={"size": [160, 160]}).image.height == 160


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"mean": [123.7, 116.3, 103.5]}, "mean is finite, of values scaled to 0..1"),
        ({"std": [58.4, 57.1, 57.4]}, "std is finite and above zero, of values scaled to 0..1"),
        ({"std": 0}, "std is finite and above zero"),
        ({"mean": [0.5, 0.5]}, "own evaluation transform"),
        ({"mean": "half"}, "own evaluation transform"),
        ({"resize_mode": "crop"}, "own evaluation transform"),
        ({"interpolation": "nearest"}, "own evaluation transform"),
        ({"mode": "BGR"}, "own evaluation transform"),
        ({"fill_color": "black"}, "fill_color is a whole number"),
    ],
)
def test_nonsense_is_refused_before_weights_are_read(
    stated: dict[str, Any], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.exporter.trunk.require_readable", lambda *_: pytest.fail("weights were read"))
    for said, given in ((SIGLIP, stated), (SIGLIP | stated, {})):
        with pytest.raises(TrunkError, match=rf"(?s)cannot be described.*{message}.*--preprocess"):
            load_trunk(say(folder, said), stated=given)


# timm as a witness


@pytest.mark.parametrize(
    ("architecture", "mean"),
    [
        ("vit_base_patch16_siglip_224", INCEPTION_MEAN),
        ("vit_large_patch16_siglip_384", INCEPTION_MEAN),
        ("eva02_base_patch16_clip_224", OPENAI_DATASET_MEAN),
        ("vit_base_mci_224", (0.0, 0.0, 0.0)),
        ("vit_large_patch14_clip_224", None),  # timm has weights with two means
        ("convnext_base", None),  # one mean for classifiers, another in CLIP
        ("vit_base_patch16_224", None),  # no published CLIP has it
        ("test_vit3", None),
        ("of_nobody", None),
        (None, None),
    ],
)
def test_timm_is_heard_where_it_is_definite(architecture: str | None, mean: Any) -> None:
    said = tower_settings(tower(architecture).visual.trunk)
    assert said.get("mean") == mean
    assert set(said) == ({"mean", "std"} if mean else set())


def test_timm_contradicts_no_published_model() -> None:
    heard = 0
    for name in open_clip.list_models():
        architecture = open_clip.get_model_config(name)["vision_cfg"].get("timm_model_name")
        said = tower_settings(tower(architecture).visual.trunk)
        heard += bool(said)
        for settings in tag_settings(name).values():
            assert settings == settings | said
    assert heard > 50


def test_a_real_siglip_tower_says_its_name() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_siglip_224", pretrained=False)
    assert tower_settings(model) == {"mean": HALF, "std": HALF}


@pytest.mark.parametrize("name", ["local-dir:somewhere", "ViT-B-16-SigLIP"])
def test_a_siglip_tower_with_the_mean_of_clip_is_refused_until_it_is_stated(name: str) -> None:
    """What open_clip does to a SigLIP that is loaded from a file."""
    model, image = tower("vit_base_patch16_siglip_224"), spec_of(CLIP)
    with pytest.raises(TrunkError) as caught:
        require_agreement(name, model, image, CLIP, {})
    assert "two sources disagree" in str(caught.value)
    assert f"mean: {HALF} by timm and all models that open_clip publishes with this tower, (0.48" in str(caught.value)
    assert f"std: {HALF} by timm" in str(caught.value)
    stated = {"mean": CLIP["mean"], "std": CLIP["std"]}
    assert spec_of(require_agreement(name, model, image, CLIP | stated, stated)) == image


def test_what_open_clip_loaded_is_held_against_what_was_published() -> None:
    model, image = (
        tower("vit_base_patch16_siglip_224"),
        replace(spec_of(SIGLIP), resize_mode="shortest", mean=(0, 0, 0)),
    )
    with pytest.raises(TrunkError) as caught:
        require_agreement("ViT-B-16-SigLIP", model, image, SIGLIP, {})
    assert "- resize_mode: squash by open_clip's published weights of ViT-B-16-SigLIP, shortest in" in str(caught.value)
    assert "- mean: (0.5, 0.5, 0.5) by timm and all" in str(caught.value)


# The whole path of a built-in name


@pytest.fixture
def built_in(trunk_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes ``tiny`` a built-in name of open_clip, without published weights, and gives a file with its weights."""
    save_bpe(tmp_path / "tokenizer", context_length=CONTEXT_LENGTH)
    config = model_config()
    config["text_cfg"]["hf_tokenizer_name"] = str(tmp_path / "tokenizer")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    weights = tmp_path / "tiny.pt"
    torch.save(load_file(trunk_folder / "open_clip_model.safetensors"), weights)
    return weights


def publish(monkeypatch: pytest.MonkeyPatch, **tags: dict[str, Any]) -> None:
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)


def test_weights_from_a_file_get_the_preprocessing_of_the_published_ones(
    built_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, one=SIGLIP, two=SIGLIP | {"url": "somewhere else"})
    trunk = load_trunk("tiny", built_in)
    assert trunk.image == ImageSpec(160, 160, "squash", "bicubic", 0, HALF, HALF)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
    reference = PyTorchEnsemble(trunk, random_checkpoint(1, head_shape()))
    expected = image_transform_v2(PreprocessCfg(**SIGLIP | {"size": 160}), is_train=False)(image)
    assert torch.equal(reference.preprocess(image), expected)
    np.testing.assert_array_equal(normalised(reference.pixels(image), trunk.image), expected.numpy())


def test_weights_from_a_file_are_refused_where_the_published_ones_disagree(
    built_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrunkError, match=r"(?s)no published weights of this model.*--preprocess"):
        load_trunk("tiny", built_in)
    publish(monkeypatch, one=SIGLIP, two=CLIP)
    with pytest.raises(
        TrunkError, match=r"(?s)mean, std, resize_mode, once.*weights one: mean=0\.5,.*weights two: mean=0"
    ):
        load_trunk("tiny", built_in)
    trunk = load_trunk("tiny", built_in, {key: CLIP[key] for key in ("mean", "std", "resize_mode")})
    assert (trunk.image.mean, trunk.image.resize_mode) == (OPENAI_DATASET_MEAN, "shortest")


def test_commands_take_the_statement(built_in: Path, tmp_path: Path) -> None:
    write_checkpoint(random_checkpoint(1, head_shape()), tmp_path / "m.safetensors")
    trunk = ("--backbone", "tiny", "--trunk-weights", built_in)
    exported = ("export", tmp_path / "m.safetensors", "-o", tmp_path / "bundle", "--no-report", *trunk)
    assert "no published weights of this model" in run(*exported, code=1).stderr
    assert "unknown: means" in run(*exported, "--preprocess", "means=0.5", code=1).stderr
    run(*exported, "--preprocess", in_words(SIGLIP))
    assert Bundle(tmp_path / "bundle").manifest.image == ImageSpec(160, 160, "squash", "bicubic", 0, HALF, HALF)
    verified = (
        "verify",
        tmp_path / "bundle",
        "--against",
        tmp_path / "m.safetensors",
        "--frames",
        1,
        "--seed",
        1,
        *trunk,
    )
    assert "no published weights of this model" in run(*verified, code=1).stderr
    run(*verified, "--preprocess", in_words(SIGLIP))
    assert "preprocessing differs" in run(*verified, "--preprocess", in_words(CLIP), code=3).stderr


# What a check finds that does not trust the exporter


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD},
            "mean or std in the manifest is not the trunk's own",
        ),
        ({"resize_mode": "shortest"}, "other pixels"),
        ({"interpolation": "bilinear"}, "other pixels"),
    ],
)
def test_an_exporter_that_is_wrong_about_preprocessing_writes_no_bundle(
    changes: dict[str, Any], found: str, trunk: Trunk, tmp_path: Path
) -> None:
    wrong = replace(trunk, image=replace(trunk.image, **changes))
    with pytest.raises(ParityError, match=rf"(?s)a score changed.*preprocessing of [34] of 4 frames differs: {found}"):
        build(random_checkpoint(1, head_shape()), wrong, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_held_against_the_trunks_own_preprocessing(bundle: Path, trunk_folder: Path, folder: Path) -> None:
    """The same weights, whose folder says another mean since: so little that no winner need change."""
    checkpoint = random_checkpoint(3, head_shape())
    settings = json.loads((trunk_folder / "open_clip_config.json").read_text())["preprocess_cfg"]
    other = PyTorchEnsemble(load_trunk(say(folder, settings | {"mean": [0.5, 0.45, 0.4000001]})), checkpoint)
    with load(bundle) as ensemble:
        report = verify_against(ensemble, other, frames=2, candidates=4, seed=1)
    assert not report.passed
    assert report.ours.max_score_change < report.allowed_score_change
    (problem,) = report.problems()
    assert problem.startswith(
        "preprocessing differs: 160 x 160 px, squash, bicubic, mean 0.5 0.45 0.4, std 0.5 0.25 0.3 "
    )
    assert "trunk's own is size=160,160 mean=0.5,0.45,0.4000001 std=" in problem
