"""A turn that an API refused for load is tried again when that may help, and until then its failure is the answer."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from chatturn.chat.turn.retries import retry_after_ms
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import BackendRejected, BackendTimeout, BackendTransportError, QuotaExhausted
from chatturn.events import text_delta
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.isolates import Isolate
from tests.support.turns import Desk, Product, open_sqlite


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


def refused(status: int = 429, after_ms: int | None = None) -> BackendTransportError:
    return BackendTransportError("too many", backend="b", upstream_status=status, retry_after_ms=after_ms)


@pytest.mark.parametrize(
    ("error", "idle_attempts", "ms"),
    [
        (refused(429), 1, 1_000),
        (refused(503), 2, 2_000),
        (refused(529), 6, 32_000),
        (refused(429), 7, 60_000),
        (refused(429), 99, 60_000),
        (refused(429, 7_300), 5, 7_300),
        (refused(500, 7_300), 5, 7_300),
        (refused(429, 10**12), 1, 86_400_000),
        (refused(500), 3, 0),
        (refused(0), 3, 0),
        (QuotaExhausted("used up", backend="b", upstream_status=402), 3, 4_000),
        (BackendRejected("no such model", backend="b", upstream_status=404), 3, 0),
        (BackendTimeout("late", backend="b"), 3, 0),
        (ValueError(), 3, 0),
    ],
)
def test_when_it_may_be_tried_again(error: Exception, idle_attempts: int, ms: int) -> None:
    """At once, but where the API refused for load, or said when."""
    assert ms == retry_after_ms(error, idle_attempts)


async def test_an_early_request_gets_the_stored_failure_again(database: SqliteDatabase) -> None:
    """Without a seq, with Retry-After; nobody asks the model, and it is no attempt.  Then the turn is tried again."""
    product = Product(refused(429, 5_500))
    isolate = Isolate(database, product)
    first = await (await isolate.post()).lines()
    assert 5_500 == first[-1]["data"]["retryAfterMs"]
    assert "seq" in first[-1]
    rows = await Desk(database).rows("SELECT * FROM durable_runs")

    await asyncio.sleep(2)
    early = await isolate.post()
    lines = await early.lines()
    assert (200, "4", "1", "true") == (
        early.status,
        *(early.response.headers[name] for name in ("Retry-After", "X-Turn-Attempt", "X-Turn-Replayed")),
    )
    assert ["session.run.started", "error", "session.run.failed"] == [line["type"] for line in lines]
    assert all("seq" not in line for line in lines)
    assert {**first[-1]["data"], "retryAfterMs": pytest.approx(3_500, abs=2)} == lines[-1]["data"]
    assert rows == await Desk(database).rows("SELECT * FROM durable_runs")
    assert 1 == len(product.calls)

    await asyncio.sleep(3.6)
    product.script = (text_delta("at last"),)
    assert "session.run.completed" == (await (await isolate.post()).lines())[-1]["type"]
    assert 2 == len(product.calls)


async def test_ten_calls_in_seven_seconds_do_not_end_a_turn_for_good(database: SqliteDatabase) -> None:
    """A rate limit of some seconds, and a client that comes back at once: the attempts are spread."""
    product = Product(refused(429))
    isolate = Isolate(database, product)
    began = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - began < 7:
        await (await isolate.post()).lines()
        await asyncio.sleep(0.2)
    assert 3 == len(product.calls)
    product.script = (text_delta("at last"),)
    await asyncio.sleep(4)
    assert "session.run.completed" == (await (await isolate.post()).lines())[-1]["type"]


async def test_another_question_waits_for_nothing(database: SqliteDatabase) -> None:
    """What superseded the one that failed is asked at once."""
    product = Product(refused())
    isolate = Isolate(database, product)
    await (await isolate.post()).lines()
    product.script = (text_delta("yes"),)
    lines = await (await isolate.post("another", on_mismatch="supersede")).lines()

    assert "session.run.completed" == lines[-1]["type"]


async def test_other_failures_are_tried_again_at_once(database: SqliteDatabase) -> None:
    """As ever."""
    product = Product(refused(500))
    isolate = Isolate(database, product)
    lines = await (await isolate.post()).lines()
    assert "retryAfterMs" not in lines[-1]["data"]
    reply = await isolate.post()
    await reply.lines()
    assert "Retry-After" not in reply.response.headers
    assert 2 == len(product.calls)


async def test_a_reader_is_shown_the_failure_and_not_kept_waiting(database: SqliteDatabase) -> None:
    """Who follows sees the stored lines."""
    isolate = Isolate(database, Product(refused()))
    first = await (await isolate.post()).lines()

    assert first == await (await isolate.follow()).lines()


async def test_a_worker_may_die_while_it_fails(database: SqliteDatabase) -> None:
    """The moment is stored with the failure, or neither is."""
    places = Fuse()
    other = Desk(MortalDatabase(database, places), Product(refused()))
    await other.run()
    for point in range(len(places.places)):
        with open_sqlite() as fresh:
            with pytest.raises(Crash):
                await Desk(MortalDatabase(fresh, Fuse(point)), Product(refused())).run()
            found: list[tuple[Any, ...]] = await Desk(fresh).rows(
                "SELECT r.status, t.retry_at IS NOT NULL FROM durable_runs AS r JOIN chat_turns AS t USING (run_id)"
            )
            assert found in ([], [("running", 0)], [("failed", 1)])


async def test_a_replay_is_still_one_round_trip(database: SqliteDatabase) -> None:
    """And so is the stored failure."""
    isolate = Isolate(database, Product(refused()), settings={"LOG_EVERY_MS": "0"})
    await (await isolate.post()).lines()
    before = isolate.wire.batches
    await (await isolate.post()).lines()
    assert 1 == isolate.wire.batches - before
