"""What the routes need of the chat."""

from typing import Any, NoReturn, Protocol

from chatturn.chat.identity import ChatTurnIdentity
from chatturn.chat.request import TurnRequest, TurnView
from chatturn.chat.sink import Sink
from chatturn.errors import ConfigurationError
from chatturn.records import EventRecord

__all__ = ["ChatService", "OpenTurn", "UnconfiguredService"]


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


class UnconfiguredService:
    """The chat service of a deployment that lacks a setting: it says so whatever it is asked."""

    def __init__(self, error: ConfigurationError) -> None:
        self._error = error

    async def open(self, identity: ChatTurnIdentity, request: TurnRequest) -> NoReturn:
        """Refuse."""
        del identity, request
        raise self._error.with_traceback(None)

    async def show(self, identity: ChatTurnIdentity) -> NoReturn:
        """Refuse."""
        del identity
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
