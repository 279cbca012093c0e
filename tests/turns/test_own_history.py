"""A request may bring the conversation before it: then that is the model's, and a part of what the turn is."""

import asyncio
import json
from dataclasses import replace

import pytest

from chatturn.agent_runtime.turns.chat_engine import durable_chat_turn_engine
from chatturn.chat.requests import TurnRequest
from chatturn.chat.turn.sinks import NoSink
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import DurableRunInputMismatchError
from chatturn_testing.virtual_time import run
from tests.support.isolates import Isolate
from tests.support.turns import IDENTITY, Desk, Product, open_sqlite

HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which port?"},
    {"role": "assistant", "content": "Lübeck."},
]


def test_the_model_is_shown_the_request_s_own_conversation() -> None:
    """All roles, in their order; what is stored of the session is not mixed in, and not read."""

    async def story(database: SqliteDatabase) -> None:
        desk = Desk(database, Product())
        await desk.run(message="stored")
        later = replace(IDENTITY, turn_index=1)
        await desk.run(identity=later, message="And the next?", history=HISTORY)

        [_, shown] = desk.hooks.calls  # type: ignore[attr-defined]
        assert HISTORY == list(shown.history)
        assert "And the next?" == shown.user_message

    with open_sqlite() as database:
        run(story(database))


def test_another_conversation_is_another_turn() -> None:
    """The same message behind another conversation is refused, as another message is; the same one replays."""

    async def story(database: SqliteDatabase) -> None:
        desk = Desk(database)
        await desk.run(history=HISTORY)
        assert "result" in [line["type"] for line in await desk.run(history=HISTORY)]
        for other in (None, [], HISTORY[:-1]):
            with pytest.raises(DurableRunInputMismatchError):
                await durable_chat_turn_engine.open(desk.input(history=other))

    with open_sqlite() as database:
        run(story(database))


def test_a_takeover_goes_on_with_the_conversation_of_the_request() -> None:
    """Who takes a lost turn over was never told the conversation: it is stored with the turn."""

    async def story(database: SqliteDatabase) -> None:
        product = Product()
        isolate = Isolate(database, product)
        await isolate.service.open(IDENTITY, TurnRequest(message="hi", history=HISTORY))
        await asyncio.sleep(61)  # its worker died before it said anything
        taken = await isolate.service.reopen("chat:acme:thread-1:0")
        await taken.run(NoSink())

        assert HISTORY == list(product.calls[-1].history)
        [[stored]] = await Desk(database).rows("SELECT history_json FROM chat_turns")
        assert HISTORY == json.loads(stored)

    with open_sqlite() as database:
        run(story(database))
