"""Sessions as people's data: who sees which, what a title is, what is deleted and what stays, and what an export has."""

import asyncio
import base64
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from chatturn.chat.sessions.export import ExportQuery, export
from chatturn.chat.sessions.sql import forget_session, read_deleted, read_sessions
from chatturn.database.api import Result, Statement
from chatturn.database.schema import schema_columns
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import text_delta
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.isolates import Isolate, Reader, Reply
from tests.support.ledger import require_sums
from tests.support.turns import Desk, Product, open_sqlite
from tests.turns.test_parts import KeptFiles

BOUNDARY = {"SESSION_OWNER": "subject"}
VERSIONS = {"THREADS": "on"}
OPERATOR: dict[str, Any] = {"x_scopes": "operate", "x_tenant": "ops", "x_user": "op"}
TABLES = (
    "durable_runs",
    "durable_steps",
    "durable_events",
    "durable_waits",
    "chat_turns",
    "chat_segments",
    "chat_messages",
    "chat_outbox",
    "chat_feedback",
    "chat_sessions",
)
LEDGER = ("chat_usage", "chat_usage_sums", "chat_usage_spans")


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


async def rows(database: SqliteDatabase, sql: str) -> list[tuple[Any, ...]]:
    """Read rows as tuples."""
    return await Desk(database).rows(sql)


async def counts(database: SqliteDatabase) -> dict[str, int]:
    """Count the rows of every table that a session has rows in."""
    return {table: (await rows(database, f"SELECT count(*) FROM {table}"))[0][0] for table in TABLES}  # noqa: S608


async def said(
    isolate: Isolate, session: str, message: Any = "hi", *, index: int = 0, x_user: str = "ann", x_tenant: str = "acme"
) -> Reply:
    """Post a turn and read it to its end."""
    path = f"/v1/sessions/{session}/turns/{index}"
    reply = await isolate.ask("POST", path, {"message": message}, x_user=x_user, x_tenant=x_tenant)
    assert 200 == reply.status, reply.body
    await reply.lines()
    await asyncio.sleep(0.01)
    return reply


async def paid_for(database: SqliteDatabase) -> None:
    """Record a call of 7 millionths of a dollar for every turn."""
    await rows(
        database,
        """INSERT INTO chat_usage (run_id, attempt, call_index, tenant_id, session_id, outcome, cost_micro_usd,
             request_id, recorded_at)
           SELECT run_id, 1, 0, tenant_id, session_id, 'running', 7, run_id, created_at FROM chat_turns RETURNING 1""",
    )


async def many_turns(database: SqliteDatabase, session: str, number: int) -> None:
    """Give a session that has one turn so many more."""
    first = f"chat:acme:{session}:"
    await rows(
        database,
        f"""INSERT INTO chat_turns (run_id, tenant_id, session_id, user_id, turn_index, user_message, attempt,
             created_at, updated_at)
           WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {number})
           SELECT '{first}' || i, tenant_id, session_id, user_id, i, 'm' || i, 1, created_at, updated_at
           FROM n JOIN chat_turns ON run_id = '{first}0' RETURNING 1""",  # noqa: S608
    )
    await rows(
        database,
        f"""INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at)
           SELECT t.run_id, '', '', 'completed', t.created_at, t.updated_at FROM chat_turns AS t
           WHERE turn_index > 0 AND session_id = '{session}' RETURNING 1""",  # noqa: S608
    )


def lines_of(reply: Reply) -> list[dict[str, Any]]:
    """Read an export."""
    return [json.loads(line) for line in reply.reader.text.splitlines()]


async def exported(isolate: Isolate, path: str, **headers: Any) -> list[dict[str, Any]]:
    """Ask for an export and read it to its end."""
    reply = await isolate.ask("GET", path, **headers)
    assert 200 == reply.status, reply.body
    assert reply.task is not None
    await reply.task
    return lines_of(reply)


# Lists, titles


async def test_sessions_are_listed_by_their_owner_the_latest_first(database: SqliteDatabase) -> None:
    """With a title made of the first question; what they cost is for operators."""
    isolate = Isolate(database, Product(text_delta("hello")))
    await said(isolate, "s1", "What  is\nlove? " + "x" * 100)
    await said(isolate, "s2", "second")
    await said(isolate, "s3", "of bob", x_user="bob")

    page = (await isolate.ask("GET", "/v1/sessions")).body
    assert ["s2", "s1"] == [each["sessionId"] for each in page["sessions"]]
    assert ["second", "What is love?…"] == [each["title"] for each in page["sessions"]]
    assert page["next"] is None
    assert "costMicroUsd" not in page["sessions"][0]
    of_bob = (await isolate.ask("GET", "/v1/sessions?user=bob")).body["sessions"]
    assert ["s3"] == [each["sessionId"] for each in of_bob]
    of_all = (await isolate.ask("GET", "/v1/sessions?tenant=acme", **OPERATOR)).body["sessions"]
    assert ["s3", "s2", "s1"] == [each["sessionId"] for each in of_all]
    assert {None} == {each["title"] for each in of_all}
    assert all("costMicroUsd" in each for each in of_all)


async def test_who_may_see_whose_sessions(database: SqliteDatabase) -> None:
    """Another tenant's never; another user's only where the tenant is the boundary."""
    isolate = Isolate(database, Product(), settings=BOUNDARY)
    await said(isolate, "s1", "of bob", x_user="bob")

    assert 403 == (await isolate.ask("GET", "/v1/sessions?user=bob")).status
    assert [] == (await isolate.ask("GET", "/v1/sessions")).body["sessions"]
    assert [] == (await isolate.ask("GET", "/v1/sessions", x_user="bob", x_tenant="other")).body["sessions"]
    assert 403 == (await isolate.ask("GET", "/v1/sessions?tenant=other", x_user="bob")).status
    assert 404 == (await isolate.ask("PATCH", "/v1/sessions/s1", {"title": "mine"})).status
    assert 404 == (await isolate.ask("DELETE", "/v1/sessions/s1")).status
    assert 404 == (await isolate.ask("GET", "/v1/sessions/s1/export")).status
    assert 404 == (await isolate.ask("POST", "/v1/sessions/s1/turns/0/feedback", {"rating": "up"})).status
    for method, path in (
        ("DELETE", "/v1/users/bob/sessions"),
        ("GET", "/v1/users/bob/export"),
        ("DELETE", "/v1/tenants/acme"),
        ("GET", "/v1/tenants/acme/export"),
    ):
        assert 403 == (await isolate.ask(method, path)).status
    assert 1 == (await counts(database))["chat_sessions"]


async def test_a_page_goes_on_where_the_one_before_ended(database: SqliteDatabase) -> None:
    """Each session once, also those that began in the same millisecond."""
    isolate = Isolate(database, Product())
    names = [f"s{number}" for number in range(7)]
    await asyncio.gather(*(said(isolate, name) for name in names))
    found: list[str] = []
    after = ""
    while True:
        page = (await isolate.ask("GET", f"/v1/sessions?limit=3{after}")).body
        found += [each["sessionId"] for each in page["sessions"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert sorted(names) == sorted(found)
    assert 422 == (await isolate.ask("GET", "/v1/sessions?after=nonsense")).status


async def test_a_session_is_named_and_has_its_question_again_without_a_name(database: SqliteDatabase) -> None:
    """A title is one line; naming a session does not make it active."""
    isolate = Isolate(database, Product())
    await said(isolate, "s1", "first")
    named = (await isolate.ask("PATCH", "/v1/sessions/s1", {"title": "Holidays"})).body
    assert ("Holidays", True) == (named["title"], named["named"])
    assert ["Holidays"] == [each["title"] for each in (await isolate.ask("GET", "/v1/sessions")).body["sessions"]]
    unnamed = (await isolate.ask("PATCH", "/v1/sessions/s1", {"title": None})).body
    assert ("first", False) == (unnamed["title"], unnamed["named"])
    for body in ({"title": ""}, {"title": "a\nb"}, {"title": 7}, {}, {"title": "x" * 201}, {"name": "x"}):
        assert 422 == (await isolate.ask("PATCH", "/v1/sessions/s1", body)).status
    assert 404 == (await isolate.ask("PATCH", "/v1/sessions/s9", {"title": "x"})).status
    assert ["s1"] == [name for (name,) in await rows(database, "SELECT session_id FROM chat_sessions")]


# Feedback


async def test_feedback_is_about_the_version_that_counts_and_the_latest_wins(database: SqliteDatabase) -> None:
    """One for each user; none for a turn without an answer."""
    isolate = Isolate(database, Product(text_delta("hello")), settings=VERSIONS)
    await said(isolate, "s1")
    path = "/v1/sessions/s1/turns/0/feedback"
    first = (await isolate.ask("POST", path, {"rating": "down", "comment": "wrong"})).body
    assert ("chat:acme:s1:0", "down", "wrong") == (first["runId"], first["rating"], first["comment"])
    await isolate.ask("POST", path, {"rating": "up"})
    await isolate.ask("POST", path, {"comment": "bob was here"}, x_user="bob")
    assert [("ann", "up", None), ("bob", None, "bob was here")] == await rows(
        database, "SELECT user_id, rating, comment FROM chat_feedback ORDER BY user_id"
    )

    again = await isolate.ask(
        "POST", "/v1/sessions/s1/turns/0", {"message": "hi", "replace": {"kind": "regenerate", "version": 1}}
    )
    await again.lines()
    assert "chat:acme:s1:0~2" == (await isolate.ask("POST", path, {"rating": "up"})).body["runId"]
    assert "chat:acme:s1:0" == (await isolate.ask("POST", path, {"rating": "up", "version": 1})).body["runId"]
    assert 404 == (await isolate.ask("POST", path, {"rating": "up", "version": 3})).status
    assert 404 == (await isolate.ask("POST", "/v1/sessions/s1/turns/1/feedback", {"rating": "up"})).status
    assert 404 == (await isolate.ask("POST", path, {"rating": "up"}, x_tenant="other")).status


@pytest.mark.parametrize(
    "body",
    [{}, {"rating": "good"}, {"rating": 1}, {"comment": 1}, {"rating": "up", "version": 0}, {"comment": "x\0"},
     {"rating": ["up"]}, {"rating": "up", "stars": 5}],
)  # fmt: skip
async def test_bad_feedback_is_refused_and_nothing_is_stored(database: SqliteDatabase, body: dict[str, Any]) -> None:
    """By the name of the member."""
    isolate = Isolate(database, Product(text_delta("hello")))
    await said(isolate, "s1")
    assert 422 == (await isolate.ask("POST", "/v1/sessions/s1/turns/0/feedback", body)).status
    assert [] == await rows(database, "SELECT * FROM chat_feedback")


# Deleting


async def test_a_session_is_deleted_whole_and_the_ledger_keeps_what_was_paid(database: SqliteDatabase) -> None:
    """In every table nothing of it is left, of others all; its calls' costs stay, under names that lead nowhere."""
    isolate = Isolate(database, Product(text_delta("hello")))
    for name in ("s1", "s10", "s"):
        await said(isolate, name, "first")
        await said(isolate, name, "second", index=1)
        await isolate.ask("POST", f"/v1/sessions/{name}/turns/0/feedback", {"rating": "up"})
        await isolate.ask("POST", f"/v1/runs/chat:acme:{name}:0/events/key", {"payload": 1})
    await said(isolate, "s1", x_tenant="other")
    before = await counts(database)
    await paid_for(database)
    paid = [(7, 49, 7)]
    assert paid == await rows(database, "SELECT count(*), sum(cost_micro_usd), count(DISTINCT run_id) FROM chat_usage")

    assert {"deleted": True} == (await isolate.ask("DELETE", "/v1/sessions/s1")).body

    after = await counts(database)
    assert {name: number * 2 // 3 for name, number in before.items() if name == "durable_events"} == {
        "durable_events": after["durable_events"]
    }
    for table in (*TABLES, *LEDGER):
        text = json.dumps(await rows(database, f"SELECT * FROM {table}"))  # noqa: S608
        assert "chat:acme:s1:" not in text
        assert '"acme", "s1"' not in text
        assert '"acme", "session", "s1"' not in text
    assert paid == await rows(database, "SELECT count(*), sum(cost_micro_usd), count(DISTINCT run_id) FROM chat_usage")
    nobodys = await rows(
        database, "SELECT DISTINCT tenant_id, request_id, outcome FROM chat_usage WHERE run_id LIKE 'deleted:%'"
    )
    assert [("acme", None, "lost")] == nobodys
    assert {("other",)} == {*await rows(database, "SELECT tenant_id FROM chat_usage WHERE session_id = 's1'")}
    assert 404 == (await isolate.ask("DELETE", "/v1/sessions/s1")).status
    assert 404 == (await isolate.ask("GET", "/v1/sessions/s1/turns/0")).status
    for name in ("s10", "s"):
        assert 4 == len((await isolate.ask("GET", f"/v1/sessions/{name}/messages")).body["messages"])
    assert 200 == (await isolate.ask("GET", "/v1/sessions/s1/turns/0", x_tenant="other")).status


async def test_a_running_turn_of_a_deleted_session_writes_nothing_more(database: SqliteDatabase) -> None:
    """Its worker finds its lease gone; the session's name begins anew, and that worker cannot reach it."""
    slow = Isolate(database, Product(text_delta("a"), 20.0, text_delta("b")), lease_ms=2_000)
    running = await slow.ask("POST", "/v1/sessions/s1/turns/0", {"message": "hi"})
    await asyncio.sleep(1)
    other = Isolate(database, Product(text_delta("new")))
    assert 200 == (await other.ask("DELETE", "/v1/sessions/s1")).status
    assert 0 == sum((await counts(database)).values())
    await asyncio.sleep(0.01)
    await said(other, "s1", "anew")

    await running.lines()
    await asyncio.sleep(30)
    assert [("anew",), ("new",)] == await rows(database, "SELECT content FROM chat_messages ORDER BY role DESC")
    assert [(1, "completed")] == await rows(database, "SELECT epoch, status FROM durable_runs")
    assert [] == [row for row in await rows(database, "SELECT lines FROM chat_segments") if '"a"' in row[0]]


@pytest.mark.parametrize("anew", [False, True])
async def test_a_reader_of_a_deleted_turn_is_not_told_to_send_it_again(database: SqliteDatabase, anew: bool) -> None:
    """Whoever obeyed would begin the deleted session anew."""
    slow = Isolate(database, Product(text_delta("a"), 20.0, text_delta("b")), lease_ms=2_000)
    running = await slow.ask("POST", "/v1/sessions/s1/turns/0", {"message": "hi"})
    chat = {"id": "s2", "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "hi"}]}]}
    of_chat = await slow.ask("POST", "/v1/ai-sdk/chat", chat)
    await asyncio.sleep(1)
    other = Isolate(database, Product(text_delta("new")))
    for name in ("s1", "s2"):
        assert 200 == (await other.ask("DELETE", f"/v1/sessions/{name}")).status
        if anew:
            await said(other, name, "anew")

    lines = await running.lines()
    assert [("not_found", False)] * 2 == [(line["data"]["code"], line["data"]["retryable"]) for line in lines[-2:]]
    assert of_chat.task is not None
    await of_chat.task
    assert '{"type":"error","errorText":"There is nothing' in of_chat.reader.text
    assert not of_chat.reader.broken_off


async def test_whoever_follows_a_deleted_turn_is_shown_nothing_of_one_of_its_name(database: SqliteDatabase) -> None:
    """It may be another user's; nor is that user shown what the deleted turn's worker still says."""
    slow = Isolate(
        database, Product(text_delta("ann's"), *[step for _ in range(20) for step in (0.1, text_delta("old"))])
    )
    far, other = (Isolate(database, Product(text_delta("bob's"), 2.0, *[text_delta("bob's")] * 20)) for _ in range(2))
    path = "/v1/sessions/s1/turns/0"
    asked: Any = {"model": "default", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    posted = await slow.ask("POST", path, {"message": "hi"})
    await asyncio.sleep(0.6)
    followers = [
        await isolate.ask(method, address, body, reader=None, **headers)
        for isolate in (slow, far)
        for method, address, body, headers in (
            ("GET", f"{path}/stream", None, {"x_scopes": "turns:read"}),
            ("GET", f"{path}/stream", None, {"accept": "text/event-stream"}),
            ("GET", "/v1/ai-sdk/chat/s1/stream", None, {}),
            ("POST", "/v1/chat/completions", {**asked, "metadata": {"session_id": "s1", "turn_index": "0"}}, {}),
        )
    ]
    await asyncio.sleep(0.6)
    assert 200 == (await other.ask("DELETE", "/v1/sessions/s1")).status
    bobs = await other.ask("POST", path, {"message": "anew"}, x_user="bob")
    of_bob = await slow.ask("GET", f"{path}/stream", x_user="bob")
    for reply in (posted, *followers, bobs, of_bob):
        assert reply.task is not None
        await reply.task

    assert all("ann's" in reply.reader.text and "bob's" not in reply.reader.text for reply in (posted, *followers))
    assert bobs.reader.lines == of_bob.reader.lines
    assert all(reply.reader.broken_off for reply in (followers[2], followers[3], followers[6], followers[7]))


async def test_a_long_log_that_is_not_shown_holds_no_room(database: SqliteDatabase) -> None:
    """Three readers of a deleted turn find a long one in its place: its own reader is not told that there is no room."""
    slow = Isolate(database, Product(text_delta("old"), 2.0, text_delta("old")))
    far, other = Isolate(database, Product()), Isolate(database, Product(*[text_delta("new" * 2_000)] * 9))
    await slow.ask("POST", "/v1/sessions/s1/turns/0", {"message": "hi"})
    await asyncio.sleep(0.6)
    followers = [await far.ask("GET", "/v1/ai-sdk/chat/s1/stream") for _ in range(3)]
    await asyncio.sleep(0.6)
    assert 200 == (await other.ask("DELETE", "/v1/sessions/s1")).status
    await said(other, "s1", "anew")
    for reply in followers:
        assert reply.task is not None
        await reply.task
    shown = await far.ask("GET", "/v1/sessions/s1/turns/0/stream")

    assert all(reply.reader.broken_off and "new" not in reply.reader.text for reply in followers)
    assert 200 == shown.status


async def test_a_deletion_dies_whole_or_not_at_all(database: SqliteDatabase) -> None:
    """Killed before or after its only write."""
    isolate = Isolate(database, Product(text_delta("hello")))
    for point in (0, 1):
        await said(isolate, "s1")
        before = await counts(database)
        mortal = Isolate(MortalDatabase(database, Fuse(point)), Product())
        with pytest.raises(Crash):
            await mortal.service.sessions.delete("acme", "s1", "ann")
        assert (before if point == 0 else dict.fromkeys(TABLES, 0)) == await counts(database)


async def test_all_sessions_of_a_user_go_whatever_dies(database: SqliteDatabase) -> None:
    """The cron goes on with what is left; what the user begins meanwhile stays, and so does everybody else's."""
    isolate = Isolate(database, Product(text_delta("hello")))
    point = 0
    while True:
        for name in ("s1", "s2", "s3"):
            await said(isolate, name)
        await said(isolate, "s4", x_user="bob")
        mortal = Isolate(MortalDatabase(database, Fuse(point)), Product())
        try:
            await mortal.service.sessions.delete_all("acme", "ann")
            break
        except Crash:
            asked = await rows(database, "SELECT 1 FROM chat_deletions")
            await asyncio.sleep(0.01)
            await said(isolate, f"later{point}")
            await isolate.sweep()
            left = [name for (name,) in await rows(database, "SELECT session_id FROM chat_sessions ORDER BY 1")]
            later = [f"later{point}"]
            assert [*later, "s4"] == left if asked or point else {*later, "s1", "s2", "s3", "s4"} == set(left), point
            assert [] == await rows(database, "SELECT 1 FROM chat_deletions")
        point += 1
    assert 5 < point
    assert ["s4"] == [name for (name,) in await rows(database, "SELECT session_id FROM chat_sessions ORDER BY 1")]


async def test_a_free_plan_deletes_a_few_at_once_and_says_so(database: SqliteDatabase) -> None:
    """202, and the cron does the others."""
    isolate = Isolate(database, Product(), settings={"WORKERS_PLAN": "free"})
    for number in range(5):
        await said(isolate, f"s{number}")
    reply = await isolate.ask("DELETE", "/v1/users/ann/sessions")
    assert (202, False) == (reply.status, reply.body["deleted"])
    assert 3 == (await counts(database))["chat_sessions"]
    await isolate.sweep()
    await isolate.sweep()
    assert 0 == sum((await counts(database)).values())
    assert [] == await rows(database, "SELECT 1 FROM chat_deletions")


async def test_a_tenant_goes_with_its_name_in_the_ledger(database: SqliteDatabase) -> None:
    """By an operator only; other tenants stay as they are."""
    isolate = Isolate(database, Product())
    for tenant in ("acme", "other"):
        await said(isolate, "s1", x_tenant=tenant)
        await said(isolate, "s2", x_tenant=tenant, x_user="bob")
    await paid_for(database)
    reply = await isolate.ask("DELETE", "/v1/tenants/acme", **OPERATOR)
    assert (200, True) == (reply.status, reply.body["deleted"])
    assert [("other",), ("other",)] == await rows(database, "SELECT tenant_id FROM chat_sessions")
    assert ["", "", "other", "other"] == sorted(
        tenant for (tenant,) in await rows(database, "SELECT tenant_id FROM chat_usage")
    )


async def test_the_ledger_of_a_large_tenant_is_searched_once_its_sessions_are_gone(database: SqliteDatabase) -> None:
    """Each search reads the calls of all sessions that are left, which are two fewer each time."""
    isolate = Isolate(database, Product(), settings={"WORKERS_PLAN": "free"})
    for number in range(6):
        await said(isolate, f"s{number}")
    searched: list[int] = []

    class Watched:
        async def batch(self, statements: Sequence[Statement]) -> list[Result]:
            if any(each.sql == read_deleted("", "").sql for each in statements):
                searched.append((await counts(database))["chat_sessions"])
            return await database.batch(statements)

    deleting = Isolate(Watched(), Product(), settings={"WORKERS_PLAN": "free"})
    replies = [await deleting.ask("DELETE", "/v1/tenants/acme", **OPERATOR) for _ in range(3)]
    assert [202, 202, 200] == [reply.status for reply in replies]
    assert [0] == searched


async def test_a_tenant_also_goes_from_what_was_deleted_before() -> None:
    """With its session, or by retention; whatever dies, and with the sums that the rows add up to."""
    point, died = 0, True
    while died:
        with open_sqlite() as database:
            isolate = Isolate(database, Product())
            await said(isolate, "expired")
            await said(isolate, "expired", index=1)
            await paid_for(database)
            await isolate.service.deployment.store.delete_finished_runs(older_than_ms=0)
            for session, user, tenant in (
                ("deleted", "bob", "acme"),
                ("there", "ann", "acme"),
                ("there", "ann", "other"),
            ):
                await said(isolate, session, x_user=user, x_tenant=tenant)
            await paid_for(database)
            await isolate.ask("DELETE", "/v1/sessions/deleted", x_user="bob")
            mortal = Isolate(MortalDatabase(database, Fuse(point)), Product())
            try:
                assert await mortal.service.sessions.delete_all("acme", "")
                died = False
            except Crash:
                await isolate.sweep()
                await isolate.ask("DELETE", "/v1/tenants/acme", **OPERATOR)
            text = json.dumps([await rows(database, f"SELECT * FROM {name}") for name in LEDGER])  # noqa: S608
            assert not re.findall('acme|expired|"deleted"', text), point
            assert [("", 4), ("other", 1)] == await rows(
                database, "SELECT tenant_id, count(DISTINCT run_id) FROM chat_usage GROUP BY 1 ORDER BY 1"
            )
            await require_sums(database, ("2025-01-01", "2027-01-01"))
        point += 1
    assert 5 < point


async def test_a_session_of_an_earlier_version_is_deleted_as_well(database: SqliteDatabase) -> None:
    """It has no row of its own yet: it is its first turn's user's."""
    isolate = Isolate(database, Product(), settings=BOUNDARY)
    await said(isolate, "s1")
    await rows(database, "DELETE FROM chat_sessions RETURNING 1")
    assert 404 == (await isolate.ask("DELETE", "/v1/sessions/s1", x_user="bob")).status
    assert 200 == (await isolate.ask("DELETE", "/v1/sessions/s1")).status
    assert 0 == sum((await counts(database)).values())


@pytest.mark.parametrize("swept", [False, True])
async def test_sessions_of_an_earlier_version_are_their_first_users(database: SqliteDatabase, swept: bool) -> None:
    """Deleted with all that the user has, and from the next sweep on listed and exported: it may serve for a while."""
    isolate = Isolate(database, Product())
    for index, user in enumerate(("ann", "bob")):
        await said(isolate, "s1", index=index, x_user=user)
    await said(isolate, "s2", x_user="bob")
    await rows(database, "DELETE FROM chat_sessions RETURNING 1")
    if swept:
        await isolate.sweep()
        listed = (await isolate.ask("GET", "/v1/sessions")).body["sessions"]
        assert [("s1", "ann")] == [(each["sessionId"], each["userId"]) for each in listed]
        assert 4 == len(await exported(isolate, "/v1/users/ann/export"))
    assert {"deleted": True} == (await isolate.ask("DELETE", "/v1/users/ann/sessions")).body
    assert [("s2",)] == await rows(database, "SELECT session_id FROM chat_turns")
    assert {"deleted": True} == (await isolate.ask("DELETE", "/v1/tenants/acme", **OPERATOR)).body
    assert 0 == sum((await counts(database)).values())


async def test_a_first_question_without_words_is_no_title(database: SqliteDatabase) -> None:
    """As one of an image alone."""
    isolate = Isolate(database, Product())
    await said(isolate, "s1", [{"type": "image", "url": "https://example.com/cat.png"}])
    assert [None] == [each["title"] for each in (await isolate.ask("GET", "/v1/sessions")).body["sessions"]]


# Export


async def test_an_export_has_every_version_and_what_was_thought_of_it(database: SqliteDatabase) -> None:
    """In lines that end with one that says that they are all."""
    isolate = Isolate(database, Product(text_delta("hello")), settings=VERSIONS)
    await said(isolate, "s1", "first")
    again = {"message": "other", "replace": {"kind": "edit", "version": 1}}
    await (await isolate.ask("POST", "/v1/sessions/s1/turns/0", again)).lines()
    await isolate.ask("POST", "/v1/sessions/s1/turns/0/feedback", {"rating": "up", "version": 1})
    await said(isolate, "s2", x_user="bob")

    lines = await exported(isolate, "/v1/sessions/s1/export")
    assert ["session", "turn", "feedback", "turn", "end"] == [line["type"] for line in lines]
    assert [("first", 1, False, "hello"), ("other", 2, True, "hello")] == [
        (line["message"], line["version"], line["counts"], line["answer"]) for line in lines if line["type"] == "turn"
    ]
    assert ("ann", "up") == (lines[2]["userId"], lines[2]["rating"])
    assert lines == await exported(isolate, "/v1/users/ann/export")
    of_tenant = await exported(isolate, "/v1/tenants/acme/export", **OPERATOR)
    assert ["s1", "s2"] == [line["sessionId"] for line in of_tenant if line["type"] == "session"]
    assert 404 == (await isolate.ask("GET", "/v1/sessions/s9/export")).status


async def test_a_long_export_is_gone_on_with(database: SqliteDatabase) -> None:
    """The free plan has few queries: the parts together are what the paid plan gives at once."""
    isolate = Isolate(database, Product())
    for name in ("a", "b", "c"):
        await said(isolate, name)
    await many_turns(database, "b", 250)
    whole = await exported(isolate, "/v1/users/ann/export")
    free = Isolate(database, Product(), settings={"WORKERS_PLAN": "free"})
    parts: list[dict[str, Any]] = []
    after, responses = "", 0
    while True:
        lines = await exported(free, f"/v1/users/ann/export{after}")
        responses += 1
        parts += lines[:-1]
        if lines[-1]["type"] == "end":
            break
        after = f"?after={lines[-1]['after']}"
    assert 1 < responses
    assert whole[:-1] == parts
    assert 253 == len([line for line in parts if line["type"] == "turn"])


async def test_a_cursor_of_an_export_leads_to_nobody_elses(database: SqliteDatabase) -> None:
    """Whoever makes one up is refused, or given the sessions of their own that come behind it."""
    isolate = Isolate(database, Product())
    for name, user in (("s1", "ann"), ("s2", "bob"), ("s3", "ann")):
        await said(isolate, name, x_user=user)
    forged = {
        '["x","s2","chat:acme:s2:"]': ["s3"],
        '["x","s9","chat:acme:s9:"]': [],
        '["x","s1","chat:acme:"]': None,
        '["x","s1","chat:acme:s2:"]': None,
    }
    for text, names in forged.items():
        path = f"export?after={base64.urlsafe_b64encode(text.encode()).decode().rstrip('=')}"
        if names is None:
            assert 422 == (await isolate.ask("GET", f"/v1/users/ann/{path}")).status
        else:
            lines = await exported(isolate, f"/v1/users/ann/{path}")
            assert names == [line["sessionId"] for line in lines if line["type"] == "session"]
            assert 1 + 2 * len(names) == len(lines)
        assert 422 == (await isolate.ask("GET", f"/v1/sessions/s3/{path}")).status


async def test_a_session_that_is_deleted_while_it_is_exported_is_left_out(database: SqliteDatabase) -> None:
    """Also where another user has begun one of the same name: neither it nor an error takes its place."""
    isolate = Isolate(database, Product(), settings={**BOUNDARY, "WORKERS_PLAN": "free"})
    for name in ("s1", "s2"):
        await said(isolate, name)
    await many_turns(database, "s1", 250)
    [*_, more] = await exported(isolate, "/v1/users/ann/export")
    assert "more" == more["type"]
    assert 200 == (await isolate.ask("DELETE", "/v1/sessions/s1")).status
    await asyncio.sleep(0.01)
    lines = await exported(isolate, f"/v1/users/ann/export?after={more['after']}")
    await said(isolate, "s1", "bob's", x_user="bob")
    assert lines == await exported(isolate, f"/v1/users/ann/export?after={more['after']}")
    assert ["s2"] == [line["sessionId"] for line in lines if line["type"] == "session"]
    assert "end" == lines[-1]["type"]

    query = ExportQuery(tenant_id="acme", session_id="s1")
    await many_turns(database, "s1", 20)
    deployment = isolate.service.deployment
    parts = export(deployment.database, deployment.files, query, "paid")
    text = "".join([await anext(parts), await anext(parts)])
    await isolate.ask("DELETE", "/v1/sessions/s1", x_user="bob")
    await asyncio.sleep(0.01)
    await said(isolate, "s1", "ann's")
    text += "".join([part async for part in parts])
    assert [10, 0] == [text.count('"type":"turn"'), text.count("ann's")]
    assert text.endswith('{"type":"end"}\n')


async def test_an_export_has_the_files_that_messages_name(database: SqliteDatabase) -> None:
    """Whole, in pieces; without an address what is not kept any more; and gone on with where they are many."""
    store = KeptFiles()
    isolate = Isolate(database, Product(), file_store=store, settings=BOUNDARY)
    sent = [bytes([number]) * size for number, size in enumerate((1, 200_000, 500_001, 3))]
    headers: dict[str, Any] = {"content_type": "image/png"}
    ids = [(await isolate.ask("POST", "/v1/files?name=a", content, **headers)).body["file"] for content in sent]
    for index in range(5):
        message: Any = [{"type": "text", "text": "see"}, *({"type": "image", "file": each} for each in ids)]
        await said(isolate, "s1", message, index=index)
    gone = next(key for key in store.files if key.endswith(ids[3].rpartition("_")[2]) and key.startswith("files/"))
    del store.files[gone]

    lines = await exported(isolate, "/v1/sessions/s1/export")
    assert ["session", *["turn", *["file"] * 4] * 5, "end"] == [line["type"] for line in lines]
    for line, file_id, content in zip(lines[2:5], ids, sent, strict=False):
        assert (file_id, "image/png", "a", len(content)) == tuple(
            line[name] for name in ("file", "mediaType", "name", "bytes")
        )
        assert content == base64.b64decode(line["url"].removeprefix("data:image/png;base64,"))
    assert (ids[3], None, None) == (lines[5]["file"], lines[5]["bytes"], lines[5]["url"])
    assert lines == await exported(isolate, "/v1/users/ann/export")
    assert lines == await exported(isolate, "/v1/tenants/acme/export", **OPERATOR)

    free = Isolate(database, Product(), file_store=store, settings={**BOUNDARY, "WORKERS_PLAN": "free"})
    parts: list[dict[str, Any]] = []
    after = ""
    while not parts or parts[-1]["type"] != "end":
        store.asked.clear()
        parts = [*parts[:-1], *await exported(free, f"/v1/users/ann/export{after}")]
        assert len(store.asked) <= 30
        after = f"?after={parts[-1].get('after')}"
    assert lines == parts

    reply = await isolate.ask("GET", "/v1/sessions/s1/export")
    store.down = True
    assert reply.task is not None
    await reply.task
    assert reply.reader.broken_off


async def test_an_export_that_fails_breaks_off(database: SqliteDatabase) -> None:
    """Nobody takes it for the whole."""
    isolate = Isolate(database, Product())
    await said(isolate, "s1")
    reply = await isolate.ask("GET", "/v1/sessions/s1/export")
    isolate.wire.down = True
    assert reply.task is not None
    await reply.task
    assert reply.reader.broken_off
    assert "export.failed" in [event for event, _ in isolate.logged]


async def test_lists_cost_the_same_however_many_sessions_there_are(database: SqliteDatabase) -> None:
    """They are read off an index, without sorting."""
    for user in ("ann", None):
        statement = read_sessions("acme", user, "~", "", 10)
        plan = await database.batch([type(statement)(f"EXPLAIN QUERY PLAN {statement.sql}", statement.params)])
        text = json.dumps([row["detail"] for row in plan[0].rows])
        assert "USING INDEX idx_chat_sessions" in text
        assert "TEMP B-TREE" not in text


def test_no_table_is_forgotten_by_a_deletion() -> None:
    """Each that knows a run or a session is in it; agent-runtime's sessions are no chat's, and triggers keep the spans."""
    text = " ".join(statement.sql for statement in forget_session("acme", "s1", "nobody:"))
    for table, columns in schema_columns().items():
        if {"run_id", "session_id"} & {*columns} and not table.startswith(("runtime_", "chat_usage_spans")):
            assert re.search(rf"(DELETE FROM|UPDATE) {table}\b", text), table


async def test_exports_whose_readers_take_nothing_fill_no_isolate(database: SqliteDatabase) -> None:
    """Those of one user hold a quarter of the room, and each a few turns; all have the whole in the end."""
    isolate = Isolate(database, Product(text_delta("yes")))
    for number in range(12):
        await (await said(isolate, "s1", index=number)).lines()
    taken = asyncio.Event()

    class Stalled(Reader):
        async def drain(self, _room: int | None = None) -> None:
            await taken.wait()

    readers = [Stalled() for _ in range(20)]
    replies = [await isolate.ask("GET", "/v1/sessions/s1/export", reader=each) for each in readers]
    await asyncio.sleep(1)
    holding = sum('"turn"' in each.text for each in readers)
    bobs = await isolate.ask("GET", "/v1/sessions/s1/export", x_user="bob")
    assert "end" == (await bobs.lines())[-1]["type"]
    taken.set()
    ends = {(await reply.lines())[-1]["type"] for reply in replies}

    assert 3 == holding
    assert {"end"} == ends
