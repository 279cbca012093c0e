"""A credential that a user gives to a task is in no row of the database, whoever quotes it."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from chatturn.agent_runtime.tasks.readiness import KnowledgeHooks, assess_knowledge
from chatturn.agent_runtime.tasks.session_sql import SqlRuntimeSessionStore
from chatturn.agent_runtime.tasks.task_backends import AgentBackendContext, AgentBackendInput, create_iterable_backend
from chatturn.agent_runtime.tasks.task_loop import TaskView, run_agent_task
from chatturn.agent_runtime.values.events import ReasoningDeltaEvent, RuntimeStreamEvent, TextDeltaEvent, ToolCallEvent
from chatturn.agent_runtime.values.knowledge import KnowledgeReadinessReport, UserQuestion
from chatturn.agent_runtime.values.tasks import AgentTaskStatus
from chatturn.database.sqlite import SqliteDatabase
from tests.support.agent_tasks import TASK, Counting, requirement
from tests.support.turns import open_sqlite
from tests.unit.agent_runtime.tasks.test_task_stream import Sandbox, durable, final, kinds, told

SECRET = "hunter2-key-of-ann"
NEEDS = replace(TASK, required_knowledge=(requirement("name"), requirement("key", category="credential_or_secret")))
Said = Callable[[str], Sequence[RuntimeStreamEvent | Exception]]


def hooks(answer: Any = SECRET) -> KnowledgeHooks:
    """Return hooks that answer all at once, whatever they are asked, and tell the knowledge what was answered."""

    async def ask(_: Sequence[UserQuestion]) -> Mapping[str, str]:
        return {"ask:name": "Ann", "ask:key": answer, "ask:nobody": "x"}

    async def refresh(_: KnowledgeReadinessReport, answers: Mapping[str, str], __: Sequence[str]) -> Any:
        fresh = assess_knowledge(TASK)
        return replace(fresh, bundle=replace(fresh.bundle, user_answers=dict(answers)))

    return KnowledgeHooks(ask_user=ask, refresh=refresh)


def rows_with(database: SqliteDatabase, text: str) -> list[str]:
    """Return the tables with a row that has *text*, a name for each such row."""
    reading = database._connection
    tables = [name for (name,) in reading.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
    return [name for name in tables for row in reading.execute(f'SELECT * FROM "{name}"') if text in repr(tuple(row))]  # noqa: S608


def key_in(view: TaskView | AgentBackendContext) -> str:
    """Return the credential that a hook, or the backend, is given."""
    assert view.knowledge is not None
    return view.knowledge.bundle.user_answers["ask:key"]


SAYINGS: Mapping[str, Said] = {
    "an answer": lambda key: [TextDeltaEvent(text=f"I logged in with {key}")],
    "an answer in pieces": lambda key: [TextDeltaEvent(text=key[:5]), TextDeltaEvent(text=key[5:])],
    "what it thinks": lambda key: [ReasoningDeltaEvent(text=f"the key is {key}"), TextDeltaEvent(text="ok")],
    "a tool's arguments": lambda key: [ToolCallEvent(tool_name="login", args={"key": key}), TextDeltaEvent(text="ok")],
    "an error": lambda key: [TextDeltaEvent(text="x"), RuntimeError(f"401: {key} is wrong")],
}


@pytest.mark.parametrize("said", SAYINGS)
@pytest.mark.parametrize("is_durable", [True, False])
async def test_a_backend_may_quote_it(said: str, is_durable: bool) -> None:
    """In the recorded answer, and in the session's log: there is a mark in its place."""
    seen = []

    async def stream(_: AgentBackendInput, context: AgentBackendContext) -> AsyncIterator[RuntimeStreamEvent]:
        seen.append(key_in(context))
        for each in SAYINGS[said](seen[-1]):
            if isinstance(each, Exception):
                raise each
            yield each

    with open_sqlite() as database:
        await told(
            create_iterable_backend("sandbox", stream),
            task=NEEDS,
            hooks=hooks(),
            session_id="s1",
            session_store=SqlRuntimeSessionStore(database),
            durable=durable(database) if is_durable else None,
        )

        assert ([SECRET], []) == (seen, rows_with(database, SECRET))
        assert rows_with(database, "what was answered to ask:key")


async def test_a_replay_tells_the_same() -> None:
    """The credential is asked for again, and told in no event; the answer on record has the mark."""
    with open_sqlite() as database:
        first = await told(Sandbox().backend(), task=NEEDS, hooks=hooks(), durable=durable(database))
        again = await told(Sandbox().backend(), task=NEEDS, hooks=hooks(), durable=durable(database))

        assert [*dict.fromkeys(kinds(first))] == [*dict.fromkeys(kinds(again))]
        assert SECRET not in repr(first + again)
        assert [] == rows_with(database, SECRET)


async def _quotes(view: TaskView) -> Any:
    raise RuntimeError(f"401: the key {key_in(view)} is wrong")


async def _acts(_: Any, view: TaskView) -> Any:
    return await _quotes(view)


async def _returns(view: TaskView) -> Any:
    return {"count": 1, "knows": dict(view.knowledge.bundle.user_answers)}


@pytest.mark.parametrize(
    "hook",
    [{"act": _acts}, {"observe": _quotes}, {"observe": _returns}, {"validate": _quotes}, {"decide": _quotes}],
)
async def test_a_hook_of_the_loop_may_quote_it(hook: dict[str, Any]) -> None:
    """In what it returns, and in what it raises."""
    with open_sqlite() as database:
        counting = Counting(target=1)
        await run_agent_task(counting.options(task=NEEDS, hooks=hooks(), durable=durable(database), **hook))

        assert [] == rows_with(database, SECRET)
        assert rows_with(database, "what was answered to ask:key")


async def test_what_was_not_asked_is_no_answer() -> None:
    """Whoever answers all that is open, whatever was asked, has nothing recorded that was not."""
    with open_sqlite() as database:
        result = await run_agent_task(Counting().options(task=NEEDS, hooks=hooks(), durable=durable(database)))

        assert {"ask:name": "Ann", "ask:key": SECRET} == result.user_answers
        assert [] == rows_with(database, SECRET)


@pytest.mark.parametrize("answer", [12345678, None, ["a"]])
@pytest.mark.parametrize("is_durable", [True, False])
async def test_an_answer_that_is_no_text_fails_the_task(answer: Any, is_durable: bool) -> None:
    """A PIN as a number, say: the reason names the question, and not the answer."""
    with open_sqlite() as database:
        kept = durable(database) if is_durable else None
        result = await run_agent_task(Counting().options(task=NEEDS, hooks=hooks(answer), durable=kept))
        events = await told(
            Sandbox().backend(), task=NEEDS, hooks=hooks(answer), durable=kept and replace(kept, run_id="run-2")
        )

        assert (AgentTaskStatus.FAILED, AgentTaskStatus.FAILED) == (result.status, final(events).status)
        assert "'ask:key' must be a text" in result.reason
        assert "12345678" not in result.reason
        assert [] == rows_with(database, "12345678")
