"""Turns that are answered late: no answer gets in front of one that was given without it."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from chatturn.chat.requests import TurnRequest
from chatturn.chat.thread.versions import Replace
from chatturn.chat.turn.sinks import BufferSink
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import TurnPassed
from chatturn.events import text_delta
from tests.support.isolates import Isolate, Reply
from tests.support.turns import IDENTITY, Product, open_sqlite
from tests.turns.test_queue import ON, SESSION, Slow, everything, kinds, say, thread
from tests.turns.test_thread_changes import Told


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


@pytest.fixture
def isolate(database: SqliteDatabase) -> Isolate:
    """One isolate of a deployment whose turns wait for each other."""
    return Isolate(database, Slow(), settings=ON)


async def passed(isolate: Isolate, index: int, message: str, **members: Any) -> Reply:
    """Post a message that comes too late, and see that nothing is stored."""
    before = await everything(isolate.database)
    reply = await say(isolate, index, message, **members)
    assert (409, "turn_passed") == (reply.status, reply.body["code"])
    assert before == await everything(isolate.database)
    return reply


async def answered(isolate: Isolate, *turns: tuple[int, str]) -> None:
    """Post messages, each once the one before is answered."""
    for index, question in turns:
        lines = await (await say(isolate, index, question)).lines()
        assert "session.run.completed" == lines[-1]["type"]


async def test_the_index_of_a_cancelled_turn_is_not_filled_once_later_ones_have_answers(isolate: Isolate) -> None:
    """Another message there would stand before answers that were given without it."""
    replies = [await say(isolate, index, text) for index, text in enumerate("abc")]
    await isolate.ask("POST", f"{SESSION}/turns/1/cancel")
    for reply in replies:
        await reply.lines()
    await passed(isolate, 1, "x")
    await passed(isolate, 1, "x", when_busy="interrupt")
    await passed(isolate, 1, "x", on_mismatch="supersede")
    assert ["cancelled"] == kinds(await (await say(isolate, 1, "b")).lines())[-1:]
    assert ["a", "re: a", "c", "re: c"] == await thread(isolate)


async def test_an_index_that_was_left_out_is_not_filled_once_later_ones_have_answers(isolate: Isolate) -> None:
    """Neither while one of them is answered: 409 then as well, with its address."""
    await answered(isolate, (0, "a"))
    later = await say(isolate, 2, "c")
    before = await everything(isolate.database)
    for policy in ("queue", "interrupt", "reject"):
        reply = await say(isolate, 1, "b", when_busy=policy)
        assert (409, "session_busy") == (reply.status, reply.body["code"])
        assert f"{SESSION}/turns/2/stream?version=1" == reply.body["stream"]
    assert before == await everything(isolate.database)
    await later.lines()
    await passed(isolate, 1, "b")
    assert ["a", "re: a", "c", "re: c"] == await thread(isolate)


async def test_a_failed_turn_that_is_replaced_detaches_the_answers_that_were_given_without_it(
    database: SqliteDatabase,
) -> None:
    """The product is told; messages go on behind it."""
    isolate = Isolate(database, Told(), settings=ON)
    product: Any = isolate.hooks
    await answered(isolate, (0, "a"))
    failing = Isolate(database, Product(ValueError("no")), settings=ON)
    assert ["started", "failed"] == kinds(await (await say(failing, 1, "b")).lines())
    await answered(isolate, (2, "c"), (3, "d"))
    before = await thread(isolate)
    await passed(isolate, 1, "b")

    reply = await say(isolate, 1, "b", replace={"kind": "regenerate", "version": 1})
    assert "session.run.completed" == (await reply.lines())[-1]["type"]
    assert ["a", "b"] == (await thread(isolate))[::2]
    assert before[:2] == (await thread(isolate))[:2]
    await asyncio.sleep(1)
    assert [("detached", 2, 3, 1, 2)] == product.told
    await answered(isolate, (2, "c"))
    assert ["a", "b", "c"] == (await thread(isolate))[::2]


async def test_turns_that_are_answered_beside_each_other_stand_in_the_order_of_their_indexes(isolate: Isolate) -> None:
    """That one ends after a later one detaches nothing; replacing it does, and it comes back."""
    await answered(isolate, (0, "a"))
    first = await say(isolate, 1, "b")
    await asyncio.sleep(1)
    slow, hasty = await say(isolate, 2, "c", when_busy="parallel"), await say(isolate, 3, "d", when_busy="parallel")
    for reply in (hasty, slow, first):
        await reply.lines()
    both = ["a", "re: a", "b", "re: b", "c", "re: c", "d", "re: d"]
    assert both == await thread(isolate)
    await (await say(isolate, 1, "x", replace={"kind": "edit", "version": 1})).lines()
    assert ["a", "re: a", "x", "re: x"] == await thread(isolate)
    await isolate.ask("POST", f"{SESSION}/turns/1/versions/1/activate")
    assert both == await thread(isolate)


async def test_a_parallel_turn_that_ends_late_is_followed_by_every_version_behind_it(database: SqliteDatabase) -> None:
    """Whichever of them counts by then."""
    isolate = Isolate(database, Slow(), settings=ON)
    quick = Isolate(database, Product(text_delta("quick")), settings=ON)
    await answered(isolate, (0, "a"))
    late = await say(isolate, 1, "b")
    await (await say(quick, 2, "c", when_busy="parallel")).lines()
    again = await say(quick, 2, "x", when_busy="parallel", replace={"kind": "edit", "version": 1})
    await again.lines()
    await late.lines()
    assert ["a", "b", "x"] == (await thread(isolate))[::2]
    await isolate.ask("POST", f"{SESSION}/turns/2/versions/1/activate")
    assert ["a", "b", "c"] == (await thread(isolate))[::2]


@pytest.mark.parametrize("kind", ["regenerate", "edit"])
async def test_what_a_client_asks_anew_replaces_a_turn_that_failed(database: SqliteDatabase, kind: Any) -> None:
    """It knows of no versions; what was answered without that turn is detached."""
    isolate = Isolate(database, Slow(), settings=ON)
    failing = Isolate(database, Product(ValueError("no")), settings=ON)
    await (await say(failing, 0, "a")).lines()
    await answered(isolate, (1, "b"))
    wish = Replace(kind=kind, version=None, anew=True)
    about, question = replace(IDENTITY, turn_index=0), "a" if kind == "regenerate" else "x"
    opened = await isolate.service.open(about, TurnRequest(message=question, replace=wish))
    await opened.run(BufferSink())
    assert [question] == (await thread(isolate))[::2]


async def test_a_turn_that_somebody_has_ended_is_not_gone_on_with_late(database: SqliteDatabase) -> None:
    """Who takes it over has looked before it failed, and the thread has gone on since."""
    isolate = Isolate(database, Slow(), settings=ON)
    failing = Isolate(database, Product(ValueError("no")), settings=ON)
    await (await say(failing, 0, "a")).lines()
    await answered(isolate, (1, "b"))
    before = await everything(database)
    with pytest.raises(TurnPassed):
        await isolate.service.reopen("chat:acme:thread-1:0")
    assert before == await everything(database)


async def test_a_window_goes_on_where_a_turn_has_failed_and_one_before_it_was_edited(
    database: SqliteDatabase, isolate: Isolate
) -> None:
    """A turn that failed in what is detached, or that another version has answered, is not open in the thread."""
    await answered(isolate, (0, "a"), (1, "b"))
    failing = Isolate(database, Product(ValueError("no")), settings=ON)

    async def page() -> tuple[list[int], list[int]]:
        body = (await isolate.ask("GET", f"{SESSION}/messages")).body
        answers = [each["turnIndex"] for each in body["messages"][::2]]
        return answers, [each["turnIndex"] for each in body["open"]]

    await (await say(failing, 2, "c")).lines()
    assert ([0, 1], [2]) == await page()
    await (await say(isolate, 0, "x", replace={"kind": "edit", "version": 1})).lines()
    assert ([0], []) == await page()
    await answered(isolate, (1, "d"), (2, "c"))
    await (await say(failing, 3, "e")).lines()
    assert ([0, 1, 2], [3]) == await page()
    await (await say(isolate, 3, "e", replace={"kind": "regenerate", "version": 1})).lines()
    assert ([0, 1, 2, 3], []) == await page()
