"""The SQL of versions: what counts, what is detached, and that a long session costs no more than a short one."""

from collections.abc import Sequence
from typing import Any

from chatturn.chat.lists.sql import read_messages
from chatturn.chat.thread import version_sql
from chatturn.chat.thread.identity import ChatTurnIdentity, turn_run_id
from chatturn.chat.turn.sql import begin_turn, record_messages
from chatturn.database.api import Database, Row, Statement
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.store import Settlement
from tests.support.runs import STEP, claim


def place(index: int, version: int = 1) -> ChatTurnIdentity:
    return ChatTurnIdentity(tenant_id="acme", session_id="thread", user_id="ann", turn_index=index, version=version)


async def answer(store: SqlRunStore, index: int, version: int = 1, replaces: int | None = None) -> None:
    """Ask and answer one version of a turn."""
    identity = place(index, version)
    begin = begin_turn(identity, user_message=f"q{index}.{version}", model=None, metadata_json=None)
    record = version_sql.record_version(identity, replaces, None if replaces is None else "edit", None)
    claimed = await claim(store, turn_run_id(identity), begin=STEP, with_statements=[begin, record])
    assert claimed.lease is not None
    text = f"a{index}.{version}"
    last = [record_messages(text), version_sql.mark_breaks(identity)]
    result = {"finalText": text}
    await store.settle(claimed.lease, Settlement(step_index=STEP.step_index, result=result, with_statements=last))


async def thread(database: Database) -> list[str]:
    """Return the answers of the thread, the latest first."""
    [found] = await database.batch([read_messages("acme", "thread", None, 50)])
    return [str(row["content"]) for row in found.rows if row["role"] == "assistant"]


async def rows(database: Database, statements: Sequence[Statement]) -> Sequence[Row]:
    """Run statements; return the last one's rows."""
    return (await database.batch(list(statements)))[-1].rows


async def test_a_version_detaches_what_followed_another_and_it_comes_back(
    store: SqlRunStore, database: Database
) -> None:
    """By one mark on one row, in the write that makes it count; activation is done again without effect."""
    for index in range(4):
        await answer(store, index)
    await answer(store, 1, 2, replaces=1)
    assert ["a1.2", "a0.1"] == await thread(database)
    for version, expected in ((1, ["a3.1", "a2.1", "a1.1", "a0.1"]), (2, ["a1.2", "a0.1"])):
        for _ in range(2):
            [came] = await rows(database, version_sql.activate(place(1, version)))
            assert (1, 1, 1) == (came["may_count"], came["idle"], came["counts"])
            assert expected == await thread(database)


async def test_the_attempts_of_a_version_go_on_behind_the_others(store: SqlRunStore, database: Database) -> None:
    """So that an attempt names one version's lines."""
    for version, replaces in ((1, None), (2, 1), (3, 2)):
        await answer(store, 10, version, replaces)
    await answer(store, 1)
    listed = await rows(database, [Statement("SELECT run_id, epoch FROM durable_runs ORDER BY run_id")])
    assert [("1", 1), ("10", 1), ("10~2", 2), ("10~3", 3)] == [
        (str(row["run_id"]).rpartition(":")[2], row["epoch"]) for row in listed
    ]
    found = await rows(database, [version_sql.read_versions(place(10), None)])
    assert [(1, 0), (2, 0), (3, 1)] == [(row["version"], row["counts"]) for row in found]
    [shown] = await rows(database, [version_sql.read_shown_version(place(10), None)])
    assert 3 == shown["version"]


async def test_nothing_of_a_busy_session_is_changed(store: SqlRunStore, database: Database) -> None:
    """Whichever of its turns runs."""
    await answer(store, 0)
    await answer(store, 0, 2, replaces=1)
    await claim(store, turn_run_id(place(7)))
    [came] = await rows(database, version_sql.activate(place(0)))
    assert (1, 0, 0) == (came["may_count"], came["idle"], came["counts"])
    assert ["a0.2"] == await thread(database)


async def test_where_a_thread_ends_is_read_off_an_index(store: SqlRunStore, database: Database) -> None:
    """So are open runs: what a look costs does not depend on how long the session is."""
    await answer(store, 0)
    page = read_messages("acme", "thread", None, 50)
    look = version_sql.activate(place(0))[-1]
    for statement, index in ((page, "idx_chat_messages_breaks"), (look, "idx_durable_runs_open")):
        plan: Any = await rows(database, [Statement(f"EXPLAIN QUERY PLAN {statement.sql}", statement.params)])
        assert any(index in str(row["detail"]) for row in plan), [row["detail"] for row in plan]
