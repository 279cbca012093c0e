"""
Spans as values: what one attempt did, when, and inside which span, kept until `otlp` sends them.

The spans of a recorder share one trace.  Each belongs to the innermost one that its own task has open, or, if that has
none, to the one around them all.  Nothing here waits, sends or raises.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from chatturn.errors import ChatTurnError
from chatturn.telemetry.content import content_text
from chatturn.telemetry.tracer import NULL_SPAN, AttributeValue, Span, SpanKind
from chatturn.telemetry.w3c import SAMPLED, TraceParent, parse_traceparent

__all__ = ["MAX_SPANS", "FinishedSpan", "SpanLink", "SpanRecorder", "TraceParent", "parse_traceparent"]

MAX_SPANS: Final = 512
"""Spans of one attempt at most; an attempt with more has a loop, which its first spans show."""


class SpanLink(NamedTuple):
    """
    A related span that is not the parent.

    Attributes:
        reason: The relation, for ``chatturn.link.reason``.
    """

    trace_id: str
    span_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSpan:
    """
    A piece of work that has ended.

    Attributes:
        parent_span_id: The parent, recorded here or at the caller's; None for the first span of a trace.
        start_ns: Nanoseconds since the epoch, as is `end_ns`, which is never earlier.
        error_type: The stable code of its error, or the error's class if it has no code; None if the span
            did not fail.
        links: To other spans.
    """

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: SpanKind
    start_ns: int
    end_ns: int
    attributes: Mapping[str, AttributeValue]
    error_type: str | None
    links: tuple[SpanLink, ...] = ()


class SpanRecorder:
    """
    The `Tracer` that remembers.

    After *limit* spans, new spans are dropped and counted; their parents are kept, so the tree has no holes.
    An exception that leaves a span marks it failed, except `GeneratorExit`, which tells a stream that its
    reader has all it wants.

    Args:
        now_ns: Nanoseconds since the epoch.
        new_id: Takes a number of bytes; returns that many random ones in lower-case hex.
        parent: The parent of the outermost spans; it is not recorded here.
        limit: The number of spans at most.
        shows_content: Whether spans carry message content.
    """

    def __init__(
        self,
        *,
        now_ns: Callable[[], int],
        new_id: Callable[[int], str],
        parent: TraceParent | None = None,
        limit: int = MAX_SPANS,
        shows_content: bool = False,
    ) -> None:
        self._now_ns = now_ns
        self._new_id = new_id
        self._parent = parent
        self._limit = limit
        self._shows_content = shows_content
        self._trace_id = parent.trace_id if parent else new_id(16)
        self._begun = 0
        self._dropped = 0
        self._open: list[_OpenSpan] = []
        self._finished: list[_OpenSpan] = []

    @property
    def trace_id(self) -> str:
        """The id of the trace of all spans."""
        return self._trace_id

    @property
    def dropped(self) -> int:
        """The number of spans dropped because of the limit."""
        return self._dropped

    def join(self, parent: TraceParent) -> None:
        """Make *parent* the parent of the outermost spans, those recorded and those to come."""
        for span in (*self._open, *self._finished):
            if span.parent_span_id == (self._parent.span_id if self._parent else None):
                span.parent_span_id = parent.span_id
        self._parent, self._trace_id = parent, parent.trace_id

    def span(
        self,
        name: str,
        *,
        kind: SpanKind = "internal",
        attributes: Mapping[str, AttributeValue | None] | None = None,
    ) -> AbstractContextManager[Span]:
        """Begin a span that ends with the ``with`` block, below the innermost one that its task has open."""
        if self._begun == self._limit:
            self._dropped += 1
            return nullcontext(NULL_SPAN)
        self._begun += 1
        return _OpenSpan(self, name, kind, attributes or {})

    def traceparent(self) -> str | None:
        """Return the header that makes the current span the parent of another service's; None outside any span."""
        around = self._around()
        return None if around is None else self._header(around)

    def content(self, said: Any) -> str | None:
        """Return message content as an attribute's value; None if spans may not carry it."""
        if not self._shows_content:
            return None
        try:
            return content_text(said)
        except Exception as error:  # noqa: BLE001 - a product may say anything to its model, in any form
            return f"<unreadable: {type(error).__name__}>"

    def take(self) -> tuple[FinishedSpan, ...]:
        """Return the spans that have ended since the last call, in the order of their ends."""
        taken = tuple(span.finished(self._trace_id) for span in self._finished)
        self._finished.clear()
        return taken

    # Callbacks of an open span to its recorder

    def _header(self, span_id: str) -> str:
        flags = SAMPLED if self._parent is None else self._parent.flags
        return TraceParent(self._trace_id, span_id, flags).header()

    def _around(self) -> str | None:
        task = _current_task()
        for span in reversed(self._open):
            if span.task is task:
                return span.span_id
        if self._parent is not None:
            return self._parent.span_id
        return self._open[0].span_id if self._open else None

    def _enter(self, span: "_OpenSpan") -> None:
        span.parent_span_id = self._around()
        span.span_id = self._new_id(8)
        span.task = _current_task()
        span.start_ns = self._now_ns()
        self._open.append(span)

    def _exit(self, span: "_OpenSpan") -> None:
        self._open.remove(span)
        span.end_ns = max(span.start_ns, self._now_ns())
        span.task = None
        self._finished.append(span)


class _OpenSpan:
    __slots__ = (
        "_recorder",
        "attributes",
        "end_ns",
        "error_type",
        "kind",
        "name",
        "parent_span_id",
        "span_id",
        "start_ns",
        "task",
    )

    def __init__(
        self,
        recorder: SpanRecorder,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, AttributeValue | None],
    ) -> None:
        self._recorder = recorder
        self.name = name
        self.kind: SpanKind = kind
        self.attributes = {key: value for key, value in attributes.items() if value is not None}
        self.error_type: str | None = None
        self.parent_span_id: str | None = None
        self.span_id = ""
        self.start_ns = 0
        self.end_ns = 0
        self.task: object = None

    def set(self, name: str, value: AttributeValue | None) -> None:
        """Note a fact; None is ignored, and so is every fact after the span's end."""
        if value is not None and not self.end_ns:
            self.attributes[name] = value

    def fail(self, error_type: str) -> None:
        """Mark the span failed; the first mark stays, since it is nearest to the cause."""
        if not self.end_ns:
            self.error_type = self.error_type or error_type

    def traceparent(self) -> str | None:
        """Return the header that makes this span the parent of another service's spans."""
        return self._recorder._header(self.span_id)  # noqa: SLF001  the two classes are one mechanism

    def finished(self, trace_id: str) -> FinishedSpan:
        """Return the ended span as a value."""
        return FinishedSpan(
            trace_id=trace_id,
            span_id=self.span_id,
            parent_span_id=self.parent_span_id,
            name=self.name,
            kind=self.kind,
            start_ns=self.start_ns,
            end_ns=self.end_ns,
            attributes=self.attributes,
            error_type=self.error_type,
        )

    def __enter__(self) -> Self:
        self._recorder._enter(self)  # noqa: SLF001  the recorder is this class's own
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, GeneratorExit):
            self.fail(error.code if isinstance(error, ChatTurnError) else type(error).__name__)
        self._recorder._exit(self)  # noqa: SLF001  the recorder is this class's own


def _current_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop
        return None
