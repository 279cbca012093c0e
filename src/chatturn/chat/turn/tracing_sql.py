"""The SQL that is run only for a turn that is traced; the rest of its trace is in `chatturn.chat.turn.sql`."""

from typing import Final

from chatturn.database.api import Statement
from chatturn.durable.sql.runs import HELD

__all__ = ["mark_traced"]

_MARK_TRACED: Final = f"UPDATE chat_turns SET traced_by = coalesce(traced_by, attempt) WHERE run_id = ?1 AND {HELD}"


def mark_traced() -> Statement:
    """Note, with an attempt's last write, that it sends the turn's span."""
    return Statement(_MARK_TRACED)
