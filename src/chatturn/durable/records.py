"""
What the store keeps, as values: manifests, runs, steps, events, leases.

The names and the closed sets are agent-runtime's (docs/reference/agent-runtime.md, Names and Tables).
Timestamps are text, ``YYYY-MM-DDTHH:MM:SS.mmmZ`` in UTC, so that the order of text is the order of time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from chatturn.errors import InvalidField

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


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """What became of a run, for operators and evaluations; JSON only."""

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
        idle_attempts: Claims since it last came further, those that ended in a wait left out.
        attempts: All claims at what it does now, those that ended in a wait left out.
        key_part: What its keys have that no other run's have; None for a run whose keys are made of its name alone.
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
        """The name of the run in the keys that leave the system: no other run's, ever, if it has a part of its own."""
        return self.run_id if self.key_part is None else f"{self.run_id}#{self.key_part}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepError:
    """
    Why a step failed; for the log of the run, never for clients.

    Attributes:
        message: In words.
        code: Of an error of this package.
        exception: JSON from which what left the step is made again, see `chatturn.durable.failures`; None where
            only words are on record.
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
        attempts: How often it was begun.
        result: What it returned, JSON; None until it is completed.
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
    """What was emitted under a key of a run; the first emit wins."""

    run_id: str
    key: str
    payload: Any
    emitted_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """
    The right to write one run, until it ends or somebody claims the run after it.

    Attributes:
        holder: Who: unique to one claim, even where a worker claims the same run twice.
        epoch: The fencing token, +1 at every claim.
        expires_at: By the database's clock.
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
        run: As it is after the claim.
        steps: Those begun so far, by position; the first page of them.
        lease: None for a completed run, which is read, not written.
        rows: What each of the claim's reads returned.
    """

    run: RunRecord
    steps: Sequence[StepRecord]
    lease: Lease | None
    rows: Sequence[Sequence[Mapping[str, Any]]] = ()

    @property
    def completed_steps(self) -> Sequence[StepRecord]:
        """Those of `steps` that are completed."""
        return [step for step in self.steps if step.status is StepStatus.COMPLETED]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """
    What a suspended run waits for.

    Attributes:
        step_index: The step that waits.
        key: The event's key, or None for a moment only.
        wake_at: When it goes on even if no event came.
    """

    step_index: int
    key: str | None
    wake_at: str


MAX_RUNS_PER_PAGE: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """
    Which runs to list.

    The latest created come first; stale ones by when their lease lapsed, the longest ago first.

    Attributes:
        project_id: The product.
        status: Only those that stand there; None for all.
        tenant_id: Only chat turns of this tenant; None for all runs.
        stale: Only those whose worker died: they are running, and their lease has lapsed.
        limit: How many on a page, at most; 1 to `MAX_RUNS_PER_PAGE`.
        after: Where the page before ended, its `RunPage.next`; None for the first page.

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
        runs: In the order of the list.  They may be fewer than asked for, or none, before the list's end: how
            much of the database one page looks at is bounded.
        next: Opaque; where the next page begins, or None at the list's end.
    """

    runs: Sequence[RunRecord]
    next: str | None
