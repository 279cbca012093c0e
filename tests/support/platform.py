"""What an isolate has from outside, on CPython: a database of SQLite, and servers that follow a script."""

from collections.abc import Mapping
from typing import Any

from chatturn.chat.log.live import EventAlarm
from chatturn.database.sqlite import SqliteDatabase
from chatturn.isolate import Platform
from tests.support.transport import ScriptedTransport

__all__ = ["platform"]


async def _never(*_: object) -> bool:
    return False


def platform(
    variables: Mapping[str, object], *, log: list[tuple[str, Mapping[str, object]]] | None = None, **others: Any
) -> Platform:
    """Return one with these vars and secrets; *log* is where log lines go, *others* are in place of what it has."""
    lines = [] if log is None else log
    has: dict[str, Any] = {
        "database": SqliteDatabase(":memory:"),
        "transport": ScriptedTransport([]),
        "binding": None,
        "limiters": {},
        "alarm": EventAlarm,
        "file_store": None,
        "verify": _never,
        "console": lambda event, particulars: lines.append((event, particulars)),
        "uniform": lambda low, _high: low,
        "now": lambda: 0.0,
        "now_ns": lambda: 0,
        "new_id": lambda size: "ab" * size,
    }
    return Platform(variables=variables, **{**has, **others})
