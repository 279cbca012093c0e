"""
A run of the ledger, as values: its description, its status, its cost and its row.

::

    running ──▶ completed
       ├──────▶ failed
       └──────▶ cancelled

Source:
    docs/reference/agent-runtime.md, The run ledger, its later hardening included.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final, Protocol

from chatturn.agent_runtime.values.events import LlmCallEvent
from chatturn.agent_runtime.values.tasks import AgentTaskSpec
from chatturn.errors import RuntimeRunStateError, ValidationError
from chatturn.usage.money import usd

__all__ = [
    "TRANSITIONS",
    "RuntimeRunCompleteInput",
    "RuntimeRunCost",
    "RuntimeRunOptions",
    "RuntimeRunPersistenceAdapter",
    "RuntimeRunRow",
    "RuntimeRunStateError",
    "RuntimeRunStatus",
    "count_of",
]

_LARGEST_COUNT: Final = 2**53 - 1


class RuntimeRunStatus(StrEnum):
    """The status of a run."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: Final[Mapping[RuntimeRunStatus, frozenset[RuntimeRunStatus]]] = {
    RuntimeRunStatus.RUNNING: frozenset(
        {RuntimeRunStatus.COMPLETED, RuntimeRunStatus.FAILED, RuntimeRunStatus.CANCELLED}
    ),
    RuntimeRunStatus.COMPLETED: frozenset(),
    RuntimeRunStatus.FAILED: frozenset(),
    RuntimeRunStatus.CANCELLED: frozenset(),
}
"""Every legal move: for each status, those that may follow.  A status that none follows is an end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRunCost:
    """
    What a run has cost.

    Attributes:
        tokens_in: The sum over all calls that reported it, as is `tokens_out`; None if there were calls and none did.
        cost_micro_usd: The measured cost in millionths of a US dollar; None if none was measured.
        wall_ms: Milliseconds from the run's start to its end, or to now.
        llm_calls: Model calls.
        tokens_known: Whether every call reported both its counts.
        usd_known: Whether every call's cost was measured.
        estimated_micro_usd: The estimated cost of the calls whose cost was not measured; None without an estimate.

    Raises:
        ValidationError: A number is negative, or no whole number.
    """

    tokens_in: int | None = None
    tokens_out: int | None = None
    cost_micro_usd: int | None = None
    wall_ms: int | None = None
    llm_calls: int | None = None
    tokens_known: bool = True
    usd_known: bool = True
    estimated_micro_usd: int | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type is not bool and value is not None and (type(value) is not int or value < 0):
                raise ValidationError(f"{item.name} must be a whole number from 0, not {value!r:.40}")

    def to_json(self) -> dict[str, Any]:
        """
        Return agent-runtime's shape.

        Sums of which nothing is known are null; ``tokensKnown`` and ``usdKnown`` are there only where they are false,
        and an estimate only where there is one.
        """
        cost = self.cost_micro_usd
        flags = {"tokensKnown": self.tokens_known, "usdKnown": self.usd_known}
        estimate = {} if self.estimated_micro_usd is None else {"estimatedCostUsd": usd(self.estimated_micro_usd)}
        return {
            "tokensIn": self.tokens_in,
            "tokensOut": self.tokens_out,
            "costUsd": None if cost is None else usd(cost),
            "wallMs": self.wall_ms,
            "llmCalls": self.llm_calls,
            **{name: False for name, known in flags.items() if not known},
            **estimate,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRunCompleteInput:
    """
    How a run ends.

    Attributes:
        result_summary: The run's outcome, in the product's words.
        cost: The cost, if it is known better than from the events: each member that is not None replaces the sum of
            the events, except `wall_ms`.
        error: Why it failed: a stable code, never what an upstream said.
        metadata: JSON, for the row.
    """

    status: RuntimeRunStatus
    result_summary: str | None = None
    cost: RuntimeRunCost | None = None
    error: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRunRow:
    """
    A run as it is stored; it quotes no conversation, unless the product's `result_summary` or `metadata` do.

    Attributes:
        started_at: A timestamp, as is `completed_at`, which is None while it runs.
    """

    id: str
    workspace_id: str
    task_id: str
    status: RuntimeRunStatus
    cost: RuntimeRunCost
    started_at: str
    session_id: str | None = None
    agent_id: str | None = None
    domain: str | None = None
    scenario_id: str | None = None
    result_summary: str | None = None
    error: str | None = None
    completed_at: str | None = None
    metadata: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return agent-runtime's shape; what is None is left out."""
        members = {
            "id": self.id,
            "workspaceId": self.workspace_id,
            "sessionId": self.session_id,
            "agentId": self.agent_id,
            "domain": self.domain,
            "taskId": self.task_id,
            "scenarioId": self.scenario_id,
            "status": self.status,
            "resultSummary": self.result_summary,
            "error": self.error,
            "cost": self.cost.to_json(),
            "startedAt": self.started_at,
            "completedAt": self.completed_at,
            "metadata": None if self.metadata is None else dict(self.metadata),
        }
        return {name: value for name, value in members.items() if value is not None}


class RuntimeRunPersistenceAdapter(Protocol):
    """Stores rows."""

    async def upsert(self, row: RuntimeRunRow) -> None:
        """Store *row*, and replace a row with the same id; `RuntimeRunHandle.persist` raises what this raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRunOptions:
    """
    What `start_runtime_run` needs.

    Attributes:
        workspace_id: The workspace that the run belongs to; not empty.
        task_spec: The run's task; its id is not empty.
        now_ms: Returns milliseconds since the epoch.
        id: The row's id; None for ``<task id>:<token>``.
        token: Returns eight characters of base 36; needed only without an *id*.
        adapter: Stores the row; None to store nothing.
        estimate: Returns the estimated cost of a call whose cost was not measured, in millionths of a US dollar; None
            where no price is known.
    """

    workspace_id: str
    task_spec: AgentTaskSpec
    now_ms: Callable[[], int]
    session_id: str | None = None
    agent_id: str | None = None
    scenario_id: str | None = None
    id: str | None = None
    token: Callable[[], str] | None = None
    adapter: RuntimeRunPersistenceAdapter | None = None
    estimate: Callable[[LlmCallEvent], int | None] | None = None


def count_of(value: object) -> int | None:
    """
    Return a reported count as an int: tokens, or millionths of a US dollar.

    Returns:
        None, which means unknown, for a value that is negative, not finite, not whole, or above 2^53 - 1, the largest
        that JSON carries without loss.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST_COUNT:
        return None
    return int(value) if value == int(value) else None
