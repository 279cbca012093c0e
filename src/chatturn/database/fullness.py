"""How full a database is: its size after each batch, warnings from 80 %, and a probe that writes and deletes a page."""

from collections.abc import Callable, Sequence
from typing import Final

from chatturn.database.api import Database, Result, Statement

__all__ = ["MOST_BYTES", "SizedDatabase", "WriteProbe", "is_full"]

MOST_BYTES: Final = {"paid": 10_000_000_000, "free": 500_000_000}
"""
The largest size of one D1 database in bytes, by plan.

Source:
    developers.cloudflare.com/d1/platform/limits, "Maximum database size".
"""

_TOLD_AT: Final = (0.8, 0.9, 0.95)

# Words of D1, and of SQLite in it, for "nothing more can be stored"; a daily quota ends at midnight UTC.  Where SQLite
# is full it may end the whole transaction, and who then goes back to a savepoint is told only that there is none.
# Source: developers.cloudflare.com/d1/observability/debug-d1; SQLite's result code 13, and lang_transaction.html,
# "Response To Errors Within A Transaction".
_FULL: Final = (
    "sqlite_full",
    "database or disk is full",
    "exceeded maximum db size",
    "exceeded maximum account storage",
    "maximum account storage limit",
    "no such savepoint",
)
_EXCEEDED: Final = ("exceeded", "limit", "daily")

_PROBED_FOR_S: Final = 10.0
_PROBE_BYTES: Final = 8_192
_PROBE: Final = (
    "INSERT OR REPLACE INTO durable_schema_info (version, applied_at) VALUES (-1, ?1)",
    "DELETE FROM durable_schema_info WHERE version = -1 AND ?1 IS NOT NULL",
)


def is_full(message: str) -> bool:
    """Say whether a database's error message means that it is full, or that its quota is used up."""
    said = message.lower()
    return any(text in said for text in _FULL) or all(text in said for text in _EXCEEDED)


class SizedDatabase:
    """
    A database whose size is checked after each batch.

    Args:
        database: The database; its results may carry its size.
        tell: Called with the size in bytes after every batch that reports one.
        warn: Called with the size in bytes when it reaches 80, 90 and 95 % of *most*, at most once for each.
        most: The largest size, in bytes.
    """

    def __init__(
        self, database: Database, *, tell: Callable[[int], None], warn: Callable[[int], None], most: int
    ) -> None:
        self._database = database
        self._tell = tell
        self._warn = warn
        self._warned_at = [round(share * most) for share in _TOLD_AT]

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run *statements* as `Database.batch` promises."""
        results = await self._database.batch(statements)
        if results and (size := results[-1].database_bytes) is not None:
            self._look(size)
        return results

    def _look(self, size: int) -> None:
        self._tell(size)
        reached = [at for at in self._warned_at if size >= at]
        if reached:
            del self._warned_at[: len(reached)]
            self._warn(size)


class WriteProbe:
    """
    Tries whether the database takes writes; after a success, at most once in 10 s.

    Args:
        now: A clock in seconds, with any zero.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._works_until = float("-inf")

    async def require_works(self, database: Database) -> None:
        """
        Write a page and delete it, in one transaction.

        Raises:
            StoreFull: The database is full, or its quota is used up.
            StoreError: The database does not answer, or refuses the write.
        """
        if self._now() < self._works_until:
            return
        await database.batch([Statement(text, ("x" * _PROBE_BYTES,)) for text in _PROBE])
        self._works_until = self._now() + _PROBED_FOR_S
