"""
The producer as the engine sees it: only events that are a turn's own, and an error raised, not said.

A product's producer may relay a whole engine's stream, with its own lifecycle and its own errors in it.  The
lifecycle is this engine's to say, once, after it is true; and an in-band error is a failed turn.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from chatturn.durable.turn import DurableTurnProducer
from chatturn.errors import BackendReportedError
from chatturn.events import LIFECYCLE_PREFIX, ChatStreamEvent, EventBatch, TextAssembly
from chatturn.telemetry.logs import Log

__all__ = ["ChatProducer", "StreamProducer"]

_FAILURES = frozenset({"error", LIFECYCLE_PREFIX + "failed", LIFECYCLE_PREFIX + "cancelled"})


class StreamProducer:
    """The simplest producer: a stream of events whose text is in them."""

    def __init__(self, stream: AsyncGenerator[EventBatch, None]) -> None:
        self.stream = stream

    def final_text(self) -> str | None:
        """Leave the text to be assembled from the events."""
        return None


class ChatProducer:
    """
    A product's producer, filtered.

    Attributes:
        stream: Its events, in lists; raises `BackendReportedError` where it reported an error.
        usages: The data of every ``usage`` event so far.
    """

    def __init__(self, producer: DurableTurnProducer[EventBatch], log: Log) -> None:
        self._producer = producer
        self._log = log
        self._assembly = TextAssembly()
        self.usages: list[dict[str, Any]] = []
        self.stream: AsyncGenerator[list[ChatStreamEvent], None] = self._filtered()

    def final_text(self) -> str | None:
        """Return the producer's own text, or else the text of its events, which were delivered already."""
        assembled = self._assembly.text()
        try:
            return self._producer.final_text() or assembled
        except Exception as error:
            if not assembled:
                raise
            self._log("hook.final_text_failed", {"error": error})
            return assembled

    async def _filtered(self) -> AsyncGenerator[list[ChatStreamEvent], None]:
        async with aclosing(self._producer.stream) as stream:
            async for batch in stream:
                events = batch if isinstance(batch, list) else [batch]
                own, failure = self._take(events)
                if own:
                    yield own
                if failure is not None:
                    raise _reported(failure)

    def _take(self, events: list[ChatStreamEvent]) -> tuple[list[ChatStreamEvent], ChatStreamEvent | None]:
        """Take account of *events*; return those to forward and, if one is a failure, which."""
        own: list[ChatStreamEvent] = []
        for event in events:
            kind = event.type
            if kind in _FAILURES:
                return own, event
            if kind.startswith(LIFECYCLE_PREFIX):
                continue
            if kind == "usage" and event.data is not None:
                self.usages.append(event.data)
            self._assembly.add(event)
            own.append(event)
        return own, None


def _reported(event: ChatStreamEvent) -> BackendReportedError:
    message = (event.data or {}).get("message", "")
    return BackendReportedError(f"said {event.type!r}", backend="producer", detail=str(message)[:2048])
