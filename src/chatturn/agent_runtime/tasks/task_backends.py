"""
What answers a task: agent-runtime's backends, of which chatturn's own are some.

What a task's backend is given is what chatturn's backends are given and more, so each of those is one of these, with
its deadlines, its retries and its way of reading a stream.
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
        task: What for.
        message: What is said, where it was given by itself.
        inputs: JSON of the caller's own.
    """

    task: AgentTaskSpec
    message: str | None = None
    inputs: Mapping[str, Any] | None = None

    @property
    def prompt(self) -> str:
        """What is said in one text: the message, or else the last of the messages, or else the task's intent."""
        if self.message is not None:
            return self.message
        content = self.messages[-1].get("content") if self.messages else None
        return content if isinstance(content, str) else self.task.intent


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBackendContext(api.AgentBackendContext):
    """
    For whom.  Cancelling whoever iterates the stream is the signal that agent-runtime has a member for.

    Attributes:
        knowledge: What is known.
        session: In which session, its resume token included.
    """

    task: AgentTaskSpec
    knowledge: KnowledgeReadinessReport
    session: RuntimeSession


class AgentExecutionBackend(Protocol):
    """Something that answers a task; it may be a `StartingBackend`, a `ResumableBackend`, a `StoppableBackend` too."""

    @property
    def kind(self) -> str:
        """Its short name: a session is one kind's."""

    def stream(self, request: AgentBackendInput, context: AgentBackendContext, /) -> AsyncIterator[BackendOutput]:
        """
        Answer, piece by piece.

        Raises:
            BackendError: The model's side failed.  Ending without an error means that it said everything.
        """


@runtime_checkable
class StartingBackend(Protocol):
    """A backend that begins sessions."""

    async def start(self, request: AgentBackendInput, session: RuntimeSession, /) -> RuntimeSession:
        """Begin *session*, which is what it will be unless this returns another: with its own id, token, metadata."""


@runtime_checkable
class ResumableBackend(Protocol):
    """A backend that goes on with sessions."""

    async def resume(self, request: AgentBackendInput, session: RuntimeSession, /) -> RuntimeSession:
        """Go on with *session*, which has the token that `start` gave it; return it as it is now."""


@runtime_checkable
class DiscreetBackend(Protocol):
    """A backend with credentials of its own, which whoever it asks may quote."""

    @property
    def unsaid(self) -> Sequence[str]:
        """What no event of the task may say, whole or in pieces, and no record."""


@runtime_checkable
class StoppableBackend(Protocol):
    """A backend that can be told to stop."""

    async def stop(self, session: RuntimeSession, reason: str, /) -> None:
        """Stop what is done in *session*: its task failed, was aborted, or is not read any more."""


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
        kind: Its short name.
        stream: Answers.
        start: As `StartingBackend.start`; None for a session as it is proposed.
        resume: As `ResumableBackend.resume`; None to go on with any session as it was kept.
        stop: As `StoppableBackend.stop`; None where there is nothing to stop but the stream.
        unsaid: Credentials of its own: see `DiscreetBackend`.

    Raises:
        ValidationError: *kind* is no text, or has no character; or another one is no function.
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
        Have its agent answer *message* in a session; yield the events that it tells.

        Args:
            message: What is said.
            session_id: In which session.
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

    It is asked `AgentBackendInput.prompt`.  Its sessions can be resumed, and say so in their metadata.  What the box
    has as ``unsaid`` is told nowhere (`DiscreetBackend`).

    Args:
        box: The sandbox.
        kind: The backend's short name.
        get_session_id: Names the session, where it is not the one that was asked for.
        map_event: Makes of a sandbox's event what `SayingMapper` understands; None leaves one out.

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
    """Yield *events*, and close them at once where they can be closed, however this ends."""
    try:
        async for event in events:
            yield event
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()
