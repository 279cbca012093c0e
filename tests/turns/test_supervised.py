"""
agent-runtime's own tests of its supervisor, of the objects that supervise sessions, and of what an adapter must do.

Here any turn is supervised: its log is the cursor's, and whoever asks next, the cron or the session's own object goes on
with it.
"""

import asyncio
import time
from collections.abc import Iterator

import pytest

from chatturn.database.sqlite import SqliteDatabase
from tests.support.isolates import TURN, Isolate
from tests.support.turns import Product, open_sqlite
from tests.turns.test_cancels import Storage, session_watch
from tests.turns.test_streams import WHOLE, WORDS, rows, seqs, text_of


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


# What an adapter must do


async def test_a_turn_has_its_run_on_record_before_it_has_said_anything(database: SqliteDatabase) -> None:
    """An early handle: whoever comes next finds which run it is, though its model is still silent."""
    isolate = Isolate(database, Product(3.0, *WORDS))
    posted = await isolate.post()
    await asyncio.sleep(0.1)

    assert [("chat:acme:thread-1:0", "running")] == await rows(database, "SELECT run_id, status FROM durable_runs")
    assert WHOLE == text_of(await posted.lines())


@pytest.mark.parametrize("after", range(9))
async def test_whoever_attaches_behind_a_cursor_is_told_strictly_what_is_behind_it(
    database: SqliteDatabase, after: int
) -> None:
    isolate = Isolate(database, Product(*WORDS))
    said = await (await isolate.post()).lines()

    assert [seq for seq in seqs(said) if seq > after] == seqs(await (await isolate.follow(after)).lines())


async def test_whoever_attaches_without_a_cursor_is_told_everything(database: SqliteDatabase) -> None:
    """Also while it is being said."""
    isolate = Isolate(database, Product(*WORDS))
    posted = await isolate.post()
    await asyncio.sleep(2)
    follower = await isolate.follow()

    assert await posted.lines() == await follower.lines()


async def test_the_cursor_advances_while_it_is_said_and_survives_the_worker(database: SqliteDatabase) -> None:
    isolate = Isolate(database, Product(*WORDS))
    await isolate.post()
    seen = []
    for _ in range(3):
        await asyncio.sleep(1)
        seen += await rows(database, "SELECT max(last_seq) FROM chat_segments")
    await isolate.kill()

    assert 0 < seen[0][0] < seen[1][0] < seen[2][0]
    assert seen[2:] == await rows(database, "SELECT max(last_seq) FROM chat_segments")


# The session's object


async def test_an_object_sets_its_alarm_beside_a_turn_and_takes_it_away_behind_it(database: SqliteDatabase) -> None:
    """There after 60 s; here after 20 s, or the lease, if that is shorter."""
    isolate, storage = Isolate(database, Product(*WORDS)), Storage()
    watch = session_watch(storage, isolate.service.look_after)
    began = time.time()
    await watch.keep()
    posted = await isolate.post()
    assert storage.alarm is not None
    assert 19_000 < storage.alarm - began * 1000 < 22_000

    await posted.lines()
    await watch.look()
    assert storage.alarm is None


async def test_a_turn_that_is_none_is_a_404(database: SqliteDatabase) -> None:
    isolate = Isolate(database, Product(*WORDS))

    assert [404, 404] == [(await isolate.ask("GET", path)).status for path in (TURN, f"{TURN}/stream")]


async def test_an_alarm_drives_an_orphan_to_its_end(database: SqliteDatabase) -> None:
    owner, heir = (Isolate(database, Product(*WORDS)) for _ in range(2))
    await owner.post()
    await asyncio.sleep(2)
    await owner.kill()
    await asyncio.sleep(120)
    storage = Storage()
    watch = session_watch(storage, heir.service.look_after)
    await watch.look()
    await asyncio.sleep(20)

    assert [("completed",)] == await rows(database, "SELECT status FROM durable_runs")
    assert [(WHOLE,)] == await rows(database, "SELECT content FROM chat_messages WHERE role = 'assistant'")


async def test_an_alarm_does_nothing_where_nothing_is_on_record(database: SqliteDatabase) -> None:
    isolate, storage = Isolate(database, Product(*WORDS)), Storage()
    await session_watch(storage, isolate.service.look_after).look()

    assert storage.alarm is None
    assert [] == await rows(database, "SELECT * FROM durable_runs")
    assert [] == isolate.hooks.calls  # type: ignore[attr-defined]  # the scripted product
