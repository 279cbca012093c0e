"""What each process of the rig does until it is killed: serve users who come, wait, dawdle and vanish."""

import asyncio
import hashlib
import os
import random
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from chatturn.backends.openai.backend import create_openai_compatible_backend
from chatturn.backends.openai.retry import BackendRetryPolicy
from chatturn.chat.hooks.hooks import FinishedTurn
from chatturn.database.api import Result, Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.errors import StoreUnavailable
from products.assistant import Hooks as Assistant
from tests.support.http_transport import HttpTransport
from tests.support.isolates import Isolate, Reader

__all__ = ["LEASE_MS", "PATIENT_LEASE_MS", "address", "finish", "message_of", "work"]

LEASE_MS: Final = 400
PATIENT_LEASE_MS: Final = 10_000
"""Of who ends what is left, and is not killed: a machine that is busy costs it no lease."""

_USERS: Final = 6
_STALL_S: Final = 2.5 * LEASE_MS / 1000
"""As 25 s are to a lease of ten: longer than it by far."""


def message_of(turn: int) -> str:
    """Return what is asked; the scripted model knows it by its number."""
    return f"question {turn}."


def address(turn: int) -> str:
    """Return the turn's path."""
    return f"/v1/sessions/s{turn}/turns/0"


class _Failing:
    """
    A database whose answers fail to come: before it has done anything, after it has, or for longer than a lease.

    Attributes:
        failures: Where they are counted, one byte each.
    """

    def __init__(self, database: SqliteDatabase, chance: random.Random, counter: Path, rate: float) -> None:
        self._database, self._chance, self._counter, self._rate = database, chance, counter, rate

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        await asyncio.sleep(self._chance.uniform(0, 0.004))
        dice = self._chance.random()
        if dice < self._rate:
            self._count("before")
            raise StoreUnavailable("no answer (not applied)")
        outcomes = await self._database.batch(statements)
        if dice < 2 * self._rate:
            self._count("after")
            raise StoreUnavailable("no answer (applied)")
        if dice < 2.3 * self._rate:
            self._count("stall")
            await asyncio.sleep(_STALL_S)
        return outcomes

    def _count(self, kind: str) -> None:
        with self._counter.with_suffix(f".{kind}").open("ab") as file:
            file.write(b".")


class _Product(Assistant):
    """The default product, with a hook whose receiver keeps every call."""

    def __init__(self, journal: Path) -> None:
        super().__init__()
        self._journal = journal

    async def persist_assistant_message(self, turn: FinishedTurn) -> None:
        digest = hashlib.sha256(turn.final_text.encode()).hexdigest()
        with self._journal.open("a") as file:
            file.write(f"{turn.idempotency_key} {digest}\n")


class _Slow(Reader):
    async def drain(self, _room: int | None = None) -> None:
        await asyncio.sleep(0.03)


def _isolate(
    folder: Path, upstream: str, chance: random.Random, *, failures: float, lease_ms: int = LEASE_MS
) -> Isolate:
    database = SqliteDatabase(folder / "db.sqlite3", busy_timeout_s=2.0)
    backend = create_openai_compatible_backend(
        transport=HttpTransport(),
        base_url=upstream,
        api_key="",
        model="scripted-1",
        uniform=chance.uniform,
        now=lambda: 0.0,
        retry=BackendRetryPolicy(max_attempts=3, initial_backoff_ms=5, max_backoff_ms=20, request_timeout_ms=2_000),
        idle_timeout_ms=500,
        continue_models=("scripted-1",),
    )
    return Isolate(
        _Failing(database, chance, folder / "failures", failures),
        _Product(folder / "journal"),
        backend,
        {"TURN_ATTEMPTS": "1000000"},  # nobody is killed so often outside of this rig
        lease_ms=lease_ms,
    )


def work(
    folder: Path,
    upstream: str,
    seed: int,
    turns: tuple[int, int],
    serving: Connection,
) -> None:
    """Serve users of these turns until the process is killed; say when that begins."""
    chance = random.Random(seed)

    async def user(isolate: Isolate) -> None:
        while True:
            turn = chance.randrange(*turns)
            reader = _Slow() if chance.random() < 0.2 else Reader()
            members = {"message": message_of(turn), "follow": chance.random() < 0.7}
            reply = await isolate.ask("POST", address(turn), members, reader=reader)
            if reply.task is not None:
                vanishes_s = chance.choice([None, None, chance.uniform(0, 0.1)])
                await asyncio.wait([reply.task], timeout=vanishes_s)
                reader.leave()
            await asyncio.sleep(chance.uniform(0, 0.05))

    async def cron(isolate: Isolate) -> None:
        while True:
            await asyncio.sleep(chance.uniform(0.05, 0.5))
            with suppress(StoreUnavailable):
                await isolate.sweep()

    async def main() -> None:
        isolate = _isolate(folder, upstream, chance, failures=0.02)
        serving.send_bytes(b"serving")
        await asyncio.gather(cron(isolate), *(user(isolate) for _ in range(_USERS)))

    _quietly(main())


def finish(folder: Path, upstream: str, turns: int) -> None:
    """Ask for every turn until each has its answer, as users would, with nothing failing any more."""

    async def settle(isolate: Isolate, queue: list[int]) -> None:
        while queue:
            turn = queue.pop()
            while True:
                reply = await isolate.ask("POST", address(turn), {"message": message_of(turn), "follow": True})
                lines = await reply.lines()
                if lines and lines[-1]["type"] == "session.run.completed":
                    break
                await asyncio.sleep(LEASE_MS / 4000)

    async def main() -> None:
        isolate = _isolate(folder, upstream, random.Random(0), failures=0.0, lease_ms=PATIENT_LEASE_MS)
        queue = list(range(turns))
        await asyncio.gather(*(settle(isolate, queue) for _ in range(16)))
        for _ in range(50):
            if not await isolate.sweep():
                break

    _quietly(main())


def _quietly(main: Any) -> None:
    """Run, with what is logged thrown away: it is the outcome that counts."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), 1)
    asyncio.run(main)
