"""Regenerating and editing in the clients of others: each answer is a version, and none is lost."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from chatturn.database.sqlite import SqliteDatabase
from tests.support.chat_clients import CompletionView, UiMessageView
from tests.support.isolates import Isolate, Reply
from tests.support.turns import open_sqlite
from tests.turns.test_versions import ON, Counting, thread

CHAT = "/v1/ai-sdk/chat"
COMPLETIONS = "/v1/chat/completions"
RUN = "chat:acme:thread-1:0"


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    with open_sqlite() as database:
        yield database


@pytest.fixture
def isolate(database: SqliteDatabase) -> Isolate:
    return Isolate(database, Counting(), settings=ON)


def ui(*texts: str) -> list[dict[str, Any]]:
    """Make a thread, of which every other message is the assistant's."""
    roles = ["user", "assistant"] * len(texts)
    return [
        {"id": f"m{at}", "role": role, "parts": [{"type": "text", "text": text}]}
        for at, (role, text) in enumerate(zip(roles, texts, strict=False))
    ]


async def chat(isolate: Isolate, *texts: str, **members: Any) -> UiMessageView:
    return await seen(await isolate.ask("POST", CHAT, {"id": "thread-1", "messages": ui(*texts), **members}))


async def seen(reply: Reply) -> UiMessageView:
    assert reply.status == 200, reply.response.body
    assert reply.task is not None
    await reply.task
    view = UiMessageView()
    view.read(reply.reader.text)
    return view


def again(of: str | None = None) -> dict[str, Any]:
    return {"trigger": "regenerate-message", **({} if of is None else {"messageId": of})}


async def test_an_answer_is_regenerated(isolate: Isolate) -> None:
    """A version of its own, with an id of its own; the thread has it, and the first is kept."""
    first = await chat(isolate, "one")
    second = await chat(isolate, "one", **again())
    third = await chat(isolate, "one", **again(second.id))
    shown = await seen(await isolate.ask("GET", f"{CHAT}/thread-1/stream"))
    earlier = await seen(await isolate.ask("GET", f"{CHAT}/{RUN.replace(':', '%3A')}/stream"))

    assert [RUN, f"{RUN}~2", f"{RUN}~3"] == [view.id for view in (first, second, third)]
    assert ["one/1", "one/2", "one/3"] == [view.text for view in (first, second, third)]
    assert ("one/3", "one/1") == (shown.text, earlier.text)
    assert ["one", "one/3"] == await thread(isolate)


async def test_two_tabs_that_regenerate_the_same_answer_have_one(isolate: Isolate) -> None:
    """At once, or later: the answer that they show is named by its id, and what was made of it is there."""
    await chat(isolate, "one")
    both = await asyncio.gather(chat(isolate, "one", **again(RUN)), chat(isolate, "one", **again(RUN)))
    late = await chat(isolate, "one", **again(RUN))

    assert ["one/2"] * 3 == [view.text for view in (*both, late)]


async def test_an_answer_that_counts_again_is_regenerated_again(isolate: Isolate) -> None:
    """Whoever went back to an earlier one wants a new one, and not the one that he left."""
    await chat(isolate, "one")
    await chat(isolate, "one", **again(RUN))
    await isolate.ask("POST", "/v1/sessions/thread-1/turns/0/versions/1/activate")
    view = await chat(isolate, "one", **again(RUN))

    assert ("one/3", f"{RUN}~3") == (view.text, view.id)


async def test_regenerating_what_failed_tries_it_again(database: SqliteDatabase) -> None:
    """The button below an error: no version of nothing; also where it was to replace an answer."""

    class Failing(Counting):
        fails = True

        async def numbered(self, context: Any) -> Any:
            if self.fails:
                raise RuntimeError
            async for event in super().numbered(context):
                yield event

    product = Failing()
    isolate = Isolate(database, product, settings=ON)
    failed = await chat(isolate, "one")
    product.fails = False
    mended = await chat(isolate, "one", **again(failed.id))
    product.fails = True
    anew = await chat(isolate, "one", **again(mended.id))
    product.fails = False
    last = await chat(isolate, "one", **again(anew.id))

    assert [RUN, RUN, f"{RUN}~2", f"{RUN}~2"] == [view.id for view in (failed, mended, anew, last)]
    assert (None, None) == (mended.error, last.error)
    assert ["one", last.text] == await thread(isolate)


async def test_an_edit_is_a_version_and_what_followed_is_detached(isolate: Isolate) -> None:
    """The latest turn of the chat is the one that is in it; sent again it is the same, and back again a new one."""
    await chat(isolate, "one")
    await chat(isolate, "one", "one/1", "two")
    edited = await chat(isolate, "uno", messageId="m0")
    twice = await chat(isolate, "uno", messageId="m0")
    latest = await seen(await isolate.ask("GET", f"{CHAT}/thread-1/stream"))
    threads = [await thread(isolate)]
    back = await chat(isolate, "one", messageId="m0")
    threads.append(await thread(isolate))
    goes_on = await chat(isolate, "one", back.text, "three")

    assert ["uno/3", "uno/3", "uno/3"] == [view.text for view in (edited, twice, latest)]
    assert [["uno", "uno/3"], ["one", "one/4"]] == threads
    assert ("one/4", "three/5") == (back.text, goes_on.text)
    assert ["one", "one/4", "three", "three/5"] == await thread(isolate)


async def test_the_turn_that_is_being_answered_is_the_latest(database: SqliteDatabase) -> None:
    """A page that is loaded while an earlier turn is regenerated sees that."""
    isolate = Isolate(database, Counting(), settings=ON)
    await chat(isolate, "one")
    await chat(isolate, "one", "one/1", "two")
    hurried = await isolate.ask("POST", CHAT, {"id": "thread-1", "messages": ui("one"), **again()})
    shown = await isolate.ask("GET", f"{CHAT}/thread-1/stream")
    assert hurried.task is not None
    await hurried.task

    assert f"{RUN}~2" == shown.response.headers["X-Workflow-Run-Id"]


async def test_an_answer_that_was_edited_meanwhile_is_not_regenerated(isolate: Isolate) -> None:
    """Another tab has asked something else: a sentence says so, and nothing is stored."""
    await chat(isolate, "one")
    await chat(isolate, "uno", messageId="m0")
    reply = await isolate.ask("POST", CHAT, {"id": "thread-1", "messages": ui("one"), **again(RUN)})

    assert (409, "version_conflict") == (reply.status, reply.response.headers["X-Error-Code"])
    assert ["uno", "uno/2"] == await thread(isolate)


async def test_a_version_is_counted_from_its_own_beginning(isolate: Isolate) -> None:
    """`startIndex` is of the run that the transport was told."""
    await chat(isolate, "one")
    whole = await chat(isolate, "one", **again())
    run_id = f"{RUN}~2".replace(":", "%3A")
    for seen_chunks in range(whole.chunks + 1):
        view = UiMessageView()
        first = await isolate.ask("GET", f"{CHAT}/{run_id}/stream")
        assert first.task is not None
        await first.task
        view.read("\n\n".join(first.reader.text.split("\n\n")[:seen_chunks]) + "\n\n" * bool(seen_chunks))
        view.finished = False
        rest = await isolate.ask("GET", f"{CHAT}/{run_id}/stream?startIndex={view.chunks}")
        assert rest.task is not None
        await rest.task
        view.read(rest.reader.text)
        assert ("one/2", True) == (view.text, view.finished)


# OpenAI


async def complete(isolate: Isolate, *texts: str, **metadata: str) -> str:
    messages = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, texts, strict=False)]
    members = {"metadata": {"session_id": "thread-1", **metadata}, "stream": True}
    reply = await isolate.ask("POST", COMPLETIONS, {"model": "default", "messages": messages, **members})
    assert reply.status == 200, reply.response.body
    assert reply.task is not None
    await reply.task
    view = CompletionView()
    view.read(reply.reader.text)
    assert view.done
    return view.text


async def test_another_question_in_a_session_is_an_edit(isolate: Isolate) -> None:
    """And what followed is detached; the same again is the same answer."""
    await complete(isolate, "one")
    await complete(isolate, "one", "one/1", "two")
    edited = [await complete(isolate, "uno") for _ in range(2)]
    went_on = await complete(isolate, "uno", "uno/3", "due")

    assert (["uno/3", "uno/3"], "due/4") == (edited, went_on)
    assert ["uno", "uno/3", "due", "due/4"] == await thread(isolate)


async def test_another_thread_is_answered_as_it_is_shown(isolate: Isolate) -> None:
    """A client that has edited what was said before, and asks on: the model is shown the client's thread."""
    await complete(isolate, "one")
    await complete(isolate, "one", "one/1", "two")
    answered = [await complete(isolate, "uno", "1", "two") for _ in range(2)]
    product = isolate.hooks
    assert isinstance(product, Counting)

    assert ["two/3", "two/3"] == answered
    assert ["uno", "1"] == [message["content"] for message in product.calls[2].history]
    assert ["one", "one/1", "two", "two/3"] == await thread(isolate)


async def test_a_session_s_answer_is_regenerated_by_its_version(isolate: Isolate) -> None:
    """`metadata.regenerate` names the version that it takes the place of; sent again it is the same."""
    await complete(isolate, "one")
    twice = [await complete(isolate, "one", regenerate="1") for _ in range(2)]
    messages = [{"role": "user", "content": "one"}]
    refused = [
        await isolate.ask(
            "POST",
            COMPLETIONS,
            {"model": "default", "messages": messages, "metadata": {"session_id": "thread-1", "regenerate": wanted}},
        )
        for wanted in ("7", "x")
    ]

    assert ["one/2", "one/2"] == twice
    assert [(409, "version_conflict"), (422, "invalid_field")] == [
        (each.status, each.body["error"]["code"]) for each in refused
    ]
    assert "metadata.regenerate" == refused[1].body["error"]["param"]
