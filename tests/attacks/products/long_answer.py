"""A product for the attacks: it thinks for two megabytes, and answers in a word."""

import random
from collections.abc import AsyncGenerator

from chatturn.product import ChatTurnHooks, EventBatch, StreamProducer, TurnContext, reasoning_delta, text_delta

__all__ = ["Hooks"]

_PIECES = 200
_PIECE_CHARACTERS = 10_000


class Hooks(ChatTurnHooks):
    """Think, and answer."""

    def produce(self, _context: TurnContext) -> StreamProducer:
        """Think of nothing that could be told more shortly."""
        return StreamProducer(_think())


async def _think() -> AsyncGenerator[EventBatch, None]:
    chance = random.Random(0)
    for _ in range(_PIECES):
        yield [reasoning_delta("".join(chance.choices("abcdefghijklmnop ", k=_PIECE_CHARACTERS)))]
    yield [text_delta("done")]
