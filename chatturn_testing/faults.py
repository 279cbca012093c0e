"""Where a worker dies: a fuse that burns at one of the places that it passes."""

from collections.abc import Awaitable, Callable, Sequence

from chatturn.database.api import Database, Result, Statement

__all__ = ["Crash", "Fuse", "MortalDatabase"]


class Crash(BaseException):
    """The process died here.  Not an Exception, so that no handler keeps it alive."""


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
