"""Queues over several processes, which are killed: each runs once, no limit is passed, nothing is left behind."""

import itertools
import signal
import threading
from collections import Counter
from datetime import datetime, timedelta

import psycopg
import pytest

from eventflow import sync
from tests.conformance.colours import COLOURS
from tests.conformance.test_killed import APP, SOON, died_there
from tests.harness import World, pick, seeds

pytestmark = pytest.mark.crash

QUEUES = ("crash free", "crash pairs", "crash keys", "crash rate")
EACH = 12
RATE, PERIOD = 8, timedelta(seconds=0.5)  # of the queue "crash rate"


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
    """The most that were seen to have begun and not ended at a time, in all and of one key; and how many began when."""

    def __init__(self, world: World, queue: str) -> None:
        self._world, self._queue = world, queue
        self.most = self.most_of_key = 0
        self._starts: dict[tuple[datetime, str], int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        text = """select queue_key, count(*) from eventflow.workflows where queue = %s and taken is not null
                     and status in ('queued', 'running', 'waiting') group by 1"""
        starts = "select at, key, n from eventflow.queue_starts where queue = %s"
        with psycopg.connect(self._world.database_url, autocommit=True) as connection:
            while not self._over.wait(0.005):
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


def check(world: World, queue: str, watch: Watch) -> None:
    world.wait(lambda: world.unfinished() == 0, "all have ended", 40)
    assert {status for (status,) in world.sql("select status::text from eventflow.workflows")} == {"succeeded"}
    notes = sorted(note for (note,) in world.sql("select note from effects"))
    assert notes == sorted(f"{which} {n}" for which in ("one", "two") for n in range(EACH) for _ in COLOURS)
    assert world.sql("select kind, subject, detail from eventflow.incidents") == []
    if queue == "crash pairs":
        assert 0 < watch.most <= 2
    if queue == "crash keys":
        assert 0 < watch.most_of_key <= 1
    if queue == "crash rate":
        assert watch.begun() == EACH * len(COLOURS)
        assert watch.most_within(PERIOD) <= RATE


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("queue", QUEUES)
def test_two_processes_one_of_which_is_killed_where_it_has_claimed(world: World, queue: str, seed: int) -> None:
    points = ["dispatcher.before_commit", "dispatcher.after_claim", "journal.before_commit", "journal.after_commit"]
    point = pick(seed, queue, "point", choices=points)
    victim = world.start(APP, crash=f"{point}:{pick(seed, queue, choices=range(1, 4))}", **SOON)
    world.start(APP, **SOON)
    with Watch(world, queue) as watch:
        enqueue(world, queue)
        check(world, queue, watch)
    if not victim.alive:
        assert world.wait_death(victim, 1) == -signal.SIGKILL
        assert died_there(victim, point)


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("queue", ["crash pairs", "crash rate"])
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
        with Watch(world, queue) as watch:
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
    with Watch(world, "crash pairs") as watch:
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
    with Watch(world, "crash pairs") as watch:
        enqueue(world, "crash pairs")
        world.wait(lambda: worker.frozen, "it has claimed")
        world.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'eventflow queues'")
        worker.thaw()
        check(world, "crash pairs", watch)
