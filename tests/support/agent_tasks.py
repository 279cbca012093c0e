"""A small task of agent-runtime's, whose hooks note what they did."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from chatturn.agent_runtime.tasks.task_loop import RunAgentTaskOptions, TaskView
from chatturn.agent_runtime.values.control import (
    AgentRuntimeEvent,
    ControlActionOutcome,
    ControlDecision,
    ControlEvalResult,
)
from chatturn.agent_runtime.values.knowledge import KnowledgeRequirement
from chatturn.agent_runtime.values.tasks import AgentTaskSpec
from chatturn.durable.context import ContextSources
from chatturn.timestamps import iso_timestamp

__all__ = ["SOURCES", "TASK", "Counting", "loop_time", "requirement"]

TASK = AgentTaskSpec(id="task-1", intent="Count to three.", domain="test", inputs={"target": 3})

Mode = Literal[
    "ask_user", "search_web", "query_connector", "inspect_repo", "run_command", "infer_low_confidence", "not_available"
]
Importance = Literal["blocking", "high", "medium", "low"]


def loop_time() -> str:
    """Return the virtual time of the loop."""
    return iso_timestamp(round(asyncio.get_running_loop().time() * 1000))


SOURCES = ContextSources(now=loop_time, uuid=lambda: "uuid", random=lambda: 0.5)


def requirement(
    name: str, *, importance: Importance = "blocking", mode: Mode = "ask_user", known: float = 0.0, **members: Any
) -> KnowledgeRequirement:
    """Return something that a task must know."""
    return KnowledgeRequirement(
        **{
            "id": name,
            "description": f"the words of {name}",
            "required_for": ("answering",),
            "category": "user_specific",
            "acquisition_mode": mode,
            "importance": importance,
            "freshness": "static",
            "sensitivity": "private",
            "confidence_needed": 0.8,
            "current_confidence": known,
            "evidence_ids": (),
            "fallback_policy": "block",
            **members,
        }
    )


@dataclass
class Counting:
    """
    Counts up to a target: observes the count, and acts by adding one.

    Attributes:
        calls: The hooks that were called, in their order.
        events: What was told.
        count: The world that is acted upon, and outlives a worker.
        on_call: Is called with a hook's name before it does anything.
    """

    target: int = 3
    count: int = 0
    calls: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    events: list[AgentRuntimeEvent] = field(default_factory=list)
    on_call: Callable[[str], None] = lambda _name: None

    async def observe(self, view: TaskView) -> dict[str, int]:
        self._note("observe", view)
        return {"count": self.count}

    async def validate(self, view: TaskView) -> Sequence[ControlEvalResult]:
        self._note("validate", view)
        done = view.state["count"] >= self.target
        return [ControlEvalResult(id="done", passed=done, score=min(1.0, view.state["count"] / self.target))]

    async def decide(self, view: TaskView) -> ControlDecision:
        self._note("decide", view)
        if view.evals[0].passed:
            return ControlDecision(type="stop", reason="counted", passed=True)
        return ControlDecision(type="continue", action={"add": 1})

    async def act(self, action: Any, view: TaskView) -> ControlActionOutcome:
        self._note("act", view)
        self.count += action["add"]
        await asyncio.sleep(1)
        return ControlActionOutcome(ok=True, duration_ms=1_000, result=self.count, cost_usd=0.25)

    def _note(self, name: str, view: TaskView) -> None:
        self.calls.append(name)
        self.keys.append(view.step_key)
        self.on_call(name)

    def options(self, **options: Any) -> RunAgentTaskOptions:
        """Return the options of its task."""
        hooks = {"observe": self.observe, "validate": self.validate, "decide": self.decide, "act": self.act}
        defaults = {"task": TASK, "on_event": self.events.append, "sources": SOURCES}
        return RunAgentTaskOptions(**{**defaults, **hooks, **options})
