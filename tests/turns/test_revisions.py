"""A session's revision: what a reader of its messages can see has changed, or has not; and waiting for a change."""

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.records import RunOutcome
from chatturn.errors import ChatTurnError, StoreError
from chatturn.events import text_delta
from tests.support.isolates import Isolate, Reply
from tests.support.revisions import WatchedDatabase
from tests.support.turns import Product, open_sqlite
from tests.support.whole_turns import WORDS, cancel, rows, wrap
from tests.turns.test_agent import Agent, Model

ON = {"THREADS": "on"}
MESSAGES = "/v1/sessions/thread-1/messages"
NEXT = "/v1/sessions/thread-1/turns/1"
SLOW = (text_delta("a"), 2.0, text_delta("b"))


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


@pytest.fixture
def watched(database: SqliteDatabase) -> Iterator[WatchedDatabase]:
    """The same, compared after each batch."""
    watched = WatchedDatabase(database)
    yield watched
    assert [] == watched.broken


async def messages(isolate: Isolate, query: str = "", tag: str | None = None, **headers: str) -> Reply:
    """Get the messages; with what is known of them."""
    known = {} if tag is None else {"if_none_match": tag}
    return await isolate.ask("GET", f"{MESSAGES}{query}", reader=None, **known, **headers)


async def tag_of(isolate: Isolate) -> str:
    """Return the tag of the messages."""
    return str((await messages(isolate)).response.headers["ETag"])


async def now() -> float:
    """Return the time."""
    return asyncio.get_running_loop().time()


async def test_what_has_not_changed_is_not_sent_again(database: SqliteDatabase) -> None:
    """304, also where a proxy has made the tag a weak one; after a change everything, with another tag."""
    isolate = Isolate(database, Product(), settings=ON)
    empty = await messages(isolate)
    assert (200, 0) == (empty.status, empty.body["revision"])
    assert 304 == (await messages(isolate, tag=empty.response.headers["ETag"])).status
    await (await isolate.post()).lines()

    full = await messages(isolate, tag=empty.response.headers["ETag"])
    assert (200, 2) == (full.status, full.body["revision"])
    tag = full.response.headers["ETag"]
    assert "private, no-cache" == full.response.headers["Cache-Control"]
    for known in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        reply = await messages(isolate, tag=known)
        assert (304, b"") == (reply.status, reply.response.body)
    assert 200 == (await messages(isolate, tag='"0.1"')).status
    await (await isolate.post()).lines()
    assert 304 == (await messages(isolate, tag=tag)).status, "a replay changes nothing"


async def test_a_second_tab_sees_a_turn_begin_and_end(database: SqliteDatabase) -> None:
    """Also one in another isolate, within a look; in the same one at once."""
    one, other = (Isolate(database, Product(*SLOW), settings=ON) for _ in range(2))
    for tab, latest_s in ((one, 0.1), (other, 0.6)):
        index = f"/v1/sessions/thread-1/turns/{int(tab is other)}"
        waiting = asyncio.ensure_future(messages(tab, "?wait=30", await tag_of(tab)))
        await asyncio.sleep(3)
        assert not waiting.done()
        began = await now()
        running = await one.ask("POST", index, {"message": "hi"})
        reply = await waiting
        assert ["running"] == [turn["status"] for turn in reply.body["open"]]
        assert await now() - began <= latest_s

        reply = await messages(tab, "?wait=30", reply.response.headers["ETag"])
        assert await now() - began <= 2 + latest_s
        assert [] == reply.body["open"]
        assert "ab" == reply.body["messages"][-1]["content"]
        await running.lines()


async def test_a_wait_ends(database: SqliteDatabase) -> None:
    """After as many seconds as were said, with 304; without a tag there is nothing to wait for."""
    isolate = Isolate(database, Product(), settings=ON)
    await (await isolate.post()).lines()
    began = await now()
    assert 200 == (await messages(isolate, "?wait=30")).status
    assert began == await now()
    assert 304 == (await messages(isolate, "?wait=7", await tag_of(isolate))).status
    assert 7 == round(await now() - began, 3)


@pytest.mark.parametrize(("plan", "most"), [("paid", 61), ("free", 16)])
async def test_a_hundred_tabs_cost_what_one_does(database: SqliteDatabase, plan: str, most: int) -> None:
    """But for the first look, which is each one's own."""
    isolate = Isolate(database, Product(), settings={**ON, "WORKERS_PLAN": plan})
    await (await isolate.post()).lines()
    tag = await tag_of(isolate)
    wrapped = wrap(isolate)
    assert 304 == (await messages(isolate, "?wait=30", tag)).status
    alone = wrapped.batches
    replies = await asyncio.gather(*(messages(isolate, "?wait=30", tag) for _ in range(100)))

    assert alone <= most
    assert {304} == {reply.status for reply in replies}
    assert wrapped.batches <= 2 * alone + 100
    assert not wrapped.spun


async def test_one_who_goes_away_while_it_looks_is_replaced(database: SqliteDatabase) -> None:
    """The platform may drop a request at any await, without a word."""
    isolate = Isolate(database, Product(), settings=ON)
    await (await isolate.post()).lines()
    tag = await tag_of(isolate)
    waiting = asyncio.ensure_future(messages(isolate, "?wait=30", tag))
    await asyncio.sleep(0.1)
    poll = isolate._live.revisions.of("chat:acme:thread-1:")
    poll.begin_look(await now())  # as somebody who never ends it
    other = Isolate(database, Product(), settings=ON)
    await (await other.ask("POST", NEXT, {"message": "hi"})).lines()

    assert 200 == (await waiting).status


async def test_bad_questions_are_refused(database: SqliteDatabase) -> None:
    """As are waits where nobody counts the changes; another user's session is not there."""
    isolate = Isolate(database, Product(), settings={**ON, "SESSION_OWNER": "subject"})
    await (await isolate.post()).lines()
    for query in ("?wait=31", "?wait=-1", "?wait=soon", "?wait="):
        assert 422 == (await messages(isolate, query)).status
    assert 404 == (await messages(isolate, "?wait=30", "*", x_user="bob")).status
    off = Isolate(database, Product())
    reply = await messages(off, tag="*")
    assert (200, None) == (reply.status, reply.body["revision"])
    assert "ETag" not in reply.response.headers
    assert (422, "wait") == ((refused := await messages(off, "?wait=1", "*")).status, refused.body["field"])


async def test_a_session_that_comes_back_has_other_tags(database: SqliteDatabase) -> None:
    """Its revisions are those of the one that was deleted."""
    isolate = Isolate(database, Product(), settings=ON)
    await (await isolate.post()).lines()
    tag = await tag_of(isolate)
    await asyncio.sleep(10)
    assert 1 == await isolate.service.deployment.store.delete_finished_runs(older_than_ms=5_000)
    await (await isolate.post()).lines()
    reply = await messages(isolate, tag=tag)
    assert (200, 2) == (reply.status, reply.body["revision"])


# Each is a change of its own kind; `WatchedDatabase` compares after every batch.


async def test_failures_and_cancels_are_changes(watched: WatchedDatabase) -> None:
    """Each has its revision, as has the next try."""
    failing = Isolate(watched, Product(text_delta("a"), ChatTurnError("no")), settings=ON)
    await (await failing.post()).lines()
    slow = Isolate(watched, Product(*SLOW), settings=ON)
    running = await slow.post()
    await asyncio.sleep(1)
    await cancel(slow)
    await running.lines()
    states = [state for state in watched.seen.values() if state is not None]
    assert len(states) >= 4
    assert 1 == sum("'failed'" in state for state in states)


async def test_an_approval_is_a_change(watched: WatchedDatabase) -> None:
    """The turn waits, and goes on."""
    isolate = Isolate(watched, Agent(), Model(("send", {"text": "x"}), "done").backend(), settings=ON)
    posted = await isolate.post()
    lines = await posted.lines()
    [key] = [line["data"]["key"] for line in lines if line["type"] == "tool.approval"]
    assert any("suspended" in state for state in watched.seen.values())
    await isolate.ask(
        "POST", f"/v1/runs/chat%3Aacme%3Athread-1%3A0/events/{key.replace(':', '%3A')}", {"payload": {"approved": True}}
    )
    await asyncio.sleep(5)
    assert "done" in (await messages(isolate)).body["messages"][-1]["content"]


async def test_a_takeover_and_a_turn_given_up_are_changes(database: SqliteDatabase, watched: WatchedDatabase) -> None:
    """Whoever notices."""
    settings = {**ON, "LEASE_MS": "1000"}
    first, second = (Isolate(watched, Product(*WORDS), settings=settings) for _ in range(2))
    await first.post()
    await asyncio.sleep(0.5)
    await first.kill()
    await asyncio.sleep(2)
    assert 1 == await second.sweep()
    running = await second.ask("POST", NEXT, {"message": "hi"})
    await asyncio.sleep(0.5)
    await second.kill()
    await asyncio.sleep(2)
    assert running.reader.ended
    before = await rows(database, "SELECT revision FROM chat_sessions")
    other = Isolate(watched, Product(*WORDS), settings={**settings, "PROJECT_ID": "another"})
    assert not await other.service.resume("chat:acme:thread-1:1")
    assert [("failed",)] == await rows(database, "SELECT status FROM durable_runs WHERE run_id LIKE '%:1'")
    assert before < await rows(database, "SELECT revision FROM chat_sessions")
    await watched.look()


async def test_what_the_database_refuses_is_a_change(database: SqliteDatabase, watched: WatchedDatabase) -> None:
    """The run is released without the details that were refused."""
    isolate = Isolate(watched, Product(text_delta("a"), ChatTurnError("no")), settings=ON)

    async def refuse(statements: Sequence[Statement]) -> None:
        if any("INSERT INTO chat_segments" in each.sql for each in statements):
            raise StoreError("refused")

    wrap(isolate, refuse)
    await (await isolate.post()).lines()
    assert [("failed",)] == await rows(database, "SELECT status FROM durable_runs")
    assert any("'running'" in state for state in watched.seen.values())
    assert any("'failed'" in state for state in watched.seen.values())


async def test_another_product_at_its_place_is_a_change(database: SqliteDatabase, watched: WatchedDatabase) -> None:
    """The claim is released again."""
    isolate = Isolate(watched, Product(text_delta("a"), ChatTurnError("no")), settings=ON)
    await (await isolate.post()).lines()
    await rows(database, "UPDATE durable_steps SET intent = 'another'")
    assert 409 == (await isolate.post()).status
    assert [("failed",)] == await rows(database, "SELECT status FROM durable_runs")


async def test_retention_is_a_change(watched: WatchedDatabase) -> None:
    """Of a session that stays."""
    isolate = Isolate(watched, Product(), settings=ON)
    await (await isolate.post()).lines()
    await asyncio.sleep(10)
    await (await isolate.ask("POST", NEXT, {"message": "hi"})).lines()
    assert 1 == await isolate.service.deployment.store.delete_finished_runs(older_than_ms=5_000)
    assert 2 == len((await messages(isolate)).body["messages"])


async def test_what_somebody_gives_up_that_is_held_stays(watched: WatchedDatabase) -> None:
    """And is no change that is missed."""
    isolate = Isolate(watched, Product(*SLOW), settings=ON)
    running = await isolate.post()
    await isolate.service.deployment.store.give_up("chat:acme:thread-1:0", RunOutcome(passed=False))
    await running.lines()
    assert 2 == len((await messages(isolate)).body["messages"])
