"""`run_durable`: a task survives the death of its worker at any step (R1 to R8 in docs/reference/agent-runtime.md), in virtual time."""

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from chatturn.database.api import Statement
from chatturn.durable.context import ContextSources, DurableContext, StepCall
from chatturn.durable.records import RunOutcome, RunStatus, StepKind, StepStatus
from chatturn.durable.runner import RunDurableInput, RunDurableResult, run_durable
from chatturn.durable.sql.runs import STEPS_PER_PAGE
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.steps import StepRetry
from chatturn.errors import (
    AttemptsExhausted,
    DurableAwaitEventTimeoutError,
    DurableRunDivergenceError,
    DurableRunInputMismatchError,
    DurableRunLeaseHeldError,
    LeaseLost,
    StepFailed,
    StepInputMismatch,
    StepTimeout,
    StepTooLarge,
)
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.clock import AtMoment
from tests.support.faults import FaultyDatabase
from tests.support.runs import manifest
from tests.support.turns import open_sqlite

Task = Callable[[DurableContext], Awaitable[Any]]


class Bench:
    """One database, and runs of tasks over it."""

    def __init__(self, database: FaultyDatabase) -> None:
        self.database = database
        self.store = SqlRunStore(database)
        self.effects: list[str] = []
        self.logged: list[str] = []
        self.counter = 0

    def effect(self, name: str, value: Any = None, *, error: Exception | None = None) -> Callable[[], Awaitable[Any]]:
        """Return a step's function that leaves a trace."""

        async def run() -> Any:
            self.effects.append(name)
            if error is not None:
                raise error
            return name if value is None else value

        return run

    def _count(self) -> str:
        self.counter += 1
        return f"value-{self.counter}"

    async def run(self, task: Task, **options: Any) -> RunDurableResult[Any]:
        """Run *task* as ``run-1``."""
        sources = ContextSources(now=self._count, uuid=self._count, random=lambda: 0.25)
        defaults = {"run_id": "run-1", "manifest": manifest(), "store": self.store, "sources": sources}
        log = {"log": lambda event, _particulars: self.logged.append(event)}
        return await run_durable(RunDurableInput(task_fn=task, **{**defaults, **log, **options}))


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A bench over an empty database."""
    with open_sqlite() as database:
        yield Bench(FaultyDatabase(database))


async def test_a_task_runs_and_its_steps_are_on_record(bench: Bench) -> None:
    """The result is the task's, the run is completed, both steps are."""

    async def task(context: DurableContext) -> str:
        first = await context.step("first", bench.effect("a"))
        return str(await context.step("second", bench.effect("b"), kind=StepKind.TOOL)) + str(first)

    done = await bench.run(task, default_outcome=RunOutcome(passed=True))

    assert ("ba", RunStatus.COMPLETED, RunOutcome(passed=True)) == (
        done.result,
        done.record.status,
        done.record.outcome,
    )
    assert [("first", "logic"), ("second", "tool")] == [(step.intent, step.kind) for step in done.steps]


async def test_a_task_that_is_alone_is_replayed_without_a_turn_of_the_event_loop(bench: Bench) -> None:
    """Nobody else can ask for a step, so nobody is waited for: a turn of the loop is dear in a Worker."""
    turns: list[str] = []

    async def task(context: DurableContext) -> None:
        await context.step("first", bench.effect("a"))
        asyncio.get_running_loop().call_soon(turns.append, "a turn")

    await bench.run(task)
    turns.clear()
    await bench.run(task)

    assert not turns


async def test_completed_steps_are_not_run_again(bench: Bench) -> None:
    """What was recorded is returned; the failed step and what follows it run."""
    failing = [True]

    async def task(context: DurableContext) -> list[str]:
        first = await context.step("first", bench.effect("a"))
        second = await context.step("second", bench.effect("b", error=OSError("x") if failing[0] else None))
        return [first, second]

    with pytest.raises(OSError, match="x"):
        await bench.run(task)
    failing[0] = False

    assert ["a", "b"] == (await bench.run(task)).result
    assert ["a", "b", "b"] == bench.effects


async def test_a_completed_run_is_replayed_without_a_write(bench: Bench) -> None:
    """One read, no lease, the same result."""

    async def task(context: DurableContext) -> str:
        return await context.step("first", bench.effect("a"))

    await bench.run(task)
    bench.database.batches = 0

    assert "a" == (await bench.run(task)).result
    assert (["a"], 1) == (bench.effects, bench.database.batches)


async def test_one_awaited_round_trip_a_step(bench: Bench) -> None:
    """A claim, one record for each step, and the end of the run."""

    async def task(context: DurableContext) -> None:
        for number in range(10):
            await context.step(f"step {number}", bench.effect(str(number)))

    await bench.run(task)

    assert 12 == bench.database.batches


async def test_a_thousand_steps_replay_in_one_read_a_page(bench: Bench) -> None:
    """Linear, paged, and nothing is written."""

    async def task(context: DurableContext) -> int:
        return sum([await context.step(f"step {n}", bench.effect("x", n)) for n in range(1_000)])

    first = (await bench.run(task)).result
    bench.database.batches = 0

    assert first == (await bench.run(task)).result == 499_500
    assert bench.database.batches <= 2


async def test_an_opened_step_is_replayed_once_it_was_completed(bench: Bench) -> None:
    """Its caller does it, and an attempt that did not complete it leaves no trace."""
    replayed: list[bool] = []

    async def task(context: DurableContext) -> Any:
        step = await context.open_step("said", kind=StepKind.LLM, input="question")
        replayed.append(step.replayed)
        if step.replayed:
            return step.result
        if len(replayed) > 1:
            await step.complete({"text": "answer"})
        raise RuntimeError

    for _ in range(2):
        with pytest.raises(RuntimeError):
            await bench.run(task)

    done = await bench.run(task)

    assert {"text": "answer"} == done.result
    assert [False, False, True] == replayed
    assert [("said", "llm", 1)] == [(step.intent, step.kind, step.attempts) for step in done.steps]


async def test_an_opened_step_with_another_input_is_a_mismatch(bench: Bench) -> None:
    """As for any step; its intent, too."""

    async def task(context: DurableContext, intent: str, question: str) -> None:
        step = await context.open_step(intent, input=question)
        await step.complete(1)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await bench.run(lambda context: task(context, "said", "a"))
    with pytest.raises(StepInputMismatch):
        await bench.run(lambda context: task(context, "said", "b"))
    with pytest.raises(DurableRunDivergenceError):
        await bench.run(lambda context: task(context, "done", "a"))


async def test_another_manifest_is_refused(bench: Bench) -> None:
    """The run stays as it was."""
    await bench.run(_nothing)
    with pytest.raises(DurableRunInputMismatchError):
        await bench.run(_nothing, manifest=manifest(2))


async def test_changed_intent_is_a_divergence_naming_both(bench: Bench) -> None:
    """Code that changed between attempts is found out at the step."""

    async def before(context: DurableContext) -> None:
        await context.step("charge card", bench.effect("a"))
        raise RuntimeError

    async def after(context: DurableContext) -> None:
        await context.step("send mail", bench.effect("b"))

    with pytest.raises(RuntimeError):
        await bench.run(before)
    with pytest.raises(DurableRunDivergenceError, match=r"'charge card'.*'send mail'"):
        await bench.run(after)
    assert ["a"] == bench.effects


async def test_changed_input_is_a_mismatch(bench: Bench) -> None:
    """B13: the fingerprint of a step's input is compared."""

    async def task(context: DurableContext, amount: int) -> None:
        await context.step("charge", bench.effect("a"), input={"amount": amount})
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await bench.run(lambda context: task(context, 1))
    with pytest.raises(StepInputMismatch, match="charge"):
        await bench.run(lambda context: task(context, 2))


async def test_r1_a_lost_lease_cancels_the_step_and_writes_nothing(bench: Bench) -> None:
    """A worker that cannot renew stops inside its step; the successor's run is untouched by it."""
    ended: list[str] = []

    async def slow() -> str:
        try:
            await asyncio.sleep(1_000)
        finally:
            ended.append("cancelled")
        return "slow"

    stale = asyncio.create_task(bench.run(lambda context: context.step("slow", slow)))
    await asyncio.sleep(1)
    bench.database.down = True
    await asyncio.sleep(40)
    bench.database.down = False
    with pytest.raises(LeaseLost):
        await stale
    done = await bench.run(lambda context: context.step("slow", bench.effect("quick")))

    assert (["cancelled"], "quick", 2) == (ended, done.result, done.record.epoch)


async def test_r1_a_zombies_record_is_refused(bench: Bench) -> None:
    """A worker that slept past its lease inside a step finds its result refused."""
    later = SqlRunStore(AtMoment(bench.database, lambda: "2027-01-01T00:00:00.000Z"))

    async def task(context: DurableContext) -> str:
        return await context.step("first", takes_over)

    async def takes_over() -> str:
        await bench.run(lambda context: context.step("first", bench.effect("successor")), store=later)
        return "zombie"

    with pytest.raises(LeaseLost):
        await bench.run(task)

    assert "successor" == (await bench.run(_replay_first)).result


async def test_r2_a_long_step_keeps_its_lease(bench: Bench) -> None:
    """A short lease is renewed in time, through a failed renewal too."""
    bench.database.faults = {2: "before"}

    async def task(context: DurableContext) -> str:
        return await context.step("long", _after(10, "long"))

    running = asyncio.create_task(bench.run(task, lease_ms=900))
    await asyncio.sleep(8)
    with pytest.raises(DurableRunLeaseHeldError):
        await bench.run(task)

    assert "long" == (await running).result


async def test_r3_a_record_that_fails_does_not_run_the_step_again(bench: Bench) -> None:
    """The write is tried again, the side effect is not."""
    bench.database.faults = {1: "before", 2: "after"}

    assert "a" == (await bench.run(_first(bench))).result
    assert ["a"] == bench.effects


async def test_r4_a_failing_store_does_not_mask_the_tasks_error(bench: Bench) -> None:
    """The original exception leaves, whatever else fails after it."""

    async def task(context: DurableContext) -> None:
        async def step() -> None:
            bench.database.down = True
            raise ZeroDivisionError("the real reason")

        await context.step("first", step)

    with pytest.raises(ZeroDivisionError, match="the real reason"):
        await bench.run(task)

    assert ["step.unrecorded", "run.unsettled"] == [event for event in bench.logged if event != "lease.renewal_failed"]


class Wordless(Exception):
    """An exception that cannot be asked."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("error", [ValueError("half a pair: \ud800"), Wordless()], ids=["surrogate", "wordless"])
async def test_r4_words_that_cannot_be_stored_do_not_mask_the_error(bench: Bench, error: Exception) -> None:
    """The step is recorded as failed, tried again, and its exception is beneath what leaves."""
    retry = StepRetry(max_attempts=2)
    with pytest.raises(StepFailed, match=type(error).__name__) as caught:
        await bench.run(lambda context: context.step("first", bench.effect("a", error=error), retry=retry))
    step = await bench.store.load_step("run-1", 0)

    assert caught.value.__context__ is error
    assert ["a", "a"] == bench.effects
    assert step is not None
    assert step.error is not None
    assert step.error.message.startswith(type(error).__name__)


async def test_r4_a_run_that_was_deleted_does_not_mask_the_tasks_error(bench: Bench) -> None:
    """There is nothing left to settle."""

    async def task(_context: DurableContext) -> None:
        await bench.database.batch([Statement("DELETE FROM durable_runs")])
        raise OSError("the first")

    with pytest.raises(OSError, match="the first"):
        await bench.run(task)


async def test_r5_parallel_steps_keep_their_positions(bench: Bench) -> None:
    """Whichever ends first, each has the position at which it was asked for, on every attempt."""
    delays = {"a": 3, "b": 1, "c": 2}

    async def task(context: DurableContext) -> list[str]:
        names = list(delays)
        results = await context.gather(*(StepCall(intent=name, run=_after(delays[name], name)) for name in names))
        more = await asyncio.gather(*(context.step(f"more {name}", _after(delays[name], name)) for name in names))
        return [*results, *more]

    done = await bench.run(task)
    delays.update(a=1, b=3)

    assert ["a", "b", "c"] * 2 == done.result == (await bench.run(task)).result
    assert ["a", "b", "c", "more a", "more b", "more c"] == [step.intent for step in done.steps]


async def test_r5_a_step_inside_a_step_is_refused_at_once(bench: Bench) -> None:
    """On a replay nobody would ask for it, and the steps behind it would be taken for others."""

    async def task(context: DurableContext) -> None:
        async def outer() -> None:
            await context.step("inner", bench.effect("i"))

        await context.step("outer", outer)

    with pytest.raises(DurableRunDivergenceError, match="inside step 'outer'"):
        await bench.run(task)
    assert [] == bench.effects


async def test_r5_a_run_inside_a_step_has_steps_of_its_own(bench: Bench) -> None:
    """Another run is claimed and recorded by itself; behind it the outer one goes on."""

    async def task(context: DurableContext) -> list[str]:
        async def outer() -> str:
            done = await bench.run(lambda inner: inner.step("inner", bench.effect("i")), run_id="run-2")
            return str(done.result)

        return [await context.step("outer", outer), await context.step("after", bench.effect("a"))]

    assert ["i", "a"] == (await bench.run(task)).result == (await bench.run(task)).result
    assert ["i", "a"] == bench.effects


async def test_r5_a_failing_parallel_step_cancels_the_others(bench: Bench) -> None:
    """Its error leaves as it is; what was recorded by then is not run again."""

    async def task(context: DurableContext) -> list[Any]:
        return await context.gather(
            StepCall(intent="quick", run=bench.effect("quick")),
            StepCall(intent="broken", run=bench.effect("broken", error=OSError("broken"))),
            StepCall(intent="slow", run=_after(1_000, "slow")),
        )

    with pytest.raises(OSError, match="broken"):
        await bench.run(task)
    with pytest.raises(OSError, match="broken"):
        await bench.run(task)

    assert 1 == bench.effects.count("quick")
    assert asyncio.get_running_loop().time() < 10


async def test_r5_a_shortened_task_is_found_out(bench: Bench) -> None:
    """A task that ends before it came to all recorded steps does not pass."""

    async def longer(context: DurableContext) -> None:
        await context.step("first", bench.effect("a"))
        await context.step("second", bench.effect("b"))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await bench.run(longer)
    with pytest.raises(DurableRunDivergenceError, match="second"):
        await bench.run(_first(bench))


async def test_r5_a_task_that_ends_with_a_page_of_steps_is_found_out(bench: Bench) -> None:
    """The step that it did not come to would be on the next page."""

    def task(steps: int) -> Task:
        async def run(context: DurableContext) -> None:
            for number in range(steps):
                await context.step(f"step {number}", bench.effect("x"))

        return run

    await bench.run(task(STEPS_PER_PAGE + 1))
    with pytest.raises(DurableRunDivergenceError, match=f"'step {STEPS_PER_PAGE}'"):
        await bench.run(task(STEPS_PER_PAGE))


async def test_r6_the_first_event_is_delivered_and_replayed(bench: Bench) -> None:
    """A later emit changes nothing, neither does a replay wait."""

    async def task(context: DurableContext) -> Any:
        return await context.await_event("approved")

    running = asyncio.create_task(bench.run(task))
    await asyncio.sleep(1)
    await bench.store.emit_event("run-1", "approved", {"by": "ann"})
    await bench.store.emit_event("run-1", "approved", {"by": "bob"})

    assert {"by": "ann"} == (await running).result == (await bench.run(task)).result


async def test_r6_a_long_wait_suspends_the_run(bench: Bench) -> None:
    """Worker and lease are released; the event makes the run due, and the next call goes on after the wait."""

    async def task(context: DurableContext) -> list[Any]:
        first = await context.step("first", bench.effect("a"))
        return [first, await context.await_event("approved", timeout_ms=3_600_000)]

    waiting = await bench.run(task)
    idle = await bench.store.due_runs(10)
    await asyncio.sleep(600)
    await bench.store.emit_event("run-1", "approved", "yes")
    due = await bench.store.due_runs(10)
    done = await bench.run(task)

    assert (True, RunStatus.SUSPENDED, None) == (
        waiting.suspended,
        waiting.record.status,
        waiting.record.lease_holder_id,
    )
    assert ([], ["run-1"]) == (list(idle), list(due))
    assert (["a", "yes"], ["a"], []) == (done.result, bench.effects, list(await bench.store.due_runs(10)))


async def test_r6_the_time_runs_from_the_first_wait(bench: Bench) -> None:
    """Attempts do not restart it; once it is up, every attempt is told the same, event or not."""

    async def task(context: DurableContext) -> Any:
        return await context.await_event("approved", timeout_ms=60_000)

    await bench.run(task)
    await asyncio.sleep(30)
    assert (await bench.run(task)).suspended
    await asyncio.sleep(31)
    assert ["run-1"] == list(await bench.store.due_runs(10))
    with pytest.raises(DurableAwaitEventTimeoutError):
        await bench.run(task)
    await bench.store.emit_event("run-1", "approved", "too late")
    with pytest.raises(DurableAwaitEventTimeoutError):
        await bench.run(task)


async def test_a_short_sleep_is_waited_for_and_a_long_one_suspends(bench: Bench) -> None:
    """Either way it lasts as long as it was to from when it was first reached."""

    async def task(context: DurableContext) -> str:
        await context.sleep(2_000)
        await context.sleep(3_600_000)
        return "awake"

    waiting = await bench.run(task)
    slept_s = asyncio.get_running_loop().time()
    await asyncio.sleep(3_600)
    due = await bench.store.due_runs(10)
    done = await bench.run(task)

    assert waiting.suspended
    assert 2 == pytest.approx(slept_s, abs=0.1)
    assert (["run-1"], "awake") == (list(due), done.result)


async def test_a_wait_in_a_task_group_suspends_the_run(bench: Bench) -> None:
    """Of several, for the one that is over first; what was recorded beside them stays."""

    async def task(context: DurableContext) -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(context.step("beside", bench.effect("a")))
            group.create_task(context.sleep(7_200_000))
            group.create_task(context.sleep(3_600_000))
        return "done"

    suspended = await bench.run(task)
    await asyncio.sleep(3_600)
    due = await bench.store.due_runs(10)
    await asyncio.sleep(3_600)

    assert (True, None, ["run-1"]) == (suspended.suspended, suspended.record.lease_holder_id, due)
    assert ("done", ["a"]) == ((await bench.run(task)).result, bench.effects)


async def test_what_fails_beside_a_wait_fails_the_run(bench: Bench) -> None:
    """The next call may begin at once, and nobody waits for the wait."""

    async def fail() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            raise OSError("broken")

    async def task(context: DurableContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(context.sleep(3_600_000))

    with pytest.raises(ExceptionGroup) as caught:
        await bench.run(task)
    record = await bench.store.load_run("run-1")

    assert [OSError] == [type(error) for error in caught.value.exceptions]
    assert record is not None
    assert (RunStatus.FAILED, None) == (record.status, record.lease_holder_id)


@pytest.mark.parametrize("duration_ms", [math.nan, math.inf, -1, 2**53 - 1, "5"])
async def test_a_wait_that_has_no_end_in_the_calendar_is_refused_by_its_value(bench: Bench, duration_ms: Any) -> None:
    """Before anything is stored."""
    waits: list[Task] = [
        lambda context: context.sleep(duration_ms),
        lambda context: context.await_event("never", timeout_ms=duration_ms),
        lambda context: context.step("late", bench.effect("a"), timeout_ms=duration_ms),
    ]
    for task in waits:
        with pytest.raises(ValueError, match=f"and not {re.escape(repr(duration_ms))}"):
            await bench.run(task)

    assert ([], []) == (bench.effects, list(await bench.store.load_steps("run-1", 0)))


async def test_r7_nothing_a_task_says_in_its_error_is_in_the_outcome(bench: Bench) -> None:
    """The outcome has a code; what went wrong is with the step."""

    async def task(context: DurableContext) -> None:
        await context.step("first", bench.effect("a", error=OSError("secret-host")))

    with pytest.raises(OSError, match="secret-host"):
        await bench.run(task)
    record = await bench.store.load_run("run-1")

    assert record is not None
    assert (RunStatus.FAILED, RunOutcome(passed=False, notes="internal")) == (record.status, record.outcome)


async def test_r8_undetermined_values_are_the_same_on_every_attempt(bench: Bench) -> None:
    """Time, ids and chance are recorded; methods may be taken off the context."""

    async def task(context: DurableContext) -> list[Any]:
        now, new_uuid, chance = context.now, context.uuid, context.random
        return [await now(), await new_uuid(), await chance()]

    first = await bench.run(task)

    assert ["value-1", "value-2", 0.25] == first.result == (await bench.run(task)).result
    assert ["deterministic:now", "deterministic:uuid", "deterministic:random"] == [s.intent for s in first.steps]


async def test_a_step_is_retried_as_its_policy_says(bench: Bench) -> None:
    """Waits double up to their most; the record counts every try."""
    times: list[float] = []

    async def flaky() -> str:
        times.append(asyncio.get_running_loop().time())
        if len(times) < 4:
            raise OSError
        return "done"

    retry = StepRetry(max_attempts=5, initial_backoff_ms=1_000, max_backoff_ms=3_000)
    done = await bench.run(lambda context: context.step("flaky", flaky, retry=retry))
    step = await bench.store.load_step("run-1", 0)

    assert "done" == done.result
    assert [1.0, 2.0, 3.0] == pytest.approx([later - earlier for earlier, later in pairwise(times)])
    assert step is not None
    assert (4, StepStatus.COMPLETED) == (step.attempts, step.status)


async def test_a_step_that_failed_often_enough_fails_for_good(bench: Bench) -> None:
    """Over all attempts of the run; it says so, and is not run any more."""

    async def task(context: DurableContext) -> None:
        retry = StepRetry(attempts_in_all=2)
        await context.step("poison", bench.effect("p", error=OSError()), retry=retry)

    for _ in range(2):
        with pytest.raises(OSError):  # noqa: PT011 - the step's own
            await bench.run(task)
    with pytest.raises(AttemptsExhausted, match="poison"):
        await bench.run(task)

    assert ["p", "p"] == bench.effects


async def test_a_run_that_was_claimed_often_enough_fails_for_good(bench: Bench) -> None:
    """A task that kills its worker every time is not tried for ever."""
    for _ in range(3):
        with pytest.raises(Crash):
            await bench.run(_dies, max_attempts=3)
        await asyncio.sleep(30)
    with pytest.raises(AttemptsExhausted):
        await bench.run(_dies, max_attempts=3)
    record = await bench.store.load_run("run-1")

    assert record is not None
    assert (RunStatus.FAILED, "attempts_exhausted") == (record.status, record.outcome and record.outcome.notes)


async def test_only_attempts_that_come_no_further_are_counted(bench: Bench) -> None:
    """A step more on record is further, a wait is none; what fails each time is given up."""
    deployed: list[int] = []

    async def task(context: DurableContext) -> str:
        for number in range(6):
            await context.step(f"step {number}", bench.effect(str(number)))
            if number not in deployed:
                deployed.append(number)
                raise OSError("deployed anew")
        await context.await_event("ok", timeout_ms=10**9)
        return str(await context.step("last", bench.effect("last", error=OSError("broken"))))

    for _ in range(6):
        with pytest.raises(OSError, match="deployed anew"):
            await bench.run(task, max_attempts=2)
    for _ in range(6):
        assert (await bench.run(task, max_attempts=2)).suspended
    await bench.store.emit_event("run-1", "ok", None)
    for _ in range(3):  # the first has recorded that the event came
        with pytest.raises(OSError, match="broken"):
            await bench.run(task, max_attempts=2)
    with pytest.raises(AttemptsExhausted, match="it has come no further in 2 attempts"):
        await bench.run(task, max_attempts=2)


async def test_a_step_that_takes_too_long_is_cut_off(bench: Bench) -> None:
    """Its timeout names it; a step's own TimeoutError stays its own."""
    with pytest.raises(StepTimeout, match="slow"):
        await bench.run(lambda context: context.step("slow", _after(100, "x"), timeout_ms=500))

    async def own() -> None:
        raise TimeoutError("own")

    with pytest.raises(TimeoutError, match="own"):
        await bench.run(lambda context: context.step("slow", own, timeout_ms=500))


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (object(), TypeError),
        (float("nan"), TypeError),
        ("x" * 1_000_001, StepTooLarge),
        ("é" * 500_001, StepTooLarge),
        (json.loads("[" * 65 + "]" * 65), StepTooLarge),
    ],
    ids=["object", "nan", "a megabyte", "a megabyte of UTF-8", "65 levels"],
)
async def test_what_cannot_be_stored_is_refused_by_name(bench: Bench, value: Any, error: type[Exception]) -> None:
    """As a result and as an input; nothing of the step is on record."""
    with pytest.raises(error, match="poison"):
        await bench.run(lambda context: context.step("poison", bench.effect("a", value)))
    with pytest.raises(error, match="poison"):
        await bench.run(lambda context: context.step("poison", bench.effect("a"), input=value))

    assert await bench.store.load_step("run-1", 0) is None


@pytest.mark.parametrize("value", [{1: "a"}, {"deep": [{None: 1}]}], ids=["int", "None"])
async def test_members_are_named_by_text(bench: Bench, value: Any) -> None:
    """JSON would rename them, and two might become one; the refusal names the step."""
    with pytest.raises(TypeError, match="poison"):
        await bench.run(lambda context: context.step("poison", bench.effect("a", value)))
    with pytest.raises(TypeError, match="poison"):
        await bench.run(lambda context: context.step("poison", bench.effect("a"), input=value))


async def test_an_input_that_cannot_be_compared_is_refused_by_name(bench: Bench) -> None:
    """The canonical text knows no subclasses: they may hold more than their JSON."""
    with pytest.raises(TypeError, match="poison"):
        await bench.run(lambda context: context.step("poison", bench.effect("a"), input=[StepKind.TOOL]))


async def test_every_digit_of_an_input_counts(bench: Bench) -> None:
    """Also of an int that JavaScript would round."""

    def task(number: int) -> Task:
        return lambda context: context.step("first", bench.effect("a"), input={"id": number})

    assert "a" == (await bench.run(task(2**60 + 1))).result == (await bench.run(task(2**60 + 1))).result
    with pytest.raises(StepInputMismatch):
        await bench.run(task(2**60))


async def test_results_are_copies(bench: Bench) -> None:
    """B12: a fresh run and a replay return equal things, and share nothing."""
    value: dict[str, Any] = {"list": [1], "tuple": (1, 2)}

    async def task(context: DurableContext) -> Any:
        result = await context.step("first", bench.effect("a", value))
        value["list"].append(2)
        return result

    assert {"list": [1], "tuple": [1, 2]} == (await bench.run(task)).result


async def test_an_emit_is_told_the_same_on_every_attempt(bench: Bench) -> None:
    """The first emit wins, and a replay hears what the first attempt heard."""

    async def task(context: DurableContext) -> list[Any]:
        first, _ = await context.emit_event("key", 1)
        second, event = await context.emit_event("key", 2)
        return [first, second, event.payload, await context.await_event("key")]

    assert [True, False, 1, 1] == (await bench.run(task)).result == (await bench.run(task)).result


async def test_a_step_key_is_the_same_on_every_attempt(bench: Bench) -> None:
    """And another for every step, so that a tool may deduplicate by it."""
    keys: list[list[str]] = []

    async def task(context: DurableContext) -> None:
        seen = []
        for intent in ("a", "b"):
            seen.append(context.step_key(intent))
            await context.step(intent, bench.effect(intent))
        keys.append(seen)

    await bench.run(task)
    await bench.run(task)

    assert keys[0] == keys[1]
    assert 2 == len(set(keys[0]))


def _places() -> list[str]:
    async def live() -> list[str]:
        with open_sqlite() as database:
            fuse = Fuse()
            bench = Bench(FaultyDatabase(MortalDatabase(database, fuse)))
            await bench.run(_agent(bench, fuse))
            return fuse.places

    return asyncio.run(live())


def _agent(bench: Bench, fuse: Fuse) -> Task:
    async def task(context: DurableContext) -> list[Any]:
        results = []
        for name in ("model", "tool", "model again"):
            fuse.pass_by("between steps")

            async def run(name: str = name) -> str:
                fuse.pass_by("inside a step")
                bench.effects.append(name)
                return name

            results.append(await context.step(name, run))
        results += await context.gather(*(StepCall(intent=n, run=bench.effect(n)) for n in ("x", "y")))
        return results

    return task


PLACES = _places()


@pytest.mark.parametrize("point", range(len(PLACES)))
async def test_a_worker_may_die_anywhere_in_a_run(point: int) -> None:
    """The next worker goes on after the last record: no recorded step runs twice, none more than twice."""
    with open_sqlite() as database:
        fuse = Fuse(point)
        first = Bench(FaultyDatabase(MortalDatabase(database, fuse)))
        with pytest.raises(Crash):
            await first.run(_agent(first, fuse))
        recorded = [
            row["intent"]
            for row in database._connection.execute("SELECT intent FROM durable_steps WHERE status = 'completed'")
        ]
        await asyncio.sleep(30)
        second = Bench(FaultyDatabase(database))
        done = await second.run(_agent(second, Fuse()))

        assert ["model", "tool", "model again", "x", "y"] == done.result
        assert set(recorded).isdisjoint(second.effects)
        assert all((first.effects + second.effects).count(name) <= 2 for name in done.result)


def _first(bench: Bench) -> Task:
    async def task(context: DurableContext) -> str:
        return await context.step("first", bench.effect("a"))

    return task


async def _replay_first(context: DurableContext) -> str:
    async def never() -> str:
        raise AssertionError("a recorded step ran")

    return await context.step("first", never)


async def _nothing(_context: DurableContext) -> None:
    """Do nothing."""


async def _dies(_context: DurableContext) -> None:
    raise Crash


def _after(seconds: float, value: str) -> Callable[[], Awaitable[str]]:
    async def run() -> str:
        await asyncio.sleep(seconds)
        return value

    return run


async def test_a_step_that_cancels_itself_has_failed(bench: Bench) -> None:
    """It is tried again as any other: only a cancellation from outside ends the run."""
    tries = 0

    async def step() -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            task = asyncio.ensure_future(asyncio.sleep(1))
            task.cancel()
            await task
        return "done"

    async def task(context: DurableContext) -> Any:
        return await context.step("once more", step, retry=StepRetry(max_attempts=2))

    assert "done" == (await bench.run(task)).result
    assert 2 == tries
