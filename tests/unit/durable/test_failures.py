"""Steps that fail, waits that are in each other's way, and orders that a replay would not keep: by what is told."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any

import pytest

from chatturn.database.api import Statement
from chatturn.durable.context import DurableContext
from chatturn.durable.records import RunStatus, StepKind, StepStatus
from chatturn.errors import BackendRejected, DurableRunDivergenceError, LeaseLost, StepFailed, StepTimeout
from tests.support.faults import FaultyDatabase
from tests.support.turns import open_sqlite
from tests.unit.durable.test_runner import Bench

_OLD_WORDS = """UPDATE durable_steps SET error_json = '{"message":"Plain: what"}' WHERE step_index = 0"""


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A bench over an empty database."""
    with open_sqlite() as database:
        yield Bench(FaultyDatabase(database))


class Plain(Exception):
    """Made again from its arguments."""


class Stateful(Exception):
    """Wants other arguments than it keeps."""

    def __init__(self, service: str, *, status: int) -> None:
        super().__init__(f"{service} answered {status}")
        self.status = status


def _errors() -> list[Exception]:
    class Local(Exception):
        """Of a class that has no address."""

    opaque = Plain("x")
    opaque.response = object()  # type: ignore[attr-defined]  # as HTTP clients do
    return [
        Local("x"),
        opaque,
        Plain(b"bytes"),
        Plain("x" * 9_000),
        ExceptionGroup("two", [Plain()]),
        _with(Plain(), status=HTTPStatus.BAD_GATEWAY),
        _with(Plain(), kind=StepKind.TOOL),
        _with(Plain(), seen=(1, 2)),
        _with(Plain(), by={StepKind.TOOL: 1}),
        Plain(1, ["x", {"y": (True,)}]),
        Plain(StepKind.TOOL),
        Slotted(object()),
        AttributeError("x", name="y", obj=object()),
    ]


def _with(error: Exception, **attributes: Any) -> Exception:
    vars(error).update(attributes)
    return error


def _from(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


class Slotted(Exception):
    """Keeps what it is given outside of its attributes."""

    __slots__ = ("__hidden", "why")

    def __init__(self, why: Any) -> None:
        super().__init__()
        self.why = why
        self.__hidden = [why]

    def state(self) -> tuple[Any, Any]:
        """Return all that it keeps."""
        return self.why, self.__hidden


async def _caught(bench: Bench, context: DurableContext, error: Exception, seen: list[Exception]) -> str:
    try:
        await context.step("first", bench.effect("first", error=error))
    except Exception as caught:  # noqa: BLE001 - what is tried
        seen.append(caught)
    return str(await context.step("second", bench.effect("second")))


@pytest.mark.parametrize(
    "error",
    [
        Plain("what", 1, [None]),
        Stateful("bank", status=503),
        KeyError("k"),
        OSError(2, "no such file"),
        BackendRejected("no", backend="x", upstream_status=400),
        StepTimeout("slow", run_id="run-1"),
        _with(Plain(True, 1, 1.0, None), ok=True, n=1, x=1.0, seen=[1, {"y": False}]),
        OSError(2, "no such file", "a.txt", None, "b.txt"),
        ImportError("no such module", name="a.b", path="/a"),
        Slotted("x"),
        _from(Plain("outer"), _from(Stateful("bank", status=502), KeyError("k"))),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_caught_failure_is_the_same_on_every_attempt(bench: Bench, error: Exception) -> None:
    """Its class, its words and its attributes; the step is not run again, and that it is final costs no write."""
    seen: list[Exception] = []

    async def task(context: DurableContext) -> str:
        return await _caught(bench, context, error, seen)

    await bench.run(task)
    writes = bench.database.batches
    await bench.run(task)

    first, again = seen
    assert (first, 4) == (error, writes)
    assert repr(_seen(first)) == repr(_seen(again))
    assert ["first", "second"] == bench.effects


def _seen(error: BaseException | None) -> Any:
    """Return all that a task can see of an exception."""
    if error is None:
        return None
    fields = {name: getattr(error, name, None) for name in ("filename", "filename2", "errno", "name", "path", "msg")}
    kept = error.state() if isinstance(error, Slotted) else None
    return type(error), str(error), error.args, vars(error), fields, kept, _seen(error.__cause__)


async def test_a_cause_that_cannot_be_made_again_is_a_failed_step_from_the_first_time_on(bench: Bench) -> None:
    """The error itself is caught by its own class, as ever."""
    seen: list[Exception] = []

    async def task(context: DurableContext) -> str:
        error = _from(Plain("outer"), _with(Plain("inner"), response=object()))
        return await _caught(bench, context, error, seen)

    await bench.run(task)
    await bench.run(task)

    first, again = seen
    assert repr(_seen(first)) == repr(_seen(again))
    assert (Plain, StepFailed) == (type(first), type(first.__cause__))
    assert "step 'first' failed: Plain: inner" in str(first.__cause__)


@pytest.mark.parametrize("error", _errors(), ids=lambda error: f"{type(error).__name__}-{len(str(error))}")
async def test_what_cannot_be_made_again_is_a_failed_step_from_the_first_time_on(
    bench: Bench, error: Exception
) -> None:
    """So one ``except`` fits both."""
    seen: list[Exception] = []

    async def task(context: DurableContext) -> str:
        return await _caught(bench, context, error, seen)

    await bench.run(task)
    await bench.run(task)

    first, again = seen
    assert [StepFailed, StepFailed] == [type(first), type(again)]
    assert (str(first), error) == (str(again), first.__context__)
    assert repr(_seen(first)) == repr(_seen(again))
    assert f"step 'first' failed: {type(error).__name__}" in str(first)


async def test_a_class_that_is_gone_is_a_failed_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs, and the words are told."""
    seen: list[Exception] = []

    error = Plain("what")

    async def task(context: DurableContext) -> str:
        return await _caught(bench, context, error, seen)

    await bench.run(task)
    monkeypatch.delattr(f"{Plain.__module__}.Plain")
    await bench.run(task)

    assert "run 'run-1': step 'first' failed: Plain: what" == str(seen[1])


async def test_a_failure_that_left_the_task_is_tried_again(bench: Bench) -> None:
    """Nobody has caught it."""
    seen: list[Exception] = []
    with pytest.raises(Plain):
        await bench.run(lambda context: context.step("first", bench.effect("first", error=Plain())))
    assert "second" == await _ran(bench, lambda context: _caught(bench, context, Plain("again"), seen))

    assert ["first", "first", "second"] == bench.effects


async def test_what_fails_beside_another_task_is_not_caught_by_it(bench: Bench) -> None:
    """The group ends with the failure, which leaves the run; so the next attempt tries that step again."""
    broken = [True]

    async def fails() -> str:
        await asyncio.sleep(1)
        if broken[0]:
            raise Plain
        return "mended"

    async def goes_on(context: DurableContext) -> None:
        await context.step("one", bench.effect("one"))
        await asyncio.sleep(1)
        await context.step("two", bench.effect("two"))

    async def task(context: DurableContext) -> Any:
        async with asyncio.TaskGroup() as group:
            mended = group.create_task(context.step("fails", fails))
            group.create_task(goes_on(context))
        return mended.result()

    with pytest.raises(ExceptionGroup):
        await bench.run(task)
    broken[0] = False

    assert "mended" == await _ran(bench, task)


async def test_a_result_that_cannot_be_stored_is_caught_like_a_failure(bench: Bench) -> None:
    """Its effect is not had again."""

    async def task(context: DurableContext) -> str:
        try:
            await context.step("first", bench.effect("first", object()))
        except TypeError as error:
            assert "the result of step 'first' is not JSON" in str(error)  # noqa: PT017 - both attempts are looked at
        return str(await context.step("second", bench.effect("second")))

    assert ["second", "second"] == [await _ran(bench, task), await _ran(bench, task)]
    assert ["first", "second"] == bench.effects


async def test_a_completed_run_does_nothing_more(bench: Bench) -> None:
    """A step that changed code adds, or that nobody awaited, is refused before its effect."""
    await bench.run(lambda context: context.step("first", bench.effect("first")))

    async def longer(context: DurableContext) -> None:
        await context.step("first", bench.effect("first"))
        await context.step("pay", bench.effect("pay"))

    async def opened(context: DurableContext) -> None:
        await context.step("first", bench.effect("first"))
        await context.open_step("pay")
        bench.effects.append("pay")

    async def waits(context: DurableContext) -> None:
        await context.step("first", bench.effect("first"))
        await context.sleep(1)

    for task in (longer, opened, waits):
        with pytest.raises(DurableRunDivergenceError, match="the run is completed"):
            await bench.run(task)

    assert ["first"] == bench.effects


async def test_a_step_that_an_old_version_let_fail_is_not_tried_again_by_a_completed_run(bench: Bench) -> None:
    """It kept only words; whoever caught it caught it then."""
    seen: list[Exception] = []

    async def task(context: DurableContext) -> str:
        return await _caught(bench, context, Plain("what"), seen)

    await bench.run(task)
    await bench.database.batch([Statement(_OLD_WORDS)])

    assert "second" == await _ran(bench, task)
    assert (["first", "second"], StepFailed) == (bench.effects, type(seen[1]))


async def test_a_worker_that_has_lost_its_lease_runs_no_step_on_its_way_out(bench: Bench) -> None:
    """Somebody else has the run by then."""

    async def task(context: DurableContext) -> None:
        try:
            await context.step("slow", _sleeps(1_000))
        finally:
            await context.step("release", bench.effect("release"))

    stale = asyncio.create_task(bench.run(task))
    await asyncio.sleep(1)
    bench.database.down = True
    await asyncio.sleep(40)
    bench.database.down = False
    with pytest.raises(LeaseLost):
        await stale

    assert [] == bench.effects


async def test_two_tasks_that_go_on_asking_are_refused(bench: Bench) -> None:
    """The order of their steps is chance, and a replay would have another one."""

    async def branch(context: DurableContext, name: str, takes_s: float) -> None:
        await context.step(f"{name} 1", _sleeps(takes_s))
        await context.step(f"{name} 2", bench.effect(f"{name} 2"))

    async def task(context: DurableContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(branch(context, "a", 1))
            group.create_task(branch(context, "b", 2))

    with pytest.raises(ExceptionGroup) as caught:
        await bench.run(task)

    [error] = caught.value.exceptions
    assert isinstance(error, DurableRunDivergenceError)
    assert "make each task one step, or await them one after the other" in str(error)
    assert ["a 2"] == bench.effects


async def test_a_task_that_goes_on_asking_beside_the_runs_own_is_refused(bench: Bench) -> None:
    """Likewise, without a group."""

    async def branch(context: DurableContext) -> None:
        for name in ("one", "two", "three"):
            await context.step(name, _sleeps(1))

    async def task(context: DurableContext) -> None:
        beside = asyncio.ensure_future(branch(context))
        await context.step("own", _sleeps(2.5))
        await context.step("next", bench.effect("next"))
        await beside

    with pytest.raises(DurableRunDivergenceError, match="two tasks ask"):
        await bench.run(task)
    assert [] == bench.effects


async def test_tasks_one_after_the_other_are_in_order(bench: Bench) -> None:
    """Each may ask as often as it likes: `asyncio.wait_for` makes one before Python 3.12."""

    async def branch(context: DurableContext, name: str) -> None:
        for number in range(3):
            await context.step(f"{name} {number}", bench.effect(name))

    async def task(context: DurableContext) -> int:
        await context.step("first", bench.effect("first"))
        for name in ("a", "b"):
            await asyncio.wait_for(branch(context, name), 10)
            async with asyncio.TaskGroup() as group:
                group.create_task(branch(context, f"{name} in a group"))
        return len(await asyncio.gather(*(context.step(name, bench.effect(name)) for name in "xyz")))

    assert [3, 3] == [await _ran(bench, task), await _ran(bench, task)]
    assert 16 == len(bench.effects)


async def test_a_step_that_awaits_the_wait_that_waits_for_it_is_refused(bench: Bench) -> None:
    """Neither would ever end."""

    async def task(context: DurableContext) -> None:
        async with asyncio.TaskGroup() as group:
            wait = group.create_task(context.sleep(3_600_000))

            async def awaits() -> None:
                await asyncio.gather(wait, asyncio.sleep(1))

            group.create_task(context.step("awaits", awaits))

    with pytest.raises(ExceptionGroup) as caught:
        await bench.run(task)
    [error] = {str(error) for error in caught.value.exceptions}

    assert "a step awaits the wait that waits for it" in error


@pytest.mark.parametrize("shape", ["beside a wait", "at the end", "by way of another task", "a queue"])
async def test_a_step_that_nobody_will_wake_is_an_error_that_names_it(bench: Bench, shape: str) -> None:
    """After as long as a lease lasts; the run is released, and what waits is ended."""
    woken, queue = asyncio.Event(), asyncio.Queue[int]()
    waits_for: dict[str, Callable[[], Awaitable[Any]]] = {
        "by way of another task": lambda: asyncio.gather(woken.wait()),
        "a queue": queue.get,
    }

    async def task(context: DurableContext) -> None:
        stuck = asyncio.ensure_future(context.step("stuck", waits_for.get(shape, woken.wait)))
        if shape != "at the end":
            await context.sleep(3_600_000)
            woken.set()
            queue.put_nowait(1)
            await stuck

    began = asyncio.get_running_loop().time()
    with pytest.raises(DurableRunDivergenceError, match=r"\('stuck'\) have waited for an asyncio.Event"):
        await bench.run(task, lease_ms=30_000)
    record = await bench.store.load_run("run-1")

    assert record is not None
    assert (RunStatus.FAILED, None) == (record.status, record.lease_holder_id)
    assert 30 <= asyncio.get_running_loop().time() - began < 35
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_a_step_that_takes_long_is_not_one_that_nobody_wakes(bench: Bench) -> None:
    """Nor is one that waits for another step."""
    woken = asyncio.Event()

    async def wakes() -> None:
        await asyncio.sleep(200)
        woken.set()

    async def task(context: DurableContext) -> Any:
        waits = context.step("waits", woken.wait)
        return await asyncio.gather(context.sleep(3_600_000), context.step("wakes", wakes), waits)

    assert (await bench.run(task, lease_ms=30_000)).suspended
    steps = {step.intent: step.status for step in await bench.store.load_steps("run-1", 0)}
    assert (StepStatus.COMPLETED, StepStatus.COMPLETED) == (steps["waits"], steps["wakes"])


async def test_what_is_no_async_function_is_an_error_that_says_what_to_pass(bench: Bench) -> None:
    """A call instead of a function, before anything runs; and a function that is not async."""

    async def pay() -> None:
        bench.effects.append("pay")

    def five() -> Any:
        return 5

    with pytest.raises(TypeError, match=r"step 'pay' must be given an async function.*pass f or lambda: f\(x\)"):
        await bench.run(lambda context: context.step("pay", pay()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="what step 'five' runs must be an async function: it has returned 'int'"):
        await bench.run(lambda context: context.step("five", five), run_id="run-2")
    with pytest.raises(ValueError, match=r"duration_ms must be a number from 0 to .*, and not True"):
        await bench.run(lambda context: context.sleep(True), run_id="run-3")

    assert [] == bench.effects


async def test_a_run_is_suspended_for_what_comes_first_of_several_waits(bench: Bench) -> None:
    """Any of their events ends it, at once."""

    async def task(context: DurableContext) -> Any:
        return await asyncio.gather(context.sleep(3_600_000), context.await_event("ok", timeout_ms=7_200_000))

    assert (await bench.run(task)).suspended
    assert [] == list(await bench.store.due_runs(10))
    await bench.store.emit_event("run-1", "ok", 1)

    assert ["run-1"] == list(await bench.store.due_runs(10))


async def test_what_is_left_running_is_recorded_before_the_run_ends(bench: Bench) -> None:
    """Also where the task fails beside it."""
    tasks: list[Any] = []

    async def task(context: DurableContext) -> None:
        tasks.append(asyncio.ensure_future(context.step("pay", _sleeps(3))))
        await context.step("broken", bench.effect("broken", error=Plain()))

    with pytest.raises(Plain):
        await bench.run(task)
    steps = {step.intent: step.status for step in await bench.store.load_steps("run-1", 0)}
    record = await bench.store.load_run("run-1")

    assert {"pay": StepStatus.COMPLETED, "broken": StepStatus.FAILED} == steps
    assert record is not None
    assert RunStatus.FAILED is record.status


async def _ran(bench: Bench, task: Callable[[DurableContext], Awaitable[Any]]) -> Any:
    return (await bench.run(task)).result


def _sleeps(seconds: float) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        await asyncio.sleep(seconds)

    return run
