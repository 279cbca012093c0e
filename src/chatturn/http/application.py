"""The values that operations work with, and the kinds of routes."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeAlias

from chatturn.chat.service import DurableChatService
from chatturn.errors import ChatTurnError, ConfigurationError
from chatturn.http.auth import Authenticator, Principal, UnconfiguredAuth
from chatturn.http.cors import Cors, origins_in
from chatturn.http.messages import HttpRequest, HttpResponse
from chatturn.http.problems import problem
from chatturn.http.rates import Rates
from chatturn.http.tickets import NO_TICKETS, Ticket, Tickets

__all__ = ["Application", "Call", "Parameters", "PublicRoute", "Route", "SessionOwner"]

Parameters: TypeAlias = Mapping[str, str]
"""The variable segments of a path, still percent-encoded, by their names in the template."""


class SessionOwner(Protocol):
    """Runs the turns of each session in one place, which outlives requests."""

    async def forward(self, tenant_id: str, session_id: str, body: bytes | None = None) -> HttpResponse:
        """
        Let the session's owner answer this request, which is known to be allowed.

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
        authenticator: Who is asking; kept between requests, it remembers tokens.
        service: The chat, or why there is none.
        log: Takes a sentence and what was raised, for the operator.  Never raises.
        tickets: Issues and checks what an EventSource shows in place of a token.
        cors: Which pages of other origins may read the responses.
        rates: How often one user and one tenant may ask; None for any number.
        body_within_s: How long a request's body may take to arrive; None for ever.
        owner: Runs turns in place of this request; None where it runs them itself.
    """

    authenticator: Authenticator
    service: DurableChatService | ConfigurationError
    log: Callable[[str, BaseException], None]
    tickets: Tickets = NO_TICKETS
    cors: Cors = field(default_factory=Cors)
    rates: Rates | None = None
    body_within_s: float | None = None
    owner: SessionOwner | None = None

    @classmethod
    def unconfigured(
        cls, error: ConfigurationError, *, log: Callable[[str, BaseException], None], origins: str = ""
    ) -> Self:
        """
        Make what is left when the settings cannot be read: alive, not ready, and saying why.

        Args:
            error: Why.
            log: Takes failures that no client is told.
            origins: The setting ``CORS_ORIGINS`` as it stands: pages of these may read why, too.
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
    A request that has come as far as its operation.

    Attributes:
        service: The chat.
        request: The request, its body unread.
        principal: Who is asking.
        parameters: The variable segments of its path.
        tickets: Issues tickets for streams.
        ticket: What the request showed in place of a token, if it did.
    """

    service: DurableChatService
    request: HttpRequest
    principal: Principal
    parameters: Parameters
    tickets: Tickets
    ticket: Ticket | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """
    An operation that needs to know who is asking, and that the token's scope contains one of *scopes*.

    Attributes:
        session: Finds the session in the path's parameters, where the operation may run a turn: then it is for the
            session's owner, if there is one.
        session_in_body: Finds it in the request and its body, where the path does not name it; None where the turn is
            one that nobody else can ask for.
        replays: Says whether the answer is stored and is to be repeated, which is never refused for being asked often.
        takes_tickets: Whether ``?ticket=`` may say who is asking.
        problem: Tells its clients about an error, in their form.
    """

    method: str
    template: str
    scopes: tuple[str, ...]
    operation: Callable[[Call], Awaitable[HttpResponse]]
    session: Callable[[Parameters], str | None] | None = None
    session_in_body: Callable[[HttpRequest, Principal, bytes], str | None] | None = None
    replays: Callable[[Call], Awaitable[bool]] | None = None
    takes_tickets: bool = False
    problem: Callable[[ChatTurnError], HttpResponse] = problem


@dataclass(frozen=True, slots=True)
class PublicRoute:
    """An operation that anybody may ask for, and that is told nothing about the request."""

    method: str
    template: str
    operation: Callable[[Application], Awaitable[HttpResponse]]
