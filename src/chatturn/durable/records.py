"""
What the store keeps, as values: manifests, runs, steps, events, leases.

The names and the closed sets are agent-runtime's (docs/reference/agent-runtime.md, Names and Tables).
Timestamps are text, ``YYYY-MM-DDTHH:MM:SS.mmmZ`` in UTC, so that the order of text is the order of time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

from chatturn.errors import InvalidField
from chatturn.jsontext.canonical import canonical_hash

__all__ = [
    "MAX_RUNS_PER_PAGE",
    "Claim",
    "DurableRunManifest",
    "EventRecord",
    "Lease",
    "RunOutcome",
    "RunPage",
    "RunQuery",
    "RunRecord",
    "RunStatus",
    "StepError",
    "StepKind",
    "StepRecord",
    "StepStatus",
    "TaskSpec",
    "Wait",
]


class RunStatus(StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SUSPENDED = "suspended"


class StepStatus(StrEnum):
    """Where a step stands."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class StepKind(StrEnum):
    """What a step does; for readers, nothing depends on it."""

    LOGIC = "logic"
    LLM = "llm"
    TOOL = "tool"
    READINESS = "readiness"
    DETERMINISTIC = "deterministic"
    EVENT = "event"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """What a run is for.  The intent is a fixed sentence of the product's, never a user's text."""

    id: str
    intent: str
    domain: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DurableRunManifest:
    """
    What makes two requests the same run.

    Attributes:
        project_id: The product.
        task: What for.
        input: The input, JSON; part of the hash.
        scenario_id: The thread, or None.
        tags: For readers; not part of the hash.
    """

    project_id: str
    task: TaskSpec
    input: Any
    scenario_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """The manifest's hash; see `chatturn.durable.identifiers.manifest_hash`."""
        task = self.task
        return canonical_hash(
            {
                "input": self.input,
                "projectId": self.project_id,
                "scenarioId": self.scenario_id,
                "taskDomain": task.domain,
                "taskId": task.id,
                "taskIntent": task.intent,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """The outcome of a run, for operators and evaluations; JSON only."""

    passed: bool | None = None
    score: float | None = None
    notes: str | None = None
    metadata: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return agent-runtime's shape, absent members left out."""
        members = {"pass": self.passed, "score": self.score, "notes": self.notes, "metadata": self.metadata}
        return {name: value for name, value in members.items() if value is not None}

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> "RunOutcome":
        """Read agent-runtime's shape."""
        return cls(
            passed=members.get("pass"),
            score=members.get("score"),
            notes=members.get("notes"),
            metadata=members.get("metadata"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """
    A run as the database had it at one moment.

    Attributes:
        step_count: The highest step position begun, plus one.
        epoch: How often it was claimed; 0 for a run of agent-runtime's own.
        idle_attempts: Claims since the run last came further (a step completed), without those that ended in a wait.
        attempts: Claims with the present manifest, without those that ended in a wait.
        key_part: A part of the run's keys that no other run has; None where keys are made of the run's name alone.
    """

    run_id: str
    manifest_hash: str
    project_id: str
    scenario_id: str | None
    status: RunStatus
    created_at: str
    updated_at: str
    completed_at: str | None
    lease_holder_id: str | None
    lease_expires_at: str | None
    outcome: RunOutcome | None
    step_count: int
    epoch: int
    idle_attempts: int = 0
    attempts: int = 0
    key_part: str | None = None

    @property
    def key_name(self) -> str:
        """The run's name in keys for other systems; with a `key_part`, unique for ever."""
        return self.run_id if self.key_part is None else f"{self.run_id}#{self.key_part}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepError:
    """
    Why a step failed; for the log of the run, never for clients.

    Attributes:
        message: The error in words.
        code: The stable code of an error of this package; None for other errors.
        exception: JSON from which the exception that left the step is made again, see `chatturn.durable.failures`;
            None where only words are on record.
        final: Whether the task has caught it and gone on, so that every later attempt raises it again.
    """

    message: str
    code: str | None = None
    exception: Mapping[str, Any] | None = None
    final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """
    A step as the database had it at one moment.

    Attributes:
        attempts: How often the step was begun.
        result: The step's result, JSON; None until it is completed.
    """

    run_id: str
    step_index: int
    intent: str
    kind: str
    input_hash: str
    status: StepStatus
    attempts: int
    result: Any
    error: StepError | None
    started_at: str | None
    completed_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """An event of a run: the first payload emitted under its key."""

    run_id: str
    key: str
    payload: Any
    emitted_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """
    The right to write one run, until it ends or somebody claims the run after it.

    Attributes:
        holder: The holder's name, unique to one claim, even where a worker claims the same run twice.
        epoch: The fencing token, +1 at every claim.
        expires_at: The end of the term, by the database's clock.
        lease_ms: The term that each renewal grants anew.
    """

    run_id: str
    holder: str
    epoch: int
    expires_at: str
    lease_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """
    What `start_or_resume` found.

    Attributes:
        run: The run after the claim.
        steps: The first page of the steps begun so far, by position.
        lease: None for a completed run, which is read, not written.
        rows: The rows of each of the claim's *reads*.
    """

    run: RunRecord
    steps: Sequence[StepRecord]
    lease: Lease | None
    rows: Sequence[Sequence[Mapping[str, Any]]] = ()

    @property
    def completed_steps(self) -> Sequence[StepRecord]:
        """The completed steps among `steps`."""
        return [step for step in self.steps if step.status is StepStatus.COMPLETED]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """
    What a suspended run waits for.

    Attributes:
        step_index: The step that waits.
        key: The event's key; None where the run waits only for *wake_at*.
        wake_at: When the run goes on even without the event.
    """

    step_index: int
    key: str | None
    wake_at: str


MAX_RUNS_PER_PAGE: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """
    Which runs to list.

    Order: the latest created first; with *stale*, the lease that lapsed longest ago first.

    Attributes:
        project_id: The product.
        status: Only runs with this status; None for all.
        tenant_id: Only chat turns of this tenant; None for all runs.
        stale: Only runs whose worker died: their status is running, and their lease has lapsed.
        limit: Runs on a page at most, 1 to `MAX_RUNS_PER_PAGE`.
        after: The previous page's `RunPage.next`; None for the first page.

    Raises:
        InvalidField: *limit* is outside its bounds, or *stale* is asked of runs that are not running.
    """

    project_id: str
    status: RunStatus | None = None
    tenant_id: str | None = None
    stale: bool = False
    limit: int = 50
    after: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_RUNS_PER_PAGE:
            raise InvalidField(f"limit must be from 1 to {MAX_RUNS_PER_PAGE}", field="limit")
        if self.stale and self.status not in {None, RunStatus.RUNNING}:
            raise InvalidField("only running runs can be stale", field="status")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """
    One page of a list of runs.

    Attributes:
        runs: In the order of the list.  A page before the list's end may hold fewer runs than asked for, or none,
            because one page reads a bounded part of the database.
        next: Opaque; where the next page begins, or None at the list's end.
    """

    runs: Sequence[RunRecord]
    next: str | None
