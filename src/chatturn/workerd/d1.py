"""`Database` over a D1 binding, raw or wrapped by the SDK."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import js
from pyodide.ffi import JsException, JsProxy, to_js

from chatturn.database.api import Result, Statement
from chatturn.database.fullness import is_full
from chatturn.errors import SchemaOutdated, StoreError, StoreFull, StoreUnavailable
from chatturn.workerd.ffi import js_arguments, js_texts, parse_js, settled, started

__all__ = ["D1Database"]

_DEADLINE_S: Final = 35.0
"""D1 ends a query after 30 s; a reply that has not come after 35 s is lost."""

# The words by which D1 says that it refused a statement, as opposed to not having answered.
# Source: developers.cloudflare.com/d1/observability/debug-d1; SQLite's own error names.
_REFUSALS: Final = ("SQLITE_ERROR", "SQLITE_CONSTRAINT", "SQLITE_TOOBIG", "SQLITE_MISMATCH", "SQLITE_RANGE")
_WRONG_CALLS: Final = ("D1_TYPE_ERROR", "Wrong number of parameter bindings", "too big", "too many SQL variables")
_MISSING: Final = ("no such table", "no such column", "has no column named")


_MOST_PREPARED: Final = 256

_LONG_CHARACTERS: Final = 500
"""A parameter longer than this crosses to JavaScript faster as bytes than as a string."""

_apply: Final = js.Reflect.apply


class D1Database:
    """
    One D1 database.

    The text of a statement crosses to JavaScript once: D1's prepared statement is kept, without parameters.

    Args:
        binding: The binding, raw or as the SDK wraps it.
    """

    def __init__(self, binding: Any) -> None:
        # The wrapper of workers-runtime-sdk (1.6 to 1.9) converts every row in Python; its `_binding` is the raw one.
        self._binding: JsProxy = binding if isinstance(binding, JsProxy) else binding._binding  # noqa: SLF001
        self._run: JsProxy = self._binding.batch.bind(self._binding)
        self._prepared: dict[str, tuple[JsProxy, Callable[..., JsProxy]]] = {}

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run *statements* as `Database.batch` promises."""
        try:
            results = await settled(started(self._run, to_js([*map(self._bound, statements)])), within_s=_DEADLINE_S)
        except JsException as error:
            raise _translated(str(error)) from error
        except TimeoutError as error:
            message = f"no reply within {_DEADLINE_S:.0f} s"
            raise StoreUnavailable(message) from error
        return [
            Result(result.get("results") or (), meta.get("changes", 0), meta.get("size_after"))
            for result in parse_js(results)
            for meta in (result["meta"],)
        ]

    def _bound(self, statement: Statement) -> JsProxy:
        """Return D1's statement for *statement*, with its parameters bound."""
        prepared, bind = self._prepared.get(statement.sql) or self._prepare(statement.sql)
        params = statement.params
        arguments = js_arguments(params) if None in params else params
        if max(map(len, map(str, params)), default=0) <= _LONG_CHARACTERS:
            return bind(*arguments)
        long = [type(value) is str and len(value) > _LONG_CHARACTERS for value in arguments]
        # `concat` replaces an array by its elements and keeps any other value.
        parts = (js_texts(value) if is_long else value for value, is_long in zip(arguments, long, strict=True))
        bound: JsProxy = _apply(bind, prepared, js_texts().concat(*parts))
        return bound

    def _prepare(self, sql: str) -> tuple[JsProxy, Callable[..., JsProxy]]:
        """Have D1 prepare *sql*; return the prepared statement and its `bind`."""
        if len(self._prepared) >= _MOST_PREPARED:
            self._prepared.clear()
        prepared = self._binding.prepare(sql)
        self._prepared[sql] = prepared, prepared.bind
        return self._prepared[sql]


def _translated(message: str) -> StoreError:
    if any(text in message for text in _MISSING):
        return SchemaOutdated(message)
    if is_full(message):
        return StoreFull(message)
    if any(text in message for text in (*_REFUSALS, *_WRONG_CALLS)):
        return StoreError(message)
    return StoreUnavailable(message)
