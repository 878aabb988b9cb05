"""The command line as people meet it: every mistake of theirs is one line on stderr, and the statuses are as promised."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer.main

from eventflow import cli
from eventflow.migrations import check_schema, migrate
from tests import forkserver

Done = subprocess.CompletedProcess[str]
APP = """
import eventflow
from eventflow import Message

@eventflow.kafka_consumer("{topic}", group="cli")
async def handle(message: Message[bytes]) -> None: ...
"""
WORKFLOW = """
import eventflow

@eventflow.workflow
async def refund(order_id: int) -> str:
    return "done"
"""


def environment(**variables: str) -> dict[str, str]:
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("EVENTFLOW_", "DATABASE_URL", "KAFKA_"))}
    return mine | variables


def eventflow(*arguments: str, cwd: Path | None = None, **variables: str) -> Done:
    return forkserver.command(*arguments, cwd=cwd, environment=environment(**variables))


def complaint(done: Done, status: int) -> str:
    """The one line that it said."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("error: ").strip()


def wait_until(condition: Callable[[], object], what: str, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


# ---- what needs no services --------------------------------------------------------------------


def test_the_version_both_ways() -> None:
    script = Path(sys.executable).parent / "eventflow"
    by_script = subprocess.run([str(script), "--version"], capture_output=True, text=True, check=True).stdout
    assert by_script == eventflow("--version").stdout
    assert re.fullmatch(r"eventflow \d+\.\d+\.\d+\n", by_script)


@pytest.mark.parametrize("command", ["", "run", "workflows cancel"])
def test_help_both_ways(command: str) -> None:
    for flag in ("--help", "-h"):
        done = eventflow(*command.split(), flag)
        assert done.returncode == 0
        assert f"Usage: eventflow {command}" in done.stdout


def test_every_command_says_what_it_does_and_stands_on_the_page() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    table = page.partition("\n## ")[0]
    commands: Any = typer.main.get_command(cli.app)
    for name, command in commands.commands.items():
        row = next((line for line in table.splitlines() if f"`{name}" in line), "")
        assert row, f"{name} is not on the page"
        assert command.help, name
        for inner, one in getattr(command, "commands", {}).items():
            assert one.help, f"{name} {inner}"
            assert inner in row, f"{name} {inner} is not on the page"


def test_every_command_has_json() -> None:
    """All but those that run a program, and say it in logs or to be looked at."""
    commands: Any = typer.main.get_command(cli.app)
    leaves = {
        f"{name} {inner}".strip(): one
        for name, command in commands.commands.items() if name not in {"run", "demo"}
        for inner, one in getattr(command, "commands", {"": command}).items()
    }  # fmt: skip
    assert {"init", "dev", "migrate", "consumers pause"} <= leaves.keys()
    assert [name for name, one in leaves.items() if not any("--json" in option.opts for option in one.params)] == []


def test_init_in_json(tmp_path: Path) -> None:
    done = eventflow("init", "shop", "--json", cwd=tmp_path)
    made = json.loads(done.stdout)
    assert (made["folder"], "app.py" in made["files"], done.stdout.count("\n")) == ("shop", True, 1)


def test_a_shell_completes() -> None:
    script = Path(sys.executable).parent / "eventflow"

    def complete(words: str) -> str:
        asked = {"_EVENTFLOW_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return subprocess.run(
            [str(script)], capture_output=True, text=True, check=False, env=environment(**asked)
        ).stdout

    assert complete("eventflow work").split() == ["workflows"]
    assert complete("eventflow queues re").split() == ["resume", "reset"]
    assert "--processes" in complete("eventflow run --pro")


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["run"], ["run", "app", "--nonsense"], ["demo", "--orders", "x"]]
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    done = eventflow(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["run", "app"], ["migrate"], ["migrate", "--plan"]])
def test_a_missing_setting_is_named_with_the_way_out(arguments: list[str]) -> None:
    line = complaint(eventflow(*arguments), 2)
    assert line.startswith("DATABASE_URL is not set")
    assert "eventflow dev" in line


def test_a_folder_that_cannot_be_used() -> None:
    assert "/proc/nowhere" in complaint(eventflow("dev", "--folder", "/proc/nowhere"), 1)
    assert "/proc/nowhere" in complaint(eventflow("demo", "--folder", "/proc/nowhere"), 1)


BROKEN = {
    "nothing.py": ("x = 1\n", "nothing registers nothing to run"),
    "missing.py": ("import math\nimport nosuchlibrary\n", "missing.py, line 2: ModuleNotFoundError: No module named"),
    "syntax.py": ("def f(:\n", "syntax.py, line 1: SyntaxError"),
    "raises.py": ("def f():\n    raise RuntimeError('no\\nway')\n\nf()\n", "raises.py, line 2: RuntimeError: no"),
    "awaits.py": (
        "import asyncio\nimport json\n\nasync def f():\n    json.loads('{')\n\nasyncio.run(f())\n",
        "awaits.py, line 5: JSONDecodeError: ",
    ),
    "nested.py": ("import asyncio\n\nasyncio.run(3)\n", "nested.py, line 3: "),
    "handler.py": (
        "import eventflow\n\n@eventflow.kafka_consumer('t', group='g')\nclass Handler: ...\n",
        "handler.py, line 3: @kafka_consumer decorates functions",
    ),
    "twice.py": (
        APP.format(topic="t") + APP.format(topic="t").replace("def handle", "def other"),
        "two handlers read topic 't' in group 'cli'",
    ),
    "argument.py": (
        "import eventflow\n\n@eventflow.kafka_consumer('t', group='g', ordering='keys')\nasync def h(m): ...\n",
        "argument.py, line 3: @kafka_consumer: no such ordering: 'keys'",
    ),
    "property.py": (
        "import eventflow\n\n@eventflow.kafka_consumer('t', group='g', kafka={'group.id': 'x'})\nasync def h(m): ...\n",
        "'group.id'",
    ),
}


SERVES = """
import eventflow
from eventflow.queues import Queue
mail, orders_too = Queue("mail"), Queue("orders")
@eventflow.kafka_consumer("t", group="g", name="orders")
async def orders(message: eventflow.Message[bytes]) -> None: ...
"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--only", "mial"],
            "--only: nothing is named 'mial'; there are consumers orders; queues default, mail, orders",
        ),
        (["--only", "orders"], "'orders' is the name of a consumer and a queue: say consumer:orders or queue:orders"),
        (["--only", "mail", "--no-queues"], "--only, or --no-consumers and the like: choose one"),
        (["--only", " , "], "--only names nothing"),
        (["--only", "mail, consumer:orders"], "KAFKA_BOOTSTRAP_SERVERS is not set"),
        (["--only", "mail,queue:orders"], "no-such-host"),  # so far it comes
        (["--no-consumers"], "no-such-host"),
    ],
)
def test_what_a_process_serves(tmp_path: Path, options: list[str], expected: str) -> None:
    (tmp_path / "served.py").write_text(SERVES)
    url = {"DATABASE_URL": "postgresql://no-such-host:1/x?connect_timeout=1"}
    running = subprocess.Popen(
        [sys.executable, "-m", "eventflow", "run", "served", *options],
        cwd=tmp_path, env=environment(**url), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert running.stderr is not None
        assert expected in running.stderr.readline()
    finally:
        running.kill()
        running.communicate()


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_program_that_cannot_run(tmp_path: Path, name: str) -> None:
    text, expected = BROKEN[name]
    (tmp_path / name).write_text(text)
    module = name if len(name) % 2 else name.removesuffix(".py")
    line = complaint(eventflow("run", module, cwd=tmp_path, DATABASE_URL="postgresql://x"), 2)
    assert expected.replace("nothing registers", f"{module} registers") in line


def test_there_is_no_such_module(tmp_path: Path) -> None:
    url = {"DATABASE_URL": "postgresql://x"}
    assert "there is no module 'nosuch'" in complaint(eventflow("run", "nosuch", cwd=tmp_path, **url), 2)
    assert "there is no module 'nosuch.app'" in complaint(eventflow("run", "nosuch.app", cwd=tmp_path, **url), 2)
    assert "there is no file 'nosuch.py'" in complaint(eventflow("run", "nosuch.py", cwd=tmp_path, **url), 2)
    for name in (".", "..", "my-app", "shop.", "", "app:main"):
        assert f"{name!r} is no module's name" in complaint(eventflow("run", name, cwd=tmp_path, **url), 2)
    assert "there is no file '/'" in complaint(eventflow("run", "/", cwd=tmp_path, **url), 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "json.py").write_text(WORKFLOW)
    assert "rename the file" in complaint(eventflow("run", "mine/json.py", cwd=tmp_path, **url), 2)


def test_a_wrong_setting_is_named_and_not_shown(tmp_path: Path) -> None:
    line = complaint(eventflow("run", "app", DATABASE_URL="mysql://me:s3cret@x/y"), 2)
    assert line.startswith("DATABASE_URL: ")
    assert "s3cret" not in line
    line = complaint(eventflow("migrate", DATABASE_URL="postgresql://me:s3cret@x/y?foo=bar"), 2)
    assert line.startswith("DATABASE_URL: ")
    assert "s3cret" not in line
    line = complaint(eventflow("run", "app", DATABASE_URL="postgresql://x", EVENTFLOW_KAFKA="{bad"), 2)
    assert line.startswith("EVENTFLOW_KAFKA: must be a JSON object")
    line = complaint(eventflow("run", "app", DATABASE_URL="postgresql://x", EVENTFLOW_KEEEP="7d"), 2)
    assert line.endswith("did you mean EVENTFLOW_KEEP?")


def test_an_annotation_that_nothing_can_be_decoded_to(database_url: str, tmp_path: Path) -> None:
    """One line: whose it is and where that stands, not what Pydantic advises."""
    migrate(database_url)
    text = APP.format(topic="t").replace("@eventflow", "class Thing: ...\n\n@eventflow").replace("bytes", "Thing")
    (tmp_path / "app.py").write_text(text)
    line = complaint(eventflow("run", "app", cwd=tmp_path, DATABASE_URL=database_url, KAFKA_BOOTSTRAP_SERVERS="x:1"), 2)
    assert f"{tmp_path / 'app.py'}:7: handle: a message cannot be decoded to <class 'app.Thing'>" in line


# ---- migrate -----------------------------------------------------------------------------------


def test_migrate(database_url: str) -> None:
    url = {"DATABASE_URL": database_url}
    planned = eventflow("migrate", "--plan", **url)
    assert planned.returncode == 0
    assert planned.stdout.startswith("0001 ")
    first = eventflow("migrate", **url)
    assert first.stdout.startswith("applied 0001 ")
    assert first.stdout.strip().endswith("is ready")
    assert eventflow("migrate", **url).stdout.strip().endswith("is up to date")
    assert eventflow("migrate", "--plan", **url).stdout.startswith("nothing to do")
    assert "postgres:***@" in first.stdout, "the password is masked"
    grants = eventflow("migrate", "--roles", "someone", **url).stdout
    assert 'grant usage on schema "eventflow" to "someone";' in grants
    assert "choose one" in complaint(eventflow("migrate", "--plan", "--sql", **url), 2)


def test_migrate_in_json(database_url: str) -> None:
    """An object for each database, whatever it is asked."""
    both = {"DATABASE_URL": database_url, "EVENTFLOW_DATABASES": json.dumps({"shop": database_url})}

    def said(*options: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in eventflow("migrate", "--json", *options, **both).stdout.splitlines()]

    planned = said("--plan")
    assert [(one["database"], one["schema"]) for one in planned] == [(None, "eventflow"), ("shop", "eventflow_results")]
    assert planned[1]["pending"] == ["0001 results"]
    assert "postgres:***@" in planned[0]["url"], "the password is masked"
    assert ["begin;" in one["sql"] for one in said("--sql")] == [True, True]
    assert [one["applied"] for one in said()] == [one["pending"] for one in planned]
    assert [one["applied"] for one in said()] == [[], []]
    assert [one["pending"] for one in said("--plan")] == [[], []]
    assert ['to "someone";' in one["grants"] for one in said("--roles", "someone")] == [True, True]


def test_migrate_by_a_script(database_url: str) -> None:
    """What `--sql` prints makes the schema as `migrate` does, and is empty then."""
    url = {"DATABASE_URL": database_url, "EVENTFLOW_DATABASE_SCHEMA": "my flow"}
    script = eventflow("migrate", "--sql", **url).stdout
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(script.encode())
        check_schema(connection, "my flow")
    assert eventflow("migrate", "--sql", **url).stdout.splitlines()[1:] == ["-- nothing to do"]
    assert eventflow("migrate", **url).stdout.strip().endswith("is up to date")


def test_migrate_prepares_other_databases(database_url: str) -> None:
    """Here the other one is the same: the schemas do not meet."""
    both = {"DATABASE_URL": database_url, "EVENTFLOW_DATABASES": json.dumps({"shop": database_url})}
    planned = eventflow("migrate", "--plan", **both).stdout.splitlines()
    assert planned[-1] == "0001 results"
    first = eventflow("migrate", **both).stdout.splitlines()
    assert first[-2] == "applied 0001 results"
    assert first[-1].startswith("database 'shop', postgresql://postgres:***@")
    assert first[-1].endswith(" is ready")
    again = eventflow("migrate", "--plan", **both).stdout.splitlines()
    assert again[-1].startswith("nothing to do: database 'shop', ")
    grants = eventflow("migrate", "--roles", "someone", **both).stdout
    assert 'grant select, insert, delete on "eventflow_results".results to "someone";' in grants
    away = both | {"EVENTFLOW_DATABASES": '{"shop": "postgresql://me:s3cret@127.0.0.1:1/x"}'}
    done = eventflow("migrate", **away)
    assert (done.returncode, "s3cret" in done.stderr) == (1, False)
    assert done.stderr.startswith("error: database 'shop': Postgres at postgresql://me:***@127.0.0.1:1/x: ")


def test_migrate_into_another_schema(database_url: str) -> None:
    eventflow("migrate", DATABASE_URL=database_url, EVENTFLOW_DATABASE_SCHEMA="my flow")
    with psycopg.connect(database_url) as connection:
        assert connection.execute('select count(*) from "my flow".migrations').fetchone() != (0,)


def test_migrate_where_nothing_answers(database_url: str) -> None:
    line = complaint(eventflow("migrate", DATABASE_URL="postgresql://me:s3cret@127.0.0.1:1/x"), 1)
    assert line.startswith("Postgres at postgresql://me:***@127.0.0.1:1/x: ")
    wrong = re.sub(r"//[^@]*@", "//nobody:s3cret@", database_url)
    line = complaint(eventflow("migrate", DATABASE_URL=wrong), 1)
    assert "nobody" in line
    assert "s3cret" not in line


# ---- run ---------------------------------------------------------------------------------------


def test_run_needs_the_ledger(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(WORKFLOW)
    assert "run `eventflow migrate`" in complaint(eventflow("run", "app", cwd=tmp_path, DATABASE_URL=database_url), 1)


def test_run_needs_kafka_for_consumers_only(database_url: str, tmp_path: Path) -> None:
    migrate(database_url)
    (tmp_path / "app.py").write_text(APP.format(topic="t"))
    line = complaint(eventflow("run", "app", cwd=tmp_path, DATABASE_URL=database_url), 2)
    assert line.startswith("KAFKA_BOOTSTRAP_SERVERS is not set")


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("program", signal.SIGTERM), ("program.py", signal.SIGINT), ("shop.program", signal.SIGINT),
        ("shop/program.py", signal.SIGTERM), ("shop/program", signal.SIGTERM), ("--no-uvloop program", signal.SIGINT),
    ],
)  # fmt: skip
def test_run_by_name_and_by_file(database_url: str, tmp_path: Path, module: str, number: int) -> None:
    """Each way it runs the same program, and either signal ends it with status 0."""
    migrate(database_url)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "words.py").write_text("DONE = 'done'\n")
    (tmp_path / "shop" / "program.py").write_text(
        WORKFLOW.replace("import eventflow", "import eventflow\nfrom . import words")
    )
    (tmp_path / "program.py").write_text(WORKFLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "eventflow", "run", *module.split()],
        cwd=tmp_path, env=environment(DATABASE_URL=database_url), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with psycopg.connect(database_url, autocommit=True) as connection:
            alive = "select names from eventflow.executors where alive"
            wait_until(lambda: connection.execute(alive).fetchone() or process.poll() is not None, "it is born")
            assert connection.execute(alive).fetchone() == ({"refund": "program"},)
            process.send_signal(number)
            assert process.wait(20) == 0
            assert connection.execute(alive).fetchone() is None
    finally:
        process.kill()
        _, said = process.communicate()
    assert "Traceback" not in said


# ---- dev ---------------------------------------------------------------------------------------


def start_dev(folder: Path) -> "tuple[subprocess.Popen[str], dict[str, str]]":
    process = subprocess.Popen(
        [sys.executable, "-m", "eventflow", "dev", "--folder", str(folder)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, exports(process.stdout.readline() + process.stdout.readline())


def exports(text: str) -> dict[str, str]:
    """What a shell makes of it."""
    return dict(shlex.split(line.removeprefix("export "))[0].split("=", 1) for line in text.splitlines())


def running_below(folder: Path) -> list[str]:
    found: list[str] = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command and ("postgres -D" in command or "kafka.Kafka" in command):
            found.append(command[:100])
    return found


def test_dev(private_root: Path) -> None:
    """It prints what a shell can eval, keeps the data, and leaves nothing running."""
    process, first = start_dev(private_root)
    try:
        assert set(first) == {"DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"}
        with psycopg.connect(first["DATABASE_URL"], autocommit=True) as connection:
            connection.execute("create table kept (x int)")
        again = eventflow("dev", "--folder", str(private_root))
        assert (again.returncode, exports(again.stdout)) == (0, first), "a second terminal gets the same addresses"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
        assert running_below(private_root) == []
        process, second = start_dev(private_root)
        assert second == first
        with psycopg.connect(second["DATABASE_URL"], autocommit=True) as connection:
            connection.execute("select x from kept")
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: running_below(private_root) == [], "nothing is left running")
