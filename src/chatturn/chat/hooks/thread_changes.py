"""What a product is told of turns that leave their thread, or come back, because another version counts before them."""

import json
from dataclasses import dataclass
from typing import Final, Literal

from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.database.api import Row
from chatturn.durable.rows import run_from_row

__all__ = ["ON_THREAD_CHANGED", "ThreadChange", "change_from_row"]

ON_THREAD_CHANGED: Final = "on_thread_changed"
"""The hook's name; a call's name adds a slash and the session's revision: ``<hook>/7``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadChange:
    """
    Turns that are in their thread no more, or again: those from `first_turn` to `last_turn` that have an answer.

    Attributes:
        identity: The turn before them of which another version counts now, and that version.
        change: ``detached``: they follow a version that counts no more; ``returned``: it counts again.
        first_turn: The index of the first of them.
        last_turn: The index of the last of them.
        revision: The session's.  It only rises, so who hears of two changes in the wrong order knows the later one.
        idempotency_key: The same at every call for this change, and of no other one.
    """

    identity: ChatTurnIdentity
    change: Literal["detached", "returned"]
    first_turn: int
    last_turn: int
    revision: int
    idempotency_key: str


def change_from_row(row: Row) -> ThreadChange:
    """Return what a call's row says, as `chatturn.chat.hooks.thread_change_sql.read_changes` reads it."""
    payload, hook = json.loads(str(row["payload_json"])), str(row["hook"])
    return ThreadChange(
        identity=ChatTurnIdentity(
            tenant_id=str(row["tenant_id"]),
            session_id=str(row["session_id"]),
            user_id=str(row["user_id"]),
            turn_index=int(row["turn_index"] or 0),
            version=int(row["version"] or 1),
        ),
        change=payload["change"],
        first_turn=payload["first"],
        last_turn=payload["last"],
        revision=int(hook.rpartition("/")[2]),
        idempotency_key=f"{run_from_row(row).key_name}/{row['call_attempt']}/{hook}",
    )
