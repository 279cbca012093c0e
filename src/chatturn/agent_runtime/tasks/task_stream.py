"""
`run_agent_task_stream`: a task whose backend answers as a stream.

::

    readiness gate ─▶ session ─▶ backend ─▶ end          every event in `event_order`'s order
         │ blocked       └── fails, is aborted, or is not read any more: the backend is stopped, the session closed
         ▼
        end

Given a `DurableTask`, the gate's hooks and the whole answer are steps.  If the worker dies before the answer is on
record, another worker resumes the session, if there is a session store, and asks the backend again under the same
request id.  A task that has completed is told again from its record, and the backend is not asked.

Source:
    docs/reference/agent-runtime.md, Stream events.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import partial
from typing import Any, Final

from chatturn.agent_runtime.tasks.backend_failures import (
    failure_detail,
    public_words,
    require_tellable,
    words_told_of,
)
from chatturn.agent_runtime.tasks.discreet_sayings import DiscreetSayings
from chatturn.agent_runtime.tasks.pump import Pump, Put
from chatturn.agent_runtime.tasks.readiness import (
    DEFAULT_MINIMUM_SCORE,
    KnowledgeHooks,
    ReadinessGate,
    assess_knowledge,
)
from chatturn.agent_runtime.tasks.recorded_answer import RecordedAnswer, compact_events
from chatturn.agent_runtime.tasks.sayings import SayingMapper
from chatturn.agent_runtime.tasks.sessions import FencedSessionStore, RuntimeSessionStore, require_session_id
from chatturn.agent_runtime.tasks.task_backends import (
    AgentBackendContext,
    AgentBackendInput,
    AgentExecutionBackend,
)
from chatturn.agent_runtime.tasks.task_checks import check_run, check_task
from chatturn.agent_runtime.tasks.task_loop import manifest_of
from chatturn.agent_runtime.tasks.task_session import TaskSession
from chatturn.agent_runtime.tasks.task_steps import DurableTask, HookFailed, TaskAborted, TaskSteps
from chatturn.agent_runtime.values.chat_events import UNKNOWN_MODEL
from chatturn.agent_runtime.values.codec import event_from_json, read_value, to_json
from chatturn.agent_runtime.values.events import (
    EVENT_CLASSES,
    BackendEndEvent,
    BackendErrorEvent,
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
from chatturn.agent_runtime.values.fixed_words import BACKEND_COMPLETED
from chatturn.agent_runtime.values.given import require_callable, require_sequence, require_text
from chatturn.agent_runtime.values.knowledge import KnowledgeReadinessReport
from chatturn.agent_runtime.values.tasks import (
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
from chatturn.durable.steps import MAX_STEP_BYTES, OpenStep
from chatturn.errors import (
    BackendError,
    BackendProtocolError,
    BackendReportedError,
    ChatTurnError,
    HookError,
    LeaseLost,
    StoreError,
    ValidationError,
)
from chatturn.jsontext.stored import json_text

__all__ = ["RunAgentTaskStreamOptions", "run_agent_task_stream"]

_ABANDONED: Final = "nobody reads the stream any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAgentTaskStreamOptions:
    """
    What `run_agent_task_stream` needs.

    Attributes:
        task: The task; its intent is the message if none is given.
        backend: The backend that answers: any of chatturn's backends, or one of `task_backends`.
        message: The message to answer.
        messages: The conversation, its last message last; instead of *message*.
        inputs: The caller's own JSON, for the backend.
        model: The model's name, if the backend serves several.
        request_options: Further members of a model's request.
        knowledge: The readiness report; None for that of the task's requirements (`assess_knowledge`).
        minimum_score: See `decide_knowledge_readiness`.
        hooks: What is done about gaps of knowledge.
        session_id: The id of the session to go on with, or to begin; None for the run's id if the task is durable, and
            else for a fresh id.
        session_store: Stores the session and its events; None to store nothing.
        abort: Set it to stop the task: the backend's connection is closed at once.
        durable: Where the task is recorded; None to record nothing.
        sources: The source of the time and of ids.

    Raises:
        ValidationError: An option is malformed (`check_task`, `check_run`).
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

    def __post_init__(self) -> None:
        check_task(self.task, stored=self.durable is not None or self.session_store is not None)
        require_text(getattr(self.backend, "kind", None), "a backend's kind")
        require_callable(getattr(self.backend, "stream", None), "a backend's stream")
        for name in ("message", "model"):
            if getattr(self, name) is not None:
                require_text(getattr(self, name), name)
        if self.messages is not None:
            require_sequence(self.messages, Mapping, "messages")
        if self.session_id is not None:
            require_session_id(self.session_id)
        check_run(self)


async def run_agent_task_stream(options: RunAgentTaskStreamOptions) -> AsyncGenerator[RuntimeStreamEvent, None]:
    """
    Run a task, and yield its events.

    A failure of the backend is told as an event, and not raised.  A reader that leaves stops the backend: at once
    inside ``async with aclosing(stream)``, and otherwise when the generator is collected.  No event has a resume token.

    Raises:
        SessionMismatchError: The session is another backend's; no event was yielded.
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
    """Makes the run end as failed, so that the next call can continue it; its events have been told."""


async def _run_durably(options: RunAgentTaskStreamOptions, durable: DurableTask, put: Put[RuntimeStreamEvent]) -> None:
    last: list[RuntimeStreamEvent] = []  # told only when the run is recorded as completed: the reader may leave then

    async def task_fn(context: DurableContext) -> None:
        steps = TaskSteps(context=context, abort=options.abort, now=options.sources.now)
        stream = _TaskStream(options, steps, context)
        async with aclosing(stream.events()) as events:
            async for event in events:
                if stream.status is AgentTaskStatus.COMPLETED:
                    last.append(event)
                else:
                    await put(event)
        if stream.status is not AgentTaskStatus.COMPLETED:
            raise _NotCompletedError

    run = RunDurableInput(
        run_id=durable.run_id,
        manifest=manifest_of(options.task, durable, **_asked(options)),
        store=durable.store,
        task_fn=task_fn,
        lease_ms=durable.lease_ms,
        sources=options.sources,
    )
    try:
        await run_durable(run)
    except _NotCompletedError:
        return
    for event in last:
        await put(event)


def _asked(options: RunAgentTaskStreamOptions) -> dict[str, Any]:
    """Return the request's members of the manifest; what was not given is left out, so that old manifests match."""
    given = {
        "request_inputs": options.inputs,
        "request_options": options.request_options or None,
        "session_id": options.session_id,
    }
    return {
        "message": options.message,
        "messages": None if options.messages is None else [dict(message) for message in options.messages],
        "model": options.model,
        **{name: to_json(value) for name, value in given.items() if value is not None},
    }


class _Phase(Enum):
    """What a task is doing, which decides whose failure an error is."""

    GATE = auto()
    OPENING = auto()
    ANSWERING = auto()


class _Record(Enum):
    """Whether the answer is on record."""

    NO = auto()
    PERHAPS = auto()
    YES = auto()


class _TaskStream:
    """
    One attempt at a task.

    Attributes:
        status: The status with which the task ended; None before.
    """

    def __init__(self, options: RunAgentTaskStreamOptions, steps: TaskSteps, context: DurableContext | None) -> None:
        self.status: AgentTaskStatus | None = None
        self._options = options
        self._steps = steps
        self._context = context
        self._knowledge = options.knowledge or assess_knowledge(options.task)
        self._mapper = self._new_mapper()
        self._unsaid = steps.unsaid
        self._said = DiscreetSayings(self._unsaid)
        self._answered_with = list[RuntimeStreamEvent]()
        self._session = TaskSession(
            backend=options.backend, store=_fenced(options.session_store, context), steps=steps, unsaid=self._unsaid
        )
        self._phase = _Phase.GATE
        self._record_of_answer = _Record.NO
        self._ends: Sequence[RuntimeStreamEvent] = ()
        self._fatal: BackendErrorEvent | None = None

    async def events(self) -> AsyncGenerator[RuntimeStreamEvent, None]:
        """Run the task; yield its events."""
        await self._session.load(self._session_id())
        try:
            async with aclosing(self._told()) as events:
                async for event in events:
                    told = self._shown(event)
                    await self._session.tell(told)
                    yield told
        except Exception:
            with suppress(StoreError):  # it must not mask the first error
                await self._abandon()
            raise
        finally:
            await self._abandon()

    def _shown(self, event: RuntimeStreamEvent) -> RuntimeStreamEvent:
        shown: RuntimeStreamEvent = self._unsaid.cleaned(without_tokens(event))
        return shown

    async def _abandon(self) -> None:
        """Stop the backend and close the session, unless the task has told its end."""
        if self.status is not None or not self._session.is_begun:
            return
        self.status = AgentTaskStatus.ABORTED
        with suppress(StoreError):  # the store does not answer: act as if the lease were held
            if not await self._holds_lease():
                return  # backend and session are another worker's by now
        if self._record_of_answer is _Record.YES:
            with suppress(LeaseLost):  # the session is another worker's by now
                await self._session.finish(self._ends, again=True)
            return
        await self._session.stop(_ABANDONED)
        with suppress(LeaseLost):
            for event in self._said.cut():
                await self._session.tell(self._shown(event))
            await self._session.close(SessionStatus.ABORTED, dated=self._record_of_answer is _Record.NO)

    async def _holds_lease(self) -> bool:
        if self._context is None or self._context.lease is None:
            return True
        try:
            await self._context.store.renew_lease(self._context.lease)
        except LeaseLost:
            return False
        return True

    async def _told(self) -> AsyncGenerator[RuntimeStreamEvent, None]:
        await self._steps.begin()
        yield TaskStartEvent(task=self._options.task, timestamp=self._steps.at)
        try:
            async with aclosing(self._worked()) as events:
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

    async def _worked(self) -> AsyncGenerator[RuntimeStreamEvent, None]:
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
        key = self._steps.step_key("answer") or options.sources.uuid()
        step = None if self._context is None else await self._context.open_step("answer", kind=StepKind.LLM)
        if step is not None and step.replayed:
            for event in await self._replayed(read_value(RecordedAnswer, step.result)):
                yield event
            return
        async with aclosing(self._answered(step, key)) as events:
            async for event in events:
                yield event

    # The answer.

    async def _answered(self, step: OpenStep | None, key: str) -> AsyncGenerator[RuntimeStreamEvent, None]:
        self._phase = _Phase.OPENING
        resumed, request = self._session.kept is not None, self._request()
        session = await self._session.open(request, lambda: self._session_id() or self._options.sources.uuid())
        self._phase = _Phase.ANSWERING
        for event in self._begun(session, resumed, self._steps.now()):
            yield event
        said = self._answered_with
        async with aclosing(self._live(request, session, key)) as events:
            async for event in events:
                for shown in map(self._tellable, self._said.told_of(event)):
                    said.append(shown)
                    yield shown
        for shown in self._said.cut():
            said.append(shown)
            yield shown
        await self._session.flush()
        await self._record(step, session, resumed, said)
        self._ends = self._completed(session, self._answer(), self._steps.now())
        self._record_of_answer = _Record.YES
        await self._session.finish(self._ends)
        self.status = AgentTaskStatus.COMPLETED
        for event in self._ends:
            yield event

    async def _live(
        self, request: AgentBackendInput, session: RuntimeSession, key: str
    ) -> AsyncGenerator[RuntimeStreamEvent, None]:
        """Ask the backend, in an asyncio task of its own, which an abort or a leaving reader cancels."""
        context = AgentBackendContext(
            request_id=key, task=self._options.task, knowledge=self._knowledge, session=session
        )

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
                    break
                for event in self._mapped(output, session):
                    yield event
                if self._fatal is not None:
                    break
        for event in self._filled_in(self._mapper.finish(), session):
            yield event
        if self._fatal is not None:
            raise HookFailed(
                BackendReportedError("it reported an error", backend=self._fatal.backend, detail=self._fatal.message)
            )

    def _new_mapper(self) -> SayingMapper:
        return SayingMapper(self._options.backend.kind, self._options.model or UNKNOWN_MODEL)

    def _tellable(self, event: RuntimeStreamEvent) -> RuntimeStreamEvent:
        """Return *event* as it is told; an event that cannot be stored or read back is the backend's failure."""
        stored = self._options.session_store is not None
        try:
            require_tellable(event, stored=stored)
            if (shown := self._shown(event)) is not event:
                require_tellable(shown, stored=stored)
        except ValidationError as error:
            self._fatal = None  # a fatal error that is this event has not been told
            self._mapper = self._new_mapper()  # made anew, since this event's text is no part of the answer
            for each in self._answered_with:
                self._mapper.feed(each)
            words = f"it told what is no event: {error}"
            raise HookFailed(BackendProtocolError(words, backend=self._options.backend.kind)) from error
        return shown

    def _mapped(self, output: Any, session: RuntimeSession) -> list[RuntimeStreamEvent]:
        """Return the events of *output*; an error that is not `recoverable` is the backend's last event."""
        try:
            events = self._mapper.feed(output)
        except BackendError as error:
            raise HookFailed(error) from error
        for number, event in enumerate(events):
            if isinstance(event, BackendErrorEvent) and not event.recoverable:
                self._fatal, events = event, events[: number + 1]
                break
        return self._filled_in(events, session)

    def _filled_in(self, events: Sequence[RuntimeStreamEvent], session: RuntimeSession) -> list[RuntimeStreamEvent]:
        shown, now = without_token(session), self._steps.now()
        return [filled_in(event, task=self._options.task, session=shown, timestamp=now) for event in events]

    async def _record(
        self, step: OpenStep | None, session: RuntimeSession, resumed: bool, said: Sequence[RuntimeStreamEvent]
    ) -> None:
        """
        Record the answer with all events, or, if that is too much for a step, its text and model calls only.

        Raises:
            StepTooLarge: The text and the calls are too much as well: about 1 MB in UTF-8.
        """
        if step is None:
            return
        whole = RecordedAnswer(
            session=without_token(session),
            resumed=resumed,
            text=self._answer(),
            at=self._steps.now(),
            events=compact_events(said),
        )
        recorded = to_json(self._unsaid.cleaned(whole))
        if len(json_text(recorded, "an answer").encode()) > MAX_STEP_BYTES:
            calls = compact_events([each for each in said if isinstance(each, LlmCallEvent)])
            recorded = to_json(self._unsaid.cleaned(replace(whole, events=calls)))
        self._record_of_answer = _Record.PERHAPS
        await step.complete(recorded)

    async def _replayed(self, recorded: RecordedAnswer) -> list[RuntimeStreamEvent]:
        session, at = recorded.session, recorded.at
        ends = self._completed(session, recorded.text, at)
        await self._session.repair(session, ends)
        self.status = AgentTaskStatus.COMPLETED
        said = [event_from_json(each) for each in recorded.events]
        if recorded.text and not any(isinstance(event, TextDeltaEvent) for event in said):
            said.insert(0, TextDeltaEvent(text=recorded.text))
        return [
            *self._begun(session, recorded.resumed, at),
            *(filled_in(event, task=self._options.task, session=session, timestamp=at) for event in said),
            *ends,
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

    def _answer(self) -> str:
        """Return the answer so far as it may be told."""
        return self._said.whole(self._mapper.text())

    def _session_id(self) -> str | None:
        durable = self._options.durable
        return self._options.session_id or (None if durable is None else durable.run_id)

    # What the runtime tells.

    def _begun(self, session: RuntimeSession, resumed: bool, at: str) -> list[RuntimeStreamEvent]:
        kind = SessionResumedEvent if resumed else SessionCreatedEvent
        shown = without_token(session)
        return [
            kind(task=self._options.task, session=shown, timestamp=at),
            BackendStartEvent(task=self._options.task, session=shown, backend=session.backend, timestamp=at),
        ]

    def _completed(self, session: RuntimeSession, text: str, at: str) -> list[RuntimeStreamEvent]:
        shown = replace(without_token(session), status=SessionStatus.COMPLETED, updated_at=at)
        end = BackendEndEvent(task=self._options.task, session=shown, backend=session.backend, timestamp=at)
        ends = [end, *self._told_end(AgentTaskStatus.COMPLETED, BACKEND_COMPLETED, text=text, session=shown, at=at)]
        return [self._shown(each) for each in ends]

    async def _broken(self, error: Exception | None) -> list[RuntimeStreamEvent]:
        """Stop the backend, close the session, and return the last events; *error* is None for an abort."""
        status = AgentTaskStatus.ABORTED if error is None else AgentTaskStatus.FAILED
        reason = "aborted" if error is None else self._code(error)
        detail = BackendErrorDetail(kind="backend", message="aborted") if error is None else failure_detail(error)
        if self._context is not None and not await self._holds_lease():
            raise LeaseLost("another worker goes on with the task", run_id=self._context.run_id)
        unstopped = await self._session.stop(reason)
        await self._session.close(SessionStatus.ABORTED if error is None else SessionStatus.FAILED)
        if unstopped is not None:
            detail = replace(detail, message=f"{detail.message}; and stopping it: {words_told_of(unstopped)}")
        session = None if self._session.opened is None else without_token(self._session.opened)
        ends = self._end(status, reason, detail, text=self._answer(), session=session)
        held = self._said.cut()
        if self._phase is _Phase.GATE or self._fatal is not None:
            return [*held, *ends]  # the backend has not failed, or has told the failure itself
        failure = BackendErrorEvent(
            task=self._options.task,
            session=session,
            backend=self._options.backend.kind,
            message=public_words(error) + (" It could not be stopped." if unstopped is not None else ""),
            recoverable=error is not None,
            error=detail,
            timestamp=self._steps.now(),
        )
        return [*held, failure, *ends]

    def _code(self, error: Exception) -> str:
        if isinstance(error, ChatTurnError):
            return error.code
        return HookError.code if self._phase is _Phase.GATE else BackendError.code

    def _end(self, status: AgentTaskStatus, reason: str, *particulars: Any, **members: Any) -> list[RuntimeStreamEvent]:
        self.status = status
        return self._told_end(status, reason, *particulars, **members)

    def _told_end(
        self,
        status: AgentTaskStatus,
        reason: str,
        error: BackendErrorDetail | None = None,
        *,
        text: str = "",
        session: RuntimeSession | None = None,
        at: str | None = None,
    ) -> list[RuntimeStreamEvent]:
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


def _fenced(store: RuntimeSessionStore | None, context: DurableContext | None) -> RuntimeSessionStore | None:
    """Return *store* so that it refuses this worker's late writes, once another worker has claimed the run."""
    lease = None if context is None else context.lease
    return store.fenced_by(lease) if lease is not None and isinstance(store, FencedSessionStore) else store
