"""A turn's stream as an EventSource reads it: by a ticket, and back by the last event's id; in virtual time."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest

from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import text_delta
from tests.support.isolates import TURN, Isolate, Reply
from tests.support.turns import Product, Step, open_sqlite

WORDS: list[Step] = [step for n in range(200) for step in (text_delta(f"w{n} "), 1.0)]
"""A model that says 200 words in 200 s."""

EVENTS = "text/event-stream"


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


async def ticket(isolate: Isolate) -> str:
    """Return the address that an EventSource is given."""
    reply = await isolate.ask("POST", f"{TURN}/ticket", x_scopes="turns:read")
    assert reply.status == 200
    address: str = reply.body["stream"]
    return address


def seen(reply: Reply) -> list[str]:
    """Return the ids of the events that have arrived."""
    return re.findall(r"^id: (\S+)$", reply.reader.text, re.MULTILINE)


async def open_(isolate: Isolate, address: str, **headers: Any) -> Reply:
    return await isolate.ask("GET", address, accept=EVENTS, x_scopes="none", **headers)


async def test_an_event_source_follows_a_turn_over_reconnects(database: SqliteDatabase) -> None:
    """It comes back long after the minute, and gets exactly what is missing; a stranger with its URL gets nothing."""
    isolate = Isolate(database, Product(*WORDS))
    await isolate.post()
    address = await ticket(isolate)
    first = await open_(isolate, address)
    await asyncio.sleep(100)
    first.reader.leave()
    stranger = await open_(isolate, address)
    guessing = await open_(isolate, address, last_event_id="5")
    second = await open_(isolate, address, last_event_id=seen(first)[-1])
    assert second.task is not None
    await second.task
    seqs = [int(each.split("~")[0]) for each in (*seen(first), *seen(second))]

    assert [first.status, second.status, stranger.status, guessing.status] == [200, 200, 401, 401]
    assert len(seen(first)) > 50
    assert seqs == list(range(seqs[-1] + 1))
    assert "session.run.completed" in second.reader.text


async def test_a_ticket_ends_an_hour_after_the_turn(database: SqliteDatabase) -> None:
    """And a finished stream is one that an EventSource does not come back to: 204."""
    isolate = Isolate(database, Product(text_delta("a")))
    await isolate.post()
    address = await ticket(isolate)
    reply = await open_(isolate, address)
    assert reply.task is not None
    await reply.task
    last = seen(reply)[-1]
    again = await open_(isolate, address, last_event_id=last)
    await asyncio.sleep(3_600)
    late = await open_(isolate, address, last_event_id=last)

    assert [again.status, late.status] == [204, 401]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/sessions/thread-1/turns/1/stream", 403),
        ("GET", "/v1/sessions/thread-2/turns/0/stream", 403),
        ("GET", TURN, 403),
        ("POST", TURN, 403),
        ("POST", f"{TURN}/cancel", 403),
        ("POST", f"{TURN}/ticket", 403),
        ("GET", "/v1/sessions/thread-1/messages", 403),
    ],
)
async def test_a_ticket_opens_nothing_else(database: SqliteDatabase, method: str, path: str, status: int) -> None:
    """No other turn, and no other route: there it counts for nothing (the asker has no scope of his own)."""
    isolate = Isolate(database, Product(text_delta("a")))
    await isolate.post()
    query = (await ticket(isolate)).partition("?")[2]
    reply = await isolate.ask(method, f"{path}?{query}", {"message": "hi"}, x_scopes="none")

    assert reply.status == status


async def test_another_tenant_has_no_use_for_a_ticket_of_its_own(database: SqliteDatabase) -> None:
    """A ticket is bound to the tenant of the token that it was made with."""
    isolate = Isolate(database, Product(text_delta("a")))
    await isolate.post()
    reply = await isolate.ask("POST", f"{TURN}/ticket", x_tenant="rival")
    other = await open_(isolate, reply.body["stream"])

    assert (reply.status, other.status) == (200, 404)
