"""A turn whose first model breaks off in its answer, and whose second one gives it: told, stored and billed as that."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from chatturn.backends.providers import Model, Provider
from chatturn.backends.routing import Means, create_backend
from chatturn.chat.log.compaction import compact_logs
from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import BackendTransportError
from chatturn.settings import Settings
from products.assistant import Hooks as Assistant
from tests.support.isolates import Isolate
from tests.support.transport import Reply, ScriptedTransport
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


def isolate(database: SqliteDatabase, midway: str = "on") -> Isolate:
    """Return an isolate whose first model breaks off."""
    transport = ScriptedTransport([BROKEN, WHOLE])
    providers = [
        Provider(name=name, kind="compatible", url=f"https://{name}.test", models={name: Model()}, others=None)
        for name in ("one", "two")
    ]
    means = Means(
        transport=transport, binding=transport, uniform=lambda _low, _high: 0.0, now=lambda: 0.0, log=lambda *_: None
    )
    settings = {"MODEL": "one,two", "FALLBACK_MIDWAY": midway}
    return Isolate(
        database, Assistant(), create_backend(Settings.from_env(settings), providers, means), {"MODEL": "one,two"}
    )


def text_of(lines: list[dict[str, Any]]) -> str:
    """Return the answer by the rules of the protocol."""
    text = ""
    for line in lines:
        if line["type"] == "message.part.updated":
            data = line["data"]
            text = data["part"]["text"] if "text" in data["part"] else text + data["delta"]
    return text


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


async def test_clients_that_cannot_take_words_back_are_told(database: SqliteDatabase) -> None:
    """OpenAI's; the AI SDK's begin the step anew."""
    alone = isolate(database)
    body = {"model": "default", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    reply = await alone.ask("POST", "/v1/chat/completions", body)
    assert reply.task is not None
    await reply.task
    frames = [json.loads(line[6:]) for line in reply.reader.text.split("\n\n") if line.startswith("data: {")]

    assert frames[-1]["error"]["code"] == "answer_restarted"


async def test_without_the_setting_the_attempt_fails(database: SqliteDatabase) -> None:
    """And the next one asks the second model, since the first one rests."""
    alone = isolate(database, "off")
    first = await (await alone.post()).lines()
    second = await (await alone.post()).lines()

    assert [lines[-1]["type"] for lines in (first, second)] == ["session.run.failed", "session.run.completed"]
    assert text_of(second) == "Good evening"
