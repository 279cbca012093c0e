"""
The interfaces through which a turn tells its telemetry.

Without telemetry there are no ids, no spans and no statements.
"""

from collections.abc import Mapping
from typing import Protocol

from chatturn.database.api import Database
from chatturn.telemetry.attempt_facts import AttemptEnd, AttemptStart
from chatturn.telemetry.tracer import AttributeValue, Tracer
from chatturn.telemetry.w3c import TraceParent

__all__ = ["RequestTracing", "TurnTracing"]


class TurnTracing(Protocol):
    """The telemetry of one attempt: `chatturn.telemetry.otlp.turns.TurnTrace`."""

    @property
    def tracer(self) -> Tracer:
        """Takes the spans below the attempt's."""

    @property
    def turn(self) -> TraceParent:
        """The turn's span, as it is to be stored if the turn has none yet."""

    @property
    def caller_span_id(self) -> str | None:
        """The id of the span around the turn's span."""

    def log(self, event: str, particulars: Mapping[str, object]) -> None:
        """Log what belongs to the attempt."""

    def around(self, database: Database) -> Database:
        """Return *database*, its batches traced."""

    def claimed(self, start: AttemptStart) -> None:
        """Take what the claim found."""

    def sends_turn(self, *, failed: bool) -> bool:
        """Say, before the attempt's end is stored, whether it sends the turn's span."""

    def ended(self, end: AttemptEnd) -> None:
        """Take how the attempt ended."""

    async def flush(self) -> None:
        """Send what has gathered; never raises."""


class RequestTracing(Protocol):
    """The telemetry of one request."""

    def turn(self, about: Mapping[str, AttributeValue]) -> TurnTracing:
        """Begin an attempt at the turn that has these attributes."""
