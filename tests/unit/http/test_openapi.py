"""`/openapi.json` is what the tables say; `make api` tries the running Worker by it."""

import json
import re
from typing import Any

from chatturn.errors import error_classes
from chatturn.events import text_delta, usage_event
from chatturn.http.ai_sdk import CHAT_STREAM_QUERY
from chatturn.http.application import Route
from chatturn.http.limits import TURN_MEMBERS
from chatturn.http.openai_chat import NOT_TAKEN
from chatturn.http.openapi import describe
from chatturn.http.parameters import Query
from chatturn.http.query_strings import LOG_QUERY, MESSAGES_QUERY, TURNS_QUERY, USAGE_QUERY
from chatturn.http.routes import ROUTES
from chatturn.http.turns import TURN
from tests.support.isolates import Isolate
from tests.support.turns import Product, open_sqlite

DOCUMENT: dict[str, Any] = json.loads(json.dumps(describe(ROUTES)))


def test_every_route_is_told_with_its_scopes() -> None:
    """A row that is added without a description is a `KeyError`."""
    for route in ROUTES:
        operation = DOCUMENT["paths"][route.template][route.method.lower()]

        assert operation["summary"].endswith(".")
        if isinstance(route, Route):
            assert list(route.scopes) == operation["security"][0]["bearer"]
            assert ({"ticket": []} in operation["security"]) is route.takes_tickets
            assert {"401", "403", "422", "500", "503"} <= operation["responses"].keys()
        else:
            assert "security" not in operation
    assert sum(len(set(path) - {"parameters"}) for path in DOCUMENT["paths"].values()) == len(ROUTES)


def test_every_variable_of_an_address_is_told() -> None:
    """By the name that it has in the address."""
    for template, path in DOCUMENT["paths"].items():
        names = [each["name"] for each in path.get("parameters", ())]
        assert names == re.findall(r"\{(\w+)\}", template)


def test_the_queries_are_those_that_are_read() -> None:
    """Member by member, with their limits."""
    queries: dict[str, Query] = {
        f"{TURN}/stream": LOG_QUERY,
        "/v1/sessions/{session}/messages": MESSAGES_QUERY,
        "/v1/runs": TURNS_QUERY,
        "/v1/usage": USAGE_QUERY,
        "/v1/ai-sdk/chat/{id}/stream": CHAT_STREAM_QUERY,
    }
    for template, query in queries.items():
        told = DOCUMENT["paths"][template]["get"]["parameters"]
        assert {each["name"]: each["schema"] for each in told if each["in"] == "query"} == {
            name: each.schema for name, each in query.items() if name != "ticket"
        }


def test_the_body_of_a_turn_is_what_is_read() -> None:
    """No other member, and the message alone is required."""
    body = DOCUMENT["paths"][TURN]["post"]["requestBody"]["content"]["application/json"]["schema"]

    assert set(body["properties"]) == set(TURN_MEMBERS)
    assert (body["required"], body["additionalProperties"]) == (["message"], False)


def test_every_refusal_names_codes_that_there_are() -> None:
    """And every reference leads somewhere."""
    codes = {cls.code for cls in error_classes()}
    for path in DOCUMENT["paths"].values():
        for method, operation in path.items():
            for status, response in operation["responses"].items() if method != "parameters" else ():
                if int(status) >= 400 and "application/problem+json" in response["content"]:
                    assert set(re.findall(r"`(\w+)`", response["description"])) <= codes
    for reference in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)):
        assert reference in DOCUMENT["components"]["schemas"]


async def test_whatever_a_problem_says_is_told() -> None:
    """Also the index that a message may take whose place is taken."""
    told = set(DOCUMENT["components"]["schemas"]["Problem"]["properties"])
    with open_sqlite() as database:
        isolate = Isolate(database, Product(2.0, text_delta("a")), settings={"THREADS": "on"})
        await isolate.post()
        problem = await isolate.post("another", when_busy="reject")

    assert 422 == problem.status
    assert {"turnIndex"} <= set(problem.body) <= told


async def test_a_completion_is_what_is_told() -> None:
    """Member by member; what may be asked for is what is read."""
    operation = DOCUMENT["paths"]["/v1/chat/completions"]["post"]
    told = operation["responses"]["200"]["content"]["application/json"]["schema"]
    asked = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    with open_sqlite() as database:
        isolate = Isolate(database, Product(text_delta("a"), usage_event(model="m", tokensIn=1, tokensOut=1)))
        body = {"model": "default", "messages": [{"role": "user", "content": "hi"}]}
        completion = (await isolate.ask("POST", "/v1/chat/completions", body)).body

    assert set(completion) == set(told["properties"])
    assert set(completion["choices"][0]) == set(told["properties"]["choices"]["items"]["properties"])
    assert {"tools", "tool_choice", "temperature"} <= set(asked)
    assert not NOT_TAKEN & set(asked)


def schema_of(template: str) -> dict[str, Any]:
    """Return what a GET of an address is told to answer."""
    answer = DOCUMENT["paths"][template]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert isinstance(answer, dict)
    return answer


async def test_what_is_told_of_answers_is_what_is_sent() -> None:
    """Member by member, of a turn, of a list and of a thread; `make api` looks at all of them."""
    with open_sqlite() as database:
        isolate = Isolate(database, Product(text_delta("a")))
        await (await isolate.post()).lines()
        turn = (await isolate.ask("GET")).body
        [run] = (await isolate.ask("GET", "/v1/runs")).body["runs"]
        thread = (await isolate.ask("GET", "/v1/sessions/thread-1/messages")).body
    told_run = schema_of("/v1/runs")["properties"]["runs"]["items"]
    told_message = schema_of("/v1/sessions/{session}/messages")["properties"]["messages"]["items"]

    assert set(turn) == set(schema_of(TURN)["properties"])
    assert set(told_run["required"]) <= set(run) <= set(told_run["properties"])
    for message in thread["messages"]:
        assert set(told_message["required"]) <= set(message) <= set(told_message["properties"])
