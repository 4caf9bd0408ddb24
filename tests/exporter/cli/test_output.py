"""Whatever stdout and stderr are, every command ends with its own exit code and its own words."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import numpy as np
import pytest
from PIL import Image

from tests.bundles import frame, windows
from tests.kit import random_checkpoint, random_member, save_training
from tests.replay_kit import Fake, Robot, Ticks, recorder
from tests.samples_kit import save_scenes
from tests.windows_kit import raw, save
from trunkline.exporter import export as exporter
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.cli import app
from trunkline.exporter.cli.output import progress_bar, standard_streams

#: Not in ASCII, and the last two not in Latin-1.
FOLDER = "schüssel 漢字"
FULL = (
    "error: the result cannot be written\n  where: standard output\n  found: No space left on device\n"
    "  fix: free space where it goes, or send it elsewhere; files that the command was to write are written\n"
)


def run(words: list[str], stdout: TextIO, stderr: TextIO) -> int:
    """A command's exit code, on these two streams."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        with pytest.raises(SystemExit) as caught:
            app(words)
    return int(str(caught.value.code))


def closed_pipe() -> TextIO:
    """What a command writes to whose reader has gone, as with ``| head -0``."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def encoded(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def text_of(stream: io.TextIOWrapper) -> str:
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(stream.encoding)


def plain(name: str, *words: str) -> Callable[[Path, Path], list[str]]:
    """A command that needs nothing but the bundle."""
    return lambda bundle, place: [name, *(word.replace("BUNDLE", str(bundle)) for word in words)]


def checkpoint_file(place: Path) -> str:
    write_checkpoint(random_checkpoint(1), place / "e.safetensors")
    return str(place / "e.safetensors")


def pack(bundle: Path, place: Path) -> list[str]:
    source = save_training(random_member(), place / "run_ü.pt")
    return ["pack", str(source), "-o", str(place / "out.pt"), "--backbone", "local-dir:x"]


def score(bundle: Path, place: Path) -> list[str]:
    Image.fromarray(frame()).save(place / "f.png")
    np.save(place / "c.npy", windows(3))
    words = ["--image", f"{place}/f.png", "--candidates", f"{place}/c.npy", "--instruction", "lege den Würfel 漢"]
    return ["score", str(bundle), *words]


def evaluated(bundle: Path, place: Path) -> list[str]:
    return ["eval", str(bundle), "--dataset", str(save_scenes(place)), "--samples", "2", "--pool", "2"]


def cut(bundle: Path, place: Path) -> list[str]:
    recording = save(place / "r.npz", raw())
    words = ["--rate", "650", "--samples", "40", "--every", "0.1"]
    return ["windows", str(recording), "-o", str(place / "store"), *words]


def replayed(bundle: Path, place: Path) -> list[str]:
    clock = Ticks()
    with recorder(place / "log", clock) as recording:
        Robot().work(recording, Fake(), 2, clock)
    return ["replay", str(place / "log")]


def report(bundle: Path, place: Path) -> list[str]:
    return ["report", str(bundle), "-o", str(place / "r.html"), "--no-latency"]


def exported(bundle: Path, place: Path) -> list[str]:
    """What the command does with a bundle that is made: the making is tested elsewhere."""
    return ["export", "e.safetensors", "-o", str(place / "made"), "--no-report"]


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "targets": plain("targets"),
    "a target": plain("targets", "x86-cpu"),
    "plan": plain("plan", "BUNDLE", "--target", "x86-cpu"),
    "info": plain("info", "BUNDLE"),
    "info of a checkpoint": lambda bundle, place: ["info", checkpoint_file(place)],
    "doctor": lambda bundle, place: ["doctor", checkpoint_file(place)],
    "verify": plain("verify", "BUNDLE"),
    "bench": plain("bench", "BUNDLE", "-n", "1", "--candidates", "2"),
    "pack": pack,
    "score": score,
    "eval": evaluated,
    "windows": cut,
    "replay": replayed,
    "report": report,
    "export": exported,
    "help": plain("--help"),
    "help of a command": plain("score", "--help"),
    "version": plain("--version"),
}
JSON = ("targets", "plan", "info", "info of a checkpoint", "doctor", "verify", "pack", "score", "eval", "windows")


@pytest.fixture
def words(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], list[str]]:
    """A command's words, in a folder of its own whose name few encodings have."""
    fused = SimpleNamespace(max_score_change=0.0, decisions=1, winners_changed=0, winners_close=0)
    made = SimpleNamespace(
        output=tmp_path / FOLDER,
        members=("a",),
        bundle_bytes=1,
        stage_bytes={"vision": 1},
        parity=SimpleNamespace(fused=fused, allowed_score_change=1.0),
        findings=(),
        calibration=None,
    )
    monkeypatch.setattr(exporter, "export", lambda *_, **__: made)
    shutil.copytree(bundle, tmp_path / FOLDER / "bundle")

    def of(name: str, place: str) -> list[str]:
        (tmp_path / FOLDER / place).mkdir()
        return COMMANDS[name](tmp_path / FOLDER / "bundle", tmp_path / FOLDER / place)

    return of


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_stdout_a_closed_pipe_and_encodings(words: Callable[[str, str], list[str]], name: str) -> None:
    for encoding in ("ascii", "latin-1", "utf-8"):
        stdout, stderr = encoded(encoding), encoded(encoding)
        assert run(words(name, encoding), stdout, stderr) == 0, text_of(stderr)
        assert text_of(stdout)
    with open("/dev/full", "w") as full:
        stderr = encoded("utf-8")
        assert run(words(name, "full"), full, stderr) == 1
    assert FULL in text_of(stderr)
    with closed_pipe() as closed:
        stderr = encoded("utf-8")
        assert run(words(name, "closed"), closed, stderr) == 1
    assert "error" not in text_of(stderr).lower()
    with open("/dev/full", "w") as full:
        stdout = encoded("utf-8")
        assert run(words(name, "no stderr"), stdout, full) == 0
    assert text_of(stdout)


@pytest.mark.parametrize("name", JSON)
def test_json_is_json_in_every_encoding(words: Callable[[str, str], list[str]], name: str) -> None:
    texts = []
    for encoding in ("ascii", "latin-1", "utf-8"):
        stdout = encoded(encoding)
        assert run([*words(name, encoding), "--json"], stdout, encoded(encoding)) == 0
        assert isinstance(json.loads(text_of(stdout)), dict)
        texts.append(text_of(stdout))
    assert all(text.isascii() for text in texts)


def test_what_an_encoding_lacks_is_escaped(words: Callable[[str, str], list[str]]) -> None:
    for encoding, spelt in (("ascii", r"lege den W\xfcrfel \u6f22"), ("latin-1", r"lege den Würfel \u6f22")):
        run(words("score", encoding), stdout := encoded(encoding), encoded(encoding))
        assert spelt in text_of(stdout)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EDQUOT])
def test_work_goes_on_when_diagnostics_cannot_be_written(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A terminal that hangs up in the middle of an export, for instance."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(sys, "stderr", Broken())
    with standard_streams(), progress_bar() as progress:
        progress("tracing", 0, 1)
        progress("tracing more", 1, 1)


def trunkline(shell: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command's module in a shell; TRUNKLINE stands for it."""
    command = f"{sys.executable} -c 'from trunkline.exporter.cli import main; main()'"
    return subprocess.run(
        ["bash", "-c", shell.replace("TRUNKLINE", command)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("shell", "code", "stderr"),
    [
        ("TRUNKLINE targets > /dev/full", 1, FULL),
        ("TRUNKLINE targets --json > /dev/full", 1, FULL),
        ("TRUNKLINE targets > /dev/full 2> /dev/full", 1, ""),
        ("TRUNKLINE info /none 2> /dev/full", 1, ""),
        ("TRUNKLINE targets 2>&-", 0, ""),
        ("TRUNKLINE targets >&-", 1, FULL.replace("No space left on device", "not writable")),
        ("set -o pipefail; TRUNKLINE targets --json | head -0", 1, ""),
    ],
)
def test_a_process_ends_with_its_own_code_and_words(shell: str, code: int, stderr: str) -> None:
    """Python itself flushes once more when it ends, and then says 120."""
    done = trunkline(shell)
    assert (done.returncode, done.stderr) == (code, stderr)


@pytest.mark.parametrize(
    ("word", "environment"),
    [
        (b"/tmp/\xff", {}),
        ("/tmp/ü".encode(), {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ],
)
def test_words_that_are_no_text_are_usage_errors(word: bytes, environment: dict[str, str]) -> None:
    for shell in ("info WORD", "--debug info WORD --json", "score b --image WORD --instruction x --candidates c"):
        done = trunkline(
            f"TRUNKLINE {shell}".replace("WORD", "$'" + repr(word)[2:-1] + "'"), COLUMNS="200", **environment
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert "not text in" in done.stderr
        assert r"\udc" in done.stderr
        assert "PYTHONUTF8=1" in done.stderr
