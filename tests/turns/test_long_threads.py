"""What a long thread costs: 10,000 turns of 5 versions each are read and continued at the price of 100."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chatturn.chat.hooks.thread_changes import ThreadChange
from chatturn.chat.lists.lists import has_asked
from chatturn.chat.lists.sql import read_questions
from chatturn.chat.thread.identity import ChatTurnIdentity
from chatturn.database.sqlite import SqliteDatabase
from chatturn.events import text_delta
from tests.support.isolates import Isolate
from tests.support.turns import Product, open_sqlite

SETTINGS = {"THREADS": "on", "WHEN_BUSY": "queue", "LOG_EVERY_MS": "0"}
SESSION = "/v1/sessions/thread-1"
VERSIONS = 5

_MOMENT = "'2026-01-01T00:00:00.000Z'"
_RUNS = """
WITH RECURSIVE i(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM i WHERE n + 1 < @turns),
  v(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM v WHERE n < @versions),
  runs AS (SELECT 'chat:acme:thread-1:' || i.n || CASE v.n WHEN 1 THEN '' ELSE '~' || v.n END AS run_id,
    i.n AS turn_index, v.n AS version FROM i, v)
"""
_FILL = (
    """INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at, completed_at, epoch)
    @runs SELECT run_id, 'h', 'chatturn', 'completed', @now, @now, @now, version FROM runs""",
    """INSERT INTO durable_steps (run_id, step_index, intent, kind, status, result_json)
    @runs SELECT run_id, 0, 'x', 'llm', 'completed', '{"finalText":"answer"}' FROM runs""",
    """INSERT INTO chat_turns (run_id, tenant_id, session_id, user_id, turn_index, user_message, attempt, created_at,
      updated_at, version, parent_index, parent_version)
    @runs SELECT run_id, 'acme', 'thread-1', 'ann', turn_index, 'question', version, @now, @now, version,
      CASE turn_index WHEN 0 THEN NULL ELSE turn_index - 1 END, CASE turn_index WHEN 0 THEN NULL ELSE @versions END
    FROM runs""",
    """INSERT INTO chat_messages (tenant_id, session_id, turn_index, role, content, run_id, created_at, version)
    @runs SELECT 'acme', 'thread-1', turn_index, r.role, 'text', run_id, @now, version
    FROM runs, (SELECT 'user' AS role UNION ALL SELECT 'assistant') AS r WHERE version = @versions""",
    """INSERT INTO chat_sessions (tenant_id, session_id, owner_id, created_at, revision)
    VALUES ('acme', 'thread-1', 'ann', @now, 1)""",
)


class Listening(Product):
    """A product that hears of turns that are detached or come back."""

    async def on_thread_changed(self, change: ThreadChange) -> None:
        """Take note."""


@contextmanager
def thread_of(turns: int) -> Iterator[SqliteDatabase]:
    """Yield a database with one long thread, of which the last version of each turn counts."""
    with open_sqlite() as database:
        values = {"@runs": _RUNS, "@turns": str(turns), "@versions": str(VERSIONS), "@now": _MOMENT}
        for text in _FILL:
            for name, value in values.items():
                text = text.replace(name, value)  # noqa: PLW2901 - one after the other
            database._connection.execute(text)
        database._connection.commit()
        yield database


class Steps:
    """Counts the steps of SQLite's machine."""

    def __init__(self, database: SqliteDatabase) -> None:
        self.count = 0
        database._connection.set_progress_handler(self._step, 1)

    def _step(self) -> int:
        self.count += 1
        return 0


async def costs_of(turns: int) -> dict[str, int]:
    """Return what each thing costs that people do at the end of such a thread."""
    with thread_of(turns) as database:
        isolate, steps = Isolate(database, Listening(text_delta("a")), settings=SETTINGS), Steps(database)
        costs: dict[str, int] = {}

        async def measured(name: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
            before = steps.count
            reply = await isolate.ask(method, f"{SESSION}{path}", body, reader=None, **headers)
            assert reply.status in {200, 304}, reply.body
            await reply.lines()
            costs[name] = steps.count - before
            return reply

        page = await measured("messages", "GET", "/messages")
        assert 100 == len(page.body["messages"])
        assert turns - 50 == page.body["next"]
        await measured("messages before", "GET", f"/messages?before={turns - 10}")
        await measured("not changed", "GET", "/messages", if_none_match=page.response.headers["ETag"])
        await measured("a new turn with its history", "POST", f"/turns/{turns}", {"message": "hi"})
        await measured("its replay", "POST", f"/turns/{turns}", {"message": "hi"})
        edit = {"message": "ho", "replace": {"kind": "edit", "version": 1}}
        await measured("an edit at the end", "POST", f"/turns/{turns}", edit)
        await measured("the replay of a later version", "POST", f"/turns/{turns}", {"message": "ho"})
        await measured("versions", "GET", "/turns/7/versions")
        await measured("activation at the beginning", "POST", "/turns/7/versions/2/activate")
        shown = await measured("messages of what is left", "GET", "/messages")
        assert 8 * 2 == len(shown.body["messages"])
        return costs


async def test_a_long_thread_costs_what_a_short_one_does() -> None:
    """In steps of SQLite's machine, which rise with each row that is read; an index may be a level deeper."""
    short, long = await costs_of(100), await costs_of(10_000)

    assert short.keys() == long.keys()
    assert {name: (short[name], cost) for name, cost in long.items() if cost > 1.05 * short[name] + 50} == {}


async def test_a_thread_is_compared_with_a_request_and_not_read_for_it() -> None:
    """Only questions that are as long as the request's are read, character for character."""
    with open_sqlite() as database:
        isolate = Isolate(database, Product(text_delta("yes")))
        for index, message in enumerate(["é" * 900, "b" * 900, "c"]):
            path = f"/v1/sessions/thread-1/turns/{index}"
            await (await isolate.ask("POST", path, {"message": message})).lines()
        turn = ChatTurnIdentity(tenant_id="acme", session_id="thread-1", user_id="ann", turn_index=3)
        [read] = await database.batch([read_questions(turn, [900, 5, 1])])
        said = [["é" * 900, "b" * 900, "c"], ["é" * 900, "b" * 899, "c"], ["é" * 900, "b" * 900], []]
        found = [await has_asked(database, turn, questions) for questions in said]

    assert {0: "é" * 900, 1: None, 2: "c"} == {row["turn_index"]: row["content"] for row in read.rows}
    assert [True, False, False, False] == found
