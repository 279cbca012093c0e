"""The built-in model, and backends made of a function."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from chatturn.backends.api import AgentBackendContext, AgentBackendInput, AgentExecutionBackend
from chatturn.backends.echo import create_echo_backend
from chatturn.backends.iterable import create_iterable_backend
from chatturn.events import ChatStreamEvent, EventBatch, TextAssembly, events_of, text_delta, tool_call

CONTEXT = AgentBackendContext(request_id="r")


def asked(*contents: object) -> AgentBackendInput:
    return AgentBackendInput(messages=[{"role": "user", "content": content} for content in contents])


async def answer(backend: AgentExecutionBackend, request: AgentBackendInput) -> list[ChatStreamEvent]:
    batches = [batch async for batch in backend.stream(request, CONTEXT)]
    return [event for batch in batches for event in events_of(batch)]


def text_of(events: list[ChatStreamEvent]) -> str:
    assembly = TextAssembly()
    assembly.add_all(events)
    return assembly.text()


async def test_the_echo_says_what_it_is_and_quotes_the_user() -> None:
    """Nobody takes it for a real model, and it quotes the last thing that the user said, exactly."""
    text = text_of(await answer(create_echo_backend(), asked("first", "two\n  words ")))

    assert text.startswith("This is the built-in echo model of chatturn")
    assert text.endswith("“two\n  words ”")


async def test_the_echo_streams_word_by_word() -> None:
    """Every word is an event of its own, with the pace between them, and usage comes last."""
    events = await answer(create_echo_backend(pace_ms=100), asked("one two"))
    *words, usage = events

    assert all(len((word.data or {})["delta"].split()) == 1 for word in words)
    assert asyncio.get_running_loop().time() == pytest.approx(0.1 * (len(words) - 1))
    assert usage == ChatStreamEvent(
        "usage", {"model": "echo", "tokensIn": 2, "tokensOut": len(words), "finishReason": "stop"}
    )


async def test_the_echo_is_the_same_every_time() -> None:
    """The same message has the same answer."""
    echo = create_echo_backend(pace_ms=0)

    assert await answer(echo, asked("x")) == await answer(echo, asked("x"))


async def test_the_echo_uses_tools_by_order() -> None:
    """One call for each line, one after another, then the answer; without tools on offer, it only quotes."""
    echo, said = create_echo_backend(pace_ms=0), 'use add {"a": 1}\nplease\nuse look'
    request = asked(said)
    offered = replace(request, options={"tools": [{}]})
    first = await answer(echo, offered)
    told = [*request.messages, {"role": "assistant", "tool_calls": []}, {"role": "tool", "content": "3"}]
    second = await answer(echo, replace(offered, messages=told))
    last = await answer(echo, replace(offered, messages=[*told, {"role": "tool", "content": "4"}]))

    assert tool_call(tool_call_id="call_0", tool_name="add", args={"a": 1}) == first[0]
    assert tool_call(tool_call_id="call_1", tool_name="look", args={}) == second[0]
    assert "The tools said: “3”, “4”." in text_of(last)
    assert text_of(await answer(echo, request)).endswith(f"“{said}”")


@pytest.mark.parametrize(
    ("content", "quoted"),
    [
        ("", "“”"),
        (None, "“”"),
        ([{"type": "text", "text": "hi"}, {"type": "text", "text": "you"}], "“hi you”"),
        ("x" * 1_000, f"“{'x' * 400}…”"),
    ],
)
async def test_the_echo_answers_every_message(content: object, quoted: str) -> None:
    """Empty messages and lists of parts are quoted too, long ones in part: an answer ends in seconds."""
    assert text_of(await answer(create_echo_backend(), asked(content))).endswith(quoted)


async def test_a_function_is_a_backend() -> None:
    """A backend made of a function has its kind, hands it what was asked, and yields what it yields."""

    async def stream(request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[EventBatch]:
        yield [text_delta(str(request.messages[0]["content"])), text_delta(context.request_id)]

    backend = create_iterable_backend("mine", stream)

    assert backend.kind == "mine"
    assert text_of(await answer(backend, asked("a"))) == "ar"
