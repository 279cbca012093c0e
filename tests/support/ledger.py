"""What the ledger adds up to, added up anew from its rows: what its sums must be."""

from typing import Any

from chatturn.chat.usage.totals import UsageQuery, list_usage, sums_of
from chatturn.database.api import Database, Statement

__all__ = ["require_sums"]

_PARTS = {"delivered": "wasted = 0", "wasted": "wasted = 1 AND outcome <> 'running'"}
_SUMMED = ("tokens_in", "tokens_out", "tokens_cached", "tokens_reasoning", "cost_micro_usd", "estimated_tokens_out")
_KEYS = {
    "tenant": ("''", "tenant_id"),
    "session": ("tenant_id", "session_id"),
    "model": ("''", "coalesce(model, '')"),
    "day": ("''", "substr(recorded_at, 1, 10)"),
    "": ("''", "''"),
}


def _columns() -> str:
    columns = [
        "count(DISTINCT run_id) AS turns",
        "count(DISTINCT run_id || ' ' || attempt) AS attempts",
        "count(*) FILTER (WHERE outcome = 'running') AS running_calls",
    ]
    for part, which in _PARTS.items():
        unknown = "tokens_in IS NULL OR tokens_out IS NULL"
        columns += [
            f"count(*) FILTER (WHERE {which}) AS {part}_calls",
            f"count(*) FILTER (WHERE {which} AND ({unknown})) AS {part}_unknown_calls",
            f"count(*) FILTER (WHERE {which} AND cost_micro_usd IS NULL) AS {part}_unpriced_calls",
            *(f"sum({name}) FILTER (WHERE {which}) AS {part}_{name}" for name in _SUMMED),
        ]
    return ", ".join(columns)


async def _of_rows(database: Database, by: str, tenant: str | None, days: tuple[str, str]) -> list[dict[str, Any]]:
    owner, key = _KEYS[by]
    group = "GROUP BY 1, 2 ORDER BY 1, 2" if by else ""
    query = f"""SELECT {owner} AS owner, {key} AS key, {_columns()} FROM chat_usage
        WHERE substr(recorded_at, 1, 10) BETWEEN ?1 AND ?2 AND (?3 IS NULL OR tenant_id = ?3) {group}"""
    [found] = await database.batch([Statement(query, (*days, tenant))])
    return [dict(sums_of(row)) for row in found.rows]


async def require_sums(database: Database, days: tuple[str, str], tenant: str | None = None) -> None:
    """Compare what usage is told, by everything that it is told by and on pages of two, with the rows."""
    for by in ("tenant", "session", "model", "day"):
        groups, after = list[Any](), None
        while True:
            query = UsageQuery(by=by, tenant_id=tenant, first_day=days[0], last_day=days[1], limit=2, after=after)
            page = await list_usage(database, query)
            groups += [dict(group.sums) for group in page.groups]
            if (after := page.next) is None:
                break
        assert groups == await _of_rows(database, by, tenant, days), by
        assert [dict(page.total)] == await _of_rows(database, "", tenant, days), by
    spent = "coalesce(cost_micro_usd, estimated_cost_micro_usd, 0)"
    [rows, sums] = await database.batch(
        [
            Statement(
                f"SELECT tenant_id, substr(recorded_at, 1, 10) AS day, sum({spent}) AS spent"
                " FROM chat_usage GROUP BY 1, 2 ORDER BY 1, 2"
            ),
            Statement(
                "SELECT tenant_id, day, budget_micro_usd AS spent FROM chat_usage_sums WHERE kind = 'day' ORDER BY 1, 2"
            ),
        ]
    )
    assert list(map(dict, rows.rows)) == list(map(dict, sums.rows))
