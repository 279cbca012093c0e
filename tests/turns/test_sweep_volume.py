"""What one sweep does of a hundred thousand: until its invocation's queries or its time are used up, by plan."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from chatturn.chat.hooks.hooks import FinishedTurn
from chatturn.chat.sweep_budget import SWEEP_SHARES, CountedDatabase, SweepBudget
from chatturn.database.api import Result, Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import text_delta
from tests.support.isolates import TURN, Isolate
from tests.support.turns import Desk, Product, open_sqlite

TWO_SECONDS = [part for n in range(20) for part in (text_delta(f"{n} "), 0.1)]


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


class Counted:
    """A database that counts round trips."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self.batches = 0

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Count it, and do it."""
        self.batches += 1
        results: list[Result] = await self._database.batch(statements)
        return results


class Told(Product):
    """A product whose receiver takes some time."""

    def __init__(self, *script: Any, takes_s: float = 0.05) -> None:
        super().__init__(*script)
        self.takes_s = takes_s
        self.told: list[str] = []

    async def on_turn_complete(self, turn: FinishedTurn) -> None:
        """Take some time."""
        await asyncio.sleep(self.takes_s)
        self.told.append(turn.idempotency_key)


async def orphans(database: SqliteDatabase, number: int, product: Product) -> None:
    """Leave turns behind whose worker is dead."""
    owner = Isolate(database, product)
    for each in range(number):
        await owner.ask("POST", TURN.replace("thread-1", f"t{each}"), {"message": "hi"}, x_user=f"user-{each % 9}")
    await asyncio.sleep(0.5)
    await owner.kill()
    await asyncio.sleep(60)


async def owed(database: SqliteDatabase, number: int) -> None:
    """Leave hook calls behind that are due."""
    isolate = Isolate(database, Product(text_delta("a")))
    await (await isolate.ask("POST", TURN.replace("thread-1", "first"), {"message": "hi"})).lines()
    await Desk(database).rows(
        f"""INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at, completed_at,
              epoch)
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number})
            SELECT 'chat:acme:h' || i || ':0', manifest_hash, project_id, status, created_at, updated_at, completed_at, 1
            FROM n JOIN durable_runs ON run_id = 'chat:acme:first:0' RETURNING 1"""  # noqa: S608
    )
    for table, columns in {
        "chat_turns": "tenant_id, session_id, user_id, turn_index, user_message, attempt, created_at, updated_at",
        "durable_steps": "step_index, intent, kind, status, result_json",
    }.items():
        await Desk(database).rows(
            f"""INSERT INTO {table} (run_id, {columns}) SELECT r.run_id, {", ".join(f"o.{c}" for c in columns.split(", "))}
                FROM durable_runs AS r JOIN {table} AS o ON o.run_id = 'chat:acme:first:0'
                WHERE r.run_id LIKE 'chat:acme:h%' RETURNING 1"""  # noqa: S608
        )
    await Desk(database).rows(
        """INSERT INTO chat_outbox (run_id, hook, attempt, status, next_call_at, created_at)
           SELECT run_id, 'on_turn_complete', 1, 'pending', created_at, created_at FROM durable_runs
           WHERE run_id LIKE 'chat:acme:h%' RETURNING 1"""
    )


async def test_seventy_orphans_of_two_seconds_run_in_one_sweep(database: SqliteDatabase) -> None:
    """That is 4,000 an hour, with the cron of each minute; hooks go on beside them."""
    await orphans(database, 75, Product(*TWO_SECONDS))
    await owed(database, 230)
    product = Told(*TWO_SECONDS)
    cron = Isolate(database, product)
    cron.wire = counted = Counted(database)  # type: ignore[assignment]
    began = asyncio.get_running_loop().time()

    ended = await cron.sweep()

    assert 960 >= counted.batches
    assert 60 > asyncio.get_running_loop().time() - began
    done = await Desk(database).rows("SELECT count(*) FROM durable_runs WHERE status = 'completed' AND epoch = 2")
    assert 67 <= done[0][0]
    assert 200 <= len([key for key in product.told if "/on_turn_complete" in key]) - done[0][0]
    assert ended >= 267


class Parts:
    """
    Invocations that a sweep starts, each with a count of its queries.

    Attributes:
        counted: Of each.
        named: Which turns each was given.
    """

    def __init__(self, database: SqliteDatabase, *, killed: int | None = None) -> None:
        self.counted: list[Counted] = []
        self.named: list[Sequence[str]] = []
        self._database = database
        self._killed = killed

    async def hand_out(self, run_ids: Sequence[str]) -> int:
        """Start one; the one that is to die does so after 7 s."""
        at = len(self.named)
        self.counted.append(counted := Counted(self._database))
        part = Isolate(counted, Product(*TWO_SECONDS))
        self.named.append(run_ids)
        running = asyncio.ensure_future(part.run_part(run_ids))
        if at != self._killed:
            return await running
        await asyncio.sleep(7)
        await part.kill()
        await asyncio.gather(running, return_exceptions=True)
        return 0


@pytest.mark.slow
async def test_with_a_service_binding_ten_thousand_orphans_are_an_hour(database: SqliteDatabase) -> None:
    """167 in one sweep: parts of them run in invocations of their own, each within its queries and its minute."""
    await orphans(database, 300, Product(*TWO_SECONDS))
    cron, parts = Isolate(database, Product(*TWO_SECONDS)), Parts(database)
    cron.wire = counted = Counted(database)  # type: ignore[assignment]
    began = asyncio.get_running_loop().time()

    ended = await cron.sweep(parts.hand_out)

    assert 60 > asyncio.get_running_loop().time() - began
    assert 10_000 / 60 <= ended
    assert [(ended,)] == await Desk(database).rows("SELECT count(*) FROM durable_runs WHERE status = 'completed'")
    assert [(2,)] == await Desk(database).rows("SELECT max(epoch) FROM durable_runs")
    assert all(960 >= each.batches for each in (counted, *parts.counted))
    assert 3 == len(parts.named)


async def test_few_orphans_start_no_other_invocation(database: SqliteDatabase) -> None:
    """Nor does nothing."""
    cron, parts = Isolate(database, Product(*TWO_SECONDS)), Parts(database)
    await cron.sweep(parts.hand_out)
    await orphans(database, 40, Product(*TWO_SECONDS))
    assert 40 == await cron.sweep(parts.hand_out)
    assert [] == parts.named


async def test_a_part_that_dies_leaves_its_turns_to_the_next_sweep(database: SqliteDatabase) -> None:
    """Each turn has one answer in the end, whichever of them died."""
    await orphans(database, 90, Product(*TWO_SECONDS))
    parts = Parts(database, killed=1)
    await Isolate(database, Product(*TWO_SECONDS)).sweep(parts.hand_out)
    unfinished = "SELECT count(*) FROM durable_runs WHERE status <> 'completed'"
    assert 0 < (await Desk(database).rows(unfinished))[0][0]
    await asyncio.sleep(60)
    await Isolate(database, Product(*TWO_SECONDS)).sweep(parts.hand_out)
    assert [(0,)] == await Desk(database).rows(unfinished)
    assert [(180,)] == await Desk(database).rows("SELECT count(*) FROM chat_messages")


async def test_a_part_that_never_answers_holds_no_sweep_up(database: SqliteDatabase) -> None:
    """It is given up and logged after as long as the platform lets an invocation run."""
    await orphans(database, 90, Product(*TWO_SECONDS))
    isolate, began = Isolate(database, Product(*TWO_SECONDS)), asyncio.get_running_loop().time()

    async def hang(_run_ids: Sequence[str]) -> int:
        await asyncio.Event().wait()
        return 0

    await isolate.sweep(hang)

    assert 900 <= asyncio.get_running_loop().time() - began < 1_000
    assert "sweep.part_failed" in [event for event, _ in isolate.logged]


async def test_two_sweeps_at_once_run_no_turn_twice(database: SqliteDatabase) -> None:
    """A cron that comes while the parts of the one before still run hands the same turns out again."""
    await orphans(database, 90, Product(*TWO_SECONDS))
    crons = [Isolate(database, Product(*TWO_SECONDS)) for _ in range(2)]
    parts = Parts(database)
    await asyncio.gather(*(cron.sweep(parts.hand_out) for cron in crons))
    assert [(90,)] == await Desk(database).rows("SELECT count(*) FROM durable_runs WHERE status = 'completed'")
    assert [(2,)] == await Desk(database).rows("SELECT max(epoch) FROM durable_runs")


async def test_what_is_too_old_goes_as_fast_as_it_comes(database: SqliteDatabase) -> None:
    """1,700 in one sweep: 100,000 an hour."""
    await owed(database, 1_900)
    await Desk(database).rows("DELETE FROM chat_outbox RETURNING 1")
    await asyncio.sleep(2 * 86_400)
    cron = Isolate(database, Product(), settings={"RETENTION_DAYS": "1"})
    cron.wire = counted = Counted(database)  # type: ignore[assignment]
    await cron.sweep()
    assert 200 >= (await Desk(database).rows("SELECT count(*) FROM durable_runs"))[0][0]
    assert 960 >= counted.batches


async def test_a_receiver_that_hangs_holds_up_no_turn(database: SqliteDatabase) -> None:
    """All turns have their answers while calls still hang."""
    await orphans(database, 10, Product(*TWO_SECONDS))
    await owed(database, 30)
    cron = Isolate(database, Told(*TWO_SECONDS, takes_s=9_999.0))
    sweeping = asyncio.ensure_future(cron.sweep())
    await asyncio.sleep(15)
    done = await Desk(database).rows(
        "SELECT count(*) FROM durable_steps WHERE run_id LIKE '%:t%' AND status = 'completed'"
    )
    assert [(10,)] == done
    await sweeping


async def test_the_free_plan_keeps_to_its_fifty(database: SqliteDatabase) -> None:
    """With a turn, hooks, logs to be made short and old turns."""
    await orphans(database, 3, Product(*TWO_SECONDS))
    await owed(database, 40)
    cron = Isolate(database, Told(*TWO_SECONDS), settings={"WORKERS_PLAN": "free", "RETENTION_DAYS": "1"})
    for _ in range(5):
        cron.wire = counted = Counted(database)  # type: ignore[assignment]
        await cron.sweep()
        assert 50 >= counted.batches
        await asyncio.sleep(600)


async def test_nothing_is_begun_when_the_time_is_over(database: SqliteDatabase) -> None:
    """A cron comes each minute; what was begun before ends."""
    budget = SweepBudget(CountedDatabase(database), SWEEP_SHARES["paid"])
    assert budget.begin_turn()
    assert budget.begin_hook_call()
    await asyncio.sleep(46)
    assert (False, False, False) == (budget.begin_turn(), budget.begin_hook_call(), budget.room(1))


@pytest.mark.parametrize("answer_s", [2.0, 50.0])
async def test_what_is_too_old_goes_beside_lost_turns_and_hooks(database: SqliteDatabase, answer_s: float) -> None:
    """However long the turns take: else retention would stand still for as long as there are lost turns."""
    await owed(database, 1_900)
    await Desk(database).rows("DELETE FROM chat_outbox RETURNING 1")
    await asyncio.sleep(2 * 86_400)
    await orphans(database, 75, Product(*TWO_SECONDS))
    slow = Told(text_delta("a"), answer_s, text_delta("b"))
    cron = Isolate(database, slow, settings={"RETENTION_DAYS": "1"})
    cron.wire = counted = Counted(database)  # type: ignore[assignment]
    await cron.sweep()
    old = "SELECT count(*) FROM durable_runs WHERE run_id LIKE 'chat:acme:h%'"

    assert 200 >= (await Desk(database).rows(old))[0][0]
    assert 960 >= counted.batches
