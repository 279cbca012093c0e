"""A product for the attacks: it answers in ten seconds, a word at a time."""

import asyncio
from collections.abc import AsyncGenerator

from chatturn.product import ChatTurnHooks, EventBatch, StreamProducer, TurnContext, text_delta

__all__ = ["Hooks"]

_WORDS = 20
_PAUSE_S = 0.5


class Hooks(ChatTurnHooks):
    """Answer slowly."""

    def produce(self, _context: TurnContext) -> StreamProducer:
        """Say a word, and wait."""
        return StreamProducer(_say())


async def _say() -> AsyncGenerator[EventBatch, None]:
    for number in range(_WORDS):
        yield [text_delta(f"word {number} ")]
        await asyncio.sleep(_PAUSE_S)
