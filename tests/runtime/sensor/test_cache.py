"""Windows of a cache are those of the recorded stream, in both clocks, as views and as copies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.sensor.cache_kit import CHANNELS, PERIOD_NS, RATE_HZ, Rows, Stamps, block, form, numbered
from trunkline.runtime.errors import SensorError
from trunkline.runtime.sensor.cache import RATE_ROWS, SensorCache
from trunkline.runtime.sensor.intake import StreamRules
from trunkline.runtime.sensor.ring import PIECE, Ring
from trunkline.runtime.sensor.window import SensorWindow, check_window, interval_range, point_range

OFFSET_NS = 7_000_000_000


def filled(rows: int = 200, samples: int = 8, seconds: float = 0.05, **facts: object) -> SensorCache:
    cache = SensorCache(form(samples, **facts), seconds=seconds)
    cache.push(*block(0, rows))
    return cache


def some(window: SensorWindow | None) -> SensorWindow:
    assert window is not None
    return window


def first_of(window: SensorWindow | None) -> int:
    return int(some(window).samples[0, 0])


# --- the same rows as the recorded stream


@st.composite
def streams(draw: st.DrawFn) -> tuple[Stamps, list[int]]:
    """Stamps with gaps that are no restarts, and where the stream is cut into blocks."""
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 1, 1, 1, 2, 7]), min_size=1, max_size=50))
    stamps = np.cumsum(steps * draw(st.integers(1, 12))) * PERIOD_NS + draw(st.integers(-(10**9), 10**9))
    cuts = draw(st.lists(st.integers(0, len(stamps)), max_size=12))
    return stamps, [0, *sorted(cuts), len(stamps)]


def moments_of(stamps: Stamps) -> st.SearchStrategy[int]:
    anywhere = st.integers(int(stamps[0]) - 5 * PERIOD_NS, int(stamps[-1]) + 5 * PERIOD_NS)
    return anywhere | st.sampled_from(stamps.tolist())


def check(ask: Callable[[], SensorWindow | None], expected: Rows, covered: bool) -> None:
    """What is asked for is the expected rows, None for none, or refused if the history does not cover it."""
    if not covered:
        with pytest.raises(SensorError, match="further back than the history"):
            ask()
        return
    found = ask()
    if not len(expected):
        assert found is None
        return
    np.testing.assert_array_equal(some(found).samples, expected)


@settings(max_examples=200, deadline=None)
@given(streams(), st.integers(1, 40), st.integers(0, 60), st.booleans(), st.booleans(), st.data())
def test_windows_are_those_of_the_recorded_stream(
    stream: tuple[Stamps, list[int]], samples: int, more: int, adaptive: bool, copied: bool, data: st.DataObject
) -> None:
    (stamps, cuts), rows = stream, numbered(0, len(stream[0]))
    cache = SensorCache(form(samples, adaptive=adaptive), seconds=(samples + more) / RATE_HZ)
    for start, stop in pairwise(cuts):
        cache.push(stamps[start:stop], rows[start:stop])
    out = np.empty((samples, CHANNELS), np.float32) if copied else None
    low = max(0, len(stamps) - (samples + more))
    for _ in range(4):
        at, other = data.draw(moments_of(stamps)), data.draw(moments_of(stamps))
        first, end = point_range(stamps, at, samples)
        covered = low == 0 or (first >= low and at >= stamps[low])
        check(lambda: cache.window(at, clock="sensor", out=out), rows[first:end], covered)  # noqa: B023

        start, stop = min(at, other), max(at, other)
        first, end = interval_range(stamps, start, stop)
        if adaptive and end - max(first, low) > samples:
            with pytest.raises(SensorError):
                cache.interval(start, stop, clock="sensor")
            continue
        first = max(first, end - samples)
        covered = low == 0 or start >= stamps[low] or (end - low >= samples and not adaptive)
        check(lambda: cache.interval(start, stop, clock="sensor", out=out), rows[first:end], covered)  # noqa: B023
    np.testing.assert_array_equal(some(cache.latest()).samples, rows[-samples:])
    assert cache.counts.accepted == len(stamps)


@settings(max_examples=100, deadline=None)
@given(streams(), st.integers(1, 40))
def test_missing_streams_and_positions(stream: tuple[Stamps, list[int]], samples: int) -> None:
    stamps, cuts = stream
    cache = SensorCache(form(samples), seconds=(samples + 100) / RATE_HZ)
    ids: dict[int, int] = {}
    for start, stop in pairwise(cuts):
        cache.push(stamps[start:stop], numbered(start, stop - start))
        if not stop:
            continue
        window = some(cache.latest(clock="sensor"))
        first, last = stop - len(window.samples), stop - 1
        assert window.missing == round((stamps[last] - stamps[first]) / PERIOD_NS) - (last - first)
        assert window.end_ns == stamps[last]
        begun = next(row for row in range(last, -1, -1) if row == 0 or stamps[row] - stamps[row - 1] > PERIOD_NS)
        assert window.position == first - begun
        assert ids.setdefault(begun, window.stream) == window.stream  # type: ignore[arg-type]
    assert len(set(ids.values())) == len(ids)


def test_a_block_larger_than_the_ring() -> None:
    cache = filled(rows=5000)
    np.testing.assert_array_equal(some(cache.latest()).samples, numbered(4992, 8))
    assert cache.counts.accepted == 5000


def test_samples_of_any_strides_are_copied() -> None:
    cache, (stamps, rows) = SensorCache(form(), seconds=0.05), block(0, 20)
    cache.push(stamps.repeat(2)[::2], np.asfortranarray(rows))
    rows[:] = 0
    np.testing.assert_array_equal(some(cache.latest()).samples, numbered(12, 8))


def test_nothing_there_is_none() -> None:
    cache = SensorCache(form(), seconds=0.05)
    cache.push(*block(0, 0))
    assert cache.latest() is cache.window(0) is cache.interval(0, 5) is cache.aligned(16) is None
    assert (cache.fill, cache.staleness_ns(5), cache.dropped, cache.offset_ns) == (0.0, None, 0, None)
    cache.push(*block(0, 8))
    assert cache.interval(PERIOD_NS + 1, PERIOD_NS + 2, clock="sensor") is None
    assert cache.interval(5, 4, clock="sensor") is None


def test_windows_of_a_young_stream_are_short() -> None:
    cache = filled(rows=3)
    assert len(some(cache.latest()).samples) == 3
    assert cache.fill == 3 / 8
    assert len(some(cache.window(-5 * PERIOD_NS, clock="sensor")).samples) == 1


def test_the_longest_interval_of_an_adaptive_form() -> None:
    cache = filled(adaptive=True)
    assert len(some(cache.interval(150 * PERIOD_NS, 157 * PERIOD_NS, clock="sensor")).samples) == 8
    with pytest.raises(SensorError, match="9 samples"):
        cache.interval(150 * PERIOD_NS, 158 * PERIOD_NS, clock="sensor")


def test_an_interval_that_may_have_held_more_is_not_whole() -> None:
    cache = filled(adaptive=True)
    low = 150 * PERIOD_NS
    assert len(some(cache.interval(low, low + 7 * PERIOD_NS, clock="sensor")).samples) == 8
    with pytest.raises(SensorError, match="further back"):
        cache.interval(low - 1, low + 7 * PERIOD_NS, clock="sensor")


# --- views and copies


def test_views_are_read_only_and_not_copied() -> None:
    cache = filled()
    window = some(cache.latest())
    assert np.shares_memory(window.samples, cache._ring.rows)
    assert not window.samples.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        window.samples[0] = 0


def test_a_view_is_intact_until_the_writer_comes_round() -> None:
    cache = filled()
    oldest = some(cache.window(157 * PERIOD_NS, clock="sensor"))
    assert first_of(oldest) == 150
    cache.push(*block(200, PIECE))
    assert cache.intact(oldest)
    np.testing.assert_array_equal(oldest.samples, numbered(150, 8))
    cache.push(*block(200 + PIECE, 1))
    assert not cache.intact(oldest)


def test_a_view_survives_at_least_a_window_of_new_rows() -> None:
    samples = 3 * PIECE
    cache = filled(samples=samples, seconds=samples / RATE_HZ, rows=1000)
    window = some(cache.latest())
    cache.push(*block(1000, samples))
    assert cache.intact(window)
    np.testing.assert_array_equal(window.samples, numbered(1000 - samples, samples))


def test_copies_are_intact_for_good() -> None:
    cache, out = filled(), np.zeros((8, CHANNELS), np.float32)
    window = some(cache.latest(out=out))
    cache.push(*block(200, 1000))
    assert np.shares_memory(window.samples, out)
    assert cache.intact(window)
    np.testing.assert_array_equal(window.samples, numbered(192, 8))


def test_a_short_window_fills_the_first_rows_of_out() -> None:
    cache, out = filled(rows=3), np.full((8, CHANNELS), 9, np.float32)
    window = some(cache.latest(out=out))
    np.testing.assert_array_equal(window.samples, numbered(0, 3))
    assert (out[3:] == 9).all()


def test_part_of_a_window_can_be_judged() -> None:
    cache = filled()
    window = some(cache.latest())
    assert cache.intact(replace(window, samples=window.samples[-3:]))


def test_a_window_of_another_cache_cannot_be_judged() -> None:
    cache, other = filled(), filled()
    assert some(cache.latest()).stream != some(other.latest()).stream
    for foreign in (some(other.latest()), SensorWindow(numbered(0, 8), RATE_HZ)):
        with pytest.raises(SensorError, match="another sensor cache"):
            cache.intact(foreign)


class Overtaken(np.ndarray):
    """An array into which nothing can be copied without the writer pushing meanwhile."""

    def __setitem__(self, key: object, value: object) -> None:
        super().__setitem__(key, value)  # type: ignore[no-untyped-call, call-overload, index]
        if self.blocks:
            self.cache.push(*self.blocks.pop())


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of the tests' own classes pass as plain ones, so that what the cache does with them is seen."""
    monkeypatch.setattr("trunkline.runtime.sensor.writer.is_plain", lambda value: isinstance(value, np.ndarray))
    monkeypatch.setattr("trunkline.runtime.sensor.cache.is_plain", lambda value: isinstance(value, np.ndarray))


def overtaken(cache: SensorCache, pushed: list[tuple[Stamps, Rows]]) -> Rows:
    out = np.empty((8, CHANNELS), np.float32).view(Overtaken)
    Overtaken.cache, Overtaken.blocks = cache, pushed  # type: ignore[attr-defined]
    return out


@pytest.mark.usefixtures("hooked")
def test_a_copy_that_the_writer_overtook_is_made_again() -> None:
    cache = filled()
    out = overtaken(cache, [block(400, 500), block(200, 200)])
    np.testing.assert_array_equal(some(cache.latest(out=out)).samples, numbered(892, 8))


@pytest.mark.parametrize("copied", [False, True])
def test_a_search_that_the_writer_overtook_is_made_again(copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, out = filled(), np.empty((8, CHANNELS), np.float32)
    pushed, search = [block(200, 200)], cache._ring.stamps

    def overtaken_search(first: int, end: int) -> Stamps:
        while pushed:
            cache.push(*pushed.pop())
        return search(first, end)

    monkeypatch.setattr(cache._ring, "stamps", overtaken_search)
    window = cache.window(380 * PERIOD_NS, clock="sensor", out=out if copied else None)
    np.testing.assert_array_equal(some(window).samples, numbered(373, 8))


@pytest.mark.usefixtures("hooked")
def test_a_long_block_does_not_blind_readers() -> None:
    cache, seen = filled(), []

    class Block(np.ndarray):
        def __getitem__(self, key: object) -> object:
            seen.append(first_of(cache.latest()))  # before every piece of the block
            return super().__getitem__(key)  # type: ignore[index]

    stamps, rows = block(200, 2000)
    cache.push(stamps.view(Block), rows)
    assert seen[0] == 192
    assert 0 < max(np.diff(seen)) <= PIECE
    assert first_of(cache.latest()) == 2192


def test_rows_are_given_up_before_they_are_overwritten() -> None:
    """The order on which everything depends that readers are told."""
    ring, touched = Ring(history=50, window=8, channels=CHANNELS), []

    class Watched(np.ndarray):
        def __setitem__(self, key: slice, value: object) -> None:
            touched.append(all(row < ring.overwritten for row in range(ring.end) if row % ring.size in slots(key)))
            super().__setitem__(key, value)  # type: ignore[no-untyped-call]

    def slots(key: slice) -> set[int]:
        return {slot % ring.size for slot in range(key.start, key.stop)}

    for name in ("_rows", "_stamps", "_missing", "_runs"):
        setattr(ring, name, getattr(ring, name).view(Watched))
    for row in range(0, 600, 30):
        for first in range(row, row + 30, 10):
            stamps, rows = block(first, min(10, ring.room))
            ring.write(stamps, rows, missing=0, run=0)
    assert len(touched) > 240
    assert all(touched)


@pytest.mark.usefixtures("hooked")
def test_a_moment_that_the_writer_overtook_is_gone() -> None:
    cache = filled()
    out = overtaken(cache, [block(200, 200)])
    with pytest.raises(SensorError, match="further back"):
        cache.window(160 * PERIOD_NS, clock="sensor", out=out)


@pytest.mark.usefixtures("hooked")
def test_a_reader_that_is_always_overtaken_gives_up() -> None:
    cache = filled()
    out = overtaken(cache, [block(200 + 200 * index, 200) for index in range(100)][::-1])
    with pytest.raises(SensorError, match="overwritten while they were read"):
        cache.latest(out=out)


# --- clocks


def with_offset() -> SensorCache:
    cache = SensorCache(form(), seconds=0.05)
    for index, delay in enumerate([9, 4, 6]):
        stamps, rows = block(20 * index, 20)
        cache.push(stamps, rows, received_ns=int(stamps[-1]) + OFFSET_NS + delay)
    return cache


def test_the_offset_is_the_least_delay_and_is_applied() -> None:
    cache = with_offset()
    assert cache.offset_ns == OFFSET_NS + 4
    at = 50 * PERIOD_NS
    assert first_of(cache.window(at + OFFSET_NS + 4)) == first_of(cache.window(at, clock="sensor")) == 43
    assert first_of(cache.window(at + OFFSET_NS + 5)) == 44
    assert len(some(cache.interval(at + OFFSET_NS + 4, at + OFFSET_NS + 4)).samples) == 1
    assert cache.staleness_ns(60 * PERIOD_NS + OFFSET_NS + 4) == PERIOD_NS


def test_end_ns_is_in_the_clock_that_was_asked_in() -> None:
    cache, end_ns = with_offset(), 59 * PERIOD_NS
    for ask in (cache.latest, lambda **clock: cache.window(10**18, **clock)):
        assert some(ask(clock="sensor")).end_ns == end_ns
        assert some(ask()).end_ns == end_ns + OFFSET_NS + 4
    assert cache.staleness_ns(5, clock="sensor") == 5 - end_ns


def test_a_fixed_offset_is_not_estimated() -> None:
    cache = SensorCache(form(), seconds=0.05, rules=StreamRules(offset_ns=-5))
    cache.push(*block(0, 20), received_ns=19 * PERIOD_NS + 999)
    assert cache.offset_ns == -5
    assert some(cache.latest()).end_ns == 19 * PERIOD_NS - 5


def test_an_unknown_offset_is_never_taken_for_zero() -> None:
    cache = filled()
    for ask in (lambda: cache.window(0), lambda: cache.interval(0, 1), lambda: cache.staleness_ns(0)):
        with pytest.raises(SensorError, match="offset between them is not known"):
            ask()
    assert some(cache.latest()).end_ns is None
    assert some(cache.latest(clock="sensor")).end_ns == 199 * PERIOD_NS


def test_the_offset_follows_clocks_that_drift_apart() -> None:
    cache = SensorCache(form(), seconds=0.05, rules=StreamRules(offset_blocks=5))
    for index in range(100):
        stamps, rows = block(10 * index, 10)
        cache.push(stamps, rows, received_ns=int(stamps[-1]) + OFFSET_NS + 100 * index)
        assert cache.offset_ns is not None
        assert max(0, index - 9) * 100 <= cache.offset_ns - OFFSET_NS <= max(0, index - 4) * 100


def test_moments_beyond_all_stamps() -> None:
    cache = filled()
    assert first_of(cache.window((1 << 63) - 1, clock="sensor")) == 192
    for at_ns in (-(1 << 63), 5 - (1 << 63)):  # a host's time may be out of a stamp's range on the sensor's clock
        with pytest.raises(SensorError, match="further back"):
            cache.window(at_ns, clock="sensor")


# --- windows for incremental encoding


def test_aligned_windows_lie_a_multiple_of_the_hop_apart() -> None:
    cache = SensorCache(form(40), seconds=0.2)
    random, row, seen = np.random.default_rng(), 0, None
    while row < 2000:
        count = int(random.integers(1, 60))
        cache.push(*block(row, count))
        row += count
        window = cache.aligned(32, after=seen)
        if window is None:
            newest = (row - 40) // 32 * 32
            assert row < 40 or some(seen).position == newest
            continue
        assert (window.position % 32, first_of(window), len(window.samples)) == (0, window.position, 40)
        assert row - 32 < window.position + 40 <= row
        assert seen is None or (window.stream == seen.stream and window.position > seen.position)
        seen = window


def test_aligned_windows_across_a_gap() -> None:
    cache = SensorCache(form(40), seconds=0.2)
    cache.push(*block(0, 100))
    before = some(cache.aligned(16))
    stamps, rows = block(100, 100)
    found, kept = [], rows.copy()
    for index in range(100):
        cache.push(stamps[index : index + 1] + 2 * PERIOD_NS, rows[index : index + 1])
        window = cache.aligned(16, after=found[-1] if found else before)
        if window is not None:
            found.append(replace(window, samples=window.samples.copy()))
    assert len({window.stream for window in found} | {before.stream}) == 2
    assert [window.position for window in found] == [-32, -16, 0, 16, 32, 48]
    assert [window.missing for window in found] == [2, 2, 0, 0, 0, 0]
    np.testing.assert_array_equal(found[-1].samples, kept[48:88])
    for window in found:
        check_window(window, cache.form)


def test_aligned_windows_are_ones_that_an_encoder_takes() -> None:
    cache = SensorCache(form(40), seconds=0.2)
    cache.push(*block(0, 100))
    stamps, rows = block(100, 39)
    cache.push(stamps + 3 * PERIOD_NS, rows)  # three of forty are too much
    assert cache.aligned(16) is None
    stamps, rows = block(139, 1)
    cache.push(stamps + 3 * PERIOD_NS, rows)
    assert some(cache.aligned(16)).position == 0


def test_aligned_copies_too() -> None:
    cache, out = filled(seconds=0.05), np.empty((8, CHANNELS), np.float32)
    np.testing.assert_array_equal(some(cache.aligned(16, out=out)).samples, numbered(192, 8))
    assert out[0, 0] == 192


@pytest.mark.parametrize("hop", [0, -16, 8, 10, 48, 65, 16.0, "16", True])
def test_hops_that_cannot_be_are_refused(hop: int) -> None:
    with pytest.raises(SensorError, match="a multiple of 16, the encoder's total stride, up to 42"):
        filled().aligned(hop)


# --- the rate


def test_the_rate_is_measured_and_a_wrong_stream_refused() -> None:
    cache = SensorCache(form(200), seconds=0.2)
    cache.push(*block(0, RATE_ROWS))
    assert some(cache.latest()).rate_hz == RATE_HZ  # too few to tell
    cache.push(np.arange(1, 300) * PERIOD_NS * 5 // 4 + RATE_ROWS * PERIOD_NS, numbered(0, 299))
    window = some(cache.latest())
    assert window.rate_hz == pytest.approx(800, rel=1e-3)
    with pytest.raises(SensorError, match="a stream of 800 Hz"):
        check_window(window, cache.form)


def test_gaps_do_not_change_the_rate() -> None:
    cache = SensorCache(form(200), seconds=0.4)
    stamps, rows = block(0, 500)
    keep = np.arange(500) % 50 != 7
    cache.push(stamps[keep], rows[keep])
    assert some(cache.latest()).rate_hz == pytest.approx(RATE_HZ, rel=1e-9)


# --- refused


WRONG_BLOCKS = {
    "stamps in seconds": (np.arange(4.0), numbered(0, 4), "timestamps_ns: float64 (4,)"),
    "stamps too small": (np.arange(4, dtype=np.int32), numbered(0, 4), "timestamps_ns: int32 (4,)"),
    "stamps of two dimensions": (np.zeros((4, 1), np.int64), numbered(0, 4), "timestamps_ns: int64 (4, 1)"),
    "a list": ([1, 2, 3, 4], numbered(0, 4), "timestamps_ns: list"),
    "samples of double precision": (np.arange(4), numbered(0, 4).astype(np.float64), "samples: float64 (4, 3)"),
    "bytes in another order": (np.arange(4), numbered(0, 4).astype(">f4"), "samples: >f4 (4, 3)"),
    "one sample": (np.arange(1), numbered(0, 1)[0], "samples: float32 (3,)"),
    "channels": (np.arange(4), numbered(0, 4, 4), "samples: 4 numbers each"),
    "counts": (np.arange(4), numbered(0, 5), "4 stamps for 5 samples"),
    "masked stamps": (np.ma.masked_array(np.arange(4)), numbered(0, 4), "timestamps_ns: numpy.ma.MaskedArray of int64"),
    "masked samples": (
        np.arange(4),
        np.ma.masked_array(numbered(0, 4), True),
        "samples: numpy.ma.MaskedArray of float",
    ),
    "a matrix": (np.arange(4), numbered(0, 4).view(np.matrix), "samples: numpy.matrix of float32 (4, 3)"),
}


@pytest.mark.parametrize(("stamps", "samples", "found"), WRONG_BLOCKS.values(), ids=WRONG_BLOCKS)
def test_blocks_of_a_wrong_form_are_refused_and_leave_nothing(stamps: Stamps, samples: Rows, found: str) -> None:
    cache = filled(rows=5)
    with pytest.raises(SensorError) as caught:
        cache.push(stamps, samples)
    assert found in str(caught.value)
    assert (cache.counts.accepted, cache.dropped) == (5, 0)
    cache.push(*block(5, 5))
    assert cache.counts.accepted == 10


@pytest.mark.parametrize(
    "received_ns", ["5", float("nan"), 5.0, np.int32(5), np.float64(5), True, 1 << 63, [5]], ids=repr
)
def test_times_of_arrival_that_are_not_whole_are_refused_and_leave_nothing(received_ns: object) -> None:
    """Of NaN would come a NaN of an age, which lies behind no bound."""
    cache = filled(rows=5)
    with pytest.raises(SensorError, match=r"(?s)not whole nanoseconds.*received_ns"):
        cache.push(*block(5, 5), received_ns=received_ns)  # type: ignore[arg-type]
    assert (cache.counts.accepted, cache.dropped, cache.offset_ns) == (5, 0, None)
    cache.push(*block(5, 5), received_ns=np.int64(9 * PERIOD_NS + 7))  # type: ignore[arg-type]
    age_ns = cache.staleness_ns(9 * PERIOD_NS + 107)
    assert (type(age_ns), age_ns) == (int, 100)


def test_everything_wrong_with_a_block_is_listed() -> None:
    with pytest.raises(SensorError) as caught:
        filled().push(np.arange(4.0), np.zeros(4))
    assert len(caught.value.found) == 2  # type: ignore[arg-type]


@pytest.mark.usefixtures("hooked")
def test_two_threads_that_push_at_once_are_refused() -> None:
    cache, refused = filled(), []

    class Block(np.ndarray):
        def __getitem__(self, key: object) -> object:
            other = threading.Thread(target=pushed_beside)
            other.start()
            other.join()
            return super().__getitem__(key)  # type: ignore[index]

    def pushed_beside() -> None:
        try:
            cache.push(*block(500, 1))
        except SensorError as error:
            refused.append(str(error))

    stamps, rows = block(200, 5)
    cache.push(stamps.view(Block), rows)
    assert refused
    assert all("two threads push" in message for message in refused)
    assert cache.counts.accepted == 205


@pytest.mark.parametrize("at", [1.0, "1", None, np.float64(3), float("nan"), True, np.int32(3), 1 << 80])
def test_times_that_are_not_whole_are_refused(at: object) -> None:
    with pytest.raises(SensorError, match="not whole nanoseconds"):
        filled().window(at, clock="sensor")  # type: ignore[arg-type]


def test_times_of_numpy_are_whole() -> None:
    assert first_of(filled().window(np.int64(180 * PERIOD_NS), clock="sensor")) == 173  # type: ignore[arg-type]


def test_an_unknown_clock_is_refused() -> None:
    for ask in (lambda: filled().latest(clock="camera"), lambda: filled().staleness_ns(0, clock="camera")):  # type: ignore[arg-type]
        with pytest.raises(SensorError, match="no such clock"):
            ask()


@pytest.mark.parametrize(
    "out", [np.empty((7, CHANNELS), np.float32), np.empty((8, CHANNELS)), np.empty(8, np.float32), [[0.0]]]
)
def test_arrays_that_a_window_does_not_fit_are_refused(out: Rows) -> None:
    with pytest.raises(SensorError, match=r"expected: float32 \(8, 3\)"):
        filled().latest(out=out)


def test_an_array_that_cannot_be_written_is_refused() -> None:
    out = np.empty((8, CHANNELS), np.float32)
    out.flags.writeable = False
    with pytest.raises(SensorError, match="not writeable"):
        filled().latest(out=out)


CANNOT_BE = {
    "no window": ({"seconds": 0.007}, "seconds is 0.007, not from one window (0.008)"),
    "for ever": ({"seconds": float("inf")}, "seconds is inf"),
    "not a number": ({"seconds": float("nan")}, "seconds is nan"),
    "memory": ({"seconds": 1e5}, "100000 s take"),
    "bound": ({"rules": StreamRules(backward_s=-1.0)}, "backward_s is -1.0"),
    "no bound": ({"rules": StreamRules(ahead_s=float("inf"))}, "ahead_s is inf"),
    "count": ({"rules": StreamRules(confirm=0)}, "confirm is 0"),
    "half a count": ({"rules": StreamRules(offset_blocks=2.5)}, "offset_blocks is 2.5"),  # type: ignore[arg-type]
    "words": ({"seconds": "10", "rules": StreamRules(future_s="0.1")}, "future_s is 0.1"),  # type: ignore[arg-type]
    "offset": ({"rules": StreamRules(offset_ns=float("nan"))}, "offset_ns is float nan"),  # type: ignore[arg-type]
    "offset of 32 bits": ({"rules": StreamRules(offset_ns=np.int32(5))}, "offset_ns is int32"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("arguments", "found"), CANNOT_BE.values(), ids=CANNOT_BE)
def test_caches_that_cannot_be(arguments: dict[str, object], found: str) -> None:
    with pytest.raises(SensorError) as caught:
        SensorCache(form(), **arguments)  # type: ignore[arg-type]
    assert found in str(caught.value)


def test_every_reason_why_a_cache_cannot_be_is_listed() -> None:
    with pytest.raises(SensorError) as caught:
        SensorCache(replace(form(), channels=0), seconds=-1.0, rules=StreamRules(confirm=0, future_s=0.0))
    assert len(caught.value.found) == 4  # type: ignore[arg-type]
