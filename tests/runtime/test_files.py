"""Names, opening below a directory, hashing, and writes that leave no half of a file."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.runtime.errors import IntegrityError
from trunkline.runtime.files import (
    HASH_CHUNK_BYTES,
    Identity,
    ambiguous,
    becoming,
    name_problem,
    open_inside,
    path_identities,
    read_bytes,
    replacing,
    sha256_of,
    sync_tree,
)


@pytest.mark.parametrize("name", ["a", "stages/vision/cpu.onnx", "é", "名前", "a b", "..a", "a..", ".hidden", "a.b.c"])
def test_good_names(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "empty"),
        ("x" * 201, "longer than 200"),
        ("/a", "absolute"),
        ("a/", "empty"),
        ("a//b", "empty"),
        ("./a", "'.'"),
        ("a/../b", "'..'"),
        ("..", "'..'"),
        ("a\\b", "backslash"),
        ("C:a", "colon"),
        ("a\0", "control"),
        ("a\x7f", "control"),
        ("\u202ea", "format"),
        ("a\ufeff", "format"),
        ("\ud800", "unassigned"),
        ("\U000e0fff", "unassigned"),
        ("a\u2028b", "control"),
        ("e\u0301", "normal form"),
    ],
    ids=ascii,
)
def test_bad_names(name: str, problem: str) -> None:
    assert problem in (name_problem(name) or "")


@given(st.text(max_size=30))
def test_names_never_leave_the_directory(name: str) -> None:
    if name_problem(name) is None:
        assert os.path.normpath(os.path.join("/root", name)).startswith("/root/")
        name.encode()


def test_ambiguous_names() -> None:
    assert ambiguous(["a", "b", "ab"]) == []
    assert ambiguous(["a", "B", "b"]) == ["'b' and 'B'"]
    assert len(ambiguous(["x", "X", "\uff58"])) == 2


def test_open_inside_reads_the_file(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"content")
    with open_inside(tmp_path, "a/b/c") as descriptor:
        assert read_bytes(descriptor, 100) == b"content"
        assert read_bytes(descriptor, 100) == b"content"  # from the start again
        assert read_bytes(descriptor, 3) == b"con"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_descriptors_are_closed_also_on_errors(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to("elsewhere")
    os.mkfifo(tmp_path / "a" / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("a/link", "a/fifo", "a/none", "none/x", "a"):
        with pytest.raises(IntegrityError), open_inside(tmp_path, name):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_path_identities_show_a_swap_that_was_undone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"1")
    before = path_identities(tmp_path, "a/b")
    assert before == path_identities(tmp_path, "a/b")
    assert len(before) == 3
    (tmp_path / "a" / "b").rename(tmp_path / "a" / "c")
    (tmp_path / "a" / "c").rename(tmp_path / "a" / "b")
    assert path_identities(tmp_path, "a/b") != before


def test_identity_changes_with_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    status = path.stat()
    time.sleep(0.05)  # more than a tick of the file system's clock
    path.write_bytes(b"2")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    now = Identity.of(path.stat())
    assert (now.size, now.mtime_ns, now.inode) == (status.st_size, status.st_mtime_ns, status.st_ino)
    assert now.ctime_ns > status.st_ctime_ns


@pytest.mark.parametrize("size", [0, 1, HASH_CHUNK_BYTES - 1, HASH_CHUNK_BYTES, HASH_CHUNK_BYTES + 1])
def test_sha256(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_replacing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a"
    for content in (b"first", b"second"):
        with replacing(path) as temporary:
            temporary.write_bytes(content)
            assert temporary.parent == path.parent
            assert not path.exists() or path.read_bytes() == b"first"
        assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["a"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_replacing_that_fails_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_names_as_long_as_a_file_system_takes(tmp_path: Path) -> None:
    with replacing(tmp_path / ("a" * 255)) as temporary:
        temporary.write_bytes(b"new")
    for overwrite in (False, True):
        with becoming(tmp_path / ("漢" * 85), overwrite=overwrite) as folder:
            (folder / "b").write_bytes(b"")
    assert sorted(os.listdir(tmp_path)) == ["a" * 255, "漢" * 85]


def test_sync_tree_reaches_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    sync_tree(tmp_path)
    assert sorted(synced) == sorted(map(str, (tmp_path, tmp_path / "a", tmp_path / "a" / "b")))
