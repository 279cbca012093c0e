"""
The named stores of this machine: everything that the contract promises, on a file as well, and what only files can do.

The contract's own run has them in memory, and on D1 (`D1DurableRunStore`) inside workerd.
"""

import asyncio
import re
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from chatturn.backends.echo import create_echo_backend
from chatturn.chat.deployment import Deployment
from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.chat.service import DurableChatService
from chatturn.chat.sweep import Sweep
from chatturn.database.api import Database
from chatturn.database.schema import DURABLE_SCHEMA_VERSION
from chatturn.database.sqlite import SqliteDatabase
from chatturn.durable.local_stores import FileSystemDurableRunStore, InMemoryDurableRunStore
from chatturn.durable.records import RunQuery, RunStatus
from chatturn.durable.sql_store import SqlRunStore
from chatturn.durable.store import DurableRunStore
from chatturn.errors import StoreError, StoreUnavailable
from chatturn.settings import Settings
from tests.contract import test_listing, test_retention, test_runs, test_steps, test_upgrade
from tests.support.agent_runtime_database import PROJECT, legacy_id, make_version_1, write_turns
from tests.support.clock import AtMoment, Clock
from tests.support.runs import STEP, claim, lease_of, manifest
from tests.support.turns import Desk

PAGE = (Path(__file__).parents[3] / "docs/reference/schema.md").read_text("utf-8")

# The contract, with the fixtures below.
for _module in (test_listing, test_retention, test_runs, test_steps, test_upgrade):
    assert isinstance(_module, ModuleType)
    _name = _module.__name__.rpartition(".")[2]
    globals().update({f"{each}__{_name}": vars(_module)[each] for each in vars(_module) if each.startswith("test_")})


@pytest.fixture
def clock() -> Clock:
    """The database's clock, in the test's hands."""
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the file is to be."""
    return tmp_path / "runs.sqlite3"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[SqlRunStore]:
    """A new file's store."""
    made = FileSystemDurableRunStore(path, moment=clock.moment)
    with made.sqlite:
        yield made


@pytest.fixture
def database(store: SqlRunStore) -> Database:
    """Where its tables are."""
    return store.database


@pytest.fixture
def database_by_its_own_clock(path: Path) -> Iterator[Database]:
    """A new file's database that nobody tells the time."""
    with FileSystemDurableRunStore(path).sqlite as made:
        yield made


STORES: dict[str, Callable[[Path], FileSystemDurableRunStore | InMemoryDurableRunStore]] = {
    "file": lambda folder: FileSystemDurableRunStore(folder / "a.sqlite3"),
    "memory": lambda _folder: InMemoryDurableRunStore(),
}


@pytest.mark.parametrize("name", STORES)
async def test_a_store_is_ready_when_it_is_made(tmp_path: Path, name: str) -> None:
    """It has the schema, and is a `DurableRunStore` to the type checker."""
    store: DurableRunStore = STORES[name](tmp_path)
    claimed = await store.start_or_resume(run_id="r", manifest=manifest(), worker_id="w")
    await store.close()

    assert claimed.lease is not None


@pytest.mark.parametrize("name", STORES)
async def test_closing_a_store_twice_is_closing_it(tmp_path: Path, name: str) -> None:
    """After it, what is asked of the store is an error of ours."""
    store = STORES[name](tmp_path)
    await store.close()
    await store.close()

    with pytest.raises(StoreError):
        await store.load_run("r")


async def test_two_stores_in_memory_share_nothing() -> None:
    """Each has a database of its own."""
    one, other = InMemoryDurableRunStore(), InMemoryDurableRunStore()
    await lease_of(one)

    assert await one.load_run("run-1") is not None
    assert await other.load_run("run-1") is None
    await one.close()
    await other.close()


async def test_a_file_survives_its_store(path: Path, clock: Clock) -> None:
    """Runs, steps, events and leases are there for the next one, and for a second one beside it."""
    first = FileSystemDurableRunStore(path, moment=clock.moment)
    lease = await lease_of(first, begin=STEP)
    await first.complete_step(lease, 0, {"n": 1})
    await first.emit_event("run-1", "k", [1])
    beside = FileSystemDurableRunStore(path, moment=clock.moment)
    seen = await beside.load_run("run-1")
    await first.close()
    await beside.close()
    again = FileSystemDurableRunStore(path, moment=clock.moment)
    step, event = await again.load_step("run-1", 0), await again.load_event("run-1", "k")

    assert seen == await again.load_run("run-1")
    assert step is not None
    assert event is not None
    assert ({"n": 1}, [1]) == (step.result, event.payload)
    assert await again.renew_lease(lease)
    await again.close()


async def test_folders_above_the_file_are_made(tmp_path: Path) -> None:
    """A harness names a path and that is all."""
    store = FileSystemDurableRunStore(tmp_path / "a" / "b" / "runs.sqlite3")
    await store.close()

    assert store.path.exists()


@pytest.mark.parametrize("name", ["", ".", "made"])
def test_a_folder_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """agent-runtime's store took one; this one says what it wants."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()

    with pytest.raises(StoreError, match="is a folder"):
        FileSystemDurableRunStore(name)


def files_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder and those below it."""
    return [each.name for each in folder.rglob("*") if each.is_file()]


@pytest.mark.parametrize("name", [":memory:", "file:x?mode=memory", "a'b;--.sqlite3", "ä 🙂.sqlite3"])
async def test_every_name_is_a_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """SQLite's names for what is no file mean nothing here."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        store = FileSystemDurableRunStore(name)
        await lease_of(store, f"run-{_}")
        await store.close()

    assert [name] == files_in(tmp_path)
    with SqliteDatabase(tmp_path / name) as database:
        assert await SqlRunStore(database).load_run("run-0") is not None


async def test_b11_a_run_id_is_never_a_path(tmp_path: Path) -> None:
    """Nothing is made beside the file, whatever runs and events are called."""
    folder = tmp_path / "inner"
    store = FileSystemDurableRunStore(folder / "runs.sqlite3")
    for name in ("../../escaped", "/etc/escaped", "..\\escaped", "a/../../escaped", "C:escaped", "\x00escaped"):
        await lease_of(store, name)
        await store.emit_event(name, "../../event", 1)
    await store.close()

    assert ["runs.sqlite3"] == files_in(tmp_path)


async def test_half_a_surrogate_pair_is_an_error_of_ours(store: SqlRunStore) -> None:
    """UTF-8 has no place for one: not in a name."""
    with pytest.raises(StoreError, match="surrogate"):
        await lease_of(store, "a\ud800")


# Files that are not as they should be


@pytest.mark.parametrize("content", [b"hello " * 1000, b"SQLite format 3\0" + b"\xff" * 5000], ids=["text", "garbage"])
def test_what_is_no_database_is_refused(path: Path, content: bytes) -> None:
    """And left as it is."""
    path.write_bytes(content)

    with pytest.raises(StoreError):
        FileSystemDurableRunStore(path)
    assert content == path.read_bytes()


def test_a_path_that_cannot_be_is_an_error_of_ours(path: Path) -> None:
    """A file is no folder."""
    path.write_bytes(b"")

    with pytest.raises(StoreError):
        FileSystemDurableRunStore(path / "runs.sqlite3")


async def test_a_locked_file_is_not_available(path: Path) -> None:
    """Whoever holds it too long is waited for, then named as the reason; afterwards everything works."""
    store = FileSystemDurableRunStore(path, busy_timeout_s=0.02)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            await store.emit_event("r", "k", 1)
        other.execute("ROLLBACK")
    assert (await claim(store)).lease is not None
    await store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable):
            FileSystemDurableRunStore(path, busy_timeout_s=0.02)


async def torn_files(path: Path, folder: Path, pieces: int) -> AsyncIterator[Path]:
    """Yield copies of an open file whose write-ahead log is cut off at one place after another."""
    log = path.with_name(path.name + "-wal")
    for number in range(pieces + 1):
        copy = folder / f"torn-{number}.sqlite3"
        shutil.copy(path, copy)
        shutil.copy(log, copy.with_name(copy.name + "-wal"))
        with copy.with_name(copy.name + "-wal").open("r+b") as file:
            file.truncate(log.stat().st_size * number // pieces)
        yield copy


async def test_a_torn_log_loses_whole_transactions_only(path: Path, tmp_path: Path) -> None:
    """Wherever a power cut ends the write-ahead log: some first transactions are there, whole, and no others."""
    SqliteDatabase(path).close()
    whole = FileSystemDurableRunStore(path)
    names = [f"run-{number}" for number in range(8)]
    for name in names:
        await claim(whole, name, begin=STEP)
    found: set[int] = set()
    async for torn in torn_files(path, tmp_path, 60):
        store = FileSystemDurableRunStore(torn)
        runs = [await store.load_run(name) for name in names]
        steps = [await store.load_step(name, 0) for name in names]
        present = [run is not None for run in runs]
        found.add(sum(present))

        assert sorted(present, reverse=True) == present == [step is not None for step in steps]
        assert DURABLE_SCHEMA_VERSION == await store.get_schema_version()
        await store.close()
    await whole.close()
    assert {0, len(names)} <= found
    assert len(found) > 5


def damaged_files(path: Path) -> Iterator[Path]:
    """Yield the closed file with one page after another overwritten."""
    content = path.read_bytes()
    for page in range(1, len(content) // 4096):
        copy = path.with_name(f"damaged-{page}.sqlite3")
        copy.write_bytes(content[: page * 4096] + b"\xa5" * 4096 + content[(page + 1) * 4096 :])
        yield copy


async def test_a_damaged_file_is_an_error_of_ours(path: Path) -> None:
    """Pages overwritten: every read and every write works, or says that the database refused it."""
    store = FileSystemDurableRunStore(path)
    for number in range(200):
        await claim(store, f"run-{number}", begin=STEP)
    await store.close()
    refused = 0
    for copy in damaged_files(path):
        try:
            damaged = FileSystemDurableRunStore(copy)
        except StoreError:
            refused += 1
            continue
        try:
            for number in range(0, 200, 20):
                await damaged.load_run(f"run-{number}")
            await damaged.list_runs(RunQuery(project_id=manifest().project_id, status=RunStatus.RUNNING))
            await claim(damaged, "new", begin=STEP)
        except StoreError:
            refused += 1
        await damaged.close()

    assert refused > 3


async def test_an_older_file_is_upgraded_when_it_is_opened(path: Path, clock: Clock) -> None:
    """One of agent-runtime, with its turns."""
    with SqliteDatabase(path) as database:
        await make_version_1(database)
        await write_turns(database, clock)
    store = FileSystemDurableRunStore(path, moment=clock.moment)
    page = await store.list_runs(RunQuery(project_id=PROJECT))

    assert DURABLE_SCHEMA_VERSION == await store.get_schema_version()
    assert [legacy_id(number) for number in reversed(range(6))] == [run.run_id for run in page.runs]
    await store.close()


async def test_chat_turns_run_on_a_file(path: Path) -> None:
    """The store's database has the chat tables, too: a harness needs nothing else."""
    store = FileSystemDurableRunStore(path)
    desk = Desk(store.database, store=store)
    first, again = await desk.run(), await desk.run()
    await store.close()

    assert ["session.run.completed"] * 2 == [first[-1]["type"], again[-1]["type"]]
    assert again[-1]["data"]["replayed"]


def test_the_store_in_the_manual_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Its example, run as it stands."""
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    [source] = [each for each in blocks if "FileSystemDurableRunStore" in each]
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "schema.md", "exec"), {})  # noqa: S102 - that is the test

    assert f"schema {DURABLE_SCHEMA_VERSION}\n[] None\n" == capsys.readouterr().out


@pytest.mark.parametrize(("days", "left"), [("0", 2), ("30", 1), ("20000", 2)])
async def test_the_sweep_deletes_what_is_too_old(days: str, left: int) -> None:
    """If `RETENTION_DAYS` says so; a run of today stays."""
    store = InMemoryDurableRunStore()
    old = SqlRunStore(AtMoment(store.database, lambda: "2020-01-01T00:00:00.000Z"))
    await old.end_run(await lease_of(old, "old"), RunStatus.COMPLETED)
    await store.end_run(await lease_of(store, "new"), RunStatus.COMPLETED)
    service = DurableChatService(
        deployment=Deployment(
            settings=Settings.from_env({"RETENTION_DAYS": days}),
            hooks=ChatTurnHooks(),
            backend=create_echo_backend(),
            database=store.database,
            log=lambda *_: None,
        )
    )
    await Sweep(service=service).run()
    [(count,)] = await Desk(store.database).rows("SELECT count(*) FROM durable_runs")
    await store.close()

    assert left == count


def test_a_file_is_used_from_any_event_loop(path: Path) -> None:
    """A harness may run each evaluation in a loop of its own."""
    store = FileSystemDurableRunStore(path)
    for number in range(3):
        asyncio.run(claim(store, f"run-{number}"))
    runs: list[Any] = [asyncio.run(store.load_run(f"run-{number}")) for number in range(3)]
    asyncio.run(store.close())

    assert None not in runs
