"""Names of members and of files: distinct within an ensemble, and such that a bundle may hold them.

What may be in a name is the manifest's own rule, so that nothing is traced that no runtime would open.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from trunkline.exporter.checkpoint.members import Member
from trunkline.runtime.files import MAX_NAME_CHARS
from trunkline.runtime.manifest import member_name_problem, shown_problem


def unique_names(members: Iterable[Member]) -> tuple[Member, ...]:
    """Members renamed where two would share a name: ``epoch_9``, ``epoch_9-2``.

    What a bundle may not hold in a name (a colon, a line break) is replaced by ``_``, in the source, too.
    """
    taken: set[str] = set()
    result = []
    for member in members:
        stem = name = _member_name(member.name)
        number = 2
        while _folded(name) in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(_folded(name))
        result.append(replace(member, name=name, source=_file_name(member.source)))
    return tuple(result)


def _folded(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFKC", name).casefold()


def bundle_text(text: str) -> str:
    """``text`` in normal form C, of half the length that a name may have at most, without what a name may not hold."""
    normal = unicodedata.normalize("NFC", text)[: MAX_NAME_CHARS // 2]
    return "".join("_" if member_name_problem(f"-{char}-") or shown_problem(char) else char for char in normal)


def _member_name(name: str) -> str:
    safe = bundle_text(name)
    return "member" if safe in ("", ".", "..") else safe


def _file_name(name: str) -> str:
    """Cut before the suffix, so that its stem stays the member's name."""
    return bundle_text(Path(name).stem) + bundle_text(Path(name).suffix)
