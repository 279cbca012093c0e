"""What a product is told of versions: with its answers which they are and replace, and which turns left or came back."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from chatturn.chat.hooks.hooks import FinishedTurn
from chatturn.chat.hooks.thread_changes import ThreadChange
from chatturn.chat.requests import TurnRequest
from chatturn.chat.thread.versions import Replace
from chatturn.chat.turn.sinks import BufferSink
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import text_delta
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.isolates import Isolate
from tests.support.turns import IDENTITY, Product, open_sqlite
from tests.support.whole_turns import WORDS, rows
from tests.turns.test_versions import activate, again, edit, say

SETTINGS = {"THREADS": "on", "LEASE_MS": "1000"}


class Told(Product):
    """A product that keeps what it is told; its calls may fail."""

    def __init__(self, *script: Any) -> None:
        super().__init__(*(script or (text_delta("answer"),)))
        self.changes: list[ThreadChange] = []
        self.finished: list[FinishedTurn] = []
        self.fails = 0

    async def on_turn_complete(self, turn: FinishedTurn) -> None:
        """Keep it."""
        self.finished.append(turn)

    async def on_thread_changed(self, change: ThreadChange) -> None:
        """Keep it, or fail."""
        if self.fails:
            self.fails -= 1
            raise RuntimeError("secret-host:5432 refused")
        self.changes.append(change)

    @property
    def told(self) -> list[tuple[str, int, int, int, int]]:
        """What changed, by which version of which turn."""
        return [
            (each.change, each.first_turn, each.last_turn, each.identity.turn_index, each.identity.version)
            for each in self.changes
        ]


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


async def thread_of_three(database: Any, product: Told | None = None) -> tuple[Isolate, Told]:
    """Return an isolate with three answered turns, and its product."""
    product = product or Told()
    isolate = Isolate(database, product, settings=SETTINGS)
    for index in range(3):
        await say(isolate, index, "abc"[index])
    return isolate, product


async def outbox(database: SqliteDatabase) -> list[tuple[Any, ...]]:
    """Return the calls on record of changes."""
    return await rows(
        database, "SELECT run_id, hook, status, failures FROM chat_outbox WHERE hook LIKE 'on_thr%' ORDER BY hook"
    )


async def test_turns_are_told_that_are_detached_and_that_come_back(database: SqliteDatabase) -> None:
    """Once each, at once; a change that concerns no other turn is none."""
    isolate, product = await thread_of_three(database)
    await say(isolate, 2, "c", replace=again(1))
    assert [] == product.told == await outbox(database)
    await say(isolate, 0, "x", replace=edit(1))
    await asyncio.sleep(0)
    assert [("detached", 1, 2, 0, 2)] == product.told
    for version in (1, 1, 2):
        await activate(isolate, 0, version)
        await asyncio.sleep(1)
    assert [("returned", 1, 2, 0, 1), ("detached", 1, 2, 0, 2)] == product.told[1:]
    await say(isolate, 1, "b")
    assert 3 == len(product.told), "a new version at a detached place brings nobody back"

    assert 3 == len({each.idempotency_key for each in product.changes})
    revisions = [each.revision for each in product.changes]
    assert sorted(set(revisions)) == revisions
    assert {"done"} == {status for _, _, status, _ in await outbox(database)}
    assert all(each.idempotency_key.startswith("chat:acme:thread-1:0") for each in product.changes)


async def test_hooks_are_told_the_version_and_what_it_replaces(database: SqliteDatabase) -> None:
    """Also in a later attempt, and from the sweep."""
    isolate, product = await thread_of_three(database)
    await say(isolate, 0, "x", replace=edit(1))
    assert [(1, None)] * 3 + [(2, 1)] == [(each.version, each.replaces) for each in product.finished]
    assert [(1, None)] * 3 + [(2, 1)] == [(each.version, each.replaces) for each in product.calls]

    dying = Isolate(database, Told(*WORDS), settings=SETTINGS)
    await dying.ask("POST", body={"message": "y", "replace": edit(2)})
    await asyncio.sleep(1)
    await dying.kill()
    await asyncio.sleep(2)
    assert 1 == await isolate.sweep()
    assert (3, 2) == (product.calls[-1].version, product.calls[-1].replaces)
    assert (3, 2) == (product.finished[-1].version, product.finished[-1].replaces)


async def test_a_call_that_fails_is_made_again_under_its_key(database: SqliteDatabase) -> None:
    """By the outbox's rules: later and later, until it is given up; others do not wait for it."""
    product = Told()
    product.fails = 3
    isolate, _ = await thread_of_three(database, product)
    await say(isolate, 0, "x", replace=edit(1))
    [(run_id, hook, status, failures)] = await outbox(database)
    assert ("chat:acme:thread-1:0~2", "pending", 1) == (run_id, status, failures)
    listed = await isolate.ask("GET", "/v1/runs?status=undelivered", x_scopes="turns operate")
    assert [[hook]] == [[call["hook"] for call in run["undelivered"]] for run in listed.body["runs"]]
    assert "on_thread_changed: raised RuntimeError" == listed.body["runs"][0]["undelivered"][0]["lastError"]
    for pause_s in (31, 61, 121):
        await asyncio.sleep(pause_s)
        await isolate.sweep()
    assert [("detached", 1, 2, 0, 2)] == product.told
    assert product.changes[0].idempotency_key.endswith(f"/{hook}")

    product.fails = 10
    await activate(isolate, 0, 1)
    for _ in range(12):
        await asyncio.sleep(40_000)
        await isolate.sweep()
    assert ["done", "given_up"] == sorted(status for _, _, status, _ in await outbox(database))
    assert 1 == len(product.told)


async def test_a_product_that_does_not_ask_costs_no_row(database: SqliteDatabase) -> None:
    """Nor a query."""
    isolate = Isolate(database, Product(text_delta("a")), settings=SETTINGS)
    for index in range(2):
        await say(isolate, index, "a")
    await say(isolate, 0, "x", replace=edit(1))
    await activate(isolate, 0, 1)
    assert [(0,)] == await rows(database, "SELECT count(*) FROM chat_outbox")


async def test_a_large_gap_costs_nothing(database: SqliteDatabase) -> None:
    """The first and the last of many are read off the index."""
    isolate, product = await thread_of_three(database)
    await rows(
        database,
        "INSERT INTO chat_messages (tenant_id, session_id, turn_index, role, content, run_id, created_at)"
        " SELECT 'acme', 'thread-1', 10 + value, 'assistant', 'x', 'r' || value, '2026-01-01T00:00:00.000Z'"
        " FROM (WITH RECURSIVE n(value) AS (SELECT 0 UNION ALL SELECT value + 1 FROM n WHERE value < 5000)"
        " SELECT value FROM n)",
    )
    await say(isolate, 0, "x", replace=edit(1))
    assert [("detached", 1, 5010, 0, 2)] == product.told


async def _ends_told(product: Told, isolate: Isolate) -> list[tuple[str, int, int, int, int]]:
    """Let the sweep make up for what nobody lived to do, and return what was told under different keys."""
    for _ in range(3):
        await asyncio.sleep(100)
        await isolate.sweep()
    keyed = {each.idempotency_key: told for each, told in zip(product.changes, product.told, strict=True)}
    return list(keyed.values())


async def _edit(isolate: Isolate) -> None:
    request = TurnRequest(message="x", replace=Replace(kind="edit", version=1))
    turn = await isolate.service.open(IDENTITY, request)
    await turn.run(BufferSink())


async def _let_the_first_count(isolate: Isolate) -> None:
    await isolate.service.activate(IDENTITY)
    await isolate.service.tell_changes(IDENTITY)


@pytest.mark.parametrize("act", [_edit, _let_the_first_count])
async def test_a_worker_may_die_at_every_batch_and_nobody_is_told_wrongly(act: Any) -> None:
    """What was detached or came back is told, under one key, and nothing else ever is."""
    for point in range(40):
        with open_sqlite() as database:
            isolate, product = await thread_of_three(database)
            if act is _let_the_first_count:
                await say(isolate, 0, "x", replace=edit(1))
                product.changes.clear()
            fuse = Fuse(point)
            try:
                await act(Isolate(MortalDatabase(database, fuse), product, settings=SETTINGS))
            except Crash:
                pass
            else:
                assert point > 2, "nobody died"
                return
            await asyncio.sleep(2)
            told = await _ends_told(product, isolate)
            counts = await rows(
                database, "SELECT version FROM chat_messages WHERE turn_index = 0 AND role = 'assistant'"
            )
            moved = counts == ([(2,)] if act is _edit else [(1,)])
            change = ("detached", 1, 2, 0, 2) if act is _edit else ("returned", 1, 2, 0, 1)
            assert told == ([change] if moved else []), point
    raise AssertionError("it always dies")
