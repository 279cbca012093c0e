"""The values that operations work with, and the kinds of routes."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeAlias

from chatturn.chat.service import DurableChatService
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.errors import ChatTurnError, ConfigurationError
from chatturn.http.auth import Authenticator, Principal, UnconfiguredAuth
from chatturn.http.bodies import Bodies
from chatturn.http.cors import Cors, origins_in
from chatturn.http.messages import HttpRequest, HttpResponse
from chatturn.http.problems import problem
from chatturn.http.rates import Rates
from chatturn.http.tickets import NO_TICKETS, Ticket, Tickets

__all__ = ["Application", "Call", "Parameters", "PublicRoute", "Route", "SessionOwner"]

Parameters: TypeAlias = Mapping[str, str]
"""The variable segments of a path, still percent-encoded, by their names in the template."""


class SessionOwner(Protocol):
    """Runs all turns of a session in one place, which outlives requests."""

    async def forward(self, tenant_id: str, session_id: str, body: bytes | None = None) -> HttpResponse:
        """
        Let the session's owner answer this request, whose sender is known to be allowed to make it.

        Args:
            tenant_id: The session's tenant.
            session_id: The session.
            body: The request's body, if it was read.

        Raises:
            OwnerUnavailable: The owner does not answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """
    The values that all routes share.

    Attributes:
        authenticator: Finds out who sent a request; kept between requests, because it remembers tokens.
        service: The chat, or the error because of which there is none.
        log: Takes a sentence and an exception, for the operator.  Never raises.
        tickets: Issues and checks what an EventSource shows in place of a token.
        cors: Which pages of other origins may read the responses.
        rates: How often one user and one tenant may send requests; None for no limit.
        bodies: The bodies that are read in this isolate.
        owner: Runs the turns of a session; None if the invocation that gets a request runs its turn.
    """

    authenticator: Authenticator
    service: DurableChatService | ConfigurationError
    log: Callable[[str, BaseException], None]
    tickets: Tickets = NO_TICKETS
    cors: Cors = field(default_factory=Cors)
    rates: Rates | None = None
    bodies: Bodies = field(default_factory=Bodies)
    owner: SessionOwner | None = None

    @classmethod
    def unconfigured(
        cls, error: ConfigurationError, *, log: Callable[[str, BaseException], None], origins: str = ""
    ) -> Self:
        """
        Make the application for settings that cannot be read: it is alive, not ready, and says why.

        Args:
            error: Why the settings cannot be read.
            log: Takes a sentence and an exception, for the operator.
            origins: The setting ``CORS_ORIGINS``, unchecked: pages of these origins may read the reason, too.
        """
        return cls(authenticator=UnconfiguredAuth(error), service=error, log=log, cors=Cors(origins_in(origins)))

    def chat(self) -> DurableChatService:
        """
        Return the chat.

        Raises:
            ConfigurationError: There is none, for lack of a setting or a binding.
        """
        if isinstance(self.service, ConfigurationError):
            raise self.service.with_traceback(None)
        return self.service


@dataclass(frozen=True, slots=True)
class Call:
    """
    A request as its operation gets it: routed, authenticated and counted.

    Attributes:
        service: The chat.
        request: The request, its body unread.
        principal: Who is asking.
        parameters: The variable segments of its path.
        tickets: Issues tickets for streams.
        ticket: The ticket that the request showed in place of a token; None for a token.
    """

    service: DurableChatService
    request: HttpRequest
    principal: Principal
    parameters: Parameters
    tickets: Tickets
    ticket: Ticket | None = None

    def turn(self, session_id: str, turn_index: int) -> ChatTurnIdentity:
        """Return a turn of a session, with the tenant and the user of the request."""
        return ChatTurnIdentity(
            tenant_id=self.principal.tenant_id,
            session_id=session_id,
            user_id=self.principal.user_id,
            turn_index=turn_index,
        )


@dataclass(frozen=True, slots=True)
class Route:
    """
    An operation for authenticated requests whose token has one of *scopes*.

    Attributes:
        session: Finds the session in the path's parameters, for an operation that may run a turn.  The session's owner
            answers the request, if there is one.
        session_in_body: Finds the session in the request and its body, if the path does not name it; returns None for a
            turn that no other request can name.
        replays: For an operation that may repeat a stored answer, which the rates never refuse: names the turn that the
            request is about; None if only its body says so.
        streams: For an operation that shows a turn's stream, which the rates never refuse: says whether there is such a
            turn.
        takes_tickets: Whether ``?ticket=`` may stand for a token.
        problem: Makes the response for an error, in the form that the route's clients know.
    """

    method: str
    template: str
    scopes: tuple[str, ...]
    operation: Callable[[Call], Awaitable[HttpResponse]]
    session: Callable[[Parameters], str | None] | None = None
    session_in_body: Callable[[HttpRequest, Principal, bytes], str | None] | None = None
    replays: Callable[[Call], ChatTurnIdentity | None] | None = None
    streams: Callable[[Call], Awaitable[bool]] | None = None
    takes_tickets: bool = False
    problem: Callable[[ChatTurnError], HttpResponse] = problem


@dataclass(frozen=True, slots=True)
class PublicRoute:
    """An operation that needs no token, and sees nothing of the request."""

    method: str
    template: str
    operation: Callable[[Application], Awaitable[HttpResponse]]
