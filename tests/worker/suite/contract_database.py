"""The database of the contract tests inside workerd: real D1, fresh for every test."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import workers
from pyodide.ffi import run_sync, to_js
from workers import import_from_javascript

from chatturn.database.api import Database
from chatturn.durable.sql_store import SqlRunStore
from chatturn.workerd.d1 import D1Database
from chatturn.workerd.stores import D1DurableRunStore
from tests.support.clock import AtMoment

_definitions: list[str] = []
_VERSION_TABLE = "durable_schema_info"


@contextmanager
def open_database(binding: str = "raw") -> Iterator[Database]:
    """Give a D1 database with the schema and not one row of an earlier test, through a raw or a wrapped binding."""
    raw = import_from_javascript("cloudflare:workers").env.DB
    run_sync(_start_afresh(raw))
    yield D1Database(raw if binding == "raw" else workers.env.DB)


@contextmanager
def open_store(moment: Callable[[], str]) -> Iterator[SqlRunStore]:
    """Give an empty store of the platform's own."""
    raw = import_from_javascript("cloudflare:workers").env.DB
    run_sync(_start_afresh(raw))
    store = D1DurableRunStore(raw)
    store.database = AtMoment(store.database, moment)
    yield store


async def _start_afresh(binding: Any) -> None:
    """Drop every table and make it again: a test may have changed the schema as well."""
    present = await _query(
        binding,
        "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        " AND name NOT LIKE 'sqlite%' AND name NOT LIKE '\\_cf%' ESCAPE '\\' ORDER BY type = 'index'",
    )
    if not _definitions:
        versions = await _query(binding, f"SELECT * FROM {_VERSION_TABLE}")  # noqa: S608
        _definitions.extend(item["sql"] for item in present)
        _definitions.extend(
            f"INSERT INTO {_VERSION_TABLE} (version, applied_at)"  # noqa: S608
            f" VALUES ({item['version']}, '{item['applied_at']}')"
            for item in versions
        )
    tables = [item["name"] for item in present if item["type"] == "table"]
    statements = ["PRAGMA defer_foreign_keys = on", *(f"DROP TABLE {name}" for name in tables), *_definitions]
    await binding.batch(to_js([binding.prepare(statement) for statement in statements]))


async def _query(binding: Any, sql: str) -> list[dict[str, Any]]:
    result = await binding.prepare(sql).all()
    rows: list[dict[str, Any]] = result.results.to_py()
    return rows
