"""What a turn asks of its model is one value, which a product's hook may change, with tools and without."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from chatturn.backends.providers import Model, Provider
from chatturn.backends.routing import Means, create_backend
from chatturn.chat.requests import TurnRequest
from chatturn.chat.turn.sinks import BufferSink
from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.product import ChatTurnHooks, ModelRequest, Tool, TurnContext
from chatturn.settings import Settings
from tests.support.isolates import Isolate
from tests.support.transport import Reply, ScriptedTransport
from tests.support.turns import IDENTITY, events_of, open_sqlite
from tests.turns.test_parameters import isolate
from tests.unit.backends.openai.test_backend import OK, frame

CALL = {"index": 0, "id": "a", "function": {"name": "look", "arguments": "{}"}}
CALLS = Reply(body=[frame(choices=[{"index": 0, "delta": {"tool_calls": [CALL]}}]), frame(finish="tool_calls")])


async def look(_args: Any, _call: Any) -> str:
    return "seen"


def tool(name: str) -> Tool:
    """Return a tool that finds something."""
    return Tool(name=name, description="Looks.", parameters={"type": "object"}, run=look)


class Shaping(ChatTurnHooks):
    """A product that has no more than instructions and a hook, and tools if it is given some."""

    instructions = "Be brief."

    def __init__(self, change: Callable[[ModelRequest], Any], *tools: Tool) -> None:
        super().__init__()
        self.tools = tools
        self.change = change
        self.asked: list[ModelRequest] = []

    async def shape_request(self, request: ModelRequest, context: TurnContext) -> ModelRequest:
        self.asked.append(request)
        await context.durable.step("retrieve", lambda: _found(self))
        shaped: ModelRequest = self.change(request)
        return shaped

    found = 0


async def _found(hooks: Shaping) -> str:
    hooks.found += 1
    return "found"


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


async def ask(alone: Isolate, **members: Any) -> list[dict[str, Any]]:
    """Ask a turn to its end, and return its lines."""
    sink = BufferSink()
    await (await alone.service.open(IDENTITY, TurnRequest(message="hi", **members))).run(sink)
    return events_of(sink.text())


def bodies(transport: ScriptedTransport) -> list[dict[str, Any]]:
    """Return what the API was asked."""
    return [json.loads(exchange.request.body) for exchange in transport.exchanges]


def changed(request: ModelRequest) -> ModelRequest:
    """Change everything."""
    return replace(
        request,
        system=f"{request.system} In French.",
        messages=[{"role": "user", "content": "bonjour"}, *request.messages],
        model="other",
        parameters={**request.parameters, "temperature": 0.1},
    )


@pytest.mark.parametrize("tools", [(), (tool("look"),)])
async def test_a_hook_changes_all_that_the_model_is_asked(database: SqliteDatabase, tools: Any) -> None:
    """It gets what would be asked otherwise; each round is asked as it wants, and a replay does not call it."""
    hooks = Shaping(changed, *tools)
    alone, transport = isolate(database, [CALLS, OK] if tools else [OK], hooks)
    await ask(alone, parameters={"seed": 1})
    lines = await ask(alone, parameters={"seed": 1})
    [asked] = hooks.asked
    said = [{"role": "system", "content": "Be brief. In French."}, {"role": "user", "content": "bonjour"}]

    assert (asked.system, asked.messages, asked.model) == ("Be brief.", [{"role": "user", "content": "hi"}], "m")
    assert (asked.parameters, asked.tools) == ({"seed": 1}, tools)
    assert [body["messages"][:3] for body in bodies(transport)] == [[*said, *asked.messages]] * (2 if tools else 1)
    assert {(body["model"], body["temperature"], body["seed"]) for body in bodies(transport)} == {("other", 0.1, 1)}
    assert lines[-1]["data"]["replayed"] is True


async def test_tools_may_be_left_out_and_added(database: SqliteDatabase) -> None:
    """The model is told of those of the hook, and they are used."""
    hooks = Shaping(lambda request: replace(request, tools=[tool("look")]), tool("other"))
    alone, transport = isolate(database, [CALLS, OK], hooks)
    lines = await ask(alone)

    assert [each["function"]["name"] for each in bodies(transport)[0]["tools"]] == ["look"]
    assert [line["data"]["result"] for line in lines if line["type"] == "tool.result"] == ["seen"]


async def test_all_tools_may_be_left_out(database: SqliteDatabase) -> None:
    """Then the model just answers."""
    hooks = Shaping(lambda request: replace(request, tools=()), tool("look"))
    alone, transport = isolate(database, [OK], hooks)

    assert (await ask(alone))[-1]["type"] == "session.run.completed"
    assert "tools" not in bodies(transport)[0]


async def test_what_the_hook_does_in_steps_is_done_once(database: SqliteDatabase) -> None:
    """Whichever attempt does it: the model fails the first time."""
    hooks = Shaping(lambda request: request, tool("look"))
    alone, _ = isolate(database, [CALLS, Reply(status=400), OK], hooks)
    first = await ask(alone)
    second = await ask(alone)

    assert [lines[-1]["type"] for lines in (first, second)] == ["session.run.failed", "session.run.completed"]
    assert (len(hooks.asked), hooks.found) == (2, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda _request: None,
        lambda request: replace(request, messages=()),
        lambda request: replace(request, tools=[tool("look")]),
    ],
)
async def test_what_is_no_request_fails_the_attempt(database: SqliteDatabase, change: Any) -> None:
    """By name, and before the model is asked."""
    alone, transport = isolate(database, [], Shaping(change))
    lines = await ask(alone)

    assert [line["data"]["code"] for line in lines if line["type"] == "error"] == ["hook_failed"]
    assert transport.exchanges == []


async def test_another_model_does_not_go_on_with_what_one_has_said(database: SqliteDatabase) -> None:
    """Where the hook chooses one that cannot, the answer begins anew, and nothing of the first is in it."""
    asked: list[str] = []

    class Choosing(ChatTurnHooks):
        async def shape_request(self, request: ModelRequest, context: TurnContext) -> ModelRequest:
            asked.append(context.continue_from)
            return replace(request, model="m" if context.attempt == 1 else "other")

    slow = Reply(body=[frame("Good mor"), frame("ning"), 1_000.0])
    first, _ = isolate(database, [slow], Choosing(), LEASE_MS="60000")
    begun = await first.ask("POST", "/v1/sessions/thread-1/turns/0", {"message": "hi"})
    await asyncio.sleep(5)
    await first.kill()
    await asyncio.sleep(61)
    transport = ScriptedTransport([OK])
    providers = [
        Provider(name="one", kind="vllm", url="https://one.test", models={"m": Model(continues=True)}, others=None),
        Provider(name="two", kind="vllm", url="https://two.test", models={"other": Model()}, others=None),
    ]
    means = Means(
        transport=transport, binding=transport, uniform=lambda _low, _high: 0.0, now=lambda: 0.0, log=lambda *_: None
    )
    backend = create_backend(replace(Settings(), model="m"), providers, means)
    lines = await ask(Isolate(database, Choosing(), backend, {"MODEL": "m"}))
    [messages] = await database.batch([Statement("SELECT content FROM chat_messages WHERE role = 'assistant'")])

    assert begun.status == 200
    assert asked == ["", "Good morning"]
    assert (messages.rows[0]["content"], lines[-1]["type"]) == ("Hello", "session.run.completed")
    assert "continue_final_message" not in bodies(transport)[0]
