"""
The law of the log: what a client has seen, and what it is given after that, is the log; whoever dies meanwhile.

Random models, workers that die at random moments, clients that come, break off and come back at random moments, in
any isolate.  Whatever happens: each client ends with the answer, no line twice, none missing, one terminal line;
the answer is stored once; no model is called twice in one attempt.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatturn.chat.hooks.hooks import ChatTurnHooks, TurnContext
from chatturn.chat.turn.stream import StreamProducer
from chatturn.database.api import Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import EventBatch, reasoning_delta, text_delta, tool_call, usage_event
from chatturn_testing.law import TERMINAL, assert_law, text_of
from chatturn_testing.virtual_time import run
from tests.support.isolates import TURN, Isolate
from tests.support.turns import open_sqlite

LEASE_MS = 3_000

Pause = st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.26, 0.5, 1.4])
Moment = st.integers(0, 60).map(lambda tenth: tenth / 10)


@dataclass(frozen=True)
class Scene:
    """
    What happens.

    Attributes:
        model: What it says, step by step: how many events at once, and the pause after them.
        deaths: How long each worker lives, in turn; the last one lives on.
        clients: When each client comes, in which isolate, and how long each of its connections holds.
        stop: When somebody cancels the turn, if ever.
        events: Whether clients speak server-sent events.
    """

    model: list[tuple[int, float]]
    deaths: list[float]
    clients: list[tuple[float, bool, list[float]]]
    stop: float | None
    events: bool


scenes = st.builds(
    Scene,
    model=st.lists(st.tuples(st.integers(1, 30), Pause), min_size=1, max_size=12),
    deaths=st.lists(Moment, max_size=3),
    clients=st.lists(st.tuples(Moment, st.booleans(), st.lists(Moment, max_size=3)), min_size=1, max_size=4),
    stop=st.none() | st.none() | Moment,
    events=st.booleans(),
)


class Model(ChatTurnHooks):
    """Says what the scene has; keeps account of its calls."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene
        self.calls: list[int] = []
        self.answer = ""
        for number, (count, _) in enumerate(scene.model):
            self.answer += "".join(f"{number}.{offset} " for offset in range(count))

    def produce(self, context: TurnContext) -> StreamProducer:
        self.calls.append(context.attempt)
        return StreamProducer(self._say())

    async def _say(self) -> AsyncGenerator[EventBatch, None]:
        for number, (count, pause) in enumerate(self.scene.model):
            yield [text_delta(f"{number}.{offset} ") for offset in range(count)]
            yield [reasoning_delta("…"), tool_call(tool_call_id="t", tool_name="n", args={})]
            await asyncio.sleep(pause)
        yield usage_event(tokensOut=len(self.answer))


class World:
    """The isolates, of which one after another dies, and whoever starts the turn until it has run."""

    def __init__(self, database: SqliteDatabase, scene: Scene) -> None:
        self.database = database
        self.model = Model(scene)
        self.scene = scene
        self.alive = self._isolate()
        self.bystander = self._isolate()

    def _isolate(self) -> Isolate:
        return Isolate(self.database, self.model, settings={"LEASE_MS": str(LEASE_MS)})

    async def dies_and_is_replaced(self) -> None:
        for lived in self.scene.deaths:
            await asyncio.sleep(lived)
            dying, self.alive = self.alive, self._isolate()
            await dying.kill()

    async def cancel(self) -> None:
        if self.scene.stop is not None:
            await asyncio.sleep(self.scene.stop)
            for _ in range(50):  # until the turn exists
                if (await self.bystander.ask("POST", f"{TURN}/cancel")).status != 404:
                    return
                await asyncio.sleep(0.2)

    async def client(self, comes: float, elsewhere: bool, connections: list[float]) -> list[dict[str, Any]]:
        """Read the turn until its terminal line, over connections that break; return every line, as they came."""
        await asyncio.sleep(comes)
        seen: list[dict[str, Any]] = []
        broken = iter(connections)
        for _ in range(200):
            isolate = self.bystander if elsewhere else self.alive
            lines = await self._connect(isolate, seen, next(broken, None))
            seen += lines
            if (
                seen
                and seen[-1]["type"] in TERMINAL
                and not (seen[-1]["type"] == "session.run.failed" and seen[-1]["data"]["retryable"])
            ):
                return seen
            await asyncio.sleep(0.3)
        raise AssertionError(f"no end after {seen[-3:]}")

    async def _connect(self, isolate: Isolate, seen: list[dict[str, Any]], holds: float | None) -> list[dict[str, Any]]:
        last = next((line["seq"] for line in reversed(seen) if "seq" in line), None)
        accept = "text/event-stream" if self.scene.events else "application/x-ndjson"
        if self.scene.events and last is not None:
            reply = await isolate.follow(last_event_id=str(last), accept=accept)
        else:
            reply = await isolate.follow(last, accept=accept)
        if reply.status == 404:
            reply = await isolate.ask("POST", TURN, {"message": "hi", "follow": True}, accept=accept)
        if reply.task is None:
            assert reply.status in {204, 409}, reply.response
            return []
        done, _ = await asyncio.wait([reply.task], timeout=holds)
        if not done:
            reply.reader.leave()
        return _events(reply.reader.text) if self.scene.events else reply.reader.lines


def _events(text: str) -> list[dict[str, Any]]:
    found = []
    for event in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in event.split("\n") if not line.startswith(":"))
        if "data" in fields:
            line = json.loads(fields["data"])
            assert line.get("seq") == (int(fields["id"]) if "id" in fields else None)
            found.append(line)
    return [line for line in found if line["type"] != "ping"]


def check_client(seen: list[dict[str, Any]], log: list[dict[str, Any]]) -> None:
    """
    Compare what a client saw with the log: each line once, in its order.

    Beside it there is only what a worker had not stored when it died, which a restart takes back.
    """
    numbered = [line for line in seen if "seq" in line]
    assert [line["seq"] for line in numbered] == sorted({line["seq"] for line in numbered})
    stored = {line["seq"]: line for line in log}
    known = [line for line in numbered if line["seq"] in stored]
    assert known == [stored[line["seq"]] for line in known]
    lost = [line for line in numbered if line["seq"] not in stored]
    last_attempt = log[-1]["attempt"]
    assert all(line["attempt"] < last_attempt for line in lost)
    if known:  # a client that was there from the beginning has it all; a replay is in no log
        missing = [line for line in log if line["seq"] not in {each["seq"] for each in known}]
        assert [] == missing


async def play(scene: Scene, database: SqliteDatabase) -> None:
    """Let it happen, and look at what is left."""
    world = World(database, scene)
    fate = asyncio.gather(world.dies_and_is_replaced(), world.cancel())
    seen = await asyncio.gather(*(world.client(*client) for client in scene.clients))
    await fate
    log = await (await world.bystander.follow()).lines()
    [(status,)] = [
        tuple(row.values()) for row in (await database.batch([Statement("SELECT status FROM durable_runs")]))[0].rows
    ]
    [messages] = await database.batch([Statement("SELECT role, content FROM chat_messages ORDER BY role")])
    answers = [row["content"] for row in messages.rows if row["role"] == "assistant"]

    assert_law(log)
    for lines in seen:
        check_client(lines, log)
        assert text_of(lines) == answers[0]
    assert "completed" == status
    assert 1 == len(answers)
    assert text_of(log) == answers[0]
    if log[-1]["type"] == "session.run.completed":
        assert world.model.answer == answers[0]
    assert len(world.model.calls) == len(set(world.model.calls))


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(scene=scenes)
def test_every_client_ends_with_the_log_whoever_dies(scene: Scene) -> None:
    """First k lines and what `after=k` returns are the log; exactly one terminal line; the answer stored once."""

    async def main() -> None:
        with open_sqlite() as database:
            await play(scene, database)

    run(main())
