"""The pages of the guide: each block is a program, and prints what the page says that it prints."""

import itertools
import json
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import opentelemetry.trace
import psycopg
import pytest
from opentelemetry.util._once import Once

from eventflow.migrations import RESULTS, RESULTS_SCHEMA, migrate
from eventflow.registry import registry
from tests.ledgers import empty_database

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}
PAGES = {name: text for name, text in TEXTS.items() if "```python" in text}
_BLOCK = re.compile(r"^## ([^\n]+)(?:(?!^## ).)*?```python\n(.*?)```\n\n```text\n(.*?)```", re.MULTILINE | re.DOTALL)
BLOCKS = [block for text in PAGES.values() for block in _BLOCK.findall(text)]
NUMBERS = itertools.count()


@pytest.mark.parametrize("name", re.findall(r"^\| \[.*?\]\((.*?)\)", TEXTS["guide.md"], re.MULTILINE))
def test_each_page_of_the_guide_has_a_program(name: str) -> None:
    assert name in PAGES


@pytest.mark.parametrize("name", PAGES)
def test_no_block_is_left_out(name: str) -> None:
    text = PAGES[name]
    assert len(_BLOCK.findall(text)) == text.count("```python")


@pytest.fixture(
    scope="module", params=[pytest.param("60", id="stays"), pytest.param("0.05", id="leaves", marks=pytest.mark.long)]
)
def environment(postgres_url: str, kafka_bootstrap: str, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """What waits stays in memory, or leaves it; the programs share a ledger, another database, `shop`, and a broker."""
    with empty_database(postgres_url) as url, empty_database(postgres_url, "shop") as shop:
        migrate(url)
        migrate(shop, schema=RESULTS_SCHEMA, layout=RESULTS)
        yield {
            "DATABASE_URL": url, "EVENTFLOW_SUSPEND_AFTER": request.param,
            "EVENTFLOW_DATABASES": json.dumps({"shop": shop}), "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap,
            "EVENTFLOW_TEST_DATABASE_URL": postgres_url,
        }  # fmt: skip


@pytest.mark.parametrize(("block", "printed"), [pytest.param(b, p, id=title) for title, b, p in BLOCKS])
def test_a_block_prints_what_the_page_says(
    block: str,
    printed: str,
    environment: dict[str, str],
    make_topic: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variable in [name for name in os.environ if name.startswith("EVENTFLOW_")]:
        monkeypatch.delenv(variable)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    if '["TOPIC"]' in block:
        monkeypatch.setenv("TOPIC", make_topic(1))
    monkeypatch.setattr(registry, "specs", {})
    monkeypatch.setattr(registry, "consumers", [])
    monkeypatch.setattr(registry, "transactions", {})
    monkeypatch.setattr(registry, "lifespans", [])
    monkeypatch.setattr(registry, "queues", {})
    monkeypatch.setattr(registry, "schedules", {})
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER", None)  # which can be set once
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("delete from eventflow.queues")  # another block may have paused or changed one of this name
    program = types.ModuleType(f"program_{next(NUMBERS)}")
    monkeypatch.setitem(sys.modules, program.__name__, program)
    file = tmp_path / "program.py"
    file.write_text(block, encoding="utf-8")
    exec(compile(block, str(file), "exec"), program.__dict__)  # noqa: S102
    assert capsys.readouterr().out == printed
