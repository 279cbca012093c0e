"""
Backends that answer a task; chatturn's own model backends are among them.

A task's backend is given all that a model backend is given, and more.  So every model backend can answer a task, with
its own deadlines, retries and reading of streams.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

from chatturn.agent_runtime.values.events import RuntimeStreamEvent
from chatturn.agent_runtime.values.given import require_callable, require_sequence, require_text
from chatturn.agent_runtime.values.knowledge import KnowledgeReadinessReport
from chatturn.agent_runtime.values.tasks import AgentTaskSpec, RuntimeSession
from chatturn.backends import api
from chatturn.errors import ValidationError
from chatturn.events import EventBatch

__all__ = [
    "AgentBackendContext",
    "AgentBackendInput",
    "AgentExecutionBackend",
    "BackendOutput",
    "DiscreetBackend",
    "ResumableBackend",
    "SandboxBox",
    "StartingBackend",
    "StoppableBackend",
    "create_iterable_backend",
    "create_sandbox_prompt_backend",
]

BackendOutput: TypeAlias = RuntimeStreamEvent | EventBatch | Mapping[str, Any]
"""An event of a stream, chat events that arrived together, or JSON that `SayingMapper` understands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBackendInput(api.AgentBackendInput):
    """
    What a task's backend is asked.

    Attributes:
        task: The task.
        message: The message, if one was given instead of a conversation.
        inputs: The caller's own JSON.
    """

    task: AgentTaskSpec
    message: str | None = None
    inputs: Mapping[str, Any] | None = None

    @property
    def prompt(self) -> str:
        """The text to answer: the message, or else the last of the messages, or else the task's intent."""
        if self.message is not None:
            return self.message
        content = self.messages[-1].get("content") if self.messages else None
        return content if isinstance(content, str) else self.task.intent


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBackendContext(api.AgentBackendContext):
    """
    The task, knowledge and session of a request.

    There is no member for an abort, as agent-runtime has: the stream's reader is cancelled.

    Attributes:
        task: The task.
        knowledge: The readiness report.
        session: The session, with its resume token.
    """

    task: AgentTaskSpec
    knowledge: KnowledgeReadinessReport
    session: RuntimeSession


class AgentExecutionBackend(Protocol):
    """Something that answers a task; it may be a `StartingBackend`, a `ResumableBackend`, a `StoppableBackend` too."""

    @property
    def kind(self) -> str:
        """The backend's short name; a session belongs to one kind."""

    def stream(self, request: AgentBackendInput, context: AgentBackendContext, /) -> AsyncIterator[BackendOutput]:
        """
        Answer, piece by piece.

        Raises:
            BackendError: The model's side failed.  An end without an error means that the answer is complete.
        """


@runtime_checkable
class StartingBackend(Protocol):
    """A backend that begins sessions."""

    async def start(self, request: AgentBackendInput, session: RuntimeSession, /) -> RuntimeSession:
        """Begin *session*; return it, or a session with an id, a resume token and metadata of the backend's own."""


@runtime_checkable
class ResumableBackend(Protocol):
    """A backend that goes on with sessions."""

    async def resume(self, request: AgentBackendInput, session: RuntimeSession, /) -> RuntimeSession:
        """Go on with *session*, which has the token that `start` gave it; return it as it is now."""


@runtime_checkable
class DiscreetBackend(Protocol):
    """A backend with credentials of its own, which the service that it asks may quote."""

    @property
    def unsaid(self) -> Sequence[str]:
        """The credentials that no event and no record of the task may quote, whole or in pieces."""


@runtime_checkable
class StoppableBackend(Protocol):
    """A backend that can be told to stop."""

    async def stop(self, session: RuntimeSession, reason: str, /) -> None:
        """Stop the work in *session*: its task has failed, was aborted, or has lost its reader."""


_Open: TypeAlias = Callable[[AgentBackendInput, RuntimeSession], Awaitable[RuntimeSession]]
_Stop: TypeAlias = Callable[[RuntimeSession, str], Awaitable[None]]
_Stream: TypeAlias = Callable[[AgentBackendInput, AgentBackendContext], AsyncIterator[BackendOutput]]


def create_iterable_backend(
    kind: str,
    stream: _Stream,
    *,
    start: _Open | None = None,
    resume: _Open | None = None,
    stop: _Stop | None = None,
    unsaid: Sequence[str] = (),
) -> AgentExecutionBackend:
    """
    Make the backend named *kind* that answers with what *stream* yields.

    Args:
        kind: The backend's short name.
        stream: As `AgentExecutionBackend.stream`.
        start: As `StartingBackend.start`; None to take each session as it is proposed.
        resume: As `ResumableBackend.resume`; None to take each session as it was stored.
        stop: As `StoppableBackend.stop`; None if there is nothing to stop but the stream.
        unsaid: The backend's own credentials: see `DiscreetBackend`.

    Raises:
        ValidationError: *kind* is no text or is empty, a hook is no function, or *unsaid* is no list of texts.
    """
    if not require_text(kind, "a backend's kind"):
        raise ValidationError("a backend's kind must not be empty")
    require_callable(stream, "stream")
    for name, function in (("start", start), ("resume", resume), ("stop", stop)):
        if function is not None:
            require_callable(function, name)
    require_sequence(unsaid, str, "unsaid")
    return _IterableBackend(kind, stream, start, resume, stop, tuple(unsaid))


async def _as_it_is(_: AgentBackendInput, session: RuntimeSession) -> RuntimeSession:
    return session


@dataclass(frozen=True, slots=True)
class _IterableBackend:
    kind: str
    function: _Stream
    on_start: _Open | None
    on_resume: _Open | None
    on_stop: _Stop | None
    unsaid: Sequence[str] = field(default=(), repr=False)

    def stream(self, request: AgentBackendInput, context: AgentBackendContext, /) -> AsyncIterator[BackendOutput]:
        return self.function(request, context)

    async def start(self, request: AgentBackendInput, session: RuntimeSession, /) -> RuntimeSession:
        return await (self.on_start or _as_it_is)(request, session)

    async def resume(self, request: AgentBackendInput, session: RuntimeSession, /) -> RuntimeSession:
        return await (self.on_resume or _as_it_is)(request, session)

    async def stop(self, session: RuntimeSession, reason: str, /) -> None:
        if self.on_stop is not None:
            await self.on_stop(session, reason)


class SandboxBox(Protocol):
    """A sandbox with an agent in it: the SDK's own box, or `HttpSandbox`."""

    def stream_prompt(self, message: str, /, *, session_id: str, request_id: str) -> AsyncIterator[Any]:
        """
        Have the agent answer *message* in a session; yield the agent's events.

        Args:
            message: The message.
            session_id: The session's id.
            request_id: The idempotency key: the same on every attempt at one durable task, so that a sandbox that
                knows it does not have its agent work, and bill, a second time.
        """


def create_sandbox_prompt_backend(
    box: SandboxBox,
    *,
    kind: str = "sandbox",
    get_session_id: Callable[[AgentBackendInput], str] | None = None,
    map_event: Callable[[Any], BackendOutput | None] | None = None,
) -> AgentExecutionBackend:
    """
    Make the backend whose answers are those of the agent in *box*.

    The agent answers `AgentBackendInput.prompt`.  The sessions can be resumed, and have ``"resumable": true`` in their
    metadata.  The credentials that the box has as ``unsaid`` are quoted nowhere (`DiscreetBackend`).

    Args:
        box: The sandbox.
        kind: The backend's short name.
        get_session_id: Returns the session's id; None to take the proposed id.
        map_event: Turns a sandbox's event into a form that `SayingMapper` takes; it returns None to leave one out.

    Raises:
        ValidationError: *box* cannot be prompted, or another argument is not what it must be.
    """
    require_callable(getattr(box, "stream_prompt", None), "a box's stream_prompt")
    for hook, function in (("get_session_id", get_session_id), ("map_event", map_event)):
        if function is not None:
            require_callable(function, hook)

    async def start(request: AgentBackendInput, session: RuntimeSession) -> RuntimeSession:
        name = session.id if get_session_id is None else get_session_id(request)
        if not name:
            raise ValidationError("a sandbox's session needs an id")
        return replace(session, id=name, metadata={**(session.metadata or {}), "resumable": True})

    async def stream(request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[BackendOutput]:
        events = box.stream_prompt(request.prompt, session_id=context.session.id, request_id=context.request_id)
        async with aclosing(_closable(events)) as told:
            async for event in told:
                output = event if map_event is None else map_event(event)
                if output is not None:
                    yield output

    return create_iterable_backend(kind, stream, start=start, unsaid=getattr(box, "unsaid", ()))


async def _closable(events: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    """Yield *events*, and at the end, whatever ends it, close them if they can be closed."""
    try:
        async for event in events:
            yield event
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()
