"""Names of members: distinct within an ensemble, and such that a bundle may hold them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import replace

from trunkline.exporter.checkpoint.members import Member
from trunkline.runtime.files import MAX_NAME_CHARS, name_problem


def unique_names(members: Iterable[Member]) -> tuple[Member, ...]:
    """Members renamed where two would share a name: ``epoch_9``, ``epoch_9-2``.

    What a bundle may not hold as a name (a colon, a line break) is replaced by ``_``.
    """
    taken: set[str] = set()
    result = []
    for member in members:
        stem = name = _bundle_name(member.name)
        number = 2
        while _folded(name) in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(_folded(name))
        result.append(replace(member, name=name))
    return tuple(result)


def _folded(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFKC", name).casefold()


def _bundle_name(name: str) -> str:
    normal = unicodedata.normalize("NFC", name)[: MAX_NAME_CHARS // 2]
    safe = "".join("_" if char == "/" or name_problem(f"-{char}-") else char for char in normal)
    return "member" if safe in ("", ".", "..") else safe
