"""
The producer as the engine sees it: only events that are a turn's own, and an error raised, not said.

A product's producer may relay a whole engine's stream, with its own lifecycle and its own errors in it.  The
lifecycle is this engine's to say, once, after it is true; and an in-band error is a failed turn.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from chatturn.chat.log.log import TurnLog
from chatturn.durable.turn import DurableTurnProducer
from chatturn.errors import BackendError, BackendReportedError, HookError
from chatturn.events import (
    LIFECYCLE_PREFIX,
    MESSAGE_PART,
    ChatStreamEvent,
    EventBatch,
    TextAssembly,
    TextDeltas,
    events_of,
)
from chatturn.telemetry.operator_log import OperatorLog

__all__ = ["MAX_ANSWER_BYTES", "MAX_USAGES", "ChatProducer", "Said", "StreamProducer"]

MAX_ANSWER_BYTES: Final = 1_500_000
"""In UTF-8: with its escapes as JSON, an answer up to here fits a row of 2,000,000 bytes."""

MAX_USAGES: Final = 2_000
"""What a producer may report for the ledger: all of it is stored with the answer, in one row of a statement."""

_SAID_AT_ONCE: Final = 1_000
"""Events, so that a large batch is not further ahead of the stored log than it may be."""

_FAILURES = frozenset({"error", LIFECYCLE_PREFIX + "failed", LIFECYCLE_PREFIX + "cancelled"})


class StreamProducer:
    """The simplest producer: a stream of events whose text is in them."""

    def __init__(self, stream: AsyncGenerator[EventBatch, None]) -> None:
        self.stream = stream

    def final_text(self) -> str | None:
        """Leave the text to be assembled from the events."""
        return None


class Said(NamedTuple):
    """Events that were said together, and their lines."""

    events: Sequence[ChatStreamEvent]
    lines: str


@runtime_checkable
class SaysSoFar(Protocol):
    """A producer that knows better than its events what of them is the answer."""

    def said_so_far(self) -> str:
        """Return the answer as far as it has come."""


class ChatProducer:
    """
    A product's producer, filtered and put into lines.

    Encoding happens here, inside the durable turn, so that what cannot be a line fails the attempt for what
    it is.  So do the waits for a database or a reader that is behind: whoever stops the turn ends them, too.

    Args:
        begin: Makes the product's producer.
        turn_log: Numbers the lines.
        log: Takes failures.
        task: Returns what the producer runs in: the turn's steps, once it has begun.
        room: Takes a number of events; waits until they may be said.
        drain: Waits for a reader that is behind.

    Attributes:
        stream: What it says; raises `BackendReportedError` where it reported an error, and `HookError` where
            it says what no line can carry.
        usages: The data of every ``usage`` event so far, of the first `MAX_USAGES`.
    """

    def __init__(
        self,
        begin: Callable[[], Awaitable[DurableTurnProducer[EventBatch]]],
        turn_log: TurnLog,
        log: OperatorLog,
        *,
        task: Callable[[], AbstractAsyncContextManager[None]],
        room: Callable[[int], Awaitable[None]],
        drain: Callable[[], Awaitable[None]],
    ) -> None:
        self._begin = begin
        self._task = task
        self._producer: DurableTurnProducer[EventBatch] | None = None
        self._turn_log = turn_log
        self._log = log
        self._room = room
        self._drain = drain
        self._assembly = TextAssembly()
        self.usages: list[dict[str, Any]] = []
        self._uncounted = False
        self.stream: AsyncGenerator[Said, None] = self._filtered()

    def final_text(self) -> str | None:
        """Return the producer's own text, or else the text of its events, which were delivered already."""
        assembled = self._assembly.text()
        try:
            return (self._producer.final_text() if self._producer is not None else None) or assembled
        except Exception as error:
            if not assembled:
                raise
            self._log("hook.final_text_failed", {"error": error})
            return assembled

    def said_so_far(self) -> str:
        """Return the answer so far: all text, or, where tools are used, what was said behind the last of them."""
        if isinstance(self._producer, SaysSoFar):
            return self._producer.said_so_far()
        return self._assembly.text()

    async def _filtered(self) -> AsyncGenerator[Said, None]:
        self._producer = await self._begin()
        async with self._task(), aclosing(self._producer.stream) as stream:
            async for batch in stream:
                own, failure = self._take(events_of(batch))
                for at in range(0, len(own), _SAID_AT_ONCE):
                    said = own[at : at + _SAID_AT_ONCE]
                    await self._room(len(said))
                    yield Said(said, self._lines(said))
                    await self._drain()
                if failure is not None:
                    raise _reported(failure)

    def _take(self, events: Sequence[ChatStreamEvent]) -> tuple[Sequence[ChatStreamEvent], ChatStreamEvent | None]:
        """Take account of *events*; return those to forward and, if one is a failure, which."""
        if type(events) is TextDeltas:
            self._assembly.add_all(events)
            return events, None
        own: list[ChatStreamEvent] = []
        for event in events:
            kind = event.type
            if kind == MESSAGE_PART:  # nearly always
                self._assembly.add(event)
                own.append(event)
                continue
            if kind in _FAILURES:
                return own, event
            if kind.startswith(LIFECYCLE_PREFIX):
                continue
            if kind == "usage" and isinstance(event.data, dict):
                self._keep_account(event.data)
            self._assembly.add(event)
            own.append(event)
        return own, None

    def _keep_account(self, usage: dict[str, Any]) -> None:
        if len(self.usages) < MAX_USAGES:
            self.usages.append(usage)
        elif not self._uncounted:
            self._uncounted = True
            self._log("usage.unrecorded", {"level": "warning", "most": MAX_USAGES})

    def _lines(self, events: Sequence[ChatStreamEvent]) -> str:
        if self._assembly.size > MAX_ANSWER_BYTES:
            raise BackendError(f"the answer has more than {MAX_ANSWER_BYTES} bytes", backend="producer")
        try:
            return self._turn_log.extend(events)
        except (TypeError, ValueError) as error:
            raise HookError(f"says what no line can carry: {error}", hook="produce") from error


def _reported(event: ChatStreamEvent) -> BackendReportedError:
    message = (event.data or {}).get("message", "")
    return BackendReportedError(f"said {event.type!r}", backend="producer", detail=str(message)[:2048])
