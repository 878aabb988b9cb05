"""Two workflows that talk, and how long each message and event is on its way; `ROLE` names the one that a process has."""

import os
import time

from tests.conformance.colours import Body, Do, both

ROLE = os.environ.get("ROLE")
Stamp = tuple[int, float]
Hop = tuple[bool, float]  # whether it went to another process, and the seconds


def stamp() -> Stamp:
    return os.getpid(), time.time()


def _hop(sent: Stamp, got: Stamp) -> Hop:
    return sent[0] != got[0], got[1] - sent[1]


def _answers(do: Do, rounds: int) -> Body[list[Hop]]:
    """Gets messages, and tells of each by an event."""
    hops: list[Hop] = []
    for n in range(rounds):
        sent = yield do.recv(Stamp)
        got = yield do.run_step(stamp)
        hops.append(_hop(sent, got))
        yield do.set_event(f"got {n}", (yield do.run_step(stamp)))
    return hops


def _asks(do: Do, to: str, rounds: int) -> Body[list[Hop]]:
    hops: list[Hop] = []
    for n in range(rounds):
        yield do.send(to, (yield do.run_step(stamp)))
        sent = yield do.event(to, f"got {n}", Stamp)
        got = yield do.run_step(stamp)
        hops.append(_hop(sent, got))
    return hops


if ROLE in {None, "answers"}:
    answers = both(name="hops answers")(_answers)
if ROLE in {None, "asks"}:
    asks = both(name="hops asks")(_asks)
