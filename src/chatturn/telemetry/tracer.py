"""
The interface for telemetry: the core reports facts, and a tracer collects them.

A tracer only collects; it never waits, never raises and never sends.  `spans.SpanRecorder` keeps what it is
told for `otlp` to encode after the response; `NULL_TRACER` forgets it.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal, Protocol, TypeAlias

__all__ = ["NULL_SPAN", "NULL_TRACER", "AttributeValue", "Span", "SpanKind", "Tracer"]

AttributeValue: TypeAlias = str | bool | int | float | tuple[str, ...]
SpanKind: TypeAlias = Literal["internal", "server", "client"]


class Span(Protocol):
    """A piece of work that has begun and will end."""

    def set(self, name: str, value: AttributeValue | None) -> None:
        """Note a fact about the span; None is ignored."""

    def fail(self, error_type: str) -> None:
        """Mark the span failed, with the stable code of the error, never its message."""

    def traceparent(self) -> str | None:
        """Return the W3C header that makes this span the parent of another service's; None without tracing."""


class Tracer(Protocol):
    """Collects the spans of one turn."""

    def span(
        self,
        name: str,
        *,
        kind: SpanKind = "internal",
        attributes: Mapping[str, AttributeValue | None] | None = None,
    ) -> AbstractContextManager[Span]:
        """Begin a span that ends with the ``with`` block, below the innermost one still open."""

    def traceparent(self) -> str | None:
        """Return the W3C header of the innermost open span; None without tracing."""

    def content(self, said: Any) -> str | None:
        """Return message content, JSON, as an attribute's value; None if spans may not carry it."""


class _NullSpan:
    def set(self, name: str, value: AttributeValue | None) -> None:
        """Forget it."""

    def fail(self, error_type: str) -> None:
        """Forget it."""

    def traceparent(self) -> str | None:
        """Be nobody's parent."""
        return None


NULL_SPAN: Final[Span] = _NullSpan()


class _NullTracer:
    def span(
        self,
        name: str,  # noqa: ARG002
        *,
        kind: SpanKind = "internal",  # noqa: ARG002
        attributes: Mapping[str, AttributeValue | None] | None = None,  # noqa: ARG002
    ) -> AbstractContextManager[Span]:
        """Forget it."""
        return nullcontext(NULL_SPAN)

    def traceparent(self) -> str | None:
        """Be nobody's parent."""
        return None

    def content(self, said: Any) -> str | None:  # noqa: ARG002
        """Show nothing."""
        return None


NULL_TRACER: Final[Tracer] = _NullTracer()
