"""The routes for clients of other formats: which turn a request is about, what is refused, and in whose words."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.chat.hooks.tool import Tool
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import text_delta
from chatturn_testing.virtual_time import run
from tests.support.chat_clients import CompletionView, UiMessageView
from tests.support.isolates import Isolate, Reply
from tests.support.turns import Product, open_sqlite

CHAT = "/v1/ai-sdk/chat"
COMPLETIONS = "/v1/chat/completions"


def ui(text: str, id_: str = "m1") -> dict[str, Any]:
    return {"id": id_, "role": "user", "parts": [{"type": "text", "text": text}]}


def asked(*texts: str, **members: Any) -> dict[str, Any]:
    messages = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, texts, strict=False)]
    return {"model": "default", "messages": messages, **members}


def told(story: Callable[[Isolate, Product], Coroutine[Any, Any, None]], *script: Any) -> None:
    """Run a story of one isolate."""

    async def main(database: SqliteDatabase) -> None:
        product = Product(*script)
        await story(Isolate(database, product), product)

    with open_sqlite() as database:
        run(main(database))


async def seen(reply: Reply) -> UiMessageView:
    assert reply.status == 200, reply.response.body
    assert reply.task is not None
    await reply.task
    view = UiMessageView()
    view.read(reply.reader.text)
    return view


async def completed(reply: Reply) -> CompletionView:
    assert reply.status == 200, reply.response.body
    assert reply.task is not None
    await reply.task
    view = CompletionView()
    view.read(reply.reader.text)
    return view


def error_of(reply: Reply) -> tuple[int, str, str | None, str]:
    """Return an OpenAI error: status, code, parameter, and whether an SDK tries again."""
    error = reply.body["error"]
    return reply.status, error["code"], error["param"], reply.response.headers["X-Should-Retry"]


# The AI SDK


def test_a_chat_is_a_session_and_its_questions_are_its_turns() -> None:
    """The index is how many questions there are before; the stored thread is the history; a repeat is a replay."""

    async def story(isolate: Isolate, product: Product) -> None:
        first = await seen(await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("one")]}))
        answer = {"id": "x", "role": "assistant", "parts": [{"type": "step-start"}, {"type": "text", "text": "?"}]}
        thread = [ui("one"), answer, ui("two", "m2")]
        second = await isolate.ask("POST", CHAT, {"id": "c1", "messages": thread, "trigger": "submit-message"})
        await seen(second)
        again = await seen(await isolate.ask("POST", CHAT, {"id": "c1", "messages": thread}))

        assert ("Hello, world.", "chat:acme:c1:0") == (first.text, first.id)
        assert ("chat:acme:c1:1", "Hello, world.") == (second.response.headers["X-Workflow-Run-Id"], again.text)
        assert ["one", "two"] == [call.user_message for call in product.calls]
        assert ["one", "Hello, world."] == [message["content"] for message in product.calls[1].history]

    told(story)


def test_a_chat_is_found_by_its_id_and_by_its_run() -> None:
    """204 where there is none, of this tenant; with or without a place to go on at."""

    async def story(isolate: Isolate, _product: Product) -> None:
        await seen(await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("one")]}))
        run_id = quote("chat:acme:c1:0", safe="")
        for path in ("c1", f"{run_id}", f"{run_id}/stream?startIndex=0"[: -len("/stream?startIndex=0")]):
            assert "Hello, world." == (await seen(await isolate.ask("GET", f"{CHAT}/{path}/stream"))).text
        rest = await isolate.ask("GET", f"{CHAT}/{run_id}/stream?startIndex=3")
        tail = await isolate.ask("GET", f"{CHAT}/{run_id}/stream?startIndex=-4")

        assert '"type":"start"' not in (rest.reader.text or "")
        assert "3" == tail.response.headers["X-Workflow-Stream-Tail-Index"]
        assert "Hello, world." == (await seen(tail)).text
        for path, tenant in (("none", "acme"), ("c1", "other"), (quote("chat:acme:c1:9", safe=""), "acme")):
            reply = await isolate.ask("GET", f"{CHAT}/{path}/stream", x_tenant=tenant)
            assert 204 == reply.status

    told(story)


def test_a_chat_may_send_its_last_messages_alone() -> None:
    """Where it says which turn it is; the history is the stored thread anyhow."""

    async def story(isolate: Isolate, product: Product) -> None:
        await seen(await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("one")]}))
        view = await seen(await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("two", "m3")], "turnIndex": 1}))
        again = await seen(await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("two")], "turnIndex": 1.0}))
        odd = [
            (await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("x")], "turnIndex": each})).status
            for each in (-1, "1", True, 1.5, 10**7)
        ]

        assert "chat:acme:c1:1" == view.id == again.id
        assert ["one", "two"] == [context.user_message for context in product.calls]
        assert [422] * 5 == odd

    told(story)


@pytest.mark.parametrize("address", [f"{CHAT}/c1/stream", "/v1/sessions/c1/turns/0/stream"])
def test_a_head_holds_nothing_of_a_log(address: str) -> None:
    """However often it is asked for, long logs are still read."""

    async def story(isolate: Isolate, _product: Product) -> None:
        await seen(await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("one")]}))
        statuses = set()
        for _ in range(20):
            statuses.add((await asyncio.wait_for(isolate.ask("HEAD", address), 5)).status)
            await asyncio.sleep(0.01)
        got = await isolate.ask("GET", address)
        assert got.task is not None
        await asyncio.wait_for(got.task, 5)

        assert {200} == statuses | {got.status}
        assert len(got.reader.text) > 300_000

    told(story, *(text_delta("x" * 3_000) for _ in range(200)))


def test_a_query_of_any_length_is_no_crash() -> None:
    """What is not known is no matter, as with other members; too many are refused."""

    async def story(isolate: Isolate, _product: Product) -> None:
        await seen(await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("one")]}))
        query = "&".join(f"member{n}=" for n in range(99))
        some, many = [
            await isolate.ask("GET", f"{CHAT}/c1/stream?{each}") for each in (query[: query.index("&member20=")], query)
        ]

        assert (200, 422) == (some.status, many.status)
        assert [] == isolate.logged

    told(story)


def test_a_chat_without_an_id_has_the_history_that_it_brings() -> None:
    """WorkflowChatTransport sends the thread and nothing else, as plain text."""

    async def story(isolate: Isolate, product: Product) -> None:
        thread = [ui("one"), {"role": "assistant", "parts": [{"type": "text", "text": "1"}]}, ui("two")]
        body = {"messages": thread}
        first = await isolate.ask("POST", CHAT, body, content_type="text/plain;charset=UTF-8")
        await seen(first)
        other = await isolate.ask("POST", CHAT, body)
        await seen(other)

        assert ["one", "1"] == [message["content"] for message in product.calls[0].history]
        assert first.response.headers["X-Workflow-Run-Id"] != other.response.headers["X-Workflow-Run-Id"]

    told(story)


def test_without_versions_an_edit_supersedes_and_a_regeneration_is_refused() -> None:
    """An edit names the message that it changes; another message without one is refused."""

    async def story(isolate: Isolate, product: Product) -> None:
        await seen(await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("one")]}))
        other = await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("1")]})
        edit = {"id": "c1", "messages": [ui("1")], "trigger": "submit-message", "messageId": "m1"}
        edited = await seen(await isolate.ask("POST", CHAT, edit))
        anew = await isolate.ask(
            "POST", CHAT, {"id": "c1", "messages": [ui("1")], "trigger": "regenerate-message", "messageId": "x"}
        )

        assert (422, "input_mismatch") == (other.status, other.response.headers["X-Error-Code"])
        assert ("Hello, world.", ["one", "1"]) == (edited.text, [call.user_message for call in product.calls])
        assert (422, "text/plain; charset=utf-8") == (anew.status, anew.response.headers["Content-Type"])
        assert b"THREADS is off" in anew.response.body

    told(story)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, b"messages must be a list"),
        ({"messages": [{"role": "assistant", "parts": []}]}, b"no message of the user"),
        ({"messages": [{"role": "user", "parts": [{"type": "file", "url": "x"}]}]}, b"https: address"),
        ({"messages": [{"role": "user", "parts": [{"type": "video", "url": "x"}]}]}, b"only text and files"),
        ({"messages": [{"role": "wizard", "parts": []}]}, b"role"),
        ({"messages": [ui(" ")]}, b"blank"),
        ({"id": "a\nb", "messages": [ui("x")]}, b"id is"),
        ({"id": 7, "messages": [ui("x")]}, b"id must be text"),
        ({"messages": [ui("x\0")]}, b"NUL"),
    ],
)
def test_bad_chats_are_refused_in_a_sentence(body: dict[str, Any], says: bytes) -> None:
    """It is what the user sees; nothing is stored."""

    async def story(isolate: Isolate, product: Product) -> None:
        reply = await isolate.ask("POST", CHAT, body)

        assert (422, "invalid_field") == (reply.status, reply.response.headers["X-Error-Code"])
        assert says in reply.response.body
        assert [] == product.calls

    told(story)


class Clerk(ChatTurnHooks):
    """An agent with a tool that needs approval."""

    tools = (
        Tool(
            name="send",
            description="Send it.",
            parameters={"type": "object", "properties": {}},
            run=lambda _args, _context: _sent(),
            needs_approval=True,
        ),
    )


async def _sent() -> str:
    return "sent"


@pytest.mark.parametrize("sdk", [7, 6])
@pytest.mark.parametrize("approved", [True, False])
def test_an_approval_goes_on_with_the_same_turn(sdk: int, approved: bool) -> None:
    """The thread comes back with the decision; the rest is streamed into the same message, nothing in it twice."""

    async def main(database: SqliteDatabase) -> None:
        isolate = Isolate(database, Clerk())
        body = {"id": "c1", "messages": [ui("use send {}")]}
        reply = await isolate.ask("POST", f"{CHAT}?v={sdk}", body)
        view = await seen(reply)
        [tool] = [part for part in view.parts if part["type"] == "dynamic-tool"]
        assert ("tool-calls", "approval-request") == (view.finish_reason, tool["state"])

        approval = {"id": tool["approval"], "approved": approved}
        decided = {**tool, "toolCallId": tool["id"], "state": "approval-responded", "approval": approval}
        answer = {"id": view.id, "role": "assistant", "parts": [{"type": "step-start"}, decided]}
        thread = {"id": "c1", "messages": [ui("use send {}"), answer], "messageId": view.id}
        reply = await isolate.ask("POST", f"{CHAT}?v={sdk}", thread)
        assert reply.task is not None
        await reply.task
        view.finished = False
        view.read(reply.reader.text)

        [tool] = [part for part in view.parts if part["type"] == "dynamic-tool"]
        assert ("stop", "output-available" if approved else "output-denied") == (view.finish_reason, tool["state"])
        assert 1 == [part["type"] for part in view.parts].count("step-start")
        assert ("sent" in view.text) is approved
        assert ("reset-step" in reply.reader.text) is (sdk == 7)

    with open_sqlite() as database:
        run(main(database))


@pytest.mark.parametrize("chunks", [0, 1, 2, 3])
def test_a_client_that_is_cut_off_right_behind_its_approval_is_told_nothing_twice(chunks: int) -> None:
    """WorkflowChatTransport: it holds the message, and goes on with the chunks of the last response, which it counts."""

    async def main(database: SqliteDatabase) -> None:
        isolate = Isolate(database, Clerk())
        reply = await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("use send {}")]})
        view = await seen(reply)
        [tool] = [part for part in view.parts if part["type"] == "dynamic-tool"]
        approval = {"id": tool["approval"], "approved": True}
        decided = {**tool, "toolCallId": tool["id"], "state": "approval-responded", "approval": approval}
        answer = {"id": view.id, "role": "assistant", "parts": [{"type": "step-start"}, decided]}
        reply = await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("use send {}"), answer]})
        assert reply.task is not None
        await reply.task
        view.asks_again()
        events = reply.reader.text.split("\n\n")
        view.read("".join(f"{event}\n\n" for event in [each for each in events if each.startswith("data")][:chunks]))
        run_id = reply.response.headers["X-Workflow-Run-Id"]
        view.read(await seen_text(isolate, f"{CHAT}/{quote(run_id, safe='')}/stream?startIndex={view.chunks}"))

        assert ["step-start", "dynamic-tool", "text"] == [part["type"] for part in view.parts]
        assert "output-available" == view.parts[1]["state"]

    async def seen_text(isolate: Isolate, path: str) -> str:
        reply = await isolate.ask("GET", path)
        assert reply.task is not None
        await reply.task
        return reply.reader.text

    with open_sqlite() as database:
        run(main(database))


def test_who_asks_on_gives_the_decision_with_the_next_question() -> None:
    """The turn that waits goes on, and the question behind it is answered; one that nobody has asked for is no matter."""

    async def main(database: SqliteDatabase) -> None:
        isolate = Isolate(database, Clerk())
        view = await seen(await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("use send {}")]}))
        [tool] = [part for part in view.parts if part["type"] == "dynamic-tool"]
        decided = [
            {**tool, "state": "approval-responded", "approval": {"id": id_, "approved": True}}
            for id_ in ("approve:of-nobody", tool["approval"])
        ]
        thread = [ui("use send {}"), {"id": view.id, "role": "assistant", "parts": decided}, ui("and now?", "m2")]
        after = await seen(await isolate.ask("POST", CHAT, {"id": "c1", "messages": thread}))
        first = await seen(await isolate.ask("GET", f"{CHAT}/{quote('chat:acme:c1:0', safe='')}/stream"))

        assert ("chat:acme:c1:1", "stop", None) == (after.id, after.finish_reason, after.error)
        assert ("stop", True) == (first.finish_reason, "sent" in first.text)

    with open_sqlite() as database:
        run(main(database))


def test_a_decision_that_comes_twice_is_one() -> None:
    """Two tabs decide at once: the first counts, both see the turn go on, and the tool runs once."""
    runs: list[int] = []

    class Counting(Clerk):
        tools = (replace(Clerk.tools[0], run=lambda _args, _context: _counted(runs)),)

    async def main(database: SqliteDatabase) -> None:
        isolates = [Isolate(database, Counting()), Isolate(database, Counting())]
        view = await seen(await isolates[0].ask("POST", CHAT, {"id": "c1", "messages": [ui("use send {}")]}))
        [tool] = [part for part in view.parts if part["type"] == "dynamic-tool"]
        decided = {**tool, "state": "approval-responded", "approval": {"id": tool["approval"], "approved": True}}
        answer = {"id": view.id, "role": "assistant", "parts": [{"type": "step-start"}, decided]}
        thread = {"id": "c1", "messages": [ui("use send {}"), answer]}
        replies = await asyncio.gather(*(isolate.ask("POST", CHAT, thread) for isolate in isolates))

        for reply in replies:
            assert reply.task is not None
            await reply.task
            assert '"finishReason":"stop"' in reply.reader.text
        assert [1] == runs

    with open_sqlite() as database:
        run(main(database))


async def _counted(runs: list[int]) -> str:
    runs.append(1)
    return "sent"


# OpenAI


def test_a_key_names_its_turn() -> None:
    """Again under it: a replay; at once: the same stream; another request: refused; another user: another turn."""

    async def story(isolate: Isolate, product: Product) -> None:
        first = await isolate.ask("POST", COMPLETIONS, asked("hi", stream=True), idempotency_key="k")
        meanwhile = await isolate.ask("POST", COMPLETIONS, asked("hi", stream=True), idempotency_key="k")
        views = [await completed(first), await completed(meanwhile)]
        whole = await isolate.ask("POST", COMPLETIONS, asked("hi"), idempotency_key="k")
        other = await isolate.ask("POST", COMPLETIONS, asked("ho"), idempotency_key="k")
        await isolate.ask("POST", COMPLETIONS, asked("ho"), idempotency_key="k", x_tenant="other")

        assert ["Hello, world."] * 2 == [view.text for view in views]
        [choice] = whole.body["choices"]
        assert ("Hello, world.", "stop") == (choice["message"]["content"], choice["finish_reason"])
        assert {whole.body["id"]} == views[0].ids == views[1].ids
        assert (422, "idempotency_key_reused", "Idempotency-Key", "false") == error_of(other)
        assert 2 == len(product.calls)

    told(story, text_delta("Hello, "), 0.1, text_delta("world."))


def test_a_model_is_shown_by_its_name() -> None:
    """Each of those that are listed, a slash in it encoded; no other."""

    async def main(database: SqliteDatabase) -> None:
        isolate = Isolate(database, Product(), settings={"MODELS": "acme/large, small"})
        listed = (await isolate.ask("GET", "/v1/models")).body["data"]
        shown = [(await isolate.ask("GET", f"/v1/models/{quote(each['id'], safe='')}")).body for each in listed]
        unknown = await isolate.ask("GET", "/v1/models/large")
        any_ = await Isolate(database, Product()).ask("GET", "/v1/models/large")

        assert {"default", "acme/large", "small"} <= {each["id"] for each in listed}
        assert listed == shown
        assert "large" == any_.body["id"]
        assert (404, "not_found", "model") == (
            unknown.status,
            *(unknown.body["error"][name] for name in ("code", "param")),
        )

    with open_sqlite() as database:
        run(main(database))


def test_a_retry_of_an_sdk_joins_what_it_repeats() -> None:
    """It says that it is one; without that the same question is a new one."""

    async def story(isolate: Isolate, product: Product) -> None:
        await isolate.ask("POST", COMPLETIONS, asked("hi"))
        again = await isolate.ask("POST", COMPLETIONS, asked("hi"), x_stainless_retry_count="1")
        assert (1, "true") == (len(product.calls), again.response.headers["X-Turn-Replayed"])
        await isolate.ask("POST", COMPLETIONS, asked("hi"), x_stainless_retry_count="0")
        await isolate.ask("POST", COMPLETIONS, asked("ho"), x_stainless_retry_count="2")
        assert 3 == len(product.calls)
        await asyncio.sleep(3_600)
        await isolate.ask("POST", COMPLETIONS, asked("hi"), x_stainless_retry_count="1")
        assert 4 == len(product.calls)

    told(story)


def test_the_request_s_own_messages_are_the_history() -> None:
    """All roles, in their order, as text or as parts of it."""

    async def story(isolate: Isolate, product: Product) -> None:
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "o"}, {"type": "text", "text": "ne"}]},
            {"role": "assistant", "content": "1"},
            {"role": "developer", "content": "Now."},
            {"role": "user", "content": "two"},
        ]
        await isolate.ask("POST", COMPLETIONS, {"model": "m", "messages": messages})

        [call] = product.calls
        assert ("two", "m") == (call.user_message, call.model)
        assert [("system", "Be brief."), ("user", "one"), ("assistant", "1"), ("developer", "Now.")] == [
            (message["role"], message["content"]) for message in call.history
        ]

    told(story)


def test_a_session_in_the_metadata_is_that_session() -> None:
    """The stored thread is the history, and our own routes show the turn."""

    async def story(isolate: Isolate, product: Product) -> None:
        metadata = {"session_id": "s1"}
        await isolate.ask("POST", COMPLETIONS, asked("one", metadata=metadata))
        await isolate.ask("POST", COMPLETIONS, asked("one", "whatever", "two", metadata=metadata))
        await isolate.ask("POST", COMPLETIONS, asked("three", metadata={**metadata, "turn_index": "2"}))

        page = (await isolate.ask("GET", "/v1/sessions/s1/messages")).body["messages"]
        assert [0, 0, 1, 1, 2, 2] == [message["turnIndex"] for message in page]
        assert {"chat:acme:s1:0", "chat:acme:s1:1", "chat:acme:s1:2"} == {message["runId"] for message in page}
        assert ["one", "Hello, world."] == [message["content"] for message in product.calls[1].history]

    told(story)


def test_open_webui_s_ids_name_its_turns() -> None:
    """A message asked again is a replay; a task about it is a turn of its own."""

    async def story(isolate: Isolate, product: Product) -> None:
        ids = {"x_openwebui_chat_id": "c", "x_openwebui_message_id": "m"}
        for task in ("", "", "title_generation"):
            reply = await isolate.ask("POST", COMPLETIONS, asked("hi"), x_openwebui_task=task, **ids)  # type: ignore[arg-type]
            assert 200 == reply.status
        assert 2 == len(product.calls)

    told(story)


@pytest.mark.parametrize(
    ("members", "status", "param"),
    [
        ({"n": 2}, 400, "n"),
        ({"n": "1"}, 400, "n"),
        ({"n": [1]}, 400, "n"),
        ({"n": {}}, 400, "n"),
        ({"stream": "true"}, 422, "stream"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"modalities": ["text", "audio"]}, 400, "modalities"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 422, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 422, "messages[0][0].url"),
        ({"messages": []}, 422, "messages"),
        ({"model": 7}, 422, "model"),
        ({"metadata": {"session_id": "a\nb"}}, 422, "metadata.session_id"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(members: dict[str, Any], status: int, param: str) -> None:
    """In OpenAI's form, and not to be tried again."""

    async def story(isolate: Isolate, product: Product) -> None:
        reply = await isolate.ask("POST", COMPLETIONS, asked("hi", **members))
        code = "unsupported_parameter" if status == 400 else "invalid_field"

        assert (status, code, param, "false") == error_of(reply)
        assert [] == product.calls

    told(story)


def test_what_clients_send_by_themselves_is_let_pass() -> None:
    """Parameters of the model, and members that nobody knows."""

    async def story(isolate: Isolate, _product: Product) -> None:
        body = asked("hi", temperature=0.3, top_p=1, user="x", presence_penalty=0, n=1, tools=[], chat_id="c")
        reply = await isolate.ask("POST", COMPLETIONS, body)

        assert 200 == reply.status
        models = (await isolate.ask("GET", "/v1/models")).body["data"]
        assert ["default"] == [model["id"] for model in models]

    told(story)


def test_a_turn_that_fails_is_an_error_with_its_code() -> None:
    """Before the first byte of an object, in the middle of a stream: never a whole answer."""

    async def story(isolate: Isolate, _product: Product) -> None:
        reply = await isolate.ask("POST", COMPLETIONS, asked("hi"))
        view = await completed(await isolate.ask("POST", COMPLETIONS, asked("hi", stream=True)))
        ui_view = await seen(await isolate.ask("POST", CHAT, {"id": "c1", "messages": [ui("one")]}))

        assert reply.status >= 500
        assert view.error is not None
        assert reply.body["error"]["code"] == view.error["code"] == "internal"
        assert not view.done
        assert ("error", view.error["message"]) == (ui_view.finish_reason, ui_view.error)

    told(story, text_delta("bad"), RuntimeError("secret"))


def test_a_cancelled_turn_is_no_whole_answer() -> None:
    """An object is a conflict, a stream an error, a chat an aborted message."""

    async def story(isolate: Isolate, _product: Product) -> None:
        body = asked("hi", metadata={"session_id": "s1"})
        running = asyncio.ensure_future(isolate.ask("POST", COMPLETIONS, body))
        await asyncio.sleep(1)
        identity = ChatTurnIdentity(tenant_id="acme", session_id="s1", user_id="ann", turn_index=0)
        await isolate.service.cancel(identity)
        reply = await running
        view = await seen(await isolate.ask("GET", f"{CHAT}/s1/stream"))

        assert (409, "cancelled", None, "false") == error_of(reply)
        assert ("Hello, ", "other") == (view.text, view.finish_reason)

    told(story, text_delta("Hello, "), 60.0, text_delta("world."))


def test_an_error_is_json_even_in_the_middle_of_nothing() -> None:
    """A body that is no JSON: each form is still its own."""

    async def story(isolate: Isolate, _product: Product) -> None:
        reply = await isolate.ask("POST", COMPLETIONS, [1])
        assert (400, "malformed_request", "body", "false") == error_of(reply)
        assert json.loads(reply.response.body)["error"]["type"] == "invalid_request_error"

    told(story)
