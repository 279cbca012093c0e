"""
Log lines: the one place that shows failures which no caller sees.

Each part of the core that goes on after a failure is given an `OperatorLog` and logs to it.  No default is silent.
The platform stamps each line with its time.
"""

import json
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

from chatturn.errors import BackendError, ChatTurnError
from chatturn.telemetry.redaction import REDACTED, is_secret_name, without_secrets

__all__ = ["OperatorLog", "json_line_log", "log_record", "print_log"]

OperatorLog: TypeAlias = Callable[[str, Mapping[str, object]], None]
"""
Takes what happened, as a dotted name (``outbox.delivery_failed``), and the particulars.

An exception among them is written with its class, code and message, and makes the line an error; a member
``level`` overrides that.  It never raises.
"""

MAX_TEXT: Final = 4_096
"""Characters kept of one text."""

_MAX_DEPTH: Final = 6
_MAX_NUMBER: Final = 1e300


def json_line_log(write: Callable[[str], object]) -> OperatorLog:
    """
    Return a log that gives *write* one line of JSON for each record: level, event, then the particulars.

    The line is ASCII without a line end.  Values whose names say that they are secret, and tokens and keys
    inside texts, are replaced; long texts are cut.
    """

    def log(event: str, particulars: Mapping[str, object]) -> None:
        # Nobody can be told that the log itself is broken, and the turn goes on.
        with suppress(Exception):
            write(json.dumps(log_record(event, particulars), separators=(",", ":")))

    return log


def log_record(event: str, particulars: Mapping[str, object]) -> dict[str, object]:
    """Return the record of *event*, JSON: level and event first, secrets replaced, long texts cut."""
    failed = any(isinstance(value, BaseException) for value in particulars.values())
    try:
        members = _members(particulars, 0)
    except Exception as error:  # noqa: BLE001  an exception whose own `__str__` fails, for instance
        failed, members = True, {"unreadable": type(error).__name__}
    return {"level": "error" if failed else "info", "event": event} | members | {"event": event}


def _members(members: Mapping[Any, object], depth: int) -> dict[str, object]:
    return {
        _text(str(name)): REDACTED if is_secret_name(str(name)) else _value(value, depth)
        for name, value in members.items()
    }


def _value(value: object, depth: int) -> object:
    match value:
        case None | int() | float() if value is None or abs(value) <= _MAX_NUMBER:
            return value
        case str():
            return _text(value)
        case BaseException():
            return _error(value)
        case Mapping() if depth < _MAX_DEPTH:
            return _members(value, depth + 1)
        case list() | tuple() if depth < _MAX_DEPTH:
            return [_value(item, depth + 1) for item in value]
        case _:
            return f"<{type(value).__name__}>"


def _error(error: BaseException) -> dict[str, object]:
    """Describe *error*; one that was not raised on purpose is a bug, so it comes with its traceback."""
    described: dict[str, object] = {"type": type(error).__name__, "message": _text(str(error))}
    if isinstance(error, ChatTurnError):
        described["code"] = error.code
        if isinstance(error, BackendError) and error.detail:
            described["detail"] = _text(error.detail)
    elif error.__traceback__:
        described["traceback"] = _text("".join(traceback.format_tb(error.__traceback__))[-MAX_TEXT:])
    if error.__cause__:
        described["cause"] = _text(f"{type(error.__cause__).__name__}: {error.__cause__}")
    return described


def _text(text: str) -> str:
    kept = without_secrets(text[:MAX_TEXT])
    return kept if len(text) <= MAX_TEXT else f"{kept}… ({len(text)} characters)"


print_log: Final[OperatorLog] = json_line_log(print)
"""The default log: standard output, which the platform collects."""
