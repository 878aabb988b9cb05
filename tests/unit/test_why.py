"""Why something does not run: each state's sentence, from facts alone. On real processes: tests/integration/test_why.py."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eventflow import why
from eventflow.records import Checkpoint, Pause
from eventflow.why import (
    FireFacts,
    PartitionFacts,
    WorkflowFacts,
    explain,
    explain_fire,
    explain_offset,
    explain_partition,
)

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)
ERROR = json.dumps({"type": "builtins.ValueError", "message": "no\nway"})
HELD: dict[str, Any] = {"executor": 3, "alive": True, "host": "shop-1", "pid": 47, "silent": 0.4, "served": 1}
QUEUED: dict[str, Any] = {
    "status": "queued",
    "executor": 0,
    "queue": "mail",
    "queue_key": "",
    "placed": True,
    "served": 2,
}


def facts(**known: Any) -> WorkflowFacts:
    return WorkflowFacts(**{"id": "w", "name": "pay", "created_at": NOW - timedelta(minutes=2), "now": NOW, **known})


def recorded(position: str, name: str, output: object = None, error: str | None = None) -> tuple[Checkpoint, datetime]:
    return Checkpoint(position, 1, name, None if output is None else json.dumps(output), error), NOW - timedelta(
        seconds=3
    )


@pytest.mark.parametrize(
    ("known", "state", "said"),
    [
        ({"status": "succeeded", "finished_at": NOW}, "done", "succeeded at 2026-11-27 12:00:00Z, 2 min after it was created"),
        ({"status": "failed", "finished_at": NOW, "error": ERROR}, "failed", "failed at 2026-11-27 12:00:00Z: ValueError: no; `event"),
        ({"status": "failed", "finished_at": NOW, "message": True, "failures": 3, "error": ERROR}, "dead_letter",
         "failed for good at 2026-11-27 12:00:00Z after 3 attempts: ValueError: no;"),
        ({"status": "failed", "message": True, "redelivery": 4}, "redelivery", "redelivery 4 lets it go in its turn"),
        ({"status": "cancelled", "finished_at": NOW, "reason": "dropped by ada: twice"}, "cancelled", "12:00:00Z: dropped by ada: twice"),
        ({"status": "parked", "reason": "other code"}, "parked", "for a person: other code; `eventflow workflows resume`"),
        ({"status": "parked", "reason": "r", "message": True, "behind": 2}, "parked", "2 messages wait behind it; `eventflow dead-"),
        # held
        ({"status": "running", **HELD}, "running", "runs in executor 3 (process 47 on shop-1), and has recorded nothing yet"),
        ({"status": "running", "attempt": 2, "recorded": [recorded("1.1", "charge", 1)], **HELD}, "running",
         "attempt 2; the last that it recorded is 'charge' at 1.1, 3 s ago"),
        ({"status": "running", "children": ["w>1.2 waiting"], **HELD}, "running", "has started its child w>1.2, which is waiting"),
        ({"status": "running", "asked": "cancel ada@shop", **HELD}, "running", "; ada@shop has asked it to end (cancel)"),
        ({"status": "running", "recorded": [recorded("1.1~1", "charge", LATER.timestamp(), ERROR)], **HELD}, "running",
         "it has failed once in step 'charge' at 1.1, the last time with ValueError: no, and tries again at 2026-11-27 12:00:30Z (in 30 s)"),
        ({"status": "running", **HELD, "silent": 4.0, "peers": 1}, "silent", "silent for 4 s: its lease runs out in 1 s, and a peer takes"),
        ({"status": "running", **HELD, "silent": 6.0}, "silent", "its lease of 5 s has run out, and no other process lives"),
        ({"status": "running", **HELD, "alive": False, "died_at": NOW}, "orphaned", "which died at 2026-11-27 12:00:00Z"),
        ({"status": "queued", "attempt": 3, "failures": 2, "failed_with": "builtins.OSError", "wake_at": LATER, **HELD}, "retrying",
         "has failed 2 times, the last time with OSError, and is tried again, attempt 3, at 2026-11-27 12:00:30Z (in 30 s)"),
        ({"status": "queued", "failures": 1, "failed_with": "x.No", "message": True, **HELD}, "stopped", "stops its consumer: it failed for good with x.No"),
        ({"status": "queued", **HELD}, "taken", "waits there for its turn, room or its consumer's breaker"),
        ({"status": "queued", "head": "m1", "head_status": "running", "ahead": 1, **HELD}, "behind", "waits behind m1, the message before it"),
        # held by nobody
        ({"status": "queued", "wake_at": LATER}, "retrying", "is tried again for attempt 1, at 2026-11-27 12:00:30Z"),
        ({"status": "queued", "head": "m1", "head_status": "parked", "head_reason": "why", "ahead": 3, "by_key": True}, "behind",
         "waits behind m1, the first of 3 messages before it of its key, which is parked for a person: why"),
        ({"status": "queued", "peers": 2}, "unserved", "no live process serves 'pay'; 2 processes of its application live"),
        ({"status": "queued", "served": 1}, "free", "is free to run: the one process that knows it takes it within a beat"),
        ({"status": "queued", "executor": 0, "incident": 7}, "incident", "its partition is stopped by incident 7"),
        ({"status": "queued", "executor": 0}, "unowned", "no live process has it"),
        ({"status": "queued", "executor": 0, "owner": 5, "owner_alive": True}, "free", "is the next of its key: executor 5"),
        # in a queue
        ({**QUEUED, "placed": False, "wake_at": LATER}, "delayed", "is delayed in queue 'mail' until 2026-11-27 12:00:30Z (in 30 s)"),
        ({**QUEUED, "paused": True, "changed_by": "ada", "changed_at": NOW}, "paused", "queue 'mail' is paused, by ada at 2026-11-27"),
        ({**QUEUED, "served": 0}, "unserved", "no live process serves 'pay'"),
        ({**QUEUED, "served": 0, "known": 2, "peers": 2}, "unserved", "no live process serves queue 'mail', of those that know 'pay'"),
        ({**QUEUED, "settings": '{"concurrency": 2}', "begun": 2, "before": 4}, "limited",
         "in queue 'mail', behind 4 others: concurrency 2 is used up, 2 have begun and not ended"),
        ({**QUEUED, "queue_key": "k", "settings": '{"concurrency_per_key": 1}', "begun_of_key": 1}, "limited", "1 of its key 'k' have begun"),
        ({**QUEUED, "settings": '{"rate": [10, 60.0]}', "started": 10, "next_at": LATER}, "limited",
         "rate 10 in 1 min is used up, 10 have begun, the first until 2026-11-27 12:00:30Z"),
        ({**QUEUED, "settings": '{"rate_per_key": [1, 60.0]}', "started_of_key": 1, "next_of_key_at": LATER}, "limited", "rate_per_key 1 in 1 min"),
        ({**QUEUED, "settings": '{"concurrency_per_process": 1}', "least": 1}, "limited", "is used up in each process"),
        ({**QUEUED, "before": 2}, "in_line", "behind 2 others, and one of 2 processes that know it takes from it"),
        ({**QUEUED, "settings": '{"concurrency": null}'}, "free", "is the next in queue 'mail'"),
        # asleep
        ({"status": "waiting", "served": 1, "wake_at": LATER, "recorded": [recorded("1.2", "sleep", LATER.timestamp())]}, "sleeping",
         "sleeps at 1.2 until 2026-11-27 12:00:30Z (in 30 s)"),
        ({"status": "waiting", "served": 1, "inbox": ["paid"]}, "receiving", "waits for a message, and receives none of topic 'paid', which it has"),
        ({"status": "waiting", "served": 1, "wake_at": LATER, "recorded": [recorded("1.2w", "recv", LATER.timestamp())]}, "receiving",
         "waits for a message at 1.2 until 2026-11-27 12:00:30Z (in 30 s) at most"),
        ({"status": "waiting", "served": 1, "ends": ["c running"]}, "child", "waits for c to end, which is running"),
        ({"status": "waiting", "served": 1, "events": ["o shipped at"]}, "event", "waits for the event 'shipped at' of o"),
        ({"status": "waiting", "served": 1, "ends": ["c gone"], "events": ["o x"]}, "waiting", "waits for c to end, which is gone and waits for"),
        ({"status": "waiting", "served": 0}, "receiving", "no live process serves 'pay', so that nobody will wake it"),
        ({"status": "waiting", "served": 2, "wake_at": NOW}, "free", "is woken, as its time has come: one of 2 processes that know it takes"),
        ({"status": "waiting", "served": 2, "signalled": True}, "free", "as something has come for it"),
        ({"status": "waiting", "served": 1, "asked": "cancel ada"}, "free", "as it is to end"),
        ({"status": "waiting", "served": 0, "asked": "cancel ada"}, "unserved", "ada has asked it to end (cancel)"),
    ],
)  # fmt: skip
def test_a_workflow(known: dict[str, Any], state: str, said: str) -> None:
    found = explain(facts(**known))
    assert (found.state, found.subject) == (state, "w")
    assert found.text.startswith("w (pay) ")
    assert said in found.text
    assert "\n" not in found.text


PARTITION: dict[str, Any] = {
    "group": "g", "topic": "orders", "incarnation": 1, "partition": 3, "released": False, "owner": 4, "alive": True,
    "host": "shop-1", "pid": 9, "silent": 0.1, "position": 510, "end": 600,
}  # fmt: skip


@pytest.mark.parametrize(
    ("known", "state", "said"),
    [
        ({}, "reading", "orders/3 is read by executor 4 (process 9 on shop-1): its position is 510 of 600, 90 messages to go"),
        ({"end": None}, "reading", "its position is 510"),
        ({"position": None}, "reading", "its position is the log's beginning of 600, 600 messages to go"),
        ({"end": 510}, "done", "is read to its end, 510, by executor 4"),
        ({"end": 510, "unfinished": 2, "head": "m", "head_status": "parked"}, "reading", ", 2 messages accepted and not ended, the first is m, parked"),
        ({"paused": Pause("g", None, None, "ada", "the bank is closed", NOW)}, "paused",
         "is paused by ada at 2026-11-27 12:00:00Z: the bank is closed; its position is 510 of 600"),
        ({"released": True}, "unowned", "is not read: no live process has it, and its position is 510 of 600"),
        ({"alive": False}, "unowned", "executor 4, which had it, is dead"),
        ({"silent": 4.0}, "silent", "which has been silent for 4 s: its lease runs out in 1 s"),
        ({"silent": 9.0}, "silent", "its lease has run out"),
        ({"incident": 12, "kind": "retention", "detail": "it is gone"}, "incident", "is stopped by incident 12 (retention): it is gone; `eventflow incidents settle 12`"),
        ({"incident": 12, "kind": "retention", "detail": "d", "choice": "latest"}, "incident", "settled by latest, once a process has it"),
        ({"paused_by": "ada", "paused_why": "odd keys"}, "paused", "is paused by ada: odd keys; `eventflow consumers resume"),
    ],
)  # fmt: skip
def test_a_partition(known: dict[str, Any], state: str, said: str) -> None:
    found = explain_partition(PartitionFacts(**{**PARTITION, **known}))
    assert (found.state, found.subject) == (state, "orders/3")
    assert said in found.text


@pytest.mark.parametrize(
    ("known", "offset", "state", "said"),
    [
        ({}, 520, "unread", "orders/3/520 is not accepted yet, 10 messages before it: its partition is read by executor 4"),
        ({"released": True}, 520, "unowned", "its partition is not read: no live process has it"),
        ({"accepted": True}, 500, "done", "is accepted (the position is 510): it succeeded and left no row"),
        ({"passed_by": 3}, 500, "skipped", "was passed over when incident 3 was settled"),
        ({}, 600, "not_there", "is not in the log, which ends at 600"),
        ({"incident": 1, "kind": "k", "detail": "d"}, 520, "incident", "its partition is stopped by incident 1 (k): d"),
    ],
)  # fmt: skip
def test_an_offset(known: dict[str, Any], offset: int, state: str, said: str) -> None:
    found = explain_offset(PartitionFacts(**{**PARTITION, **known}), offset)
    assert (found.state, found.subject) == (state, f"orders/3/{offset}")
    assert said in found.text


@pytest.mark.parametrize(
    ("known", "state", "said"),
    [
        ({"paused": True, "note": "the bank is closed"}, "paused", "schedule 'daily' is paused: the bank is closed"),
        ({"served": False}, "unserved", "no live process that knows 'close' serves it"),
        ({"moment": LATER}, "delayed", "is to come: schedule 'daily' fires next at 2026-11-27 12:00:30Z"),
        ({"waiting": 2}, "behind", "2 of schedule 'daily' wait for what it has started to end"),
        ({"skipped": 3, "missed": 1}, "skipped", "3 were skipped, as another ran, and once it was too late"),
    ],
)
def test_a_fire_time(known: dict[str, Any], state: str, said: str) -> None:
    base: dict[str, Any] = {
        "subject": "s", "moment": NOW - timedelta(hours=1), "now": NOW, "name": "daily", "workflow": "close", "served": True,
        "paused": False, "note": "", "next_fire": LATER, "waiting": 0, "skipped": 0, "missed": 0,
    }  # fmt: skip
    found = explain_fire(FireFacts(**{**base, **known}))
    assert (found.subject, found.state) == ("s", state)
    assert said in found.text


def test_the_page_has_every_state() -> None:
    code = Path(why.__file__).read_text()
    states = set(
        re.findall(
            r'(?:_say\(\s*facts,\s*|Reason\(\s*(?:facts\.)?subject,\s*|_Wait\(\s*|": \(|state=|, \()"([a-z_]+)"', code
        )
    )
    page = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    table = page.partition("| `state` |")[2]
    assert states == set(re.findall(r"`([a-z_]+)`", "\n".join(re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE))))
