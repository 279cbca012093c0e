"""The answered turns before one, read from their stored messages."""

from collections.abc import Sequence

from chatturn.chat.thread.history import PastTurn
from chatturn.database.api import Row

__all__ = ["past_turns"]


def past_turns(rows: Sequence[Row]) -> list[PastTurn]:
    """
    Make turns of the rows of `chatturn.chat.turn.sql.read_history`, oldest first.

    A turn that was stopped before it said anything is none of them: a question is never shown with an empty answer.
    """
    pairs = zip(rows[::2], rows[1::2], strict=False)
    return [_turn(answer, question) for answer, question in pairs if answer["content"]][::-1]


def _turn(answer: Row, question: Row) -> PastTurn:
    reason = answer["finish_reason"]
    return PastTurn(
        turn_index=int(answer["turn_index"] or 0),
        question=str(question["content"]),
        answer=str(answer["content"]),
        finish_reason=None if reason is None else str(reason),
    )
