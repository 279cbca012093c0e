"""`Database` over a D1 binding, raw or wrapped by the SDK."""

from collections.abc import Sequence
from typing import Any, Final

from pyodide.ffi import JsException, JsProxy, to_js

from chatturn.databases import Outcome, Statement
from chatturn.errors import SchemaOutdated, StoreError, StoreUnavailable
from chatturn.workerd.ffi import js_arguments, parse_js, settled, started

__all__ = ["D1Database"]

_DEADLINE_S: Final = 35.0
"""D1 ends a query after 30 s; a reply that has not come by then was lost."""

# How D1 says that it refused a statement, as opposed to not having answered.
# Source: developers.cloudflare.com/d1/observability/debug-d1; SQLite's own error names.
_REFUSALS: Final = ("SQLITE_ERROR", "SQLITE_CONSTRAINT", "SQLITE_TOOBIG", "SQLITE_MISMATCH", "SQLITE_RANGE")
_WRONG_CALLS: Final = ("D1_TYPE_ERROR", "Wrong number of parameter bindings", "too big", "too many SQL variables")
_MISSING: Final = ("no such table", "no such column", "has no column named")


class D1Database:
    """
    One D1 database.

    Args:
        binding: The binding, raw or as the SDK wraps it.  It belongs to the request, so this object does, too.
    """

    def __init__(self, binding: Any) -> None:
        # The wrapper of workers-runtime-sdk (1.6 to 1.9) converts every row in Python, and keeps the raw one here.
        self._binding: JsProxy = binding if isinstance(binding, JsProxy) else binding._binding  # noqa: SLF001

    async def batch(self, statements: Sequence[Statement]) -> list[Outcome]:
        """Run *statements* as `Database.batch` promises."""
        try:
            prepared = [self._binding.prepare(each.sql).bind(*js_arguments(each.params)) for each in statements]
            batch = started(self._binding.batch.bind(self._binding), to_js(prepared))
            results = await settled(batch, within_s=_DEADLINE_S)
        except JsException as error:
            raise _translated(str(error)) from error
        except TimeoutError as error:
            message = f"no reply within {_DEADLINE_S:.0f} s"
            raise StoreUnavailable(message) from error
        return [
            Outcome(rows=result.get("results") or (), changes=result["meta"].get("changes", 0))
            for result in parse_js(results)
        ]


def _translated(message: str) -> StoreError:
    if any(text in message for text in _MISSING):
        return SchemaOutdated(message)
    if any(text in message for text in (*_REFUSALS, *_WRONG_CALLS)):
        return StoreError(message)
    return StoreUnavailable(message)
