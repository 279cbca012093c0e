"""
`AgentRuntimeEvent`: the events of a task that agent-runtime runs as a control loop.

The events have no timestamp and no session.  Up to the readiness gate their members are those of the stream's events;
then come the loop's steps.  This module has values only; `task_loop` is the loop.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from chatturn.agent_runtime.values.knowledge import (
    ControlSeverity,
    DataAcquisitionPlan,
    KnowledgeReadinessReport,
    UserQuestion,
)
from chatturn.agent_runtime.values.tasks import AgentTaskSpec, AgentTaskStatus
from chatturn.errors import ValidationError

__all__ = [
    "MEMBERS",
    "AgentRuntimeEvent",
    "AgentRuntimeEventType",
    "ControlActionOutcome",
    "ControlDecision",
    "ControlEvalResult",
    "ControlRunResult",
    "ControlRuntimeError",
    "ControlStep",
]

AgentRuntimeEventType: TypeAlias = Literal[
    "task_start",
    "readiness_start",
    "readiness_end",
    "questions_start",
    "questions_end",
    "acquisition_start",
    "acquisition_end",
    "control_start",
    "control_step",
    "control_end",
    "task_end",
]

MEMBERS: Final[Mapping[str, frozenset[str]]] = {
    "task_start": frozenset(),
    "readiness_start": frozenset(),
    "readiness_end": frozenset({"knowledge"}),
    "questions_start": frozenset({"questions"}),
    "questions_end": frozenset({"questions", "user_answers"}),
    "acquisition_start": frozenset({"acquisition_plans"}),
    "acquisition_end": frozenset({"acquisition_plans", "acquired_evidence_ids"}),
    "control_start": frozenset({"knowledge"}),
    "control_step": frozenset({"step"}),
    "control_end": frozenset({"control"}),
    "task_end": frozenset({"status", "reason"}),
}
"""The members that an event of each type has beside its task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlEvalResult:
    """
    What one check found.

    Attributes:
        score: From 0 to 1.
        detail: A text, as is `evidence`; both may quote what was checked.
        objective: Whether a program made the check, not a model.
    """

    id: str
    passed: bool
    score: float | None = None
    severity: ControlSeverity | None = None
    detail: str | None = None
    evidence: str | None = None
    objective: bool | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlDecision:
    """What the loop does next; the `action` is JSON."""

    type: Literal["continue", "stop"]
    action: Any = None
    reason: str | None = None
    passed: bool | None = field(default=None, metadata={"json": "pass"})
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlActionOutcome:
    """The outcome of an action; the `result` is JSON."""

    ok: bool
    duration_ms: float
    result: Any = None
    error: str | None = None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlStep:
    """One round of the loop; the states are JSON, and anything may be in them."""

    index: int
    decision: ControlDecision
    evals_before: tuple[ControlEvalResult, ...]
    evals_after: tuple[ControlEvalResult, ...]
    started_at: str
    ended_at: str
    before_state: Any = None
    after_state: Any = None
    action_outcome: ControlActionOutcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRuntimeError:
    """An error in a phase of the loop."""

    phase: Literal["observe", "validate", "decide", "act", "stop-policy", "on-step", "trace"]
    step_index: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRunResult:
    """The outcome of the loop."""

    intent: str
    passed: bool = field(metadata={"json": "pass"})
    completed: bool
    reason: str
    steps: tuple[ControlStep, ...]
    final_evals: tuple[ControlEvalResult, ...]
    wall_ms: float
    spent_cost_usd: float
    runtime_errors: tuple[ControlRuntimeError, ...]
    stopped_by: Literal["policy", "stop-policy", "budget", "abort", "runtime-error"]
    score: float | None = None
    final_state: Any = None
    run_id: str | None = None
    failure_class: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRuntimeEvent:
    """
    One event of the loop: its type, its task, and the `MEMBERS` of its type.

    Raises:
        ValidationError: A member of the type is missing, or a member of another type is given.
    """

    type: AgentRuntimeEventType
    task: AgentTaskSpec
    knowledge: KnowledgeReadinessReport | None = None
    questions: tuple[UserQuestion, ...] | None = None
    user_answers: Mapping[str, str] | None = None
    acquisition_plans: tuple[DataAcquisitionPlan, ...] | None = None
    acquired_evidence_ids: tuple[str, ...] | None = None
    step: ControlStep | None = None
    control: ControlRunResult | None = None
    status: AgentTaskStatus | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        given = {name for name in _OPTIONAL if getattr(self, name) is not None}
        if given != MEMBERS[self.type]:
            wrong = ", ".join(sorted(given ^ MEMBERS[self.type]))
            raise ValidationError(f"{self.type} has not the members that it must have: {wrong}")


_OPTIONAL: Final = frozenset[str]().union(*MEMBERS.values())
