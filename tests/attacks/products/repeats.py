"""A product for the attacks: it answers with what it was asked, and redacts that as `products.legal` does."""

from collections.abc import AsyncGenerator

from chatturn.product import EventBatch, StreamProducer, TurnContext, text_delta
from products import legal

__all__ = ["Hooks"]


class Hooks(legal.Hooks):
    """Repeat the message; the echo model would cut a long one short."""

    def produce(self, context: TurnContext) -> StreamProducer:
        """Say the message."""
        return StreamProducer(_say(context.user_message))


async def _say(message: str) -> AsyncGenerator[EventBatch, None]:
    yield [text_delta(message)]
