"""
Migrates a database to the current schema: a new one, agent-runtime's own, or an older one of ours.

``CREATE … IF NOT EXISTS`` makes everything but a new column, or a changed CHECK, of an old table.  So a migration is
one batch: the missing columns, then the whole schema; a table with a changed CHECK is renamed before the schema, and
its rows are copied after it.  The batch applies whole or not at all.  If two migrations run at once, the second is
refused, since its column already exists; it reads the schema again and has nothing left to do.
"""

from collections.abc import Sequence
from typing import Final

from chatturn.database.api import Database, Result, Statement
from chatturn.database.schema import (
    ADDED_COLUMNS,
    BEFORE_REBUILT,
    BEHIND_REBUILT,
    DURABLE_SCHEMA_VERSION,
    REBUILT,
    schema_columns,
    schema_statements,
    schema_triggers,
)
from chatturn.errors import SchemaOutdated, StoreError

__all__ = ["READ_VERSION", "mend", "migrate", "missing_parts", "read_version"]

_TRIES: Final = 3

# The fourth, the fifth and the eleventh migration have an earlier text, which lacks some columns.  A database made by
# an earlier text is recognised by the missing column of `chat_turns`, whatever its schema version.
_EARLIER_TEXTS: Final = {"manifest_hash": 102, "traceparent": 103, "finish_reason": 109}
"""The first column of `chat_turns` that each earlier text lacks, and the schema version that the text made."""

_WHAT_THE_FOURTH_LEFT_OUT: Final = (
    """
UPDATE chat_segments SET ended = 1 WHERE ended = 0
  AND NOT EXISTS (SELECT 1 FROM chat_segments AS s WHERE s.run_id = chat_segments.run_id
                  AND s.attempt = chat_segments.attempt AND s.first_seq > chat_segments.first_seq)
  AND (lines LIKE '%{"type":"session.run.completed"%' OR lines LIKE '%{"type":"session.run.failed"%'
    OR lines LIKE '%{"type":"session.run.cancelled"%' OR lines LIKE '%{"type":"session.run.suspended"%')
""",
    """
UPDATE chat_turns SET
  manifest_hash = coalesce((SELECT r.manifest_hash FROM durable_runs AS r WHERE r.run_id = chat_turns.run_id), '')
WHERE manifest_hash = ''
""",
)

_TRIGGERS: Final = Statement("SELECT name FROM sqlite_master WHERE type = 'trigger'")

READ_VERSION: Final = Statement("SELECT max(version) AS version FROM durable_schema_info")


async def migrate(database: Database) -> int:
    """
    Migrate *database* to the schema; a database with this or a newer schema is only read.

    Returns:
        The schema version after the migration.

    Raises:
        StoreUnavailable: No answer came.  The migration was applied whole or not at all; it may be run again.
        StoreError: The database refused the migration, and is unchanged.
    """
    for tries_left in reversed(range(_TRIES)):
        version, missing = await read_version(database), await _missing_columns(database)
        rebuilds = missing.pop(REBUILT, None) is not None
        if version >= DURABLE_SCHEMA_VERSION and not missing and not rebuilds:
            return version
        texts = [f"ALTER TABLE {table} ADD COLUMN {column} {kind}" for (table, column), kind in missing.items()]
        texts += [*BEFORE_REBUILT, *schema_statements(), *BEHIND_REBUILT] if rebuilds else schema_statements()
        if version >= _EARLIER_TEXTS["manifest_hash"] and ("chat_turns", "manifest_hash") in missing:
            texts += _WHAT_THE_FOURTH_LEFT_OUT
        try:
            await database.batch(list(map(Statement, texts)))
        except StoreError:
            if not tries_left:
                raise
    return await read_version(database)


async def mend(database: Database) -> bool:
    """
    Migrate a database that an earlier text of a migration has made; any other is only read, by one query.

    Returns:
        Whether the database was made by an earlier text.

    Raises:
        StoreError: As `migrate` does.
    """
    [found] = await database.batch([_columns_of("chat_turns")])
    present = {row["name"] for row in found.rows}
    lacking = [version for column, version in _EARLIER_TEXTS.items() if column not in present]
    if not present or not lacking or await read_version(database) < min(lacking):
        return False
    await migrate(database)
    return True


async def missing_parts(database: Database) -> Sequence[str]:
    """
    Return the parts of the schema that a database lacks: triggers and tables by their names, ``table.column``.

    Raises:
        StoreError: The database does not answer, or refuses.
    """
    wanted = schema_columns()
    triggers, *found = await database.batch([_TRIGGERS, *map(_columns_of, wanted)])
    there = {row["name"] for row in triggers.rows}
    missing = [trigger for trigger in schema_triggers() if trigger not in there]
    for (table, columns), result in zip(wanted.items(), found, strict=True):
        present = {row["name"] for row in result.rows}
        missing += [f"{table}.{column}" for column in columns if column not in present] if present else [table]
    return missing


async def read_version(database: Database) -> int:
    """Return the schema version of the database; 0 if it has none."""
    try:
        [outcome] = await database.batch([READ_VERSION])
    except SchemaOutdated:
        return 0
    return int(outcome.rows[0]["version"] or 0)


async def _missing_columns(database: Database) -> dict[tuple[str, str], str]:
    """Return the missing columns of existing tables, with their definitions; for `REBUILT`, its marking column."""
    wanted = (*ADDED_COLUMNS, (*REBUILT, ""))
    found: Sequence[Result] = await database.batch([_columns_of(table) for table, _, _ in wanted])
    present = [{row["name"] for row in outcome.rows} for outcome in found]
    return {
        (table, column): definition
        for (table, column, definition), columns in zip(wanted, present, strict=True)
        if columns and column not in columns  # a missing table is made whole by the schema
    }


def _columns_of(table: str) -> Statement:
    return Statement(f"SELECT name FROM pragma_table_info('{table}')")  # noqa: S608 - a name of ours
