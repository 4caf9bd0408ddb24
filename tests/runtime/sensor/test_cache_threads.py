"""One thread pushes, two read: what is handed out as whole is whole, in a ring so small that overtaking happens."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.runtime.sensor.cache_kit import PERIOD_NS, RATE_HZ, Rows, Stamps, numbered
from trunkline.runtime.errors import SensorError
from trunkline.runtime.sensor.cache import SensorCache
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.window import SensorWindow

#: Rows so wide that copies of them run beside the interpreter, and a ring that blocks go around several times.
SAMPLES, CHANNELS, LARGEST = 64, 1026, 1000
#: Samples are told apart by their numbers modulo this.
POOL = 4096
#: Of copies and of views by each reader; of these, one in so many is held until it is overwritten.
READS, HOLD = 1000, 50
FORM = SensorForm(channels=CHANNELS, rate_hz=RATE_HZ, samples=SAMPLES, steps=SAMPLES)

Ask = Callable[[Rows | None], SensorWindow | None]


@pytest.fixture(autouse=True)
def _threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def consistent(window: SensorWindow) -> bool:
    """Whether the rows are consecutive, and the ones that the window says they are."""
    numbers = np.arange(window.position, window.position + len(window.samples))
    shown = window.samples[:, :: CHANNELS - 1]  # the first and the last number of each row
    expected = np.stack([numbers % POOL, -(numbers % POOL)], axis=1)
    return bool((shown == expected).all()) and window.end_ns == int(numbers[-1]) * PERIOD_NS


class Reader(threading.Thread):
    """Reads until it has seen enough, and counts what it saw."""

    def __init__(self, cache: SensorCache, ask: Ask) -> None:
        super().__init__(daemon=True)
        self.cache, self.ask, self.seen = cache, ask, Counter[str]()

    def run(self) -> None:
        out = np.empty((SAMPLES, CHANNELS), np.float32)
        while min(self.seen["copies"], self.seen["views"]) < READS:
            self.look("copies", out)
            self.look("views", None)

    def look(self, kind: str, out: Rows | None) -> None:
        try:
            window = self.ask(out)
        except SensorError as error:
            self.seen[error.problem] += 1
            return
        if window is None:
            return
        if out is None and (self.seen["views"] + self.seen["overtaken"]) % HOLD == 0:
            self.wait_for_the_writer()
        right = consistent(window)
        if self.cache.intact(window):
            self.seen[kind] += 1
            self.seen["torn"] += not right
        else:
            self.seen["overtaken"] += 1
            self.seen["torn copies"] += out is not None

    def wait_for_the_writer(self) -> None:
        """Until it has gone around the ring."""
        rows = self.cache.counts.accepted + 2 * LARGEST
        while self.cache.counts.accepted < rows:
            pass


def pool() -> Rows:
    rows = np.empty((POOL, CHANNELS), np.float32)
    rows[:] = numbered(0, POOL, 1)
    rows[:, 1::2] *= -1
    return rows


def stamps_of(first: int, count: int) -> Stamps:
    return np.arange(first, first + count) * PERIOD_NS


def write_until(cache: SensorCache, done: Callable[[], bool]) -> None:
    rows, random, row = pool(), np.random.default_rng(), 0
    while not done():
        count = min(int(random.choice([1, 10, 100, LARGEST])), POOL - row % POOL)
        cache.push(stamps_of(row, count), rows[row % POOL : row % POOL + count])
        row += count


def test_nothing_is_torn() -> None:
    cache = SensorCache(FORM, seconds=SAMPLES / RATE_HZ)

    def newest(out: Rows | None) -> SensorWindow | None:
        return cache.latest(clock="sensor", out=out)

    def at_a_moment(out: Rows | None) -> SensorWindow | None:
        window = cache.latest(clock="sensor")
        return window and cache.window(window.end_ns or 0, clock="sensor", out=out)

    readers = [Reader(cache, newest), Reader(cache, at_a_moment)]
    for reader in readers:
        reader.start()
    write_until(cache, lambda: not any(reader.is_alive() for reader in readers))
    for reader in readers:
        assert reader.seen["torn"] == reader.seen["torn copies"] == 0, reader.seen
        assert reader.seen["overtaken"], reader.seen
    assert cache.dropped == 0
