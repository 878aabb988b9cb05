"""`eventflow workflows` and `eventflow queues`, the installed command on a real ledger: what is printed, asked and done."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from eventflow.migrations import migrate
from tests.integration.test_cli import Done, complaint, environment, eventflow, wait_until
from tests.integration.test_schedules_cli import on_a_terminal, printed
from tests.ledgers import empty_database

APP = """
import asyncio, time, eventflow
from eventflow import durable, sync
from eventflow.queues import Queue

mail = Queue("mail", concurrency=2)

@eventflow.step
async def book(what: str) -> str:
    return what

@eventflow.step
async def refuse() -> None:
    raise ValueError("over\\nthe limit")

@eventflow.workflow
async def hotel(n: int) -> int:
    return n

@eventflow.workflow
async def trip(who: str, *, nights: int) -> str:
    await book("flight")
    await asyncio.gather(book("leg 1"), book("leg 2"))
    child = await eventflow.start(hotel, nights)
    return f"{who} {await child.result()}"

@eventflow.workflow
async def fails() -> None:
    await refuse()

@eventflow.workflow
async def waits() -> str:
    return await durable.recv(str)

@eventflow.workflow
async def leads() -> str:
    child = await eventflow.start(waits)
    return await child.result()

def prepare() -> None:
    with eventflow.running(consumers=False):
        for n in (1, 2):
            sync.start(trip.bind("Ada", nights=3), workflow_id=f"trip:{n}").result()
            try:
                sync.start(fails, workflow_id=f"fails:{n}").result()
            except ValueError:
                pass
        for n in range(12):
            sync.start(waits, workflow_id=f"waits:{n}", attributes={"team": "ab"[n % 2], "n": n})
        for n in range(4):
            sync.start(waits, workflow_id=f"stays:{n}", attributes={"team": "cd"[n % 2]})
        for n in range(3):
            sync.enqueue(hotel, n, queue="mail", workflow_id=f"mail:{n}", delay=3600)
        for n in (1, 2):
            sync.start(leads, workflow_id=f"leads:{n}")
            while not list(sync.Client.here().workflows(parent=f"leads:{n}")):
                time.sleep(0.05)

if __name__ == "__main__":
    prepare()
"""


@pytest.fixture(scope="module")
def database_url(postgres_url: str) -> Iterator[str]:
    """One ledger for all: what one test does, the others do not look at."""
    with empty_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def folder(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that has run, and does not run any more."""
    migrate(database_url)
    place = tmp_path_factory.mktemp("program")
    (place / "app.py").write_text(APP)
    subprocess.run(
        [sys.executable, "app.py"], cwd=place, check=True, timeout=60, env=environment(DATABASE_URL=database_url)
    )
    return place


@pytest.fixture(scope="module")
def run(database_url: str, folder: Path):  # noqa: ANN201
    """Runs `eventflow ...` on its ledger."""

    def command(*arguments: str) -> Done:
        return eventflow(*arguments, cwd=folder, DATABASE_URL=database_url)

    return command


def objects(done: Done) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def status_of(database_url: str, workflow_id: str) -> str:
    with psycopg.connect(database_url) as connection:
        row = connection.execute("select status::text from eventflow.workflows where id = %s", [workflow_id]).fetchone()
        return row[0] if row else "none"


def test_list_and_show(run) -> None:  # noqa: ANN001
    lines = printed(run("workflows", "list", "--created-after", "1h"))
    assert lines[-1].split()[:3] == ["trip:1", "trip", "succeeded"], "the oldest is the last"
    [mail, *_] = [line for line in lines if line.startswith("mail:")]
    assert mail.split()[:3] == ["mail:2", "hotel", "queued"] and mail.endswith("queue mail")
    some = run("workflows", "list", "--name", "waits", "--attribute", "team=c", "--oldest", "--limit", "1", "--json")
    assert [one["workflow_id"] for one in objects(some)] == ["stays:0"]
    assert some.stderr == "there are more than 1: see --limit\n"
    none = run("workflows", "list", "--status", "parked")
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "no workflows are like that\n")

    shown = printed(run("workflows", "show", "trip:1"))
    assert shown[0] == "trip:1: succeeded"
    assert 'arguments  "Ada", nights=3' in shown
    assert 'result     "Ada 3"' in shown
    steps = [line.split()[:2] for line in shown[shown.index("steps") + 1 :]]
    assert steps == [
        ["1.1", "book"], ["2.1", "book"], ["3.1", "book"], ["1.2", "start"], ["child", "hotel"], ["1.3", "result"]
    ]  # fmt: skip
    assert [len(line) - len(line.lstrip()) for line in shown[-6:]] == [2, 4, 4, 2, 4, 2], "a tree"
    assert "succeeded  trip:1>1.2" in shown[-2]
    [failed] = objects(run("workflows", "show", "fails:1", "--json"))
    assert (failed["error"], failed["workflow"]["status"]) == ("ValueError: over\nthe limit", "failed")
    assert [step["name"] for step in failed["steps"]] == ["refuse"]


def test_one_is_refused_and_nothing_is_done(run, database_url: str) -> None:  # noqa: ANN001
    assert "'stays:0' is waiting: retry is for" in complaint(run("workflows", "retry", "fails:2", "stays:0"), 1)
    assert status_of(database_url, "fails:2") == "failed"
    assert printed(run("workflows", "retry", "fails:2")) == ["retried: one workflow"]
    assert printed(run("workflows", "show", "fails:2"))[-1].startswith("retry      20")
    [fork] = objects(run("workflows", "fork", "trip:2", "--step", "1.2", "--id", "trip:3", "--json"))
    assert fork == {"workflow_id": "trip:3"}
    assert printed(run("workflows", "restart", "trip:2", "--yes")) == ["restarted: one workflow"]
    assert printed(run("workflows", "delay", "2h", "mail:1", "mail:2")) == ["delayed: 2 workflows"]
    assert "'fails:2' has begun: delay is for" in complaint(run("workflows", "delay", "0s", "fails:2"), 1)


def test_many_are_shown_and_asked_about(run, folder: Path, database_url: str) -> None:  # noqa: ANN001
    dry = run("workflows", "cancel", "--attribute", "team=a", "--dry-run")
    assert (len(dry.stdout.splitlines()), dry.stderr) == (6, "6 workflows; nothing was done\n")
    refused = run("workflows", "terminate", "--prefix", "waits:")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-2:] == [
        "... and 2 more", "error: nobody to ask whether to go on, as this is no terminal: say --yes"
    ]  # fmt: skip
    said, status = on_a_terminal(["workflows", "terminate", "--prefix", "waits:"], "n\n", folder, database_url)
    assert ("terminate 12 workflows? [y/N]" in said, "nothing was done" in said, status) == (True, True, 1)
    assert status_of(database_url, "waits:0") == "waiting"
    said, status = on_a_terminal(["workflows", "terminate", "waits:0"], "y\n", folder, database_url)
    assert ("terminate one workflow? [y/N]" in said, "terminated: one workflow" in said, status) == (True, True, 0)
    assert status_of(database_url, "waits:0") == "cancelled"
    [done] = objects(run("workflows", "terminate", "--prefix", "waits:", "--yes", "--json"))
    assert done == {"terminated": 11, "passed_over": 0}
    assert printed(run("workflows", "resume", "--attribute", "n=1", "--yes")) == ["resumed: one workflow"]
    assert printed(run("workflows", "delete", "--prefix", "waits:", "--yes")) == ["deleted: 11 workflows"]
    again = run("workflows", "delete", "--prefix", "waits:", "--yes")
    assert (again.returncode, again.stderr) == (0, "no workflows are like that: nothing to delete\n")


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("workflows show nobody", 1, "no workflow has the id 'nobody'"),
        ("workflows cancel nobody --yes", 1, "no workflow has the id 'nobody'"),
        ("workflows retry --status running", 2, "retry is for workflows that are failed, not running"),
        ("queues pause nope", 2, "there is no queue 'nope'"),
        ("queues change default --rate 10", 2, "--rate is how many in which time"),
    ],
)
def test_mistakes_are_one_line(run, command: str, status: int, said: str) -> None:  # noqa: ANN001
    assert said in complaint(run(*command.split()), status)


def test_cancel_with_its_children_and_without(run, folder: Path, database_url: str) -> None:  # noqa: ANN001
    """It is told when a process has it; a child that is left out goes on."""
    [alone], [both] = ([one["workflow_id"] for one in objects(run("workflows", "list", "--parent", f"leads:{n}", "--json"))] for n in (1, 2))  # fmt: skip
    assert printed(run("workflows", "cancel", "leads:1", "--no-children", "--yes")) == ["asked to end: one workflow"]
    [told] = objects(run("workflows", "cancel", "leads:2", "--yes", "--json"))
    assert told == {"asked_to_end": 2, "passed_over": 0}
    process = subprocess.Popen(
        [sys.executable, "-m", "eventflow", "run", "app", "--no-queues"], cwd=folder, env=environment(DATABASE_URL=database_url),
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for told in ("leads:1", "leads:2", both):
            wait_until(lambda one=told: status_of(database_url, one) == "cancelled", f"{told} is told")
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert status_of(database_url, alone) == "waiting"


def test_queues(run, database_url: str) -> None:  # noqa: ANN001
    assert printed(run("workflows", "delay", "0s", "mail:0")) == ["delayed: one workflow"]
    default, mail = printed(run("queues", "list"))
    assert default.split("  ")[0] == "default"
    assert mail.split()[:4] == ["mail", "1", "wait", "for"]
    assert mail.endswith("0 running  2 delayed  concurrency 2")
    assert printed(run("queues", "pause", "mail")) == ["paused mail; concurrency 2"]
    changed = printed(run("queues", "change", "mail", "--rate", "100/1m", "--concurrency", "none"))
    assert changed == ["changed mail; rate 100 in 1 min"]
    per = ("--concurrency-per-process", "3", "--concurrency-per-key", "2", "--rate-per-key", "1/s")
    [changed] = objects(run("queues", "change", "mail", *per, "--json"))
    assert changed["settings"] == {
        "concurrency": None, "rate": [100, 60.0], "concurrency_per_process": 3, "concurrency_per_key": 2,
        "rate_per_key": [1, 1.0],
    }  # fmt: skip
    none = run("queues", "change", "mail", "--concurrency-per-process", "none", "--concurrency-per-key", "none",
               "--rate-per-key", "none")  # fmt: skip
    assert printed(none) == ["changed mail; rate 100 in 1 min"]
    shown = printed(run("queues", "show", "mail"))
    assert shown[0] == "mail: paused"
    assert shown[1].startswith("in line    one workflow, the first since 20")
    assert shown[-1].startswith("changed    20")
    assert printed(run("queues", "reset", "mail")) == ["reset mail; concurrency 2"]
    [resumed] = objects(run("queues", "resume", "mail", "--json"))
    assert (resumed["paused"], resumed["waiting"], resumed["settings"]) == (False, 1, {"concurrency": 2})


def test_status_again_and_again(run, folder: Path, database_url: str) -> None:  # noqa: ANN001
    [once] = objects(run("status", "--json"))
    assert (once["overview"]["processes"], once["overview"]["application"]) == ([], "default")
    assert {queue["name"] for queue in once["queues"]} == {"default", "mail"}
    watching = subprocess.Popen(
        [sys.executable, "-m", "eventflow", "status", "--watch", "--every", "0.2"], cwd=folder, stdout=subprocess.PIPE,
        text=True, env=environment(DATABASE_URL=database_url),
    )  # fmt: skip
    assert watching.stdout is not None
    seen = 0
    while seen < 2:
        line = watching.stdout.readline()
        assert line, "it goes on"
        seen += line == "processes     NONE runs\n"
    watching.send_signal(signal.SIGINT)
    assert watching.wait(20) == 130


def test_a_terminal_that_knows_no_other_letters(run, database_url: str, folder: Path) -> None:  # noqa: ANN001
    """Without colour, width, or more than ASCII: nothing is lost, nothing fails."""
    odd = "żółw→" * 30
    with psycopg.connect(database_url) as connection:
        connection.execute("select eventflow.enqueue('hotel', '[1]', workflow_id => %s)", [odd])
    plain = {"TERM": "dumb", "COLUMNS": "10", "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    done = eventflow("workflows", "list", "--queue", "default", cwd=folder, DATABASE_URL=database_url, **plain)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)
    assert odd in done.stdout


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("status", "workflows"),
        ("doctor", "nothing is wrong"),
        ("why trip:1", "trip:1 (trip) succeeded"),
        ("workflows show trip:1", "trip:1: succeeded"),
        ("--help", "Usage:"),
    ],
)
def test_a_terminal_without_colour_or_width(folder: Path, database_url: str, command: str, said: str) -> None:
    plain = {"TERM": "dumb", "COLUMNS": "10", "NO_COLOR": "1"}
    text, status = on_a_terminal(command.split(), "", folder, database_url, **plain)
    assert (status, "\x1b" in text, "Traceback" in text) == (0, False, False), text
    assert said in text
