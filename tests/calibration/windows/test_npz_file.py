"""Arrays of an npz file are numpy's own, whether mapped or loaded, and whatever is damaged is refused by name."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from tests.windows_kit import raw, save
from trunkline.calibration.windows import npz_file as module
from trunkline.calibration.windows.npz_file import NpzFile
from trunkline.runtime.errors import DatasetError


def member(array: Any, **header: Any) -> bytes:
    """An npy file; ``header`` changes what it says of itself."""
    content = io.BytesIO()
    facts = npy.header_data_from_array_1_0(array) | header
    npy.write_array_header_1_0(content, facts)
    return content.getvalue() + array.tobytes()


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "compressed"])
def test_arrays_are_those_that_numpy_loads(tmp_path: Path, compressed: bool) -> None:
    arrays = raw() | {"fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)), "scalar": np.int8(3), "none": []}
    path = save(tmp_path / "a.npz", arrays, compressed=compressed)
    npz = NpzFile(path)
    with np.load(path, allow_pickle=False) as loaded:
        assert set(npz.names) == set(loaded)
        for name in loaded:
            found = npz.array(name)
            np.testing.assert_array_equal(found, loaded[name])
            assert (found.dtype, found.shape) == (loaded[name].dtype, loaded[name].shape)
            if found.size:
                assert not found.flags.writeable
                assert (npz.header(name).offset is None) == compressed
    npz.check(npz.names)


def test_a_stored_array_stays_in_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", raw())
    before = NpzFile(path).array("alines")
    offset = NpzFile(path).header("alines").offset
    assert offset is not None
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack("<f", 77.0))
    assert before[0, 0] == 77


def test_arrays_that_nobody_asks_for_may_hold_anything(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", raw(notes=np.array([{"a": 1}], object)))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("readme.txt", "no array")
        file.writestr("broken.npy", b"\x93NUMPY")
    npz = NpzFile(path)
    assert npz.array("forces").shape == (400,)
    assert "readme.txt" not in npz.names
    for name, word in (("notes", "object"), ("broken", "EOF")):
        with pytest.raises(DatasetError, match=rf"(?s)damaged.*a\.npz, {name}.*{word}"):
            npz.array(name)


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({"shape": (1 << 40,)}, "in 176 bytes"),
        ({"shape": (-6,)}, "in 176 bytes"),
        ({"shape": (5,)}, "in 176 bytes"),
        ({"descr": "|O"}, "object"),
        ({"descr": "<f4"}, "float32"),
        ({"shape": "six"}, "shape"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_headers_that_claim_something_else(tmp_path: Path, header: Any, word: str, compression: int) -> None:
    path = archive(tmp_path / "a.npz", {"x.npy": member(np.arange(6.0), **header)}, compression)
    with pytest.raises(DatasetError, match=rf"(?s)damaged.*x.*{word}"):
        NpzFile(path).array("x")


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", member(np.arange(6.0)))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("x.npy", member(np.arange(6.0)))
    with pytest.raises(DatasetError, match="two of the same name"):
        NpzFile(path)


def test_a_small_file_that_claims_to_hold_a_large_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.npz", {"x": np.zeros(1000)}, compressed=True)
    monkeypatch.setattr(module, "MAX_LOADED_BYTES", 7999)
    with pytest.raises(DatasetError, match=r"(?s)too large to be loaded.*8000 bytes.*not savez_compressed"):
        NpzFile(path).array("x")
    monkeypatch.setattr(module, "MAX_LOADED_BYTES", 8000)
    assert NpzFile(path).array("x").size == 1000


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "no plain file"),
        (lambda path: os.mkfifo(path), "no plain file"),
        (lambda path: path.touch(), "an empty file"),
        (lambda path: path.write_bytes(b"text"), "not a zip file"),
    ],
    ids=["missing", "folder", "pipe", "empty", "text"],
)
def test_files_that_are_none(tmp_path: Path, make: Any, word: str) -> None:
    path = tmp_path / "a.npz"
    make(path)
    with pytest.raises(DatasetError, match=rf"(?s)a\.npz.*{word}"):
        NpzFile(path)


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "compressed"])
def test_a_changed_number_shows_in_the_checksum(tmp_path: Path, compressed: bool) -> None:
    path = save(tmp_path / "a.npz", {"x": np.arange(1000.0)}, compressed=compressed)
    content = bytearray(path.read_bytes())
    place = content.index(np.arange(1000.0)[500:502].tobytes()) if not compressed else len(content) // 2
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"(?s)damaged.*a\.npz, x"):
        NpzFile(path).array("x") if compressed else NpzFile(path).check(["x"])


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "compressed"])
def test_every_truncated_file_is_refused(tmp_path: Path, compressed: bool) -> None:
    arrays = {"x": np.arange(20.0), "y": np.arange(3, dtype=np.float32)}
    path = save(tmp_path / "a.npz", arrays, compressed=compressed)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DatasetError):
            NpzFile(path)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(compressed=st.booleans(), place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_whatever_byte_is_changed_arrays_are_right_or_refused(
    tmp_path: Path, compressed: bool, place: float, byte: int
) -> None:
    arrays = {"x": np.arange(20.0), "y": np.arange(8, dtype=np.float32).reshape(2, 4)}
    path = save(tmp_path / "a.npz", arrays, compressed=compressed)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] = byte
    path.write_bytes(content)
    with contextlib.suppress(DatasetError):
        npz = NpzFile(path)
        if set(npz.names) == set(arrays):
            npz.check(npz.names)
            for name, array in arrays.items():
                found = npz.array(name)
                if (found.shape, found.dtype) == (array.shape, array.dtype):
                    np.testing.assert_array_equal(found, array)
