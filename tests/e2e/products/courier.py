"""
A product for the tests: its hook makes the HTTP calls that the user's message lists, synchronously.

The message, and so the answer, is ``{"library", "calls": [{"url", "method"?, "body"?, "timeout"?}], "report_to"}``;
bodies are hexadecimal.  What came of the calls is posted to ``report_to``; without it, the first error is the hook's.
"""

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from importlib import import_module
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from chatturn.product import ChatTurnHooks, EventBatch, FinishedTurn, StreamProducer, TurnContext, text_delta

__all__ = ["Hooks"]

Seen = dict[str, Any]


class Hooks(ChatTurnHooks):
    """Answer with the user's message, and do what it says once it is stored."""

    sync_http = True

    def produce(self, context: TurnContext) -> StreamProducer:
        """Repeat the message."""
        return StreamProducer(_repeat(context.user_message))

    async def persist_assistant_message(self, turn: FinishedTurn) -> None:
        """Make the calls, one after the other."""
        plan = json.loads(turn.final_text)
        call = _LIBRARIES[plan["library"]]
        key = {"Idempotency-Key": turn.idempotency_key}
        if "report_to" not in plan:
            for each in plan["calls"]:
                call(each, key)
            return
        seen = [_outcome(call, each, key) for each in plan["calls"]]
        urlopen(Request(plan["report_to"], data=json.dumps(seen).encode(), headers=key)).close()  # noqa: ASYNC210 - the subject


async def _repeat(text: str) -> AsyncGenerator[EventBatch, None]:
    yield [text_delta(text)]


def _outcome(call: Callable[[Any, Any], Seen], arguments: Any, headers: Any) -> Seen:
    try:
        return call(arguments, headers)
    except Exception as error:  # noqa: BLE001 - what it raises is what the test asks about
        return {"raised": [f"{c.__module__}.{c.__qualname__}" for c in type(error).__mro__], "text": str(error)}


def _with_urllib(call: Mapping[str, Any], headers: Mapping[str, str]) -> Seen:
    body = bytes.fromhex(call["body"]) if "body" in call else None
    request = Request(call["url"], data=body, headers=dict(headers), method=call.get("method"))
    timeout = {"timeout": call["timeout"]} if "timeout" in call else {}
    try:
        response = urlopen(request, **timeout)
    except HTTPError as error:
        response = error
    with response:
        return {
            "status": response.status,
            "body": response.read().hex(),
            "url": response.geturl(),
            "headers": {name.lower(): value for name, value in response.headers.items()},
        }


def _with_requests(call: Mapping[str, Any], headers: Mapping[str, str]) -> Seen:
    requests = import_module("requests")  # not everyone has it
    body = bytes.fromhex(call["body"]) if "body" in call else None
    method = call.get("method", "GET" if body is None else "POST")
    response = requests.request(method, call["url"], data=body, headers=headers, timeout=call.get("timeout"))
    return {
        "status": response.status_code,
        "body": response.content.hex(),
        "url": response.url,
        "headers": {name.lower(): value for name, value in response.headers.items()},
    }


_LIBRARIES = {"urllib": _with_urllib, "requests": _with_requests}
