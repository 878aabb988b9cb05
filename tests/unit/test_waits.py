"""Who waits leaves memory when he has looked for what woke him, and not before: its signal is gone by then."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from eventflow.context import Suspended
from eventflow.reader import Rows, Source
from eventflow.replay import Await
from eventflow.waits import Wait, Waits, life_of

INBOX: Source = ("inbox", "w", "")


class Standing:
    """A sync run that does nothing but wait."""

    def __init__(self) -> None:
        self.life, self.acting = None, 0
        self.history, self.spec = SimpleNamespace(seq=1), SimpleNamespace(is_async=False)

    def settled(self) -> bool:
        return True


class Desk:
    """Waits of one sync run, a reader that answers when it is told to, and work that wants a thread."""

    def __init__(self, *, crowded: bool) -> None:
        loop = asyncio.get_running_loop()
        self.asked: list[Callable[[Rows], None]] = []
        self.came: list[Any] = []
        self.waits = Waits(
            loop, lambda _, answer: self.asked.append(answer), now=loop.time, later=loop.call_later, suspend_after=0.0,
            crowded=lambda: crowded,
        )  # fmt: skip
        self.run: Any = Standing()
        life_of(self.run)
        self.waits.add(Wait(self.run, Await(loop.time() + 60, (INBOX,)), self.came.append))

    def look(self) -> None:
        """As often as it takes to see that somebody stands still."""
        for _ in range(3):
            self.waits._tick()
            self.waits._make_room()

    async def answer(self, rows: Rows) -> None:
        self.asked.pop(0)(rows)
        await asyncio.sleep(0)  # on the loop


@pytest.mark.parametrize("crowded", [False, True])
async def test_nobody_leaves_before_the_ledger_has_said_what_has_come(*, crowded: bool) -> None:
    desk = Desk(crowded=crowded)
    desk.look()
    assert desk.came == []
    await desk.answer([])
    desk.look()
    assert [type(one) for one in desk.came] == [Suspended]
    assert not desk.run.life.unread


async def test_what_had_come_is_received() -> None:
    desk = Desk(crowded=True)
    desk.look()
    await desk.answer([(7, "hello")])
    assert [source for source, _ in desk.came] == [INBOX]


async def test_a_process_that_leaves_lets_go_of_it_to_be_woken_at_once() -> None:
    desk = Desk(crowded=False)
    desk.waits.leave()
    desk.look()
    assert [type(one) for one in desk.came] == [Suspended]
    assert desk.run.life.unread
