"""What is told of a backend that failed, and what of all that it tells is a failure of its own.  Pure."""

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
"""Characters of an error's."""

_SHORT: Final = 50_000
"""Characters of a piece of text that is no event too long, whatever is in it."""


def require_tellable(event: RuntimeStreamEvent, *, stored: bool) -> None:
    """Refuse what could not be read back, or, where it is *stored*, is too long.  Raises `ValidationError`."""
    if isinstance(event, TextDeltaEvent | ReasoningDeltaEvent) and len(event.text) <= _SHORT:
        require_text(event.text, "a piece of text")
    else:
        event_text(event, most=MAX_EVENT_BYTES if stored else sys.maxsize)


def public_words(error: Exception | None) -> str:
    """Return what may be said to anybody; the words of an upstream may quote what was asked.  None for an abort."""
    if error is None:
        return "The task was aborted."
    return error.public if isinstance(error, ChatTurnError) else BackendError.public


def failure_detail(error: Exception) -> BackendErrorDetail:
    """Return what went wrong, for programs."""
    unreached = isinstance(error, BackendTransportError | BackendTimeout)
    status = error.upstream_status if isinstance(error, BackendTransportError) else None
    body = _words(error.detail) if isinstance(error, BackendError) else None
    kind: Literal["transport", "backend"] = "transport" if unreached else "backend"
    return BackendErrorDetail(kind=kind, message=words_told_of(error), status=status, body=body or None)


def words_told_of(error: Exception) -> str:
    """Return the words of an error as they may be told to programs."""
    return _words(words_of(error))


def _words(text: str) -> str:
    """Return *text* so that it can be stored."""
    return without_secrets(text.encode("utf-8", "replace").decode())[:_MOST_WORDS]
