"""What is written about deployment is true of the code: commands parse, options exist, messages are real."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import typer

from trunkline.exporter.cli import app

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "examples" / "deploy"
PAGE = ROOT / "docs" / "deployment.md"
CONTAINERS = sorted(DEPLOY.glob("Containerfile.*"))
COMMANDS: Any = typer.main.get_command(app)

#: A command of ours begins a line or a word, also behind a path, and ends before a comment or the next command.
_OURS = re.compile(r"(?<![\w./-])(?:/opt/trunkline/bin/)?trunkline (?=[a-z])([^#`|&;\"]*)")


def commands(text: str) -> Iterator[list[str]]:
    """Words of every line that starts one of our commands."""
    for line in text.replace("\\\n", " ").splitlines():
        for found in _OURS.finditer(line):
            words = shlex.split(found.group(1))
            if words and words[0] in COMMANDS.commands:
                yield words


def in_json(text: str) -> Iterator[list[str]]:
    """Words of commands that container files state as lists."""
    for found in re.finditer(r'\["trunkline", ([^\]]*)\]', text):
        yield [*ast.literal_eval(f"[{found.group(1)}]")]


def require_parsed(words: list[str]) -> None:
    """Fails if the command line does not take these words; a bare mention may lack its arguments."""
    try:
        COMMANDS.commands[words[0]].make_context(words[0], words[1:])
    except Exception as error:  # typer's own copy of click, from some version on
        bare = type(error).__name__ == "MissingParameter" and not any(word.startswith("-") for word in words)
        if not bare:
            pytest.fail(f"trunkline {shlex.join(words)}: {error}")


@pytest.mark.parametrize(
    ("file", "least"),
    [*[(path, 3) for path in CONTAINERS], (DEPLOY / "trunkline.service", 2), (PAGE, 18)],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_command_parses(file: Path, least: int) -> None:
    text = file.read_text()
    found = [*commands(text), *in_json(text)]
    assert len(found) >= least
    for words in found:
        require_parsed(words)


@pytest.mark.parametrize("bad", ["trunkline build here --no-such-option", "trunkline verify here --cache x"])
def test_the_check_refuses_what_the_command_line_does(bad: str) -> None:
    (words,) = commands(f"    {bad}  # why\n")
    with pytest.raises(pytest.fail.Exception, match="No such option"):
        require_parsed(words)


def test_messages_in_the_table_are_the_codes_own() -> None:
    quoted = [cells[2].strip() for line in PAGE.read_text().splitlines() if len(cells := line.split("|")) == 5]
    messages = [cell[1:-1] for cell in quoted if cell.startswith("`") and cell.endswith("`")]
    assert len(messages) >= 20
    texts = [text for package in ("runtime", "targets") for text in _texts(ROOT / package)]
    assert [message for message in messages if not any(message in text for text in texts)] == []


def _texts(package: Path) -> Iterator[str]:
    """Every text in a package's code, joined as Python joins it."""
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_links_on_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target


def test_the_service() -> None:
    unit = ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    text = (DEPLOY / "trunkline.service").read_text()
    unit.read_string(text)
    service = unit["Service"]
    assert service["User"] not in ("", "root")
    assert service["ExecStartPre"].endswith("trunkline build /srv/trunkline/current")
    assert service["TimeoutStartSec"] == "2h"
    # Engines are looked for where they were built, and in a folder that the service may write to.
    environment = dict(
        line.partition("=")[2].split("=") for line in text.splitlines() if line.startswith("Environment=")
    )
    assert environment["TRUNKLINE_ENGINES"] == "/var/lib/" + service["StateDirectory"].split()[-1]
    assert environment["XDG_CACHE_HOME"] + "/trunkline" == "/var/cache/" + service["CacheDirectory"]
    assert service["StateDirectoryMode"] == "0700"  # the cache refuses one that others may write to
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictNamespaces"):
        assert service[name] == "yes", name
    assert service["ProtectSystem"] == "strict"
    assert {"PrivateDevices", "ProtectClock", "MemoryDenyWriteExecute", "ProcSubset"}.isdisjoint(service)  # see there
    assert "video" in service["SupplementaryGroups"]


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.name)
def test_containers(path: Path) -> None:
    lines = [line for line in path.read_text().replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    stages = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    assert len(stages) == 2
    first, last = "\n".join(lines[: stages[1]]), "\n".join(lines[stages[1] :])
    assert "--system-site-packages" in first
    assert "--only-binary=:all:" in first
    assert "pip install" not in last
    assert re.search(r"^USER [1-9]\d*$", last, re.MULTILINE)
    assert last.index("\nUSER ") < last.index("\nHEALTHCHECK ") < last.index("\nENTRYPOINT ")
    assert "TRUNKLINE_ENGINES=/engines" in last
    assert "\nVOLUME /engines" in last
    assert '"trunkline", "verify", "/bundle", "--backend", "tensorrt"' in last[last.index("\nHEALTHCHECK ") :]
    assert "python3-libnvinfer" in last  # TensorRT is apt's
    assert not re.search(r"pip install [^\n]*tensorrt", "\n".join(lines))


def test_both_containers_differ_only_where_they_say() -> None:
    one, other = (path.read_text().splitlines() for path in CONTAINERS)
    for keyword in ("RUN python3 -m venv", "COPY", "ENV", "USER", "VOLUME", "HEALTHCHECK", "ENTRYPOINT", "CMD"):
        assert [line for line in one if line.startswith(keyword)] == [
            line for line in other if line.startswith(keyword)
        ]
