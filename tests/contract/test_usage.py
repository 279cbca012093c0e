"""Usage in the database: recorded once, added up the same by whatever, and only under a lease that is held."""

import random
from typing import Any

import pytest

from chatturn.chat.thread.identity import ChatTurnIdentity, turn_run_id
from chatturn.chat.usage import sql
from chatturn.chat.usage.calls import CallOutcome, ModelCall
from chatturn.chat.usage.totals import UsageQuery, list_usage
from chatturn.database.api import Database, Statement
from chatturn.database.migration import migrate
from chatturn.durable.sql.runs import HELD
from chatturn.durable.sql_store import SqlRunStore
from chatturn.usage.prices import PriceTable
from tests.support.clock import Clock
from tests.support.ledger import require_sums
from tests.support.runs import lease_of

DAY_MS = 86_400_000
WHO = ChatTurnIdentity(tenant_id="acme", session_id="a", user_id="ann", turn_index=0)


def call(index: int, outcome: CallOutcome = "completed", **known: Any) -> ModelCall:
    """Return a call of the first attempt."""
    return ModelCall(attempt=1, index=index, prices=PriceTable(), outcome=outcome, began_s=0.0, **known)


HOLDS = Statement(f"SELECT 1 AS held WHERE {HELD}")
"""Begins a write of a turn."""


async def record(store: SqlRunStore, *calls: ModelCall, delivered: bool = True, who: ChatTurnIdentity = WHO) -> None:
    """Put calls on record under the lease of a turn that begins and ends with them."""
    lease = await lease_of(store, turn_run_id(who))
    for _ in range(2):  # as after a reply that was lost
        await store.write(lease, [HOLDS, *sql.record_calls(calls, who, delivered=delivered, new=False)], renew=True)


def asked(by: str, **members: Any) -> UsageQuery:
    """Return a question for all usage of the last days."""
    fixed: dict[str, Any] = {"tenant_id": None, "first_day": None, "last_day": None, "limit": 50, "after": None}
    return UsageQuery(by=by, **fixed | members)


@pytest.mark.parametrize("by", ["tenant", "session", "model", "day"])
async def test_every_grouping_adds_up_to_the_same(
    store: SqlRunStore, clock: Clock, database: Database, by: str
) -> None:
    """Delivered and wasted apart; what nobody knows is in no sum, and is counted."""
    await record(store, call(0, model="m", tokens_in=7, tokens_out=2, cost_micro_usd=9), call(1, "failed"))
    clock.advance(DAY_MS)
    rival = ChatTurnIdentity(tenant_id="rival", session_id="b", user_id="bob", turn_index=0)
    await record(store, call(0, model="n", tokens_in=10**9, tokens_out=0, cost_micro_usd=10**12), who=rival)
    groups = (await list_usage(database, asked(by))).groups
    pages = [await list_usage(database, asked(by, limit=1))]
    while pages[-1].next is not None:
        pages.append(await list_usage(database, asked(by, limit=1, after=pages[-1].next)))

    total = pages[0].total
    assert [2, 2, 0] == [total[name] for name in ("turns", "attempts", "runningCalls")]
    assert [2, 10**9 + 7, 2, 10**12 + 9, 0] == [
        total["delivered"][name] for name in ("calls", "tokensIn", "tokensOut", "costMicroUsd", "unknownCalls")
    ]
    assert [1, None, None, 1, 1] == [
        total["wasted"][name] for name in ("calls", "tokensIn", "costMicroUsd", "unknownCalls", "unpricedCalls")
    ]
    assert list(groups) == [group for page in pages for group in page.groups]
    assert all(page.total == total for page in pages)
    for kind, name in (("delivered", "tokensIn"), ("delivered", "costMicroUsd"), ("wasted", "calls")):
        assert total[kind][name] == sum(group.sums[kind][name] or 0 for group in groups)


async def test_what_is_known_of_a_call_only_grows(store: SqlRunStore, database: Database) -> None:
    """Its end takes the place of its beginning, and nothing comes after its end but its delivery."""
    lease = await lease_of(store, turn_run_id(WHO))
    ended = call(0, tokens_in=7, tokens_out=2)
    for each, delivered in ((call(0, "running"), False), (ended, False), (ended, True), (call(0, "running"), False)):
        await store.write(lease, [HOLDS, *sql.record_calls([each], WHO, delivered=delivered, new=False)], renew=True)
    page = await list_usage(database, asked("day"))

    assert (0, 1, 7, 0) == (
        page.total["runningCalls"],
        page.total["delivered"]["calls"],
        page.total["delivered"]["tokensIn"],
        page.total["wasted"]["calls"],
    )


MOMENTS = [f"2026-03-{day:02d}T{hour:02d}:00:00.000Z" for day in (1, 2, 3) for hour in (0, 12)]


def some_change(chance: random.Random) -> list[Statement]:
    """Make, change, move or delete calls of a few turns, as no code of ours would."""
    run, model = f"run-{chance.randrange(6)}", chance.choice([None, "", "m", "n"])
    key = (run, chance.randint(1, 2), chance.randrange(2))
    known = [chance.choice([None, chance.randrange(1_000)]) for _ in range(7)]
    outcome, wasted = chance.choice(["running", "completed", "failed", "cancelled", "lost"]), chance.randrange(2)
    who = (f"tenant-{run[-1] < '3'}", f"session-{run[-1]}")
    match chance.randrange(8):
        case 0:
            return [Statement("DELETE FROM chat_usage WHERE run_id = ?1 AND attempt = ?2 AND call_index = ?3", key)]
        case 1:
            return [Statement("DELETE FROM chat_usage WHERE recorded_at < ?1", (chance.choice(MOMENTS[:3]),))]
        case 2:
            return [Statement("UPDATE chat_usage SET wasted = 1 - wasted WHERE run_id = ?1", (run,))]
        case 4:  # what becomes of a turn that is deleted
            end = f"@{chance.randrange(10**9)}"
            return [Statement("UPDATE chat_usage SET run_id = run_id || ?2 WHERE run_id = ?1", (run, end))]
        case 3:
            move = "UPDATE chat_usage SET tenant_id = ?2, session_id = ?3 WHERE run_id = ?1"
            return [Statement(move, (run, *each)) for each in (("", ""), who)]
    record = Statement(
        """
        INSERT INTO chat_usage (run_id, attempt, call_index, model, outcome, wasted, tokens_in, tokens_out,
          tokens_cached, tokens_reasoning, cost_micro_usd, estimated_tokens_out, estimated_cost_micro_usd,
          tenant_id, session_id, recorded_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
        ON CONFLICT (run_id, attempt, call_index) DO UPDATE SET model = excluded.model, outcome = excluded.outcome,
          wasted = excluded.wasted, tokens_in = excluded.tokens_in, cost_micro_usd = excluded.cost_micro_usd
        """,
        (*key, model, outcome, wasted, *known, *who, chance.choice(MOMENTS)),
    )
    return [record]


@pytest.mark.parametrize("seed", range(4))
async def test_the_sums_are_what_the_rows_say_whoever_changes_them(database: Database, seed: int) -> None:
    """Also an operator, an earlier version, and retention; a turn of several days counts once in a period."""
    await migrate(database)
    chance = random.Random(seed)
    for _ in range(25):
        await database.batch([each for _ in range(chance.randint(1, 6)) for each in some_change(chance)])
        for days in (("2026-03-01", "2026-03-03"), ("2026-03-02", "2026-03-02"), ("2026-03-02", "2026-03-09")):
            await require_sums(database, days, chance.choice([None, "tenant-True"]))
    await database.batch([Statement("DELETE FROM chat_usage")])
    left = await database.batch(
        [Statement(f"SELECT count(*) AS left_over FROM {table}") for table in ("chat_usage_sums", "chat_usage_spans")]  # noqa: S608
    )

    assert [{"left_over": 0}] * 2 == [dict(each.rows[0]) for each in left]


async def test_a_ledger_from_before_there_were_sums_has_them(database: Database) -> None:
    """They begin with what the rows say."""
    await migrate(database)
    chance = random.Random(7)
    await database.batch([each for _ in range(60) for each in some_change(chance)])
    dropped = [f"DROP TRIGGER chat_usage_{what}" for what in ("inserted", "updated", "deleted")]
    await database.batch(
        [
            *map(Statement, dropped),
            *(Statement(f"DROP TABLE {table}") for table in ("chat_usage_sums", "chat_usage_spans")),
            Statement("DELETE FROM durable_schema_info WHERE version > 1"),
        ]
    )
    await migrate(database)

    await require_sums(database, ("2026-03-01", "2026-03-03"))


async def test_a_call_that_is_recorded_for_the_first_time_twice_has_one_row(
    store: SqlRunStore, database: Database
) -> None:
    """As where a write's reply was lost and the write is sent again."""
    lease = await lease_of(store, turn_run_id(WHO))
    statements = sql.record_calls([call(0, tokens_in=7, tokens_out=2)], WHO, delivered=True, new=True)
    for _ in range(2):
        await store.write(lease, [HOLDS, *statements], renew=True)
    page = await list_usage(database, asked("day"))

    assert (1, 7) == (page.total["delivered"]["calls"], page.total["delivered"]["tokensIn"])
