"""
Stores on this machine, for evaluation harnesses, tests and tools: CPython only, as SQLite is.

They are `SqlRunStore` over SQLite, and so behave as the Worker's store does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from chatturn.database.sqlite import SqliteDatabase, ask_sqlite
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import StoreError

__all__ = ["FileSystemDurableRunStore", "InMemoryDurableRunStore"]

_BUSY_TIMEOUT_S: Final = 5.0


class _LocalRunStore(SqlRunStore):
    """A store that owns its database: opened, and brought to the schema, when it is made."""

    def __init__(self, path: str | Path, moment: Callable[[], str], busy_timeout_s: float) -> None:
        self.sqlite = SqliteDatabase(path, moment=moment, busy_timeout_s=busy_timeout_s)
        try:
            self.sqlite.migrate()
        except StoreError:
            self.sqlite.close()
            raise
        super().__init__(self.sqlite)

    async def close(self) -> None:
        """Close the database; a second time does nothing."""
        self.sqlite.close()


class InMemoryDurableRunStore(_LocalRunStore):
    """
    Durable runs until `close`: each store has a database of its own, and nothing survives it.

    Args:
        moment: The current time as SQLite takes it; the default asks SQLite's own clock.
    """

    def __init__(self, *, moment: Callable[[], str] = ask_sqlite) -> None:
        super().__init__(":memory:", moment, _BUSY_TIMEOUT_S)


class FileSystemDurableRunStore(_LocalRunStore):
    """
    Durable runs in one SQLite file, which any number of processes on this machine may share.

    A file of an older version, or of agent-runtime's own, is brought to the schema when it is opened.  Beside
    it SQLite keeps ``-wal`` and ``-shm`` files while it is open.

    Args:
        path: The file; made if it is absent, with the folders above it.  Run ids are rows in it, never paths.
        moment: The current time as SQLite takes it; the default asks SQLite's own clock.
        busy_timeout_s: How long to wait for another process's transaction.

    Raises:
        StoreUnavailable: Another process holds the file for longer.
        StoreError: It cannot be opened, or is no SQLite database.
    """

    def __init__(
        self, path: str | Path, *, moment: Callable[[], str] = ask_sqlite, busy_timeout_s: float = _BUSY_TIMEOUT_S
    ) -> None:
        # Absolute, because SQLite has names of its own for what is no file: "" and ":memory:".
        self.path = Path(path).absolute()
        if self.path.is_dir():
            raise StoreError(f"{self.path} is a folder; name a file in it")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the folder of {self.path} cannot be made") from error
        super().__init__(self.path, moment, busy_timeout_s)
