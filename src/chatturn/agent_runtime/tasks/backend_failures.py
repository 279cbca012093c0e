"""How a backend's failure is told, and which events of a backend count as its failure."""

import sys
from typing import Final, Literal

from chatturn.agent_runtime.tasks.sessions import MAX_EVENT_BYTES, event_text
from chatturn.agent_runtime.values.events import ReasoningDeltaEvent, RuntimeStreamEvent, TextDeltaEvent
from chatturn.agent_runtime.values.given import require_text
from chatturn.agent_runtime.values.tasks import BackendErrorDetail
from chatturn.durable.steps import words_of
from chatturn.errors import BackendError, BackendTimeout, BackendTransportError, ChatTurnError
from chatturn.telemetry.redaction import without_secrets

__all__ = ["failure_detail", "public_words", "require_tellable", "words_told_of"]

_MOST_WORDS: Final = 2_048
"""The most characters of an error's words that are told."""

_SHORT: Final = 50_000
"""The most characters of a piece of text that cannot make its event too long, whatever they are."""


def require_tellable(event: RuntimeStreamEvent, *, stored: bool) -> None:
    """Refuse an *event* that could not be read back, or, if it is *stored*, is too long.  Raises `ValidationError`."""
    if isinstance(event, TextDeltaEvent | ReasoningDeltaEvent) and len(event.text) <= _SHORT:
        require_text(event.text, "a piece of text")
    else:
        event_text(event, most=MAX_EVENT_BYTES if stored else sys.maxsize)


def public_words(error: Exception | None) -> str:
    """Return the public message of *error*, or of an abort for None; the words of an upstream may quote the request."""
    if error is None:
        return "The task was aborted."
    return error.public if isinstance(error, ChatTurnError) else BackendError.public


def failure_detail(error: Exception) -> BackendErrorDetail:
    """Return the details of *error*, for programs."""
    unreached = isinstance(error, BackendTransportError | BackendTimeout)
    status = error.upstream_status if isinstance(error, BackendTransportError) else None
    body = _words(error.detail) if isinstance(error, BackendError) else None
    kind: Literal["transport", "backend"] = "transport" if unreached else "backend"
    return BackendErrorDetail(kind=kind, message=words_told_of(error), status=status, body=body or None)


def words_told_of(error: Exception) -> str:
    """Return the words of *error* as they may be told to programs."""
    return _words(words_of(error))


def _words(text: str) -> str:
    """Return *text* without secrets, as valid UTF-8, and at most `_MOST_WORDS` characters of it."""
    return without_secrets(text.encode("utf-8", "replace").decode())[:_MOST_WORDS]
