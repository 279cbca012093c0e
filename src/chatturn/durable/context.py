"""
`DurableContext`: what a task may do that survives the death of its worker.

A task is plain asynchronous code.  Whatever it does through its context is a step: recorded under the step's
position, and on a later attempt returned from the record instead of done again.  So between its steps a task
must be deterministic.  A step gets its position when it is asked for, not when it runs, so parallel steps have
the same positions on every attempt.

A step costs one awaited round trip: its record, written when the step is over.  After a crash during a step the
next attempt runs that step again.

A step that has failed runs again on the next attempt, unless the task has caught the failure and asked for another
step: from then on the failure is a part of the run's history, and every attempt raises it again.  The same goes for
a step that the task has cancelled: on a later attempt it waits to be cancelled.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

from chatturn.database.api import Statement
from chatturn.durable.asked import Asked
from chatturn.durable.caught import Failure, Failures
from chatturn.durable.failures import CANCELLED, error_of, lasting, raise_again
from chatturn.durable.identifiers import step_id
from chatturn.durable.recorded import RecordedSteps, was_cancelled
from chatturn.durable.records import EventRecord, Lease, StepError, StepKind, StepRecord, StepStatus, Wait
from chatturn.durable.replay_order import ReplayOrder
from chatturn.durable.steps import (
    OpenStep,
    OpenWait,
    StepRetry,
    elapsed_ms,
    fingerprint,
    inside_step,
    require_number,
    require_outside_steps,
    result_text,
)
from chatturn.durable.store import Begin, DurableRunStore
from chatturn.durable.strands import Strands
from chatturn.durable.suspension import Work, leaving_as
from chatturn.durable.tasks import DEFAULT_EVENT_TIMEOUT_MS, NO_INPUT, ContextSources, StepCall, run_once
from chatturn.errors import (
    AttemptsExhausted,
    DurableAwaitEventTimeoutError,
    DurableRunDivergenceError,
    StepTooLarge,
    StoreError,
)
from chatturn.telemetry.conventions import STEP_INTENT, STEP_KIND, STEP_REPLAYED
from chatturn.telemetry.operator_log import OperatorLog
from chatturn.telemetry.tracer import NULL_TRACER, AttributeValue, Span, Tracer
from chatturn.timestamps import epoch_ms, moment_after

__all__ = ["EVENT_STEP", "ContextSources", "DurableContext", "StepCall"]

T = TypeVar("T")

Opening: TypeAlias = Coroutine[Any, Any, OpenStep]

EVENT_STEP: Final = "event:"
"""The prefix of the recorded intent of a wait for an event; the event's key follows: ``event:approval``."""

_POLL_MS: Final = 250

_PATIENCE_MS: Final = 60_000
"""The patience of a completed run, which has no lease: the default term of a lease, 60 s."""

_CLEAN_UP_S: Final = 10.0
"""How long the asyncio tasks that a finished task has left may take to end after their cancellation."""

_ONCE: Final = StepRetry()

_CANCELLED_LATER_MS: Final = 10_000
"""How much longer than on record a step, cancelled on an earlier attempt, waits for its cancellation."""


@dataclass(slots=True, kw_only=True)
class DurableContext:
    """
    The steps of one attempt of a run.

    Attributes:
        store: Records the steps.
        lease: The right to record; None for a completed run, whose steps are all on record.
        run_id: The run.
        project_id: Its product.
        scenario_id: Its thread, or None.
        recorded: The first page of the steps on record.
        sources: The sources of time, UUIDs and random numbers.
        inline_wait_ms: How long a wait may hold the worker before the run is suspended instead.
        log: Takes failures that must not mask another error.
        first_position: The position of the first step.
        with_statements: Returns statements to write with each record of a step; see `Settlement.with_statements`.
        tracer: Takes a span for each step.
        ended: Returns why the attempt is over before its task is done, as `Attempt.ended`; None while it goes on.
        key_name: The run's `RunRecord.key_name`, used in its steps' keys; "" to use the run's id.
    """

    store: DurableRunStore
    lease: Lease | None
    run_id: str
    project_id: str
    scenario_id: str | None
    recorded: Sequence[StepRecord]
    sources: ContextSources
    inline_wait_ms: int
    log: OperatorLog
    first_position: int = 0
    with_statements: Callable[[], Sequence[Statement]] = lambda: ()
    tracer: Tracer = NULL_TRACER
    ended: Callable[[], BaseException | None] = lambda: None
    key_name: str = ""
    _next: int = field(init=False)
    _failures: Failures = field(init=False, default_factory=Failures)
    _work: Work = field(init=False)
    _strands: Strands = field(init=False)
    _order: ReplayOrder = field(init=False)
    _on_record: RecordedSteps = field(init=False)
    _asked: Asked = field(init=False, default_factory=Asked)

    def __post_init__(self) -> None:
        self._next, self._order = self.first_position, ReplayOrder()
        patience_ms = _PATIENCE_MS if self.lease is None else self.lease.lease_ms
        self._work = Work(self.run_id, patience_ms, self.ended, self._order.is_alone)
        self._strands = Strands(self.run_id, self._work.look_at)
        self._on_record = RecordedSteps(self.store, self.run_id, self.first_position, self.lease is None, self._order)
        self._on_record.keep(self.recorded)

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

        The position is taken at the call, so steps may be awaited in any order, or together.

        Args:
            intent: What it does; the same at this position on every attempt.
            run: Does the work.  A later attempt runs it again unless its result was recorded, so its effects on
                other systems should carry `step_key`.
            kind: A `StepKind`'s value.
            input: What it is given, JSON; compared with what an earlier attempt gave.
            retry: How often it is tried; None for once.
            timeout_ms: For each try; 0 for no end.

        Raises:
            DurableRunDivergenceError: Another intent is on record at this position, or (`StepInputMismatch`)
                another input; or the step is asked for inside another step.
            TypeError, StepTooLarge: The input or the result cannot be stored; the run is as it was.
            AttemptsExhausted: The step has failed as often as its policy allows.
            StepTimeout: A try took too long.
            LeaseLost: The run is another worker's by now.
            StepFailed: *run* has raised an exception that no later attempt could make again.
            Exception: What *run* raises; every later attempt raises it again, if the task caught it and went on.
        """
        call = StepCall(intent=intent, run=run, kind=kind, input=input, retry=retry, timeout_ms=timeout_ms)
        return self._asked.awaited(intent, self._step(self._take(), call))

    def gather(self, *calls: StepCall) -> Coroutine[Any, Any, list[Any]]:
        """
        Run steps at the same time and return their results, in the order given.

        When one fails, the others are cancelled and its error leaves; those recorded by then stay recorded.
        """
        return self._asked.awaited("gather", self._gather(calls))

    async def _gather(self, calls: Sequence[StepCall]) -> list[Any]:
        tasks = [asyncio.ensure_future(self._step(self._take(), call)) for call in calls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            # Until the cancelled steps are over, they might still record a result, or hold a connection.
            await asyncio.gather(*tasks, return_exceptions=True)

    def open_step(self, intent: str, *, kind: str = StepKind.LOGIC, input: Any = NO_INPUT) -> Opening:  # noqa: A002
        """
        Open a step whose work the caller does itself, such as a generator that yields while it works: see `OpenStep`.

        Raises:
            DurableRunDivergenceError, TypeError, StepTooLarge: As `step` does.
        """
        call = StepCall(intent=intent, run=_not_run, kind=kind, input=input)
        return self._asked.awaited(intent, self._open(self._take(), call))

    def step_key(self, intent: str, *, ahead: int = 0) -> str:
        """
        Return the next step's key if it is *intent*: the same on every attempt, for others to deduplicate by.

        Args:
            intent: The step's.
            ahead: How many steps will be asked for before it.
        """
        return step_id(self.key_name or self.run_id, self._next + ahead, intent)

    async def next_intent(self) -> str | None:
        """Return the next step's recorded intent, whatever the step's status; None if no earlier attempt reached it."""
        step = await self._on_record.at(self._next)
        return None if step is None else step.intent

    @property
    def has_own_keys(self) -> bool:
        """Whether the run's keys are unique for ever: a later run of the same name has other keys."""
        return self.key_name not in {"", self.run_id}

    def step_span(self, intent: str, kind: str, *, replayed: bool) -> AbstractContextManager[Span]:
        """Begin the span of a step."""
        noted: dict[str, AttributeValue] = {STEP_INTENT: intent, STEP_KIND: str(kind), STEP_REPLAYED: replayed}
        return self.tracer.span(f"step {intent}", attributes=noted)

    def now(self) -> Coroutine[Any, Any, str]:
        """Return the time, as it was when this step first ran."""
        return self._asked.awaited("now", self._determined("now", self.sources.now))

    def uuid(self) -> Coroutine[Any, Any, str]:
        """Return a fresh UUID, the same one on every attempt."""
        return self._asked.awaited("uuid", self._determined("uuid", self.sources.uuid))

    def random(self) -> Coroutine[Any, Any, float]:
        """Return a random number from 0 to 1, the same one on every attempt."""
        return self._asked.awaited("random", self._determined("random", self.sources.random))

    # Waiting.

    def emit_event(self, key: str, payload: Any) -> Coroutine[Any, Any, tuple[bool, EventRecord]]:
        """
        Emit an event of this run, as a step; the first under its key wins.  See `DurableRunStore.emit_event`.

        A replay returns the recorded result.  If the worker died between the emit and its record, the next attempt
        finds the event already there, and its result says that it was not the first.
        """
        return self._asked.awaited(f"emit:{key}", self._emit_event(key, payload))

    async def _emit_event(self, key: str, payload: Any) -> tuple[bool, EventRecord]:
        async def emit() -> dict[str, Any]:
            accepted, event = await self.store.emit_event(self.run_id, key, payload)
            return {"accepted": accepted, "payload": event.payload, "emittedAt": event.emitted_at}

        told = await self.step(f"emit:{key}", emit, kind=StepKind.EVENT)
        event = EventRecord(run_id=self.run_id, key=key, payload=told["payload"], emitted_at=told["emittedAt"])
        return told["accepted"], event

    def await_event(self, key: str, *, timeout_ms: int = DEFAULT_EVENT_TIMEOUT_MS) -> Coroutine[Any, Any, Any]:
        """
        Return the payload of the event *key*, waiting for the event if necessary.

        A long wait suspends the run: worker and lease are released until the event comes or the time is up.

        Raises:
            DurableAwaitEventTimeoutError: It did not come within *timeout_ms* of the first wait, on whichever
                attempt that was; every later attempt raises it again.
            ValueError: *timeout_ms* is no number, below 0 or beyond the calendar.
        """
        return self._asked.awaited(f"{EVENT_STEP}{key}", self._await_event(key, timeout_ms))

    async def _await_event(self, key: str, timeout_ms: int) -> Any:
        return await (await self.open_event(key, timeout_ms=timeout_ms)).payload()

    def open_event(
        self, key: str, *, timeout_ms: int = DEFAULT_EVENT_TIMEOUT_MS, linger: bool = True
    ) -> Coroutine[Any, Any, OpenWait]:
        """
        Record the begin of a wait for an event; the returned `OpenWait.payload` waits.

        For a caller that tells its reader of the wait in between.  With *linger* the worker waits `inline_wait_ms`
        before it suspends the run.  Pass False if the reader learns of the wait only by the suspension.

        Raises:
            ValueError: *timeout_ms* is no number, below 0 or beyond the calendar.
        """
        return self._asked.awaited(f"{EVENT_STEP}{key}", self._open_event(key, timeout_ms, linger=linger))

    async def _open_event(self, key: str, timeout_ms: int, *, linger: bool) -> OpenWait:
        require_number("timeout_ms", timeout_ms)
        begin = Begin(step_index=self._take(), intent=f"{EVENT_STEP}{key}", kind=StepKind.EVENT)
        step = await self._open_wait(begin)

        async def payload() -> Any:
            result = (await self._waited(begin, step, key, timeout_ms, self.inline_wait_ms * linger)).result
            if "payload" not in result:
                message = f"{key!r} did not come within {timeout_ms} ms"
                raise DurableAwaitEventTimeoutError(message, run_id=self.run_id)
            return result["payload"]

        return OpenWait(payload=payload)

    def sleep(self, duration_ms: int) -> Coroutine[Any, Any, None]:
        """
        Wait *duration_ms* from the first time that this step is reached; a long wait suspends the run.

        Raises:
            ValueError: *duration_ms* is no number, below 0 or beyond the calendar.
        """
        return self._asked.awaited("sleep", self._sleep(duration_ms))

    async def _sleep(self, duration_ms: int) -> None:
        require_number("duration_ms", duration_ms)
        begin = Begin(step_index=self._take(), intent="sleep", kind=StepKind.DETERMINISTIC)
        await self._waited(begin, await self._open_wait(begin), None, duration_ms, self.inline_wait_ms)

    # Around the task, and when it has ended.

    def stop(self, why: BaseException | None) -> None:
        """
        Do no more steps: the attempt is over, and the next one may take another way.

        Args:
            why: The exception that leaves the task, whatever the task itself raises; None for none.
        """
        self._work.stop(why)

    @asynccontextmanager
    async def task(self) -> AsyncGenerator[None, None]:
        """
        Let an ``async with`` block be the run's task, from its start to its end.

        When the task has ended, no further step begins.  Steps under way are finished and recorded, unless the task was
        cancelled; the other asyncio tasks that it has started are cancelled, as `asyncio.run` does.

        Raises:
            Suspended: The run waits, whatever exception left the block.
            DurableRunDivergenceError: The task has asked for a step and never awaited it; the message names the step.
            BaseException: What stopped the attempt, whatever exception left the block.
        """
        self._strands.begin()
        self._order.begin()
        with leaving_as(lambda: self._work.over):
            try:
                yield
            except Exception:
                await self._work.rest()
                raise
            else:
                await self._work.rest()
                if self._work.over is None and not self._work.is_done:
                    self._asked.require_awaited(self.run_id)
            finally:
                self._asked.close()
                with self._work.leaving():
                    await self._cancel_what_is_left()

    async def _cancel_what_is_left(self) -> None:
        left = [task for task in self._strands.alive() if self._order.began(task)]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_CLEAN_UP_S)

    def require_all_consumed(self) -> None:
        """
        Refuse a task that ended before it reached all steps on record, because its code has become shorter.

        Raises:
            DurableRunDivergenceError: Names the first recorded step that the task did not reach.
        """
        self._on_record.require_no_more(self._next)

    def steps(self) -> list[StepRecord]:
        """Return the steps on record that this attempt has seen."""
        return self._on_record.all()

    # One step.

    def _begin(self, position: int, call: StepCall) -> Begin:
        digest = "" if call.input is NO_INPUT else fingerprint(call.input, call.intent, self.run_id)
        return Begin(step_index=position, intent=call.intent, kind=call.kind, input_hash=digest)

    async def _open(self, position: int, call: StepCall) -> OpenStep:
        begin = self._begin(position, call)
        recorded, started = await self._on_record.find(begin), asyncio.get_running_loop().time()
        attempts = 1 if recorded is None else recorded.attempts + 1

        async def complete(value: Any) -> None:
            await self._complete(begin, attempts, value, started)

        if recorded is None or recorded.status is not StepStatus.COMPLETED:
            self._require_lease(begin)
            return OpenStep(complete=complete)
        await self._give_again(recorded)
        return OpenStep(complete=complete, replayed=True, result=recorded.result)

    async def _step(self, position: int, call: StepCall) -> Any:
        begin = self._begin(position, call)
        with self._strands.work():
            recorded = await self._on_record.find(begin)
            replayed = recorded is not None and recorded.status is StepStatus.COMPLETED
            with self.step_span(call.intent, call.kind, replayed=replayed):
                if recorded is not None and (replayed or self._on_record.is_final(recorded)):
                    return await self._give_again(recorded)
                before = 0 if recorded is None else recorded.attempts
                with self._work.step(begin.intent), self._cancellable(begin, before + 1):
                    await self._order.turn(position)
                    return await self._do(begin, call, before)

    async def _do(self, begin: Begin, call: StepCall, before: int) -> Any:
        retry = call.retry or _ONCE
        for attempt in range(1, retry.max_attempts + 1):
            # Checked before every effect: the attempt goes on, and holds a lease.
            self._work.require_going_on()
            self._require_lease(begin)
            started, attempts = asyncio.get_running_loop().time(), before + attempt
            self._require_attempt(begin, attempts, retry)
            try:
                with inside_step(self, call.intent):
                    value = await run_once(call, self.run_id)
            except Exception as error:
                delay_ms = retry.delay_ms(attempt, error)
                raised = lasting(error, call.intent, self.run_id)
                failure = error_of(error, raised)
                if delay_ms is None:
                    self._note(begin, attempts, started, failure)
                await self._fail(begin, attempts, started, failure)
                if delay_ms is None:
                    if raised is error:
                        raise
                    # No `from error`: a later attempt has no such cause.  The traceback shows the original error.
                    raise raised  # noqa: B904
                await asyncio.sleep(delay_ms / 1000)
            else:
                # Outside the try: a result that cannot be recorded must not run the step again.
                return (await self._complete(begin, attempts, value, started)).result
        raise AssertionError("the last attempt returns or raises")

    async def _complete(self, begin: Begin, attempts: int, value: Any, started: float | None = None) -> StepRecord:
        try:
            text = result_text(value, begin.intent, self.run_id)
        except (TypeError, StepTooLarge) as error:
            self._note(begin, attempts, started, error_of(error, error))
            raise
        await self._record(begin, attempts, started, result_json=text)
        step = StepRecord(
            run_id=self.run_id,
            step_index=begin.step_index,
            intent=begin.intent,
            kind=begin.kind,
            input_hash=begin.input_hash,
            status=StepStatus.COMPLETED,
            attempts=attempts,
            result=json.loads(text),
            error=None,
            started_at=None,
            completed_at=None,
        )
        self._on_record.put(step)
        return step

    async def _fail(self, begin: Begin, attempts: int, started: float, error: StepError) -> None:
        """Record a failed try; a failure to record is only logged, so that the step's own error leaves the task."""
        try:
            await self._record(begin, attempts, started, error=error)
        except StoreError as unrecorded:
            self.log("step.unrecorded", {"run_id": self.run_id, "step": begin.intent, "error": unrecorded})

    async def _record(self, begin: Begin, attempts: int, started: float | None, **outcome: Any) -> None:
        lease = self._require_lease(begin)
        caught, beside = self._failures.caught()
        await self.store.record_step(
            lease,
            begin,
            attempts=attempts,
            elapsed_ms=elapsed_ms(started),
            with_statements=[*beside, *self.with_statements()],
            **outcome,
        )
        self._failures.forget(caught)

    # Failures that were caught.

    @contextmanager
    def _cancellable(self, begin: Begin, attempts: int) -> Iterator[None]:
        """Let a ``with`` block be a step or a wait; its cancellation by the task counts as a failure."""
        started = asyncio.get_running_loop().time()
        try:
            yield
        except asyncio.CancelledError:
            self._note(begin, attempts, started, CANCELLED)
            raise

    def _note(self, begin: Begin, attempts: int, started: float | None, error: StepError) -> None:
        """Note that a step has failed: if the task now asks for another step, it has caught the failure."""
        self._failures.note(Failure(begin, attempts, elapsed_ms(started), error, self._strands.current()))

    async def _give_again(self, step: StepRecord) -> Any:
        """Return a recorded step's result, in the recorded order, or raise its recorded error."""
        if self._on_record.is_over(step):
            with self._work.step(step.intent):
                await self._order.turn(step.step_index)
        if step.status is not StepStatus.COMPLETED:
            await self._fail_again(step)
        return step.result

    async def _fail_again(self, step: StepRecord) -> None:
        """Raise a step's recorded error; a step that was cancelled waits to be cancelled again."""
        if was_cancelled(step):
            took_ms = (epoch_ms(step.completed_at or "") or 0) - (epoch_ms(step.started_at or "") or 0)
            await asyncio.sleep((max(0, took_ms) + _CANCELLED_LATER_MS) / 1000)
            message = f"step {step.step_index} ({step.intent!r}) was cancelled before, but is not this time"
            raise DurableRunDivergenceError(message, run_id=self.run_id)
        raise_again(step)

    async def _determined(self, name: str, source: Callable[[], T]) -> T:
        async def run() -> T:
            return source()

        return await self.step(f"deterministic:{name}", run, kind=StepKind.DETERMINISTIC)

    def _require_attempt(self, begin: Begin, attempts: int, retry: StepRetry) -> None:
        most = retry.attempts_in_all
        if most is not None and attempts > most:
            error = AttemptsExhausted(f"step {begin.intent!r} has failed {attempts - 1} times", run_id=self.run_id)
            self._note(begin, attempts - 1, None, error_of(error, error))
            raise error

    # Waits.

    async def _open_wait(self, begin: Begin) -> StepRecord:
        """Return the recorded step of a wait, finished or still waiting; begin it if there is none."""
        with self._strands.work():
            recorded = await self._on_record.find(begin)
            if recorded is not None and (recorded.status is StepStatus.COMPLETED or self._on_record.is_final(recorded)):
                await self._give_again(recorded)
                return recorded
            with self._cancellable(begin, 1 if recorded is None else recorded.attempts):
                return await self._begun(begin, recorded)

    async def _waited(
        self, begin: Begin, step: StepRecord, key: str | None, timeout_ms: int, here_ms: int
    ) -> StepRecord:
        """Wait for the event or the timeout, record which came first, and return the recorded step."""
        if step.status is StepStatus.COMPLETED:
            return step
        with self._strands.work(), self._cancellable(begin, step.attempts):
            wake_at = moment_after(str(step.started_at), timeout_ms)
            with self._work.wait(Wait(step_index=step.step_index, key=key, wake_at=wake_at)):
                event = await self._polled(step, key, timeout_ms, here_ms)
            result = None if key is None else {"timedOut": True} if event is None else {"payload": event.payload}
            with self._work.step(begin.intent):
                return await self._complete(begin, step.attempts, result)

    async def _begun(self, begin: Begin, recorded: StepRecord | None) -> StepRecord:
        """Return the wait's step on record; if there is none, or a failed one, begin it, and its time runs from now."""
        lease = self._require_lease(begin)
        if recorded is not None and recorded.status is not StepStatus.FAILED:
            return recorded
        with self._work.step(begin.intent):
            caught, beside = self._failures.caught()
            begun = await self.store.begin_step(lease, begin, beside)
            self._failures.forget(caught)
        return begun

    async def _polled(self, step: StepRecord, key: str | None, timeout_ms: int, here_ms: int) -> EventRecord | None:
        loop, since = asyncio.get_running_loop(), str(step.started_at)
        until = loop.time() + here_ms / 1000
        while True:
            self._work.require_going_on()
            event, waited_ms = await self.store.poll_event(self.run_id, key or "", since)
            left_ms = timeout_ms - waited_ms
            if (key is not None and event is not None) or left_ms <= 0:
                return event
            rest_ms = (until - loop.time()) * 1000
            if left_ms > rest_ms and (key is None or rest_ms <= 0):
                if await self._work.rest(left_ms):
                    self._work.require_going_on()
                    raise self._work.suspend()
            else:
                await asyncio.sleep(min(left_ms, _POLL_MS if key is not None else left_ms) / 1000)

    # Positions and records.

    def _take(self) -> int:
        self._work.require_going_on()
        require_outside_steps(self, self.run_id)
        self._failures.catch(self._strands.ask())
        position, self._next = self._next, self._next + 1
        return position

    def _require_lease(self, begin: Begin) -> Lease:
        if self.lease is None:
            message = f"the run is completed, but step {begin.step_index} ({begin.intent!r}) is not on record"
            raise DurableRunDivergenceError(message, run_id=self.run_id)
        return self.lease


async def _not_run() -> None:
    """Do nothing: the caller of an opened step does the work."""
