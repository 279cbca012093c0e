"""
Sessions of backends, kept so that the next task goes on in them: the store's contract, and one in memory.

A session's resume token is a credential.  It is stored with the session, given to the backend that resumes it, and
nowhere else: no event that is stored or told has one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, runtime_checkable

from chatturn.agent_runtime.values.codec import decode_runtime_event, encode_runtime_event, read_value, to_json
from chatturn.agent_runtime.values.events import RuntimeStreamEvent
from chatturn.agent_runtime.values.tasks import RuntimeSession
from chatturn.durable.records import Lease
from chatturn.errors import SessionMismatchError, ValidationError

__all__ = [
    "MAX_EVENTS_PER_PAGE",
    "MAX_EVENT_BYTES",
    "MAX_METADATA_BYTES",
    "MAX_SESSION_ID",
    "FencedSessionStore",
    "InMemoryRuntimeSessionStore",
    "RuntimeSessionStore",
    "StoredRuntimeEvent",
    "event_text",
    "metadata_text",
    "page_size",
    "require_session_id",
]

MAX_SESSION_ID: Final = 200
MAX_METADATA_BYTES: Final = 100_000
MAX_EVENT_BYTES: Final = 1_000_000
"""Of one event as JSON in UTF-8: half of what a row may hold."""

MAX_EVENTS_PER_PAGE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRuntimeEvent:
    """An event of a session's; `seq` counts from 0, without gaps."""

    seq: int
    event: RuntimeStreamEvent


class RuntimeSessionStore(Protocol):
    """Keeps sessions and what was told in them."""

    async def get(self, session_id: str) -> RuntimeSession | None:
        """Return the session with its resume token, a copy; None if there is none."""

    async def put(self, session: RuntimeSession) -> None:
        """
        Store *session* in the place of the one with its id, whose `created_at` stays.

        Raises:
            SessionMismatchError: The session on record is another backend's; nothing was written.
            ValidationError: Its id has no character or more than 200, or its metadata are no JSON or too long.
            StoreError: The database failed.
        """

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> int:
        """
        Store *event* after those that are there, without a resume token; return its number.

        Raises:
            ValidationError: There is no such session, or the event is no JSON or too long; nothing was written.
            StoreError: The database failed.
        """

    async def list_events(
        self, session_id: str, *, after: int = -1, limit: int = MAX_EVENTS_PER_PAGE
    ) -> Sequence[StoredRuntimeEvent]:
        """Return at most *limit* events, from 1 to 100, behind number *after*; none of a session that is not there."""


@runtime_checkable
class FencedSessionStore(RuntimeSessionStore, Protocol):
    """One whose requests may arrive late, when another worker goes on with the run that they were made for."""

    def fenced_by(self, lease: Lease) -> RuntimeSessionStore:
        """Return the store so that it writes only while nobody has claimed the run after *lease*; else `LeaseLost`."""


def require_session_id(session_id: str) -> None:
    """Refuse an id that cannot be stored.  Raises `ValidationError`."""
    if not 0 < len(session_id) <= MAX_SESSION_ID:
        raise ValidationError(f"a session's id has 1 to {MAX_SESSION_ID} characters, and not {len(session_id)}")


def metadata_text(session: RuntimeSession) -> str | None:
    """Return a session's metadata as JSON text.  Raises `ValidationError`."""
    if session.metadata is None:
        return None
    return _text(to_json(session.metadata), MAX_METADATA_BYTES, "a session's metadata")


def event_text(event: RuntimeStreamEvent) -> str:
    """Return an event as JSON text without a resume token.  Raises `ValidationError`."""
    try:
        return _measured(encode_runtime_event(event), MAX_EVENT_BYTES, "an event")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(f"an event must be JSON: {error}") from error


def _text(value: Any, most: int, what: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(f"{what} must be JSON: {error}") from error
    return _measured(text, most, what)


def _measured(text: str, most: int, what: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ValidationError(f"{what} has half a surrogate pair, which cannot be stored") from error
    if size > most:
        raise ValidationError(f"{what} has {size} bytes as JSON, and may have {most}")
    return text


@dataclass(slots=True)
class _Kept:
    session: str = field(repr=False)  # with its resume token
    events: list[str] = field(default_factory=list, repr=False)


class InMemoryRuntimeSessionStore:
    """Sessions until the process ends, as copies: what is done to a session or an event afterwards changes nothing."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    async def get(self, session_id: str) -> RuntimeSession | None:
        """See `RuntimeSessionStore.get`."""
        kept = self._kept.get(session_id)
        return None if kept is None else read_value(RuntimeSession, json.loads(kept.session))

    async def put(self, session: RuntimeSession) -> None:
        """See `RuntimeSessionStore.put`."""
        require_session_id(session.id)
        metadata_text(session)
        before = await self.get(session.id)
        if before is not None:
            if before.backend != session.backend:
                raise SessionMismatchError(before.backend, session.backend)
            session = replace(session, created_at=before.created_at)
        text = json.dumps(to_json(session))
        self._kept.setdefault(session.id, _Kept(text)).session = text

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> int:
        """See `RuntimeSessionStore.append_event`."""
        text, kept = event_text(event), self._kept.get(session_id)
        if kept is None:
            raise ValidationError(f"there is no session {session_id!r:.220}")
        kept.events.append(text)
        return len(kept.events) - 1

    async def list_events(
        self, session_id: str, *, after: int = -1, limit: int = MAX_EVENTS_PER_PAGE
    ) -> Sequence[StoredRuntimeEvent]:
        """See `RuntimeSessionStore.list_events`."""
        kept, first = self._kept.get(session_id), max(0, after + 1)
        texts = kept.events[first : first + page_size(limit)] if kept is not None else ()
        return [StoredRuntimeEvent(seq=first + n, event=decode_runtime_event(text)) for n, text in enumerate(texts)]


def page_size(limit: int) -> int:
    """Return *limit* as far as it may go."""
    return min(max(limit, 1), MAX_EVENTS_PER_PAGE)
