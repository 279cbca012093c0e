"""What a request says about the model: it is passed on, stored with the turn, and allowed by the deployment."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from chatturn.backends.routing import Means, create_backend, provider_of_settings
from chatturn.chat.requests import TurnRequest
from chatturn.chat.thread.versions import Replace
from chatturn.chat.turn.sinks import NoSink
from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import ConfigurationError, DurableRunInputMismatchError, InvalidField
from chatturn.settings import Settings
from products.agent import Hooks as Agent
from products.assistant import Hooks as Assistant
from tests.support.isolates import Isolate
from tests.support.transport import Reply, ScriptedTransport
from tests.support.turns import IDENTITY, open_sqlite
from tests.unit.backends.openai.test_backend import OK, frame

PARAMETERS = {"temperature": 0.5, "max_tokens": 9}
CALL = {"index": 0, "id": "a", "function": {"name": "add_note", "arguments": '{"text":"milk"}'}}


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


def isolate(database: SqliteDatabase, script: list[Reply], hooks: Any = None, **settings: str) -> tuple[Isolate, Any]:
    """Return an isolate whose model follows a script, and the transport that has the record."""
    transport = ScriptedTransport(script)
    chosen = replace(Settings(backend="openai", model="m", openai_api_key="k"))
    means = Means(
        transport=transport, binding=transport, uniform=lambda _low, _high: 0.0, now=lambda: 0.0, log=lambda *_: None
    )
    backend = create_backend(chosen, [provider_of_settings(chosen)], means)
    return Isolate(database, hooks or Assistant(), backend, {"MODEL": "m", **settings}), transport


def asked(transport: ScriptedTransport) -> list[dict[str, Any]]:
    """Return the bodies of the requests so far."""
    return [json.loads(exchange.request.body) for exchange in transport.exchanges]


async def turn(alone: Isolate, index: int = 0, **members: Any) -> None:
    """Ask for a turn to its end."""
    await (await alone.service.open(replace(IDENTITY, turn_index=index), TurnRequest(message="hi", **members))).run(
        NoSink()
    )


async def test_parameters_reach_the_model_and_are_part_of_the_turn(database: SqliteDatabase) -> None:
    """The same ones replay; others, or none, are another turn."""
    alone, transport = isolate(database, [OK])
    await turn(alone, parameters=PARAMETERS)
    await turn(alone, parameters=PARAMETERS)
    for other in ({}, {"temperature": 0.5}):
        with pytest.raises(DurableRunInputMismatchError):
            await turn(alone, parameters=other)
    [body] = asked(transport)

    assert {"temperature": 0.5, "max_tokens": 9}.items() <= body.items()


async def test_parameters_reach_each_round_of_an_agent(database: SqliteDatabase) -> None:
    """With its tools beside them."""
    first = Reply(body=[frame(choices=[{"index": 0, "delta": {"tool_calls": [CALL]}}]), frame(finish="tool_calls")])
    alone, transport = isolate(database, [first, OK], Agent())
    await turn(alone, parameters={**PARAMETERS, "tool_choice": "required"})
    rounds = asked(transport)

    assert [(0.5, 9, "required")] * 2 == [(b["temperature"], b["max_tokens"], b["tool_choice"]) for b in rounds]
    assert all(body["tools"] for body in rounds)


async def test_a_choice_of_tools_is_not_said_without_tools(database: SqliteDatabase) -> None:
    """APIs refuse it."""
    alone, transport = isolate(database, [OK])
    await turn(alone, parameters={"tool_choice": "auto", "seed": 1})
    [body] = asked(transport)

    assert ("tool_choice" in body, body["seed"]) == (False, 1)


async def test_a_takeover_asks_with_the_same_parameters(database: SqliteDatabase) -> None:
    """They are stored with the turn, whose worker died before it said anything."""
    alone, transport = isolate(database, [OK])
    await alone.service.open(IDENTITY, TurnRequest(message="hi", parameters=PARAMETERS))
    await asyncio.sleep(61)
    await (await alone.service.reopen("chat:acme:thread-1:0")).run(NoSink())
    [body] = asked(transport)

    assert (body["temperature"], body["max_tokens"]) == (0.5, 9)


@pytest.mark.parametrize(
    ("members", "field"),
    [({"model": "x"}, "model"), ({"parameters": {"seed": 1}}, "parameters.seed")],
)
async def test_what_is_not_allowed_is_refused_for_a_new_turn_only(
    database: SqliteDatabase, members: dict[str, Any], field: str
) -> None:
    """A turn of before the setting is replayed; a new one is refused, and nothing is written."""
    before, _ = isolate(database, [OK])
    await turn(before, **members)
    alone, transport = isolate(database, [], MODELS="a, b", ALLOW_PARAMETERS="temperature")
    await turn(alone, **members)
    with pytest.raises(InvalidField) as refused:
        await turn(alone, index=1, **members)

    assert (refused.value.field, asked(transport)) == (field, [])
    assert await alone.service.show(replace(IDENTITY, turn_index=1)) is None


async def test_what_is_allowed_is_done(database: SqliteDatabase) -> None:
    """The models of the setting, the deployment's own, and the parameters of the setting."""
    alone, transport = isolate(database, [OK] * 3, MODELS="a, b", ALLOW_PARAMETERS="temperature")
    await turn(alone, model="b", parameters={"temperature": 1})
    await turn(alone, index=1, model="m")
    await turn(alone, index=2)

    assert ["b", "m", "m"] == [body["model"] for body in asked(transport)]
    assert ["m", "a", "b"] == list(alone.service.model_names())


async def test_a_setting_with_a_parameter_that_is_none_is_told(database: SqliteDatabase) -> None:
    """At /readyz, by the setting's name."""
    alone, _ = isolate(database, [], ALLOW_PARAMETERS="temprature")
    with pytest.raises(ConfigurationError, match="ALLOW_PARAMETERS"):
        await alone.service.check()


async def test_a_completion_s_parameters_are_passed_on_or_named(database: SqliteDatabase) -> None:
    """What is allowed reaches the model; what is not stands in a header."""
    alone, transport = isolate(database, [OK], ALLOW_PARAMETERS="temperature,response_format")
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "seed": 4,
        "logit_bias": {"1": 2},
        "response_format": {"type": "json_object"},
    }
    reply = await alone.ask("POST", "/v1/chat/completions", body)
    [sent] = asked(transport)

    assert reply.response.headers["X-Ignored-Parameters"] == "logit_bias, seed"
    assert (sent["temperature"], sent["response_format"]) == (0.5, {"type": "json_object"})
    assert not {"seed", "logit_bias"} & sent.keys()


async def test_a_completion_s_wrong_parameter_is_refused_by_its_name(database: SqliteDatabase) -> None:
    """As these clients know it."""
    alone, _ = isolate(database, [])
    body = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "temperature": 9}
    reply = await alone.ask("POST", "/v1/chat/completions", body)
    error = json.loads(reply.response.body or b"")["error"]

    assert (reply.response.status, error["param"]) == (422, "temperature")


async def finished(reply: Any) -> None:
    """Wait for the end of a stream, in whatever format."""
    if reply.task is not None:
        await reply.task


def chat(**members: Any) -> dict[str, Any]:
    """Return what the AI SDK sends."""
    return {"id": "c", "messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}], **members}


async def test_a_chat_s_parameters_are_passed_on_or_named(database: SqliteDatabase) -> None:
    """As a completion's; a wrong one is refused by its name."""
    alone, transport = isolate(database, [OK], ALLOW_PARAMETERS="temperature", MODELS="a")
    body = chat(model="a", parameters={"temperature": 0.5, "seed": 4})
    reply = await alone.ask("POST", "/v1/ai-sdk/chat", body)
    await finished(reply)
    wrong = await alone.ask("POST", "/v1/ai-sdk/chat", chat(id="d", parameters={"temperature": 9}))
    [sent] = asked(transport)

    assert (reply.response.headers["X-Ignored-Parameters"], sent["temperature"], sent["model"]) == ("seed", 0.5, "a")
    assert (wrong.status, b"parameters.temperature" in wrong.response.body, "seed" in sent) == (422, True, False)


async def test_an_unlisted_model_is_refused_on_every_route(database: SqliteDatabase) -> None:
    """Nothing is written, and nobody is asked; what was begun before the setting is shown all the same."""
    before, _ = isolate(database, [OK] * 3)
    bodies = {
        "/v1/sessions/thread-1/turns/0": {"message": "hi", "model": "x"},
        "/v1/ai-sdk/chat": chat(model="x"),
        "/v1/chat/completions": {
            "model": "x",
            "messages": [{"role": "user", "content": "hi"}],
            "metadata": {"session_id": "s", "turn_index": "0"},
        },
    }
    for path, body in bodies.items():
        first = await before.ask("POST", path, body)
        assert first.status == 200
        await finished(first)
    alone, transport = isolate(database, [], MODELS="a, b")
    again = [(await alone.ask("POST", path, body)).status for path, body in bodies.items()]
    later = {
        "/v1/sessions/thread-1/turns/1": bodies["/v1/sessions/thread-1/turns/0"],
        "/v1/ai-sdk/chat": chat(model="x", id="other"),
        "/v1/chat/completions": {**bodies["/v1/chat/completions"], "metadata": {"session_id": "other"}},
    }
    refused = [(await alone.ask("POST", path, body)).status for path, body in later.items()]
    [turns] = await database.batch([Statement("SELECT count(*) AS turns FROM chat_turns")])

    assert (again, refused, asked(transport)) == ([200] * 3, [422] * 3, [])
    assert turns.rows[0]["turns"] == 3


@pytest.mark.parametrize("threads", ["off", "on"])
async def test_an_unlisted_model_begins_no_other_answer(database: SqliteDatabase, threads: str) -> None:
    """Neither as a new version nor in place of the first; the turn stands, and its own request is replayed."""
    before, _ = isolate(database, [OK], THREADS=threads)
    await turn(before)
    alone, transport = isolate(database, [], MODELS="a", THREADS=threads)
    ways: list[dict[str, Any]] = [{"supersede": True}]
    if threads == "on":
        ways += [{"replace": Replace(kind="regenerate", version=1)}, {"replace": Replace(kind="edit", version=1)}]
    for way in ways:
        with pytest.raises(InvalidField):
            await turn(alone, model="x", **way)
    await turn(alone)

    assert asked(transport) == []


async def test_a_takeover_and_a_resume_ask_the_model_that_is_no_longer_listed(database: SqliteDatabase) -> None:
    """What was begun is brought to its end."""
    before, _ = isolate(database, [])
    await before.service.open(IDENTITY, TurnRequest(message="hi", model="x"))
    await asyncio.sleep(61)
    alone, transport = isolate(database, [OK], MODELS="a")

    assert await alone.service.resume("chat:acme:thread-1:0")
    assert [body["model"] for body in asked(transport)] == ["x"]
