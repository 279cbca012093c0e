"""The Worker's store of durable runs."""

from typing import Any

from chatturn.database.migration import migrate
from chatturn.durable.sql_store import SqlRunStore
from chatturn.workerd.d1 import D1Database

__all__ = ["D1DurableRunStore"]


class D1DurableRunStore(SqlRunStore):
    """
    Durable runs in a D1 database.

    It needs the schema: from ``wrangler d1 migrations apply`` before a deployment, or from `migrate`.

    Args:
        binding: The binding, raw or as the SDK wraps it.  It belongs to the request, so the store does, too.
    """

    def __init__(self, binding: Any) -> None:
        super().__init__(D1Database(binding))

    async def migrate(self) -> int:
        """Bring the database to the schema, and return its version; see `chatturn.database.migration.migrate`."""
        return await migrate(self.database)
