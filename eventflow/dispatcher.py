"""Takes workflows out of their queues' lines, in batches, within limits; and puts in line those whose time has come.

A thread and a connection of its own. One claim is one transaction, fenced; where processes must count together (a limit
over all of them) the queue is locked meanwhile. What has come into lines is learnt from the beat, from this process's
own `enqueue`, and while a line waits for a limit, by looking again. Who is next is decided in `lines`, of which this is the
edge.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from operator import itemgetter
from typing import Any

import psycopg

from eventflow.adoption import Adoption
from eventflow.database import Connection, Database, KeptConnection, columns, in_transaction
from eventflow.errors import FencedError
from eventflow.lines import Ask, Cursor, Limits, Lines, Used
from eventflow.registry import Spec
from eventflow.telemetry import crash_point, seldom

logger = logging.getLogger(__name__)

_BATCH = 250  # workflows that one claim takes at most
_FEW = 100  # fewer are not worth a claim where so many are held
_HELD = 1000  # workflows of one queue that a process holds at a time, where it has no limit of its own
_DUE = 1000  # as place_due.sql has it
_LONGEST = 3600.0  # seconds without a look
_LOOKED_AT = 10_000  # lines of which it is doubted at once that they are empty
# A claimer that is cut off or frozen while it holds a queue must not hold it for long.
_PATIENCE = (
    "select set_config('lock_timeout', '2s', true), set_config('idle_in_transaction_session_timeout', '10s', true)",
)


class Dispatcher:
    """The queues that one executor serves."""

    def __init__(
        self,
        database: Database,
        executor: int,
        application: str,
        specs: Mapping[str, Spec],
        served: list[str],
        *,
        adoption: Adoption,
        adopted: Callable[[], None],
        held: Callable[[], "Counter[str]"],
        threads: Callable[[], int],
        now: Callable[[], float],
        beat: float,
        on_fenced: Callable[[FencedError], None],
    ) -> None:
        """`adopted` waits until what was handed over is counted by `held`; `threads` are those that are free for more."""
        self.served = served
        self._database, self._executor, self._application, self._specs = database, executor, application, specs
        self._adoption, self._adopted, self._held, self._threads = adoption, adopted, held, threads
        self._now, self._beat, self._on_fenced = now, beat, on_fenced
        self._names = list(specs)
        self._timeouts = json.dumps({name: spec.timeout for name, spec in specs.items() if spec.timeout is not None})
        self._cursor = Cursor()
        self._lines: dict[str, Lines] = {}
        self._slots: dict[str, tuple[Cursor, dict[str, str]]] = {}  # what fills places: ids, and their keys
        self._paused: frozenset[str] = frozenset()
        self._threaded: dict[str, bool] = {}  # whether a queue's workflows run in threads, as the last ones did
        self._due_at: float | None = None  # when the next comes that is delayed, by the ledger's clock
        self._retry_in: float | None = None  # seconds until a rate allows another one
        self._doubted: dict[tuple[str, int, str], int] = {}  # by queue, priority and key, from where on
        self._doubted_at = 0.0  # since when there is one
        self._has_sync = any(not spec.is_async for spec in specs.values())
        self._all = True  # whether to look at all that stands in line, and not only at what has come since
        self._freed = 0  # since the last look
        self._enough = 1  # of these are worth another one
        self.on_lost: Callable[[], None] = lambda: None  # a claim may have been committed without an answer
        self._work = threading.Event()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="eventflow queues", daemon=True)

    def start(self) -> None:
        """Begin to take."""
        if self.served:
            self._thread.start()

    def leave(self) -> None:
        """Take nothing more."""
        self._leaving.set()
        self._work.set()

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    # ---- what others tell ----

    def params(self) -> dict[str, Any]:
        """What the beat asks for it."""
        return {"queues": self.served, **self._cursor.params()}

    def told(self, *, arrived: bool, due: float | None) -> None:
        """What the beat has found."""
        sooner = due is not None and (self._due_at is None or due < self._due_at)
        self._due_at = due
        if arrived or sooner or self._all:
            self._work.set()

    def look(self, wait: float | None = None) -> None:
        """This process has put something in line, or will have in so many seconds."""
        if wait:
            due = self._now() + wait
            self._due_at = due if self._due_at is None else min(due, self._due_at)
        self._work.set()

    def look_at_all(self) -> None:
        """What somebody let fall is found again: a peer that died held rows which we have passed by."""
        self._all = True
        self._work.set()

    def freed(self) -> None:
        """A workflow of a queue has ended here, or sleeps."""
        self._freed += 1
        if self._lines and self._freed >= self._enough:
            self._work.set()

    # ---- the thread ----

    def _loop(self) -> None:
        kept = KeptConnection(self._database, "queues")
        while not self._leaving.is_set():
            try:
                self._work.wait(self._pause())
                self._work.clear()
                connection = kept.open()
                while not self._leaving.is_set() and self._round(connection):
                    pass
            except FencedError as error:
                self._on_fenced(error)
                break
            except Exception as error:  # whatever it is, the other queues go on, and this one with the next look
                kept.failed(error, logger)
                self.on_lost()
                self._all = True
                self._leaving.wait(0.2)
        kept.close()

    def _pause(self) -> float | None:
        """Seconds until something may begin that nobody tells of."""
        times: list[float] = []
        if self._lines:
            times.append(self._beat / 2 if self._retry_in is None else min(self._retry_in, self._beat / 2))
        if self._due_at is not None:
            times.append(self._due_at - self._now())
        if self._doubted:
            times.append(2 * self._beat)
        return min(max(0.005, min(times)), _LONGEST) if times else None

    def _round(self, connection: Connection) -> bool:
        """One look at all queues; whether there may be more to take at once."""
        self._place_due(connection)
        self._read_arrivals(connection)
        self._look_again(connection)
        self._retry_in = None
        self._freed, self._enough = 0, 1
        if not self._lines:
            return False
        more = False
        for queue in list(self._lines):
            if queue in self._paused:  # what comes before it is resumed is not known yet
                continue
            self._lines[queue] = self._lines.pop(queue)  # to the end: queues take turns, too
            try:
                more = self._take(connection, queue) or more
            except psycopg.errors.LockNotAvailable:
                seldom.say(logger, f"queue {queue!r}: another process holds it; trying again")
        return more

    def _look_again(self, connection: Connection) -> None:
        """Lines that gave less than was asked may have more: a peer, or a person, may have held their heads."""
        if not self._doubted or time.monotonic() - self._doubted_at < 2 * self._beat:
            return
        doubted = list(islice(self._doubted.items(), _LOOKED_AT))
        asked = columns([(*line, str(low)) for line, low in doubted], ("queue", "priority", "key", "low"))
        params = {"application": self._application, "names": self._names, **asked}
        for line, _ in doubted:
            del self._doubted[line]
        self._doubted_at = time.monotonic()
        for queue, priority, key, placed in self._database.run(connection, "read_heads", params):
            self._lines.setdefault(queue, Lines()).arrived(priority, key, int(placed))

    def _settings(self, connection: Connection, queue: str) -> Limits | None:
        """A queue's limits; None where it is paused."""
        asked = {"application": self._application, "queues": [queue]}
        rows = self._database.run(connection, "read_queues", asked)
        _, text, paused = rows[0] if rows else (queue, "{}", False)
        return None if paused else Limits.of(json.loads(text))

    def _place_due(self, connection: Connection) -> None:
        asked = {"application": self._application, "queues": self.served}
        while self._due_at is not None and self._due_at <= self._now():
            crash_point("dispatcher.before_due")  # one statement, which commits itself
            rows = self._database.run(connection, "place_due", asked)
            if rows:
                crash_point("dispatcher.after_due")
            if len(rows) < _DUE:
                self._due_at = None  # the next beat tells of the next

    def _read_arrivals(self, connection: Connection) -> None:
        if self._all:
            self._all = False
            self._cursor.reset()
            self._lines = {}
            self._say_unserved(connection)
        asked = {"application": self._application, "queues": self.served, **self._cursor.params()}
        rows = self._database.run(connection, "arrivals", asked)
        for _, _, queue, priority, key, placed in rows:
            if queue is not None:
                self._lines.setdefault(queue, Lines()).arrived(priority, key, int(placed))
        snapshot, paused = rows[0][:2]
        self._paused = frozenset(paused)
        self._cursor.advance(snapshot)

    def _say_unserved(self, connection: Connection) -> None:
        asked = {"application": self._application, "queues": self.served, "names": self._names}
        for queue, name, count in self._database.run(connection, "unserved", asked):
            text = f"queue {queue!r}: {count} workflows named {name!r} wait for a process that knows this name"
            seldom.say(logger, text)

    # ---- claims ----

    def _room(self, queue: str, limits: Limits) -> int:
        """How many more of this queue this process may hold."""
        held = self._held()
        if held[queue] > _HELD - _FEW:
            self._enough = _FEW  # it has enough to do, and a transaction for each that ends would be one too many
            return 0
        room = [_BATCH, _HELD - held[queue]]
        if limits.concurrency_per_process is not None:
            room.append(limits.concurrency_per_process - held[queue])
        if self._threaded.get(queue, self._has_sync):
            room.append(self._threads())
        return max(0, min(room))

    def _take(self, connection: Connection, queue: str) -> bool:
        """Take from one queue's lines what may begin; whether there may be more."""
        lines = self._lines[queue]
        if not self._room(queue, Limits()):
            return False
        asks: list[Ask] = []
        budget = 0

        def work(connection: Connection) -> list[tuple[Any, ...]]:
            nonlocal asks, budget
            self._database.run(connection, "fence", {"executor": self._executor})
            limits = self._settings(connection, queue)
            if limits is not None and limits.shared():
                self._database.run(connection, "hold_queue", {"application": self._application, "queue": queue})
                limits = self._settings(connection, queue)  # as they are now that nobody else claims
            if limits is None:
                return []
            used = self._used(connection, queue, limits) if limits.shared() else Used()
            left, room = used.left(limits), self._room(queue, limits)
            budget = room if left is None else min(room, left)
            asks = lines.plan(budget, lambda key: used.left_of(limits, key)) if budget else []
            if not asks:
                return []
            taken = self._claim(connection, queue, asks, budget)
            if taken and (limits.rate or limits.rate_per_key):
                self._note_starts(connection, queue, limits, Counter(row[20] for row in taken))
            if taken:
                crash_point("dispatcher.before_commit")
            return taken

        rows = in_transaction(connection, work, *_PATIENCE)
        doubted = lines.answered(asks, ((row[17], int(row[19])) for row in rows), budget)
        if doubted:
            if not self._doubted:
                self._doubted_at = time.monotonic()
            for ask in doubted:
                line = queue, ask.priority, ask.key
                self._doubted[line] = min(ask.low, self._doubted.get(line, ask.low))
        if not lines:
            del self._lines[queue]
        if rows:
            crash_point("dispatcher.after_claim")
            rows.sort(key=itemgetter(18))
            self._threaded[queue] = any(not self._specs[row[1]].is_async for row in rows)
            self._adoption.adopt(connection, [row[:17] for row in rows], begun="woken")
            self._adopted()
        return bool(asks) and queue in self._lines

    def _claim(self, connection: Connection, queue: str, asks: list[Ask], budget: int) -> list[tuple[Any, ...]]:
        return self._database.run(
            connection, "claim_queue",
            {
                "application": self._application, "queue": queue, "executor": self._executor, "names": self._names,
                "timeouts": self._timeouts, "limit": budget, "priority": [ask.priority for ask in asks],
                "key": [ask.key for ask in asks], "low": [str(ask.low) for ask in asks],
                "share": [ask.share for ask in asks],
            },
        )  # fmt: skip

    def _used(self, connection: Connection, queue: str, limits: Limits) -> Used:
        """What processes have used up together; nobody else begins any of this queue until we commit."""
        run, used = self._database.run, Used()
        place = {"application": self._application, "queue": queue}
        if limits.concurrency is not None or limits.concurrency_per_key is not None:
            cursor, known = self._slots.setdefault(queue, (Cursor(), {}))
            rows = run(connection, "read_slots", {**place, "known": list(known), **cursor.params()})
            known.clear()
            known.update({workflow_id: key for _, _, workflow_id, key in rows if workflow_id is not None})
            cursor.advance(*rows[0][:2])
            used.slots = dict(Counter(known.values()))
        for rate, counts in ((limits.rate, used.started), (limits.rate_per_key, used.started_of_key)):
            if rate is not None:
                for key, count, left in run(connection, "read_starts", {**place, "period": rate[1]}):
                    counts[key] = count
                    self._retry_in = min(max(left, 0.005), self._retry_in or left)
        return used

    def _note_starts(self, connection: Connection, queue: str, limits: Limits, keys: "Counter[str]") -> None:
        longest = max(rate[1] for rate in (limits.rate, limits.rate_per_key) if rate is not None)
        self._database.run(
            connection, "insert_starts",
            {
                "application": self._application, "queue": queue, "longest": longest, "key": list(keys),
                "n": list(keys.values()),
            },
        )  # fmt: skip
