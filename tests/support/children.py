"""
What the real processes of the tests do: workers over one SQLite file, which are killed, stopped and misled.

They are forked off a server process that has imported this module, and so start in milliseconds.
"""

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.context import DurableContext
from chatturn.durable.local_stores import FileSystemDurableRunStore
from chatturn.durable.runner import RunDurableInput, RunDurableResult, run_durable
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import DurableRunLeaseHeldError, LeaseLost
from tests.support.processes import state_of
from tests.support.runs import manifest

__all__ = [
    "CONTEXT",
    "LEASE_LOST",
    "Place",
    "contend",
    "counted",
    "effects_in",
    "migrate_until",
    "open_store",
    "process",
    "run_task",
    "start",
    "stopped",
    "task_with_effects",
    "work_until",
    "work_while_watched",
    "work_with_a_wrong_clock",
]

CONTEXT: Final = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    # The last two are imported by httpx when it is used first, which takes each process 0.1 s.
    [__name__, "tests.chaos.worker", "tests.chaos.people", "httpcore", "anyio._backends._asyncio"]
)

LEASE_LOST: Final = 17
"""What a worker exits with that found its lease gone."""

Place = tuple[str, int]
"""Where a process kills itself: before the n-th ``statement``, or at the n-th few ``instructions``, from 0."""

_INSTRUCTIONS: Final = 7
_PATIENCE_S: Final = 120.0


@cache
def _run_server() -> None:
    # Before Python 3.12 the server imports by its own path, and takes what it cannot import for nothing.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def start(target: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Start a process, forked off the server; it ends with this one at the latest."""
    _run_server()
    child = CONTEXT.Process(target=target, args=arguments, daemon=True)
    child.start()
    return child


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[multiprocessing.process.BaseProcess]:
    """Run *target* in a process of its own, which is gone when the block is left."""
    child = start(target, *arguments)
    try:
        yield child
    finally:
        if child.is_alive():
            child.kill()  # also ends one that is stopped
        child.join(_PATIENCE_S)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process with SIGSTOP, and let it go on with SIGCONT."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while state_of(pid) != "T":
            time.sleep(0.001)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# The task: three steps, each with an effect on the world outside.


def task_with_effects(effects: Path, name: str = "") -> Callable[[DurableContext], Any]:
    """Return a task whose steps each add a line to a file: what was done, under which key, on whose behalf."""

    async def task(context: DurableContext) -> list[str]:
        said = []
        for intent in ("reserve", "charge", "ship"):
            key = context.step_key(intent)

            async def effect(key: str = key, intent: str = intent) -> str:
                with effects.open("a") as file:
                    file.write(f"{intent} {key} {name}\n")
                return f"{intent} done"

            said.append(await context.step(intent, effect, input={"intent": intent}))
        return said

    return task


def effects_in(effects: Path) -> list[list[str]]:
    """Return the effects so far, each as its words."""
    return [line.split(" ") for line in effects.read_text().splitlines()] if effects.exists() else []


async def run_task(store: SqlRunStore, effects: Path, run_id: str = "run-1", **options: Any) -> RunDurableResult[Any]:
    """Run the task durably."""
    name = options.pop("name", "")
    return await run_durable(
        RunDurableInput(
            run_id=run_id, manifest=manifest(), store=store, task_fn=task_with_effects(effects, name), **options
        )
    )


@contextmanager
def open_store(path: Path, **options: Any) -> Iterator[FileSystemDurableRunStore]:
    """Open the file's store."""
    store = FileSystemDurableRunStore(path, **options)
    with store.sqlite:
        yield store


# What the processes are told to do.


def contend(path: Path, effects: Path, runs: int, start: Barrier, name: str) -> None:
    """Run all the runs to their end, together with whoever else does."""

    async def all_of_them(store: SqlRunStore) -> None:
        left = [f"run-{number}" for number in range(runs)]
        while left:
            for run_id in list(left):
                try:
                    await run_task(store, effects, run_id, name=name)
                except DurableRunLeaseHeldError:
                    continue
                left.remove(run_id)

    with open_store(path) as store:
        start.wait(_PATIENCE_S)
        asyncio.run(all_of_them(store))


def work_until(path: Path, effects: Path, place: Place) -> None:
    """Run the task, and die at a place."""
    with open_store(path) as store:
        _count(store.sqlite, place[0], lambda number: _die_at(number, place[1]))
        asyncio.run(run_task(store, effects, lease_ms=60_000))


def migrate_until(path: Path, place: Place | None, start: Barrier | None = None) -> None:
    """Bring the database to the schema, and die at a place, if any."""
    if start is not None:
        start.wait(_PATIENCE_S)
    with SqliteDatabase(path) as database:
        if place is not None:
            _count(database, place[0], lambda number: _die_at(number, place[1]))
        database.migrate()


def work_while_watched(path: Path, lease_ms: int, watcher: Connection) -> None:
    """Run a task of one step that says when it is in the step, and leaves it when it is told to."""

    async def task(context: DurableContext) -> str:
        async def step() -> str:
            watcher.send("in the step")
            # In a thread: the heartbeat goes on meanwhile.
            await asyncio.to_thread(watcher.recv)
            return "zombie"

        return await context.step("first", step)

    async def work(store: SqlRunStore) -> None:
        run = RunDurableInput(run_id="run-1", manifest=manifest(), store=store, task_fn=task, lease_ms=lease_ms)
        try:
            await run_durable(run)
        except LeaseLost:
            os._exit(LEASE_LOST)

    with open_store(path) as store:
        asyncio.run(work(store))


def work_with_a_wrong_clock(path: Path, skew_s: float, zone: str, report: Connection) -> None:
    """Claim one run that is free and one that is not, by a clock that is wrong; report what came of it."""
    right = time.time
    os.environ["TZ"] = zone
    time.tzset()
    time.time = lambda: right() + skew_s
    time.time_ns = lambda: int(time.time() * 1e9)

    async def work(store: SqlRunStore) -> None:
        claimed = await store.start_or_resume(run_id="childs", manifest=manifest(), worker_id="child", lease_ms=60_000)
        try:
            await store.start_or_resume(run_id="parents", manifest=manifest(), worker_id="child", lease_ms=60_000)
            stole = True
        except DurableRunLeaseHeldError:
            stole = False
        assert claimed.lease is not None
        report.send((stole, (await store.renew_lease(claimed.lease)).expires_at))

    with open_store(path) as store:
        asyncio.run(work(store))


# Places to die.


@contextmanager
def counted(database: SqliteDatabase, kind: str) -> Iterator[list[int]]:
    """Count the places of a kind that a database passes, as the one item of a list."""
    places = [0]
    _count(database, kind, lambda number: places.__setitem__(0, number + 1))
    yield places
    database._connection.set_trace_callback(None)
    database._connection.set_progress_handler(None, _INSTRUCTIONS)


def _count(database: SqliteDatabase, kind: str, pass_by: Callable[[int], None]) -> None:
    passed = iter(range(1_000_000_000))
    if kind == "statement":
        database._connection.set_trace_callback(lambda _sql: pass_by(next(passed)))
    else:
        database._connection.set_progress_handler(lambda: pass_by(next(passed)), _INSTRUCTIONS)


def _die_at(number: int, point: int) -> None:
    if number == point:
        os.kill(os.getpid(), signal.SIGKILL)
