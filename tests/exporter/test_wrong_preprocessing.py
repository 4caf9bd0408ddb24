"""A bundle of the demo under open_clip's default preprocessing decides badly, and every check says so by itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg
from typer.testing import CliRunner

from tests.outliers import DEMO, demo_data
from trunkline.exporter import export as module
from trunkline.exporter import trunk as trunk_module
from trunkline.exporter.checkpoint.pack import pack
from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.cli import app
from trunkline.exporter.export import build
from trunkline.exporter.preprocessing import spec_of
from trunkline.exporter.trunk import load_trunk
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import TrunkError
from trunkline.runtime.manifest import write_manifest

NAME = f"local-dir:{DEMO / 'trunk'}"
#: What the loader takes where nobody says anything.
DEFAULT = spec_of(vars(PreprocessCfg(size=160)))


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packed = tmp_path_factory.mktemp("demo") / "demo.safetensors"
    pack(sorted((DEMO / "members").glob("*.safetensors")), packed)
    return packed


@pytest.fixture(scope="module")
def wrong(members: Path) -> Path:
    """The bundle that the fault wrote: wrong in the model, the graph and the manifest, and no gate at export."""
    trunk, output = replace(load_trunk(NAME), image=DEFAULT), members.parent / "wrong"
    trunk.model.visual.preprocess_cfg = vars(PreprocessCfg(size=160))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "require_parity", lambda *_: None)
        build(read_checkpoint(members), trunk, output)
    return output


def test_it_decides_badly(wrong: Path, members: Path, tmp_path: Path) -> None:
    demo_data(tmp_path / "data", 200, 7)
    words = ("eval", wrong, "--dataset", tmp_path / "data" / "dataset.json", "--samples", 100, "--json")
    result = json.loads(run(*words, "--against", members, "--backbone", NAME).stdout)
    assert result["pytorch"]["accuracy"]["value"] > 0.6
    assert result["bundle"]["accuracy"]["value"] < 0.4


def test_verify_says_it(wrong: Path) -> None:
    result = run("verify", wrong, code=3)
    assert (
        "preprocessing of 3 of 4 frames differs: other pixels (Pillow version, resize mode or filter?)" in result.stderr
    )
    assert "preprocessing of 1 of 4 frames differs: mean or std in the manifest is not the trunk's own" in result.stderr
    assert "a score changed by" in result.stderr
    assert "0 of 4 frames preprocessed identically" in result.stdout


def test_the_checkpoint_says_it(wrong: Path, members: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where golden vectors were made with the same fault."""
    monkeypatch.setattr("trunkline.runtime.parity.require_parity", lambda *_: None)
    words = ("verify", wrong, "--against", members, "--backbone", NAME, "--frames", 1, "--seed", 3)
    result = run(*words, code=3)
    assert (
        "preprocessing differs: 160 x 160 px, shortest, bicubic, mean 0.48145466 0.4578275 0.40821073" in result.stderr
    )
    assert "trunk's own is size=160,160 mean=0.5,0.5,0.5 std=0.5,0.5,0.5 interpolation=bicubic resize_mode=squash" in (
        result.stderr
    )


def test_a_loader_that_fills_in_its_default_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk_module, "image_spec", lambda model: DEFAULT)
    with pytest.raises(
        TrunkError, match=r"(?s)two sources disagree.*resize_mode: squash by open_clip_config.*mean: \(0\.5"
    ):
        load_trunk(NAME)


@pytest.mark.parametrize(
    "changes", [{"mean": DEFAULT.mean}, {"std": (0.5, 0.5, float(np.nextafter(np.float32(0.5), 1)))}]
)
def test_a_manifest_that_says_another_mean_or_std(changes: dict[str, Any], bundle: Path, tmp_path: Path) -> None:
    """The graph is right, so the scores are; what `trunkline info` would show is not."""
    copy = shutil.copytree(bundle, tmp_path / "copy")
    manifest = Bundle(copy).manifest
    write_manifest(replace(manifest, image=replace(manifest.image, **changes)), copy)
    result = run("verify", copy, code=3)
    assert "preprocessing of 4 of 4 frames differs: mean or std in the manifest is not the trunk's own" in result.stderr
    assert "a score changed" not in result.stderr
