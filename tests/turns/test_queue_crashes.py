"""
A worker that dies at any batch, or at any moment, of a session in which turns wait for each other.

Five messages: one that runs, one that will need an approval, one behind that on another worker, one that is cancelled
while it waits, and one more.  Whoever dies, whoever is left comes back as clients do, and finds every message answered
once, in its order, by a model that was shown what stands before it.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from chatturn.chat.hooks.hooks import TurnContext
from chatturn.chat.turn.stream import StreamProducer
from chatturn.database.api import Database
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import EventBatch, text_delta
from chatturn_testing.virtual_time import run
from tests.support.isolates import Deadly, Isolate, kill
from tests.support.turns import Product, open_sqlite

SETTINGS = {"THREADS": "on", "WHEN_BUSY": "queue", "LEASE_MS": "2000", "LOG_EVERY_MS": "500", "HISTORY_TURNS": "50"}
SESSION = "/v1/sessions/thread-1"
MESSAGES = ["a", "may I", "b", "x", "c"]
THREAD = ["a", "re: a", "may I", "so be it", "b", "re: b", "c", "re: c"]


class Watched(Product):
    """A product that repeats the question after a while, or waits for a yes; all of its workers keep one record."""

    def __init__(self, asked: list[tuple[str, list[str]]]) -> None:
        super().__init__()
        self.asked = asked

    def produce(self, context: TurnContext) -> StreamProducer:
        """Answer."""
        self.asked.append((context.user_message, [str(message["content"]) for message in context.history]))
        return StreamProducer(self.answer(context))

    async def answer(self, context: TurnContext) -> AsyncGenerator[EventBatch, None]:
        """Say half of it, and after a while the rest."""
        asks = context.user_message.startswith("may")
        yield text_delta("so " if asks else "re: ")
        await asyncio.sleep(1.5)
        if asks:
            await context.durable.await_event("ok")
        yield text_delta("be it" if asks else context.user_message)


class Session:
    """
    One session and its workers.

    Args:
        database: Where it is.
        point: At which batch of the first worker that dies.
        moment: When it dies.
        interrupts: Which messages interrupt instead of waiting.
    """

    def __init__(
        self,
        database: SqliteDatabase,
        point: int | None = None,
        moment: float | None = None,
        interrupts: Sequence[int] = (),
    ) -> None:
        self.interrupts = interrupts
        self.asked: list[tuple[str, list[str]]] = []
        self.database = database
        self.deadly = Deadly(database, point)
        self.mortal = self.worker(self.deadly)
        self.deadly.worker = self.mortal
        self.other = self.worker(database)
        self.moment = moment

    def worker(self, database: Database) -> Isolate:
        """Return a new worker."""
        return Isolate(database, Watched(self.asked), settings=SETTINGS)

    async def live(self) -> None:
        """Say all that is said, while a worker dies; then come back."""
        if self.moment is not None:
            asyncio.get_running_loop().call_later(self.moment, kill, self.mortal)
        for index, worker in enumerate([self.mortal, self.mortal, self.other, self.mortal, self.other]):
            policy = "interrupt" if index in self.interrupts else "queue"
            said = {"message": MESSAGES[index], "follow": True, "when_busy": policy}
            if await self.ask(worker, "POST", f"turns/{index}", said) is None:
                await self.ask(self.other, "POST", f"turns/{index}", said)
            await asyncio.sleep(0.2)
        await self.ask(self.mortal, "POST", "turns/3/cancel")
        await asyncio.sleep(8)
        await self.ask(self.mortal, "POST", None, {"payload": True})
        await asyncio.sleep(8)
        await self.come_back()

    async def ask(self, worker: Isolate, method: str, path: str | None, body: Any = None) -> Any:
        """Send a request to a worker; None if that is dead."""
        address = "/v1/runs/chat%3Aacme%3Athread-1%3A1/events/ok" if path is None else f"{SESSION}/{path}"
        if worker.wire.dead:
            return None
        asking = asyncio.ensure_future(worker.ask(method, address, body))
        await asyncio.wait([asking])
        return None if asking.cancelled() else asking.result()

    async def come_back(self) -> None:
        """Ask again for whatever has no answer, as clients do, and let the cron pass by."""
        living = self.worker(self.database)
        for index, message in enumerate(MESSAGES):
            for _ in range(20):
                if index == 3:  # the one that was cancelled
                    await self.ask(living, "POST", "turns/3/cancel")
                reply = await self.ask(living, "POST", f"turns/{index}", {"message": message, "follow": True})
                lines = await reply.lines() if reply.response.stream is not None else []
                last = lines[-1] if lines else {"type": ""}
                if last["type"] in {"session.run.completed", "session.run.cancelled"}:
                    break
                if last["type"] == "session.run.suspended":
                    await self.ask(living, "POST", None, {"payload": True})
                await asyncio.sleep(1)
                await living.sweep()
            else:
                raise AssertionError(f"turn {index} is never over: {lines}")
        self.left = await living.ask("GET", f"{SESSION}/messages?limit=200")

    def check(self) -> None:
        """See what is left."""
        texts = [message["content"] for message in self.left.body["messages"]]
        assert [] == self.left.body["open"]
        assert [text for text in MESSAGES if text in texts] == texts[::2]
        assert set(MESSAGES) - {"x"} <= set(texts[::2])
        if not self.interrupts:
            at = texts.index("x") if "x" in texts else len(texts)
            assert [*texts[:at], *texts[at + 2 :]] == THREAD
        for message, history in self.asked:
            if message in texts:
                before = texts[: texts.index(message)]
                turns = zip(before[::2], before[1::2], strict=True)
                assert history == [text for turn in turns if turn[1] for text in turn], message


def survives(point: int | None = None, moment: float | None = None, interrupts: Sequence[int] = ()) -> int:
    """Let a session live through the death of a worker; return how many places to die it has passed."""
    passed = 0

    async def live() -> None:
        nonlocal passed
        with open_sqlite() as database:
            session = Session(database, point, moment, interrupts)
            await session.live()
            session.check()
            passed = session.deadly.passed
            for worker in (session.mortal, session.other):
                kill(worker)

    run(live())
    return passed


@pytest.mark.slow
@pytest.mark.parametrize("interrupts", [(), (2, 4)], ids=["all wait", "two interrupt"])
def test_a_worker_may_die_at_every_batch(interrupts: Sequence[int]) -> None:
    """Before and after it."""
    places = survives(interrupts=interrupts)
    assert places > 30
    for point in range(places):
        try:
            survives(point, interrupts=interrupts)
        except AssertionError as error:
            raise AssertionError(f"killed at batch {point / 2} of {places / 2}: {error}") from error


@pytest.mark.slow
def test_a_worker_may_die_at_every_moment() -> None:
    """Five times a second of the session's first eight."""
    for step in range(40):
        try:
            survives(moment=step / 5)
        except AssertionError as error:
            raise AssertionError(f"killed after {step / 5} s: {error}") from error
