"""Steps and events of a run (B5, B9, B12, B13 in docs/reference/agent-runtime.md)."""

from typing import Any

import pytest

from chatturn.database.api import Statement
from chatturn.durable.records import RunStatus, StepError, StepStatus, Wait
from chatturn.durable.sql.runs import HELD
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.store import Begin, Settlement
from chatturn.errors import DurableRunDivergenceError, LeaseLost, RunNotFound, StepInputMismatch
from tests.support.clock import Clock
from tests.support.runs import STEP, claim, lease_of

CYCLE: list[Any] = []
CYCLE.append(CYCLE)


async def test_a_step_is_begun_completed_and_read(store: SqlRunStore, clock: Clock) -> None:
    """What was recorded is what is read."""
    lease = await lease_of(store)
    begun = await store.begin_step(lease, STEP)
    done = await store.complete_step(lease, 0, {"n": [1, 2.5, None, "é"]})

    assert (StepStatus.RUNNING, 1, clock.moment()) == (begun.status, begun.attempts, begun.started_at)
    assert (StepStatus.COMPLETED, {"n": [1, 2.5, None, "é"]}) == (done.status, done.result)
    assert done == await store.load_step("run-1", 0)


async def test_a_failed_step_may_be_begun_again(store: SqlRunStore) -> None:
    """Its error is cleared and its attempts count on."""
    lease = await lease_of(store, begin=STEP)
    failed = await store.fail_step(lease, 0, StepError(message="boom", code="x"))
    again = await store.begin_step(lease, STEP)

    assert (StepStatus.FAILED, StepError(message="boom", code="x")) == (failed.status, failed.error)
    assert (StepStatus.RUNNING, 2, None) == (again.status, again.attempts, again.error)


async def test_b5_beginning_a_step_counts_it_on_the_run(store: SqlRunStore) -> None:
    """The run's step count is the highest position begun plus one, in the same write."""
    lease = await lease_of(store)
    await store.begin_step(lease, Begin(step_index=4, intent="fifth", kind="logic"))
    run = await store.load_run("run-1")

    assert run is not None
    assert run.step_count == 5


async def test_completed_steps_come_in_order(store: SqlRunStore) -> None:
    """A claim returns the completed steps only, by position."""
    lease = await lease_of(store)
    for index in (2, 0, 1):
        await store.begin_step(lease, Begin(step_index=index, intent=f"s{index}", kind="logic"))
    for index in (2, 0):
        await store.complete_step(lease, index, index)
    await store.end_run(lease, RunStatus.FAILED)

    assert [0, 2] == [step.step_index for step in (await claim(store)).completed_steps]


async def test_another_intent_is_a_divergence(store: SqlRunStore) -> None:
    """The message names both intents, and the step stays as it was."""
    lease = await lease_of(store, begin=STEP)

    with pytest.raises(DurableRunDivergenceError, match=r"'turn'.*'other'"):
        await store.begin_step(lease, Begin(step_index=0, intent="other", kind="llm"))
    step = await store.load_step("run-1", 0)
    assert step is not None
    assert ("turn", 1) == (step.intent, step.attempts)


async def test_b13_another_input_is_a_mismatch(store: SqlRunStore) -> None:
    """A step that is given something else than on record is refused by name."""
    lease = await lease_of(store, begin=STEP)

    with pytest.raises(StepInputMismatch, match=r"'turn'"):
        await store.begin_step(lease, Begin(step_index=0, intent="turn", kind="llm", input_hash="else"))


async def test_b13_an_input_that_was_not_said_is_not_compared(store: SqlRunStore) -> None:
    """Steps without a fingerprint, such as agent-runtime's own, may be begun again."""
    lease = await lease_of(store, begin=STEP)
    again = await store.begin_step(lease, Begin(step_index=0, intent="turn", kind="llm"))

    assert again.attempts == 2


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {1, 2}, b"x", object(), CYCLE, {1: "a"}, [({"b": {None: 1}},)]],
    ids=["nan", "inf", "set", "bytes", "object", "cycle", "int's name", "None's name"],
)
async def test_b12_what_json_cannot_carry_is_a_type_error(store: SqlRunStore, value: Any) -> None:
    """It is refused before anything is written, on every database alike."""
    lease = await lease_of(store, begin=STEP)

    with pytest.raises(TypeError):
        await store.complete_step(lease, 0, value)
    with pytest.raises(TypeError):
        await store.settle(lease, Settlement(step_index=0, result=value))
    step = await store.load_step("run-1", 0)
    assert step is not None
    assert step.status is StepStatus.RUNNING


async def test_b12_results_are_copies(store: SqlRunStore) -> None:
    """Changing what was stored, or what was read, changes nothing that is stored."""
    lease = await lease_of(store, begin=STEP)
    value = {"list": [1]}
    done = await store.complete_step(lease, 0, value)
    value["list"].append(2)
    done.result["list"].append(3)
    step = await store.load_step("run-1", 0)

    assert step is not None
    assert {"list": [1]} == step.result


async def test_the_first_event_under_a_key_wins(store: SqlRunStore) -> None:
    """The second emit is told the first payload."""
    await lease_of(store)
    first = await store.emit_event("run-1", "approved", {"by": "a"})
    second = await store.emit_event("run-1", "approved", {"by": "b"})

    assert (True, {"by": "a"}) == (first[0], first[1].payload)
    assert (False, {"by": "a"}) == (second[0], second[1].payload)
    assert first[1] == await store.load_event("run-1", "approved")


async def test_a_suspension_and_its_companions_are_one_write(store: SqlRunStore) -> None:
    """All of it under the lease, or nothing, once the lease is another's."""
    lease = await lease_of(store, begin=STEP)
    wait = Wait(step_index=1, key="approved", wake_at="2030-01-01T00:00:00.000Z")
    sql = f"UPDATE durable_runs SET scenario_id = ?4 WHERE run_id = ?1 AND {HELD}"  # noqa: S608 - a constant of ours
    note = Statement(sql, ("noted",))
    suspended = await store.suspend(lease, wait, [note])
    await lease_of(store, worker_id="worker-2")
    with pytest.raises(LeaseLost):
        await store.suspend(lease, wait, [note._replace(params=("late",))])
    run = await store.load_run("run-1")

    assert run is not None
    assert (RunStatus.SUSPENDED, None, "noted") == (suspended.status, suspended.lease_holder_id, suspended.scenario_id)
    assert (RunStatus.RUNNING, "noted") == (run.status, run.scenario_id)


async def test_an_event_of_an_unknown_run_is_refused(store: SqlRunStore) -> None:
    """Nothing is stored for a run that does not exist."""
    with pytest.raises(RunNotFound):
        await store.emit_event("nothing", "key", 1)
    assert await store.load_event("nothing", "key") is None


async def test_long_texts_keep_every_character(store: SqlRunStore) -> None:
    """Text beyond the basic plane, and long, comes back the same."""
    lease = await lease_of(store, begin=STEP)
    text = "añ🙂\u2028\x00\x1f" * 20_000
    done = await store.complete_step(lease, 0, {"finalText": text})

    assert {"finalText": text} == done.result


async def test_b12_half_a_surrogate_pair_is_a_type_error(store: SqlRunStore) -> None:
    """UTF-8 has no place for one: refused on every store alike, and the step still runs; a whole pair is a character."""
    lease = await lease_of(store, begin=STEP)
    with pytest.raises(TypeError, match="the step's result"):
        await store.complete_step(lease, 0, {"half": "\ud83d"})
    with pytest.raises(TypeError, match="the event's payload"):
        await store.emit_event("run-1", "k", ["\ude00"])
    done = await store.complete_step(lease, 0, "whole \U0001f600")

    assert "whole \U0001f600" == done.result
