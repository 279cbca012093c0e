"""
Whatever a user does to a thread, and wherever its workers die: what is shown is what was said, in its order.

Users go on, edit, ask again, let older versions count, and come back; their workers die at any batch.  What the thread
must be is kept beside it, as a tree of versions; the model's history at each call is compared with it as well.  And
whatever a reader of the messages can see has a revision of its own.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from chatturn.chat.hooks.hooks import TurnContext
from chatturn.chat.hooks.thread_changes import ThreadChange
from chatturn.chat.turn.stream import StreamProducer
from chatturn.database.api import Database
from chatturn.events import EventBatch, text_delta
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.isolates import Isolate
from tests.support.revisions import WatchedDatabase
from tests.support.turns import IDENTITY, Product, open_sqlite

SETTINGS = {"THREADS": "on", "LEASE_MS": "1000", "HISTORY_TURNS": "100"}
SESSION = "/v1/sessions/thread-1"
Place = tuple[int, int]


class Watched(Product):
    """A product that keeps each call's history, and answers with a number that no other call has."""

    asked: list[tuple[str, list[str]]]
    told: list[ThreadChange]
    failed: list[str]

    async def on_thread_changed(self, change: ThreadChange) -> None:
        """Keep it; every second change fails at its first call."""
        if change.revision % 2 and change.idempotency_key not in self.failed:
            self.failed.append(change.idempotency_key)
            raise RuntimeError
        self.told.append(change)

    def produce(self, context: TurnContext) -> StreamProducer:
        """Answer."""
        self.asked.append((context.user_message, [str(message["content"]) for message in context.history]))
        return StreamProducer(self.numbered(len(self.asked)))

    async def numbered(self, number: int) -> AsyncGenerator[EventBatch, None]:
        """Say the number, in two pieces."""
        yield text_delta("answer ")
        yield text_delta(str(number))


@dataclass
class User:
    """
    Does what people do in a chat window, and knows what the thread must be.

    Attributes:
        said: Of each version its question, its answer and its parent.
        counts: Which version counts at each index.
    """

    database: Database
    chance: random.Random
    said: dict[Place, tuple[str, str, Place | None]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    asked: list[tuple[str, list[str]]] = field(default_factory=list)
    told: list[ThreadChange] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    deaths: int = 0
    changes: int = 0

    def isolate(self, database: Any) -> Isolate:
        """Return a new worker."""
        product = Watched()
        product.asked, product.told, product.failed = self.asked, self.told, self.failed
        return Isolate(database, product, settings=SETTINGS)

    def path(self) -> list[Place]:
        """Return the versions of the thread."""
        path: list[Place] = []
        for index in sorted(self.counts):
            place = index, self.counts[index]
            if self.said[place][2] != (path[-1] if path else None):
                break
            path.append(place)
        return path

    def texts(self, places: list[Place]) -> list[str]:
        """Return what was said in some turns."""
        return [text for place in places for text in self.said[place][:2]]

    async def say(self, index: int, question: str, **members: Any) -> None:
        """Ask, and ask again until it is answered, whoever dies."""
        before = [place for place in self.path() if place[0] < index]
        calls = len(self.asked)
        body = {"message": question, "follow": True, **members}
        lines: list[dict[str, Any]] = []
        for fuse in (Fuse(self.chance.choice([None, None, *range(8)])), Fuse(), Fuse()):
            lines = await self.try_once(fuse, index, body)
            if lines and lines[-1]["type"] == "session.run.completed":
                break
            self.deaths += 1
            await asyncio.sleep(2)
        assert lines[-1]["type"] == "session.run.completed", lines
        for asked, history in self.asked[calls:]:
            assert (question, self.texts(before)) == (asked, history)
        worker = self.isolate(self.database)
        shown = (await worker.ask("GET", f"{SESSION}/turns/{index}")).body
        page = (await worker.ask("GET", f"{SESSION}/messages?limit=200")).body["messages"]
        [answer] = [each for each in page if each["turnIndex"] == index and each["role"] == "assistant"]
        place = index, shown["version"]
        assert place not in self.said or self.said[place][:2] == (question, answer["content"])
        self.said.setdefault(place, (question, answer["content"], before[-1] if before else None))
        self.counts[index] = place[1]

    async def try_once(self, fuse: Fuse, index: int, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Send a request to a worker that may die; return what it said, nothing if it died."""
        try:
            reply = await self.isolate(MortalDatabase(self.database, fuse)).ask(
                "POST", f"{SESSION}/turns/{index}", body
            )
            return await reply.lines()
        except Crash:
            return []

    async def do_something(self, number: int) -> None:
        """Do it, and see that the product hears of what is detached or comes back by it, under one key for ever."""
        before, counts = [index for index, _ in self.path()], dict(self.counts)
        self.told.clear()
        await self.act(number)
        for _ in range(2):
            await asyncio.sleep(100)
            await self.isolate(self.database).sweep()
        behind = [index for index, _ in self.path()]
        [changed] = [index for index in self.counts if self.counts[index] != counts.get(index)] or [-1]
        expected = [
            (what, min(turns), max(turns))
            for what, turns in (
                ("detached", set(before) - set(behind) - {changed}),
                ("returned", set(behind) - set(before) - {changed}),
            )
            if turns
        ]
        told = {each.idempotency_key: each for each in self.told}
        assert expected == [(each.change, each.first_turn, each.last_turn) for each in told.values()]
        assert all((changed, self.counts.get(changed)) == _place(each) for each in told.values())
        self.changes += len(told)

    async def act(self, number: int) -> None:
        """Go on, edit, ask again or let another version count."""
        path = self.path()
        what = self.chance.choice(["go on", "go on", "edit", "regenerate", "activate"]) if path else "go on"
        if what == "go on":
            await self.say(len(path), f"question {number}")
        elif what == "activate":
            index, version = self.chance.choice(sorted(self.said))
            about = replace(IDENTITY, turn_index=index, version=version)
            for fuse in (Fuse(self.chance.choice([None, *range(4)])), Fuse()):
                service = self.isolate(MortalDatabase(self.database, fuse)).service
                try:
                    await service.activate(about)
                    await service.tell_changes(about)
                except Crash:
                    self.deaths += 1
                else:
                    break
            self.counts[index] = version
        else:
            index, version = self.chance.choice(path)
            question = f"question {number}" if what == "edit" else self.said[index, version][0]
            await self.say(index, question, replace={"kind": what, "version": version})

    async def check(self) -> None:
        """Compare what is shown with what must be, and see that no version is lost."""
        worker = self.isolate(self.database)
        page = (await worker.ask("GET", f"{SESSION}/messages?limit=200")).body["messages"]
        assert self.texts(self.path()) == [message["content"] for message in page]
        for index in self.counts:
            listed = (await worker.ask("GET", f"{SESSION}/turns/{index}/versions")).body["versions"]
            answered = [each["version"] for each in listed if each["status"] == "completed"]
            assert sorted(version for at, version in self.said if at == index) == answered


def _place(change: ThreadChange) -> Place:
    return change.identity.turn_index, change.identity.version


@pytest.mark.parametrize("seed", range(25))
async def test_a_thread_is_what_was_said(seed: int) -> None:
    """Twenty acts of a user; workers die on the way."""
    with open_sqlite() as database:
        watched = WatchedDatabase(database)
        user = User(watched, random.Random(seed))
        for number in range(20):
            await user.do_something(number)
            await user.check()
        assert user.deaths, "nobody has died"
        assert user.changes, "nothing was detached"
        assert [] == watched.broken
