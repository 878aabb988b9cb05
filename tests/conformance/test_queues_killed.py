"""Queues over several processes, which are killed: each runs once, no limit is passed, nothing is left behind."""

import itertools
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, Self

import psycopg
import pytest

from eventflow import sync
from tests.conformance.colours import COLOURS
from tests.conformance.test_killed import APP, SOON, died_there
from tests.harness import World, pick, seeds

pytestmark = pytest.mark.crash

QUEUES = ("crash free", "crash pairs", "crash keys", "crash bursts")
EACH = 12
RATE, PERIOD = 8, timedelta(seconds=0.5)  # of the queue "crash bursts"


def enqueue(world: World, queue: str) -> None:
    """As another program does, in its own transaction."""
    with psycopg.connect(world.database_url) as connection:
        connection.execute(
            "insert into eventflow.queues (application, name) values ('default', %s) on conflict do nothing", (queue,)
        )
        for n in range(EACH):
            for colour in COLOURS:
                connection.execute(
                    "select eventflow.enqueue(%s, jsonb_build_array(%s::int), queue => %s, key => %s, workflow_id => %s)",
                    (f"crash_app.in_queue {colour}", n, queue, f"k{n % 3}", f"{queue} {colour} {n}"),
                )


class Watch:
    """Looks at the ledger again and again while its block runs."""

    def __init__(self, world: World) -> None:
        self._url, self._over = world.database_url, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._over.wait(0.005):
                self.look(connection)

    def look(self, connection: "psycopg.Connection[Any]") -> None:
        raise NotImplementedError


class UnderWay(Watch):
    """The most that were seen to have begun and not ended at a time, in all and of one key; and how many began when."""

    def __init__(self, world: World, queue: str) -> None:
        super().__init__(world)
        self._queue = queue
        self.most = self.most_of_key = 0
        self._starts: dict[tuple[datetime, str], int] = {}

    def look(self, connection: "psycopg.Connection[Any]") -> None:
        text = """select queue_key, count(*) from eventflow.workflows where queue = %s and taken is not null
                     and status in ('queued', 'running', 'waiting') group by 1"""
        starts = "select at, key, n from eventflow.queue_starts where queue = %s"
        counts = [count for _, count in connection.execute(text, (self._queue,))]
        self.most = max(self.most, sum(counts))
        self.most_of_key = max(self.most_of_key, *counts, 0)
        self._starts |= {(at, key): n for at, key, n in connection.execute(starts, (self._queue,))}

    def begun(self) -> int:
        return sum(self._starts.values())

    def most_within(self, period: timedelta) -> int:
        """Of those that began within such a time, the most."""
        times = [at for at, _ in self._starts]
        return max(sum(n for (at, _), n in self._starts.items() if end - period < at <= end) for end in times)


def check(world: World, queue: str, watch: UnderWay) -> None:
    world.wait(lambda: world.unfinished() == 0, "all have ended", 40)
    assert {status for (status,) in world.sql("select status::text from eventflow.workflows")} == {"succeeded"}
    notes = sorted(note for (note,) in world.sql("select note from effects"))
    assert notes == sorted(f"{which} {n}" for which in ("one", "two") for n in range(EACH) for _ in COLOURS)
    assert world.sql("select kind, subject, detail from eventflow.incidents") == []
    if queue == "crash pairs":
        assert 0 < watch.most <= 2
    if queue == "crash keys":
        assert 0 < watch.most_of_key <= 1
    if queue == "crash bursts":
        assert watch.begun() == EACH * len(COLOURS)
        assert watch.most_within(PERIOD) <= RATE


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("queue", QUEUES)
def test_two_processes_one_of_which_is_killed_where_it_has_claimed(world: World, queue: str, seed: int) -> None:
    points = ["dispatcher.before_commit", "dispatcher.after_claim", "journal.before_commit", "journal.after_commit"]
    point = pick(seed, queue, "point", choices=points)
    victim = world.start(APP, crash=f"{point}:{pick(seed, queue, choices=range(1, 4))}", **SOON)
    world.start(APP, **SOON)
    with UnderWay(world, queue) as watch:
        enqueue(world, queue)
        check(world, queue, watch)
    if not victim.alive:
        assert world.wait_death(victim, 1) == -signal.SIGKILL
        assert died_there(victim, point)


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("queue", ["crash pairs", "crash bursts"])
@pytest.mark.parametrize("point", ["dispatcher.before_due", "dispatcher.after_due", "dispatcher.before_commit"])
def test_killed_when_the_time_of_what_is_delayed_has_come(world: World, point: str, queue: str, seed: int) -> None:
    """What is delayed, or settles, gets in line once, with its last arguments; who has a deduplication id keeps it."""
    victim = world.start(APP, crash=f"{point}:{pick(seed, point, queue, choices=range(1, 4))}", **SOON)
    known = "select count(*) from eventflow.queues where name = %s"
    world.wait(lambda: world.one(known, queue), "the queue is known")
    with sync.Client(world.database_url) as client:

        def order(
            colour: str, n: int, only: str | None = None, *, delay: float | None = None, debounce: float | None = None
        ) -> str:
            name = f"crash_app.in_queue {colour}"
            handle = client.enqueue(name, n, queue=queue, deduplication_id=only, delay=delay, debounce=debounce)
            return handle.workflow_id

        for n, colour in itertools.product(range(4), COLOURS):
            order(colour, n, delay=0.3 * (n + 1))
        late = [order(colour, 10, f"late {colour}", delay=60) for colour in COLOURS]
        settling = [order(colour, n, f"settling {colour}", debounce=1) for n in (20, 21, 22) for colour in COLOURS]
        assert settling == settling[:2] * 3
        assert world.wait_death(victim, 20) == -signal.SIGKILL
        assert died_there(victim, point)
        assert [order(colour, 11, f"late {colour}") for colour in COLOURS] == late, "it has the deduplication id"
        for workflow_id in late:
            client.handle(workflow_id, int).delay(0)
        with UnderWay(world, queue) as watch:
            world.start(APP, **SOON)
            world.wait(lambda: world.unfinished() == 0, "all have ended", 40)
        again = [order(colour, 12, f"late {colour}") for colour in COLOURS]
        assert set(again).isdisjoint(late), "it has ended, and so the id is free"
        world.wait(lambda: world.unfinished() == 0, "these, too", 40)
    notes = Counter(note for (note,) in world.sql("select note from effects"))
    ran = [0, 1, 2, 3, 10, 12, 22]
    assert notes == {f"{which} {n}": len(COLOURS) for which in ("one", "two") for n in ran}
    assert world.sql("select kind, subject, detail from eventflow.incidents") == []
    if queue == "crash pairs":
        assert 0 < watch.most <= 2
    else:
        assert watch.most_within(PERIOD) <= RATE


@pytest.mark.parametrize("seed", seeds())
def test_a_process_that_is_frozen_while_it_holds_the_queue(world: World, seed: int) -> None:
    """It stops with the queue locked and its claim not committed; a peer takes over, and it commits nothing."""
    frozen = world.start(APP, stop=f"dispatcher.before_commit:{pick(seed, choices=range(1, 3))}", **SOON)
    with UnderWay(world, "crash pairs") as watch:
        enqueue(world, "crash pairs")
        world.wait(lambda: frozen.frozen, "it is about to commit its claim")
        world.start(APP, **SOON)
        world.wait(lambda: world.unfinished() == 0, "the peer has run all", 40)
        frozen.thaw()
        check(world, "crash pairs", watch)


@pytest.mark.parametrize("seed", seeds())
def test_a_claim_whose_answer_is_lost_is_found_again(world: World, seed: int) -> None:
    """Killed is the connection and not the process: rows that carry its id are run by it all the same (R10b)."""
    worker = world.start(
        APP, stop=f"dispatcher.after_claim:{pick(seed, choices=range(1, 3))}", **(SOON | {"EVENTFLOW_LEASE": "30"})
    )
    with UnderWay(world, "crash pairs") as watch:
        enqueue(world, "crash pairs")
        world.wait(lambda: worker.frozen, "it has claimed")
        world.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'eventflow queues'")
        worker.thaw()
        check(world, "crash pairs", watch)


# ---- nobody is killed -------------------------------------------------------------------------------------

Clients = list[sync.Client]


@pytest.fixture
def clients(world: World) -> Iterator[Clients]:
    """Two programs that put workflows in line, for two processes that run them."""
    for _ in range(2):
        world.start(APP, **SOON)
    world.wait(lambda: world.one("select count(*) from eventflow.executors where alive") == 2, "both are there")
    with sync.Client(world.database_url) as one, sync.Client(world.database_url) as two:
        yield [one, two]


def put(clients: Clients, count: int, queue: str, **options: Any) -> list[str]:
    """So many of both colours, at once from all clients; options are functions of the number."""

    def one(n: int) -> str:
        more = {name: value(n) for name, value in options.items()}
        client = clients[n // 2 % len(clients)]
        return client.enqueue(f"crash_app.in_queue {COLOURS[n % 2]}", n, queue=queue, **more).workflow_id

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(count)))


def begun(world: World) -> dict[str, datetime]:
    """When each began; each did so once."""
    world.wait(lambda: world.unfinished() == 0, "all have ended", 20)
    rows = world.sql("""select "group", note, at from effects""")
    assert set(Counter((workflow, note.split()[0]) for workflow, note, _ in rows).values()) == {1}
    return {workflow: at for workflow, note, at in rows if note.startswith("one")}


class Doubles(Watch):
    """Deduplication ids whose workflows, of ten by turns, were seen to be two and unfinished, whatever their rows say of the ids."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.found = list[int]()

    def look(self, connection: "psycopg.Connection[Any]") -> None:
        text = """select (arguments::jsonb #>> '{args,0}')::int % 10 from eventflow.workflows where finished_at is null
                   group by 1 having count(*) > 1"""
        self.found += [one for (one,) in connection.execute(text)]


def test_one_unfinished_workflow_has_a_deduplication_id(world: World, clients: Clients) -> None:
    with Doubles(world) as doubles:
        ids = put(clients, 200, "crash two each", deduplication_id=lambda n: f"d{n % 10}")
        times = begun(world)
    assert doubles.found == []
    assert set(times) == set(ids)
    assert 10 <= len(times) < 200
    assert len(world.sql("select distinct pid from effects")) == 2, "both have run some"


def test_a_rate_is_kept_by_both_together(world: World, clients: Clients) -> None:
    put(clients, 9, "crash rate")
    times = sorted(begun(world).values())
    assert len(times) == 9
    # What begins a moment later than its claim was committed may come nearer to the next one.
    gaps = [(later - earlier).total_seconds() for earlier, later in zip(times, times[3:], strict=False)]
    assert min(gaps) > 0.35, gaps


def test_the_rate_of_a_key_is_kept_by_both_together(world: World, clients: Clients) -> None:
    ids = put(clients, 8, "crash rate of a key", key=lambda n: f"k{n % 2}")
    times = begun(world)
    for key in range(2):
        mine = sorted(times[one] for one in ids[key::2])
        gaps = [(later - earlier).total_seconds() for earlier, later in zip(mine, mine[1:], strict=False)]
        assert len(gaps) == 3
        assert min(gaps) > 0.3, gaps


def test_delayed_ones_begin_once_and_not_early(world: World, clients: Clients) -> None:
    [(before,)] = world.sql("select clock_timestamp()")
    ids = put(clients, 20, "crash free", delay=lambda n: 0.6 + n / 50)
    [(after,)] = world.sql("select clock_timestamp()")
    times = begun(world)
    for n, one in enumerate(ids):
        assert (times[one] - before).total_seconds() > 0.6 + n / 50
        assert (times[one] - after).total_seconds() < 0.6 + n / 50 + 1.5
