"""A product for the tests that asks for nothing: its answer says what synchronous HTTP has replaced."""

import json
import urllib.request
from collections.abc import AsyncGenerator

import js

from chatturn.product import ChatTurnHooks, EventBatch, StreamProducer, TurnContext, text_delta

__all__ = ["Hooks"]


class Hooks(ChatTurnHooks):
    """Answer with the names that are replaced, or are there only with it."""

    def produce(self, _context: TurnContext) -> StreamProducer:
        """Look once."""
        return StreamProducer(_answer())


async def _answer() -> AsyncGenerator[EventBatch, None]:
    replaced = ["HTTPHandler"] if urllib.request.HTTPHandler.__module__ != "urllib.request" else []
    added = [name for name in ("XMLHttpRequest", "importScripts", "crossOriginIsolated") if hasattr(js, name)]
    yield [text_delta(json.dumps([*replaced, *added]))]
