"""What was consumed, added up for operators: by tenant, session, model or day, the wasted calls apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chatturn.chat.usage import sql
from chatturn.chat.usage.sql import KEYS
from chatturn.database.api import Database, Row
from chatturn.durable.run_lists import decode_cursor, encode_cursor

__all__ = ["GROUP_NAMES", "USAGE_KEYS", "Sums", "UsageGroup", "UsagePage", "UsageQuery", "list_usage", "sums_of"]

USAGE_KEYS: Final = tuple(KEYS)
"""What usage may be added up by."""

GROUP_NAMES: Final[Mapping[str, Sequence[str]]] = {
    "tenant": ("tenantId",),
    "session": ("tenantId", "sessionId"),
    "model": ("model",),
    "day": ("day",),
}
"""The members that name a group of each kind."""

Sums = Mapping[str, Any]
"""``turns``, ``attempts``, ``runningCalls``, and ``delivered`` and ``wasted``, each with its own sums."""

_MEMBERS: Final = (
    ("calls", "calls"),
    ("tokensIn", "tokens_in"),
    ("tokensOut", "tokens_out"),
    ("tokensCached", "tokens_cached"),
    ("tokensReasoning", "tokens_reasoning"),
    ("costMicroUsd", "cost_micro_usd"),
    ("estimatedTokensOut", "estimated_tokens_out"),
    ("unknownCalls", "unknown_calls"),
    ("unpricedCalls", "unpriced_calls"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """
    Which usage to add up.

    Attributes:
        by: One of `USAGE_KEYS`.
        tenant_id: Only this tenant's usage; None for every tenant's.
        first_day: The period's first day, ``YYYY-MM-DD``, UTC; None for the 30 days that end with `last_day`.
        last_day: The period's last day; None for today.
        limit: The most groups on a page.
        after: The `next` of the previous page.
    """

    by: str
    tenant_id: str | None
    first_day: str | None
    last_day: str | None
    limit: int
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageGroup:
    """
    What a tenant, a session, a model or a day consumed.

    Attributes:
        names: The group's names by `GROUP_NAMES`; the model is None where it is not known.
        sums: The group's sums.
    """

    names: Mapping[str, str | None]
    sums: Sums


@dataclass(frozen=True, slots=True, kw_only=True)
class UsagePage:
    """
    One page of sums.

    Attributes:
        groups: In the order of their names.
        total: The sums of all groups, not only of this page.
        first_day: The period's first day, UTC.
        last_day: The period's last day, UTC.
        next: Where the next page begins, or None at the end.
    """

    groups: Sequence[UsageGroup]
    total: Sums
    first_day: str
    last_day: str
    next: str | None


async def list_usage(database: Database, query: UsageQuery) -> UsagePage:
    """
    Add up what was consumed, in one round trip.

    Raises:
        InvalidField: The cursor is not one of this list's.
    """
    after = None if query.after is None else [str(part) for part in decode_cursor(query.after, query.by, ["", ""])]
    found, total = await database.batch(
        sql.read_usage(
            query.by,
            tenant_id=query.tenant_id,
            days=(query.first_day, query.last_day),
            after=after,
            limit=query.limit + 1,
        )
    )
    rows = found.rows[: query.limit]
    last = [rows[-1]["owner"], rows[-1]["key"]] if len(found.rows) > query.limit else None
    return UsagePage(
        groups=[UsageGroup(names=_names(query.by, row), sums=sums_of(row)) for row in rows],
        total=sums_of(total.rows[0]),
        first_day=str(total.rows[0]["first_day"]),
        last_day=str(total.rows[0]["last_day"]),
        next=None if last is None else encode_cursor(query.by, last),
    )


def sums_of(row: Row) -> Sums:
    """Return the sums in a row; a count that no call has reported is None, not 0."""
    return {
        "turns": row["turns"],
        "attempts": row["attempts"],
        "runningCalls": row["running_calls"],
        **{kind: {name: row[f"{kind}_{column}"] for name, column in _MEMBERS} for kind in ("delivered", "wasted")},
    }


def _names(by: str, row: Row) -> Mapping[str, str | None]:
    *owner, name = GROUP_NAMES[by]
    return {**{each: str(row["owner"]) for each in owner}, name: str(row["key"]) or None}
