"""`python demo.py`: ten days in ten seconds. A worker is killed in the middle; each letter is written once, on its day.

On the PostgreSQL of DATABASE_URL, else on a local one that it starts (the extra `local`). Exit status 0: all letters are right.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from app import TABLES

from eventflow.migrations import migrate

HERE = Path(__file__).parent
DAY = float(os.environ.get("REMINDERS_DAY", "1"))
APPOINTMENTS = [(1, "Ada", 5), (2, "Grace", 6), (3, "Edsger", 7)]
EXPECTED = sorted(
    (day + days, who, text)
    for _, who, day in APPOINTMENTS
    for days, text in ((-3, "in three days"), (-1, "tomorrow"), (1, "how was it?"))
)


@contextmanager
def database() -> Generator[str]:
    """The address of PostgreSQL, which is ready for eventflow and has the program's tables."""
    url = os.environ.get("DATABASE_URL")
    if url is None:
        from eventflow.local import Postgres

        with tempfile.TemporaryDirectory() as folder:
            server = Postgres(Path(folder))
            server.start()
            try:
                yield prepared(server.url)
            finally:
                server.stop()
    else:
        yield prepared(url)


def prepared(url: str) -> str:
    """Apply the ledger's migrations, and make the tables."""
    migrate(url)
    with psycopg.connect(url) as connection:
        connection.execute(TABLES.encode())
    return url


def worker(url: str, began: float) -> "subprocess.Popen[bytes]":
    """A process that runs the program, as `eventflow run app.py` does in a shell."""
    variables = {
        "DATABASE_URL": url, "REMINDERS_DAY": str(DAY), "REMINDERS_BEGAN": str(began), "EVENTFLOW_LOG_LEVEL": "error",
        "EVENTFLOW_LEASE": "1", "EVENTFLOW_BEAT": "0.2",  # a death is noticed within a day of these
    }  # fmt: skip
    command = [sys.executable, "-m", "eventflow", "run", "app.py"]
    return subprocess.Popen(command, cwd=HERE, env={**os.environ, **variables})


def letters(connection: "psycopg.Connection[Any]") -> list[tuple[int, str, str]]:
    """What has been written: day, customer, text."""
    return connection.execute("select day, customer, text from letters order by id").fetchall()


def main() -> int:
    """Book, run, kill, run again, and compare."""
    with database() as url, psycopg.connect(url, autocommit=True) as connection:
        began = time.time() + 3 - DAY  # the first worker has time to start before day 1 begins
        for appointment in APPOINTMENTS:
            connection.execute("insert into appointments values (%s, %s, %s, now())", appointment)
        running, seen, killed = worker(url, began), 0, False
        deadline = time.monotonic() + 60 + 10 * DAY
        try:
            while seen < len(EXPECTED) and time.monotonic() < deadline:
                for day, customer, text in letters(connection)[seen:]:
                    print(f"day {day}: to {customer}: {text}", flush=True)
                    seen += 1
                if seen >= len(EXPECTED) // 3 and not killed:
                    running.kill()
                    running.wait()
                    killed = True
                    print("the worker is killed; another one takes over", flush=True)
                    running = worker(url, began)
                time.sleep(0.05)
        finally:
            running.terminate()
            running.wait(30)
        right = sorted(letters(connection)) == EXPECTED
    print(f"{seen} letters, each once and for its day" if right else "the letters are NOT what they should be")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
