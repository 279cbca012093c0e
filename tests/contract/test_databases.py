"""What every `Database` promises: batches that apply whole or not at all, and errors of our tree."""

from collections.abc import Iterator

import pytest

from chatturn.database.api import NOW, Database, Statement
from chatturn.errors import SchemaOutdated, StoreError, StoreFull, StoreUnavailable
from tests.contract_database import open_database


@pytest.fixture(params=["raw", "wrapped"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """An empty database; of D1, through the raw binding and through the one that the SDK wraps."""
    with open_database(request.param) as database:
        yield database


PUT = "INSERT INTO durable_events (run_id, key, payload_json, emitted_at) VALUES (?1, ?2, ?3, 'now')"
COUNT = Statement("SELECT count(*) AS n FROM durable_events")


async def test_a_batch_runs_in_order_and_returns_an_outcome_each(database: Database) -> None:
    """Reads see the writes before them; writes say how many rows they changed."""
    put, count, none = await database.batch(
        [Statement(PUT, ("r", "k", None)), COUNT, Statement("DELETE FROM durable_events WHERE run_id = 'x'")]
    )

    assert (1, 0) == (put.changes, none.changes)
    assert [{"n": 1}] == [dict(row) for row in count.rows]


async def test_now_is_the_databases_time_and_the_word_now_is_a_text(database: Database) -> None:
    """A user may say "now"."""
    [read] = await database.batch(
        [Statement("SELECT unixepoch(?1) = unixepoch('now') AS is_now, ?2 AS text", (NOW, "now"))]
    )

    assert [{"is_now": 1, "text": "now"}] == [dict(row) for row in read.rows]


async def test_null_is_none_both_ways(database: Database) -> None:
    """None is stored as NULL and NULL is read as None."""
    await database.batch([Statement(PUT, ("r", "k", None))])
    [read] = await database.batch(
        [
            Statement(
                "SELECT payload_json, payload_json IS NULL AS is_null FROM durable_events WHERE run_id = ?1", ("r",)
            )
        ]
    )

    assert [{"payload_json": None, "is_null": 1}] == [dict(row) for row in read.rows]


async def test_a_batch_applies_whole_or_not_at_all(database: Database) -> None:
    """When the second statement is refused, the first has not happened."""
    with pytest.raises(StoreError):
        await database.batch([Statement(PUT, ("r", "k", "1")), Statement(PUT, ("r", "k", "2"))])
    [count] = await database.batch([COUNT])

    assert [{"n": 0}] == [dict(row) for row in count.rows]


async def test_a_full_database_says_so(database: Database) -> None:
    """As such, though SQLite ends the whole transaction then, savepoints too; nothing of the batch is there."""
    full = "CREATE TABLE used_up (id INTEGER PRIMARY KEY AUTOINCREMENT)"
    await database.batch([Statement(full), Statement("INSERT INTO used_up VALUES (9223372036854775807)")])
    try:
        with pytest.raises(StoreFull):
            await database.batch([Statement(PUT, ("r", "k", "1")), Statement("INSERT INTO used_up DEFAULT VALUES")])
        [count] = await database.batch([COUNT])
    finally:
        await database.batch([Statement("DROP TABLE used_up")])

    assert [{"n": 0}] == [dict(row) for row in count.rows]


@pytest.mark.parametrize("sql", ["SELECT * FROM nowhere", "SELECT no_such FROM durable_runs"])
async def test_a_missing_table_or_column_is_an_old_schema(database: Database, sql: str) -> None:
    """That is the operator's to mend, and no bug."""
    with pytest.raises(SchemaOutdated):
        await database.batch([Statement(sql)])


@pytest.mark.parametrize(
    "statement",
    [
        Statement("SELEKT 1"),
        Statement("SELECT ?1", ()),
        Statement("SELECT ?1", ("a", "b")),
        Statement("INSERT INTO durable_runs (run_id) VALUES (NULL)"),
        Statement(f"SELECT {', '.join(f'?{n}' for n in range(1, 102))}", tuple(range(101))),
    ],
    ids=["syntax", "too few", "too many", "constraint", "101 parameters"],
)
async def test_a_refused_statement_is_an_error_that_no_retry_helps(database: Database, statement: Statement) -> None:
    """It is told apart from a database that does not answer."""
    with pytest.raises(StoreError) as refused:
        await database.batch([statement])
    assert not isinstance(refused.value, StoreUnavailable)


async def test_text_and_numbers_keep_their_kind(database: Database) -> None:
    """A digit string in a TEXT column stays text; whole numbers read as whole numbers."""
    await database.batch([Statement(PUT, ("5", "007", "1.0"))])
    [read] = await database.batch([Statement("SELECT run_id, key, payload_json, 3 AS n FROM durable_events")])

    assert [{"run_id": "5", "key": "007", "payload_json": "1.0", "n": 3}] == [dict(row) for row in read.rows]


@pytest.mark.parametrize("length", [1, 100, 10_000])
async def test_text_of_any_length_comes_back_as_it_went(database: Database, length: int) -> None:
    """A mark of byte order, characters outside the plane, what JSON escapes: wherever long text goes another way."""
    texts = [text * length for text in ("\ufeffa", "\U0001f600", '"\\\n\u2028\x7f', "é")]
    statement = "SELECT ?1 AS a, ?2 AS b, ?3 AS c, ?4 AS d, ?5 AS e, ?6 AS f"
    [read] = await database.batch([Statement(statement, (*texts, None, "short"))])

    assert [[*texts, None, "short"]] == [[*row.values()] for row in read.rows]


async def test_integers_are_bound_up_to_the_last_that_is_a_number_everywhere(database: Database) -> None:
    """What is larger is refused, and not rounded."""
    [read] = await database.batch([Statement("SELECT CAST(?1 AS INTEGER) AS n", (2**53 - 2,))])
    with pytest.raises(StoreError):
        await database.batch([Statement("SELECT ?1", (2**53 - 1,))])

    assert [2**53 - 2] == [row["n"] for row in read.rows]


@pytest.mark.sqlite_only  # D1 as deployed refuses it; the local one (workerd 2026-11) takes it
async def test_a_text_beyond_two_megabytes_is_refused(database: Database) -> None:
    """Code that would fail at the edge fails here first."""
    with pytest.raises(StoreError):
        await database.batch([Statement(PUT, ("r", "k", "x" * 2_000_001))])
