"""The interface of a D1 binding, over every database that there is."""

import pytest

from chatturn.agent_runtime.turns.d1 import D1DatabaseLike, as_d1
from chatturn.database.api import Database
from chatturn.errors import SchemaOutdated, StoreError
from tests.support.faults import FaultyDatabase


async def with_notes(database: Database) -> D1DatabaseLike:
    """Return a binding with a table of the test's own."""
    found = as_d1(database)
    await found.prepare("CREATE TABLE notes (id INTEGER PRIMARY KEY, words TEXT)").run()
    return found


async def test_a_statement_is_bound_and_run(database: Database) -> None:
    binding = await with_notes(database)
    insert = binding.prepare("INSERT INTO notes (id, words) VALUES (?1, ?2)")
    done = await insert.bind(1, "é").run()
    await insert.bind(2, None).run()

    assert (True, 1) == (done["success"], done["meta"]["changes"])
    assert [{"id": 1, "words": "é"}, {"id": 2, "words": None}] == (
        await binding.prepare("SELECT * FROM notes ORDER BY id").all()
    )["results"]


async def test_the_first_row_or_its_column_or_nothing(database: Database) -> None:
    binding = await with_notes(database)
    await binding.prepare("INSERT INTO notes (id, words) VALUES (1, 'a')").run()
    select = binding.prepare("SELECT * FROM notes WHERE id = ?1")

    assert {"id": 1, "words": "a"} == await select.bind(1).first()
    assert await select.bind(1).first("words") == "a"
    assert await select.bind(2).first() is None
    assert await select.bind(2).first("words") is None


async def test_a_batch_is_all_or_none(database: Database) -> None:
    binding = await with_notes(database)
    insert = binding.prepare("INSERT INTO notes (id, words) VALUES (?1, 'a')")
    with pytest.raises(StoreError):
        await binding.batch([insert.bind(1), insert.bind(1)])
    assert 0 == await binding.prepare("SELECT count(*) AS n FROM notes").first("n")

    done = await binding.batch([insert.bind(1), insert.bind(2), binding.prepare("SELECT count(*) AS n FROM notes")])
    assert [1, 1, 2] == [done[0]["meta"]["changes"], done[1]["meta"]["changes"], done[2]["results"][0]["n"]]


async def test_a_statement_of_another_database_is_refused(database: Database) -> None:
    binding = await with_notes(database)
    with pytest.raises(TypeError, match="another database"):
        await binding.batch([as_d1(FaultyDatabase(database)).prepare("SELECT 1")])


async def test_a_statement_that_cannot_be_run_raises_our_errors(database: Database) -> None:
    binding = await with_notes(database)
    with pytest.raises(SchemaOutdated):
        await binding.prepare("SELECT * FROM absent_table").all()
    with pytest.raises(StoreError):
        await binding.prepare("SELEC").run()
