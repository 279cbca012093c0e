"""A cancel, an approval or a reader that comes at the worst moment."""

import asyncio
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from chatturn.backends.iterable import create_iterable_backend
from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import BackendTransportError, StoreError
from chatturn.events import ChatStreamEvent, text_delta, tool_call
from chatturn_testing.law import text_of
from tests.support.isolates import Isolate
from tests.support.turns import Product, open_sqlite
from tests.support.whole_turns import WORDS, cancel, kinds, rows, wrap
from tests.turns.test_agent import Agent, Model


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    with open_sqlite() as database:
        yield database


def agent_isolate(database: SqliteDatabase, agent: Agent, **settings: str) -> Isolate:
    model = Model(("send", {"text": "x"}), "done")
    return Isolate(database, agent, model.backend(), settings=settings)


def session_watch(storage: Any, look_after: Any) -> Any:
    """Import `chatturn.workerd.owner` on CPython, over a storage that is none of JavaScript's."""
    pyodide, ffi = types.ModuleType("pyodide"), types.ModuleType("pyodide.ffi")
    ffi.JsException, ffi.JsProxy, ffi.to_js = Exception, object, bytes  # type: ignore[attr-defined]
    js = types.ModuleType("js")
    js.Request = types.SimpleNamespace(new=None)  # type: ignore[attr-defined]
    ours = types.ModuleType("chatturn.workerd.ffi")

    async def settled(promise: Any) -> Any:
        return await promise

    ours.settled, ours.started = settled, lambda function: function()  # type: ignore[attr-defined]
    ours.js_object = dict  # type: ignore[attr-defined]
    path = Path(__file__).parents[2] / "src" / "chatturn" / "workerd" / "owner.py"
    fakes = {"js": js, "pyodide": pyodide, "pyodide.ffi": ffi, "chatturn.workerd.ffi": ours}
    before = {name: sys.modules.get(name) for name in fakes}
    sys.modules.update(fakes)
    try:
        spec = importlib.util.spec_from_file_location("owner_under_test", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for name, known in before.items():
            if known is None:
                del sys.modules[name]
            else:
                sys.modules[name] = known
    state = types.SimpleNamespace(storage=storage, id=types.SimpleNamespace(name='["acme", "thread-1"]'))
    return module.SessionWatch(state, 60_000, look_after)


class _Method:
    """A method of a storage, which takes a moment."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def bind(self, _self: Any, *arguments: Any) -> Any:
        async def call() -> Any:
            await asyncio.sleep(0.001)
            return self.function(*arguments)

        return call


class Storage:
    def __init__(self) -> None:
        self.alarm: int | None = None
        self.getAlarm = _Method(lambda: self.alarm)
        self.setAlarm = _Method(lambda at: setattr(self, "alarm", at))
        self.deleteAlarm = _Method(lambda: setattr(self, "alarm", None))
        self.put = _Method(lambda *_: None)


async def test_a_cancel_is_not_lost_where_the_attempt_fails(database: SqliteDatabase) -> None:
    """202 was answered: the turn ends for good, whatever the model does."""
    owner = Isolate(database, Product(text_delta("a"), 0.5, BackendTransportError("x", backend="b")))
    other = Isolate(database, Product())
    posted = await owner.post()
    await asyncio.sleep(0.3)
    reply = await cancel(other)  # the owner would hear of it at 0.5 s
    lines = await posted.lines()
    owner.hooks = Product(*WORDS)
    retry = await (await owner.post(follow=True)).lines()  # as the manual's client does by itself

    assert 202 == reply.status
    assert "session.run.cancelled" == (lines + retry)[-1]["type"], kinds(lines + retry)


async def test_a_cancel_while_the_turn_is_being_suspended(database: SqliteDatabase) -> None:
    """It ends the turn, whichever of the two is written first."""
    agent = Agent()
    isolate = agent_isolate(database, agent)
    suspending = asyncio.Event()

    async def before(statements: Sequence[Statement]) -> None:
        if any("durable_waits" in each.sql for each in statements):
            suspending.set()
            await asyncio.sleep(0.2)  # D1 takes its time

    wrap(isolate, before)
    posted = await isolate.post()
    await suspending.wait()
    reply = await cancel(isolate)
    await posted.lines()
    await asyncio.sleep(120)
    for _ in range(3):
        await isolate.sweep()
        await asyncio.sleep(60)

    assert 202 == reply.status
    assert [("completed",)] == await rows(database, "SELECT status FROM durable_runs")


async def test_a_cancel_of_a_suspended_turn_outlives_its_worker(database: SqliteDatabase) -> None:
    """The cron ends what the request had begun to end."""
    isolate, other, cron = (agent_isolate(database, Agent()) for _ in range(3))
    await (await isolate.post()).lines()
    reply = await cancel(other)
    await other.kill()  # before what it does in the background
    await asyncio.sleep(120)
    await cron.sweep()
    await asyncio.sleep(5)

    assert 202 == reply.status
    assert [("completed",)] == await rows(database, "SELECT status FROM durable_runs")


async def test_an_approval_while_the_turn_is_being_suspended(database: SqliteDatabase) -> None:
    """It wakes the turn, whichever of the two is written first."""
    agent = Agent()
    isolate = agent_isolate(database, agent)
    suspending = asyncio.Event()

    async def before(statements: Sequence[Statement]) -> None:
        if any("durable_waits" in each.sql for each in statements):
            suspending.set()
            await asyncio.sleep(0.2)

    wrap(isolate, before)
    posted = await isolate.post()
    await suspending.wait()
    run_id = "chat%3Aacme%3Athread-1%3A0"
    await isolate.ask("POST", f"/v1/runs/{run_id}/events/approve%3A1.1.0", {"payload": {"approved": True}})
    await posted.lines()
    await asyncio.sleep(20)  # less than a minute: no cron

    assert [("completed",)] == await rows(database, "SELECT status FROM durable_runs")


async def test_supersede_with_the_same_message_is_no_way_around_a_cancel(database: SqliteDatabase) -> None:
    """Only another message or model supersedes."""
    owner, other = Isolate(database, Product(*WORDS)), Isolate(database, Product(*WORDS))
    await owner.post()
    await asyncio.sleep(1.05)
    await cancel(other)
    await owner.kill()
    await asyncio.sleep(61)
    lines = await (await other.post(on_mismatch="supersede")).lines()

    assert "session.run.cancelled" == lines[-1]["type"]
    assert [] == other.hooks.calls  # type: ignore[attr-defined]


async def test_a_refused_row_does_not_make_the_turn_deaf(database: SqliteDatabase) -> None:
    """After a write of the log that the database refused, a cancel from elsewhere is still heard."""
    refused = 0

    async def before(statements: Sequence[Statement]) -> None:
        nonlocal refused
        if not refused and "INTO chat_segments" in statements[0].sql:
            refused += 1
            raise StoreError("D1_ERROR: SQLITE_ERROR: too many requests in this transaction")

    owner, other = Isolate(database, Product(text_delta("a"), 100.0)), Isolate(database, Product())
    wrap(owner, before)
    posted = await owner.post()
    await asyncio.sleep(2)
    await cancel(other)
    await asyncio.sleep(30)

    assert posted.reader.ended


async def test_a_follower_elsewhere_counts_as_a_reader(database: SqliteDatabase) -> None:
    """Whoever follows the turn, from whichever isolate, keeps it going."""
    settings = {"ON_DISCONNECT": "cancel"}
    owner, other = (
        Isolate(database, Product(*WORDS), settings=settings),
        Isolate(database, Product(), settings=settings),
    )
    posted = await owner.post()
    follower = await other.follow()
    await asyncio.sleep(1.2)
    posted.reader.leave()
    lines = await follower.lines()

    assert "session.run.completed" == lines[-1]["type"]


@pytest.mark.parametrize(("grace_ms", "plan", "seconds"), [("3000", "paid", 40), ("30000", "free", 600)])
async def test_a_turn_that_is_read_elsewhere_outlives_its_grace(
    database: SqliteDatabase, grace_ms: str, plan: str, seconds: int
) -> None:
    """On either plan, however rarely its worker looks."""
    settings = {"ON_DISCONNECT": "grace", "GRACE_MS": grace_ms, "WORKERS_PLAN": plan}
    script = [step for n in range(seconds) for step in (text_delta(f"{n} "), 1.0)]
    owner, other = (
        Isolate(database, Product(*script), settings=settings),
        Isolate(database, Product(), settings=settings),
    )
    posted = await owner.post()
    follower = await other.follow()
    await asyncio.sleep(1)
    posted.reader.leave()
    lines = await follower.lines()

    assert "session.run.completed" == lines[-1]["type"], f"cancelled after {len(lines)} s, while it was read"


async def test_a_cancelled_agent_keeps_its_answer_as_its_client_sees_it(database: SqliteDatabase) -> None:
    """The answer is what was said after the last tool's result."""

    async def stream(request: Any, _context: Any) -> Any:
        if not any("tool_calls" in message for message in request.messages):
            yield text_delta("let me see. ")
            yield [tool_call(tool_call_id="c", tool_name="note", args={"text": "x"})]
        else:
            yield text_delta("The answer ")
            await asyncio.sleep(100)

    isolate = Isolate(database, Agent(), create_iterable_backend("scripted", stream))
    posted = await isolate.post()
    await asyncio.sleep(2)
    await cancel(isolate)
    lines = await posted.lines()
    [(answer,)] = await rows(database, "SELECT content FROM chat_messages WHERE role = 'assistant'")

    assert text_of(lines) == answer


class Redacting(Agent):
    """Whose log holds no text that it has not redacted."""

    async def transform_final_text(self, text: str) -> str:
        return text.replace("see", "[redacted]")


@pytest.mark.parametrize(("agent", "kept"), [(Agent, "let me see. "), (Redacting, "let me [redacted]. ")])
async def test_a_cancel_of_a_suspended_turn_keeps_what_was_said(
    database: SqliteDatabase, agent: type[Agent], kept: str
) -> None:
    """Whoever cancels it, in whichever isolate; and so does the replay."""

    async def stream(_request: Any, _context: Any) -> Any:
        yield text_delta("let me see. ")
        yield [tool_call(tool_call_id="c", tool_name="send", args={"text": "x"})]

    isolate, other = (Isolate(database, agent(), create_iterable_backend("scripted", stream)) for _ in range(2))
    suspended = await (await isolate.post()).lines()
    await isolate.kill()
    await cancel(other)
    await asyncio.sleep(5)
    replay = await (await other.post()).lines()

    assert ["session.run.suspended", "session.run.cancelled"] == [suspended[-1]["type"], replay[-1]["type"]]
    assert [("let me see. ",)] == [(text_of(suspended),)]
    assert kept == text_of(replay)
    assert [(kept,)] == await rows(database, "SELECT content FROM chat_messages WHERE role = 'assistant'")


async def test_a_silent_turn_does_not_gather_watchers(database: SqliteDatabase) -> None:
    """However many came and went, those that are there are watched."""
    isolate = Isolate(database, Product(text_delta("a"), 600.0, text_delta("b")))
    await isolate.post()
    await isolate.follow()
    await asyncio.sleep(500)
    log = isolate._live.get("chat:acme:thread-1:0")

    assert log is not None
    assert len(log._watchers) <= 2


async def test_who_has_left_is_not_watching(database: SqliteDatabase) -> None:
    """A follower that is gone leaves nothing behind."""
    isolate = Isolate(database, Product(text_delta("a"), 600.0, text_delta("b")))
    await isolate.post()
    for _ in range(20):
        follower = await isolate.follow()
        await asyncio.sleep(0.5)
        follower.reader.leave()
    await asyncio.sleep(30)
    log = isolate._live.get("chat:acme:thread-1:0")

    assert log is not None
    assert 0 == len(log._watchers)


@pytest.mark.parametrize(("plan", "most_s"), [("paid", 5.0), ("free", 41.0)])
async def test_a_cancel_of_a_long_turn_is_heard_with_the_next_renewal(
    database: SqliteDatabase, plan: str, most_s: float
) -> None:
    """However rarely the log is stored by then."""
    owner = Isolate(database, Product(text_delta("a"), 850.0), settings={"WORKERS_PLAN": plan})
    other = Isolate(database, Product())
    posted = await owner.post()
    await asyncio.sleep(500)
    asked_at = asyncio.get_running_loop().time()
    await cancel(other)
    await posted.lines()

    assert asyncio.get_running_loop().time() - asked_at <= most_s


async def test_a_cancel_of_a_whole_answer_comes_too_late(database: SqliteDatabase) -> None:
    """Once the producer has ended the answer is whole, and is kept as such."""
    redacted = 0

    class Slow(Product):
        async def transform_final_text(self, text: str) -> str:
            nonlocal redacted
            redacted += 1
            await asyncio.sleep(3)
            return text

    isolate = Isolate(database, Slow(text_delta("whole")))
    posted = await isolate.post()
    await asyncio.sleep(1)
    await cancel(isolate)
    lines = await posted.lines()

    assert ("session.run.completed", 1) == (lines[-1]["type"], redacted)


async def test_an_alarm_that_finds_nothing_does_not_take_away_the_next_turns(database: SqliteDatabase) -> None:
    """A request that comes while the alarm looks finds one set when the alarm is done."""
    isolate = Isolate(database, Product(*WORDS))
    storage = Storage()

    async def look_after(tenant_id: str, session_id: str) -> bool:
        found = await isolate.service.look_after(tenant_id, session_id)
        await asyncio.sleep(0.02)  # D1's reply is on its way
        return found

    watch = session_watch(storage, look_after)
    looking = asyncio.ensure_future(watch.look())
    await asyncio.sleep(0.01)
    request = asyncio.ensure_future(watch.keep())  # as `Session.fetch` does, before the turn is claimed
    await isolate.post()
    await asyncio.gather(looking, request)

    assert [("running",)] == await rows(database, "SELECT status FROM durable_runs")
    assert storage.alarm is not None, "a turn runs, and nobody looks after it"


async def test_a_result_has_its_text_or_is_not_there(database: SqliteDatabase) -> None:
    """A redacted log has one with an empty text, never one without."""

    class Redacting(Product):
        async def transform_final_text(self, text: str) -> str:
            return text.upper()

    isolate = Isolate(database, Redacting(ChatStreamEvent("result", {"finalText": "said"})))
    await (await isolate.post()).lines()
    log = await (await isolate.follow()).lines()

    assert all("finalText" in line.get("data", {}) for line in log if line["type"] == "result")
