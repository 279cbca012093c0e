"""
The session of one attempt at a streamed task: it is opened, stores events, is closed, and its backend is stopped.

::

    load ─▶ open ─▶ tell … ─▶ finish               completed: its last events are stored first, so that a session that
              │        └────▶ stop ─▶ close         is completed has all of them
              └ fails, or is left ─▶ stop           the backend may have begun the session anyway

Source:
    docs/reference/agent-runtime.md, Stream events.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeAlias

from chatturn.agent_runtime.tasks.sessions import RuntimeSessionStore, require_session, require_session_id
from chatturn.agent_runtime.tasks.task_backends import (
    AgentBackendInput,
    AgentExecutionBackend,
    DiscreetBackend,
    ResumableBackend,
    StartingBackend,
    StoppableBackend,
)
from chatturn.agent_runtime.tasks.task_steps import TaskSteps
from chatturn.agent_runtime.values.events import (
    BackendEndEvent,
    FinalEvent,
    RuntimeStreamEvent,
    SessionCreatedEvent,
    SessionResumedEvent,
    TaskEndEvent,
    TextDeltaEvent,
)
from chatturn.agent_runtime.values.tasks import RuntimeSession, SessionStatus
from chatturn.agent_runtime.values.unsaid import Unsaid
from chatturn.errors import BackendProtocolError, SessionMismatchError, ValidationError
from chatturn.product_calls import Late, awaited

__all__ = ["TaskSession"]

_STOP_TIMEOUT_MS: Final = 10_000
_MOST_COALESCED: Final = 8_000
"""The most characters of text that are stored as one event of a session."""

_RENAMED_TO: Final = "chatturn.renamedTo"
"""
A member of a session's metadata: the id that the backend has given to the session instead.

The session with this member is stored under the requested id, is completed, and only leads to the other session.
"""
_MOST_NAMES: Final = 20

_ENDS: Final = (BackendEndEvent, TaskEndEvent, FinalEvent)
_Open: TypeAlias = Callable[[AgentBackendInput, RuntimeSession], Awaitable[RuntimeSession]]


@dataclass(slots=True, kw_only=True)
class TaskSession:
    """
    The session in which a backend answers a task.

    Attributes:
        backend: The backend that answers.
        store: Stores the session; None to store nothing.
        steps: The attempt's steps.
        unsaid: Takes the backend's own credentials, and the resume tokens that become known.
        kept: The session as the store had it before; None if it had none.
        opened: The session as it is now; None until the backend has opened it.
    """

    backend: AgentExecutionBackend
    store: RuntimeSessionStore | None
    steps: TaskSteps
    unsaid: Unsaid
    kept: RuntimeSession | None = None
    opened: RuntimeSession | None = None
    _name: str | None = None
    _asked: RuntimeSession | None = None
    _log: "_Log | None" = None
    _finished: bool = False

    def __post_init__(self) -> None:
        for each in self.backend.unsaid if isinstance(self.backend, DiscreetBackend) else ():
            self.unsaid.add(each)

    async def load(self, name: str | None) -> None:
        """
        Load the session with the id *name*, if the store has it.

        Raises:
            SessionMismatchError: The session is another backend's.
            ValidationError: *name* cannot be a session's id.
        """
        if self.store is None or name is None:
            return
        require_session_id(name)
        self._name, self.kept = name, await _latest(self.store, name)
        if self.kept is not None:
            if self.kept.backend != self.backend.kind:
                raise SessionMismatchError(self.kept.backend, self.backend.kind)
            self.unsaid.add(self.kept.resume_token)

    @property
    def is_begun(self) -> bool:
        """Whether the backend was asked to open the session; from then on it must be stopped, unless it ends."""
        return self._asked is not None

    async def open(self, request: AgentBackendInput, fresh: Callable[[], str]) -> RuntimeSession:
        """
        Have the backend begin a session, with the id from *fresh*, or go on with the one that was loaded.

        Raises:
            TaskAborted, HookFailed: The backend was aborted, or failed; it has to be stopped.
            StoreError, ValidationError, SessionMismatchError: The session cannot be stored.
        """
        backend, now = self.backend, self.steps.now()
        opening: _Open | None = None
        if self.kept is None:
            self._asked = RuntimeSession(
                id=fresh(), backend=backend.kind, status=SessionStatus.ACTIVE, created_at=now, updated_at=now
            )
            opening = backend.start if isinstance(backend, StartingBackend) else None
        else:
            self._asked = replace(self.kept, status=SessionStatus.ACTIVE, updated_at=now)
            opening = backend.resume if isinstance(backend, ResumableBackend) else None
        if opening is not None:
            await self.steps.unrecorded(partial(self._open, opening, request, self._asked))
        self.opened = self._asked
        self._log = None if self.store is None else _Log(self.store, self.opened.id)
        if self.store is not None:
            await self._rename(self.store, self.opened)
            await self.store.put(self.opened)
        return self.opened

    async def _rename(self, store: RuntimeSessionStore, opened: RuntimeSession) -> None:
        """Store the backend's id for the session under its earlier ids, before the session itself is stored."""
        had = {self._name, None if self.kept is None else self.kept.id}
        for name in had - {None, opened.id}:
            renamed = replace(opened, id=str(name), status=SessionStatus.COMPLETED, resume_token=None)
            await store.put(replace(renamed, metadata={_RENAMED_TO: opened.id}))

    async def _open(self, opening: _Open, request: AgentBackendInput, asked: RuntimeSession) -> None:
        opened = await opening(request, asked)
        try:
            require_session(opened)
        except ValidationError as error:
            raise BackendProtocolError(f"it opened what cannot be stored: {error}", backend=asked.backend) from error
        if opened.backend != self.backend.kind:
            raise BackendProtocolError("it opened a session of another kind", backend=self.backend.kind)
        if _RENAMED_TO in (opened.metadata or {}):
            raise BackendProtocolError(f"it has no say over {_RENAMED_TO}", backend=self.backend.kind)
        self.unsaid.add(opened.resume_token)
        self._asked = opened  # even if nobody waits for this any more: the backend must be stopped

    async def tell(self, event: RuntimeStreamEvent) -> None:
        """Store *event*, now or with the next one; do nothing after `finish`, which has stored the last events."""
        if self._log is not None and not self._finished:
            await self._log.add(event)

    async def flush(self) -> None:
        """Store the pieces of text that were held back."""
        if self._log is not None:
            await self._log.flush()

    async def stop(self, reason: str) -> Exception | Late | None:
        """Stop the backend, if it was asked to open a session; return the error if it could not be stopped."""
        if self._asked is None or not isinstance(self.backend, StoppableBackend):
            return None
        try:
            await awaited(self.backend.stop(self._asked, reason), _STOP_TIMEOUT_MS)
        except (Exception, Late) as error:  # noqa: BLE001 - a hook of the product's; it must not mask why it was called
            return error
        return None

    async def close(self, status: SessionStatus, *, dated: bool = True) -> None:
        """Store the end of the session; not *dated*, `updated_at` stays, by which `repair` recognises the session."""
        if self.opened is None:
            return
        self.opened = replace(
            self.opened, status=status, updated_at=self.steps.now() if dated else self.opened.updated_at
        )
        if self.store is not None:
            await self.flush()
            await self.store.put(self.opened)

    async def finish(self, ends: Sequence[RuntimeStreamEvent], *, again: bool = False) -> None:
        """Store the last events, and that the session has completed; *again* if some of them may be stored already."""
        if self.opened is None:
            return
        done = replace(self.opened, status=SessionStatus.COMPLETED, updated_at=self.steps.now())
        if self.store is not None:
            there = await _ends_on_record(self.store, done.id) if again else 0
            for event in ends[there:]:
                await _append(self.store, done.id, event)
            await self.store.put(done)
        self.opened, self._finished = done, True

    async def repair(self, recorded: RuntimeSession, ends: Sequence[RuntimeStreamEvent]) -> None:
        """
        Complete the session of an answer that is on record, if the worker died before it did.

        A session that was changed after *recorded* was opened is left alone.
        """
        if self.store is None:
            return
        kept = self.kept
        if kept is None or kept.id != recorded.id:  # the backend had given it another id
            kept = await self.store.get(recorded.id)
        if kept is None or kept.backend != recorded.backend or kept.status is SessionStatus.COMPLETED:
            return
        if kept.updated_at == recorded.updated_at:
            self.opened = kept
            await self.finish(ends, again=True)
            self.opened = None


async def _latest(store: RuntimeSessionStore, name: str) -> RuntimeSession | None:
    """Return the session with the id *name*, or the one that it leads to by `_RENAMED_TO`; None if there is none."""
    for _ in range(_MOST_NAMES):
        found = await store.get(name)
        if found is None or _RENAMED_TO not in (found.metadata or {}):
            return found
        name = str((found.metadata or {})[_RENAMED_TO])
    return None


async def _append(store: RuntimeSessionStore, name: str, event: RuntimeStreamEvent) -> None:
    """Store *event*; the `final` of an answer that is too long is stored without text, which is in the pieces."""
    try:
        await store.append_event(name, event)
    except ValidationError:
        if not isinstance(event, FinalEvent) or event.text is None:
            raise
        await store.append_event(name, replace(event, text=None))


async def _ends_on_record(store: RuntimeSessionStore, name: str) -> int:
    """Return how many of the last events (`_ENDS`) are stored since the session was last opened."""
    found, after = 0, -1
    while page := await store.list_events(name, after=after):
        for each in page:
            if isinstance(each.event, SessionCreatedEvent | SessionResumedEvent):
                found = 0
            found += isinstance(each.event, _ENDS)
        after = page[-1].seq
    return found


@dataclass(slots=True)
class _Log:
    """Stores the events of a session; consecutive pieces of text become one event."""

    store: RuntimeSessionStore
    session_id: str
    _pending: TextDeltaEvent | None = None
    _pieces: list[str] = field(default_factory=list)
    _size: int = 0

    async def add(self, event: RuntimeStreamEvent) -> None:
        """Store *event*, now or with the next one."""
        if isinstance(event, TextDeltaEvent):
            if self._size + len(event.text) > _MOST_COALESCED:
                await self.flush()
            self._pending = self._pending or event
            self._pieces.append(event.text)
            self._size += len(event.text)
            if self._size >= _MOST_COALESCED:
                await self.flush()
            return
        await self.flush()
        await _append(self.store, self.session_id, event)

    async def flush(self) -> None:
        """Store the pieces of text that were held back."""
        if self._pending is None:
            return
        event = replace(self._pending, text="".join(self._pieces))
        self._pending, self._pieces, self._size = None, [], 0
        await self.store.append_event(self.session_id, event)
