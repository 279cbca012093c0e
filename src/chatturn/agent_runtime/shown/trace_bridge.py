"""
The trace bridge: runtime events as the trace events of agent-runtime's evaluation package.

The bridge goes one way only.  A trace event marks a moment: its payload has ids and counts, never arguments, results,
contents or text, and a piece of an answer has no trace event.  Reasons and error messages are masked, unless they are
chatturn's own words or are asked for.

Source:
    docs/reference/agent-runtime.md, The trace bridge: kinds, and what each payload has.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Literal, TypeAlias

from chatturn.agent_runtime.values.codec import to_json
from chatturn.agent_runtime.values.events import (
    AcquisitionEndEvent,
    AcquisitionStartEvent,
    ArtifactEvent,
    BackendEndEvent,
    BackendErrorEvent,
    BackendStartEvent,
    FinalEvent,
    LlmCallEvent,
    ProposalCreatedEvent,
    QuestionsEndEvent,
    QuestionsStartEvent,
    ReadinessEndEvent,
    ReadinessStartEvent,
    RuntimeStreamEvent,
    SessionCreatedEvent,
    SessionResumedEvent,
    TaskEndEvent,
    TaskStartEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from chatturn.agent_runtime.values.fixed_words import is_fixed
from chatturn.agent_runtime.values.tasks import AgentTaskStatus
from chatturn.errors import ValidationError
from chatturn.telemetry.redaction import REDACTED, without_secret_members
from chatturn.timestamps import epoch_ms

__all__ = [
    "TraceBridge",
    "TraceBridgeOptions",
    "TraceEvent",
    "TraceEventKind",
    "create_trace_bridge",
    "to_agent_eval_trace",
]

TraceEventKind: TypeAlias = Literal["log", "policy_violation", "error", "state_mutation"]

_Payload: TypeAlias = Mapping[str, Any]
_FAILED: Final = frozenset({AgentTaskStatus.FAILED, AgentTaskStatus.ABORTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceBridgeOptions:
    """
    The run of a bridge, and how its trace events are made.

    Attributes:
        run_id: The run; not empty.
        now_ms: Returns milliseconds since the epoch, for events without a timestamp.
        span_id: The span, or None.
        new_event_id: Returns the id of the next trace event; None for ``evt-1``, ``evt-2`` …
        include_reasons: Whether words that are not chatturn's own are shown: they may quote anything.
    """

    run_id: str
    now_ms: Callable[[], int]
    span_id: str | None = None
    new_event_id: Callable[[], str] | None = None
    include_reasons: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEvent:
    """
    A mark in a trace.

    Attributes:
        timestamp: Milliseconds since the epoch.
        payload: JSON.
    """

    event_id: str
    run_id: str
    kind: TraceEventKind
    timestamp: int
    payload: _Payload
    span_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the trace event as JSON of the evaluation package."""
        members: dict[str, Any] = to_json(self)
        return members


class TraceBridge:
    """
    Maps the events of one run to trace events; an event without a trace event takes no id.

    Args:
        options: The run, and how trace events are made.

    Raises:
        ValidationError: *options* have no `run_id`.
    """

    def __init__(self, options: TraceBridgeOptions) -> None:
        if not options.run_id:
            raise ValidationError("a trace bridge needs a run_id")
        numbers = count(1)
        self._options = options
        self._new_event_id = options.new_event_id or (lambda: f"evt-{next(numbers)}")

    def to_trace_event(self, event: RuntimeStreamEvent) -> TraceEvent | None:
        """Return the trace event of *event*; None for a piece of an answer or of its reasoning."""
        payload_of = _PAYLOADS.get(type(event))
        if payload_of is None:
            return None
        payload = {name: value for name, value in payload_of(event).items() if value is not None}
        moment = None if event.timestamp is None else epoch_ms(event.timestamp)
        return TraceEvent(
            event_id=self._new_event_id(),
            run_id=self._options.run_id,
            span_id=self._options.span_id,
            kind=_kind(event),
            timestamp=self._options.now_ms() if moment is None else moment,
            payload={name: self._shown(name, value) for name, value in payload.items()},
        )

    def drain(self, events: Iterable[RuntimeStreamEvent]) -> list[TraceEvent]:
        """Return the trace events of *events*, in their order."""
        return [mark for event in events if (mark := self.to_trace_event(event)) is not None]

    def _shown(self, name: str, value: Any) -> Any:
        masked = name in {"reason", "message"} and not self._options.include_reasons and not is_fixed(value)
        return REDACTED if masked else without_secret_members(value)


def create_trace_bridge(options: TraceBridgeOptions) -> TraceBridge:
    """Return a `TraceBridge`."""
    return TraceBridge(options)


def to_agent_eval_trace(event: RuntimeStreamEvent, options: TraceBridgeOptions) -> TraceEvent | None:
    """Return *event*'s trace event, from a new bridge: its id is ``evt-1``, unless *options* have `new_event_id`."""
    return TraceBridge(options).to_trace_event(event)


def _kind(event: RuntimeStreamEvent) -> TraceEventKind:
    match event:
        case BackendErrorEvent():
            return "error"
        case TaskEndEvent(status=status) | FinalEvent(status=status) if status in _FAILED:
            return "error"
        case ReadinessEndEvent(decision=decision) if not decision.passed:
            return "policy_violation"
        case ArtifactEvent() | ProposalCreatedEvent():
            return "state_mutation"
        case _:
            return "log"


def _of_session(event: SessionCreatedEvent | SessionResumedEvent) -> _Payload:
    return {"phase": event.type, "sessionId": event.session.id, "backend": event.session.backend}


def _of_backend(event: BackendStartEvent | BackendEndEvent) -> _Payload:
    return {"phase": event.type, "backend": event.backend}


def _of_tool(event: ToolCallEvent | ToolResultEvent) -> _Payload:
    return {"phase": event.type, "toolName": event.tool_name, "toolCallId": event.tool_call_id}


def _of_end(event: TaskEndEvent | FinalEvent) -> _Payload:
    return {"phase": event.type, "status": event.status, "reason": event.reason}


_PAYLOADS: Final[Mapping[type, Callable[[Any], _Payload]]] = {
    TaskStartEvent: lambda event: {"phase": event.type, "taskId": event.task.id, "intent": event.task.intent},
    ReadinessStartEvent: lambda event: {"phase": event.type, "taskId": event.task.id},
    ReadinessEndEvent: lambda event: {
        "phase": event.type,
        "taskId": event.task.id,
        "status": event.decision.status,
        "readinessScore": event.decision.readiness_score,
        "blockingGapIds": event.decision.blocking_gap_ids,
        "nonBlockingGapIds": event.decision.non_blocking_gap_ids,
        "reason": event.decision.reason,
    },
    QuestionsStartEvent: lambda event: {"phase": event.type, "questionCount": len(event.questions)},
    QuestionsEndEvent: lambda event: {
        "phase": event.type,
        "questionCount": len(event.questions),
        "answerCount": len(event.user_answers),
    },
    AcquisitionStartEvent: lambda event: {"phase": event.type, "planCount": len(event.acquisition_plans)},
    AcquisitionEndEvent: lambda event: {
        "phase": event.type,
        "planCount": len(event.acquisition_plans),
        "evidenceCount": len(event.acquired_evidence_ids),
    },
    SessionCreatedEvent: _of_session,
    SessionResumedEvent: _of_session,
    BackendStartEvent: _of_backend,
    BackendEndEvent: _of_backend,
    BackendErrorEvent: lambda event: {
        "backend": event.backend,
        "message": event.message,
        "recoverable": event.recoverable,
    },
    ToolCallEvent: _of_tool,
    ToolResultEvent: _of_tool,
    LlmCallEvent: lambda event: {
        "phase": event.type,
        "model": event.model,
        "tokensIn": event.tokens_in,
        "tokensOut": event.tokens_out,
        "costUsd": event.cost_usd,
        "latencyMs": event.latency_ms,
        "finishReason": event.finish_reason,
    },
    ArtifactEvent: lambda event: {"phase": event.type, "artifactId": event.artifact_id, "mimeType": event.mime_type},
    ProposalCreatedEvent: lambda event: {
        "phase": event.type,
        "proposalId": event.proposal_id,
        "status": event.status,
    },
    TaskEndEvent: _of_end,
    FinalEvent: _of_end,
}
"""The payload of each class of events; pieces of an answer and of its reasoning have none."""
