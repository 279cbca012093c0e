"""Turns that wait for others of their session, as the clients of others see them."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from chatturn.chat.hooks.tool import Tool
from chatturn.errors import BackendRejected
from chatturn.events import text_delta
from chatturn_testing.virtual_time import run
from tests.support.chat_clients import CompletionView, UiMessageView
from tests.support.isolates import Isolate
from tests.support.turns import Product, open_sqlite
from tests.turns.test_client_routes import Clerk

CHAT = "/v1/ai-sdk/chat"
COMPLETIONS = "/v1/chat/completions"
QUEUES = {"THREADS": "on", "WHEN_BUSY": "queue"}


def ui(*texts: str) -> dict[str, Any]:
    messages = [
        {"id": f"m{at}", "role": "assistant" if at % 2 else "user", "parts": [{"type": "text", "text": text}]}
        for at, text in enumerate(texts)
    ]
    return {"id": "thread-1", "messages": messages}


def told(hooks: Any, story: Callable[[Isolate], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        with open_sqlite() as database:
            await story(Isolate(database, hooks, settings=QUEUES))

    run(main())


def test_a_chat_s_turn_that_waits_is_submitted_until_it_begins() -> None:
    """Only comments before its first chunk: nothing that a client counts, or takes for the beginning of an answer."""

    async def story(isolate: Isolate) -> None:
        first = await isolate.ask("POST", CHAT, ui("one"))
        await asyncio.sleep(0.5)
        second = await isolate.ask("POST", CHAT, ui("one", "", "two"))
        await asyncio.sleep(0.5)
        waiting = second.reader.text
        assert first.task is not None
        assert second.task is not None
        await asyncio.gather(first.task, second.task)
        view = UiMessageView()
        view.read(second.reader.text)

        assert ": queued, 1 before it\n\n" in waiting
        assert "data:" not in waiting
        assert ("chat:acme:thread-1:1", "stop", True) == (view.id, view.finish_reason, view.done)

    told(Product(2.0, text_delta("ab")), story)


@pytest.mark.parametrize("stream", [True, False])
def test_a_completion_that_waits_comes_when_it_may(stream: bool) -> None:
    """Of a session: the turn before it first."""

    def body(*texts: str) -> dict[str, Any]:
        messages = [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(texts)]
        members = {"metadata": {"session_id": "thread-1"}, "stream": stream}
        return {"model": "default", "messages": messages, **members}

    async def story(isolate: Isolate) -> None:
        first = asyncio.create_task(isolate.ask("POST", COMPLETIONS, body("one")))
        await asyncio.sleep(0.5)
        second = await isolate.ask(
            "POST", COMPLETIONS, {**body("two"), "metadata": {"session_id": "thread-1", "turn_index": "1"}}
        )
        await first
        assert 200 == second.status
        if second.task is None:
            assert "ab" == second.body["choices"][0]["message"]["content"]
            return
        await second.task
        view = CompletionView()
        view.read(second.reader.text)

        assert ": queued, 1 before it\n\n" in second.reader.text
        assert ("ab", "stop") == (view.text, view.finish_reason)

    told(Product(2.0, text_delta("ab")), story)


@pytest.mark.parametrize("end", [text_delta("ab"), BackendRejected("no", backend="b")])
def test_what_waited_is_the_same_turn_when_it_is_asked_again(end: Any) -> None:
    """Its thread is the session's all the time, whatever becomes of the turn before: it is not answered twice."""
    messages = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    ask = {"model": "default", "stream": True, "metadata": {"session_id": "thread-1"}, "messages": messages}
    product = Product(2.0, end)

    async def story(isolate: Isolate) -> None:
        replies = [await isolate.ask("POST", COMPLETIONS, {**ask, "messages": messages[:1]})]
        await asyncio.sleep(0.5)
        for _ in range(3):
            replies.append(await isolate.ask("POST", COMPLETIONS, ask))
            await asyncio.sleep(5)
        for reply in replies:
            assert reply.task is not None
            await reply.task

        assert {"chat:acme:thread-1:1"} == {each.response.headers["X-Workflow-Run-Id"] for each in replies[1:]}
        assert [0, 1] == sorted({context.identity.turn_index for context in product.calls})
        assert all(context.identity.version == 1 for context in product.calls)

    told(product, story)


def test_behind_a_turn_that_waits_for_an_approval_nothing_is_held_open() -> None:
    """Both formats end with an error that says so; the turn is answered once the approval has come."""

    async def story(isolate: Isolate) -> None:
        asks = await isolate.ask("POST", CHAT, ui("use send {}"))
        assert asks.task is not None
        await asks.task
        front = UiMessageView()
        front.read(asks.reader.text)
        [tool] = [part for part in front.parts if part["type"] == "dynamic-tool"]
        behind = await isolate.ask("POST", CHAT, ui("use send {}", "", "two"))
        assert behind.task is not None
        await behind.task
        view = UiMessageView()
        view.read(behind.reader.text)
        messages = [{"role": "user", "content": "two"}]
        metadata = {"session_id": "thread-1", "turn_index": "1"}
        asked = await isolate.ask("POST", COMPLETIONS, {"model": "default", "messages": messages, "metadata": metadata})

        assert ("error", True) == (view.finish_reason, view.done)
        assert view.error is not None
        assert view.error.startswith("A turn before this one waits for an approval, or for the result of a tool.")
        assert (409, "suspended") == (asked.status, asked.body["error"]["code"])

        decided = {**tool, "state": "approval-responded", "approval": {"id": tool["approval"], "approved": True}}
        thread = ui("use send {}")
        thread["messages"].append({"id": front.id, "role": "assistant", "parts": [decided]})
        gone_on = await isolate.ask("POST", CHAT, thread)
        assert gone_on.task is not None
        await gone_on.task
        again = await isolate.ask("POST", CHAT, ui("use send {}", "", "two"))
        assert again.task is not None
        await again.task
        late = UiMessageView()
        late.read(again.reader.text)

        assert ("stop", None) == (late.finish_reason, late.error)

    assert isinstance(Clerk.tools[0], Tool)
    told(Clerk(), story)
