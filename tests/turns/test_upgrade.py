"""A deployment that takes over from agent-runtime: its local database, its finished and its broken turns."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatturn.backends.echo import create_echo_backend
from chatturn.chat.deployment import Deployment
from chatturn.chat.requests import TurnRequest
from chatturn.chat.service import DurableChatService
from chatturn.chat.thread.identity import turn_run_id
from chatturn.database.migration import migrate, read_version
from chatturn.database.schema import DURABLE_SCHEMA_VERSION
from chatturn.database.sqlite import SqliteDatabase
from chatturn.settings import Settings
from dev import paths
from dev.database import apply_schema, database_file
from tests.support.agent_runtime_database import (
    ANSWER,
    COMPLETED,
    FAILED,
    INTERRUPTED,
    LIVE,
    PROJECT,
    RETRIED,
    UNENDED,
    identity_of,
    legacy_id,
    make_version_1,
    rows_of,
    write_turns,
)
from tests.support.clock import Clock
from tests.support.turns import Desk, Recorded, virtual_moment

OURS = "Hello, world."


@contextmanager
def upgraded() -> Iterator[Desk]:
    """A deployment over a database of theirs, in virtual time."""
    with SqliteDatabase(":memory:", moment=virtual_moment) as database:
        yield Desk(database, Recorded(), project_id=PROJECT, domain="legal", message="hello", legacy_run_ids="on")


async def take_over(desk: Desk) -> None:
    """Fill the database as theirs left it, and migrate."""
    await make_version_1(desk.database)
    await write_turns(desk.database, Clock())
    await migrate(desk.database)


async def turn(desk: Desk, turn_index: int, **options: Any) -> tuple[str, list[dict[str, Any]]]:
    """Ask for a turn; return the text that was answered, and the lines."""
    lines = await desk.run(identity=identity_of(turn_index), **options)
    results = [line["data"]["finalText"] for line in lines if line["type"] == "result"]
    parts = [line["data"]["delta"] for line in lines if line["type"] == "message.part.updated"]
    return "".join(results or parts), lines


async def test_a_finished_turn_of_theirs_is_replayed() -> None:
    """Their text, no model call, no hook, and not one row written."""
    with upgraded() as desk:
        await take_over(desk)
        tables = ("durable_runs", "durable_steps", "chat_turns", "chat_segments", "chat_messages", "chat_outbox")
        before = await rows_of(desk.database, *tables)
        text, lines = await turn(desk, COMPLETED)

        assert (ANSWER, True) == (text, lines[-1]["data"]["replayed"])
        assert before == await rows_of(desk.database, *tables)
        assert isinstance(desk.hooks, Recorded)
        assert ([], []) == (desk.hooks.calls, desk.hooks.order)


async def test_another_tenant_gets_it_too_which_is_why_it_is_off() -> None:
    """C4: their ids have no tenant.  The setting is for a database of one."""
    with upgraded() as desk:
        await take_over(desk)
        globex = identity_of(COMPLETED, tenant_id="globex")
        shared = await desk.run(identity=globex)
        apart = await desk.run(identity=globex, legacy_run_ids="off")

        assert shared[-1]["data"]["replayed"]
        assert not apart[-1]["data"]["replayed"]


@pytest.mark.parametrize("turn_index", [FAILED, INTERRUPTED])
async def test_an_unfinished_turn_of_theirs_is_answered_by_us(turn_index: int) -> None:
    """Once; then it is a finished turn of ours, with its messages, and replays."""
    with upgraded() as desk:
        await take_over(desk)
        first, _ = await turn(desk, turn_index)
        again, lines = await turn(desk, turn_index)
        [runs] = await rows_of(desk.database, "durable_runs")
        messages = await desk.rows("SELECT role, content FROM chat_messages ORDER BY role DESC")

        assert (OURS, OURS, True) == (first, again, lines[-1]["data"]["replayed"])
        assert legacy_id(turn_index) not in {run["run_id"] for run in runs}
        assert [("user", "hello"), ("assistant", OURS)] == messages


async def test_an_answer_that_their_worker_left_unended_is_replayed() -> None:
    """It is in the step; the model is not asked again, and the run is ended."""
    with upgraded() as desk:
        await take_over(desk)
        text, _ = await turn(desk, UNENDED)
        [runs] = await rows_of(desk.database, "durable_runs")
        statuses = {run["run_id"]: run["status"] for run in runs}
        assert isinstance(desk.hooks, Recorded)

        assert (ANSWER, "completed") == (text, statuses[turn_run_id(identity_of(UNENDED))])
        assert [] == desk.hooks.calls


@pytest.mark.parametrize("turn_index", [LIVE, RETRIED])
async def test_a_turn_that_their_worker_is_answering_is_in_flight(turn_index: int) -> None:
    """Until its lease lapses; then it is ours."""
    with upgraded() as desk:
        await take_over(desk)
        _, refused = await turn(desk, turn_index)
        await asyncio.sleep(60)
        text, _ = await turn(desk, turn_index)

        assert ("turn_in_flight", OURS) == (refused[-1]["data"]["code"], text)


async def test_a_replay_and_a_takeover_are_one_round_trip_to_claim() -> None:
    """Looking under the old id costs no second one."""
    for turn_index, expected in ((COMPLETED, 1), (FAILED, 2)):
        with upgraded() as desk:
            await take_over(desk)
            counted = Counted(desk.database)
            await turn(
                Desk(counted, project_id=PROJECT, domain="legal", message="hello", legacy_run_ids="on"), turn_index
            )

            assert expected == counted.batches


class Counted:
    """A database that counts what it is asked."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self.batches = 0

    async def batch(self, statements: Any) -> Any:
        """Run *statements*."""
        self.batches += 1
        return await self._database.batch(statements)


@pytest.mark.parametrize(("setting", "status"), [("on", "completed"), ("off", None)])
async def test_the_setting_decides(setting: str, status: str | None) -> None:
    """`LEGACY_RUN_IDS=on` replays and shows their turns; the default knows nothing of them."""
    with upgraded() as desk:
        await take_over(desk)
        settings = Settings.from_env({"LEGACY_RUN_IDS": setting, "PROJECT_ID": PROJECT, "DOMAIN": "legal"})
        service = DurableChatService(
            deployment=Deployment(
                settings=settings,
                hooks=desk.hooks,
                backend=create_echo_backend(),
                database=desk.database,
                log=lambda *_: None,
            )
        )
        view = await service.show(identity_of(COMPLETED))
        opened = await service.open(identity_of(COMPLETED), TurnRequest(message="hello"))

        assert status == (None if view is None else view.status)
        assert (status is not None) == opened.replayed
        assert "off" == Settings().legacy_run_ids


# The local database of `make run`


def old_local_database(state: Path) -> Path:
    """Make a local D1 file as an old version left it."""
    file = database_file(state, "an-id")
    file.parent.mkdir(parents=True)
    with SqliteDatabase(file) as database:
        asyncio.run(make_version_1(database))
        asyncio.run(write_turns(database, Clock()))
    return file


def test_make_run_migrates_an_old_local_database(tmp_path: Path) -> None:
    """At every start; its rows stay."""
    file = old_local_database(tmp_path)
    for _ in range(2):
        apply_schema(tmp_path, "an-id", paths.SCHEMA)
    with SqliteDatabase(file) as database:
        version = asyncio.run(read_version(database))
        [runs] = asyncio.run(rows_of(database, "durable_runs"))

    assert (DURABLE_SCHEMA_VERSION, 6, {0}) == (version, len(runs), {run["epoch"] for run in runs})


def test_make_run_says_what_is_wrong_with_the_local_database(tmp_path: Path) -> None:
    """And how to be rid of it."""
    file = database_file(tmp_path, "an-id")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"this is no database" * 1_000)

    with pytest.raises(ValueError, match="make reset"):
        apply_schema(tmp_path, "an-id", paths.SCHEMA)


def test_make_run_makes_a_new_local_database(tmp_path: Path) -> None:
    """With the schema; a Worker of the tests gets the script that it brings, as it is."""
    notes = tmp_path / "notes.sql"
    notes.write_text("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY);\n")
    apply_schema(tmp_path, "new", paths.SCHEMA)
    apply_schema(tmp_path, "other", notes)
    with closing(sqlite3.connect(database_file(tmp_path, "other"))) as other:
        tables = other.execute("SELECT name FROM sqlite_master").fetchall()
    with SqliteDatabase(database_file(tmp_path, "new")) as new:
        version = asyncio.run(read_version(new))

    assert (DURABLE_SCHEMA_VERSION, [("notes",)]) == (version, tables)


def test_identities_of_the_fixture_are_ours() -> None:
    """What the tests above take for one turn is one."""
    assert "chat:acme:thread-1:2" == turn_run_id(identity_of(2))
    assert replace(identity_of(2), turn_index=0) == identity_of(0)
