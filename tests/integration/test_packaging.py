"""The wheel carries the SQL and works outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_works_outside_the_checkout(database_url: str, tmp_path: Path) -> None:
    """Installed by pip into a folder of its own, it migrates a database by the SQL that it carries."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "eventflow/sql/schema.sql" in names
    assert "eventflow/sql/migrations/0001_ledger.sql" in names
    assert "eventflow/sql/results/migrations/0001_results.sql" in names
    assert "eventflow/sql/results/queries/record_result.sql" in names
    assert "eventflow/py.typed" in names
    assert "eventflow/local/jars.lock" in names
    place = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place), str(wheel)],
        check=True, capture_output=True,
    )  # fmt: skip
    outside = {"PYTHONPATH": str(place), "PATH": os.defpath, "DATABASE_URL": database_url}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=outside, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import eventflow, eventflow.database as d; print(eventflow.__file__, d.sql_folder(), sep='\\n')"
    assert python("-c", where).splitlines() == [str(place / "eventflow" / part) for part in ("__init__.py", "sql")]
    assert python("-m", "eventflow", "migrate").startswith("applied 0001 ledger\n")
    assert python("-m", "eventflow", "migrate", "--plan").startswith("nothing to do")
