"""
agent-runtime's own tests of durable runs and durable turns, each under its name, over every store of ours.

Everything is imported from the one place from which a harness imports it.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from chatturn.agent_runtime import (
    DurableAwaitEventTimeoutError,
    DurableContext,
    DurableRunDivergenceError,
    DurableRunInputMismatchError,
    DurableRunLeaseHeldError,
    DurableRunManifest,
    DurableRunStore,
    DurableTurnHandle,
    RunDurableInput,
    RunDurableResult,
    RunDurableTurnOptions,
    StepKind,
    StepStatus,
    manifest_hash,
    run_durable,
    run_durable_turn,
)
from chatturn.durable.records import TaskSpec
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.store import Begin
from tests.support.clock import Clock
from tests.support.runs import manifest

Task = Callable[[DurableContext], Awaitable[Any]]


async def run(store: DurableRunStore, task: Task, value: Any = 1) -> RunDurableResult[Any]:
    return await run_durable(RunDurableInput(run_id="run-1", manifest=manifest(value), store=store, task_fn=task))


class Effects:
    """Steps that note that they ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def of(self, name: str, error: Exception | None = None) -> Callable[[], Awaitable[str]]:
        async def effect() -> str:
            self.ran.append(name)
            if error is not None:
                raise error
            return f"result of {name}"

        return effect


# Durable runs


async def test_a_fresh_two_step_run_returns_the_result_and_lists_both_steps_completed(store: SqlRunStore) -> None:
    effects = Effects()

    async def task(context: DurableContext) -> list[str]:
        return [await context.step(name, effects.of(name)) for name in ("a", "b")]

    done = await run(store, task)

    assert ["result of a", "result of b"] == done.result
    assert [("a", StepStatus.COMPLETED), ("b", StepStatus.COMPLETED)] == [
        (step.intent, step.status) for step in done.steps
    ]


async def test_completed_steps_replay_without_calling_their_function_and_a_failed_step_reruns(
    store: SqlRunStore,
) -> None:
    effects = Effects()
    errors: list[Exception | None] = [ValueError("no"), None]

    async def task(context: DurableContext) -> list[str]:
        first = await context.step("a", effects.of("a"))
        return [first, await context.step("b", effects.of("b", errors.pop(0)))]

    with pytest.raises(ValueError, match="no"):
        await run(store, task)
    done = await run(store, task)

    assert (["a", "b", "b"], ["result of a", "result of b"]) == (effects.ran, done.result)


async def test_a_step_that_was_begun_and_not_completed_is_never_replayed(store: SqlRunStore, clock: Clock) -> None:
    """Of later versions: what a worker has begun, and not published before it died, is done again."""
    begun = Begin(step_index=0, intent="a", kind=StepKind.LOGIC)
    await store.start_or_resume(run_id="run-1", manifest=manifest(), worker_id="dead", lease_ms=50, begin=begun)
    clock.advance(80)
    effects = Effects()

    async def task(context: DurableContext) -> str:
        return await context.step("a", effects.of("a"))

    assert "result of a" == (await run(store, task)).result
    assert ["a"] == effects.ran


async def test_a_manifest_that_changed_is_rejected_on_resume(store: SqlRunStore) -> None:
    async def task(_: DurableContext) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run(store, task, value=1)
    with pytest.raises(DurableRunInputMismatchError):
        await run(store, task, value=2)


async def test_a_changed_intent_at_the_same_position_is_rejected(store: SqlRunStore) -> None:
    effects = Effects()

    async def task(context: DurableContext) -> None:
        await context.step(intents.pop(0), effects.of("x"))
        raise ValueError("no")

    intents = ["a", "b"]
    with pytest.raises(ValueError, match="no"):
        await run(store, task)
    with pytest.raises(DurableRunDivergenceError):
        await run(store, task)


async def test_a_second_worker_is_refused_while_the_lease_is_live(store: SqlRunStore) -> None:
    refused: list[bool] = []

    async def other(_: DurableContext) -> None:
        raise AssertionError("it ran twice")

    async def task(_: DurableContext) -> None:
        with pytest.raises(DurableRunLeaseHeldError):
            await run(store, other)
        refused.append(True)

    await run(store, task)

    assert [True] == refused


async def test_a_run_is_taken_over_once_its_lease_of_50_ms_is_80_ms_old(store: SqlRunStore, clock: Clock) -> None:
    await store.start_or_resume(run_id="run-1", manifest=manifest(), worker_id="dead", lease_ms=50)
    effects = Effects()

    async def task(context: DurableContext) -> str:
        return await context.step("a", effects.of("a"))

    with pytest.raises(DurableRunLeaseHeldError):
        await run(store, task)
    clock.advance(80)

    assert "result of a" == (await run(store, task)).result


async def test_awaiting_an_event_gets_the_first_emit_and_replays_it_from_the_record(store: SqlRunStore) -> None:
    async def task(context: DurableContext) -> Any:
        await store.emit_event("run-1", "approved", {"by": "Ann"})
        await store.emit_event("run-1", "approved", {"by": "Bob"})
        return await context.await_event("approved", timeout_ms=1_000)

    first, again = await run(store, task), await run(store, task)

    assert {"by": "Ann"} == first.result == again.result


async def test_awaiting_an_event_times_out(store: SqlRunStore, clock: Clock) -> None:
    """A long wait suspends the run; whoever goes on with it after its time is told."""

    async def task(context: DurableContext) -> Any:
        return await context.await_event("approved", timeout_ms=60_000)

    assert (await run(store, task)).suspended
    clock.advance(60_001)
    with pytest.raises(DurableAwaitEventTimeoutError):
        await run(store, task)


async def test_the_first_emit_wins_and_the_second_is_told_the_first_payload(store: SqlRunStore) -> None:
    async def task(context: DurableContext) -> Any:
        return [(accepted, event.payload) for accepted, event in [await context.emit_event("k", n) for n in (1, 2)]]

    assert [(True, 1), (False, 1)] == (await run(store, task)).result


async def test_now_and_uuid_are_the_same_on_a_replay(store: SqlRunStore) -> None:
    async def task(context: DurableContext) -> list[str]:
        return [await context.now(), await context.uuid()]

    assert (await run(store, task)).result == (await run(store, task)).result


def test_the_manifest_hash_ignores_the_order_of_keys() -> None:
    task = TaskSpec(id="t", intent="i", domain="d")
    first, second = (
        DurableRunManifest(project_id="p", task=task, input=given) for given in ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    )

    assert manifest_hash(first) == manifest_hash(second)


# Durable turns


class Producer:
    """Says words, and knows its final text or does not."""

    def __init__(self, words: list[Any], text: str | None) -> None:
        self._words, self._text = words, text
        self.stream = self._play()

    async def _play(self) -> AsyncGenerator[str, None]:
        for word in self._words:
            if isinstance(word, Exception):
                raise word
            yield word

    def final_text(self) -> str | None:
        return self._text


class Turns:
    """Turns of one run, and how many producers they made."""

    def __init__(self, store: DurableRunStore) -> None:
        self.store, self.made = store, 0

    def turn(self, *words: Any, text: str | None = "hello", **options: Any) -> DurableTurnHandle[str]:
        def produce() -> Producer:
            self.made += 1
            return Producer(list(words), text)

        required: dict[str, Any] = {"store": self.store, "run_id": "run-1", "manifest": manifest()}
        made = {"produce": produce, "replay_event": lambda stored: f"replay:{stored}"}
        return run_durable_turn(RunDurableTurnOptions(**{**required, **made, **options}))


async def test_a_fresh_turn_forwards_events_live_and_checkpoints_its_text(store: SqlRunStore) -> None:
    turn = Turns(store).turn("hel", "lo")
    events = [event async for event in turn.stream]
    step = await store.load_step("run-1", 0)

    assert (["hel", "lo"], False, "hello") == (events, turn.replayed(), turn.final_text())
    assert step is not None
    assert {"finalText": "hello"} == step.result


async def test_a_replay_yields_one_event_and_never_builds_the_producer(store: SqlRunStore) -> None:
    turns = Turns(store)
    _ = [event async for event in turns.turn("hello").stream]
    again = turns.turn("never")

    assert ["replay:hello"] == [event async for event in again.stream]
    assert (True, 1) == (again.replayed(), turns.made)


async def test_a_crash_in_the_middle_marks_the_turn_failed_and_it_reruns_from_the_top(store: SqlRunStore) -> None:
    turns = Turns(store)
    with pytest.raises(ValueError, match="no"):
        _ = [event async for event in turns.turn("hel", ValueError("no")).stream]
    failed = await store.load_step("run-1", 0)
    events = [event async for event in turns.turn("hel", "lo").stream]

    assert failed is not None
    assert (StepStatus.FAILED, ["hel", "lo"], 2) == (failed.status, events, turns.made)


async def test_accumulated_text_stands_in_for_an_empty_final_text_and_is_replayed(store: SqlRunStore) -> None:
    turns = Turns(store)
    options: dict[str, Any] = {"accumulate": lambda event, so_far: so_far + event}
    _ = [event async for event in turns.turn("hel", "lo", text="", **options).stream]

    assert ["replay:hello"] == [event async for event in turns.turn("never", **options).stream]


async def test_another_worker_s_attempt_at_the_same_time_is_refused(store: SqlRunStore) -> None:
    turns = Turns(store)
    first = turns.turn("hel", "lo", worker_id="worker-a").stream
    assert "hel" == await anext(first)

    with pytest.raises(DurableRunLeaseHeldError):
        await anext(turns.turn("never", worker_id="worker-b").stream)
    assert ["lo"] == [event async for event in first]
    await asyncio.sleep(0)
