"""`eventflow dead-letters`, the installed command: what it prints, what it asks, and with which status it ends."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.forkserver import command
from tests.harness import World
from tests.integration.test_cli import Done, complaint, environment

LETTERS = """
with source as (
  insert into eventflow.sources (topic, incarnation, cluster_id, topic_id) values ('orders', 1, 'c', 'i') returning id
), claim as (
  insert into eventflow.claims ("group", source, partition, owner, accepted, in_flight, verified, began)
  select 'billing', id, 0, 0, '{(,1000)}', 1, 0, 'earliest' from source returning id
), made as (
  insert into eventflow.workflows (id, name, application, status, claim, "offset", timestamp, created_at, finished_at, key, value, headers, error)
  select 'kafka:billing:orders:1:0:' || n, 'bill', 'default', 'failed', claim.id, n, 1700000000000, '2026-01-01 00:00Z', now(), 'k', '{"n": 1}',
         '[["who", "YWRh"]]', format('{"type": "shop.OutOfStock", "message": "%s\\u001b[31m red"}', n)
    from claim, generate_series(1, 12) n returning id, error
)
insert into eventflow.failures (workflow_id, attempt, type, error) select id, 1, 'shop.OutOfStock', error from made
"""
SHOP = """
import dataclasses, eventflow

@dataclasses.dataclass
class Order:
    n: int

@eventflow.kafka_consumer("orders", group="billing")
async def bill(message: eventflow.Message[Order]) -> None: ...
"""
FIRST = "kafka:billing:orders:1:0:1"


@pytest.fixture
def letters(world: World) -> World:
    world.sql(LETTERS)
    return world


def run(world: World, *arguments: str, stdin: bytes = b"") -> Done:
    return command("dead-letters", *arguments, environment=environment(DATABASE_URL=world.database_url), given=stdin)


def objects(done: Done) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_list_and_show(letters: World, tmp_path: Path) -> None:
    done = run(letters, "list", "--consumer", "bill", "--limit", "11")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith(f"{FIRST}  failed  once, last 20")
    assert lines[0].endswith(r"Z  shop.OutOfStock: 1\x1b[31m red"), "nothing of it moves the terminal"
    assert done.stderr == "there are more than 11: see --limit\n"
    found = objects(run(letters, "list", "--json", "--error", "OutOfStock"))
    assert len(found) == 12
    assert (found[0]["workflow_id"], found[0]["consumer"], found[0]["offset"], found[0]["failures"]) == (
        FIRST,
        "bill",
        1,
        1,
    )
    none = run(letters, "list", "--topic", "nothing")
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "no dead letters are like that\n")

    [shown] = objects(run(letters, "show", FIRST, "--json"))
    assert shown["message"] == {
        "key": "aw==",
        "value": "eyJuIjogMX0=",
        "headers": [["who", "YWRh"]],
        "decoded": {"n": 1},
    }
    assert [one["attempt"] for one in shown["failed"]] == [1]
    text = run(letters, "show", FIRST).stdout
    for part in ("handler    bill, group billing", "message    orders/0/1, incarnation 1", "produced   2023-11-14 22:13:20Z",
                 "attempt 1  ", "header     who: ada", '"n": 1', "key        k", 'raw value  {"n": 1}'):  # fmt: skip
        assert part in text
    assert run(letters, "show", FIRST, "--value").stdout == '{"n": 1}'
    (tmp_path / "shop.py").write_text(SHOP)
    app = str(tmp_path / "shop.py")
    handled = run(letters, "show", FIRST, "--app", app).stdout.splitlines()[-1]
    assert handled == "handler    bill takes value Order(n=1), key b'k'"
    letters.sql("update eventflow.workflows set value = 'x', name = case when \"offset\" = 2 then 'gone' else name end")
    [shown] = objects(run(letters, "show", FIRST, "--app", app, "--json"))
    assert shown["handled"].startswith("orders/0/1 cannot be decoded: value: Invalid JSON")
    assert complaint(run(letters, "show", FIRST[:-1] + "2", "--app", app), 2) == f"{app} declares no handler 'gone'"
    assert complaint(run(letters, "show", "nobody"), 1) == "no message's workflow has the id 'nobody'"


def test_redeliver_and_drop(letters: World, tmp_path: Path) -> None:
    assert objects(run(letters, "redeliver", FIRST, "--yes", "--json")) == [{"redelivered": 1}]
    again = run(letters, "redeliver", FIRST, "--yes")
    assert complaint(again, 1) == f"'{FIRST}' is queued: redeliver is for workflows that are failed or parked"
    value = tmp_path / "value"
    value.write_bytes(b"mended")
    edited = FIRST[:-1] + "2"
    assert run(letters, "redeliver", edited, "--value", str(value), "--header", "a=b", "--yes").returncode == 0
    assert run(letters, "redeliver", FIRST[:-1] + "3", "--value", "-", "--yes", stdin=b"\xff").returncode == 0
    rows = letters.sql(
        "select value, headers from eventflow.workflows where status = 'queued' and value <> '{\"n\": 1}' order by id"
    )
    assert rows == [(b"mended", '[["a", "Yg=="]]'), (b"\xff", '[["who", "YWRh"]]')]
    shown = run(letters, "show", edited).stdout
    assert "edited     " in shown
    assert "raw value  mended" in shown

    dropped = run(letters, "drop", FIRST[:-1] + "4", FIRST[:-1] + "5", "--reason", "test orders", "--yes")
    assert (dropped.returncode, dropped.stdout) == (0, "dropped 2 dead letters\n")
    assert run(letters, "drop", "--group", "nobody's", "--reason", "none", "--yes").stderr.endswith("nothing to do\n")

    ordered = run(letters, "redeliver", "--all", "--rate", "2.5", "--yes")
    assert ordered.returncode == 0
    assert ordered.stdout.startswith("redelivery 1: 0 of 7 at 2.5 a second, goes on; ordered 20")
    [one] = objects(run(letters, "redeliveries", "--json"))
    assert (one["total"], one["rate"], one["ended_at"]) == (7, 2.5, None)
    assert complaint(run(letters, "stop", "2"), 1) == "there is no redelivery 2"
    unasked = run(letters, "stop", "1")
    assert (unasked.returncode, unasked.stdout, unasked.stderr) == (
        2, "", f"{ordered.stdout}error: nobody to ask whether to go on, as this is no terminal: say --yes\n"
    )  # fmt: skip
    assert ", stopped by " in run(letters, "stop", "1", "--yes").stdout
    assert run(letters, "stop", "1", "--yes").stderr == "redelivery 1 had ended\n"
    assert objects(run(letters, "drop", "--consumer", "bill", "--reason", "all of them", "--yes", "--json")) == [
        {"dropped": 7}
    ]
    assert letters.sql("select distinct status::text from eventflow.workflows order by 1") == [
        ("cancelled",),
        ("queued",),
    ]


def start(world: World, folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A command that goes on, and is read and ended by the test."""
    return subprocess.Popen(
        [sys.executable, "-m", "eventflow", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment(DATABASE_URL=world.database_url),
    )  # fmt: skip


def test_redeliver_and_wait(letters: World, tmp_path: Path) -> None:
    """Who waits may leave, and it goes on; who stays is told how far it is, until all have gone."""
    left = start(letters, tmp_path, "dead-letters", "redeliver", "--all", "--rate", "1", "--wait", "--yes")
    assert left.stderr is not None
    assert left.stderr.readline() == "0 of 12 redelivered\n"
    left.send_signal(signal.SIGINT)
    said, complained = left.communicate(timeout=30)
    assert (left.returncode, said) == (130, "")
    assert complained == "redelivery 1 goes on; `eventflow dead-letters stop 1` ends it\n"
    assert ", goes on; " in run(letters, "redeliveries").stdout
    assert run(letters, "stop", "1", "--yes").returncode == 0

    stayed = start(letters, tmp_path, "dead-letters", "redeliver", "--consumer", "bill", "--wait", "--yes", "--json")
    assert stayed.stderr is not None
    assert stayed.stderr.readline() == "0 of 12 redelivered\n"
    assert letters.one("select gone from eventflow.redeliver_due('default', '{bill}', 100)") == 12, (
        "as who serves them does"
    )
    said, _ = stayed.communicate(timeout=30)
    assert stayed.returncode == 0
    one = json.loads(said)
    assert (one["id"], one["redelivered"], one["passed_over"], one["stopped_by"]) == (2, 12, 0, None)
    assert one["ended_at"] is not None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["redeliver"], "say which: ids, a filter such as --consumer, or --all"),
        (["drop", "--reason", "x"], "say which: ids, a filter such as --consumer, or --all"),
        (["redeliver", FIRST, "--all"], "ids, or a filter: choose one"),
        (["redeliver", FIRST, "--rate", "3"], "--rate and --wait are for what a filter or --all means"),
        (["redeliver", "--all", "--value", "-"], "--value and --header are for one dead letter, by its id"),
        (["redeliver", FIRST, "--value", "/no/such"], "--value: [Errno 2] No such file or directory: '/no/such'"),
        (["redeliver", FIRST, "--header", "x"], "--header: NAME=TEXT"),
        (["redeliver", "--all", "--rate", "-1", "--yes"], "a rate is how many a second, above 0, not -1.0"),
        (["drop", FIRST, "--reason", " ", "--yes"], "say why: a dropped message is never handled, and who looks for it later reads the reason"),
        (["list", "--status", "dead"], "a dead letter is failed or parked, not 'dead'"),
        (["list", "--failed-after", "yesterday"], "--failed-after: `2h` (ago), or a time such as 2026-01-31T12:00+00:00, not 'yesterday'"),
        (["list", "--failed-before", "2026-01-31"], "--failed-before: '2026-01-31' has no zone: write 2026-01-31Z if that is UTC"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_status_2(letters: World, arguments: list[str], expected: str) -> None:
    assert complaint(run(letters, *arguments), 2) == expected
    assert letters.one("select count(*) from eventflow.workflows where status = 'failed'") == 12


def test_without_a_terminal_it_does_not_act_unasked(letters: World) -> None:
    done = run(letters, "redeliver", "--all")
    assert done.returncode == 2
    assert done.stdout == ""
    *shown, more, refusal = done.stderr.splitlines()
    assert [line.split("  ")[0] for line in shown] == [
        f"kafka:billing:orders:1:0:{n}" for n in sorted(range(1, 13), key=str)
    ][:10]
    assert (more, refusal) == (
        "... and 2 more",
        "error: nobody to ask whether to go on, as this is no terminal: say --yes",
    )


@pytest.mark.parametrize("answer", ["y", "n"])
def test_on_a_terminal_it_asks(letters: World, answer: str) -> None:
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "eventflow", "dead-letters", "drop", FIRST, "--reason", "a test"], stdin=theirs,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(DATABASE_URL=letters.database_url),
    )  # fmt: skip
    os.write(mine, f"{answer}\n".encode())
    said, asked = process.communicate(timeout=30)
    os.close(mine)
    os.close(theirs)
    assert f"{FIRST}  failed" in asked
    assert "drop one dead letter? [y/N]" in asked
    status = letters.one("select status::text from eventflow.workflows where id = %s", FIRST)
    if answer == "y":
        assert (process.returncode, said, status) == (0, "dropped one dead letter\n", "cancelled")
    else:
        assert (process.returncode, said, status) == (1, "", "failed")
        assert asked.endswith("nothing was done\n")
