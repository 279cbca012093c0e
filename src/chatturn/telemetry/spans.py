"""
Spans as values: what one turn did, when, and inside what, kept until `otlp` sends it.

The spans of a recorder share one trace, the caller's where a valid ``traceparent`` came in.  They nest by a
stack, so they are opened and closed in the order of one task.  Nothing here waits, sends or raises.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NamedTuple, Self

from chatturn.errors import ChatTurnError
from chatturn.telemetry import NULL_SPAN, AttributeValue, Span, SpanKind

__all__ = ["MAX_SPANS", "FinishedSpan", "SpanRecorder", "TraceParent", "parse_traceparent"]

MAX_SPANS: Final = 512
"""What one turn may record; a turn that makes more has a loop, and its first spans show it."""

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 0x01
_RANDOM_TRACE_ID: Final = 0x02


class TraceParent(NamedTuple):
    """
    The span of somebody else's that ours belong under.

    Attributes:
        trace_id: 32 lower-case hex digits.
        span_id: 16 of them.
        flags: The eight bits of the header's last field.
    """

    trace_id: str
    span_id: str
    flags: int

    def header(self) -> str:
        """Return the ``traceparent`` header that names this span: recorded, whatever the flags say."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags & _RANDOM_TRACE_ID | _SAMPLED:02x}"


def parse_traceparent(header: str | None) -> TraceParent | None:
    """
    Read a ``traceparent`` header; None if there is none or it is not valid, for then a new trace begins.

    Source:
        W3C Trace Context, section 3.2: lower case only, no zero ids, version ff is none, and only a version
        after 00 may have further fields.
    """
    match = _TRACEPARENT.fullmatch((header or "").strip(" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, further = match.groups()
    if version == "ff" or (version == "00" and further) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceParent(trace_id, span_id, int(flags, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSpan:
    """
    A piece of work that has ended.

    Attributes:
        parent_span_id: The span around it, here or at the caller's; None for the first of a trace.
        start_ns: Since the epoch, as is `end_ns`, which is never before it.
        error_type: The stable code of what it failed with, or the class where there is no code; None if it
            did not fail.
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


class SpanRecorder:
    """
    The `Tracer` that remembers.

    Beyond *limit* spans it forgets those that begin, and counts them; the ones around them are kept, so the
    tree has no holes.  An exception that leaves a span marks it failed, unless it is a `GeneratorExit`: by
    that a stream learns that its reader has all it wants.

    Args:
        now_ns: Nanoseconds since the epoch.
        new_id: Gives so many random bytes, in lower-case hex.
        parent: The caller's span.  Whether the caller samples it is its own affair: ours are recorded.
        limit: Spans, at most.
    """

    def __init__(
        self,
        *,
        now_ns: Callable[[], int],
        new_id: Callable[[int], str],
        parent: TraceParent | None = None,
        limit: int = MAX_SPANS,
    ) -> None:
        self._now_ns = now_ns
        self._new_id = new_id
        self._parent = parent
        self._limit = limit
        self._trace_id = parent.trace_id if parent else new_id(16)
        self._begun = 0
        self._dropped = 0
        self._open: list[_OpenSpan] = []
        self._finished: list[FinishedSpan] = []

    @property
    def trace_id(self) -> str:
        """The trace that all its spans belong to."""
        return self._trace_id

    @property
    def dropped(self) -> int:
        """How many spans were forgotten because of the limit."""
        return self._dropped

    def span(
        self,
        name: str,
        *,
        kind: SpanKind = "internal",
        attributes: Mapping[str, AttributeValue | None] | None = None,
    ) -> AbstractContextManager[Span]:
        """Begin a span that ends with the ``with`` block, below the innermost one still open."""
        if self._begun == self._limit:
            self._dropped += 1
            return nullcontext(NULL_SPAN)
        self._begun += 1
        return _OpenSpan(self, name, kind, attributes or {})

    def traceparent(self) -> str | None:
        """Return the header that puts another service's spans below the current one; None outside any."""
        if self._open:
            flags = self._parent.flags if self._parent else 0
            return TraceParent(self._trace_id, self._open[-1].span_id, flags).header()
        return self._parent.header() if self._parent else None

    def take(self) -> tuple[FinishedSpan, ...]:
        """Hand over the spans that have ended since the last time, in the order of their ends."""
        taken = tuple(self._finished)
        self._finished.clear()
        return taken

    # What an open span tells its recorder

    def _enter(self, span: "_OpenSpan") -> None:
        around = self._open[-1].span_id if self._open else self._parent.span_id if self._parent else None
        span.parent_span_id = around
        span.span_id = self._new_id(8)
        span.start_ns = self._now_ns()
        self._open.append(span)

    def _exit(self, span: "_OpenSpan") -> None:
        self._open.remove(span)
        self._finished.append(
            FinishedSpan(
                trace_id=self._trace_id,
                span_id=span.span_id,
                parent_span_id=span.parent_span_id,
                name=span.name,
                kind=span.kind,
                start_ns=span.start_ns,
                end_ns=max(span.start_ns, self._now_ns()),
                attributes=dict(span.attributes),
                error_type=span.error_type,
            )
        )


class _OpenSpan:
    __slots__ = (
        "_recorder",
        "attributes",
        "error_type",
        "kind",
        "name",
        "parent_span_id",
        "span_id",
        "start_ns",
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

    def set(self, name: str, value: AttributeValue | None) -> None:
        """Note a fact; None is not noted, and nothing is once the span has ended."""
        if value is not None:
            self.attributes[name] = value

    def fail(self, error_type: str) -> None:
        """Mark it failed; the first mark stays, being the nearest to the cause."""
        self.error_type = self.error_type or error_type

    def __enter__(self) -> Self:
        self._recorder._enter(self)  # noqa: SLF001  the two classes are one mechanism
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, GeneratorExit):
            self.fail(error.code if isinstance(error, ChatTurnError) else type(error).__name__)
        self._recorder._exit(self)  # noqa: SLF001
