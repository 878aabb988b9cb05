"""Messages that cannot be read yet: how often that is tried, and what ends nothing."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from eventflow import preparation
from eventflow.errors import UnavailableError
from eventflow.preparation import Preparation

LONGEST = 5.0


class Desk:
    """A preparation that waits for nothing, and notes for how long it would; it stops after so many waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Any], None], waits: int) -> None:
        monkeypatch.setattr(preparation, "_prepare", prepare)
        self.waits, self.passed, self.over = list[float](), list[str](), threading.Event()
        self.made: Any = Preparation(self.again)
        self._stopped, self._most = self.made._stopped, waits
        monkeypatch.setattr(self._stopped, "wait", self._wait)

    def _wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        if len(self.waits) == self._most:
            self.made.stop()
            self.over.set()
        return False

    def again(self, run: Any) -> None:
        self.passed.append(run.name)

    def run(self, *runs: Any) -> None:
        for run in runs:
            self.made.put(run)
        assert self.over.wait(10)
        self.made._thread.join(10)
        assert not self.made._thread.is_alive()


def run(name: str) -> Any:
    return Hashable(name=name, workflow_id=name, ended=False, dropped=False)


class Hashable(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


def test_what_cannot_be_had_is_asked_for_ever_less_often_and_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: Any) -> None:
        raise UnavailableError("the registry is away")

    desk = Desk(monkeypatch, away, waits=1100)
    desk.run(run("a"))
    assert (desk.waits[:6], desk.waits[-1], desk.passed) == ([0.2, 0.4, 0.8, 1.6, 3.2, LONGEST], LONGEST, [])


def test_what_comes_back_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deserializer has nothing to prepare, and fails when it reads: that was tried again without a pause."""
    desk = Desk(monkeypatch, lambda _: None, waits=8)

    def again(run: Any) -> None:
        desk.passed.append(run.name)
        desk.made.put(run)

    desk.made._again = again
    desk.run(run("a"))
    assert desk.waits == [0.2, 0.4, 0.8, 1.6, 3.2, LONGEST, LONGEST, LONGEST]
    assert desk.passed == ["a"] * 8


def test_a_fault_ends_neither_the_thread_nor_the_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def prepare(run: Any) -> None:
        if run.name == "odd":
            raise AssertionError("no message")
        if run.name == "last":
            raise UnavailableError("away")

    desk = Desk(monkeypatch, prepare, waits=1)

    def again(run: Any) -> None:
        desk.passed.append(run.name)
        if run.name == "lost":
            raise RuntimeError("the loop is closed")

    desk.made._again = again
    desk.run(run("odd"), run("lost"), run("good"), run("last"))
    assert desk.passed == ["odd", "lost", "good"]
    assert [r.getMessage() for r in caplog.records if r.exc_info] == [
        "odd cannot be prepared",
        "lost cannot be run again",
    ]
