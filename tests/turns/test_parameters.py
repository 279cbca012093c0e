"""What a request says about the model: it is passed on, stored with the turn, and allowed by the deployment."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from chatturn.backends.routing import Means, create_backend, provider_of_settings
from chatturn.chat.requests import TurnRequest
from chatturn.chat.turn.sinks import NoSink
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
