"""`eventflow schedules` as an operator meets it: the installed command, on a real ledger, and what it prints."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from eventflow.migrations import migrate
from tests.integration.test_cli import Done, complaint, environment, eventflow

APP = """
from datetime import timedelta
import eventflow
from eventflow import Fire

@eventflow.scheduled("0 2 * * *", timezone="Europe/Berlin")
async def close_day(fire: Fire) -> str:
    return fire.cause

@eventflow.scheduled(every=timedelta(hours=6))
def poll() -> int:
    return 7
"""
START = "import app, eventflow\nwith eventflow.running(): pass\n"


@pytest.fixture
def folder(database_url: str, tmp_path: Path) -> Path:
    """A program whose schedules the ledger knows, and which does not run."""
    migrate(database_url)
    (tmp_path / "app.py").write_text(APP)
    subprocess.run(
        [sys.executable, "-c", START], cwd=tmp_path, check=True, timeout=60, env=environment(DATABASE_URL=database_url)
    )
    return tmp_path


@pytest.fixture
def schedules(database_url: str, folder: Path):  # noqa: ANN201
    """Runs `eventflow schedules ...` in the program's folder."""

    def run(*arguments: str) -> Done:
        return eventflow("schedules", *arguments, cwd=folder, DATABASE_URL=database_url)

    return run


def printed(done: Done) -> list[str]:
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


def test_list_show_upcoming(schedules, folder: Path) -> None:  # noqa: ANN001
    daily, often = printed(schedules("list"))
    assert daily.startswith("close_day  cron '0 2 * * *' in Europe/Berlin  next ")
    assert "no living process fires it" in daily
    assert often.startswith("poll  every 6:00:00  next ")
    rows = [json.loads(line) for line in printed(schedules("list", "--json"))]
    assert [(row["name"], row["settings"], row["made_by"]) for row in rows] == [
        ("close_day", {"cron": "0 2 * * *", "timezone": "Europe/Berlin"}, None), ("poll", {"every": 21600.0}, None)
    ]  # fmt: skip
    shown = printed(schedules("show", "close_day"))
    assert shown[0] == "close_day: on"
    assert any(line.startswith("fires      cron '0 2 * * *'") for line in shown)
    times = printed(schedules("upcoming", "close_day", "--count", "3"))
    assert len(times) == 3 and all(" 02:00:00+" in time or " 03:00:00+" in time for time in times)
    assert json.loads(printed(schedules("upcoming", "poll", "--count", "1", "--json"))[0])["time"].endswith("+00:00")


def test_pause_resume_trigger(schedules) -> None:  # noqa: ANN001
    assert printed(schedules("pause", "close_day", "--note", "the bank is closed")) == ["paused close_day; next: none"]
    assert "paused the bank is closed" in printed(schedules("list"))[0]
    assert json.loads(printed(schedules("resume", "close_day", "--json"))[0])["paused"] is False
    [workflow_id] = printed(schedules("trigger", "close_day"))
    assert workflow_id.startswith("schedule:default:close_day:")
    assert f"running    {workflow_id}" in printed(schedules("show", "close_day"))


def test_backfill_shows_what_it_will_do_and_asks(schedules, folder: Path, database_url: str) -> None:  # noqa: ANN001
    dry = printed(schedules("backfill", "close_day", "2026-03-28", "2026-03-30", "--dry-run"))
    assert dry == ["2026-03-28 02:00:00+01:00", "2026-03-29 03:00:00+02:00", "2026-03-30 02:00:00+02:00"]
    refused = schedules("backfill", "close_day", "2026-03-28", "2026-03-30")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == "error: nobody to ask whether to go on, as this is no terminal: say --yes"
    said, status = on_a_terminal(
        ["schedules", "backfill", "close_day", "2026-03-28", "2026-03-30"], "n\n", folder, database_url
    )
    assert "fire close_day for 3 fire times? [y/N]" in said and "nothing was done" in said and status == 1
    assert printed(schedules("backfill", "close_day", "2026-03-28", "2026-03-30", "--yes")) == dry
    said, status = on_a_terminal(
        ["schedules", "backfill", "poll", "2026-03-28T01:00", "2026-03-28T23:00+00:00"], "y\n", folder, database_url
    )
    assert "2026-03-28 06:00:00+00:00" in said and status == 0
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("select name, count(*) from eventflow.fires group by 1 order by 1").fetchall()
    assert rows == [("close_day", 3), ("poll", 3)]
    again = schedules("backfill", "poll", "2026-03-28", "2026-03-27", "--yes")
    assert (again.returncode, again.stdout) == (0, "")
    assert "there is none" in again.stderr


def test_backfill_at_once(schedules, database_url: str) -> None:  # noqa: ANN001
    """All have been started when it says so; without it they stand in the schedule's line."""
    times = printed(schedules("backfill", "poll", "2026-03-28", "2026-03-28", "--at-once", "--yes"))
    assert [time[11:13] for time in times] == ["00", "06", "12", "18"]
    with psycopg.connect(database_url) as connection:
        begun = connection.execute("select count(*) from eventflow.workflows where name = 'poll'").fetchone()
        waiting = connection.execute("select count(*) from eventflow.fires").fetchone()
    assert (begun, waiting) == ((4,), (0,))
    again = schedules("backfill", "poll", "2026-03-28", "2026-03-28", "--at-once", "--yes")
    assert (again.returncode, again.stdout) == (0, "")


def on_a_terminal(
    arguments: list[str], answer: str, folder: Path, database_url: str, **variables: str
) -> tuple[str, int]:
    """What it says where a person sits, who answers; and the exit status."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "eventflow", *arguments], cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env=environment(DATABASE_URL=database_url, **variables),
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, answer.encode())
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        said += part
    os.close(ours)
    return said.decode(), process.wait(30)


def test_delete_and_what_a_start_would_change(schedules, folder: Path) -> None:  # noqa: ANN001
    assert schedules("plan", "app").stderr == "nothing changes: 2 schedules are as app has them\n"
    (folder / "app.py").write_text(APP.replace("0 2", "30 3").replace("def poll", "def fetch"))
    lines = printed(schedules("plan", "app"))
    assert lines[0].startswith(
        "changed: close_day: cron '0 2 * * *' in Europe/Berlin -> cron '30 3 * * *' in Europe/Berlin"
    )
    assert lines[1].startswith("new: fetch: every 6:00:00; next: ")
    assert lines[2].startswith("elsewhere: poll: every 6:00:00: not in this code")
    assert [json.loads(line)["kind"] for line in printed(schedules("plan", "app", "--json"))] == [
        "changed",
        "new",
        "elsewhere",
    ]
    assert schedules("delete", "poll").returncode == 2
    assert printed(schedules("delete", "poll", "--yes")) == ["deleted poll"]
    assert [line.split("  ")[0] for line in printed(schedules("list"))] == ["close_day"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "nobody"], "there is no schedule 'nobody' in application 'default'"),
        (["trigger", "nobody"], "there is no schedule 'nobody' in application 'default'"),
        (["pause", "nobody"], "there is no schedule 'nobody' in application 'default'"),
        (["backfill", "poll", "tomorrow", "2026-03-28"], "a day such as 2026-03-01, or a time such as"),
        (["backfill", "poll", "2026-03-28", "2999-03-28"], "a backfill is of what has been"),
        (["plan", "nothing_here"], "there is no module 'nothing_here'"),
    ],
)
def test_mistakes_are_one_line(schedules, arguments: list[str], said: str) -> None:  # noqa: ANN001
    assert said in complaint(schedules(*arguments), 2)


def test_a_ledger_without_schedules_and_a_mistake_in_code(database_url: str, tmp_path: Path) -> None:
    migrate(database_url)
    done = eventflow("schedules", "list", DATABASE_URL=database_url)
    assert (done.returncode, done.stdout, done.stderr.split(":")[0]) == (0, "", "no schedules")
    (tmp_path / "app.py").write_text(APP.replace("0 2 *", "0 25 *"))
    said = complaint(eventflow("run", "app", cwd=tmp_path, DATABASE_URL=database_url), 2)
    assert "app.py, line 6: cron '0 25 * * *', character 3: '25' is no hour (0-23)" in said
