"""
The seam to a database, exactly as wide as D1: a batch of statements, all or none.

There is no ``begin``: D1 has no interactive transaction, so conditions stand in the SQL, and the caller reads
``changes`` or the rows.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

__all__ = ["NOW", "Database", "Result", "Row", "Statement", "Value"]

Value: TypeAlias = str | int | float | None
"""The value of a column or parameter.  No bytes: D1 returns blobs as lists of numbers, so we store text."""

Row: TypeAlias = Mapping[str, Value]


class _Now(str):
    """``"now"``, SQLite's word for the current time; recognised by its identity, not by its text."""

    __slots__ = ()


NOW: Final[str] = _Now("now")
"""The parameter for the current time, by the database's clock; a driver may bind another clock's time instead."""


class Statement(NamedTuple):
    """
    One SQL statement with its parameters.

    Attributes:
        sql: With ``?1``-style placeholders only; at most 100 KB.
        params: In the order of the placeholders, at most 100.  Integers arrive in D1 as REAL: bind ids as
            text, and let INTEGER columns convert.  Not in the repr: it may hold credentials.
    """

    sql: str
    params: tuple[Value, ...] = ()

    def __repr__(self) -> str:
        return f"Statement(sql={self.sql!r})"


class Result(NamedTuple):
    """
    The result of one statement.

    Attributes:
        rows: The returned rows; empty for a plain write.  Not in the repr: they may hold credentials.
        changes: How many rows it wrote; 0 for a read.  Use it only for a statement that writes.
        database_bytes: How large the database is afterwards; None where that is not known.
    """

    rows: Sequence[Row]
    changes: int
    database_bytes: int | None = None

    def __repr__(self) -> str:
        return f"Result(changes={self.changes}, database_bytes={self.database_bytes})"


class Database(Protocol):
    """A SQL database (SQLite's dialect) that applies batches atomically."""

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """
        Run *statements* in order in one transaction, in one round trip.

        Returns:
            One outcome per statement.

        Raises:
            StoreUnavailable: No reply came.  The batch was applied whole or not at all; which of the two is unknown.
            SchemaOutdated: A table or column is missing.  Nothing was applied.
            StoreFull: The database is full, or its quota is used up.  Nothing was applied.
            StoreError: A statement was refused.  Nothing was applied.
        """
