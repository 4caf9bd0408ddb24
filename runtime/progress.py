"""How long work reports where it is, without a progress bar in library code."""

from __future__ import annotations

from collections.abc import Callable

#: Called as ``progress(step, done, total)``; the unit of ``done`` and ``total`` is the step's own.
Progress = Callable[[str, int, int], None]


def silent(step: str, done: int, total: int) -> None:
    """The default: tells nobody."""
