"""What the routes need of the chat."""

from typing import Any, NoReturn, Protocol

from chatturn.chat.identity import ChatTurnIdentity
from chatturn.chat.lists.lists import MessagePage, MessageQuery, TurnPage, TurnQuery
from chatturn.chat.log.pages import LogPage
from chatturn.chat.requests import Cancellation, TurnRequest, TurnView
from chatturn.chat.turn.sinks import Sink
from chatturn.chat.usage.totals import UsagePage, UsageQuery
from chatturn.durable.records import EventRecord
from chatturn.errors import ConfigurationError
from chatturn.http.messages import HttpResponse

__all__ = ["ChatService", "OpenLog", "OpenTurn", "SessionOwner", "UnconfiguredService"]


class OpenTurn(Protocol):
    """A turn that was claimed, or had finished before: what is left is to stream it."""

    @property
    def run_id(self) -> str:
        """Its run."""

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""

    @property
    def replayed(self) -> bool:
        """Whether the answer comes from the store."""

    async def run(self, sink: Sink) -> None:
        """
        Write the turn's lines to *sink* and close it.

        Never raises: by now the status is sent, and what goes wrong is said in a line.
        """


class OpenLog(Protocol):
    """A turn's log, found: what is left is to stream it from a cursor on."""

    @property
    def run_id(self) -> str:
        """Its run."""

    @property
    def page(self) -> LogPage:
        """Where the turn stands, and the first lines."""

    @property
    def finished(self) -> bool:
        """Whether the log is complete."""

    @property
    def nothing_left(self) -> bool:
        """Whether the reader has seen all of it."""

    async def run(self, sink: Sink) -> None:
        """Write the log's lines to *sink*, to its end, and close it.  Never raises."""


class ChatService(Protocol):
    """Durable chat turns, of any tenant."""

    async def open(self, identity: ChatTurnIdentity, request: TurnRequest) -> OpenTurn:
        """
        Claim the turn.

        Raises:
            DurableRunLeaseHeldError: Somebody is answering it right now.
            DurableRunInputMismatchError: It was started with another message or model.
            StoreError: The database; nothing runs.
            ConfigurationError: A setting is missing.
        """

    async def show(self, identity: ChatTurnIdentity) -> TurnView | None:
        """Return the turn's run, or None if this tenant has none there."""

    async def follow(self, identity: ChatTurnIdentity, after: int | None, *, may_take_over: bool) -> OpenLog | None:
        """
        Find a turn's log, to be streamed from behind a seq; None if this tenant has no such turn.

        Raises:
            InvalidField: The cursor is beyond the log's end.
        """

    async def cancel(self, identity: ChatTurnIdentity) -> Cancellation | None:
        """Ask for a turn to be stopped for good; None if this tenant has no such turn."""

    async def messages(self, tenant_id: str, session_id: str, query: MessageQuery) -> MessagePage:
        """Return a stretch of a session's messages."""

    async def turns(self, query: TurnQuery) -> TurnPage:
        """
        Return one page of a list of turns.

        Raises:
            InvalidField: The cursor is not one of this list's.
        """

    async def usage(self, query: UsageQuery) -> UsagePage:
        """
        Add up what was consumed.

        Raises:
            InvalidField: The cursor is not one of this list's.
        """

    async def emit(self, tenant_id: str, run_id: str, key: str, payload: Any) -> tuple[bool, EventRecord]:
        """
        Record an event of a run of this tenant's; return whether it was the first under its key, and the first.

        Raises:
            RunNotFound: This tenant has no such run; nothing was stored.
        """

    async def resume(self, run_id: str) -> bool:
        """Go on with a turn that waits, unless it is running; return whether it ran.  Never raises."""

    async def check(self) -> None:
        """
        Look whether a turn could run.

        Raises:
            ConfigurationError: A setting or a binding is missing.
            StoreUnavailable: The database does not answer.
            SchemaOutdated: Its tables are missing or old.
        """


class SessionOwner(Protocol):
    """Runs the turns of each session in one place, which outlives requests."""

    async def forward(self, tenant_id: str, session_id: str) -> HttpResponse:
        """
        Let the session's owner answer this request, which is known to be allowed.

        Raises:
            OwnerUnavailable: It does not answer.
        """


class UnconfiguredService:
    """The chat service of a deployment that lacks a setting: it says so whatever it is asked."""

    def __init__(self, error: ConfigurationError) -> None:
        self._error = error

    async def open(self, identity: ChatTurnIdentity, request: TurnRequest) -> NoReturn:
        """Refuse."""
        del identity, request
        raise self._error.with_traceback(None)

    async def follow(self, identity: ChatTurnIdentity, after: int | None, *, may_take_over: bool) -> NoReturn:
        """Refuse."""
        del identity, after, may_take_over
        raise self._error.with_traceback(None)

    async def cancel(self, identity: ChatTurnIdentity) -> NoReturn:
        """Refuse."""
        del identity
        raise self._error.with_traceback(None)

    async def show(self, identity: ChatTurnIdentity) -> NoReturn:
        """Refuse."""
        del identity
        raise self._error.with_traceback(None)

    async def messages(self, tenant_id: str, session_id: str, query: MessageQuery) -> NoReturn:
        """Refuse."""
        del tenant_id, session_id, query
        raise self._error.with_traceback(None)

    async def turns(self, query: TurnQuery) -> NoReturn:
        """Refuse."""
        del query
        raise self._error.with_traceback(None)

    async def usage(self, query: UsageQuery) -> NoReturn:
        """Refuse."""
        del query
        raise self._error.with_traceback(None)

    async def emit(self, tenant_id: str, run_id: str, key: str, payload: Any) -> NoReturn:
        """Refuse."""
        del tenant_id, run_id, key, payload
        raise self._error.with_traceback(None)

    async def resume(self, run_id: str) -> bool:
        """Do nothing."""
        del run_id
        return False

    async def check(self) -> NoReturn:
        """Refuse."""
        raise self._error.with_traceback(None)
