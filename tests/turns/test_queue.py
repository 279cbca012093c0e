"""One turn at a time: what a message does while another turn of its session is open, and what becomes of those that wait."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from chatturn.chat.hooks.hooks import TurnContext
from chatturn.chat.turn.stream import StreamProducer
from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import EventBatch, text_delta
from tests.support.isolates import Isolate, Reply
from tests.support.turns import Desk, Product, open_sqlite

ON = {"THREADS": "on", "WHEN_BUSY": "queue", "LEASE_MS": "10000"}
SESSION = "/v1/sessions/thread-1"
WAITED = ["session.run.queued"]


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


class Slow(Product):
    """A product that repeats the question after 5 s, and knows when each call began and ended."""

    def __init__(self) -> None:
        super().__init__()
        self.pause_s = 5.0
        self.began: list[tuple[str, float]] = []
        self.ended: list[tuple[str, float]] = []

    def produce(self, context: TurnContext) -> StreamProducer:
        """Answer."""
        self.calls.append(context)
        return StreamProducer(self.slowly(context.user_message))

    async def slowly(self, message: str) -> AsyncGenerator[EventBatch, None]:
        """Say half of it, and after a while the rest."""
        loop = asyncio.get_running_loop()
        self.began.append((message, loop.time()))
        yield text_delta("re: ")
        await asyncio.sleep(self.pause_s)
        yield text_delta(message)
        self.ended.append((message, loop.time()))


@pytest.fixture
def isolate(database: SqliteDatabase) -> Isolate:
    """One isolate of a deployment whose turns wait for each other."""
    return Isolate(database, Slow(), settings=ON)


async def say(isolate: Isolate, index: int, message: str, **members: Any) -> Reply:
    """Post a message."""
    return await isolate.ask("POST", f"{SESSION}/turns/{index}", {"message": message, **members})


async def status(isolate: Isolate, index: int) -> str:
    """Return where a turn stands."""
    return str((await isolate.ask("GET", f"{SESSION}/turns/{index}")).body["status"])


async def thread(isolate: Isolate) -> list[str]:
    """Return the texts of the thread."""
    page = await isolate.ask("GET", f"{SESSION}/messages?limit=200")
    return [message["content"] for message in page.body["messages"]]


async def everything(database: Any) -> list[Any]:
    """Read all that a request could have written."""
    tables = ("durable_runs", "durable_steps", "chat_turns", "chat_messages", "chat_sessions", "chat_segments")
    return [await Desk(database).rows(f"SELECT * FROM {table}") for table in tables]  # noqa: S608


def types(lines: list[dict[str, Any]]) -> list[str]:
    """Return what a stream says, without its pings."""
    return [line["type"] for line in lines if line["type"] != "ping"]


def kinds(lines: list[dict[str, Any]]) -> list[str]:
    """Return the lifecycle of a stream."""
    return [line["type"].rpartition(".")[2] for line in lines if line["type"].startswith("session.run.")]


async def test_a_message_waits_for_the_turn_before_it(isolate: Isolate) -> None:
    """It is told its place, starts within 50 ms of the end before it, and the model is shown that answer."""
    first, second, third = [await say(isolate, index, text) for index, text in enumerate("abc")]
    assert "pending" == await status(isolate, 1)
    listed = (await isolate.ask("GET", "/v1/runs?status=pending")).body["runs"]
    assert [2, 1] == [run["turnIndex"] for run in listed]
    page = (await isolate.ask("GET", f"{SESSION}/messages")).body
    assert [("a", "running"), ("b", "pending"), ("c", "pending")] == [
        (turn["message"], turn["status"]) for turn in page["open"]
    ]
    lines = await third.lines()

    assert ["queued", "queued", "started", "completed"] == kinds(lines)
    assert [2, 1] == [line["data"]["position"] for line in lines[:2]]
    assert all("seq" not in line for line in lines[:2])
    assert 0 == lines[2]["seq"]
    assert [1] * len(lines) == [line.get("attempt", 1) for line in lines]
    assert ["queued", "started", "completed"] == kinds(await second.lines())
    assert ["started", "completed"] == kinds(await first.lines())
    product: Any = isolate.hooks
    for (_, ended), (_, began) in zip(product.ended, product.began[1:], strict=False):
        assert 0 <= began - ended < 0.05
    assert ["a", "re: a", "b", "re: b"] == [message["content"] for message in product.calls[2].history]
    assert ["a", "re: a", "b", "re: b", "c", "re: c"] == await thread(isolate)


async def test_a_turn_of_another_isolate_is_waited_for(database: SqliteDatabase, isolate: Isolate) -> None:
    """It starts within one poll."""
    other = Isolate(database, Slow(), settings=ON)
    first = await say(isolate, 0, "a")
    second = await say(other, 1, "b")
    assert ["queued", "started", "completed"] == kinds(await second.lines())
    await first.lines()
    here, there = isolate.hooks, other.hooks
    assert isinstance(here, Slow)
    assert isinstance(there, Slow)
    assert 0 <= there.began[0][1] - here.ended[0][1] < 0.2


async def test_busy_is_refused_where_the_request_says_so(database: SqliteDatabase, isolate: Isolate) -> None:
    """With the address of the turn that runs, and nothing stored; whichever its index."""
    first = await say(isolate, 1, "a")
    before = await everything(database)
    for index in (0, 2):
        reply = await say(isolate, index, "b", when_busy="reject")
        assert (409, "session_busy") == (reply.status, reply.body["code"])
        assert f"{SESSION}/turns/1/stream?version=1" == reply.body["stream"]
        assert reply.response.headers["Location"] == reply.body["stream"]
    assert before == await everything(database)
    await first.lines()
    assert 200 == (await say(isolate, 2, "b", when_busy="reject")).status
    assert ["started", "result", "completed"] != kinds(await (await say(isolate, 1, "a", when_busy="reject")).lines())


async def test_the_address_of_the_turn_that_is_open_is_one(isolate: Isolate) -> None:
    """Whatever the session's name."""
    turn = "/v1/sessions/a%20%C3%BC%2Fb/turns"
    first = await isolate.ask("POST", f"{turn}/0", {"message": "a"})
    reply = await isolate.ask("POST", f"{turn}/1", {"message": "b", "when_busy": "reject"})
    assert f"{turn}/0/stream?version=1" == reply.body["stream"] == reply.response.headers["Location"]
    assert ["started", "completed"] == kinds(await (await isolate.ask("GET", reply.body["stream"])).lines())
    await first.lines()


async def test_an_unknown_policy_is_refused(database: SqliteDatabase, isolate: Isolate) -> None:
    """Before anything is written."""
    before = await everything(database)
    policies: list[Any] = ["later", 1, [], True, ""]
    for policy in policies:
        reply = await say(isolate, 0, "a", when_busy=policy)
        assert (422, "invalid_field", "when_busy") == (reply.status, reply.body["code"], reply.body["field"])
    assert before == await everything(database)


async def test_parallel_turns_do_not_wait(isolate: Isolate) -> None:
    """As agent-runtime has it, and as it is with `THREADS` off."""
    off = Isolate(isolate.database, Slow(), settings={"WHEN_BUSY": "queue"})
    replies = [await say(isolate, 0, "a"), await say(isolate, 1, "b", when_busy="parallel"), await say(off, 2, "c")]
    for reply in replies:
        assert ["started", "completed"] == kinds(await reply.lines())


async def test_a_queue_has_an_end(database: SqliteDatabase) -> None:
    """429, and nothing stored; what waits already may come again."""
    isolate = Isolate(database, Slow(), settings={**ON, "QUEUE_TURNS": "2"})
    replies = [await say(isolate, index, text) for index, text in enumerate("abc")]
    before = await everything(database)
    reply = await say(isolate, 3, "d")
    assert (429, "queue_full") == (reply.status, reply.body["code"])
    assert before == await everything(database)
    reply = await say(isolate, 2, "c", when_busy="reject")
    assert (409, "turn_in_flight") == (reply.status, reply.body["code"])
    for each in replies:
        await each.lines()
    assert 200 == (await say(isolate, 3, "d")).status


async def test_the_same_request_joins_a_turn_that_waits(isolate: Isolate) -> None:
    """Whatever policy it has; with `follow` it is shown what the first is shown."""
    first, second = await say(isolate, 0, "a"), await say(isolate, 1, "b")
    for policy in ("queue", "reject", "interrupt", "parallel"):
        reply = await say(isolate, 1, "b", when_busy=policy)
        assert (409, "turn_in_flight") == (reply.status, reply.body["code"])
    follower = await say(isolate, 1, "b", when_busy="interrupt", follow=True)
    assert ["started", "completed"] == kinds(await first.lines())
    lines = await second.lines()
    assert [line for line in lines if "seq" in line] == [line for line in await follower.lines() if "seq" in line]
    product: Any = isolate.hooks
    assert 2 == len(product.calls)


async def test_pending_turns_start_in_the_order_of_their_indexes(isolate: Isolate) -> None:
    """Not of their arrival."""
    replies = [await say(isolate, 0, "a")]
    for index in (3, 1, 2):
        await asyncio.sleep(0.3)
        replies.append(await say(isolate, index, "abcd"[index]))
    for reply in replies:
        await reply.lines()
    product: Any = isolate.hooks
    assert ["a", "b", "c", "d"] == [message for message, _ in product.began]


async def test_an_interruption_keeps_what_was_said(isolate: Isolate) -> None:
    """The turn that runs is cancelled, and the next one begins."""
    first = await say(isolate, 0, "a")
    await asyncio.sleep(1)
    second = await say(isolate, 1, "b", when_busy="interrupt")
    assert ["queued", "started", "completed"] == kinds(await second.lines())
    lines = await first.lines()
    assert ["started", "cancelled"] == kinds(lines)
    assert ["a", "re: ", "b", "re: b"] == await thread(isolate)
    product: Any = isolate.hooks
    assert product.began[1][1] - product.began[0][1] < 2


async def test_an_interruption_reaches_another_isolate(database: SqliteDatabase, isolate: Isolate) -> None:
    """By the database."""
    other = Isolate(database, Slow(), settings={**ON, "LEASE_MS": "1000"})
    first = await say(other, 0, "a")
    await asyncio.sleep(1)
    second = await say(isolate, 1, "b", when_busy="interrupt")
    assert ["queued", "started", "completed"] == kinds(await second.lines())
    assert ["started", "cancelled"] == kinds(await first.lines())


async def test_an_interruption_leaves_those_that_wait_before_it(isolate: Isolate) -> None:
    """It stops what ran when it came, and nothing that begins afterwards."""
    replies = [await say(isolate, index, text) for index, text in enumerate("ab")]
    await asyncio.sleep(1)
    replies.append(await say(isolate, 2, "c", when_busy="interrupt"))
    lives = [kinds(await reply.lines())[-1] for reply in replies]
    assert ["cancelled", "completed", "completed"] == lives
    assert ["a", "re: ", "b", "re: b", "c", "re: c"] == await thread(isolate)


async def test_an_interruption_that_is_sent_again_stops_nothing_more(
    database: SqliteDatabase, isolate: Isolate
) -> None:
    """Its worker died, and its client comes back while another turn runs."""
    mortal = Isolate(database, Slow(), settings=ON)
    first, second = await say(isolate, 0, "a"), await say(isolate, 1, "b")
    isolate.hooks.pause_s = 20.0  # type: ignore[attr-defined]
    await asyncio.sleep(1)
    await say(mortal, 2, "c", when_busy="interrupt")
    await asyncio.sleep(1)
    await mortal.kill()
    assert "cancelled" == kinds(await first.lines())[-1]
    await asyncio.sleep(10)
    assert ["running", "pending"] == [await status(isolate, 1), await status(isolate, 2)]
    third = await say(isolate, 2, "c", when_busy="interrupt", follow=True)
    assert ["completed", "completed"] == [kinds(await reply.lines())[-1] for reply in (second, third)]
    assert ["a", "re: ", "b", "re: b", "c", "re: c"] == await thread(isolate)


async def test_a_turn_cancelled_while_it_waits_leaves_no_message(isolate: Isolate) -> None:
    """Its stream ends, the one behind it goes on, and its index is free for another message."""
    first, second, third = [await say(isolate, index, text) for index, text in enumerate("abc")]
    reply = await isolate.ask("POST", f"{SESSION}/turns/1/cancel")
    assert (202, True, "cancelled") == (reply.status, reply.body["cancelRequested"], reply.body["status"])
    lines = await second.lines()
    assert ["session.run.queued", "result", "session.run.cancelled"] == [line["type"] for line in lines]
    assert "" == lines[1]["data"]["finalText"]
    assert "requested" == lines[-1]["data"]["reason"]
    again = await isolate.ask("POST", f"{SESSION}/turns/1/cancel")
    assert (200, False) == (again.status, again.body["cancelRequested"])
    await first.lines()
    await third.lines()
    assert ["a", "re: a", "c", "re: c"] == await thread(isolate)
    assert ["cancelled"] == kinds(await (await say(isolate, 1, "b")).lines())[-1:]


async def test_a_stream_of_a_turn_cancelled_while_it_waited_has_a_beginning(isolate: Isolate) -> None:
    """Who follows it meanwhile is told what who waits with it is told; who comes later, how it started and ended."""
    first = await say(isolate, 0, "a")
    await say(isolate, 1, "b")
    stream = f"{SESSION}/turns/1/stream"
    follower = await isolate.ask("GET", stream)
    await asyncio.sleep(1)
    await isolate.ask("POST", f"{SESSION}/turns/1/cancel")
    assert [*WAITED, "result", "session.run.cancelled"] == types(await follower.lines())
    lines = await (await isolate.ask("GET", stream)).lines()
    assert ["session.run.started", "result", "session.run.cancelled"] == types(lines)
    assert "" == lines[1]["data"]["finalText"]
    await first.lines()


async def test_an_answer_that_was_begun_and_then_cancelled_while_it_waited_has_a_beginning(
    database: SqliteDatabase, isolate: Isolate
) -> None:
    """The lines of the answer before it are history, and its end is behind all that its worker may have said."""
    lost = Isolate(database, Slow(), settings=ON)
    await say(lost, 1, "b")
    await asyncio.sleep(2)
    await lost.kill()
    await asyncio.sleep(11)
    first = await say(isolate, 0, "a", when_busy="parallel")
    await say(isolate, 1, "x", on_mismatch="supersede")
    await isolate.ask("POST", f"{SESSION}/turns/1/cancel")
    lines = await (await isolate.ask("GET", f"{SESSION}/turns/1/stream")).lines()
    assert ["session.run.started", "result", "session.run.cancelled"] == types(lines)
    [(stored,)] = await Desk(database).rows("SELECT max(last_seq) FROM chat_segments WHERE run_id LIKE '%:1'")
    assert stored < min(line["seq"] for line in lines)
    await first.lines()


async def test_the_index_of_a_turn_cancelled_while_it_waited_is_free(isolate: Isolate) -> None:
    """For another message."""
    first, second = await say(isolate, 0, "a"), await say(isolate, 1, "b")
    await isolate.ask("POST", f"{SESSION}/turns/1/cancel")
    other = await say(isolate, 1, "x")
    assert ["queued", "started", "completed"] == kinds(await other.lines())
    await first.lines()
    await second.lines()
    assert ["a", "re: a", "x", "re: x"] == await thread(isolate)


async def test_the_second_message_at_an_index_is_asked_at_the_next(isolate: Isolate) -> None:
    """Two devices; sent again it joins, and once it has an answer it is replayed."""
    first, second = await say(isolate, 0, "a"), await say(isolate, 0, "b")
    assert "chat:acme:thread-1:1" == second.response.headers["X-Workflow-Run-Id"]
    again = await say(isolate, 0, "b")
    assert (409, f"{SESSION}/turns/1/stream") == (again.status, again.body["stream"])
    lines = await second.lines()
    assert ["queued", "started", "completed"] == kinds(lines)
    assert [1, 1] == [line["data"]["turnIndex"] for line in lines[:2]]
    await first.lines()
    assert ["a", "re: a", "b", "re: b"] == await thread(isolate)
    replay = await (await say(isolate, 0, "b")).lines()
    assert "re: b" == replay[1]["data"]["finalText"]
    assert (422, "input_mismatch") == ((await say(isolate, 0, "c")).status, (await say(isolate, 0, "c")).body["code"])


async def test_the_second_message_at_an_index_is_told_which_to_take(database: SqliteDatabase, isolate: Isolate) -> None:
    """Where the policy is not to wait; nothing is stored."""
    first = await say(isolate, 0, "a")
    before = await everything(database)
    for policy in ("reject", "parallel"):
        reply = await say(isolate, 0, "b", when_busy=policy)
        assert (422, "input_mismatch", 1) == (reply.status, reply.body["code"], reply.body["turnIndex"])
    assert before == await everything(database)
    await first.lines()


async def test_a_turn_that_the_thread_has_passed_is_not_tried_again(database: SqliteDatabase, isolate: Isolate) -> None:
    """409 while and after later turns are answered, and nothing is stored."""
    failing = Isolate(database, Product(ValueError("no")), settings=ON)
    assert ["started", "failed"] == kinds(await (await say(failing, 0, "a")).lines())
    later = await say(isolate, 1, "b")
    before = await everything(database)
    reply = await say(isolate, 0, "a")
    assert (409, "session_busy", f"{SESSION}/turns/1/stream?version=1") == (
        reply.status,
        reply.body["code"],
        reply.body["stream"],
    )
    assert before == await everything(database)
    await later.lines()
    before = await everything(database)
    reply = await say(isolate, 0, "a")
    assert (409, "turn_passed") == (reply.status, reply.body["code"])
    assert before == await everything(database)
    again = await say(isolate, 0, "a", replace={"kind": "regenerate", "version": 1})
    assert ["started", "completed"] == kinds(await again.lines())
    assert ["a", "re: a"] == await thread(isolate)


async def test_messages_typed_ahead_at_detached_turns_follow_each_other(isolate: Isolate) -> None:
    """The second is no conflict while the first is answered; sent again they are what they were."""
    for index, question in enumerate("abc"):
        await (await say(isolate, index, question)).lines()
    await (await say(isolate, 0, "x", replace={"kind": "edit", "version": 1})).lines()
    first, second = await say(isolate, 1, "y"), await say(isolate, 2, "c")
    assert 409 == (await say(isolate, 2, "c")).status
    await first.lines()
    assert ["queued", "started", "completed"] == kinds(await second.lines())
    for _ in range(2):
        assert ["x", "re: x", "y", "re: y", "c", "re: c"] == await thread(isolate)
        assert "re: c" == (await (await say(isolate, 2, "c")).lines())[1]["data"]["finalText"]


async def test_a_turn_is_not_answered_behind_one_that_the_thread_never_had(
    database: SqliteDatabase, isolate: Isolate
) -> None:
    """The message before it, at a detached turn, has failed: then its answer would be in no thread."""
    for index, question in enumerate("ab"):
        await (await say(isolate, index, question)).lines()
    await (await say(isolate, 0, "x", replace={"kind": "edit", "version": 1})).lines()
    failing = Isolate(database, Product(2.0, ValueError("no")), settings=ON)
    first, second, third = (await say(failing, 1, "y")), (await say(isolate, 2, "z")), (await say(isolate, 3, "w"))
    assert ["started", "failed"] == kinds(await first.lines())
    for waits in (second, third):
        lines = await waits.lines()
        assert "version_conflict" == lines[-1]["data"]["code"]
    calls = len(isolate.hooks.calls)  # type: ignore[attr-defined]
    assert ["failed", "failed"] == [await status(isolate, 2), await status(isolate, 3)]
    for index, question in enumerate("yz", 1):
        await (await say(isolate, index, question)).lines()
    assert ["x", "re: x", "y", "re: y", "z", "re: z"] == await thread(isolate)
    assert calls + 2 == len(isolate.hooks.calls)  # type: ignore[attr-defined]


async def test_what_is_open_is_not_replaced(database: SqliteDatabase, isolate: Isolate) -> None:
    """Nor is another version activated meanwhile; nothing is stored."""
    for question in ("a", "x"):
        replace = {"replace": {"kind": "edit", "version": 1}} if question == "x" else {}
        await (await say(isolate, 0, question, **replace)).lines()
    running = await say(isolate, 1, "b")
    waiting = await say(isolate, 0, "y", replace={"kind": "edit", "version": 2})
    before = await everything(database)
    for question in ("y", "z"):
        reply = await say(isolate, 0, question, replace={"kind": "edit", "version": 2})
        code = "turn_in_flight" if question == "y" else "session_busy"
        assert (409, code) == (reply.status, reply.body["code"])
    reply = await isolate.ask("POST", f"{SESSION}/turns/0/versions/1/activate")
    assert (409, "session_busy") == (reply.status, reply.body["code"])
    assert before == await everything(database)
    await running.lines()
    assert ["queued", "started", "completed"] == kinds(await waiting.lines())
    assert ["y", "re: y"] == await thread(isolate)


async def test_what_waits_for_an_approval_is_not_replaced_behind_its_back(
    database: SqliteDatabase, isolate: Isolate
) -> None:
    """Its answer will count; the request names a version that it would then not take the place of."""
    await (await say(isolate, 0, "a")).lines()
    asking = Isolate(database, Asking(), settings=ON)
    lines = await (await say(asking, 0, "may I", replace={"kind": "edit", "version": 1})).lines()
    assert "suspended" == kinds(lines)[-1]
    before = await everything(database)
    for members in ({"replace": {"kind": "edit", "version": 1}}, {"on_mismatch": "supersede"}):
        for policy in ("queue", "interrupt", "reject", "parallel"):
            reply = await say(isolate, 0, "x", when_busy=policy, **members)
            assert (409, "session_busy") == (reply.status, reply.body["code"])
            assert f"{SESSION}/turns/0/stream?version=2" == reply.body["stream"]
    assert before == await everything(database)


@pytest.mark.parametrize("policy", ["queue", "reject"])
async def test_of_two_messages_at_a_detached_turn_none_takes_the_place_of_the_other(
    isolate: Isolate, policy: str
) -> None:
    """The second is asked at the next index, or told which that is; sent again it is found there."""
    for index, question in enumerate("abcd"):
        await (await say(isolate, index, question)).lines()
    await (await say(isolate, 0, "x", replace={"kind": "edit", "version": 1})).lines()
    first, second = await say(isolate, 1, "y"), await say(isolate, 1, "z", when_busy=policy)
    if policy == "reject":
        assert (422, "input_mismatch", 2) == (second.status, second.body["code"], second.body["turnIndex"])
    await first.lines()
    await second.lines()
    assert ["x", "y", *["z"] * (policy == "queue")] == (await thread(isolate))[::2]
    again = await (await say(isolate, 1, "y")).lines()
    assert "re: y" == again[1]["data"]["finalText"]


async def test_the_second_message_at_an_index_that_waits_for_an_approval_is_asked_at_the_next(
    database: SqliteDatabase, isolate: Isolate
) -> None:
    """It is open as well."""
    asking = Isolate(database, Asking(), settings=ON)
    assert "suspended" == kinds(await (await say(asking, 0, "may I")).lines())[-1]
    second = await say(isolate, 0, "b")
    assert "chat:acme:thread-1:1" == second.response.headers["X-Workflow-Run-Id"]
    assert "suspended" == kinds(await second.lines())[-1]


# Whoever dies


async def waiting(isolate: Isolate, *texts: str) -> list[Reply]:
    """Post messages, of which all but the first wait."""
    replies = []
    for index, text in enumerate(texts):
        replies.append(await say(isolate, index, text))
        await asyncio.sleep(0.5)
    return replies


async def test_who_waits_takes_over_the_turn_in_front(database: SqliteDatabase, isolate: Isolate) -> None:
    """Its worker is lost; it is answered first, with nobody reading it."""
    lost = Isolate(database, Slow(), settings=ON)
    await waiting(lost, "a")
    second = await say(isolate, 1, "b")
    await lost.kill()
    assert ["queued", "started", "completed"] == kinds(await second.lines())
    assert ["a", "re: a", "b", "re: b"] == await thread(isolate)
    assert 2 == (await isolate.ask("GET", f"{SESSION}/turns/0")).body["attempts"]


async def test_a_turn_whose_waiter_died_is_begun_by_who_ends_the_one_before(
    database: SqliteDatabase, isolate: Isolate
) -> None:
    """Its first attempt, from seq 0."""
    lost = Isolate(database, Slow(), settings=ON)
    slow = Slow()
    slow.pause_s = 20
    isolate.hooks = slow
    first = await say(isolate, 0, "a")
    await say(lost, 1, "b")
    await lost.kill()
    await first.lines()
    assert ["a", "re: a", "b", "re: b"] == await thread(isolate)
    lines = await (await isolate.ask("GET", f"{SESSION}/turns/1/stream")).lines()
    assert ["started", "completed"] == kinds(lines)
    assert [0, 1] == [lines[0]["seq"], lines[0].get("attempt", 1)]


@pytest.mark.parametrize(("plan", "begun"), [("paid", 5), ("free", 1)])
async def test_one_invocation_begins_a_few_turns_that_nobody_waits_with(
    database: SqliteDatabase, plan: str, begun: int
) -> None:
    """An invocation has so many queries; the cron goes on with the others."""
    settings = {**ON, "WORKERS_PLAN": plan, "LEASE_MS": "60000"}
    isolate, mortal = (Isolate(database, Slow(), settings=settings) for _ in range(2))
    isolate.hooks.pause_s = 30.0  # type: ignore[attr-defined]
    first = await say(isolate, 0, "q0")
    for index in range(1, 8):
        await say(mortal, index, f"q{index}")
    await mortal.kill()
    await first.lines()
    await asyncio.sleep(600)
    assert ["completed"] * (1 + begun) + ["pending"] * (7 - begun) == [await status(isolate, at) for at in range(8)]
    for _ in range(8):
        await isolate.sweep()
    assert [f"q{index}" for index in range(8)] == (await thread(isolate))[::2]


async def test_turns_whose_workers_died_are_ended_by_the_cron(database: SqliteDatabase, isolate: Isolate) -> None:
    """All of them, in their order, the last ones by whoever ended the one before."""
    lost = Isolate(database, Slow(), settings=ON)
    await waiting(lost, "a", "b", "c")
    await lost.kill()
    await asyncio.sleep(60)
    for _ in range(3):
        await isolate.sweep()
    assert ["a", "re: a", "b", "re: b", "c", "re: c"] == await thread(isolate)
    assert 0 == await isolate.sweep()


async def test_the_owner_looks_after_turns_that_wait(database: SqliteDatabase, isolate: Isolate) -> None:
    """As after those that run."""
    lost = Isolate(database, Slow(), settings=ON)
    await waiting(lost, "a", "b")
    await lost.kill()
    await asyncio.sleep(60)
    assert await isolate.service.look_after("acme", "thread-1")
    assert ["a", "re: a", "b", "re: b"] == await thread(isolate)
    assert not await isolate.service.look_after("acme", "thread-1")


async def test_a_follower_begins_a_turn_whose_waiter_died(database: SqliteDatabase, isolate: Isolate) -> None:
    """And is told its place meanwhile."""
    lost = Isolate(database, Slow(), settings=ON)
    await waiting(lost, "a", "b")
    follower = await isolate.ask("GET", f"{SESSION}/turns/1/stream")
    reader = await isolate.ask("GET", f"{SESSION}/turns/1/stream", x_scopes="turns:read")
    await asyncio.sleep(0.5)
    await lost.kill()
    for each in (follower, reader):
        lines = await each.lines()
        assert ["queued", "started", "completed"] == list(dict.fromkeys(kinds(lines)))
        assert 1 == lines[0]["data"]["position"]
    assert ["a", "re: a", "b", "re: b"] == await thread(isolate)


async def test_a_wait_has_a_budget(database: SqliteDatabase) -> None:
    """Then its stream breaks off without a terminal line, and the turn is there for who comes back."""
    isolate = Isolate(database, Slow(), settings={**ON, "WORKERS_PLAN": "free"})
    slow = Slow()
    slow.pause_s = 3_000
    other = Isolate(database, slow, settings=ON)
    first = await say(other, 0, "a")
    before = isolate.wire.batches
    second = await say(isolate, 1, "b")
    lines = await second.lines()
    assert ["queued"] == kinds(lines)
    assert isolate.wire.batches - before <= 8  # the claim, six looks, and leaving
    assert "pending" == await status(isolate, 1)
    await isolate.ask("POST", f"{SESSION}/turns/0/cancel")
    again = await say(isolate, 1, "b")
    assert ["queued", "started", "completed"] == kinds(await again.lines())
    await first.lines()


async def test_who_leaves_while_waiting_ends_the_turn_where_the_policy_says_so(database: SqliteDatabase) -> None:
    """`ON_DISCONNECT=cancel`: it leaves no message."""
    isolate = Isolate(database, Slow(), settings={**ON, "ON_DISCONNECT": "cancel"})
    first, second = await waiting(isolate, "a", "b")
    second.reader.leave()
    await first.lines()
    await second.lines()
    assert "cancelled" == await status(isolate, 1)
    assert ["a", "re: a"] == await thread(isolate)


async def test_a_turn_of_a_session_that_is_deleted_does_not_come_back(database: SqliteDatabase) -> None:
    """Who waits with it is told that there is no such turn, and stores nothing."""
    isolate = Isolate(database, Slow(), settings=ON)
    first, second = await waiting(isolate, "a", "b")
    reply = await isolate.ask("DELETE", SESSION)
    assert 200 == reply.status, reply.body
    lines = await second.lines()
    assert ["queued", "failed"] == kinds(lines)
    assert "not_found" == lines[-1]["data"]["code"]
    await first.lines()
    for rows in await everything(database):
        assert [] == list(rows)


# Behind an approval


class Asking(Slow):
    """A product whose answers to some messages need an approval."""

    def produce(self, context: TurnContext) -> StreamProducer:
        """Answer, at once or when somebody agrees."""
        if context.user_message.startswith("may"):
            self.calls.append(context)
            return StreamProducer(self.asks(context))
        return super().produce(context)

    async def asks(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
        """Wait for a yes."""
        yield text_delta("so ")
        await context.durable.await_event("ok")
        yield text_delta("be it")


async def test_nothing_is_held_open_behind_an_approval(database: SqliteDatabase) -> None:
    """The stream ends with what the turn in front waits for; the turn is answered once that has ended."""
    isolate = Isolate(database, Asking(), settings=ON)
    first = await say(isolate, 0, "may I")
    second = await say(isolate, 1, "b")
    asked = (await first.lines())[-1]
    lines = await second.lines()
    assert ["queued", "suspended"] == kinds(lines)
    assert {**asked["data"], "turnIndex": 0} == lines[-1]["data"]
    assert "seq" not in lines[-1]
    third = await say(isolate, 2, "c")
    assert ["suspended"] == kinds(await third.lines())
    follower = await isolate.ask("GET", f"{SESSION}/turns/1/stream", x_scopes="turns:read")
    assert ["suspended"] == kinds(await follower.lines())
    assert ["pending", "pending"] == [await status(isolate, 1), await status(isolate, 2)]
    assert 0 == await isolate.sweep()
    assert not await isolate.service.look_after("acme", "thread-1")

    address = "/v1/runs/chat%3Aacme%3Athread-1%3A0/events/ok"
    assert 200 == (await isolate.ask("POST", address, {"payload": True})).status
    await asyncio.sleep(20)
    assert ["may I", "so be it", "b", "re: b", "c", "re: c"] == await thread(isolate)


async def test_an_interruption_ends_the_wait_for_an_approval(database: SqliteDatabase) -> None:
    """What was said is kept."""
    isolate = Isolate(database, Asking(), settings=ON)
    await (await say(isolate, 0, "may I")).lines()
    second = await say(isolate, 1, "b", when_busy="interrupt")
    assert ["queued", "started", "completed"] == kinds(await second.lines())
    assert ["may I", "so ", "b", "re: b"] == await thread(isolate)


async def test_an_event_that_came_is_gone_on_with_by_who_waits(database: SqliteDatabase) -> None:
    """The worker that was told of it has died."""
    isolate = Isolate(database, Asking(), settings=ON)
    await (await say(isolate, 0, "may I")).lines()
    await isolate.service.deployment.store.emit_event("chat:acme:thread-1:0", "ok", True)
    second = await say(isolate, 1, "b")
    assert ["queued", "started", "completed"] == kinds(await second.lines())
    assert ["may I", "so be it", "b", "re: b"] == await thread(isolate)


# What it costs


async def test_round_trips(database: SqliteDatabase) -> None:
    """Two fresh, one a replay, three for a turn that waits, and its looks."""
    isolate = Isolate(database, Slow(), settings={**ON, "LOG_EVERY_MS": "0", "LEASE_MS": "60000"})
    await (await say(isolate, 0, "a")).lines()
    assert 2 == isolate.wire.batches
    await (await say(isolate, 0, "a")).lines()
    assert 3 == isolate.wire.batches
    other = Isolate(database, Slow(), settings={**ON, "LOG_EVERY_MS": "0", "LEASE_MS": "60000"})
    await say(other, 1, "b")
    second = await say(isolate, 2, "c")
    looks = 0
    batch = isolate.wire.batch

    async def counted(statements: Any) -> Any:
        nonlocal looks
        looks += len(statements) == 1
        return await batch(statements)

    isolate.wire.batch = counted  # type: ignore[method-assign]
    await second.lines()
    assert 3 + 3 + looks == isolate.wire.batches
    assert looks > 1


async def test_a_long_session_costs_what_a_short_one_does(database: SqliteDatabase) -> None:
    """A claim that waits or is moved, and a look, take as many steps of SQLite's machine with 10,000 turns as with 100."""
    isolate = Isolate(database, Slow(), settings=ON)
    steps: dict[int, int] = {}
    moved: dict[int, int] = {}
    for turns in (100, 10_000):
        await _fill(database, turns)
        first = await say(isolate, turns, "a")
        before = _steps_of(database)
        second = await say(isolate, turns + 1, "b")
        await asyncio.sleep(2)
        steps[turns] = _steps_of(database) - before
        third = await say(isolate, turns, "c")
        moved[turns] = _steps_of(database) - before - steps[turns]
        for reply in (first, second, third):
            await reply.lines()
        await _empty(database)
    assert steps[10_000] < 1.2 * steps[100], steps
    assert moved[10_000] < 1.2 * moved[100], moved


_NUMBERS = "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?1 - 1)"
_OVER = (
    """INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at, completed_at)
    SELECT 'chat:acme:thread-1:' || i, 'h', 'chatturn', 'completed', ?2, ?2, ?2 FROM n""",
    """INSERT INTO chat_turns (run_id, tenant_id, session_id, user_id, turn_index, user_message, attempt, created_at,
      updated_at)
    SELECT 'chat:acme:thread-1:' || i, 'acme', 'thread-1', 'ann', i, 'q', 1, ?2, ?2 FROM n""",
    """INSERT INTO chat_messages (tenant_id, session_id, turn_index, role, content, run_id, created_at)
    SELECT 'acme', 'thread-1', i, role, 'x', 'chat:acme:thread-1:' || i, ?2
    FROM n, (SELECT 'user' AS role UNION ALL SELECT 'assistant')""",
)


async def _fill(database: SqliteDatabase, turns: int) -> None:
    """Store so many turns that are over."""
    moment = "2026-01-01T00:00:00.000Z"
    await database.batch([Statement(f"{_NUMBERS} {text}", (turns, moment)) for text in _OVER])


async def _empty(database: SqliteDatabase) -> None:
    tables = ("durable_runs", "durable_steps", "chat_turns", "chat_messages", "chat_sessions", "chat_segments")
    await database.batch([Statement(f"DELETE FROM {table}") for table in tables])  # noqa: S608


def _steps_of(database: SqliteDatabase) -> int:
    """Return how many hundreds of steps SQLite's machine has taken since this was first asked."""
    connection: Any = database._connection
    if not hasattr(database, "steps"):
        counted = [0]

        def count() -> int:
            counted[0] += 1
            return 0

        connection.set_progress_handler(count, 100)
        database.steps = counted  # type: ignore[attr-defined]
    return int(database.steps[0])  # type: ignore[attr-defined]
