"""
When a turn that failed may be tried again: at once, but for an API that refused for load or said when to come back.

An earlier request gets the stored failure again: no model call, and no attempt.
"""

from dataclasses import dataclass
from typing import Final

from chatturn.chat.turn.sql import FAILURE_ON_RECORD, MAY_BE_TRIED
from chatturn.database.api import NOW, Row
from chatturn.durable.store import Guard
from chatturn.errors import BackendTransportError, ChatTurnError, QuotaExhausted, error_class

__all__ = ["TooEarly", "not_too_early", "retry_after_ms"]

_OVERLOADED: Final = frozenset({429, 503, 529})
_FIRST_MS: Final = 1_000
_LONGEST_MS: Final = 60_000
_LONGEST_SAID_MS: Final = 24 * 3_600_000
"""The longest wait that is taken from an API, 24 h: nobody waits longer for an answer."""


@dataclass(slots=True)
class TooEarly(Exception):
    """
    The turn failed, and may not be tried again yet.

    Attributes:
        attempt: The attempt that failed, from 1.
        created_at: When the turn was begun.
        kind: The error class with which it failed.
        wait_ms: Until it may be tried again.
    """

    attempt: int
    created_at: str
    kind: type[ChatTurnError]
    wait_ms: int


def retry_after_ms(error: BaseException, idle_attempts: int) -> int:
    """
    Return after how many ms a turn that failed with *error* may be tried again: 0 for at once.

    The API's own wait, up to 24 h, comes first; else, where the API refuses for load, 1 s, doubled with each attempt
    that came no further, up to 60 s.

    Args:
        error: Why it fails.
        idle_attempts: How many attempts in a row have come no further, this attempt included.
    """
    if not isinstance(error, BackendTransportError):
        return 0
    if error.retry_after_ms is not None:
        return min(error.retry_after_ms, _LONGEST_SAID_MS)
    if error.upstream_status not in _OVERLOADED and not isinstance(error, QuotaExhausted):
        return 0
    return min(_FIRST_MS << min(max(0, idle_attempts - 1), 6), _LONGEST_MS)


def not_too_early(run_id: str, manifest_hash: str) -> Guard:
    """Let nobody claim a turn that failed, with the same question, before it may be tried again."""
    return Guard(sql=MAY_BE_TRIED, params=(run_id, manifest_hash, NOW), refusal=_too_early, told=FAILURE_ON_RECORD)


def _too_early(row: Row) -> Exception:
    kind = error_class(None if row["code"] is None else str(row["code"]))
    wait_ms = max(1, int(row["wait_ms"] or 0))
    return TooEarly(attempt=int(row["epoch"] or 1), created_at=str(row["created_at"]), kind=kind, wait_ms=wait_ms)
