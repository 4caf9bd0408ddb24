"""Folders that a library fills itself: what changed since they were sealed is never loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trunkline.runtime.backends.sealed import LOCK, SEAL, sealed
from trunkline.runtime.engines.locks import FileLock
from trunkline.runtime.errors import BackendError

DIGEST, OTHER = "a" * 64, "b" * 64
ENGINE = "action_sm87.engine"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With one folder in it, sealed."""
    root = tmp_path / "root"
    with sealed(root, DIGEST) as place:
        (place / ENGINE).write_bytes(b"engine")
        (place / "action.profile").write_bytes(b"profile")
    return root


def found(root: Path, digest: str = DIGEST) -> list[str]:
    """What the library would find."""
    with sealed(root, digest) as place:
        return sorted(set(os.listdir(place)) - {SEAL})


def test_what_was_sealed_is_found_again(root: Path) -> None:
    assert found(root) == ["action.profile", ENGINE]
    assert found(root) == ["action.profile", ENGINE]


def test_another_digest_is_another_folder(root: Path) -> None:
    assert found(root, OTHER) == []
    assert found(root) != []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "53 truncated": lambda place: (place / ENGINE).write_bytes(b"engin"),
    "54 one bit": lambda place: flip(place / ENGINE),
    "missing": lambda place: (place / ENGINE).unlink(),
    "foreign": lambda place: (place / "other.engine").write_bytes(b"engine"),
    "renamed": lambda place: (place / ENGINE).rename(place / "other.engine"),
    "a link": lambda place: linked(place / ENGINE),
    "a folder": lambda place: (place / "folder").mkdir(),
    "no seal": lambda place: (place / SEAL).unlink(),
    "half a seal": lambda place: (place / SEAL).write_bytes((place / SEAL).read_bytes()[:40]),
    "another seal": lambda place: (place / SEAL).write_text('{"format": "x", "schema": 1, "files": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_changed_is_made_again(root: Path, damage: str) -> None:
    DAMAGES[damage](root / DIGEST)
    assert found(root) == []
    with sealed(root, DIGEST) as place:
        (place / ENGINE).write_bytes(b"again")
    assert found(root) == [ENGINE]


def test_80_a_library_that_failed_or_was_killed_leaves_nothing(root: Path) -> None:
    def fail() -> None:
        with sealed(root, OTHER) as place:
            (place / ENGINE).write_bytes(b"half of an eng")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert found(root, OTHER) == []


def test_81_one_process_at_a_time(root: Path) -> None:
    """Locks are of open files: those of one process stand in each other's way as those of two do."""
    for digest in (DIGEST, OTHER):
        with sealed(root, digest), FileLock(root / LOCK) as lock:
            assert not lock.try_to_take()
        with FileLock(root / LOCK) as lock:
            assert lock.try_to_take()


def test_the_oldest_goes_when_there_is_no_room(tmp_path: Path) -> None:
    root, digests = tmp_path / "root", [letter * 64 for letter in "abcd"]
    for age, digest in enumerate(digests):
        with sealed(root, digest, limit_bytes=1 << 30) as place:
            (place / ENGINE).write_bytes(b"x" * 10_000)
        os.utime(root / digest / SEAL, (1000 + age, 1000 + age))
    with sealed(root, "e" * 64, limit_bytes=35_000) as place:
        (place / ENGINE).write_bytes(b"x" * 10_000)
    left = sorted(path.name[0] for path in root.iterdir() if path.is_dir())
    assert left == ["c", "d", "e"]


def test_the_one_that_is_used_stays_however_large(tmp_path: Path) -> None:
    with sealed(tmp_path / "root", DIGEST, limit_bytes=1) as place:
        (place / ENGINE).write_bytes(b"x" * 10_000)
    assert found(tmp_path / "root") == [ENGINE]


def test_a_folder_that_others_could_write(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(BackendError, match=r"others could put engines into it(.|\n)*chmod 700"), sealed(root, DIGEST):
        pytest.fail("it was opened")


def test_79_no_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match="the engine cache cannot be used"), sealed(tmp_path / "file" / "x", DIGEST):
        pytest.fail("it was opened")
