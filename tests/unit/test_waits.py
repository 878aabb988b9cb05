"""Who waits leaves memory when he has looked for what woke him, and not before: its signal is gone by then."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from eventflow.context import Suspended
from eventflow.errors import WorkflowCancelledError
from eventflow.reader import Rows, Source
from eventflow.replay import Await
from eventflow.waits import Wait, Waits, life_of

INBOX: Source = ("inbox", "w", "")
CHILD: Source = ("outcome", "child")
ENDED = ("cancelled", None, None, "cancelled by somebody")
NOTHING = ("w", None, None, None)


class Standing:
    """A sync run that does nothing but wait."""

    def __init__(self) -> None:
        self.life, self.acting, self.workflow_id = None, 0, "w"
        self.history, self.spec = SimpleNamespace(seq=1), SimpleNamespace(is_async=False)

    def settled(self) -> bool:
        return True


class Desk:
    """Waits of one sync run, a reader that answers when it is told to, and work that wants a thread."""

    def __init__(self, source: Source = INBOX, *, crowded: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self.asked: list[tuple[Source, Callable[[Rows], None]]] = []
        self.requests: list[Any] = []
        self.came: list[Any] = []
        self.waits = Waits(
            loop, lambda *question: self.asked.append(question), now=loop.time, later=loop.call_later, suspend_after=0.0,
            crowded=lambda: crowded,
        )  # fmt: skip
        self.waits.on_asked = self.requests.extend
        self.run: Any = Standing()
        life_of(self.run)
        self.waits.add(Wait(self.run, Await(loop.time() + 60, (source,)), self.came.append))

    def look(self) -> None:
        """As often as it takes to see that somebody stands still."""
        for _ in range(3):
            self.waits._tick()
            self.waits._make_room()

    async def answer(self, rows: Rows, to: Source | None = None) -> None:
        source, answer = self.asked.pop(0)
        assert to in (None, source)
        answer(rows)
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


@pytest.mark.parametrize("here", [True, False], ids=["of this process", "of another"])
async def test_who_was_asked_to_end_is_told_of_that_before_his_childs_end(*, here: bool) -> None:
    """And he has that end all the same, where he waits on."""
    desk = Desk(CHILD)
    if here:
        await desk.answer([], CHILD)
        desk.waits.arrived(CHILD, ENDED)
    else:
        await desk.answer([ENDED], CHILD)
    request = ("w", "cancel", "somebody", 7)
    await desk.answer([request], ("asked", "w"))
    assert (desk.requests, desk.came) == ([request], [])
    desk.waits._look(next(iter(desk.run.life.waits)), CHILD)
    await desk.answer([ENDED], CHILD)
    await desk.answer([request], ("asked", "w"))
    assert (desk.requests, desk.came) == ([request], [(CHILD, ENDED)])


async def test_who_is_about_to_be_told_to_end_has_not_his_childs_end_before() -> None:
    """He replays, and is told when he has come to where he stood."""
    desk = Desk(CHILD)
    desk.run.life.interrupted, desk.run.life.heard = WorkflowCancelledError("cancelled by somebody"), 7
    next(iter(desk.run.life.waits)).heard = 7
    request = ("w", "cancel", "somebody", 7)
    await desk.answer([ENDED], CHILD)
    await desk.answer([request], ("asked", "w"))
    assert desk.came == []
    desk.run.life.told = True
    desk.waits._look(next(iter(desk.run.life.waits)), CHILD)
    await desk.answer([ENDED], CHILD)
    await desk.answer([request], ("asked", "w"))
    assert desk.came == [(CHILD, ENDED)]


async def test_who_was_not_asked_has_his_childs_end_and_stays_until_he_has_it() -> None:
    desk = Desk(CHILD)
    await desk.answer([ENDED], CHILD)
    desk.look()
    assert desk.came == []
    await desk.answer([NOTHING], ("asked", "w"))
    assert (desk.requests, desk.came) == ([], [(CHILD, ENDED)])


async def test_a_request_that_was_heard_before_he_waited_holds_nothing_up() -> None:
    desk = Desk(CHILD)
    wait = next(iter(desk.run.life.waits))
    desk.run.life.heard = 7
    again = Wait(desk.run, wait.awaited, desk.came.append)
    desk.waits.drop(wait)
    desk.waits.add(again)
    desk.asked.pop(0)
    await desk.answer([ENDED], CHILD)
    await desk.answer([("w", "cancel", "somebody", 7)], ("asked", "w"))
    assert (desk.requests, desk.came) == ([], [(CHILD, ENDED)])


async def test_a_child_that_succeeded_is_no_question() -> None:
    desk = Desk(CHILD)
    await desk.answer([("succeeded", "1", None, None)], CHILD)
    assert [source for source, _ in desk.came] == [CHILD]
