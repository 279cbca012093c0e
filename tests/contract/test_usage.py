"""Usage in the database: recorded once, added up the same by whatever, and only under a lease that is held."""

from typing import Any

import pytest

from chatturn.chat.thread.identity import ChatTurnIdentity, turn_run_id
from chatturn.chat.usage import sql
from chatturn.chat.usage.calls import CallOutcome, ModelCall
from chatturn.chat.usage.totals import UsageQuery, list_usage
from chatturn.database.api import Database, Statement
from chatturn.durable.sql.runs import HELD
from chatturn.durable.sql_store import SqlRunStore
from chatturn.usage.prices import PriceTable
from tests.support.clock import Clock
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
        await store.write(lease, [HOLDS, *sql.record_calls(calls, who, delivered=delivered)], renew=True)


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
        await store.write(lease, [HOLDS, *sql.record_calls([each], WHO, delivered=delivered)], renew=True)
    page = await list_usage(database, asked("day"))

    assert (0, 1, 7, 0) == (
        page.total["runningCalls"],
        page.total["delivered"]["calls"],
        page.total["delivered"]["tokensIn"],
        page.total["wasted"]["calls"],
    )
