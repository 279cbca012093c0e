"""
The seams on the model's side: what a backend is, and what it may use to reach its model.

Cancelling the task that iterates a backend's stream is how a caller aborts it: every implementation closes
its connection on cancellation, at once, whatever it is waiting for.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from chatturn.events import EventBatch
from chatturn.telemetry import NULL_TRACER, Tracer

__all__ = [
    "AgentBackendContext",
    "AgentBackendInput",
    "AgentExecutionBackend",
    "ChatMessage",
    "Transport",
    "TransportRequest",
    "TransportResponse",
]

ChatMessage: TypeAlias = Mapping[str, Any]
"""``{"role", "content", …}`` in the shape of the chat completions API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBackendInput:
    """
    What to ask.

    Attributes:
        messages: The conversation so far, the user's message last.
        continue_from: What the model has said to it already, in a call that broke off; it is to go on from there,
            and says only what comes after.  "" for an answer from its beginning.
        model: Which model, where the backend serves several; None for its default.
        options: Further members of the request (tools, temperature …), sent as they are.
    """

    messages: Sequence[ChatMessage]
    model: str | None = None
    continue_from: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBackendContext:
    """
    On whose behalf.

    Attributes:
        request_id: Stable for all tries of one attempt of a turn; becomes the upstream's idempotency key.
        tracer: Takes the spans of the model's calls.
    """

    request_id: str
    tracer: Tracer = NULL_TRACER


class AgentExecutionBackend(Protocol):
    """Something that answers: a model behind an API, a scripted one, an agent."""

    @property
    def kind(self) -> str:
        """Its short name, for logs and spans."""

    def continues(self, model: str | None) -> bool:
        """Say whether `AgentBackendInput.continue_from` works with *model*."""

    def stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        """
        Answer, event by event; events that arrive together come as one list.

        Raises:
            BackendError: One of its subclasses, for everything that goes wrong on the model's side.  Ending
                without an error means that the model said it was done.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportRequest:
    """An HTTP request, its body already encoded as JSON text."""

    url: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""


class TransportResponse(Protocol):
    """An HTTP response whose headers have arrived."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case."""

    def chunks(self) -> AsyncIterator[bytes]:
        """
        Yield the body: at each step all bytes that have arrived since the last, never an empty chunk.

        Raises:
            BackendTransportError: The connection broke.
        """


class Transport(Protocol):
    """Sends HTTP requests.  Redirects are not followed."""

    def send(self, request: TransportRequest) -> AbstractAsyncContextManager[TransportResponse]:
        """
        Send *request*; entering waits for the headers, leaving closes the connection, body read or not.

        Cancellation while entering, inside, or while leaving aborts the request and its body at once.

        Raises:
            BackendTransportError: No response: refused, reset, unresolved.  ``upstream_status`` is 0.
        """
