"""
Bringing a database to the schema, from wherever it is: new, agent-runtime's own, or an older one of ours.

``CREATE … IF NOT EXISTS`` brings about everything but a new column of an old table.  So a migration is one
batch: the columns that are missing, then the whole schema.  It applies whole or not at all; where two run at
once, the second finds its column already there, is refused, looks again and has nothing left to do.
"""

from collections.abc import Sequence
from typing import Final

from chatturn.database.api import Database, Result, Statement
from chatturn.database.schema import ADDED_COLUMNS, DURABLE_SCHEMA_VERSION, schema_statements
from chatturn.errors import SchemaOutdated, StoreError

__all__ = ["READ_VERSION", "migrate", "read_version"]

_TRIES: Final = 3

READ_VERSION: Final = Statement("SELECT max(version) AS version FROM durable_schema_info")


async def migrate(database: Database) -> int:
    """
    Bring *database* to the schema; one that has it, or a newer one, is only read.

    Returns:
        The schema's version after it.

    Raises:
        StoreUnavailable: No answer came.  The migration was applied whole or not at all; it may be run again.
        StoreError: The database refused it and is as it was.
    """
    for tries_left in reversed(range(_TRIES)):
        if await read_version(database) >= DURABLE_SCHEMA_VERSION:
            break
        try:
            await database.batch([*await _missing_columns(database), *map(Statement, schema_statements())])
        except StoreError:
            if not tries_left:
                raise
    return await read_version(database)


async def read_version(database: Database) -> int:
    """Return the schema's version in the database; 0 for one that has none."""
    try:
        [outcome] = await database.batch([READ_VERSION])
    except SchemaOutdated:
        return 0
    return int(outcome.rows[0]["version"] or 0)


async def _missing_columns(database: Database) -> Sequence[Statement]:
    """Make the statements that add the columns which an existing table lacks."""
    found: Sequence[Result] = await database.batch(
        [Statement(f"SELECT name FROM pragma_table_info('{table}')") for table, _, _ in ADDED_COLUMNS]  # noqa: S608
    )
    present = [{row["name"] for row in outcome.rows} for outcome in found]
    return [
        Statement(f"ALTER TABLE {table} ADD COLUMN {column} {definition}")
        for (table, column, definition), columns in zip(ADDED_COLUMNS, present, strict=True)
        if columns and column not in columns  # a table that does not exist is about to be made
    ]
