"""Time as the loop sees it: what the clock says, waiting, and threads that wait by it.

The loop asks nothing else of the world, so the same loop runs in real time (:class:`SystemClock`) and, step by step and
always the same, in :class:`~trunkline.runtime.loop.simulation.SimulatedClock`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

Predicate = Callable[[], bool]

#: Longest single wait; a predicate is looked at again after it at the latest.
MAX_WAIT_NS = 3600 * 10**9


def never() -> bool:
    """Nothing ends the wait but time."""
    return False


class Started(Protocol):
    """A thread of a clock."""

    @property
    def name(self) -> str:
        """What it was started as."""

    def join(self, seconds: float) -> bool:
        """Waits for the thread's end, ``seconds`` at most; whether it has ended."""


class Clock(Protocol):
    """What the loop needs of time. Every method may be called from any thread."""

    def now_ns(self) -> int:
        """Nanoseconds since some fixed moment; it never goes back."""

    def wait_until(self, at_ns: int, done: Predicate = never) -> None:
        """Returns when it is ``at_ns``, or as soon as ``done()`` is true and :meth:`notify` was called."""

    def notify(self) -> None:
        """Lets all that wait look at their predicate again."""

    def start(self, name: str, body: Callable[[], None]) -> Started:
        """Runs ``body`` on a thread of its own."""


class SystemClock:
    """Real time: ``time.monotonic_ns``, in which all stamps that the loop is given must be.

    Threads: any thread may call anything. One lock is held for the moment of a predicate, never during work.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wait_until(self, at_ns: int, done: Predicate = never) -> None:
        with self._changed:
            while not done() and (left := at_ns - time.monotonic_ns()) > 0:
                self._changed.wait(min(left, MAX_WAIT_NS) / 1e9)

    def notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def start(self, name: str, body: Callable[[], None]) -> Started:
        return _Thread(name, body)


class _Thread:
    """A daemon thread: one that hangs in a driver must not keep the process from ending."""

    def __init__(self, name: str, body: Callable[[], None]) -> None:
        self.name = name
        self._thread = threading.Thread(target=body, name=name, daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()
