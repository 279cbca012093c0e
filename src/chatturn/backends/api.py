"""
The seams on the model's side: what a backend is, and what it may use to reach its model.

Cancelling the task that iterates a backend's stream is how a caller aborts it: every implementation closes
its connection on cancellation, at once, whatever it is waiting for.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeAlias, runtime_checkable

from chatturn.events import ChatStreamEvent, EventBatch
from chatturn.telemetry.tracer import NULL_TRACER, Tracer

__all__ = [
    "CONTENTS",
    "NULL_METER",
    "AgentBackendContext",
    "AgentBackendInput",
    "AgentExecutionBackend",
    "CallMeter",
    "ChatMessage",
    "Meter",
    "TakesContents",
    "taken_by",
]

CONTENTS: Final = frozenset({"file_data", "file_url", "image_data", "image_url"})
"""What a message may have besides text: images and files, each as an address or as data in the message."""

ChatMessage: TypeAlias = Mapping[str, Any]
"""
``{"role", "content", …}`` in the shape of the chat completions API.

An assistant's message that calls tools may have a member ``kept``: the value that `AgentBackendContext.keep` took.
"""


def _forget(_kept: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBackendInput:
    """
    What to ask.

    Attributes:
        messages: The conversation so far, the user's message last.
        continue_from: The text that the model has said in a call that broke off; the answer is only what follows it.
            "" for an answer from its beginning.
        model: Which model, where the backend serves several; None for its default.
        options: Further members of the request (tools, temperature …), sent as they are.
    """

    messages: Sequence[ChatMessage]
    model: str | None = None
    continue_from: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


class CallMeter(Protocol):
    """Takes what one call of a model consumes.  Leaving its ``with`` block ends the call, successful or not."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    @property
    def index(self) -> int | None:
        """The call's index in its attempt, from 0, for the member ``call`` of its ``usage`` event; None if unknown."""

    def tried(self) -> None:
        """Learn that a request is sent; called once per try."""

    def answered(self) -> None:
        """Learn that the headers of an answer have arrived."""

    def said(self, events: Sequence[ChatStreamEvent]) -> None:
        """Learn that further pieces of the answer have arrived."""

    def reported(self, usage: Mapping[str, Any]) -> None:
        """
        Take what the call has consumed so far, as the model reports it; the last report counts.

        Args:
            usage: The data of a ``usage`` event, and ``costUsd`` if the model tells its cost; values are unchecked.
        """


class Meter(Protocol):
    """Keeps account of the calls that are made for one attempt of a turn."""

    def call(self, model: str | None, request_id: str) -> CallMeter:
        """
        Begin a call.

        Args:
            model: The model asked, as far as it is known.
            request_id: As in `AgentBackendContext`.

        Raises:
            BudgetExceeded: The budget is spent, so no call may begin.
        """

    def report(self, usage: Mapping[str, Any]) -> int | None:
        """Take the usage of a call made elsewhere, as `CallMeter.reported` does; return the call's index, or None."""


class _NullMeter:
    """Keeps no account."""

    index = None

    def call(self, model: str | None, request_id: str) -> Self:
        del model, request_id
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def tried(self) -> None: ...

    def answered(self) -> None: ...

    def said(self, events: Sequence[ChatStreamEvent]) -> None: ...

    def reported(self, usage: Mapping[str, Any]) -> None: ...

    def report(self, usage: Mapping[str, Any]) -> None: ...


NULL_METER: Final[Meter] = _NullMeter()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBackendContext:
    """
    For which attempt of a turn a model is asked.

    Attributes:
        request_id: Stable for all tries of one attempt of a turn; becomes the upstream's idempotency key.
        tracer: Takes the spans of the model's calls.
        meter: Takes what they consume.
        keep: Takes, once an answer that calls tools is whole, the JSON that its API wants back with the tools'
            results; only the backend reads it.
    """

    request_id: str
    tracer: Tracer = NULL_TRACER
    meter: Meter = NULL_METER
    keep: Callable[[Mapping[str, Any]], None] = _forget


class AgentExecutionBackend(Protocol):
    """Something that answers: a model behind an API, a scripted one, an agent."""

    @property
    def kind(self) -> str:
        """Its short name, for logs and spans."""

    def continues(self, model: str | None) -> bool:
        """Say whether `AgentBackendInput.continue_from` works with *model*."""

    def stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        """
        Answer, event by event; events that arrive together come as one sequence.

        Raises:
            BackendError: One of its subclasses, for everything that goes wrong on the model's side.  A stream that
                ends without an error means that the model said it was done.
        """


@runtime_checkable
class TakesContents(Protocol):
    """A backend that knows what its models take besides text."""

    def takes(self, model: str | None) -> frozenset[str]:
        """Return which of `CONTENTS` *model* takes; None stands for the default model."""


def taken_by(backend: AgentExecutionBackend, model: str | None) -> frozenset[str]:
    """Return which of `CONTENTS` may be sent to a model; all of them if its backend does not say."""
    return backend.takes(model) if isinstance(backend, TakesContents) else CONTENTS
