"""Leases and takeover: an executor shows that it lives, watches its peers, and takes over what a dead one left.

A thread and a connection of its own: a blocked event loop must not look dead, and a journal that hangs must. Once per
beat one statement does all that an idle process asks. Suspicion is a beat that stood still for a lease by *this*
process's monotonic clock, while its own reads succeeded all the time (PROTOCOL.md R9, R10).
"""

import json
import logging
import os
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol

import psycopg

from eventflow.adoption import Adoption
from eventflow.database import (
    Connection,
    Database,
    KeptConnection,
    evicting,
    fenced,
    in_transaction,
    is_pointless,
    unavailable,
)
from eventflow.errors import FencedError, UnavailableError, UsageError
from eventflow.journal import Identity
from eventflow.metrics import TAKEOVERS
from eventflow.records import Pause
from eventflow.registry import Spec
from eventflow.runs import Reprocess
from eventflow.settings import masked
from eventflow.telemetry import crash_point, seldom
from eventflow.tracing import active

logger = logging.getLogger(__name__)

_BATCH = 100
_RECONCILE_EVERY = 30  # beats
_STILL = 1.0  # seconds for which a row of ours stands still that nobody runs
_LETTERS_EVERY = 0.05  # seconds at least between two looks for dead letters that may go
_POINTLESS = ("42", "3F", "22", "23")  # no right, no table, no schema: no birth will ever succeed
_SAY_EVERY = 30  # beats that failed


def birth(
    database: Database, application: str, names: Mapping[str, str], lanes: int, stop: threading.Event,
    version: str | None = None, queues: list[str] | None = None, schedules: list[str] | None = None,
) -> Identity:  # fmt: skip
    """Write a new executor into the ledger, with what it serves (None: all); waits for the server, with backoff.

    Raises:
        UnavailableError: trying again is pointless: wrong credentials, no such database.
        UsageError: a living program has registered one of the names from another file.
        FencedError: stopped meanwhile.

    """
    attempt = 0
    while not stop.is_set():
        try:
            crash_point("lease.before_birth")
            with database.connect("birth") as connection:
                asked = time.time()
                [(there,)] = database.run(connection, "ledger_time")
                ahead = there - (asked + time.time()) / 2
                [(executor, timeline)] = in_transaction(
                    connection,
                    lambda c: database.run(
                        c, "birth",
                        {
                            "application": application, "names": json.dumps(dict(names)),
                            "host": socket.gethostname(), "pid": os.getpid(), "lanes": lanes,
                            "version": version, "queues": queues, "schedules": schedules,
                        },
                    ),
                )  # fmt: skip
        except psycopg.Error as error:
            if error.sqlstate == "EF006":
                raise UsageError(f"{error.diag.message_primary}; set another EVENTFLOW_APPLICATION, or name=") from None
            if error.sqlstate and error.sqlstate.startswith(_POINTLESS):
                raise
            _retry_birth(unavailable(error, database.url), attempt := attempt + 1, stop)
        except UnavailableError as error:
            if error.__cause__ is not None and is_pointless(error.__cause__):
                raise
            _retry_birth(error, attempt := attempt + 1, stop)
        else:
            crash_point("lease.after_birth")
            return Identity(executor, timeline, [0] * lanes, ahead)
    raise FencedError("stopped before it began")


def _retry_birth(error: Exception, attempt: int, stop: threading.Event) -> None:
    seldom.say(logger, f"{error}; trying again")
    stop.wait(min(0.1 * attempt, 2.0))


class LedgerClock:
    """The time by the ledger's clock, as every beat tells it: a process with a wrong clock wakes nobody too early."""

    def __init__(self, ahead: float) -> None:
        self._ahead = ahead  # of the system's clock, in seconds
        self.heard = self.now()  # when it was told last that this executor lives

    def tell(self, time_there: float, asked: float, answered: float) -> None:
        """The ledger said so; asked and answered by the system's clock."""
        self._ahead = time_there - (asked + answered) / 2
        self.heard = time_there

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time() + self._ahead


class Queues(Protocol):
    """The queues that this executor serves, which ride on its beat."""

    served: list[str]

    def params(self) -> dict[str, Any]: ...
    def told(self, *, arrived: bool, due: float | None) -> None: ...
    def look_at_all(self) -> None: ...


class Schedules(Protocol):
    """The schedules that this executor fires, whose next time rides on its beat."""

    def params(self) -> dict[str, Any]: ...
    def told(self, due: float | None) -> None: ...


class Relaying(Protocol):
    """What is published, of which the beat tells as well."""

    def low(self) -> int | None: ...
    def told(self, facts: list[Any]) -> None: ...


class Consumers(Protocol):
    """The Kafka consumers of this executor: what people say of them rides on the beat."""

    def told(self, reprocesses: list[Reprocess], pauses: list[Pause]) -> None: ...


class _Heard(NamedTuple):
    """What a beat finds, as `beat.sql` says it."""

    renewed: int
    alive: bool
    same_timeline: bool
    peers: dict[str, int]
    free: bool
    requested: bool
    asleep: bool
    wake_at: float | None
    arrived: bool
    due: float | None
    fires: float | None
    redelivers: bool
    relay: list[Any]
    reprocesses: list[Any]
    pauses: list[Any]
    now: float
    checked: str


class Lease:
    """One executor's lease, and its eye on the others."""

    def __init__(
        self,
        database: Database,
        identity: Identity,
        application: str,
        specs: Mapping[str, Spec],
        *,
        beat: float,
        lease: float,
        adoption: Adoption,
        queues: Queues,
        schedules: Schedules,
        relay: Relaying,
        consumers: Consumers,
        running: Callable[[str], bool],
        room: Callable[[], int],
        suspects: Callable[[], bool],
        stuck_for: Callable[[], float],
        clock: LedgerClock,
        on_fenced: Callable[[FencedError], None],
    ) -> None:
        self._database, self._application = database, application
        self._identity, self._executor = identity, identity.executor
        self._specs = specs
        self._beat, self._lease = beat, lease
        self._adoption, self._queues, self._running = adoption, queues, running
        self._room, self._suspects_wait = room, suspects
        self._walked = ""  # up to whom those were looked at for whom something came
        self._schedules = schedules
        self._relay = relay
        self._consumers = consumers
        self._stuck_for, self._clock, self._on_fenced = stuck_for, clock, on_fenced
        self._requested = False  # whether people ask something of what this executor holds
        self._asleep = False  # whether a workflow sleeps, of all that this application has
        self._redelivers = False  # whether dead letters of it are redelivered, one after another
        self._next_letter: float | None = None  # in how many seconds the next one may go
        self._told: deque[tuple[str, str]] = (
            deque()
        )  # committed since the last look: ("target" | "sleeper", workflow id)
        self._look_at_all = True  # for what somebody who died has not told
        self._wake_at = 0.0  # when the next one's time comes, by the ledger's clock; 0: none that is known
        self._stop = threading.Event()
        self._leaving = threading.Event()
        self._seen: dict[int, tuple[int, float]] = {}
        self._last_good = self._renewed = time.monotonic()
        self._connection: Connection | None = None
        self._beats = self._misses = 0
        self._recovery = threading.Thread(target=self._recover, name="eventflow recovery", daemon=True)
        self._thread = threading.Thread(target=self._loop, name="eventflow lease", daemon=True)
        self._suspects: set[int] = set()
        self._work = threading.Event()
        self._to_reconcile = False
        self._strays: set[str] = set()  # rows that carry our id and did not run when that was last looked at
        self._strays_at = 0.0  # when they are looked at again
        self._to_say = True  # whether to look for what nobody can run

    def start(self) -> None:
        self._thread.start()
        self._recovery.start()

    def leave(self) -> None:
        """Take nothing more; the lease is renewed until the end."""
        self._leaving.set()

    def stop(self) -> None:
        """End the threads; the ledger is not told."""
        self._leaving.set()
        self._stop.set()
        self._work.set()

    def join(self, timeout: float) -> None:
        for thread in (self._thread, self._recovery):
            if thread.is_alive():
                thread.join(timeout)

    def held(self) -> bool:
        """Whether the last beat is younger than the lease; without it a peer may take over at any time (R10d)."""
        return self.age() < self._lease

    def age(self) -> float:
        """How many seconds ago the last beat was that came through."""
        return time.monotonic() - self._renewed

    def slept(self, wake_at: float | None) -> None:
        """A workflow of this process has gone to sleep."""
        if wake_at is not None:
            self._wake_at = min(wake_at, self._wake_at or wake_at)
        if not self._asleep:
            self._asleep = True
            self._work.set()

    def suspect(self, peer: int) -> None:
        """This peer is dead, as somebody knows: take it over now."""
        self._suspects.add(peer)
        self._work.set()

    def requested(self) -> None:
        """A person of this process has asked for something: look now, and not with the next beat."""
        self._requested = True
        self._work.set()

    def take(self) -> None:
        """There are rows that nobody holds: take some now, and not with the next beat."""
        self._work.set()

    def reconcile(self) -> None:
        """A commit of this executor's may have been made without an answer: look for rows that it does not run."""
        self._to_reconcile = True
        self._work.set()

    def look(self) -> None:
        """Something came for a workflow that may sleep: look now, and not with the next beat."""
        if self._asleep or self._wake_at:
            self._work.set()

    def told(self, side: Literal["target", "sleeper"], workflow_id: str) -> None:
        """What a sleeper may watch, or a sleeper's watch, is committed: with the next look, see whether the two have met."""
        self._told.append((side, workflow_id))

    # ---- beats ----

    def _loop(self) -> None:
        try:
            while not self._stop.wait(self._beat):
                self._one_beat()
        except FencedError as error:
            self._on_fenced(error)
        except Exception as error:  # who does not renew its lease is over
            logger.exception("the lease failed")
            self._on_fenced(FencedError(f"the lease failed: {error!r}"))
        finally:
            if self._connection is not None:
                self._connection.close()

    def _one_beat(self) -> None:
        if self._stuck_for() > self._lease:
            text = f"the journal hangs for more than {self._lease:g} s: the lease is not renewed"
            seldom.say(logger, text, logging.ERROR)
            self._seen.clear()
            return
        asked = time.monotonic()
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._database.connect("lease")
            asked_at = time.time()
            [row] = self._database.run(
                self._connection, "beat",
                {
                    "executor": self._executor, "application": self._application, "names": list(self._specs),
                    "acknowledged": self._identity.to_check(), "low": self._relay.low(), **self._queues.params(),
                    **self._schedules.params(),
                },
            )  # fmt: skip
        except (psycopg.Error, UnavailableError) as error:
            if isinstance(error, psycopg.Error) and error.sqlstate == "EF003":
                raise fenced(error) from error
            self._missed(unavailable(error, self._database.url))
            if self._connection is not None:
                self._connection.close()
            self._seen.clear()
            return
        heard = _Heard(*row)
        if not heard.alive or not heard.renewed:
            raise FencedError(f"executor {self._executor} was presumed dead and taken over")
        if not heard.same_timeline:
            raise FencedError(f"the server is on another timeline than when executor {self._executor} was born")
        if asked - self._last_good > self._lease:
            self._seen.clear()  # no suspicion over a stretch in which we could not look
        if self._misses:
            logger.info("Postgres at %s: answers again", masked(self._database.url))
            self._misses = 0
        self._renewed, self._last_good = asked, time.monotonic()
        self._clock.tell(heard.now, asked_at, time.time())
        self._asleep, self._wake_at, self._redelivers = heard.asleep, heard.wake_at or 0.0, heard.redelivers
        self._requested = self._requested or heard.requested
        self._queues.told(arrived=heard.arrived, due=heard.due)
        self._schedules.told(heard.fires)
        self._relay.told(heard.relay)
        pauses = [
            Pause(group, topic, partition, who, why, datetime.fromisoformat(at))
            for group, topic, partition, who, why, at in heard.pauses
        ]
        self._consumers.told([Reprocess(*one) for one in heard.reprocesses], pauses)
        self._watch({int(i): int(b) for i, b in heard.peers.items()}, asked)
        self._beats += 1
        self._to_reconcile = self._to_reconcile or self._beats % _RECONCILE_EVERY == 0
        found = heard.free or heard.asleep or heard.requested or heard.redelivers
        if found or self._told or self._suspects or self._to_reconcile or self._to_say:
            self._work.set()

    def _missed(self, error: UnavailableError) -> None:
        """An idle process asks nothing else of Postgres: if this said nothing, nobody would."""
        level = logging.DEBUG if self._misses % _SAY_EVERY else logging.WARNING
        self._misses += 1
        logger.log(level, "%s; the lease is not renewed; trying again", error)

    def _watch(self, peers: dict[int, int], now: float) -> None:
        for peer in set(self._seen) - set(peers):
            self._seen.pop(peer, None)  # the other thread forgets whom it has taken over
        for peer, beat in peers.items():
            seen = self._seen.get(peer)
            if seen is None or seen[0] != beat:
                self._seen[peer] = (beat, now)
            elif now - seen[1] > self._lease:
                self._suspects.add(peer)

    def _until_next_look(self) -> float | None:
        """Seconds until a sleeper's time comes; while one sleeps, half a beat at most: a peer may have sent it something.

        Or until the next dead letter may go that is redelivered, or strays are looked at again.
        """
        times = [] if self._next_letter is None else [max(self._next_letter, _LETTERS_EVERY)]
        if self._asleep:
            due = self._wake_at - self._clock.now() if self._wake_at else self._beat
            times.append(min(max(due, 0.01), self._beat / 2))
        if self._strays:
            times.append(max(self._strays_at - time.monotonic(), 0.0))
        return min(times, default=None)

    # ---- takeover ----

    def _recover(self) -> None:
        kept = KeptConnection(self._database, "recovery")
        while not self._stop.is_set():
            self._work.wait(self._until_next_look())
            self._work.clear()
            if self._stop.is_set():
                break
            try:
                self._look(kept.open())
            except FencedError as error:
                self._on_fenced(error)
                return
            except (psycopg.Error, UnavailableError) as error:
                logger.debug("recovery: %s", error)
                if not isinstance(error, UnavailableError):
                    kept.close()
                    self._to_reconcile = True  # rows may have been taken without an answer
            except Exception as error:  # whatever it is, sleepers are woken and peers taken over with the next look
                kept.failed(error, logger)
                self._to_reconcile = True
                self._stop.wait(0.2)
        kept.close()

    def _look(self, connection: Connection) -> None:
        """See to all that there may be to do."""
        for dead in sorted(self._suspects):
            self._suspects.discard(dead)
            self.take_over(connection, dead)
        if self._redelivers and not self._leaving.is_set():
            self._redeliver(connection)
        while not self._leaving.is_set() and self._claim(connection, "claim_rows"):
            pass
        self._signal_met(connection)
        while not self._leaving.is_set() and self._asleep and self._claim(connection, "claim_woken"):
            pass
        if self._requested:
            self._requested = False
            self._adoption.read_requests(connection)
        if self._to_reconcile and not self._leaving.is_set():
            self._to_reconcile, self._to_say = False, True
            self._queues.look_at_all()
            self._find_strays(connection)
        if self._strays and time.monotonic() >= self._strays_at:
            self._start_strays(connection)
        if self._to_say:
            self._to_say = False
            self._say_unknown(connection)

    def take_over(self, connection: Connection, dead: int) -> bool:
        """R9: fence ourselves, lock the dead one's identity, mark it, then free its rows, in separate statements."""
        crash_point("recovery.before_takeover")
        run = self._database.run
        until, began = time.monotonic() + 1.0 + random.random() / 2, time.time_ns()
        query = "try_lock_dead"

        def lock(connection: Connection) -> bool:
            if query == "try_lock_dead":
                return bool(run(connection, query, {"dead": dead}))
            with evicting(self._database, connection, after=0.2):
                return bool(run(connection, query, {"dead": dead}))

        def work(connection: Connection) -> bool:
            run(connection, "fence", {"executor": self._executor})
            if not lock(connection):
                return False
            run(connection, "mark_dead", {"dead": dead, "executor": self._executor})
            run(connection, "orphan_rows", {"dead": dead})
            return True

        while not self._stop.is_set():
            if time.monotonic() > until:
                query = "lock_dead"
            if in_transaction(connection, work):
                TAKEOVERS.add(1)
                tracing = active()
                if tracing is not None:
                    tracing.takeover(dead, self._executor, began)
                logger.warning("executor %d is dead; executor %d takes its work over", dead, self._executor)
                crash_point("recovery.after_takeover")
                self._seen.pop(dead, None)
                self._look_at_all = True
                self._queues.look_at_all()
                return True
            if query == "lock_dead":
                return False
            self._stop.wait(0.05)
        return False

    def _signal_met(self, connection: Connection) -> None:
        """Two transactions that do not see each other lose a wake: what came, and the watch for it, are looked at again."""
        count, everyone = len(self._told), self._look_at_all or self._to_reconcile
        if not count and not everyone:
            return
        told = list(islice(self._told, count))
        sides = {side: list({w for s, w in told if s == side}) for side in ("target", "sleeper")}
        self._database.run(
            connection, "signal_met", {"targets": sides["target"], "sleepers": sides["sleeper"], "everyone": everyone}
        )
        self._look_at_all = False
        for _ in range(count):
            self._told.popleft()

    def _redeliver(self, connection: Connection) -> None:
        """Let those dead letters go whose turn it is, where this process has room to run them."""
        self._next_letter = None
        limit = min(_BATCH, self._room())
        if not limit:
            return
        asked = {"application": self._application, "names": list(self._specs), "limit": limit}

        def work(connection: Connection) -> list[tuple[Any, ...]]:
            self._database.run(connection, "fence", {"executor": self._executor})
            rows = self._database.run(connection, "redeliver_due", asked)
            if rows[0][0]:
                crash_point("recovery.before_redeliver")
            return rows

        [(gone, self._next_letter)] = in_transaction(connection, work)
        if gone:
            crash_point("recovery.after_redeliver")

    def _say_unknown(self, connection: Connection) -> None:
        """What could go on, and does not, for nobody who lives knows its name."""
        for name, count in self._database.run(connection, "unknown_names", {"application": self._application}):
            text = f"{count} workflows named {name!r} wait for a process that knows this name: none that lives does"
            seldom.say(logger, text)
        for name, workflow in self._database.run(connection, "unserved_schedules", {"application": self._application}):
            text = f"schedule {name!r} is due, and no process that lives fires it"
            seldom.say(
                logger, f"{text}: its workflow {workflow!r} is gone from the code, or whoever serves it does not run"
            )

    def _claim(self, connection: Connection, query: Literal["claim_rows", "claim_woken"]) -> bool:
        """Take a batch of what nobody holds, as there is room (R10a); whether there may be more."""
        run, woken = self._database.run, query == "claim_woken"
        limit = min(_BATCH, self._room())
        if not limit:
            return False

        def work(connection: Connection) -> list[tuple[Any, ...]]:
            run(connection, "fence", {"executor": self._executor})
            rows = run(
                connection, query,
                {
                    "executor": self._executor, "application": self._application, "names": list(self._specs),
                    "queues": self._queues.served, "limit": limit, "after": self._walked,
                    "running": not self._suspects_wait(),
                },
            )  # fmt: skip
            if rows and rows[0][0] is not None:
                crash_point("recovery.before_claim_woken" if woken else "recovery.before_claim_rows")
            return rows

        rows = in_transaction(connection, work)
        if woken:
            walked, rows = rows[0][-1], [row[:-1] for row in rows if row[0] is not None]
            self._walked = self._walked if len(rows) >= limit else walked or ""
        if rows:
            crash_point("recovery.after_claim_woken" if woken else "recovery.after_claim_rows")
            self._adoption.adopt(connection, rows, begun="woken" if woken else "recovered")
        return len(rows) >= limit or (woken and self._walked != "")

    def _find_strays(self, connection: Connection) -> None:
        """See which rows carry our id and are not running here: an answer was lost, or a run is just ending, or beginning."""
        found = self._database.run(connection, "own_rows", {"executor": self._executor})
        self._strays = {row[0] for row in found if row[1] in self._specs and not self._running(row[0])}
        self._strays_at = time.monotonic() + _STILL

    def _start_strays(self, connection: Connection) -> None:
        """Start those that stand still like that (R10b): seen twice, a second apart, in which sleepers are woken as ever."""
        left = {i for i in self._strays if not self._running(i)}  # asked before: what ends later is read as final
        self._strays = set()
        if not left or self._leaving.is_set():
            return
        found = self._database.run(connection, "own_rows", {"executor": self._executor})
        rows = [row for row in found if row[0] in left and not self._running(row[0])]
        if rows:
            logger.warning("%d rows carried our id and were not running", len(rows))
            self._adoption.adopt(
                connection, rows, begun="woken"
            )  # an answer was lost, and no process: charged to nobody
