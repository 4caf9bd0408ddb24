"""Every sample that is pushed ends in exactly one counter, by the stated rules, however it is cut into blocks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.runtime.sensor.cache_kit import CHANNELS, PERIOD_NS, Rows, Stamps, block, form, numbered
from trunkline.runtime.sensor.cache import SensorCache
from trunkline.runtime.sensor.intake import Counts, StreamRules

RULES = StreamRules(backward_s=0.005, ahead_s=0.02, confirm=4)
SAMPLES = 8


def empty(rules: StreamRules = RULES, seconds: float = 0.05) -> SensorCache:
    return SensorCache(form(SAMPLES), seconds=seconds, rules=rules)


def push(cache: SensorCache, *numbers: float, received: float | None = None) -> Counts:
    """Samples whose stamps are these numbers of periods, one block; the time of arrival in periods too."""
    stamps = np.array([round(number * PERIOD_NS) for number in numbers], np.int64)
    rows = np.zeros((len(stamps), CHANNELS), np.float32) + np.array(numbers, np.float32)[:, None]
    cache.push(stamps, rows, received_ns=None if received is None else round(received * PERIOD_NS))
    return cache.counts


def kept(cache: SensorCache) -> list[float]:
    """The newest window's samples, as the numbers they were pushed with."""
    window = cache.latest()
    return [] if window is None else window.samples[:, 0].tolist()


# --- a slow statement of the rules


@dataclass
class Slow:
    """Keeps everything in lists and looks at all of it every time."""

    history: list[tuple[int, int]] = field(default_factory=list)
    strays: list[int] = field(default_factory=list)
    tally: Counter[str] = field(default_factory=Counter)
    streams: int = 0
    doubtful: bool = False

    def take(self, stamp: int, row: NDArray[np.float32]) -> None:
        verdict = self.verdict(stamp, row)
        self.tally[verdict] += 1
        if verdict == "accepted":
            self.history.append((stamp, int(row[0])))
            self.strays, self.doubtful = [], False
        self.doubtful |= verdict == "backward"

    def verdict(self, stamp: int, row: NDArray[np.float32]) -> str:
        if not np.isfinite(row).all():
            return "not_finite"
        if not self.history:
            self.streams = 1
            return "accepted"
        periods = (stamp - self.history[-1][0]) / PERIOD_NS
        if -5 <= periods <= 0:
            return "duplicate" if stamp in [known for known, _ in self.history] else "backward"
        if 0 < periods <= 20:
            self.tally["gaps"] += periods > 1.5
            self.tally["missing"] += round(periods) - 1 if periods > 1.5 else 0
            self.streams += periods > 1.5 or self.doubtful
            return "accepted"
        self.strays = [*self.strays, stamp] if self.strays and stamp > self.strays[-1] else [stamp]
        if len(self.strays) == 4:
            self.history, self.streams = [], self.streams + 1
            self.tally["restarts"] += 1
            return "accepted"
        return "ahead" if periods > 0 else "backward"


faulty = st.lists(
    st.tuples(
        st.sampled_from([1] * 12 + [0, 0, 2, 3, -1, -2, -5, -6, 20, 21, -30, 70]),
        st.integers(1, 12),  # how many ordinary samples follow
        st.sampled_from([False] * 9 + [True]),  # not a number
        st.booleans(),  # the old time goes on afterwards
    ),
    max_size=12,
)


def recorded(events: list[tuple[int, int, bool, bool]]) -> tuple[Stamps, Rows]:
    """A stream in which faults stand between ordinary samples."""
    stamps, broken, now = [], [], 0
    for step, ordinary, nan, goes_back in events:
        before = now
        now += step
        for _ in range(ordinary):
            stamps.append(now)
            broken.append(nan and not len(broken) % 3)
            now += 1
        now = before + 1 if goes_back else now
    rows = numbered(1, len(stamps))
    rows[np.array(broken, bool), -1] = np.nan
    return np.array(stamps, np.int64) * PERIOD_NS, rows


@settings(max_examples=300, deadline=None)
@given(faulty, st.lists(st.integers(1, 40), min_size=1))
def test_the_stated_rules_however_the_stream_is_cut(
    events: list[tuple[int, int, bool, bool]], lengths: list[int]
) -> None:
    stamps, rows = recorded(events)
    slow, cache, start = Slow(), empty(), 0
    streams: dict[int | None, int] = {}
    while start < len(stamps):
        stop = start + lengths[start % len(lengths)]
        cache.push(stamps[start:stop], rows[start:stop])
        for stamp, row in zip(stamps[start:stop].tolist(), rows[start:stop], strict=True):
            slow.take(stamp, row)
        assert kept(cache) == [number for _, number in slow.history[-SAMPLES:]]
        assert cache.fill == min(1.0, len(slow.history) / SAMPLES)
        if (window := cache.latest(clock="sensor")) is not None:
            assert window.end_ns == slow.history[-1][0]
            assert streams.setdefault(window.stream, slow.streams) == slow.streams
        start = stop
    assert len(set(streams.values())) == len(streams)
    counts = cache.counts
    assert {name: getattr(counts, name) for name in vars(counts)} == {name: slow.tally[name] for name in vars(counts)}
    assert counts.accepted + counts.dropped == len(stamps)
    assert cache.dropped == counts.dropped


# --- the rules one by one


def test_a_duplicate_is_dropped() -> None:
    cache = empty()
    assert push(cache, 1, 2, 2, 3) == Counts(accepted=3, duplicate=1)
    assert push(cache, 3, 4) == Counts(accepted=4, duplicate=2)
    assert kept(cache) == [1, 2, 3, 4]


def test_a_block_that_comes_twice() -> None:
    cache = empty()
    push(cache, 1, 2, 3, 4)
    assert push(cache, 1, 2, 3, 4) == Counts(accepted=4, duplicate=4)
    assert push(cache, 5) == Counts(accepted=5, duplicate=4)
    window = cache.latest()
    assert window is not None
    assert (window.missing, window.position) == (0, 0)  # nothing was lost, the stream goes on


def test_blocks_in_the_wrong_order() -> None:
    cache = empty()
    push(cache, 1, 2, 3)
    push(cache, 6, 7)
    push(cache, 4, 5)
    assert push(cache, 8) == Counts(accepted=6, backward=2, gaps=1, missing=2)
    assert kept(cache) == [1, 2, 3, 6, 7, 8]


def test_samples_are_never_said_to_follow_on_a_dropped_one() -> None:
    cache = empty()
    push(cache, 1, 2, 3)
    before = cache.latest()
    push(cache, 2.5, 4)  # a clock that was set back by less than a period looks like this
    after = cache.latest()
    assert before is not None
    assert after is not None
    assert before.stream != after.stream
    assert after.position == -3


def test_a_gap_is_counted_and_windows_across_it_say_so() -> None:
    cache = empty()
    push(cache, *range(20))
    assert push(cache, *range(23, 27)) == Counts(accepted=24, gaps=1, missing=3)
    window = cache.latest()
    assert window is not None
    assert (window.missing, window.position) == (3, -4)
    assert kept(cache) == [16, 17, 18, 19, 23, 24, 25, 26]
    push(cache, *range(27, 31))
    window = cache.latest()
    assert window is not None
    assert (window.missing, window.position) == (0, 0)


@pytest.mark.parametrize(("distance", "missing"), [(1.4, 0), (1.5, 0), (1.6, 1), (2.4, 1), (2.6, 2), (3.0, 2)])
def test_what_is_a_gap(distance: float, missing: int) -> None:
    cache = empty()
    assert push(cache, 0, distance).missing == missing


def test_a_bad_row_leaves_a_gap() -> None:
    cache = empty()
    for bad in (np.nan, np.inf, -np.inf):
        stamps, rows = block(cache.counts.accepted + cache.dropped, 10)
        rows[4, 1] = bad
        cache.push(stamps, rows)
    assert cache.counts == Counts(accepted=27, not_finite=3, gaps=3, missing=3)


def test_infinities_that_cancel_and_sums_that_overflow() -> None:
    cache = empty()
    stamps, rows = block(0, 4)
    rows[0, :2] = np.inf, -np.inf
    rows[1:] = np.finfo(np.float32).max
    cache.push(stamps, rows)
    assert cache.counts == Counts(accepted=3, not_finite=1)


@pytest.mark.parametrize("wild", [-(10**12), -100, 100, 10**9])
def test_one_wild_stamp_costs_one_sample(wild: int) -> None:
    cache = empty()
    push(cache, *range(10))
    counts = push(cache, wild, *range(11, 20))
    assert (counts.accepted, counts.dropped, counts.restarts, counts.missing) == (19, 1, 0, 1)


def test_the_wildest_stamps() -> None:
    least, most = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    stamps = np.array([most, least, least + 1, most - 1, least, most], np.int64)  # differences wrap around
    for cut in range(1, 6):
        cache = empty()
        cache.push(stamps[:cut], numbered(0, cut))
        cache.push(stamps[cut:], numbered(cut, 6 - cut))
        assert cache.counts == Counts(accepted=1, backward=4, duplicate=1)


def test_stamps_whose_differences_wrap_around_do_not_follow() -> None:
    least, most = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    for count in (1, 2):  # the wrap stands within a block, or between two
        cache, stamps = empty(), np.array([most - PERIOD_NS, most, least + PERIOD_NS - 1], np.int64)
        cache.push(stamps[:count], numbered(0, count))
        cache.push(stamps[count:], numbered(count, 3 - count))
        assert cache.counts == Counts(accepted=2, backward=1)


@pytest.mark.parametrize("jump", [-(10**6), -50, 50, 10**6])
def test_a_clock_that_was_set_begins_a_new_history(jump: int) -> None:
    cache = empty()
    push(cache, *range(20))
    before = cache.latest()
    counts = push(cache, *range(20 + jump, 30 + jump))
    assert (counts.accepted, counts.restarts, counts.ahead + counts.backward) == (27, 1, 3)
    assert kept(cache) == list(range(23 + jump, 30 + jump))
    assert cache.fill == 7 / SAMPLES
    after = cache.latest()
    assert before is not None
    assert after is not None
    assert (after.stream != before.stream, after.position, after.missing) == (True, 0, 0)
    assert cache.intact(before)


def test_a_jump_ahead_and_back_again_does_not_end_the_stream() -> None:
    cache = empty()
    push(cache, *range(20))
    push(cache, *range(100_020, 100_040))
    counts = push(cache, *range(40, 60))
    assert (counts.accepted, counts.ahead, counts.backward, counts.restarts) == (54, 3, 3, 2)
    assert kept(cache) == list(range(52, 60))


def test_two_clocks_in_one_stream_do_not_destroy_it() -> None:
    cache = empty()
    for number in range(40):
        push(cache, number, number + 10**6)
    assert cache.counts == Counts(accepted=40, ahead=40)


def test_strays_need_not_be_close_together() -> None:
    cache = empty()
    counts = push(cache, 0, *range(1000, 10_000, 1000))
    assert (counts.accepted, counts.ahead, counts.restarts) == (3, 7, 2)


def test_a_silence_longer_than_a_window_begins_a_new_history() -> None:
    rules = StreamRules(confirm=4)
    cache = empty(rules)
    push(cache, *range(20))
    counts = push(cache, *range(20 + SAMPLES, 40 + SAMPLES))
    assert (counts.restarts, counts.missing) == (1, 0)
    cache = empty(rules)
    push(cache, *range(20))
    counts = push(cache, *range(19 + SAMPLES, 40 + SAMPLES))
    assert (counts.restarts, counts.missing) == (0, SAMPLES - 1)


def test_moments_before_a_restart_belong_to_the_new_history() -> None:
    cache = empty()
    push(cache, *range(200))
    push(cache, *range(1000, 1010))
    window = cache.window(150 * PERIOD_NS, clock="sensor")
    assert window is not None
    assert window.samples[:, 0].tolist() == [1003]


# --- the host's clock


def test_the_future_is_refused_where_the_hosts_clock_tells() -> None:
    cache = empty(StreamRules(future_s=0.005, ahead_s=0.1, confirm=4))
    push(cache, *range(20), received=1019)
    assert cache.offset_ns == 1000 * PERIOD_NS
    counts = push(cache, 40, received=1020)  # a gap of 20, but only one period has passed
    assert counts == Counts(accepted=20, future=1)
    counts = push(cache, 40, received=1040)
    assert counts == Counts(accepted=21, future=1, gaps=1, missing=20)


def test_a_lesser_delay_is_no_future() -> None:
    cache = empty(StreamRules(future_s=0.005, confirm=4))
    push(cache, *range(20), received=5000)  # had waited in a buffer for long
    counts = push(cache, *range(20, 40), received=1039)
    assert counts == Counts(accepted=40)
    assert cache.offset_ns == 1000 * PERIOD_NS


def test_a_clock_that_was_set_ahead_is_believed_in_the_end() -> None:
    cache = empty(StreamRules(future_s=0.005, ahead_s=0.1, confirm=4))
    push(cache, *range(20), received=1019)
    counts = push(cache, *range(70, 80), received=1029)
    assert counts == Counts(accepted=27, future=3, restarts=1)
    assert cache.offset_ns == 950 * PERIOD_NS


def test_a_clock_that_was_set_back_gives_a_new_offset() -> None:
    cache = empty()
    push(cache, *range(20), received=1019)
    counts = push(cache, *range(-80, -70), received=1029)
    assert counts == Counts(accepted=27, backward=3, restarts=1)
    assert cache.offset_ns == 1100 * PERIOD_NS


def test_a_fixed_offset_is_believed_more_than_the_sensor() -> None:
    cache = empty(StreamRules(offset_ns=0, future_s=0.005, confirm=4))
    assert push(cache, 100, received=50) == Counts(future=1)
    push(cache, *range(20), received=19)
    assert push(cache, *range(100, 150), received=60) == Counts(accepted=20, future=51)
    assert push(cache, 20, received=61) == Counts(accepted=21, future=51)


def test_blocks_that_were_dropped_do_not_move_the_offset() -> None:
    cache = empty()
    push(cache, *range(20), received=1019)
    push(cache, 19, 19, received=19)
    assert cache.offset_ns == 1000 * PERIOD_NS


@pytest.mark.parametrize(("rules", "bound"), [(StreamRules(), 50), (StreamRules(backward_s=0.01), 10)])
def test_how_late_a_reordered_sample_may_be(rules: StreamRules, bound: int) -> None:
    for distance, restarts in ((bound, 0), (bound + 1, 1)):
        cache = empty(rules)
        push(cache, *range(1000))
        counts = push(cache, *(999 - distance + index / 100 for index in range(rules.confirm)))
        assert counts.restarts == restarts
