"""
Faults at the driver: a database that loses replies or does not answer, and a worker that dies.

Nothing is pretended: the database behind is real, and what was applied stays applied.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from chatturn.database.api import Database, Result, Statement
from chatturn.errors import StoreUnavailable

__all__ = ["Crash", "FaultyDatabase", "Fuse", "MortalDatabase"]

Fault = Literal["before", "after"]


class Crash(BaseException):
    """The process died here.  Not an Exception, so that no handler keeps it alive."""


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


class Fuse:
    """
    Decides when a worker dies: at the *point*-th place of its life, from 0; None, never.

    Attributes:
        places: The places it has passed.
    """

    def __init__(self, point: int | None = None) -> None:
        self._point = point
        self.places: list[str] = []
        self.dead = False

    def pass_by(self, place: str) -> None:
        """Pass *place*, or die there; the dead die again wherever they turn up."""
        if self._point == len(self.places):
            self.dead = True
        if self.dead:
            raise Crash(place)
        self.places.append(place)

    def require_alive(self) -> None:
        """Die again, if dead."""
        if self.dead:
            raise Crash("the dead turned up again")

    def around(self, name: str, call: Callable[[], Awaitable[None]]) -> Awaitable[None]:
        """Make *call* with a place to die before and after it."""

        async def mortal() -> None:
            self.pass_by(f"before {name}")
            await call()
            self.pass_by(f"after {name}")

        return mortal()


class MortalDatabase:
    """The database as one worker reaches it: with a place to die before and after every batch."""

    def __init__(self, database: Database, fuse: Fuse) -> None:
        self._database = database
        self._fuse = fuse

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run *statements*, unless the worker dies before; it may die before it hears of the outcome."""
        self._fuse.pass_by("before a batch")
        outcomes = await self._database.batch(statements)
        self._fuse.pass_by("after a batch")
        return outcomes
