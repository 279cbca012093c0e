"""What an API wants back with its answer goes back in later turns: to it alone, within limits, and not once redacted."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from chatturn.backends.openai.quirks import Quirks
from chatturn.backends.providers import Model, Provider
from chatturn.backends.routing import Means, create_backend
from chatturn.chat.requests import TurnRequest
from chatturn.chat.turn.sinks import NoSink
from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.product import ChatTurnHooks
from chatturn.settings import Settings
from products.agent import Hooks as Agent
from products.assistant import Hooks as Assistant
from products.legal import Hooks as Legal
from tests.support.isolates import Isolate
from tests.support.transport import Reply, ScriptedTransport
from tests.support.turns import IDENTITY, open_sqlite
from tests.unit.backends.openai.test_backend import OK, frame

DETAILS = [{"type": "reasoning.text", "text": "Hm", "signature": "sig"}]


def answer(text: str = "Hello", **members: Any) -> Reply:
    """Return an answer with members besides its text."""
    deltas = [{"index": 0, "delta": members}, {"index": 0, "delta": {"content": text}}]
    return Reply(body=[*(frame(choices=[delta]) for delta in deltas), frame(finish="stop")])


REASONED = answer(reasoning_details=DETAILS)


@pytest.fixture
def database() -> Iterator[SqliteDatabase]:
    """An empty database."""
    with open_sqlite() as database:
        yield database


def isolate(
    database: SqliteDatabase,
    replies: list[Reply],
    hooks: ChatTurnHooks | None = None,
    *,
    name: str = "one",
    later_turns: bool = True,
) -> tuple[Isolate, ScriptedTransport]:
    """Return an isolate with a provider, and the transport that has the record."""
    transport = ScriptedTransport(replies)
    quirks = Quirks(later_turns=later_turns)
    provider = Provider(name=name, kind="compatible", url=f"https://{name}.test", quirks=quirks, others=Model())
    means = Means(
        transport=transport, binding=transport, uniform=lambda _low, _high: 0.0, now=lambda: 0.0, log=lambda *_: None
    )
    backend = create_backend(replace(Settings(), model="m"), [provider], means)
    return Isolate(database, hooks or Assistant(), backend, {"MODEL": "m"}), transport


async def turn(alone: Isolate, index: int) -> None:
    """Ask a turn to its end."""
    await (await alone.service.open(replace(IDENTITY, turn_index=index), TurnRequest(message="hi"))).run(NoSink())


def answered(transport: ScriptedTransport) -> list[dict[str, Any]]:
    """Return the assistant's messages of the latest request."""
    messages = json.loads(transport.exchanges[-1].request.body)["messages"]
    return [message for message in messages if message["role"] == "assistant"]


async def test_what_came_goes_back_as_it_came(database: SqliteDatabase) -> None:
    """With the answer, in each later turn, also from another isolate."""
    alone, _ = isolate(database, [REASONED, OK])
    await turn(alone, 0)
    await turn(alone, 1)
    other, transport = isolate(database, [OK])
    await turn(other, 2)

    assert answered(transport) == [
        {"role": "assistant", "content": "Hello", "reasoning_details": DETAILS},
        {"role": "assistant", "content": "Hello"},
    ]


@pytest.mark.parametrize("change", [{"name": "two"}, {"later_turns": False}])
async def test_nobody_else_gets_it(database: SqliteDatabase, change: dict[str, Any]) -> None:
    """Not another provider, and not one that does not want it."""
    alone, _ = isolate(database, [REASONED])
    await turn(alone, 0)
    other, transport = isolate(database, [OK], **change)
    await turn(other, 1)

    assert answered(transport) == [{"role": "assistant", "content": "Hello"}]


async def test_a_product_that_redacts_keeps_nothing_of_it(database: SqliteDatabase) -> None:
    """Neither for later turns nor in its database: no redactor has seen it."""
    secret = answer(reasoning_details=[{"type": "reasoning.text", "text": "ann@example.com"}])
    alone, transport = isolate(database, [secret, OK], Legal())
    await turn(alone, 0)
    await turn(alone, 1)

    assert answered(transport) == [{"role": "assistant", "content": "Hello"}]
    for table in ("chat_turns", "durable_steps", "chat_segments", "durable_runs"):
        [found] = await database.batch([Statement(f"SELECT * FROM {table}")])  # noqa: S608 - ours
        assert "ann@" not in str(found.rows)


async def test_what_is_too_long_goes_back_in_no_later_turn(database: SqliteDatabase) -> None:
    """The answer itself does."""
    alone, transport = isolate(database, [answer(reasoning_details=[{"text": "x" * 20_001}]), OK])
    await turn(alone, 0)
    await turn(alone, 1)

    assert answered(transport) == [{"role": "assistant", "content": "Hello"}]


async def test_the_last_round_of_an_agent_is_its_answer(database: SqliteDatabase) -> None:
    """What its calls wanted back is theirs; also where the round was on record when the turn's worker died."""
    call = {"index": 0, "id": "a", "function": {"name": "add_note", "arguments": '{"text":"milk"}'}}
    calls = Reply(
        body=[
            frame(choices=[{"index": 0, "delta": {"reasoning_details": [{"text": "call"}], "tool_calls": [call]}}]),
            frame(finish="tool_calls"),
        ]
    )
    alone, transport = isolate(database, [calls, REASONED, OK], Agent())
    await turn(alone, 0)
    await turn(alone, 1)

    assert [message["reasoning_details"] for message in answered(transport)] == [DETAILS]


async def test_an_answer_that_is_superseded_leaves_nothing(database: SqliteDatabase) -> None:
    """What goes back is that of the answer that counts."""
    alone, transport = isolate(database, [REASONED, OK, OK])
    await turn(alone, 0)
    request = TurnRequest(message="other", supersede=True)
    await (await alone.service.open(replace(IDENTITY, turn_index=0), request)).run(NoSink())
    await turn(alone, 1)

    assert answered(transport) == [{"role": "assistant", "content": "Hello"}]
