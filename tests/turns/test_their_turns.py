"""Turns that agent-runtime has begun, over every route: as our own, as far as its rows allow it."""

import json
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

import pytest

from chatturn.chat.thread.identity import turn_run_id
from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from chatturn_testing.virtual_time import run
from tests.support.agent_runtime_database import (
    ANSWER,
    COMPLETED,
    FAILED,
    INTERRUPTED,
    LIVE,
    PROJECT,
    RETRIED,
    UNENDED,
    identity_of,
    legacy_id,
    make_version_1,
    rows_of,
    write_turns,
)
from tests.support.chat_clients import CompletionView, UiMessageView
from tests.support.clock import Clock
from tests.support.isolates import Isolate, Reply
from tests.support.turns import Product, virtual_moment
from tests.turns.test_replays import USED_UP

SESSION = "/v1/sessions/thread-1"
TABLES = ("durable_runs", "durable_steps", "durable_events", "chat_turns", "chat_messages", "chat_segments")
LEASE_S = 60.0
OURS = "Hello, world."

Story = Callable[[Isolate], Coroutine[Any, Any, None]]


@pytest.fixture(params=["off", "on"])
def threads(request: pytest.FixtureRequest) -> str:
    """Whether turns have versions."""
    value: str = request.param
    return value


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """A database that agent-runtime has filled, brought to the schema."""

    async def fill(database: SqliteDatabase) -> None:
        await make_version_1(database)
        await write_turns(database, Clock())

    with SqliteDatabase(":memory:", moment=virtual_moment) as database:
        run(fill(database))
        database.migrate()
        yield database


def isolate_of(database: Any, threads: str = "off", **settings: str) -> Isolate:
    """Return an isolate of a deployment that goes on with that database."""
    told = {"PROJECT_ID": PROJECT, "DOMAIN": "legal", "LEGACY_RUN_IDS": "on", "THREADS": threads, **settings}
    return Isolate(database, Product(), settings=told)


def told(database: SqliteDatabase, threads: str, story: Story) -> None:
    """Run a story of one isolate."""

    async def main() -> None:
        await story(isolate_of(database, threads))

    run(main())


async def post(isolate: Isolate, index: int, message: str = "hello", **members: Any) -> Reply:
    """Post a message."""
    return await isolate.ask("POST", f"{SESSION}/turns/{index}", {"message": message, **members})


async def get(isolate: Isolate, path: str) -> Reply:
    """Get something of the session."""
    return await isolate.ask("GET", f"{SESSION}/{path}")


def kinds(lines: list[dict[str, Any]]) -> list[str]:
    """Return what lines are, in short."""
    return [line["type"].removeprefix("session.run.") for line in lines]


async def set_answer(database: Any, index: int, text: str | None, *, live: bool = False) -> None:
    """Let agent-runtime have stored this as a turn's answer."""
    result = None if text is None else text
    status = "running" if live else "completed"
    await database.batch(
        [
            Statement(
                "UPDATE durable_steps SET status = 'completed', result_json = ?2 WHERE run_id = ?1",
                (legacy_id(index), result),
            ),
            Statement("UPDATE durable_runs SET status = ?2 WHERE run_id = ?1", (legacy_id(index), status)),
        ]
    )


# What is shown


def test_the_stream_of_an_answered_turn_is_three_lines_that_a_cursor_cuts(
    database: SqliteDatabase, threads: str
) -> None:
    """For every cursor k, the first k lines and what `after=k` returns are the log; then its end once more."""

    async def story(isolate: Isolate) -> None:
        before = await rows_of(database, *TABLES)
        whole = await (await get(isolate, f"turns/{COMPLETED}/stream")).lines()
        rests = [await (await get(isolate, f"turns/{COMPLETED}/stream?after={k}")).lines() for k in range(3)]
        beyond = await get(isolate, f"turns/{COMPLETED}/stream?after=3")
        tagged = await get(isolate, f"turns/{COMPLETED}/stream?attempt=1")
        tag = tagged.response.headers["ETag"]
        known = await isolate.ask("GET", f"{SESSION}/turns/{COMPLETED}/stream", if_none_match=tag)

        assert ["started", "result", "completed"] == kinds(whole)
        assert ([0, 1, 2], ANSWER) == ([line["seq"] for line in whole], whole[1]["data"]["finalText"])
        assert [whole[1:], whole[2:]] == rests[:2]
        assert [{name: value for name, value in whole[2].items() if name != "seq"}] == rests[2]
        assert (422, "after") == (beyond.status, beyond.body["field"])
        assert "immutable" in tagged.response.headers["Cache-Control"]
        assert 304 == known.status
        assert before == await rows_of(database, *TABLES)

    told(database, threads, story)


def test_the_stream_of_an_answered_turn_is_for_browsers_as_well(database: SqliteDatabase, threads: str) -> None:
    """By a ticket, as SSE; with nothing left, 204."""

    async def story(isolate: Isolate) -> None:
        ticket = await isolate.ask("POST", f"{SESSION}/turns/{COMPLETED}/ticket")
        stream = await isolate.ask("GET", ticket.body["stream"], accept="text/event-stream")
        assert stream.task is not None
        await stream.task
        ids = [line.removeprefix("id: ") for line in stream.reader.text.splitlines() if line.startswith("id: ")]
        again = await isolate.ask("GET", ticket.body["stream"], accept="text/event-stream", last_event_id=ids[-1])

        assert 3 == len(ids)
        assert 204 == again.status

    told(database, threads, story)


@pytest.mark.parametrize("index", [FAILED, INTERRUPTED])
def test_the_stream_of_a_turn_without_an_answer_says_that_it_may_be_asked_again(
    database: SqliteDatabase, threads: str, index: int
) -> None:
    """Nobody goes on with it by itself: what was asked is in no table.  Its lines have no number, for they change."""

    async def story(isolate: Isolate) -> None:
        lines = await (await get(isolate, f"turns/{index}/stream")).lines()
        then = await (await post(isolate, index)).lines()
        log = await (await get(isolate, f"turns/{index}/stream")).lines()

        assert ["started", "error", "failed"] == kinds(lines)
        assert {False} == {"seq" in line for line in lines}
        assert lines[-1]["data"]["retryable"] is True or index == FAILED
        assert ("completed", OURS) == (kinds(then)[-1], "".join(log_text(log)))
        assert 0 == log[0]["seq"]

    told(database, threads, story)


def log_text(lines: list[dict[str, Any]]) -> list[str]:
    """Return the pieces of text of a log."""
    return [line["data"]["delta"] for line in lines if line["type"] == "message.part.updated"]


@pytest.mark.parametrize("index", [LIVE, RETRIED])
def test_a_follower_of_a_turn_that_is_being_answered_there_waits_for_its_answer(
    database: SqliteDatabase, threads: str, index: int
) -> None:
    """By GET, and by POST with `follow`; and once it is there, it is the log."""

    async def story(isolate: Isolate) -> None:
        followed = await get(isolate, f"turns/{index}/stream")
        posted = await post(isolate, index, follow=True)
        others = [
            await post(isolate, index, "another message", follow=True),
            await post(isolate, index, "another message", on_mismatch="supersede"),
        ]
        await set_answer(database, index, json.dumps({"finalText": ANSWER}))
        await database.batch(
            [Statement("UPDATE durable_runs SET lease_holder_id = NULL, lease_expires_at = NULL WHERE run_id = ?1",
                       (legacy_id(index),))]
        )  # fmt: skip

        assert ["started", "result", "completed"] == kinds(await followed.lines()) == kinds(await posted.lines())
        assert ["input_mismatch", "turn_in_flight"] == [other.body["code"] for other in others]

    told(database, threads, story)


def test_a_follower_of_a_turn_whose_worker_dies_there_is_told_so(database: SqliteDatabase, threads: str) -> None:
    """Once its lease has lapsed; and the request sent again is answered."""

    async def story(isolate: Isolate) -> None:
        lines = await (await get(isolate, f"turns/{LIVE}/stream")).lines()

        assert (["started", "error", "failed"], "aborted") == (kinds(lines), lines[-1]["data"]["code"])
        assert ["completed"] == kinds(await (await post(isolate, LIVE)).lines())[-1:]

    told(database, threads, story)


def test_an_answer_whose_run_was_not_ended_is_shown(database: SqliteDatabase, threads: str) -> None:
    """It is what a request for it is answered with."""

    async def story(isolate: Isolate) -> None:
        lines = await (await get(isolate, f"turns/{UNENDED}/stream")).lines()

        assert (["started", "result", "completed"], ANSWER) == (kinds(lines), lines[1]["data"]["finalText"])

    told(database, threads, story)


def test_other_formats_show_an_answered_turn(database: SqliteDatabase, threads: str) -> None:
    """The AI SDK's stream, by the chat and by the run; and a completion of the session."""

    async def story(isolate: Isolate) -> None:
        await database.batch([Statement("DELETE FROM durable_runs WHERE run_id <> ?1", (legacy_id(COMPLETED),))])
        texts = []
        for name in ("thread-1", f"chat%3Aacme%3Athread-1%3A{COMPLETED}"):
            reply = await isolate.ask("GET", f"/v1/ai-sdk/chat/{name}/stream")
            assert (200, "true") == (reply.status, reply.response.headers["X-Turn-Replayed"])
            assert reply.task is not None
            await reply.task
            view = UiMessageView()
            view.read(reply.reader.text)
            texts.append(view.text)
        body = {"model": "default", "messages": [{"role": "user", "content": "hello"}], "stream": True,
                "metadata": {"session_id": "thread-1", "turn_index": str(COMPLETED)}}  # fmt: skip
        completion = await isolate.ask("POST", "/v1/chat/completions", body)
        assert completion.task is not None
        await completion.task
        whole = CompletionView()
        whole.read(completion.reader.text)

        assert [ANSWER, ANSWER, ANSWER] == [*texts, whole.text]

    told(database, threads, story)


def test_their_answers_are_sent_again_however_often_their_user_asks(database: SqliteDatabase, threads: str) -> None:
    """In each format; a turn of theirs that is not finished is not begun, and nothing is written."""
    question = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "hello"}]}

    def requests(index: int) -> list[tuple[str, str, dict[str, Any] | None]]:
        completion = {"model": "default", "messages": [{"role": "user", "content": "hello"}], "stream": True}
        return [
            ("POST", f"{SESSION}/turns/{index}", {"message": "hello"}),
            ("POST", "/v1/ai-sdk/chat", {"id": "thread-1", "turnIndex": index, "messages": [question]}),
            (
                "POST",
                "/v1/chat/completions",
                {**completion, "metadata": {"session_id": "thread-1", "turn_index": str(index)}},
            ),
        ]

    async def story(isolate: Isolate) -> None:
        isolate.rates = USED_UP
        before = {table: await rows_of(database, table) for table in TABLES}
        for method, path, body in [*requests(COMPLETED), ("GET", f"{SESSION}/turns/{COMPLETED}/stream", None)]:
            reply = await isolate.ask(method, path, body)
            assert (200, None) == (reply.status, reply.response.headers.get("X-Error-Code")), path
            assert reply.task is not None
            await reply.task
            assert ANSWER.split()[0] in reply.reader.text, path
        for index in (FAILED, 9):
            assert [429] * 3 == [(await isolate.ask(*request)).status for request in requests(index)]
        assert before == {table: await rows_of(database, table) for table in TABLES}

    told(database, threads, story)


def test_a_chat_is_shown_at_its_latest_turn_whichever_engine_has_it(database: SqliteDatabase, threads: str) -> None:
    """agent-runtime's are counted on from ours; other tenants and projects have none."""

    async def story(isolate: Isolate) -> None:
        service = isolate.service
        assert RETRIED == await service.latest_turn("acme", "thread-1", "ann")
        await (await post(isolate, RETRIED + 1, "more")).lines()
        assert RETRIED + 1 == await service.latest_turn("acme", "thread-1", "ann")
        assert await service.latest_turn("acme", "thread", "ann") is None
        other = isolate_of(database, threads, PROJECT_ID="another")
        assert RETRIED + 1 == await other.service.latest_turn("acme", "thread-1", "ann")
        assert 404 == (await get(other, f"turns/{COMPLETED}")).status
        assert 404 == (await get(other, f"turns/{COMPLETED}/stream")).status

    told(database, threads, story)


def test_lists_show_where_its_turns_stand(database: SqliteDatabase, threads: str) -> None:
    """To the operator: by status, orphaned ones as such; its users' messages are in no table, so there are none."""

    async def story(isolate: Isolate) -> None:
        async def listed(status: str) -> list[str]:
            reply = await isolate.ask("GET", f"/v1/runs?status={status}", x_scopes="operate")
            return [run["runId"] for run in reply.body["runs"]]

        assert [legacy_id(COMPLETED)] == await listed("completed")
        assert {legacy_id(INTERRUPTED), legacy_id(UNENDED)} == set(await listed("orphaned"))
        assert [legacy_id(LIVE)] == await listed("running")
        assert [] == (await get(isolate, "messages")).body["messages"]
        await isolate.ask("POST", f"{SESSION}/turns/{LIVE}/cancel")
        assert [turn_run_id(identity_of(LIVE))] == await listed("cancelled")

    told(database, threads, story)


def test_what_cannot_be_resumed_does_not_hold_up_what_can(database: SqliteDatabase, threads: str) -> None:
    """The sweep looks at turns of ours only: a hundred orphans of agent-runtime's take no place."""

    async def story(isolate: Isolate) -> None:
        copy = (
            "INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at,"
            " lease_holder_id, lease_expires_at) SELECT 'chat:old:' || ?2, manifest_hash, project_id, 'running',"
            " created_at, updated_at, 'h', '2020-01-01T00:00:00.000Z' FROM durable_runs WHERE run_id = ?1"
        )
        await database.batch([Statement(copy, (legacy_id(COMPLETED), number)) for number in range(100)])
        reply = await post(isolate, 9, "ours")
        await isolate.kill()
        assert reply.status == 200
        await database.batch(
            [Statement("UPDATE durable_runs SET status = 'running', completed_at = NULL, lease_holder_id = 'h',"
                       " lease_expires_at = '2025-01-01T00:00:00.000Z' WHERE run_id = ?1",
                       (turn_run_id(identity_of(9)),))]
        )  # fmt: skip
        other = isolate_of(database, threads)
        await other.sweep()

        assert "completed" == (await get(other, "turns/9")).body["status"]

    told(database, threads, story)


def test_a_busy_session_keeps_nobody_from_an_answer_that_is_there(database: SqliteDatabase, threads: str) -> None:
    """What is finished there is replayed while another turn is being answered here: nothing waits in its place."""

    async def story(isolate: Isolate) -> None:
        busy = isolate_of(database, threads)
        busy.hooks = Product(3600.0)
        running = await post(busy, 9, "something long")
        replay = await post(isolate, COMPLETED)
        held = await post(isolate, LIVE, when_busy="reject")
        lines = await replay.lines()
        await busy.kill()

        assert 200 == running.status
        assert ["started", "result", "completed"] == kinds(lines)
        assert "turn_in_flight" == held.body["code"]
        shown = [(await get(isolate, f"turns/{index}")).body["runId"] for index in (COMPLETED, LIVE)]
        assert [legacy_id(COMPLETED), legacy_id(LIVE)] == shown

    told(database, threads, story)


# Stopping


@pytest.mark.parametrize("index", [LIVE, RETRIED, INTERRUPTED])
def test_a_turn_that_is_not_over_there_can_be_stopped(database: SqliteDatabase, threads: str, index: int) -> None:
    """It is taken away from its worker, for good: whatever that writes finds nothing, and every route says so."""

    async def story(isolate: Isolate) -> None:
        first = await isolate.ask("POST", f"{SESSION}/turns/{index}/cancel")
        again = await isolate.ask("POST", f"{SESSION}/turns/{index}/cancel")
        zombie = await database.batch(
            [
                Statement(f"UPDATE {table} SET status = 'completed' WHERE run_id = ?1", (legacy_id(index),))  # noqa: S608
                for table in ("durable_steps", "durable_runs")
            ]
        )
        shown = await get(isolate, f"turns/{index}")
        replay = await (await post(isolate, index)).lines()
        log = await (await get(isolate, f"turns/{index}/stream")).lines()
        other = await post(isolate, index, "another message")

        assert (202, True, "cancelled") == (first.status, first.body["cancelRequested"], first.body["status"])
        assert (200, False, "cancelled") == (again.status, again.body["cancelRequested"], again.body["status"])
        assert [0, 0] == [result.changes for result in zombie]
        assert ("cancelled", turn_run_id(identity_of(index))) == (shown.body["status"], shown.body["runId"])
        assert ["started", "result", "cancelled"] == kinds(replay) == kinds(log)
        assert "" == replay[1]["data"]["finalText"]
        assert (422, "input_mismatch") == (other.status, other.body["code"])

    told(database, threads, story)


@pytest.mark.parametrize("index", [COMPLETED, FAILED, UNENDED])
def test_a_turn_that_is_over_there_is_not_stopped(database: SqliteDatabase, threads: str, index: int) -> None:
    """Nothing is written, as for one of ours."""

    async def story(isolate: Isolate) -> None:
        before = await rows_of(database, *TABLES)
        reply = await isolate.ask("POST", f"{SESSION}/turns/{index}/cancel")

        assert (200, False) == (reply.status, reply.body["cancelRequested"])
        assert before == await rows_of(database, *TABLES)

    told(database, threads, story)


def test_stopping_survives_a_crash_at_every_statement(database: SqliteDatabase, threads: str) -> None:
    """It is done or not; sent again, it is done."""

    async def story(_isolate: Isolate) -> None:
        crashes = 0
        for point in range(20):
            fuse = Fuse(point)
            try:
                await isolate_of(MortalDatabase(database, fuse), threads).ask("POST", f"{SESSION}/turns/{LIVE}/cancel")
            except Crash:
                crashes += 1
            if not fuse.dead:
                break
        reply = await isolate_of(database, threads).ask("POST", f"{SESSION}/turns/{LIVE}/cancel")

        assert crashes
        assert ("cancelled", False) == (reply.body["status"], reply.body["cancelRequested"])

    told(database, threads, story)


# Another message, and an answer that is none


def test_another_message_at_an_answered_turn_is_refused_or_supersedes_it(
    database: SqliteDatabase, threads: str
) -> None:
    """As at a turn of ours; its own rows stay as they are."""

    async def story(isolate: Isolate) -> None:
        theirs = [row for row in (await rows_of(database, "durable_runs"))[0] if row["run_id"] == legacy_id(COMPLETED)]
        refused = await post(isolate, COMPLETED, "another message")
        superseding = await (await post(isolate, COMPLETED, "another message", on_mismatch="supersede")).lines()
        again = await (await post(isolate, COMPLETED, "another message", on_mismatch="supersede")).lines()
        before = await post(isolate, COMPLETED)
        rows = (await rows_of(database, "durable_runs"))[0]

        assert (422, "input_mismatch") == (refused.status, refused.body["code"])
        assert ("completed", False) == (kinds(superseding)[-1], superseding[-1]["data"]["replayed"])
        assert again[-1]["data"]["replayed"] is True
        assert (422, "input_mismatch") == (before.status, before.body["code"])
        assert theirs == [row for row in rows if row["run_id"] == legacy_id(COMPLETED)]

    told(database, threads, story)


_NO_ANSWERS: Mapping[str, str | None] = {
    "empty": '{"finalText":""}',
    "null": "null",
    "none": None,
    "no text": '{"finalText":7}',
    "no object": '"done"',
    "no JSON": "{",
}


@pytest.mark.parametrize("stored", _NO_ANSWERS)
@pytest.mark.parametrize("live", [False, True])
def test_an_empty_answer_is_no_answer(database: SqliteDatabase, threads: str, stored: str, *, live: bool) -> None:
    """It is shown as failed, the request sent again has it answered, and another message is another turn."""

    async def story(isolate: Isolate) -> None:
        index = UNENDED if live else COMPLETED
        await set_answer(database, index, _NO_ANSWERS[stored], live=live)
        shown = (await get(isolate, f"turns/{index}")).body["status"]
        stream = await (await get(isolate, f"turns/{index}/stream")).lines()
        lines = await (await post(isolate, index)).lines()
        replay = await (await post(isolate, index)).lines()

        assert ("running" if live else "failed") == shown
        assert "failed" == kinds(stream)[-1]
        assert ("completed", False, OURS) == (kinds(lines)[-1], lines[-1]["data"]["replayed"], "".join(log_text(lines)))
        assert (True, OURS) == (replay[-1]["data"]["replayed"], replay[1]["data"]["finalText"])

    told(database, threads, story)


def test_another_turn_where_theirs_is_none_is_refused_for_what_refuses_it(
    database: SqliteDatabase, threads: str
) -> None:
    """A full day is said as such, nothing is written, and no answer to something else is shown; a replay passes."""

    async def story(_: Isolate) -> None:
        isolate = isolate_of(database, threads, TURNS_TENANT_PER_DAY="1")
        await (await post(isolate, 9)).lines()
        before = await rows_of(database, *TABLES)
        refused = [
            await post(isolate, FAILED, "another message"),
            await post(isolate, FAILED, "another message", on_mismatch="supersede"),
            await post(isolate, COMPLETED, "another message", on_mismatch="supersede"),
        ]
        mismatch, held = await post(isolate, COMPLETED, "another message"), await post(isolate, LIVE)
        replay = await (await post(isolate, COMPLETED)).lines()
        assert before == await rows_of(database, *TABLES)
        await set_answer(database, COMPLETED, '{"finalText":""}')
        refused += [await post(isolate, COMPLETED), await post(isolate, COMPLETED, "another message")]

        assert [(429, "limit_reached")] * 5 == [
            (reply.status, reply.status == 429 and reply.body["code"]) for reply in refused
        ]
        assert [(422, "input_mismatch"), (409, "turn_in_flight")] == [
            (reply.status, reply.body["code"]) for reply in (mismatch, held)
        ]
        assert (ANSWER, True) == (replay[1]["data"]["finalText"], replay[-1]["data"]["replayed"])

    told(database, threads, story)


def test_another_message_where_the_answer_is_empty_is_another_turn(database: SqliteDatabase, threads: str) -> None:
    """There is nothing that it would take the place of."""

    async def story(isolate: Isolate) -> None:
        await set_answer(database, COMPLETED, '{"finalText":""}')
        lines = await (await post(isolate, COMPLETED, "another message")).lines()

        assert ("completed", False) == (kinds(lines)[-1], lines[-1]["data"]["replayed"])

    told(database, threads, story)


def test_an_empty_answer_becomes_one_whatever_dies(database: SqliteDatabase, threads: str) -> None:
    """A crash at every statement of the claim that takes it over, and of what follows."""

    async def story(_isolate: Isolate) -> None:
        await set_answer(database, COMPLETED, '{"finalText":""}')
        for point in range(60):
            dying = isolate_of(MortalDatabase(database, Fuse(point)), threads)
            try:
                reply = await post(dying, COMPLETED)
                if reply.task is not None:
                    await reply.task
            except Crash:
                pass
            await database.batch([Statement("UPDATE durable_runs SET lease_expires_at = '2020-01-01T00:00:00.000Z'"
                                            " WHERE lease_holder_id IS NOT NULL")])  # fmt: skip
        lines = await (await post(isolate_of(database, threads), COMPLETED)).lines()

        assert OURS == lines[1]["data"]["finalText"]

    told(database, threads, story)


# Versions


def test_an_answered_turn_can_be_replaced(database: SqliteDatabase) -> None:
    """It is version 1 of its turn, and counts until another does; what was asked is in no table."""

    async def story(isolate: Isolate) -> None:
        async def versions() -> list[tuple[int, bool, str | None]]:
            reply = await get(isolate, f"turns/{COMPLETED}/versions")
            return [(each["version"], each["counts"], each["message"]) for each in reply.body["versions"]]

        before = await versions()
        anew = {"kind": "regenerate", "version": 1}
        other = await post(isolate, COMPLETED, "another message", replace=anew)
        stale = await post(isolate, COMPLETED, replace={"kind": "regenerate", "version": 2})
        lines = await (await post(isolate, COMPLETED, replace=anew)).lines()
        again = await (await post(isolate, COMPLETED, replace=anew)).lines()
        edit = {"replace": {"kind": "edit", "version": 2}}
        edited = await (await post(isolate, COMPLETED, "another message", **edit)).lines()
        after = await versions()
        back = await isolate.ask("POST", f"{SESSION}/turns/{COMPLETED}/versions/1/activate")
        second = await isolate.ask("POST", f"{SESSION}/turns/{COMPLETED}/versions/2/activate")
        plain = await (await post(isolate, COMPLETED)).lines()
        messages = (await get(isolate, "messages")).body["messages"]

        assert [(1, True, None)] == before
        assert [(422, "input_mismatch"), (409, "version_conflict")] == [
            (reply.status, reply.body["code"]) for reply in (other, stale)
        ]
        assert (False, True) == (lines[-1]["data"]["replayed"], again[-1]["data"]["replayed"])
        assert "completed" == kinds(edited)[-1]
        assert [(1, False, None), (2, False, "hello"), (3, True, "another message")] == after
        assert (409, "version_conflict") == (back.status, back.body["code"])
        assert 200 == second.status
        assert plain[-1]["data"]["replayed"] is True
        assert ["hello", OURS] == [each["content"] for each in messages]

    told(database, "on", story)


def test_a_version_that_fails_leaves_the_answered_turn_as_it_is(database: SqliteDatabase) -> None:
    """A plain request, its stream and GET have the old answer; it counts, so activating it changes nothing."""

    async def story(isolate: Isolate) -> None:
        failing = isolate_of(database, "on")
        failing.hooks = Product(RuntimeError("it breaks"))
        edit = {"replace": {"kind": "edit", "version": 1}}
        failed = await (await post(failing, COMPLETED, "another message", **edit)).lines()
        plain = await (await post(isolate, COMPLETED)).lines()
        log = await (await get(isolate, f"turns/{COMPLETED}/stream")).lines()
        shown = (await get(isolate, f"turns/{COMPLETED}")).body
        active = await isolate.ask("POST", f"{SESSION}/turns/{COMPLETED}/versions/1/activate")
        rest = await (await get(isolate, f"turns/{COMPLETED}/stream?after={failed[-2]['seq']}")).lines()
        repaired = await (await post(isolate, COMPLETED, "another message", **edit)).lines()

        assert "failed" == kinds(failed)[-1] == kinds(rest)[0]
        assert (True, ANSWER) == (plain[-1]["data"]["replayed"], plain[1]["data"]["finalText"])
        assert (ANSWER, "completed") == (log[1]["data"]["finalText"], shown["status"])
        assert 200 == active.status
        assert "completed" == kinds(repaired)[-1]

    told(database, "on", story)


def test_where_its_runs_are_not_looked_at_there_is_nothing(database: SqliteDatabase, threads: str) -> None:
    """`LEGACY_RUN_IDS=off`: 404 everywhere, and nothing is written."""

    async def main() -> None:
        isolate = isolate_of(database, threads, LEGACY_RUN_IDS="off")
        before = await rows_of(database, *TABLES)
        replies = [
            await get(isolate, f"turns/{COMPLETED}"),
            await get(isolate, f"turns/{COMPLETED}/stream"),
            await get(isolate, f"turns/{COMPLETED}/versions"),
            await isolate.ask("POST", f"{SESSION}/turns/{LIVE}/cancel"),
        ]

        assert [404] * 4 == [reply.status for reply in replies]
        assert before == await rows_of(database, *TABLES)

    run(main())
