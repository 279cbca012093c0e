"""
The contract tests: what every database and store promises.

Each runs twice: on CPython over SQLite, and inside workerd over real D1, where `contract_database` is
another module of the same name.
"""

from collections.abc import Iterator

import pytest

from chatturn.databases import Database
from chatturn.durable.sql import SqlRunStore
from tests.contract_database import open_database
from tests.support.clock import Clock


@pytest.fixture
def database() -> Iterator[Database]:
    """An empty database."""
    with open_database() as database:
        yield database


@pytest.fixture
def clock() -> Clock:
    """The database's clock, in the test's hands."""
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> SqlRunStore:
    """A store on that database, by that clock."""
    return SqlRunStore(database, moment=clock.moment)
