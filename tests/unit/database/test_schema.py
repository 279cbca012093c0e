"""schema.sql and migrations/: one schema, two ways to it, and every closed set the same as in the code."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import get_args

import pytest

from chatturn.chat.hooks.outbox import _HOOKS
from chatturn.chat.usage.calls import CallOutcome
from chatturn.database.api import NOW, Statement
from chatturn.database.schema import DURABLE_SCHEMA_SQL, DURABLE_SCHEMA_VERSION, schema_columns, schema_statements
from chatturn.database.sqlite import SqliteDatabase, split_statements
from chatturn.durable.records import RunStatus, StepStatus
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import SchemaOutdated
from tests.support.runs import claim

ROOT = Path(__file__).parents[3]
SCHEMA = (ROOT / "schema.sql").read_text()
MIGRATIONS = [path.read_text() for path in sorted((ROOT / "migrations").glob("*.sql"))]


# What has landed has been applied somewhere: a change goes into a migration of its own.
DIGESTS = {
    "0001_documents_v1.sql": "9a321f9e38075b2b2aadc7f390a7f1fd58d5bf4e2bc2d293c657d4e550f5fa51",
    "0002_chatturn.sql": "23b45c5ec01541bb048e25a328d54495be099bae144a4b275a2b85cf385400b6",
    "0003_lists_and_retention.sql": "dbd279ad12b5d4f45d73318397d98a29c6d01b44497f19c69003daff529529d8",
    "0004_logs.sql": "a69817416742ff23590128584ec1c5d705f4022867298a879172ddf3ef36f392",
    "0005_ledger.sql": "06f77514f7bf4e29940efb23cbfedbfa252706ada711bd5d66f2b7ab0af5404d",
    "0006_own_history.sql": "574166b137417d8067bdfdc72d29fc21e645a8e54e2f3d54989352557e4743e1",
    "0007_compact_logs.sql": "1ffd08ad6fdc091c1bd2bb412a03d4b4b5ca095d2f66367e1b07c539045b9172",
    "0008_runtime_sessions.sql": "d452d11c3030bb9f9deae192698dd03a77b00ebdbd8f2051ec40308234860c35",
    "0009_attempts_and_keys.sql": "3026c619ffd19488a4b663c47045253b34e3957b1b0e75e75bacff9f8b62b9bf",
    "0010_parameters.sql": "e04fd900a1643f44d5f352454fe867c6388ca791731902f42c8f794fec62faed",
    "0011_sessions.sql": "f28ba8e2456fa0730f248efa5a5c519e4dade369e1dcb3ae1eb725cc5f92b17e",
    "0012_versions.sql": "a5b5ccdf8bbc299b5910962d4dc2293773e9cbdc176176a73ba7ee0cdbf02735",
    "0013_queue.sql": "bdf15c4ecacbe5da5153c7c84707077e33fa142d4ca83d6f2d94664034b144fd",
    "0014_parts.sql": "4ce4b4f447577c66b71cc72ae44352cb9bf28d72821e3d3ee61aef1a0151ba3a",
    "0015_client_tools.sql": "bac603f9a033283f44441ffbdc4279c7019e9384852d6d537da8deaf00747842",
    "0016_ledger_sums.sql": "22c9fcb1392ab863bfa8f171b279e9bc315c8192af1fd0e2da67c76e2a5976ad",
    "0017_peoples_data.sql": "035a83690bf64febd62ff8e491863b6ab9b2382451bd4e3445e7f4f33e76e47b",
    "0018_thread_changes.sql": "bbd2c271abe6e4c7ac185d67a7660348094f9934c769f330ad08ba184d6da67d",
    "0019_old_logs.sql": "b5e4098d8d2efe84b61d12a589927ce345a4b7d8078bb2b37f6620138da98bb7",
    "0020_failed_runs.sql": "1ef06f2077e06576e8d23f7c16b07821f2193cad0283c21cf59ef86debcbf72e",
    "0021_moved_messages.sql": "8701274baa324fceb79ff20c691e1656a9a23b056671735c00cefc888052e6bd",
    "0022_due_waits.sql": "85dbeee5de991f8c3e17fc5ad0b14e04f62b609ab8a91d1db2b0d245dccd1f24",
}


@pytest.fixture
def empty() -> Iterator[sqlite3.Connection]:
    """An empty database."""
    with closing(sqlite3.connect(":memory:")) as connection:
        yield connection


def structure(connection: sqlite3.Connection) -> dict[str, object]:
    """Describe every table and index of a database."""
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")]
    return {
        name: [connection.execute(f"PRAGMA {pragma}({name})").fetchall() for pragma in ("table_info", "index_info")]
        for name in names
    }


def test_the_copy_is_the_codes_schema() -> None:
    """schema.sql is what the Worker has, byte for byte; if this fails, `make schema`."""
    assert DURABLE_SCHEMA_SQL == SCHEMA


def test_a_migration_that_has_landed_never_changes() -> None:
    """A new one adds its line here, and no line is ever changed."""
    digests = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted((ROOT / "migrations").glob("*.sql"))}

    assert DIGESTS == digests


def test_no_index_is_ever_dropped(empty: sqlite3.Connection) -> None:
    """Statements of an earlier version name it, and fail without it, as long as workers of both serve the database."""
    for script in MIGRATIONS:
        empty.executescript(script)
    created = set(re.findall(r"CREATE (?:UNIQUE )?INDEX (?:IF NOT EXISTS )?(\w+)", "".join(MIGRATIONS)))
    assert created == {
        name for (name,) in empty.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
    }


def test_the_columns_of_the_schema_are_read_from_its_text(empty: sqlite3.Connection) -> None:
    """As SQLite has them."""
    empty.executescript(SCHEMA)
    tables = {table: [row[1] for row in empty.execute(f"PRAGMA table_info({table})")] for table in schema_columns()}

    assert tables == schema_columns()
    assert len(tables) == empty.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]


def test_the_version_is_a_number_above_agent_runtimes() -> None:
    """Theirs are below 100."""
    assert DURABLE_SCHEMA_VERSION > 100
    assert int(DURABLE_SCHEMA_VERSION) == DURABLE_SCHEMA_VERSION


def test_the_schema_splits_without_sqlite_as_with_it() -> None:
    """The Worker has no SQLite to ask where a statement ends."""

    def code(statement: str) -> str:
        return " ".join(re.sub(r"--[^\n]*", "", statement).split())

    assert [code(each) for each in split_statements(SCHEMA)] == [code(each) for each in schema_statements()]


def test_the_migrations_end_in_the_schema(empty: sqlite3.Connection) -> None:
    """A deployed database and a local one have the same tables, columns and indexes."""
    for script in MIGRATIONS:
        empty.executescript(script)
    migrated = structure(empty)
    with closing(sqlite3.connect(":memory:")) as other:
        other.executescript(SCHEMA)

        assert structure(other) == migrated
    assert (DURABLE_SCHEMA_VERSION,) == empty.execute("SELECT max(version) FROM durable_schema_info").fetchone()


def test_the_schema_may_be_applied_again(empty: sqlite3.Connection) -> None:
    """The second time changes nothing."""
    empty.executescript(SCHEMA)
    before = structure(empty)
    empty.executescript(SCHEMA)

    assert before == structure(empty)
    assert [(1,), (DURABLE_SCHEMA_VERSION,)] == empty.execute(
        "SELECT version FROM durable_schema_info ORDER BY version"
    ).fetchall()


def test_the_code_needs_what_the_schema_says(empty: sqlite3.Connection) -> None:
    """The version that the code asks for is the one that the schema records."""
    empty.executescript(SCHEMA)

    assert (DURABLE_SCHEMA_VERSION,) == empty.execute("SELECT max(version) FROM durable_schema_info").fetchone()


async def test_a_database_of_agent_runtime_is_upgraded_in_place() -> None:
    """Their version 1 is refused with the reason; after our migration it is claimed, its rows kept."""
    with SqliteDatabase(":memory:") as database:
        database.apply_schema(MIGRATIONS[0])
        store = SqlRunStore(database)
        assert await store.get_schema_version() == 1
        with pytest.raises(SchemaOutdated):
            await claim(store)
        insert = (
            "INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at)"
            " VALUES ('old', 'h', 'p', 'completed', '2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z')"
        )
        database.apply_schema(insert + ";")
        for script in MIGRATIONS[1:]:
            database.apply_schema(script)
        old = await store.load_run("old")

        assert await store.get_schema_version() == DURABLE_SCHEMA_VERSION
        assert old is not None
        assert ("completed", 0) == (old.status, old.epoch)
        assert (await claim(store)).lease is not None


@pytest.mark.parametrize(
    ("table", "column", "values"),
    [
        ("durable_runs", "status", list(RunStatus)),
        ("durable_steps", "status", list(StepStatus)),
        ("chat_outbox", "hook", list(_HOOKS)),
        ("chat_usage", "outcome", list(get_args(CallOutcome))),
    ],
)
def test_closed_sets_are_the_codes(table: str, column: str, values: list[str]) -> None:
    """What a CHECK allows is what the code knows."""
    [body] = re.findall(rf"CREATE TABLE IF NOT EXISTS {table} \((.*?)\n\)", SCHEMA, re.DOTALL)
    [allowed] = re.findall(rf"CHECK \({column} IN \((.*?)\)[)\n]", body)

    assert values == re.findall(r"'(\w+)'", allowed)


def test_every_table_of_ours_says_what_it_is_for() -> None:
    """Every chat table has a comment above it, and is strict."""
    tables = re.findall(r"(-- [^\n]+\n)?CREATE TABLE IF NOT EXISTS (chat_\w+) \(.*?\n\) ([A-Z, ]+);", SCHEMA, re.DOTALL)

    assert len(tables) == 11
    assert all(comment and "STRICT" in options for comment, _, options in tables)


@pytest.mark.parametrize("script", [SCHEMA, *MIGRATIONS], ids=["schema", *map(str, range(1, len(MIGRATIONS) + 1))])
def test_a_script_splits_into_whole_statements(script: str) -> None:
    """Statement by statement is how D1 must be given it; nothing is lost or cut in the middle."""
    statements = split_statements(script)

    assert all(sqlite3.complete_statement(statement) for statement in statements)
    assert script.count(";\n") <= len(statements) + script.count("--")
    with closing(sqlite3.connect(":memory:")) as connection:
        for earlier in MIGRATIONS[: MIGRATIONS.index(script)] if script in MIGRATIONS else MIGRATIONS[:1]:
            connection.executescript(earlier)
        for statement in statements:
            connection.execute(statement)


def test_a_script_that_ends_inside_a_statement_is_refused() -> None:
    """Half a schema is not applied silently."""
    with pytest.raises(ValueError, match="ends inside a statement"):
        split_statements("CREATE TABLE a (x);\nCREATE TABLE b (")


async def test_now_is_what_the_clock_says_that_the_driver_is_given() -> None:
    """In place of the parameter `NOW`, and of no text that is the same."""
    with SqliteDatabase(":memory:", moment=lambda: "2026-01-02") as database:
        [read] = await database.batch([Statement("SELECT ?1 AS at, ?2 AS text", (NOW, "now"))])

    assert [{"at": "2026-01-02", "text": "now"}] == [dict(row) for row in read.rows]
