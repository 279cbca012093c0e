"""A try that failed before another one succeeded is no failure of its step, whatever the task does next."""

import pytest

from chatturn.durable.records import DurableRunManifest, StepStatus, TaskSpec
from chatturn.durable.runner import RunDurableInput, run_durable
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.steps import StepRetry
from chatturn.durable.tasks import StepCall, TaskContext
from tests.support.turns import open_sqlite

MANIFEST = DurableRunManifest(project_id="test", task=TaskSpec(id="task", intent="test"), input=None)


@pytest.mark.parametrize("failures", [1, 2])
async def test_what_follows_a_retried_step_does_not_make_its_failure_final(failures: int) -> None:
    """Later steps, one after another and beside each other, leave its result alone; a replay returns it."""
    tries: list[int] = []

    async def flaky() -> str:
        tries.append(1)
        if len(tries) <= failures:
            raise LookupError("not yet")
        return "found"

    async def steady() -> str:
        return "s"

    async def task(context: TaskContext) -> list[object]:
        found = await context.step("find", flaky, retry=StepRetry(max_attempts=3, initial_backoff_ms=100))
        after = await context.step("after", steady)
        both = await context.gather(StepCall(intent="left", run=steady), StepCall(intent="right", run=steady))
        return [found, after, *both]

    with open_sqlite() as database:
        store = SqlRunStore(database)
        run = RunDurableInput(run_id="r", manifest=MANIFEST, store=store, task_fn=task)
        first = await run_durable(run)
        second = await run_durable(run)
        [step] = [step for step in await store.load_steps("r", 0) if step.intent == "find"]

    assert ["found", "s", "s", "s"] == first.result == second.result
    assert failures + 1 == len(tries)
    assert StepStatus.COMPLETED is step.status
