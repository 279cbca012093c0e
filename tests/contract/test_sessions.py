"""What every store of backends' sessions promises: the one in memory, and the one over a database."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from chatturn.agent_runtime.tasks.session_sql import SqlRuntimeSessionStore
from chatturn.agent_runtime.tasks.sessions import (
    MAX_EVENT_BYTES,
    MAX_METADATA_BYTES,
    MAX_RESUME_TOKEN_BYTES,
    InMemoryRuntimeSessionStore,
    RuntimeSessionStore,
)
from chatturn.agent_runtime.values.events import BackendStartEvent, TextDeltaEvent, ToolCallEvent
from chatturn.agent_runtime.values.tasks import AgentTaskSpec, RuntimeSession, SessionStatus
from chatturn.database.api import Database, Result, Statement
from chatturn.errors import SessionMismatchError, ValidationError
from tests.support.clock import Clock

TOKEN = "resume-token-of-the-sandbox"
TASK = AgentTaskSpec(id="task-1", intent="Answer.")
SESSION = RuntimeSession(
    id="session-1",
    backend="sandbox",
    status=SessionStatus.ACTIVE,
    created_at="2026-01-01T00:00:00.000Z",
    updated_at="2026-01-01T00:00:00.000Z",
    resume_token=TOKEN,
    metadata={"resumable": True, "deep": {"é": [1, None]}},
)


@pytest.fixture(params=["memory", "sql"])
def sessions(request: pytest.FixtureRequest, database: Database) -> RuntimeSessionStore:
    """Each store that there is, empty."""
    return InMemoryRuntimeSessionStore() if request.param == "memory" else SqlRuntimeSessionStore(database)


def said(text: str, **members: Any) -> TextDeltaEvent:
    return TextDeltaEvent(text=text, **members)


async def test_a_session_comes_back_as_it_was_put(sessions: RuntimeSessionStore) -> None:
    await sessions.put(SESSION)

    assert SESSION == await sessions.get("session-1")
    assert await sessions.get("session-2") is None


async def test_a_session_without_anything_optional_comes_back_too(sessions: RuntimeSessionStore) -> None:
    plain = replace(SESSION, resume_token=None, metadata=None)
    await sessions.put(plain)

    assert plain == await sessions.get("session-1")


async def test_putting_again_replaces_all_but_its_beginning(sessions: RuntimeSessionStore) -> None:
    later = replace(
        SESSION, status=SessionStatus.COMPLETED, resume_token=None, metadata=None,
        created_at="2026-02-02T00:00:00.000Z", updated_at="2026-02-02T00:00:00.000Z",
    )  # fmt: skip
    await sessions.put(SESSION)
    await sessions.put(later)

    assert replace(later, created_at=SESSION.created_at) == await sessions.get("session-1")


async def test_another_backend_s_session_is_refused(sessions: RuntimeSessionStore) -> None:
    await sessions.put(SESSION)
    with pytest.raises(SessionMismatchError) as refused:
        await sessions.put(replace(SESSION, backend="openai", resume_token="another"))

    assert ("sandbox", "openai", "validation") == (
        refused.value.session_backend, refused.value.requested_backend, refused.value.code,
    )  # fmt: skip
    assert SESSION == await sessions.get("session-1")


async def test_what_is_done_to_a_session_afterwards_changes_nothing(sessions: RuntimeSessionStore) -> None:
    """B12: a store that shares what it keeps hides that the other one does not."""
    metadata: dict[str, Any] = {"files": ["a"]}
    await sessions.put(replace(SESSION, metadata=metadata))
    metadata["files"].append("b")
    found = await sessions.get("session-1")
    assert found is not None
    assert found.metadata is not None
    found.metadata["files"].append("c")

    again = await sessions.get("session-1")
    assert again is not None
    assert {"files": ["a"]} == again.metadata


async def test_events_are_numbered_and_listed_in_their_order(sessions: RuntimeSessionStore) -> None:
    await sessions.put(SESSION)
    await sessions.put(replace(SESSION, id="session-2"))
    numbers = [await sessions.append_event("session-1", said(text)) for text in "abc"]
    other = await sessions.append_event("session-2", said("x"))

    assert ([0, 1, 2], 0) == (numbers, other)
    assert [(0, said("a")), (1, said("b")), (2, said("c"))] == [
        (e.seq, e.event) for e in await sessions.list_events("session-1")
    ]
    assert [said("x")] == [each.event for each in await sessions.list_events("session-2")]


async def test_a_hundred_appends_at_once_are_as_many_statements_and_read_no_history(database: Database) -> None:
    """Each is one round trip of one statement, numbered by the database, however long the log is."""

    class Counting:
        def __init__(self) -> None:
            self.batches: list[int] = []

        async def batch(self, statements: Sequence[Statement]) -> list[Result]:
            self.batches.append(len(statements))
            return await database.batch(statements)

    counting = Counting()
    sessions = SqlRuntimeSessionStore(counting)
    await sessions.put(SESSION)
    counting.batches.clear()
    numbers = await asyncio.gather(*(sessions.append_event("session-1", said(str(n))) for n in range(100)))

    assert list(range(100)) == sorted(numbers)
    assert [1] * 100 == counting.batches


async def test_events_are_listed_page_by_page(sessions: RuntimeSessionStore) -> None:
    await sessions.put(SESSION)
    for number in range(103):
        await sessions.append_event("session-1", said(str(number)))

    def numbers(found: Any) -> list[int]:
        return [each.seq for each in found]

    assert [1, 2] == numbers(await sessions.list_events("session-1", after=0, limit=2))
    assert list(range(100)) == numbers(await sessions.list_events("session-1", limit=1_000))
    assert [100, 101, 102] == numbers(await sessions.list_events("session-1", after=99))
    assert [102] == numbers(await sessions.list_events("session-1", after=101, limit=0))
    assert [] == numbers(await sessions.list_events("session-1", after=102))
    assert [] == numbers(await sessions.list_events("nobody's"))


async def test_a_resume_token_is_in_no_event(sessions: RuntimeSessionStore) -> None:
    """It is the session's, and of nobody who reads what was told."""
    await sessions.put(SESSION)
    await sessions.append_event("session-1", said("a", session=SESSION))
    started = BackendStartEvent(task=TASK, timestamp=SESSION.created_at, session=SESSION, backend="sandbox")
    await sessions.append_event("session-1", started)
    listed = await sessions.list_events("session-1")

    assert [None, None] == [each.event.session and each.event.session.resume_token for each in listed]  # type: ignore[union-attr]
    assert TOKEN not in repr(SESSION)


async def test_a_resume_token_is_in_no_repr(sessions: RuntimeSessionStore) -> None:
    """Not of the store, and not of what it keeps, asks its database and is answered."""
    await sessions.put(SESSION)
    asked = Statement("SELECT ?1", (TOKEN,))
    answered = Result(rows=[{"resume_token": TOKEN}], changes=0)

    assert TOKEN not in repr([sessions, vars(sessions), asked, answered])


async def test_no_row_but_the_session_s_has_its_token(database: Database) -> None:
    sessions = SqlRuntimeSessionStore(database)
    await sessions.put(SESSION)
    await sessions.append_event("session-1", said("a", session=SESSION))
    [rows] = await database.batch([Statement("SELECT * FROM runtime_session_events")])

    assert TOKEN not in repr([dict(row) for row in rows.rows])


async def test_an_event_of_no_session_is_refused(sessions: RuntimeSessionStore) -> None:
    with pytest.raises(ValidationError, match="no session"):
        await sessions.append_event("session-1", said("a"))


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels - 1):
        found = {"a": found}
    return found


BAD: dict[str, list[Any]] = {
    "id": ["", "s" * 201, "\ud800", 5, None, b"s", ["s"]],
    "backend": ["", "b" * 201, "\ud800", 5, None],
    "status": ["active", "over", 5, None],
    "created_at": ["", "yesterday", "2026-01-01", "2026-01-01T00:00:00.000+01:00", 5, None],
    "updated_at": ["", "2026-13-01T00:00:00.000Z", "\ud800", 1.5, None],
    "resume_token": ["x" * 3_000_000, "é" * 8_001, "\ud800", 5, b"token"],
    "metadata": [
        5, "text", ["a"], {"a": {1, 2}}, {"a": float("nan")}, {"a": "x" * MAX_METADATA_BYTES}, {"a": "\ud800"},
        {"\ud800": 1}, {1: "a"}, {"a": 10**5_000}, nested(63), nested(300),
    ],
}  # fmt: skip


async def _require_nothing_but(sessions: RuntimeSessionStore, session: RuntimeSession | None) -> None:
    assert session == await sessions.get(SESSION.id)
    assert await sessions.get("s" * 201) is None
    assert await sessions.get("") is None


@pytest.mark.parametrize("member", BAD)
async def test_a_session_that_cannot_be_kept_is_refused(sessions: RuntimeSessionStore, member: str) -> None:
    """Whatever is wrong with it: nothing is written, in no store, and what was there stays."""
    for value in BAD[member]:
        with pytest.raises(ValidationError):
            await sessions.put(replace(SESSION, **{member: value}))
    await _require_nothing_but(sessions, None)
    await sessions.put(SESSION)
    for value in BAD[member]:
        with pytest.raises(ValidationError):
            await sessions.put(replace(SESSION, **{member: value}))
    await _require_nothing_but(sessions, SESSION)


async def test_the_longest_that_can_be_kept_comes_back(sessions: RuntimeSessionStore) -> None:
    longest = replace(
        SESSION, id="s" * 200, backend="b" * 200, resume_token="x" * MAX_RESUME_TOKEN_BYTES, metadata=nested(62)
    )
    await sessions.put(longest)
    await sessions.append_event(longest.id, said("a", session=longest))

    assert longest == await sessions.get(longest.id)
    assert 1 == len(await sessions.list_events(longest.id))


@pytest.mark.parametrize("session", [None, 5, {"id": "session-1", "backend": "sandbox"}])
async def test_what_is_no_session_is_refused(sessions: RuntimeSessionStore, session: Any) -> None:
    with pytest.raises(ValidationError, match="RuntimeSession"):
        await sessions.put(session)


@pytest.mark.parametrize("name", [5, None, {}, ["a"], b"session-1", "\ud800"])
async def test_an_id_that_is_no_text_is_refused_by_every_method(sessions: RuntimeSessionStore, name: Any) -> None:
    for call in (sessions.get(name), sessions.append_event(name, said("a")), sessions.list_events(name)):
        with pytest.raises(ValidationError):
            await call


@pytest.mark.parametrize(
    "asked", [{"after": "1"}, {"after": None}, {"after": 1.5}, {"after": True}, {"limit": None}, {"limit": "9"}]
)
async def test_a_page_that_is_none_is_refused(sessions: RuntimeSessionStore, asked: Any) -> None:
    await sessions.put(SESSION)
    with pytest.raises(ValidationError):
        await sessions.list_events(SESSION.id, **asked)
    assert [] == await sessions.list_events(SESSION.id, after=10**30, limit=10**30)
    assert [] == await sessions.list_events(SESSION.id, after=-(10**30), limit=-(10**30))


NO: Any = None
EVENTS: list[Any] = [
    said("x" * MAX_EVENT_BYTES), said("\ud800"), said(NO), said("a", session={"id": "s", "resumeToken": TOKEN}),
    {"type": "text_delta", "text": "a", "session": {"resumeToken": TOKEN}}, None, 5,
    ToolCallEvent(tool_name="a", args={1, 2}), ToolCallEvent(tool_name="a", args={1: 2}), ToolCallEvent(tool_name="a", args=float("inf")),
    ToolCallEvent(tool_name="a", args=nested(70)), ToolCallEvent(tool_name="a", args=nested(300)),
    BackendStartEvent(task=TASK, timestamp=SESSION.created_at, session=replace(SESSION, status=NO), backend="b"),
    BackendStartEvent(task=TASK, timestamp=NO, session=SESSION, backend="b"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(EVENTS)))
async def test_an_event_that_cannot_be_kept_is_refused(sessions: RuntimeSessionStore, number: int) -> None:
    """Nor is one that could not be read back: it would be in the way of all the others."""
    await sessions.put(SESSION)
    with pytest.raises(ValidationError):
        await sessions.append_event("session-1", EVENTS[number])

    assert [] == await sessions.list_events("session-1")


@pytest.mark.parametrize("asked", [{"older_than_ms": None}, {"older_than_ms": float("nan")}, {"older_than_ms": -1}, {"older_than_ms": 1, "limit": -1}, {"older_than_ms": 10**30}])  # fmt: skip
async def test_a_retention_that_is_none_deletes_nothing(database: Database, asked: Any) -> None:
    sessions = SqlRuntimeSessionStore(database)
    await sessions.put(SESSION)
    with pytest.raises(ValidationError):
        await sessions.delete_idle(**asked)

    assert SESSION == await sessions.get(SESSION.id)


async def test_one_tenant_does_not_find_another_s_sessions(database: Database) -> None:
    """C4: an id that can be guessed is no key."""
    ours, theirs = (SqlRuntimeSessionStore(database, tenant_id=tenant) for tenant in ("acme", "beta"))
    await ours.put(SESSION)
    await ours.append_event("session-1", said("a"))

    assert await theirs.get("session-1") is None
    assert [] == await theirs.list_events("session-1")
    await theirs.put(replace(SESSION, backend="openai"))
    assert SESSION == await ours.get("session-1")
    assert 0 == await theirs.append_event("session-1", said("b"))


async def test_sessions_that_were_left_long_ago_are_deleted_with_their_events(database: Database, clock: Clock) -> None:
    sessions = SqlRuntimeSessionStore(database)
    moment: Callable[[int], str] = clock.after
    for name, age_ms in (("old", 10_000), ("older", 20_000), ("young", 1_000)):
        await sessions.put(replace(SESSION, id=name, updated_at=moment(-age_ms)))
        await sessions.append_event(name, said(name))

    assert 1 == await sessions.delete_idle(older_than_ms=5_000, limit=1)
    assert [None, 1] == [await sessions.get("older"), len(await sessions.list_events("old"))]
    assert 1 == await sessions.delete_idle(older_than_ms=5_000)
    assert 0 == await sessions.delete_idle(older_than_ms=5_000)
    assert [[], 1] == [await sessions.list_events("old"), len(await sessions.list_events("young"))]
