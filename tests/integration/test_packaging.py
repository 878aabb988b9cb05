"""The wheel carries the SQL and works outside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    [wheel] = tmp_path.glob("*.whl")
    place = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(place)
    assert "eventflow/sql/schema.sql" in names
    assert "eventflow/sql/migrations/0001_ledger.sql" in names
    assert "eventflow/py.typed" in names
    assert "eventflow/local/jars.lock" in names
    code = (
        "import eventflow, eventflow.migrations as m, eventflow.database as d; "
        f"assert eventflow.__file__.startswith({str(place)!r}), eventflow.__file__; "
        "assert d.sql_folder().parent.name == 'eventflow'; print(m.code_version(), d.sql('guard')[:6])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(place), "PATH": ""}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 b'select'")
