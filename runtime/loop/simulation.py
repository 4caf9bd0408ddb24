"""Simulated time: threads that run one at a time, and a clock that moves only while all of them wait.

Work takes the time that it declares by :meth:`SimulatedClock.spend`, so ten minutes of a robot's life take seconds, and
the same program always does the same. The code that waits cannot tell it from :class:`SystemClock`.

Rules: a thread runs until it waits. Then the one whose wait ends first goes on; of several, the one that began to wait
first. A wait ends at its time, or now if its predicate holds.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from trunkline.runtime.loop.clock import Predicate, Started, never


@dataclass(eq=False)
class _Waiting:
    """A thread of the simulation, and what it waits for."""

    at_ns: int = 0
    done: Predicate = never
    turn: int = 0
    thread: int = 0
    baton: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Nobody runs before it is handed the baton."""
        self.baton.acquire()


class SimulatedClock:
    """A clock for tests: deterministic, and as fast as the work between the waits.

    Threads: the one that makes it belongs to the simulation, and those that :meth:`start` makes. No other may wait.
    """

    def __init__(self, start_ns: int = 0) -> None:
        """Begins at ``start_ns``."""
        self._now_ns = start_ns
        self._turns = itertools.count(1)
        self._running = _Waiting(thread=threading.get_ident())
        self._all = [self._running]

    def now_ns(self) -> int:
        return self._now_ns

    def wait_until(self, at_ns: int, done: Predicate = never) -> None:
        """As :class:`Clock` says.

        Raises:
            RuntimeError: the thread that called is not the one whose turn it is.
        """
        me = self._running
        if me.thread != threading.get_ident():
            raise RuntimeError("only the thread whose turn it is in the simulation may wait")
        me.at_ns, me.done, me.turn = at_ns, done, next(self._turns)
        following = self._following()
        if following is not me:
            self._hand_to(following)
            me.baton.acquire()

    def spend(self, nanoseconds: int) -> None:
        """Work of this duration: the caller is busy, the others go on."""
        self.wait_until(self._now_ns + nanoseconds)

    def notify(self) -> None:
        """Nothing to do: all predicates are looked at whenever somebody waits."""

    def start(self, name: str, body: Callable[[], None]) -> Started:
        """Runs ``body`` on a thread of the simulation; its first turn comes when the caller waits."""
        me = _Waiting(at_ns=self._now_ns, turn=next(self._turns))
        self._all.append(me)
        thread = threading.Thread(target=self._body, args=(me, body), name=name, daemon=True)
        thread.start()
        return _Simulated(name, self, lambda: me not in self._all)

    def _body(self, me: _Waiting, body: Callable[[], None]) -> None:
        me.baton.acquire()
        me.thread = threading.get_ident()
        try:
            body()
        finally:
            self._all.remove(me)
            if self._all:
                self._hand_to(self._following())

    def _following(self) -> _Waiting:
        """Whose turn it is next; the clock moves there."""
        at_ns, _, following = min(
            (self._now_ns if each.done() else max(each.at_ns, self._now_ns), each.turn, each) for each in self._all
        )
        self._now_ns = at_ns
        return following

    def _hand_to(self, following: _Waiting) -> None:
        self._running = following
        following.baton.release()


@dataclass(frozen=True)
class _Simulated:
    name: str
    clock: SimulatedClock
    ended: Predicate

    def join(self, seconds: float) -> bool:
        self.clock.wait_until(self.clock.now_ns() + round(seconds * 1e9), self.ended)
        return self.ended()
