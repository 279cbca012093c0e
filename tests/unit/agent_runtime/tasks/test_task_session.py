"""The session of a streamed task, whatever fails around it: its store, its backend, its reader, its worker."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import pytest

from chatturn.agent_runtime.tasks.session_sql import SqlRuntimeSessionStore
from chatturn.agent_runtime.tasks.sessions import InMemoryRuntimeSessionStore, RuntimeSessionStore, StoredRuntimeEvent
from chatturn.agent_runtime.tasks.task_backends import AgentExecutionBackend, create_iterable_backend
from chatturn.agent_runtime.tasks.task_steps import DurableTask, TaskSteps
from chatturn.agent_runtime.tasks.task_stream import RunAgentTaskStreamOptions, run_agent_task_stream
from chatturn.agent_runtime.values.events import (
    BackendErrorEvent,
    LlmCallEvent,
    ReasoningDeltaEvent,
    RuntimeStreamEvent,
    TextDeltaEvent,
    ToolResultEvent,
)
from chatturn.agent_runtime.values.tasks import AgentTaskStatus, RuntimeSession, SessionStatus
from chatturn.database.api import Database, Statement
from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import (
    BackendRejected,
    DurableRunInputMismatchError,
    StoreUnavailable,
    ValidationError,
)
from chatturn_testing.faults import Crash, Fuse, MortalDatabase
from tests.support.agent_tasks import TASK
from tests.support.turns import open_sqlite
from tests.unit.agent_runtime.tasks.test_task_stream import TOKEN, Sandbox, durable, final, kinds, options, told

SESSION = "run-1"
QUOTED = 'tok/en "quoted" + ü\\'


# What the store does


@dataclass
class Faulty:
    """A session store that does not answer once, at its *point*-th call: before it has done it, or after."""

    store: RuntimeSessionStore
    point: int | None = None
    after: bool = False
    calls: int = 0

    async def get(self, session_id: str) -> RuntimeSession | None:
        found: RuntimeSession | None = await self._answer(self.store.get(session_id))
        return found

    async def put(self, session: RuntimeSession) -> None:
        await self._answer(self.store.put(session))

    async def append_event(self, session_id: str, event: RuntimeStreamEvent) -> int:
        number: int = await self._answer(self.store.append_event(session_id, event))
        return number

    async def list_events(self, session_id: str, **page: Any) -> Sequence[StoredRuntimeEvent]:
        found: Sequence[StoredRuntimeEvent] = await self._answer(self.store.list_events(session_id, **page))
        return found

    async def _answer(self, call: Any) -> Any:
        self.calls += 1
        fails = self.calls - 1 == self.point
        if fails and not self.after:
            call.close()
            raise StoreUnavailable("no answer")
        answer = await call
        if fails:
            raise StoreUnavailable("no answer")
        return answer


async def stored(sessions: RuntimeSessionStore) -> list[RuntimeStreamEvent]:
    return [each.event for each in await sessions.list_events(SESSION)]


async def require_whole(sessions: RuntimeSessionStore, text: str = "hello") -> None:
    """Fail unless the session is completed, and the last opening in its log has all of the answer, once."""
    session = await sessions.get(SESSION)
    assert session is not None
    assert (SessionStatus.COMPLETED, TOKEN) == (session.status, session.resume_token)
    log = await stored(sessions)
    opened = max(n for n, event in enumerate(log) if event.type.startswith("session_"))
    assert ["backend_start", "text_delta", "backend_end", "task_end", "final"] == kinds(log[opened + 1 :])
    assert [text] == [event.text for event in log[opened:] if isinstance(event, TextDeltaEvent)]


async def _calls_of_the_store() -> int:
    with open_sqlite() as database:
        sessions = Faulty(SqlRuntimeSessionStore(database))
        await told(Sandbox().backend(), durable=durable(database), session_store=sessions)
        return sessions.calls


@pytest.mark.parametrize("after", [False, True])
async def test_a_session_store_may_fail_once_anywhere(after: bool) -> None:
    """The next call completes the session, and asks the backend again only if its answer is not on record."""
    for point in range(await _calls_of_the_store()):
        with open_sqlite() as database:
            sessions = SqlRuntimeSessionStore(database)
            with pytest.raises(StoreUnavailable):
                await told(
                    Sandbox().backend(), durable=durable(database), session_store=Faulty(sessions, point, after=after)
                )
            answered = _is_answered(database)
            session = await sessions.get(SESSION)
            assert session is None or session.status is not SessionStatus.ACTIVE, f"left open at {point}"
            second = Sandbox()
            events = await told(second.backend(), durable=durable(database), session_store=sessions)

            assert AgentTaskStatus.COMPLETED == final(events).status
            assert ([] if answered else ["stream"]) == [call for call in second.calls if call == "stream"]
            await require_whole(sessions)


def _is_answered(database: SqliteDatabase) -> bool:
    query = "SELECT count(*) FROM durable_steps WHERE intent = 'answer' AND status = 'completed'"
    return bool(database._connection.execute(query).fetchone()[0])


@pytest.mark.parametrize("point", range(40))
async def test_the_log_of_a_session_is_whole_wherever_the_worker_dies(point: int) -> None:
    """Its last events are stored before it is said to be completed; a replay stores those that are missing."""
    with open_sqlite() as database:
        mortal = MortalDatabase(database, Fuse(point))
        try:
            await told(Sandbox().backend(), durable=durable(mortal), session_store=SqlRuntimeSessionStore(mortal))
        except Crash:
            await asyncio.sleep(60)
        sessions = SqlRuntimeSessionStore(database)
        for _ in "ab":
            await told(Sandbox().backend(), durable=durable(database), session_store=sessions)

        await require_whole(sessions)


async def test_a_recording_whose_reply_is_lost_leaves_no_session_aborted() -> None:
    """Whether the answer is on record is not known then; whoever finds that it is completes the session."""

    class Deaf:
        """A database that does not answer to the statement that completes the answer's step, having run it."""

        def __init__(self, database: Database) -> None:
            self._database = database
            self.deaf = True

        async def batch(self, statements: Sequence[Statement]) -> Any:
            results = await self._database.batch(statements)
            if self.deaf and any("finalText" in str(s.params) or '"text":"hello"' in str(s.params) for s in statements):
                raise StoreUnavailable("no answer")
            return results

    with open_sqlite() as database:
        sessions, deaf = SqlRuntimeSessionStore(database), Deaf(database)
        with pytest.raises(StoreUnavailable):
            await told(Sandbox().backend(), durable=durable(deaf), session_store=sessions)
        assert _is_answered(database)
        second = Sandbox()
        await asyncio.sleep(60)
        await told(second.backend(), durable=durable(database), session_store=sessions)

        assert [] == second.calls
        await require_whole(sessions)


@pytest.mark.parametrize("status", [SessionStatus.ACTIVE, SessionStatus.FAILED])
async def test_a_replay_leaves_alone_what_was_done_in_the_session_since(status: SessionStatus) -> None:
    """Another task goes on in it: its session is not completed by whoever asks for an answer of before."""
    with open_sqlite() as database:
        sessions = SqlRuntimeSessionStore(database)
        members = {"durable": durable(database), "session_store": sessions}
        await told(Sandbox().backend(), **members)
        kept = await sessions.get(SESSION)
        assert kept is not None
        await sessions.put(replace(kept, status=status, updated_at="2030-01-01T00:00:00.000Z"))
        await told(Sandbox().backend(), **members)

        again = await sessions.get(SESSION)
        assert again is not None
        assert (status, 6) == (again.status, len(await stored(sessions)))


async def test_a_session_to_which_its_backend_gave_another_name_is_completed_too() -> None:
    """It cannot be found by the run's id."""
    sandbox = Sandbox()

    async def start(_: Any, session: RuntimeSession) -> RuntimeSession:
        return replace(session, id="own-name")

    with open_sqlite() as database:
        backend = create_iterable_backend("sandbox", sandbox._stream, start=start)
        sessions = SqlRuntimeSessionStore(database)
        with pytest.raises(StoreUnavailable):
            await told(backend, durable=durable(database), session_store=_FailsToComplete(sessions))
        assert _is_answered(database)
        await told(backend, durable=durable(database), session_store=sessions)
        session = await sessions.get("own-name")

    assert session is not None
    assert SessionStatus.COMPLETED == session.status


class _FailsToComplete(Faulty):
    """One that never stores that a session is completed, but for what leads from a name to the session's own."""

    async def put(self, session: RuntimeSession) -> None:
        if session.status is SessionStatus.COMPLETED and "chatturn.renamedTo" not in (session.metadata or {}):
            raise StoreUnavailable("no answer")
        await super().put(session)


async def test_a_session_id_that_cannot_be_kept_is_refused_before_anybody_is_asked() -> None:
    sandbox = Sandbox()
    with pytest.raises(ValidationError, match="200"):
        await told(sandbox.backend(), session_id="s" * 201, session_store=InMemoryRuntimeSessionStore())

    assert [] == sandbox.calls


# What the backend says: no token, in no text


PLACES = [
    "stream", "detail", "stop", "resume", "own error", "text", "pieces", "reasoning", "reasoning in pieces",
    "pieces around a call", "pieces around a tool", "pieces around the most that is stored as one", "tool", "metadata",
]  # fmt: skip
"""Where a backend may quote what it was given."""


@dataclass
class Indiscreet:
    """A backend that says *words* at one of those places."""

    token: str
    words: str
    where: str

    async def start(self, _: Any, session: RuntimeSession) -> RuntimeSession:
        metadata = {"link": self.words} if self.where == "metadata" else None
        return replace(session, resume_token=self.token, metadata=metadata)

    async def resume(self, _: Any, session: RuntimeSession) -> RuntimeSession:
        self._raise_at("resume")
        return session

    async def stop(self, *_: Any) -> None:
        self._raise_at("stop")

    async def stream(self, *_: Any) -> AsyncIterator[Any]:
        for output in self._said():
            yield output
        self._raise_at("stream", "stop")
        if self.where == "detail":
            raise BackendRejected(self.words, backend="sandbox", upstream_status=401, detail=self.words)

    def _said(self) -> list[Any]:
        words, cut, long = self.words, len(self.words) // 2, "x" * (8_000 - len(self.words) // 2) + self.words
        own_error = BackendErrorEvent(
            task=TASK, timestamp="2026-01-01T00:00:00.000Z", backend="sandbox", message=words, recoverable=False
        )
        text = TextDeltaEvent
        said: dict[str, list[Any]] = {
            "text": [text(text=words)],
            "pieces": [text(text=each) for each in words],
            "reasoning": [ReasoningDeltaEvent(text=words)],
            "reasoning in pieces": [ReasoningDeltaEvent(text=each) for each in words],
            "pieces around a call": [each for piece in words for each in (text(text=piece), LlmCallEvent(model="m"))],
            "pieces around a tool": [
                text(text=words[:cut]), ToolResultEvent(tool_name="find", result=1), text(text=words[cut:]),
            ],
            "pieces around the most that is stored as one": [
                text(text=long[at : at + 20]) for at in range(0, len(long), 20)
            ],
            "tool": [{"type": "tool_result", "name": "find", "output": {"deep": [words], words: 1}}],
            "own error": [own_error],
        }  # fmt: skip
        return said.get(self.where, [text(text="hel")])

    def _raise_at(self, *places: str) -> None:
        if self.where in places:
            raise ValueError(self.words)

    def backend(self) -> AgentExecutionBackend:
        return create_iterable_backend("sandbox", self.stream, start=self.start, resume=self.resume, stop=self.stop)


def _at_rest(database: SqliteDatabase) -> str:
    tables = ("runtime_session_events", "durable_steps", "durable_runs")
    rows = [row for table in tables for row in database._connection.execute(f"SELECT * FROM {table}")]  # noqa: S608
    return repr([tuple(row) for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize("token", [TOKEN, QUOTED])
@pytest.mark.parametrize("spell", [str, repr, json.dumps, quote, lambda token: f"{{'token': {token!r}}}"])
@pytest.mark.parametrize("where", PLACES)
async def test_a_resume_token_is_told_and_stored_in_nobody_s_words(token: str, spell: Any, where: str) -> None:
    """A backend quotes it in its errors or its answer; it is in no event, no step, no run, however it is spelled."""
    backend = Indiscreet(token, f"cannot go on with {spell(token)}, sorry", where).backend()
    with open_sqlite() as database:
        members = {"session_id": "s1", "session_store": SqlRuntimeSessionStore(database)}
        runs = [DurableTask(store=SqlRunStore(database), run_id=f"run-{n}", project_id="p") for n in (1, 1, 2)]
        events = [event for run in runs for event in await told(backend, **members, durable=run)]
        at_rest = _at_rest(database)

    texts = [
        "".join(getattr(e, "text", "") for e in events if e.type == kind) for kind in ("text_delta", "reasoning_delta")
    ]
    said = repr([*events, *texts]) + "".join(texts)
    for spelled in {token, repr(token)[1:-1], json.dumps(token)[1:-1], quote(token), quote(token, safe="")}:
        assert spelled not in said
        assert spelled not in at_rest.replace("\\\\", "\\")
    assert "[redacted]" in said + at_rest


# Whoever leaves, or aborts, while the backend opens the session


@pytest.mark.parametrize("stored_too", [False, True])
@pytest.mark.parametrize("how", ["abort", "cancel", "close"])
@pytest.mark.parametrize("opening", ["start", "resume"])
async def test_a_backend_that_is_opening_a_session_is_stopped(opening: str, how: str, stored_too: bool) -> None:
    """It may have begun it by now; with the token, where it resumes one.  No session stays open on record."""
    calls: list[str] = []

    async def hang(_: Any, session: RuntimeSession) -> RuntimeSession:
        calls.append("opening")
        await asyncio.sleep(100)
        return session

    async def stop(session: RuntimeSession, reason: str) -> None:
        calls.append(f"stop {session.id} {session.resume_token}: {reason}")

    sandbox, abort = Sandbox(), asyncio.Event()
    backend = create_iterable_backend("sandbox", sandbox._stream, start=hang, resume=hang, stop=stop)
    with open_sqlite() as database:
        sessions = SqlRuntimeSessionStore(database)
        members: dict[str, Any] = {"session_id": "s1", "session_store": sessions, "abort": abort}
        if opening == "resume":
            await told(Sandbox().backend(), session_id="s1", session_store=sessions)
        members["durable"] = durable(database) if stored_too else None
        events = await _left_while_opening(backend, how, abort, members)
        session = await sessions.get("s1")

    reason = "aborted" if how == "abort" else "nobody reads the stream any more"
    assert ["opening", f"stop s1 {TOKEN if opening == 'resume' else None}: {reason}"] == calls
    assert [] == [call for call in sandbox.calls if call == "stream"]
    assert session is None or session.status is not SessionStatus.ACTIVE
    if how == "abort":
        assert ["readiness_end", "backend_error", "task_end", "final"] == kinds(events)[-4:]
        assert AgentTaskStatus.ABORTED == final(events).status


async def _left_while_opening(
    backend: AgentExecutionBackend, how: str, abort: asyncio.Event, members: dict[str, Any]
) -> list[RuntimeStreamEvent]:
    if how == "abort":
        asyncio.get_running_loop().call_later(2, abort.set)
        return await told(backend, **members)
    if how == "cancel":
        reading = asyncio.ensure_future(told(backend, **members))
        await asyncio.sleep(1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        return []
    async with aclosing(run_agent_task_stream(options(backend, **members))) as events:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                async for _ in events:
                    pass
    return []


async def test_a_session_that_was_begun_as_its_reader_left_is_stopped_with_its_token() -> None:
    """Its backend's reply came in the same moment."""
    stopped: list[str | None] = []

    async def start(_: Any, session: RuntimeSession) -> RuntimeSession:
        with suppress(asyncio.CancelledError):  # too late: it has begun
            await asyncio.sleep(100)
        return replace(session, resume_token=TOKEN)

    async def stop(session: RuntimeSession, _: str) -> None:
        stopped.append(session.resume_token)

    abort = asyncio.Event()
    asyncio.get_running_loop().call_later(2, abort.set)
    await told(create_iterable_backend("sandbox", Sandbox()._stream, start=start, stop=stop), abort=abort)

    assert [TOKEN] == stopped


@pytest.mark.parametrize("opening", ["start", "resume"])
async def test_a_session_that_cannot_be_opened_is_a_backend_error(opening: str) -> None:
    """As any failure of the backend's: told, stopped, its status and body for programs."""
    sandbox, sessions = Sandbox(), InMemoryRuntimeSessionStore()

    async def refuse(*_: Any) -> RuntimeSession:
        raise BackendRejected("no", backend="sandbox", upstream_status=402, detail="no credit")

    if opening == "resume":
        await told(sandbox.backend(), session_id="s1", session_store=sessions)
    backend = create_iterable_backend("sandbox", sandbox._stream, start=refuse, resume=refuse, stop=sandbox._stop)
    events = await told(backend, session_id="s1", session_store=sessions)
    [failure] = [event for event in events if isinstance(event, BackendErrorEvent)]

    assert ["readiness_end", "backend_error", "task_end", "final"] == kinds(events)[-4:]
    assert failure.error is not None
    assert (True, 402, "no credit", None) == (
        failure.recoverable,
        failure.error.status,
        failure.error.body,
        failure.session,
    )
    assert "stop: backend_rejected" == sandbox.calls[-1]


@pytest.mark.parametrize("kind", ["backend_end", "task_end", "final"])
async def test_whoever_leaves_at_the_end_leaves_a_run_that_is_completed(kind: str) -> None:
    """The end is told once it is on record."""
    with open_sqlite() as database:
        async with aclosing(run_agent_task_stream(options(Sandbox().backend(), durable=durable(database)))) as events:
            async for event in events:
                if event.type == kind:
                    break
        run = await SqlRunStore(database).load_run("run-1")

    assert run is not None
    assert "completed" == run.status


@pytest.mark.parametrize(
    "members",
    [{"run_id": ""}, {"run_id": None}, {"run_id": "a\ud800"}, {"lease_ms": 0}, {"lease_ms": -1}, {"lease_ms": 1.5}],
)
async def test_a_durable_task_that_cannot_be_recorded_is_refused(members: dict[str, Any]) -> None:
    with open_sqlite() as database, pytest.raises(ValidationError, match=next(iter(members))):
        DurableTask(**{"store": SqlRunStore(database), "run_id": "run-1", "project_id": "p", **members})


# What the backend reports


@pytest.mark.parametrize("recoverable", [True, False])
async def test_a_task_whose_backend_reports_an_error_for_good_has_failed(recoverable: bool) -> None:
    """One that it recovers from is told, and no more; one that it does not is its failure, told once."""
    reported = BackendErrorEvent(
        task=TASK,
        timestamp="2026-01-01T00:00:00.000Z",
        backend="sandbox",
        message="out of credit",
        recoverable=recoverable,
    )
    sandbox = Sandbox(script=("hel", reported))
    events = await told(sandbox.backend())

    assert 1 == kinds(events).count("backend_error")
    if recoverable:
        assert AgentTaskStatus.COMPLETED == final(events).status
        return
    end = final(events)
    assert (AgentTaskStatus.FAILED, "backend_reported", "hel") == (end.status, end.reason, end.text)
    assert end.error is not None
    assert "out of credit" == end.error.body
    assert "stop: backend_reported" == sandbox.calls[-1]


# One run, one request, one key


@pytest.mark.parametrize(
    "given",
    [
        {"inputs": {"file": "b.pdf"}},
        {"inputs": {}},
        {"request_options": {"temperature": 1}},
        {"session_id": "another"},
    ],
)
@pytest.mark.parametrize("before", [{}, {"inputs": {"file": "a.pdf"}, "request_options": {"temperature": 0}}])
async def test_another_request_under_the_same_run_is_refused(before: dict[str, Any], given: dict[str, Any]) -> None:
    """It is not told the answer to what was asked before; the same request is."""
    with open_sqlite() as database:
        first = await told(Sandbox().backend(), **before, durable=durable(database))
        again = await told(Sandbox().backend(), **before, durable=durable(database))
        with pytest.raises(DurableRunInputMismatchError):
            await told(Sandbox().backend(), **{**before, **given}, durable=durable(database))

    assert final(first).text == final(again).text


async def test_two_runs_of_one_name_ask_under_two_keys_if_their_stores_say_so() -> None:
    """C4: two tenants' model is one, and would answer the second with what it told the first."""
    keys = set[str]()
    for _ in range(2):
        with open_sqlite() as database:
            sandbox, store = Sandbox(), SqlRunStore(database, run_bound_keys=True)
            await told(sandbox.backend(), durable=DurableTask(store=store, run_id="run-1", project_id="p"))
            keys |= {context.request_id for _, context in sandbox.asked}

    assert 2 == len(keys)


def test_options_are_the_same_as_ever_where_nothing_new_is_said() -> None:
    """A run that was begun before inputs counted is gone on with."""
    from chatturn.agent_runtime.tasks.task_stream import _asked  # noqa: PLC0415 - what is hashed, and no more

    given = RunAgentTaskStreamOptions(task=TASK, backend=Sandbox().backend(), message="hi")

    assert {"message": "hi", "messages": None, "model": None} == _asked(given)


@pytest.mark.parametrize("how", ["abort", "cancel", "cancel twice"])
async def test_what_a_backend_raises_as_its_reader_leaves_is_not_logged(how: str) -> None:
    """Asyncio prints an error that nobody takes, and this one quotes the token."""
    logged: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
    abort = asyncio.Event()

    async def stream(*_: Any) -> AsyncIterator[Any]:
        yield TextDeltaEvent(text="hel")
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(how == "cancel twice")
            raise ValueError(TOKEN) from None

    reading = asyncio.ensure_future(told(create_iterable_backend("sandbox", stream), abort=abort))
    await asyncio.sleep(1)
    if how == "abort":
        abort.set()
    else:
        reading.cancel()
    if how == "cancel twice":
        await asyncio.sleep(0.5)
        reading.cancel()
    await asyncio.wait({reading})
    await asyncio.sleep(10)
    del reading
    gc.collect()

    assert [] == logged


@pytest.mark.parametrize("ends", [0, 1])
async def test_what_a_hook_raises_as_its_caller_is_cancelled_is_not_logged(ends: int) -> None:
    logged: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))

    async def hook() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(ends)
            raise ValueError(TOKEN)

    calling = asyncio.ensure_future(TaskSteps(abort=asyncio.Event()).unrecorded(hook))
    await asyncio.sleep(1)
    calling.cancel()
    await asyncio.sleep(0.5)
    calling.cancel()
    await asyncio.wait({calling})
    await asyncio.sleep(10)
    del calling
    gc.collect()

    assert [] == logged
