"""`run_on_workflow_step`: tasks on Cloudflare Workflows, on an engine of the tests' own; the real one is in e2e."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import pytest

from chatturn.durable.runner import RunDurableInput, run_durable
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.steps import StepRetry
from chatturn.durable.tasks import ContextSources, StepCall, TaskContext
from chatturn.durable.workflows.context import (
    RunOnWorkflowStepInput,
    WorkflowContext,
    run_on_workflow_step,
    workflow_run_id,
)
from chatturn.durable.workflows.step import (
    ReceivedEvent,
    WorkflowStepConfig,
    WorkflowStepFailed,
    WorkflowStepLike,
    duration_words,
    event_type,
    platform_retries,
    step_name,
)
from chatturn.errors import (
    AttemptsExhausted,
    DurableAwaitEventTimeoutError,
    StepInputMismatch,
    StepTimeout,
    StepTooLarge,
)
from tests.support.runs import manifest
from tests.support.turns import open_sqlite

Task = Callable[[TaskContext], Awaitable[Any]]
_RECEIVED_AT = "2026-01-01T00:00:00.000Z"


class Engine:
    """
    The platform, as far as one instance sees it: what has a record is not done again.

    Attributes:
        asked: The steps asked for in all lives: what for, and with what.
        effects: What steps of `effect` did.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.effects: list[str] = []
        self.events: defaultdict[str, list[Any]] = defaultdict(list)
        self._records: dict[str, Any] = {}
        self._numbers = count(1)

    # `WorkflowStepLike`

    async def do(self, name: str, config: WorkflowStepConfig, run: Callable[[], Awaitable[str]]) -> str:
        self.asked.append((name, dict(config)))
        if name not in self._records:
            self._records[name] = await self._outcome(config, run)
        return str(self._recorded(name))

    async def sleep(self, name: str, duration: str) -> None:
        self.asked.append((name, duration))
        if name not in self._records:
            await asyncio.sleep(_seconds(duration))
            self._records[name] = None

    async def wait_for_event(self, name: str, *, type: str, timeout: str) -> ReceivedEvent:  # noqa: A002, ASYNC109
        self.asked.append((name, {"type": type, "timeout": timeout}))
        if name not in self._records:
            if not self.events[type]:
                await asyncio.sleep(_seconds(timeout))
            self._records[name] = TimeoutError()
            if self.events[type]:
                self._records[name] = ReceivedEvent(payload=self.events[type].pop(0), received_at=_RECEIVED_AT)
        event: ReceivedEvent = self._recorded(name)
        return event

    async def send_event(self, type: str, payload: Any) -> None:  # noqa: A002
        self.events[type].append(payload)

    async def _outcome(self, config: WorkflowStepConfig, run: Callable[[], Awaitable[str]]) -> Any:
        outcome: Any = None
        for _ in range(config.get("retries", {"limit": 2, "delay": 0})["limit"] + 1):
            attempt = asyncio.ensure_future(run())
            await asyncio.wait({attempt}, timeout=int(config.get("timeout", 600_000)) / 1000)
            if not attempt.done():
                outcome = TimeoutError()
                await asyncio.wait({attempt})  # It goes on all the same.
                assert attempt.exception() is not None
            elif error := attempt.exception():
                outcome = WorkflowStepFailed(repr(error))
            else:
                return attempt.result()
        return outcome

    def _recorded(self, name: str) -> Any:
        if isinstance(self._records[name], Exception):
            raise self._records[name]
        return self._records[name]

    # What tests do with it

    def effect(self, name: str, value: Any = None, *, error: Exception | None = None) -> Callable[[], Awaitable[Any]]:
        """Return a step's function that leaves a trace."""

        async def run() -> Any:
            self.effects.append(name)
            if error is not None:
                raise error
            return name if value is None else value

        return run

    async def live(self, task: Task, **options: Any) -> Any:
        """Run *task* in one more life of the instance."""
        number = lambda: f"value-{next(self._numbers)}"  # noqa: E731
        sources = ContextSources(now=number, uuid=number, random=lambda: next(self._numbers) / 1_000)
        defaults = {"workflow_name": "agent", "instance_id": "i-1", "sources": sources}
        return await run_on_workflow_step(self, RunOnWorkflowStepInput(task_fn=task, **{**defaults, **options}))

    def names(self) -> list[str]:
        """Return the names of the steps that were asked for."""
        return [name for name, _ in self.asked]


@pytest.fixture
def engine() -> Engine:
    """An instance that has not run yet."""
    return Engine()


def _conforms(context: WorkflowContext, engine: Engine) -> tuple[TaskContext, WorkflowStepLike]:
    """Checked by the type checker."""
    return context, engine


# Names and words


async def test_every_step_is_named_by_workflow_position_and_intent(engine: Engine) -> None:
    """Positions count what was asked for, in that order, whatever it is."""

    async def task(context: TaskContext) -> None:
        await context.step("plan", engine.effect("plan"))
        await context.gather(StepCall(intent="a", run=engine.effect("a")), StepCall(intent="b", run=engine.effect("b")))
        await context.now()
        await context.uuid()
        await context.random()
        await context.emit_event("go", 1)
        await context.await_event("go")
        await context.sleep(1)

    await engine.live(task)

    expected = [
        "agent/0:plan",
        "agent/1:a",
        "agent/2:b",
        "agent/3:deterministic:now",
        "agent/4:deterministic:uuid",
        "agent/5:deterministic:random",
        "agent/6:emit:go",
        "agent/7:event:go",
        "agent/8:sleep",
    ]
    assert expected == engine.names()


@pytest.mark.parametrize(
    ("intent", "name"),
    [
        ("charge: card №1", "w/0:charge: card №1"),
        ("a\nb\x00c\x7f", "w/0:a b c "),
        ("x" * 300, "w/0:" + "x" * 252),
        ("x" + "\U0001f980" * 200, "w/0:x" + "\U0001f980" * 125),
        ("\ud800", "w/0:?"),
    ],
    ids=["as it is", "control characters", "too long", "never half a character", "half a character"],
)
def test_a_name_is_what_the_platform_takes(intent: str, name: str) -> None:
    """At most 256 UTF-16 units; the position keeps it unique."""
    assert name == step_name("w", 0, intent)


def test_an_event_key_is_its_type_where_the_platform_allows_it() -> None:
    """Any other key gets a type of its own."""
    odd = ["approve: call 1", "approve_ call 1", "approve.call", "-a", "", "x" * 101, "é"]
    types = [event_type(key) for key in odd]

    assert ["approved", "a-b_C1", "x" * 100] == [event_type(key) for key in ("approved", "a-b_C1", "x" * 100)]
    assert len(set(types)) == len(odd)
    assert all(each == event_type(each) for each in types), "each is a type itself"


@pytest.mark.parametrize(
    ("retry", "expected"),
    [
        (StepRetry(), {"limit": 0, "delay": 1_000, "backoff": "exponential"}),
        (StepRetry(max_attempts=3, initial_backoff_ms=200), {"limit": 2, "delay": 200, "backoff": "exponential"}),
        (StepRetry(max_attempts=5, attempts_in_all=2), {"limit": 1, "delay": 1_000, "backoff": "exponential"}),
        (StepRetry(max_attempts=2, attempts_in_all=9), {"limit": 1, "delay": 1_000, "backoff": "exponential"}),
        (StepRetry(attempts_in_all=0), {"limit": 0, "delay": 1_000, "backoff": "exponential"}),
        (
            StepRetry(max_attempts=9, initial_backoff_ms=500, max_backoff_ms=500),
            {"limit": 8, "delay": 500, "backoff": "constant"},
        ),
        (
            StepRetry(max_attempts=2, initial_backoff_ms=900, max_backoff_ms=300),
            {"limit": 1, "delay": 300, "backoff": "constant"},
        ),
    ],
)
def test_a_retry_policy_becomes_the_platforms(retry: StepRetry, expected: dict[str, Any]) -> None:
    """It counts tries, the platform the tries after the first."""
    assert expected == platform_retries(retry)


def test_durations_are_whole_seconds_rounded_up() -> None:
    """In the platform's words: ``5s``, as agent-runtime writes it, is not a number to the engine."""
    assert ["0 seconds", "1 seconds", "1 seconds", "2 seconds", "3600 seconds"] == [
        duration_words(each) for each in (0, 1, 1_000, 1_001, 3_600_000)
    ]
    assert "0 seconds" == duration_words(-5)


async def test_what_a_step_does_not_say_is_the_workflows_or_the_platforms(engine: Engine) -> None:
    """Its own retries and its own timeout win, each for itself."""

    async def task(context: TaskContext) -> None:
        await context.step("none", engine.effect("x"))
        await context.step("retry", engine.effect("x"), retry=StepRetry())
        await context.step("timeout", engine.effect("x"), timeout_ms=250)

    config: WorkflowStepConfig = {"retries": {"limit": 9, "delay": "1 minute"}, "timeout": 3_600_000}
    await engine.live(task)
    await engine.live(lambda context: context.step("other", engine.effect("x")), step_config=config)
    await engine.live(lambda context: context.step("both", engine.effect("x"), timeout_ms=250), step_config=config)

    own = {"limit": 0, "delay": 1_000, "backoff": "exponential"}
    assert [{}, {"retries": own}, {"timeout": 250}, config, {**config, "timeout": 250}] == [
        config for _, config in engine.asked
    ]


def test_a_run_is_named_by_its_workflow_and_its_instance() -> None:
    """agent-runtime names only the Workflow, so all instances are one run to whom it is told."""
    assert ("cf-workflow:agent", "cf-workflow:agent:i-1") == (
        workflow_run_id("agent", None),
        workflow_run_id("agent", "i-1"),
    )


# Steps


async def test_what_is_on_record_is_not_done_again(engine: Engine) -> None:
    """Another life of the instance gets the same values, undetermined ones too."""

    async def task(context: TaskContext) -> list[Any]:
        drawn = [await context.now(), await context.uuid(), await context.random()]
        both = await context.gather(
            StepCall(intent="a", run=engine.effect("a")), StepCall(intent="b", run=engine.effect("b"))
        )
        return [context.run_id, context.project_id, context.scenario_id, drawn, both]

    first = await engine.live(task, project_id="legal", scenario_id="thread-1")

    assert ["cf-workflow:agent:i-1", "legal", "thread-1", ["value-1", "value-2", 0.003], ["a", "b"]] == first
    assert first == await engine.live(task, project_id="legal", scenario_id="thread-1")
    assert ["a", "b"] == engine.effects


async def test_results_are_exact_copies(engine: Engine) -> None:
    """B12: what JavaScript's values would change stays as it is, and nothing is shared."""
    value: dict[str, Any] = {"float": 1.0, "int": 2**60, "tuple": (None,), "text": "\u2028\U0001f980"}

    async def task(context: TaskContext) -> Any:
        result = await context.step("first", engine.effect("a", value))
        value["more"] = 1
        return json.dumps(result)

    expected = json.dumps({"float": 1.0, "int": 2**60, "tuple": [None], "text": "\u2028\U0001f980"})
    assert expected == await engine.live(task) == await engine.live(task)


async def test_the_tasks_result_is_json(engine: Engine) -> None:
    """It is the instance's output; what is none is refused by name."""

    async def tuples(_context: TaskContext) -> Any:
        return {"pair": (1, 2)}

    async def complex_(_context: TaskContext) -> Any:
        return 1j

    assert {"pair": [1, 2]} == await engine.live(tuples)
    with pytest.raises(TypeError, match="the task's result is not JSON"):
        await engine.live(complex_)


async def test_parallel_steps_run_at_the_same_time(engine: Engine) -> None:
    """Their results come in the order given."""
    calls = [StepCall(intent=str(seconds), run=_after(seconds, str(seconds))) for seconds in (3, 1, 2)]

    assert ["3", "1", "2"] == await engine.live(lambda context: context.gather(*calls))
    assert 3 == pytest.approx(asyncio.get_running_loop().time(), abs=0.1)


async def test_of_parallel_failures_the_first_in_order_is_raised(engine: Engine) -> None:
    """Not the first in time, which another life might see differently; and nothing is left running."""

    async def fails(seconds: float) -> None:
        await asyncio.sleep(seconds)
        raise OSError(seconds)

    def task(context: TaskContext) -> Awaitable[Any]:
        retry = StepRetry()
        return context.gather(
            StepCall(intent="slow", run=lambda: fails(5), retry=retry),
            StepCall(intent="fast", run=lambda: fails(1), retry=retry),
            StepCall(intent="long", run=_after(9, "x"), retry=retry),
        )

    for _ in range(2):
        with pytest.raises(AttemptsExhausted, match="'slow'"):
            await engine.live(task)
    assert 9 == pytest.approx(asyncio.get_running_loop().time(), abs=0.1)


# Failures


async def test_a_step_is_tried_by_the_platform(engine: Engine) -> None:
    """As often as its policy says, and not again once it succeeded."""
    failures = [OSError("first"), OSError("second")]

    async def flaky() -> str:
        engine.effects.append("try")
        if failures:
            raise failures.pop()
        return "done"

    def task(context: TaskContext) -> Awaitable[Any]:
        return context.step("flaky", flaky, retry=StepRetry(max_attempts=3))

    assert "done" == await engine.live(task) == await engine.live(task)
    assert ["try"] * 3 == engine.effects


async def test_a_step_that_failed_for_good_fails_in_every_life(engine: Engine) -> None:
    """With the same class of error, so that a task may handle it; where it failed, the original is the cause."""

    def task(context: TaskContext) -> Awaitable[Any]:
        return context.step("poison", engine.effect("p", error=OSError("x")), retry=StepRetry(max_attempts=2))

    with pytest.raises(AttemptsExhausted, match="'poison' failed for good: OSError: x") as first:
        await engine.live(task)
    with pytest.raises(AttemptsExhausted, match="'poison'"):
        await engine.live(task)

    assert isinstance(first.value.__cause__, OSError)
    assert ["p", "p"] == engine.effects


async def test_a_step_inside_a_step_is_refused_at_once(engine: Engine) -> None:
    """In a later life nobody would ask for it, and the steps behind it would be taken for others."""

    def task(context: TaskContext) -> Awaitable[Any]:
        async def outer() -> None:
            await context.step("inner", engine.effect("i"))

        return context.step("outer", outer, retry=StepRetry(max_attempts=1))

    with pytest.raises(AttemptsExhausted, match="inside step 'outer'"):
        await engine.live(task)
    assert [] == engine.effects


async def test_an_exception_that_cannot_be_asked_fails_its_step_as_any_other(engine: Engine) -> None:
    """Its class is told, and no other error takes its place."""

    class Wordless(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    def task(context: TaskContext) -> Awaitable[Any]:
        retry = StepRetry(max_attempts=5, retryable=lambda _error: False)
        return context.step("poison", engine.effect("p", error=Wordless()), retry=retry)

    for _ in range(2):
        with pytest.raises(AttemptsExhausted, match="'poison' failed for good: Wordless"):
            await engine.live(task)
    assert ["p"] == engine.effects


async def test_a_failure_not_worth_another_try_is_on_record(engine: Engine) -> None:
    """It is not tried again, in a later life neither."""

    def task(context: TaskContext) -> Awaitable[Any]:
        retry = StepRetry(max_attempts=5, retryable=lambda error: not isinstance(error, LookupError))
        return context.step("hopeless", engine.effect("h", error=LookupError("x")), retry=retry)

    with pytest.raises(AttemptsExhausted, match="LookupError: x") as first:
        await engine.live(task)
    with pytest.raises(AttemptsExhausted, match="LookupError: x"):
        await engine.live(task)

    assert isinstance(first.value.__cause__, LookupError)
    assert ["h"] == engine.effects


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (object(), TypeError),
        (float("nan"), TypeError),
        ("x" * 1_000_001, StepTooLarge),
        (json.loads("[" * 65 + "]" * 65), StepTooLarge),
    ],
    ids=["object", "nan", "a megabyte", "65 levels"],
)
async def test_what_cannot_be_stored_is_refused_by_name(engine: Engine, value: Any, error: type[Exception]) -> None:
    """As a result, without another try, in every life; and as an input, before anything is done."""
    for _ in range(2):
        with pytest.raises(error, match="the result of step 'poison'"):
            await engine.live(lambda context: context.step("poison", engine.effect("a", value)))
    with pytest.raises(error, match="the input of step 'poison'"):
        await engine.live(lambda context: context.step("poison", engine.effect("b"), input=value))

    assert ["a"] == engine.effects


async def test_another_input_than_on_record_is_a_mismatch(engine: Engine) -> None:
    """B13: the fingerprint is in the record; where one of the two has none, nothing is compared."""

    def task(context: TaskContext, *amount: int) -> Awaitable[Any]:
        if not amount:
            return context.step("charge", engine.effect("a"))
        return context.step("charge", engine.effect("a"), input=amount[0])

    await engine.live(lambda context: task(context, 1))
    with pytest.raises(StepInputMismatch, match="'charge'"):
        await engine.live(lambda context: task(context, 2))
    assert "a" == await engine.live(lambda context: task(context, 1)) == await engine.live(task)


async def test_a_step_that_takes_too_long_is_cut_off(engine: Engine) -> None:
    """The platform counts it as failed, and a second later it is stopped; every life hears the same."""
    ended: list[float] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(1_000)
        finally:
            ended.append(asyncio.get_running_loop().time())

    for _ in range(2):
        with pytest.raises(StepTimeout, match="slow"):
            await engine.live(lambda context: context.step("slow", slow, retry=StepRetry(), timeout_ms=500))

    assert [1.5] == pytest.approx(ended, abs=0.01)


async def test_a_steps_own_timeout_error_is_its_own(engine: Engine) -> None:
    """It is a failure like others."""
    retry = StepRetry()
    with pytest.raises(AttemptsExhausted, match="TimeoutError: own"):
        await engine.live(lambda context: context.step("x", engine.effect("x", error=TimeoutError("own")), retry=retry))


# Waiting


async def test_a_sleep_is_the_platforms(engine: Engine) -> None:
    """Once, however often the instance is replayed."""

    async def task(context: TaskContext) -> str:
        await context.sleep(90_500)
        return "awake"

    assert "awake" == await engine.live(task) == await engine.live(task)
    assert [("agent/0:sleep", "91 seconds")] * 2 == engine.asked
    assert 91 == pytest.approx(asyncio.get_running_loop().time(), abs=0.1)


async def test_an_event_is_awaited_under_its_type(engine: Engine) -> None:
    """Its payload is returned, in every life."""
    await engine.send_event("approved", {"by": "ann"})

    async def task(context: TaskContext) -> Any:
        return await context.await_event("approved", timeout_ms=1_500)

    assert {"by": "ann"} == await engine.live(task) == await engine.live(task)
    assert [("agent/0:event:approved", {"type": "approved", "timeout": "2 seconds"})] * 2 == engine.asked


async def test_an_event_that_does_not_come_is_a_timeout(engine: Engine) -> None:
    """In every life, even if it came after all."""

    def task(context: TaskContext) -> Awaitable[Any]:
        return context.await_event("approved", timeout_ms=3_000)

    with pytest.raises(DurableAwaitEventTimeoutError, match=r"'approved'.*3000 ms"):
        await engine.live(task)
    await engine.send_event("approved", "too late")
    with pytest.raises(DurableAwaitEventTimeoutError):
        await engine.live(task)


async def test_every_wait_for_a_key_gets_its_first_event(engine: Engine) -> None:
    """The platform would give each of them another event, and let the last wait in vain."""
    for payload in (["first"], ["second"]):
        await engine.send_event("go", payload)

    async def task(context: TaskContext) -> list[Any]:
        both = await asyncio.gather(context.await_event("go"), context.await_event("go"))
        both[0].append("a copy")
        return [*both, await context.await_event("go")]

    assert [["first", "a copy"], ["first"], ["first"]] == await engine.live(task) == await engine.live(task)


async def test_an_emitted_event_is_sent_once(engine: Engine) -> None:
    """The first wins, and the task is told so; a replay sends nothing."""

    async def task(context: TaskContext) -> list[Any]:
        first, record = await context.emit_event("go", {"n": 1})
        second, same = await context.emit_event("go", {"n": 2})
        return [first, record.payload, record.emitted_at, second, same == record, await context.await_event("go")]

    assert [True, {"n": 1}, "value-1", False, True, {"n": 1}] == await engine.live(task)
    assert [True, {"n": 1}, "value-1", False, True, {"n": 1}] == await engine.live(task)
    assert not engine.events["go"]


async def test_an_event_that_came_before_is_the_first(engine: Engine) -> None:
    """A task that has awaited it is told of it instead of emitting another."""
    await engine.send_event("go", "theirs")

    async def task(context: TaskContext) -> Any:
        await context.await_event("go")
        first, record = await context.emit_event("go", "ours")
        return [first, record.run_id, record.payload, record.emitted_at]

    assert [False, "cf-workflow:agent:i-1", "theirs", _RECEIVED_AT] == await engine.live(task)
    assert not engine.events["go"]


async def test_a_payload_that_javascript_would_change_is_refused(engine: Engine) -> None:
    """Before anything is sent."""
    with pytest.raises(TypeError, match="an int beyond"):
        await engine.live(lambda context: context.emit_event("go", 2**60))
    assert [] == engine.asked


# Keys


async def test_step_keys_are_the_same_in_every_life_and_in_no_other_instance(engine: Engine) -> None:
    """They are what tools deduplicate by."""

    async def task(context: TaskContext) -> list[str]:
        keys = []
        for intent in ("a", "b"):
            keys.append(context.step_key(intent))
            await context.step(intent, engine.effect(intent))
        return keys

    first, again, other = [await engine.live(task, instance_id=each) for each in ("i-1", "i-1", "i-2")]

    assert first == again
    assert len({*first, *other}) == 4


async def test_without_the_instances_id_there_are_no_step_keys(engine: Engine) -> None:
    """One instance's tools would be told that another's have been run."""

    async def task(context: TaskContext) -> str:
        return context.step_key("a")

    with pytest.raises(ValueError, match="instance_id"):
        await engine.live(task, instance_id=None)


# Both ways


async def test_a_task_gives_the_same_result_on_workflows_and_by_run_durable(engine: Engine) -> None:
    """It knows neither of the two."""

    async def task(context: TaskContext) -> list[Any]:
        plan = await context.step("plan", _after(1, "plan"), input={"x": 1}, kind="llm")
        both = await context.gather(
            StepCall(intent="a", run=_after(2, "a"), retry=StepRetry(max_attempts=2)),
            StepCall(intent="b", run=_after(1, "b"), timeout_ms=5_000),
        )
        await context.sleep(100)
        emitted, _ = await context.emit_event("go", {"n": 1.5})
        return [plan, both, emitted, await context.await_event("go"), await context.random() < 1]

    with open_sqlite() as database:
        store = SqlRunStore(database)
        durable = await run_durable(RunDurableInput(run_id="run-1", manifest=manifest(), store=store, task_fn=task))

        assert ["plan", ["a", "b"], True, {"n": 1.5}, True] == durable.result == await engine.live(task)


def _after(seconds: float, value: str) -> Callable[[], Awaitable[str]]:
    async def run() -> str:
        await asyncio.sleep(seconds)
        return value

    return run


def _seconds(words: str) -> int:
    number, unit = words.split()
    assert unit == "seconds"
    return int(number)
