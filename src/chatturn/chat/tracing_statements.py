"""
The SQL of a turn's trace, where it is traced.

In fenced ones ``?1`` to ``?3`` are the lease (see `chatturn.durable.statements`); their own parameters start
at ``?4``.
"""

from typing import Final

from chatturn.databases import Statement
from chatturn.durable.statements import HELD

__all__ = ["mark_traced", "read_trace", "record_trace"]

# All attempts at one answer share a trace; where nobody has traced it yet, it begins with this one.
_RECORD_TRACE: Final = f"""
UPDATE chat_turns SET trace_id = ?4, traceparent = ?5, caller_span_id = ?6, traced_by = NULL
WHERE run_id = ?1 AND (traceparent IS NULL OR first_attempt = attempt) AND {HELD}
"""

_READ_TRACE: Final = """
SELECT traceparent, caller_span_id, traced_by, first_attempt,
       CAST(round((julianday(created_at) - 2440587.5) * 86400000) AS INTEGER) AS began_ms
FROM chat_turns WHERE run_id = ?1
"""

_MARK_TRACED: Final = f"UPDATE chat_turns SET traced_by = coalesce(traced_by, attempt) WHERE run_id = ?1 AND {HELD}"


def record_trace(trace_id: str, traceparent: str, caller_span_id: str | None) -> Statement:
    """Record the turn's span, with the claim, unless an earlier attempt has."""
    return Statement(_RECORD_TRACE, (trace_id, traceparent, caller_span_id))


def read_trace(run_id: str) -> Statement:
    """Read what is on record of the turn's trace."""
    return Statement(_READ_TRACE, (run_id,))


def mark_traced() -> Statement:
    """Note, with an attempt's last write, that it sends the turn's span."""
    return Statement(_MARK_TRACED)
