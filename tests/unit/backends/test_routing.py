"""Which provider is asked, who is asked instead, and who rests."""

import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

import pytest

from chatturn.backends.api import AgentBackendContext, AgentBackendInput
from chatturn.backends.providers import parse_providers
from chatturn.backends.routing import Means, RoutingBackend, create_backend, provider_of_settings
from chatturn.errors import (
    BackendError,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendTransportError,
    ConfigurationError,
    ContentNotTaken,
    ContextOverflow,
)
from chatturn.events import TextAssembly, events_of
from chatturn.settings import Settings
from tests.support.transport import HANG, Reply, ScriptedTransport

CONTEXT = AgentBackendContext(request_id="r")
OK = Reply(
    body=[
        b'data: {"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":"stop"}]}\n\n',
        b"data: [DONE]\n\n",
    ]
)
HALF = Reply(
    body=[b'data: {"choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n', BackendTransportError("cut", backend="t")]
)
DOWN = BackendTransportError("connection refused", backend="t")
ONE: Mapping[str, Any] = {"name": "one", "kind": "ollama", "base_url": "http://one/v1", "models": ["a"]}
TWO: Mapping[str, Any] = {"name": "two", "kind": "vllm", "base_url": "http://two/v1", "models": ["b", "c"]}


class Rig:
    """A backend over a scripted transport, with a clock of its own."""

    def __init__(
        self, script: Sequence[Any], *providers: Mapping[str, Any], model: str = "a,b", **settings: Any
    ) -> None:
        self.transport = ScriptedTransport(script)
        self.now = 1_000.0
        self.log: list[tuple[str, Mapping[str, object]]] = []
        means = Means(
            transport=self.transport,
            binding=self.transport,
            uniform=lambda _low, _high: 0.0,
            now=lambda: self.now,
            log=lambda event, particulars: self.log.append((event, particulars)),
        )
        chosen = Settings(backend="openai", model=model, **settings)
        parsed = parse_providers(json.dumps(providers), {}) if providers else (provider_of_settings(chosen),)
        self.backend: RoutingBackend = create_backend(chosen, parsed, means)

    async def text(self, model: str | None = None) -> str:
        """Ask, and return the answer."""
        asked = AgentBackendInput(messages=[{"role": "user", "content": "Hi"}], model=model)
        assembly = TextAssembly()
        async with aclosing(cast("Any", self.backend.stream(asked, CONTEXT))) as stream:
            async for batch in stream:
                assembly.add_all(events_of(batch))
        return assembly.text()

    @property
    def asked(self) -> list[tuple[str, str]]:
        """Where requests went, and for which model."""
        requests = [exchange.request for exchange in self.transport.exchanges]
        return [(request.url.split("/")[2], json.loads(request.body)["model"]) for request in requests]


@pytest.mark.parametrize(
    ("model", "expected"),
    [("a", ("one", "a")), ("c", ("two", "c")), ("two/b", ("two", "b")), ("any/thing", ("open", "any/thing"))],
)
async def test_a_model_is_asked_of_whoever_has_it(model: str, expected: tuple[str, str]) -> None:
    """By its name, by its provider's name in front of it, or else of who takes any."""
    rig = Rig([OK], ONE, TWO, {"name": "open", "kind": "compatible", "base_url": "http://open/v1"})

    assert await rig.text(model) == "Hello"
    assert rig.asked == [expected]


async def test_a_model_that_nobody_has_is_refused() -> None:
    """Nothing is sent for it; a chain with one is refused at once."""
    rig = Rig([], ONE, TWO)
    with pytest.raises(ConfigurationError):
        await rig.text("x")
    with pytest.raises(ConfigurationError):
        Rig([], ONE, TWO, model="a,x")


@pytest.mark.parametrize(
    "failure",
    [
        DOWN,
        Reply(status=503),
        Reply(status=529),
        Reply(status=503, headers={"x-should-retry": "false"}),
        Reply(status=429, body=[b'{"error":{"code":"insufficient_quota"}}']),
        Reply(body=[b'data: {"error":{"message":"overloaded","code":529}}\n\n']),
        Reply(body=[HANG]),
        Reply(body=[]),
    ],
    ids=["down", "503", "529", "once only", "quota", "said", "late", "empty"],
)
async def test_the_next_is_asked_where_one_cannot(failure: Any) -> None:
    """At its first failure, without a wait; the log tells who was asked instead."""
    rig = Rig([failure, OK], ONE, TWO)

    assert await rig.text() == "Hello"
    assert rig.asked == [("one", "a"), ("two", "b")]
    [(event, particulars)] = rig.log
    assert (event, particulars["provider"], particulars["instead_model"]) == ("model.fell_back", "one", "b")


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Reply(status=401), BackendRejected),
        (Reply(status=400, body=[b"maximum context length is 5"]), ContextOverflow),
        (Reply(status=500, body=[b"maximum context length is 5"]), ContextOverflow),
        (HALF, BackendProtocolError),
    ],
)
async def test_who_refuses_or_has_spoken_is_not_replaced(failure: Any, error: type[BackendError]) -> None:
    """Another would refuse, too; and a reader has seen the beginning."""
    rig = Rig([failure], ONE, TWO)
    with pytest.raises(error):
        await rig.text()

    assert len(rig.asked) == 1


async def test_midway_the_next_begins_the_answer_anew() -> None:
    """Where the deployment says so; what the first had said is taken back, and it rests."""
    rig = Rig([HALF, OK, OK], ONE, TWO, fallback_midway="on")
    texts = [await rig.text(), await rig.text()]

    assert (texts, [host for host, _ in rig.asked]) == (["Hello", "Hello"], ["one", "two", "two"])
    assert [event for event, _ in rig.log] == ["model.fell_back"]


async def test_midway_the_last_of_a_chain_breaks_off() -> None:
    """There is nobody left, and what it said is no answer."""
    rig = Rig([HALF, HALF], ONE, TWO, fallback_midway="on")
    with pytest.raises(BackendProtocolError):
        await rig.text()


async def test_what_one_does_not_take_the_next_is_asked() -> None:
    """It does not rest for that; where nobody takes it, that is told."""
    picture = {"type": "image_url", "image_url": {"url": "https://a.test/b.png"}}
    asked = AgentBackendInput(messages=[{"role": "user", "content": [picture]}])
    rig = Rig([OK, OK], ONE, {**TWO, "takes": ["image_url"]})
    assembly = TextAssembly()
    async for batch in rig.backend.stream(asked, CONTEXT):
        assembly.add_all(events_of(batch))
    await rig.text()
    alone = Rig([], ONE, TWO)
    with pytest.raises(ContentNotTaken):
        [_ async for _ in alone.backend.stream(asked, CONTEXT)]

    assert (assembly.text(), [host for host, _ in rig.asked]) == ("Hello", ["two", "one"])
    assert rig.backend.takes(None) == {"image_data", "image_url"}


async def test_who_failed_rests_for_a_while() -> None:
    """For 30 s the chain begins behind it; then it is asked again, and at once if nobody else is left."""
    rig = Rig([HALF, OK, OK], ONE, TWO)
    with pytest.raises(BackendProtocolError):
        await rig.text()
    await rig.text()
    rig.now += 31
    await rig.text()

    assert rig.asked == [("one", "a"), ("two", "b"), ("one", "a")]


async def test_the_last_of_a_chain_is_tried_with_patience() -> None:
    """Nobody comes after it."""
    rig = Rig([DOWN, DOWN, OK], ONE, TWO)

    assert await rig.text() == "Hello"
    assert rig.asked == [("one", "a"), ("two", "b"), ("two", "b")]


async def test_if_all_rest_the_first_is_asked() -> None:
    """A breaker must not be what fails a turn."""
    rig = Rig([DOWN] * 6 + [OK], ONE, TWO)
    with pytest.raises(BackendTransportError):
        await rig.text()

    assert await rig.text() == "Hello"
    assert rig.asked[-1] == ("one", "a")


async def test_a_chain_is_for_requests_that_name_no_model() -> None:
    """Who asks for one model is answered by that or by none."""
    rig = Rig([DOWN] * 5, ONE, TWO)
    with pytest.raises(BackendTransportError):
        await rig.text("a")

    assert {("one", "a")} == set(rig.asked)


async def test_the_settings_of_before_are_one_provider() -> None:
    """A base URL, a key, models that continue, deadlines."""
    rig = Rig(
        [OK, Reply(body=[HANG])], model="m", openai_base_url="https://x.example/v1/", openai_api_key="k",
        continue_models="m", idle_timeout_ms=9_000,
    )  # fmt: skip
    await rig.text()
    with pytest.raises(BackendTimeout, match="9000 ms"):
        await rig.text("other")
    [request, _] = [exchange.request for exchange in rig.transport.exchanges]

    assert (request.url, request.headers["authorization"]) == ("https://x.example/v1/chat/completions", "Bearer k")
    assert (rig.backend.kind, rig.backend.continues(None), rig.backend.continues("other")) == ("openai", True, False)


def test_what_one_said_is_not_continued_by_another() -> None:
    """A chain never goes on with an answer that broke off."""
    continuing = {**ONE, "continues": True}

    assert Rig([], continuing, TWO, model="a").backend.continues(None)
    assert not Rig([], continuing, TWO).backend.continues(None)


async def test_defaults_are_said_where_a_request_says_nothing() -> None:
    """System prompt and parameters; what is about tools only with tools."""
    defaults = {"system": "Be kind.", "temperature": 0.5, "max_tokens": 5, "tool_choice": "auto"}
    rig = Rig([OK, OK], {**ONE, "defaults": defaults}, model="a")
    await rig.text()
    asked = AgentBackendInput(
        messages=[{"role": "system", "content": "Mine."}],
        options={
            "temperature": 1,
            "max_completion_tokens": 9,
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
    )
    async for _ in rig.backend.stream(asked, CONTEXT):
        pass
    first, second = (json.loads(exchange.request.body) for exchange in rig.transport.exchanges)

    assert first["messages"][0] == {"role": "system", "content": "Be kind."}
    assert (first["temperature"], first["max_tokens"], first.get("tool_choice")) == (0.5, 5, None)
    assert second["messages"] == [{"role": "system", "content": "Mine."}]
    assert (second["temperature"], second["max_completion_tokens"], second["tool_choice"]) == (1, 9, "auto")
    assert "max_tokens" not in second


async def test_a_base_url_must_be_one() -> None:
    """The setting is named."""
    with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL"):
        Rig([], openai_base_url="api.example")
