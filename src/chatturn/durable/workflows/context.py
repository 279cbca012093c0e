"""
`run_on_workflow_step`: runs a task function on Cloudflare Workflows, which keep the records themselves.

::

    the task's                          the platform's
    step, gather, now, uuid, random ──▶ do("<workflow>/<position>:<intent>", config, …)
    sleep ────────────────────────────▶ sleep("<workflow>/<position>:sleep", "<n> seconds")
    await_event(key) ─────────────────▶ waitForEvent("<workflow>/<position>:event:<key>", {type: key, timeout})
    emit_event(key, payload) ─────────▶ do("<workflow>/<position>:emit:<key>", …): the instance is sent the event

A step's result is kept as JSON text: as a JavaScript value, an int beyond 2**53 would lose digits.

The platform differs from `run_durable` in two ways.  A step that failed for good stays failed: it raises
the same class of error in every life of the instance, `AttemptsExhausted` or `StepTimeout`, so a task may handle
it.  And a step with another intent than before at its position is a new step: divergence is not detected.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from chatturn.durable.identifiers import step_id
from chatturn.durable.records import EventRecord, StepKind
from chatturn.durable.runner import default_sources
from chatturn.durable.steps import (
    StepRetry,
    fingerprint,
    inside_step,
    require_number,
    require_outside_steps,
    result_text,
    words_of,
)
from chatturn.durable.tasks import DEFAULT_EVENT_TIMEOUT_MS, NO_INPUT, ContextSources, StepCall, TaskContext
from chatturn.durable.workflows.step import (
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
from chatturn.jsontext.canonical import canonical_json
from chatturn.jsontext.stored import json_text

__all__ = ["RunOnWorkflowStepInput", "WorkflowContext", "run_on_workflow_step", "workflow_run_id"]

T = TypeVar("T")

_STOP_AFTER_S: Final = 1.0
"""How much longer than its timeout a try may run: the platform has counted it as failed, but cannot stop it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOnWorkflowStepInput(Generic[T]):
    """
    The arguments of `run_on_workflow_step`.

    Attributes:
        workflow_name: Names the Workflow; the first part of every step's name.
        task_fn: The task.  Between its steps it must be deterministic.
        instance_id: The instance's id, part of the run's id.  `TaskContext.step_key` needs it.
        step_config: How the platform tries steps that have no *retry* of their own.
        project_id: The product; by default the Workflow's name.
        scenario_id: The thread, or None.
        sources: The sources of time, UUIDs and random numbers.
    """

    workflow_name: str
    task_fn: Callable[[TaskContext], Awaitable[T]]
    instance_id: str | None = None
    step_config: WorkflowStepConfig = field(default_factory=WorkflowStepConfig)
    project_id: str | None = None
    scenario_id: str | None = None
    sources: ContextSources = field(default_factory=default_sources)


async def run_on_workflow_step(step: WorkflowStepLike, input: RunOnWorkflowStepInput[T]) -> T:  # noqa: A002 - agent-runtime's word
    """
    Run a task in an instance of a Workflow; call it from the instance's ``run``, in every one of its lives.

    Returns:
        What the task returns, a copy made by way of JSON: the instance's output.

    Raises:
        TypeError: The task's result is not JSON.
        Exception: Whatever the task raises; the platform ends the instance with it.
    """
    result = await input.task_fn(WorkflowContext(step, input))
    copy: T = json.loads(json_text(result, "the task's result"))
    return copy


def workflow_run_id(workflow_name: str, instance_id: str | None) -> str:
    """Return the run's id of an instance: ``cf-workflow:<workflow>:<instance>``."""
    return f"cf-workflow:{workflow_name}" + ("" if instance_id is None else f":{instance_id}")


class WorkflowContext:
    """
    `TaskContext` on Cloudflare Workflows.

    Args:
        step: The Workflow instance.
        run: The task and its options.
    """

    def __init__(self, step: WorkflowStepLike, run: RunOnWorkflowStepInput[Any]) -> None:
        self.run_id = workflow_run_id(run.workflow_name, run.instance_id)
        self.project_id = run.project_id or run.workflow_name
        self.scenario_id = run.scenario_id
        self._platform = step
        self._run = run
        self._next = 0
        self._received: dict[str, EventRecord] = {}
        self._emitted: dict[str, EventRecord] = {}
        self._waits: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    # Steps.

    def step(
        self,
        intent: str,
        run: Callable[[], Awaitable[T]],
        *,
        kind: str = StepKind.LOGIC,
        input: Any = NO_INPUT,  # noqa: A002 - agent-runtime's word
        retry: StepRetry | None = None,
        timeout_ms: int = 0,
    ) -> Coroutine[Any, Any, T]:
        """
        Do *run* once, and return its result: a copy made by way of JSON, as a replay returns it.

        Raises:
            AttemptsExhausted: The step failed for good; the cause is the last try's error, if it failed in this life.
            StepTimeout: The last try took too long.
            StepInputMismatch: The step is on record with another input.
            TypeError, StepTooLarge: The input or the result cannot be stored.
        """
        call = StepCall(intent=intent, run=run, kind=kind, input=input, retry=retry, timeout_ms=timeout_ms)
        return self._step(self._take(), call)

    async def gather(self, *calls: StepCall) -> list[Any]:
        """
        Run steps at the same time and return their results, in the order given.

        When steps fail, the error of the first failed step in this order is raised after all steps have ended: the
        platform cannot stop a step, and on a replay another step might fail first.
        """
        steps = [self._step(self._take(), call) for call in calls]
        results = await asyncio.gather(*steps, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def step_key(self, intent: str) -> str:
        """
        Return the next step's key if it is *intent*; see `TaskContext.step_key`.

        Raises:
            ValueError: *instance_id* is not set, so all instances would have the same keys.
        """
        if self._run.instance_id is None:
            raise ValueError("step_key needs RunOnWorkflowStepInput.instance_id")
        return step_id(self.run_id, self._next, intent)

    async def now(self) -> str:
        """Return the time, as it was when this step first ran."""
        return await self._determined("deterministic:now", self._run.sources.now)

    async def uuid(self) -> str:
        """Return a fresh UUID, the same one on every replay."""
        return await self._determined("deterministic:uuid", self._run.sources.uuid)

    async def random(self) -> float:
        """Return a random number from 0 to 1, the same one on every replay."""
        return await self._determined("deterministic:random", self._run.sources.random)

    # Waiting.

    async def emit_event(self, key: str, payload: Any) -> tuple[bool, EventRecord]:
        """
        Send this instance an event, once; the first under its key wins.

        Returns:
            Whether this task knows of no earlier event under the key, and the first that it knows.  The task does not
            know an event that somebody else has sent and that it has not awaited yet; such an event still wins.

        Raises:
            TypeError: JSON cannot carry the payload to JavaScript; nothing was sent.
        """
        text = canonical_json(payload)
        known = self._received.get(key) or self._emitted.get(key)

        async def send() -> str:
            if known is None:
                await self._platform.send_event(event_type(key), json.loads(text))
            return self._run.sources.now()

        emitted_at = await self._step(self._take(), StepCall(intent=f"emit:{key}", run=send))
        if known is not None:
            return False, known
        record = EventRecord(run_id=self.run_id, key=key, payload=json.loads(text), emitted_at=emitted_at)
        return True, self._emitted.setdefault(key, record)

    async def await_event(self, key: str, *, timeout_ms: int = DEFAULT_EVENT_TIMEOUT_MS) -> Any:
        """
        Return the payload of the first event *key*, waiting for it if necessary; the instance sleeps meanwhile.

        Raises:
            DurableAwaitEventTimeoutError: It did not come within *timeout_ms*, rounded up to seconds.
            ValueError: *timeout_ms* is no number, below 0 or beyond the calendar.
        """
        require_number("timeout_ms", timeout_ms)
        name = self._name(self._take(), f"event:{key}")
        # The platform gives an event to one wait only; here every wait for a key gets the first event.
        async with self._waits[key]:
            if key not in self._received:
                try:
                    event = await self._platform.wait_for_event(
                        name, type=event_type(key), timeout=duration_words(timeout_ms)
                    )
                except TimeoutError as error:
                    message = f"{key!r} did not come within {timeout_ms} ms"
                    raise DurableAwaitEventTimeoutError(message, run_id=self.run_id) from error
                self._received[key] = EventRecord(
                    run_id=self.run_id, key=key, payload=event.payload, emitted_at=event.received_at
                )
        return deepcopy(self._received[key].payload)

    async def sleep(self, duration_ms: int) -> None:
        """Wait *duration_ms*, rounded up to seconds, from the first time that this step is reached."""
        require_number("duration_ms", duration_ms)
        await self._platform.sleep(self._name(self._take(), "sleep"), duration_words(duration_ms))

    # One step.

    async def _step(self, position: int, call: StepCall) -> Any:
        tries = _Tries(call, self)
        try:
            text = await self._platform.do(self._name(position, call.intent), self._config(call), tries.run)
        except TimeoutError as error:
            raise StepTimeout(f"step {call.intent!r} took too long", run_id=self.run_id) from error
        except WorkflowStepFailed as error:
            reason = str(error) if tries.failure is None else words_of(tries.failure)
            raise self._exhausted(call, reason) from tries.failure or error
        record = json.loads(text)
        if tries.digest and record.get("input", tries.digest) != tries.digest:
            message = f"step {position} ({call.intent!r}) is on record with another input"
            raise StepInputMismatch(message, run_id=self.run_id)
        if "failed" in record:
            raise self._exhausted(call, record["failed"]) from tries.failure
        if "too_large" in record:
            raise StepTooLarge(record["too_large"], run_id=self.run_id)
        if "not_json" in record:
            raise TypeError(record["not_json"])
        return record["value"]

    def _exhausted(self, call: StepCall, reason: str) -> AttemptsExhausted:
        return AttemptsExhausted(f"step {call.intent!r} failed for good: {reason}", run_id=self.run_id)

    async def _determined(self, intent: str, source: Callable[[], T]) -> T:
        async def run() -> T:
            return source()

        return await self.step(intent, run, kind=StepKind.DETERMINISTIC)

    def _config(self, call: StepCall) -> WorkflowStepConfig:
        config = self._run.step_config.copy()
        if call.retry is not None:
            config["retries"] = platform_retries(call.retry)
        if call.timeout_ms:
            config["timeout"] = call.timeout_ms
        return config

    def _take(self) -> int:
        require_outside_steps(self, self.run_id)
        position, self._next = self._next, self._next + 1
        return position

    def _name(self, position: int, intent: str) -> str:
        return step_name(self._run.workflow_name, position, intent)


class _Tries:
    """The tries of one step in this life of the instance; the platform decides how many there are."""

    def __init__(self, call: StepCall, context: WorkflowContext) -> None:
        self.digest = "" if call.input is NO_INPUT else fingerprint(call.input, call.intent, context.run_id)
        self.failure: Exception | None = None
        self._call = call
        self._run_id = context.run_id
        self._context = context

    async def run(self) -> str:
        """
        Try once; return what to record.

        A failure that another try will not cure is recorded like a result: told not to try again, the platform ends
        the step without a record, and would run it again in the instance's next life.
        """
        try:
            value = await self._value()
        except Exception as error:
            self.failure = error
            if self._call.retry is None or self._call.retry.retryable(error):
                raise
            return self._record("failed", words_of(error))
        try:
            text = result_text(value, self._call.intent, self._run_id)
        except StepTooLarge as error:
            return self._record("too_large", str(error).removeprefix(f"run {self._run_id!r}: "))
        except TypeError as error:
            return self._record("not_json", str(error))
        return self._record_text("value", text)

    async def _value(self) -> Any:
        timeout_ms = self._call.timeout_ms
        async with asyncio.timeout(timeout_ms / 1000 + _STOP_AFTER_S if timeout_ms else None):
            with inside_step(self._context, self._call.intent):
                return await self._call.run()

    def _record(self, name: str, message: str) -> str:
        return self._record_text(name, json.dumps(message))

    def _record_text(self, name: str, text: str) -> str:
        return f'{{"input":"{self.digest}","{name}":{text}}}' if self.digest else f'{{"{name}":{text}}}'
