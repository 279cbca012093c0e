"""What a backend tells that is no event, or cannot be stored, is its failure: nothing stays open."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from chatturn.agent_runtime.tasks.session_sql import SqlRuntimeSessionStore
from chatturn.agent_runtime.values.events import (
    ArtifactEvent,
    BackendErrorEvent,
    FinalEvent,
    ReasoningDeltaEvent,
    TextDeltaEvent,
    ToolCallEvent,
    ToolResultEvent,
)
from chatturn.agent_runtime.values.tasks import AgentTaskSpec, AgentTaskStatus, SessionStatus
from chatturn.errors import BackendProtocolError, StepTooLarge, ValidationError
from chatturn.events import ChatStreamEvent
from tests.support.agent_tasks import TASK, Counting
from tests.support.turns import open_sqlite
from tests.unit.agent_runtime.tasks.test_task_stream import Sandbox, durable, final, kinds, options, told

LONG = 1_100_000
NO: Any = None
NUMBER: Any = 5
LIST: Any = ["maxSteps"]
CYCLE: dict[str, Any] = {}
CYCLE["again"] = CYCLE
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
DEEP: dict[str, Any] = {}
for _ in range(70):
    DEEP = {"a": DEEP}

TOLD: dict[str, Any] = {
    "NaN": ToolCallEvent(tool_name="a", args={"a": float("nan")}),
    "a set": ToolCallEvent(tool_name="a", args={1, 2}),
    "a set as JSON": {"type": "tool_call", "name": "a", "args": {1, 2}},
    "bytes": ToolResultEvent(tool_name="a", result=b"x"),
    "too much": ToolResultEvent(tool_name="a", result="x" * LONG),
    "a cycle": ToolResultEvent(tool_name="a", result=CYCLE),
    "too deep": ToolResultEvent(tool_name="a", result=DEEP),
    "half a pair": ToolResultEvent(tool_name="a", result="\ud800"),
    "a name that is none": ToolCallEvent(tool_name=NUMBER),
    "metadata that are none": ArtifactEvent(artifact_id="a", metadata=NUMBER),
    "a session that is none": ToolCallEvent(tool_name="a", session={"resumeToken": "x"}),  # type: ignore[arg-type]
    "a piece in a session that is none": TextDeltaEvent(text="a", session=NUMBER),
    "a piece of a task that is none": ReasoningDeltaEvent(text="a", task=NUMBER),
    "a piece at a time that is none": TextDeltaEvent(text="a", timestamp=NUMBER),
    "a number for a text": TextDeltaEvent(text=NUMBER),
    "nothing for a text": TextDeltaEvent(text=NO),
    "a number for reasoning": ReasoningDeltaEvent(text=NUMBER),
    "half a pair in a text": TextDeltaEvent(text="\ud800a"),
    "half a pair in reasoning": {"type": "reasoning_delta", "text": "\udfff"},
    "half a pair in what it all comes to": {"type": "result", "text": "he\ud800"},
    "half a pair in what a part comes to": {"type": "message.part.updated", "part": {"type": "text", "text": "\udc00"}},
    "a text too long": TextDeltaEvent(text="x" * LONG),
    "a text too long as JSON": TextDeltaEvent(text="\0" * 200_000),
    "a list in itself": ENDLESS,
    "nothing": NUMBER,
    "a member without a name": ToolResultEvent(tool_name="a", result={5: 6}),
    "a kind that is none": ChatStreamEvent(LIST),
    "data that are none": ChatStreamEvent("usage", NUMBER),
    "no type": {"text": "a"},
    "what only the runtime tells": options(Sandbox().backend()),
    "a fatal error too long": BackendErrorEvent(
        task=TASK, timestamp="2026-01-01T00:00:00.000Z", backend="sandbox", message="x" * LONG, recoverable=False
    ),
}
TOO_LONG = {"too much", "a text too long", "a text too long as JSON", "a fatal error too long"}
"""For the log of a session; where there is none, a tool may say as much."""


@pytest.mark.parametrize("is_durable", [False, True])
@pytest.mark.parametrize(
    ("what", "has_store"),
    [(what, stored) for what in TOLD for stored in (False, True) if stored or what not in TOO_LONG],
)
async def test_it_is_told_as_the_backend_s_failure(what: str, has_store: bool, is_durable: bool) -> None:
    """With a stable code; the backend is stopped, the session closed, and the next task goes on in it."""
    with open_sqlite() as database:
        store = SqlRuntimeSessionStore(database) if has_store else None
        members: dict[str, Any] = {"session_id": "s1", "session_store": store}
        sandbox = Sandbox(script=("hel", TOLD[what], "lo"))
        events = await told(sandbox.backend(), **members, durable=durable(database) if is_durable else None)

        end = final(events)
        assert (AgentTaskStatus.FAILED, BackendProtocolError.code, "hel") == (end.status, end.reason, end.text)
        assert ["text_delta", "backend_error", "task_end", "final"] == kinds(events)[-4:]
        assert (0, f"stop: {BackendProtocolError.code}") == (sandbox.open, sandbox.calls[-1])
        if store is not None:
            session = await store.get("s1")
            assert session is not None
            assert SessionStatus.FAILED == session.status
            assert "final" == [each.event.type for each in await store.list_events("s1")][-1]
        again = await told(Sandbox().backend(), **members, durable=durable(database) if is_durable else None)
        assert (AgentTaskStatus.COMPLETED, "hello") == (final(again).status, final(again).text)


@pytest.mark.parametrize("stored", [False, True])
async def test_only_half_a_character_that_nothing_completes_is_a_failure(stored: bool) -> None:
    with open_sqlite() as database:
        members: dict[str, Any] = {"session_store": SqlRuntimeSessionStore(database)} if stored else {}
        members["durable"] = durable(database) if stored else None
        broken = await told(Sandbox(script=("hel", "\ud83d")).backend(), **members)
        aborted = await told(Sandbox(script=("hel", "\ud83d", ValueError("x"))).backend(), **members)
        whole = await told(Sandbox(script=("hel", "\ud83d", "\ude00")).backend(), **members)
        again = await told(Sandbox(script=()).backend(), **members) if stored else whole

    assert [
        (AgentTaskStatus.FAILED, BackendProtocolError.code, "hel"), (AgentTaskStatus.FAILED, "backend_error", "hel"),
        (AgentTaskStatus.COMPLETED, "backend completed", "hel😀"), (AgentTaskStatus.COMPLETED, "backend completed", "hel😀"),
    ] == [(final(events).status, final(events).reason, final(events).text) for events in (broken, aborted, whole, again)]  # fmt: skip


@pytest.mark.parametrize("words", ["x" * 3_000_000, "a\ud800"])
@pytest.mark.parametrize("at", ["stream", "stop"])
async def test_whatever_words_a_backend_fails_with(words: str, at: str) -> None:
    def fail() -> None:
        raise ValueError(words)

    with open_sqlite() as database:
        store = SqlRuntimeSessionStore(database)
        sandbox = Sandbox(script=("hel", ValueError(words if at == "stream" else "no")))
        sandbox.on_stop = fail if at == "stop" else sandbox.on_stop
        events = await told(sandbox.backend(), session_id="s1", session_store=store, durable=durable(database))

        assert AgentTaskStatus.FAILED == final(events).status
        assert "final" == [each.event.type for each in await store.list_events("s1")][-1]


async def test_an_answer_longer_than_an_event_is_stored_in_its_pieces() -> None:
    """The last event on record has no text then; the one that is told has."""
    with open_sqlite() as database:
        store = SqlRuntimeSessionStore(database)
        events = await told(
            Sandbox(script=("y" * 7_999, "z" * 40_000) * 30).backend(), session_id="s1", session_store=store
        )
        listed, after = [], -1
        while page := await store.list_events("s1", after=after):
            listed += [each.event for each in page]
            after = page[-1].seq

    assert (AgentTaskStatus.COMPLETED, 47_999 * 30) == (final(events).status, len(final(events).text or ""))
    assert final(events).text == "".join(each.text for each in listed if isinstance(each, TextDeltaEvent))
    assert isinstance(listed[-1], FinalEvent)
    assert listed[-1].text is None


async def test_an_answer_that_no_step_holds_leaves_nothing_open() -> None:
    with open_sqlite() as database:
        store, sandbox = SqlRuntimeSessionStore(database), Sandbox(script=("y" * 40_000,) * 30)
        with pytest.raises(StepTooLarge):
            await told(sandbox.backend(), session_store=store, durable=durable(database))
        session = await store.get("run-1")

    assert session is not None
    assert (SessionStatus.ABORTED, 0) == (session.status, sandbox.open)
    assert sandbox.calls[-1].startswith("stop")


@pytest.mark.parametrize(
    "inputs", [{"a": float("nan")}, {"a": {1, 2}}, {"a": "x" * 400_000}, {"a": "\ud800"}, {"a": CYCLE}, {"a": DEEP}, 5]
)
async def test_a_task_that_cannot_be_stored_is_refused_before_anything_is_done(inputs: Any) -> None:
    with open_sqlite() as database:
        task, sandbox, counting = replace(TASK, inputs=inputs), Sandbox(), Counting()
        for members in ({"session_store": SqlRuntimeSessionStore(database)}, {"durable": durable(database)}):
            with pytest.raises(ValidationError):
                options(sandbox.backend(), task=task, **members)
        with pytest.raises(ValidationError):
            counting.options(task=task, durable=durable(database))

    assert ([], []) == (sandbox.calls, counting.calls)


@pytest.mark.parametrize(
    "task",
    [
        None, "Count.", replace(TASK, budget=NUMBER), replace(TASK, budget=LIST), replace(TASK, id=NUMBER),
        replace(TASK, intent=NO), replace(TASK, id="\ud800"), AgentTaskSpec(id="a", intent="b", budget={"maxWallMs": -1}),
    ],
)  # fmt: skip
def test_what_is_no_task_is_refused(task: Any) -> None:
    with pytest.raises(ValidationError):
        options(Sandbox().backend(), task=task)
    with pytest.raises(ValidationError):
        Counting().options(task=task)
    with suppress(ValidationError):
        Counting().options(task=replace(TASK, budget={"maxSteps": 10**400}))
