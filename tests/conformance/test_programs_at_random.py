"""Random programs of everything durable, while the processes that run them die at random instants, against a model.

A Hypothesis state machine starts families of programs on two processes, and kills these: at a crash point, at any moment,
by a peer that presumes one dead which lives, as a deploy does; it sends, cancels and terminates from outside. In the end all
must have come out as if nothing had happened (`programs.model`). The seed is the test's parameter; what fails shrinks, and
Hypothesis prints a blob: `EVENTFLOW_TEST_BLOB='<version> <blob>'` runs that example alone.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import hypothesis
import psycopg
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import eventflow
from eventflow import sync
from eventflow.settings import Settings
from tests.conformance.conftest import new_database
from tests.conformance.programs.composing import Family, families
from tests.conformance.programs.language import EFFECTS, OUTSIDE, Program, given_id, interpret
from tests.conformance.programs.model import Check, guard_of, programs_of, read_facts
from tests.conformance.programs.processes import Process, Processes, many_in_one
from tests.harness import seeds

pytestmark = [
    pytest.mark.crash,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),  # threads of the dead: `Killed`
]

PROGRAMS = 50  # per seed
_BLOB = os.environ.get("EVENTFLOW_TEST_BLOB", "")
_PHASES = [phase for phase in Phase if phase is not Phase.shrink or os.environ.get("EVENTFLOW_TEST_SHRINK") != "0"]
_HOW = hypothesis.settings(
    max_examples=6, stateful_step_count=8, deadline=None, database=None, print_blob=True, report_multiple_bugs=False,
    phases=_PHASES, suppress_health_check=list(HealthCheck),
)  # fmt: skip
_END = 30.0  # seconds in which all must have ended once nothing dies any more
_LOOK = 0.03
_PUSH = 0.5
_ALL = 1000


@dataclass
class Started:
    """A family that runs."""

    family: Family
    base: str
    by_row: bool
    sent: dict[int, int] = field(default_factory=dict[int, int])  # messages from outside, by the root's key
    cancelled: set[str] = field(default_factory=set[str])
    loose: bool = False  # it was ended as a whole: how far it came, nobody knows
    pushed: float = 0.0  # when it was last seen to that it goes on

    @property
    def programs(self) -> list[Program]:
        return [program for root in self.family.roots for program in programs_of(root)]


@dataclass
class Seen:
    """A workflow on its way."""

    key: int
    workflow_id: str
    ended: bool
    ready: bool  # to be cancelled


class Stage:
    """A ledger, its processes, and a client; all anew after a failure, so that it does not spoil what follows."""

    def __init__(self, postgres_url: str) -> None:
        self._postgres_url = postgres_url
        self._stack = contextlib.ExitStack()
        self.whole = False
        self.programs = 0
        self._bases = 0
        OUTSIDE.clear()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def build(self) -> None:
        """What it consists of, unless it is there and whole."""
        if self.whole:
            return
        self._stack.close()
        url = self._stack.enter_context(new_database(self._postgres_url))
        self.connection = self._stack.enter_context(psycopg.connect(url, autocommit=True))
        self.connection.execute(EFFECTS.encode())
        self.client = self._stack.enter_context(sync.Client(url))
        settings = Settings(
            database_url=url, suspend_after=0.05, lease=60, beat=0.1, drain=0.2, accept_after=0.01, threads=8
        )
        self.processes = Processes(settings)
        self._stack.callback(self.processes.close)
        self.excused: dict[int, int] = {}
        self.whole = True

    def base(self) -> str:
        self._bases += 1
        return f"family{self._bases}"

    def begin(self, started: Started, root: Program) -> None:
        """A root is started: by whoever takes its row, or by a process which runs it itself, if that lives long enough."""
        workflow, living = interpret[root["colour"]], self.processes.living()
        workflow_id, args = given_id(started.base, root["key"]), (root, started.base, "", 0, [])
        if started.by_row or not living:
            self.connection.execute(
                """insert into eventflow.workflows (id, name, application, status, arguments)
                   values (%s, %s, 'default', 'queued', %s) on conflict do nothing""",
                [workflow_id, workflow.name, workflow.encode(args, {})],
            )
        else:
            process = living[root["key"] % len(living)]
            with contextlib.suppress(RuntimeError):  # it has just gone
                process.start(lambda: eventflow.start(workflow, *args, workflow_id=workflow_id))

    def look(self, started: Started) -> list[Seen]:
        """Its workflows as they are now."""
        rows = self.connection.execute(
            """select w.id, w.finished_at is not null,
                      exists (select from eventflow.events e where e.workflow_id = w.id and e.key = 'ready'),
                      (w.arguments::json -> 'args' -> 0 ->> 'key')::int
                 from eventflow.workflows w where starts_with(w.id, %s)""",
            [f"{started.base}:"],
        ).fetchall()
        return [Seen(key, workflow_id, ended, ready) for workflow_id, ended, ready, key in rows]

    def still_alive(self, executors: list[int]) -> set[int]:
        rows = self.connection.execute("select id from eventflow.executors where alive and id = any(%s)", [executors])
        return {executor for (executor,) in rows}

    def spoilt(self) -> list[str]:
        """What must not be there in the ledger, whatever ran."""
        incidents = self.connection.execute("select kind, subject, detail from eventflow.incidents").fetchall()
        return [f"incident: {incident}" for incident in incidents]

    def story(self, started: Started) -> Iterator[str]:
        """For whoever has to find out what happened."""
        yield json.dumps(started.family.roots)
        rows = self.connection.execute(
            """select w.id, w.status::text, w.executor, w.attempt, w.retries, w.recoveries, w.generation, w.reason, w.error,
                      array(select c.position || ' ' || c.name || ' ' || coalesce(c.output, c.error, '')
                              from eventflow.checkpoints c where c.workflow_id = w.id order by c.seq)
                 from eventflow.workflows w where starts_with(w.id, %s) order by w.id""",
            [f"{started.base}:"],
        ).fetchall()
        yield from (f"  {row}" for row in rows)
        yield from (f"  {call}" for call in OUTSIDE.calls if call.base == started.base)


_places = st.integers(0, 1)
_pauses = st.integers(0, 200)  # milliseconds
_which = st.integers(0, 9)


class Programs(RuleBasedStateMachine):
    """Each rule waits for a moment, and then does something to what runs."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        stage.build()
        self.stage, self.processes = stage, stage.processes
        self.started: list[Started] = []
        self.processes.history.clear()

    @initialize(many=st.lists(families(), min_size=1, max_size=5), by_row=st.booleans())
    def begin(self, many: list[Family], by_row: bool) -> None:
        for family in many:
            self.start(family, by_row, 0)

    @rule(family=families(), by_row=st.booleans(), pause=_pauses)
    def start(self, family: Family, by_row: bool, pause: int) -> None:
        time.sleep(pause / 1000)
        started = Started(family, self.stage.base(), by_row)
        self.started.append(started)
        for root in family.roots:
            self.stage.begin(started, root)
        self.stage.programs += len(family.roots)

    def _process(self, place: int, pause: int) -> Process:
        time.sleep(pause / 1000)
        return self.processes.places[place]

    @rule(place=_places, pause=_pauses, nth=st.integers(1, 60))
    def dies_at_a_crash_point(self, place: int, pause: int, nth: int) -> None:
        self._process(place, pause).arm(nth)

    @rule(place=_places, pause=_pauses)
    def dies_now(self, place: int, pause: int) -> None:
        self._process(place, pause).die("at a moment")

    @rule(place=_places, pause=_pauses)
    def is_presumed_dead(self, place: int, pause: int) -> None:
        process, calls = self._process(place, pause), len(OUTSIDE.calls)
        executor = self.processes.fence(process)
        if executor is not None:
            self.stage.excused.setdefault(executor, calls)

    @rule(place=_places, pause=_pauses)
    def leaves(self, place: int, pause: int) -> None:
        self.processes.leave(self._process(place, pause))

    @rule(which=_which, pause=_pauses)
    def send(self, which: int, pause: int) -> None:
        time.sleep(pause / 1000)
        self._send(self.started[which % len(self.started)], 1)

    @rule(which=_which, pause=_pauses)
    def cancel(self, which: int, pause: int) -> None:
        time.sleep(pause / 1000)
        self._cancel(self.started[which % len(self.started)])

    @rule(which=_which, pause=_pauses, kind=st.sampled_from(["cancel", "terminate"]))
    def end_a_family(self, which: int, pause: int, kind: str) -> None:
        """How far its programs come is open then; that they end, and do nothing twice, is not."""
        time.sleep(pause / 1000)
        started = self.started[which % len(self.started)]
        started.loose = True
        self._end(started, kind)

    # ---- from outside ----

    def _send(self, started: Started, count: int) -> None:
        for key, values in started.family.outside.items():
            for value in values[started.sent.get(key, 0) :][:count]:
                handle = self.stage.client.handle(given_id(started.base, key), list)
                handle.send(value, topic="outside", idempotency_key=value)
                handle.send(value, topic="outside", idempotency_key=value)
                started.sent[key] = started.sent.get(key, 0) + 1

    def _cancel(self, started: Started) -> None:
        """Those who are ready for it, and whom nobody else is to cancel."""
        guards = {program["key"]: guard_of(program) for program in started.programs}
        for seen in self.stage.look(started):
            guard = guards[seen.key]
            if seen.ready and not seen.ended and guard is not None and guard[5] == "outside":
                if seen.workflow_id not in started.cancelled:
                    started.cancelled.add(seen.workflow_id)
                    self.stage.client.handle(seen.workflow_id, list).cancel()

    def _end(self, started: Started, kind: str) -> None:
        ids = [given_id(started.base, root["key"]) for root in started.family.roots]
        getattr(self.stage.client, kind)(ids)

    # ---- the end ----

    def teardown(self) -> None:
        if sys.exc_info()[0] is not None:  # Hypothesis has drawn enough, or a rule failed
            self.stage.whole = False
            return
        try:
            self._finish()
        except BaseException:
            self.stage.whole = False
            raise

    def _finish(self) -> None:
        self.processes.disarm()
        until, open_ones = time.monotonic() + _END, list(self.started)
        while open_ones and time.monotonic() < until:
            self.processes.presume(self.stage.still_alive)
            open_ones = [started for started in open_ones if not self._has_ended(started)]
            time.sleep(_LOOK)
        wrong = self.stage.spoilt()
        for started in self.started:
            late = ["it has not ended"] if started in open_ones else []
            facts = read_facts(self.stage.connection, started.base, list(OUTSIDE.calls), self.stage.excused)
            found = late + Check(started.family, started.base, facts, loose=started.loose).wrong
            if found:
                wrong += [f"--- {started.base}{' (ended as a whole)' if started.loose else ''}", *found]
                wrong += self.stage.story(started)
        self.processes.settle()
        assert not wrong, "\n".join(["", *wrong, *self.processes.history])

    def _has_ended(self, started: Started) -> bool:
        """Whether it has; what it needs from outside for that is done."""
        there = {seen.key: seen for seen in self.stage.look(started)}
        missing = [root for root in started.family.roots if root["key"] not in there]
        if time.monotonic() - started.pushed > _PUSH:
            started.pushed = time.monotonic()
            for root in missing:
                self.stage.begin(started, root)
            if started.loose:
                self._end(started, "terminate")
        self._send(started, _ALL)
        if not started.loose:
            self._cancel(started)
        wanted = 0 if started.loose else len(started.programs)
        return not missing and len(there) >= wanted and all(seen.ended for seen in there.values())


@pytest.mark.parametrize("seed", seeds(default=1))
def test_programs_come_out_as_if_nothing_had_died(postgres_url: str, seed: int) -> None:
    with many_in_one(), Stage(postgres_url) as stage:
        batch = 0
        while stage.programs < PROGRAMS:

            @hypothesis.seed(1000 * seed + batch)
            def machine() -> Programs:
                return Programs(stage)

            if _BLOB:
                version, blob = _BLOB.split()
                machine = hypothesis.reproduce_failure(version, blob.encode())(machine)
            run_state_machine_as_test(machine, settings=_HOW)
            if _BLOB:
                break
            batch += 1
