"""What is kept in the isolate for a reader who takes nothing, or waits for room; in virtual time."""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from chatturn.chat.turn.replay import ReplayedTurn
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import reasoning_delta, text_delta
from tests.support.isolates import TURN, Isolate, Reader
from tests.support.turns import Product, open_sqlite

LOG_CHARACTERS = 6_000_000
STREAM = f"{TURN}/stream"
OTHER_FORMAT = "/v1/ai-sdk/chat/thread-1/stream"


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


class Stalling(Reader):
    """Takes so many characters, and nothing after that."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._left = asyncio.Event()

    def leave(self) -> None:
        super().leave()
        self._left.set()

    async def drain(self, _room: int | None = None) -> None:
        if len(self.text) >= self._most:
            await self._left.wait()


async def thought_long(database: SqliteDatabase) -> Isolate:
    """Return an isolate that has thought for millions of characters in a turn."""
    pieces = [reasoning_delta("x" * 10_000) for _ in range(LOG_CHARACTERS // 10_000)]
    isolate = Isolate(database, Product(*pieces, text_delta("done")))
    await (await isolate.post()).lines()
    return isolate


async def test_what_a_projection_keeps_of_a_log_has_no_other_reader_in_its_place(database: SqliteDatabase) -> None:
    """The projection of another format needs the text so far; that of our own lines is dropped when it is sent."""
    isolate = await thought_long(database)
    answers = []
    for path in (STREAM, OTHER_FORMAT):
        stalled = await isolate.ask("GET", path, reader=Stalling(5_000_000))
        await asyncio.sleep(5)
        assert 5_000_000 < len(stalled.reader.text) < LOG_CHARACTERS
        other = await isolate.ask("GET", STREAM, x_user="bob", reader=Stalling(1))
        answers.append((other.status, other.response.headers.get("Retry-After") is not None))
        stalled.reader.leave()
        other.reader.leave()
        await asyncio.sleep(5)
    after = await isolate.ask("GET", STREAM, x_user="bob")

    assert [(200, False), (503, True)] == answers
    assert "session.run.completed" == (await after.lines())[-1]["type"]


async def test_a_long_page_of_a_thread_needs_room_until_it_is_taken(database: SqliteDatabase) -> None:
    """A user's next one waits meanwhile, another user's does not; nor does a short one need room."""
    isolate, path = Isolate(database, Product(text_delta("yes"))), "/v1/sessions/thread-1/messages"
    for number in range(6):
        turn = TURN.removesuffix("0") + str(number)
        await (await isolate.ask("POST", turn, {"message": f"{number}" + "x" * 190_000})).lines()
    stalled = await isolate.ask("GET", path, reader=Stalling(1))
    next_one = asyncio.ensure_future(isolate.ask("GET", path))
    await asyncio.sleep(5)
    others = [await isolate.ask("GET", f"{path}{query}", x_user="bob") for query in ("?limit=1", "")]
    was_waiting = not next_one.done()
    stalled.reader.leave()

    assert was_waiting
    assert [2, 12, 12] == [len((await each.whole())["messages"]) for each in (*others, await next_one)]


async def test_who_waits_for_room_holds_no_answer(database: SqliteDatabase) -> None:
    """The answer of a turn that is replayed is read again, with the log, once there is room."""
    isolate = Isolate(database, Product(text_delta("a long answer")))
    body: Any = {"model": "default", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    first = await isolate.ask("POST", "/v1/chat/completions", body, idempotency_key="k")
    assert first.task is not None
    await first.task
    release = isolate.service.deployment.sending.take("somebody", 4_000_000)
    waiting = asyncio.ensure_future(isolate.ask("POST", "/v1/chat/completions", body, idempotency_key="k"))
    await asyncio.sleep(1)
    held = [each for each in gc.get_objects() if isinstance(each, ReplayedTurn)]
    is_waiting = not waiting.done()
    release()
    again = await waiting
    assert again.task is not None
    await again.task

    assert (is_waiting, held) == (True, [])
    assert "a long answer" in again.reader.text
