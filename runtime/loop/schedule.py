"""When a task runs: ticks on an absolute grid of time.

Tick ``k`` is due at ``start + k * period``, whatever happened before, so nothing drifts. Four rules:

1. A tick runs at most once, and never before it is due.
2. A tick that came due while its task was busy runs as soon as the task is free. If several did, only the newest runs
   and the others are *missed*: nothing is made up for in a burst.
3. A tick older than the task's patience is missed too.
4. Two runs begin at least half a period apart, so a late run pushes the next one back a little instead of being
   followed by it at once.

A loop that counts actions instead of time breaks these rules: it restarts early when work ends early, waits a whole
round when work ends just after its moment, and drifts by what each round takes too long.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Moments that are a period apart. Integers, so that no rounding adds up."""

    start_ns: int
    period_ns: int

    def due_ns(self, number: int) -> int:
        """When tick ``number`` is due."""
        return self.start_ns + number * self.period_ns

    def newest(self, now_ns: int) -> int:
        """The newest tick that is due; negative before the first."""
        return (now_ns - self.start_ns) // self.period_ns


@dataclass(frozen=True)
class Tick:
    """A moment at which a task runs: its number on the grid, from 0, and when it was due."""

    number: int
    due_ns: int


class Ticker:
    """Gives a task its ticks. Thread: the task's own, nobody else's."""

    def __init__(self, grid: Grid, patience_ns: int | None = None) -> None:
        """A tick older than ``patience_ns`` (a period by default) is not given any more."""
        self.grid = grid
        self.missed = 0
        self._patience_ns = patience_ns or grid.period_ns
        self._next = 0
        self._earliest_ns = grid.start_ns

    @property
    def next_ns(self) -> int:
        """When :meth:`take` can give a tick again."""
        return max(self.grid.due_ns(self._next), self._earliest_ns)

    def take(self, now_ns: int) -> Tick | None:
        """The newest tick that is due and was not given before; those skipped are added to ``missed``."""
        if now_ns < self.next_ns:
            return None
        number = self.grid.newest(now_ns)
        tick = Tick(number, self.grid.due_ns(number))
        patient = now_ns - tick.due_ns < self._patience_ns
        self.missed += number - self._next + (not patient)
        self._next = number + 1
        return tick if patient else None

    def began(self, now_ns: int) -> None:
        """Work for the tick that was taken begins."""
        self._earliest_ns = now_ns + self.grid.period_ns // 2
