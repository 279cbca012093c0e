"""The answered turns before one, read from their stored messages."""

import json
from collections.abc import Sequence
from typing import Final

from chatturn.chat.thread.history import PastTurn
from chatturn.database.api import Row

__all__ = ["past_turns"]

_LEFT_OUT: Final = "[images or files, which are too large to be shown again]"


def past_turns(rows: Sequence[Row]) -> list[PastTurn]:
    """
    Make turns of the rows of `chatturn.chat.turn.sql.read_history`, oldest first.

    A turn that was stopped before it said anything is left out: a question is never shown with an empty answer.
    """
    pairs = zip(rows[::2], rows[1::2], strict=False)
    return [_turn(answer, question) for answer, question in pairs if answer["content"]][::-1]


def _turn(answer: Row, question: Row) -> PastTurn:
    reason, kept, parts = answer["finish_reason"], answer["kept_json"], question["parts_json"]
    lacks_parts = bool(question["has_parts"]) and parts is None
    text = f"{question['content']}\n{_LEFT_OUT}".strip() if lacks_parts else str(question["content"])
    return PastTurn(
        turn_index=int(answer["turn_index"] or 0),
        question=text,
        lacks_parts=lacks_parts,
        parts=() if parts is None else json.loads(str(parts)),
        kept={} if kept is None else json.loads(str(kept)),
        answer=str(answer["content"]),
        finish_reason=None if reason is None else str(reason),
    )
