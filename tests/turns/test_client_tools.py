"""
Tools that the client does: its calls are told, the turn waits for their results, and goes on with them.

The client is as its source says: it does each call once, and sends what came of it with everything before.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pytest

from chatturn.chat.hooks.hooks import ChatTurnHooks, TurnContext
from chatturn.chat.hooks.tool import Tool
from chatturn.chat.turn.stream import StreamProducer
from chatturn.database.api import Result, Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import StoreUnavailable
from chatturn.product import answer
from tests.support.chat_clients import CompletionView, UiMessageView
from tests.support.isolates import TURN, Isolate, Reply
from tests.support.turns import open_sqlite
from tests.support.whole_turns import cancel, rows
from tests.turns.test_agent import Model

COMPLETIONS = "/v1/chat/completions"
CHAT = "/v1/ai-sdk/chat"
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
LOOKS = ("look", {"at": "it"})


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    with open_sqlite() as database:
        yield database


class Assistant(ChatTurnHooks):
    """A product that lets a request bring tools."""

    client_tools = True

    def produce(self, context: TurnContext) -> StreamProducer:
        return StreamProducer(answer(context))


class Guide(ChatTurnHooks):
    """A product with a tool of its own that the client does, and one that it does itself."""

    tools = (
        Tool(name="look", description="Looks.", parameters={"type": "object", "properties": {}}, run=None),
        Tool(name="note", description="Notes.", parameters={}, run=lambda _args, _call: _noted()),
    )


async def _noted() -> str:
    return "noted"


def isolate_of(database: Any, model: Model, hooks: ChatTurnHooks | None = None, **settings: str) -> Isolate:
    return Isolate(database, hooks or Assistant(), model.backend(), settings={"THREADS": "on", **settings})


class Client:
    """
    An OpenAI SDK in a tool loop.

    Attributes:
        messages: What it sends: everything so far.
        done: The calls that it has done, by id.
    """

    def __init__(self, isolate: Isolate, *, stream: bool = True, **members: Any) -> None:
        self.isolate = isolate
        self.messages: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
        self.done: dict[str, Any] = {}
        self.ids: list[str] = []
        self._members = {"model": "default", "tools": [LOOK], "stream": stream, **members}

    async def ask(self, **headers: Any) -> dict[str, Any] | None:
        """Send everything; return the message that came, and take it for said; None where it did not come whole."""
        reply = await self.isolate.ask("POST", COMPLETIONS, {**self._members, "messages": self.messages}, **headers)
        message = await self._message(reply)
        if message is not None:
            self.messages.append(message)
        return message

    async def _message(self, reply: Reply) -> dict[str, Any] | None:
        if reply.status == 503:
            return None
        assert reply.status == 200, reply.response.body
        if reply.task is None:
            self.ids.append(reply.body["id"])
            [choice] = reply.body["choices"]
            assert (choice["finish_reason"] == "tool_calls") is ("tool_calls" in choice["message"])
            return dict(choice["message"])
        await asyncio.wait([reply.task])
        view = CompletionView()
        view.read(reply.reader.text)
        if not view.done:
            assert reply.reader.broken_off or view.error is not None or self.isolate.wire.dead
            return None
        self.ids += view.ids
        assert (view.finish_reason == "tool_calls") is bool(view.calls)
        called = {"tool_calls": list(view.calls.values())} if view.calls else {}
        return {"role": "assistant", "content": view.text or None, **called}

    def does(self, message: dict[str, Any]) -> None:
        """Do what it is asked to."""
        for call in message["tool_calls"]:
            assert call["id"] not in self.done
            self.done[call["id"]] = json.loads(call["function"]["arguments"])
            self.gives(call["id"])

    def gives(self, id_: str, text: str = "seen") -> None:
        """Add a result to what it sends."""
        self.messages.append({"role": "tool", "tool_call_id": id_, "content": text})


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_goes_on_with_the_results_of_its_client(database: SqliteDatabase, *, stream: bool) -> None:
    """One turn, two completions with ids of their own; the model is told the client's words as they are."""
    model = Model(LOOKS, "done")
    client = Client(isolate_of(database, model), stream=stream)
    asked = await client.ask()
    assert asked is not None
    client.does(asked)
    answered = await client.ask()

    assert answered is not None
    assert ("let me see", "done") == (asked["content"], answered["content"])
    assert [{"at": "it"}] == list(client.done.values())
    assert 2 == len(set(client.ids))
    assert [("completed",)] == await rows(database, "SELECT status FROM durable_runs")
    [first, second] = [request for request, _ in model.calls]
    assert [LOOK] == first.options["tools"] == second.options["tools"]
    assert {"role": "tool", "tool_call_id": "c0", "content": "seen"} == second.messages[-1]


async def test_an_id_of_a_call_is_taken_by_every_api(database: SqliteDatabase) -> None:
    """`call_` and 32 hex digits: 37 characters, where 40 are allowed."""
    client = Client(isolate_of(database, Model([LOOKS, LOOKS], "done")))
    asked = await client.ask()
    assert asked is not None

    for call in asked["tool_calls"]:
        assert ("call_", 37) == (call["id"][:5], len(call["id"]))
    assert 2 == len({call["id"] for call in asked["tool_calls"]})


async def test_several_calls_are_told_at_once_and_answered_in_any_order(database: SqliteDatabase) -> None:
    """What is missing is asked for again, and nothing else; the model is told all in its own order."""
    model = Model([("look", {"at": 1}), ("look", {"at": 2})], "done")
    client = Client(isolate_of(database, model))
    asked = await client.ask()
    assert asked is not None
    one, two = [call["id"] for call in asked["tool_calls"]]
    client.gives(two, "second")
    again = await client.ask()
    assert again is not None
    assert ([one], None) == ([call["id"] for call in again["tool_calls"]], again["content"])
    client.messages.pop()
    client.gives(one, "first")
    answered = await client.ask()

    assert answered is not None
    assert "done" == answered["content"]
    assert 2 == len(model.calls)
    assert ["first", "second"] == [m["content"] for m in model.calls[-1][0].messages if m["role"] == "tool"]


async def test_rounds_follow_each_other_in_one_turn(database: SqliteDatabase) -> None:
    """Each request brings all results so far, and gets what comes behind them."""
    model = Model(LOOKS, ("look", {"at": "that"}), "done")
    client = Client(isolate_of(database, model))
    for _ in range(2):
        asked = await client.ask()
        assert asked is not None
        client.does(asked)
    answered = await client.ask()

    assert answered is not None
    assert "done" == answered["content"]
    assert [{"at": "it"}, {"at": "that"}] == list(client.done.values())
    assert (3, 1) == (len(model.calls), len(await rows(database, "SELECT * FROM chat_turns")))


async def test_the_same_request_has_the_same_answer_whatever_came_after_it(database: SqliteDatabase) -> None:
    """The first under its key: the calls, also when the turn is over; the results twice, and at once: one turn."""
    model = Model(LOOKS, "done")
    client = Client(isolate_of(database, model))
    asked = await client.ask(idempotency_key="k")
    assert asked is not None
    client.does(asked)
    before = list(client.messages)
    both = await asyncio.gather(client.ask(), client.ask())
    client.messages = before[:1]
    again = await client.ask(idempotency_key="k")
    client.messages = before
    late = await client.ask()

    assert ["done", "done", "done"] == [message and message["content"] for message in (*both, late)]
    assert asked == again
    assert 2 == len(model.calls)


async def test_results_that_no_turn_has_asked_for_are_a_part_of_the_conversation(database: SqliteDatabase) -> None:
    """A fresh turn: the model is shown the calls and what came of them, and may go on."""
    model = Model("never", "done")
    client = Client(isolate_of(database, model))
    call = {"id": "call_of_another", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    client.messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    client.gives("call_of_another")
    answered = await client.ask()

    assert answered is not None
    assert "done" == answered["content"]
    shown = model.calls[0][0].messages
    assert ["user", "assistant", "tool"] == [message["role"] for message in shown]
    assert ([call], "seen") == (shown[1]["tool_calls"], shown[2]["content"])


@pytest.mark.parametrize("stream", [True, False])
async def test_results_that_others_have_asked_for_are_none_of_the_turn_s(
    database: SqliteDatabase, *, stream: bool
) -> None:
    """A model elsewhere, or another turn, has begun the loop: the turn that asked last goes on with its own."""
    model = Model(LOOKS, ("look", {"at": "that"}), "done")
    isolate = isolate_of(database, model)
    other, client = Client(isolate, stream=stream), Client(isolate, stream=stream)
    call = {"id": "call_of_another", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    client.messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    client.gives("call_of_another")
    for each in (other, client):
        asked = await each.ask()
        assert asked is not None
        each.does(asked)
    client.messages[1:1] = other.messages[1:]
    answered = await client.ask()

    assert answered is not None
    assert "done" == answered["content"]
    assert [{"at": "that"}] == list(client.done.values())
    assert 3 == len(model.calls)
    assert ["completed", "suspended"] == sorted(
        status for (status,) in await rows(database, "SELECT status FROM durable_runs")
    )


async def test_who_asks_on_gives_the_results_with_the_next_question(database: SqliteDatabase) -> None:
    """The turn that waits for them goes on, and the next one, which would wait for it, comes behind."""
    model = Model(LOOKS, "done")
    client = Client(isolate_of(database, model), metadata={"session_id": "thread-1"})
    asked = await client.ask()
    assert asked is not None
    client.does(asked)
    client.messages.append({"role": "user", "content": "and now?"})
    answered = await client.ask()

    assert answered is not None
    assert "let me see" == answered["content"]  # as this model says to every question
    assert ["seen"] == [m["content"] for m in model.calls[1][0].messages if m["role"] == "tool"]
    assert ["hi", "done", "and now?"] == [m["content"] for m in model.calls[2][0].messages]
    assert [("completed",), ("suspended",)] == await rows(database, "SELECT status FROM durable_runs")


async def test_what_was_asked_with_results_is_asked_again_with_them(database: SqliteDatabase) -> None:
    """A worker that takes such a turn over has them from the record."""
    model = Model("never", "done")
    isolate = isolate_of(database, model, LEASE_MS="3000")
    client = Client(isolate)
    call = {"id": "call_x", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    client.messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    client.gives("call_x")
    await client.ask()
    run_id = (await rows(database, "SELECT run_id FROM chat_turns"))[0][0]
    turn = await isolate.service.reopen(str(run_id))

    assert turn.replayed


@pytest.mark.parametrize("other", [{"x_tenant": "other"}, {"x_user": "bob"}])
async def test_nobody_else_can_give_results(database: SqliteDatabase, other: dict[str, str]) -> None:
    """Of another tenant, or of another user where sessions have owners: to them the id is unknown."""
    model = Model(LOOKS, "done")
    client = Client(isolate_of(database, model, SESSION_OWNER="subject"))
    asked = await client.ask()
    assert asked is not None
    client.does(asked)
    await client.ask(**other)

    assert [] == await rows(database, "SELECT * FROM durable_events")
    assert ["completed", "suspended"] == sorted(
        status for (status,) in await rows(database, "SELECT status FROM durable_runs")
    )


async def test_a_turn_that_is_stopped_takes_no_results(database: SqliteDatabase) -> None:
    """It ends as cancelled, and says so."""
    model = Model(LOOKS, "done")
    isolate = isolate_of(database, model)
    client = Client(isolate, metadata={"session_id": "thread-1"})
    asked = await client.ask()
    assert asked is not None
    client.does(asked)
    await cancel(isolate)
    await asyncio.sleep(5)
    reply = await isolate.ask("POST", COMPLETIONS, {"model": "default", "tools": [LOOK], "messages": client.messages})

    assert (409, "cancelled") == (reply.status, reply.body["error"]["code"])
    assert 1 == len(model.calls)


async def test_a_client_may_say_which_tool_is_to_be_called(database: SqliteDatabase) -> None:
    """In the first round: forced in each, there would be no answer."""
    model = Model(LOOKS, "done")
    client = Client(isolate_of(database, model), tool_choice="required", parallel_tool_calls=False)
    asked = await client.ask()
    assert asked is not None
    client.does(asked)
    await client.ask()

    assert ["required", "auto"] == [request.options["tool_choice"] for request, _ in model.calls]
    assert [False, False] == [request.options["parallel_tool_calls"] for request, _ in model.calls]


@pytest.mark.parametrize(
    ("members", "status", "param"),
    [
        ({"tools": [{"type": "function"}]}, 422, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, 422, "tools"),
        ({"tools": [LOOK, LOOK]}, 422, "parameters.tools"),
        ({"tools": "look"}, 422, "tools"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}]}, 422, "messages[1]"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "y", "content": "x"}]},
            422,
            "messages[1]",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, 422, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "x"}]}]}, 422, "messages[0]"),
    ],
)
async def test_bad_tools_are_refused_by_name(
    database: SqliteDatabase, members: dict[str, Any], status: int, param: str
) -> None:
    """Before anything is stored."""
    body = {"model": "default", "messages": [{"role": "user", "content": "x"}], "tools": [LOOK], **members}
    reply = await isolate_of(database, Model("x")).ask("POST", COMPLETIONS, body)

    assert (status, param) == (reply.status, reply.body["error"]["param"])
    assert [] == await rows(database, "SELECT * FROM durable_runs")


@pytest.mark.parametrize("setting", [{"ALLOW_PARAMETERS": "temperature"}, {}])
async def test_a_deployment_that_takes_no_tools_says_so(database: SqliteDatabase, setting: dict[str, str]) -> None:
    """By its setting, or by its product: 400, which names the member."""
    hooks = Assistant() if setting else Guide()
    isolate = isolate_of(database, Model("x"), hooks, **setting)
    body = {"model": "default", "messages": [{"role": "user", "content": "x"}], "tools": [LOOK]}
    reply = await isolate.ask("POST", COMPLETIONS, body)

    assert (400, "unsupported_parameter", "tools") == (
        reply.status,
        *(reply.body["error"][n] for n in ("code", "param")),
    )


async def test_what_is_wrong_with_a_tool_is_said(database: SqliteDatabase) -> None:
    """What a tool must be, and not only that it is none."""
    body = {"model": "default", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "custom"}]}
    reply = await isolate_of(database, Model("x")).ask("POST", COMPLETIONS, body)

    assert reply.body["error"]["message"] == (
        'tools must be a list of 1 to 128 tools, each {"type": "function", "function": {"name", "description", '
        '"parameters"}}, whose name is of A-Z a-z 0-9 _ -'
    )


# On our own routes


async def test_our_own_routes_have_them_too(database: SqliteDatabase) -> None:
    """`parameters.tools`; a line for each call; its result is an event of the run, which wakes the turn."""
    model = Model(LOOKS, "done")
    isolate = isolate_of(database, model)
    posted = await isolate.post(parameters={"tools": [LOOK]})
    lines = await posted.lines()
    [call] = [line["data"] for line in lines if line["type"] == "tool.client"]
    address = f"/v1/runs/chat%3Aacme%3Athread-1%3A0/events/{call['key'].replace(':', '%3A')}"
    wrong = await isolate.ask("POST", address, {"payload": "seen"})
    none = await isolate.ask("POST", address[:-1], {"payload": {"result": 1}})
    given = await isolate.ask("POST", address, {"payload": {"error": "it is dark"}})
    await asyncio.sleep(1)
    again = await isolate.ask("POST", address, {"payload": {"error": "it is dark"}})
    other = await isolate.ask("POST", address, {"payload": {"result": "seen"}})
    shown = await isolate.ask("GET", f"{TURN}/stream")

    assert "tool.call" not in [line["type"] for line in lines]
    assert ({"at": "it"}, "tool:" + call["toolCallId"]) == (call["args"], call["key"])
    assert "session.run.suspended" == lines[-1]["type"]
    assert (422, 404) == (wrong.status, none.status)
    assert [True, True, False] == [each.body["accepted"] for each in (given, again, other)]
    assert ["it is dark"] == [line["data"]["message"] for line in await shown.lines() if line["type"] == "tool.error"]
    assert "done" == "".join(line["data"].get("delta", "") for line in await shown.lines())[-4:]


# The AI SDK


@pytest.mark.parametrize(("sdk", "times"), [(7, 2), (6, 1), (5, 1)])
async def test_a_chat_s_client_does_its_tools(database: SqliteDatabase, sdk: int, times: int) -> None:
    """`onToolCall` fires once a call; with the result the same message goes on, and nothing asks for another round."""
    model = Model([LOOKS, ("note", {})], "done")
    isolate = isolate_of(database, model, Guide())
    question = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
    view = UiMessageView()
    await _read(view, await isolate.ask("POST", f"{CHAT}?v={sdk}", {"id": "c1", "messages": [question]}))
    assert ("tool-calls", {LOOKS[0]: {"at": "it"}}) == (view.finish_reason, dict(view.to_do.values()))
    [id_] = view.to_do

    part = {"type": "tool-look", "toolCallId": id_, "state": "output-available", "input": {"at": "it"}, "output": [1]}
    thread = {"id": "c1", "messages": [question, {"id": view.id, "role": "assistant", "parts": [part]}]}
    for _ in range(times):
        view.to_do.clear()
        view.finished = False
        await _read(view, await isolate.ask("POST", f"{CHAT}?v={sdk}", thread))

    assert ({}, "let me seedone", "stop") == (view.to_do, view.text, view.finish_reason)
    assert ["output-available"] * 2 == [each["state"] for each in view.parts if "state" in each]
    assert all(each["executed"] for each in view.parts if "state" in each)
    assert [[1], "noted"] == model.told
    assert 2 == len(model.calls)


async def test_a_page_that_is_loaded_again_learns_what_it_is_to_do(database: SqliteDatabase) -> None:
    """While the result is missing; once it has come, nobody does it again."""
    isolate = isolate_of(database, Model(LOOKS, "done"), Guide())
    question = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
    first, second, third = UiMessageView(), UiMessageView(), UiMessageView()
    await _read(first, await isolate.ask("POST", CHAT, {"id": "c1", "messages": [question]}))
    await _read(second, await isolate.ask("GET", f"{CHAT}/c1/stream"))
    [id_] = first.to_do
    failed = {"type": "dynamic-tool", "toolCallId": id_, "state": "output-error", "errorText": "no", "input": {}}
    thread = {"id": "c1", "messages": [question, {"id": first.id, "role": "assistant", "parts": [failed]}]}
    await _read(first, await isolate.ask("POST", CHAT, thread))
    await _read(third, await isolate.ask("GET", f"{CHAT}/c1/stream"))

    assert {id_} == set(second.to_do)
    assert ({}, "done", ["output-error"]) == (
        third.to_do,
        third.text[-4:],
        [each["state"] for each in third.parts if "state" in each],
    )


async def test_who_asks_on_in_a_chat_gives_the_results_with_the_next_question(database: SqliteDatabase) -> None:
    """As in a session of OpenAI's clients; a result that nobody has asked for is no matter."""
    model = Model(LOOKS, "done")
    isolate = isolate_of(database, model, Guide())
    first, second = ({"role": "user", "parts": [{"type": "text", "text": text}]} for text in ("hi", "and now?"))
    view, after = UiMessageView(), UiMessageView()
    await _read(view, await isolate.ask("POST", CHAT, {"id": "c1", "messages": [first]}))
    parts = [
        {"type": "tool-look", "toolCallId": id_, "state": "output-available", "input": {}, "output": [1]}
        for id_ in (*view.to_do, "call_of_another")
    ]
    thread = [first, {"role": "assistant", "parts": parts}, second]
    await _read(after, await isolate.ask("POST", CHAT, {"id": "c1", "messages": thread}))

    assert ("chat:acme:c1:1", "let me see") == (after.id, after.text)
    assert ["[1]"] == [m["content"] for m in model.calls[1][0].messages if m["role"] == "tool"]
    assert [("completed",), ("suspended",)] == await rows(database, "SELECT status FROM durable_runs")


async def _read(view: UiMessageView, reply: Reply) -> None:
    assert reply.status == 200, reply.response.body
    assert reply.task is not None
    await reply.task
    view.read(reply.reader.text)


# Whatever goes wrong


class Failing:
    """A database that fails at one batch: before or after it was applied; or whose isolate dies there."""

    def __init__(self, database: SqliteDatabase, at: int, fault: Literal["before", "after", "dies"]) -> None:
        self.database, self.at, self.fault, self.batches = database, at, fault, 0
        self.isolate: Isolate | None = None

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        number, self.batches = self.batches, self.batches + 1
        if number == self.at and self.fault == "before":
            raise StoreUnavailable("no answer (not applied)")
        results = await self.database.batch(statements)
        if number == self.at and self.fault == "after":
            raise StoreUnavailable("no answer (applied)")
        if number == self.at and self.fault == "dies":
            assert self.isolate is not None
            self.isolate.wire.dead = True
            for reader in self.isolate.readers:
                reader.ended = True
            raise asyncio.CancelledError
        return results


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["before", "after", "dies"])
@pytest.mark.parametrize("stream", [True, False])
async def test_whatever_fails_the_client_gets_the_whole_and_does_each_call_once(
    fault: Literal["before", "after", "dies"], *, stream: bool
) -> None:
    """At every batch of the database: each request is sent until it is answered, as SDKs do under a key."""
    at, went_wrong = 0, True
    while went_wrong:
        with open_sqlite() as database:
            failing = Failing(database, at, fault)
            model = Model(LOOKS, "done")
            client = Client(isolate_of(failing, model, LEASE_MS="3000"), stream=stream)
            failing.isolate = client.isolate
            said = []
            for round_ in range(2):
                message = await _sent_until_answered(client, database, model, round_)
                said.append(message["content"])
                if "tool_calls" in message:
                    client.does(message)
            went_wrong = failing.batches > at

            assert ["let me see", "done"] == said, (fault, at)
            assert [{"at": "it"}] == list(client.done.values())
            assert [("completed",)] == await rows(database, "SELECT status FROM durable_runs")
            assert len(model.calls) <= 3
        at += 1
    assert at > 6


async def _sent_until_answered(client: Client, database: SqliteDatabase, model: Model, round_: int) -> dict[str, Any]:
    for _ in range(10):
        message = None
        try:
            message = await client.ask(idempotency_key=f"round {round_}")
        except asyncio.CancelledError:
            assert client.isolate.wire.dead
        if message is not None:
            return message
        if client.isolate.wire.dead:
            client.isolate = isolate_of(database, model, LEASE_MS="3000")
        await asyncio.sleep(1)
    raise AssertionError("it is never answered")
