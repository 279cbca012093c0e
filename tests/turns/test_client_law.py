"""
The law for clients of other formats: whoever dies, and wherever they are cut off, they end with the answer.

Workers die at random moments; each client is cut off and comes back as its own source says.  No reconnect is refused,
no body ends cleanly before the turn does, no character is missing or doubled, no attempt calls the model twice.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatturn.chat.hooks.hooks import ChatTurnHooks, TurnContext
from chatturn.chat.turn.stream import StreamProducer
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import EventBatch, reasoning_delta, text_delta, tool_call, tool_result, usage_event
from chatturn_testing.virtual_time import run
from tests.support.chat_clients import CompletionView, UiMessageView
from tests.support.isolates import Isolate, Reply
from tests.support.turns import open_sqlite

LEASE_MS = 3_000
CHAT = "/v1/ai-sdk/chat"
MESSAGES = [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}]
ASKED = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "stream": True}

Pause = st.sampled_from([0.0, 0.01, 0.1, 0.26, 0.5, 1.4])
Moment = st.integers(0, 60).map(lambda tenth: tenth / 10)


@dataclass(frozen=True)
class Scene:
    """
    What happens.

    Attributes:
        model: What it says: how many words at once, and the pause after them.
        deaths: How long each worker lives, in turn; the last one lives on.
        outages: When the database does not answer, and for how long.
        clients: When each client comes, in which isolate, and how long each of its connections holds.
    """

    model: list[tuple[int, float]]
    deaths: list[float]
    outages: list[tuple[float, float]]
    clients: list[tuple[str, float, bool, list[float]]]


scenes = st.builds(
    Scene,
    model=st.lists(st.tuples(st.integers(1, 30), Pause), min_size=1, max_size=10),
    deaths=st.lists(Moment, max_size=3),
    outages=st.just([]) | st.lists(st.tuples(Moment, Moment), max_size=2),
    clients=st.lists(
        st.tuples(
            st.sampled_from(["counts", "replays", "completes", "regenerates"]),
            Moment,
            st.booleans(),
            st.lists(Moment, max_size=3),
        ),
        min_size=1,
        max_size=4,
    ),
)


class Model(ChatTurnHooks):
    """Says what the scene has; keeps account of its calls."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene
        self.calls: dict[str, list[int]] = {}
        self.answer = "".join(
            f"{number}.{offset} " for number, (count, _) in enumerate(scene.model) for offset in range(count)
        )

    def produce(self, context: TurnContext) -> StreamProducer:
        self.calls.setdefault(context.identity.session_id, []).append(context.attempt)
        return StreamProducer(self._say(context.attempt))

    async def _say(self, attempt: int) -> AsyncGenerator[EventBatch, None]:
        """Say the same in every attempt, but in other pieces: so a count of one attempt means nothing in another."""
        yield [reasoning_delta("…"), tool_call(tool_call_id="t", tool_name="n", args={})]
        yield tool_result(tool_call_id="t", tool_name="n", result=1)
        for number, (count, pause) in enumerate(self.scene.model):
            words = [f"{number}.{offset} " for offset in range(count)]
            yield [text_delta("".join(words[at : at + attempt])) for at in range(0, count, attempt)]
            await asyncio.sleep(pause)
        yield usage_event(tokensIn=1, tokensOut=len(self.answer), finishReason="stop")


class World:
    """The isolates, of which one after another dies."""

    def __init__(self, database: SqliteDatabase, scene: Scene) -> None:
        self.database, self.scene, self.model = database, scene, Model(scene)
        self.alive, self.bystander, self.regenerated = self._isolate(), self._isolate(), 0

    def _isolate(self) -> Isolate:
        return Isolate(self.database, self.model, settings={"LEASE_MS": str(LEASE_MS), "THREADS": "on"})

    async def dies_and_is_replaced(self) -> None:
        for lived in self.scene.deaths:
            await asyncio.sleep(lived)
            dying, self.alive = self.alive, self._isolate()
            await dying.kill()

    async def database_goes_away(self) -> None:
        for comes, lasts in self.scene.outages:
            await asyncio.sleep(comes)
            isolates = (self.alive, self.bystander)
            for isolate in isolates:
                isolate.wire.down = True
            await asyncio.sleep(lasts)
            for isolate in isolates:
                isolate.wire.down = False

    async def client(self, kind: str, comes: float, elsewhere: bool, connections: list[float]) -> None:
        """Read the turn until its end, over connections that break."""
        await asyncio.sleep(comes)
        broken = iter(connections)

        async def connect(method: str, path: str, body: Any, **headers: Any) -> tuple[Reply | None, str]:
            isolate = self.bystander if elsewhere else self.alive
            try:
                reply = await isolate.ask(method, path, body, **headers)
            except asyncio.CancelledError:
                assert isolate.wire.dead
                return None, ""
            if reply.task is None:
                assert (method, reply.status) == ("POST", 503), "a reconnect is never refused"
                return reply, ""
            holds = next(broken, None)
            done, _ = await asyncio.wait([reply.task], timeout=holds)
            text = reply.reader.text
            ended = bool(done) and not reply.reader.broken_off
            assert not ended or isolate.wire.dead or "[DONE]" in text or '"error"' in text
            reply.reader.leave()
            return reply, text

        if kind == "completes":
            await self._completes(connect)
        else:
            await self._chats(kind, connect)

    async def _chats(self, kind: str, connect: Any) -> None:
        body: dict[str, Any] = {"id": "thread-1", "messages": MESSAGES}
        await self._chat(kind, connect, body)
        if kind == "regenerates":
            self.regenerated += 1
            await self._chat(kind, connect, {**body, "trigger": "regenerate-message"})

    async def _chat(self, kind: str, connect: Any, body: Any) -> None:
        view = UiMessageView()
        reply, text = await connect("POST", CHAT, body)
        while reply is None or reply.status == 503:
            await asyncio.sleep(0.3)
            reply, text = await connect("POST", CHAT, body)
        view.read(text)
        run_id = quote(reply.response.headers["X-Workflow-Run-Id"], safe="")
        for _ in range(300):
            if view.finished:
                break
            if kind == "replays":
                view.resume_from_the_start()
                _, text = await connect("GET", f"{CHAT}/thread-1/stream", None)
            else:
                _, text = await connect("GET", f"{CHAT}/{run_id}/stream?startIndex={view.chunks}", None)
            view.read(text)
            await asyncio.sleep(0.3)

        assert (self.model.answer, "stop", None) == (view.text, view.finish_reason, view.error)
        assert 1 == sum(part["type"] == "dynamic-tool" for part in view.parts)

    async def _completes(self, connect: Any) -> None:
        for _ in range(200):
            view = CompletionView()
            _, text = await connect("POST", "/v1/chat/completions", ASKED, idempotency_key="key")
            view.read(text)
            assert self.model.answer.startswith(view.text)
            if view.done:
                break
            await asyncio.sleep(0.3)

        assert (self.model.answer, "stop") == (view.text, view.finish_reason)


async def _story(scene: Scene) -> None:
    with open_sqlite() as database:
        world = World(database, scene)
        fate = asyncio.gather(world.dies_and_is_replaced(), world.database_goes_away())
        await asyncio.gather(*(world.client(*client) for client in scene.clients))
        await fate

        for attempts in world.model.calls.values():
            may_be = 1 + world.regenerated + len(scene.deaths) + len(scene.outages)
            assert len(set(attempts)) == len(attempts) <= may_be


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(scenes)
def test_every_client_of_another_format_ends_with_the_answer(scene: Scene) -> None:
    """Random models, deaths, connections: the whole, once."""
    run(_story(scene))
