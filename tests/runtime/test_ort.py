"""What ONNX Runtime is asked for through files and paths, where the disk is full or a path is none to it."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import qdq_kit
from tests.bundles import copied, frame, windows
from tests.qdq_kit import Form
from trunkline.runtime import load
from trunkline.runtime.backends import StageFiles, named, onnxruntime
from trunkline.runtime.errors import BackendError


@pytest.fixture
def stage(tmp_path: Path) -> StageFiles:
    """One linear layer in int8."""
    form = Form()
    return qdq_kit.stage_files(qdq_kit.model(form), form, tmp_path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@contextmanager
def files_up_to(count: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    sizes = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, sizes[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, sizes)


@pytest.mark.parametrize("room", [0, 1, 400])
def test_a_full_folder_for_temporary_files_is_named(stage: StageFiles, place: Path, room: int) -> None:
    """The library says nothing: its record ends where the room did."""
    with files_up_to(room), pytest.raises(BackendError, match="could not write down which kernels it ran") as caught:
        onnxruntime.int8_kernels(stage)
    error = caught.value
    assert Path(str(error.where)).parent == place
    assert str(error.found).startswith(f"a record that stops after {room} bytes, ")
    assert "TMPDIR" in str(error.fix)
    assert list(place.iterdir()) == []


def test_a_folder_for_temporary_files_that_is_gone(stage: StageFiles, place: Path) -> None:
    shutil.rmtree(place)
    with pytest.raises(BackendError, match=rf"(?s)could not write down.*{place}.*No such file"):
        onnxruntime.int8_kernels(stage)


def test_no_folder_for_temporary_files_anywhere(stage: StageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/full", "/full/too"])
    with pytest.raises(BackendError, match=r"(?s)the folder for temporary files.*\['/full', '/full/too'\]"):
        onnxruntime.int8_kernels(stage)


def test_a_folder_for_temporary_files_that_is_not_utf8(
    stage: StageFiles, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = place / os.fsdecode(b"\xff")
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    with pytest.raises(BackendError, match=r"(?s)takes no path that is not UTF-8.*\\udcff.*TMPDIR"):
        onnxruntime.int8_kernels(stage)


@pytest.mark.parametrize("inside", [False, True])
def test_a_bundle_at_a_path_that_is_not_utf8(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    """OpenVINO is given what was read, not a path."""
    odd = copied(bundle, tmp_path / os.fsdecode(b"\xff"))
    if inside:
        monkeypatch.chdir(odd)
    path = Path() if inside else odd
    with pytest.raises(BackendError, match=r"(?s)takes no path that is not UTF-8.*\\udcff.*OpenVINO"):
        load(path, backend="onnxruntime")
    if named("openvino").available() is None:
        with load(bundle, backend="openvino") as plain, load(path, backend="openvino") as found:
            assert found.score(frame(), "go", windows(3)).best == plain.score(frame(), "go", windows(3)).best
