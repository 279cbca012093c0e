"""What tests of whole turns in several isolates share."""

import asyncio
from collections.abc import Sequence
from typing import Any

from chatturn.backends.iterable import create_iterable_backend
from chatturn.database.api import Database, Result, Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import text_delta
from tests.support.isolates import TURN, Isolate
from tests.support.turns import Step

WORDS: list[Step] = [step for n in range(8) for step in (text_delta(f"w{n} "), 0.5)]

WHOLE = "".join(f"w{n} " for n in range(8))


async def rows(database: SqliteDatabase, sql: str) -> list[tuple[Any, ...]]:
    [outcome] = await database.batch([Statement(sql)])
    return [tuple(row.values()) for row in outcome.rows]


def kinds(lines: list[dict[str, Any]]) -> list[str]:
    return [line["type"] for line in lines if line["type"] != "message.part.updated"]


async def cancel(isolate: Isolate) -> Any:
    return await isolate.ask("POST", f"{TURN}/cancel")


class Wrapped:
    """A database whose batches may be counted, delayed or refused by a test."""

    def __init__(self, database: Database, before: Any = None, after: Any = None) -> None:
        self.database, self.before, self.after = database, before, after
        self.batches = self.statements = 0
        self.at_once = 0
        self.spun = False
        self.last_at = -1.0

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        now = asyncio.get_running_loop().time()
        self.at_once = self.at_once + 1 if now == self.last_at else 0
        self.last_at = now
        if self.at_once > 200:  # somebody asks again and again without waiting: in virtual time, for ever
            self.spun = True
            await asyncio.sleep(1)
        self.batches += 1
        self.statements += len(statements)
        if self.before is not None:
            await self.before(statements)
        outcomes = await self.database.batch(statements)
        if self.after is not None:
            await self.after(statements)
        return outcomes


def wrap(isolate: Isolate, before: Any = None, after: Any = None) -> Wrapped:
    wrapped = Wrapped(isolate.database, before, after)
    isolate.wire._database = wrapped
    return wrapped


def echoing(asked: list[tuple[str, str]]) -> Any:
    async def stream(request: Any, _context: Any) -> Any:
        question = request.messages[-1]["content"]
        asked.append((question, request.continue_from))
        for word in [f"{question}{n}" for n in range(5)]:
            yield text_delta(word + " ")
            await asyncio.sleep(0.5)

    return create_iterable_backend("scripted", stream, continues=True)
