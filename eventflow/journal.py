"""The one writer: what hundreds of workflows want recorded goes out as one transaction, again and again.

Batches form by load: while one flush is on its way, the next gathers. Nothing here waits by a timer. The journal runs in
a thread of its own with a connection of its own, so that user code can neither block nor interrupt it.

A *lane* is a sequence of numbered flushes (PROTOCOL.md R3), not a connection: when a connection breaks in the middle of
a flush, the same number and nonce go out again, and the ledger tells which of the two was committed.
"""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as json_text
from typing import Any

import psycopg

from eventflow.arrays import BigintArray, ByteaArray, TextArray
from eventflow.database import Connection, Database, Sent, columns, fenced, judge, lost_claims, rollback
from eventflow.errors import CodecError, EventflowError, FencedError, UnavailableError, first_line
from eventflow.idempotency import parse_message_workflow_id
from eventflow.kafka import headers_json
from eventflow.outbox import OURS, rider_of
from eventflow.payloads import Plain
from eventflow.records import Checkpoint, Rider, Status
from eventflow.replay import LAST
from eventflow.runs import Claim, Run
from eventflow.scopes import Scope
from eventflow.telemetry import crash_point, seldom

logger = logging.getLogger(__name__)

Statement = tuple[str, dict[str, Any]]
# fmt: off
RIDERS: dict[str, tuple[str, ...]] = {  # what goes with checkpoints: the query that writes it, and its columns
    "enqueue": (
        "id", "name", "application", "queue", "arguments", "key", "priority", "wait", "until", "deduplication_id", "settle",
        "settle_limit", "timeout", "deadline", "attributes", "parent",
    ),
    "insert_children": ("id", "name", "application", "executor", "parent", "arguments", "deadline", "attributes"),
    "consume_messages": ("id", "position"),
    "insert_messages": ("workflow_id", "topic", "payload", "key"),
    "insert_events": ("workflow_id", "key", "value"),
    "insert_stream_items": ("workflow_id", "key", "value", "source"),
    "settle_stream_items": ("workflow_id",),
    "settle_requests": ("workflow_id",),
    "keep_details": ("workflow_id", "position", "name", "output"),
    "end_details": ("workflow_id", "position"),  # after what keeps them: both may be in one flush
    "insert_signals": ("workflow_id",),
    "signal_watches": ("target", "key"),
    "insert_watches": ("target", "key", "workflow_id"),
    "insert_failures": ("workflow_id", "attempt", "type", "error"),
    "insert_traces": ("workflow_id", "cause", "span"),
    "insert_outbox": ("topic", "key", "value", "headers"),  # the last of all (R17)
}
# fmt: on
MAX_ENTRIES = 4000
_SAID = 1000  # characters of an error's text that go with a message
MAX_BYTES = 16 * 1024 * 1024
_BACKOFF = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class ClaimsLostError(EventflowError):
    """A flush was refused because these claims have another owner now."""

    def __init__(self, claims: list[int]) -> None:
        super().__init__(f"claims lost: {claims}")
        self.claims = claims


class RefusedError(EventflowError):
    """Postgres, or the payload codec, refused a value of this flush; one of its rows is to blame (R15)."""

    def __init__(self, error: psycopg.Error | CodecError) -> None:
        self.sqlstate: str | None = None
        self.table: str | None = None
        if isinstance(error, CodecError):
            super().__init__(str(error))
            return
        self.sqlstate, self.table, constraint = error.sqlstate, error.diag.table_name, error.diag.constraint_name
        what = f"SQLSTATE {error.sqlstate}" + (f", constraint {constraint!r}" if constraint else "")
        super().__init__(f"Postgres refused a value that was recorded ({what})")  # never the value itself


def backoff(attempt: int) -> float:
    """Seconds before the next try of something the server refused for reasons of its own."""
    return _BACKOFF[min(attempt, len(_BACKOFF) - 1)]


@dataclass(frozen=True, slots=True)
class Identity:
    """One executor as its lanes know it: its id, and the number that each lane was last told is committed.

    Where the server's timeline cannot be read, every flush and every beat checks that these are all still there (R2).
    """

    executor: int
    timeline: str
    acknowledged: list[int]
    ahead: float = 0.0  # the ledger's clock, of the system's, in seconds at birth

    def to_check(self) -> list[int] | None:
        """The numbers, where they must be checked."""
        return None if self.timeline else list(self.acknowledged)


class Lane:
    """Numbered flushes of one executor, one after another (R3). Not for two threads at once."""

    def __init__(
        self,
        database: Database,
        identity: Identity,
        number: int,
        stopped: threading.Event,
        settings: Sequence[str] = (),
    ) -> None:
        self.database = database
        self.identity = identity
        self.executor = identity.executor
        self.number = number
        self._settings = settings
        self._stopped = stopped
        self._connection: Connection | None = None

    @property
    def n(self) -> int:
        """The last number that is known to be committed."""
        return self.identity.acknowledged[self.number]

    def advance(self) -> None:
        """The next number is committed, and that is known."""
        self.identity.acknowledged[self.number] += 1

    def connection(self) -> Connection:
        """The lane's connection, opened anew where it broke; waits for the server with backoff."""
        attempt = 0
        while self._connection is None or self._connection.closed:
            try:
                self._connection = self.database.connect(f"journal lane {self.number}")
            except UnavailableError as error:
                attempt += 1
                seldom.say(logger, f"{error}; trying again")
                if self._stopped.wait(backoff(attempt)):
                    raise FencedError("stopped while Postgres was away") from error
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def guard(self, nonce: int, claims: Iterable[Claim]) -> dict[str, Any]:
        """The parameters of `guard.sql` for the next flush."""
        held = sorted(claims, key=lambda claim: claim.id)
        return {
            "executor": self.executor, "lane": self.number, "n": self.n + 1, "nonce": nonce,
            "claims": [c.id for c in held], "epochs": [c.epoch for c in held], "acknowledged": self.identity.to_check(),
        }  # fmt: skip

    def commit(self, statements: list[Statement], claims: Iterable[Claim]) -> None:
        """Commit these statements as the lane's next flush; returns once that is known.

        Raises:
            FencedError: this executor is over; nothing was committed, or it no longer matters.
            ClaimsLostError, RefusedError: nothing was committed, and the number is free again.
            CodecError: the payload codec refuses a value; nothing was sent.
            LockNotAvailable: of a lane with settings of its own: somebody's transaction holds what it needs; as if refused.

        """
        sent = [self.database.statement(name, params) for name, params in statements]
        guard = self.guard(nonce(), claims)
        attempt, unknown = 0, False
        while True:
            try:
                self._send(guard, sent)
            except psycopg.Error as error:
                verdict = self._verdict(error)
                if verdict == "fenced":
                    raise fenced(error) from error
                if verdict == "taken":
                    self._settle(guard["nonce"])
                    break
                if verdict in {"claims lost", "poison"} and (not unknown or self._close_number()):
                    raise self._refusal(error, verdict) from error
                if verdict in {"claims lost", "poison"}:
                    break  # the lost answer was a commit after all
                if isinstance(error, psycopg.errors.LockNotAvailable) and self._settings and not unknown:
                    raise
                unknown = unknown or verdict == "unknown"
                attempt += 1
                self._pause(error, attempt)
                continue
            break
        self.advance()

    def _refusal(self, error: psycopg.Error, verdict: str) -> EventflowError:
        return ClaimsLostError(lost_claims(error)) if verdict == "claims lost" else RefusedError(error)

    def _send(self, guard: dict[str, Any], statements: Sent) -> None:
        connection = self.connection()
        crash_point("journal.before_flush")
        try:
            self._pipeline(connection, guard, statements)
        except UnicodeEncodeError as error:
            raise psycopg.DataError(f"not a text for Postgres: {error}") from None
        crash_point("journal.after_commit")

    def _pipeline(self, connection: Connection, guard: dict[str, Any], statements: Sent) -> None:
        text, prepare = self.database.text, self.database.prepared
        with connection.pipeline() as pipeline:
            connection.execute(b"begin isolation level read committed", prepare=False)
            for setting in self._settings:
                connection.execute(setting.encode(), prepare=False)
            connection.execute(text("guard"), guard, prepare=prepare)
            if _armed:
                pipeline.sync()
                crash_point("journal.after_begin")
            for query, params in statements:
                connection.execute(query, params, prepare=prepare)
            if _armed:
                pipeline.sync()
                crash_point("journal.before_commit")
            last = connection.execute(b"commit", prepare=False)
        if last.statusmessage != "COMMIT":
            raise psycopg.OperationalError(f"COMMIT answered {last.statusmessage}")

    def _verdict(self, error: psycopg.Error) -> str:
        connection = self._connection
        if connection is None:
            return "unknown"
        if error.sqlstate == "23505" and error.diag.table_name == "flushes":
            rollback(connection)
            return "taken"
        verdict = judge(error, connection)
        if verdict == "unknown":
            connection.close()
        else:
            rollback(connection)
        return verdict

    def _pause(self, error: psycopg.Error, attempt: int) -> None:
        if attempt in {1, 10}:
            logger.warning("flush %d of lane %d: %s; sending it again", self.n + 1, self.number, first_line(error))
        if self._stopped.wait(backoff(attempt)):
            raise FencedError("stopped with a flush unsettled") from error

    def _settle(self, mine: int) -> None:
        """The number is taken: by this very flush, whose answer was lost, or the ledger is not what we think."""
        found = self.committed_nonce()
        if found != mine:
            raise FencedError(f"flush {self.n + 1} of lane {self.number} was committed by another sender")

    def committed_nonce(self) -> int | None:
        """The nonce committed under the next number, if any; waits for the server."""
        while True:
            try:
                rows = self.database.run(
                    self.connection(), "read_nonce",
                    {"executor": self.executor, "lane": self.number, "n": self.n + 1},
                )  # fmt: skip
            except psycopg.Error as error:
                self._pause(error, 1)
                continue
            return rows[0][0] if rows else None

    def _close_number(self) -> bool:
        """An empty flush under the number that is in doubt; false where the doubtful flush was committed (R3)."""
        attempt = 0
        guard = self.guard(nonce(), ())
        while True:
            try:
                self._send(guard, [])
            except psycopg.Error as error:
                verdict = self._verdict(error)
                if verdict == "fenced":
                    raise fenced(error) from error
                if verdict == "taken":
                    if self.committed_nonce() != guard["nonce"]:
                        return False
                    break
                attempt += 1
                self._pause(error, attempt)
                continue
            break
        self.advance()
        return True


_armed = bool(os.environ.get("EVENTFLOW_CRASH") or os.environ.get("EVENTFLOW_STOP"))


def nonce() -> int:
    """A random number that tells one sender of a flush from another."""
    return int.from_bytes(os.urandom(8), "big", signed=True)


class Entry:
    """What one run wants recorded next: its new checkpoints, and the state that its row shall have.

    `held`: whether this executor still holds it, or else whoever comes first; None: its scope's line does.
    """

    __slots__ = (
        "arguments", "attempt", "changed", "checkpoints", "drop_from", "drop_position", "error", "failed_seq",
        "generation", "held", "output", "reason", "recoveries", "retries", "riders", "run", "status", "wake_in",
    )  # fmt: skip

    def __init__(
        self, run: Run, checkpoints: list[Checkpoint], status: Status = "running", *, output: str | None = None,
        error: str | None = None, reason: str | None = None, wake_in: float | None = None,
        drop_from: int | None = None, held: bool | None = True, changed: bool = False,
    ) -> None:  # fmt: skip
        self.run = run
        self.checkpoints = checkpoints
        self.status: Status = status
        self.output = output
        self.error = error
        self.reason = reason
        self.wake_in = wake_in
        self.drop_from = drop_from
        self.held = held
        self.riders: list[Rider] | None = None
        self.failed_seq: int | None = None  # from which checkpoint on a retry drops what is recorded
        self.arguments: str | None = None  # those of the next run, where they change
        self.generation: int | None = None  # and which one it is
        self.drop_position: str | None = None  # whose recorded attempts go with what is dropped
        self.changed = changed or status != "running" or wake_in is not None or drop_from is not None
        self.attempt = run.attempt
        self.retries = run.retries
        self.recoveries = run.recoveries

    def drop(self, seq: int, position: str) -> None:
        """What is recorded from this number on goes, and the attempts of the step that failed there."""
        self.drop_from, self.drop_position, self.changed = seq, position, True

    def absorb(self, later: "Entry") -> "Entry":
        """This entry and a later one of the same run, as one."""
        if later.drop_from is not None:
            attempts = f"{later.drop_position}~"
            self.checkpoints = [
                c for c in self.checkpoints if c.seq < later.drop_from and not c.position.startswith(attempts)
            ]
            self.riders = _kept_riders(self, later.drop_from or LAST)
            self.drop_from = min(later.drop_from, self.drop_from or later.drop_from)
        merged = Entry(
            self.run, self.checkpoints + later.checkpoints, later.status, output=later.output, error=later.error,
            reason=later.reason, wake_in=later.wake_in, drop_from=self.drop_from, held=later.held,
            changed=self.changed or later.changed,
        )  # fmt: skip
        merged.attempt, merged.retries, merged.recoveries = later.attempt, later.retries, later.recoveries
        merged.arguments = later.arguments or self.arguments
        merged.generation = self.generation if later.generation is None else later.generation
        merged.drop_position = later.drop_position or self.drop_position
        merged.failed_seq = later.failed_seq
        if self.riders or later.riders:
            merged.riders = [*(self.riders or ()), *(later.riders or ())]
        return merged


def _kept_riders(entry: Entry, dropped: int) -> list[Rider]:
    """Those of an entry that a later one leaves; a run that is continued as new keeps what it has sent, and no details."""
    return [rider for rider in entry.riders or () if rider.seq < dropped]


def _forget_dropped(entries: list[Entry]) -> None:
    """Nobody is told of what goes with checkpoints that a later entry of the same flush drops: it is not written."""
    dropped: dict[Run, int] = {}
    for entry in reversed(entries):
        run = entry.run
        if run in dropped:
            entry.riders = _kept_riders(entry, dropped[run])
        if entry.drop_from is not None:
            dropped[run] = min(entry.drop_from or LAST, dropped.get(run, LAST))


def failure(run: Run, error: str) -> list[Rider]:
    """What keeps this error of a message's attempt beside those of its others; of other workflows the last one is kept."""
    if run.spec.consumer is None:
        return []
    return [Rider("insert_failures", (run.workflow_id, run.attempt, json.loads(error)["type"], error))]


def forwarded(run: Run, error: str) -> list[Rider]:
    """What publishes a message that has failed for good, where its consumer wants that, with what it failed with."""
    consumer, place = run.spec.consumer, parse_message_workflow_id(run.workflow_id)
    if consumer is None or consumer.dead_letter_topic is None or place is None:
        return []
    record = json.loads(error)
    facts = {
        "error": record["type"], "error-message": record["message"][:_SAID], "attempts": str(run.attempt),
        "consumer": run.name, "group": place.group, "topic": place.topic, "partition": str(place.partition),
        "offset": str(place.offset), "timestamp": str(run.timestamp), "workflow-id": run.workflow_id,
    }  # fmt: skip
    headers = [(name, value) for name, value in run.headers or () if not name.startswith(OURS)]
    headers += [(f"{OURS}{name}", fact.encode("utf-8", "replace")) for name, fact in facts.items()]
    return [rider_of((consumer.dead_letter_topic, run.key, run.value, headers_json(headers)))]


def heralds(run: Run) -> list[Rider]:
    """What tells those who sleep until this workflow has ended; who waits for a message's result is not told, and looks."""
    told: list[Rider] = []
    if run.life is not None and run.life.parent is not None:
        told.append(Rider("insert_signals", (run.life.parent,)))
    if run.claim is None:
        told.append(Rider("signal_watches", (run.workflow_id, "")))
    return told


Gap = tuple[Claim, int, int]


class Journal:
    """Gathers entries from any thread and flushes them from its own.

    `on_durable(entries, seconds)`, `on_dropped(entries)`, `on_lost(claims)` and `on_fenced(error)` are called in its thread.
    `keeps`: as of `flush_statements`.
    """

    def __init__(
        self,
        lane: Lane,
        application: str,
        *,
        on_durable: Callable[[list[Entry], float], None],
        on_dropped: Callable[[list[Entry]], None],
        on_lost: Callable[[list[Claim]], None],
        on_fenced: Callable[[FencedError], None],
        on_incident: Callable[[str, str, str], None],
        keeps: bool = True,
    ) -> None:
        self._lane = lane
        self._application, self._keeps = application, keeps
        self._on_durable, self._on_dropped, self._on_lost = on_durable, on_dropped, on_lost
        self._on_fenced, self._on_incident = on_fenced, on_incident
        self._queue: deque[Entry | Callable[[], None]] = deque()
        self._gaps: deque[Gap] = deque()
        self._chores: deque[Callable[[Lane], None]] = deque()
        self._marks: list[Callable[[], None]] = []
        self._arrived: list[Entry] = []
        self._wake = threading.Event()
        self._asleep = False
        self._closing = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._loop, name="eventflow journal", daemon=True)
        self.flushes = 0

    @property
    def executor(self) -> int:
        """The id of the executor that it writes for."""
        return self._lane.executor

    def start(self) -> None:
        self._thread.start()

    def submit(self, entry: Entry) -> None:
        """Hand over an entry; `entry.run.pending` is already counted. From any thread, never blocks."""
        self._queue.append(entry)
        if self._asleep:
            self._wake.set()

    def mark(self, reached: Callable[[], None]) -> None:
        """Call `reached`, in the journal's thread, once everything submitted before is durable or dropped."""
        self._queue.append(reached)
        self._wake.set()

    def cover(self, gap: Gap) -> None:
        """Record a range of offsets that holds no message (R5)."""
        self._gaps.append(gap)
        if self._asleep:
            self._wake.set()

    def between_flushes(self, chore: Callable[[Lane], None]) -> None:
        """Run something in the journal's thread while none of its flushes is open: the fold of a claim. One after a flush."""
        self._chores.append(chore)
        self._wake.set()

    def waiting_for(self) -> float:
        """For how many seconds the flush or chore under way has been waiting for the ledger; 0 when there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self, timeout: float) -> bool:
        """Flush what is there and end the thread; whether it did within `timeout` seconds."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        try:
            while self._wait():
                self._busy_since = time.monotonic()
                self._flush(*self._take())
                if self._chores:
                    self._busy_since = time.monotonic()
                    self._chores.popleft()(self._lane)
                self._busy_since = None
        except FencedError as error:
            self._on_fenced(error)
        except BaseException as error:
            logger.exception("the journal failed")
            self._on_fenced(FencedError(f"the journal failed: {error!r}"))
        finally:
            self._lane.close()

    def _wait(self) -> bool:
        while not (self._queue or self._gaps or self._chores):
            if self._closing:
                return False
            self._wake.clear()
            self._asleep = True
            if not (self._queue or self._gaps or self._chores or self._closing):
                self._wake.wait()
            self._asleep = False
        return True

    def _take(self) -> tuple[list[Entry], list[Gap]]:
        """What is waiting, one entry per run, in order of arrival; what belongs to ended attempts is dropped."""
        queue, taken, size = self._queue, dict[Run, Entry](), 0
        merged: list[Entry] = []
        dropped: list[Entry] = []
        while queue and len(merged) < MAX_ENTRIES and size < MAX_BYTES:
            entry = queue.popleft()
            if not isinstance(entry, Entry):
                self._marks.append(entry)
                continue
            run = entry.run
            merged.append(entry)
            if run.dropped:
                dropped.append(entry)
                continue
            if not run.in_ledger and run.claim is not None and run.claim.lost:
                run.dropped = True
                dropped.append(entry)
                continue
            before = taken.get(run)
            taken[run] = entry if before is None else before.absorb(entry)
            size += _size(entry)
        if dropped:
            self._on_dropped(dropped)
        _forget_dropped(merged)
        self._arrived = merged
        gaps = [self._gaps.popleft() for _ in range(len(self._gaps))]
        return list(taken.values()), gaps

    def _flush(self, entries: list[Entry], gaps: list[Gap]) -> None:
        arrived = self._arrived
        self._write(entries, [g for g in gaps if not g[0].lost])
        self.flushes += 1
        if arrived:
            since = self._busy_since or 0.0
            self._on_durable([e for e in arrived if not e.run.dropped], time.monotonic() - since)
        marks, self._marks = self._marks, []
        for mark in marks:
            mark()

    def _write(self, entries: list[Entry], gaps: list[Gap]) -> None:
        """Commit these entries, all of them or what a refusal leaves of them."""
        while entries or gaps:
            statements, claims = flush_statements(
                self._lane.executor, self._application, entries, gaps, keeps=self._keeps
            )
            if not statements:
                return
            try:
                self._lane.commit(statements, claims)
            except ClaimsLostError as error:
                entries, gaps = self._without(error.claims, claims, entries, gaps)
                continue
            except (RefusedError, CodecError) as error:
                self._isolate(entries, gaps, error if isinstance(error, RefusedError) else RefusedError(error))
                return
            for entry in entries:
                entry.run.in_ledger = True
            return

    def _without(
        self, lost: list[int], claims: Iterable[Claim], entries: list[Entry], gaps: list[Gap]
    ) -> tuple[list[Entry], list[Gap]]:
        """After EF002: drop the lost partitions' unaccepted attempts, keep the rest (R6)."""
        gone = [claim for claim in claims if claim.id in lost]
        for claim in gone:
            claim.lose()
        kept: list[Entry] = []
        dropped: list[Entry] = []
        for entry in entries:
            run = entry.run
            mine = run.in_ledger or run.claim is None or not run.claim.lost
            (kept if mine else dropped).append(entry)
        for entry in dropped:
            entry.run.dropped = True
        self._on_dropped(dropped)
        self._on_lost(gone)
        return kept, [gap for gap in gaps if not gap[0].lost]

    def _isolate(self, entries: list[Entry], gaps: list[Gap], error: RefusedError) -> None:
        """One row is to blame: halve until it stands alone, then let its own workflow fail (R15)."""
        if len(entries) > 1:
            half = len(entries) // 2
            self._write(entries[:half], gaps)
            self._write(self._left(entries[half:]), [])
            return
        if not entries:
            raise FencedError(f"a position was refused: {error}")
        [entry] = entries
        run = entry.run
        if error.sqlstate == "23505" and error.table in {"workflows", "checkpoints"}:
            self._end_duplicate(entry, error)
            return
        if entry.reason == _REFUSED:
            raise FencedError(f"the failure record of {run.workflow_id} was refused: {error}")
        logger.error("%s: the ledger refused what it recorded: %s", run.workflow_id, error)
        record = _safe_record(error)
        kept_back = run.spec.consumer is not None and run.spec.consumer.on_failure != "dead_letter"
        status: Status = "parked" if kept_back else "failed"
        instead = Entry(run, [], status, error=record, reason=_REFUSED, held=not kept_back)
        letter = [] if kept_back else forwarded(run, record)
        instead.riders = [*failure(run, record), *letter, *heralds(run)] or None
        self._write([instead], gaps)
        if kept_back and run.scope is not None:
            self._hold_back(run, run.scope)
        run.dropped = True
        self._on_dropped([entry])

    def _hold_back(self, run: Run, scope: Scope) -> None:
        """It is parked. What has begun behind it, as behind a success, is dropped and decided anew (R15).

        A claim that was taken again reads its unaccepted messages anew; whose rows we hold and do not run, we start again.
        """
        scope.hold_back(run)
        logger.error("%s is held back until %s is decided on", run.scope, run.workflow_id)
        begun: list[Run] = []
        after = run.after
        while after is not None:
            begun.append(after)
            after = after.after
        if not begun:
            return
        lost = {one.claim for one in begun if one.claim is not None and not one.in_ledger}
        for claim in lost:
            claim.lose()
        self._on_dropped([Entry(one, []) for one in begun])
        self._on_lost(list(lost))

    def _left(self, entries: list[Entry]) -> list[Entry]:
        """Those that are still to be written, now that others of their flush were refused."""
        left: list[Entry] = []
        dropped: list[Entry] = []
        for entry in entries:
            run = entry.run
            run.dropped = run.dropped or (not run.in_ledger and run.claim is not None and run.claim.lost)
            (dropped if run.dropped else left).append(entry)
        self._on_dropped(dropped)
        return left

    def _end_duplicate(self, entry: Entry, error: RefusedError) -> None:
        """A row that this attempt alone may write is there already: a rule was broken, and no value is to blame (R5)."""
        run = entry.run
        run.dropped = True
        if run.claim is not None and not run.in_ledger:
            run.claim.lose()  # not claimed again: a person looks first
        self._on_incident("duplicate", run.workflow_id, f"what it records is there already: {error}")
        self._on_dropped([entry])


# ---- what a flush says -------------------------------------------------------------------------


def _size(entry: Entry) -> int:
    """About how many bytes an entry sends."""
    run, output = entry.run, entry.output
    value = run.value
    size = 200 + (len(value) if value else 0) + (len(output) if output else 0)
    for _, _, _, found, error, _, _ in entry.checkpoints:
        size += 100 + len(found or error or "")
    if run.headers or run.arguments or run.key or entry.error:
        size += len(entry.error or "") + len(run.arguments or "") + len(run.key or b"")
        size += len(headers_json(run.headers) or "")
    if entry.riders:
        for rider in entry.riders:
            size += 100 + sum(len(value) for value in rider.row if isinstance(value, str | bytes))
    return size


def _safe_record(error: RefusedError) -> str:
    """The failure that takes a refused row's place: made of bytes that no database refuses, and of nobody's secrets (R15)."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    return Plain(json.dumps({"type": kind, "message": str(error), "arguments": None, "traceback": ""}))


_REFUSED = "the ledger refused a value that it recorded"


def flush_statements(
    executor: int, application: str, entries: list[Entry], gaps: Sequence[Gap], *, keeps: bool = True
) -> tuple[list[Statement], set[Claim]]:
    """The statements that write these entries, in the order of R4, and the claims that they stand on.

    Without `keeps`, a message that succeeds before it has a row gets none: that it was handled, its claim's ranges say. One
    that waits, talks or has relatives does, for these know it by its row.
    """
    fast: dict[str, list[Entry]] = {}  # by the workflow's name
    new: list[Entry] = []
    kept: list[Entry] = []  # rows that exist
    for entry in entries:
        run = entry.run
        if run.in_ledger:
            kept.append(entry)
        elif entry.status == "succeeded" and run.claim is not None and entry.attempt == 1:
            fast.setdefault(run.name, []).append(entry)
        else:
            new.append(entry)
    statements: list[Statement] = []
    ranges = _ranges([*fast.values(), new], gaps)
    if ranges:
        statements.append(("insert_deltas", _delta_params(ranges)))
    for name, succeeded in fast.items():
        rows = succeeded if keeps else [entry for entry in succeeded if _is_known(entry)]
        if rows:
            statements.append(("insert_succeeded", _fast_params(executor, application, name, rows)))
    if new:
        statements.append(("insert_workflows", _new_params(executor, application, new)))
    changed = [entry for entry in kept if entry.changed]
    if changed:
        statements.append(("update_workflows", _state_params(executor, changed)))
    drops = [e for e in entries if e.drop_from is not None]
    if drops:
        ids, seqs = [e.run.workflow_id for e in drops], [e.drop_from for e in drops]
        positions = [e.drop_position for e in drops]
        statements.append(("delete_checkpoints", {"workflow_id": ids, "seq": seqs, "position": positions}))
    recorded = [(e.run.workflow_id, c) for part in (new, kept) for e in part for c in e.checkpoints]
    if recorded:
        statements.append(("insert_checkpoints", checkpoint_params(recorded)))
    riders = [rider for entry in entries if entry.riders for rider in entry.riders]
    if riders:
        statements += rider_statements(riders)
    return statements, set(ranges)


def _is_known(entry: Entry) -> bool:
    """Whether others know it by its row: it waits, talks or has relatives, or leaves events, children and the like."""
    written = entry.riders is not None and any(rider.query != "insert_outbox" for rider in entry.riders)
    return written or entry.run.life is not None


def rider_statements(riders: Iterable[Rider]) -> list[Statement]:
    """A multi-row statement for each kind of rider, in the order of `RIDERS`."""
    by_query: dict[str, list[tuple[object, ...]]] = {}
    for rider in riders:
        by_query.setdefault(rider.query, []).append(rider.row)
    return [
        (query, packed(columns(_sorted(query, by_query[query]), names)))
        for query, names in RIDERS.items()
        if query in by_query
    ]


def _sorted(query: str, rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Rows by their first column, so that two flushes lock what they share in the same order (R4).

    But for those that stand in line in the order in which they are written, and have ids that nobody shares.
    """
    return rows if query in {"enqueue", "insert_outbox"} else sorted(rows, key=lambda row: str(row[0]))


def _fast_params(executor: int, application: str, name: str, entries: list[Entry]) -> dict[str, Any]:
    runs: list[Any] = [entry.run for entry in entries]
    return {
        "application": application, "executor": executor, "name": name,
        "id": TextArray([r.workflow_id for r in runs]), "claim": BigintArray([r.claim.id for r in runs]),
        "offset": BigintArray([r.offset for r in runs]), "timestamp": BigintArray([r.timestamp for r in runs]),
        "scope": _texts([r.scope and r.scope.known_id for r in runs]), "key": _bytes([r.key for r in runs]),
        "value": _bytes([r.value for r in runs]),
        "headers": _texts([r.headers and headers_json(r.headers) for r in runs]),
        "output": TextArray([e.output for e in entries]),
        "steps": _texts([_steps(e.checkpoints) if e.checkpoints else None for e in entries]),
    }  # fmt: skip


def _texts(values: list[str | None]) -> TextArray | None:
    """A column; None, which `unnest` fills up with nulls, where it holds nothing."""
    return None if values.count(None) == len(values) else TextArray(values)


def _bytes(values: list[bytes | None]) -> ByteaArray | None:
    return None if values.count(None) == len(values) else ByteaArray(values)


def _steps(checkpoints: list[Checkpoint]) -> str:
    """Checkpoints inside their workflow's row, in the order in which they were recorded; `handles.steps_of` reads them."""
    return f"[{','.join(map(_step, checkpoints))}]"


def _step(checkpoint: Checkpoint) -> str:
    position, _, name, output, error, attempts, seconds = checkpoint
    return (
        f'["{position}",{json_text(name)},{"null" if output is None else json_text(output)},'
        f"{'null' if error is None else json_text(error)},{attempts},{seconds:.6f}]"
    )


def packed(lists: dict[str, list[Any]]) -> dict[str, Any]:
    """Columns for `unnest`: None, which it fills up with nulls, for one that holds nothing; texts and bytes packed at once."""
    return {name: _column(values) for name, values in lists.items()}


def _column(values: list[Any]) -> Any:
    kinds: set[type[Any]] = {type(value) for value in values if value is not None}
    if not kinds:
        return None
    return TextArray(values) if kinds == {str} else ByteaArray(values) if kinds == {bytes} else values


def _new_params(executor: int, application: str, entries: list[Entry]) -> dict[str, Any]:
    runs = [entry.run for entry in entries]
    return _state_params(executor, entries) | {"application": application} | packed({
        "name": [r.name for r in runs], "claim": [r.claim.id if r.claim else None for r in runs],
        "offset": [r.offset for r in runs], "timestamp": [r.timestamp for r in runs],
        "scope": [r.scope and r.scope.id_of(r) for r in runs], "arguments": [r.arguments for r in runs],
        "key": [r.key for r in runs], "value": [r.value for r in runs],
        "headers": [r.headers and headers_json(r.headers) for r in runs],
        "deadline": [r.life and r.life.deadline for r in runs],
        "attributes": [r.life and r.life.attributes for r in runs], "parent": [r.life and r.life.parent for r in runs],
    })  # fmt: skip


def _state_params(executor: int, entries: list[Entry]) -> dict[str, Any]:
    return {"executor": executor} | packed({
        "id": [e.run.workflow_id for e in entries], "status": [e.status for e in entries],
        "held": [e.held for e in entries], "attempt": [e.attempt for e in entries],
        "retries": [e.retries for e in entries], "recoveries": [e.recoveries for e in entries],
        "wake_in": [e.wake_in for e in entries], "output": [e.output for e in entries],
        "error": [e.error for e in entries], "reason": [e.reason for e in entries],
        "arguments": [e.arguments for e in entries], "generation": [e.generation for e in entries],
        "failed_seq": [e.failed_seq for e in entries],
    })  # fmt: skip


def _ranges(accepted: list[list[Entry]], gaps: Iterable[Gap]) -> dict[Claim, list[tuple[int, int]]]:
    """Per claim, the ranges of offsets that a flush accepts: each message with the gap before it."""
    result: dict[Claim, list[tuple[int, int]]] = {}
    for entries in accepted:
        for entry in entries:
            run = entry.run
            if run.claim is not None:
                result.setdefault(run.claim, []).append((run.first, run.offset + 1))  # type: ignore[operator]
    for claim, start, end in gaps:
        result.setdefault(claim, []).append((start, end))
    return result


def _delta_params(ranges: dict[Claim, list[tuple[int, int]]]) -> dict[str, Any]:
    claims = sorted(ranges, key=lambda claim: claim.id)
    return {
        "claims": [c.id for c in claims], "epochs": [c.epoch for c in claims],
        "ranges": [multirange(ranges[c]) for c in claims],
        "leader_epochs": [c.leader_epoch for c in claims], "epochs_to": [c.epoch_to() for c in claims],
    }  # fmt: skip


def multirange(ranges: list[tuple[int, int]]) -> str:
    """Half-open ranges as Postgres writes them, neighbours joined.

    Raises:
        EventflowError: two overlap, so a message would be accepted twice (R5, MEMORY).

    """
    ranges.sort()
    joined: list[str] = []
    start, end = ranges[0]
    for low, high in ranges[1:]:
        if low < end:
            raise EventflowError(f"offsets accepted twice: [{low},{high}) after [{start},{end})")
        if low == end:
            end = high
            continue
        joined.append(f"[{start},{end})")
        start, end = low, high
    joined.append(f"[{start},{end})")
    return "{" + ",".join(joined) + "}"


def checkpoint_params(rows: list[tuple[str, Checkpoint]]) -> dict[str, Any]:
    """The parameters of `insert_checkpoints.sql`: each with its workflow's id."""
    return packed({
        "workflow_id": [i for i, _ in rows], "position": [c.position for _, c in rows],
        "seq": [c.seq for _, c in rows], "name": [c.name for _, c in rows],
        "output": [c.output for _, c in rows], "error": [c.error for _, c in rows],
        "attempts": [c.attempts for _, c in rows], "seconds": [c.seconds for _, c in rows],
    })  # fmt: skip
