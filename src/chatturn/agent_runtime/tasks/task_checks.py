"""Checks of a task and of the options to run it, made before anything is done."""

import asyncio
from typing import Final, Protocol

from chatturn.agent_runtime.tasks.readiness import KnowledgeHooks, require_minimum_score
from chatturn.agent_runtime.tasks.sessions import event_text
from chatturn.agent_runtime.tasks.task_steps import DurableTask
from chatturn.agent_runtime.values.events import TaskStartEvent
from chatturn.agent_runtime.values.given import require_kind, require_mapping, require_text
from chatturn.agent_runtime.values.knowledge import KnowledgeReadinessReport
from chatturn.agent_runtime.values.tasks import AgentTaskSpec
from chatturn.errors import ValidationError

__all__ = ["MAX_TASK_BYTES", "check_run", "check_task"]

MAX_TASK_BYTES: Final = 400_000
"""The most bytes of a stored task as JSON: each stored event has the task."""

_BUDGETS: Final = frozenset({"maxSteps", "maxWallMs", "maxCostUsd"})
_ANY_TIME: Final = "2026-01-01T00:00:00.000Z"


def check_task(task: AgentTaskSpec, *, stored: bool) -> None:
    """
    Refuse a malformed task.

    Args:
        task: The task.
        stored: Whether the task is stored: then it must be JSON of at most 400,000 bytes.

    Raises:
        ValidationError: *task* is malformed, or its budget has an unknown limit, or a limit that is no number from 0.
    """
    if not isinstance(task, AgentTaskSpec):
        raise ValidationError(f"a task must be an AgentTaskSpec, not {type(task).__name__}")
    require_text(task.id, "a task's id")
    require_text(task.intent, "a task's intent")
    _check_budget(task)
    if stored:
        size = len(event_text(TaskStartEvent(task=task, timestamp=_ANY_TIME)).encode())
        if size > MAX_TASK_BYTES:
            raise ValidationError(f"a task that is stored has {size} bytes as JSON, and may have {MAX_TASK_BYTES}")


class _Run(Protocol):
    """The options that `run_agent_task` and `run_agent_task_stream` share."""

    @property
    def knowledge(self) -> KnowledgeReadinessReport | None: ...
    @property
    def minimum_score(self) -> float: ...
    @property
    def hooks(self) -> KnowledgeHooks: ...
    @property
    def abort(self) -> asyncio.Event | None: ...
    @property
    def durable(self) -> DurableTask | None: ...


def check_run(options: _Run) -> None:
    """Refuse options of the wrong type, or a minimum score out of range.  Raises `ValidationError`."""
    require_minimum_score(options.minimum_score)
    require_kind(options.hooks, KnowledgeHooks, "hooks")
    for name, value, kind in (
        ("knowledge", options.knowledge, KnowledgeReadinessReport),
        ("abort", options.abort, asyncio.Event),
        ("durable", options.durable, DurableTask),
    ):
        if value is not None:
            require_kind(value, kind, name)


def _check_budget(task: AgentTaskSpec) -> None:
    budget = {} if task.budget is None else task.budget
    require_mapping(budget, "budget")
    for name, limit in budget.items():
        if name not in _BUDGETS:
            raise ValidationError(f"budget.{name!s:.40} is no limit; there are {', '.join(sorted(_BUDGETS))}")
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 0:
            raise ValidationError(f"budget.{name} must be a number from 0, not {limit!r:.40}")
