"""`make test-crash` in shards, and again after it was interrupted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.long_run import ROOT, belongs, part

TESTS = """
import os
import pytest

@pytest.mark.parametrize("n", range(8))
def test_it(n):
    assert n != int(os.environ.get("FAILS", -1))
"""


def run(folder: Path, *options: str, fails: int = -1) -> str:
    (folder / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.long_run", "-p", "no:cacheprovider", "--passed", "passed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FAILS": str(fails)}
    done = subprocess.run(
        [*command, *options, "test_some.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_it_goes_on_with_what_has_not_passed(tmp_path: Path) -> None:
    assert "1 failed, 7 passed" in run(tmp_path, "-n", "2", fails=3)
    again = run(tmp_path)
    assert "7 tests have passed before" in again
    assert "1 passed, 7 deselected" in again
    assert "8 passed" in run(tmp_path), "it went through: from the beginning"


def test_every_test_is_in_one_shard() -> None:
    names = [f"tests/test_some.py::test_it[{n}]" for n in range(100)]
    counts = [sum(belongs(name, number, 4) for number in range(1, 5)) for name in names]
    assert counts == [1] * 100
    assert sum(belongs(name, 2, 4) for name in names) in range(10, 41)


@pytest.mark.parametrize("shard", ["0/4", "5/4", "2", "a/b", "1/0", ""])
def test_a_shard_that_is_none_is_refused(shard: str) -> None:
    with pytest.raises(pytest.UsageError, match=r"--shard is N/M"):
        part(shard)
