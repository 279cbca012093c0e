"""
Tickets: what an EventSource shows in place of a bearer token.

An EventSource cannot send headers, and a token in a URL would stand in the logs of every proxy.  So a page asks for a
ticket, which lets its holder read one turn's stream and nothing else.  It must be used within `OPEN_WITHIN_S`.

After that time it is good for reconnects alone.  The ids of the stream's events end with a proof, which an EventSource
sends back in ``Last-Event-ID`` and which is in no URL.  So an old ticket that somebody finds in a log opens no
stream, and nothing has to be stored.
"""

import base64
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chatturn.errors import ConfigurationError, Forbidden, RequestError, Unauthenticated
from chatturn.http.auth import READ_TURNS, Principal
from chatturn.http.limits import MAX_TICKET_CHARACTERS
from chatturn.http.pyjwt import signed_token, verified_payload
from chatturn.http.strict_json import read_json_object
from chatturn.http.token_keys import MIN_SECRET_BYTES
from chatturn.settings import Settings
from chatturn.timestamps import epoch_ms

__all__ = [
    "LIVES_AFTER_END_S",
    "NO_TICKETS",
    "OPEN_WITHIN_S",
    "Ticket",
    "Tickets",
    "tickets_for",
]

OPEN_WITHIN_S: Final = 60
LIVES_AFTER_END_S: Final = 3_600
"""For how many seconds after its turn's end a stream may be opened again."""

_LONGEST_S: Final = 86_400
"""A ticket's longest life in seconds: one day, even if its user's token lives longer."""

_PURPOSE: Final = b"chatturn: tickets for streams"
_PROOF_BYTES: Final = 12
_PROOF_MARK: Final = "~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """
    A genuine ticket, shown in time.

    Attributes:
        principal: The user that it was issued to, with the scope `READ_TURNS` alone.
        session_id: The session of the turn whose stream it opens.
        turn_index: The index of that turn.
        id_suffix: The proof, with which the ids of the stream's events end.
    """

    principal: Principal
    session_id: str
    turn_index: int
    id_suffix: str

    def check_turn(self, session_id: str, turn_index: int) -> None:
        """
        Refuse the ticket for any turn but its own.

        Raises:
            Forbidden: The ticket is for another turn.
        """
        if (self.session_id, self.turn_index) != (session_id, turn_index):
            raise Forbidden("the ticket is for another turn", field="ticket")


def tickets_for(settings: Settings, *, now: Callable[[], float]) -> "Tickets":
    """
    Return a deployment's tickets, whose keys are derived from `TICKET_SECRET`, or else from `AUTH_JWT_SECRET`.

    Args:
        settings: The deployment's settings.
        now: Seconds since the epoch.

    Raises:
        ConfigurationError: `TICKET_SECRET` is too short.
    """
    if settings.ticket_secret:
        size = len(settings.ticket_secret.encode())
        if size < MIN_SECRET_BYTES:
            raise ConfigurationError("TICKET_SECRET", f"has {size} bytes, but must have at least {MIN_SECRET_BYTES}")
        return Tickets([settings.ticket_secret], now=now)
    if settings.auth == "off":
        return Tickets(["AUTH=off"], now=now)  # With AUTH=off nobody is kept out, so the key need not be secret.
    secrets = (settings.auth_jwt_secret, settings.auth_jwt_secret_previous)
    return Tickets([secret for secret in secrets if secret], now=now)


class Tickets:
    """
    Issues and checks tickets.

    Args:
        secrets: The first is used for new tickets; a ticket of any of them is genuine.  Keys are derived from them, so
            that a ticket is never a valid bearer token, even if both have the same secret.
        now: Seconds since the epoch.
    """

    def __init__(self, secrets: Sequence[str], *, now: Callable[[], float]) -> None:
        self._keys = [hmac.digest(secret.encode(), _PURPOSE, "sha256") for secret in secrets]
        self._now = now

    def issue(self, principal: Principal, session_id: str, turn_index: int) -> tuple[str, float, float]:
        """
        Return a new ticket, the time until which it must be opened, and the time at which it expires, in epoch seconds.

        Raises:
            ConfigurationError: There is no secret to sign it with.
        """
        now = self._now()
        expires_at_s = min(principal.expires_at_s, now + _LONGEST_S)
        claims = {
            "tenant": principal.tenant_id,
            "sub": principal.user_id,
            "session": session_id,
            "turn": turn_index,
            "iat": now,
            "exp": expires_at_s,
        }
        text = signed_token(json.dumps(claims, separators=(",", ":")).encode(), self._checked_keys()[0])
        return text, min(now + OPEN_WITHIN_S, expires_at_s), expires_at_s

    def read(self, text: str, last_event_id: str) -> Ticket:
        """
        Check a ticket, and return it.

        Args:
            text: The ticket, as in the URL.
            last_event_id: The header of an EventSource that reconnects; "" for a first request.

        Raises:
            Unauthenticated: The ticket is not genuine, has expired, or was not opened in time.
            ConfigurationError: There is no secret to check it with.
        """
        claims, key = self._claims(text)
        suffix = _PROOF_MARK + _proof(key, text)
        now = self._now()
        if now >= claims["exp"]:
            raise _refused("the ticket has expired; get a new one")
        if now >= claims["iat"] + OPEN_WITHIN_S and not last_event_id.endswith(suffix):
            raise _refused(f"the ticket was not opened within {OPEN_WITHIN_S} s; get a new one")
        return Ticket(
            principal=Principal(
                tenant_id=claims["tenant"],
                user_id=claims["sub"],
                scopes=frozenset({READ_TURNS}),
                expires_at_s=claims["exp"],
            ),
            session_id=claims["session"],
            turn_index=claims["turn"],
            id_suffix=suffix,
        )

    def check_end(self, ended_at: str) -> None:
        """
        Refuse tickets for a turn that ended, at the timestamp *ended_at*, more than `LIVES_AFTER_END_S` ago.

        Raises:
            Unauthenticated: The turn ended so long ago.
        """
        ended_at_ms = epoch_ms(ended_at)
        if ended_at_ms is not None and self._now() >= ended_at_ms / 1000 + LIVES_AFTER_END_S:
            raise _refused("the turn ended long ago, and the ticket with it; get a new one")

    def _claims(self, text: str) -> tuple[dict[str, Any], bytes]:
        if len(text) <= MAX_TICKET_CHARACTERS and text.isascii():
            for key in self._checked_keys():
                payload = verified_payload(text, key)
                if payload is not None:
                    return _object(payload), key
        raise _refused("the ticket is none of this service's; get a new one")

    def _checked_keys(self) -> list[bytes]:
        if not self._keys:
            raise ConfigurationError("TICKET_SECRET", "is not set, and there is no AUTH_JWT_SECRET to take its place")
        return self._keys


NO_TICKETS: Final = Tickets((), now=lambda: 0.0)
"""The tickets of a deployment without a secret: issuing and reading raise `ConfigurationError`."""


def _proof(key: bytes, text: str) -> str:
    digest = hmac.digest(key, b"opened " + text.encode(), "sha256")
    return base64.urlsafe_b64encode(digest[:_PROOF_BYTES]).decode()


def _object(payload: bytes) -> dict[str, Any]:
    try:
        return read_json_object(payload)
    except RequestError as exc:
        raise _refused("the ticket holds no JSON object") from exc


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(why, field="ticket")
