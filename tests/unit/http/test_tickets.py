"""Tickets: what an EventSource shows; good for one stream, for reading, and not for long."""

import asyncio

import jwt
import pytest

from chatturn.errors import ConfigurationError, Forbidden, Unauthenticated
from chatturn.http.auth import BearerAuth, Principal
from chatturn.http.tickets import LIVES_AFTER_END_S, NO_TICKETS, OPEN_WITHIN_S, Tickets, tickets_for
from chatturn.http.token_keys import Secrets
from chatturn.settings import Settings
from chatturn.timestamps import iso_timestamp

SECRET = "a secret that is at least 32 bytes long"
NOW_S = 1_800_000_000
ANN = Principal(tenant_id="acme", user_id="ann", scopes=frozenset({"turns"}), expires_at_s=NOW_S + 600)


def tickets(secret: str = SECRET, *, after_s: float = 0) -> Tickets:
    return Tickets([secret], now=lambda: NOW_S + after_s)


TEXT, OPENS_UNTIL_S, EXPIRES_AT_S = tickets().issue(ANN, "thread-1", 3)


def test_a_ticket_says_who_may_read_what() -> None:
    """Tenant, user and turn are those of the token and the address; the scope is reading, whatever the token's was."""
    ticket = tickets().read(TEXT, "")

    assert ticket.principal == Principal(
        tenant_id="acme", user_id="ann", scopes=frozenset({"turns:read"}), expires_at_s=NOW_S + 600
    )
    assert (ticket.session_id, ticket.turn_index) == ("thread-1", 3)
    assert (OPENS_UNTIL_S, EXPIRES_AT_S) == (NOW_S + OPEN_WITHIN_S, NOW_S + 600)
    ticket.check_turn("thread-1", 3)


@pytest.mark.parametrize(("session_id", "turn_index"), [("thread-1", 4), ("thread-2", 3)])
def test_a_ticket_for_another_turn_is_refused(session_id: str, turn_index: int) -> None:
    """One ticket opens one stream."""
    with pytest.raises(Forbidden):
        tickets().read(TEXT, "").check_turn(session_id, turn_index)


def test_a_ticket_must_be_opened_soon() -> None:
    """Whoever finds the URL in a log a minute later opens nothing, whatever event he claims to have seen."""
    tickets(after_s=OPEN_WITHIN_S - 1).read(TEXT, "")
    for claim in ("", "12", "12~", "12~AAAAAAAAAAAAAAAA"):
        with pytest.raises(Unauthenticated, match="within 60 s"):
            tickets(after_s=OPEN_WITHIN_S).read(TEXT, claim)


def test_a_stream_that_was_opened_may_be_opened_again() -> None:
    """By the id of an event, which ends with what only the stream said."""
    suffix = tickets().read(TEXT, "").id_suffix

    assert tickets(after_s=599).read(TEXT, f"12{suffix}").id_suffix == suffix
    other, *_ = tickets().issue(ANN, "thread-1", 4)
    with pytest.raises(Unauthenticated):
        tickets(after_s=599).read(other, f"12{suffix}")


def test_a_ticket_ends_with_the_token_that_it_was_made_with() -> None:
    """To the second."""
    suffix = tickets().read(TEXT, "").id_suffix

    with pytest.raises(Unauthenticated, match="expired"):
        tickets(after_s=600).read(TEXT, f"12{suffix}")


def test_a_ticket_ends_an_hour_after_its_turn() -> None:
    """Counted from when the latest attempt ended."""
    ended_at = iso_timestamp(NOW_S * 1000)

    tickets(after_s=LIVES_AFTER_END_S - 1).check_end(ended_at)
    with pytest.raises(Unauthenticated, match="ended long ago"):
        tickets(after_s=LIVES_AFTER_END_S).check_end(ended_at)


@pytest.mark.parametrize(
    "text", ["", "x", "a.b.c", "é.é.é", "\ud800", TEXT[:-1], TEXT + "A", TEXT + ".x", "a." * 5_000, TEXT.upper()]
)
def test_what_this_service_did_not_sign_is_refused(text: str) -> None:
    """And never crashes."""
    with pytest.raises(Unauthenticated):
        tickets().read(text, "")
    with pytest.raises(Unauthenticated):
        tickets("another secret that has 32 bytes").read(TEXT, "")


def test_tickets_and_tokens_are_not_each_other() -> None:
    """Even where one secret signs both: the keys differ."""
    auth = BearerAuth([Secrets({"AUTH_JWT_SECRET": SECRET})], now=lambda: NOW_S)
    claims = {"tenant": "acme", "sub": "ann", "session": "thread-1", "turn": 3, "iat": NOW_S, "exp": NOW_S + 600}

    with pytest.raises(Unauthenticated):
        asyncio.run(auth.authenticate({"authorization": f"Bearer {TEXT}"}))
    with pytest.raises(Unauthenticated):
        tickets().read(jwt.encode(claims, SECRET), "")


def made(**env: str) -> Tickets:
    return tickets_for(Settings.from_env(env), now=lambda: NOW_S)


def test_the_secret_of_tokens_serves_where_there_is_no_other() -> None:
    """A `TICKET_SECRET` of its own takes its place; without either the operator is told, and locally none is needed."""
    own = "a ticket secret with 32 bytes or more"

    made(AUTH_JWT_SECRET=SECRET).read(TEXT, "")
    with pytest.raises(Unauthenticated):
        made(AUTH_JWT_SECRET=SECRET, TICKET_SECRET=own).read(TEXT, "")
    made(TICKET_SECRET=own).read(tickets(own).issue(ANN, "s", 0)[0], "")
    made(AUTH="off").read(made(AUTH="off").issue(ANN, "s", 0)[0], "")
    for none in (made(), NO_TICKETS):
        with pytest.raises(ConfigurationError, match="TICKET_SECRET"):
            none.issue(ANN, "s", 0)
        with pytest.raises(ConfigurationError, match="TICKET_SECRET"):
            none.read(TEXT, "")
    with pytest.raises(ConfigurationError, match="at least 32"):
        made(TICKET_SECRET="short")


def test_who_has_no_token_gets_a_ticket_for_a_day() -> None:
    """`AUTH=off`: nothing else would end it."""
    local = Principal(tenant_id="local", user_id="dev", scopes=frozenset({"turns"}))

    assert tickets().issue(local, "s", 0)[2] == NOW_S + 86_400
