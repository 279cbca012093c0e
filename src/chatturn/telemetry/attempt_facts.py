"""What a turn tells its telemetry: values, made while it runs and looked at when its reader has everything."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

__all__ = ["UNTRACED", "AttemptEnd", "AttemptStart", "CallFacts", "TraceOnRecord", "TurnOutcome"]

TurnOutcome: TypeAlias = Literal["completed", "failed", "cancelled", "suspended", "replayed", "lost"]
"""How an attempt ended; ``lost``: how is not on record, for its lease is another's, or the database was away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOnRecord:
    """
    What is stored of a turn's trace.

    Attributes:
        traceparent: The turn's span, as W3C writes it; None: nobody traced it.
        caller_span_id: The span of the request that began it; None: the turn's own is the first.
        traced_by: The attempt that sent the turn's span; None: none yet.
        began_ns: When the turn began, since the epoch.
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
        attempt: Which one this is, from 1; of a finished turn, the one that finished it.
        first_attempt: The first at what is asked now.
        lost: How many attempts right before it broke off.
        replayed: Whether the turn had finished before.
        on_record: Of its trace.
    """

    attempt: int
    first_attempt: int = 1
    lost: int = 0
    replayed: bool = False
    on_record: TraceOnRecord = UNTRACED


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFacts:
    """
    One model call; None is not known.

    Attributes:
        request_model: Who was asked.
        response_model: Who answered.
        error_type: Why it failed; None if it did not.
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
        error_type: The stable code of why it failed; None if it did not.
        provider: Who runs the model.
        calls: Its model calls.
        delivered: Whether anybody has what it said, or will.
        question: What the user said.
        answer: What is stored as the answer, if there is one.
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
        """Whether somebody should look at it."""
        return self.outcome in {"failed", "lost"}
