"""What a check of a checkpoint may find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from trunkline.exporter.checkpoint.members import Checkpoint

Severity = Literal["fatal", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One hazard: which check found it, in which member, what it is, what it means, what to do."""

    severity: Severity
    check: str
    member: str | None
    problem: str
    meaning: str
    fix: str


Check = Callable[[Checkpoint], Iterator[Finding]]
