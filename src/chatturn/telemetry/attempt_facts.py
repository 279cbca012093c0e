"""What a turn tells its telemetry: values made while it runs, and encoded after its reader has everything."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

__all__ = ["UNTRACED", "AttemptEnd", "AttemptStart", "CallFacts", "TraceOnRecord", "TurnOutcome"]

TurnOutcome: TypeAlias = Literal["completed", "failed", "cancelled", "suspended", "replayed", "lost"]
"""How an attempt ended; ``lost``: its end is not on record, because its lease was lost or the database was away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOnRecord:
    """
    The stored part of a turn's trace.

    Attributes:
        traceparent: The turn's span as a W3C ``traceparent``; None if the turn has no trace.
        caller_span_id: The span of the request that began the turn; None if the turn's span is the first of the trace.
        traced_by: The attempt that sent the turn's span; None if no attempt has.
        began_ns: When the turn began, in nanoseconds since the epoch.
    """

    traceparent: str | None = None
    caller_span_id: str | None = None
    traced_by: int | None = None
    began_ns: int = 0


UNTRACED: Final = TraceOnRecord()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStart:
    """
    What a claim found.

    Attributes:
        attempt: The attempt's number, from 1; for a finished turn, the number of the attempt that finished it.
        first_attempt: The number of the first attempt at the turn's present message.
        lost: How many attempts right before this one were lost.
        replayed: Whether the turn had finished before.
        on_record: The stored part of the turn's trace.
    """

    attempt: int
    first_attempt: int = 1
    lost: int = 0
    replayed: bool = False
    on_record: TraceOnRecord = UNTRACED


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFacts:
    """
    One model call; None means unknown.

    Attributes:
        request_model: The model that was asked.
        response_model: The model that answered.
        error_type: Why the call failed; None if it did not fail.
    """

    request_model: str | None
    response_model: str | None
    tokens_in: int | None
    tokens_out: int | None
    duration_s: float | None
    first_chunk_s: float | None
    error_type: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """
    How an attempt ended.

    Attributes:
        outcome: In one word.
        error_type: The stable code of the error; None if the attempt did not fail.
        provider: The provider of the model.
        calls: The attempt's model calls.
        delivered: Whether the attempt has stored an answer, whole or cut off, or is suspended.
        question: The user's message.
        answer: The stored answer; None if there is none.
    """

    outcome: TurnOutcome
    error_type: str | None = None
    provider: str = ""
    calls: Sequence[CallFacts] = ()
    delivered: bool = True
    question: str = ""
    answer: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the attempt failed or was lost."""
        return self.outcome in {"failed", "lost"}
