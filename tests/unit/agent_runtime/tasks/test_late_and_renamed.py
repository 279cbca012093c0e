"""Sessions that their backend renames, workers that are cut off, and answers that are almost too long."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from chatturn.agent_runtime.tasks.session_sql import SqlRuntimeSessionStore
from chatturn.agent_runtime.tasks.sessions import InMemoryRuntimeSessionStore
from chatturn.agent_runtime.tasks.task_backends import (
    AgentBackendContext,
    AgentBackendInput,
    AgentExecutionBackend,
    create_iterable_backend,
)
from chatturn.agent_runtime.values.events import BackendErrorEvent, RuntimeStreamEvent, TextDeltaEvent
from chatturn.agent_runtime.values.tasks import AgentTaskStatus, RuntimeSession, SessionStatus
from chatturn.database.api import Database, Result, Statement
from chatturn.durable.records import Lease
from chatturn.errors import LeaseLost
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.agent_tasks import TASK
from tests.support.turns import open_sqlite
from tests.unit.agent_runtime.tasks.test_task_stream import TOKEN, Sandbox, durable, final, kinds, told


@dataclass
class Renaming:
    """A backend that calls its sessions box-1, box-2, … whatever they are asked to be called."""

    calls: list[str] = field(default_factory=list)
    renames_again: bool = False
    started: int = 0

    async def _start(self, _: AgentBackendInput, session: RuntimeSession) -> RuntimeSession:
        self.started += 1
        self.calls.append(f"start box-{self.started}")
        return replace(session, id=f"box-{self.started}", resume_token=TOKEN)

    async def _resume(self, _: AgentBackendInput, session: RuntimeSession) -> RuntimeSession:
        self.calls.append(f"resume {session.id}")
        return replace(session, id=f"{session.id}+") if self.renames_again else session

    async def _stream(self, _: AgentBackendInput, __: AgentBackendContext) -> AsyncIterator[RuntimeStreamEvent]:
        yield TextDeltaEvent(text="hel")
        await asyncio.sleep(1)
        yield TextDeltaEvent(text="lo")

    def backend(self) -> AgentExecutionBackend:
        return create_iterable_backend("sandbox", self._stream, start=self._start, resume=self._resume)


def statuses(database: Any) -> dict[str, str]:
    rows = database._connection.execute("SELECT session_id, status FROM runtime_sessions")
    return {str(name): str(status) for name, status in rows}


@pytest.mark.parametrize("renames_again", [False, True])
async def test_the_next_task_goes_on_in_a_session_that_was_renamed(renames_again: bool) -> None:
    """Under the name that the task gives, and under each that the backend gave."""
    store, sandbox = InMemoryRuntimeSessionStore(), Renaming(renames_again=renames_again)
    opened = [
        kinds(await told(sandbox.backend(), session_id=name, session_store=store))[3]
        for name in ("s1", "s1", "box-1", "s1")
    ]

    assert ["session_created", *["session_resumed"] * 3] == opened
    assert ["start box-1", *(f"resume box-1{'+' * n * renames_again}" for n in range(3))] == sandbox.calls


async def test_a_renamed_session_outlives_its_worker_wherever_it_dies() -> None:
    """From when it is stored on, the next worker resumes it; nothing that is stored stays open."""
    point, resumed = 0, 0
    while True:
        with open_sqlite() as database:
            sandbox, mortal = Renaming(), MortalDatabase(database, Fuse(point))
            try:
                await told(sandbox.backend(), durable=durable(mortal), session_store=SqlRuntimeSessionStore(mortal))
            except Crash:
                pass
            else:
                break
            was_stored = "box-1" in statuses(database)
            await asyncio.sleep(100)
            events = await told(
                sandbox.backend(), durable=durable(database), session_store=SqlRuntimeSessionStore(database)
            )

            assert (AgentTaskStatus.COMPLETED, "hello") == (final(events).status, final(events).text)
            assert {"completed"} == set(statuses(database).values())
            assert not was_stored or "start box-2" not in sandbox.calls
            resumed += "resume box-1" in sandbox.calls
        point += 1
    assert resumed


@dataclass
class CutOff:
    """The database of a worker that is cut off: from its *point*-th batch on, each arrives 100 s late."""

    database: Database
    point: int
    batches: int = 0
    late: list[asyncio.Task[list[Result]]] = field(default_factory=list)

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        self.batches += 1
        if self.batches <= self.point:
            return await self.database.batch(statements)

        async def later() -> list[Result]:
            await asyncio.sleep(100)
            return await self.database.batch(statements)

        self.late.append(asyncio.ensure_future(later()))
        return await asyncio.shield(self.late[-1])


async def test_what_a_cut_off_worker_writes_late_changes_no_session() -> None:
    """Whichever of its writes is late: the session is completed, and its last event is the heir's last."""
    for point in range(1, 30):
        with open_sqlite() as database:
            store, cut = SqlRuntimeSessionStore(database), CutOff(database, point)
            first = asyncio.ensure_future(
                told(Sandbox().backend(), durable=durable(cut), session_store=SqlRuntimeSessionStore(cut))
            )
            done, _ = await asyncio.wait({first}, timeout=60)
            if done and not cut.late:
                break
            events = await told(Sandbox().backend(), durable=durable(database), session_store=store)
            await asyncio.gather(first, *cut.late, return_exceptions=True)
            await asyncio.sleep(300)
            kept = await store.get("run-1")
            ends = [each.event.type for each in await store.list_events("run-1")][-3:]

            assert AgentTaskStatus.COMPLETED == final(events).status
            assert kept is not None
            assert (point, SessionStatus.COMPLETED) == (point, kept.status)
            assert ["backend_end", "task_end", "final"] == ends
    assert point > 5


async def test_a_fenced_store_refuses_what_comes_behind_a_claim() -> None:
    """Both kinds of write, and it says who has the run; a run of another database fences nothing."""
    session = RuntimeSession(
        id="s", backend="b", status=SessionStatus.ACTIVE, created_at="2026-01-01T00:00:00.000Z",
        updated_at="2026-01-01T00:00:00.000Z",
    )  # fmt: skip
    with open_sqlite() as database:
        await told(Sandbox().backend(), durable=durable(database))
        store = SqlRuntimeSessionStore(database)
        lease = Lease(run_id="run-1", holder="w", epoch=1, expires_at="2026-01-01T00:00:00.000Z", lease_ms=1)
        await store.fenced_by(lease).put(session)
        database._connection.execute("UPDATE durable_runs SET epoch = 2")
        with pytest.raises(LeaseLost, match="run-1"):
            await store.fenced_by(lease).put(replace(session, status=SessionStatus.FAILED))
        with pytest.raises(LeaseLost, match="run-1"):
            await store.fenced_by(lease).append_event("s", TextDeltaEvent(text="late"))
        await store.fenced_by(replace(lease, run_id="elsewhere")).append_event("s", TextDeltaEvent(text="ok"))

        assert session == await store.get("s")
        assert 1 == len(await store.list_events("s"))


@pytest.mark.parametrize("text", ["y" * 300_000, "y" * 600_000, "y" * 950_000, "é" * 450_000, "\u20ac" * 300_000])
async def test_a_long_answer_is_recorded(text: str) -> None:
    """Up to what a step may hold as UTF-8: the backend is asked once."""
    with open_sqlite() as database:
        again = Sandbox()
        await told(Sandbox(script=(text,)).backend(), durable=durable(database))
        events = await told(again.backend(), durable=durable(database))

        assert (text, []) == (final(events).text, again.calls)


async def test_an_error_from_which_nobody_recovers_is_the_last_that_a_backend_says() -> None:
    """A backend that hangs behind it is stopped."""
    fatal = BackendErrorEvent(
        task=TASK, timestamp="2026-01-01T00:00:00.000Z", backend="sandbox", message="m", recoverable=False
    )
    sandbox = Sandbox(script=("a", fatal, "more", 100_000.0))
    began = asyncio.get_running_loop().time()
    events = await told(sandbox.backend())

    assert asyncio.get_running_loop().time() - began < 60
    assert (AgentTaskStatus.FAILED, "a", 0) == (final(events).status, final(events).text, sandbox.open)
    assert 1 == kinds(events).count("backend_error")


@pytest.mark.parametrize(
    "opened",
    [
        {"backend": "other"}, {"id": ""}, {"id": "x" * 201}, {"id": 5}, {"metadata": {"a": {1}}}, {"metadata": 5},
        {"resume_token": 5}, {"resume_token": "x" * 3_000_000}, {"status": "open"}, {"created_at": "now"},
        {"metadata": {"chatturn.renamedTo": "another's"}}, None,
    ],
)  # fmt: skip
async def test_a_backend_that_opens_what_is_no_session_of_its_own_has_failed(opened: dict[str, Any] | None) -> None:
    """It is told as the backend's error, and nothing is stored."""

    async def start(_: AgentBackendInput, session: RuntimeSession) -> Any:
        return None if opened is None else replace(session, **opened)

    async def stream(_: AgentBackendInput, __: AgentBackendContext) -> AsyncIterator[RuntimeStreamEvent]:
        yield TextDeltaEvent(text="x")

    with open_sqlite() as database:
        backend = create_iterable_backend("sandbox", stream, start=start)
        events = await told(backend, session_id="s1", session_store=SqlRuntimeSessionStore(database))

        assert AgentTaskStatus.FAILED == final(events).status
        assert "backend_error" in kinds(events)
        assert {} == statuses(database)
