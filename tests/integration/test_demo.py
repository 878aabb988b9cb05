"""The demo, run as a user runs it: it ends by itself, and its proof holds."""

import re
import subprocess
import sys
from pathlib import Path


def test_the_demo_is_exact(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eventflow", "demo", "--orders", "5000", "--folder", str(tmp_path / "d")],
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"duplicates[\s│]+0\s", done.stdout)
    assert re.search(r"lost[\s│]+0\s", done.stdout)
    [takeover] = re.findall(r"takeover after SIGKILL[\s│]+([\d.]+) s", done.stdout)
    assert float(takeover) < 10
