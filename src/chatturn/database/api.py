"""
The seam to a database, exactly as wide as D1: a batch of statements, all or none.

There is no ``begin``: D1 has no interactive transaction, so conditions live in the SQL and the caller looks
at ``changes`` or at rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

__all__ = ["NOW", "Database", "Result", "Row", "Statement", "Value"]

Value: TypeAlias = str | int | float | None
"""What a column or parameter holds.  No bytes: D1 returns blobs as lists of numbers, so we store text."""

Row: TypeAlias = Mapping[str, Value]


class _Now(str):
    """What SQLite's time functions take for the current time; told apart from the same text by its identity."""

    __slots__ = ()


NOW: Final[str] = _Now("now")
"""The parameter for the current time, by the database's clock: a driver may bind what another clock says instead."""


@dataclass(frozen=True, slots=True)
class Statement:
    """
    One SQL statement with its parameters.

    Attributes:
        sql: With ``?1``-style placeholders only; at most 100 KB.
        params: In the order of the placeholders, at most 100.  Integers arrive in D1 as REAL: bind ids as
            text, and let INTEGER columns convert.  Not shown: credentials are among them.
    """

    sql: str
    params: tuple[Value, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Result:
    """
    What one statement did.

    Attributes:
        rows: What it returned; empty for a plain write.  Not shown: credentials are among them.
        changes: How many rows it wrote; 0 for a read.  Meaningful only for a statement that writes.
        database_bytes: How large the database is afterwards; None where that is not known.
    """

    rows: Sequence[Row] = field(repr=False)
    changes: int
    database_bytes: int | None = None


class Database(Protocol):
    """A SQL database (SQLite's dialect) that applies batches atomically."""

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """
        Run *statements* in order in one transaction, in one round trip.

        Returns:
            One outcome per statement.

        Raises:
            StoreUnavailable: No answer came.  All of it was applied or none; which of the two is unknown.
            SchemaOutdated: A table or column is missing.  Nothing was applied.
            StoreFull: It is full, or its quota is used up.  Nothing was applied.
            StoreError: A statement was refused.  Nothing was applied.
        """
