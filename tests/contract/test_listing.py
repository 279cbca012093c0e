"""Lists of runs: by project, status, tenant and staleness, in pages whose work is bounded."""

from typing import Any

import pytest

from chatturn.chat.thread.identity import ChatTurnIdentity, turn_run_id
from chatturn.chat.turn.sql import begin_turn
from chatturn.database.api import Database, Statement
from chatturn.durable.records import MAX_RUNS_PER_PAGE, DurableRunManifest, RunQuery, RunStatus, Wait
from chatturn.durable.sql import run_lists as sql
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import InvalidField
from tests.support.clock import Clock
from tests.support.runs import LEASE_MS, claim, lease_of, manifest

PROJECT = manifest().project_id


def other_project() -> DurableRunManifest:
    """Return the manifest of another product's run."""
    return DurableRunManifest(project_id="other", task=manifest().task, input=1)


async def turn_of(store: SqlRunStore, tenant_id: str, turn_index: int, **options: Any) -> str:
    """Claim a chat turn and return its run id."""
    identity = ChatTurnIdentity(tenant_id=tenant_id, session_id="thread", user_id="ann", turn_index=turn_index)
    begin = begin_turn(identity, user_message="hi", model=None, metadata_json=None)
    run_id = turn_run_id(identity)
    await claim(store, run_id, with_statements=[begin], **options)
    return run_id


async def listed(store: SqlRunStore, **query: Any) -> list[str]:
    """Return the run ids of a whole list, read page by page."""
    found: list[str] = []
    after: str | None = None
    while True:
        page = await store.list_runs(RunQuery(project_id=PROJECT, **{"limit": 3, **query}, after=after))
        found += [run.run_id for run in page.runs]
        after = page.next
        if after is None:
            return found


async def test_a_list_has_every_run_once_the_latest_first(store: SqlRunStore, clock: Clock) -> None:
    """Whatever their status, in the order of their creation."""
    names = [f"run-{number}" for number in range(10)]
    for number, name in enumerate(names):
        lease = await lease_of(store, name)
        clock.advance(1)
        if number % 3 == 0:
            await store.end_run(lease, RunStatus.COMPLETED)
        if number % 3 == 1:
            await store.end_run(lease, RunStatus.FAILED)

    assert names[::-1] == await listed(store)


async def test_a_list_by_status_has_only_those(store: SqlRunStore) -> None:
    """All five, exactly."""
    for name in ("a", "b"):
        await store.end_run(await lease_of(store, f"failed-{name}"), RunStatus.FAILED)
        await store.end_run(await lease_of(store, f"completed-{name}"), RunStatus.COMPLETED)
        await lease_of(store, f"running-{name}")
        wait = Wait(step_index=0, key="k", wake_at="2027-01-01T00:00:00.000Z")
        await store.suspend(await lease_of(store, f"suspended-{name}"), wait)

    for status in RunStatus:
        expected = [] if status is RunStatus.PENDING else [f"{status}-b", f"{status}-a"]
        assert expected == await listed(store, status=status)


async def test_a_list_is_of_one_project(store: SqlRunStore, clock: Clock) -> None:
    """Another product's runs in the same database are not in it."""
    await lease_of(store, "ours")
    await claim(store, "theirs", manifest=other_project())
    turn = await turn_of(store, "acme", 0)
    await turn_of(store, "acme", 1, manifest=other_project())
    clock.advance(LEASE_MS)

    assert [turn, "ours"] == await listed(store)
    assert ["ours", turn] == await listed(store, stale=True)
    assert [turn] == await listed(store, tenant_id="acme")


@pytest.mark.parametrize("limit", [1, 2, 3, MAX_RUNS_PER_PAGE])
async def test_pages_are_as_long_as_asked(store: SqlRunStore, limit: int) -> None:
    """The last one says that it is the last, even if it is full."""
    for number in range(4):
        await lease_of(store, f"run-{number}")
    page = await store.list_runs(RunQuery(project_id=PROJECT, limit=limit))

    assert min(limit, 4) == len(page.runs)
    assert (page.next is None) == (limit >= 4)
    assert ["run-3", "run-2", "run-1", "run-0"] == await listed(store, limit=limit)


async def test_a_page_has_the_runs_as_they_are(store: SqlRunStore) -> None:
    """Whole records, the same as `load_run` gives."""
    await lease_of(store, "run-1")
    await turn_of(store, "acme", 0)
    for query in ({}, {"status": RunStatus.RUNNING}, {"tenant_id": "acme"}):
        page = await store.list_runs(RunQuery(project_id=PROJECT, **query))

        assert [await store.load_run(run.run_id) for run in page.runs] == list(page.runs) != []


async def test_a_cursor_keeps_its_place(store: SqlRunStore) -> None:
    """What is created or changed between two pages neither repeats nor hides a run."""
    for number in range(6):
        await lease_of(store, f"run-{number}")
    first = await store.list_runs(RunQuery(project_id=PROJECT, limit=3))
    await lease_of(store, "new")
    gone = await store.load_run("run-5")
    assert gone is not None
    await store.database.batch([Statement("DELETE FROM durable_runs WHERE run_id IN ('run-5', 'run-3', 'run-1')")])
    second = await store.list_runs(RunQuery(project_id=PROJECT, limit=3, after=first.next))

    assert ["run-2", "run-0"] == [run.run_id for run in second.runs]


async def test_stale_runs_are_those_whose_worker_died(store: SqlRunStore, clock: Clock) -> None:
    """The longest dead first; neither the living, nor the suspended, nor what has ended."""
    await lease_of(store, "theirs")  # agent-runtime fails a run and leaves its lease
    await store.database.batch([Statement("UPDATE durable_runs SET status = 'failed' WHERE run_id = 'theirs'")])
    for number in range(4):
        await lease_of(store, f"dead-{number}")
        clock.advance(10)
    await store.suspend(await lease_of(store, "waits"), Wait(step_index=0, key=None, wake_at=clock.after(1)))
    await store.end_run(await lease_of(store, "failed"), RunStatus.FAILED)
    clock.advance(LEASE_MS - 1)
    await lease_of(store, "alive")

    assert [f"dead-{number}" for number in range(4)] == await listed(store, stale=True)
    assert [f"dead-{number}" for number in range(4)] == await listed(store, stale=True, limit=1)


async def test_runs_that_went_stale_together_are_all_listed(store: SqlRunStore, clock: Clock) -> None:
    """A page may end in the middle of one millisecond."""
    names = [f"dead-{number}" for number in range(5)]
    for name in names:
        await lease_of(store, name)
    clock.advance(LEASE_MS)

    assert names == await listed(store, stale=True, limit=2)


async def test_a_tenants_list_has_its_turns_only(store: SqlRunStore, clock: Clock) -> None:
    """The latest first; a tenant whose name begins the same, or is a part of an id, sees nothing of it."""
    turns = []
    for number in range(7):
        turns.append(await turn_of(store, "acme", number))
        await turn_of(store, "acme2", number)
        await lease_of(store, f"chat:acme:plain:{number}")
        clock.advance(number % 2)

    expected = sorted(turns, key=lambda run_id: ((int(run_id[-1])) // 2, run_id), reverse=True)
    assert expected == await listed(store, tenant_id="acme")
    assert [] == await listed(store, tenant_id="acm")
    assert [] == await listed(store, tenant_id="")


async def test_a_tenants_list_by_status_and_staleness(store: SqlRunStore, clock: Clock) -> None:
    """Both can be asked of one tenant, too."""
    turns = [await turn_of(store, "acme", number) for number in range(4)]
    await turn_of(store, "globex", 0)
    run = await claim(store, "plain")
    assert run.lease is not None
    clock.advance(LEASE_MS)
    lease = (await claim(store, turns[2])).lease
    assert lease is not None
    await store.end_run(lease, RunStatus.FAILED)

    assert [turns[2]] == await listed(store, tenant_id="acme", status=RunStatus.FAILED)
    assert [turns[0], turns[1], turns[3]] == await listed(store, tenant_id="acme", stale=True)


async def test_a_page_looks_at_a_bounded_number_of_turns(store: SqlRunStore, database: Database) -> None:
    """Where few of many turns have the status, pages are short or empty, but the list is whole."""
    many = 2 * sql.TURNS_SCANNED_AT_MOST + 10
    moment = "'2026-01-01T00:00:00.000Z'"
    numbers = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?1 - 1)"
    run_id = "'chat:acme:bulk:' || printf('%05d', i)"
    await database.batch(
        [
            Statement(
                f"{numbers} INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at)"  # noqa: S608
                f" SELECT {run_id}, 'h', ?2, CASE WHEN i IN (0, 1, 4000) THEN 'failed' ELSE 'completed' END,"
                f" {moment}, {moment} FROM n",
                (many, PROJECT),
            ),
            Statement(
                f"{numbers} INSERT INTO chat_turns (run_id, tenant_id, session_id, user_id, turn_index, user_message,"  # noqa: S608
                f" attempt, created_at, updated_at) SELECT {run_id}, 'acme', 'bulk', 'ann', i, 'hi', 1, {moment},"
                f" {moment} FROM n",
                (many,),
            ),
        ]
    )
    failed = RunQuery(project_id=PROJECT, tenant_id="acme", status=RunStatus.FAILED)
    first = await store.list_runs(failed)
    whole = await listed(store, tenant_id="acme", status=RunStatus.FAILED)

    assert (["chat:acme:bulk:04000"], True) == ([run.run_id for run in first.runs], first.next is not None)
    assert ["chat:acme:bulk:04000", "chat:acme:bulk:00001", "chat:acme:bulk:00000"] == whole


@pytest.mark.parametrize(
    "after",
    ["", "x", "!!!", "é", "bnVsbA", "W10", "WyJwIl0", "WyJwIiwiMSJd", "WyJwIix0cnVlXQ", "WyJwIiwtMV0", "WyJwIiwxZTUwXQ",
     "WyJ0IiwieCIsInkiXQ", "WyJwIiwxODQ0Njc0NDA3MzcwOTU1MTYxNl0", "W1tbW1tb" * 2000],
)  # fmt: skip
async def test_what_is_no_cursor_of_the_list_is_refused(store: SqlRunStore, after: str) -> None:
    """Forged, cut, or of another list: it names the field, and no SQL runs."""
    with pytest.raises(InvalidField):
        await store.list_runs(RunQuery(project_id=PROJECT, after=after))


async def test_a_cursor_of_another_list_is_refused(store: SqlRunStore, clock: Clock) -> None:
    """Its place would mean nothing there."""
    for number in range(2):
        await turn_of(store, "acme", number)
    clock.advance(LEASE_MS)
    kinds: list[dict[str, Any]] = [{}, {"tenant_id": "acme"}, {"stale": True}]
    cursors = [(await store.list_runs(RunQuery(project_id=PROJECT, limit=1, **kind))).next for kind in kinds]

    assert all(cursors)
    for kind in kinds:
        for cursor in cursors[: kinds.index(kind)] + cursors[kinds.index(kind) + 1 :]:
            with pytest.raises(InvalidField):
                await store.list_runs(RunQuery(project_id=PROJECT, after=cursor, **kind))


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": MAX_RUNS_PER_PAGE + 1}, {"stale": True, "status": "failed"}])
def test_a_wrong_query_cannot_be_made(wrong: dict[str, Any]) -> None:
    """Its bounds are the type's."""
    with pytest.raises(InvalidField):
        RunQuery(project_id=PROJECT, **wrong)


PLANS = {
    "by status": (sql.LIST_BY_STATUS, 4),
    "of a project": (sql.LIST_OF_PROJECT, 3),
    "stale": (sql.LIST_STALE, 6),
    "of a tenant": (sql.LIST_OF_TENANT, 7),
    "end of a tenant's scan": (sql.TENANT_SCAN_END, 4),
    **{f"deletion {number}": (text, 3) for number, text in enumerate(sql.DELETE_FINISHED)},
}


@pytest.mark.parametrize("name", PLANS)
async def test_no_list_and_no_deletion_scans_a_table(database: Database, name: str) -> None:
    """The planner finds an index for every table; where it sorts, it is what one page has looked at."""
    text, parameters = PLANS[name]
    [plan] = await database.batch([Statement(f"EXPLAIN QUERY PLAN {text}", ("1",) * parameters)])
    details = [str(row["detail"]) for row in plan.rows]

    assert details
    # A subquery's rows, by its name, are no table.
    derived = ("SCAN t", "SCAN (", "SCAN SUBQUERY")
    assert [] == [each for each in details if each.startswith("SCAN") and not each.startswith(derived)]
    assert name in {"of a project", "of a tenant"} or not any("TEMP B-TREE" in each for each in details)
