"""Whose answer is continued, kept or shown, where attempts, messages and workers come one after another."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chatturn.backends.iterable import create_iterable_backend
from chatturn.chat.log.query_budget import FOLLOW_PACES
from chatturn.chat.thread.identity import ChatTurnIdentity, turn_manifest
from chatturn.database.api import Statement
from chatturn.database.migration import migrate
from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.identifiers import manifest_hash
from chatturn.errors import BackendTransportError, StoreError, StoreUnavailable
from chatturn.events import text_delta, usage_event
from chatturn.settings import Plan, Settings
from chatturn_testing.law import text_of
from products.assistant import Hooks as Assistant
from tests.support.isolates import TURN, Isolate
from tests.support.turns import Product, Step, open_sqlite, virtual_moment
from tests.support.whole_turns import WORDS, cancel, echoing, kinds, rows, wrap


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    with open_sqlite() as database:
        yield database


@pytest.fixture
def old_database() -> Iterator[SqliteDatabase]:
    """One of schema 101, as the numbered migrations make it."""
    migrations = sorted((Path(__file__).parents[2] / "migrations").glob("*.sql"))
    with SqliteDatabase(":memory:", moment=virtual_moment) as database:
        for path in migrations[:3]:
            database.apply_schema(path.read_text())
        yield database


def migrate_by_number(database: SqliteDatabase) -> None:
    for path in sorted((Path(__file__).parents[2] / "migrations").glob("*.sql"))[3:]:
        database.apply_schema(path.read_text())


OLD_TURN = """
INSERT INTO durable_runs (run_id, manifest_hash, project_id, scenario_id, status, created_at, updated_at, step_count,
                          epoch, completed_at)
VALUES ('chat:acme:thread-1:0', '{hash}', 'chatturn', 'thread-1', '{status}', '{at}', '{at}', 1, 1, {completed});
INSERT INTO durable_steps (run_id, step_index, intent, kind, input_hash, status, attempts)
VALUES ('chat:acme:thread-1:0', 0, 'chat:turn-0', 'llm', '', '{step}', 1);
INSERT INTO chat_turns (run_id, tenant_id, session_id, user_id, turn_index, user_message, attempt, created_at, updated_at)
VALUES ('chat:acme:thread-1:0', 'acme', 'thread-1', 'ann', 0, 'hi', 1, '{at}', '{at}');
INSERT INTO chat_segments (run_id, first_seq, last_seq, attempt, lines)
VALUES ('chat:acme:thread-1:0', 0, 1, 1,
        '{{"type":"session.run.started","seq":0,"attempt":1}}' || char(10) ||
        '{{"type":"session.run.{how}","seq":1,"attempt":1}}' || char(10));
"""


def old_turn(status: str, how: str, step: str) -> str:
    """Return the script for a turn as schema 101 had it after its first attempt."""
    identity = ChatTurnIdentity(tenant_id="acme", session_id="thread-1", user_id="ann", turn_index=0)
    settings = Settings()
    manifest = turn_manifest(
        identity, project_id=settings.project_id, domain=settings.domain, user_message="hi", model=None
    )
    at = "2026-01-01T00:00:00.000Z"
    return OLD_TURN.format(
        hash=manifest_hash(manifest), status=status, how=how, step=step, at=at,
        completed=f"'{at}'" if status == "failed" else "NULL",
    )  # fmt: skip


async def test_a_takeover_never_continues_the_answer_to_another_message(database: SqliteDatabase) -> None:
    """What an attempt at another message had said is none of this answer."""
    asked: list[tuple[str, str]] = []
    first, second, third = (Isolate(database, Assistant(), echoing(asked)) for _ in range(3))
    await (await first.post("apples")).lines()
    await second.post("pears", on_mismatch="supersede")
    await asyncio.sleep(0.1)
    await second.kill()  # before the first row of its log
    await asyncio.sleep(61)
    await (await third.post("pears")).lines()
    [(answer,)] = await rows(database, "SELECT content FROM chat_messages WHERE role = 'assistant'")

    assert "apples" not in answer, asked


async def test_a_cancel_never_keeps_the_answer_to_another_message(database: SqliteDatabase) -> None:
    """What is kept is what was said to this message."""
    first, second, third = (Isolate(database, Product(text_delta(name), 1.0)) for name in ("apples", "pears", "x"))
    await (await first.post("apples?")).lines()
    await second.post("pears?", on_mismatch="supersede")
    await asyncio.sleep(0.1)
    await second.kill()
    await asyncio.sleep(61)
    await cancel(third)
    await asyncio.sleep(5)
    [(question, answer)] = await rows(
        database, "SELECT t.user_message, m.content FROM chat_turns t, chat_messages m WHERE m.role = 'assistant'"
    )

    assert ("pears?", "") == (question, answer)


async def test_what_a_failed_attempt_said_is_not_continued(database: SqliteDatabase) -> None:
    """What was said before an attempt that ended is history."""
    asked: list[tuple[str, str]] = []
    calls = 0

    async def stream(request: Any, _context: Any) -> Any:
        nonlocal calls
        calls += 1
        asked.append((request.messages[-1]["content"], request.continue_from))
        yield text_delta("bad ")
        await asyncio.sleep(0.5)
        if calls == 1:
            raise BackendTransportError("x", backend="b")
        yield text_delta("good ")

    backend = create_iterable_backend("scripted", stream, continues=True)
    first, second, third = (Isolate(database, Assistant(), backend) for _ in range(3))
    await (await first.post("q")).lines()
    await second.post("q")
    await asyncio.sleep(0.1)
    await second.kill()
    await asyncio.sleep(61)
    await (await third.post("q")).lines()

    assert ["", "", ""] == [continued for _, continued in asked]


@pytest.mark.parametrize(("lease_s", "plan"), [(2, "paid"), (60, "paid"), (60, "free")])
async def test_a_follower_takes_over_one_poll_after_the_lease(
    database: SqliteDatabase, lease_s: int, plan: Plan
) -> None:
    """However it follows, it looks when the lease has lapsed, and at the latest one of its intervals later."""
    settings = {"LEASE_MS": str(1_000 * lease_s), "WORKERS_PLAN": plan}
    owner, other = (Isolate(database, Product(text_delta("a"), 300.0), settings=settings) for _ in range(2))
    posted = await owner.post()
    await asyncio.sleep(0.9 * lease_s)
    following = await other.follow()
    await owner.kill()
    [(lapses_at,)] = await rows(database, "SELECT lease_expires_at FROM durable_runs")
    while [2] != [epoch for (epoch,) in await rows(database, "SELECT epoch FROM durable_runs")]:  # noqa: ASYNC110 - a database tells nobody
        await asyncio.sleep(0.01)
    late_s = (datetime.fromisoformat(virtual_moment()) - datetime.fromisoformat(lapses_at)).total_seconds()
    following.reader.leave()
    await other.kill()

    assert not posted.reader.broken_off
    assert 0 <= late_s <= FOLLOW_PACES[plan].interval_ms(1_000 * lease_s) / 1000 + 0.05


async def test_a_turn_that_could_not_look_back_does_not_keep_its_lease(database: SqliteDatabase) -> None:
    """The next request is not told that the turn is being answered."""
    owner, other, third = (
        Isolate(database, Assistant(), echoing([])),
        Isolate(database, Assistant(), echoing([])),
        Isolate(database, Assistant(), echoing([])),
    )

    async def before(statements: Sequence[Statement]) -> None:
        if "max(attempt) FROM chat_segments" in statements[0].sql:
            await asyncio.sleep(0.6)
            raise StoreUnavailable("no answer")

    wrap(other, before)
    await owner.post("q")
    await asyncio.sleep(1)
    await owner.kill()
    await asyncio.sleep(61)
    lines = await (await other.post("q")).lines()
    at_once = (await third.post("q")).status
    await asyncio.sleep(600)
    later = (await third.post("q")).status

    assert ("store_unavailable", True) == (lines[-1]["data"]["code"], lines[-1]["data"]["retryable"])
    assert 200 == later, f"ten minutes later nobody can have the turn (at once: {at_once})"


async def test_a_turn_that_could_not_look_back_releases_its_run(database: SqliteDatabase) -> None:
    """It fails like any other, and its cancel holds."""
    owner, other, third = (Isolate(database, Assistant(), echoing([])) for _ in range(3))

    async def before(statements: Sequence[Statement]) -> None:
        if "max(attempt) FROM chat_segments" in statements[0].sql:
            raise StoreUnavailable("no answer")

    wrap(other, before)
    await owner.post("q")
    await asyncio.sleep(1)
    await owner.kill()
    await asyncio.sleep(61)
    await (await other.post("q")).lines()
    await asyncio.sleep(1)

    assert 200 == (await third.post("q")).status, "the manual says: a failed attempt releases its lease"


async def test_superseding_is_no_attempt_that_came_to_nothing(database: SqliteDatabase) -> None:
    """Attempts are counted for one answer."""
    isolate = Isolate(database, Product(text_delta("fine")), settings={"TURN_ATTEMPTS": "3"})
    ends = []
    for n in range(5):
        lines = await (await isolate.post(f"version {n}", on_mismatch="supersede")).lines()
        ends.append(lines[-1]["data"].get("code", lines[-1]["type"]))

    assert ["session.run.completed"] * 5 == ends


async def test_follow_never_shows_the_answer_to_another_message(database: SqliteDatabase) -> None:
    """It is told that the turn was started with another."""
    isolate = Isolate(database, Product(*WORDS))
    await isolate.post("apples?")
    reply = await isolate.post("pears?", on_mismatch="supersede", follow=True)

    assert 409 == reply.status, "200, and the answer to 'apples?'"


async def test_a_follower_that_finds_the_turn_finished_gets_the_log(database: SqliteDatabase) -> None:
    """Its page said that the worker was lost, its claim that the turn is finished: the worker was only slow."""
    owner, other = Isolate(database, Product(text_delta("a"), 59.5, text_delta("b"))), Isolate(database, Product())
    stalled = False

    async def before(statements: Sequence[Statement]) -> None:
        if stalled and not any("chat_messages" in each.sql for each in statements):
            raise StoreUnavailable("no answer")  # renewals do not get through; the finish does, late
        if stalled:
            await asyncio.sleep(2)

    async def slowly(statements: Sequence[Statement]) -> None:
        if any("INSERT INTO durable_runs" in each.sql for each in statements):
            await asyncio.sleep(3)  # the claim takes a while

    wrap(owner, before)
    wrap(other, slowly)
    posted = await owner.post()
    await asyncio.sleep(1)
    stalled = True
    seen = list(posted.reader.lines)
    follower = await other.follow(seen[-1]["seq"])
    lines = await follower.lines()
    log = await (await Isolate(database, Product()).follow()).lines()

    assert [("completed", 1)] == await rows(database, "SELECT status, epoch FROM durable_runs"), "another scene"
    assert seen + lines == log, f"{seen + lines}, but the log is {log}"


async def test_only_a_beginning_skips_seqs(database: SqliteDatabase) -> None:
    """`seq` goes up by one with every line but the first of an attempt."""
    owner, other = Isolate(database, Product(*WORDS)), Isolate(database, Product(*WORDS))
    await owner.post("apples?")
    await asyncio.sleep(1)
    await owner.kill()
    await asyncio.sleep(61)
    await (await other.post("pears?", on_mismatch="supersede")).lines()
    text = "".join(row[0] for row in await rows(database, "SELECT lines FROM chat_segments ORDER BY first_seq"))
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    jumps = [later["type"] for line, later in pairwise(lines) if later["seq"] != line["seq"] + 1]

    assert jumps in ([], ["session.run.started"])


async def test_an_event_source_is_told_the_end_of_a_turn_that_could_not_write_it(database: SqliteDatabase) -> None:
    """The end has a number of its own, behind all that was said."""

    async def before(statements: Sequence[Statement]) -> None:
        if any("SET cancel_requested_at = NULL" in each.sql for each in statements):
            raise StoreError("SQLITE_TOOBIG")

    isolate = Isolate(database, Product(text_delta("a"), 0.5, RuntimeError("x")))
    wrap(isolate, before)
    posted = await isolate.post()
    await posted.lines()
    last = posted.reader.last
    for _ in range(3):
        reply = await isolate.follow(last_event_id=str(last), accept="text/event-stream")
        if reply.task is not None:
            await reply.task
        if reply.status == 204:
            return

    raise AssertionError("an EventSource comes back for ever")


async def test_a_log_that_an_earlier_attempt_closed_is_not_this_one_s(database: SqliteDatabase) -> None:
    """Whoever follows the second attempt, which cannot write its end, is told it all the same."""
    refusing = False

    async def before(statements: Sequence[Statement]) -> None:
        if refusing and any("SET cancel_requested_at = NULL" in each.sql for each in statements):
            raise StoreError("SQLITE_TOOBIG")

    isolate = Isolate(database, Product(text_delta("a"), RuntimeError("x")))
    wrap(isolate, before)
    await (await isolate.post()).lines()
    refusing = True
    await (await isolate.post()).lines()
    lines = await (await isolate.follow()).lines()

    assert lines, "a stream that runs to its end without a single line"


async def test_the_model_is_shown_no_empty_answer(database: SqliteDatabase) -> None:
    """A turn that was stopped before it said anything is not in the history."""
    isolate = Isolate(database, Product(100.0))
    posted = await isolate.post()
    await asyncio.sleep(1)
    await cancel(isolate)
    await posted.lines()
    product = Product(text_delta("x"))
    isolate.hooks = product
    await (await isolate.ask("POST", TURN.replace("/0", "/1"), {"message": "next"})).lines()

    assert "" not in [message["content"] for message in product.calls[0].history]


async def test_what_a_lost_attempt_used_is_on_record(database: SqliteDatabase) -> None:
    """Tokens that were paid for in vain are counted."""
    script: list[Step] = [text_delta("a"), usage_event(tokensOut=7), 5.0, text_delta("b"), usage_event(tokensOut=7)]
    owner, other = Isolate(database, Product(*script)), Isolate(database, Product(*script))
    await owner.post()
    await asyncio.sleep(2)
    await owner.kill()
    await asyncio.sleep(60)
    await (await other.post()).lines()

    assert {1, 2} == {row[0] for row in await rows(database, "SELECT attempt FROM chat_usage")}


@pytest.mark.parametrize("by_number", [True, False])
@pytest.mark.parametrize(
    ("status", "how", "step"), [("failed", "failed", "failed"), ("suspended", "suspended", "running")]
)
async def test_a_turn_of_schema_101_begins_a_new_log(
    old_database: SqliteDatabase, by_number: bool, status: str, how: str, step: str
) -> None:
    """What stands in a table of then is read, taken over and cancelled now."""
    old_database.apply_schema(old_turn(status, how, step))
    if by_number:
        migrate_by_number(old_database)
    else:
        await migrate(old_database)
    isolate = Isolate(old_database, Product(text_delta("good")), settings={"TURN_ATTEMPTS": "2"})
    await (await isolate.post()).lines()
    log = await (await isolate.follow()).lines()

    assert ["session.run.started", "session.run.completed"] == kinds(log)
    assert [(1 if status == "suspended" else 0,)] == await rows(old_database, "SELECT suspensions FROM chat_turns")


async def test_lost_turns_that_cannot_be_resumed_do_not_hold_up_the_others(database: SqliteDatabase) -> None:
    """After a change of DOMAIN, say, there may be more of them than the sweep looks at."""
    old = Isolate(database, Product(*WORDS), settings={"DOMAIN": "old"})
    for number in range(20):
        await old.ask("POST", TURN.replace("thread-1", f"old{number}"), {"message": "hi"})
    await asyncio.sleep(1)
    await old.kill()
    owner, cron = Isolate(database, Product(*WORDS)), Isolate(database, Product(*WORDS))
    await owner.post()
    await asyncio.sleep(1)
    await owner.kill()
    for _ in range(5):
        await asyncio.sleep(60)
        await cron.sweep()

    assert [("completed",)] == await rows(database, "SELECT status FROM durable_runs WHERE scenario_id = 'thread-1'")


async def test_what_is_kept_is_what_the_log_says(database: SqliteDatabase) -> None:
    """Clients were told to discard the text before, so a cancel does not keep it."""
    owner, other = Isolate(database, Product(*WORDS)), Isolate(database, Product(50.0, text_delta("new")))
    await owner.post()
    await asyncio.sleep(1.2)
    await owner.kill()
    await asyncio.sleep(61)
    posted = await other.post()
    await asyncio.sleep(3)
    await cancel(other)
    await posted.lines()
    log = await (await other.follow()).lines()
    [(answer,)] = await rows(database, "SELECT content FROM chat_messages WHERE role = 'assistant'")

    assert text_of(log) == answer
