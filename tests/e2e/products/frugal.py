"""A product for the tests that asks for nothing: its answer says what of synchronous HTTP is loaded."""

import json
import sys
from collections.abc import AsyncGenerator

from chatturn.product import ChatTurnHooks, EventBatch, StreamProducer, TurnContext, text_delta

__all__ = ["Hooks"]


class Hooks(ChatTurnHooks):
    """Answer with the modules in question that are loaded."""

    def produce(self, _context: TurnContext) -> StreamProducer:
        """Look once."""
        return StreamProducer(_answer())


async def _answer() -> AsyncGenerator[EventBatch, None]:
    modules = {"chatturn.workerd.sync_http", "pyodide_http", "urllib.request", "requests"}
    yield [text_delta(json.dumps(sorted(modules & set(sys.modules))))]
