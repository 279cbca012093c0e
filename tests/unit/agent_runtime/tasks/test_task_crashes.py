"""A task's worker dies at every turn of the loop, so at every wait, and before and after every write."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from chatturn.agent_runtime.tasks.session_sql import SqlRuntimeSessionStore
from chatturn.agent_runtime.tasks.task_loop import AgentTaskRunResult, run_agent_task
from chatturn.agent_runtime.values.tasks import AgentTaskStatus, RuntimeSession, SessionStatus
from chatturn.database.sqlite import SqliteDatabase
from chatturn_testing.crashes import _MortalLoop
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from chatturn_testing.virtual_time import VirtualTimeLoop
from tests.support.agent_tasks import Counting
from tests.support.turns import open_sqlite
from tests.unit.agent_runtime.tasks.test_task_loop import NEEDS_A_NAME, preflight
from tests.unit.agent_runtime.tasks.test_task_session import require_whole
from tests.unit.agent_runtime.tasks.test_task_stream import TOKEN, Sandbox, durable, final, told

T = TypeVar("T")
LIFE_S = 100.0
"""Between a worker and its heir: longer than a lease."""


def live(fuse: Fuse, main: Coroutine[Any, Any, T], *, from_s: float) -> T | None:
    """Run *main* in a process that dies with *fuse*."""
    loop = _MortalLoop(fuse, from_s)
    with suppress(Crash), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(loop.live(main))
    return None


# A stream


async def ask(sandbox: Sandbox, database: Any, calls: list[str]) -> Any:
    sessions = SqlRuntimeSessionStore(database)
    members = {"task": NEEDS_A_NAME, "hooks": preflight(calls), "durable": durable(database)}
    return await told(sandbox.backend(), **members, session_store=sessions)


def die_in_a_stream(point: int) -> Fuse:
    """Let a worker die at *point*, and another one go on; return the fuse."""
    with open_sqlite() as database:
        fuse, first, second, calls = Fuse(point), Sandbox(), Sandbox(), list[str]()
        live(fuse, ask(first, MortalDatabase(database, fuse), calls), from_s=0)
        query = "SELECT count(*) FROM durable_steps WHERE intent = 'answer' AND status = 'completed'"
        answered = database._connection.execute(query).fetchone()[0]
        events = live(Fuse(), ask(second, database, calls), from_s=LIFE_S)
        assert events is not None
        assert (AgentTaskStatus.COMPLETED, "hello") == (final(events).status, final(events).text)
        assert ([] if answered else ["stream"]) == [call for call in second.calls if call == "stream"]
        assert len({context.request_id for _, context in first.asked + second.asked}) <= 1
        assert max(Counter(calls).values()) <= 2
        live(Fuse(), _whole(database), from_s=LIFE_S)
        return fuse


async def _whole(database: SqliteDatabase) -> None:
    await require_whole(SqlRuntimeSessionStore(database))


# A loop


def die_in_a_loop(point: int) -> Fuse:
    """Likewise; an action that is on record is not taken again, and one that is not is under the same key."""
    with open_sqlite() as database:
        fuse, first, second = Fuse(point), Counting(), Counting()
        live(fuse, run_agent_task(_options(first, MortalDatabase(database, fuse))), from_s=0)
        second.count = first.count
        query = "SELECT count(*) FROM durable_steps WHERE intent LIKE 'act:%' AND status = 'completed'"
        taken = database._connection.execute(query).fetchone()[0]
        result = live(Fuse(), run_agent_task(_options(second, database)), from_s=LIFE_S)
        assert isinstance(result, AgentTaskRunResult)
        assert AgentTaskStatus.COMPLETED == result.status
        again = second.calls.count("act")
        assert again <= 3 - taken
        done = Counter(
            key for each in (first, second) for name, key in zip(each.calls, each.keys, strict=True) if name == "act"
        )
        assert len(done) <= 3
        assert sum(done.values()) <= 4
        return fuse


def _options(counting: Counting, database: Any) -> Any:
    return counting.options(durable=durable(database))


@pytest.mark.slow
@pytest.mark.parametrize("die", [die_in_a_stream, die_in_a_loop])
def test_a_worker_may_die_at_every_wait(die: Any) -> None:
    places = die(10**9).places
    for point in range(len(places)):
        try:
            die(point)
        except AssertionError as error:
            raise AssertionError(f"killed at {point} of {len(places)}, {places[point]}: {error}") from error

    assert len(places) > 40
    assert {"a turn of the event loop", "before a batch", "after a batch"} == set(places)


# Whoever aborts, or leaves, at any moment


class Interrupting(VirtualTimeLoop):
    """A loop in whose n-th turn something is called."""

    def __init__(self, point: int) -> None:
        super().__init__(0.0)
        self.turns, self._point = 0, point
        self.interrupt: Callable[[], Any] = lambda: None

    def _run_once(self) -> None:
        if self.turns == self._point:
            self.interrupt()
        self.turns += 1
        super()._run_once()  # type: ignore[misc]  # of asyncio's BaseEventLoop, which its stubs leave out


@pytest.mark.slow
@pytest.mark.parametrize("how", ["abort", "cancel"])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_task_may_be_aborted_or_left_at_any_moment(how: str, resumed: bool) -> None:
    """It ends whole or stopped, no session stays open, and the next call goes on with it at once."""
    point, turns = 0, 1
    while point < turns:
        loop = Interrupting(point)
        with asyncio.Runner(loop_factory=lambda made=loop: made) as runner:  # type: ignore[misc]
            runner.run(_interrupted(loop, how, resumed=resumed))
        turns, point = loop.turns, point + 1
    assert point > 60


async def _interrupted(loop: Interrupting, how: str, *, resumed: bool) -> None:
    loop.turns = 0
    sandbox, abort = Sandbox(script=("hel", 1.0, "lo")), asyncio.Event()
    with open_sqlite() as database:
        sessions = SqlRuntimeSessionStore(database)
        if resumed:
            await sessions.put(
                RuntimeSession(
                    id="run-1",
                    backend="sandbox",
                    status=SessionStatus.FAILED,
                    created_at="2026-01-01T00:00:00.000Z",
                    updated_at="2026-01-01T00:00:00.000Z",
                    resume_token=TOKEN,
                )
            )
        members = {
            "task": NEEDS_A_NAME,
            "hooks": preflight([]),
            "durable": durable(database),
            "session_store": sessions,
        }
        asking = asyncio.ensure_future(told(sandbox.backend(), **members, abort=abort))
        loop.interrupt = abort.set if how == "abort" else asking.cancel
        events = (await asyncio.gather(asking, return_exceptions=True))[0]
        loop.interrupt = lambda: None
        session = await sessions.get("run-1")

        if how == "abort":
            assert isinstance(events, list), repr(events)
            assert final(events).status in {AgentTaskStatus.ABORTED, AgentTaskStatus.COMPLETED}
        assert session is None or session.status is not SessionStatus.ACTIVE
        assert 0 == sandbox.open
        unfinished = session is None or session.status is not SessionStatus.COMPLETED
        if unfinished and any(call != "stop" for call in sandbox.calls):
            assert sandbox.calls[-1].startswith("stop")
        again = await told(sandbox.backend(), **members)
        assert (AgentTaskStatus.COMPLETED, "hello") == (final(again).status, final(again).text)
        await require_whole(sessions)
