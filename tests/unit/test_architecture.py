"""What the linters cannot say."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import eventflow
from eventflow import errors
from eventflow.database import in_schema, sql_folder

PACKAGE = Path(eventflow.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOT = PACKAGE.parent


def test_every_module_tells_its_story() -> None:
    assert [m for m in MODULES if not ast.get_docstring(ast.parse(m.read_text()))] == []


def test_one_front_door() -> None:
    expected = {
        "EventflowError", "Fire", "Handle", "Message", "Retry", "enqueue", "kafka_consumer", "lifespan", "publish", "running", "scheduled",
        "start", "step", "transaction", "workflow",
    }  # fmt: skip
    assert set(eventflow.__all__) == expected
    assert len(eventflow.__all__) <= 15


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    drawn = set(re.findall(r"── (\w+)", errors.__doc__ or ""))
    classes = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, BaseException)}
    assert drawn == classes


def test_every_query_is_used_and_says_what_it_does() -> None:
    code = "\n".join(m.read_text() for m in MODULES)
    for path in sorted(sql_folder().rglob("queries/*.sql")):
        assert f'"{path.stem}"' in code, f"{path.name} is used nowhere"
        assert path.read_text().startswith("-- "), path.name


def test_the_schema_is_put_in_by_the_loader_alone() -> None:
    assert in_schema("select eventflow.fence(1) from eventflow.claims", 'my "odd"') == (
        'select "my ""odd""".fence(1) from "my ""odd""".claims'
    )
    assert in_schema("'eventflow.birth '", "other") == "'eventflow.birth '"


@pytest.mark.parametrize("change", ["", "healthchecks:"])
def test_the_compose_file_fits_the_specification(tmp_path: Path, change: str) -> None:
    """By its JSON schema; a misspelt key does not."""
    file = tmp_path / "docker-compose.yml"
    text = (ROOT / "docker-compose.yml").read_text()
    file.write_text(text.replace("healthcheck:", change) if change else text)
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode != 0) == bool(change), done.stdout


def test_the_compose_file() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    for name, service in compose["services"].items():
        assert "healthcheck" in service, name
        assert all(str(port).startswith("127.0.0.1:") for port in service["ports"]), name
        for mounted in [volume for volume in service.get("volumes", ()) if volume.startswith("./")]:
            assert yaml.safe_load((ROOT / mounted.partition(":")[0]).read_text()), mounted
    assert "controller" in compose["services"]["kafka"]["environment"]["KAFKA_PROCESS_ROLES"]


def test_nothing_unpickles() -> None:
    assert [m for m in MODULES if re.search(r"\bimport (pickle|marshal|shelve)\b", m.read_text())] == []


def test_nobody_loads_what_only_some_use() -> None:
    """It would double the time in which a worker or a command starts."""
    code = (
        "import sys, eventflow.cli; print([m for m in ('sqlalchemy', 'opentelemetry', 'uvloop') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
