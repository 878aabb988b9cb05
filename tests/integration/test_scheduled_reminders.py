"""The example of schedules and long sleeps, as its README starts it: a worker is killed, and each letter is written once."""

import subprocess
import sys
from pathlib import Path

from tests.integration.test_cli import environment

DEMO = Path(__file__).resolve().parents[2] / "examples" / "scheduled_reminders"


def test_each_letter_is_written_once_on_its_day(database_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "demo.py"], cwd=DEMO, capture_output=True, text=True, timeout=120, check=False,
        env=environment(DATABASE_URL=database_url),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "the worker is killed; another one takes over" in lines
    assert lines[-1] == "9 letters, each once and for its day"
    assert "day 6: to Ada: how was it?" in lines
