"""The example of a feed that goes through Kafka, as its README starts it: a worker is killed, each revision is entered once."""

import subprocess
import sys
from pathlib import Path

from tests.harness import World
from tests.integration.test_cli import environment

DEMO = Path(__file__).resolve().parents[2] / "examples" / "earthquake_tracker"


def test_each_revision_is_entered_once_and_the_newest_is_last(world: World) -> None:
    addresses = environment(DATABASE_URL=world.database_url, KAFKA_BOOTSTRAP_SERVERS=world.bootstrap_servers)
    done = subprocess.run(
        [sys.executable, "demo.py"], cwd=DEMO, capture_output=True, text=True, timeout=170, check=False, env=addresses
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "a worker is killed; the other one takes over" in lines
    assert lines[-1] == "30 revisions, each once, the newest last"
    assert " 5.9  64 km S of Kokopo, Papua New Guinea" in lines
