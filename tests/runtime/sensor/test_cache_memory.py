"""What a cache takes it takes when it is made; ten minutes of a stream change nothing."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from trunkline.runtime.sensor.cache import SensorCache
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.intake import Counts

#: The published stream.
FORM = SensorForm()
BLOCK, PERIOD_NS = 10, round(1e9 / 650)
#: For what an interpreter needs for any call: numbers, tuples, views.
SMALL_BYTES = 4096


@pytest.fixture
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def peak_of(call: Callable[[], object]) -> int:
    """Bytes that a call takes at most, above what there was before."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    call()
    return tracemalloc.get_traced_memory()[1] - before


@pytest.mark.usefixtures("_traced")
def test_all_memory_is_taken_at_once() -> None:
    before, _ = tracemalloc.get_traced_memory()
    cache = SensorCache(FORM, seconds=2.0)
    held = tracemalloc.get_traced_memory()[0] - before
    assert cache.nbytes <= held <= cache.nbytes + 8 * SMALL_BYTES
    assert cache.nbytes < (1300 + 2 * 650) * (1026 * 4 + 40)  # history, room, mirrored rows


@pytest.mark.usefixtures("_traced")
def test_nothing_of_size_is_allocated_after_the_first_calls() -> None:
    cache, out = SensorCache(FORM, seconds=2.0), np.empty((650, 1026), np.float32)
    samples, stamps = np.ones((BLOCK, 1026), np.float32), np.arange(BLOCK) * PERIOD_NS

    def push() -> None:
        nonlocal stamps
        stamps += BLOCK * PERIOD_NS
        cache.push(stamps, samples, received_ns=int(stamps[-1]))

    def read() -> None:
        at_ns = int(stamps[-1]) - 100 * PERIOD_NS
        for view in (cache.latest(), cache.window(at_ns), cache.interval(at_ns, at_ns + 10**9), cache.aligned()):
            assert view is not None
            assert cache.intact(view)
        cache.latest(out=out)
        cache.window(at_ns, out=out)

    for _ in range(100):
        push()
    read()
    # More than once around the ring, so that the seam and the mirrored rows are among it.
    assert max(peak_of(push) for _ in range(300)) < SMALL_BYTES
    assert max(peak_of(read) for _ in range(20)) < SMALL_BYTES


class TenMinutes:
    """A stream of 650 Hz with faults; ``expected`` is what must be counted of it."""

    blocks = 600 * 650 // BLOCK

    def __init__(self) -> None:
        self.expected = Counter[str]()

    def push_into(self, cache: SensorCache) -> Iterator[int]:
        """One step per block."""
        clock_ns, shape, expected = 0, (BLOCK, cache.form.channels), self.expected
        samples = np.ones(shape, np.float32)
        for index in range(self.blocks):
            if index == self.blocks // 2:
                clock_ns -= 100 * 10**9  # set back; the samples are not believed at first
                expected.update(accepted=-15, backward=15, restarts=1)
            stamps = np.arange(index * BLOCK, (index + 1) * BLOCK) * PERIOD_NS + clock_ns
            received_ns = index * BLOCK * PERIOD_NS + 10**12
            if index % 1300 == 700:  # lost on its way
                expected.update(gaps=1, missing=BLOCK)
                yield index
                continue
            cache.push(stamps, samples, received_ns=received_ns)
            expected["accepted"] += BLOCK
            if index % 1000 == 510:  # comes twice
                cache.push(stamps, samples, received_ns=received_ns)
                expected["duplicate"] += BLOCK
            if index % 1700 == 400:  # one sample is broken by its stamp, one by its content
                cache.push(stamps[:1] + 10**15, samples[:1])
                cache.push(stamps[-1:] + PERIOD_NS, np.full(shape, np.nan, np.float32)[:1])
                expected.update(ahead=1, not_finite=1)
            yield index


@pytest.mark.usefixtures("_traced")
def test_ten_minutes_in_flat_memory() -> None:
    cache, stream = SensorCache(replace(FORM, channels=4)), TenMinutes()
    held: list[int] = []
    for index in stream.push_into(cache):
        if index % 6500 == 6499:  # every hundred seconds
            assert cache.fill == 1.0
            assert len(cache.latest().samples) == 650  # type: ignore[union-attr]
            held.append(tracemalloc.get_traced_memory()[0])
    assert cache.counts == Counts(**stream.expected)
    assert cache.counts.accepted + cache.dropped > 389_000
    assert len(held) == 6
    assert max(held) - held[0] < SMALL_BYTES
