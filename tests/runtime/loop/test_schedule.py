"""Ticks: on the grid, once each, never early, never made up for."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.runtime.loop.schedule import Grid, Tick, Ticker

PERIOD = 100
TEN_MINUTES = 6000 * PERIOD


def served(ticker: Ticker, busy: list[int], oversleep: list[int]) -> list[tuple[Tick, int, int]]:
    """(tick, begin, end) of runs that take ``busy``, by a task that wakes up ``oversleep`` late."""
    now, runs = 0, []
    for work, late in zip(busy, oversleep, strict=True):
        now = max(now, ticker.next_ns) + late
        tick = ticker.take(now)
        if tick is not None:
            ticker.began(now)
            runs.append((tick, now, now + work))
            now += work
    return runs


durations = st.lists(st.tuples(st.integers(0, 4 * PERIOD), st.integers(0, PERIOD // 3)), min_size=1, max_size=80)


@given(durations, st.integers(-500, 500), st.integers(1, PERIOD))
def test_rules(works: list[tuple[int, int]], start: int, patience: int) -> None:
    ticker = Ticker(Grid(start, PERIOD), patience)
    runs = served(ticker, [work for work, _ in works], [late for _, late in works])
    numbers = [tick.number for tick, _, _ in runs]
    assert numbers == sorted(set(numbers))
    for tick, begin, _ in runs:
        assert tick.due_ns == start + tick.number * PERIOD
        assert tick.due_ns <= begin < tick.due_ns + min(patience, PERIOD)  # never early, and only the newest
    for (_, earlier, ended), (_, later, _) in itertools.pairwise(runs):
        assert later >= ended
        assert later - earlier >= PERIOD // 2


@given(durations, st.integers(1, PERIOD))
def test_every_tick_ran_or_was_missed(works: list[tuple[int, int]], patience: int) -> None:
    ticker = Ticker(Grid(0, PERIOD), patience)
    runs = served(ticker, [work for work, _ in works], [late for _, late in works])
    given_up = (ticker.next_ns - 1) // PERIOD + 1  # ticks that will not come any more
    assert len(runs) + ticker.missed in (given_up, given_up - 1)
    if runs:
        last = runs[-1][0].number
        skipped = set(range(last)) - {tick.number for tick, _, _ in runs}
        assert ticker.missed >= len(skipped)


def test_no_drift_in_ten_minutes() -> None:
    source = random.Random(0)
    ticker = Ticker(Grid(0, PERIOD))
    busy = [source.randrange(PERIOD // 2) for _ in range(6000)]
    oversleep = [source.randrange(10) for _ in range(6000)]
    runs = served(ticker, busy, oversleep)
    assert [tick.number for tick, _, _ in runs] == list(range(6000))
    assert ticker.missed == 0
    assert all(begin - number * PERIOD < 10 for number, (_, begin, _) in enumerate(runs))


def test_work_that_is_early_does_not_start_again() -> None:
    ticker = Ticker(Grid(0, PERIOD))
    begins = [begin for _, begin, _ in served(ticker, [1] * 50, [0] * 50)]
    assert begins == [PERIOD * number for number in range(50)]


def test_work_that_ends_just_after_a_tick_does_not_wait_a_whole_period() -> None:
    ticker = Ticker(Grid(0, PERIOD))
    runs = served(ticker, [PERIOD + 1] * 1000, [0] * 1000)
    assert [begin for _, begin, _ in runs] == [number * (PERIOD + 1) for number in range(1000)]
    assert ticker.missed == 1000 * (PERIOD + 1) // PERIOD - 1000 - 1


def test_after_a_stall_nothing_is_made_up_for() -> None:
    ticker = Ticker(Grid(0, PERIOD))
    runs = served(ticker, [7 * PERIOD + 30, 1, 1, 1, 1], [0] * 5)
    assert [(tick.number, begin) for tick, begin, _ in runs] == [(0, 0), (7, 730), (8, 800), (9, 900), (10, 1000)]
    assert ticker.missed == 6


def test_a_run_that_began_very_late_pushes_the_next_back() -> None:
    ticker = Ticker(Grid(0, PERIOD))
    runs = served(ticker, [PERIOD + 90, 1, 1, 1], [0] * 4)
    assert [(tick.number, begin) for tick, begin, _ in runs] == [(0, 0), (1, 190), (2, 240), (3, 300)]
    assert ticker.missed == 0


def test_impatience() -> None:
    ticker = Ticker(Grid(0, PERIOD), 20)
    assert ticker.take(0) == Tick(0, 0)
    assert ticker.take(119) == Tick(1, 100)
    assert ticker.take(220) is None
    assert ticker.missed == 1
    assert ticker.next_ns == 300
    assert ticker.take(299) is None
    assert ticker.missed == 1


@pytest.mark.parametrize("now", [-1, 0, 999])
def test_nothing_before_the_first_tick(now: int) -> None:
    ticker = Ticker(Grid(1000, PERIOD))
    assert ticker.take(now) is None
    assert ticker.missed == 0
    assert ticker.take(1000) == Tick(0, 1000)
