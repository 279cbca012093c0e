"""agent-runtime's tasks over every database of ours, and inside workerd: what they need of a platform is there."""

import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from chatturn.agent_runtime import (
    AgentTaskSpec,
    AgentTaskStatus,
    ControlDecision,
    ControlEvalResult,
    DurableTask,
    RunAgentTaskOptions,
    RunAgentTaskStreamOptions,
    SqlRuntimeSessionStore,
    TaskView,
    classify_intent,
    create_iterable_backend,
    run_agent_task,
    run_agent_task_stream,
)
from chatturn.agent_runtime.values.tasks import SessionStatus
from chatturn.durable.sql_store import SqlRunStore

TASK = AgentTaskSpec(id="task-1", intent="Count to two.", domain="test")


def durable(store: SqlRunStore) -> DurableTask:
    return DurableTask(store=store, run_id="run-1", project_id="test-project")


async def test_a_durable_loop_completes_and_is_replayed(store: SqlRunStore) -> None:
    calls: list[str] = []

    async def observe(view: TaskView) -> int:
        calls.append("observe")
        return len(view.steps)

    async def validate(view: TaskView) -> Sequence[ControlEvalResult]:
        return [ControlEvalResult(id="two", passed=view.state == 2)]

    async def decide(view: TaskView) -> ControlDecision:
        return ControlDecision(type="stop" if view.evals[0].passed else "continue", action={"add": 1})

    async def act(action: Any, _: TaskView) -> Any:
        return action

    options = RunAgentTaskOptions(
        task=TASK, observe=observe, validate=validate, decide=decide, act=act, durable=durable(store)
    )
    first, again = await run_agent_task(options), await run_agent_task(options)

    assert AgentTaskStatus.COMPLETED == first.status
    assert first == again
    assert ["observe"] * 3 == calls


async def test_a_durable_stream_is_told_again_and_its_session_is_kept(store: SqlRunStore) -> None:
    asked: list[str] = []

    async def answer(request: Any, _: Any) -> AsyncIterator[Any]:
        asked.append(request.prompt)
        yield {"type": "text_delta", "text": "hel"}
        yield {"type": "text_delta", "text": "lo"}

    sessions = SqlRuntimeSessionStore(store.database)
    options = RunAgentTaskStreamOptions(
        task=TASK,
        backend=create_iterable_backend("echo", answer),
        message="hi",
        session_store=sessions,
        durable=durable(store),
    )
    first = [event async for event in run_agent_task_stream(options)]
    again = [event async for event in run_agent_task_stream(options)]
    session = await sessions.get("run-1")

    assert ["hello", "hello"] == [getattr(events[-1], "text", None) for events in (first, again)]
    assert ["hi"] == asked
    assert session is not None
    assert SessionStatus.COMPLETED == session.status
    assert 6 == len(await sessions.list_events("run-1"))


async def test_a_stream_that_is_left_closes_its_session(store: SqlRunStore) -> None:
    closed: list[str] = []

    async def answer(*_: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield {"type": "text_delta", "text": "on and on"}
        finally:
            closed.append("stream")

    async def stop(_: Any, reason: str) -> None:
        closed.append(reason)

    sessions = SqlRuntimeSessionStore(store.database)
    options = RunAgentTaskStreamOptions(
        task=TASK,
        backend=create_iterable_backend("echo", answer, stop=stop),
        session_store=sessions,
        durable=durable(store),
    )
    async with aclosing(run_agent_task_stream(options)) as events:
        async for event in events:
            if event.type == "text_delta":
                break
    session = await sessions.get("run-1")

    assert ["stream", "nobody reads the stream any more"] == closed
    assert session is not None
    assert SessionStatus.ABORTED == session.status


def test_an_intent_is_classified_where_python_is_another_one() -> None:
    """Patterns are read by the standard library's own parser, of whichever version."""
    profile = {"subagents": {"taxes": {"metadata": {"matchers": {"patterns": [r"\b(vat|tax(es)?)\b.*\?$"]}}}}}

    assert "taxes" == classify_intent(profile, "Is VAT due?").id
    assert classify_intent(profile, "Is private law due?").id is None


def test_a_place_that_is_no_boundary_is_the_same_one_everywhere() -> None:
    r"""Nowhere in an empty text, whichever `re` the platform has."""
    profile = {"subagents": {"any": {"metadata": {"matchers": {"patterns": [r"\B"]}}}}}

    assert (re.search(r"\B", "") is not None) == (sys.version_info >= (3, 14))
    assert ["any", None] == [classify_intent(profile, text).id for text in ("ab", "")]
