"""A turn whose first model breaks off in its answer, and whose second one gives it: told, stored and billed as that."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from chatturn.backends.providers import Model, Provider
from chatturn.backends.routing import Means, create_backend
from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.chat.log.compaction import compact_logs
from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import BackendTransportError
from chatturn.settings import Settings
from chatturn_testing.law import text_of
from products.agent import Hooks as Agent
from products.assistant import Hooks as Assistant
from tests.support.chat_clients import CompletionView, UiMessageView
from tests.support.isolates import Isolate
from tests.support.transport import HANG, Reply, ScriptedTransport
from tests.support.turns import open_sqlite
from tests.turns.test_compaction import LATER_S, room
from tests.unit.backends.openai.test_backend import frame

BROKEN = Reply(body=[frame("Good mor"), frame("ning"), BackendTransportError("cut", backend="t")])
WHOLE = Reply(body=[frame("Good"), frame(" evening"), frame(finish="stop")])


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


CALL = {"index": 0, "id": "c1", "function": {"name": "add_note", "arguments": '{"text": "milk"}'}}
LOOKS = Reply(
    body=[
        frame("I add it. "),
        frame(choices=[{"index": 0, "delta": {"tool_calls": [CALL]}, "finish_reason": None}]),
        frame(finish="tool_calls"),
    ]
)


def isolate(
    database: SqliteDatabase,
    midway: str = "on",
    *,
    product: ChatTurnHooks | None = None,
    replies: Sequence[Reply] = (BROKEN, WHOLE),
) -> Isolate:
    """Return an isolate whose first model breaks off."""
    transport = ScriptedTransport(replies)
    providers = [
        Provider(name=name, kind="compatible", url=f"https://{name}.test", models={name: Model()}, others=None)
        for name in ("one", "two")
    ]
    means = Means(
        transport=transport, binding=transport, uniform=lambda _low, _high: 0.0, now=lambda: 0.0, log=lambda *_: None
    )
    settings = {"MODEL": "one,two", "FALLBACK_MIDWAY": midway}
    return Isolate(
        database,
        product or Assistant(),
        create_backend(Settings.from_env(settings), providers, means),
        {"MODEL": "one,two"},
    )


async def test_live_and_stored_the_answer_is_the_second_s(database: SqliteDatabase) -> None:
    """Also once its log is stored in its short form; the first one's words are billed as wasted."""
    alone = isolate(database)
    live = await (await alone.post()).lines()
    stored = await (await alone.follow()).lines()
    await asyncio.sleep(LATER_S)
    assert await compact_logs(database, room) == 1
    compact = await (await alone.follow()).lines()
    [messages, calls] = await database.batch(
        [
            Statement("SELECT content FROM chat_messages WHERE role = 'assistant'"),
            Statement("SELECT outcome, wasted FROM chat_usage ORDER BY call_index"),
        ]
    )

    assert [text_of(lines) for lines in (live, stored, compact)] == ["Good evening"] * 3
    assert messages.rows[0]["content"] == "Good evening"
    assert [(row["outcome"], row["wasted"]) for row in calls.rows] == [("failed", 1), ("completed", 0)]


async def streamed(alone: Isolate, method: str, path: str, body: object = None, **headers: Any) -> str:
    """Return the body of a stream, at its end."""
    reply = await alone.ask(method, path, body, **headers)
    assert reply.task is not None
    await reply.task
    return reply.reader.text


ASKED = {"model": "default", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
CHAT = {"id": "thread-1", "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "hi"}]}]}


async def test_openai_s_clients_are_told_and_get_the_whole_when_they_ask_again(database: SqliteDatabase) -> None:
    """They cannot take words back: the stream ends with an error, and the same request is answered from the log."""
    alone = isolate(database)
    first, again = CompletionView(), CompletionView()
    first.read(await streamed(alone, "POST", "/v1/chat/completions", ASKED, idempotency_key="k"))
    again.read(await streamed(alone, "POST", "/v1/chat/completions", ASKED, idempotency_key="k"))

    assert first.error is not None
    assert ("answer_restarted", None) == (first.error["code"], again.error)
    assert ("Good evening", True) == (again.text, again.done)


@pytest.mark.parametrize("version", [5, 6])
async def test_older_ai_sdks_get_the_whole_when_they_come_back(version: int, database: SqliteDatabase) -> None:
    """They know no reset: the body breaks off, once."""
    alone = isolate(database)
    first, again = UiMessageView(), UiMessageView()
    first.read(await streamed(alone, "POST", f"/v1/ai-sdk/chat?v={version}", CHAT))
    again.read(await streamed(alone, "GET", f"/v1/ai-sdk/chat/thread-1/stream?v={version}"))

    assert (False, True) == (first.finished, again.finished)
    assert "Good evening" == again.text


@pytest.mark.parametrize("cut", [False, True])
async def test_an_agent_whose_second_round_gives_way_keeps_what_its_first_has_said(
    cut: bool, database: SqliteDatabase
) -> None:
    """The words before the tool stay before it, live, stored, and for a client that was cut off and counts."""
    alone = isolate(database, product=Agent(), replies=[LOOKS, BROKEN, WHOLE])
    text = await streamed(alone, "POST", "/v1/ai-sdk/chat", CHAT)
    view = UiMessageView()
    view.read(text[: text.index("Good mor") if cut else None])
    if cut:
        view.read(await streamed(alone, "GET", f"/v1/ai-sdk/chat/thread-1/stream?startIndex={view.chunks}"))
    stored = await (await alone.follow()).lines()
    [messages] = await database.batch([Statement("SELECT content FROM chat_messages WHERE role = 'assistant'")])

    assert ["text", "dynamic-tool", "text"] == [part["type"] for part in view.shown()]
    assert ["I add it. ", "Good evening"] == [part["text"] for part in view.shown() if part["type"] == "text"]
    assert "Good evening" == text_of(stored)
    assert "Good evening" == messages.rows[0]["content"]


async def test_an_agent_that_was_stopped_behind_a_change_of_models_keeps_its_last_round(
    database: SqliteDatabase,
) -> None:
    """Its worker is lost, and another one ends it: what was said before the tool is not the answer."""
    mute = Reply(body=[frame("Good"), HANG])
    alone = isolate(database, product=Agent(), replies=[LOOKS, BROKEN, mute])
    await alone.post()
    await asyncio.sleep(10)
    await alone.kill()
    await asyncio.sleep(LATER_S)
    other = isolate(database, product=Agent(), replies=[])
    await other.ask("POST", "/v1/sessions/thread-1/turns/0/cancel")
    await asyncio.sleep(10)
    [messages] = await database.batch([Statement("SELECT content FROM chat_messages WHERE role = 'assistant'")])

    assert "Good" == messages.rows[0]["content"]


async def test_without_the_setting_the_attempt_fails(database: SqliteDatabase) -> None:
    """And the next one asks the second model, since the first one rests."""
    alone = isolate(database, "off")
    first = await (await alone.post()).lines()
    second = await (await alone.post()).lines()

    assert [lines[-1]["type"] for lines in (first, second)] == ["session.run.failed", "session.run.completed"]
    assert text_of(second) == "Good evening"
