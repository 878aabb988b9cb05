"""How many threads work at once follows what the work does."""

import threading
import time
from collections.abc import Callable

import pytest

from eventflow import threads as threads_module
from eventflow.threads import Threads


def until(condition: Callable[[], bool], what: str, timeout: float = 10) -> None:
    """Wait for an event of another thread."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.001)


def waiting(release: threading.Event, done: list[int] | None = None) -> Callable[[int], None]:
    """Work that waits; where it is noted what is done, that of negative items only."""

    def work(item: int) -> None:
        if done is None or item < 0:
            release.wait(10)
        else:
            done.append(item)

    return work


def test_everything_is_worked_on_once_and_in_order_by_one_thread() -> None:
    done: list[int] = []
    threads = Threads[int](1, done.append)
    for start in range(0, 1000, 10):
        threads.put(range(start, start + 10))
    until(lambda: len(done) == 1000, "all are done")
    assert done == list(range(1000))
    threads.stop()


def test_work_that_waits_gets_threads_up_to_the_limit() -> None:
    release = threading.Event()
    threads = Threads[int](16, waiting(release))
    threads.put(range(100))
    until(lambda: threads.active() == 16, "as many wait as may")
    assert threads.waiting() == 84
    release.set()
    until(lambda: not threads.waiting() and not threads.active(), "all are done")
    threads.stop()


def test_work_that_waits_gets_threads_on_a_crowded_machine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def always_late() -> float:
        time.sleep(0.005)
        return 1.0

    monkeypatch.setattr(threads_module, "_lateness", always_late)
    release = threading.Event()
    threads = Threads[int](16, waiting(release))
    threads.put(range(100))
    until(lambda: threads.active() == 16, "as many wait as may")
    release.set()
    threads.stop()


def test_where_the_interpreter_lock_comes_late_few_threads_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where all of them compute: more would only take it from each other."""
    most = 0

    def work(_: int) -> None:
        nonlocal most
        most = max(most, threads.active())
        time.sleep(0.002)

    def late() -> float:
        time.sleep(0.001)
        return 0.01

    monkeypatch.setattr("eventflow.threads._lateness", late)
    threads = Threads[int](40, work)
    threads.put(range(200))
    until(lambda: not threads.waiting() and not threads.active(), "all are done")
    assert most <= 6, "2, and those that a crowded machine keeps at one piece for long"
    threads.stop()


def test_many_putters_and_many_workers_lose_nothing() -> None:
    done: list[int] = []
    threads = Threads[int](8, done.append)

    def put(first: int) -> None:
        for number in range(first, 4000, 4):
            threads.put([number])

    putters = [threading.Thread(target=put, args=(first,)) for first in range(4)]
    for putter in putters:
        putter.start()
    until(lambda: len(done) == 4000, "all are done")
    assert sorted(done) == list(range(4000))
    threads.stop()


def test_closed_it_begins_nothing_but_what_is_to_run_alone() -> None:
    done: list[int] = []
    threads = Threads[int](4, done.append)
    threads.open(False)
    threads.put([1, 2])
    threads.alone(3)
    until(lambda: done == [3], "the one that runs alone")
    until(lambda: not threads.active(), "it has ended")
    threads.open(True)
    until(lambda: sorted(done) == [1, 2, 3], "the rest")
    threads.stop()


def test_those_that_run_alone_keep_no_work_from_beginning() -> None:
    """As many of them as may run at once in any case."""
    release, done = threading.Event(), list[int]()
    threads = Threads[int](16, waiting(release, done))
    threads.alone(-1)
    threads.alone(-2)
    until(lambda: threads.active() == 2, "two run alone")
    threads.put([1])
    until(lambda: done == [1], "the work that is queued")
    release.set()
    threads.stop()


def test_where_one_that_ran_alone_has_ended_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no governor that finds the interpreter lock late, and wakes somebody by chance."""
    monkeypatch.setattr(threads_module, "_lateness", lambda: time.sleep(0.001) or 0.0)
    release, done = threading.Event(), list[int]()
    threads = Threads[int](1, waiting(release, done))
    threads.alone(-1)
    until(lambda: threads.active() == 1, "one runs alone")
    threads.put([1])
    until(lambda: threads._sleeping == 1, "there is no room")
    release.set()
    until(lambda: done == [1], "the work that is queued")
    threads.stop()


@pytest.mark.parametrize("queued", [0, 5])
def test_stopped_it_drops_what_waits(queued: int) -> None:
    release = threading.Event()
    threads = Threads[int](1, waiting(release))
    threads.put([0])
    until(lambda: threads.active() == 1 and not threads.waiting(), "it works")
    threads.put(range(queued))
    threads.stop()
    assert threads.waiting() == 0
    release.set()
    until(lambda: threads.active() == 0, "what was under way ended")


def test_what_is_worth_bringing_follows_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(threads_module.time, "perf_counter", lambda: clock[0])
    done: list[int] = []
    threads = Threads[int](2, done.append)
    assert threads.free() == 4  # what two threads do, and as much again
    threads.put(range(1000))
    until(lambda: len(done) == 1000 and not threads.active(), "all are done")
    clock[0] += 1.0
    assert threads.free() == 100  # a tenth of a second's worth
    clock[0] += 1.0
    assert threads.free() == 4  # nothing was done since
    threads.stop()
