"""The wheel carries the SQL and works outside the checkout."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import psycopg
import pytest

from eventflow.errors import UsageError
from eventflow.starter import make_project
from tests.integration.test_cli import environment

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_works_outside_the_checkout(database_url: str, kafka_bootstrap: str, tmp_path: Path) -> None:
    """Installed by pip into a folder of its own, it migrates a database by the SQL that it carries, and a new project runs."""
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

    assert "cd shop && make demo" in python("-m", "eventflow", "init", "shop")
    services = outside | {"KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}
    demo = subprocess.run(
        ["make", "demo", f"PYTHON={sys.executable}"], cwd=tmp_path / "shop", env=services, capture_output=True, text=True,
        check=False, timeout=150,
    )  # fmt: skip
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stdout.splitlines()[-1] == "entered: 300, each once: yes"
    assert "the worker is killed after" in demo.stdout
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select count(*), sum(amount) from entries").fetchone() == (300, 300 * 299 // 2 + 300)
    again = subprocess.run(
        [sys.executable, "-m", "eventflow", "init", "shop"], cwd=tmp_path, env=outside, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert (again.returncode, again.stderr) == (2, "error: shop is not empty, and nothing was written\n")


def test_a_new_projects_tests_pass(postgres_url: str, tmp_path: Path) -> None:
    make_project("shop", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=tmp_path / "shop", capture_output=True, text=True,
        check=False, timeout=120, env=environment(EVENTFLOW_TEST_DATABASE_URL=postgres_url),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_a_new_projects_files_are_right(tmp_path: Path) -> None:
    """The compose file fits its specification, no placeholder is left, and a name that cannot be is refused."""
    files = make_project("shop-2", tmp_path)
    assert {".gitignore", "Dockerfile", "docker-compose.yml", "tests/test_app.py"} <= set(files)
    folder = tmp_path / "shop-2"
    assert not [f for f in files if re.search("PROJECT|VERSION", (folder / f).read_text())]
    subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(folder / "docker-compose.yml")],
        check=True, capture_output=True,
    )  # fmt: skip
    for name in ("Shop", "", "../x", "a b"):
        with pytest.raises(UsageError, match="not a name for a project"):
            make_project(name, tmp_path)
