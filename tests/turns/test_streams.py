"""A turn's log by its cursor: live in this isolate and from another, taken over, stopped, left; in virtual time."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest

from chatturn.backends.iterable import create_iterable_backend
from chatturn.chat.hooks.hooks import FinishedTurn
from chatturn.chat.log.attempt_place import MAX_AHEAD
from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import ChatStreamEvent, text_delta, usage_event
from products.assistant import Hooks as Assistant
from tests.support.isolates import TURN, Isolate, Reader
from tests.support.turns import Product, Recorded, Step, open_sqlite, without_pings
from tests.support.whole_turns import wrap

WORDS: list[Step] = [step for n in range(8) for step in (text_delta(f"w{n} "), 0.5)]
"""A model that says eight words in four seconds."""

WHOLE = "".join(f"w{n} " for n in range(8))


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


def kinds(lines: list[dict[str, Any]]) -> list[str]:
    """Return the types of lines, without the pieces of text."""
    return [line["type"] for line in lines if line["type"] != "message.part.updated"]


def seqs(lines: list[dict[str, Any]]) -> list[int]:
    """Return the seqs of the lines that have one."""
    return [line["seq"] for line in lines if "seq" in line]


def text_of(lines: list[dict[str, Any]]) -> str:
    """Put the answer together as a client does."""
    text = ""
    for line in lines:
        data = line.get("data", {})
        if line["type"] == "session.run.restarted":
            text = ""
        elif line["type"] == "result":
            text = data["finalText"]
        elif line["type"] == "message.part.updated":
            text = data["part"].get("text", text + data.get("delta", ""))
    return text


async def rows(database: SqliteDatabase, sql: str) -> list[tuple[Any, ...]]:
    """Read rows as tuples."""
    [outcome] = await database.batch([Statement(sql)])
    return [tuple(row.values()) for row in outcome.rows]


# Cursors


@pytest.mark.parametrize("after", [None, *range(11)])
async def test_the_log_is_read_from_any_cursor(database: SqliteDatabase, after: int | None) -> None:
    """The first k lines and what comes after k are the log as it was said."""
    isolate = Isolate(database, Product(*WORDS))
    said = await (await isolate.post()).lines()
    rest = await (await isolate.follow(after)).lines()

    if after is not None and after + 1 >= len(said):
        rest = [] if rest == [{name: value for name, value in said[-1].items() if name != "seq"}] else rest
    assert said == said[: 0 if after is None else after + 1] + rest


async def test_a_stream_is_stored_while_it_runs(database: SqliteDatabase) -> None:
    """A quarter of a second behind, in rows of several lines; its end with the finish."""
    isolate = Isolate(database, Product(*[step for n in range(100) for step in (text_delta(f"{n} "), 0.01)]))
    posted = await isolate.post()
    await asyncio.sleep(0.6)
    [(stored,)] = await rows(database, "SELECT max(last_seq) FROM chat_segments")
    await posted.lines()
    segments = await rows(database, "SELECT first_seq, last_seq, ended, lines FROM chat_segments ORDER BY first_seq")

    assert 40 <= stored <= 60
    assert without_pings(posted.reader.text) == "".join(row[3] for row in segments)
    assert [0] * (len(segments) - 1) + [1] == [row[2] for row in segments]
    assert all(later[0] == row[1] + 1 for row, later in pairwise(segments))
    assert 4 <= len(segments) <= 6


async def test_a_turn_of_two_thousand_events_writes_few_rows(database: SqliteDatabase) -> None:
    """Twenty seconds of a hundred events each: at most 120 rows, with every index entry."""
    script = [step for n in range(2_000) for step in (text_delta(f"{n} "), 0.01)]
    before = database._connection.total_changes
    await (await Isolate(database, Product(*script, usage_event(tokensOut=2_000))).post()).lines()

    assert database._connection.total_changes - before <= 100  # index entries of runs and turns beside


@pytest.mark.parametrize(
    ("query", "headers", "field"),
    [
        ("?after=-1", {}, "after"),
        ("?after=x", {}, "after"),
        ("?after=1.0", {}, "after"),
        ("?after=", {}, "after"),
        ("?after=99999999999999999999", {}, "after"),
        ("?after=11", {}, "after"),
        ("?after=1&after=2", {}, "query"),
        ("?before=1", {}, "before"),
        ("?after=%ff", {}, "query"),
        ("", {"last_event_id": "x"}, "Last-Event-ID"),
        ("?after=1", {"last_event_id": "99"}, "after"),
        (f"?after={2**53 - 1}", {}, "after"),
        (f"?after={2**53 - 2}", {}, "after"),
        (f"?after={2**53}", {}, "after"),
        ("?attempt=x", {}, "attempt"),
    ],
)
async def test_a_bad_cursor_is_a_422_that_names_it(
    database: SqliteDatabase, query: str, headers: dict[str, str], field: str
) -> None:
    """Before the first byte."""
    isolate = Isolate(database, Product(*WORDS))
    await (await isolate.post()).lines()
    reply = await isolate.ask("GET", f"{TURN}/stream{query}", reader=None, **headers)

    assert (422, field) == (reply.status, reply.body["field"])


async def test_both_cursors_may_say_the_same(database: SqliteDatabase) -> None:
    """`Last-Event-ID` alone is enough, too."""
    isolate = Isolate(database, Product(*WORDS))
    await (await isolate.post()).lines()
    both = await (await isolate.follow(7, last_event_id="7")).lines()

    assert both == await (await isolate.follow(last_event_id="7")).lines()
    assert [8, 9] == seqs(both)


async def test_another_tenants_log_is_none_at_all(database: SqliteDatabase) -> None:
    """As a turn that does not exist; so for its cancel."""
    isolate = Isolate(database, Product(*WORDS))
    await isolate.post()
    foreign = await isolate.follow(x_tenant="rival")
    missing = await isolate.ask("GET", TURN.replace("/0", "/5") + "/stream")
    cancel = await isolate.ask("POST", f"{TURN}/cancel", x_tenant="rival")

    assert foreign.response == missing.response
    assert (404, 404, "not_found") == (foreign.status, cancel.status, cancel.body["code"])


async def test_a_finished_log_has_a_tag_and_one_of_a_known_attempt_never_changes(database: SqliteDatabase) -> None:
    """Asked again with the tag, nothing is sent; a live log is not to be kept."""
    isolate = Isolate(database, Product(*WORDS))
    posted = await isolate.post()
    live = await isolate.follow()
    await posted.lines()
    finished, known = await isolate.follow(3), await isolate.ask("GET", f"{TURN}/stream?after=3&attempt=1")
    again = await isolate.follow(3, if_none_match=finished.response.headers["ETag"])
    other = await isolate.follow(4, if_none_match=finished.response.headers["ETag"])

    assert ("no-store", False) == (live.response.headers["Cache-Control"], "ETag" in live.response.headers)
    assert "private, no-cache" == finished.response.headers["Cache-Control"]
    assert "immutable" in known.response.headers["Cache-Control"]
    assert (304, None, 200) == (again.status, again.response.stream, other.status)
    assert 404 == (await isolate.ask("GET", f"{TURN}/stream?attempt=2")).status


async def test_a_log_begins_anew_behind_an_attempt_that_ended(database: SqliteDatabase) -> None:
    """What a failed attempt said is history; who had read it goes on with the new one, in the same numbers."""
    isolate = Isolate(database, Product(text_delta("bad"), RuntimeError("x")))
    failed = await (await isolate.post()).lines()
    isolate.hooks = Product(text_delta("good"))
    await (await isolate.post()).lines()
    whole, rest = await (await isolate.follow()).lines(), await (await isolate.follow(failed[-1]["seq"])).lines()

    assert ["session.run.started", "session.run.completed"] == kinds(whole)
    assert whole == rest == await (await isolate.follow(1)).lines()
    assert failed[-1]["seq"] + 1 == whole[0]["seq"]


async def test_a_failed_turns_log_is_read_to_its_end(database: SqliteDatabase) -> None:
    """Its terminal line is stored."""
    isolate = Isolate(database, Product(text_delta("bad"), RuntimeError("x")))
    said = await (await isolate.post()).lines()

    assert said == await (await isolate.follow()).lines()


# Followers


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.3, 1.7, 3.9, 4.5])
async def test_any_number_follow_a_live_turn(database: SqliteDatabase, elsewhere: bool, delay: float) -> None:
    """Whenever they come, each gets the whole log once, in its order, while the model is called once."""
    owner = Isolate(database, Product(*WORDS))
    other = Isolate(database, Product()) if elsewhere else owner
    posted = await owner.post()
    await asyncio.sleep(delay)
    followers = [await other.follow() for _ in range(5)]
    said = await posted.lines()

    for follower in followers:
        assert said == await follower.lines()
    assert (1, 0) == (len(owner.hooks.calls), len(other.hooks.calls) if elsewhere else 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("elsewhere", "most_s"), [(False, 0.03), (True, 0.4)])
async def test_a_follower_is_shortly_behind(database: SqliteDatabase, elsewhere: bool, most_s: float) -> None:
    """By a look at the log in memory; from elsewhere by an interval of storing and one of asking."""
    owner = Isolate(database, Product(*WORDS))
    other = Isolate(database, Product()) if elsewhere else owner
    await owner.post()
    follower = await other.follow()
    lags = []
    for number in range(8):
        while f'"w{number} "' not in follower.reader.text:  # noqa: ASYNC110 - it is the lag that is measured
            await asyncio.sleep(0.005)
        lags.append(asyncio.get_running_loop().time() - 0.5 * number)

    assert max(lags) <= most_s


async def test_a_request_may_follow_instead_of_being_refused(database: SqliteDatabase) -> None:
    """With `follow`, a second POST of a turn in flight gets its log."""
    isolate = Isolate(database, Product(*WORDS))
    posted = await isolate.post()
    refused, followed = await isolate.post(), await isolate.post(follow=True)

    assert (409, f"{TURN}/stream") == (refused.status, refused.body["stream"])
    assert await posted.lines() == await followed.lines()


async def test_a_follower_that_leaves_ends_nothing(database: SqliteDatabase) -> None:
    """Neither the turn nor another follower, under any policy."""
    isolate = Isolate(database, Product(*WORDS), settings={"ON_DISCONNECT": "cancel"})
    posted = await isolate.post()
    leaving, staying = await isolate.follow(), await isolate.follow()
    await asyncio.sleep(1)
    leaving.reader.leave()

    assert "session.run.completed" == (await posted.lines())[-1]["type"]
    assert await posted.lines() == await staying.lines()


async def test_a_slow_follower_goes_on_with_the_database(database: SqliteDatabase) -> None:
    """Lines in memory are forgotten once they are stored; nobody misses one."""
    script = [step for _ in range(60) for step in ([text_delta("x" * 2_000)] * 10, 0.2)]
    isolate = Isolate(database, Product(*script))

    class Slow(Reader):
        async def drain(self, _room: int | None = None) -> None:
            await asyncio.sleep(3)

    posted = await isolate.post()
    follower = await isolate.ask("GET", f"{TURN}/stream", reader=Slow())
    said = await posted.lines()

    assert said == await follower.lines()


async def test_a_redacting_products_followers_see_what_the_redactor_saw(database: SqliteDatabase) -> None:
    """In this isolate, too; the answer comes at the end, as a whole, and the live reader's is corrected by it."""

    class Redacting(Product):
        async def transform_final_text(self, text: str) -> str:
            return text.replace("w3", "[w]")

    isolate = Isolate(database, Redacting(*WORDS))
    posted = await isolate.post()
    follower = await isolate.follow()
    said, followed = await posted.lines(), await follower.lines()

    assert "w3" not in follower.reader.text
    assert seqs(said) == seqs(followed)
    assert WHOLE.replace("w3", "[w]") == text_of(said) == text_of(followed)
    assert followed == await (await isolate.follow()).lines()


# Takeover


async def test_a_follower_takes_over_a_lost_turn(database: SqliteDatabase) -> None:
    """Once the lease has lapsed: it is told that the turn restarts, and gets the answer."""
    owner, other = Isolate(database, Product(*WORDS)), Isolate(database, Product(*WORDS))
    await owner.post()
    await asyncio.sleep(2.2)
    await owner.kill()
    follower = await other.follow()
    lines = await follower.lines()

    assert ["session.run.started", "session.run.restarted", "session.run.completed"] == kinds(lines)
    assert {"attempt": 2, "reason": "lease_lapsed"} == lines[kinds_at(lines, "session.run.restarted")]["data"]
    assert WHOLE == text_of(lines)
    assert 60 <= asyncio.get_running_loop().time() - 4 <= 60 + 1.2 * 0.9 + 0.25
    assert lines == await (await other.follow()).lines()


def kinds_at(lines: list[dict[str, Any]], kind: str) -> int:
    """Return where the first line of a type is."""
    return [line["type"] for line in lines].index(kind)


async def test_who_may_only_read_waits_for_others(database: SqliteDatabase) -> None:
    """A token for reading does not cause a model call; the sweep takes over, and the reader sees it."""
    owner, other = Isolate(database, Product(*WORDS)), Isolate(database, Product(*WORDS))
    await owner.post()
    await asyncio.sleep(1)
    await owner.kill()
    follower = await other.follow(x_scopes="turns:read")
    await asyncio.sleep(100)
    calls = len(other.hooks.calls)  # type: ignore[attr-defined]  # the scripted product
    swept = await other.sweep()
    lines = await follower.lines()

    assert (0, 1) == (calls, swept)
    assert WHOLE == text_of(lines)
    assert 403 == (await other.ask("POST", f"{TURN}/cancel", x_scopes="turns:read")).status


async def test_of_many_followers_one_takes_over(database: SqliteDatabase) -> None:
    """The others follow it."""
    owner, others = Isolate(database, Product(*WORDS)), [Isolate(database, Product(*WORDS)) for _ in range(4)]
    await owner.post()
    await asyncio.sleep(1)
    await owner.kill()
    followers = [await other.follow() for other in others]
    logs = [await follower.lines() for follower in followers]

    assert [1, 0, 0, 0] == sorted((len(other.hooks.calls) for other in others), reverse=True)  # type: ignore[attr-defined]
    assert [logs[0]] * 4 == logs


async def test_lines_that_were_lost_are_not_said_again_under_their_numbers(database: SqliteDatabase) -> None:
    """A client that saw more than was stored goes on behind it, with the restart first."""
    slow = [step for n in range(8) for step in (text_delta(f"w{n} "), 0.6)]
    owner, other = Isolate(database, Product(*slow)), Isolate(database, Product(*WORDS))
    posted = await owner.post()
    await asyncio.sleep(2.45)  # the word at 2.4 s is stored at 2.5 s
    await owner.kill()
    [(stored,)] = await rows(database, "SELECT max(last_seq) FROM chat_segments")
    seen = posted.reader.last
    assert seen is not None
    rest = await (await other.follow(seen)).lines()

    assert seen == stored + 1
    assert ("session.run.restarted", stored + 1 + MAX_AHEAD) == (rest[0]["type"], rest[0]["seq"])
    assert WHOLE == text_of([*posted.reader.lines, *rest])


async def test_a_turn_that_died_before_its_first_row_begins_its_log_with_the_restart(database: SqliteDatabase) -> None:
    """Its log has one beginning and one end."""
    owner, other = Isolate(database, Product(*WORDS)), Isolate(database, Product(*WORDS))
    posted = await owner.post()
    await asyncio.sleep(0.1)
    await owner.kill()
    rest = await (await other.follow(posted.reader.last)).lines()
    log = await (await other.follow()).lines()

    assert ["session.run.started", "session.run.restarted", "session.run.completed"] == kinds(log)
    assert rest == log
    assert log[0]["seq"] == MAX_AHEAD


async def test_a_post_takes_over_as_well(database: SqliteDatabase) -> None:
    """Its stream begins as every stream does; the log goes on with the restart."""
    owner, other = Isolate(database, Product(*WORDS)), Isolate(database, Product(*WORDS))
    await owner.post()
    await asyncio.sleep(1)
    await owner.kill()
    await asyncio.sleep(60)
    lines = await (await other.post()).lines()
    log = await (await other.follow()).lines()

    assert ["session.run.started", "session.run.restarted", "session.run.completed"] == kinds(lines)
    assert "seq" not in lines[0]
    assert lines[1:] == log[-len(lines) + 1 :]


async def test_a_model_that_can_go_on_keeps_what_was_said(database: SqliteDatabase) -> None:
    """The text so far is said again in one piece, and the model is asked for the rest only."""
    asked: list[str] = []

    async def stream(request: Any, _context: Any) -> Any:
        asked.append(request.continue_from)
        for word in WHOLE.removeprefix(request.continue_from).split():
            yield text_delta(word + " ")
            await asyncio.sleep(0.5)

    backend = create_iterable_backend("scripted", stream, continues=True)
    owner, other = (Isolate(database, Assistant(), backend) for _ in range(2))
    await owner.post()
    await asyncio.sleep(2.3)
    await owner.kill()
    lines = await (await other.follow()).lines()
    restart = kinds_at(lines, "session.run.restarted")

    assert ["", "w0 w1 w2 w3 w4 "] == asked
    assert "w0 w1 w2 w3 w4 " == lines[restart + 1]["data"]["part"]["text"]
    assert WHOLE == text_of(lines)
    assert [(WHOLE,)] == await rows(database, "SELECT content FROM chat_messages WHERE role = 'assistant'")


LONG = [f"word{number:04}" for number in range(1_000)]


async def test_ten_deployments_during_one_long_answer_are_no_failure(database: SqliteDatabase) -> None:
    """Each attempt that goes on further than the one before is worth another one."""

    async def stream(request: Any, _context: Any) -> Any:
        said = request.continue_from.split()
        for word in LONG[len(said) :]:
            await asyncio.sleep(0.1)
            yield text_delta(f"{word} ")

    backend = create_iterable_backend("scripted", stream, continues=True)
    for _ in range(10):
        isolate = Isolate(database, Assistant(), backend, settings={"TURN_ATTEMPTS": "3"})
        await isolate.post()
        await asyncio.sleep(8)
        await isolate.kill()
        await asyncio.sleep(60)
    last = Isolate(database, Assistant(), backend, settings={"TURN_ATTEMPTS": "3"})
    lines = await (await last.post()).lines()

    assert "session.run.completed" == lines[-1]["type"], lines[-1]
    assert [(" ".join(LONG) + " ",)] == await rows(
        database, "SELECT content FROM chat_messages WHERE role = 'assistant'"
    )
    assert [("completed", 11)] == await rows(database, "SELECT status, epoch FROM durable_runs")


async def test_an_answer_is_tried_a_hundred_times_at_most(database: SqliteDatabase) -> None:
    """However far each attempt comes."""
    isolate = Isolate(database, Product(*WORDS))
    await isolate.post()
    await asyncio.sleep(1)
    await isolate.kill()
    await rows(database, "UPDATE durable_runs SET attempts = 100, idle_attempts = 0")
    await asyncio.sleep(60)
    lines = await (await Isolate(database, Product(*WORDS)).post()).lines()

    assert "attempts_exhausted" == lines[-1]["data"]["code"]


async def test_a_turn_that_kills_its_workers_is_given_up(database: SqliteDatabase) -> None:
    """After so many attempts that came to nothing it fails, and says so; waits are not counted."""
    for _ in range(3):
        isolate = Isolate(database, Product(*WORDS), settings={"TURN_ATTEMPTS": "3"})
        await isolate.post()
        await asyncio.sleep(1)
        await isolate.kill()
        await asyncio.sleep(60)
    last = Isolate(database, Product(*WORDS), settings={"TURN_ATTEMPTS": "3"})
    lines = await (await last.post()).lines()

    assert "attempts_exhausted" == lines[-1]["data"]["code"]
    assert [] == last.hooks.calls  # type: ignore[attr-defined]  # the scripted product
    assert [("failed", 4)] == await rows(database, "SELECT status, epoch FROM durable_runs")


async def test_a_turn_that_cannot_be_resumed_ends_for_its_follower(database: SqliteDatabase) -> None:
    """The deployment's project changed: nobody can go on with the turn, so there is nothing to wait for."""
    owner = Isolate(database, Product(*WORDS))
    other = Isolate(database, Product(*WORDS), settings={"DOMAIN": "another"})
    await owner.post()
    await asyncio.sleep(1)
    await owner.kill()
    lines = await (await other.follow()).lines()

    assert ["session.run.started", "error", "session.run.failed"] == kinds(lines)
    assert ("input_mismatch", False) == (lines[-1]["data"]["code"], "seq" in lines[-1])


async def test_the_sweep_never_touches_a_live_turn(database: SqliteDatabase) -> None:
    """However long it takes."""
    owner, cron = (
        Isolate(database, Product(text_delta("a"), 600.0, text_delta("b"))),
        Isolate(database, Product()),
    )
    posted = await owner.post()
    swept = []
    for _ in range(9):
        await asyncio.sleep(60)
        swept.append(await cron.sweep())

    assert [0] * 9 == swept
    assert "ab" == text_of(await posted.lines())


async def test_the_sweep_takes_over_several_at_once(database: SqliteDatabase) -> None:
    """As many as have connections, then the others."""
    owner, cron = Isolate(database, Product(*WORDS)), Isolate(database, Product(*WORDS))
    for number in range(7):
        await owner.ask("POST", TURN.replace("thread-1", f"t{number}"), {"message": "hi"})
    await asyncio.sleep(1)
    await owner.kill()
    await asyncio.sleep(60)
    began = asyncio.get_running_loop().time()

    assert [7, 0] == [await cron.sweep() for _ in range(2)]
    assert asyncio.get_running_loop().time() - began < 10


# Cancel


async def cancel(isolate: Isolate) -> Any:
    """Ask to stop the turn."""
    return await isolate.ask("POST", f"{TURN}/cancel")


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_cancel_ends_a_turn_from_any_isolate(database: SqliteDatabase, elsewhere: bool) -> None:
    """Within an interval: the model is closed, the partial text kept, the last line says so."""
    product = Recorded(*WORDS, 1_000.0)
    owner = Isolate(database, product)
    other = Isolate(database, Product()) if elsewhere else owner
    posted, follower = await owner.post(), await other.follow()
    await asyncio.sleep(2.2)
    asked_at = asyncio.get_running_loop().time()
    reply = await cancel(other)
    lines = await posted.lines()
    took = asyncio.get_running_loop().time() - asked_at

    assert (202, True) == (reply.status, reply.body["cancelRequested"])
    assert took <= 0.5
    assert 1 == product.closed
    said = {"reason": "requested", "replayed": False, "finishReason": "cancelled"}
    told = {"sessionId": "thread-1", "version": 1, **said}
    assert told == lines[-1]["data"]
    assert "session.run.cancelled" == lines[-1]["type"]
    assert "w0 w1 w2 w3 w4 " == text_of(lines)
    assert lines == await follower.lines() == await (await other.follow()).lines()
    assert [("w0 w1 w2 w3 w4 ", True)] == [(turn.final_text, turn.cancelled) for turn in product.persisted]


async def test_a_cancelled_turn_stays_cancelled(database: SqliteDatabase) -> None:
    """A retry replays what it had said, and calls nobody; the thread has it; a second cancel changes nothing."""
    isolate = Isolate(database, Product(*WORDS))
    await isolate.post()
    await asyncio.sleep(1.2)
    await cancel(isolate)
    await asyncio.sleep(1)
    replay, again = await (await isolate.post()).lines(), await cancel(isolate)
    thread = (await isolate.ask("GET", "/v1/sessions/thread-1/messages")).body["messages"]

    assert ["session.run.started", "result", "session.run.cancelled"] == kinds(replay)
    assert ("w0 w1 w2 ", True) == (replay[1]["data"]["finalText"], replay[2]["data"]["replayed"])
    assert (200, False, "cancelled") == (again.status, again.body["cancelRequested"], again.body["status"])
    assert 1 == len(isolate.hooks.calls)  # type: ignore[attr-defined]  # the scripted product
    assert [("hi", None), ("w0 w1 w2 ", True)] == [(each["content"], each.get("cancelled")) for each in thread]
    assert "cancelled" == (await isolate.ask("GET", TURN)).body["status"]


async def test_a_silent_model_is_stopped_too(database: SqliteDatabase) -> None:
    """The database is asked whether or not anything is said."""
    owner, other = Isolate(database, Product(1_000.0)), Isolate(database, Product())
    posted = await owner.post()
    await asyncio.sleep(10)
    await cancel(other)
    lines = await posted.lines()

    assert ["session.run.started", "session.run.cancelled"] == kinds(lines)
    assert asyncio.get_running_loop().time() < 11
    assert [("",)] == await rows(database, "SELECT content FROM chat_messages WHERE role = 'assistant'")


@pytest.mark.parametrize("status", ["completed", "failed"])
async def test_a_cancel_of_a_finished_turn_changes_nothing(database: SqliteDatabase, status: str) -> None:
    """It is answered with how the turn stands, and a failed one may be tried again."""
    isolate = Isolate(database, Product(*([] if status == "completed" else [RuntimeError("x")])))
    if status == "completed":
        isolate.hooks = Product(text_delta("done"))
    await (await isolate.post()).lines()
    reply = await cancel(isolate)
    isolate.hooks = Product(text_delta("again"))
    lines = await (await isolate.post()).lines()

    assert (200, False, status) == (reply.status, reply.body["cancelRequested"], reply.body["status"])
    assert "session.run.completed" == lines[-1]["type"]


async def test_a_cancel_of_a_lost_turn_ends_it_with_what_was_stored(database: SqliteDatabase) -> None:
    """Nobody has to come back, and the model is not called for it."""
    owner, other = Isolate(database, Product(*WORDS)), Isolate(database, Product(*WORDS))
    await owner.post()
    await asyncio.sleep(2.4)
    await owner.kill()
    await asyncio.sleep(60)
    await cancel(other)
    await asyncio.sleep(1)
    log = await (await other.follow()).lines()

    assert [] == other.hooks.calls  # type: ignore[attr-defined]  # the scripted product
    assert ["session.run.started", "session.run.restarted", "session.run.cancelled"] == kinds(log)
    assert "w0 w1 w2 w3 w4 " == (await (await other.post()).lines())[1]["data"]["finalText"]


async def test_a_cancel_outlives_the_worker_that_was_to_see_it(database: SqliteDatabase) -> None:
    """Whoever takes the turn over ends it."""
    owner, other = Isolate(database, Product(*WORDS)), Isolate(database, Product(*WORDS))
    await owner.post()
    await asyncio.sleep(1.05)
    await cancel(other)
    await owner.kill()
    await asyncio.sleep(70)
    lines = await (await other.follow()).lines()

    assert "session.run.cancelled" == lines[-1]["type"]
    assert [] == other.hooks.calls  # type: ignore[attr-defined]  # the scripted product


async def test_a_cancelled_tool_call_of_a_failed_redactor_keeps_no_text(database: SqliteDatabase) -> None:
    """What no redactor could look at is not stored, and the turn is over all the same."""

    class Broken(Product):
        async def transform_final_text(self, _text: str) -> str:
            raise ValueError("w0")

    isolate = Isolate(database, Broken(*WORDS))
    posted = await isolate.post()
    await asyncio.sleep(1.2)
    await cancel(isolate)
    lines = await posted.lines()

    assert "session.run.cancelled" == lines[-1]["type"]
    assert [("",)] == await rows(database, "SELECT content FROM chat_messages WHERE role = 'assistant'")
    assert "turn.partial_text_lost" in [event for event, _ in isolate.logged]


async def test_a_cancel_reaches_a_turn_whose_reader_takes_nothing(database: SqliteDatabase) -> None:
    """The wait for the reader is inside the turn."""

    class Stuck(Reader):
        async def drain(self, _room: int | None = None) -> None:
            await asyncio.sleep(1_000)

    isolate = Isolate(database, Product(*WORDS))
    await isolate.ask("POST", body={"message": "hi"}, reader=Stuck())
    await asyncio.sleep(1)
    await cancel(isolate)
    await asyncio.sleep(1)

    assert [("completed",)] == await rows(database, "SELECT status FROM durable_runs")


# Disconnects


async def test_continue_finishes_what_nobody_reads(database: SqliteDatabase) -> None:
    """The answer is there when the reader is back."""
    isolate = Isolate(database, Product(*WORDS))
    posted = await isolate.post()
    await asyncio.sleep(1)
    posted.reader.leave()
    await asyncio.sleep(5)

    assert WHOLE == (await (await isolate.post()).lines())[1]["data"]["finalText"]


async def test_cancel_stops_what_nobody_reads_at_once(database: SqliteDatabase) -> None:
    """The model is closed and the partial text kept."""
    product = Product(*WORDS)
    isolate = Isolate(database, product, settings={"ON_DISCONNECT": "cancel"})
    posted = await isolate.post()
    await asyncio.sleep(1.2)
    posted.reader.leave()
    for _ in range(6):  # turns of the event loop: no timer has to run out
        await asyncio.sleep(0)

    assert 1 == product.closed
    assert "disconnected" == (await (await isolate.post()).lines())[-1]["data"]["reason"]


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_grace_waits_for_somebody_to_come_back(database: SqliteDatabase, elsewhere: bool) -> None:
    """Who comes back in time keeps the turn alive, from whichever isolate; who does not, finds it stopped."""
    settings = {"ON_DISCONNECT": "grace", "GRACE_MS": "10000"}
    script = [step for n in range(60) for step in (text_delta(f"{n} "), 1.0)]
    owner = Isolate(database, Product(*script), settings=settings)
    other = Isolate(database, Product(), settings=settings) if elsewhere else owner
    posted = await owner.post()
    await asyncio.sleep(1)
    posted.reader.leave()
    await asyncio.sleep(8)
    follower = await other.follow(posted.reader.last)
    await asyncio.sleep(20)
    alive = not follower.reader.ended
    follower.reader.leave()
    await asyncio.sleep(20)
    lines = await (await other.follow()).lines()

    assert alive
    assert ("session.run.cancelled", "disconnected") == (lines[-1]["type"], lines[-1]["data"]["reason"])
    assert 33 <= len(lines) <= 45


# The database


async def test_a_stalled_database_delays_no_line(database: SqliteDatabase) -> None:
    """The stream goes on while nothing can be stored; the log is whole afterwards."""
    isolate = Isolate(database, Product(*WORDS))

    class Stalling:
        stalled = False

        async def batch(self, statements: Any) -> Any:
            if self.stalled:
                await asyncio.sleep(25)
            return await database.batch(statements)

    stalling = Stalling()
    isolate.wire._database = stalling
    posted = await isolate.post()
    await asyncio.sleep(1)
    stalling.stalled = True
    await asyncio.sleep(3)
    shown = posted.reader.text
    stalling.stalled = False
    said = await posted.lines()

    assert '"w7 "' in shown
    assert said == await (await isolate.follow()).lines()


async def test_a_database_that_is_down_for_long_holds_the_model_back(database: SqliteDatabase) -> None:
    """No line is said that a later attempt could not make up for."""
    script = [text_delta("x")] * 20_000
    product = Product(*[[*script[:100]] for _ in range(200)])
    isolate = Isolate(database, product)

    class Down:
        down = False

        async def batch(self, statements: Any) -> Any:
            if self.down:
                await asyncio.sleep(30)
            return await database.batch(statements)

    down = Down()
    isolate.wire._database = down
    posted = await isolate.post()
    down.down = True
    await asyncio.sleep(20)
    said = len(posted.reader.lines)
    down.down = False
    lines = await posted.lines()

    assert said <= MAX_AHEAD
    assert 20_002 == len(lines)
    assert lines == await (await isolate.follow()).lines()


@pytest.mark.slow
async def test_a_long_log_is_read_in_bounded_pages(database: SqliteDatabase) -> None:
    """Twenty megabytes go by a page at a time."""
    chunk = [ChatStreamEvent("x", {"t": "y" * 360})] * 500
    isolate = Isolate(database, Product(*[step for _ in range(100) for step in (chunk, 0.1)], text_delta("end")))
    said = await (await isolate.post()).lines()
    sizes: list[int] = []

    class Measuring(Reader):
        def write(self, text: str) -> None:
            sizes.append(len(text))
            super().write(text)

    reader = Measuring()
    lines = await (await isolate.ask("GET", f"{TURN}/stream", reader=reader)).lines()

    assert said == lines
    assert sum(sizes) > 20_000_000
    assert max(sizes) < 1_500_000


# Server-sent events


async def test_a_stream_may_be_events(database: SqliteDatabase) -> None:
    """Each line is an event whose id is its seq; lines that are in no log have none; pings are events of their own type."""
    isolate = Isolate(database, Product(text_delta("a"), 20.0, text_delta("b")))
    reader = Reader()
    posted = await isolate.ask("POST", body={"message": "hi"}, reader=reader, accept="text/event-stream")
    assert posted.task is not None
    await posted.task
    replay = await isolate.ask("POST", body={"message": "hi"}, reader=Reader(), accept="text/event-stream")
    assert replay.task is not None
    await replay.task
    events = reader.text.split("\n\n")

    assert "text/event-stream" == posted.response.headers["Content-Type"]
    assert ["id: 0", "event: ping", "id: 1", "event: ping", "id: 2", "id: 3", ""] == [
        event.split("\n")[0] for event in events
    ]
    assert {"type": "message.part.updated", "data": {"delta": "a", "part": {"id": "text", "type": "text"}}, "seq": 1,
            "attempt": 1} == json.loads(events[2].split("\ndata: ")[1])  # fmt: skip
    assert "id:" not in replay.reader.text


async def test_an_event_source_whose_address_has_a_cursor_comes_back_behind_what_it_has_seen(
    database: SqliteDatabase,
) -> None:
    """With both; its own is the newer one."""
    isolate = Isolate(database, Product(*WORDS))
    said = await (await isolate.post()).lines()
    lines = await (await isolate.ask("GET", f"{TURN}/stream?after=1", reader=Reader(), last_event_id="4")).lines()

    assert said[5:] == lines


async def test_every_stream_says_how_long_a_silence_may_be(database: SqliteDatabase) -> None:
    """In a header, and in a ping right behind its first line."""
    isolate = Isolate(database, Product(text_delta("a"), 100.0, text_delta("b")))
    posted = await isolate.post()
    await asyncio.sleep(1)
    followed = await Isolate(database, Product()).follow()
    await posted.lines()
    await followed.lines()

    for reply in (posted, followed):
        assert "15000" == reply.response.headers["X-Ping-Ms"]
        assert {"type": "ping", "data": {"everyMs": 15_000}} == json.loads(reply.reader.text.split("\n")[1])


async def test_an_event_source_that_has_seen_all_is_told_not_to_come_back(database: SqliteDatabase) -> None:
    """204 ends its reconnecting; NDJSON clients are told the end again, without a number."""
    isolate = Isolate(database, Product(text_delta("a")))
    await (await isolate.post()).lines()
    events = await isolate.follow(last_event_id="2", accept="text/event-stream")
    lines = await isolate.follow(2)

    assert (204, None) == (events.status, events.response.stream)
    assert 200 == lines.status
    [end] = await lines.lines()
    assert ("session.run.completed", 1, False) == (end["type"], end["attempt"], "seq" in end)


# Lists


async def test_a_thread_is_read_back_with_what_is_still_open(database: SqliteDatabase) -> None:
    """A window that was reloaded shows the messages and finds the turn that runs."""

    class Numbered(Product):
        async def persist_assistant_message(self, turn: FinishedTurn) -> None:
            pass

    isolate = Isolate(database, Numbered(text_delta("yes")))
    for number in range(5):
        path = TURN.removesuffix("0") + str(number)
        await (await isolate.ask("POST", path, {"message": f"q{number}"})).lines()
    isolate.hooks = Product(1_000.0)
    await isolate.ask("POST", TURN.removesuffix("0") + "5", {"message": "q5"})
    page = (await isolate.ask("GET", "/v1/sessions/thread-1/messages?limit=2")).body
    before = (await isolate.ask("GET", f"/v1/sessions/thread-1/messages?limit=3&before={page['next']}")).body

    assert ["q3", "yes", "q4", "yes"] == [each["content"] for each in page["messages"]]
    assert [("q5", "running", 5)] == [(t["message"], t["status"], t["turnIndex"]) for t in page["open"]]
    assert ["q0", "yes", "q1", "yes", "q2", "yes"] == [each["content"] for each in before["messages"]]
    assert ([], None) == (before["open"], before["next"])
    assert [] == (await isolate.ask("GET", "/v1/sessions/thread/messages")).body["open"]


async def test_a_page_of_a_thread_has_so_many_characters_and_no_more(database: SqliteDatabase) -> None:
    """A user may have hundreds of long messages; all are there in the end, each turn whole, and none twice."""
    isolate, wanted = Isolate(database, Product(text_delta("yes"))), []
    for number in range(14):
        path = TURN.removesuffix("0") + str(number)
        wanted += [f"{number}" + "x" * 190_000, "yes"]
        await (await isolate.ask("POST", path, {"message": wanted[-2]})).lines()
    pages: list[list[str]] = []
    before: str | None = ""
    while before is not None:
        page = await (await isolate.ask("GET", f"/v1/sessions/thread-1/messages?limit=200{before}")).whole()
        pages.insert(0, [each["content"] for each in page["messages"]])
        before = None if page["next"] is None else f"&before={page['next']}"

    assert [4, 12, 12] == list(map(len, pages))
    assert wanted == [each for page in pages for each in page]


async def test_pages_of_threads_are_read_a_few_at_a_time(database: SqliteDatabase) -> None:
    """One user who asks for hundreds at once fills no isolate."""
    isolate = Isolate(database, Product(text_delta("yes")))
    await (await isolate.post()).lines()
    wrapped, reading, most = wrap(isolate), 0, 0

    async def slow(statements: Sequence[Statement]) -> None:
        nonlocal reading, most
        if any("FROM chat_messages AS m" in each.sql for each in statements):
            reading += 1
            most = max(most, reading)
            await asyncio.sleep(0.1)
            reading -= 1

    wrapped.before = slow
    pages = await asyncio.gather(*(isolate.ask("GET", "/v1/sessions/thread-1/messages") for _ in range(50)))

    assert 3 == most
    assert {200} == {page.status for page in pages}


async def test_turns_are_listed_by_where_they_stand(database: SqliteDatabase) -> None:
    """Each status has its own; an operator sees every tenant's and why a hook failed."""
    failing = Recorded(text_delta("x"))
    failing.persist_fails = 1_000
    products = {
        "completed": Product(text_delta("x")), "failed": Product(RuntimeError("x")), "running": Product(1_000.0),
        "cancelled": Product(1_000.0), "undelivered": failing,
    }  # fmt: skip
    for name, product in products.items():
        isolate = Isolate(database, product)
        await isolate.ask("POST", f"/v1/sessions/{name}/turns/0", {"message": "hi"})
        if name == "cancelled":
            await isolate.ask("POST", f"/v1/sessions/{name}/turns/0/cancel")
        await asyncio.sleep(1)
    dying = Isolate(database, Product(1_000.0), settings={"LEASE_MS": "1000"})
    await dying.ask("POST", "/v1/sessions/orphaned/turns/0", {"message": "hi"})
    await dying.kill()
    await asyncio.sleep(2)
    found = {}
    for status in (*products, "orphaned"):
        page = (await isolate.ask("GET", f"/v1/runs?status={status}")).body
        found[status] = sorted(run["sessionId"] for run in page["runs"])
    [theirs] = (await isolate.ask("GET", "/v1/runs?status=undelivered", x_scopes="operate", x_tenant="ops")).body[
        "runs"
    ]
    [own] = (await isolate.ask("GET", "/v1/runs?status=undelivered")).body["runs"]

    assert {
        "completed": ["completed", "undelivered"], "failed": ["failed"], "running": ["running"],
        "cancelled": ["cancelled"], "undelivered": ["undelivered"], "orphaned": ["orphaned"],
    } == found  # fmt: skip
    assert "RuntimeError" in theirs["undelivered"][0]["lastError"]
    assert "lastError" not in own["undelivered"][0]
    assert [] == (await isolate.ask("GET", "/v1/runs", x_tenant="rival")).body["runs"]
    assert 403 == (await isolate.ask("GET", "/v1/runs?tenant=rival")).status
    assert 7 >= len((await isolate.ask("GET", "/v1/runs?limit=3")).body["runs"]) == 3


@pytest.mark.parametrize(
    "query", ["status=gone", "limit=0", "limit=201", "after=x", "tenant=", "sort=up", "status=a&status=b"]
)
async def test_a_bad_list_query_is_a_422(database: SqliteDatabase, query: str) -> None:
    """It names the member."""
    reply = await Isolate(database, Product()).ask("GET", f"/v1/runs?{query}")

    assert 422 == reply.status
    assert reply.body["field"] in {query.partition("=")[0], "query"}
