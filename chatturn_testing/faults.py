"""A worker's death: a fuse counts the places that the worker passes, and kills it at one of them."""

from collections.abc import Awaitable, Callable, Sequence

from chatturn.database.api import Database, Result, Statement

__all__ = ["Crash", "Fuse", "MortalDatabase"]


class Crash(BaseException):
    """The process died here.  Not an Exception, so that no handler keeps it alive."""


class Fuse:
    """
    Decides when a worker dies: at place number *point* of its life, from 0; None for never.

    Attributes:
        places: The places that the worker has passed.
    """

    def __init__(self, point: int | None = None) -> None:
        self._point = point
        self.places: list[str] = []
        self.dead = False

    def pass_by(self, place: str) -> None:
        """Pass *place*, or die there; a dead worker dies again at every further place."""
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
        """Run *statements*, unless the worker dies before; it may also die before it gets the results."""
        self._fuse.pass_by("before a batch")
        outcomes = await self._database.batch(statements)
        self._fuse.pass_by("after a batch")
        return outcomes
