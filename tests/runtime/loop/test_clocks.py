"""Simulated time is orderly, and real time wakes up."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from trunkline.runtime.loop import SimulatedClock, SystemClock


def test_the_clock_moves_while_all_wait() -> None:
    clock, log = SimulatedClock(5), []

    def worker(name: str, step: int) -> Callable[[], None]:
        def body() -> None:
            for _ in range(3):
                clock.spend(step)
                log.append((name, clock.now_ns()))

        return body

    started = [clock.start("a", worker("a", 10)), clock.start("b", worker("b", 15))]
    assert log == []  # nobody runs before the caller waits
    clock.wait_until(100)
    assert log == [("a", 15), ("b", 20), ("a", 25), ("b", 35), ("a", 35), ("b", 50)]
    assert clock.now_ns() == 100
    assert all(each.join(1) for each in started)
    assert [each.name for each in started] == ["a", "b"]


def test_whoever_waits_longer_goes_first() -> None:
    clock, log = SimulatedClock(), []

    def worker(name: str) -> Callable[[], None]:
        def body() -> None:
            clock.wait_until(50)
            log.append(name)

        return body

    clock.start("a", worker("a"))
    clock.start("b", worker("b"))
    clock.wait_until(50)
    assert log == []
    clock.wait_until(50)
    assert log == ["a", "b"]


def test_a_predicate_ends_a_wait() -> None:
    clock, ready = SimulatedClock(), []

    def body() -> None:
        clock.spend(30)
        ready.append(1)
        clock.spend(30)

    worker = clock.start("worker", body)
    clock.wait_until(1000, lambda: bool(ready))
    assert clock.now_ns() == 30
    assert not worker.join(20e-9)
    assert clock.now_ns() == 50
    assert worker.join(1)
    assert clock.now_ns() == 60


def test_time_never_goes_back() -> None:
    clock = SimulatedClock(100)
    clock.wait_until(40)
    assert clock.now_ns() == 100


def test_strangers_may_not_wait() -> None:
    clock, raised = SimulatedClock(), []

    def stranger() -> None:
        try:
            clock.wait_until(10)
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=stranger)
    thread.start()
    thread.join()
    assert raised == ["only the thread whose turn it is in the simulation may wait"]


def test_the_same_again() -> None:
    def trace() -> list[tuple[int, int]]:
        clock, log = SimulatedClock(), []

        def worker(number: int) -> Callable[[], None]:
            def body() -> None:
                for step in range(20):
                    clock.spend((number * 7 + step * 3) % 11)
                    log.append((number, clock.now_ns()))

            return body

        for number in range(5):
            clock.start(str(number), worker(number))
        clock.wait_until(10**6)
        return log

    assert trace() == trace()


def test_real_time_passes() -> None:
    clock = SystemClock()
    before = clock.now_ns()
    clock.wait_until(before + 2_000_000)
    assert clock.now_ns() >= before + 2_000_000
    clock.wait_until(before)  # is over


@pytest.mark.parametrize("ready_before", [False, True])
def test_real_waits_end_when_notified(ready_before: bool) -> None:
    clock, ready = SystemClock(), [1] if ready_before else []

    def body() -> None:
        ready.append(1)
        clock.notify()

    worker = clock.start("worker", body)
    clock.wait_until(clock.now_ns() + 3600 * 10**9, lambda: bool(ready))
    assert worker.join(10)
    assert worker.name == "worker"
