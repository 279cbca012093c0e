"""Integers at the borders of what JavaScript's numbers, and so D1's, carry exactly: 2^53 - 1 is the last."""

import pytest

from chatturn.chat.log.pages import load_page
from chatturn.chat.log.sql import append_segment
from chatturn.chat.thread.identity import ChatTurnIdentity, turn_run_id
from chatturn.chat.thread.version_sql import read_lines
from chatturn.chat.turn.sql import begin_turn
from chatturn.database.api import Database, Statement
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import StoreError
from chatturn.http.limits import MAX_TURN_INDEX
from tests.support.runs import claim

LAST = 2**53 - 1
BORDERS = [0, 1, 2**31 - 1, 2**31, 2**32, LAST - 1, LAST]


@pytest.mark.parametrize("after", [-1, *BORDERS])
@pytest.mark.parametrize("turn_index", [0, MAX_TURN_INDEX])
async def test_any_cursor_finds_its_place(store: SqlRunStore, database: Database, turn_index: int, after: int) -> None:
    """Behind the log there is nothing; and no cursor is an error of the database."""
    identity = ChatTurnIdentity(tenant_id="acme", session_id="s", user_id="ann", turn_index=turn_index)
    run_id = turn_run_id(identity)
    begin = begin_turn(identity, user_message="hi", model=None, metadata_json=None)
    lease = (await claim(store, run_id, with_statements=[begin])).lease
    assert lease is not None
    await store.write(lease, [append_segment(0, 1, ["a\n", "b\n", "c\n"])], renew=False)
    page = await load_page(database, run_id, after)

    assert page is not None
    assert {-1: "a\nb\nc\n", 0: "b\nc\n", 1: "c\n"}.get(after, "") == page.text


@pytest.mark.parametrize("after", [-1, *BORDERS])
async def test_any_cursor_finds_its_version(store: SqlRunStore, database: Database, after: int) -> None:
    """Where a turn's logs are, seen from any line."""
    identity = ChatTurnIdentity(tenant_id="acme", session_id="s", user_id="ann", turn_index=0)
    begin = begin_turn(identity, user_message="hi", model=None, metadata_json=None)
    lease = (await claim(store, turn_run_id(identity), with_statements=[begin])).lease
    assert lease is not None
    await store.write(lease, [append_segment(0, 1, ["a\n"])], renew=False)
    [found] = await database.batch([read_lines(identity, after)])

    assert [(1, 0, None if after < 0 else 0)] == [tuple(row.values()) for row in found.rows]


@pytest.mark.parametrize("number", [*BORDERS[:-1], -LAST + 1])
async def test_an_integer_comes_back_as_it_was(database: Database, number: int) -> None:
    """Bound, stored, and read."""
    [result] = await database.batch([Statement("SELECT ?1 AS bound, CAST(?1 AS INTEGER) AS cast", (number,))])
    [row] = result.rows

    assert (number, number) == (row["bound"], row["cast"])


@pytest.mark.parametrize("number", [LAST, -LAST, LAST + 1, 2**63])
async def test_what_is_no_number_there_is_refused(database: Database, number: int) -> None:
    """Pyodide makes a bigint of the last one already, and D1 takes none; SQLite is as strict here."""
    with pytest.raises(StoreError):
        await database.batch([Statement("SELECT ?1", (number,))])
