"""
Faults at the driver: a database that loses replies or does not answer.

Nothing is pretended: the database behind is real, and what was applied stays applied.
"""

import asyncio
from collections.abc import Sequence
from typing import Literal

from chatturn.database.api import Database, Result, Statement
from chatturn.errors import StoreUnavailable

__all__ = ["FaultyDatabase"]

Fault = Literal["before", "after"]


class FaultyDatabase:
    """
    A database that fails where it is told to.

    Attributes:
        batches: How many batches it was asked for.
        faults: What goes wrong with which batch, by its number from 0: no answer and not applied (``before``),
            or applied and no answer (``after``).
        slow: How many seconds the reply to a batch takes, by its number; what it does is done at once.
        errors: What asking for a batch raises instead, by its number.
        down: While true, no batch is answered or applied.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.batches = 0
        self.faults: dict[int, Fault] = {}
        self.slow: dict[int, float] = {}
        self.errors: dict[int, Exception] = {}
        self.down = False
        self.statements: list[Sequence[Statement]] = []

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run *statements*, or fail as told."""
        number = self.batches
        fault = self.faults.get(number)
        self.batches += 1
        if error := self.errors.get(number):
            raise error
        if self.down or fault == "before":
            raise StoreUnavailable("no answer (not applied)")
        outcomes = await self._database.batch(statements)
        self.statements.append(statements)
        if number in self.slow:
            await asyncio.sleep(self.slow[number])
        if fault == "after":
            raise StoreUnavailable("no answer (applied)")
        return outcomes
