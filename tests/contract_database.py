"""The database of the contract tests on CPython: SQLite, as strict as D1."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from chatturn.database.api import Database
from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.local_stores import InMemoryDurableRunStore
from chatturn.durable.sql_store import SqlRunStore

__all__ = ["open_database", "open_store"]


@contextmanager
def open_database(binding: str = "raw") -> Iterator[Database]:  # noqa: ARG001 - only D1 has two kinds
    """Yield an empty database with the schema applied."""
    with SqliteDatabase(":memory:") as database:
        database.migrate()
        yield database


@contextmanager
def open_store(moment: Callable[[], str]) -> Iterator[SqlRunStore]:
    """Yield an empty store of the platform's own."""
    store = InMemoryDurableRunStore(moment=moment)
    with store.sqlite:
        yield store
