"""
agent-runtime's own tests of its model backend, of later versions too, each under its name: a task over a model's API.

The model's API is the only thing that is scripted.
"""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from chatturn.agent_runtime.values.events import (
    BackendErrorEvent,
    LlmCallEvent,
    RuntimeStreamEvent,
    TextDeltaEvent,
    ToolCallEvent,
)
from chatturn.agent_runtime.values.tasks import AgentTaskStatus
from chatturn.backends.openai.retry import BackendRetryPolicy
from chatturn.errors import BackendTransportError
from tests.support.transport import Reply, ScriptedTransport
from tests.unit.agent_runtime.tasks.test_task_stream import Sandbox, final, told
from tests.unit.backends.openai.test_backend import DONE, END, USAGE, backend, frame

TRIES = BackendRetryPolicy(max_attempts=3, initial_backoff_ms=1, max_backoff_ms=1)


async def asked(*script: Any, **members: Any) -> tuple[list[RuntimeStreamEvent], ScriptedTransport]:
    """Run a task over an API that answers with *script*."""
    transport = ScriptedTransport(script)
    return await told(backend(transport, retry=TRIES), message="hi", **members), transport


def answer(*frames: bytes) -> Reply:
    return Reply(body=[*frames, DONE])


def tool_frame(*calls: dict[str, Any], finish: str | None = None, content: str = "") -> bytes:
    delta = {"tool_calls": list(calls), **({"content": content} if content else {})}
    return frame(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


def call(index: int, name: str | None = None, arguments: str = "") -> dict[str, Any]:
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {
        "index": index,
        **({} if name is None else {"id": f"call-{index}", "type": "function"}),
        "function": function,
    }


def calls(events: Sequence[RuntimeStreamEvent]) -> list[tuple[str, str | None, Any]]:
    return [(e.tool_name, e.tool_call_id, e.args) for e in events if isinstance(e, ToolCallEvent)]


# Failures


@pytest.mark.parametrize("status", [401, 402, 403, 404])
async def test_a_refusal_has_its_status_and_its_body(status: int) -> None:
    events, transport = await asked(Reply(status=status, body=[b'{"error": {"message": "no credit"}}']))
    end = final(events)

    assert (AgentTaskStatus.FAILED, 1) == (end.status, len(transport.exchanges))
    assert end.error is not None
    assert ("transport", status) == (end.error.kind, end.error.status)
    assert "no credit" in (end.error.body or "")


async def test_a_502_is_tried_three_times_and_then_fails() -> None:
    events, transport = await asked(*[Reply(status=502, body=[b"bad gateway"])] * 3)
    end = final(events)

    assert 3 == len(transport.exchanges)
    assert end.error is not None
    assert ("transport", 502, "bad gateway") == (end.error.kind, end.error.status, end.error.body)


async def test_where_every_try_throws_the_status_is_0() -> None:
    events, transport = await asked(*[BackendTransportError("connection refused", backend="fetch")] * 3)
    end = final(events)

    assert 3 == len(transport.exchanges)
    assert end.error is not None
    assert ("transport", 0) == (end.error.kind, end.error.status)


async def test_at_most_2_kib_of_a_body_are_kept() -> None:
    events, _ = await asked(Reply(status=400, body=[b"x" * 1_000] * 10))
    error = final(events).error

    assert error is not None
    assert 1_000 < len(error.body or "") <= 2_048


async def test_what_is_no_failure_of_the_transport_is_the_backend_s() -> None:
    events = await told(Sandbox(script=(ValueError("no"),)).backend())
    [failure] = [event for event in events if isinstance(event, BackendErrorEvent)]

    for error in (failure.error, final(events).error):
        assert error is not None
        assert ("backend", None, None) == (error.kind, error.status, error.body)


async def test_an_answer_has_no_error() -> None:
    events, _ = await asked(answer(frame("hello"), END))

    assert (AgentTaskStatus.COMPLETED, None) == (final(events).status, final(events).error)
    assert [] == [event for event in events if isinstance(event, BackendErrorEvent)]


# Usage


async def test_usage_of_the_last_chunk_is_one_model_call() -> None:
    events, _ = await asked(answer(frame("hello"), frame(finish="stop"), USAGE))
    [made] = [event for event in events if isinstance(event, LlmCallEvent)]

    assert (7, 2, "m-2024") == (made.tokens_in, made.tokens_out, made.model)


async def test_where_no_usage_is_said_none_is_made_up() -> None:
    """There no event is; here the call is told, and what it used is unknown, which is not 0."""
    events, _ = await asked(answer(frame("hello"), frame(finish="stop")))

    assert [(None, None)] == [(e.tokens_in, e.tokens_out) for e in events if isinstance(e, LlmCallEvent)]


# The request


async def test_tools_and_the_form_of_the_answer_are_asked_for_as_they_were_given() -> None:
    wanted = {
        "tools": [{"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
    }
    _, transport = await asked(answer(frame("hello"), END), request_options=wanted)
    body = json.loads(transport.exchanges[0].request.body)

    assert wanted == {name: body[name] for name in wanted}


# Tool calls


async def test_a_single_call_is_assembled_from_its_pieces() -> None:
    pieces = [
        tool_frame(call(0, "read", '{"pa')),
        tool_frame(call(0, None, 'ge": 1}')),
        tool_frame(finish="tool_calls"),
    ]
    events, _ = await asked(answer(*pieces))

    assert [("read", "call-0", {"page": 1})] == calls(events)


async def test_parallel_calls_are_assembled_apart() -> None:
    pieces = [
        tool_frame(call(0, "read", '{"a'), call(1, "write", '{"b')),
        tool_frame(call(1, None, '": 2}'), call(0, None, '": 1}')),
        tool_frame(finish="tool_calls"),
    ]
    events, _ = await asked(answer(*pieces))

    assert [("read", "call-0", {"a": 1}), ("write", "call-1", {"b": 2})] == calls(events)


async def test_malformed_arguments_are_told_as_they_came() -> None:
    events, _ = await asked(answer(tool_frame(call(0, "read", "{not json")), tool_frame(finish="tool_calls")))

    assert [("read", "call-0", "{not json")] == calls(events)


async def test_calls_without_a_finish_reason_are_told_at_the_end() -> None:
    events, _ = await asked(answer(tool_frame(call(0, "read", "{}"))))

    assert [("read", "call-0", {})] == calls(events)


async def test_calls_are_told_beside_text() -> None:
    pieces = [frame("Let me look."), tool_frame(call(0, "read", "{}"), content=" So."), tool_frame(finish="tool_calls")]
    events, _ = await asked(answer(*pieces))

    assert "Let me look. So." == "".join(event.text for event in events if isinstance(event, TextDeltaEvent))
    assert [("read", "call-0", {})] == calls(events)


async def test_a_whole_message_s_calls_are_accepted() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [call(0, "read", '{"page": 1}')]}
    whole = frame(choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}])
    events, _ = await asked(answer(whole))

    assert [("read", "call-0", {"page": 1})] == calls(events)
