"""The database of the contract tests on CPython: SQLite, as strict as D1."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatturn.databases import Database
from chatturn.databases.sqlite import SqliteDatabase

__all__ = ["open_database"]

_SCHEMA = Path(__file__).parent.parent / "schema.sql"


@contextmanager
def open_database(binding: str = "raw") -> Iterator[Database]:  # noqa: ARG001 - only D1 has two kinds
    """Yield an empty database with the schema applied."""
    with SqliteDatabase(":memory:") as database:
        database.apply_schema(_SCHEMA.read_text())
        yield database
