"""
The SQL of the ledger's sums: a table that triggers keep, and the statements that fill it at first.

A trigger sees every change of a row, whoever makes it: this code, an earlier version that serves the same database, or
an operator.  So at the end of every transaction each sum agrees with the rows.

A tenant's day has one row of sums over all its calls, one for each model, and one for each session.  A value that no
call has reported is unknown, not zero, so beside each sum stands the number of calls that reported it.  A turn or an
attempt counts once in a day; turns with calls on several days are listed, to correct a sum over several days.
"""

from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["KNOWN_SUMS", "PARTS", "SUMMED", "SUMS_TABLES", "SUMS_TRIGGERS", "fill_sums"]

PARTS: Final = ("delivered", "wasted")
SUMMED: Final = (
    "tokens_in",
    "tokens_out",
    "tokens_cached",
    "tokens_reasoning",
    "cost_micro_usd",
    "estimated_tokens_out",
)
KNOWN_SUMS: Final = tuple(f"{part}_{name}" for part in PARTS for name in SUMMED)
"""The sums that are unknown, not zero, where no call has reported the value."""

_READ: Final = (
    "run_id",
    "attempt",
    "call_index",
    "tenant_id",
    "session_id",
    "recorded_at",
    "model",
    "outcome",
    "wasted",
    *SUMMED,
    "estimated_cost_micro_usd",
)
_WIDTH: Final = 110


def _of_part(part: str) -> dict[str, str]:
    """Return the sums of a part; ``c.<part>_part`` is 1 for a row of the part, -1 for a removed row of it, else 0."""
    of = f"c.{part}_part"
    sums = {
        "calls": of,
        "unknown_calls": f"{of} * (c.tokens_in IS NULL OR c.tokens_out IS NULL)",
        "unpriced_calls": f"{of} * (c.cost_micro_usd IS NULL)",
    }
    for name in SUMMED:
        sums |= {name: f"{of} * coalesce(c.{name}, 0)", f"{name}_known": f"{of} * (c.{name} IS NOT NULL)"}
    return {f"{part}_{name}": each for name, each in sums.items()}


_SUMS: Final = {
    "running_calls": "c.sign * (c.outcome = 'running')",
    "budget_micro_usd": "c.sign * coalesce(c.cost_micro_usd, c.estimated_cost_micro_usd, 0)",
    **_of_part("delivered"),
    **_of_part("wasted"),
}
_COUNTED: Final = ("turns", "attempts", *_SUMS)

# Whether a call is the only call of its turn, or of its attempt, in its row of sums.
_ALONE: Final = """NOT EXISTS (
      SELECT 1 FROM chat_usage AS o WHERE o.run_id = c.run_id AND {other}
        AND o.tenant_id = c.tenant_id AND o.session_id = c.session_id
        AND substr(o.recorded_at, 1, 10) = substr(c.recorded_at, 1, 10)
        AND (k.kind <> 'model' OR coalesce(o.model, '') = coalesce(c.model, '')))"""
_ONLY_OF_TURN: Final = _ALONE.format(other="(o.attempt <> c.attempt OR o.call_index <> c.call_index)")
_ONLY_OF_ATTEMPT: Final = _ALONE.format(other="o.attempt = c.attempt AND o.call_index <> c.call_index")


def _lines(items: Iterable[str], indent: str) -> str:
    """Return *items*, separated by commas, in lines of at most about 110 characters."""
    lines, line = [], indent
    for item in items:
        if len(line) + len(item) > _WIDTH and line.strip():
            lines.append(line.rstrip())
            line = indent
        line += f"{item}, "
    return "\n".join([*lines, line.rstrip()]).rstrip(",")


_SUMS_OF: Final = f"""INTO chat_usage_sums (
{_lines(("tenant_id", "kind", "key", "day", *_COUNTED), "    ")})"""


def _row(name: str, sign: int) -> str:
    """Return the SELECT of the ledger row *name*, added (*sign* 1) or removed (*sign* -1)."""
    parts = [
        f"{sign} AS sign",
        f"{sign} * ({name}.wasted = 0) AS delivered_part",
        f"{sign} * ({name}.wasted = 1 AND {name}.outcome <> 'running') AS wasted_part",
    ]
    return f"SELECT\n{_lines([*parts, *(f'{name}.{column} AS {column}' for column in _READ)], '      ')}"


def _trigger(name: str, event: str, rows: Mapping[str, int], then: str = "") -> str:
    """Return a trigger that changes the sums by *rows* (name and sign), and then runs the statements *then*."""
    changed = "\n    UNION ALL ".join(_row(row, sign) for row, sign in rows.items())
    sums = ",\n".join(f"    sum({each})" for each in _SUMS.values())
    return f"""CREATE TRIGGER IF NOT EXISTS {name} AFTER {event} ON chat_usage BEGIN
  INSERT {_SUMS_OF}
  SELECT c.tenant_id, k.kind,
    iif(k.kind = 'model', coalesce(c.model, ''), iif(k.kind = 'session', c.session_id, '')),
    substr(c.recorded_at, 1, 10),
    sum(c.sign * {_ONLY_OF_TURN}),
    sum(c.sign * {_ONLY_OF_ATTEMPT}),
{sums}
  FROM (
    {changed}) AS c
  CROSS JOIN (SELECT 'day' AS kind UNION ALL SELECT 'model' UNION ALL SELECT 'session') AS k
  WHERE true GROUP BY 1, 2, 3, 4
  ON CONFLICT (tenant_id, kind, key, day) DO UPDATE SET
{_lines((f"{column} = {column} + excluded.{column}" for column in _COUNTED), "    ")};{then}
END;
"""


SUMS_TABLES: Final = f"""
-- What the ledger adds up to, kept by the triggers behind it with every change of a row, whoever makes it.
CREATE TABLE IF NOT EXISTS chat_usage_sums (
  tenant_id TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('day', 'model', 'session')),       -- of all calls of a day, or some of them
  key TEXT NOT NULL,                    -- which model or session; '' for all, and where nobody said the model
  day TEXT NOT NULL CHECK (length(day) = 10),           -- YYYY-MM-DD, UTC, on which the calls were first on record
  turns INTEGER NOT NULL,               -- that have a call of the day; one of two days counts on both
  attempts INTEGER NOT NULL,            -- likewise
  running_calls INTEGER NOT NULL,
  budget_micro_usd INTEGER NOT NULL,    -- for budgets: what calls cost, estimated where nobody knows
{chr(10).join(f"  {name} INTEGER NOT NULL," for name in tuple(_SUMS)[2:])}
  PRIMARY KEY (tenant_id, kind, key, day)
) STRICT, WITHOUT ROWID;

-- Turns with calls of several days, by which turns and attempts of a period are put right.
CREATE TABLE IF NOT EXISTS chat_usage_spans (
  tenant_id TEXT NOT NULL,
  run_id TEXT NOT NULL,
  PRIMARY KEY (tenant_id, run_id)
) STRICT, WITHOUT ROWID;
"""

_NOTE_SPAN: Final = """
  INSERT INTO chat_usage_spans (tenant_id, run_id) SELECT NEW.tenant_id, NEW.run_id WHERE EXISTS (
    SELECT 1 FROM chat_usage
    WHERE run_id = NEW.run_id AND substr(recorded_at, 1, 10) <> substr(NEW.recorded_at, 1, 10))
  ON CONFLICT (tenant_id, run_id) DO NOTHING;"""
_FORGET_GROUPS: Final = """
  DELETE FROM chat_usage_sums WHERE tenant_id = OLD.tenant_id AND kind IN ('day', 'model', 'session')
    AND key IN ('', coalesce(OLD.model, ''), OLD.session_id) AND day = substr(OLD.recorded_at, 1, 10)
    AND turns = 0{moved};"""
_MOVED: Final = " AND (NEW.model IS NOT OLD.model OR NEW.tenant_id <> OLD.tenant_id)"
_FORGET_SPAN: Final = """
  DELETE FROM chat_usage_spans WHERE tenant_id = OLD.tenant_id AND run_id = OLD.run_id
    AND NOT EXISTS (SELECT 1 FROM chat_usage WHERE run_id = OLD.run_id);"""
_MOVE_SPAN: Final = """
  UPDATE OR REPLACE chat_usage_spans SET tenant_id = NEW.tenant_id, run_id = NEW.run_id
  WHERE (NEW.tenant_id <> OLD.tenant_id OR NEW.run_id <> OLD.run_id)
    AND tenant_id = OLD.tenant_id AND run_id = OLD.run_id;"""

SUMS_TRIGGERS: Final = "".join(
    [
        _trigger("chat_usage_inserted", "INSERT", {"NEW": 1}, _NOTE_SPAN),
        _trigger(
            "chat_usage_updated", "UPDATE", {"OLD": -1, "NEW": 1}, _MOVE_SPAN + _FORGET_GROUPS.format(moved=_MOVED)
        ),
        _trigger("chat_usage_deleted", "DELETE", {"OLD": -1}, _FORGET_SPAN + _FORGET_GROUPS.format(moved="")),
    ]
)


def _fill(kind: str, key: str, condition: str) -> str:
    return f"""INSERT OR REPLACE {_SUMS_OF}
SELECT c.tenant_id, '{kind}', {key}, substr(c.recorded_at, 1, 10),
  count(DISTINCT c.run_id), count(DISTINCT c.run_id || ' ' || c.attempt),
{_lines((f"sum({each})" for each in _SUMS.values()), "  ")}
FROM ({_row("u", 1)} FROM chat_usage AS u WHERE {condition}) AS c GROUP BY 1, 3, 4;
"""


def fill_sums(condition: str) -> str:
    """Return the SQL that sums up the present rows of the ledger for which *condition* holds."""
    keys = {"day": "''", "model": "coalesce(c.model, '')", "session": "c.session_id"}
    return (
        "".join(_fill(kind, key, condition) for kind, key in keys.items())
        + f"""\
INSERT OR IGNORE INTO chat_usage_spans (tenant_id, run_id)
SELECT tenant_id, run_id FROM chat_usage WHERE {condition} GROUP BY tenant_id, run_id
HAVING min(substr(recorded_at, 1, 10)) <> max(substr(recorded_at, 1, 10));
"""
    )
