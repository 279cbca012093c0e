"""
Sessions of backends, stored so that a later task can go on in them: the store's protocol, and a store in memory.

A session's resume token is a credential.  It is stored with the session and given to the backend that resumes it; no
event that is stored or told has one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, runtime_checkable

from chatturn.agent_runtime.values.codec import (
    MAX_JSON_DEPTH,
    decode_runtime_event,
    read_value,
    to_json,
)
from chatturn.agent_runtime.values.events import BackendMadeEvent, RuntimeMadeEvent, RuntimeStreamEvent, without_tokens
from chatturn.agent_runtime.values.given import byte_size, require_text
from chatturn.agent_runtime.values.tasks import RuntimeSession, SessionStatus
from chatturn.durable.records import Lease
from chatturn.errors import SessionMismatchError, ValidationError
from chatturn.jsontext.depth import nests_deeper
from chatturn.jsontext.stored import json_text
from chatturn.timestamps import epoch_ms, iso_timestamp

__all__ = [
    "MAX_EVENTS_PER_PAGE",
    "MAX_EVENT_BYTES",
    "MAX_METADATA_BYTES",
    "MAX_RESUME_TOKEN_BYTES",
    "MAX_SESSION_ID",
    "FencedSessionStore",
    "InMemoryRuntimeSessionStore",
    "RuntimeSessionStore",
    "StoredRuntimeEvent",
    "event_text",
    "metadata_text",
    "page",
    "require_session",
    "require_session_id",
]

MAX_SESSION_ID: Final = 200
"""The most characters of a session's id, and of a backend's kind."""

MAX_RESUME_TOKEN_BYTES: Final = 16_000
MAX_METADATA_BYTES: Final = 100_000
MAX_EVENT_BYTES: Final = 1_000_000
"""The most bytes of one event as JSON in UTF-8: half of what a row may hold."""

MAX_EVENTS_PER_PAGE: Final = 100

_LAST_NUMBER: Final = 10**12
"""A number beyond the last event of every session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRuntimeEvent:
    """An event of a session; `seq` counts from 0, without gaps."""

    seq: int
    event: RuntimeStreamEvent


class RuntimeSessionStore(Protocol):
    """Stores sessions and their events.  Each method raises `ValidationError` for an id that is no text."""

    async def get(self, session_id: str) -> RuntimeSession | None:
        """Return a copy of the session, with its resume token; None if there is none."""

    async def put(self, session: RuntimeSession) -> None:
        """
        Store *session*, and replace the one with the same id, whose `created_at` stays.

        Raises:
            SessionMismatchError: The session on record is another backend's; nothing was written.
            ValidationError: *session* cannot be stored (`require_session`); nothing was written.
            StoreError: The database failed.
        """

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> int:
        """
        Append *event* to the session's events, without a resume token; return its number.

        Raises:
            ValidationError: There is no such session, or *event* is no event, could not be read back, or is too long;
                nothing was written.
            StoreError: The database failed.
        """

    async def list_events(
        self, session_id: str, *, after: int = -1, limit: int = MAX_EVENTS_PER_PAGE
    ) -> Sequence[StoredRuntimeEvent]:
        """Return at most *limit* events (1 to 100) after number *after*; none if there is no such session."""


@runtime_checkable
class FencedSessionStore(RuntimeSessionStore, Protocol):
    """A store that can refuse a worker's late writes, once another worker has claimed the run."""

    def fenced_by(self, lease: Lease) -> RuntimeSessionStore:
        """Return a store whose writes raise `LeaseLost` once the run was claimed after *lease*."""


def require_session_id(session_id: object) -> None:
    """Refuse an id that cannot be stored.  Raises `ValidationError`."""
    _require_name(session_id, "a session's id")


def _require_name(value: object, what: str) -> None:
    if not 0 < len(require_text(value, what)) <= MAX_SESSION_ID:
        raise ValidationError(f"{what} has 1 to {MAX_SESSION_ID} characters, and not {len(str(value))}")


def require_session(session: object) -> None:
    """
    Refuse a session that cannot be stored.

    Raises:
        ValidationError: It is no `RuntimeSession`; its id or its backend is no text of 1 to 200 characters; its status
            is no `SessionStatus`; a time is no timestamp; its token is no text of at most 16,000 bytes in UTF-8; its
            metadata are no JSON object of at most 100,000 bytes and 62 levels.
    """
    if not isinstance(session, RuntimeSession):
        raise ValidationError(f"a session must be a RuntimeSession, not {type(session).__name__}")
    require_session_id(session.id)
    _require_name(session.backend, "a session's backend")
    if not isinstance(session.status, SessionStatus):
        raise ValidationError(f"a session's status must be a SessionStatus, not {session.status!r:.40}")
    for name, time in (("created_at", session.created_at), ("updated_at", session.updated_at)):
        if not _is_timestamp(time):
            raise ValidationError(f"a session's {name} must be a timestamp, not {time!r:.40}")
    if session.resume_token is not None:
        require_text(session.resume_token, "a session's resume token")
        _measured(session.resume_token, MAX_RESUME_TOKEN_BYTES, "a session's resume token")
    metadata_text(session)


def _is_timestamp(value: object) -> bool:
    moment = epoch_ms(value) if isinstance(value, str) else None
    return moment is not None and iso_timestamp(moment) == value


def metadata_text(session: RuntimeSession) -> str | None:
    """Return a session's metadata as JSON text.  Raises `ValidationError`."""
    what = "a session's metadata"
    if session.metadata is None:
        return None
    if not isinstance(session.metadata, Mapping):
        raise ValidationError(f"{what} must be a JSON object, not {type(session.metadata).__name__}")
    try:
        text = json_text(to_json(session.metadata), what)
    except TypeError as error:
        raise ValidationError(str(error)) from error
    if nests_deeper(text, MAX_JSON_DEPTH - 2):  # in an event they are two levels deeper
        raise ValidationError(f"{what} must nest at most {MAX_JSON_DEPTH - 2} levels")
    return _measured(text, MAX_METADATA_BYTES, what)


def event_text(event: object, *, most: int = MAX_EVENT_BYTES) -> str:
    """Return an event as JSON text that can be read back, without a resume token.  Raises `ValidationError`."""
    session = getattr(event, "session", None)
    if not isinstance(event, RuntimeMadeEvent | BackendMadeEvent) or not isinstance(session, RuntimeSession | None):
        raise ValidationError(f"an event must be a RuntimeStreamEvent, not {type(event).__name__}, and so its session")
    told: Any = event  # of a class that `decode_runtime_event` knows, or refuses
    try:
        text = _measured(json_text(to_json(without_tokens(told)), "it"), most, "an event")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(f"an event must be JSON: {error}") from error
    decode_runtime_event(text)
    return text


def _measured(text: str, most: int, what: str) -> str:
    if (size := byte_size(text, what)) > most:
        raise ValidationError(f"{what} has {size} bytes, and may have {most}")
    return text


@dataclass(slots=True)
class _Kept:
    session: str = field(repr=False)  # with its resume token
    events: list[str] = field(default_factory=list, repr=False)


class InMemoryRuntimeSessionStore:
    """Stores copies of sessions and events until the process ends: a later change to the original changes nothing."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    async def get(self, session_id: str) -> RuntimeSession | None:
        """See `RuntimeSessionStore.get`."""
        kept = self._kept.get(require_text(session_id, "a session's id"))
        return None if kept is None else read_value(RuntimeSession, json.loads(kept.session))

    async def put(self, session: RuntimeSession) -> None:
        """See `RuntimeSessionStore.put`."""
        require_session(session)
        before = await self.get(session.id)
        if before is not None:
            if before.backend != session.backend:
                raise SessionMismatchError(before.backend, session.backend)
            session = replace(session, created_at=before.created_at)
        text = json.dumps(to_json(session))
        self._kept.setdefault(session.id, _Kept(text)).session = text

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> int:
        """See `RuntimeSessionStore.append_event`."""
        text, kept = event_text(event), self._kept.get(require_text(session_id, "a session's id"))
        if kept is None:
            raise ValidationError(f"there is no session {session_id!r:.220}")
        kept.events.append(text)
        return len(kept.events) - 1

    async def list_events(
        self, session_id: str, *, after: int = -1, limit: int = MAX_EVENTS_PER_PAGE
    ) -> Sequence[StoredRuntimeEvent]:
        """See `RuntimeSessionStore.list_events`."""
        kept = self._kept.get(require_text(session_id, "a session's id"))
        behind, most = page(after, limit)
        first = behind + 1
        texts = kept.events[first : first + most] if kept is not None else ()
        return [StoredRuntimeEvent(seq=first + n, event=decode_runtime_event(text)) for n, text in enumerate(texts)]


def page(after: int, limit: int) -> tuple[int, int]:
    """Return *after* and *limit* of a page of events, each moved into its range.  Raises `ValidationError`."""
    for name, value in (("after", after), ("limit", limit)):
        if type(value) is not int:
            raise ValidationError(f"{name} must be a whole number, not {value!r:.40}")
    return min(max(after, -1), _LAST_NUMBER), min(max(limit, 1), MAX_EVENTS_PER_PAGE)
