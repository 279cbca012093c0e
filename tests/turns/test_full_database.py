"""A database that is full has its own code, is not tried again, is seen by /readyz, and announces itself."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from chatturn.chat.hooks.hooks import FinishedTurn
from chatturn.database.api import Result, Statement
from chatturn.database.fullness import MOST_BYTES, SizedDatabase, WriteProbe, is_full
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import StoreFull
from chatturn.events import text_delta
from tests.support.isolates import Isolate
from tests.support.turns import Product, open_sqlite
from tests.support.whole_turns import wrap


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    with open_sqlite() as database:
        yield database


def fill(database: SqliteDatabase) -> None:
    """Leave no page that could be added, and none that is free."""
    connection = database._connection
    connection.execute("VACUUM")
    [(pages,)] = connection.execute("PRAGMA page_count").fetchall()
    connection.execute(f"PRAGMA max_page_count = {pages}")


def make_room(database: SqliteDatabase) -> None:
    database._connection.execute("PRAGMA max_page_count = 1000000")


async def test_a_full_database_refuses_turns_and_is_seen(database: SqliteDatabase) -> None:
    """At once, with a code of its own; what is stored can be read; with room again everything works."""
    alone = Isolate(database, Product(text_delta("hi")))
    whole = await (await alone.post()).lines()
    fill(database)
    wrapped = wrap(alone)
    path = "/v1/sessions/new/turns/0"
    refused = await alone.ask("POST", path, {"message": "x" * 50_000})
    tries = wrapped.batches
    ready = await alone.ask("GET", "/readyz")
    replayed = await (await alone.post()).lines()
    make_room(database)
    again = await (await alone.ask("POST", path, {"message": "x" * 50_000})).lines()

    assert (503, "store_full", False) == (refused.status, refused.body["code"], refused.body["retryable"])
    assert 1 == tries
    assert 503 == ready.status
    [check] = [check for check in ready.body["checks"] if check["name"] == "database"]
    assert (False, "Nothing more can be stored at the moment. Contact the operator.") == (check["ok"], check["detail"])
    assert "RETENTION_DAYS" in check["mend"]
    assert whole[-1]["type"] == replayed[-1]["type"] == again[-1]["type"] == "session.run.completed"
    assert 200 == (await alone.ask("GET", "/readyz")).status


async def test_the_probe_writes_at_most_every_ten_seconds_and_leaves_nothing(database: SqliteDatabase) -> None:
    """As long as it works; a database that is full is tried again with every look."""
    now, probe = [0.0], WriteProbe(lambda: now[0])
    await probe.require_works(database)
    fill(database)
    now[0] = 9.9
    await probe.require_works(database)
    now[0] = 10.0
    for _ in range(2):
        with pytest.raises(StoreFull):
            await probe.require_works(database)
    make_room(database)
    await probe.require_works(database)
    [left] = await database.batch([Statement("SELECT min(version) AS least FROM durable_schema_info")])

    assert [{"least": 1}] == [dict(row) for row in left.rows]


async def test_the_size_is_told_and_is_warned_of_before_it_is_too_late() -> None:
    """Three times, at 80, 90 and 95 %, however often it is seen."""

    class Grown:
        size: int | None = None

        async def batch(self, statements: Sequence[Statement]) -> list[Result]:
            return [Result(rows=(), changes=0, database_bytes=self.size) for _ in statements]

    told, warned, grown = list[int](), list[int](), Grown()
    database = SizedDatabase(grown, tell=told.append, warn=warned.append, most=MOST_BYTES["free"])
    for megabytes in (None, 1, 399, 400, 420, 449, 480, 490):
        grown.size = None if megabytes is None else megabytes * 1_000_000
        await database.batch([Statement("SELECT 1")])

    assert [size // 1_000_000 for size in told] == [1, 399, 400, 420, 449, 480, 490]
    assert [size // 1_000_000 for size in warned] == [400, 480]


@pytest.mark.parametrize(
    ("message", "full"),
    [
        ("D1_ERROR: database or disk is full: SQLITE_FULL", True),
        ("D1_ERROR: Exceeded maximum DB size.", True),
        ("D1_ERROR: Exceeded maximum account storage limit of 5 GB", True),
        ("D1_ERROR: no such savepoint: _cf_sync_savepoint_0: SQLITE_ERROR", True),
        ("D1_ERROR: Your account has exceeded D1's maximum account storage limit, please contact Cloudflare", True),
        ("D1_ERROR: Your account has exceeded D1's free tier daily row write limit. Upgrade to a paid plan.", True),
        ("D1_ERROR: Your account has exceeded D1's free tier daily row read limit. Upgrade to a paid plan.", True),
        ("D1_ERROR: D1 DB exceeded its CPU time limit and was reset.", False),
        ("D1_ERROR: D1 DB exceeded its memory limit and was reset.", False),
        ("D1_ERROR: D1 DB storage operation exceeded timeout which caused object to be reset.", False),
        ("D1_ERROR: D1 DB is overloaded. Too many requests queued.", False),
        ("D1_ERROR: Network connection lost.", False),
        ("D1_ERROR: too many SQL variables at offset 3: SQLITE_ERROR", False),
    ],
)
def test_what_passes_is_not_taken_for_full(message: str, full: bool) -> None:
    """Of what D1 is known to say."""
    assert full == is_full(message)


class Failing(Product):
    """A product whose receiver is away."""

    async def on_turn_complete(self, turn: FinishedTurn) -> None:
        raise ConnectionError(turn.idempotency_key)


class _Refusing:
    """A database that is full: who writes must delete something first."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        writes = [found[0] for each in statements if (found := re.match(r"\s*(INSERT|UPDATE|DELETE)", each.sql))]
        if writes and writes[0].strip() != "DELETE":
            raise StoreFull("Exceeded maximum DB size")
        return await self._database.batch(statements)


async def test_a_full_database_is_made_room_in_by_retention(database: SqliteDatabase) -> None:
    """Though lost turns cannot be gone on with, and hook calls that are due cannot be recorded."""
    first = Isolate(database, Product(text_delta("hi")))
    await (await first.post()).lines()
    await asyncio.sleep(3 * 86_400)
    lost = Isolate(database, Failing(text_delta("a")))
    await (await lost.ask("POST", "/v1/sessions/owed/turns/0", {"message": "hi"})).lines()
    lost.hooks = Product(text_delta("a"), 10_000.0)
    await lost.ask("POST", "/v1/sessions/lost/turns/0", {"message": "hi"})
    await asyncio.sleep(1)
    await lost.kill()
    await asyncio.sleep(600)
    cron = Isolate(database, Failing(text_delta("hi")), settings={"RETENTION_DAYS": "1"})
    cron.wire._database = _Refusing(database)
    with suppress(StoreFull):
        await cron.sweep()
    [left] = await database.batch([Statement("SELECT run_id FROM durable_runs ORDER BY run_id")])

    assert ["chat:acme:lost:0", "chat:acme:owed:0"] == [row["run_id"] for row in left.rows]
