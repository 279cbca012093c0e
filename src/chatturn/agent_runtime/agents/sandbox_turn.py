"""
`run_chat_turn`: one turn with an agent in a sandbox, over HTTP; it is not a turn of the chat engine.

Retries, deadlines and the reading of server-sent events are the code of chatturn's model backends.  The request::

    POST <runtime_url>/runtime/agents/run/stream
    {"backend": {"type", "profile", "model"?: {"default"}}, "messages": [{"role", "content"}, …]}

Source:
    docs/reference/agent-runtime.md, Functions beside the turn.
"""

import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, closing
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, TypeAlias, get_args

from chatturn.agent_runtime.agents.profiles import AgentProfile, require_profile
from chatturn.agent_runtime.values.given import (
    require_kind,
    require_mapping,
    require_sequence,
    require_text,
    require_whole,
)
from chatturn.agent_runtime.values.unsaid import Unsaid
from chatturn.backends.openai.connector import Connector
from chatturn.backends.openai.deadlines import Deadline, Watchdog
from chatturn.backends.openai.model_json import parse_frame
from chatturn.backends.openai.retry import BackendRetryPolicy
from chatturn.backends.openai.sse import EventTooLong, ServerSentEvent, SSEDecoder
from chatturn.durable.context import ContextSources
from chatturn.durable.runner import default_sources
from chatturn.errors import BackendError, BackendProtocolError, BackendTransportError, ValidationError
from chatturn.telemetry.tracer import NULL_TRACER, Span, Tracer
from chatturn.timestamps import epoch_ms
from chatturn.transport import Transport, TransportRequest

__all__ = [
    "AuthHeader",
    "ChatTurnMessage",
    "ChatTurnOverlay",
    "ChatTurnSandbox",
    "HttpSandbox",
    "RunChatTurnOptions",
    "SandboxConnection",
    "compose_turn_profile",
    "run_chat_turn",
    "sandbox_as_chat_turn_target",
]

DEFAULT_BACKEND_TYPE: Final = "claude-code"

_PATH: Final = "/runtime/agents/run/stream"
_KIND: Final = "sandbox"
_DONE: Final = "[DONE]"
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthHeader:
    """
    The header by which a sandbox knows its caller; its value is left out of `repr`.

    Raises:
        ValidationError: HTTP does not allow such a name or value in a header.
    """

    name: str
    value: str = field(repr=False)

    @property
    def unsaid(self) -> tuple[str, str]:
        """The value, and its part after the scheme: ``abc`` of ``Bearer abc``."""
        return self.value, self.value.rpartition(" ")[2]

    def __post_init__(self) -> None:
        require_text(self.name, "a header's name")
        require_text(self.value, "a header's value")
        if not _HEADER_NAME.fullmatch(self.name) or not _HEADER_VALUE.fullmatch(self.value):
            raise ValidationError(
                "the auth header is none of HTTP: look for line ends, blanks and letters beyond ASCII"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurnSandbox:
    """
    The id and address of a sandbox.

    Attributes:
        id: The sandbox's id.
        runtime_url: The URL of its HTTP API, without a slash at the end.
        auth_header: Sent with each request; None for no header.

    Raises:
        ValidationError: *runtime_url* does not begin with http:// or https://, or a member has the wrong type.
    """

    id: str
    runtime_url: str
    auth_header: AuthHeader | None = None

    def __post_init__(self) -> None:
        require_text(self.id, "a sandbox's id")
        if self.auth_header is not None:
            require_kind(self.auth_header, AuthHeader, "auth_header")
        if not require_text(self.runtime_url, "runtime_url").startswith(("http://", "https://")):
            raise ValidationError(f"runtime_url must begin with http:// or https://, not {self.runtime_url!r:.60}")


_Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurnMessage:
    """A message of the conversation.  Raises `ValidationError` for an unknown role, or a content that is no text."""

    role: _Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(_Role):
            raise ValidationError(f"role must be one of {', '.join(get_args(_Role))}, not {self.role!r:.40}")
        require_text(self.content, "content")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurnOverlay:
    """
    What one turn changes of a profile: see `compose_turn_profile`.

    Raises:
        ValidationError: A member is neither an object nor None.
    """

    prompt: Mapping[str, Any] | None = None
    resources: Mapping[str, Any] | None = None
    subagents: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            if (value := getattr(self, item.name)) is not None:
                require_mapping(value, item.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConnection:
    """
    How a sandbox is reached.

    Attributes:
        transport: Sends requests.
        retry: How often a request is tried, and how long to wait between tries.  All tries of a turn carry one
            idempotency key.
        idle_timeout_ms: Milliseconds to wait for the next bytes of the turn; 0 for no limit.
        total_timeout_ms: Milliseconds for the whole turn; 0 for no limit.
        sources: The time, ids, and the random part of the wait between tries.
        tracer: Takes a span for each try.

    Raises:
        ValidationError: *retry* is no `BackendRetryPolicy`, or a timeout is no whole number from 0.
    """

    transport: Transport
    retry: BackendRetryPolicy = field(default_factory=BackendRetryPolicy)
    idle_timeout_ms: int = 120_000
    total_timeout_ms: int = 1_800_000
    sources: ContextSources = field(default_factory=default_sources)
    tracer: Tracer = NULL_TRACER

    def __post_init__(self) -> None:
        require_kind(self.retry, BackendRetryPolicy, "retry")
        require_whole(self.idle_timeout_ms, "idle_timeout_ms")
        require_whole(self.total_timeout_ms, "total_timeout_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunChatTurnOptions:
    """
    What `run_chat_turn` needs.

    Attributes:
        sandbox: The sandbox that is asked.
        connection: How the sandbox is reached.
        profile: The agent's profile; `compose_turn_profile` can make one for the turn.
        content: The user's message.
        prior: The earlier messages of the conversation, in their order.
        model: The model's name; None for the sandbox's default.
        request_id: The idempotency key; None for a fresh one.

    Raises:
        ValidationError: An option has the wrong type, or *request_id* cannot be sent as a header.
    """

    sandbox: ChatTurnSandbox
    connection: SandboxConnection
    profile: AgentProfile
    content: str
    prior: Sequence[ChatTurnMessage] = ()
    model: str | None = None
    request_id: str | None = None

    def __post_init__(self) -> None:
        require_kind(self.sandbox, ChatTurnSandbox, "sandbox")
        require_kind(self.connection, SandboxConnection, "connection")
        require_profile(self.profile)
        require_text(self.content, "content")
        require_sequence(self.prior, ChatTurnMessage, "prior")
        if self.model is not None:
            require_text(self.model, "model")
        if self.request_id is not None and not _HEADER_VALUE.fullmatch(require_text(self.request_id, "request_id")):
            raise ValidationError("request_id is sent as a header: it has no line ends, and no letters beyond ASCII")


def compose_turn_profile(base: AgentProfile, overlay: ChatTurnOverlay) -> dict[str, Any]:
    """
    Return *base* as *overlay* changes it; neither is changed, and the result shares nothing with them.

    A member of an object of *overlay* replaces the member with the same name in that object of *base*.  In
    ``resources``, a list is appended to the list of the same name instead, and an object is merged into the object.

    Raises:
        ValidationError: *base* is no object, or a member of *base* that *overlay* changes is no object.
    """
    require_profile(base)
    require_kind(overlay, ChatTurnOverlay, "overlay")
    profile = deepcopy(dict(base))
    for name, added in (("prompt", overlay.prompt), ("subagents", overlay.subagents), ("metadata", overlay.metadata)):
        if added is not None:
            profile[name] = {**_object(profile, name), **deepcopy(dict(added))}
    if overlay.resources is not None:
        resources = _object(profile, "resources")
        added_resources = deepcopy(dict(overlay.resources))
        profile["resources"] = {
            **resources,
            **{name: _merged(resources.get(name), value) for name, value in added_resources.items()},
        }
    return profile


def _object(profile: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = profile.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ValidationError(f"the profile's {name} must be an object")
    return value or {}


def _merged(before: Any, added: Any) -> Any:
    if isinstance(before, list) and isinstance(added, list):
        return [*before, *added]
    if isinstance(before, Mapping) and isinstance(added, Mapping):
        return {**before, **added}
    return added


def sandbox_as_chat_turn_target(instance: Any, *, auth_header: AuthHeader | None = None) -> ChatTurnSandbox:
    """
    Return the id and address of *instance*; the address is its ``url``, or else its ``connection.runtimeUrl``.

    Args:
        instance: A sandbox as its SDK gives it: JSON, or an object with such attributes.
        auth_header: Sent with each request; None for no header.

    Raises:
        ValidationError: *instance* has no id, or neither of the two URLs.
    """
    url = _member(instance, "url") or _member(_member(instance, "connection"), "runtimeUrl", "runtime_url")
    name = _member(instance, "id")
    if not isinstance(url, str) or not isinstance(name, str) or not name:
        raise ValidationError("a sandbox needs an id, and a url or a connection.runtimeUrl: is it running yet?")
    return ChatTurnSandbox(id=name, runtime_url=url.rstrip("/"), auth_header=auth_header)


def _member(value: Any, *names: str) -> Any:
    for name in names:
        found = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if found:
            return found
    return None


async def run_chat_turn(options: RunChatTurnOptions) -> AsyncGenerator[dict[str, Any], None]:
    """
    Ask the agent in a sandbox, and yield each of its events, a JSON object.

    Frames that are no JSON object are left out, as agent-runtime leaves them out.  In an event or an error that quotes
    the value of the auth header, the value is replaced.  A value that is split over several events is not recognised
    here; a task's stream (`create_sandbox_prompt_backend`) recognises it.  Cancelling the reader, or closing the
    generator, closes the connection at once.

    Raises:
        BackendRejected: The sandbox refused; the error has ``upstream_status`` and the beginning of the answer.
        BackendTransportError: No try got an answer.
        BackendTimeout: A deadline is over; the message names it.
        BackendProtocolError: The stream broke off, or was empty.
    """
    auth = options.sandbox.auth_header
    unsaid = Unsaid() if auth is None else Unsaid(*auth.unsaid)
    try:
        async with aclosing(_told(options)) as events:
            async for event in events:
                yield unsaid.cleaned(event)
    except BackendError as error:
        error.detail, error.args = unsaid.cleaned(error.detail), unsaid.cleaned(error.args)
        raise


async def _told(options: RunChatTurnOptions) -> AsyncGenerator[dict[str, Any], None]:
    connection = options.connection
    sources = connection.sources
    connector = Connector(
        kind=_KIND,
        transport=connection.transport,
        retry=connection.retry,
        uniform=lambda low, high: low + (high - low) * sources.random(),
        now=lambda: (epoch_ms(sources.now()) or 0) / 1000,
    )
    until_end = Deadline("total_timeout_ms", connection.total_timeout_ms, "end of the turn")
    until_bytes = Deadline("idle_timeout_ms", connection.idle_timeout_ms, "further bytes of the turn")
    with closing(Watchdog(until_end, backend=_KIND)) as watchdog:
        exchange = await connector.connect(_request(options), watchdog, lambda _: _span(connection.tracer))
        async with exchange.stack:
            reader, chunks = _Reader(), exchange.response.chunks()
            while not reader.done:
                try:
                    with watchdog.limit(until_bytes):
                        chunk = await anext(chunks, None)
                except BackendTransportError as error:
                    raise BackendProtocolError("the connection broke inside the turn", backend=_KIND) from error
                for event in reader.finish() if chunk is None else reader.feed(chunk):
                    yield event


def _span(tracer: Tracer) -> AbstractContextManager[Span]:
    return tracer.span("sandbox turn", kind="client")


def _request(options: RunChatTurnOptions) -> TransportRequest:
    """Make the request.  Raises `ValidationError` if the profile is no JSON object."""
    require_profile(options.profile)
    auth = options.sandbox.auth_header
    backend: dict[str, Any] = {"type": _backend_type(options.profile), "profile": options.profile}
    if options.model is not None:
        backend["model"] = {"default": options.model}
    said = [*options.prior, ChatTurnMessage(role="user", content=options.content)]
    messages = [{"role": message.role, "content": message.content} for message in said]
    try:
        body = json.dumps({"backend": backend, "messages": messages}, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(f"the profile must be JSON: {error}") from error
    return TransportRequest(
        url=options.sandbox.runtime_url.rstrip("/") + _PATH,
        headers={
            "content-type": "application/json",
            "accept": "text/event-stream",
            "idempotency-key": options.request_id or options.connection.sources.uuid(),
            **({} if auth is None else {auth.name: auth.value}),
        },
        body=body,
    )


def _backend_type(profile: AgentProfile) -> str:
    metadata = profile.get("metadata")
    backend = metadata.get("backend") if isinstance(metadata, Mapping) else None
    kind = backend.get("type") if isinstance(backend, Mapping) else None
    return kind if isinstance(kind, str) and kind else DEFAULT_BACKEND_TYPE


class _Reader:
    """
    Reads the events of a sandbox from its server-sent events.

    Attributes:
        done: Whether the stream has ended.
    """

    def __init__(self) -> None:
        self.done = False
        self._decoder = SSEDecoder(lenient=True)
        self._told = False

    def feed(self, chunk: bytes) -> list[dict[str, Any]]:
        """Take the next bytes; return the events that they complete.  Raises `BackendProtocolError`."""
        try:
            return self._events(self._decoder.feed(chunk))
        except EventTooLong as error:
            raise BackendProtocolError(str(error), backend=_KIND) from error

    def finish(self) -> list[dict[str, Any]]:
        """End the stream; return its last events.  Raises `BackendProtocolError` if it broke off or was empty."""
        events = self._events(self._decoder.finish())
        self.done = True
        if self._decoder.broke_off:
            raise BackendProtocolError("what it told broke off", backend=_KIND)
        if not self._told:
            raise BackendProtocolError("it told nothing", backend=_KIND)
        return events

    def _events(self, frames: Sequence[ServerSentEvent]) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        for frame in frames:
            text = frame.data.strip()
            if text == _DONE:
                self.done = True
                break
            try:
                event = parse_frame(text) if text else None
            except ValueError:
                continue
            if isinstance(event, dict):
                events.append(event)
        self._told = self._told or bool(events) or self.done
        return events


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSandbox:
    """
    A box for `create_sandbox_prompt_backend` that is reached over HTTP.

    Attributes:
        target: The id and address of the sandbox.
        connection: How the sandbox is reached.
        profile: The agent's profile.
        model: The model's name; None for the sandbox's default.
    """

    target: ChatTurnSandbox
    connection: SandboxConnection
    profile: AgentProfile
    model: str | None = None

    @property
    def unsaid(self) -> Sequence[str]:
        """The credentials of the auth header, which no event may quote."""
        return () if self.target.auth_header is None else self.target.auth_header.unsaid

    async def stream_prompt(
        self,
        message: str,
        /,
        *,
        session_id: str,  # noqa: ARG002 - a request of this API has no session
        request_id: str,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Have the agent answer *message*; yield its events.  Raises what `run_chat_turn` raises."""
        options = RunChatTurnOptions(
            sandbox=self.target,
            connection=self.connection,
            profile=self.profile,
            content=message,
            model=self.model,
            request_id=request_id,
        )
        async with aclosing(run_chat_turn(options)) as events:
            async for event in events:
                yield event
