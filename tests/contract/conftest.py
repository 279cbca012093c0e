"""
The contract tests: what every database and store promises.

Each runs twice: on CPython over SQLite, and inside workerd over real D1, where `contract_database` is
another module of the same name.
"""

from collections.abc import Iterator

import pytest

from chatturn.database.api import Database
from chatturn.durable.sql_store import SqlRunStore
from tests.contract_database import open_database, open_store
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    """The database's clock, in the test's hands."""
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Iterator[SqlRunStore]:
    """An empty store, by that clock."""
    with open_store(clock.moment) as store:
        yield store


@pytest.fixture
def database(store: SqlRunStore) -> Database:
    """Where the store's tables are."""
    return store.database


@pytest.fixture
def database_by_its_own_clock() -> Iterator[Database]:
    """An empty database that nobody tells the time."""
    with open_database() as database:
        yield database
