"""Versions of a turn: regenerated and edited answers, which of them counts, and what follows the ones that do not."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from chatturn.chat.hooks.hooks import TurnContext
from chatturn.chat.turn.sinks import BufferSink
from chatturn.chat.turn.stream import StreamProducer
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import EventBatch, text_delta
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.faults import FaultyDatabase
from tests.support.isolates import TURN, Isolate, Reply
from tests.support.turns import Desk, Product, open_sqlite
from tests.turns.test_agent import Agent, Model

ON = {"THREADS": "on"}
SESSION = "/v1/sessions/thread-1"


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


class Counting(Product):
    """A product whose answers are numbered, and repeat the question."""

    def produce(self, context: TurnContext) -> StreamProducer:
        """Answer with the question and the number of the call."""
        self.calls.append(context)
        return StreamProducer(self.numbered(context))

    async def numbered(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
        """Say it."""
        yield text_delta(f"{context.user_message}/{len(self.calls)}")


@pytest.fixture
def isolate(database: SqliteDatabase) -> Isolate:
    """One isolate of a deployment with versions."""
    return Isolate(database, Counting(), settings=ON)


async def say(isolate: Isolate, index: int, message: str, **members: Any) -> list[dict[str, Any]]:
    """Post a message and read its answer."""
    reply = await isolate.ask("POST", f"{SESSION}/turns/{index}", {"message": message, **members})
    assert 200 == reply.status, reply.body
    return await reply.lines()


async def refused(isolate: Isolate, index: int, message: str, **members: Any) -> tuple[int, str]:
    """Post a message that is refused, and see that nothing was stored."""
    before = await everything(isolate.database)
    reply = await isolate.ask("POST", f"{SESSION}/turns/{index}", {"message": message, **members})
    assert before == await everything(isolate.database)
    return reply.status, reply.body["code"]


def edit(version: int) -> dict[str, Any]:
    return {"kind": "edit", "version": version}


def again(version: int) -> dict[str, Any]:
    return {"kind": "regenerate", "version": version}


async def everything(database: Any) -> list[Any]:
    """Read the whole database."""
    desk = Desk(database)
    tables = await desk.rows("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return [(table, await desk.rows(f"SELECT * FROM {table}")) for (table,) in tables]  # noqa: S608


async def thread(isolate: Isolate) -> list[str]:
    """Return the texts of the thread."""
    page = await isolate.ask("GET", f"{SESSION}/messages")
    return [message["content"] for message in page.body["messages"]]


async def versions(isolate: Isolate, index: int = 0) -> list[tuple[int, bool, str]]:
    """Return each version, whether it counts, and its status."""
    listed = await isolate.ask("GET", f"{SESSION}/turns/{index}/versions")
    return [(each["version"], each["counts"], each["status"]) for each in listed.body["versions"]]


async def activate(isolate: Isolate, index: int, version: int) -> Reply:
    """Let a version count."""
    return await isolate.ask("POST", f"{SESSION}/turns/{index}/versions/{version}/activate")


async def test_a_regenerated_answer_takes_the_place_of_the_old_one(isolate: Isolate) -> None:
    """The run has a name of its own; sent again, the request replays it, and a plain one does as well."""
    await say(isolate, 0, "a")
    await say(isolate, 0, "a", replace=again(1))

    assert ["a", "a/2"] == await thread(isolate)
    assert [(1, False, "completed"), (2, True, "completed")] == await versions(isolate)
    for members in ({"replace": again(1)}, {}):
        lines = await say(isolate, 0, "a", **members)
        assert "a/2" == lines[1]["data"]["finalText"]
    assert "chat:acme:thread-1:0~2" == (await isolate.ask("GET")).body["runId"]
    assert "chat:acme:thread-1:0" == (await isolate.ask("GET", f"{TURN}?version=1")).body["runId"]


async def test_an_edit_detaches_what_followed_and_it_comes_back(isolate: Isolate) -> None:
    """No later row is moved: the thread ends where a parent does not count, and goes on when it counts again."""
    for index, question in enumerate("abc"):
        await say(isolate, index, question)
    await say(isolate, 0, "x", replace=edit(1))
    assert ["x", "x/4"] == await thread(isolate)

    assert 200 == (await activate(isolate, 0, 1)).status
    assert ["a", "a/1", "b", "b/2", "c", "c/3"] == await thread(isolate)
    assert 200 == (await activate(isolate, 0, 2)).status
    assert 200 == (await activate(isolate, 0, 2)).status
    assert ["x", "x/4"] == await thread(isolate)


async def test_what_is_asked_of_a_version_that_counts_again_is_made_anew(isolate: Isolate) -> None:
    """Once for each time that it comes to count; sent again, the request is about the latest."""
    await say(isolate, 0, "a")
    for latest, (question, replace) in enumerate([("a", again(1)), ("a", again(1)), ("x", edit(1)), ("x", edit(1))], 2):
        for _ in range(2):
            lines = await say(isolate, 0, question, replace=replace)
            assert [question, f"{question}/{latest}"] == await thread(isolate)
            assert latest == lines[-1]["data"]["version"]
        await activate(isolate, 0, 1)
    assert [1, 2, 3, 4, 5] == [version for version, *_ in await versions(isolate)]


async def test_a_replacement_that_was_stopped_before_it_said_anything_is_tried_again(database: SqliteDatabase) -> None:
    """As one that has failed."""
    isolate = Isolate(database, Counting(), settings=ON)
    await say(isolate, 0, "a")
    slow = Isolate(database, Product(5.0, text_delta("w")), settings=ON)
    stopped = await slow.ask("POST", TURN, {"message": "x", "replace": edit(1)})
    await isolate.ask("POST", f"{TURN}/cancel")
    assert "session.run.cancelled" == (await stopped.lines())[-1]["type"]
    assert ["a", "a/1"] == await thread(isolate)
    await say(isolate, 0, "x", replace=edit(1))
    assert ["x", "x/2"] == await thread(isolate)


async def test_the_same_words_behind_a_version_that_counts_again_are_asked_anew(isolate: Isolate) -> None:
    """Another answer counts in their place, which follows another version: a replay would be in no thread."""
    await say(isolate, 0, "a")
    await say(isolate, 1, "b")
    await say(isolate, 0, "x", replace=edit(1))
    await say(isolate, 1, "b")
    await activate(isolate, 0, 1)
    for _ in range(2):
        await say(isolate, 1, "b")
        assert ["a", "a/1", "b", "b/5"] == await thread(isolate)


async def test_a_message_at_a_detached_turn_is_a_new_version(isolate: Isolate) -> None:
    """Without `replace`, also with the same words; sent again it is replayed, and the old branch can come back."""
    await say(isolate, 0, "a")
    await say(isolate, 1, "b")
    await say(isolate, 2, "c")
    await say(isolate, 0, "x", replace=edit(1))
    assert (409, "version_conflict") == await refused(isolate, 2, "c")
    await say(isolate, 1, "b")
    assert ["x", "x/4", "b", "b/5"] == await thread(isolate)
    lines = await say(isolate, 1, "b")
    assert "b/5" == lines[1]["data"]["finalText"]
    product: Any = isolate.hooks
    assert ["x", "x/4"] == [message["content"] for message in product.calls[-1].history]

    await activate(isolate, 0, 1)
    assert ["a", "a/1"] == await thread(isolate)
    await activate(isolate, 1, 1)
    assert ["a", "a/1", "b", "b/2", "c", "c/3"] == await thread(isolate)


async def test_seq_and_attempt_rise_over_all_versions(isolate: Isolate) -> None:
    """A reader that goes on with its cursor never takes one version's lines for another's."""
    first = await say(isolate, 0, "a")
    second = await say(isolate, 0, "a", replace=again(1))
    third = await say(isolate, 0, "y", replace=edit(2))

    assert first[-1]["seq"] < second[0]["seq"] <= second[-1]["seq"] < third[0]["seq"]
    assert [1, 2, 3] == [lines[-1]["attempt"] for lines in (first, second, third)]
    assert third == await (await isolate.follow()).lines()
    assert first == await (await isolate.ask("GET", f"{TURN}/stream?version=1")).lines()


class Failing(Counting):
    """A product that fails from its second answer on."""

    async def numbered(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
        """Say it, or fail."""
        if len(self.calls) > 1:
            raise RuntimeError
        yield text_delta(context.user_message)


async def test_a_version_that_fails_changes_nothing(database: SqliteDatabase) -> None:
    """Messages, history and replays have the old one; the same request tries it again."""
    isolate = Isolate(database, Failing(), settings=ON)
    await say(isolate, 0, "a")
    lines = await say(isolate, 0, "x", replace=edit(1))
    assert "session.run.failed" == lines[-1]["type"]
    assert ["a", "a"] == await thread(isolate)
    assert "a" == (await say(isolate, 0, "a"))[1]["data"]["finalText"]

    isolate.hooks = Counting()
    await say(isolate, 0, "x", replace=edit(1))
    assert ["x", "x/1"] == await thread(isolate)
    assert [(1, False, "completed"), (2, True, "completed")] == await versions(isolate)


async def test_a_turn_that_is_tried_again_follows_what_counts_by_then(database: SqliteDatabase) -> None:
    """It is shown that history, and stands in that thread."""
    isolate = Isolate(database, Counting(), settings=ON)
    await say(isolate, 0, "a")
    await say(isolate, 0, "x", replace=edit(1))
    failing = Isolate(database, Product(RuntimeError("no")), settings=ON)
    await say(failing, 1, "b")
    await activate(isolate, 0, 1)
    await say(isolate, 1, "b")
    product: Any = isolate.hooks
    assert ["a", "a/1"] == [message["content"] for message in product.calls[-1].history]
    assert ["a", "a/1", "b", "b/3"] == await thread(isolate)
    await activate(isolate, 0, 2)
    assert ["x", "x/2"] == await thread(isolate)


async def test_a_turn_that_waits_for_an_approval_keeps_the_thread_as_it_is(database: SqliteDatabase) -> None:
    """Its next model call would be shown another one."""
    isolate = Isolate(database, Counting(), settings=ON)
    await say(isolate, 0, "a")
    await say(isolate, 0, "x", replace=edit(1))
    waits = Isolate(database, Agent(), Model(("send", {"text": "x"}), "done").backend(), settings=ON)
    lines = await say(waits, 1, "b")
    assert "session.run.suspended" == lines[-1]["type"]
    before = await everything(database)
    reply = await activate(isolate, 0, 1)
    assert (409, "session_busy") == (reply.status, reply.body["code"])
    assert before == await everything(database)
    await isolate.ask("POST", f"{SESSION}/turns/1/cancel")
    await asyncio.sleep(5)
    assert 200 == (await activate(isolate, 0, 1)).status


async def test_what_cannot_be_replaced_is_refused(isolate: Isolate) -> None:
    """With nothing stored."""
    await say(isolate, 0, "a")
    assert (409, "version_conflict") == await refused(isolate, 0, "b", replace=edit(2))
    assert (422, "input_mismatch") == await refused(isolate, 0, "b", replace=again(1))
    assert (422, "input_mismatch") == await refused(isolate, 0, "b")
    assert (409, "version_conflict") == await refused(isolate, 1, "b", replace=edit(1))
    wrong: list[Any] = [{"kind": "edit"}, {"kind": "other", "version": 1}, {"kind": "edit", "version": 0}, 3, [], True]
    for replace in wrong:
        assert (422, "invalid_field") == await refused(isolate, 0, "b", replace=replace)
    assert 409 == (await activate(isolate, 0, 7)).status
    assert 422 == (await activate(isolate, 0, 0)).status
    assert 404 == (await isolate.ask("GET", f"{SESSION}/turns/5/versions")).status


async def test_versions_are_used_only_where_threads_are_on(database: SqliteDatabase) -> None:
    """Else an earlier version's code may serve the same database."""
    isolate = Isolate(database, Counting())
    await say(isolate, 0, "a")
    assert (422, "invalid_field") == await refused(isolate, 0, "a", replace=again(1))


async def test_a_busy_session_is_not_changed(database: SqliteDatabase) -> None:
    """409, until the turn is done."""
    isolate = Isolate(database, Counting(), settings=ON)
    await say(isolate, 0, "a")
    await say(isolate, 0, "x", replace=edit(1))
    slow = Isolate(database, Product(text_delta("w"), 5.0), settings=ON)
    running = await slow.ask("POST", f"{SESSION}/turns/1", {"message": "b"})
    reply = await activate(isolate, 0, 1)
    assert (409, "session_busy") == (reply.status, reply.body["code"])
    await running.lines()
    assert 200 == (await activate(isolate, 0, 1)).status


async def test_superseding_makes_one_version_for_each_message(isolate: Isolate) -> None:
    """And keeps the old answer."""
    await say(isolate, 0, "a")
    for _ in range(2):
        await say(isolate, 0, "b", on_mismatch="supersede")
    assert [(1, False, "completed"), (2, True, "completed")] == await versions(isolate)
    assert ["b", "b/2"] == await thread(isolate)


async def test_a_turn_without_versions_costs_what_it_did(database: SqliteDatabase) -> None:
    """Two round trips fresh, one for a replay."""
    isolate = Isolate(database, Counting(), settings={**ON, "LOG_EVERY_MS": "0"})
    await say(isolate, 0, "a")
    assert 2 == isolate.wire.batches
    await say(isolate, 0, "a")
    assert 3 == isolate.wire.batches


async def test_a_later_version_is_replayed_in_one_round_trip(database: SqliteDatabase) -> None:
    """Looked up inside the claim, whose session it is as well; with the run, the number and why it ended."""
    isolate = Isolate(database, Counting(), settings={**ON, "LOG_EVERY_MS": "0", "SESSION_OWNER": "subject"})
    await say(isolate, 0, "a")
    await say(isolate, 0, "x", replace=edit(1))
    await say(isolate, 0, "x", replace=again(2))
    before, stored = isolate.wire.batches, await everything(database)
    reply = await isolate.ask("POST", body={"message": "x"})
    lines = await reply.lines()

    assert before + 1 == isolate.wire.batches
    assert stored == await everything(database)
    assert ("chat:acme:thread-1:0~3", "3", "true") == tuple(
        reply.response.headers[name] for name in ("X-Workflow-Run-Id", "X-Turn-Attempt", "X-Turn-Replayed")
    )
    assert [("x/3", None), (None, 3)] == [
        (line["data"].get("finalText"), line["data"].get("version")) for line in lines[1:]
    ]
    assert "stop" == lines[-1]["data"]["finishReason"]
    assert 404 == (await isolate.ask("POST", body={"message": "x"}, x_user="bob")).status
    assert (422, "input_mismatch") == await refused(isolate, 0, "a")


async def test_a_later_version_that_is_detached_is_no_replay(isolate: Isolate) -> None:
    """The same words at its place are a new version there."""
    await say(isolate, 0, "a")
    await say(isolate, 1, "b")
    await say(isolate, 1, "c", replace=edit(1))
    await say(isolate, 0, "x", replace=edit(1))
    lines = await say(isolate, 1, "c")
    assert (False, 3) == (lines[-1]["data"]["replayed"], lines[-1]["data"]["version"])


async def test_retention_takes_a_version_and_leaves_the_one_that_counts(isolate: Isolate) -> None:
    """The messages are those of the run that they name."""
    await say(isolate, 0, "a")
    await say(isolate, 0, "x", replace=edit(1))
    await isolate.database.batch(
        [_statement("UPDATE durable_runs SET completed_at = '2020-01-01T00:00:00.000Z' WHERE run_id LIKE '%:0'")]
    )
    assert 1 == await isolate.service.deployment.store.delete_finished_runs(older_than_ms=86_400_000)
    assert ["x", "x/2"] == await thread(isolate)


def _statement(sql: str) -> Any:
    from chatturn.database.api import Statement  # noqa: PLC0415 - for this one test

    return Statement(sql)


async def test_a_worker_may_die_at_every_batch_of_an_edit() -> None:
    """The thread is the old one or the new one, never a mix; the same request sent again brings the new one about."""
    places: list[str] = []
    for point in [None, *range(40)]:
        with open_sqlite() as fresh:
            isolate = Isolate(fresh, Counting(), settings={**ON, "LEASE_MS": "1000"})
            await say(isolate, 0, "a")
            await say(isolate, 1, "b")
            fuse = Fuse(point)
            mortal = Isolate(MortalDatabase(fresh, fuse), Counting(), settings={**ON, "LEASE_MS": "1000"})
            died = await _dies(mortal)
            if point is None:
                places = fuse.places
                assert len(places) >= 6
                continue
            if point >= len(places):
                assert not died
                break
            assert await thread(isolate) in (["a", "a/1", "b", "b/2"], ["x", "x/1"])
            for _ in range(3):
                reply = await isolate.ask("POST", TURN, {"message": "x", "replace": edit(1), "follow": True})
                await reply.lines()
            found = await thread(isolate)
            assert 2 == len(found), point
            assert "x" == found[0]
            assert [(1, False), (2, True)] == [each[:2] for each in await versions(isolate)]


async def _dies(isolate: Isolate) -> bool:
    from chatturn.chat.requests import TurnRequest  # noqa: PLC0415
    from chatturn.chat.thread.versions import Replace  # noqa: PLC0415
    from tests.support.turns import IDENTITY  # noqa: PLC0415

    try:
        request = TurnRequest(message="x", replace=Replace(kind="edit", version=1))
        turn = await isolate.service.open(IDENTITY, request)
        await turn.run(BufferSink())
    except Crash:
        return True
    return False


async def test_a_version_that_is_open_is_joined_by_a_plain_request_with_its_words(database: SqliteDatabase) -> None:
    """As a client does that comes back with an approval; the words of the one that counts replay that one."""
    isolate = Isolate(database, Counting(), settings=ON)
    await say(isolate, 0, "a")
    slow = Isolate(database, Product(text_delta("w"), 5.0), settings=ON)
    running = await slow.ask("POST", TURN, {"message": "x", "replace": edit(1)})
    joined = await slow.ask("POST", TURN, {"message": "x", "follow": True})
    assert "a/1" == (await say(slow, 0, "a"))[1]["data"]["finalText"]
    assert await running.lines() == await joined.lines()
    assert ["x", "w"] == await thread(isolate)


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_replacement_may_be_sent_again_whichever_reply_was_lost(fault: Any) -> None:
    """The same request finds the version that it made: one version, asked for once more at most, and the whole answer."""
    for number in range(12):
        with open_sqlite() as fresh:
            isolate = Isolate(fresh, Counting(), settings={**ON, "LEASE_MS": "1000"})
            await say(isolate, 0, "a")
            await say(isolate, 1, "b")
            faulty = FaultyDatabase(fresh)
            faulty.faults[number] = fault
            losing = Isolate(faulty, Counting(), settings={**ON, "LEASE_MS": "1000"})
            reply = await losing.ask("POST", TURN, {"message": "x", "replace": edit(1)})
            first = await reply.lines()
            if number >= faulty.batches:
                assert number == 3, "the look, the claim, the finish"
                break
            for _ in range(2):
                await asyncio.sleep(2)
                again_asked = await isolate.ask("POST", TURN, {"message": "x", "replace": edit(1), "follow": True})
                lines = await again_asked.lines()
                assert "session.run.completed" == lines[-1]["type"], (number, lines)
                assert 2 == lines[-1]["data"]["version"]
            assert [(1, False, "completed"), (2, True, "completed")] == await versions(isolate)
            said = await thread(isolate)
            assert 2 == len(said), said
            assert "x" == said[0]
            if first and first[-1]["type"] == "session.run.completed":
                assert "x/1" == said[1], "who was told an answer finds it"


async def test_nothing_is_stored_of_what_is_refused(database: SqliteDatabase) -> None:
    """Versions that are not there or do not count, another user's session, a session that is busy: the whole database."""
    isolate = Isolate(database, Counting(), settings={**ON, "SESSION_OWNER": "subject", "WHEN_BUSY": "reject"})
    for index, question in enumerate("ab"):
        await say(isolate, index, question)
    await say(isolate, 0, "x", replace=edit(1))
    before = await everything(database)

    async def asked(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        reply = await isolate.ask(method, f"{SESSION}{path}", body, reader=None, **headers)
        await asyncio.sleep(1)
        return reply.status, reply.body["code"]

    def replacing(kind: str, version: Any) -> dict[str, Any]:
        return {"message": "x", "replace": {"kind": kind, "version": version}}

    for version in (1, 3, 9_999):
        assert (409, "version_conflict") == await asked(
            "POST", "/turns/0", {**replacing("edit", version), "message": "y"}
        )
    assert (422, "input_mismatch") == await asked("POST", "/turns/0", {**replacing("regenerate", 2), "message": "y"})
    for index in (1, 2, 7):
        assert (409, "version_conflict") == await asked("POST", f"/turns/{index}", replacing("edit", 1))
    for version in (3, 9_999):
        assert 409 == (await asked("POST", f"/turns/0/versions/{version}/activate"))[0]
    for wrong in ("0", "-1", "x", "1.5"):
        assert (422, "invalid_field") == await asked("POST", f"/turns/0/versions/{wrong}/activate")
    assert (404, "not_found") == await asked("POST", "/turns/0", replacing("edit", 2), x_user="bob")
    for path in ("/turns/0/versions", "/messages", "/turns/0", "/turns/0/stream"):
        assert (404, "not_found") == await asked("GET", path, x_user="bob"), path
    for path in ("/turns/0/versions/1/activate", "/turns/0/cancel"):
        assert (404, "not_found") == await asked("POST", path, x_user="bob"), path
    assert before == await everything(database)

    slow = Isolate(database, Product(text_delta("w"), 30.0), settings={**ON, "LOG_EVERY_MS": "0"})
    running = await slow.ask("POST", f"{SESSION}/turns/1", {"message": "c"})
    await asyncio.sleep(1)
    busy = await everything(database)
    assert (409, "session_busy") == await asked("POST", "/turns/0/versions/1/activate")
    assert (409, "session_busy") == await asked("POST", "/turns/0", replacing("edit", 2) | {"message": "z"})
    assert busy == await everything(database)
    await running.lines()


async def lines_behind(isolate: Isolate, seq: int) -> tuple[int, list[tuple[str, int | None]]]:
    """Follow the turn without naming a version; return the status, and the lines."""
    reply = await isolate.ask("GET", f"{TURN}/stream?after={seq}")
    return reply.status, [(line["type"].removeprefix("session.run."), line.get("seq")) for line in await reply.lines()]


async def test_a_cursor_of_a_version_that_failed_goes_on_with_it(isolate: Isolate) -> None:
    """Its reader gets the rest of it, and then its end, though the one before counts again; so does an EventSource."""
    await say(isolate, 0, "hi")
    isolate.hooks = Product(text_delta("half"), RuntimeError("it breaks"))
    failed = await say(isolate, 0, "hi", replace={"kind": "regenerate", "version": 1})
    first, *_, last = [line["seq"] for line in failed]

    for at in range(first, last):
        assert (
            200,
            [(line["type"].removeprefix("session.run."), line["seq"]) for line in failed[at - first + 1 :]],
        ) == (await lines_behind(isolate, at))
    assert (200, [("failed", None)]) == await lines_behind(isolate, last)
    again = await isolate.ask("GET", f"{TURN}/stream", last_event_id=str(last), accept="text/event-stream")
    assert 204 == again.status
    for beyond in (last + 1, 2**53 - 2, 2**53 - 1, 2**53, 2**63):
        assert 422 == (await isolate.ask("GET", f"{TURN}/stream?after={beyond}")).status
    assert "completed" == (await lines_behind(isolate, 0))[1][-1][0]


async def test_a_cursor_of_a_version_that_counts_no_more_has_its_end(isolate: Isolate) -> None:
    """One that came before the version that is shown goes on with that: its lines are later ones."""
    await say(isolate, 0, "hi")
    second = await say(isolate, 0, "hi", replace={"kind": "regenerate", "version": 1})
    shown = (await lines_behind(isolate, 0))[1]
    await isolate.ask("POST", f"{TURN}/versions/1/activate")

    assert [line["seq"] for line in second] == [seq for _, seq in shown]
    assert (200, [("completed", None)]) == await lines_behind(isolate, second[-1]["seq"])
    assert (200, [("completed", second[-1]["seq"])]) == await lines_behind(isolate, second[-2]["seq"])


@pytest.mark.parametrize("session", ["a", "a~", "~2", "a:0~1"])
async def test_a_tilde_in_a_sessions_name_is_no_version(database: SqliteDatabase, session: str) -> None:
    """Its turns begin with attempt 1 and seq 0, nothing of them is lost, and they follow each other as all others do."""
    slow = Isolate(database, Product(text_delta("slow"), 5.0), settings=ON)
    quick = Isolate(database, Product(text_delta("quick")), settings=ON)
    path = f"/v1/sessions/{quote(session, safe='')}/turns"
    first = await slow.ask("POST", f"{path}/0", {"message": "one"})
    await asyncio.sleep(1)
    beside = await (await quick.ask("POST", f"{path}/1", {"message": "two", "when_busy": "parallel"})).lines()
    lines = await first.lines()
    behind = await (await quick.ask("POST", f"{path}/2", {"message": "four"})).lines()

    assert [(0, 1)] * 3 == [(each[0]["seq"], each[0]["attempt"]) for each in (lines, beside, behind)]
    desk = Desk(database)
    assert [] == await desk.rows("SELECT * FROM chat_usage")
    assert [(0, None), (1, 0), (2, 1)] == await desk.rows("SELECT turn_index, parent_index FROM chat_turns ORDER BY 1")
