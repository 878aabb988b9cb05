"""What the commands ask where a person sits, and do when the answer is yes, and do not when it is no."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from eventflow import sync
from eventflow.migrations import migrate
from tests.integration.test_cli import complaint, eventflow
from tests.integration.test_dead_letters_cli import LETTERS
from tests.integration.test_schedules_cli import on_a_terminal
from tests.ledgers import empty_database

STANDS = """
insert into eventflow.incidents (kind, subject, detail) values ('doubt', 'billing orders/0', 'the log ends at 5');
insert into eventflow.reprocessings ("group", source, generation, instead, who)
select "group", source, 2, false, 'ada' from eventflow.claims;
insert into eventflow.reprocessed select r.id, c.partition, c.id, 0, 12 from eventflow.reprocessings r, eventflow.claims c
"""


@pytest.fixture(scope="module")
def database_url(postgres_url: str) -> Iterator[str]:
    """One ledger for all: what one test does, the others do not look at."""
    with empty_database(postgres_url) as url:
        migrate(url)
        with psycopg.connect(url) as connection:
            connection.execute(LETTERS.encode())
            connection.execute(STANDS.encode())
        with sync.Client(url) as client:
            client.create_schedule("report", "report", every=timedelta(days=1))
            client.redeliver_all(rate=1)
        yield url


def ask(database_url: str, query: str) -> Any:
    with psycopg.connect(database_url) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row and row[0]


@pytest.mark.parametrize(
    ("command", "shown", "question", "done", "query"),
    [
        (
            "consumers pause billing orders --reason odd", "", "pause billing orders?", "billing orders is paused",
            "select count(*) from eventflow.pauses where topic <> ''",
        ),
        (
            "incidents settle 1 retry", "1  open  doubt  billing orders/0", "settle it by retry?", "incident 1 is settled: retry",
            "select count(settled_at) from eventflow.incidents",
        ),
        (
            "reprocess stop 1", "1  billing orders, generation 2, beside", "stop reprocessing 1?", "; stopped by ",
            "select count(stopped_by) from eventflow.reprocessings",
        ),
        (
            "schedules delete report", "report  every 1 day, 0:00:00", "delete report?", "deleted report",
            "select 1 - count(*) from eventflow.schedules",
        ),
        (
            "dead-letters stop 1", "redelivery 1: 0 of 12 at 1 a second, goes on", "stop redelivery 1?", "stopped by ",
            "select count(stopped_by) from eventflow.redeliveries",
        ),
    ],
    ids=["pause", "settle", "reprocess", "delete", "redelivery"],
)  # fmt: skip
def test_what_it_is_about_is_shown_and_asked(
    database_url: str, tmp_path: Path, command: str, shown: str, question: str, done: str, query: str
) -> None:
    said, status = on_a_terminal(command.split(), "n\n", tmp_path, database_url)
    assert shown in said
    assert f"{question} [y/N]" in said
    assert (said.endswith("nothing was done\r\n"), status, ask(database_url, query)) == (True, 1, 0)
    said, status = on_a_terminal(command.split(), "y\n", tmp_path, database_url)
    assert shown in said
    assert f"{question} [y/N]" in said
    assert (done in said.partition(question)[2], status, ask(database_url, query)) == (True, 0, 1)


def test_a_reason_is_asked_where_somebody_can_answer(database_url: str, tmp_path: Path) -> None:
    why = "select max(why) from eventflow.pauses where topic = ''"
    pause = ["consumers", "pause", "billing", "--yes"]
    assert complaint(eventflow(*pause, DATABASE_URL=database_url), 2) == "say why: --reason TEXT"
    assert ask(database_url, why) is None
    said, status = on_a_terminal(pause, "\n", tmp_path, database_url)
    assert ("why? " in said, "error: say why it is paused" in said, status) == (True, True, 2)
    assert ask(database_url, why) is None
    said, status = on_a_terminal(pause, "its keys are odd\n", tmp_path, database_url)
    assert ("why? " in said, "billing is paused" in said, status) == (True, True, 0)
    assert ask(database_url, why) == "its keys are odd"
