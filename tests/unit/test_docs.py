"""The documentation holds: its Python blocks run, its links lead somewhere, what it names exists and nothing is left out."""

import re
import subprocess
import sys
import tomllib
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest

import eventflow
from eventflow.client import Client
from eventflow.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    if page.parent != ROOT / "docs"  # needs Postgres: tests/integration/test_pages.py
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    if not block.startswith("# first.py")  # needs services: tests/integration/test_readme.py runs it
]


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block: str, tmp_path: Path) -> None:
    """Each in a process of its own."""
    file = tmp_path / "block.py"
    file.write_text(block, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link, section in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not section or section in sections_of(target), f"{link}#{section}"


def sections_of(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_name_of_ours_that_a_page_names_exists() -> None:
    """As `durable.sleep`, `eventflow.start` or `handle.send`, in words and tables."""
    places: dict[str, object] = {name: import_module(f"eventflow.{name}") for name in ("durable", "sync", "logs")}
    places |= {"eventflow": import_module("eventflow"), "handle": eventflow.Handle, "client": Client}
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    pages = {"guide.md", "from-dbos.md", "from-temporal.md", *re.findall(r"^\| \[.*?\]\((.*?)\)", guide, re.MULTILINE)}
    for page in (ROOT / "README.md", *(ROOT / "docs" / name for name in sorted(pages))):
        for line in re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL).splitlines():
            theirs = page.name.startswith("from-")
            check_names(line.split(" | ", 1)[-1] if theirs else line, places)  # on the right of a table


def check_names(text: str, places: dict[str, object]) -> None:
    for code in re.findall(r"`([^`]+)`", text):
        for place, name in re.findall(r"(?<![\w.])(durable|sync|eventflow|handle|client)\.(\w+)", code):
            assert hasattr(places[place], name), code


def test_every_setting_is_in_the_guide() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    own_names = {"database_url", "kafka_bootstrap_servers"}
    variables = {name.upper() if name in own_names else f"EVENTFLOW_{name.upper()}" for name in Settings.model_fields}
    assert {v for v in variables if f"| `{v}` |" not in guide} == set()


def test_every_crash_point_is_in_the_guarantees_and_armed_by_a_test() -> None:
    code = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "eventflow").rglob("*.py"))
    tests = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    points = {
        point for call in re.findall(r"crash_point\((.*?)\)", code) for point in re.findall(r'"(\w+\.\w+)"', call)
    }
    assert points
    assert {p for p in points if f"`{p}`" not in GUARANTEES} == set()
    assert {p for p in points if not re.search(rf'"{re.escape(p)}[":]', tests)} == set()
    named = set(
        re.findall(
            r"`((?:journal|consumer|elsewhere|executor|lease|ledger|recovery|dispatcher|scheduler|transactions|relay)\.(?:before|after)_\w+)`",
            GUARANTEES,
        )
    )
    assert named <= points


def test_every_test_that_the_page_of_failures_names_exists() -> None:
    tests = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")))
    assert named
    assert {name for name in named if f"def {name}(" not in tests} == set()


def test_every_place_in_the_code_that_a_page_names_exists() -> None:
    modules = {p.stem for p in (ROOT / "eventflow").glob("*.py")}
    queries = {p.name for p in (ROOT / "sql" / "queries").glob("*.sql")}
    schema = (ROOT / "sql" / "schema.sql").read_text(encoding="utf-8")
    for page in ("architecture.md", "model/README.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert set(re.findall(r"`(\w+)\.py`(?!\])", text)) <= modules
        assert set(re.findall(r"`(\w+\.sql)`", text)) <= queries
        for function in re.findall(r"`eventflow\.(\w+)`(?!\])", text):
            assert f"function eventflow.{function}(" in schema, function
        for module, path in re.findall(r"`(\w+)\.(\w+(?:\.\w+)?)`", text):
            if module in modules and path != "py":
                attrgetter(path)(import_module(f"eventflow.{module}"))


def test_the_layers_in_words_are_those_that_are_held() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    held = [re.findall(r"\w+", layer) for layer in linter["contracts"][0]["layers"]]
    [line] = re.findall(
        r"^(`__main__ \| testing` → .*?);",
        (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    said = [re.findall(r"\w+", layer) for layer in line.split(" → ")]
    assert said == held


def test_every_test_of_a_guarantee_exists() -> None:
    rows = [
        line for line in GUARANTEES.splitlines() if line.startswith("| ") and not line.startswith(("| what", "|---"))
    ]
    assert len(rows) > 20
    for row in rows:
        cited = re.findall(r"`(test_\w+\.py)`: ([^;|]*)", row.rpartition(" | ")[2])
        assert cited, f"no test: {row}"
        for file, names in cited:
            source = "\n".join(place.read_text(encoding="utf-8") for place in (ROOT / "tests").rglob(file))
            functions = re.findall(r"`(test_\w+)`", names)
            assert functions, f"{file} of {row}"
            assert [f for f in functions if f"def {f}(" not in source] == [], file
