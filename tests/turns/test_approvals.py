"""An approval is of one call: of what somebody has seen, while it is asked for."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from tests.support.isolates import TURN, Isolate
from tests.support.turns import open_sqlite
from tests.support.whole_turns import cancel, rows, wrap
from tests.turns.test_agent import Agent, Model

APPROVED = {"approved": True}


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    with open_sqlite() as database:
        yield database


class Shop:
    """A product whose model wants to send something, and one who looks at what it asks for."""

    def __init__(self, database: SqliteDatabase, threads: str = "on", text: str = "x") -> None:
        self.agent = Agent()
        backend = Model(("send", {"text": text}), "done").backend()
        self.isolate = Isolate(database, self.agent, backend, settings={"THREADS": threads})

    async def asks(self, message: str = "hi", **options: Any) -> str:
        """Run the turn until it asks, and return the key."""
        posted = await self.isolate.ask("POST", TURN, {"message": message, **options})
        assert posted.task is not None
        await posted.task
        return str([line for line in posted.reader.lines if line["type"] == "tool.approval"][-1]["data"]["key"])

    async def approve(self, key: str, payload: Any = APPROVED) -> tuple[int, Any]:
        """Say yes or no, and return what is answered."""
        address = f"/v1/runs/chat%3Aacme%3Athread-1%3A0/events/{key.replace(':', '%3A')}"
        reply = await self.isolate.ask("POST", address, {"payload": payload})
        await asyncio.sleep(1)
        return reply.status, reply.body.get("accepted")


@pytest.mark.parametrize("threads", ["on", "off"])
async def test_what_nobody_has_asked_for_cannot_be_approved(database: SqliteDatabase, threads: str) -> None:
    """Neither a call to come nor another one's arguments: 404, nothing stored, and the tool does not run."""
    shop = Shop(database, threads)
    key = await shop.asks()
    digest = key.rpartition(".")[2] if threads == "on" else "0"
    for other in (f"approve:2.1.0.{digest}", "approve:2.1.0", "approve:1.1.1", f"approve:1.1.0.{'0' * 32}", "approve:"):
        assert (404, None) == await shop.approve(other)

    assert [] == await rows(database, "SELECT * FROM durable_events")
    assert {} == shop.agent.effects
    assert (200, True) == await shop.approve(key)
    assert [["x"]] == list(shop.agent.effects.values())


async def test_the_key_is_of_the_calls_arguments(database: SqliteDatabase) -> None:
    """And of the run: `approve:<attempt>.<round>.<position>.<digest>`."""
    first = await Shop(database, text="x").asks()
    second = await Shop(database, text="y").asks("hi again", on_mismatch="supersede")

    for key, attempt in ((first, 1), (second, 2)):
        assert re.fullmatch(rf"approve:{attempt}\.1\.0\.[0-9a-f]{{32}}", key)
    assert first.rpartition(".")[2] != second.rpartition(".")[2]


async def test_an_approval_that_comes_too_late_is_void(database: SqliteDatabase) -> None:
    """Of an answer that was superseded, of a turn that is cancelled: it says so, and nothing is stored."""
    superseded = await Shop(database).asks()
    shop = Shop(database, text="y")
    key = await shop.asks("hi again", on_mismatch="supersede")

    assert (200, False) == await shop.approve(superseded)
    await cancel(shop.isolate)
    await asyncio.sleep(5)
    assert (200, False) == await shop.approve(key)
    assert [] == await rows(database, "SELECT * FROM durable_events")
    assert {} == shop.agent.effects


async def test_an_approval_that_is_sent_again_is_answered_as_the_first_time(database: SqliteDatabase) -> None:
    """Also once the turn is over; another answer is not the one that counts."""
    shop = Shop(database)
    key = await shop.asks()

    assert [(200, True), (200, True)] == [await shop.approve(key), await shop.approve(key)]
    assert (200, False) == await shop.approve(key, {"approved": False})
    assert [["x"]] == list(shop.agent.effects.values())


async def test_the_wait_is_on_record_before_anybody_is_asked(database: SqliteDatabase) -> None:
    """Whoever answers as soon as the line is there is heard."""
    shop = Shop(database)
    lines_at_record: list[list[str]] = []

    async def before(statements: Sequence[Statement]) -> None:
        if any("event:approve" in str(each.params) for each in statements):
            lines_at_record.append([line["type"] for line in posted.reader.lines])

    wrap(shop.isolate, before)
    posted = await shop.isolate.ask("POST", TURN, {"message": "hi"})
    assert posted.task is not None
    await posted.task

    assert "tool.approval" in [line["type"] for line in posted.reader.lines]
    assert "tool.approval" not in lines_at_record[0]


async def test_a_turn_that_waits_since_before_the_upgrade_keeps_its_key(database: SqliteDatabase) -> None:
    """Its run has no keys of its own."""
    key = await Shop(database, "off").asks()
    shop = Shop(database, "on")

    assert ("approve:1.1.0", key) == (key, await shop.asks())
    assert (200, True) == await shop.approve(key)
    assert [["x"]] == list(shop.agent.effects.values())


async def test_other_events_may_come_early(database: SqliteDatabase) -> None:
    """As they always could."""
    shop = Shop(database)
    await shop.asks()

    assert (200, True) == await shop.approve("a key of the product's", {"any": "thing"})
