"""Why something does not run: what the ledger knows of it in, one sentence out, for every state there is. Pure.

Each sentence names its evidence: the message in front, the limit, the time, the process. It is written for whoever is woken
at night; `Reason.state` is the same for programs.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from eventflow.codec import recorded_line
from eventflow.lines import Limits
from eventflow.records import Checkpoint, Pause, Reason, Status
from eventflow.words import counted, length_text, one_line, time_text, times

_TIMED = {"recv": ("receiving", "a message"), "result": ("child", "another's result"), "event": ("event", "an event")}
_STEP = re.compile(r"(?P<base>[\d/]+\.\d+)(?P<rest>.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowFacts:
    """A row of `why_workflow.sql`, its columns by name, and what the workflow has recorded.

    Attributes:
        silent: seconds since its executor's last beat. known: living processes that know its name; served: and serve its queue;
            peers: all but its own.
        head: the first that is unfinished of its scope, where that is before it; ahead, behind: how many are before and after.
        paused, settings, begun, begun_of_key, before: its queue, what has begun of it, and what stands before it in line.
        least: what the process that holds least of its queue holds. started, next_at: of its rate, and when that is over.
        ends, events, children: "id status" or "id key", of what it waits for, or has started and has not ended.
        inbox: topics of messages that it has not received. asked: "cancel who".

    """

    id: str
    name: str
    status: Status
    executor: int | None = None
    attempt: int = 1
    created_at: datetime
    finished_at: datetime | None = None
    wake_at: datetime | None = None
    reason: str | None = None
    error: str | None = None
    message: bool = False
    queue: str | None = None
    queue_key: str | None = None
    placed: bool = False
    now: datetime
    alive: bool | None = None
    host: str | None = None
    pid: int | None = None
    died_at: datetime | None = None
    silent: float | None = None
    known: int = 0
    served: int = 0
    peers: int = 0
    failures: int = 0
    failed_with: str | None = None
    head: str | None = None
    head_status: Status | None = None
    head_reason: str | None = None
    head_wake_at: datetime | None = None
    ahead: int = 0
    behind: int = 0
    by_key: bool | None = None
    paused: bool | None = None
    changed_by: str | None = None
    changed_at: datetime | None = None
    settings: str | None = None
    begun: int | None = None
    begun_of_key: int | None = None
    least: int | None = None
    before: int | None = None
    started: int | None = None
    next_at: datetime | None = None
    started_of_key: int | None = None
    next_of_key_at: datetime | None = None
    ends: list[str] | None = None
    events: list[str] | None = None
    signalled: bool = False
    children: list[str] | None = None
    inbox: list[str] | None = None
    asked: str | None = None
    redelivery: int | None = None
    owner: int | None = None
    owner_alive: bool | None = None
    incident: int | None = None
    recorded: Sequence[tuple[Checkpoint, datetime]] = ()
    lease: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionFacts:
    """A row of `why_partition.sql`, its columns by name.

    Attributes:
        position: below it all is accepted. accepted: whether the offset asked for is. end: where the log ends, if known.
        passed_by: the incident that has passed the offset over. unfinished, head: what is accepted and has not ended.

    """

    group: str
    topic: str
    incarnation: int
    partition: int
    generation: int = 1
    released: bool
    owner: int
    alive: bool
    host: str | None = None
    pid: int | None = None
    silent: float | None = None
    position: int | None = None
    accepted: bool = False
    incident: int | None = None
    kind: str | None = None
    detail: str | None = None
    choice: str | None = None
    passed_by: int | None = None
    unfinished: int = 0
    head: str | None = None
    head_status: Status | None = None
    paused_by: str | None = None
    paused_why: str | None = None
    end: int | None = None
    paused: Pause | None = None
    lease: float = 5.0

    @property
    def subject(self) -> str:
        """As people name it."""
        return f"{self.topic}/{self.partition}"


# ---- a workflow --------------------------------------------------------------------------------


def explain(facts: WorkflowFacts) -> Reason:
    """Why this workflow does not run, or that it does, or has."""
    match facts.status:
        case "succeeded":
            took = length_text(_since(facts.created_at, facts.finished_at or facts.now))
            return _say(facts, "done", f"succeeded at {time_text(facts.finished_at)}, {took} after it was created")
        case "failed":
            return _failed(facts)
        case "cancelled":
            return _say(
                facts, "cancelled", f"was ended at {time_text(facts.finished_at)}: {facts.reason or 'nobody said why'}"
            )
        case "parked":
            return _parked(facts)
        case "waiting":
            return _waiting(facts)
        case _:
            return _unfinished(facts)


def _say(
    facts: WorkflowFacts, state: str, text: str, *, until: datetime | None = None, behind: str | None = None
) -> Reason:
    return Reason(facts.id, state, f"{facts.id} ({facts.name}) {text}", until, behind)


def _failed(facts: WorkflowFacts) -> Reason:
    error = "" if facts.error is None else f": {_line(recorded_line(facts.error))}"
    if facts.redelivery is not None:
        return _say(facts, "redelivery", f"is a dead letter, and redelivery {facts.redelivery} lets it go in its turn")
    if facts.message:
        times = f" after {counted(facts.failures, 'attempt')}" if facts.failures else ""
        text = f"is a dead letter: it failed for good at {time_text(facts.finished_at)}{times}{error}"
        return _say(facts, "dead_letter", f"{text}; `eventflow dead-letters redeliver` runs it again")
    text = (
        f"failed at {time_text(facts.finished_at)}{error}; `eventflow workflows retry` runs it again from what failed"
    )
    return _say(facts, "failed", text)


def _parked(facts: WorkflowFacts) -> Reason:
    held = f"; {counted(facts.behind, 'message')} wait behind it" if facts.behind else ""
    if facts.redelivery is not None:
        return _say(facts, "redelivery", f"is parked, and redelivery {facts.redelivery} lets it go in its turn")
    command = "dead-letters redeliver" if facts.message else "workflows resume"
    return _say(facts, "parked", f"is parked for a person: {facts.reason}{held}; `eventflow {command}` lets it go on")


def _unfinished(facts: WorkflowFacts) -> Reason:
    if facts.executor == 0 and facts.queue is not None:
        return _in_queue(facts)
    if facts.executor:
        return _held(facts)
    if facts.wake_at is not None and facts.wake_at > facts.now:
        return _say(facts, "retrying", f"{_retried(facts)}, at {_when(facts, facts.wake_at)}", until=facts.wake_at)
    if facts.head is not None:
        return _behind(facts)
    if facts.executor == 0:
        return _in_scope(facts)
    if not facts.served:
        return _unserved(facts)
    return _say(facts, "free", f"is free to run: {_takers(facts)} it within a beat")


def _unserved(facts: WorkflowFacts) -> Reason:
    others = (
        f"; {counted(facts.peers, 'process')} of its application live, and none has this code"
        if facts.peers and not facts.known
        else ""
    )
    return _say(facts, "unserved", f"waits for a process: {_nobody(facts)}{others}{_asked(facts)}")


def _nobody(facts: WorkflowFacts) -> str:
    what = f"queue {facts.queue!r}, of those that know {facts.name!r}" if facts.known else repr(facts.name)
    return f"no live process serves {what}"


def _behind(facts: WorkflowFacts) -> Reason:
    of_what = "of its key" if facts.by_key else "of its partition"
    first = "the message before it" if facts.ahead == 1 else f"the first of {facts.ahead} messages before it"
    text = f"waits behind {facts.head}, {first} {of_what}, which is {facts.head_status}"
    if facts.head_status == "parked":
        text += f" for a person: {facts.head_reason}"
    elif facts.head_wake_at is not None and facts.head_wake_at > facts.now:
        text += f" until {_when(facts, facts.head_wake_at)}"
    return _say(facts, "behind", text, until=facts.head_wake_at, behind=facts.head)


def _in_scope(facts: WorkflowFacts) -> Reason:
    """In line in the ledger, of a consumer's key, and the first of it."""
    if facts.incident is not None:
        return _say(facts, "incident", f"waits in line: its partition is stopped by incident {facts.incident}")
    if not facts.owner_alive:
        return _say(facts, "unowned", "waits in line for whoever gets its partition: no live process has it")
    return _say(
        facts, "free", f"is the next of its key: executor {facts.owner}, which has its partition, takes it in its turn"
    )


# ---- in its queue ------------------------------------------------------------------------------


def _in_queue(facts: WorkflowFacts) -> Reason:
    where = f"in queue {facts.queue!r}"
    if not facts.placed:
        return _say(facts, "delayed", f"is delayed {where} until {_when(facts, facts.wake_at)}", until=facts.wake_at)
    if facts.paused:
        by = f", by {facts.changed_by} at {time_text(facts.changed_at)}" if facts.changed_by else ""
        return _say(facts, "paused", f"waits in line: queue {facts.queue!r} is paused{by}")
    if not facts.served:
        return _unserved(facts)
    limit, until = _limit(facts)
    before = f", behind {facts.before} others" if facts.before else ""
    if limit is not None:
        again = f", the first until {_when(facts, until)}" if until is not None else ""
        return _say(facts, "limited", f"waits in line {where}{before}: {limit}{again}", until=until)
    if before:
        return _say(facts, "in_line", f"waits in line {where}{before}, and {_takers(facts)} from it as there is room")
    return _say(
        facts,
        "free",
        f"is the next {where}: {_takers(facts)} it within a beat, where there is room",
    )


def _limit(facts: WorkflowFacts) -> tuple[str | None, datetime | None]:
    """The limit that is used up, with its numbers, and until when, where that is a rate."""
    limits = Limits.of(json.loads(facts.settings or "{}"))
    key = f"of its key {facts.queue_key!r} " if facts.queue_key else "without a key "
    begun, of_key, least = facts.begun or 0, facts.begun_of_key or 0, facts.least or 0
    started, started_of_key = facts.started or 0, facts.started_of_key or 0
    if limits.concurrency is not None and begun >= limits.concurrency:
        return f"concurrency {limits.concurrency} is used up, {begun} have begun and not ended", None
    if limits.concurrency_per_key is not None and of_key >= limits.concurrency_per_key:
        return (
            f"concurrency_per_key {limits.concurrency_per_key} is used up, {of_key} {key}have begun and not ended",
            None,
        )
    if limits.rate is not None and started >= limits.rate[0]:
        return f"rate {limits.rate[0]} in {length_text(limits.rate[1])} is used up, {started} have begun", facts.next_at
    if limits.rate_per_key is not None and started_of_key >= limits.rate_per_key[0]:
        rate = f"rate_per_key {limits.rate_per_key[0]} in {length_text(limits.rate_per_key[1])}"
        return f"{rate} is used up, {started_of_key} {key}have begun", facts.next_of_key_at
    if limits.concurrency_per_process is not None and least >= limits.concurrency_per_process:
        return f"concurrency_per_process {limits.concurrency_per_process} is used up in each process", None
    return None, None


# ---- held by a process -------------------------------------------------------------------------


def _held(facts: WorkflowFacts) -> Reason:
    silent = facts.silent or 0.0
    if not facts.alive:
        text = f"was held by {_holder(facts)}, which died at {time_text(facts.died_at)}"
        return _say(facts, "orphaned", f"{text}: whoever took over is letting go of its rows")
    if silent > facts.lease / 2:
        return _silent(facts, silent)
    if facts.status == "running":
        return _running(facts)
    if facts.wake_at is not None and facts.wake_at > facts.now:
        text = f"{_retried(facts)}, at {_when(facts, facts.wake_at)} in {_holder(facts)}"
        return _say(facts, "retrying", text, until=facts.wake_at)
    if facts.head is not None:
        return _behind(facts)
    if facts.failures and facts.wake_at is None:
        text = f"stops its consumer: it failed for good with {_class(facts)}, and waits in {_holder(facts)}"
        return _say(facts, "stopped", f"{text} for a person, or for the process to be started again")
    due = "its next attempt is due, and" if facts.wake_at is not None else "and"
    return _say(
        facts, "taken", f"is held by {_holder(facts)}, {due} waits there for its turn, room or its consumer's breaker"
    )


def _silent(facts: WorkflowFacts, silent: float) -> Reason:
    left = facts.lease - silent
    text = f"is held by {_holder(facts)}, which has been silent for {length_text(silent)}"
    if left <= 0:
        after = "a peer takes over" if facts.peers else "no other process lives to take over"
        return _say(facts, "silent", f"{text}: its lease of {length_text(facts.lease)} has run out, and {after}")
    after = "and a peer takes over" if facts.peers else "and no other process lives to take over"
    until = facts.now + timedelta(seconds=left)
    return _say(facts, "silent", f"{text}: its lease runs out in {length_text(left)}, {after}", until=until)


def _running(facts: WorkflowFacts) -> Reason:
    waits = list(_pending(facts))
    asked = _asked(facts)
    text = f"runs in {_holder(facts)}{f', attempt {facts.attempt}' if facts.attempt > 1 else ''}"
    if waits:
        until = min((one.until for one in waits if one.until is not None), default=None)
        return _say(facts, "running", f"{text}: it {' and '.join(one.text for one in waits)}{asked}", until=until)
    if facts.children:
        first, _, status = facts.children[0].rpartition(" ")
        children = "its child" if len(facts.children) == 1 else f"{len(facts.children)} children, the first"
        return _say(
            facts, "running", f"{text}, and has started {children} {first}, which is {status}{asked}", behind=first
        )
    if not facts.recorded:
        return _say(facts, "running", f"{text}, and has recorded nothing yet{asked}")
    last, at = max(facts.recorded, key=lambda one: one[1])
    ago = length_text(_since(at, facts.now))
    return _say(
        facts, "running", f"{text}; the last that it recorded is {last.name!r} at {last.position}, {ago} ago{asked}"
    )


# ---- asleep ------------------------------------------------------------------------------------


def _waiting(facts: WorkflowFacts) -> Reason:
    asked = _asked(facts)
    due = facts.wake_at is not None and facts.wake_at <= facts.now
    if due or facts.signalled or asked:
        if not facts.served:
            return _unserved(facts)
        why = "its time has come" if due else "something has come for it" if facts.signalled else "it is to end"
        return _say(
            facts,
            "free",
            f"is woken, as {why}: {_takers(facts)} it within a beat{asked}",
        )
    waits = [*_pending(facts), *_watched(facts)]
    if not waits:
        until = f" until {_when(facts, facts.wake_at)}" if facts.wake_at else ""
        inbox = "".join(f", and receives none of topic {topic!r}, which it has" for topic in facts.inbox or ())
        waits.append(_Wait("receiving", f"waits for a message{until}{inbox}"))
    states = {one.state for one in waits}
    unserved = "" if facts.served else f"; and {_nobody(facts)}, so that nobody will wake it"
    text = f"{' and '.join(one.text for one in waits)}{unserved}"
    behind = next((one.behind for one in waits if one.behind is not None), None)
    return _say(facts, states.pop() if len(states) == 1 else "waiting", text, until=facts.wake_at, behind=behind)


class _Wait(NamedTuple):
    """Something that a workflow waits for."""

    state: str
    text: str
    until: datetime | None = None
    behind: str | None = None


def _watched(facts: WorkflowFacts) -> Iterator[_Wait]:
    """What others are to do."""
    for end in facts.ends or ():
        target, _, status = end.rpartition(" ")
        yield _Wait("child", f"waits for {target} to end, which is {status}", behind=target)
    for event in facts.events or ():
        target, _, key = event.partition(" ")
        yield _Wait("event", f"waits for the event {key!r} of {target}", behind=target)


def _pending(facts: WorkflowFacts) -> Iterator[_Wait]:
    """What it has begun to wait for, by what it has recorded: a sleep, a wait with a time, a step's next attempt."""
    known = {one.position: one for one, _ in facts.recorded}
    last_attempt: dict[str, Checkpoint] = {}
    for one, _ in facts.recorded:
        match = _STEP.fullmatch(one.position)
        if match is None:
            continue
        base, rest = match["base"], match["rest"]
        if rest.startswith("~") and rest[1:].isdigit() and base not in known:
            last_attempt[base] = one
        elif one.name == "sleep" and not rest and (until := _moment(one.output)) is not None and until > facts.now:
            yield _Wait("sleeping", f"sleeps at {base} until {_when(facts, until)}", until)
        elif rest == "w" and base not in known and (until := _moment(one.output)) is not None:
            state, what = _TIMED.get(one.name, ("waiting", one.name))
            yield _Wait(state, f"waits for {what} at {base} until {_when(facts, until)} at most", until)
    for base, one in last_attempt.items():
        until = _moment(one.output)
        count = int(one.position.rpartition("~")[2])
        error = "" if one.error is None else f", the last time with {_line(recorded_line(one.error))}"
        again = "" if until is None else f", and tries again at {_when(facts, until)}"
        yield _Wait("retrying", f"has failed {times(count)} in step {one.name!r} at {base}{error}{again}", until)


def _moment(output: str | None) -> datetime | None:
    """Seconds since 1970, as a wait's time is recorded; None where it is not, or cannot be read here."""
    try:
        seconds = float(output or "")
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


# ---- a partition -------------------------------------------------------------------------------


def explain_partition(facts: PartitionFacts) -> Reason:
    """Whether a group reads this partition, who, how far, and what stops it."""
    subject = facts.subject
    if facts.incident is not None:
        return Reason(subject, "incident", f"group {facts.group}: {subject} {_stopped(facts)}", None, None)
    if facts.paused_by is not None:
        text = f"is paused by {facts.paused_by}: {facts.paused_why}; `eventflow consumers resume {facts.group}` lets it go on"
        return Reason(subject, "paused", f"group {facts.group}: {subject} {text}", None, None)
    place = _place(facts)
    if facts.paused is not None:
        by = f"by {facts.paused.who} at {time_text(facts.paused.at)}: {facts.paused.why or 'nobody said why'}"
        text = f"group {facts.group}: {subject} is paused {by}; its position is {place}"
        return Reason(subject, "paused", f"{text}; `eventflow consumers resume` lets it go on", None, None)
    if facts.released or not facts.alive:
        who = "no live process has it" if facts.released else f"executor {facts.owner}, which had it, is dead"
        text = f"group {facts.group}: {subject} is not read: {who}, and its position is {place}"
        return Reason(subject, "unowned", text, None, None)
    if (facts.silent or 0.0) > facts.lease / 2:
        text = f"group {facts.group}: {subject} is held by {_owner(facts)}, {_silence(facts)}; its position is {place}"
        return Reason(subject, "silent", text, None, None)
    open_ = f", {counted(facts.unfinished, 'message')} accepted and not ended" if facts.unfinished else ""
    first = f", the first is {facts.head}, {facts.head_status}" if facts.head is not None else ""
    if facts.end is not None and facts.position is not None and facts.position >= facts.end:
        text = f"group {facts.group}: {subject} is read to its end, {facts.end}, by {_owner(facts)}{open_}{first}"
        return Reason(subject, "done" if not open_ else "reading", text, None, facts.head)
    text = f"group {facts.group}: {subject} is read by {_owner(facts)}: its position is {place}{open_}{first}"
    return Reason(subject, "reading", text, None, facts.head)


def explain_offset(facts: PartitionFacts, offset: int) -> Reason:
    """What has become of an offset of which the ledger has no workflow."""
    subject = f"{facts.subject}/{offset}"
    head = f"group {facts.group}: {subject}"
    if facts.passed_by is not None:
        return Reason(
            subject, "skipped", f"{head} was passed over when incident {facts.passed_by} was settled", None, None
        )
    if facts.accepted:
        gone = "it succeeded and left no row, or that was pruned, or deleted"
        return Reason(subject, "done", f"{head} is accepted (the position is {facts.position}): {gone}", None, None)
    if facts.end is not None and offset >= facts.end:
        return Reason(subject, "not_there", f"{head} is not in the log, which ends at {facts.end}", None, None)
    whole = explain_partition(facts)
    before = (
        "" if facts.position is None or offset < facts.position else f", {offset - facts.position} messages before it"
    )
    who = whole.text.removeprefix(f"group {facts.group}: {facts.subject} ")
    return replace(whole, subject=subject, state="unread" if whole.state == "reading" else whole.state,
                   text=f"{head} is not accepted yet{before}: its partition {who}")  # fmt: skip


def _place(facts: PartitionFacts) -> str:
    position = "the log's beginning" if facts.position is None else str(facts.position)
    if facts.end is None:
        return position
    return f"{position} of {facts.end}, {counted(max(0, facts.end - (facts.position or 0)), 'message')} to go"


def _stopped(facts: PartitionFacts) -> str:
    if facts.choice is not None:
        return (
            f"goes on after incident {facts.incident} ({facts.kind}), settled by {facts.choice}, once a process has it"
        )
    command = f"`eventflow incidents settle {facts.incident}` lets it go on"
    return f"is stopped by incident {facts.incident} ({facts.kind}): {facts.detail}; {command}"


def _owner(facts: PartitionFacts) -> str:
    return f"executor {facts.owner} (process {facts.pid} on {facts.host})"


def _silence(facts: PartitionFacts) -> str:
    silent = facts.silent or 0.0
    left = facts.lease - silent
    when = f"runs out in {length_text(left)}" if left > 0 else "has run out"
    return f"which has been silent for {length_text(silent)}: its lease {when}"


# ---- a fire time -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FireFacts:
    """A schedule, of whose fire time at `moment` the ledger has no workflow."""

    subject: str
    moment: datetime
    now: datetime
    name: str
    workflow: str
    served: bool
    paused: bool
    note: str
    next_fire: datetime | None
    waiting: int
    skipped: int
    missed: int


def explain_fire(facts: FireFacts) -> Reason:
    """Why a schedule has not started anything at a fire time."""
    schedule = f"schedule {facts.name!r}"
    if facts.paused:
        note = f": {facts.note}" if facts.note else ""
        return Reason(facts.subject, "paused", f"{facts.subject}: {schedule} is paused{note}")
    if not facts.served:
        text = f"{facts.subject}: {schedule} does not fire: no live process that knows {facts.workflow!r} serves it"
        return Reason(facts.subject, "unserved", text)
    if facts.moment > facts.now:
        text = f"{facts.subject} is to come: {schedule} fires next at {time_text(facts.next_fire)}"
        return Reason(facts.subject, "delayed", text, facts.moment)
    if facts.waiting:
        text = f"{facts.subject} has not started: {facts.waiting} of {schedule} wait for what it has started to end"
        return Reason(facts.subject, "behind", text)
    counts = f"{facts.skipped} were skipped, as another ran, and {times(facts.missed)} it was too late"
    text = f"{facts.subject} has started nothing that is still here: of {schedule} {counts}"
    return Reason(facts.subject, "skipped", f"{text}; `eventflow schedules backfill` starts it")


# ---- words -------------------------------------------------------------------------------------


def _holder(facts: WorkflowFacts) -> str:
    return f"executor {facts.executor} (process {facts.pid} on {facts.host})"


def _retried(facts: WorkflowFacts) -> str:
    if not facts.failures:
        return f"has failed, and is tried again for attempt {facts.attempt}"
    failed = f"has failed {times(facts.failures)}, the last time with {_class(facts)}"
    return f"{failed}, and is tried again, attempt {facts.attempt}"


def _takers(facts: WorkflowFacts) -> str:
    if facts.served == 1:
        return "the one process that knows it takes"
    return f"one of {counted(facts.served, 'process')} that know it takes"


def _class(facts: WorkflowFacts) -> str:
    """The exception's class, as a traceback names it."""
    return (facts.failed_with or "?").removeprefix("builtins.").removeprefix("__main__.")


def _asked(facts: WorkflowFacts) -> str:
    if facts.asked is None:
        return ""
    kind, _, who = facts.asked.partition(" ")
    return f"; {who} has asked it to end ({kind})"


def _since(earlier: datetime, later: datetime) -> float:
    return (later - earlier).total_seconds()


def _line(error: str) -> str:
    return one_line((error.splitlines() or [""])[0])


def _when(facts: WorkflowFacts, moment: datetime | None) -> str:
    """A moment, and how far that is."""
    if moment is None:
        return "?"
    left = _since(facts.now, moment)
    return f"{time_text(moment)} ({f'in {length_text(left)}' if left >= 0 else 'now'})"
