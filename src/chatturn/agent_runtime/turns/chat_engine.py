"""`DurableChatTurnEngine`: opens chat turns; the turn itself is `chatturn.chat.turn.turn`."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from chatturn.chat.requests import TurnInput
from chatturn.chat.turn.sinks import PullSink
from chatturn.chat.turn.turn import OpenTurn, open_turn, run_turn

__all__ = ["CONTENT_TYPE", "ChatTurnResult", "DurableChatTurnEngine", "RunChatTurnInput", "durable_chat_turn_engine"]

CONTENT_TYPE: Final = "application/x-ndjson"

RunChatTurnInput: TypeAlias = TurnInput
"""What `DurableChatTurnEngine.run_turn` takes, as agent-runtime calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurnResult:
    """A turn's lines as a body, for callers who pull."""

    body: AsyncIterator[str]
    content_type: str = CONTENT_TYPE


class DurableChatTurnEngine:
    """Runs chat turns.  It has no state: one instance serves every request."""

    async def open(self, turn: TurnInput) -> OpenTurn:
        """Claim the turn, in one round trip, and return it ready to run; see `open_turn`."""
        return await open_turn(turn)

    def run_turn(self, turn: TurnInput) -> ChatTurnResult:
        """
        Run the turn as its body is read; an error becomes a line, and is never raised.

        A reader that stops early does not stop the turn: it goes on in the background, and is stored.
        """
        sink = PullSink()
        return ChatTurnResult(body=sink.pull(run_turn(turn, sink)))


durable_chat_turn_engine: Final = DurableChatTurnEngine()
