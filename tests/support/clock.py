"""Time in the test's hands, for whoever takes a moment as SQLite's time string."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from chatturn.database.api import NOW, Database, Result, Statement

__all__ = ["AtMoment", "Clock"]


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    def moment(self) -> str:
        """Return the current moment."""
        return self.after(0)

    def after(self, milliseconds: int) -> str:
        """Return the moment that many milliseconds from now."""
        moment = self._now + timedelta(milliseconds=milliseconds)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"

    def advance(self, milliseconds: int) -> None:
        """Let time pass."""
        self._now += timedelta(milliseconds=milliseconds)


@dataclass(frozen=True)
class AtMoment:
    """A database that binds the moment of another clock for `NOW`, whichever driver is below."""

    database: Database
    moment: Callable[[], str]

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run *statements* as `Database.batch` promises."""
        moment = self.moment()
        return await self.database.batch(
            [
                statement._replace(params=tuple(moment if value is NOW else value for value in statement.params))
                for statement in statements
            ]
        )
