"""What a runtime event is about: the task, the session that it runs in, and what went wrong.  Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self

from chatturn.agent_runtime.values.knowledge import KnowledgeRequirement
from chatturn.durable.records import TaskSpec

__all__ = ["AgentTaskSpec", "AgentTaskStatus", "BackendErrorDetail", "RuntimeSession", "SessionStatus"]


class AgentTaskStatus(StrEnum):
    """How a task ended."""

    COMPLETED = "completed"
    BLOCKED = "blocked"
    FAILED = "failed"
    ABORTED = "aborted"


class SessionStatus(StrEnum):
    """The status of a backend's session."""

    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTaskSpec:
    """
    A task: what the runtime is to do.

    Attributes:
        intent: A fixed sentence of the product, never a user's text, since it is shown everywhere.
        inputs: JSON; may hold the user's data.
        budget: Limits by name: ``maxSteps``, ``maxWallMs``, ``maxCostUsd``.
        metadata: The product's own JSON.
    """

    id: str
    intent: str
    domain: str | None = None
    inputs: Mapping[str, Any] | None = None
    required_knowledge: tuple[KnowledgeRequirement, ...] | None = None
    budget: Mapping[str, float] | None = None
    metadata: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, task: TaskSpec) -> Self:
        """Return the task of a durable run's manifest."""
        metadata = dict(task.metadata) or None
        return cls(id=task.id, intent=task.intent, domain=task.domain, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSession:
    """
    A backend's session.

    Attributes:
        backend: The kind of backend.
        resume_token: A credential of the backend; left out of `repr` and of every event that a stream tells.
        created_at: A timestamp, as is `updated_at`.
        metadata: The backend's own JSON.
    """

    id: str
    backend: str
    status: SessionStatus
    created_at: str
    updated_at: str
    resume_token: str | None = field(default=None, repr=False)
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendErrorDetail:
    """
    What went wrong, for programs.

    Attributes:
        kind: Whether the backend could not be reached, or failed itself.
        status: The HTTP status of the backend's answer; 0 if it did not answer.
        body: The beginning of the answer's body.
    """

    kind: Literal["transport", "backend"]
    message: str
    status: int | None = None
    body: str | None = None
