"""
The producer as the engine sees it: only events that are a turn's own, and an error raised, not said.

A product's producer may relay a whole engine's stream, with its own lifecycle and its own errors in it.  The
lifecycle is this engine's to say, once, after it is true; and an in-band error is a failed turn.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, NamedTuple

from chatturn.chat.hooks.hooks import DurableTurnProducer
from chatturn.chat.log.log import TurnLog
from chatturn.chat.log.writer import LogWriter
from chatturn.chat.turn.reader import Reader
from chatturn.durable.context import DurableContext
from chatturn.errors import BackendReportedError, HookError
from chatturn.events import (
    LIFECYCLE_PREFIX,
    MESSAGE_PART,
    ChatStreamEvent,
    EventBatch,
    TextAssembly,
    TextDeltas,
    events_of,
    is_answer,
    pieces_of,
    text_delta,
)
from chatturn.telemetry.operator_log import OperatorLog

__all__ = ["MAX_ANSWER_BYTES", "ChatProducer", "Said", "StreamProducer"]

MAX_ANSWER_BYTES: Final = 1_500_000
"""The longest answer in bytes of UTF-8: as JSON, with its escapes, it fits D1's row of 2,000,000 bytes."""

_MOST_BYTES_OF_A_CHARACTER: Final = 4

_SAID_AT_ONCE: Final = 1_000
"""Events per batch: a larger batch could be further ahead of the stored log than `MAX_AHEAD` lines."""

_FAILURES = frozenset({"error", LIFECYCLE_PREFIX + "failed", LIFECYCLE_PREFIX + "cancelled"})


class StreamProducer:
    """The simplest producer: a stream of events whose text is in them."""

    def __init__(self, stream: AsyncGenerator[EventBatch, None]) -> None:
        self.stream = stream

    def final_text(self) -> str | None:
        """Leave the text to be assembled from the events."""
        return None


class Said(NamedTuple):
    """Events of one batch, and their lines."""

    events: Sequence[ChatStreamEvent]
    lines: str


class ChatProducer:
    """
    A product's producer, filtered and put into lines.

    Encoding happens here, inside the attempt, so that an event that cannot be a line fails the attempt with its own
    error.  The waits for a database or a reader that is behind happen here, too, so that stopping the turn ends them.

    Args:
        producer: The product's.
        steps: The steps that it may have.
        log: Numbers the lines.
        writer: Waits until there is room for further lines.
        reader: Is waited for if it is behind.
        report: Takes failures.

    Attributes:
        stream: The batches; raises `BackendReportedError` where the producer reported an error, and `HookError` where
            an event fits no line.  It ends where the answer reaches `MAX_ANSWER_BYTES`.
        is_full: Whether the answer was cut at `MAX_ANSWER_BYTES`.
    """

    def __init__(
        self,
        producer: DurableTurnProducer[EventBatch],
        steps: DurableContext,
        log: TurnLog,
        *,
        writer: LogWriter,
        reader: Reader,
        report: OperatorLog,
    ) -> None:
        self._producer = producer
        self._steps = steps
        self._log = log
        self._writer = writer
        self._reader = reader
        self._report = report
        self._assembly = TextAssembly()
        self.is_full = False
        self.stream: AsyncGenerator[Said, None] = self._filtered()

    def final_text(self) -> str | None:
        """
        Return the producer's own text, or else the text of its events, which were delivered already.

        It is cut to `MAX_ANSWER_BYTES`; then `is_full` says so.
        """
        text = self.said_so_far() if self.is_full else self._whole_text()
        if text is None or len(text) * _MOST_BYTES_OF_A_CHARACTER <= MAX_ANSWER_BYTES:
            return text
        fitting = _cut(text, MAX_ANSWER_BYTES)
        if len(fitting) < len(text) and not self.is_full:
            self._fill()
        return fitting

    def _whole_text(self) -> str | None:
        assembled = self._assembly.text()
        try:
            return self._producer.final_text() or assembled
        except Exception as error:
            if not assembled:
                raise
            self._report("hook.final_text_failed", {"error": error})
            return assembled

    def said_so_far(self) -> str:
        """Return the answer so far: all text, or, where tools are used, what was said behind the last of them."""
        said_so_far: Callable[[], str] = getattr(self._producer, "said_so_far", self._assembly.text)
        return said_so_far()

    def kept(self) -> Mapping[str, Any]:
        """Return what the API of the answer wants back with it, as far as the producer knows."""
        kept: Callable[[], Mapping[str, Any]] = getattr(self._producer, "kept", dict)
        return kept()

    async def _filtered(self) -> AsyncGenerator[Said, None]:
        async with self._steps.task(), aclosing(self._producer.stream) as stream:
            async for batch in stream:
                try:
                    size = self._assembly.size
                    own, failure = self._take(events_of(batch))
                    if self._assembly.size > MAX_ANSWER_BYTES:
                        own = _fitting(own, MAX_ANSWER_BYTES - size)
                        self._fill()
                    for at in range(0, len(own), _SAID_AT_ONCE):
                        said = own[at : at + _SAID_AT_ONCE]
                        await self._writer.room(len(said))
                        yield Said(said, self._lines(said))
                        await self._reader.drain()
                except BaseException as error:
                    # Before the producer is closed: the attempt is over, and the next attempt may take another way.
                    self._steps.stop(error)
                    raise
                if failure is not None:
                    self._steps.stop(reported := _reported(failure))
                    raise reported
                if self.is_full:
                    self._steps.stop(None)
                    return

    def _take(self, events: Sequence[ChatStreamEvent]) -> tuple[Sequence[ChatStreamEvent], ChatStreamEvent | None]:
        """Take account of *events*; return the events to forward and, if one is a failure, the failure."""
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
            self._assembly.add(event)
            own.append(event)
        return own, None

    def _fill(self) -> None:
        """Take note that no more can be stored: the text so far is the answer, and is not paid for again."""
        self.is_full = True
        self._report("answer.too_large", {"level": "warning", "run_id": self._steps.run_id, "most": MAX_ANSWER_BYTES})

    def _lines(self, events: Sequence[ChatStreamEvent]) -> str:
        try:
            return self._log.extend(events)
        except (TypeError, ValueError) as error:
            raise HookError(f"says what no line can carry: {error}", hook="produce") from error


def _fitting(events: Sequence[ChatStreamEvent], most_bytes: int) -> list[ChatStreamEvent]:
    """Return the deltas of *events*, cut to *most_bytes* of text; an event with a whole text is left out."""
    if type(events) is TextDeltas:
        text = events.text()
    else:
        deltas = ((event.data or {}).get("delta") for event in events if is_answer(event))
        text = "".join(delta for delta in deltas if isinstance(delta, str))
    return list(map(text_delta, pieces_of(_cut(text, most_bytes))))


def _cut(text: str, most_bytes: int) -> str:
    return text.encode("utf-8", "replace")[: max(0, most_bytes)].decode("utf-8", "ignore")


def _reported(event: ChatStreamEvent) -> BackendReportedError:
    message = (event.data or {}).get("message", "")
    return BackendReportedError(f"said {event.type!r}", backend="producer", detail=str(message)[:2048])
