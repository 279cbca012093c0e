"""
`Database` over a SQLite file or memory: for evaluation harnesses, tests and local tools (CPython only).

It is as strict as D1, so that a statement which D1 would refuse fails here first.
"""

import sqlite3
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from chatturn.database.api import NOW, Result, Statement, Value
from chatturn.database.migration import migrate
from chatturn.errors import SchemaOutdated, StoreError, StoreFull, StoreUnavailable

__all__ = ["SqliteDatabase", "ask_sqlite", "split_statements"]

# D1's limits.  Source: developers.cloudflare.com/d1/platform/limits
_MOST_PARAMETERS: Final = 100
_MOST_BYTES: Final = 2_000_000
_MOST_SQL_BYTES: Final = 100_000
_LARGEST_INTEGER: Final = 2**53 - 2  # Pyodide turns a larger int into a bigint, which D1 refuses

_BUSY_TIMEOUT_S: Final = 5.0
_SWITCH_TRIES: Final = 10

T = TypeVar("T")


def ask_sqlite() -> str:
    """Leave the current time to SQLite's own clock."""
    return "now"


class SqliteDatabase:
    """
    One SQLite database, opened until `close`.

    Args:
        path: A file, created if absent and shared with other processes through a write-ahead log; or
            ``:memory:``.
        moment: Returns the current time for SQLite, a timestamp or ``now``; it is bound in place of `NOW`.
        busy_timeout_s: How long to wait for another process's transaction.

    Raises:
        StoreUnavailable: Another process holds the file for longer.
        StoreError: *path* is no SQLite database, or cannot be opened.
    """

    def __init__(
        self, path: str | Path, *, moment: Callable[[], str] = ask_sqlite, busy_timeout_s: float = _BUSY_TIMEOUT_S
    ) -> None:
        self._moment = moment
        with _translation():
            self._connection = sqlite3.connect(
                path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
            )
        self._connection.row_factory = sqlite3.Row
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, _MOST_PARAMETERS)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_BYTES)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _MOST_SQL_BYTES)
        try:
            with _translation():
                self._use_write_ahead_log()
                # FULL, because an answer that was reported as stored must survive a power cut.
                self._connection.execute("PRAGMA synchronous = FULL")
        except StoreError:
            self.close()
            raise

    def _use_write_ahead_log(self) -> None:
        """Switch a file to the write-ahead log; SQLite refuses some of several switches at once without waiting."""
        for tries_left in reversed(range(_SWITCH_TRIES)):
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if not tries_left:
                    raise
                # Unlike the switch, BEGIN IMMEDIATE waits for the other process.
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.execute("ROLLBACK")
            else:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; a second time does nothing."""
        self._connection.close()

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run *statements* as `Database.batch` promises; it does not yield to the event loop."""
        with _translation():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                outcomes = [self._run(statement) for statement in statements]
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        return outcomes

    def migrate(self) -> int:
        """Bring the database to the schema, as `migration.migrate` does, for callers without an event loop."""
        return _ended(migrate(self))

    def apply_schema(self, script: str) -> None:
        """Run *script* statement by statement, as D1 does."""
        with _translation():
            for sql in split_statements(script):
                self._connection.execute(sql)

    def copy_from(self, other: Self) -> None:
        """Make this database what *other* is; what it held is gone.  An empty schema takes 0.1 ms so, instead of 18."""
        with _translation():
            other._connection.backup(self._connection)

    def _run(self, statement: Statement) -> Result:
        cursor = self._connection.execute(statement.sql, tuple(map(self._bound, statement.params)))
        rows = [dict(row) for row in cursor.fetchall()]
        return Result(rows=rows, changes=max(cursor.rowcount, 0))

    def _bound(self, value: Value) -> Value:
        return self._moment() if value is NOW else _as_d1_binds(value)


def _as_d1_binds(value: Value) -> Value:
    """Bind as D1 does, where every number is a JavaScript number and arrives as REAL."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        message = f"D1 cannot bind {value!r}"
        raise StoreError(message)
    if isinstance(value, int):
        if abs(value) > _LARGEST_INTEGER:
            message = f"D1 cannot bind {value}: it is too large"
            raise StoreError(message)
        return float(value)
    return value


def _ended(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, as every batch here, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    coroutine.close()
    raise RuntimeError("a batch waited for something")


@contextmanager
def _translation() -> Iterator[None]:
    """Turn SQLite's errors into `StoreError` and its subclasses."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error) from error
    except UnicodeEncodeError as error:
        raise StoreError("half a surrogate pair cannot be stored") from error


def _translated(error: sqlite3.Error) -> StoreError:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(str(error))
    if code is not None and code & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR}:
        return StoreUnavailable(str(error))
    text = str(error)
    if text.startswith("no such table") or "no such column" in text or "has no column named" in text:
        return SchemaOutdated(text)
    return StoreError(text)


def split_statements(script: str) -> list[str]:
    """Split *script* into its statements; comments and ``;`` inside literals are understood by SQLite itself."""
    statements: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending.strip())
            pending = ""
    if any(line.strip() and not line.lstrip().startswith("--") for line in pending.splitlines()):
        message = f"the script ends inside a statement: {pending.strip()[:80]!r}"
        raise ValueError(message)
    return statements
