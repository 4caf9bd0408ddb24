"""What back ends and the GPU's driver say where they cannot run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Missing:
    """Why something cannot run here, and what helps."""

    reason: str
    fix: str
