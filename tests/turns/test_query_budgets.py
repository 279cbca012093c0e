"""How many queries a turn, a follower and a sweep may need, and lists and caches at their edges."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.local_stores import FileSystemDurableRunStore
from chatturn.errors import StoreUnavailable
from chatturn.events import reasoning_delta, text_delta
from tests.chaos import rig
from tests.support.isolates import TURN, Isolate, Reader
from tests.support.turns import Product, Recorded, open_sqlite
from tests.support.whole_turns import WORDS, wrap


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    with open_sqlite() as database:
        yield database


async def test_a_follower_of_a_second_attempt_does_not_spin(database: SqliteDatabase) -> None:
    """It asks at its pace, whatever the log has."""
    isolate = Isolate(database, Product(text_delta("bad"), RuntimeError("x")))
    await (await isolate.post()).lines()
    isolate.hooks = Product(*WORDS)
    await isolate.post()
    wrapped = wrap(isolate)
    follower = await isolate.follow()
    await follower.lines()

    assert not wrapped.spun, "more than 200 batches in no time"


async def test_the_log_s_writer_does_not_spin_on_a_database_that_fails_at_once(database: SqliteDatabase) -> None:
    """It tries again at its pace."""
    down = False

    async def before(_statements: Any) -> None:
        if down:
            raise StoreUnavailable("D1_ERROR: overloaded")

    isolate = Isolate(database, Product([text_delta("x" * 1_000)] * 80, 5.0))
    wrapped = wrap(isolate, before)
    await isolate.post()
    await asyncio.sleep(0)
    down = True
    await asyncio.sleep(1)
    down = False
    failures = [event for event, _ in isolate.logged if event == "log.not_stored"]

    assert len(failures) <= 10, f"{len(failures)} writes in a second"
    assert not wrapped.spun


async def test_a_log_stays_within_the_queries_of_its_plan(database: SqliteDatabase) -> None:
    """Also where so much is said that every write is full."""
    script = [step for _ in range(60) for step in ([reasoning_delta("x" * 900)] * 100, 0.5)]  # 6 MB in 30 s
    isolate = Isolate(database, Product(*script, text_delta("end")), settings={"WORKERS_PLAN": "free"})
    wrapped = wrap(isolate)
    lines = await (await isolate.post()).lines()

    assert "session.run.completed" == lines[-1]["type"]
    assert wrapped.statements <= 50, "Cloudflare ends the invocation"


async def test_a_long_quiet_turn_stays_within_the_free_plan(database: SqliteDatabase) -> None:
    """Its renewals are counted with its log."""
    isolate = Isolate(database, Product(text_delta("a"), 890.0, text_delta("b")), settings={"WORKERS_PLAN": "free"})
    wrapped = wrap(isolate)
    await (await isolate.post()).lines()

    assert wrapped.statements <= 50


async def test_a_follower_stays_within_the_free_plan(database: SqliteDatabase) -> None:
    """A quarter of an hour, with its notes that somebody reads."""
    settings = {"WORKERS_PLAN": "free", "ON_DISCONNECT": "grace", "GRACE_MS": "900000"}
    owner = Isolate(database, Product(text_delta("a"), 890.0, text_delta("b")), settings=settings)
    other = Isolate(database, Product(), settings=settings)
    await owner.post()
    wrapped = wrap(other)
    await (await other.follow()).lines()

    assert wrapped.statements <= 50


async def test_a_sweep_stays_within_one_invocation(database: SqliteDatabase) -> None:
    """Five turns at once share the invocation's 1,000 queries."""
    script = [step for n in range(240) for step in (text_delta(f"{n} "), 0.25)]  # a minute each
    owner, cron = Isolate(database, Product(*script)), Isolate(database, Product(*script))
    for number in range(5):
        await owner.ask("POST", TURN.replace("thread-1", f"t{number}"), {"message": "hi"})
    await asyncio.sleep(1)
    await owner.kill()
    await asyncio.sleep(60)
    wrapped = wrap(cron)
    await cron.sweep()

    assert wrapped.statements <= 1_000


async def test_a_follower_that_takes_over_stays_within_one_invocation(database: SqliteDatabase) -> None:
    """It has followed and answers, in one."""
    script = [step for n in range(800) for step in (text_delta(f"{n} "), 1.0)]
    owner, other = Isolate(database, Product(*script)), Isolate(database, Product(*script))
    await owner.post()
    wrapped = wrap(other)
    follower = await other.follow()
    await asyncio.sleep(300)
    await owner.kill()
    await follower.lines()

    assert wrapped.statements <= 1_000


async def test_a_finished_log_costs_a_query_per_page(database: SqliteDatabase) -> None:
    """As the manual's table of queries says."""
    isolate = Isolate(database, Product(*[step for n in range(200) for step in (text_delta(f"{n} "), 0.1)]))
    await (await isolate.post()).lines()
    wrapped = wrap(isolate)
    await (await isolate.follow()).lines()

    assert 1 == wrapped.batches  # 20 kB


class Stalled(Reader):
    """Takes nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.takes = asyncio.Event()
        self.writes: list[int] = []

    def write(self, text: str) -> None:
        self.writes.append(len(text))
        super().write(text)

    async def drain(self, _room: int | None = None) -> None:
        await self.takes.wait()


async def test_readers_that_take_nothing_hold_no_more_than_there_is_room_for(database: SqliteDatabase) -> None:
    """One who would hold more is told so, or waits where a refusal would be for good; then he gets all."""
    script = [step for _ in range(20) for step in ([reasoning_delta("x" * 900)] * 100, 0.3)]
    isolate = Isolate(database, Product(*script, text_delta("end")))
    whole = await (await isolate.post()).lines()
    wrapped, readers = wrap(isolate), [Stalled() for _ in range(60)]
    replies = []
    for number, reader in enumerate(readers):
        replies.append(await isolate.ask("GET", f"{TURN}/stream", reader=reader, x_user=f"user-{number % 20}"))
        await asyncio.sleep(0.1)
    read_meanwhile = wrapped.batches
    asked = isolate.ask("GET", f"{TURN}/stream", accept="text/event-stream", x_user="eve")
    waiting = asyncio.create_task(asked)
    await asyncio.sleep(1)
    waits = not waiting.done()
    for reader in readers:
        reader.takes.set()
    statuses = [reply.status for reply in replies]
    refused = next(reply for reply in replies if reply.status == 503)
    text = (await waiting).reader.text

    assert statuses.count(200) == read_meanwhile <= 17
    assert statuses.count(503) == 60 - statuses.count(200)
    assert (refused.body["code"], refused.response.headers["Retry-After"]) == ("busy", "1")
    assert waits
    for reply in replies:
        if reply.status == 200:
            assert whole == await reply.lines()
    while "session.run.completed" not in text:
        await asyncio.sleep(1)
        text = waiting.result().reader.text
    assert (await isolate.ask("GET", f"{TURN}/stream")).status == 200


async def test_a_reader_that_takes_nothing_costs_one_page(database: SqliteDatabase) -> None:
    """Of a log of two megabytes it has 256 kB at a time, and nothing more is read for it before it goes on."""
    script = [step for _ in range(20) for step in ([reasoning_delta("x" * 900)] * 100, 0.3)]
    isolate = Isolate(database, Product(*script, text_delta("end")))
    whole = await (await isolate.post()).lines()
    wrapped, reader = wrap(isolate), Stalled()
    reply = await isolate.ask("GET", f"{TURN}/stream", reader=reader)
    await asyncio.sleep(20)
    read_meanwhile = wrapped.batches
    reader.takes.set()
    lines = await reply.lines()

    assert 1 == read_meanwhile
    assert len(reader.text) > 1_500_000
    assert max(reader.writes) < 400_000  # a page, and the row that goes beyond it
    assert [line.get("seq") for line in whole] == [line.get("seq") for line in lines]


async def test_a_log_that_broke_off_is_not_cached_for_ever(database: SqliteDatabase) -> None:
    """A response that lacks the end is aborted, so that no cache keeps it."""
    script = [step for _ in range(20) for step in ([reasoning_delta("x" * 900)] * 100, 0.3)]
    isolate = Isolate(database, Product(*script, text_delta("end")))
    await (await isolate.post()).lines()
    pages = 0

    async def before(_statements: Any) -> None:
        nonlocal pages
        pages += 1
        if pages == 2:
            raise StoreUnavailable("no answer")

    wrap(isolate, before)
    reply = await isolate.ask("GET", f"{TURN}/stream?attempt=1")
    assert 200 == reply.status, reply.response
    await reply.lines()

    assert reply.reader.broken_off


async def test_a_tenant_finds_its_undelivered_hooks_behind_others(database: SqliteDatabase) -> None:
    """The end of a list is where `next` is null, and only that."""
    product = Recorded(text_delta("x"))
    product.persist_fails = 1_000
    isolate = Isolate(database, product)
    for n in range(3):
        reply = await isolate.ask("POST", TURN.replace("thread-1", f"s{n}"), {"message": "hi"}, x_tenant="others")
        await reply.lines()
    await (await isolate.ask("POST", TURN, {"message": "hi"}, x_tenant="zoe")).lines()
    await asyncio.sleep(1)
    found, after = [], ""
    for _ in range(10):
        page = (await isolate.ask("GET", f"/v1/runs?status=undelivered&limit=2{after}", x_tenant="zoe")).body
        found += page["runs"]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"

    assert 1 == len(found)


async def test_head_and_options(database: SqliteDatabase) -> None:
    """A stream has them like any other address."""
    isolate = Isolate(database, Product(*WORDS))
    posted = await isolate.post()
    live = await isolate.ask("HEAD", f"{TURN}/stream")
    await posted.lines()
    head, get = await isolate.ask("HEAD", f"{TURN}/stream"), await isolate.ask("GET", f"{TURN}/stream")
    tag = get.response.headers["ETag"]
    tagged = await isolate.ask("HEAD", f"{TURN}/stream", if_none_match=tag)
    star = await isolate.ask("GET", f"{TURN}/stream", if_none_match="*")

    assert (200, None, b"") == (live.status, live.response.stream, live.response.body)
    assert dict(head.response.headers) == dict(get.response.headers)
    assert 304 == tagged.status
    assert 304 == star.status


async def test_a_query_is_refused_wherever_it_means_nothing(database: SqliteDatabase) -> None:
    """A parameter that is not known is refused rather than ignored."""
    isolate = Isolate(database, Product(*WORDS))
    await (await isolate.post()).lines()

    assert 422 == (await isolate.ask("GET", f"{TURN}?after=3")).status


def test_the_rig_would_see_an_answer_that_is_doubled(tmp_path: Path) -> None:
    """Two answers to one turn are two keys of its hook, and are counted."""
    store = FileSystemDurableRunStore(tmp_path / "db.sqlite3")
    store.sqlite.close()
    run_id = "chat:acme:s0:0"
    (tmp_path / "journal").write_text(
        f"{run_id}/1/persist_assistant_message aaa\n{run_id}/2/persist_assistant_message bbb\n"
    )
    report = rig.Report(turns=1)
    with sqlite3.connect(tmp_path / "db.sqlite3") as connection:
        connection.execute(
            "INSERT INTO durable_runs (run_id, manifest_hash, project_id, scenario_id, status, created_at, updated_at,"
            " step_count, epoch) VALUES (?1, 'h', 'p', 's0', 'completed', ?2, ?2, 1, 2)",
            (run_id, "2026-01-01T00:00:00.000Z"),
        )

    class NoUpstream:
        def calls(self) -> list[Any]:
            return []

    rig._add_up(tmp_path, NoUpstream(), {0: "x"}, report)  # type: ignore[arg-type]

    assert report.doubled
