"""
`RuntimeStreamEvent`: the events of a task that agent-runtime runs, one class for each type.

The members are agent-runtime's, in Python's naming; `codec` reads and writes their JSON, and `event_order` has their
order.  Events that the runtime itself makes have their task and their timestamp.  Events that a backend makes may leave
both out, and `filled_in` adds them.

Source:
    docs/reference/agent-runtime.md, Stream events.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal, TypeAlias

from chatturn.agent_runtime.values.knowledge import (
    DataAcquisitionPlan,
    KnowledgeReadinessDecision,
    KnowledgeReadinessReport,
    UserQuestion,
)
from chatturn.agent_runtime.values.tasks import AgentTaskSpec, AgentTaskStatus, BackendErrorDetail, RuntimeSession

__all__ = [
    "EVENT_CLASSES",
    "AcquisitionEndEvent",
    "AcquisitionStartEvent",
    "ArtifactEvent",
    "BackendEndEvent",
    "BackendErrorEvent",
    "BackendMadeEvent",
    "BackendStartEvent",
    "FinalEvent",
    "LlmCallEvent",
    "ProposalCreatedEvent",
    "QuestionsEndEvent",
    "QuestionsStartEvent",
    "ReadinessEndEvent",
    "ReadinessStartEvent",
    "ReasoningDeltaEvent",
    "RuntimeMadeEvent",
    "RuntimeStreamEvent",
    "SessionCreatedEvent",
    "SessionResumedEvent",
    "TaskEndEvent",
    "TaskStartEvent",
    "TextDeltaEvent",
    "ToolCallEvent",
    "ToolResultEvent",
    "filled_in",
    "without_token",
    "without_tokens",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeMadeEvent:
    """
    An event of the runtime itself.

    Attributes:
        type: agent-runtime's name of the event.
        task: The task that the event is about.
        timestamp: When it happened: ``YYYY-MM-DDTHH:MM:SS.mmmZ``.
    """

    type: ClassVar[str]
    task: AgentTaskSpec
    timestamp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendMadeEvent:
    """An event of a backend; its task, session and timestamp are None where the backend did not tell them."""

    type: ClassVar[str]
    task: AgentTaskSpec | None = None
    session: RuntimeSession | None = None
    timestamp: str | None = None


# Before the backend is asked.


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStartEvent(RuntimeMadeEvent):
    """A task begins."""

    type: ClassVar[str] = "task_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadinessStartEvent(RuntimeMadeEvent):
    """The readiness gate checks whether enough is known for the task, and does so again after answers or evidence."""

    type: ClassVar[str] = "readiness_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadinessEndEvent(RuntimeMadeEvent):
    """The readiness gate has decided."""

    type: ClassVar[str] = "readiness_end"
    knowledge: KnowledgeReadinessReport
    decision: KnowledgeReadinessDecision


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionsStartEvent(RuntimeMadeEvent):
    """The user is asked."""

    type: ClassVar[str] = "questions_start"
    questions: tuple[UserQuestion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionsEndEvent(RuntimeMadeEvent):
    """The user has answered; `user_answers` are by the question's id."""

    type: ClassVar[str] = "questions_end"
    questions: tuple[UserQuestion, ...]
    user_answers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquisitionStartEvent(RuntimeMadeEvent):
    """Evidence is looked for."""

    type: ClassVar[str] = "acquisition_start"
    acquisition_plans: tuple[DataAcquisitionPlan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquisitionEndEvent(RuntimeMadeEvent):
    """Evidence was looked for."""

    type: ClassVar[str] = "acquisition_end"
    acquisition_plans: tuple[DataAcquisitionPlan, ...]
    acquired_evidence_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCreatedEvent(RuntimeMadeEvent):
    """The backend has begun a session."""

    type: ClassVar[str] = "session_created"
    session: RuntimeSession


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResumedEvent(RuntimeMadeEvent):
    """The backend goes on with a session."""

    type: ClassVar[str] = "session_resumed"
    session: RuntimeSession


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStartEvent(RuntimeMadeEvent):
    """The backend is asked."""

    type: ClassVar[str] = "backend_start"
    session: RuntimeSession
    backend: str


# What the backend says.


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDeltaEvent(BackendMadeEvent):
    """A further piece of the answer."""

    type: ClassVar[str] = "text_delta"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningDeltaEvent(BackendMadeEvent):
    """A further piece of the model's reasoning."""

    type: ClassVar[str] = "reasoning_delta"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallEvent(BackendMadeEvent):
    """The model asks for a tool; `args` are JSON."""

    type: ClassVar[str] = "tool_call"
    tool_name: str
    tool_call_id: str | None = None
    args: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResultEvent(BackendMadeEvent):
    """A tool has answered; `result` is JSON."""

    type: ClassVar[str] = "tool_result"
    tool_name: str
    tool_call_id: str | None = None
    result: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmCallEvent(BackendMadeEvent):
    """
    One call of a model is over.

    Attributes:
        tokens_in: As the model reported it, as is `tokens_out`; None, which is not 0, where it did not.
        cost_usd: The measured cost in US dollars; None where it was not measured.
        latency_ms: Milliseconds from the call's request, or from its headers, to its end.
        finish_reason: The model's own word for why it stopped.
    """

    type: ClassVar[str] = "llm_call"
    model: str
    tokens_in: float | None = None
    tokens_out: float | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactEvent(BackendMadeEvent):
    """An artifact was made: a file, a page, a record; `content` is JSON."""

    type: ClassVar[str] = "artifact"
    artifact_id: str
    name: str | None = None
    mime_type: str | None = None
    uri: str | None = None
    content: Any = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalCreatedEvent(BackendMadeEvent):
    """A proposal was made, which needs an approval; `content` is JSON."""

    type: ClassVar[str] = "proposal_created"
    proposal_id: str
    title: str
    status: Literal["pending", "approved", "rejected"] | None = None
    content: Any = None


# The end.


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendErrorEvent(RuntimeMadeEvent):
    """The backend failed; `recoverable` unless it was aborted."""

    type: ClassVar[str] = "backend_error"
    backend: str
    message: str
    recoverable: bool
    session: RuntimeSession | None = None
    error: BackendErrorDetail | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendEndEvent(RuntimeMadeEvent):
    """The backend has said everything."""

    type: ClassVar[str] = "backend_end"
    session: RuntimeSession
    backend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEndEvent(RuntimeMadeEvent):
    """The task is over."""

    type: ClassVar[str] = "task_end"
    status: AgentTaskStatus
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalEvent(RuntimeMadeEvent):
    """The last event: how the task ended; `text` is the answer, or as much of it as there was."""

    type: ClassVar[str] = "final"
    status: AgentTaskStatus
    reason: str
    session: RuntimeSession | None = None
    text: str | None = None
    metadata: Mapping[str, Any] | None = None
    error: BackendErrorDetail | None = None


RuntimeStreamEvent: TypeAlias = (
    TaskStartEvent
    | ReadinessStartEvent
    | ReadinessEndEvent
    | QuestionsStartEvent
    | QuestionsEndEvent
    | AcquisitionStartEvent
    | AcquisitionEndEvent
    | SessionCreatedEvent
    | SessionResumedEvent
    | BackendStartEvent
    | TextDeltaEvent
    | ReasoningDeltaEvent
    | ToolCallEvent
    | ToolResultEvent
    | LlmCallEvent
    | ArtifactEvent
    | ProposalCreatedEvent
    | BackendErrorEvent
    | BackendEndEvent
    | TaskEndEvent
    | FinalEvent
)

EVENT_CLASSES: Final[Mapping[str, type[RuntimeStreamEvent]]] = {cls.type: cls for cls in RuntimeStreamEvent.__args__}
"""The class of each type of event."""


def filled_in(
    event: RuntimeStreamEvent, *, task: AgentTaskSpec, session: RuntimeSession, timestamp: str
) -> RuntimeStreamEvent:
    """Return *event* with the task, session and timestamp that the backend left out; those it gave stay."""
    if not isinstance(event, BackendMadeEvent) or (event.task and event.session and event.timestamp):
        return event
    return replace(
        event,
        task=event.task or task,
        session=event.session or session,
        timestamp=event.timestamp or timestamp,
    )


def without_token(session: RuntimeSession) -> RuntimeSession:
    """Return *session* without its resume token, which is a credential."""
    return replace(session, resume_token=None)


def without_tokens(event: RuntimeStreamEvent) -> RuntimeStreamEvent:
    """Return *event* without its session's resume token."""
    session: RuntimeSession | None = getattr(event, "session", None)
    if session is None or session.resume_token is None:
        return event
    told: Any = event  # of a class that has a session
    stripped: RuntimeStreamEvent = replace(told, session=without_token(session))
    return stripped
