"""Weights of a trunk that are none: what is wrong is named before open_clip's loader sees the file."""

from __future__ import annotations

import io
import json
import pickle  # noqa: TID251 - makes files that must be refused
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trunkline.exporter.checkpoint.read import read_checkpoint
from trunkline.exporter.checkpoint.sensor_file import open_file
from trunkline.exporter.trunk import load_trunk
from trunkline.exporter.trunk_weights import require_readable
from trunkline.runtime.errors import CheckpointError, TrunkError

WEIGHTS = "open_clip_model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3512345678\n"
RANDOM = random.Random(1).randbytes(5000)
BIAS = "visual.trunk.blocks.0.attn.proj.bias"


@pytest.fixture(scope="module")
def state(trunk_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(trunk_folder / WEIGHTS)


@pytest.fixture
def folder(tmp_path: Path, trunk_folder: Path) -> Path:
    """A trunk without weights."""
    shutil.copytree(trunk_folder, tmp_path / "trunk")
    (tmp_path / "trunk" / WEIGHTS).unlink()
    return tmp_path / "trunk"


def torch_bytes(content: object, archive: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


def refused(name: str, weights: Path | None = None) -> TrunkError:
    with pytest.raises(TrunkError) as caught:
        load_trunk(name, weights)
    text = str(caught.value)
    assert not any(word in text for word in ("\x1b", "weights_only=False", "add_safe_globals", "http")), text
    return caught.value


def unreadable(weights: Path) -> TrunkError:
    """What is said of the weights of a built-in model, without what goes before: that takes a second."""
    with pytest.raises(TrunkError) as caught:
        require_readable("ViT-B-32-SigLIP2-256", weights)
    return caught.value


def refused_in(folder: Path, file: str, data: bytes) -> TrunkError:
    (folder / file).write_bytes(data)
    error = refused(f"local-dir:{folder}")
    assert error.problem == "cannot read the trunk's weights"
    assert error.where == folder / file
    return error


ANY_KIND: dict[str, tuple[bytes, str, str]] = {
    "LFS pointer": (POINTER, f"a Git LFS pointer of {len(POINTER)} bytes, not the weights themselves", "git lfs pull"),
    "empty": (b"", "an empty file", "download the file again"),
    "web page": (b"\n<!DOCTYPE html><p>404", "a web page, as failed downloads leave it", "download"),
}


@pytest.mark.parametrize("kind", ANY_KIND)
@pytest.mark.parametrize("file", [WEIGHTS, "open_clip_pytorch_model.bin", "model.pth"])
def test_files_that_hold_no_weights(folder: Path, file: str, kind: str) -> None:
    data, found, fix = ANY_KIND[kind]
    error = refused_in(folder, file, data)
    assert error.found == found
    assert fix in str(error.fix)


@pytest.mark.parametrize("kind", ANY_KIND)
@pytest.mark.parametrize("file", ["w.safetensors", "w.bin", "w.pt", "w.npz"])
def test_weights_of_built_in_models(tmp_path: Path, file: str, kind: str) -> None:
    (tmp_path / file).write_bytes(ANY_KIND[kind][0])
    error = unreadable(tmp_path / file)
    assert (error.where, error.found) == (tmp_path / file, ANY_KIND[kind][1])


@pytest.mark.parametrize("kind", ANY_KIND)
@pytest.mark.parametrize("file", ["m.safetensors", "m.pt"])
@pytest.mark.parametrize("read", [read_checkpoint, open_file], ids=["heads", "sensor encoder"])
def test_checkpoints_are_told_the_same(tmp_path: Path, file: str, kind: str, read: Callable[..., Any]) -> None:
    data, found, fix = ANY_KIND[kind]
    (tmp_path / file).write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path / file)
    assert caught.value.found == found
    assert fix in str(caught.value.fix)


def test_where_git_lfs_is_to_run(folder: Path) -> None:
    assert refused_in(folder, WEIGHTS, POINTER).fix == f"install git-lfs and run `git lfs pull` in {folder}"


def test_tokenizer_and_configuration_as_pointers(folder: Path, trunk_folder: Path) -> None:
    shutil.copy(trunk_folder / WEIGHTS, folder)
    (folder / "open_clip_pytorch_model.bin").write_bytes(POINTER)  # beside the safetensors file that is loaded
    assert load_trunk(f"local-dir:{folder}").patches == 100
    (folder / "tokenizer.json").write_bytes(POINTER)
    (folder / "tokenizer_config.json").write_bytes(POINTER)
    error = refused(f"local-dir:{folder}")
    assert error.found == [
        "tokenizer.json is a Git LFS pointer, not the file itself",
        "tokenizer_config.json is a Git LFS pointer, not the file itself",
    ]
    (folder / "open_clip_config.json").write_bytes(POINTER)
    assert "open_clip_config.json is a Git LFS pointer" in str(refused(f"local-dir:{folder}"))


def test_safetensors_that_were_cut_short(folder: Path, trunk_folder: Path) -> None:
    whole = (trunk_folder / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    found = {size: refused_in(folder, WEIGHTS, whole[:size]).found for size in (1, 7, 8)}
    assert set(found.values()) == {"no safetensors header at its start"}
    for size in (9, 100, header - 1):
        error = refused_in(folder, WEIGHTS, whole[:size])
        assert error.found == f"its header was cut short: the file has {size} bytes, the header alone {header}"
    for size in (header, len(whole) - 1):
        error = refused_in(folder, WEIGHTS, whole[:size])
        assert error.found == f"it was cut short: {size} bytes of the {len(whole)} that its header speaks of"
    assert refused_in(folder, WEIGHTS, whole + b"more").found  # in the library's words


@pytest.mark.parametrize(
    "data",
    [
        RANDOM,
        (50).to_bytes(8, "little") + b"{" * 200,
        (2).to_bytes(8, "little") + b"[]",
        (16).to_bytes(8, "little") + b'{"a": {"b": []}}',
        (1 << 60).to_bytes(8, "little") + b"{}",
        b"\0" * 200,
    ],
    ids=["random", "brackets", "list", "no offsets", "huge", "zeros"],
)
def test_bytes_that_are_no_safetensors(folder: Path, data: bytes) -> None:
    assert refused_in(folder, WEIGHTS, data).found == "no safetensors header at its start"


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "old"])
def test_pytorch_files_that_were_cut_short(folder: Path, state: dict[str, torch.Tensor], archive: bool) -> None:
    whole = torch_bytes(state, archive)
    for size in (5, 60, 1000, len(whole) // 2, len(whole) - 1):
        error = refused_in(folder, "open_clip_pytorch_model.bin", whole[:size])
        if archive:
            assert error.found == f"a zip archive that was cut short after {size} bytes"


def test_any_damage_ends_in_words(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Bytes of weights may change unseen, which the digest of a bundle's trunk tells; all others are refused."""
    generator = random.Random(0)
    small = {BIAS: state[BIAS]}
    for archive in (True, False):
        whole = torch_bytes(small, archive)
        for _ in range(25):
            data = bytearray(whole)
            for _ in range(5):
                data[generator.randrange(len(data))] = generator.randrange(256)
            (folder / "model.pth").write_bytes(data)
            refused(f"local-dir:{folder}")


@pytest.mark.parametrize("data", [RANDOM, b"epoch,loss\n1,0.5\n", b"\0" * 300], ids=["random", "text", "zeros"])
@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt"])
def test_bytes_that_pytorch_never_wrote(tmp_path: Path, data: bytes, suffix: str) -> None:
    (tmp_path / f"w.{suffix}").write_bytes(data)
    error = unreadable(tmp_path / f"w.{suffix}")
    assert error.found == "bytes that are neither an archive nor a pickle, the kinds that PyTorch writes"


def test_kinds_under_another_suffix(folder: Path, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    for archive in (True, False):
        error = refused_in(folder, WEIGHTS, torch_bytes(state, archive))
        assert (error.found, error.fix) == (
            "a PyTorch file under the suffix of safetensors",
            "name it open_clip_model.bin",
        )
    save_file(state, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "w.bin")
    error = refused("ViT-B-32-SigLIP2-256", tmp_path / "w.bin")
    assert (error.found, error.fix) == ("a safetensors file under another suffix", "name it w.safetensors")


FOREIGN = {
    "numpy number": ({"epoch": np.float64(3)}, "an object that needs numpy._core.multiarray.scalar"),
    "numpy array": ({"weight": np.zeros(3)}, "an object that needs numpy._core.multiarray._reconstruct"),
    "path": ({"path": Path("runs")}, "an object that needs pathlib.PosixPath"),
    "module": ({"layer": torch.nn.ReLU()}, "an object that needs torch.nn.modules.activation.ReLU"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_objects_beside_the_tensors(folder: Path, state: dict[str, torch.Tensor], kind: str) -> None:
    """They are named, and nobody is told to trust the file."""
    content, found = FOREIGN[kind]
    error = refused_in(folder, "open_clip_pytorch_model.bin", torch_bytes({"state_dict": state} | content))
    assert found in list(error.found)  # type: ignore[call-overload]
    assert str(error.fix).startswith("convert the file to .safetensors with software that you trust")


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "ran"))


@pytest.mark.parametrize("form", ["archive", "old", "plain"])
def test_code_does_not_run(folder: Path, tmp_path: Path, form: str) -> None:
    content = {"a": Trap(tmp_path / "ran")}
    data = pickle.dumps(content) if form == "plain" else torch_bytes(content, form == "archive")
    refused_in(folder, "open_clip_pytorch_model.bin", data)
    assert not (tmp_path / "ran").exists()


def test_archives_of_code(folder: Path) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), buffer)  # type: ignore[no-untyped-call]
    error = refused_in(folder, "open_clip_pytorch_model.bin", buffer.getvalue())
    assert error.found == "a TorchScript archive, which holds code"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "list"),
        (torch.zeros(3), "Tensor"),
        ({}, "no tensors"),
        ({"state_dict": {}}, "no tensors"),
        ({"state_dict": [1]}, "list"),
        ({"a": 1.5, "b": torch.zeros(1)}, ["a: float"]),
        ({7: torch.zeros(1)}, ["7: Tensor"]),
    ],
    ids=["list", "tensor", "empty", "nothing inside", "list inside", "number", "key"],
)
def test_contents_that_are_no_tensors_by_name(folder: Path, content: object, found: object) -> None:
    assert refused_in(folder, "open_clip_pytorch_model.bin", torch_bytes(content)).found == found


def test_an_empty_safetensors_file(folder: Path) -> None:
    save_file({}, folder / WEIGHTS)
    assert refused(f"local-dir:{folder}").found == "no tensors"


NO_WEIGHTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "int8": lambda x: x.to(torch.int8),
    "int32": lambda x: x.to(torch.int32),
    "bool": lambda x: x > 0,
    "complex64": lambda x: x.to(torch.complex64),
    "float8_e4m3fn": lambda x: x.to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("dtype", NO_WEIGHTS)
@pytest.mark.parametrize("file", [WEIGHTS, "open_clip_pytorch_model.bin"])
def test_tensors_that_open_clip_would_cast(folder: Path, state: dict[str, torch.Tensor], file: str, dtype: str) -> None:
    content = state | {BIAS: NO_WEIGHTS[dtype](state[BIAS])}
    if file == WEIGHTS:
        save_file(content, folder / file)
    else:
        torch.save(content, folder / file)
    assert refused(f"local-dir:{folder}").found == [f"{BIAS} is {dtype}"]


@pytest.mark.parametrize("file", [WEIGHTS, "open_clip_pytorch_model.bin", "old.pth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_right(folder: Path, state: dict[str, torch.Tensor], file: str, dtype: torch.dtype) -> None:
    content = {name: tensor.to(dtype) for name, tensor in state.items()}
    if file == WEIGHTS:
        save_file(content, folder / file)
    else:
        torch.save({"state_dict": content}, folder / file, _use_new_zipfile_serialization=file != "old.pth")
    loaded = load_trunk(f"local-dir:{folder}").model.state_dict()
    assert loaded.keys() == state.keys()
    assert torch.equal(loaded[BIAS], content[BIAS].float())


def test_weights_of_another_model(folder: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor for name, tensor in state.items() if name != BIAS}, folder / WEIGHTS)
    error = refused(f"local-dir:{folder}")
    assert error.problem == "open_clip cannot build the trunk"
    assert f'Missing key(s) in state_dict: "{BIAS}"' in str(error.found)


@pytest.mark.parametrize("file", ["tokenizer.json", "open_clip_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("data", [b"", b"{", RANDOM, b"[1]"], ids=["empty", "half", "random", "list"])
def test_damaged_files_beside_the_weights(folder: Path, trunk_folder: Path, file: str, data: bytes) -> None:
    shutil.copy(trunk_folder / WEIGHTS, folder)
    (folder / file).write_bytes(data)
    refused(f"local-dir:{folder}")


@pytest.mark.parametrize("part", ["vision_cfg", "text_cfg"])
@pytest.mark.parametrize("value", [None, [], 3, {}], ids=repr)
def test_configurations_of_the_wrong_form(folder: Path, trunk_folder: Path, part: str, value: object) -> None:
    shutil.copy(trunk_folder / WEIGHTS, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"][part] = value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    refused(f"local-dir:{folder}")
