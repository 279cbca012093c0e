"""`TracedDatabase`: every batch a span."""

from collections.abc import Sequence
from typing import Final

from chatturn.database.api import Database, Result, Statement
from chatturn.telemetry import conventions
from chatturn.telemetry.tracer import AttributeValue, Tracer

__all__ = ["MAX_BATCH_SPANS", "TracedDatabase"]

MAX_BATCH_SPANS: Final = 32
"""Spans of batches in one attempt: a long answer is stored in many batches, which must leave room for other spans."""

_ATTRIBUTES: Final = {conventions.DB_SYSTEM_NAME: "cloudflare-d1", conventions.DB_OPERATION_NAME: "batch"}


class TracedDatabase:
    """
    A database whose batches are told to *tracer*.

    Attributes:
        batches: The number of batches so far.
    """

    def __init__(self, database: Database, tracer: Tracer) -> None:
        self.batches = 0
        self._database = database
        self._tracer = tracer

    async def batch(self, statements: Sequence[Statement]) -> list[Result]:
        """Run *statements* as `Database.batch` promises."""
        self.batches += 1
        if self.batches > MAX_BATCH_SPANS:
            return await self._database.batch(statements)
        attributes: dict[str, AttributeValue] = {**_ATTRIBUTES, conventions.DB_BATCH_SIZE: len(statements)}
        with self._tracer.span("batch D1", kind="client", attributes=attributes):
            return await self._database.batch(statements)
