"""
What each process of the threads' rig does until it is killed: serve people who share a few threads.

They type ahead, edit, ask again, let older versions count, stop, allow what a tool asks for, come back to what has
failed or was stopped, reload and vanish, all at once and from several windows.  What they were told is kept in a journal, since they may rely on it.
"""

import asyncio
import json
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from chatturn.chat.hooks.hooks import FinishedTurn
from chatturn.chat.hooks.thread_changes import ThreadChange
from chatturn.chat.hooks.tool import Tool, ToolContext
from chatturn.database.api import Statement
from chatturn.errors import StoreUnavailable
from chatturn.product import ChatTurnHooks
from tests.chaos import worker
from tests.support.isolates import Isolate, Reader, Reply

__all__ = ["APPROVED", "SETTINGS", "settle", "work"]

SETTINGS: Final = {
    "THREADS": "on",
    "WHEN_BUSY": "queue",
    "HISTORY_TURNS": "200",
    "HISTORY_CHARACTERS": "1000000",
    "QUEUE_TURNS": "6",
}
APPROVED: Final = "please"
"""A word of a question for which the model asks for a tool that somebody must allow."""

_PEOPLE: Final = 5
_OVER: Final = {"session.run.completed", "session.run.cancelled"}


class Journal:
    """Lines of JSON that outlive the process, each written at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, kind: str, **members: Any) -> None:
        """Write one."""
        with self._path.open("a") as file:
            file.write(json.dumps({"kind": kind, **members}) + "\n")


class Product(ChatTurnHooks):
    """An agent with one tool that needs an approval, whose hooks note what they are told."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal
        self.tools = (
            Tool(
                name="send",
                description="",
                parameters={"type": "object", "properties": {}},
                run=self._send,
                needs_approval=True,
            ),
        )

    async def _send(self, _args: Mapping[str, Any], call: ToolContext) -> str:
        self._journal.note("effect", key=call.step_key)
        return "sent"

    async def persist_assistant_message(self, turn: FinishedTurn) -> None:
        """Note the answer."""
        self._journal.note("answer", key=turn.idempotency_key, text=turn.final_text)

    async def on_thread_changed(self, change: ThreadChange) -> None:
        """Note the change."""
        told = (change.change, change.first_turn, change.last_turn)
        self._journal.note("change", key=change.idempotency_key, text=repr(told))


@dataclass
class Person:
    """
    Somebody at a window.

    Attributes:
        isolate: Who serves it.
        chance: Of what is done.
        session: Which thread it shows.
        journal: Takes what it was told.
    """

    isolate: Isolate
    chance: random.Random
    session: str
    journal: Journal

    async def act(self) -> None:
        """Load the window, and do one thing."""
        page = (await self._ask("GET", "messages?limit=200")).body
        if "messages" not in page:
            return
        answers = [each for each in page["messages"] if each["role"] == "assistant"]
        indexes = [each["turnIndex"] for each in (*answers, *page["open"])]
        acts = ["say", "say", "say", "ahead", "edit", "regenerate", "activate", "stop", "allow"]
        what = self.chance.choice([*acts, *["come back"] * 3])
        if what in {"say", "ahead"} or not answers:
            await self.say(max(indexes, default=-1) + 1, self._question(), wait=what == "say")
        elif what in {"edit", "regenerate"}:
            shown = self.chance.choice(answers)
            await self._again(shown, what, page["messages"])
        elif what == "come back":
            index = self.chance.randrange(max(indexes) + 1)
            await self._come_back(index, empty=index not in indexes)
        elif what == "activate":
            await self._activate(self.chance.choice(answers)["turnIndex"])
        elif page["open"]:
            turn = self.chance.choice(page["open"])["turnIndex"]
            await (self._stop(turn) if what == "stop" else self._allow(turn))

    def _question(self) -> str:
        words = f"question {self.session} {self.chance.getrandbits(64):016x}"
        return f"{words} {APPROVED}." if self.chance.random() < 0.1 else f"{words}."

    async def _again(self, shown: dict[str, Any], kind: str, messages: list[dict[str, Any]]) -> None:
        index = shown["turnIndex"]
        [asked] = [each["content"] for each in messages if each["turnIndex"] == index and each["role"] == "user"]
        question = self._question() if kind == "edit" else asked
        await self.say(index, question, replace={"kind": kind, "version": shown["version"]})

    async def _come_back(self, index: int, *, empty: bool) -> None:
        """Ask again what has failed, or something else where nothing is; the thread may have gone on meanwhile."""
        listed = (await self._ask("GET", f"turns/{index}/versions")).body.get("versions", ())
        if listed and listed[-1]["status"] == "failed":
            kind = self.chance.choice([None, "regenerate", "edit"])
            members: dict[str, Any] = {"replace": {"kind": kind, "version": listed[-1]["version"]}} if kind else {}
            question = self._question() if kind == "edit" else listed[-1]["message"]
            await self.say(index, question, **members)
        elif empty:
            await self.say(index, self._question())

    async def say(self, index: int, question: str, *, wait: bool = True, **members: Any) -> None:
        """Send a message, and read what comes of it, or leave."""
        policy = self.chance.choice([*[None] * 8, "interrupt", "reject"])
        body = {"message": question, "follow": True, **({"when_busy": policy} if policy else {}), **members}
        reply = await self.isolate.ask("POST", f"/v1/sessions/{self.session}/turns/{index}", body)
        if reply.task is None:
            if reply.body["code"] == "turn_passed":
                self.journal.note("passed")
            return
        run_id = reply.response.headers["X-Workflow-Run-Id"]
        self.journal.note("sent", run_id=run_id, question=question)
        vanishes_s = self.chance.choice([None, None, self.chance.uniform(0, 0.2)]) if wait else 0.05
        await asyncio.wait([reply.task], timeout=vanishes_s)
        self._note_end(reply.reader)
        reply.reader.leave()

    def _note_end(self, reader: Reader) -> None:
        """Keep what the window shows once it has read the end."""
        lines = reader.lines
        if not lines or lines[-1]["type"] not in _OVER:
            return
        started = [line["data"] for line in lines if line["type"] == "session.run.started"]
        if not started and lines[0]["type"] == "session.run.queued" and lines[-1]["type"] == "session.run.cancelled":
            return  # it was stopped before it began
        if not started:
            self.journal.note("headless", lines=lines)
            return
        index, version = started[-1]["turnIndex"], lines[-1]["data"]["version"]
        self.journal.note("ended", session=self.session, index=index, version=version)

    async def _activate(self, index: int) -> None:
        listed = await self._ask("GET", f"turns/{index}/versions")
        answered = [each["version"] for each in listed.body.get("versions", ()) if each["status"] == "completed"]
        if answered:
            await self._ask("POST", f"turns/{index}/versions/{self.chance.choice(answered)}/activate")

    async def _stop(self, index: int) -> None:
        await self._ask("POST", f"turns/{index}/cancel")

    async def _allow(self, index: int) -> None:
        shown = (await self._ask("GET", f"turns/{index}")).body
        followed = await self.isolate.ask("GET", f"/v1/sessions/{self.session}/turns/{index}/stream")
        if followed.task is None or "runId" not in shown:
            return
        await asyncio.wait([followed.task], timeout=0.3)
        keys = [line["data"]["key"] for line in followed.reader.lines if line["type"] == "tool.approval"]
        followed.reader.leave()
        if keys:
            run_id, key = (text.replace("%", "%25").replace(":", "%3A") for text in (shown["runId"], keys[-1]))
            payload = {"payload": {"approved": self.chance.random() < 0.8}}
            await self.isolate.ask("POST", f"/v1/runs/{run_id.replace('~', '%7E')}/events/{key}", payload)

    async def _ask(self, method: str, path: str) -> Reply:
        return await self.isolate.ask(method, f"/v1/sessions/{self.session}/{path}")


def work(folder: Path, upstream: str, seed: int, sessions: tuple[int, int], serving: Connection) -> None:
    """Serve people with these threads until the process is killed; say when that begins."""
    chance, journal = random.Random(seed), Journal(folder / "journal")

    async def person(isolate: Isolate) -> None:
        while True:
            session = f"s{chance.randrange(*sessions)}"
            await Person(isolate, chance, session, journal).act()
            await asyncio.sleep(chance.uniform(0, 0.05))

    async def cron(isolate: Isolate) -> None:
        while True:
            await asyncio.sleep(chance.uniform(0.05, 0.5))
            with suppress(StoreUnavailable):
                await isolate.sweep()

    async def main() -> None:
        isolate = _isolate(folder, upstream, chance, failures=0.02)
        serving.send_bytes(b"serving")
        await asyncio.gather(cron(isolate), *(person(isolate) for _ in range(_PEOPLE)))

    worker._quietly(main())


def settle(folder: Path, upstream: str) -> None:
    """Let the cron end what was begun, with nothing failing any more; who waits for an approval is stopped."""

    async def main() -> None:
        isolate = _isolate(folder, upstream, random.Random(0), failures=0.0, lease_ms=worker.PATIENT_LEASE_MS)
        for _ in range(2_000):
            await isolate.sweep()
            left = await isolate.database.batch([_open_runs()])
            if not left[0].rows:
                break
            for row in left[0].rows:
                if row["status"] == "suspended":
                    address = f"/v1/sessions/{row['session_id']}/turns/{row['turn_index']}/cancel"
                    await isolate.ask("POST", f"{address}?version={row['version']}")
            await asyncio.sleep(0.05)
        for _ in range(100):
            if not await isolate.sweep():
                break

    worker._quietly(main())


def _isolate(
    folder: Path, upstream: str, chance: random.Random, *, failures: float, lease_ms: int = worker.LEASE_MS
) -> Isolate:
    isolate = worker._isolate(folder, upstream, chance, failures=failures, lease_ms=lease_ms)
    isolate.settings = {**isolate.settings, **SETTINGS}
    isolate.hooks = Product(Journal(folder / "journal"))
    return isolate


def _open_runs() -> Statement:
    return Statement(
        "SELECT r.status, t.session_id, t.turn_index, t.version FROM durable_runs AS r JOIN chat_turns AS t"
        " ON t.run_id = r.run_id WHERE r.status IN ('pending', 'running', 'suspended') LIMIT 50"
    )
