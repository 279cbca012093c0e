"""What one user and one tenant may have at once and on a day; a replay is never refused and writes nothing."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import text_delta
from chatturn.http.application import Application
from chatturn.http.messages import HttpRequest
from chatturn.http.rates import IsolateRate, Rates
from chatturn.http.routes import handle
from tests.support.isolates import Isolate, Reply, Scopes
from tests.support.turns import Product, open_sqlite
from tests.support.whole_turns import WORDS, wrap
from tests.turns.test_parts import KeptFiles

SLOW = (text_delta("a"), 5.0, text_delta("b"))


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    with open_sqlite() as database:
        yield database


def isolate(database: SqliteDatabase, *script: Any, **settings: int) -> Isolate:
    return Isolate(database, Product(*script), settings={name: str(value) for name, value in settings.items()})


async def post(alone: Isolate, session: str, *, user: str = "ann", tenant: str = "acme", **members: Any) -> Reply:
    path = f"/v1/sessions/{session}/turns/0"
    return await alone.ask("POST", path, {"message": "hi", **members}, x_user=user, x_tenant=tenant)


def said(reply: Reply) -> tuple[int, str, str]:
    """Return the status, the code, and when to ask again."""
    return reply.status, reply.body["code"], reply.response.headers["Retry-After"]


async def everything(database: SqliteDatabase) -> list[Any]:
    """Return all rows."""
    tables = ("durable_runs", "durable_steps", "durable_events", "chat_turns", "chat_sessions", "chat_allowances")
    found = await database.batch([Statement(f"SELECT * FROM {table}") for table in tables])  # noqa: S608 - ours
    return [list(map(dict, each.rows)) for each in found]


@pytest.mark.parametrize(
    ("setting", "others"),
    [("RUNNING_TURNS_SUBJECT", [("bob", "acme", 200), ("ann", "other", 200)]),
     ("RUNNING_TURNS_TENANT", [("bob", "acme", 429), ("ann", "other", 200)])],
)  # fmt: skip
async def test_so_many_turns_run_at_once_and_no_more(
    database: SqliteDatabase, setting: str, others: list[tuple[str, str, int]]
) -> None:
    """The next one is told when to ask again, and is let in when one has ended; whoever runs goes on."""
    alone = isolate(database, *SLOW, **{setting: 2})
    running = [await post(alone, session) for session in "ab"]
    await asyncio.sleep(1)
    before = await everything(database)
    refused = await post(alone, "c")
    after = await everything(database)
    again = await post(alone, "a")
    statuses = [(await post(alone, "d", user=user, tenant=tenant)).status for user, tenant, _ in others]
    for reply in running:
        await reply.lines()

    assert (429, "limit_reached", "5") == said(refused)
    assert before == after
    assert (409, "turn_in_flight") == said(again)[:2]
    assert [status for *_, status in others] == statuses
    assert 200 == (await post(alone, "c")).status


async def test_a_turn_whose_worker_died_does_not_count(database: SqliteDatabase) -> None:
    """Its lease has lapsed: it may be taken over, and holds nobody up."""
    await post(isolate(database, text_delta("a"), 10_000.0), "a")
    await asyncio.sleep(1)
    await database.batch([Statement("UPDATE durable_runs SET lease_expires_at = '2000-01-01T00:00:00.000Z'")])
    alone = isolate(database, *WORDS, RUNNING_TURNS_SUBJECT=1)

    assert 200 == (await post(alone, "b")).status


@pytest.mark.parametrize("setting", ["TURNS_SUBJECT_PER_DAY", "TURNS_TENANT_PER_DAY"])
async def test_so_many_turns_are_begun_on_a_day_and_no_more(database: SqliteDatabase, setting: str) -> None:
    """A replay, and a turn that is tried again, are none of them."""
    alone = isolate(database, *WORDS, **{setting: 2})
    for session in "ab":
        await (await post(alone, session)).lines()
    before = await everything(database)
    refused = await post(alone, "c")
    replayed = await (await post(alone, "a")).lines()
    unchanged = before == await everything(database)
    await asyncio.sleep(int(said(refused)[2]))

    assert (429, "limit_reached") == said(refused)[:2]
    assert 0 < int(said(refused)[2]) <= 86_401
    assert "session.run.completed" == replayed[-1]["type"]
    assert unchanged
    assert 200 == (await post(alone, "c")).status


async def test_a_turn_that_failed_is_tried_again_on_the_last_of_the_day(database: SqliteDatabase) -> None:
    """It was begun already."""
    alone = isolate(database, RuntimeError("x"), TURNS_SUBJECT_PER_DAY=1)
    await (await post(alone, "a")).lines()
    alone.hooks = Product(*WORDS)

    assert "session.run.completed" == (await (await post(alone, "a")).lines())[-1]["type"]
    assert 429 == (await post(alone, "b")).status


@pytest.mark.parametrize("setting", ["BYTES_SUBJECT_PER_DAY", "BYTES_TENANT_PER_DAY"])
async def test_so_much_is_stored_on_a_day_and_no_more(database: SqliteDatabase, setting: str) -> None:
    """What was asked, and a long log."""
    asked = isolate(database, *WORDS, **{setting: 1_000})
    await (await post(asked, "a", message="x" * 1_000)).lines()
    refused = await post(asked, "b")
    replayed = await post(asked, "a", message="x" * 1_000)
    answered = isolate(database, [text_delta("y" * 900)] * 40, **{setting: 30_000})
    await (await post(answered, "c", tenant="other")).lines()
    long = await post(answered, "d", tenant="other")

    assert (429, "limit_reached") == said(refused)[:2]
    assert 200 == replayed.status
    assert (429, "limit_reached") == said(long)[:2]


@pytest.mark.parametrize("again", [{"parameters": {"stop": ["s" * 150] * 6}}, {"metadata": {"m": "s" * 900}}])
async def test_all_that_is_asked_counts_as_stored(database: SqliteDatabase, again: dict[str, Any]) -> None:
    """Whichever member it is in."""
    alone = isolate(database, *WORDS, BYTES_SUBJECT_PER_DAY=900)
    await (await post(alone, "a", **again)).lines()

    assert (429, "limit_reached") == said(await post(alone, "b"))[:2]


async def test_a_conversation_that_a_request_brings_counts_as_stored(database: SqliteDatabase) -> None:
    """It is stored with the turn: a short question may bring a megabyte."""
    alone = isolate(database, *WORDS, BYTES_SUBJECT_PER_DAY=2_000)
    thread = [{"role": role, "content": "x" * 990} for role in ("user", "assistant")]
    body = {"model": "any", "stream": True, "messages": [*thread, {"role": "user", "content": "hi"}]}
    asked = await alone.ask("POST", "/v1/chat/completions", body)
    assert asked.task is not None
    await asked.task

    assert (429, "limit_reached") == said(await post(alone, "b"))[:2]


async def test_limits_cost_no_further_round_trip(database: SqliteDatabase) -> None:
    """They are looked at and counted with the claim, and with the finish."""
    alone = isolate(database, text_delta("hi"))
    wrapped = wrap(alone)
    await (await post(alone, "a")).lines()
    fresh = wrapped.batches
    await (await post(alone, "a")).lines()

    assert (2, 1) == (fresh, wrapped.batches - fresh)


async def emit(alone: Isolate, key: str, payload: Any = 1, run: str = "chat:acme:a:0") -> Reply:
    return await alone.ask("POST", f"/v1/runs/{run}/events/{key}", {"payload": payload})


async def test_a_run_takes_so_many_events_and_no_more(database: SqliteDatabase) -> None:
    """Those that it has are answered as before."""
    alone = isolate(database, *SLOW, RUN_EVENTS=2)
    await post(alone, "a")
    await asyncio.sleep(1)
    replies = [await emit(alone, key) for key in ("a", "b", "c", "a")]

    assert [200, 200, 429, 200] == [reply.status for reply in replies]
    assert (429, "limit_reached", "60") == said(replies[2])
    assert [True, True, False] == [replies[at].body["accepted"] for at in (0, 1, 3)]


async def test_a_run_that_has_ended_takes_no_further_event(database: SqliteDatabase) -> None:
    """One on record is answered as before, an approval is void, and nothing is stored for any other."""
    alone = isolate(database, *SLOW)
    posted = await post(alone, "a")
    await asyncio.sleep(1)
    first = await emit(alone, "known", {"n": 1})
    await posted.lines()
    before = await everything(database)
    known, other = await emit(alone, "known", {"n": 2}), await emit(alone, "other")

    assert (200, True) == (first.status, first.body["accepted"])
    assert (200, False, {"n": 1}) == (known.status, known.body["accepted"], known.body["payload"])
    assert (409, "run_ended") == (other.status, other.body["code"])
    assert before == await everything(database)


async def test_events_count_as_stored(database: SqliteDatabase) -> None:
    """Under whichever key, and the one that was first only."""
    alone = isolate(database, *SLOW, BYTES_SUBJECT_PER_DAY=2_000)
    await post(alone, "a")
    await asyncio.sleep(1)
    replies = [await emit(alone, key, "x" * 990) for key in ("a", "a", "b", "c", "a")]

    assert [200, 200, 200, 429, 200] == [reply.status for reply in replies]


@pytest.mark.parametrize("setting", ["BYTES_SUBJECT_PER_DAY", "BYTES_TENANT_PER_DAY"])
async def test_files_count_as_stored(database: SqliteDatabase, setting: str) -> None:
    """One that comes when the day's bytes are used up is not kept; another user's, or another tenant's, is."""
    alone = isolate(database, **{setting: 1_000})
    alone.file_store = store = KeptFiles()

    async def send(content: bytes, *, user: str = "ann", tenant: str = "acme") -> Reply:
        named = {"content_type": "image/png", "x_user": user, "x_tenant": tenant}
        return await alone.ask("POST", "/v1/files", content, reader=None, **named)

    assert [201, 201, 429] == [(await send(bytes([each]) * 600)).status for each in b"abc"]
    refused = await send(b"d")
    assert (429, "limit_reached") == said(refused)[:2]
    assert 0 < int(refused.response.headers["Retry-After"]) <= 86_401
    others = [await send(b"e", user="bob"), await send(b"e", tenant="rival")]
    assert [429 if "TENANT" in setting else 201, 201] == [each.status for each in others]
    assert (3 if "TENANT" in setting else 4) == len([key for key in store.files if key.startswith("files/")])
    assert 429 == (await post(alone, "a")).status


async def test_who_asks_too_often_is_refused_before_a_body_is_read(database: SqliteDatabase) -> None:
    """A megabyte takes longer to read than to refuse; that of a finished turn is read, and the turn is repeated."""
    alone = isolate(database, *WORDS)
    await (await post(alone, "finished")).lines()
    none_left = Rates(subject=IsolateRate(1, now=lambda: 0.0), tenant=IsolateRate(0, now=lambda: 0.0))
    authenticator = Scopes()
    await none_left.check(await authenticator.authenticate({}))
    app = Application(
        authenticator=authenticator, service=alone.service, log=lambda _what, error: print(error), rates=none_left
    )
    read: list[str] = []

    async def ask(session: str) -> int:
        async def body(_most: int) -> bytes:
            read.append(session)
            return b'{"message": "hi"}'

        path, headers = f"/v1/sessions/{session}/turns/0", {"content-type": "application/json"}
        response = await handle(HttpRequest(method="POST", path=path, query="", headers=headers, read=body), app)
        return response.status

    assert [429, 200] == [await ask(session) for session in ("new", "finished")]
    assert ["finished"] == read
