"""Followers of one turn that runs elsewhere share one look at the database at a time."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from chatturn.chat.log.polls import Poll
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import StoreUnavailable
from chatturn_testing.law import text_of
from tests.support.isolates import Isolate, Reply
from tests.support.turns import Product, open_sqlite
from tests.support.whole_turns import WHOLE, WORDS, rows, wrap


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


async def followed_by(database: SqliteDatabase, followers: int) -> tuple[int, list[Reply]]:
    """Let so many follow a turn from another isolate; return the batches that took, and what each was sent."""
    owner, other = Isolate(database, Product(*WORDS)), Isolate(database, Product(*WORDS))
    await owner.post()
    await asyncio.sleep(0.3)
    replies = []
    for _ in range(followers):
        replies.append(await other.follow())
        await asyncio.sleep(0.007)
    wrapped = wrap(other)
    for reply in replies:
        await reply.lines()
    return wrapped.batches, replies


async def test_a_hundred_followers_cost_what_one_does(database: SqliteDatabase) -> None:
    """And each has every line, once."""
    with open_sqlite() as another:
        alone, _ = await followed_by(another, 1)
    together, replies = await followed_by(database, 100)

    assert together <= alone + 10
    assert {WHOLE} == {text_of(reply.reader.lines) for reply in replies}
    assert 1 == len({reply.reader.text for reply in replies})


async def test_looks_at_turns_that_are_followed_from_the_same_moment_are_spread(database: SqliteDatabase) -> None:
    """After a deployment all open chats are followed at once; each is looked at a little later than the pace says."""
    slow = Product(*[part for word in "abcdefgh" for part in (*WORDS[:1], 0.5)])
    owner, other = Isolate(database, slow), Isolate(database, slow)
    paths = [f"/v1/sessions/s{number}/turns/0" for number in range(20)]
    for path in paths:
        await owner.ask("POST", path, {"message": "hi"})
    await asyncio.sleep(0.3)
    for path in paths:
        await other.ask("GET", f"{path}/stream")
    looks: list[float] = []

    async def note(_statements: Any) -> None:
        looks.append(asyncio.get_running_loop().time())

    wrap(other).before = note
    await asyncio.sleep(2.5)
    later = [at for at in looks if at > looks[0] + 1.5]

    assert 20 * 5 <= len(later) <= 20 * 11
    assert len(later) / 3 < len({round(at, 3) for at in later})


async def test_of_a_hundred_followers_one_claims_a_lost_turn(database: SqliteDatabase) -> None:
    """The others are shown what it says, at once: it runs in their isolate."""
    settings = {"LEASE_MS": "3000"}
    owner, other = (Isolate(database, Product(*WORDS), settings=settings) for _ in range(2))
    await owner.post()
    await asyncio.sleep(1)
    replies = [await other.follow() for _ in range(100)]
    await owner.kill()
    wrapped = wrap(other)
    claims: list[Any] = []

    async def count(statements: Any) -> None:
        claims.extend(statement for statement in statements if "INSERT INTO durable_runs" in statement.sql)

    wrapped.before = count
    for reply in replies:
        await reply.lines()

    assert 1 == len(claims)
    assert {WHOLE} == {text_of(reply.reader.lines) for reply in replies}
    assert [(2,)] == await rows(database, "SELECT epoch FROM durable_runs")


async def test_one_who_goes_away_while_it_looks_is_replaced(database: SqliteDatabase) -> None:
    """The platform may drop a request at any await, without a word."""
    owner, other = Isolate(database, Product(*WORDS, 60.0)), Isolate(database, Product(*WORDS, 60.0))
    await owner.post()
    await asyncio.sleep(0.3)
    first, second = await other.follow(), await other.follow()
    poll = other._live.polls.of("chat:acme:thread-1:0")
    poll.begin_look(asyncio.get_running_loop().time())  # as somebody who never ends it
    await second.lines()

    assert WHOLE == text_of(second.reader.lines) == text_of(first.reader.lines)


async def test_a_look_that_fails_is_not_the_others(database: SqliteDatabase) -> None:
    """Whose look it was breaks off; they look for themselves."""
    owner, other = Isolate(database, Product(*WORDS)), Isolate(database, Product(*WORDS))
    await owner.post()
    await asyncio.sleep(0.3)
    replies = [await other.follow() for _ in range(3)]
    wrapped = wrap(other)
    failed: list[int] = []

    async def fail_once(_statements: Any) -> None:
        if not failed:
            failed.append(1)
            raise StoreUnavailable("no answer")

    wrapped.before = fail_once
    texts = [text_of(await reply.lines()) for reply in replies]

    assert 2 == texts.count(WHOLE)


def test_who_is_behind_is_shown_all_that_is_kept() -> None:
    """From where it is; and who is further behind nothing, and asks for itself."""
    poll = Poll()
    assert poll.page_after(-1) is None
    assert poll.may_look(0.0)
    poll.begin_look(0.0)
    assert not poll.may_look(9.9)
    assert poll.may_look(10.0)
    poll.end_look(-1, None)
    assert poll.page_after(-1) is None
    assert poll.looks == 1
