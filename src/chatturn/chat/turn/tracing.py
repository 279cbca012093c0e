"""What a turn tells the telemetry, and when."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from chatturn.chat.listeners import TurnTracing
from chatturn.chat.requests import TurnInput
from chatturn.chat.thread.history import ShownHistory
from chatturn.chat.thread.identity import ChatTurnIdentity, turn_run_id
from chatturn.chat.turn import tracing_sql as sql
from chatturn.chat.usage.calls import ModelCall
from chatturn.database.api import Row, Statement
from chatturn.durable.ends import Cancelled, Completed, End, Failed, Suspended, answer_of, code_of
from chatturn.telemetry import conventions as names
from chatturn.telemetry.attempt_facts import UNTRACED, AttemptEnd, AttemptStart, CallFacts, TraceOnRecord, TurnOutcome
from chatturn.telemetry.tracer import NULL_TRACER, AttributeValue, Tracer

__all__ = [
    "attributes_of_turn",
    "begin_with",
    "end_with",
    "found",
    "tell_context",
    "tell_end",
    "tracer_of",
]


def attributes_of_turn(identity: ChatTurnIdentity, project_id: str) -> Mapping[str, AttributeValue]:
    """Return the attributes that every span of a turn has."""
    return {
        names.AGENT_NAME: project_id,
        names.CONVERSATION_ID: identity.session_id,
        names.TURN_TENANT_ID: identity.tenant_id,
        names.TURN_RUN_ID: turn_run_id(identity),
        names.TURN_INDEX: identity.turn_index,
    }


def tracer_of(tracing: TurnTracing | None) -> Tracer:
    """Return the tracer of the turn's spans."""
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
        rows: The rows of `chatturn.chat.turn.sql.read_place`.
        attempt: The number of this attempt, from 1.
        replayed: Whether the turn had finished before.
    """
    row = rows[0] if rows else None
    on_record = UNTRACED if row is None else _on_record(row)
    first = 1 if row is None else int(row["first_attempt"] or 1)
    # An attempt whose worker was lost sent no span: count all attempts behind the last attempt that ended.
    lost = 0 if row is None or replayed else attempt - max(first, int(row["last_ended"] or 0) + 1)
    return AttemptStart(attempt=attempt, first_attempt=first, lost=lost, replayed=replayed, on_record=on_record)


def end_with(tracing: TurnTracing | None, end: End) -> list[Statement]:
    """Return what joins the attempt's last write."""
    return [sql.mark_traced()] if tracing is not None and tracing.sends_turn(failed=isinstance(end, Failed)) else []


def tell_context(tracing: TurnTracing | None, shown: ShownHistory) -> None:
    """Tell which part of the conversation the model is not shown."""
    attributes: Mapping[str, AttributeValue] = {
        names.CONTEXT_TURNS: shown.turns,
        names.CONTEXT_LEFT_OUT: shown.left_out,
        names.CONTEXT_SHORTENED: len(shown.shortened),
    }
    with tracer_of(tracing).span(names.CONTEXT_SPAN, attributes=attributes):
        pass


async def tell_end(
    turn: TurnInput, stored: End | None, failure: BaseException | None, calls: Sequence[ModelCall], *, replayed: bool
) -> None:
    """
    Tell the listeners how an attempt ended, and have the spans sent; every failure is logged, none leaves.

    Args:
        turn: The turn.
        stored: How it ended, as it is stored; None if it is not known to be.
        failure: What went wrong, if anything did.
        calls: Its model calls.
        replayed: Whether there was none to make.
    """
    if turn.tracing is None:
        return
    if isinstance(stored, Failed):
        failure = stored.error
    elif stored is not None:
        failure = None
    try:
        turn.tracing.ended(
            AttemptEnd(
                outcome="replayed" if replayed and failure is None else _outcome(stored),
                error_type=None if failure is None else code_of(failure),
                provider=turn.deployment.backend.kind,
                calls=list(map(_facts, calls)),
                delivered=bool(answer_of(stored)) or isinstance(stored, Suspended),
                question=turn.request.message,
                answer=answer_of(stored),
            )
        )
        await turn.tracing.flush()
    except Exception as error:  # noqa: BLE001 - telemetry must never fail a turn
        turn.deployment.log("telemetry.failed", {"run_id": turn.run_id, "error": error})


def _on_record(row: Row) -> TraceOnRecord:
    return TraceOnRecord(
        traceparent=row["traceparent"],  # type: ignore[arg-type]  # the column's
        caller_span_id=row["caller_span_id"],  # type: ignore[arg-type]  # the column's type
        traced_by=row["traced_by"],  # type: ignore[arg-type]  # the column's type
        began_ns=round(datetime.fromisoformat(str(row["created_at"])).timestamp() * 1_000) * 1_000_000,
    )


def _outcome(end: End | None) -> TurnOutcome:
    match end:
        case None:
            return "lost"
        case Completed():
            return "completed"
        case Cancelled():
            return "cancelled"
        case Suspended():
            return "suspended"
        case Failed():
            return "failed"


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
