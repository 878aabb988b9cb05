"""What the tests share: the program on a real PostgreSQL, with topics in memory, in time that tests tell."""

from collections.abc import AsyncIterator

import pytest_asyncio
from app import Base
from sqlalchemy import create_engine

from eventflow import testing
from eventflow.testing import Harness


@pytest_asyncio.fixture
async def flow(eventflow_database: str) -> AsyncIterator[Harness]:
    """The running program; `eventflow_database` is eventflow's fixture: an empty database of the test's own."""
    engine = create_engine(eventflow_database.replace("postgresql://", "postgresql+psycopg://", 1))
    Base.metadata.create_all(engine)
    engine.dispose()
    async with testing.harness(eventflow_database) as flow:
        yield flow
