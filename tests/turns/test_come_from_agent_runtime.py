"""The page "Come from agent-runtime", tried step by step on a database that an engine of that shape has filled."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from chatturn.database.api import Statement
from chatturn.database.migration import read_version
from chatturn.database.schema import DURABLE_SCHEMA_VERSION
from chatturn.database.sqlite import SqliteDatabase
from tests.support.agent_runtime_database import (
    ANSWER,
    COMPLETED,
    FAILED,
    INTERRUPTED,
    LIVE,
    PROJECT,
    UNENDED,
    legacy_id,
    make_version_1,
    rows_of,
    write_turns,
)
from tests.support.clock import Clock
from tests.support.isolates import Isolate
from tests.support.turns import Recorded, virtual_moment

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "come-from-agent-runtime.md").read_text("utf-8")
SAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SETTINGS = {"PROJECT_ID": PROJECT, "DOMAIN": "legal", "LEGACY_RUN_IDS": "on", "MODEL": "echo"}
TABLES = ("durable_runs", "durable_steps", "chat_turns", "chat_messages", "chat_outbox")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that agent-runtime has filled."""
    return tmp_path / "agent-runtime.sqlite3"


async def fill(database: SqliteDatabase) -> None:
    await make_version_1(database)
    await write_turns(database, Clock())


async def ask(isolate: Isolate, turn_index: int, message: str = "hello") -> Any:
    """Ask for a turn of thread-1 over the routes; return the reply."""
    return await isolate.ask("POST", f"/v1/sessions/thread-1/turns/{turn_index}", {"message": message})


async def test_the_checklist_holds_on_a_database_that_it_filled(path: Path) -> None:
    """Steps 2 to 6 and the table of turns that were begun there, over the routes."""
    with SqliteDatabase(path, moment=virtual_moment) as database:
        await fill(database)
        database.migrate()
        assert DURABLE_SCHEMA_VERSION == await read_version(database)
        isolate = Isolate(database, Recorded(), settings=SETTINGS)

        before = await rows_of(database, *TABLES)
        finished = await (await ask(isolate, COMPLETED)).lines()
        assert [ANSWER, True] == [finished[-2]["data"]["finalText"], finished[-1]["data"]["replayed"]]
        assert before == await rows_of(database, *TABLES)

        assert 409 == (await ask(isolate, LIVE)).status
        for turn_index in (FAILED, INTERRUPTED):
            lines = await (await ask(isolate, turn_index)).lines()
            assert ["session.run.completed", False] == [lines[-1]["type"], lines[-1]["data"]["replayed"]]
        unended = await (await ask(isolate, UNENDED)).lines()
        assert ANSWER in repr(unended)

        assert 422 == (await ask(isolate, COMPLETED, "another message")).status
        cancelled = await isolate.ask("POST", f"/v1/sessions/thread-1/turns/{COMPLETED}/cancel")
        assert (200, "completed", False) == (
            cancelled.status,
            cancelled.body["status"],
            cancelled.body["cancelRequested"],
        )
        [left] = await rows_of(database, "durable_runs")
        assert {legacy_id(COMPLETED), legacy_id(LIVE)} <= {row["run_id"] for row in left}
        assert {legacy_id(FAILED), legacy_id(INTERRUPTED)}.isdisjoint({row["run_id"] for row in left})


async def test_with_another_project_no_turn_of_its_is_found(path: Path) -> None:
    """Step 2: they are a part of the hash."""
    with SqliteDatabase(path, moment=virtual_moment) as database:
        await fill(database)
        database.migrate()
        isolate = Isolate(database, Recorded(), settings={**SETTINGS, "PROJECT_ID": "another"})
        lines = await (await ask(isolate, COMPLETED)).lines()

    assert lines[-1]["data"]["replayed"] is False


def run_sample(mark: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the page's sample that has *mark* in it, in the folder of *path*."""
    [source] = [each for each in SAMPLES if mark in each]
    monkeypatch.chdir(path.parent)
    exec(compile(source, "docs", "exec"), {})  # noqa: S102 - that is the test


def test_a_harness_reads_a_file_that_it_filled(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sample as it stands on the page."""
    with SqliteDatabase(path) as database:
        asyncio.run(fill(database))
    run_sample("list_runs", path, monkeypatch)
    printed = capsys.readouterr().out

    assert {legacy_id(number) for number in range(6)} == {line.split()[0] for line in printed.splitlines()}
    assert {"completed", "failed", "running"} == {line.split()[1] for line in printed.splitlines()}


def test_a_durable_task_is_told_again_without_asking(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sample as it stands on the page, twice; its row is beside agent-runtime's own."""
    with SqliteDatabase(path) as database:
        asyncio.run(fill(database))
    run_sample("create_iterable_backend(", path, monkeypatch)
    first = capsys.readouterr().out
    run_sample("create_iterable_backend(", path, monkeypatch)
    again = capsys.readouterr().out

    assert "asked\ncompleted You said: Good day!\n" == first
    assert "completed You said: Good day!\n" == again
    with SqliteDatabase(path) as database:
        [found] = asyncio.run(database.batch([Statement("SELECT count(*) AS n FROM durable_runs")]))
    assert 7 == found.rows[0]["n"]
