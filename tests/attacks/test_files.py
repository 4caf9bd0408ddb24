"""Files of a bundle that are missing, foreign, altered, linked or swapped are refused; remembered digests hold.

Numbers are those of docs/security.md, "Files of a bundle".
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import age, copied, edit_manifest, put, set_times_back
from trunkline.runtime import bundle as bundle_module
from trunkline.runtime import files, load
from trunkline.runtime.backends import StageFiles, named, names
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BundleError, IntegrityError

GRAPH = "stages/vision/cpu.onnx"
WEIGHTS = "stages/vision/cpu.weights"
SECONDS = 20


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    return copied(bundle, tmp_path / "bundle")


def in_time(action: Callable[[], object]) -> None:
    """Fails, rather than hangs, where opening something blocks."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]


def test_18_missing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(IntegrityError, match=f"missing\n.*{WEIGHTS}(.|\n)*copy the whole bundle again"):
        Bundle(folder)


def test_19_extra(folder: Path) -> None:
    (folder / "stages" / "plugin.so").write_bytes(b"")
    (folder / "note\x1b[2J.txt").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"does not list(.|\n)*note\\x1b(.|\n)*stages/plugin\.so") as caught:
        Bundle(folder)
    assert "\x1b" not in str(caught.value)


def test_19_extra_in_deep_folders(folder: Path) -> None:
    path = folder.joinpath(*["deep"] * 12)
    path.mkdir(parents=True)
    with pytest.raises(IntegrityError, match="nested too deep"):
        Bundle(folder)


def test_20_wrong_size(folder: Path) -> None:
    size = (folder / WEIGHTS).stat().st_size
    os.truncate(folder / WEIGHTS, size - 1)
    with pytest.raises(IntegrityError, match=f"not what the manifest says(.|\n)*{size} bytes(.|\n)*{size - 1} bytes"):
        Bundle(folder)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "tokenizer.json", "golden.safetensors"])
def test_21_one_bit_flipped(folder: Path, name: str) -> None:
    flip(folder / name)
    with pytest.raises(IntegrityError, match=f"not what the manifest says\n.*{name}\n.*sha256 .*\n.*sha256 "):
        Bundle(folder)


def flip(path: Path, place: int = 100) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("../outside", "'..' part"),
        ("stages/../../outside", "'..' part"),
        ("/etc/hostname", "absolute"),
        ("stages\\vision", "backslash"),
        ("C:/x", "colon"),
        ("stages/\0", "control"),
    ],
    ids=["22 parent", "22 parent within", "23 absolute", "24 backslash", "24 drive", "16 NUL"],
)
def test_names_that_leave_the_bundle(folder: Path, name: str, match: str) -> None:
    (folder.parent / "outside").write_bytes((folder / "tokenizer.json").read_bytes())

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("tokenizer.json")
        manifest["text"]["tokenizer"] = name

    edit_manifest(folder, change)
    with pytest.raises(BundleError, match=match):
        Bundle(folder)
    with pytest.raises(IntegrityError, match=f"may not name(.|\n)*{match}"), files.open_inside(folder, name):
        pass  # the second line of defence, should a name come from anywhere but a checked manifest


def link_file(folder: Path) -> None:
    shutil.move(folder / WEIGHTS, folder.parent / "outside")
    (folder / WEIGHTS).symlink_to(folder.parent / "outside")


def link_inside(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "stages" / "weights")
    (folder / WEIGHTS).symlink_to("../weights")


def link_parent(folder: Path) -> None:
    shutil.move(folder / "stages", folder.parent / "stages")
    (folder / "stages").symlink_to(folder.parent / "stages")


def link_manifest(folder: Path) -> None:
    shutil.move(folder / "manifest.json", folder.parent / "manifest.json")
    (folder / "manifest.json").symlink_to(folder.parent / "manifest.json")


def link_dangling(folder: Path) -> None:
    (folder / "stages" / "more").symlink_to("nowhere")


def download_cache(folder: Path) -> None:
    """Every file a link to a blob of another directory, as download caches keep them."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.move(path, blob)
        path.symlink_to(os.path.relpath(blob, path.parent))


@pytest.mark.parametrize(
    "spoil",
    [link_file, link_inside, link_parent, link_manifest, link_dangling, download_cache],
    ids=["25 file", "25 inside", "26 parent", "25 manifest", "25 dangling", "29 download cache"],
)
def test_links(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder)
    with pytest.raises(IntegrityError, match=r"not a plain file or directory(.|\n)*a link(.|\n)*cp -rL CACHE BUNDLE"):
        Bundle(folder)


@pytest.mark.parametrize("name", [WEIGHTS, f"{GRAPH}/below", "stages/more/x"])
def test_links_are_refused_where_a_file_is_opened(folder: Path, name: str) -> None:
    """Also without the walk over the directory before: a link may appear after it."""
    link_file(folder)
    (folder / "stages" / "more").symlink_to(folder.parent)
    (folder.parent / "x").write_bytes(b"")
    match = "a link, or a file where a directory belongs"
    with pytest.raises(IntegrityError, match=match), files.open_inside(folder, name):
        pass


def test_29_copying_as_the_fix_says_helps(folder: Path, tmp_path: Path) -> None:
    download_cache(folder)
    shutil.copytree(folder, tmp_path / "copy", symlinks=False)  # what `cp -rL` does
    assert Bundle(tmp_path / "copy").manifest.members


def test_bundle_reached_through_a_link_is_fine(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    assert Bundle(tmp_path / "current").digest == Bundle(folder).digest


def test_27_hard_link(folder: Path, tmp_path: Path) -> None:
    os.link(folder / WEIGHTS, tmp_path / "second name")
    with pytest.raises(IntegrityError, match=f"hard link(.|\n)*{WEIGHTS}\n.*2 names(.|\n)*cp -r"):
        Bundle(folder)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY)  # a socket's path may have 108 bytes only
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"/proc/self/fd/{directory}/{path.name}")
    os.close(directory)


def make_device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero, which never ends
    except PermissionError:
        pytest.skip("only root may make devices")


@pytest.mark.parametrize("make", [make_fifo, make_socket, make_device, os.mkdir])
@pytest.mark.parametrize("name", [WEIGHTS, "manifest.json"])
def test_28_not_a_file(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(IntegrityError, match=f"something that is not a plain file(.|\n)*{name}"):
        in_time(lambda: Bundle(folder))


def test_28_file_where_a_directory_belongs(folder: Path) -> None:
    shutil.rmtree(folder / "stages" / "vision")
    (folder / "stages" / "vision").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"does not list(.|\n)*'stages/vision'"):
        Bundle(folder)


def swap(one: Path, two: Path) -> None:
    one.rename(one.with_suffix(".aside"))
    two.rename(one)
    one.with_suffix(".aside").rename(two)


@pytest.fixture
def evil(folder: Path, tmp_path: Path) -> Path:
    """A second stage directory with other weights of the same size."""
    target = tmp_path / "evil"
    shutil.copytree(folder / "stages" / "vision", target)
    flip(target / "cpu.weights", 500_000)
    return target


class TestSwaps:
    """30: between check and use, and back again before anyone looks."""

    @pytest.fixture(params=names("cpu"))
    def backend(self, request: pytest.FixtureRequest) -> str:
        if (missing := named(request.param).available()) is not None:
            pytest.skip(missing.reason)
        return request.param

    @pytest.fixture
    def at_open(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], None]]]:
        """Actions to run right before and right after the back end opens the vision stage."""
        actions: list[Callable[[], None]] = []
        module = named(backend)
        original = module.open_stage

        def open_stage(stage: StageFiles) -> object:
            if stage.name != "vision" or not actions:
                return original(stage)
            actions[0]()
            session = original(stage)
            for action in actions[1:]:
                action()
            return session

        monkeypatch.setattr(module, "open_stage", open_stage)
        yield actions
        assert actions

    def test_file_swapped(self, folder: Path, evil: Path, backend: str, at_open: list[Callable[[], None]]) -> None:
        at_open.append(lambda: swap(folder / WEIGHTS, evil / "cpu.weights"))
        with pytest.raises(IntegrityError, match=f"touched while it was loaded\n.*{WEIGHTS}"):
            load(folder, backend=backend)

    def test_file_swapped_and_swapped_back(
        self, folder: Path, evil: Path, backend: str, at_open: list[Callable[[], None]]
    ) -> None:
        at_open += [lambda: swap(folder / WEIGHTS, evil / "cpu.weights")] * 2
        with pytest.raises(IntegrityError, match="touched while it was loaded"):
            load(folder, backend=backend)

    def test_directory_swapped_and_swapped_back(
        self, folder: Path, evil: Path, backend: str, at_open: list[Callable[[], None]]
    ) -> None:
        at_open += [lambda: swap(folder / "stages" / "vision", evil)] * 2
        with pytest.raises(IntegrityError, match="touched while it was loaded"):
            load(folder, backend=backend)

    def test_bundle_swapped_and_swapped_back(
        self, folder: Path, tmp_path: Path, backend: str, at_open: list[Callable[[], None]]
    ) -> None:
        other = copied(folder, tmp_path / "other")
        at_open += [lambda: swap(folder, other)] * 2
        with pytest.raises(IntegrityError, match="touched while it was loaded"):
            load(folder, backend=backend)

    def test_content_overwritten_in_place(self, folder: Path, backend: str, at_open: list[Callable[[], None]]) -> None:
        status = (folder / WEIGHTS).stat()
        at_open += [lambda: flip(folder / WEIGHTS, 500_000), lambda: set_times_back(folder / WEIGHTS, status)]
        with pytest.raises(IntegrityError, match="touched while it was loaded"):
            load(folder, backend=backend)

    def test_link_put_in_place(self, folder: Path, backend: str, at_open: list[Callable[[], None]]) -> None:
        at_open.append(lambda: link_file(folder))
        with pytest.raises(IntegrityError, match="a link"):
            load(folder, backend=backend)


def test_30_graph_and_tokenizer_are_the_bytes_that_were_hashed(folder: Path) -> None:
    opened = Bundle(folder)
    flip(folder / GRAPH)
    with pytest.raises(IntegrityError, match=f"not what the manifest says\n.*{GRAPH}"):
        opened.read(GRAPH)


def test_30_file_that_grows_is_not_read_to_its_end(folder: Path) -> None:
    opened = Bundle(folder)
    os.truncate(folder / "tokenizer.json", 1 << 40)  # sparse: reading it would take all memory
    with pytest.raises(IntegrityError, match="not what the manifest says"):
        in_time(lambda: opened.read("tokenizer.json"))


def test_30_weights_changed_after_the_check_are_hashed_again(folder: Path) -> None:
    opened = Bundle(folder)
    flip(folder / WEIGHTS)
    with pytest.raises(IntegrityError, match="sha256"), opened.unchanged(WEIGHTS):
        pass


def test_48_file_too_large_to_be_read_whole(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"too large\n.*tokenizer.json\n.*at most 10 bytes"):
        Bundle(folder).read("tokenizer.json", most=10)


class TestPermissions:
    """31: root may read everything, so the kernel's refusal is simulated."""

    @pytest.fixture
    def deny(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, type[OSError], int], None]:
        def deny(name: str, kind: type[OSError], number: int) -> None:
            original = os.open

            def opening(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
                if str(path).endswith(name):
                    raise kind(number, os.strerror(number))
                return original(path, flags, *args, **kwargs)

            monkeypatch.setattr(os, "open", opening)

        return deny

    @pytest.mark.parametrize("name", ["cpu.weights", "manifest.json", "stages"])
    def test_file(self, folder: Path, deny: Callable[..., None], name: str) -> None:
        deny(name, PermissionError, 13)
        with pytest.raises(IntegrityError, match=r"cannot be read(.|\n)*permission denied(.|\n)*chmod -R u"):
            Bundle(folder)

    def test_directory(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: object) -> object:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(IntegrityError, match=r"directory of the bundle cannot be read(.|\n)*chmod"):
            Bundle(folder)

    def test_other_errors_are_not_called_links(self, folder: Path, deny: Callable[..., None]) -> None:
        deny("cpu.weights", OSError, 24)
        with pytest.raises(IntegrityError, match=r"cannot be read(.|\n)*Too many open files(.|\n)*ulimit"):
            Bundle(folder)


class TestMemory:
    """Digests that were checked before are not computed again, unless anything could have changed."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return tmp_path / "cache" / "trunkline" / "verified"

    @pytest.fixture
    def hashed(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of what was hashed, in no order."""
        names: list[str] = []
        original = Bundle._hash_one

        def hash_one(self: Bundle, name: str) -> files.Identity:
            names.append(name)
            return original(self, name)

        monkeypatch.setattr(Bundle, "_hash_one", hash_one)
        return names

    @pytest.fixture
    def settled(self, folder: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]) -> Path:
        """A bundle that was hashed and remembered. The wait for change times to settle is shortened."""
        monkeypatch.setattr(bundle_module, "RACY_NS", -(10**10))
        Bundle(folder)
        assert len(hashed) == 10
        hashed.clear()
        return folder

    def test_unchanged_files_are_not_hashed_again(self, settled: Path, hashed: list[str]) -> None:
        Bundle(settled)
        assert hashed == []

    def test_recheck_hashes_all(self, settled: Path, hashed: list[str]) -> None:
        Bundle(settled, recheck=True)
        assert len(hashed) == 10

    def test_change_with_old_times_restored(self, settled: Path, hashed: list[str]) -> None:
        status = (settled / WEIGHTS).stat()
        flip(settled / WEIGHTS)
        set_times_back(settled / WEIGHTS, status)
        assert (settled / WEIGHTS).stat().st_mtime_ns == status.st_mtime_ns
        with pytest.raises(IntegrityError, match=f"{WEIGHTS}\n.*sha256"):
            Bundle(settled)
        assert hashed == [WEIGHTS]

    def test_replaced_by_a_file_of_equal_size_and_times(self, settled: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        shutil.copy2(settled / WEIGHTS, other)
        status = other.stat()
        flip(other)
        set_times_back(other, status)
        other.replace(settled / WEIGHTS)
        with pytest.raises(IntegrityError, match=f"{WEIGHTS}\n.*sha256"):
            Bundle(settled)

    def test_fresh_files_are_not_remembered(self, folder: Path, hashed: list[str]) -> None:
        """They may change once more within one tick of the file system's clock."""
        for path in folder.rglob("*"):
            path.chmod(path.stat().st_mode)  # a change time of now
        Bundle(folder)
        Bundle(folder)
        assert len(hashed) == 20

    def test_old_files_are_remembered(self, folder: Path, hashed: list[str]) -> None:
        age(folder)
        Bundle(folder)
        Bundle(folder)
        assert len(hashed) == 10

    def test_other_manifest(self, settled: Path, hashed: list[str]) -> None:
        edit_manifest(settled, lambda manifest: manifest["producer"].update(note="changed"))
        Bundle(settled)
        assert len(hashed) == 10

    def test_other_manifest_that_blesses_changed_content(self, settled: Path, hashed: list[str]) -> None:
        put(settled, "tokenizer.json", (settled / "tokenizer.json").read_bytes() + b"\n")
        Bundle(settled)
        assert "tokenizer.json" in hashed

    @pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
    def test_cache_that_others_may_write(self, settled: Path, hashed: list[str], cache: Path, mode: int) -> None:
        cache.chmod(mode)
        Bundle(settled)
        assert len(hashed) == 10

    def test_memory_file_that_others_may_write(self, settled: Path, hashed: list[str], cache: Path) -> None:
        next(cache.iterdir()).chmod(0o666)
        Bundle(settled)
        assert len(hashed) == 10

    def test_cache_of_another_user(
        self, settled: Path, hashed: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1)
        Bundle(settled)
        assert len(hashed) == 10

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"manifest": "x", "files": {"a": 1}}', b" " * (5 << 20)],
        ids=["empty", "half", "list", "not UTF-8", "deep", "wrong types", "large"],
    )
    def test_corrupt_memory(self, settled: Path, hashed: list[str], cache: Path, content: bytes) -> None:
        next(cache.iterdir()).write_bytes(content)
        Bundle(settled)
        assert len(hashed) == 10

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("elsewhere", path)])
    def test_memory_that_is_no_file(
        self, settled: Path, hashed: list[str], cache: Path, make: Callable[[Path], None]
    ) -> None:
        memory = next(cache.iterdir())
        memory.unlink()
        make(memory)
        in_time(lambda: Bundle(settled))
        assert len(hashed) == 10

    def test_memory_that_names_other_files(self, settled: Path, hashed: list[str], cache: Path) -> None:
        memory = next(cache.iterdir())
        content = json.loads(memory.read_text())
        content["files"] = {"../" + name: identity for name, identity in content["files"].items()}
        memory.write_text(json.dumps(content))
        Bundle(settled)
        assert len(hashed) == 10

    @pytest.mark.parametrize("number", [30, 28, 13], ids=["79 read-only", "78 full", "79 denied"])
    def test_cache_that_cannot_be_written(
        self, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(Path, "mkdir", refuse)
        assert Bundle(folder).manifest.members
        assert not cache.exists()

    def test_79_cache_full_while_writing(self, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", refuse)
        assert Bundle(folder).manifest.members
        assert list(cache.iterdir()) == []  # no half of a file is left behind

    def test_no_home_directory(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", refuse)
        assert Bundle(folder).manifest.members
