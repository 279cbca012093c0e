"""Logs of old turns are given up for their answers: every reader still comes to the end, whoever dies meanwhile."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from chatturn.chat.turn.log_retention import give_up_old_logs
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import text_delta
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.isolates import TURN, Isolate
from tests.support.turns import Desk, Product, open_sqlite

WORDS = [text_delta(f"w{n} ") for n in range(30)]
ANSWER = "".join(f"w{n} " for n in range(30))
DAY_S = 86_400
OLD = {"LOG_RETENTION_DAYS": "3", "THREADS": "on"}


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


def told(lines: list[dict[str, Any]]) -> str:
    """Return the text as a client puts it together."""
    text = ""
    for line in lines:
        if line["type"] == "message.part.updated":
            text += line["data"]["delta"]
        elif line["type"] == "result":
            text = line["data"]["finalText"]
    return text


async def log_of(isolate: Isolate, path: str = TURN, query: str = "") -> list[dict[str, Any]]:
    """Read a turn's stream."""
    return await (await isolate.ask("GET", f"{path}/stream{query}")).lines()


async def test_an_old_log_is_its_replay(database: SqliteDatabase) -> None:
    """Three lines under the last seqs; a cursor before them leads to the whole answer, one behind them to the end."""
    isolate = Isolate(database, Product(*WORDS), settings=OLD)
    await (await isolate.post()).lines()
    before = await log_of(isolate)
    last = before[-1]["seq"]
    await isolate.sweep()
    assert before == await log_of(isolate)

    await asyncio.sleep(4 * DAY_S)
    await isolate.sweep()
    await isolate.sweep()

    after = await log_of(isolate)
    assert ["session.run.started", "result", "session.run.completed"] == [line["type"] for line in after]
    assert [last - 2, last - 1, last] == [line["seq"] for line in after]
    assert before[-1] == after[-1]
    assert ANSWER == told(after) == told(await log_of(isolate, query="?after=5"))
    assert ["session.run.completed"] == [line["type"] for line in await log_of(isolate, query=f"?after={last}")]
    assert 422 == (await isolate.ask("GET", f"{TURN}/stream?after={last + 99}")).status
    assert ANSWER == (await isolate.ask("GET", "/v1/sessions/thread-1/messages")).body["messages"][1]["content"]
    assert [(1,)] == await Desk(database).rows("SELECT count(*) FROM chat_segments")
    events = await isolate.ask("GET", f"{TURN}/stream", accept="text/event-stream")
    assert events.task is not None
    await events.task
    assert ANSWER in events.reader.text
    chat = await isolate.ask("GET", "/v1/ai-sdk/chat/chat%3Aacme%3Athread-1%3A0/stream?startIndex=0")
    assert chat.task is not None
    await chat.task
    assert ANSWER in chat.reader.text


async def test_a_client_that_counts_chunks_is_given_the_whole_of_an_old_log(database: SqliteDatabase) -> None:
    """However many of the chunks it has seen: there are fewer now, and they are others."""
    isolate = Isolate(database, Product(*WORDS), settings=OLD)
    await (await isolate.post()).lines()
    await asyncio.sleep(4 * DAY_S)
    await isolate.sweep()
    for seen in range(1, 40):
        for version in (6, 7):
            query = f"?startIndex={seen}&v={version}"
            reply = await isolate.ask("GET", f"/v1/ai-sdk/chat/thread-1/stream{query}")
            assert reply.task is not None
            await reply.task
            text = reply.reader.text
            if version == 7:
                assert text.startswith('data: {"type":"reset-step"}')
            # A client of an earlier version cannot take back what it has seen.
            assert reply.reader.broken_off if version == 6 and seen >= 2 else ANSWER in text


async def test_a_new_version_begins_behind_an_old_log(database: SqliteDatabase) -> None:
    """Its seqs are above all that anybody has seen."""
    isolate = Isolate(database, Product(*WORDS), settings=OLD)
    await (await isolate.post()).lines()
    last = (await log_of(isolate))[-1]["seq"]
    await asyncio.sleep(4 * DAY_S)
    await isolate.sweep()
    again = await (await isolate.post(replace={"kind": "regenerate", "version": 1})).lines()
    assert last < again[0]["seq"]
    assert ANSWER == told(again)


@pytest.mark.parametrize("script", [[RuntimeError("no")], [text_delta("x" * 90_000), *WORDS], []])
async def test_what_could_not_be_told_in_less_keeps_its_log(database: SqliteDatabase, script: list[Any]) -> None:
    """A failure, an answer that fits no row, an empty one; and it is not looked at again."""
    isolate = Isolate(database, Product(*script), settings=OLD)
    await (await isolate.post()).lines()
    before = await log_of(isolate)
    await asyncio.sleep(4 * DAY_S)
    assert 1 == await give_up_old_logs(database, 3)
    assert 0 == await give_up_old_logs(database, 3)
    assert told(before) == told(await log_of(isolate))


async def test_a_worker_may_die_anywhere(database: SqliteDatabase) -> None:
    """The log is as it was, or as it is to be."""
    isolate = Isolate(database, Product(*WORDS), settings=OLD)
    point = 0
    while True:
        path = TURN.replace("thread-1", f"t{point}")
        await (await isolate.ask("POST", path, {"message": "hi"})).lines()
        await asyncio.sleep(DAY_S + 60)
        try:
            await give_up_old_logs(MortalDatabase(database, Fuse(point)), 1)
            break
        except Crash:
            assert ANSWER == told(await log_of(isolate, path))
        await give_up_old_logs(database, 1)
        assert 3 == len(await log_of(isolate, path))
        point += 1
    assert 2 <= point


async def test_a_turn_that_is_asked_anew_meanwhile_keeps_its_log(database: SqliteDatabase) -> None:
    """It was superseded after the sweep had looked."""
    settings = {"LOG_RETENTION_DAYS": "3"}
    isolate = Isolate(database, Product(*WORDS), settings=settings)
    await (await isolate.post()).lines()
    await asyncio.sleep(4 * DAY_S)

    class Overtaken:
        """A database in which the turn is asked anew between the look and the write."""

        batches = 0

        async def batch(self, statements: Any) -> Any:
            self.batches += 1
            if self.batches == 2:
                await (await isolate.post("other", on_mismatch="supersede")).lines()
            return await database.batch(statements)

    await give_up_old_logs(Overtaken(), 3)
    assert 30 < len(await log_of(isolate))
    await asyncio.sleep(4 * DAY_S)
    await isolate.sweep()
    assert 3 == len(await log_of(isolate))
