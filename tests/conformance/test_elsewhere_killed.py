"""Killed, or frozen, around the commit in another database: each effect is there once, and each result and message here once.

Effects are rows without a unique constraint. The seed chooses how often the point is passed before the kill.
"""

import itertools
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conformance.colours import COLOURS
from tests.conformance.conftest import new_world
from tests.conformance.test_killed import SOON, died_there
from tests.harness import Worker, World, pick, seeds
from tests.ledgers import other_database

pytestmark = pytest.mark.crash

APP = "tests.conformance.elsewhere_app"
RESULT = ["own 0", "own 1", "threaded", "branch 0", "branch 1", "True"]
EFFECTS = sorted(RESULT[:-1])
# Point -> how often at most it is passed before the kill. Both colours' five transactions pass the first four.
POINTS = {
    "elsewhere.after_ticket": 10,
    "elsewhere.before_result": 10,
    "elsewhere.before_commit": 10,
    "elsewhere.after_commit": 10,
    "journal.before_flush": 8,
    "journal.before_commit": 8,
    "journal.after_commit": 8,
    "executor.after_step": 8,
}


@dataclass
class Two:
    """A ledger, another database, and the workers of one test."""

    world: World
    url: str
    frozen: list[Worker] = field(default_factory=list[Worker])

    def start(self, **options: Any) -> Worker:
        return self.world.start(APP, EVENTFLOW_DATABASES=json.dumps({"other": self.url}), **(SOON | options))

    def insert(self, workflow: str, workflow_id: str, *args: object) -> None:
        self.world.sql(
            """insert into eventflow.workflows (id, name, application, status, arguments)
               values (%s, %s, 'default', 'queued', %s)""",
            workflow_id, f"elsewhere_app.{workflow}", json.dumps({"args": args, "kwargs": {}}),
        )  # fmt: skip

    def there(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Ask the other database."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(query.encode(), params).fetchall()

    def begin(self) -> None:
        for colour in COLOURS:
            self.insert(f"shops {colour}", colour)

    def finish(self) -> None:
        """Both have ended as they must; nothing is there twice, and nothing is left over."""
        self.all_succeed()
        for colour in COLOURS:
            output = self.world.one("select output from eventflow.workflows where id = %s", colour)
            assert json.loads(output) == RESULT, colour
            notes = self.there('select note from effects where "group" = %s order by note', colour)
            assert [note for (note,) in notes] == EFFECTS, colour
        assert self.world.sql("select workflow_id, payload from eventflow.messages where not consumed") == []
        assert self.world.sql("select kind, subject, detail from eventflow.incidents") == []
        by_ticket = "select workflow_id, name, position from eventflow_results.results where output is not null"
        assert len(self.there(by_ticket)) == len(EFFECTS) * 2

    def all_succeed(self) -> None:
        left = "select count(*) from eventflow.workflows where status <> 'succeeded'"
        self.world.wait(lambda: self.world.one(left) == 0, "all have succeeded", 30)


@pytest.fixture
def two(postgres_url: str, tmp_path: Path) -> Iterator[Two]:
    with new_world(postgres_url, tmp_path) as world, other_database(postgres_url) as url:
        yield Two(world, url)
        world.close()


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("point", POINTS)
def test_killed_around_a_commit_elsewhere(two: Two, point: str, seed: int) -> None:
    count = pick(seed, point, choices=range(1, POINTS[point] + 1))
    two.begin()
    victim = two.start(crash=f"{point}:{count}")
    assert two.world.wait_death(victim, 20) == -signal.SIGKILL
    assert died_there(victim, point)
    two.start()
    two.finish()


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("before", ["elsewhere.after_commit", "elsewhere.before_commit"])
def test_killed_while_it_settles(two: Two, before: str, seed: int) -> None:
    """What its ticket came to is known there, and in the ledger not yet."""
    two.begin()
    two.world.wait_death(two.start(crash=f"{before}:{pick(seed, before, choices=range(1, 5))}"), 20)
    second = two.start(crash="elsewhere.after_settling:1")
    assert two.world.wait_death(second, 20) == -signal.SIGKILL
    assert died_there(second, "elsewhere.after_settling")
    two.start()
    two.finish()


@pytest.mark.parametrize("seed", seeds())
def test_killed_again_and_again_elsewhere(two: Two, seed: int) -> None:
    """Each worker of a chain dies at another point; the last one finishes."""
    two.begin()
    for link in range(4):
        point = pick(seed, "chain", link, choices=[p for p in POINTS if p.startswith("elsewhere")])
        two.world.wait_death(two.start(crash=f"{point}:{pick(seed, link, choices=range(1, 3))}"), 20)
    two.start()
    two.finish()


# Point -> whose effect it is.
FREEZES = {
    "elsewhere.after_ticket": "peer",
    "elsewhere.before_result": "peer",
    "elsewhere.before_commit": "peer",  # its row is written, and holds the key; the peer has its session ended
    "elsewhere.after_commit": "zombie",
}


def zombies() -> Iterator[Any]:
    """Each point, by each kind of handler; in `make test`, each by one of them."""
    for n, point in enumerate(FREEZES):
        for m, (colour, kind) in enumerate(itertools.product(COLOURS, range(2))):
            marks = [pytest.mark.long] if m != n % 4 else []
            yield pytest.param(
                point, colour, kind, marks=marks, id=f"{point}-{colour}-{('session', 'connection')[kind]}"
            )


@pytest.mark.parametrize(("point", "colour", "kind"), list(zombies()))
def test_a_zombie_elsewhere(two: Two, point: str, colour: str, kind: int) -> None:
    """Frozen until a peer has taken over and ended the workflow; woken, it adds nothing, and works as a new executor."""
    two.insert(f"one {colour}", "first", kind)
    zombie = two.start(stop=f"{point}:1")
    two.world.wait(lambda: zombie.frozen, f"it stops at {point}", 20)
    old = two.world.executor(zombie)
    peer = two.start()
    two.all_succeed()
    before = two.there("select pid from effects")
    assert before == [((peer if FREEZES[point] == "peer" else zombie).pid,)]
    zombie.thaw()
    two.world.wait(lambda: (two.world.executor(zombie) or 0) > (old or 0), "it begins anew")
    peer.kill()
    two.insert(f"one {colour}", "second", kind)
    two.all_succeed()
    assert two.there("""select "group", pid from effects order by id""") == [
        ("first", before[0][0]),
        ("second", zombie.pid),
    ]
    outputs = two.world.sql("select output from eventflow.workflows")
    assert outputs == [('"oneone"',)] * 2
    assert two.world.sql("select payload from eventflow.messages where not consumed") == []
    void = two.there("select count(*) from eventflow_results.results where output is null")
    assert void == [(1 if FREEZES[point] == "peer" else 0,)]
