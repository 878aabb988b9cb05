"""Blocked threads are woken one after another, each with its own outcome, whoever is interrupted."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from eventflow.turnstile import Answer, Turnstile

MANY = 40
DEADLINE = 10.0  # seconds


class Interrupting:
    """A lock that is interrupted while somebody waits for it, as by Ctrl-C."""

    def acquire(self, *, timeout: float) -> bool:
        raise KeyboardInterrupt

    def release(self) -> None:
        """Nobody waits for it any more."""


def waiting(turnstile: Turnstile[int], answers: list[Answer[int]], pool: ThreadPoolExecutor):
    return [pool.submit(turnstile.wait, answer) for answer in answers]


def test_each_gets_its_own_outcome():
    turnstile, answers = Turnstile[int](), [Answer[int]() for _ in range(MANY)]
    with ThreadPoolExecutor(MANY) as pool:
        found = waiting(turnstile, answers, pool)
        turnstile.let_through(list(zip(answers[: MANY // 2], range(MANY // 2), strict=True)))
        turnstile.let_through(list(zip(answers[MANY // 2 :], range(MANY // 2, MANY), strict=True)))
        assert [one.result(DEADLINE) for one in found] == list(range(MANY))


def test_an_error_is_raised():
    turnstile, answer = Turnstile[int](), Answer[int]()
    turnstile.let_through([(answer, LookupError("none"))])
    with pytest.raises(LookupError, match="none"):
        turnstile.wait(answer)


def test_one_at_a_time_is_woken():
    turnstile, answers = Turnstile[int](), [Answer[int]() for _ in range(3)]
    turnstile.let_through([(answer, 1) for answer in answers])
    assert [answer.woken for answer in answers] == [True, False, False]
    turnstile.wait(answers[0])
    assert [answer.woken for answer in answers] == [True, True, False]


def interrupt(turnstile: Turnstile[int], answer: Answer[int]) -> None:
    answer.turn = cast("threading.Lock", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        turnstile.wait(answer)


@pytest.mark.parametrize("when", ["before it is answered", "in line", "when it was its turn"])
def test_who_is_interrupted_keeps_nobody(when: str):
    turnstile, answers = Turnstile[int](), [Answer[int]() for _ in range(3)]
    at = 0 if when == "when it was its turn" else 1
    given = [(answer, n) for n, answer in enumerate(answers)]
    if when == "before it is answered":
        interrupt(turnstile, answers[at])
        turnstile.let_through(given)
    else:
        answers[at].turn = cast("threading.Lock", Interrupting())
        turnstile.let_through(given)
        interrupt(turnstile, answers[at])
    rest = [n for n in range(3) if n != at]
    with ThreadPoolExecutor(3) as pool:
        found = waiting(turnstile, [answers[n] for n in rest], pool)
        assert [one.result(DEADLINE) for one in found] == rest


def test_whoever_was_to_wake_the_next_may_have_died_on_the_way():
    turnstile, answers = Turnstile[int](), [Answer[int]() for _ in range(3)]
    turnstile.let_through([(answer, n) for n, answer in enumerate(answers)])  # the first never calls `wait`
    with ThreadPoolExecutor(3) as pool:
        found = waiting(turnstile, answers[1:], pool)
        assert [one.result(DEADLINE) for one in found] == [1, 2]
