"""A task whose backend answers as a stream: what is told, who is stopped, and what outlives its worker."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from chatturn.agent_runtime.tasks.readiness import KnowledgeHooks
from chatturn.agent_runtime.tasks.session_sql import SqlRuntimeSessionStore
from chatturn.agent_runtime.tasks.sessions import InMemoryRuntimeSessionStore
from chatturn.agent_runtime.tasks.task_backends import (
    AgentBackendContext,
    AgentBackendInput,
    AgentExecutionBackend,
    BackendOutput,
    create_iterable_backend,
)
from chatturn.agent_runtime.tasks.task_steps import DurableTask
from chatturn.agent_runtime.tasks.task_stream import RunAgentTaskStreamOptions, run_agent_task_stream
from chatturn.agent_runtime.values.event_order import first_out_of_order
from chatturn.agent_runtime.values.events import (
    BackendErrorEvent,
    FinalEvent,
    LlmCallEvent,
    RuntimeStreamEvent,
    TextDeltaEvent,
)
from chatturn.agent_runtime.values.tasks import AgentTaskStatus, RuntimeSession, SessionStatus
from chatturn.database.api import Database
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import (
    BackendRejected,
    DurableRunInputMismatchError,
    LeaseLost,
    SessionMismatchError,
    StoreUnavailable,
)
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.agent_tasks import SOURCES, TASK, requirement
from tests.support.transport import Reply, ScriptedTransport
from tests.support.turns import open_sqlite
from tests.unit.agent_runtime.tasks.test_task_loop import NEEDS_A_NAME, preflight
from tests.unit.backends.openai.test_backend import DONE, frame
from tests.unit.backends.openai.test_backend import backend as openai_backend

TOKEN = "resume-token-of-the-sandbox"
Script = Sequence[BackendOutput | str | float | Exception]

WHOLE = [
    "task_start", "readiness_start", "readiness_end", "session_created", "backend_start", "text_delta", "text_delta",
    "backend_end", "task_end", "final",
]  # fmt: skip


@dataclass
class Sandbox:
    """
    A backend that says what a script says: outputs, seconds to wait, and errors.

    Attributes:
        calls: What it was asked to do, in order.
        open: How many of its streams are open.
    """

    script: Script = ("hel", "lo")
    calls: list[str] = field(default_factory=list)
    asked: list[tuple[AgentBackendInput, AgentBackendContext]] = field(default_factory=list)
    open: int = 0
    on_stop: Callable[[], None] = lambda: None
    on_call: Callable[[str], None] = lambda _name: None

    async def _start(self, _: AgentBackendInput, session: RuntimeSession) -> RuntimeSession:
        self._note("start")
        return replace(session, resume_token=TOKEN)

    async def _resume(self, _: AgentBackendInput, session: RuntimeSession) -> RuntimeSession:
        self._note(f"resume with {session.resume_token}")
        return session

    async def _stop(self, _: RuntimeSession, reason: str) -> None:
        self._note(f"stop: {reason}")
        self.on_stop()

    async def _stream(self, request: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[BackendOutput]:
        self.asked.append((request, context))
        self._note("stream")
        self.open += 1
        try:
            for each in self.script:
                self.on_call("inside the stream")
                if isinstance(each, Exception):
                    raise each
                if isinstance(each, float):
                    await asyncio.sleep(each)
                else:
                    yield TextDeltaEvent(text=each) if isinstance(each, str) else each
        finally:
            self.open -= 1

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.on_call(call)

    def backend(self, kind: str = "sandbox") -> AgentExecutionBackend:
        return create_iterable_backend(kind, self._stream, start=self._start, resume=self._resume, stop=self._stop)


def options(backend: AgentExecutionBackend, **members: Any) -> RunAgentTaskStreamOptions:
    return RunAgentTaskStreamOptions(**{"task": TASK, "backend": backend, "sources": SOURCES, **members})


async def told(backend: AgentExecutionBackend, **members: Any) -> list[RuntimeStreamEvent]:
    """Run a task; return all that is told, which is in order."""
    events = [event async for event in run_agent_task_stream(options(backend, **members))]
    assert first_out_of_order(events) is None
    assert isinstance(events[-1], FinalEvent)
    return events


def kinds(events: Sequence[RuntimeStreamEvent]) -> list[str]:
    return [event.type for event in events]


def final(events: Sequence[RuntimeStreamEvent]) -> FinalEvent:
    assert isinstance(events[-1], FinalEvent)
    return events[-1]


def durable(database: Database) -> DurableTask:
    return DurableTask(store=SqlRunStore(database), run_id="run-1", project_id="test-project")


# agent-runtime's own tests


async def test_a_task_is_answered() -> None:
    events = await told(Sandbox().backend())

    assert WHOLE == kinds(events)
    assert (AgentTaskStatus.COMPLETED, "backend completed", "hello") == (
        final(events).status,
        final(events).reason,
        final(events).text,
    )


async def test_a_blocked_task_asks_nobody() -> None:
    """In the exact order: no session, no backend."""
    sandbox = Sandbox()
    events = await told(sandbox.backend(), task=NEEDS_A_NAME)

    assert ["task_start", "readiness_start", "readiness_end", "task_end", "final"] == kinds(events)
    assert (AgentTaskStatus.BLOCKED, []) == (final(events).status, sandbox.calls)


async def test_questions_and_acquisition_come_before_the_answer() -> None:
    events = await told(Sandbox().backend(), task=NEEDS_A_NAME, hooks=preflight([]))

    assert [
        "task_start", "readiness_start", "questions_start", "questions_end", "acquisition_start", "acquisition_end",
        "readiness_start", "readiness_end", "session_created", "backend_start",
    ] == kinds(events)[:10]  # fmt: skip


async def test_a_caveat_does_not_stop_a_task() -> None:
    caveat = replace(TASK, required_knowledge=(requirement("law", importance="low", mode="search_web"),))

    assert AgentTaskStatus.COMPLETED == final(await told(Sandbox().backend(), task=caveat)).status


async def test_a_session_is_created_and_resumed_and_what_was_told_is_kept() -> None:
    sandbox, sessions = Sandbox(), InMemoryRuntimeSessionStore()
    first = await told(sandbox.backend(), session_id="s1", session_store=sessions)
    second = await told(sandbox.backend(), session_id="s1", session_store=sessions, message="And now?")

    assert ("session_created", "session_resumed") == (first[3].type, second[3].type)
    assert ["start", "stream", f"resume with {TOKEN}", "stream"] == sandbox.calls
    kept = [each.event for each in await sessions.list_events("s1")]
    assert [
        "session_created", "backend_start", "text_delta", "backend_end", "task_end", "final",
        "session_resumed", "backend_start", "text_delta", "backend_end", "task_end", "final",
    ] == kinds(kept)  # fmt: skip
    session = await sessions.get("s1")
    assert session is not None
    assert (SessionStatus.COMPLETED, TOKEN) == (session.status, session.resume_token)
    assert "hello" == next(event.text for event in kept if isinstance(event, TextDeltaEvent))


async def test_another_backend_s_session_is_refused_before_anything_is_told() -> None:
    sessions = InMemoryRuntimeSessionStore()
    await told(Sandbox().backend(), session_id="s1", session_store=sessions)
    other = Sandbox()
    stream = run_agent_task_stream(options(other.backend("openai"), session_id="s1", session_store=sessions))

    with pytest.raises(SessionMismatchError):
        await anext(stream)
    assert [] == other.calls


async def test_a_backend_that_fails_is_stopped_and_its_text_so_far_is_kept() -> None:
    sandbox = Sandbox(script=("par", "tial", ValueError("the upstream said: Ms. Miller")))
    events = await told(sandbox.backend(), session_store=InMemoryRuntimeSessionStore(), session_id="s1")
    [failure] = [event for event in events if isinstance(event, BackendErrorEvent)]

    assert ["backend_error", "task_end", "final"] == kinds(events)[-3:]
    assert ["start", "stream", "stop: backend_error"] == sandbox.calls
    assert (True, AgentTaskStatus.FAILED, "partial") == (failure.recoverable, final(events).status, final(events).text)
    assert failure.session is not None
    assert SessionStatus.FAILED == failure.session.status
    assert "Miller" not in failure.message + final(events).reason
    assert failure.error is not None
    assert ("backend", "ValueError: the upstream said: Ms. Miller") == (failure.error.kind, failure.error.message)


async def test_a_backend_that_cannot_be_stopped_is_told_as_well() -> None:
    sandbox = Sandbox(script=(ValueError("no"),))
    sandbox.on_stop = lambda: _raise(RuntimeError("still running"))
    events = await told(sandbox.backend())
    [failure] = [event for event in events if isinstance(event, BackendErrorEvent)]

    assert failure.message.endswith("It could not be stopped.")
    assert failure.error is not None
    assert failure.error.message.endswith("and stopping it: RuntimeError: still running")


async def test_a_transport_error_has_its_status_and_body() -> None:
    """Later versions of agent-runtime have both in the event."""
    error = BackendRejected("status 402", backend="openai", upstream_status=402, detail="no credit")
    events = await told(Sandbox(script=(error,)).backend())
    detail = final(events).error

    assert detail is not None
    assert ("transport", 402, "no credit", "backend_rejected") == (
        detail.kind,
        detail.status,
        detail.body,
        final(events).reason,
    )


async def test_a_model_behind_an_api_answers_a_task() -> None:
    """A backend of chatturn's, as it is: hel and lo over server-sent events."""
    transport = ScriptedTransport([Reply(body=[frame("hel"), frame("lo"), DONE])])
    events = await told(openai_backend(transport), message="Say hello.")

    assert "hello" == final(events).text
    assert '"messages":[{"role":"user","content":"Say hello."}]' in transport.exchanges[0].request.body


# Whoever stops reading


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("kind", WHOLE[3:7])
async def test_a_reader_that_leaves_stops_the_backend_and_closes_the_session(kind: str, stored: bool) -> None:
    """At whichever event.  agent-runtime leaves the session active, and the backend running."""
    sandbox, sessions = Sandbox(script=("hel", 5.0, "lo", 5.0)), InMemoryRuntimeSessionStore()
    with open_sqlite() as database:
        members = {"session_id": "s1", "session_store": sessions, "durable": durable(database) if stored else None}
        async with aclosing(run_agent_task_stream(options(sandbox.backend(), **members))) as events:
            async for event in events:
                if event.type == kind:
                    break

        session = await sessions.get("s1")
        assert session is not None
        assert (SessionStatus.ABORTED, 0) == (session.status, sandbox.open)
        assert "stop: nobody reads the stream any more" == sandbox.calls[-1]
        assert [asyncio.current_task()] == [*asyncio.all_tasks()]


async def test_a_reader_that_only_breaks_off_stops_the_backend_too() -> None:
    """When its generator is collected, which is at once where nothing else refers to it."""
    sandbox = Sandbox(script=("hel", 5.0, "lo"))
    async for event in run_agent_task_stream(options(sandbox.backend())):
        if event.type == "text_delta":
            break
    del event
    gc.collect()
    await asyncio.sleep(1)

    assert (0, "stop: nobody reads the stream any more") == (sandbox.open, sandbox.calls[-1])


@pytest.mark.parametrize("stored", [False, True])
async def test_a_reader_that_is_cancelled_stops_the_backend(stored: bool) -> None:
    sandbox = Sandbox(script=("hel", 100.0))
    with open_sqlite() as database:
        reading = asyncio.ensure_future(told(sandbox.backend(), durable=durable(database) if stored else None))
        await asyncio.sleep(1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

        assert 0 == sandbox.open
        assert sandbox.calls[-1].startswith("stop")


@pytest.mark.parametrize("stored", [False, True])
async def test_an_abort_ends_the_answer_at_once(stored: bool) -> None:
    """It is told as an abort, which nobody recovers from, with the text so far."""
    sandbox, abort = Sandbox(script=("hel", 100.0, "lo")), asyncio.Event()
    with open_sqlite() as database:
        members = {"abort": abort, "durable": durable(database) if stored else None}
        asyncio.get_running_loop().call_later(2, abort.set)
        events = await told(sandbox.backend(), **members)

    assert 2 == asyncio.get_running_loop().time()
    [failure] = [event for event in events if isinstance(event, BackendErrorEvent)]
    assert (False, AgentTaskStatus.ABORTED, "hel") == (failure.recoverable, final(events).status, final(events).text)
    assert (0, "stop: aborted") == (sandbox.open, sandbox.calls[-1])


async def test_a_slow_reader_holds_the_backend_back() -> None:
    """C7: at most what was asked for, what is waited for, and one more."""
    sandbox = Sandbox(script=["x"] * 100)
    produced: list[str] = []
    sandbox.on_call = produced.append
    async with aclosing(run_agent_task_stream(options(sandbox.backend()))) as events:
        async for event in events:
            if event.type == "text_delta":
                await asyncio.sleep(60)
                break

    assert produced.count("inside the stream") <= 4


async def test_a_stop_that_hangs_is_left_after_ten_seconds() -> None:
    sandbox = Sandbox(script=(ValueError("no"),))

    async def hang(*_: Any) -> None:
        await asyncio.sleep(3_600)

    backend = create_iterable_backend("sandbox", sandbox._stream, stop=hang)
    await told(backend)

    assert 10 == asyncio.get_running_loop().time()


# What fails


async def test_a_session_that_cannot_be_begun_ends_the_task() -> None:
    async def start(*_: Any) -> RuntimeSession:
        raise BackendRejected("no", backend="sandbox", upstream_status=401)

    events = await told(create_iterable_backend("sandbox", Sandbox()._stream, start=start))

    assert ["readiness_end", "backend_error", "task_end", "final"] == kinds(events)[-4:]
    assert ("backend_rejected", AgentTaskStatus.FAILED) == (final(events).reason, final(events).status)


async def test_a_hook_that_fails_ends_the_task_without_its_words() -> None:
    async def ask(_: Any) -> Any:
        raise ValueError("Ms. Miller")

    events = await told(Sandbox().backend(), task=NEEDS_A_NAME, hooks=KnowledgeHooks(ask_user=ask))

    assert ["questions_start", "task_end", "final"] == kinds(events)[-3:]
    assert "hook_failed" == final(events).reason


async def test_a_session_store_that_fails_is_raised_and_the_backend_stopped() -> None:
    sandbox = Sandbox()

    class Broken(InMemoryRuntimeSessionStore):
        async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> int:
            if event.type == "backend_start":
                raise StoreUnavailable("no answer")
            return await super().append_event(session_id, event)

    with pytest.raises(StoreUnavailable):
        await told(sandbox.backend(), session_store=Broken())
    assert sandbox.calls[-1].startswith("stop")


async def test_no_event_has_a_resume_token() -> None:
    """Not one that is told, and not one that is stored; the backend has it."""
    sandbox = Sandbox()
    with open_sqlite() as database:
        sessions = SqlRuntimeSessionStore(database)
        members = {"session_id": "s1", "session_store": sessions, "durable": durable(database)}
        events = await told(sandbox.backend(), **members)
        stored = [
            repr([tuple(row) for row in database._connection.execute(query)])
            for query in (
                "SELECT * FROM runtime_session_events",
                "SELECT * FROM durable_steps",
                "SELECT * FROM durable_runs",
            )
        ]

    assert [None] * len(events) == [getattr(event, "session", None) and event.session.resume_token for event in events]  # type: ignore[union-attr]
    assert TOKEN not in "".join(stored) + repr(events)
    assert TOKEN == sandbox.asked[0][1].session.resume_token


# Durable


async def test_a_task_that_has_completed_is_told_again_and_nobody_is_asked() -> None:
    with open_sqlite() as database:
        script: Script = ("hel", "lo", LlmCallEvent(model="m", tokens_out=2))
        first, second = Sandbox(script=script), Sandbox()
        before = await told(first.backend(), durable=durable(database))
        await asyncio.sleep(60)
        again = await told(second.backend(), durable=durable(database))

    assert [] == second.calls
    assert final(before).text == final(again).text == "hello"
    assert [event for event in before if event.type != "text_delta"][:5] == [
        event for event in again if event.type != "text_delta"
    ][:5]
    assert 1 == kinds(again).count("llm_call")
    assert ["hello"] == [event.text for event in again if isinstance(event, TextDeltaEvent)]


@pytest.mark.parametrize(
    "said", [{"message": "And now?"}, {"model": "another"}, {"messages": [{"role": "user", "content": "hi"}]}]
)
async def test_something_else_under_the_same_run_is_refused(said: dict[str, Any]) -> None:
    """It is not told the answer to what was asked before."""
    with open_sqlite() as database:
        await told(Sandbox().backend(), message="Hello?", durable=durable(database))
        with pytest.raises(DurableRunInputMismatchError):
            await told(Sandbox().backend(), **{"message": "Hello?", **said}, durable=durable(database))


async def test_an_answer_too_long_for_its_record_keeps_its_text_and_its_calls() -> None:
    with open_sqlite() as database:
        huge = {"type": "tool_result", "name": "find", "output": "x" * 1_000_000}
        script: Script = (huge, "hello", LlmCallEvent(model="m"))
        await told(Sandbox(script=script).backend(), durable=durable(database))
        again = await told(Sandbox().backend(), durable=durable(database))

    assert ("hello", ["text_delta", "llm_call"]) == (final(again).text, kinds(again)[5:7])


async def test_a_task_that_failed_is_gone_on_with_in_its_session() -> None:
    with open_sqlite() as database:
        sessions = SqlRuntimeSessionStore(database)
        sandbox, calls = Sandbox(script=("hel", ValueError("no"))), list[str]()
        members = {
            "task": NEEDS_A_NAME,
            "hooks": preflight(calls),
            "durable": durable(database),
            "session_store": sessions,
        }
        failed = await told(sandbox.backend(), **members)
        sandbox.script = ("hel", "lo")
        events = await told(sandbox.backend(), **members)

    assert (AgentTaskStatus.FAILED, AgentTaskStatus.COMPLETED) == (final(failed).status, final(events).status)
    assert ["start", "stream", "stop: backend_error", f"resume with {TOKEN}", "stream"] == sandbox.calls
    assert 3 == len(calls)
    assert 1 == len({context.request_id for _, context in sandbox.asked})


@pytest.mark.parametrize("script", [("hel", 100.0), ("hel", 2.0, ValueError("no"))])
async def test_a_worker_that_was_taken_over_stops_nothing_and_closes_nothing(script: Script) -> None:
    """Backend and session are its successor's; it learns of it from its heartbeat, or where its own backend fails."""
    with open_sqlite() as database:
        sandbox, sessions = Sandbox(script=script), SqlRuntimeSessionStore(database)
        reading = asyncio.ensure_future(told(sandbox.backend(), durable=durable(database), session_store=sessions))
        await asyncio.sleep(1)
        database._connection.execute("UPDATE durable_runs SET epoch = epoch + 1, lease_holder_id = 'its successor'")
        with pytest.raises(LeaseLost):
            await reading
        session = await sessions.get("run-1")

    assert (["start", "stream"], 0) == (sandbox.calls, sandbox.open)
    assert session is not None
    assert SessionStatus.ACTIVE == session.status


def _mortal(sandbox: Sandbox, fuse: Fuse, calls: list[str], database: Database) -> dict[str, Any]:
    sandbox.on_call = lambda name: fuse.pass_by(f"inside {name}")
    mortal = MortalDatabase(database, fuse)
    sessions = SqlRuntimeSessionStore(mortal)
    return {"task": NEEDS_A_NAME, "hooks": preflight(calls), "durable": durable(mortal), "session_store": sessions}


def _places() -> list[str]:
    async def live() -> list[str]:
        with open_sqlite() as database:
            fuse, sandbox = Fuse(), Sandbox()
            await told(sandbox.backend(), **_mortal(sandbox, fuse, [], database))
            return fuse.places

    return asyncio.run(live())


PLACES = _places()


@pytest.mark.parametrize("point", range(len(PLACES)))
async def test_a_worker_may_die_anywhere_in_a_streamed_task(point: int) -> None:
    """The next one tells the whole task; what is on record is not asked again, and no session is left open."""
    with open_sqlite() as database:
        first, calls = Sandbox(), list[str]()
        with pytest.raises(Crash):
            await told(first.backend(), **_mortal(first, Fuse(point), calls, database))
        answered = database._connection.execute(
            "SELECT count(*) FROM durable_steps WHERE intent = 'answer' AND status = 'completed'"
        ).fetchone()[0]
        await asyncio.sleep(60)
        second = Sandbox()
        events = await told(second.backend(), **_mortal(second, Fuse(), calls, database))
        session = await SqlRuntimeSessionStore(database).get("run-1")

    assert (AgentTaskStatus.COMPLETED, "hello") == (final(events).status, final(events).text)
    assert ([] if answered else ["stream"]) == [call for call in second.calls if call == "stream"]
    assert len(calls) <= 4
    assert session is not None
    assert SessionStatus.COMPLETED == session.status


def test_the_crash_test_visits_every_statement() -> None:
    assert PLACES.count("before a batch") == PLACES.count("after a batch") >= 14
    assert {"inside start", "inside stream", "inside inside the stream"} < set(PLACES)


def _raise(error: Exception) -> None:
    raise error
