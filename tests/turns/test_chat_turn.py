"""One chat turn told in lines (C1 to C14 in docs/reference/agent-runtime.md), over SQLite, in virtual time."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from chatturn.agent_runtime.turns.chat_engine import durable_chat_turn_engine
from chatturn.chat.hooks.hooks import FinishedTurn, TurnContext
from chatturn.chat.hooks.outbox import Outbox
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.chat.turn.sinks import BufferSink
from chatturn.chat.turn.tracing import attributes_of_turn
from chatturn.chat.turn.turn import ChatTurn, open_turn, run_turn
from chatturn.database.api import Row, Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.records import Lease
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import (
    BackendRejected,
    DurableRunInputMismatchError,
    DurableRunLeaseHeldError,
    StoreUnavailable,
    error_classes,
)
from chatturn.events import ChatStreamEvent, EventBatch, reasoning_delta, text_delta, tool_call, usage_event
from chatturn.telemetry.otlp.turns import TurnTrace
from tests.support.faults import FaultyDatabase
from tests.support.telemetry import Collected, fixed_telemetry
from tests.support.turns import IDENTITY, Desk, Product, Recorded, events_of, open_sqlite, without_pings

SECRET = "sk-secret at db.internal:5432 SELECT * FROM users"


@pytest.fixture
def database() -> Iterator[FaultyDatabase]:
    """An empty database that can be made to fail."""
    with open_sqlite() as database:
        yield FaultyDatabase(database)


def kinds(lines: list[dict[str, Any]]) -> list[str]:
    """Return the types of lines."""
    return [line["type"] for line in lines]


async def everything(desk: Desk) -> str:
    """Return every row of every table as one text."""
    tables = [name for (name,) in await desk.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return "".join([str(await desk.rows(f"SELECT * FROM {table}")) for table in tables])  # noqa: S608 - ours


def traced_turn() -> TurnTrace:
    """Return the telemetry of a turn."""
    return fixed_telemetry(Collected()).request(None).turn(attributes_of_turn(IDENTITY, "legal-agent"))


class GoneSink(BufferSink):
    """A reader who goes away after so many lines."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after
        self._callback: Any = lambda: None

    def write(self, text: str) -> None:
        """Take the line, unless the reader is gone."""
        if self._left == 0 and not self.closed:
            self._closed = True
            self._callback()
        self._left -= 1
        super().write(text)

    def when_lost(self, callback: Any) -> None:
        """Remember whom to tell."""
        self._callback = callback


async def test_a_fresh_turn_is_started_told_and_completed(database: FaultyDatabase) -> None:
    """agent-runtime's envelope, every line numbered without a gap."""
    lines = await Desk(database, Product(text_delta("a"), ChatStreamEvent("tool.x", {"n": 1}), text_delta("b"))).run()

    assert [
        ("session.run.started", {"sessionId": "thread-1", "tenantId": "acme", "turnIndex": 0}),
        ("message.part.updated", {"delta": "a", "part": {"id": "text", "type": "text"}}),
        ("tool.x", {"n": 1}),
        ("message.part.updated", {"delta": "b", "part": {"id": "text", "type": "text"}}),
        (
            "session.run.completed",
            {"sessionId": "thread-1", "version": 1, "replayed": False, "finishReason": "stop"},
        ),
    ] == [(line["type"], line["data"]) for line in lines]
    assert [(n, 1) for n in range(5)] == [(line["seq"], line["attempt"]) for line in lines]


async def test_a_replay_is_started_result_and_completed(database: FaultyDatabase) -> None:
    """agent-runtime's replay; its lines are in no log, so they have no seq."""
    desk = Desk(database)
    await desk.run()
    lines = await desk.run()

    assert [
        {"type": "session.run.started", "data": {"sessionId": "thread-1", "tenantId": "acme", "turnIndex": 0}},
        {"type": "result", "data": {"finalText": "Hello, world."}},
        {
            "type": "session.run.completed",
            "data": {"sessionId": "thread-1", "version": 1, "replayed": True, "finishReason": "stop"},
        },
    ] == lines
    assert 1 == len(desk.hooks.calls)  # type: ignore[attr-defined]  # the scripted product


async def test_two_round_trips_fresh_and_one_for_a_replay(database: FaultyDatabase) -> None:
    """The chat engine adds none to the durable turn's."""
    desk = Desk(database)
    await desk.run()
    fresh, database.batches = database.batches, 0
    await desk.run()

    assert (2, 1) == (fresh, database.batches)


async def test_the_stored_log_is_what_was_said(database: FaultyDatabase) -> None:
    """T9: every event of the turn is in the log, terminal line included, not only the text."""
    sink = BufferSink()
    desk = Desk(database, Product(text_delta("a"), tool_call(tool_call_id="t", tool_name="n", args={"x": 1})))
    await desk.run(sink)
    rows = await desk.rows("SELECT first_seq, last_seq, attempt, lines FROM chat_segments")

    assert [(0, 3, 1, without_pings(sink.text()))] == rows


async def test_the_threads_messages_are_stored_with_the_finish(database: FaultyDatabase) -> None:
    """One user message and one assistant message per turn."""
    desk = Desk(database)
    await desk.run()
    await desk.run()

    assert [("assistant", "Hello, world."), ("user", "hi")] == await desk.rows(
        "SELECT role, content FROM chat_messages ORDER BY role"
    )


async def test_the_model_sees_the_session_so_far(database: FaultyDatabase) -> None:
    """Finished turns before this one, oldest first; of this tenant and session only."""
    desk = Desk(database)
    for index, message in enumerate(("one", "two")):
        await desk.run(identity=replace(IDENTITY, turn_index=index), message=message)
    await desk.run(identity=replace(IDENTITY, tenant_id="other", turn_index=1), message="theirs")
    await desk.run(identity=replace(IDENTITY, session_id="thread-2", turn_index=1), message="elsewhere")
    await desk.run(identity=replace(IDENTITY, turn_index=7), message="later")
    await desk.run(identity=replace(IDENTITY, turn_index=2), message="three")
    history = desk.hooks.calls[-1].history  # type: ignore[attr-defined]  # the scripted product

    assert [("user", "one"), ("assistant", "Hello, world."), ("user", "two"), ("assistant", "Hello, world.")] == [
        (message["role"], message["content"]) for message in history
    ]


@pytest.mark.parametrize("after", range(6))
async def test_c1_a_disconnect_does_not_end_the_turn(database: FaultyDatabase, after: int) -> None:
    """Whenever the reader goes, the answer is completed, stored, and replayed on the next request."""
    desk = Desk(database)
    await desk.run(GoneSink(after)) if after else await run_turn(desk.input(), GoneSink(0))
    lines = await desk.run()

    assert ["session.run.started", "result", "session.run.completed"] == kinds(lines)


async def test_c1_a_reader_that_stops_pulling_does_not_end_the_turn(database: FaultyDatabase) -> None:
    """The body of `run_turn` may be left; the turn goes on in the background."""
    desk = Desk(database, Product(text_delta("a"), 5.0, text_delta("b")))
    body = durable_chat_turn_engine.run_turn(desk.input()).body
    async for _ in body:
        break
    await body.aclose()  # type: ignore[attr-defined]  # it is a generator
    await asyncio.sleep(10)

    assert {"finalText": "ab"} == (await desk.run())[1]["data"]


async def test_on_disconnect_cancel_ends_the_turn_and_closes_the_model(database: FaultyDatabase) -> None:
    """The producer is closed at once, and what it had said is kept."""
    product = Product(text_delta("a"), 1_000.0, text_delta("b"))
    desk = Desk(database, product, on_disconnect="cancel")
    await desk.run(GoneSink(1))
    lines = await desk.run()

    assert 1 == product.closed
    assert 0.0 == asyncio.get_running_loop().time()
    assert ["session.run.started", "result", "session.run.cancelled"] == kinds(lines)
    assert ("a", "disconnected") == (lines[1]["data"]["finalText"], lines[2]["data"]["reason"])


async def test_an_abort_says_so_in_the_stream(database: FaultyDatabase) -> None:
    """An explicit abort ends with one terminal line whose code is ``aborted``."""
    turn = await open_turn(Desk(database, Product(text_delta("a"), 1_000.0)).input())
    assert isinstance(turn, ChatTurn)
    sink = BufferSink()
    running = asyncio.create_task(turn.run(sink))
    await asyncio.sleep(5)
    turn.abort()
    await running
    lines = events_of(sink.text())

    assert ["error", "session.run.failed"] == kinds(lines)[-2:]
    assert "aborted" == lines[-1]["data"]["code"]


async def test_c2_a_failing_persist_hook_loses_no_message(database: FaultyDatabase) -> None:
    """The turn is completed, the failure is on record, and the hook is called again with the same key."""
    product = Recorded()
    product.persist_fails = 1
    desk = Desk(database, product)
    lines = await desk.run()
    outbox = Outbox(database=database, hooks=product, log=lambda *_: None)
    before_it_is_due = await outbox.sweep()
    await asyncio.sleep(120)
    swept = [await outbox.sweep() for _ in range(3)]

    assert "session.run.completed" == kinds(lines)[-1]
    assert (0, [2, 0, 0]) == (before_it_is_due, swept)
    assert ["persist", "persist", "complete"] == product.order
    assert ["chat:acme:thread-1:0/1/persist_assistant_message"] == [t.idempotency_key for t in product.persisted]
    assert {("done",)} == set(await desk.rows("SELECT status FROM chat_outbox"))


async def test_c2_a_hook_that_never_succeeds_is_given_up_loudly(database: FaultyDatabase) -> None:
    """After ten calls it stays in the outbox as given up, with its error."""
    product = Recorded()
    product.persist_fails = 1_000
    desk = Desk(database, product)
    await desk.run()
    logged: list[tuple[str, Any]] = []
    outbox = Outbox(database=database, hooks=product, log=lambda *entry: logged.append(entry))
    for _ in range(12):
        await asyncio.sleep(40_000)
        await outbox.sweep()
    [(status, attempts, error)] = await desk.rows(
        "SELECT status, failures, last_error FROM chat_outbox WHERE hook = 'persist_assistant_message'"
    )

    assert ("given_up", 10) == (status, attempts)
    assert "RuntimeError" in error
    assert [] == product.completed
    assert ["hook.given_up"] == [event for event, _ in logged if event != "hook.failed"]
    assert {("given_up",)} == set(await desk.rows("SELECT status FROM chat_outbox"))


REVIVE = """
UPDATE chat_outbox
SET status = 'pending', failures = 0, next_call_at = strftime('%Y-%m-%dT%H:%M:%fZ', '2026-01-01')
WHERE hook = 'persist_assistant_message' AND status = 'given_up'
"""
"""As the manual says it, for all turns at once."""


async def test_c2_a_call_that_is_revived_revives_what_depends_on_it(database: FaultyDatabase) -> None:
    """Whoever repairs the first hook needs not know of the second."""
    product = Recorded()
    product.persist_fails = 11
    desk = Desk(database, product)
    await desk.run()
    outbox = Outbox(database=database, hooks=product, log=lambda *_: None)
    for _ in range(12):
        await asyncio.sleep(40_000)
        await outbox.sweep()
    given_up = await desk.rows("SELECT status, count(*) FROM chat_outbox GROUP BY status")
    await desk.rows(REVIVE)
    await outbox.sweep()  # fails once more
    await asyncio.sleep(60)
    await outbox.sweep()

    assert [("given_up", 2)] == given_up
    assert [("done", 2)] == await desk.rows("SELECT status, count(*) FROM chat_outbox GROUP BY status")
    assert 1 == len(product.completed)


async def test_c2_a_receiver_that_hangs_holds_up_neither_other_calls_nor_lost_turns(database: FaultyDatabase) -> None:
    """Turns first, and calls side by side."""
    desk = Desk(database, Recorded())
    moments: dict[str, float] = {}

    class Hanging(Recorded):
        async def persist_assistant_message(self, turn: FinishedTurn) -> None:
            if turn.identity.turn_index == 0:
                await asyncio.sleep(1_000)
            moments[str(turn.identity.turn_index)] = asyncio.get_running_loop().time()

    for index in range(3):
        desk.hooks.persist_fails = 1  # type: ignore[attr-defined]
        await desk.run(identity=replace(IDENTITY, turn_index=index))
    await asyncio.sleep(100)
    began = asyncio.get_running_loop().time()
    await Outbox(database=database, hooks=Hanging(), log=lambda *_: None).sweep()

    assert {"1", "2"} == set(moments)
    assert max(moments.values()) - began < 1


async def test_c2_a_sweep_without_a_database_says_so(database: FaultyDatabase) -> None:
    """By the error that everybody handles, and not by a group of them."""
    desk = Desk(database, Recorded())
    await desk.run()
    database.down = True
    with pytest.raises(StoreUnavailable):
        await Outbox(database=database, hooks=desk.hooks, log=lambda *_: None).sweep()


async def test_c2_hooks_run_in_order_before_the_completed_line(database: FaultyDatabase) -> None:
    """agent-runtime's order: persist, post-process, completed; a replay calls neither."""
    order: list[str] = []

    class Ordered(Product):
        async def persist_assistant_message(self, turn: FinishedTurn) -> None:
            order.append(f"persist {turn.final_text}")

        async def on_turn_complete(self, _turn: FinishedTurn) -> None:
            order.append("complete")

        def on_event(self, _identity: ChatTurnIdentity, event: ChatStreamEvent) -> None:
            order.append(event.type)

    desk = Desk(database, Ordered(text_delta("x")))
    await desk.run()
    fresh, order[:] = list(order), []
    await desk.run()

    assert [
        "session.run.started", "message.part.updated", "persist x", "complete", "session.run.completed",
    ] == fresh  # fmt: skip
    assert ["session.run.started", "result", "session.run.completed"] == order


async def test_c3_a_failing_transform_fails_the_turn_and_leaks_nothing(database: FaultyDatabase) -> None:
    """The raw text is neither stored nor persisted, and a retry asks the model again."""

    class Broken(Recorded):
        async def transform_final_text(self, text: str) -> str:
            raise ValueError(SECRET + text)

    product = Broken(text_delta("raw"))
    desk = Desk(database, product)
    lines = await desk.run()

    assert "hook_failed" == lines[-1]["data"]["code"]
    assert [] == product.persisted
    assert "raw" not in await everything(desk)
    assert SECRET not in await everything(desk)
    assert "session.run.failed" == kinds(await desk.run())[-1]
    assert 2 == len(product.calls)


@pytest.mark.parametrize("returned", [None, b"text", 5])
async def test_c3_a_transform_that_returns_no_text_is_a_failed_hook(database: FaultyDatabase, returned: Any) -> None:
    """Not an empty answer, which clients are told to ask for again, at a model call each time."""

    class Forgetful(Recorded):
        async def transform_final_text(self, text: str) -> str:
            del text
            return returned  # type: ignore[no-any-return]  # a product's code may not be checked

    lines = await Desk(database, Forgetful()).run()

    assert ("hook_failed", False) == (lines[-1]["data"]["code"], lines[-1]["data"]["retryable"])


async def test_a_hook_that_cancels_itself_is_called_again_and_holds_up_no_other(database: FaultyDatabase) -> None:
    """As code does that awaits a task which it has cancelled."""

    class Cancelled(Recorded):
        async def persist_assistant_message(self, turn: FinishedTurn) -> None:
            self.persisted.append(turn)
            task = asyncio.create_task(asyncio.sleep(1))
            task.cancel()
            await task

    hooks = Cancelled()
    desk = Desk(database, hooks)
    lines = await desk.run()
    outbox = Outbox(database=database, hooks=hooks, log=desk.input().deployment.log)
    await asyncio.sleep(60)

    assert "session.run.completed" == lines[-1]["type"]
    assert 0 == await outbox.sweep()
    assert [(2,)] == await desk.rows("SELECT failures FROM chat_outbox WHERE hook = 'persist_assistant_message'")
    assert 1 == len({turn.idempotency_key for turn in hooks.persisted})


async def test_a_hooks_own_timeout_is_not_taken_for_ours(database: FaultyDatabase) -> None:
    """The operator is told what happened: it was not late."""

    class Impatient(Recorded):
        async def persist_assistant_message(self, turn: FinishedTurn) -> None:
            raise TimeoutError(turn.final_text)

    desk = Desk(database, Impatient())
    await desk.run()

    assert [("persist_assistant_message: raised TimeoutError",)] == await desk.rows(
        "SELECT last_error FROM chat_outbox WHERE failures > 0"
    )


async def test_a_producer_that_hangs_in_its_clean_up_ends_with_its_turn(database: FaultyDatabase) -> None:
    """Or a cancel would keep it, its lease and its reader for ever."""

    class Hanging(Product):
        async def _play(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
            del context
            try:
                yield text_delta("a")
                await asyncio.sleep(1_000)
            finally:
                await asyncio.sleep(1_000_000)

    desk, sink = Desk(database, Hanging()), BufferSink()
    turn = await open_turn(desk.input())
    assert isinstance(turn, ChatTurn)
    running = asyncio.create_task(turn.run(sink))
    await asyncio.sleep(1)
    turn.cancel()
    await asyncio.sleep(11)

    assert running.done()
    assert ("session.run.cancelled", [("completed", None)]) == (
        events_of(sink.text())[-1]["type"],
        await desk.rows("SELECT status, lease_holder_id FROM durable_runs"),
    )


async def test_c4_tenants_never_meet(database: FaultyDatabase) -> None:
    """The same session, index and message of another tenant is another run with its own answer."""
    desk = Desk(database, Product(text_delta("acme's answer")))
    await desk.run()
    desk.hooks = Product(text_delta("other's answer"))
    lines = await desk.run(identity=replace(IDENTITY, tenant_id="other"))

    assert ["other's answer"] == [line["data"]["delta"] for line in lines if line["type"] == "message.part.updated"]


@pytest.mark.parametrize(
    "pair", [(("a", "b:c"), ("a:b", "c")), (("a%3Ab", "c"), ("a:b", "c")), (("a", "/c"), ("a/", "c"))]
)
async def test_c4_no_choice_of_names_makes_two_turns_share_a_run(
    database: FaultyDatabase, pair: tuple[tuple[str, str], tuple[str, str]]
) -> None:
    """Each part of a run id is percent-encoded."""
    desk = Desk(database)
    for tenant, session in pair:
        await desk.run(identity=replace(IDENTITY, tenant_id=tenant, session_id=session))

    assert 2 == len(desk.hooks.calls)  # type: ignore[attr-defined]  # the scripted product


async def test_c5_another_message_is_refused_and_may_supersede(database: FaultyDatabase) -> None:
    """The mismatch is said before anything is written; superseding is a choice, and replaces the message."""
    desk = Desk(database)
    await desk.run()
    with pytest.raises(DurableRunInputMismatchError):
        await durable_chat_turn_engine.open(desk.input(message="edited"))
    desk.hooks = Product(text_delta("new"))
    lines = await desk.run(message="edited", supersede=True)

    assert "session.run.completed" == kinds(lines)[-1]
    assert [("assistant", "new"), ("user", "edited")] == await desk.rows(
        "SELECT role, content FROM chat_messages ORDER BY role"
    )
    assert 2 == lines[0]["attempt"]


async def test_c5_the_deployments_model_is_not_the_turns_identity(database: FaultyDatabase) -> None:
    """A changed default does not strand turns that named no model."""
    desk = Desk(database)
    await desk.run(default_model="old")

    assert "result" in kinds(await desk.run(default_model="new"))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(SECRET),
        BackendRejected(SECRET, backend="openai", upstream_status=401, detail=SECRET),
        KeyError(SECRET),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_c6_nothing_internal_reaches_the_client(database: FaultyDatabase, error: Exception) -> None:
    """A failed turn says a code, a fixed sentence and whether a retry helps; the log has the rest."""
    desk = Desk(database, Product(text_delta("a"), error))
    sink = BufferSink()
    lines = await desk.run(sink)

    assert SECRET not in sink.text()
    assert SECRET not in str(await desk.rows("SELECT lines FROM chat_segments"))
    assert {cls.public for cls in error_classes()} >= {lines[-1]["data"]["message"], lines[-2]["data"]["message"]}
    assert {"code", "message", "retryable"} == set(lines[-2]["data"])
    assert any(SECRET in str(particulars["error"]) for event, particulars in desk.logged if event == "turn.failed")


async def test_c12_a_turn_in_flight_is_told_before_the_first_line(database: FaultyDatabase) -> None:
    """Apart from a failure (C6), and with the time after which to ask again."""
    desk = Desk(database)
    await durable_chat_turn_engine.open(desk.input(lease_ms=60_000))

    with pytest.raises(DurableRunLeaseHeldError) as held:
        await durable_chat_turn_engine.open(desk.input())
    assert 60_000 == pytest.approx(held.value.retry_after_ms, abs=2)


async def test_c6_pulling_callers_get_it_as_lines(database: FaultyDatabase) -> None:
    """`run_turn` never raises: held, mismatched or down, it is an error line and a terminal one."""
    desk = Desk(database)
    await durable_chat_turn_engine.open(desk.input())
    lines = events_of("".join([text async for text in durable_chat_turn_engine.run_turn(desk.input()).body]))

    assert ["error", "session.run.failed"] == kinds(lines)
    assert "turn_in_flight" == lines[0]["data"]["code"]


async def test_c7_a_slow_reader_holds_the_producer_back(database: FaultyDatabase) -> None:
    """What waits for a reader that pulls is bounded, however much the model says."""
    product = Product(*[text_delta("x" * 1_000)] * 250)
    body = durable_chat_turn_engine.run_turn(Desk(database, product).input()).body
    sizes = []
    async for text in body:
        sizes.append(len(text))
        await asyncio.sleep(1)

    assert max(sizes) < 200_000
    assert sum(sizes) > 250_000


async def test_c8_text_is_assembled_by_part(database: FaultyDatabase) -> None:
    """Reasoning and tool parts are no text, and a cumulative part replaces itself only."""
    part = "message.part.updated"
    desk = Desk(
        database,
        Product(
            reasoning_delta("thinking"),
            ChatStreamEvent(part, {"part": {"id": "1", "type": "text", "text": "fir"}}),
            ChatStreamEvent(part, {"delta": "{args}", "part": {"id": "2", "type": "tool"}}),
            ChatStreamEvent(part, {"part": {"id": "1", "type": "text", "text": "first "}}),
            ChatStreamEvent(part, {"delta": "sec", "part": {"id": "3", "type": "text"}}),
            ChatStreamEvent(part, {"delta": "ond", "part": {"id": "3", "type": "text"}}),
        ),
    )
    await desk.run()

    assert "first second" == (await desk.run())[1]["data"]["finalText"]


@pytest.mark.parametrize("kind", ["error", "session.run.failed", "session.run.cancelled"])
async def test_c9_an_in_band_error_is_a_failed_turn(database: FaultyDatabase, kind: str) -> None:
    """It is said once, in our words, and nothing is stored as an answer."""
    product = Recorded(text_delta("a"), ChatStreamEvent(kind, {"message": SECRET}), text_delta("never"))
    desk = Desk(database, product)
    lines = await desk.run()

    assert ["session.run.started", "message.part.updated", "error", "session.run.failed"] == kinds(lines)
    assert "backend_reported" == lines[-1]["data"]["code"]
    assert [] == product.persisted
    assert SECRET not in json.dumps(lines)


async def test_c9_there_is_exactly_one_terminal_line(database: FaultyDatabase) -> None:
    """A producer's own lifecycle is held back; a failing tool does not fail the turn."""
    script = [
        ChatStreamEvent("session.run.started", {}), text_delta("a"), ChatStreamEvent("tool.error", {"m": 1}),
        ChatStreamEvent("session.run.completed", {}),
    ]  # fmt: skip
    lines = await Desk(database, Product(*script)).run()

    assert ["session.run.started", "message.part.updated", "tool.error", "session.run.completed"] == kinds(lines)


@pytest.mark.parametrize("asynchronously", [False, True])
async def test_c10_a_failing_trace_flush_changes_nothing(
    database: FaultyDatabase, asynchronously: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it raises at once or later, the stream has ended and the failure is logged."""

    def raises() -> Any:
        async def later() -> None:
            await asyncio.sleep(1)
            raise RuntimeError("collector")

        if asynchronously:
            return later()
        raise RuntimeError("collector")

    tracing = traced_turn()
    monkeypatch.setattr(tracing, "flush", raises)
    desk = Desk(database)
    lines = await desk.run(tracing=tracing)

    assert "session.run.completed" == kinds(lines)[-1]
    assert ["telemetry.failed"] == [event for event, _ in desk.logged]


async def test_c10_the_reader_does_not_wait_for_the_trace_flush(
    database: FaultyDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is closed before the flush begins."""
    sink, tracing = BufferSink(), traced_turn()
    closed_at_flush: list[bool] = []

    async def flush() -> None:
        closed_at_flush.append(sink.closed)

    monkeypatch.setattr(tracing, "flush", flush)
    await Desk(database).run(sink, tracing=tracing)

    assert [True] == closed_at_flush


async def test_c11_only_transformed_text_is_at_rest_and_replayed(database: FaultyDatabase) -> None:
    """Checkpoint, messages, hooks and replay have the redacted text; the live stream is as the model said it."""

    class Redacting(Recorded):
        async def transform_final_text(self, text: str) -> str:
            return text.replace("Ann", "[name]")

    product = Redacting(text_delta("Dear Ann"))
    desk = Desk(database, product)
    fresh = await desk.run()
    replay = await desk.run()

    assert "Dear Ann" == fresh[1]["data"]["delta"]
    assert "Dear [name]" == replay[1]["data"]["finalText"]
    assert ["Dear [name]"] == [turn.final_text for turn in product.persisted]
    assert "Ann" not in await everything(desk)


async def test_c11_a_redacting_log_keeps_every_line_and_only_seen_text(database: FaultyDatabase) -> None:
    """Places, types and usage stay; the answer comes as a whole, transformed; what nobody redacted is left out."""

    class Redacting(Product):
        async def transform_final_text(self, text: str) -> str:
            return text.replace("Ann", "[name]")

    script = [
        reasoning_delta("Ann?"), text_delta("Dear "), text_delta("Ann"), tool_call(tool_call_id="1", tool_name="x", args="Ann"),
        usage_event(tokensOut=2),
    ]  # fmt: skip
    desk = Desk(database, Redacting(*script))
    said = await desk.run()
    [(text,)] = await desk.rows("SELECT lines FROM chat_segments")
    kept = events_of(text)

    assert [(line["type"], line["seq"]) for line in said] == [(line["type"], line["seq"]) for line in kept]
    assert "" == kept[1]["data"]["delta"] == kept[2]["data"]["delta"] == kept[3]["data"]["delta"]
    assert [said[0], None, *said[5:]] == [kept[0], kept[4].get("data"), *kept[5:]]
    assert {"finalText": "Dear [name]"} == said[6]["data"]
    assert "Ann" not in await everything(desk)


async def test_c11_a_redacting_products_failed_attempt_stores_no_text(database: FaultyDatabase) -> None:
    """Nothing was redacted yet, so nothing is kept; the error is."""

    class Redacting(Product):
        async def transform_final_text(self, text: str) -> str:
            return text

    desk = Desk(database, Redacting(text_delta("Dear Ann"), RuntimeError("about Ann")))
    await desk.run()

    assert "Ann" not in (await everything(desk)).replace(IDENTITY.user_id, "")
    assert "RuntimeError" in await everything(desk)


async def test_superseding_forgets_the_hook_calls_of_the_old_answer(database: FaultyDatabase) -> None:
    """They are of an answer that is gone; the new one's come under a key of their own, and the sweep survives."""
    product = Recorded(text_delta("old"))
    product.persist_fails = 1
    desk = Desk(database, product)
    await desk.run()
    product.script = [RuntimeError("x")]
    await desk.run(message="edited", supersede=True)
    outbox = Outbox(database=database, hooks=product, log=lambda *_: None)
    await asyncio.sleep(600)
    assert 0 == await outbox.sweep()
    product.script = [text_delta("new")]
    await desk.run(message="edited")

    assert [("new", "chat:acme:thread-1:0/3/persist_assistant_message")] == [
        (turn.final_text, turn.idempotency_key) for turn in product.persisted
    ]


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_c13_a_failing_or_slow_observer_changes_nothing(
    database: FaultyDatabase, error: type[BaseException]
) -> None:
    """`on_event` sees every line; its failures are logged, and it cannot delay."""

    class Failing(Product):
        def on_event(self, _identity: ChatTurnIdentity, event: ChatStreamEvent) -> None:
            raise error(event.type)

    desk = Desk(database, Failing(text_delta("a")))
    lines = await desk.run()

    assert ["session.run.started", "message.part.updated", "session.run.completed"] == kinds(lines)
    assert ["hook.on_event_failed"] * 3 == [event for event, _ in desk.logged]


@pytest.mark.parametrize(("on_disconnect", "every_ms", "pings"), [("continue", 15_000, 4), ("cancel", 5_000, 11)])
async def test_c13_silence_is_filled_with_pings(
    database: FaultyDatabase, on_disconnect: str, every_ms: int, pings: int
) -> None:
    """One behind the first line, then one in each so much silence; they are not in the log and take no seq."""
    sink = BufferSink()
    desk = Desk(database, Product(text_delta("a"), 50.0, text_delta("b")), on_disconnect=on_disconnect)
    lines = await desk.run(sink)
    sent = [json.loads(line) for line in sink.text().splitlines()]

    assert ["session.run.started", "ping", "message.part.updated", "ping"] == kinds(sent)[:4]
    assert [{"type": "ping", "data": {"everyMs": every_ms}}] * pings == [
        each for each in sent if each["type"] == "ping"
    ]
    assert [0, 1, 2, 3] == [line["seq"] for line in lines]
    assert "ping" not in str(await desk.rows("SELECT lines FROM chat_segments"))


async def test_c13_usage_is_a_line_and_on_record(database: FaultyDatabase) -> None:
    """What the model reported is stored per attempt; what it did not say is null, not zero."""
    desk = Desk(database, Product(text_delta("a"), usage_event(model="m", tokensIn=3)))
    await desk.run()

    assert [("m", 3, None)] == await desk.rows("SELECT model, tokens_in, tokens_out FROM chat_usage")


async def test_c13_usage_of_a_failed_attempt_is_on_record(database: FaultyDatabase) -> None:
    """What was paid for in vain is known."""
    desk = Desk(database, Product(text_delta("a"), usage_event(tokensOut=7), RuntimeError("x")))
    await desk.run()

    assert [(1, 7)] == await desk.rows("SELECT attempt, tokens_out FROM chat_usage")


async def test_c14_post_processing_waits_for_persisting(database: FaultyDatabase) -> None:
    """`on_turn_complete` is not called while `persist_assistant_message` has not succeeded."""
    product = Recorded()
    product.persist_fails = 1
    await Desk(database, product).run()

    assert ["persist"] == product.order


async def test_c14_a_hanging_hook_delays_the_terminal_line_by_its_deadline_only(database: FaultyDatabase) -> None:
    """After ten seconds it is left to the outbox."""

    class Hanging(Product):
        async def persist_assistant_message(self, _turn: FinishedTurn) -> None:
            await asyncio.sleep(10_000)

    begun = asyncio.get_running_loop().time()
    lines = await Desk(database, Hanging(text_delta("a"))).run()

    assert "session.run.completed" == kinds([line for line in lines if line["type"] != "ping"])[-1]
    assert 10 == pytest.approx(asyncio.get_running_loop().time() - begun, abs=0.1)


async def test_a_database_that_goes_down_mid_turn_is_said_and_survived(database: FaultyDatabase) -> None:
    """The client gets its terminal line with ``store_unavailable``; the answer is stored late and replayed."""

    class Cutting(Product):
        def on_event(self, _identity: ChatTurnIdentity, event: ChatStreamEvent) -> None:
            database.down = database.down or event.type == "message.part.updated"

    product = Cutting(text_delta("a"))
    desk = Desk(database, product)
    sink = BufferSink()
    running = asyncio.create_task(run_turn(desk.input(), sink))
    await asyncio.sleep(30)
    told = events_of(sink.text())
    database.down = False
    await running

    assert ("store_unavailable", True) == (told[-1]["data"]["code"], told[-1]["data"]["retryable"])
    assert [0, 1, None, None] == [line.get("seq") for line in told]  # the last two are in no log
    assert ["session.run.started", "message.part.updated", "error", "session.run.failed"] == kinds(told)
    database.down = True
    assert "result" in kinds(await Desk(_plain(database), product).run())
    assert 1 == len(product.calls)


async def test_a_retry_after_a_failure_is_attempt_two_and_its_seq_goes_on(database: FaultyDatabase) -> None:
    """The log of a turn is one log, whichever attempt says its lines."""
    desk = Desk(database, Product(text_delta("a"), RuntimeError("x")))
    first = await desk.run()
    desk.hooks = Product(text_delta("b"))
    second = await desk.run()

    assert [0, 1, 2, 3, 4, 5, 6] == [line["seq"] for line in [*first, *second]]
    assert [1] * 4 + [2] * 3 == [line["attempt"] for line in [*first, *second]]


@pytest.mark.parametrize(
    "event",
    [
        ChatStreamEvent("x", {"n": float("nan")}),
        ChatStreamEvent("x", {"n": {1}}),
        ChatStreamEvent("x", {"n": "x" * 500_000}),
        text_delta("\ud800"),
    ],
    ids=["nan", "set", "too long", "half a surrogate pair"],
)
async def test_an_event_that_no_line_can_carry_fails_the_turn(database: FaultyDatabase, event: ChatStreamEvent) -> None:
    """It could not be replayed, so it is not said; the client is told that a retry does not help, and so is the row."""
    desk = Desk(database, Product(text_delta("a"), event))
    lines = await desk.run()
    [(error,)] = await desk.rows("SELECT error_json FROM durable_steps")

    assert ["session.run.started", "message.part.updated", "error", "session.run.failed"] == kinds(lines)
    assert ("hook_failed", False) == (lines[-1]["data"]["code"], lines[-1]["data"]["retryable"])
    assert "hook_failed" == json.loads(error)["code"]


async def test_an_answer_too_long_to_be_stored_ends_where_it_is_full(database: FaultyDatabase) -> None:
    """What fits is the answer, told to be cut, live and in a replay; no more is paid for, nor is it asked again."""
    product = Product(*[text_delta("é" * 9_999 + "a")] * 100)
    desk = Desk(database, product)
    lines, again = await desk.run(), await desk.run()
    text = "".join(line["data"]["delta"] for line in lines if line["type"] == "message.part.updated")
    [(stored,)] = await desk.rows("SELECT content FROM chat_messages WHERE role = 'assistant'")

    assert ("session.run.completed", "length") == (lines[-1]["type"], lines[-1]["data"]["finishReason"])
    assert ("session.run.completed", "length") == (again[-1]["type"], again[-1]["data"]["finishReason"])
    assert (text, text) == (stored, again[1]["data"]["finalText"])
    assert 1_499_999 <= len(text.encode()) <= 1_500_000
    assert ["answer.too_large"] == [event for event, _ in desk.logged]
    assert 1 == len(product.calls)


@pytest.mark.parametrize(
    "usage", [{"tokensIn": -1}, {"tokensIn": "many"}, {"tokensIn": 2.5}, {"model": ["x"]}, {"tokensIn": True}]
)
async def test_usage_that_makes_no_sense_is_not_known(database: FaultyDatabase, usage: dict[str, Any]) -> None:
    """It is left out, and the answer is stored all the same."""
    desk = Desk(database, Product(text_delta("a"), ChatStreamEvent("usage", usage), usage_event(tokensOut=2)))
    lines = await desk.run()

    assert "session.run.completed" == kinds(lines)[-1]
    assert [(0, None, None, None), (1, None, None, 2)] == await desk.rows(
        "SELECT call_index, model, tokens_in, tokens_out FROM chat_usage"
    )


async def test_any_number_of_model_calls_is_one_statement(database: FaultyDatabase) -> None:
    """D1 allows a thousand queries in one invocation."""
    desk = Desk(database, Product(text_delta("a"), [usage_event(tokensIn=1)] * 2_000))
    await desk.run()

    assert max(len(batch) for batch in database.statements) < 15
    assert [(2_000,)] == await desk.rows("SELECT count(*) FROM chat_usage")


async def test_the_history_is_bounded(database: FaultyDatabase) -> None:
    """The latest turns that fit, each with its question; and no more than so many turns."""
    desk = Desk(database, Product(text_delta("x" * 1_000)))
    for index in range(6):
        await desk.run(identity=replace(IDENTITY, turn_index=index), message=f"q{index}")
    shown = []
    every: list[dict[str, Any]] = [{"history_characters": 2_500}, {"history_turns": 3}, {"history_turns": 0}]
    for limits in every:
        await desk.run(identity=replace(IDENTITY, turn_index=6), message="now", supersede=True, **limits)
        shown.append([m["content"] for m in desk.hooks.calls[-1].history if m["role"] == "user"])  # type: ignore[attr-defined]
        desk.hooks.script = [RuntimeError("x")]  # type: ignore[attr-defined]  # the scripted product
        await desk.run(identity=replace(IDENTITY, turn_index=6), message=f"{limits}", supersede=True)

    assert [["q4", "q5"], ["q3", "q4", "q5"], []] == shown


async def test_a_zombie_turn_changes_no_table(database: FaultyDatabase) -> None:
    """A worker that finishes after its successor has written nothing but what it has spent."""
    product = Recorded(text_delta("zombie"), usage_event(tokensIn=1), 100.0)
    desk = Desk(database, product, lease_ms=1_000)
    sink = BufferSink()
    zombie = asyncio.create_task(run_turn(desk.input(store=_StalledRenewals(database)), sink))
    await asyncio.sleep(50)
    successor = Desk(database, Recorded(text_delta("successor"), usage_event(tokensIn=2)))
    await successor.run()
    forget = Statement("DELETE FROM chat_usage WHERE attempt = 1")
    await desk.database.batch([forget])
    before = await everything(desk)
    product.script = []
    await zombie
    lines = events_of(sink.text())
    spent = await desk.rows("SELECT attempt, tokens_in, wasted FROM chat_usage ORDER BY attempt")
    await desk.database.batch([forget])

    assert [(1, 1, 1), (2, 2, 0)] == spent
    assert before == await everything(desk)
    assert ("lease_lost", None) == (lines[-1]["data"]["code"], lines[-1].get("seq"))
    assert [] == product.persisted


class _StalledRenewals(SqlRunStore):
    """A store of a worker that was stopped (SIGSTOP) as far as its renewals go: it believes that it holds its lease."""

    def __init__(self, database: FaultyDatabase) -> None:
        super().__init__(database)

    async def write(
        self, lease: Lease, statements: Sequence[Statement], *, renew: bool, returning: str = ""
    ) -> tuple[Lease, list[Sequence[Row]]]:
        """Believe it."""
        del renew, returning
        return lease, [[{"cancel_requested_at": None, "followed": 0}] for _ in [*statements, None]]


async def test_a_turn_aborted_before_it_runs_does_not_run(database: FaultyDatabase) -> None:
    """The model is not called, and the run is free at once."""
    desk = Desk(database)
    turn = await durable_chat_turn_engine.open(desk.input())
    assert isinstance(turn, ChatTurn)
    turn.abort()
    sink = BufferSink()
    await turn.run(sink)

    assert "aborted" == events_of(sink.text())[-1]["data"]["code"]
    assert "session.run.completed" == kinds(await desk.run())[-1]


async def test_the_models_key_says_nothing_about_whom(database: FaultyDatabase) -> None:
    """It is the same for one attempt and another for the next, and names neither tenant nor session."""
    product = Product(RuntimeError("x"))
    desk = Desk(database, product)
    await desk.run()
    await desk.run()
    first, second = (call.request_id for call in product.calls)

    assert first != second
    assert all("acme" not in key and len(key) == 64 for key in (first, second))


async def test_a_long_log_is_stored_in_rows_below_the_databases_limit(database: FaultyDatabase) -> None:
    """Ten million characters of answer, beyond the basic plane, come back whole and in order."""
    script = [text_delta("🙂" * 10_000)] * 150
    desk = Desk(database, Product(*script, final_text=lambda: "short"))
    sink = BufferSink()
    await desk.run(sink)
    rows = await desk.rows("SELECT first_seq, last_seq, lines FROM chat_segments ORDER BY first_seq")

    assert without_pings(sink.text()) == "".join(row[2] for row in rows)
    assert all(later[0] == row[1] + 1 for row, later in pairwise(rows))
    assert max(len(row[2].encode()) for row in rows) < 2_000_000


def _plain(database: FaultyDatabase) -> SqliteDatabase:
    inner = database._database
    assert isinstance(inner, SqliteDatabase)
    return inner
