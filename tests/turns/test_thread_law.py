"""
Whatever a user does to a thread, and wherever its workers die: what is shown is what was said, in its order.

Users go on, type ahead, stop what waits, edit, ask again, let older versions count, and come back, also to turns that
have failed or were stopped, and that the thread has gone on without; their workers die at any batch.  What the thread
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
from tests.support.isolates import Deadly, Isolate, Reply
from tests.support.revisions import WatchedDatabase
from tests.support.turns import IDENTITY, Product, open_sqlite

SETTINGS = {"THREADS": "on", "WHEN_BUSY": "queue", "LEASE_MS": "1000", "HISTORY_TURNS": "100"}
SESSION = "/v1/sessions/thread-1"
Place = tuple[int, int]


class Watched(Product):
    """A product that keeps each call's history, and answers with a number that no other call has."""

    asked: list[tuple[str, list[str]]]
    told: list[ThreadChange]
    failed: list[str]
    refused: list[str]

    async def on_thread_changed(self, change: ThreadChange) -> None:
        """Keep it; every second change fails at its first call."""
        if change.revision % 2 and change.idempotency_key not in self.failed:
            self.failed.append(change.idempotency_key)
            raise RuntimeError
        self.told.append(change)

    def produce(self, context: TurnContext) -> StreamProducer:
        """Answer, or fail."""
        if context.user_message in self.refused:
            raise ValueError
        self.asked.append((context.user_message, [str(message["content"]) for message in context.history]))
        return StreamProducer(self.numbered(len(self.asked)))

    async def numbered(self, number: int) -> AsyncGenerator[EventBatch, None]:
        """Say the number, in two pieces."""
        yield text_delta("answer ")
        await asyncio.sleep(number % 3 / 2)
        yield text_delta(str(number))


@dataclass
class User:
    """
    Does what people do in a chat window, and knows what the thread must be.

    Attributes:
        said: Of each version its question, its answer and its parent.
        counts: Which version counts at each index.
        empty: What was asked at indexes that have no answer; None where that was stopped.
    """

    database: Database
    chance: random.Random
    said: dict[Place, tuple[str, str, Place | None]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    empty: dict[int, str | None] = field(default_factory=dict)
    asked: list[tuple[str, list[str]]] = field(default_factory=list)
    told: list[ThreadChange] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    late: int = 0
    deaths: int = 0
    changes: int = 0

    def isolate(self, database: Any) -> Isolate:
        """Return a new worker."""
        product = Watched()
        product.asked, product.told = self.asked, self.told
        product.failed, product.refused = self.failed, self.refused
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

    def next_index(self) -> int:
        """Return where the thread goes on."""
        path = self.path()
        return path[-1][0] + 1 if path else 0

    @property
    def is_whole(self) -> bool:
        """Whether nothing is detached."""
        return all(index < self.next_index() for index in self.counts)

    def question(self, index: int, words: str) -> str:
        """Return what may be asked at an index: where a turn has failed, the same again."""
        return self.empty.get(index) or words

    def texts(self, places: list[Place]) -> list[str]:
        """Return what was said in some turns."""
        return [text for place in places for text in self.said[place][:2]]

    def history(self, places: list[Place]) -> list[str]:
        """Return what the model is shown of them: what was stopped before a word was said is left out."""
        return self.texts([place for place in places if self.said[place][1]])

    async def say(self, index: int, question: str, **members: Any) -> None:
        """Ask, and ask again until it is answered, whoever dies."""
        before = [place for place in self.path() if place[0] < index]
        calls = len(self.asked)
        body = {"message": question, "follow": True, **members}
        lines: list[dict[str, Any]] = []
        for point in (self.chance.choice([None, None, *range(16)]), None, None, None):
            lines = await self.try_once(point, index, body)
            if lines and lines[-1]["type"] == "session.run.completed":
                break
            self.deaths += 1
            await asyncio.sleep(2)
        assert lines[-1]["type"] == "session.run.completed", lines
        for asked, history in self.asked[calls:]:
            assert (question, self.history(before)) == (asked, history)
        assert await self.learn(index, question)

    async def learn(self, index: int, question: str) -> bool:
        """Take note of what a turn has come to; return whether it has left a message."""
        before = [place for place in self.path() if place[0] < index]
        worker = self.isolate(self.database)
        shown = (await worker.ask("GET", f"{SESSION}/turns/{index}")).body
        page = (await worker.ask("GET", f"{SESSION}/messages?limit=200")).body["messages"]
        for answer in page:
            if (answer["turnIndex"], answer["role"]) == (index, "assistant"):
                place = index, shown["version"]
                assert place not in self.said or self.said[place][:2] == (question, answer["content"])
                self.said.setdefault(place, (question, answer["content"], before[-1] if before else None))
                self.counts[index] = place[1]
                self.empty.pop(index, None)
                return True
        return False

    async def fail(self, index: int, question: str) -> None:
        """Ask what the model has no answer to, until that is known."""
        self.refused.append(question)
        for point in (self.chance.choice([None, *range(16)]), None, None, None):
            lines = await self.try_once(point, index, {"message": question, "follow": True})
            if lines and lines[-1]["type"] == "session.run.failed":
                break
            self.deaths += 1
            await asyncio.sleep(2)
        assert lines[-1]["type"] == "session.run.failed", lines
        self.refused.clear()
        self.empty[index] = question

    async def come_back(self, number: int) -> None:
        """Come back to an index without an answer that the thread has gone on behind: only to replace what failed."""
        index = self.chance.choice([at for at in self.empty if at < self.next_index()])
        question = self.question(index, f"question {number}")
        reply = await self.isolate(self.database).ask("POST", f"{SESSION}/turns/{index}", {"message": question})
        assert (409, "turn_passed") == (reply.status, reply.body["code"])
        self.late += 1
        if self.empty[index] is not None:
            version = (await self.isolate(self.database).ask("GET", f"{SESSION}/turns/{index}")).body["version"]
            kind = self.chance.choice(["edit", "regenerate"])
            question = question if kind == "regenerate" else f"question {number}"
            await self.say(index, question, replace={"kind": kind, "version": version})

    async def type_ahead(self, number: int) -> None:
        """Send messages without waiting for their answers, and stop one now and then."""
        first, calls = self.next_index(), len(self.asked)
        indexes = range(first, first + self.chance.randint(2, 4))
        questions = [self.question(index, f"question {number}.{index}") for index in indexes]
        streams = []
        for index, question in enumerate(questions, first):
            streams.append(await self.send(index, {"message": question, "follow": True}))
            await asyncio.sleep(self.chance.choice([0, 0.05, 0.5]))
        stopped = -1
        if self.chance.random() < 0.4:
            stopped = self.chance.choice(indexes[1:]) if self.is_whole else indexes[-1]
            await self.isolate(self.database).ask("POST", f"{SESSION}/turns/{stopped}/cancel")
        await asyncio.gather(*streams)
        for index, question in enumerate(questions, first):
            for _ in range(8):
                lines = await self.try_once(None, index, {"message": question, "follow": True})
                if lines and lines[-1]["type"] in {"session.run.completed", "session.run.cancelled"}:
                    break
                self.deaths += 1
                await asyncio.sleep(2)
            assert lines[-1]["type"] == "session.run.completed" or index == stopped, lines
            if not await self.learn(index, question):
                assert index == stopped
                self.empty[index] = None
        for asked, history in self.asked[calls:]:
            at = first + questions.index(asked)
            assert self.history([place for place in self.path() if place[0] < at]) == history

    async def send(self, index: int, body: dict[str, Any]) -> "asyncio.Task[list[dict[str, Any]]]":
        """Send a message until a worker has taken it; each may die, then or later."""
        for point in (self.chance.choice([None, None, *range(28)]), None):
            reply = await self.ask(self.mortal(point), index, body)
            if reply is not None:
                assert 200 == reply.status, reply.body
                return asyncio.ensure_future(self.read(reply))
            self.deaths += 1
        raise AssertionError("the last worker lives")

    def mortal(self, point: int | None) -> Isolate:
        """Return a worker that dies at a place."""
        database = Deadly(self.database, point)
        database.worker = self.isolate(database)
        return database.worker

    async def try_once(self, point: int | None, index: int, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Send a request to a worker that may die; return what it said, nothing if it died before."""
        reply = await self.ask(self.mortal(point), index, body)
        return [] if reply is None else await self.read(reply)

    async def ask(self, worker: Isolate, index: int, body: dict[str, Any]) -> Reply | None:
        """Send a request; None if the worker dies first."""
        asking = asyncio.ensure_future(worker.ask("POST", f"{SESSION}/turns/{index}", body))
        await asyncio.wait([asking])
        return None if asking.cancelled() else asking.result()

    async def read(self, reply: Reply) -> list[dict[str, Any]]:
        """Read a stream, as far as it comes."""
        if reply.task is not None:
            await asyncio.wait([reply.task])
        return reply.reader.lines

    async def do_something(self, number: int) -> None:
        """Do it, and see that the product hears of what is detached or comes back by it, under one key for ever."""
        before, counts = [index for index, _ in self.path()], dict(self.counts)
        self.told.clear()
        await self.act(number)
        for _ in range(2):
            await asyncio.sleep(100)
            await self.isolate(self.database).sweep()
        behind = [index for index, _ in self.path()]
        changes = [index for index in self.counts if self.counts[index] != counts.get(index)] or [-1]
        if len(changes) > 1:  # typed ahead: each of them may have changed the thread
            return
        [changed] = changes
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
        """Go on, type ahead, edit, ask again, let another version count, or go on without an answer and come back."""
        path, index = self.path(), self.next_index()
        acts = ["go on", "type ahead", "edit", "regenerate", "activate"]
        acts += ["fail"] * 2 * self.is_whole + ["come back"] * 3 * any(at < index for at in self.empty)
        begins = ["go on", "fail", "come back"]
        what = begins[number] if number < len(begins) else self.chance.choice(acts) if path else "go on"
        if what == "type ahead":
            await self.type_ahead(number)
        elif what == "go on":
            await self.say(index, self.question(index, f"question {number}"))
        elif what == "fail":
            await self.fail(index, self.question(index, f"question {number}"))
            await self.say(index + 1, self.question(index + 1, f"question {number}.1"))
        elif what == "come back":
            await self.come_back(number)
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
            answered = [
                each["version"]
                for each in listed
                if each["status"] == "completed"
                or (each["status"] == "cancelled" and (index, each["version"]) in self.said)
            ]
            assert sorted(version for at, version in self.said if at == index) == answered


def _place(change: ThreadChange) -> Place:
    return change.identity.turn_index, change.identity.version


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
async def test_a_thread_is_what_was_said(seed: int) -> None:
    """Twenty-five acts of a user; workers die on the way."""
    with open_sqlite() as database:
        watched = WatchedDatabase(database)
        user = User(watched, random.Random(seed))
        for number in range(25):
            await user.do_something(number)
            await user.check()
        assert user.deaths, "nobody has died"
        assert user.changes, "nothing was detached"
        assert user.late, "nobody has come too late"
        assert [] == watched.broken
