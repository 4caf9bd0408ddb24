"""Encoding a source at its own rate, on a thread of its own: a late camera or a slow tower delays nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

from trunkline.runtime.exact import whole_ns
from trunkline.runtime.loop.clock import Clock, Predicate
from trunkline.runtime.loop.features import Features, Item, Newest
from trunkline.runtime.loop.schedule import Tick, Ticker
from trunkline.runtime.loop.statistics import TaskStatistics


@dataclass(frozen=True)
class Patience:
    """How an encoding task treats its source: steps in which it looks again, and how far ahead stamps may be."""

    poll_ns: int
    future_ns: int


@dataclass(frozen=True)
class Encoder(Generic[Item]):
    """Where items come from and what is made of them.

    Attributes:
        read: the newest item, or None; it may block.
        stamp: when an item was captured.
        encode: features of an item.
        keep: what is remembered of an item beside its features.
    """

    read: Callable[[], Item | None]
    stamp: Callable[[Item], int | None]
    encode: Callable[[Item], Any]
    keep: Callable[[Item], Item]


class Encoding(Generic[Item]):
    """The task: at each tick the newest item is encoded, if there is a fresh one.

    A tick at which there is none stays open until the next one is due, so that a frame which comes just after the tick
    does not wait a whole period. Thread: :meth:`run` is the whole life of one thread; it writes ``newest``.
    """

    def __init__(
        self, encoder: Encoder[Item], newest: Newest[Item], patience: Patience, statistics: TaskStatistics
    ) -> None:
        self._encoder = encoder
        self._newest = newest
        self._patience = patience
        self._statistics = statistics

    def run(self, ticker: Ticker, clock: Clock, stopped: Predicate) -> None:
        """Works until ``stopped()``. What is not tolerated is raised."""
        while not stopped():
            clock.wait_until(ticker.next_ns, stopped)
            tick = ticker.take(clock.now_ns())
            self._statistics.missed(ticker.missed)
            if tick is not None and not stopped():
                with self._statistics.errors.tolerated():
                    self._work(tick, ticker, clock, stopped)

    def _work(self, tick: Tick, ticker: Ticker, clock: Clock, stopped: Predicate) -> None:
        closes_ns = ticker.grid.due_ns(tick.number + 1)
        while not stopped():
            item = self._encoder.read()
            now_ns = clock.now_ns()
            stamp_ns = None if item is None else self._stamp_ns(item)
            verdict = self._newest.judge(stamp_ns, now_ns + self._patience.future_ns)
            if item is not None and stamp_ns is not None and verdict == "fresh":
                ticker.began(now_ns)
                self._statistics.started(tick.due_ns, now_ns)
                return self._encode(item, stamp_ns, clock)
            if verdict != "same":
                return self._statistics.refused(verdict)
            if now_ns + self._patience.poll_ns >= closes_ns:
                return self._statistics.idle()
            clock.wait_until(now_ns + self._patience.poll_ns, stopped)
        return None

    def _stamp_ns(self, item: Item) -> int:
        # Of None no age can be told, and NaN lies behind no bound.
        return whole_ns(self._encoder.stamp(item), f"when a {type(item).__name__} was captured")

    def _encode(self, item: Item, stamp_ns: int, clock: Clock) -> None:
        started_ns = clock.now_ns()
        self._newest.computing_ns = stamp_ns
        try:
            value = self._encoder.encode(item)
            self._newest.finished = Features(value, self._encoder.keep(item), stamp_ns)
        finally:
            self._newest.computing_ns = None
            self._statistics.ended(clock.now_ns() - started_ns)
            clock.notify()
