"""Logs of turns that are over are made short by the sweep: nobody who reads one notices, whoever dies meanwhile."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from chatturn.chat.log.compact import ROW_BYTES, size_of_row
from chatturn.chat.log.compaction import compact_logs
from chatturn.chat.log.pages import load_page
from chatturn.chat.log.room import PAGE_CHARACTERS
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import ChatStreamEvent, text_delta
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.isolates import TURN, Isolate
from tests.support.turns import Desk, Product, open_sqlite
from tests.support.whole_turns import WORDS, rows

LATER_S = 3_600


def room(_queries: int) -> bool:
    """There is always room."""
    return True


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


async def every_cursor(isolate: Isolate) -> list[str]:
    """Return what a reader is sent from each place of the log."""
    whole = (await isolate.follow()).reader
    await asyncio.sleep(1)
    seqs = [line["seq"] for line in whole.lines]
    texts = [whole.text]
    for seq in seqs[:-1]:
        reply = await isolate.follow(seq)
        await reply.lines()
        texts.append(reply.reader.text)
    return texts


async def stored(database: SqliteDatabase) -> list[tuple[Any, ...]]:
    return await rows(
        database, "SELECT first_seq, last_seq, attempt, ended, lines FROM chat_segments ORDER BY first_seq"
    )


async def answered(database: SqliteDatabase, *, deaths: int = 0) -> Isolate:
    """Run a turn of several seconds, with so many workers lost on the way, and let an hour pass."""
    for _ in range(deaths):
        dying = Isolate(database, Product(*WORDS), settings={"LEASE_MS": "3000"})
        await dying.post()
        await asyncio.sleep(2)
        await dying.kill()
        await asyncio.sleep(4)
    isolate = Isolate(database, Product(*WORDS), settings={"LEASE_MS": "3000"})
    reply = await isolate.post()
    await reply.lines()
    await asyncio.sleep(LATER_S)
    return isolate


@pytest.mark.parametrize("deaths", [0, 2])
async def test_a_short_log_reads_as_before_from_every_cursor(database: SqliteDatabase, deaths: int) -> None:
    """The same bytes, in fewer rows."""
    isolate = await answered(database, deaths=deaths)
    before, plain = await every_cursor(isolate), await stored(database)
    await isolate.sweep()
    after, short = await every_cursor(isolate), await stored(database)

    assert before == after
    assert len(short) < len(plain)
    assert sum(len(row[-1]) for row in short) < sum(len(row[-1]) for row in plain)
    assert [(1,)] == await rows(database, "SELECT log_compact FROM chat_turns")


async def test_a_log_is_left_alone_while_somebody_may_read_it_live(database: SqliteDatabase) -> None:
    """Nor while the turn runs."""
    isolate = Isolate(database, Product(*WORDS))
    reply = await isolate.post()
    await asyncio.sleep(1)
    assert await compact_logs(database, room) == 0
    await reply.lines()
    assert await compact_logs(database, room) == 0
    await asyncio.sleep(LATER_S)
    assert await compact_logs(database, room) == 1
    assert await compact_logs(database, room) == 0


async def test_whoever_dies_while_a_log_is_made_short_leaves_it_whole(database: SqliteDatabase) -> None:
    """Before and after every batch."""
    isolate = await answered(database)
    before = await every_cursor(isolate)
    for point in range(20):
        try:
            await compact_logs(MortalDatabase(database, Fuse(point)), room)
        except Crash:
            assert before == await every_cursor(isolate)
            continue
        break
    else:
        raise AssertionError("it never came to an end")

    assert point > 3
    assert before == await every_cursor(isolate)


async def test_a_turn_that_is_claimed_meanwhile_is_left_alone(database: SqliteDatabase) -> None:
    """What was read of its log may no longer be all of it."""
    isolate = await answered(database)
    before = await stored(database)

    class Overtaken:
        async def batch(self, statements: Any) -> Any:
            outcomes = await database.batch(statements)
            if "before" in statements[-1].sql and len(statements) == 1:  # the log was read
                await isolate.ask("POST", TURN, {"message": "something else", "on_mismatch": "supersede"})
            return outcomes

    await compact_logs(Overtaken(), room)

    assert before == (await stored(database))[: len(before)]
    assert [(0,)] == await rows(database, "SELECT log_compact FROM chat_turns")


async def test_a_session_that_is_deleted_meanwhile_does_not_come_back(database: SqliteDatabase) -> None:
    """Also where somebody has begun one of the same name: its log is its own."""
    isolate = await answered(database)
    other = Isolate(database, Product(text_delta("mine")))

    class Overtaken:
        async def batch(self, statements: Any) -> Any:
            outcomes = await database.batch(statements)
            if "before" in statements[-1].sql and len(statements) == 1:  # the log was read
                await isolate.ask("DELETE", TURN.removesuffix("/turns/0"))
                await (await other.ask("POST", TURN, {"message": "anew"}, x_user="bob")).lines()
            return outcomes

    await compact_logs(Overtaken(), room)

    lines = (await (await other.follow()).lines())[1:]
    assert ["mine"] == [line["data"]["delta"] for line in lines if line["type"] == "message.part.updated"]
    assert [(0,)] == await rows(database, "SELECT log_compact FROM chat_turns")


async def test_a_log_of_a_failed_turn_that_goes_on_is_made_short_again(database: SqliteDatabase) -> None:
    """An attempt that follows puts its lines behind those that are short."""
    failing = Isolate(database, Product(text_delta("half"), text_delta(" an answer"), RuntimeError("boom")))
    await (await failing.post()).lines()
    await asyncio.sleep(LATER_S)
    assert await compact_logs(database, room) == 1
    isolate = await answered(database)
    before = await every_cursor(isolate)
    assert await compact_logs(database, room) == 1

    assert before == await every_cursor(isolate)


async def test_long_logs_are_cut_into_rows_that_an_export_can_hold(database: SqliteDatabase) -> None:
    """Below 90 KB each, and three times the answer at most in all."""
    words = [f"wörd{number}? " for number in range(30_000)]
    steps = [[text_delta(word) for word in words[at : at + 500]] for at in range(0, len(words), 500)]
    isolate = Isolate(database, Product(*(step for some in steps for step in (some, 0.3))))
    reply = await isolate.post()
    await reply.lines()
    await asyncio.sleep(LATER_S)
    whole = await isolate.follow()
    before = [line["seq"] for line in await whole.lines()], whole.reader.text
    await compact_logs(database, room)
    again = await isolate.follow()
    after = [line["seq"] for line in await again.lines()], again.reader.text
    sizes = [len(row[-1].encode()) for row in await stored(database)]

    assert before == after
    assert max(sizes) < 90_000
    assert sum(sizes) < 3 * len("".join(words).encode())


async def test_a_page_of_short_logs_is_as_long_as_one_of_long_ones(database: SqliteDatabase) -> None:
    """Whatever its lines have in common: what is read is the lines."""
    said = [ChatStreamEvent("progress", {"note": "x" * 2_000, "delta": str(number)}) for number in range(2_000)]
    steps = [step for at in range(0, len(said), 20) for step in (said[at : at + 20], 0.3)]
    isolate = Isolate(database, Product(text_delta("a"), *steps))
    await (await isolate.post()).lines()
    await asyncio.sleep(LATER_S)

    async def pages() -> list[str]:
        texts, last, more = list[str](), -1, True
        while more:
            page = await load_page(database, "chat:acme:thread-1:0", last)
            assert page is not None
            texts.append(page.text)
            last, more = page.last, page.more
        return texts

    before = await pages()
    assert 1 == await compact_logs(database, room)
    after = await pages()

    assert "".join(before) == "".join(after)
    assert max(map(len, after)) < 2 * PAGE_CHARACTERS


async def test_quotes_count_twice_since_an_export_writes_them_twice(database: SqliteDatabase) -> None:
    """A row of nothing but quotes fits a statement all the same."""
    isolate = Isolate(database, Product(*[text_delta("'" * 500) for _ in range(300)]))
    await (await isolate.post()).lines()
    before = (await (await isolate.follow()).lines())[1:]
    await asyncio.sleep(LATER_S)
    assert 1 == await compact_logs(database, room)
    rows = await Desk(database).rows("SELECT lines FROM chat_segments")
    assert 2 <= len(rows)
    assert ROW_BYTES >= max(size_of_row(text) for (text,) in rows)
    assert before == (await (await isolate.follow()).lines())[1:]
