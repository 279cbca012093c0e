"""
The seam between a turn and its telemetry: what the turn tells, and when.

Where nobody listens there is none of this: no ids, no spans, no statements.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from chatturn.chat.identity import ChatTurnIdentity, turn_run_id
from chatturn.chat.turn import tracing_sql as sql
from chatturn.chat.usage.calls import ModelCall
from chatturn.database.api import Database, Row, Statement
from chatturn.durable.settling import TurnEnd, code_of
from chatturn.telemetry import conventions as names
from chatturn.telemetry.attempt_facts import UNTRACED, AttemptEnd, AttemptStart, CallFacts, TraceOnRecord, TurnOutcome
from chatturn.telemetry.tracer import NULL_TRACER, AttributeValue, Tracer
from chatturn.telemetry.w3c import TraceParent

__all__ = [
    "RequestTracing",
    "TurnTracing",
    "attributes_of_turn",
    "begin_with",
    "end_with",
    "found",
    "tell_end",
    "tracer_of",
]


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
        """The span around it."""

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


def attributes_of_turn(identity: ChatTurnIdentity, project_id: str) -> Mapping[str, AttributeValue]:
    """Return what every span of a turn's own says about it."""
    return {
        names.AGENT_NAME: project_id,
        names.CONVERSATION_ID: identity.session_id,
        names.TURN_TENANT_ID: identity.tenant_id,
        names.TURN_RUN_ID: turn_run_id(identity),
        names.TURN_INDEX: identity.turn_index,
    }


def tracer_of(tracing: TurnTracing | None) -> Tracer:
    """Return what takes the turn's spans."""
    return NULL_TRACER if tracing is None else tracing.tracer


def begin_with(tracing: TurnTracing | None) -> Sequence[str | None]:
    """Return what the claim records of the trace, see `chatturn.chat.turn.sql.begin_turn`."""
    if tracing is None:
        return (None, None, None)
    return (tracing.turn.trace_id, tracing.turn.header(), tracing.caller_span_id)


def found(rows: Sequence[Row], *, attempt: int, replayed: bool) -> AttemptStart:
    """
    Return what the claim found.

    Args:
        rows: Of `chatturn.chat.turn.sql.read_place`.
        attempt: Which one this is.
        replayed: Whether the turn had finished before.
    """
    row = rows[0] if rows else None
    on_record = UNTRACED if row is None else _on_record(row)
    first = 1 if row is None else int(row["first_attempt"] or 1)
    # Of attempts that were lost one after another, none has told of those before it.
    lost = 0 if row is None or replayed else attempt - max(first, int(row["last_ended"] or 0) + 1)
    return AttemptStart(attempt=attempt, first_attempt=first, lost=lost, replayed=replayed, on_record=on_record)


def end_with(tracing: TurnTracing | None, end: TurnEnd) -> list[Statement]:
    """Return what joins the attempt's last write."""
    return [sql.mark_traced()] if tracing is not None and tracing.sends_turn(failed=end.error is not None) else []


def tell_end(
    tracing: TurnTracing,
    end: TurnEnd | None,
    failure: BaseException | None,
    calls: Sequence[ModelCall],
    *,
    replayed: bool,
    provider: str,
    question: str,
) -> None:
    """
    Tell how an attempt ended.

    Args:
        tracing: Whom.
        end: As it is stored; None if it is not known to be.
        failure: What went wrong, if anything did.
        calls: Its model calls.
        replayed: Whether there was none to make.
        provider: Who runs the model.
        question: What the user said.
    """
    error = failure if end is None else end.error
    tracing.ended(
        AttemptEnd(
            outcome="replayed" if replayed and failure is None else _outcome(end),
            error_type=None if error is None else code_of(error),
            provider=provider,
            calls=list(map(_facts, calls)),
            delivered=end is not None and (bool(end.text) or end.wait is not None),
            question=question,
            answer=None if end is None else end.text,
        )
    )


def _on_record(row: Row) -> TraceOnRecord:
    return TraceOnRecord(
        traceparent=row["traceparent"],  # type: ignore[arg-type]  # the column's
        caller_span_id=row["caller_span_id"],  # type: ignore[arg-type]  # the column's type
        traced_by=row["traced_by"],  # type: ignore[arg-type]  # the column's type
        began_ns=round(datetime.fromisoformat(str(row["created_at"])).timestamp() * 1_000) * 1_000_000,
    )


def _outcome(end: TurnEnd | None) -> TurnOutcome:
    if end is None:
        return "lost"
    if end.cancelled is not None:
        return "cancelled"
    if end.wait is not None:
        return "suspended"
    return "failed" if end.text is None else "completed"


def _facts(call: ModelCall) -> CallFacts:
    return CallFacts(
        request_model=call.asked,
        response_model=call.model,
        tokens_in=call.tokens_in,
        tokens_out=call.tokens_out,
        duration_s=_seconds(call.duration_ms),
        first_chunk_s=_seconds(call.first_token_ms),
        error_type=call.error_code or (call.outcome if call.outcome in {"cancelled", "lost"} else None),
    )


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000
