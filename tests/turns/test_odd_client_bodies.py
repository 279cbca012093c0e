"""Whatever a client of another format sends, in whatever place: an answer or a refusal that names it, never a crash."""

from collections.abc import Iterator
from typing import Any

import pytest

from chatturn_testing.virtual_time import run
from tests.support.turns import open_sqlite
from tests.turns.test_agent import Model
from tests.turns.test_client_tools import isolate_of

CHAT = "/v1/ai-sdk/chat"
COMPLETIONS = "/v1/chat/completions"
CALL = "call_" + "0" * 32
ODD: tuple[Any, ...] = (
    [],
    {},
    [1],
    {"a": 1},
    1,
    1.5,
    True,
    None,
    "x",
    "\ud800",
    "",
    "\0",
    "chat:acme:c:0~99999999999999",
    CALL,
)
SAID = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
ASKED = {"role": "user", "content": "hi"}
MEMBERS = [
    "n",
    "stream",
    "stream_options",
    "metadata",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "logprobs",
    "audio",
    "modalities",
    "response_format",
    "model",
    "messages",
    "stop",
    "seed",
    "user",
]


def chats(odd: Any) -> Iterator[dict[str, Any]]:
    """Make chats that have something odd in one place each."""
    for name in ("trigger", "messageId", "id", "messages", "model", "parameters"):
        yield {name: odd}
    yield {"messageId": odd, "trigger": "regenerate-message"}
    said: list[Any] = [odd, *({**SAID, name: odd} for name in ("role", "parts"))]
    parts: list[Any] = [
        odd,
        {"type": odd},
        {"type": "text", "text": odd},
        {"type": "file", "mediaType": odd, "url": odd},
    ]
    for message in (*said, *({**SAID, "parts": [part]} for part in parts)):
        yield {"messages": [message]}
    answered: list[dict[str, Any]] = [
        {"toolCallId": CALL, "state": "output-available", "output": odd},
        {"toolCallId": CALL, "state": "output-error", "errorText": odd},
        {"toolCallId": odd, "state": "output-available", "output": 1},
        {"state": "approval-responded", "approval": odd},
        {"state": "approval-responded", "approval": {"id": f"approve:{odd}", "approved": odd}},
        {"state": odd},
    ]
    for part in answered:
        yield {"messages": [SAID, {"id": "a", "role": "assistant", "parts": [{"type": "tool-x", **part}]}]}
    tools: list[Any] = [odd, [odd], [{"type": odd}], [{"type": "function", "function": odd}]]
    for given in (
        *tools,
        [{"type": "function", "function": dict.fromkeys(("name", "parameters", "description"), odd)}],
    ):
        yield {"parameters": {"tools": given}}


def completions(odd: Any) -> Iterator[dict[str, Any]]:
    """Make completions likewise."""
    for name in MEMBERS:
        yield {name: odd}
    for metadata in (
        {"session_id": odd},
        {"session_id": "s", "turn_index": odd},
        {"session_id": "s", "regenerate": odd},
    ):
        yield {"metadata": metadata}
    call = {"id": "y", "function": {"name": "f", "arguments": "{}"}}
    said: list[Any] = [odd, {"role": odd, "content": "x"}, {"role": "user", "content": odd}]
    contents: list[Any] = [
        [odd],
        [{"type": odd}],
        [{"type": "text", "text": odd}],
        [{"type": "image_url", "image_url": odd}],
    ]
    for message in (*said, *({"role": "user", "content": content} for content in contents)):
        yield {"messages": [message]}
    calls: list[Any] = [
        odd,
        [odd],
        [{"id": odd, "function": odd}],
        [{"id": "y", "function": {"name": odd, "arguments": odd}}],
    ]
    for made in calls:
        yield {"messages": [ASKED, {"role": "assistant", "tool_calls": made}]}
    for result in ({"tool_call_id": "y", "content": odd}, {"tool_call_id": odd, "content": "x"}):
        yield {"messages": [ASKED, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", **result}]}


@pytest.mark.slow
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_no_body_is_a_crash(odd: Any) -> None:
    """Below 500, in the client's own form."""

    async def main() -> None:
        with open_sqlite() as database:
            isolate = isolate_of(database, Model("ok"))
            bodies = [(CHAT, {"messages": [SAID], **body}) for body in chats(odd)]
            bodies += [(COMPLETIONS, {"model": "default", "messages": [ASKED], **body}) for body in completions(odd)]
            for path, body in bodies:
                reply = await isolate.ask("POST", path, body)
                if reply.task is not None:
                    await reply.task
                assert reply.status < 500, (path, body, reply.response.body)
                assert reply.status == 200 or path == CHAT or "message" in reply.body["error"], body

    run(main())
