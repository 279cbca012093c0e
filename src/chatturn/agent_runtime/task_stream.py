"""
`run_agent_task_stream`: a task whose backend answers as a stream.

::

    readiness gate ─▶ session ─▶ backend ─▶ end          every event in `event_order`'s order
         │ blocked       └── fails, is aborted, or is not read any more: the backend is stopped, the session closed
         ▼
        end

Given a `DurableTask`, the gate's hooks and the whole answer are steps.  A worker that dies before the answer is on
record is continued by another, which resumes the session, if there is a session store, and asks the backend again
under the same request id; a task that has completed is told again from its record, and nobody is asked.

Source:
    docs/reference/agent-runtime.md, Stream events.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import partial
from typing import Any, Final

from chatturn.agent_runtime.chat_events import UNKNOWN_MODEL
from chatturn.agent_runtime.codec import event_from_json, read_value, to_json
from chatturn.agent_runtime.events import (
    EVENT_CLASSES,
    BackendEndEvent,
    BackendErrorEvent,
    BackendMadeEvent,
    BackendStartEvent,
    FinalEvent,
    LlmCallEvent,
    RuntimeStreamEvent,
    SessionCreatedEvent,
    SessionResumedEvent,
    TaskEndEvent,
    TaskStartEvent,
    TextDeltaEvent,
    filled_in,
    without_token,
    without_tokens,
)
from chatturn.agent_runtime.fixed_words import BACKEND_COMPLETED
from chatturn.agent_runtime.knowledge import KnowledgeReadinessReport
from chatturn.agent_runtime.pump import Pump, Put
from chatturn.agent_runtime.readiness import DEFAULT_MINIMUM_SCORE, KnowledgeHooks, ReadinessGate, assess_knowledge
from chatturn.agent_runtime.sayings import SayingMapper
from chatturn.agent_runtime.sessions import RuntimeSessionStore
from chatturn.agent_runtime.task_backends import (
    AgentBackendContext,
    AgentBackendInput,
    AgentExecutionBackend,
    ResumableBackend,
    StartingBackend,
    StoppableBackend,
)
from chatturn.agent_runtime.task_loop import manifest_of
from chatturn.agent_runtime.task_steps import DurableTask, HookFailed, TaskAborted, TaskSteps
from chatturn.agent_runtime.tasks import (
    AgentTaskSpec,
    AgentTaskStatus,
    BackendErrorDetail,
    RuntimeSession,
    SessionStatus,
)
from chatturn.backends.api import ChatMessage
from chatturn.durable.context import ContextSources, DurableContext
from chatturn.durable.records import StepKind
from chatturn.durable.runner import RunDurableInput, default_sources, run_durable
from chatturn.durable.steps import OpenStep, words_of
from chatturn.errors import (
    BackendError,
    BackendTimeout,
    BackendTransportError,
    ChatTurnError,
    HookError,
    LeaseLost,
    SessionMismatchError,
    StoreError,
)
from chatturn.product_calls import Late, awaited

__all__ = ["RunAgentTaskStreamOptions", "run_agent_task_stream"]

_STOP_TIMEOUT_MS: Final = 10_000
_MOST_RECORDED: Final = 900_000
"""Characters of an answer's events as ASCII JSON: what a step may hold, less the session."""

_MOST_COALESCED: Final = 8_000
"""Characters of text that are stored as one event of a session's."""

_ABANDONED: Final = "nobody reads the stream any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAgentTaskStreamOptions:
    """
    What is asked, of whom.

    Attributes:
        task: What for; its intent is what is asked where nothing else is said.
        backend: Who answers: any of chatturn's backends, or one of `task_backends`.
        message: What is said.
        messages: The conversation, its last message last; instead of *message*.
        inputs: JSON of the caller's own, for the backend.
        model: Which model, where the backend serves several.
        request_options: Further members of a model's request.
        knowledge: What is known; None for what the task's requirements say (`assess_knowledge`).
        minimum_score: See `decide_knowledge_readiness`.
        hooks: What is done about gaps.
        session_id: The session to go on with, or to begin under this id; None for a fresh one, which is the run's id
            where the task is durable.
        session_store: Keeps the session and what was told in it; None for nowhere.
        abort: Set it to stop the task: the backend's connection is closed at once.
        durable: Where the task is recorded; None for nowhere.
        sources: The time, and ids.
    """

    task: AgentTaskSpec
    backend: AgentExecutionBackend
    message: str | None = None
    messages: Sequence[ChatMessage] | None = None
    inputs: Mapping[str, Any] | None = None
    model: str | None = None
    request_options: Mapping[str, Any] = field(default_factory=dict)
    knowledge: KnowledgeReadinessReport | None = None
    minimum_score: float = DEFAULT_MINIMUM_SCORE
    hooks: KnowledgeHooks = field(default_factory=KnowledgeHooks)
    session_id: str | None = None
    session_store: RuntimeSessionStore | None = None
    abort: asyncio.Event | None = None
    durable: DurableTask | None = None
    sources: ContextSources = field(default_factory=default_sources)


async def run_agent_task_stream(options: RunAgentTaskStreamOptions) -> AsyncGenerator[RuntimeStreamEvent, None]:
    """
    Run a task, and yield what happens.

    The backend's failure is told, and does not raise.  Whoever stops reading stops the backend: at once inside
    ``async with aclosing(stream)``, and otherwise when the generator is collected.  No event has a resume token.

    Raises:
        SessionMismatchError: The session is another backend's; nothing was said.
        StoreError: The session store failed, or the durable run's; the backend was stopped.
        DurableRunLeaseHeldError, DurableRunInputMismatchError, DurableRunDivergenceError, LeaseLost, TypeError,
        StepTooLarge: As `run_agent_task` does, of a durable task.
    """
    if options.durable is None:
        steps = TaskSteps(abort=options.abort, now=options.sources.now)
        async with aclosing(_TaskStream(options, steps, None).events()) as events:
            async for event in events:
                yield event
        return
    async with Pump[RuntimeStreamEvent](partial(_run_durably, options, options.durable)) as pump:
        async for event in pump:
            yield event


class _NotCompletedError(Exception):
    """Has the run recorded as failed, so that it can be gone on with; its events have been told."""


async def _run_durably(options: RunAgentTaskStreamOptions, durable: DurableTask, put: Put[RuntimeStreamEvent]) -> None:
    async def task_fn(context: DurableContext) -> None:
        steps = TaskSteps(context=context, abort=options.abort, now=options.sources.now)
        stream = _TaskStream(options, steps, context)
        async with aclosing(stream.events()) as events:
            async for event in events:
                await put(event)
        if stream.status is not AgentTaskStatus.COMPLETED:
            raise _NotCompletedError

    run = RunDurableInput(
        run_id=durable.run_id,
        manifest=manifest_of(
            options.task,
            durable,
            message=options.message,
            messages=None if options.messages is None else [dict(message) for message in options.messages],
            model=options.model,
        ),
        store=durable.store,
        task_fn=task_fn,
        lease_ms=durable.lease_ms,
        sources=options.sources,
    )
    try:
        await run_durable(run)
    except _NotCompletedError:
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorded:
    """A whole answer as a step has it."""

    session: RuntimeSession
    resumed: bool
    text: str
    at: str
    events: tuple[Any, ...]


class _Phase(Enum):
    """What a task does: what fails then has failed for that reason."""

    GATE = auto()
    OPENING = auto()
    ANSWERING = auto()


class _TaskStream:
    """
    One attempt at a task.

    Attributes:
        status: How it ended; None before.
    """

    def __init__(self, options: RunAgentTaskStreamOptions, steps: TaskSteps, context: DurableContext | None) -> None:
        self.status: AgentTaskStatus | None = None
        self._options = options
        self._steps = steps
        self._context = context
        self._knowledge = options.knowledge or assess_knowledge(options.task)
        self._mapper = SayingMapper(options.backend.kind, options.model or UNKNOWN_MODEL)
        self._session: RuntimeSession | None = None
        self._phase = _Phase.GATE
        self._log = _SessionLog(options.session_store)

    async def events(self) -> AsyncGenerator[RuntimeStreamEvent, None]:
        """Run the task; yield what happens."""
        kept = await self._kept_session()
        try:
            async with aclosing(self._told(kept)) as events:
                async for event in events:
                    told = without_tokens(event)
                    await self._log.add(self._session, told)
                    yield told
        except Exception:
            with suppress(StoreError):  # it must not mask why this is called
                await self._abandon()
            raise
        finally:
            await self._abandon()

    async def _abandon(self) -> None:
        """However it ended: a session whose task has told no end is not left open, and its backend not running."""
        if self.status is None and self._session is not None:
            self.status = AgentTaskStatus.ABORTED
            with suppress(StoreError):  # of a store that does not answer nobody knows; the lease has lasted until now
                if not await self._holds_lease():
                    return  # backend and session are another worker's by now
            await self._stop(_ABANDONED)
            await self._close_session(SessionStatus.ABORTED)

    async def _holds_lease(self) -> bool:
        if self._context is None or self._context.lease is None:
            return True
        try:
            await self._context.store.renew_lease(self._context.lease)
        except LeaseLost:
            return False
        return True

    async def _told(self, kept: RuntimeSession | None) -> AsyncGenerator[RuntimeStreamEvent, None]:
        await self._steps.begin()
        yield TaskStartEvent(task=self._options.task, timestamp=self._steps.at)
        try:
            async with aclosing(self._worked(kept)) as events:
                async for event in events:
                    yield event
        except TaskAborted:
            ends = await self._broken(None)
        except HookFailed as failed:
            ends = await self._broken(failed.error)
        else:
            return
        for event in ends:
            yield event

    async def _worked(self, kept: RuntimeSession | None) -> AsyncGenerator[RuntimeStreamEvent, None]:
        options = self._options
        gate = ReadinessGate(
            report=self._knowledge, minimum_score=options.minimum_score, hooks=options.hooks, steps=self._steps
        )
        async for kind, members in gate.events():
            made: Any = EVENT_CLASSES[kind]
            yield made(task=options.task, timestamp=self._steps.at, **members)
        if gate.decision is None or not gate.decision.passed:
            for event in self._end(AgentTaskStatus.BLOCKED, gate.report.reason):
                yield event
            return
        self._knowledge = gate.report
        step = None if self._context is None else await self._context.open_step("answer", kind=StepKind.LLM)
        if step is not None and step.replayed:
            for event in await self._replayed(read_value(_Recorded, step.result), kept):
                yield event
            return
        async with aclosing(self._answered(step, kept)) as events:
            async for event in events:
                yield event

    # The answer.

    async def _answered(
        self, step: OpenStep | None, kept: RuntimeSession | None
    ) -> AsyncGenerator[RuntimeStreamEvent, None]:
        session = await self._open_session(kept)
        for event in self._begun(session, kept is not None, self._steps.now()):
            yield event
        said = list[RuntimeStreamEvent]()
        async with aclosing(self._live(session)) as events:
            async for event in events:
                said.append(event)
                yield event
        await self._record(step, kept is not None, said)
        await self._close_session(SessionStatus.COMPLETED)
        for event in self._completed(session, self._mapper.text(), self._steps.now()):
            yield event

    async def _live(self, session: RuntimeSession) -> AsyncGenerator[RuntimeStreamEvent, None]:
        """Ask the backend, in a task of its own: an abort, or whoever stops reading, cancels that."""
        request, context = self._request(), self._backend_context(session)

        async def produce(put: Put[Any]) -> None:
            stream = self._options.backend.stream(request, context)
            try:
                async for output in stream:
                    await put(output)
            finally:
                if isinstance(stream, AsyncGenerator):
                    await stream.aclose()

        async with Pump[Any](produce) as pump:
            while True:
                output = await self._steps.unrecorded(partial(anext, pump, None))
                if output is None:
                    return
                try:
                    events = self._mapper.feed(output)
                except BackendError as error:
                    raise HookFailed(error) from error
                for event in events:
                    yield filled_in(
                        event, task=self._options.task, session=without_token(session), timestamp=self._steps.now()
                    )

    async def _record(self, step: OpenStep | None, resumed: bool, said: Sequence[RuntimeStreamEvent]) -> None:
        """Record the answer: all that was said, or, where that is too much for a step, its text and its calls."""
        if step is None or self._session is None:
            return
        recorded = _Recorded(
            session=without_token(self._session),
            resumed=resumed,
            text=self._mapper.text(),
            at=self._steps.now(),
            events=_compact(said),
        )
        if len(json.dumps(recorded.events)) > _MOST_RECORDED:
            recorded = replace(recorded, events=_compact([each for each in said if isinstance(each, LlmCallEvent)]))
        await step.complete(to_json(recorded))

    async def _replayed(self, recorded: _Recorded, kept: RuntimeSession | None) -> list[RuntimeStreamEvent]:
        if kept is not None and kept.status is SessionStatus.ACTIVE:
            self._session = kept  # its worker died after it had recorded the answer
            await self._close_session(SessionStatus.COMPLETED)
            self._session = None
        session, at = recorded.session, recorded.at
        said = [event_from_json(each) for each in recorded.events]
        if recorded.text and not any(isinstance(event, TextDeltaEvent) for event in said):
            said.insert(0, TextDeltaEvent(text=recorded.text))
        return [
            *self._begun(session, recorded.resumed, at),
            *(filled_in(event, task=self._options.task, session=session, timestamp=at) for event in said),
            *self._completed(session, recorded.text, at),
        ]

    def _request(self) -> AgentBackendInput:
        options = self._options
        said = options.task.intent if options.message is None else options.message
        messages = [{"role": "user", "content": said}] if options.messages is None else options.messages
        return AgentBackendInput(
            messages=messages,
            model=options.model,
            options=options.request_options,
            task=options.task,
            message=options.message,
            inputs=options.inputs,
        )

    def _backend_context(self, session: RuntimeSession) -> AgentBackendContext:
        durable = self._options.durable
        return AgentBackendContext(
            request_id=self._options.sources.uuid() if durable is None else f"{durable.run_id}:answer",
            task=self._options.task,
            knowledge=self._knowledge,
            session=session,
        )

    # The session.

    async def _kept_session(self) -> RuntimeSession | None:
        name, store = self._session_id(), self._options.session_store
        kept = None if store is None or name is None else await store.get(name)
        if kept is not None and kept.backend != self._options.backend.kind:
            raise SessionMismatchError(kept.backend, self._options.backend.kind)
        return kept

    def _session_id(self) -> str | None:
        durable = self._options.durable
        return self._options.session_id or (None if durable is None else durable.run_id)

    async def _open_session(self, kept: RuntimeSession | None) -> RuntimeSession:
        self._phase = _Phase.OPENING
        backend, request, now = self._options.backend, self._request(), self._steps.now()
        if kept is None:
            session = RuntimeSession(
                id=self._session_id() or self._options.sources.uuid(),
                backend=backend.kind,
                status=SessionStatus.ACTIVE,
                created_at=now,
                updated_at=now,
            )
            if isinstance(backend, StartingBackend):
                session = await self._steps.unrecorded(partial(backend.start, request, session))
        else:
            session = replace(kept, status=SessionStatus.ACTIVE, updated_at=now)
            if isinstance(backend, ResumableBackend):
                session = await self._steps.unrecorded(partial(backend.resume, request, session))
        self._session = session
        if self._options.session_store is not None:
            await self._options.session_store.put(session)
        return session

    async def _close_session(self, status: SessionStatus) -> None:
        if self._session is None:
            return
        self._session = replace(self._session, status=status, updated_at=self._steps.now())
        if self._options.session_store is not None:
            await self._log.flush(self._session)
            await self._options.session_store.put(self._session)

    async def _stop(self, reason: str) -> Exception | None:
        """Stop the backend; return why it could not be stopped, if that is so."""
        backend = self._options.backend
        if self._session is None or not isinstance(backend, StoppableBackend):
            return None
        try:
            await awaited(backend.stop(self._session, reason), _STOP_TIMEOUT_MS)
        except (Exception, Late) as error:  # noqa: BLE001 - a hook of the product's; it must not mask why it was called
            return error
        return None

    # What the runtime tells.

    def _begun(self, session: RuntimeSession, resumed: bool, at: str) -> list[RuntimeStreamEvent]:
        self._phase = _Phase.ANSWERING
        kind = SessionResumedEvent if resumed else SessionCreatedEvent
        shown = without_token(session)
        return [
            kind(task=self._options.task, session=shown, timestamp=at),
            BackendStartEvent(task=self._options.task, session=shown, backend=session.backend, timestamp=at),
        ]

    def _completed(self, session: RuntimeSession, text: str, at: str) -> list[RuntimeStreamEvent]:
        shown = replace(without_token(session), status=SessionStatus.COMPLETED, updated_at=at)
        end = BackendEndEvent(task=self._options.task, session=shown, backend=session.backend, timestamp=at)
        return [end, *self._end(AgentTaskStatus.COMPLETED, BACKEND_COMPLETED, text=text, session=shown, at=at)]

    async def _broken(self, error: Exception | None) -> list[RuntimeStreamEvent]:
        """Stop what was begun, and tell why the task ends; None for an abort."""
        status = AgentTaskStatus.ABORTED if error is None else AgentTaskStatus.FAILED
        reason = "aborted" if error is None else self._code(error)
        detail = BackendErrorDetail(kind="backend", message="aborted") if error is None else _detail(error)
        if self._context is not None and not await self._holds_lease():
            raise LeaseLost("another worker goes on with the task", run_id=self._context.run_id)
        unstopped = await self._stop(reason)
        await self._close_session(SessionStatus.ABORTED if error is None else SessionStatus.FAILED)
        if unstopped is not None:
            detail = replace(detail, message=f"{detail.message}; and stopping it: {words_of(unstopped)}")
        session = None if self._session is None else without_token(self._session)
        ends = self._end(status, reason, detail, text=self._mapper.text(), session=session)
        if self._phase is not _Phase.ANSWERING:
            return ends  # whatever failed, it was no answer
        failure = BackendErrorEvent(
            task=self._options.task,
            session=session,
            backend=self._options.backend.kind,
            message=_public(error) + (" It could not be stopped." if unstopped is not None else ""),
            recoverable=error is not None,
            error=detail,
            timestamp=self._steps.now(),
        )
        return [failure, *ends]

    def _code(self, error: Exception) -> str:
        if isinstance(error, ChatTurnError):
            return error.code
        return HookError.code if self._phase is _Phase.GATE else BackendError.code

    def _end(
        self,
        status: AgentTaskStatus,
        reason: str,
        error: BackendErrorDetail | None = None,
        *,
        text: str = "",
        session: RuntimeSession | None = None,
        at: str | None = None,
    ) -> list[RuntimeStreamEvent]:
        self.status = status
        at = at or self._steps.now()
        return [
            TaskEndEvent(task=self._options.task, status=status, reason=reason, timestamp=at),
            FinalEvent(
                task=self._options.task,
                session=session,
                status=status,
                reason=reason,
                text=text or None,
                error=error,
                timestamp=at,
            ),
        ]


def _compact(said: Sequence[RuntimeStreamEvent]) -> tuple[Any, ...]:
    """Return events as JSON without what a replay fills in again, pieces of text that follow one another as one."""
    compact: list[Any] = []
    for event in said:
        if isinstance(event, TextDeltaEvent) and compact and compact[-1]["type"] == TextDeltaEvent.type:
            compact[-1]["text"] += event.text
        else:
            made: Any = event
            compact.append(
                to_json(replace(made, task=None, session=None) if isinstance(event, BackendMadeEvent) else event)
            )
    return tuple(compact)


@dataclass(slots=True)
class _SessionLog:
    """What is stored of a session's events: pieces of text that follow one another, as one."""

    store: RuntimeSessionStore | None
    _pending: TextDeltaEvent | None = None
    _pieces: list[str] = field(default_factory=list)
    _size: int = 0

    async def add(self, session: RuntimeSession | None, event: RuntimeStreamEvent) -> None:
        """Store *event*, now or with the next one."""
        if self.store is None or session is None:
            return
        if isinstance(event, TextDeltaEvent):
            self._pending = self._pending or event
            self._pieces.append(event.text)
            self._size += len(event.text)
            if self._size >= _MOST_COALESCED:
                await self.flush(session)
            return
        await self.flush(session)
        await self.store.append_event(session.id, event)

    async def flush(self, session: RuntimeSession) -> None:
        """Store what was held back."""
        if self.store is None or self._pending is None:
            return
        event = replace(self._pending, text="".join(self._pieces))
        self._pending, self._pieces, self._size = None, [], 0
        await self.store.append_event(session.id, event)


def _public(error: Exception | None) -> str:
    """Return what may be said to anybody; the words of an upstream may quote what was asked."""
    if error is None:
        return "The task was aborted."
    return error.public if isinstance(error, ChatTurnError) else BackendError.public


def _detail(error: Exception) -> BackendErrorDetail:
    unreached = isinstance(error, BackendTransportError | BackendTimeout)
    status = error.upstream_status if isinstance(error, BackendTransportError) else None
    body = error.detail if isinstance(error, BackendError) else None
    return BackendErrorDetail(
        kind="transport" if unreached else "backend", message=words_of(error), status=status, body=body or None
    )
