"""
D1's own interface, as far as agent-runtime uses it, over any database of chatturn.

A product can keep statements that are written for a binding (``env.DB.prepare(sql).bind(…).first()``): they run on
`D1Database` in the Worker, and in tests on `SqliteDatabase`, which refuses what D1 refuses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypedDict

from chatturn.database.api import Database, Result, Row, Statement, Value

__all__ = ["D1DatabaseLike", "D1Meta", "D1PreparedStatementLike", "D1Result", "as_d1"]


class D1Meta(TypedDict):
    """The number of rows that a statement wrote."""

    changes: int


class D1Result(TypedDict):
    """What a statement returned; one that fails raises instead, so ``success`` is always true."""

    success: bool
    results: list[Mapping[str, Value]]
    meta: D1Meta


class D1PreparedStatementLike(Protocol):
    """One statement; running it raises `StoreError` and its subclasses."""

    def bind(self, *values: Value) -> Self:
        """Return the statement with *values* for its placeholders; this one stays as it is."""

    async def first(self, column: str | None = None) -> Row | Value:
        """Run it, and return the first row, or that row's *column*; None if there is no row."""

    async def all(self) -> D1Result:
        """Run it, and return every row."""

    async def run(self) -> D1Result:
        """Run it, and return what it did."""


class D1DatabaseLike(Protocol):
    """A D1 database."""

    def prepare(self, query: str) -> D1PreparedStatementLike:
        """Return the statement, which has not run yet."""

    async def batch(self, statements: Sequence[D1PreparedStatementLike]) -> list[D1Result]:
        """
        Run statements that this database prepared in one transaction, all or none, in one round trip.

        Raises:
            TypeError: Another database prepared one of them.
            StoreError: As `Database.batch` does.
        """


def as_d1(database: Database) -> D1DatabaseLike:
    """Return *database* with the interface of a D1 binding."""
    return _D1(database)


@dataclass(frozen=True, slots=True)
class _D1:
    database: Database

    def prepare(self, query: str) -> "_Prepared":
        return _Prepared(self.database, Statement(query))

    async def batch(self, statements: Sequence[D1PreparedStatementLike]) -> list[D1Result]:
        ours = [each for each in statements if isinstance(each, _Prepared) and each.database is self.database]
        if len(ours) < len(statements):
            raise TypeError("a batch has statements that another database prepared")
        return [*map(_result, await self.database.batch([each.statement for each in ours]))]


@dataclass(frozen=True, slots=True)
class _Prepared:
    database: Database
    statement: Statement

    def bind(self, *values: Value) -> "_Prepared":
        return replace(self, statement=self.statement._replace(params=values))

    async def first(self, column: str | None = None) -> Row | Value:
        rows = (await self.all())["results"]
        if not rows:
            return None
        return rows[0] if column is None else rows[0][column]

    async def all(self) -> D1Result:
        [result] = await self.database.batch([self.statement])
        return _result(result)

    async def run(self) -> D1Result:
        return await self.all()


def _result(result: Result) -> D1Result:
    return {"success": True, "results": [dict(row) for row in result.rows], "meta": {"changes": result.changes}}
