"""How often a turn's log is stored while the database, or the isolate, is busy."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import text_delta
from tests.support.isolates import Isolate
from tests.support.turns import Product, open_sqlite
from tests.support.whole_turns import cancel, rows, wrap

TEN_SECONDS = [step for n in range(100) for step in (text_delta(f"w{n} "), 0.1)]


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


async def batches(database: SqliteDatabase, *, took_s: float, lease_ms: int = 60_000) -> int:
    """Run a turn of ten seconds over a database that takes so long; return how many batches that were."""
    isolate = Isolate(database, Product(*TEN_SECONDS), settings={"LEASE_MS": str(lease_ms)})

    async def take_time(_statements: Any) -> None:
        await asyncio.sleep(took_s)

    wrapped = wrap(isolate, after=take_time)
    await (await isolate.post()).lines()
    return wrapped.batches


async def test_a_database_at_ease_is_written_four_times_a_second(database: SqliteDatabase) -> None:
    """As `LOG_EVERY_MS` says."""
    assert 35 <= await batches(database, took_s=0.001) <= 50


async def test_a_busy_database_is_written_twenty_times_more_rarely_than_a_write_takes(database: SqliteDatabase) -> None:
    """A twentieth of the time goes there, and no more."""
    assert 12 <= await batches(database, took_s=0.04) <= 16


async def test_a_very_busy_one_every_two_seconds(database: SqliteDatabase) -> None:
    """What is lost with a worker stays little."""
    assert 6 <= await batches(database, took_s=0.3) <= 9


async def test_a_short_lease_is_never_waited_out(database: SqliteDatabase) -> None:
    """Six writes in its term, which renew it."""
    assert await batches(database, took_s=0.3, lease_ms=3_000) >= 15
    assert [(1,)] == await rows(database, "SELECT epoch FROM durable_runs")


async def test_a_cancel_is_seen_in_two_seconds_however_busy(database: SqliteDatabase) -> None:
    """From another isolate, which only leaves a note in the database."""
    owner, other = Isolate(database, Product(*TEN_SECONDS)), Isolate(database, Product(*TEN_SECONDS))

    async def take_time(_statements: Any) -> None:
        await asyncio.sleep(0.3)

    wrap(owner, after=take_time)
    reply = await owner.post()
    await asyncio.sleep(4)
    began = asyncio.get_running_loop().time()
    await cancel(other)
    lines = await reply.lines()

    assert "session.run.cancelled" == lines[-1]["type"]
    assert asyncio.get_running_loop().time() - began < 4
