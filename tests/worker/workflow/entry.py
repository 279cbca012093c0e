"""A Worker that runs one task both ways: on Cloudflare Workflows, and by `run_durable` over D1."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import js
from workers import Request, Response, WorkerEntrypoint, WorkflowEntrypoint, import_from_javascript

from chatturn.database.api import Statement
from chatturn.durable.records import DurableRunManifest, TaskSpec
from chatturn.durable.runner import RunDurableInput, run_durable
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.steps import StepRetry
from chatturn.durable.tasks import StepCall, TaskContext
from chatturn.durable.workflows.context import RunOnWorkflowStepInput, run_on_workflow_step
from chatturn.errors import AttemptsExhausted, ChatTurnError, DurableAwaitEventTimeoutError, StepTimeout
from chatturn.workerd.d1 import D1Database
from chatturn.workerd.ffi import js_object, parse_js
from chatturn.workerd.workflows import WorkflowInstance, emit_workflow_event

__all__ = ["Default", "Research"]

_CREATE = "CREATE TABLE IF NOT EXISTS effects (run TEXT, name TEXT, began REAL, ended REAL)"
_INSERT = "INSERT INTO effects VALUES (?1, ?2, ?3, ?4)"
_COUNT = "SELECT count(*) AS done FROM effects WHERE run = ?1 AND name = ?2"

EXACT = {"float": 1.0, "int": 2**60, "text": "naïve\u2028\U0001f980", "none": [None, {"x": None}]}
"""What JavaScript's own values would change."""


# The tasks: plain code that knows neither of the two


class Effects:
    """Leaves a row for everything that a run really does."""

    def __init__(self, run: str) -> None:
        self.run = run

    def step(self, name: str, value: Any, *, seconds: float = 0, failures: int = 0) -> Callable[[], Awaitable[Any]]:
        """Return a step that takes its time, and fails its first few times."""

        async def run() -> Any:
            began = time.time()
            await asyncio.sleep(seconds)
            database = D1Database(_env().DB)
            writes = [Statement(_CREATE, ()), Statement(_INSERT, (self.run, name, began, time.time()))]
            [*_, outcome] = await database.batch([*writes, Statement(_COUNT, (self.run, name))])
            if int(str(outcome.rows[0]["done"])) <= failures:
                raise LookupError(f"{name} fails on purpose")
            return value

        return run


async def research(context: TaskContext, effects: Effects, topic: str) -> dict[str, Any]:
    plan = await context.step("plan", effects.step("plan", {"topic": topic, **EXACT}), input={"topic": topic})
    retry = StepRetry(max_attempts=3, initial_backoff_ms=100)
    prices = await context.step("prices", effects.step("prices", [1, 2], failures=1), retry=retry)
    drawn = [await context.now(), await context.uuid(), await context.random(), context.step_key("left")]
    both = await context.gather(
        StepCall(intent="left", run=effects.step("left", "l", seconds=1.5)),
        StepCall(intent="right", run=effects.step("right", "r", seconds=0.3)),
    )
    await context.sleep(1_000)
    approval = await context.await_event("approved: by a human", timeout_ms=60_000)
    again = await context.await_event("approved: by a human")
    first, _ = await context.emit_event("told", {"n": 1})
    second, _ = await context.emit_event("told", {"n": 2})
    told = await context.await_event("told")
    await context.step("drawn", effects.step(json.dumps(drawn), None))
    return {
        "plan": json.dumps(plan),
        "prices": prices,
        "both": both,
        "approval": [approval, again],
        "told": [first, second, told],
        "drawn": [type(each).__name__ for each in drawn],
    }


async def misfortune(context: TaskContext, effects: Effects, _topic: str) -> list[Any]:
    """Say what became of what cannot go well: as the first life saw it, and as the last did."""
    twice = StepRetry(max_attempts=2, initial_backoff_ms=1)
    hopeless = StepRetry(
        max_attempts=5, initial_backoff_ms=1, retryable=lambda error: not isinstance(error, LookupError)
    )
    calls = [
        StepCall(intent="twice", run=effects.step("twice", 0, failures=9), retry=twice),
        StepCall(intent="hopeless", run=effects.step("hopeless", 0, failures=9), retry=hopeless),
        StepCall(intent="slow", run=effects.step("slow", 0, seconds=3), retry=StepRetry(), timeout_ms=200),
        StepCall(intent="no json", run=effects.step("no json", 1j), retry=twice),
    ]
    ends = []
    for call in calls:
        try:
            await context.gather(call)
        except (AttemptsExhausted, StepTimeout, TypeError) as error:
            ends.append(type(error).__name__)
    try:
        await context.await_event("never", timeout_ms=100)
    except DurableAwaitEventTimeoutError as error:
        ends.append(type(error).__name__)
    first = await context.step("ends", _constant(ends))
    await context.await_event("go-on")
    return [first, ends]


def _constant(value: Any) -> Callable[[], Awaitable[Any]]:
    async def run() -> Any:
        return value

    return run


TASKS = {"research": research, "misfortune": misfortune}


# The Worker


class Research(WorkflowEntrypoint):
    async def run(self, event: Any, step: Any) -> Any:
        instance = WorkflowInstance(event, step, binding=_env().RESEARCH)
        return await run_on_workflow_step(
            instance,
            RunOnWorkflowStepInput(
                workflow_name="research",
                instance_id=instance.id,
                task_fn=lambda context: _task(context, instance.id, instance.payload),
            ),
        )


class Default(WorkerEntrypoint):
    async def fetch(self, request: Request) -> Response:
        _, kind, *rest = js.URL.new(request.url).pathname.split("/")
        if kind == "healthz":
            return Response("ok")
        body = await request.text()
        answers = _ROUTES[kind, request.method, len(rest)]
        try:
            return _json(await answers(*map(unquote, rest), json.loads(body or "null")))
        except ChatTurnError as error:
            return _json({"error": type(error).__name__, "message": str(error)}, error.status)


async def _create(instance: str, payload: Any) -> Any:
    await _env().RESEARCH.create(js_object({"id": instance, "params": js_object(payload)}))


async def _status(instance: str, _body: Any) -> Any:
    return parse_js(await (await _env().RESEARCH.get(instance)).status())


async def _emit(instance: str, key: str, payload: Any) -> Any:
    await emit_workflow_event(_env().RESEARCH, instance, key, payload)


async def _run(run: str, payload: Any) -> Any:
    manifest = DurableRunManifest(project_id="test", task=TaskSpec(id="task", intent="test"), input=payload)
    done = await run_durable(
        RunDurableInput(
            run_id=run,
            manifest=manifest,
            store=_store(),
            task_fn=lambda context: _task(context, run, payload),
            inline_wait_ms=10,
        )
    )
    return {"suspended": done.suspended, "result": done.result}


async def _emit_to_run(run: str, key: str, payload: Any) -> Any:
    await _store().emit_event(run, key, payload)


_ROUTES: dict[tuple[str, str, int], Callable[..., Awaitable[Any]]] = {
    ("instances", "POST", 1): _create,
    ("instances", "GET", 1): _status,
    ("instances", "POST", 2): _emit,
    ("runs", "POST", 1): _run,
    ("runs", "POST", 2): _emit_to_run,
}


async def _task(context: TaskContext, run: str, payload: Any) -> Any:
    return await TASKS[payload["task"]](context, Effects(run), payload["topic"])


def _store() -> SqlRunStore:
    return SqlRunStore(D1Database(_env().DB))


def _env() -> Any:
    return import_from_javascript("cloudflare:workers").env


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status=status, headers={"content-type": "application/json"})
