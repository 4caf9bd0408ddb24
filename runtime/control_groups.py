"""Control groups that this process is in: where the limits of a container or of a service are written.

Version 2 has one tree of them, version 1 one for each kind of limit; a machine may have both. A limit of a group holds
for all groups inside it. What is missing, unreadable or no text is taken as no limit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MAX_FILE_BYTES = 1 << 20

#: Where the trees are if the list of what is mounted does not say.
_USUAL = "sys/fs/cgroup"


def groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Folders of the groups that limit this process, each followed by those around it.

    Args:
        controller: what is limited, such as ``cpu`` or ``memory``.
        root: where the machine's files are; another folder than ``/`` for tests.
    """
    for line in read_text(root / "proc/self/cgroup").splitlines():
        kinds, _, path = line.partition(":")[2].partition(":")
        if not kinds or controller in kinds.split(","):
            hidden = ".." in path or not path.isprintable()  # a container is not shown what is around it
            own = PurePosixPath("" if hidden else path.lstrip("/"))
            yield from (tree / each for tree in _trees(kinds and controller, root) for each in (own, *own.parents))


def _trees(controller: str, root: Path) -> list[Path]:
    """Where the tree of a controller is mounted, or version 2's, whose controller has no name."""
    found = []
    for line in read_text(root / "proc/self/mounts").splitlines():
        _, place, system, options, *_ = [*line.split(" "), "", "", ""]
        if system == ("cgroup" if controller else "cgroup2") and controller in ("", *options.split(",")):
            found.append(root / place.lstrip("/"))
    return found or [root / _USUAL / controller]


def processors(root: Path = Path("/")) -> float:
    """Processors' worth of time that this process may use, infinite without a limit.

    A process that runs on more processors at once has used up its time before the period of a tenth of a second ends,
    and stands still for the rest of it.
    """
    return min((_processors(group) for group in groups("cpu", root)), default=math.inf)


def _processors(group: Path) -> float:
    newer = read_text(group / "cpu.max").split()
    older = [read_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    for limit in (newer, older):
        if len(limit) == 2 and all(re.fullmatch(r"0*[1-9][0-9]{0,18}", number) for number in limit):
            return int(limit[0]) / int(limit[1])
    return math.inf


def read_text(path: Path) -> str:
    """Content of a small file, empty if it cannot be read; bytes that are no text become U+FFFD."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode(errors="replace")
    except OSError:
        return ""
