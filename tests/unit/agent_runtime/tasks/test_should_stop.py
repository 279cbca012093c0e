"""Whoever may stop a durable task is asked once for each decision, whatever becomes of the worker."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from chatturn.agent_runtime.tasks.task_loop import AgentTaskRunResult, TaskView, run_agent_task
from chatturn.agent_runtime.values.control import ControlEvalResult
from chatturn.agent_runtime.values.tasks import AgentTaskStatus
from chatturn.database.api import Database
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.agent_tasks import TASK, Counting
from tests.support.turns import open_sqlite
from tests.unit.agent_runtime.tasks.test_task_loop import durable

Policy = Callable[[TaskView], str | None]
POLICIES: dict[str, Policy] = {
    "never": lambda _: None,
    "at once": lambda _: "at once",
    "after two": lambda view: "after two" if len(view.steps) >= 2 else None,
}


async def _warns(view: TaskView) -> Sequence[ControlEvalResult]:
    """Find nothing that keeps the task from completing."""
    return [ControlEvalResult(id="done", passed=view.state["count"] >= 3, severity="warning")]


async def run(counting: Counting, database: Database, policy: Policy, **members: Any) -> AgentTaskRunResult:
    given = {"validate": _warns, "durable": durable(database), "should_stop": policy, "decide": _decide, **members}
    return await run_agent_task(counting.options(**given))


async def _decide(view: TaskView) -> Any:
    return await Counting().decide(replace(view, evals=(replace(view.evals[0], severity=None),)))


@pytest.mark.slow
@pytest.mark.parametrize("first", POLICIES)
@pytest.mark.parametrize("later", POLICIES)
async def test_a_task_outlives_its_worker_whatever_is_said_of_it_then(first: str, later: str) -> None:
    """Killed before and after every statement: what the next attempt is told is told again ever after."""
    point, reasons = 0, set[str]()
    while True:
        with open_sqlite() as database:
            counting, fuse = Counting(), Fuse(point)
            try:
                await run(counting, MortalDatabase(database, fuse), POLICIES[first])
            except Crash:
                await asyncio.sleep(60)
            else:
                break
            told = await run(counting, database, POLICIES[later])
            calls = list(counting.calls)
            again = [await run(counting, database, policy) for policy in POLICIES.values()]

        assert AgentTaskStatus.COMPLETED == told.status
        assert [told] * len(POLICIES) == again
        assert calls == counting.calls
        reasons.add(told.reason)
        point += 1
    ends = {"never": "counted"}
    assert {ends.get(later, later)} <= reasons <= {ends.get(first, first), ends.get(later, later)}
    assert point > 10


async def test_a_stop_that_does_not_complete_the_task_is_asked_for_again() -> None:
    """The run has failed, so it is gone on with if nobody stops it any more."""
    with open_sqlite() as database:
        counting = Counting()
        members = {"validate": counting.validate, "decide": counting.decide}
        stopped = await run(counting, database, POLICIES["after two"], **members)
        done = await run(counting, database, POLICIES["never"], **members)

    assert [("after two", AgentTaskStatus.FAILED), ("counted", AgentTaskStatus.COMPLETED)] == [
        (result.reason, result.status) for result in (stopped, done)
    ]


async def test_a_replay_is_within_a_budget_that_has_shrunk() -> None:
    """What was done was permitted then; only what is yet to be done is not."""
    with open_sqlite() as database:
        counting, poor = Counting(), replace(TASK, budget={"maxSteps": 1})
        before = await run(counting, database, POLICIES["never"])
        again = await run(counting, database, POLICIES["never"], task=poor)

    assert replace(before, task=poor) == again


@pytest.mark.parametrize("stored", [False, True])
async def test_a_policy_that_says_something_else_fails_the_task(stored: bool) -> None:
    with open_sqlite() as database:
        said: Any = lambda _: True  # noqa: E731 - that is what is wrong with it
        result = await run(Counting(), database, said, durable=durable(database) if stored else None)

    assert (AgentTaskStatus.FAILED, "stop-policy: ValidationError: should_stop must return a text or None, not bool") == (
        result.status, result.reason,
    )  # fmt: skip
