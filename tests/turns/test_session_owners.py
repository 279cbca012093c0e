"""Whose a session is: `SESSION_OWNER=subject` makes a user's sessions unknown to the tenant's others."""

import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest

from chatturn.chat.thread.identity import session_run_ids
from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import text_delta
from chatturn.http.ai_sdk import AI_SDK_CHAT
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.isolates import TURN, Isolate
from tests.support.turns import IDENTITY, Desk, Product, open_sqlite

BOUNDARY = {"SESSION_OWNER": "subject"}
NEXT = "/v1/sessions/thread-1/turns/1"
HI = {"message": "hi"}
CHAT = {"role": "user", "parts": [{"type": "text", "text": "hi"}]}


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


async def rows(database: SqliteDatabase, sql: str) -> list[tuple[Any, ...]]:
    """Read rows as tuples."""
    return await Desk(database).rows(sql)


async def everything(database: SqliteDatabase) -> list[list[tuple[Any, ...]]]:
    """Read all that a request could have written."""
    tables = ("durable_runs", "durable_steps", "durable_events", "chat_turns", "chat_messages", "chat_sessions")
    return [await rows(database, f"SELECT * FROM {table}") for table in tables]  # noqa: S608


async def asked(isolate: Isolate, path: str = TURN, *, x_user: str = "ann") -> list[dict[str, Any]]:
    """Post a turn and read it to its end."""
    reply = await isolate.ask("POST", path, HI, x_user=x_user)
    assert 200 == reply.status, reply.body
    return await reply.lines()


async def test_whose_it_is_is_recorded_with_the_first_turn(database: SqliteDatabase) -> None:
    """Whatever the setting: so it can be made a boundary later."""
    isolate = Isolate(database, Product())
    await asked(isolate)
    await asked(isolate, NEXT, x_user="bob")

    assert [("acme", "thread-1", "ann", 4)] == await rows(
        database, "SELECT tenant_id, session_id, owner_id, revision FROM chat_sessions"
    )
    assert 200 == (await isolate.ask("GET", TURN, x_user="bob")).status


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", TURN, HI),
        ("POST", TURN, {**HI, "on_mismatch": "supersede"}),
        ("POST", NEXT, HI),
        ("GET", TURN, None),
        ("GET", f"{TURN}/stream", None),
        ("POST", f"{TURN}/ticket", None),
        ("POST", f"{TURN}/cancel", None),
        ("GET", "/v1/sessions/thread-1/messages", None),
        ("POST", "/v1/runs/chat:acme:thread-1:0/events/key", {"payload": 1}),
        ("POST", AI_SDK_CHAT, {"id": "thread-1", "messages": [CHAT]}),
    ],
)  # fmt: skip
async def test_a_session_is_unknown_to_others(
    database: SqliteDatabase, method: str, path: str, body: dict[str, Any] | None
) -> None:
    """404 on every route, and nothing is written; its owner goes on as if nobody had asked."""
    isolate = Isolate(database, Product(), settings=BOUNDARY)
    await asked(isolate)
    before = await everything(database)

    assert 404 == (await isolate.ask(method, path, body, x_user="bob")).status
    assert before == await everything(database)
    assert [] == [event for event in isolate.logged if "crashed" in str(event)]
    assert "session.run.completed" == (await asked(isolate, NEXT))[-1]["type"]


async def test_lists_have_only_ones_own(database: SqliteDatabase) -> None:
    """An operator's have all."""
    isolate = Isolate(database, Product(), settings=BOUNDARY)
    await asked(isolate)
    await asked(isolate, "/v1/sessions/other/turns/0", x_user="bob")

    def sessions(reply: Any) -> list[str]:
        return sorted(run["sessionId"] for run in reply.body["runs"])

    assert ["thread-1"] == sessions(await isolate.ask("GET", "/v1/runs"))
    assert ["other"] == sessions(await isolate.ask("GET", "/v1/runs", x_user="bob"))
    assert ["other", "thread-1"] == sessions(await isolate.ask("GET", "/v1/runs", x_scopes="operate"))


async def test_an_older_session_belongs_to_whoever_began_it(database: SqliteDatabase) -> None:
    """It has no row: who claimed its lowest index is its owner, and the next claim says so for good."""
    before = Isolate(database, Product())
    await asked(before, "/v1/sessions/thread-1/turns/2", x_user="bob")
    await asked(before, "/v1/sessions/thread-1/turns/10")
    await database.batch([Statement("DELETE FROM chat_sessions")])
    isolate = Isolate(database, Product(), settings=BOUNDARY)

    for refused in (await isolate.ask("POST", NEXT, HI), await isolate.ask("GET", f"{TURN[:-1]}10")):
        assert 404 == refused.status
    assert [] == await rows(database, "SELECT * FROM chat_sessions")
    assert [] == (await isolate.ask("GET", "/v1/runs")).body["runs"]
    assert 2 == len((await isolate.ask("GET", "/v1/runs", x_user="bob")).body["runs"])
    await asked(isolate, "/v1/sessions/thread-1/turns/11", x_user="bob")
    assert [("bob",)] == await rows(database, "SELECT owner_id FROM chat_sessions")


async def test_a_lost_turn_is_taken_over_whoever_asked_it(database: SqliteDatabase) -> None:
    """The cron goes on with a turn from before the boundary, in another's session; nobody could ask for it again."""
    before = Isolate(database, Product(text_delta("a"), 9999.0), lease_ms=1_000)
    await asked(Isolate(database, Product()))
    await before.ask("POST", NEXT, HI, x_user="bob")
    await asyncio.sleep(0.1)
    await before.kill()
    await asyncio.sleep(5)
    isolate = Isolate(database, Product(), settings=BOUNDARY)

    assert await isolate.sweep()
    assert [("completed",)] == await rows(database, "SELECT status FROM durable_runs WHERE run_id LIKE '%:1'")
    assert [("ann",)] == await rows(database, "SELECT owner_id FROM chat_sessions")


async def test_the_boundary_costs_no_round_trip(database: SqliteDatabase) -> None:
    """A fresh turn makes two, a replay one."""
    isolate = Isolate(database, Product(), settings={**BOUNDARY, "LOG_EVERY_MS": "0"})
    await asked(isolate)
    assert 2 == isolate.wire.batches
    await asked(isolate)
    assert 3 == isolate.wire.batches


async def test_a_worker_may_die_around_the_claim(database: SqliteDatabase) -> None:
    """The session has its owner exactly when it has its turn."""
    desk = Desk(database)
    for point in (0, 1):
        with pytest.raises(Crash):
            await Desk(MortalDatabase(database, Fuse(point)), Product()).run()
        first, last = session_run_ids(IDENTITY.tenant_id, IDENTITY.session_id)
        turns = await desk.rows(f"SELECT 1 FROM chat_turns WHERE run_id > '{first}' AND run_id < '{last}'")  # noqa: S608
        assert len(turns) == point == len(await desk.rows("SELECT 1 FROM chat_sessions"))


async def test_a_session_is_forgotten_with_its_last_turn(database: SqliteDatabase) -> None:
    """Then its name is free; not before."""
    isolate = Isolate(database, Product(), settings=BOUNDARY)
    await asked(isolate)
    await asyncio.sleep(100)
    await asked(isolate, NEXT)
    store = isolate.service.deployment.store
    assert 1 == await store.delete_finished_runs(older_than_ms=50_000)
    assert [("ann",)] == await rows(database, "SELECT owner_id FROM chat_sessions")

    await asyncio.sleep(100)
    assert 1 == await store.delete_finished_runs(older_than_ms=50_000)
    assert [] == await rows(database, "SELECT owner_id FROM chat_sessions")
    await asked(isolate, x_user="bob")


async def test_who_looked_before_there_was_a_session_is_no_owner_of_it(database: SqliteDatabase) -> None:
    """In the isolate that let them look, too: before its first turn a session is anybody's, later its owner's only."""
    isolate = Isolate(database, Product(), settings=BOUNDARY)
    messages = "/v1/sessions/thread-1/messages"
    assert 200 == (await isolate.ask("GET", messages, x_user="bob")).status
    await asked(isolate)
    assert 404 == (await isolate.ask("GET", messages, x_user="bob")).status
    assert 200 == (await isolate.ask("GET", messages)).status

    await asyncio.sleep(100)
    assert 1 == await isolate.service.deployment.store.delete_finished_runs(older_than_ms=50_000)
    await asked(isolate, x_user="bob")
    assert 404 == (await isolate.ask("GET", messages)).status


async def test_sessions_have_the_names_that_their_channels_give_them(database: SqliteDatabase) -> None:
    """Whatever can be printed, percent-encoded in addresses; addresses in answers are encoded as well."""
    isolate = Isolate(database, Product(), settings=BOUNDARY)
    for name in ("auth0%7C5f7c", "-1001234:91088", "%2B491701234567", "!room%3Amatrix.org", "a%2Fb%20%F0%9F%98%80"):
        path = f"/v1/sessions/{name}/turns/0"
        await asked(isolate, path)
        turn = (await isolate.ask("GET", path)).body
        assert unquote(name) == turn["sessionId"]
        assert "completed" == (await (await isolate.ask("GET", turn["stream"])).lines())[-1]["type"].rpartition(".")[2]
        assert 404 == (await isolate.ask("GET", turn["stream"], x_user="bob")).status
