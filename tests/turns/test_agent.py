"""
The agent loop: tools, approvals, and that every effect happens once wherever the worker dies.

The model is scripted by what it has been told so far, as a real one is, so it may be asked again at any time.
"""

import asyncio
import gc
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from chatturn.backends.api import AgentBackendContext, AgentBackendInput, AgentExecutionBackend
from chatturn.backends.iterable import create_iterable_backend
from chatturn.chat.agent.agent import MAX_ROUNDS
from chatturn.chat.deployment import Deployment
from chatturn.chat.hooks.hooks import ChatTurnHooks, TurnContext
from chatturn.chat.hooks.tool import Tool, ToolContext, ToolError
from chatturn.chat.requests import TurnRequest
from chatturn.chat.service import DurableChatService
from chatturn.chat.sweep import Sweep
from chatturn.chat.turn.sinks import BufferSink, NoSink
from chatturn.chat.turn.stream import StreamProducer
from chatturn.database.api import Database, Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.steps import StepRetry
from chatturn.errors import RunNotFound
from chatturn.events import EventBatch, text_delta, tool_call, usage_event
from chatturn.settings import Settings
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.faults import FaultyDatabase
from tests.support.turns import IDENTITY as ANN
from tests.support.turns import UNHURRIED, Desk, Product, events_of, open_sqlite
from tests.turns.test_crashes import LEASE_MS, MortalSink

RUN = "chat:acme:thread-1:0"
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}

Ask = tuple[str, Any]
Reply = str | Ask | Sequence[Ask]


class Model:
    """
    A model that says the n-th reply when it has been told n - 1 times what its tools said.

    Attributes:
        calls: What it was asked, in order, and under which key.
    """

    def __init__(self, *replies: Reply, fuse: Fuse | None = None) -> None:
        self.replies = replies
        self.fuse = fuse or Fuse()
        self.calls: list[tuple[AgentBackendInput, str]] = []

    def backend(self) -> AgentExecutionBackend:
        """Return it as a turn's backend."""
        return create_iterable_backend("scripted", self._stream)

    async def _stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        self.fuse.pass_by("the model is called")
        self.calls.append((request, context.request_id))
        number = sum("tool_calls" in message for message in request.messages)
        reply = self.replies[min(number, len(self.replies) - 1)]
        if isinstance(reply, str):
            yield text_delta(reply)
        else:
            yield text_delta("let me see")
            self.fuse.pass_by("an event of the model")
            asks = [reply] if isinstance(reply, tuple) else reply
            yield [tool_call(tool_call_id=f"c{n}", tool_name=ask[0], args=ask[1]) for n, ask in enumerate(asks)]
        self.fuse.pass_by("the model's usage")
        yield usage_event(tokensOut=number + 1)
        self.fuse.pass_by("the model's end")

    @property
    def told(self) -> list[Any]:
        """What tools had said when it was asked last."""
        messages = self.calls[-1][0].messages
        return [json.loads(message["content"]) for message in messages if message["role"] == "tool"]


class Agent(ChatTurnHooks):
    """A product with tools whose effects are noted by key, as whoever has them would."""

    instructions = "Be useful."

    def __init__(self, *, fuse: Fuse | None = None, effects: dict[str, list[str]] | None = None) -> None:
        super().__init__()
        self.fuse = fuse or Fuse()
        self.effects = {} if effects is None else effects
        self.error: Exception | None = None
        self.result: Any = "noted"
        self.tools = (
            Tool(name="note", description="", parameters=TEXT, run=self._note),
            Tool(name="send", description="", parameters=TEXT, run=self._note, needs_approval=True),
            Tool(
                name="flaky",
                description="",
                parameters={},
                run=self._note,
                retry=StepRetry(max_attempts=3),
                timeout_ms=1_000,
            ),
        )

    async def _note(self, args: Mapping[str, Any], call: ToolContext) -> Any:
        self.fuse.pass_by("before an effect")
        self.effects.setdefault(call.step_key, []).append(args.get("text", ""))
        self.fuse.pass_by("after an effect")
        if self.error is not None:
            raise self.error
        return self.result

    @property
    def done(self) -> list[str]:
        """The effects that a receiver has who ignores keys that it has seen."""
        return [texts[0] for texts in self.effects.values()]


class Shop:
    """A desk of one agent and one model."""

    def __init__(self, database: Database, model: Model, hooks: Agent | None = None, **options: Any) -> None:
        self.agent = hooks or Agent()
        self.model = model
        self.desk = Desk(database, self.agent, backend=model.backend(), **options)

    async def decide(self, key: str, **payload: Any) -> None:
        """Answer an approval."""
        await self.desk.input().deployment.store.emit_event(RUN, key, payload)


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


def kinds(lines: list[dict[str, Any]]) -> list[str]:
    """Return the lines' types, the pieces of text left out."""
    return [line["type"] for line in lines if line["type"] not in {"message.part.updated", "usage"}]


def data(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the data of all lines of a type."""
    return [line["data"] for line in lines if line["type"] == kind]


async def test_the_model_uses_tools_until_it_answers(database: SqliteDatabase) -> None:
    """Model, tools, model: the answer is what it said last, and each round has a key of its own."""
    shop = Shop(database, Model([("note", {"text": "a"}), ("note", {"text": "b"})], "done"))
    lines = await shop.desk.run()

    assert ["session.run.started", *["tool.call"] * 2, *["tool.result"] * 2, "session.run.completed"] == kinds(lines)
    assert ["a", "b"] == shop.agent.done
    assert ["noted", "noted"] == shop.model.told
    assert [("done",)] == await shop.desk.rows("SELECT content FROM chat_messages WHERE role = 'assistant'")
    assert 2 == len({key for _, key in shop.model.calls})
    assert {"role": "system", "content": "Be useful."} == shop.model.calls[0][0].messages[0]
    assert [(0, "llm"), (1, "llm"), (2, "tool"), (3, "tool"), (4, "llm")] == await shop.desk.rows(
        "SELECT step_index, kind FROM durable_steps ORDER BY step_index"
    )


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (("nothing", {}), "unknown_tool"),
        (("note", "{broken"), "invalid_arguments"),
        (("note", {}), "invalid_arguments"),
        (("note", {"text": 1}), "invalid_arguments"),
    ],
)
async def test_a_call_that_cannot_be_done_is_told_to_the_model(database: SqliteDatabase, ask: Ask, code: str) -> None:
    """It costs a round, not the turn."""
    shop = Shop(database, Model(ask, "sorry"))
    lines = await shop.desk.run()

    assert [code] == [each["code"] for each in data(lines, "tool.error")] == [told["code"] for told in shop.model.told]
    assert "session.run.completed" == lines[-1]["type"]
    assert {} == shop.agent.effects


@pytest.mark.parametrize(
    ("error", "words"),
    [(ToolError("no such address"), "no such address"), (RuntimeError("secret-host:5432"), "it failed")],
)
async def test_a_tool_that_fails_is_told_to_the_model(database: SqliteDatabase, error: Exception, words: str) -> None:
    """In its own words if it chose them; the operator's log has the rest."""
    shop = Shop(database, Model(("flaky", {}), "sorry"))
    shop.agent.error = error
    lines = await shop.desk.run()
    [key] = shop.agent.effects

    assert [words] == [each["message"] for each in data(lines, "tool.error")]
    assert 3 == len(shop.agent.effects[key])
    assert ["tool.failed"] == [event for event, _ in shop.desk.logged if not event.startswith("usage.")]


async def test_a_tool_whose_failure_cannot_be_written_down_is_tried_again(database: SqliteDatabase) -> None:
    """What a foreign exception says may be anything, and ends no turn."""
    shop = Shop(database, Model(("flaky", {}), "sorry"))
    shop.agent.error = ValueError("half a pair: \ud800")
    lines = await shop.desk.run()
    [key] = shop.agent.effects

    assert ["it failed"] == [each["message"] for each in data(lines, "tool.error")]
    assert (3, "session.run.completed") == (len(shop.agent.effects[key]), lines[-1]["type"])


async def test_a_tool_that_cancels_itself_has_failed(database: SqliteDatabase) -> None:
    """As code does that awaits a task which it has cancelled; the turn was not stopped."""

    async def cancelled(_args: Mapping[str, Any], _call: ToolContext) -> None:
        task = asyncio.create_task(asyncio.sleep(1))
        task.cancel()
        await task

    shop = Shop(database, Model(("odd", {}), "sorry"))
    shop.agent.tools = (Tool(name="odd", description="", parameters={}, run=cancelled),)
    lines = await shop.desk.run()

    assert ["it failed"] == [each["message"] for each in data(lines, "tool.error")]
    assert "session.run.completed" == lines[-1]["type"]


async def test_an_id_of_more_digits_than_javascript_keeps_reaches_the_tool(database: SqliteDatabase) -> None:
    """Models hand on what they were given, and 64 bits are usual for ids."""
    shop = Shop(database, Model(("note", {"text": "a", "id": 1_234_567_890_123_456_789}), "done"))
    lines = await shop.desk.run()

    assert [1_234_567_890_123_456_789] == [each["args"]["id"] for each in data(lines, "tool.call")]
    assert (["a"], "session.run.completed") == (shop.agent.done, lines[-1]["type"])


@pytest.mark.parametrize(
    "result", [float("nan"), {1, 2}, {1: "a"}, "x" * 300_000, "\ud800"], ids=lambda each: type(each).__name__
)
async def test_a_result_that_cannot_be_told_is_an_error(database: SqliteDatabase, result: Any) -> None:
    """The effect is not repeated for it."""
    shop = Shop(database, Model(("note", {"text": "a"}), "done"))
    shop.agent.result = result
    lines = await shop.desk.run()

    assert ["invalid_result"] == [each["code"] for each in data(lines, "tool.error")]
    assert [["a"]] == list(shop.agent.effects.values())


async def test_a_tool_that_hangs_is_ended(database: SqliteDatabase) -> None:
    """Each try has its time."""

    async def hang(_args: Mapping[str, Any], _call: ToolContext) -> None:
        await asyncio.sleep(10_000)

    shop = Shop(database, Model(("slow", {}), "sorry"))
    shop.agent.tools = (Tool(name="slow", description="", parameters={}, run=hang, timeout_ms=2_000),)
    lines = await shop.desk.run()

    assert ["it took longer than 2000 ms"] == [each["message"] for each in data(lines, "tool.error")]


async def test_rounds_are_bounded(database: SqliteDatabase) -> None:
    """In the last the model is offered no choice; if it insists, the turn fails and nothing is stored."""
    shop = Shop(database, Model(("note", {"text": "again"})))
    lines = await shop.desk.run()

    assert MAX_ROUNDS == len(shop.model.calls)
    assert "none" == shop.model.calls[-1][0].options["tool_choice"]
    assert ["backend_error"] == [each["code"] for each in data(lines, "session.run.failed")]
    assert MAX_ROUNDS - 1 == len(shop.agent.effects)


async def test_a_retry_goes_on_behind_the_last_step(database: SqliteDatabase) -> None:
    """The model's first call was paid for once and is said again; usage is on record once, with who paid."""
    shop = Shop(database, Model(("note", {"text": "a"}), ""))
    first = await shop.desk.run()
    shop.model.replies = (shop.model.replies[0], "done")
    second = await shop.desk.run()

    assert ["empty_answer"] == [each["code"] for each in data(first, "session.run.failed")]
    assert ["session.run.started", "tool.call", "tool.result", "session.run.completed"] == kinds(second)
    assert 3 == len(shop.model.calls)
    assert [["a"]] == list(shop.agent.effects.values())
    assert [{"tokensOut": 1, "call": 0, "attempt": 1}, {"tokensOut": 2, "call": 0}] == data(second, "usage")
    assert [(1, 0, 1), (1, 1, 2), (2, 0, 2)] == await shop.desk.rows(
        "SELECT attempt, call_index, tokens_out FROM chat_usage ORDER BY 1, 2"
    )


async def test_an_approval_suspends_the_turn(database: SqliteDatabase) -> None:
    """No worker, no lease; after the approval the next request goes on, without a call that was made before."""
    shop = Shop(database, Model(("send", {"text": "a"}), "sent"))
    waiting = await shop.desk.run()
    [approval] = data(waiting, "tool.approval")
    again = await shop.desk.run()
    await shop.decide(approval["key"], approved=True)
    lines = await shop.desk.run()

    assert {"toolCallId": "c0", "toolName": "send", "args": {"text": "a"}, "key": "approve:1.1.0"} == approval
    assert ["session.run.started", "tool.call", "tool.approval", "session.run.suspended"] == kinds(waiting)
    assert kinds(waiting) == kinds(again)
    assert data(waiting, "session.run.suspended") == data(again, "session.run.suspended")
    assert ["session.run.started", "tool.call", "tool.approval", "tool.result", "session.run.completed"] == kinds(lines)
    assert [["a"]] == list(shop.agent.effects.values())
    assert 2 == len(shop.model.calls)


async def test_a_suspended_turn_holds_no_lease_and_keeps_its_lines(database: SqliteDatabase) -> None:
    """Its log's end and its usage are stored with the suspension, in one write."""
    shop = Shop(database, Model(("send", {"text": "a"}), "sent"))
    lines = await shop.desk.run()
    stored = "".join(lines for (lines,) in await shop.desk.rows("SELECT lines FROM chat_segments ORDER BY first_seq"))

    assert [("suspended", None)] == await shop.desk.rows("SELECT status, lease_holder_id FROM durable_runs")
    assert lines == [json.loads(line) for line in stored.splitlines()]
    assert [(1, 0)] == await shop.desk.rows("SELECT attempt, call_index FROM chat_usage")
    assert [] == await shop.desk.rows("SELECT * FROM chat_messages")


async def test_a_worker_that_waits_sees_the_approval(database: SqliteDatabase) -> None:
    """Within the inline wait the turn is not suspended at all."""
    shop = Shop(database, Model(("send", {"text": "a"}), "sent"))
    running = asyncio.create_task(shop.desk.run())
    await asyncio.sleep(1)
    await shop.decide("approve:1.1.0", approved=True)
    lines = await running

    assert "session.run.completed" == lines[-1]["type"]
    assert [(1,)] == await shop.desk.rows("SELECT epoch FROM durable_runs")


@pytest.mark.parametrize(
    ("payload", "message"),
    [({"approved": False}, "denied"), ({"approved": False, "reason": "no"}, "denied: no"), ({"approved": 1}, "denied")],
)
async def test_a_denial_is_told_to_the_model(database: SqliteDatabase, payload: dict[str, Any], message: str) -> None:
    """The tool does not run, now or on any later attempt."""
    shop = Shop(database, Model(("send", {"text": "a"}), "as you wish"))
    await shop.desk.run()
    await shop.decide("approve:1.1.0", **payload)
    lines = await shop.desk.run()

    assert [message] == [each["message"] for each in data(lines, "tool.error")]
    assert {} == shop.agent.effects
    assert "session.run.completed" == lines[-1]["type"]


async def test_nobody_may_approve_too_late(database: SqliteDatabase) -> None:
    """After seven days the model is told, and the turn ends."""
    shop = Shop(database, Model(("send", {"text": "a"}), "too bad"))
    await shop.desk.run()
    await asyncio.sleep(7 * 24 * 3_600)
    lines = await shop.desk.run()

    assert ["not_approved"] == [each["code"] for each in data(lines, "tool.error")]
    assert "session.run.completed" == lines[-1]["type"]


async def test_an_approval_of_a_superseded_turn_approves_nothing(database: SqliteDatabase) -> None:
    """The model's ids repeat, the keys do not: each effect is asked for, and keyed, anew."""
    shop = Shop(database, Model(("send", {"text": "a"}), "sent"))
    await shop.desk.run()
    await shop.decide("approve:1.1.0", approved=True)
    await shop.desk.run()
    lines = await shop.desk.run(message="something else", supersede=True)

    assert "session.run.suspended" == lines[-1]["type"]
    assert ["approve:3.1.0"] == [each["key"] for each in data(lines, "tool.approval")]
    assert [["a"]] == list(shop.agent.effects.values())


async def test_a_redacting_product_keeps_no_checkpoints(database: SqliteDatabase) -> None:
    """What the model and its tools said on the way is forgotten with the finish."""

    class Redacting(Agent):
        async def transform_final_text(self, text: str) -> str:
            return text.upper()

    shop = Shop(database, Model(("note", {"text": "secret"}), "done"), Redacting())
    await shop.desk.run()

    assert [(0, '{"finalText":"DONE"}')] == await shop.desk.rows("SELECT step_index, result_json FROM durable_steps")
    [(stored,)] = await shop.desk.rows("SELECT lines FROM chat_segments")
    assert "secret" not in stored


async def test_a_step_costs_one_round_trip(database: SqliteDatabase) -> None:
    """Claim, model, tool, model, finish; an approval is begun, looked at for two seconds, and suspended."""
    faulty = FaultyDatabase(database)
    shop = Shop(faulty, Model(("note", {"text": "a"}), "done"), log_pace=UNHURRIED)
    await shop.desk.run()
    plain, faulty.batches = faulty.batches, 0
    shop.model.replies = (("send", {"text": "a"}), "sent")
    await shop.desk.run(identity=replace(ANN, turn_index=1))

    assert (5, 1 + 1 + 1 + 9 + 1) == (plain, faulty.batches)


async def test_a_suspension_whose_reply_is_lost_is_recognised(database: SqliteDatabase) -> None:
    """The write was applied; trying it again finds that out."""
    faulty = FaultyDatabase(database)
    faulty.faults[12] = "after"
    shop = Shop(faulty, Model(("send", {"text": "a"}), "sent"), log_pace=UNHURRIED)
    lines = await shop.desk.run()

    assert "session.run.suspended" == lines[-1]["type"]
    assert [("suspended", 1)] == await shop.desk.rows("SELECT status, epoch FROM durable_runs")


async def test_a_suspension_that_cannot_be_stored_is_a_failure(database: SqliteDatabase) -> None:
    """Said as one, and the same request suspends the turn when the database is back."""
    faulty = FaultyDatabase(database)
    shop = Shop(faulty, Model(("send", {"text": "a"}), "sent"), Agent(), log_pace=UNHURRIED)
    faulty.faults.update(dict.fromkeys(range(12, 30), "before"))
    failed = await shop.desk.run(lease_ms=10_000)
    faulty.faults.clear()
    await asyncio.sleep(10)
    lines = await shop.desk.run(lease_ms=10_000)

    assert ["store_unavailable"] == [each["code"] for each in data(failed, "session.run.failed")]
    assert "session.run.suspended" == lines[-1]["type"]
    assert 1 == len(shop.model.calls)


async def test_a_worker_that_was_taken_over_suspends_nothing(database: SqliteDatabase) -> None:
    """It says that the lease is lost; the run is its new holder's."""
    faulty = FaultyDatabase(database)
    shop = Shop(faulty, Model(("send", {"text": "a"}), "sent"))
    steal = Statement("UPDATE durable_runs SET lease_holder_id = 'somebody', epoch = 7")
    running = asyncio.create_task(shop.desk.run())
    await asyncio.sleep(1)
    await database.batch([steal])
    lines = await running

    assert ["lease_lost"] == [each["code"] for each in data(lines, "session.run.failed")]
    assert [("running", 7)] == await shop.desk.rows("SELECT status, epoch FROM durable_runs")
    assert [] == await shop.desk.rows("SELECT * FROM durable_waits")


async def test_a_foreign_producer_may_have_steps_of_its_own(database: SqliteDatabase) -> None:
    """`TurnContext.durable` is any producer's: a step that is on record is not done again."""

    class Careful(Product):
        def produce(self, context: TurnContext) -> StreamProducer:
            return StreamProducer(self._careful(context))

        async def _careful(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
            yield text_delta(await context.durable.uuid())
            if context.attempt == 1:
                raise RuntimeError

    desk = Desk(database, Careful())
    first, second = await desk.run(), await desk.run()

    assert data(first, "message.part.updated") == data(second, "message.part.updated")
    assert "session.run.completed" == second[-1]["type"]


# The service: events, and turns that go on while nobody reads


def service(shop: Shop, database: Database) -> DurableChatService:
    """Return the service of the shop's deployment."""
    return DurableChatService(
        deployment=Deployment(
            settings=Settings(project_id="legal-agent", domain="legal"),
            hooks=shop.agent,
            backend=shop.model.backend(),
            database=database,
            log=shop.desk.input().deployment.log,
        )
    )


@pytest.mark.parametrize(("tenant", "run_id"), [("other", RUN), ("acme", "chat:acme:thread-1:1"), ("acme", "")])
async def test_an_event_for_a_foreign_or_unknown_run_is_refused(
    database: SqliteDatabase, tenant: str, run_id: str
) -> None:
    """As if it did not exist; nothing is stored."""
    shop = Shop(database, Model("hello"))
    await shop.desk.run()
    with pytest.raises(RunNotFound):
        await service(shop, database).emit(tenant, "ann", run_id, "key", {})

    assert [] == await shop.desk.rows("SELECT * FROM durable_events")


async def test_the_first_event_wins_and_the_turn_goes_on_alone(database: SqliteDatabase) -> None:
    """It is answered and stored before anybody asks again."""
    shop = Shop(database, Model(("send", {"text": "a"}), "sent"))
    chat = service(shop, database)
    # The turn itself on the database's own clock, as the service's.
    turn = await chat.open(ANN, TurnRequest(message="hi"))
    await turn.run(NoSink())
    first = await chat.emit("acme", "ann", RUN, "approve:1.1.0", {"approved": True})
    second = await chat.emit("acme", "ann", RUN, "approve:1.1.0", {"approved": False})
    resumed = await chat.resume(RUN)
    again = await chat.resume(RUN)

    assert (True, False) == (first[0], second[0])
    assert second[1] is not None
    assert {"approved": True} == second[1].payload
    assert (True, False) == (resumed, again)
    assert [("sent",)] == await shop.desk.rows("SELECT content FROM chat_messages WHERE role = 'assistant'")


async def test_an_event_that_comes_while_the_turn_is_suspended_is_not_missed(database: SqliteDatabase) -> None:
    """The worker has looked for the last time, and still holds its lease: whoever brings the event waits for it."""
    faulty = FaultyDatabase(database)
    faulty.slow[11] = 0.5
    shop = Shop(faulty, Model(("send", {"text": "a"}), "sent"))
    worker, other = service(shop, faulty), service(shop, database)
    turn = await worker.open(ANN, TurnRequest(message="hi"))
    sink = BufferSink()
    running = asyncio.create_task(turn.run(sink))
    await asyncio.sleep(2.2)
    await other.emit("acme", "ann", RUN, "approve:1.1.0", {"approved": True})
    resumed = await other.resume(RUN)
    await running

    assert "session.run.suspended" == events_of(sink.text())[-1]["type"]
    assert resumed
    assert [("sent",)] == await shop.desk.rows("SELECT content FROM chat_messages WHERE role = 'assistant'")


async def test_the_cron_goes_on_with_what_is_due(database: SqliteDatabase) -> None:
    """An event that nobody acted upon is found by the sweep; a turn that still waits is left alone."""
    shop = Shop(database, Model(("send", {"text": "a"}), "sent"))
    chat = service(shop, database)
    turn = await chat.open(ANN, TurnRequest(message="hi"))
    await turn.run(NoSink())
    sweep = Sweep(service=chat)
    before = await sweep.run()
    await chat.emit("acme", "ann", RUN, "approve:1.1.0", {"approved": True})

    assert (0, 1, 0) == (before, await sweep.run(), await sweep.run())
    assert [("completed",)] == await shop.desk.rows("SELECT status FROM durable_runs")


async def test_a_turn_that_cannot_be_resumed_is_logged(database: SqliteDatabase) -> None:
    """A deployment whose project has changed leaves it alone, and says so."""
    shop = Shop(database, Model(("send", {"text": "a"}), "sent"))
    await shop.desk.run(project_id="another")

    assert not await service(shop, database).resume(RUN)
    assert ["turn.not_resumed"] == [event for event, _ in shop.desk.logged if not event.startswith("usage.")]


# The crash law


class World:
    """What outlives a worker: the database, the receivers of the effects, and how often the model was called."""

    def __init__(self, database: SqliteDatabase) -> None:
        self.database = database
        self.effects: dict[str, list[str]] = {}
        self.calls: list[str] = []
        self.attempts = 0

    async def worker(self, fuse: Fuse) -> list[dict[str, Any]]:
        """Run the turn in a worker that dies at its fuse's point."""
        model = Model(("note", {"text": "a"}), ("send", {"text": "b"}), "done", fuse=fuse)
        agent = Agent(fuse=fuse, effects=self.effects)
        desk = Desk(MortalDatabase(self.database, fuse), agent, backend=model.backend(), lease_ms=LEASE_MS)
        self.attempts += 1
        try:
            return await desk.run(MortalSink(fuse))
        finally:
            self.calls += [key for _, key in model.calls]

    async def outlive(self) -> None:
        """Ask until the turn is answered, and approve what it asks for."""
        desk = Desk(self.database)
        for _ in range(6):
            lines = await self.worker(Fuse())
            if lines[-1]["type"] == "session.run.completed":
                return
            for approval in data(lines, "tool.approval"):
                await desk.input().deployment.store.emit_event(RUN, approval["key"], {"approved": True})
            if lines[-1]["type"] == "session.run.failed":
                assert "turn_in_flight" == lines[-1]["data"]["code"]
                await asyncio.sleep(LEASE_MS / 1000)
        raise AssertionError("the turn is stuck")


def _places(*, approved: bool) -> list[str]:
    """Walk a worker's life once, until the approval or from it on."""

    async def live() -> list[str]:
        with open_sqlite() as database:
            world = World(database)
            fuse = Fuse()
            lines = await world.worker(fuse)
            if not approved:
                return fuse.places
            [approval] = data(lines, "tool.approval")
            await Desk(database).input().deployment.store.emit_event(RUN, approval["key"], {"approved": True})
            fuse = Fuse()
            await world.worker(fuse)
            return fuse.places

    return asyncio.run(live())


BEFORE = _places(approved=False)
AFTER = _places(approved=True)


def test_there_are_places_to_die_everywhere() -> None:
    """Both lives pass the database, the model, a tool's effect and the reader."""
    for places in (BEFORE, AFTER):
        assert {"before a batch", "after a batch", "a write", "the model's end", "after an effect"} <= set(places)
    assert (2, 1) == (BEFORE.count("the model is called"), AFTER.count("the model is called"))
    assert (1, 1) == (BEFORE.count("after an effect"), AFTER.count("after an effect"))


async def _assert_once(world: World) -> None:
    desk = Desk(world.database)
    assert ["a", "b"] == [texts[0] for texts in world.effects.values()]
    assert all(len(set(texts)) == 1 for texts in world.effects.values())
    assert len(set(world.calls)) == len(world.calls)
    assert [("done",)] == await desk.rows("SELECT content FROM chat_messages WHERE role = 'assistant'")
    assert [("completed", None)] == await desk.rows("SELECT status, lease_holder_id FROM durable_runs")
    assert [("completed",)] == await desk.rows("SELECT DISTINCT status FROM durable_steps")


@pytest.mark.slow
@pytest.mark.parametrize("point", range(len(BEFORE)), ids=lambda n: f"{n}-{BEFORE[n].replace(' ', '-')}")
async def test_a_worker_may_die_anywhere_before_the_approval(database: SqliteDatabase, point: int) -> None:
    """Every effect once by its key, a model call at most once a round and attempt, one stored answer."""
    world = World(database)
    with pytest.raises(Crash):
        await world.worker(Fuse(point))
    gc.collect()
    await world.outlive()

    await _assert_once(world)


@pytest.mark.parametrize("point", range(len(AFTER)), ids=lambda n: f"{n}-{AFTER[n].replace(' ', '-')}")
async def test_a_worker_may_die_anywhere_after_the_approval(database: SqliteDatabase, point: int) -> None:
    """The same of the worker that goes on with the turn."""
    world = World(database)
    [approval] = data(await world.worker(Fuse()), "tool.approval")
    await Desk(database).input().deployment.store.emit_event(RUN, approval["key"], {"approved": True})
    with pytest.raises(Crash):
        await world.worker(Fuse(point))
    gc.collect()
    await world.outlive()

    await _assert_once(world)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(BEFORE), 3))
@pytest.mark.parametrize("second", range(1, len(AFTER), 4))
async def test_workers_may_die_one_after_another(database: SqliteDatabase, first: int, second: int) -> None:
    """And of the one that takes over from it."""
    world = World(database)
    for point in (first, second):
        try:
            await world.worker(Fuse(point))
        except Crash:
            await asyncio.sleep(LEASE_MS / 1000)
    await world.outlive()

    await _assert_once(world)
