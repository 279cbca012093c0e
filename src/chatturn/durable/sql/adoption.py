"""
The SQL that lets a run of agent-runtime go on under an id of ours, as part of the claim's batch.

agent-runtime's ids are ``chat:<session>:<turn_index>``, without a tenant.  A turn that has no run under our id, but
one under agent-runtime's with the same manifest, is taken for that run:

* completed: it is read where it is, and nothing is written;
* leased: it is refused like any other run whose lease is live;
* else it is renamed, with its steps and events, and claimed.

The rename is the fence.  agent-runtime's writes name no holder and no epoch, only the run's id.  So after the rename a
worker of agent-runtime that was thought dead finds nothing to write to.

In every statement ``?1`` is our id; agent-runtime's id stands last.
"""

from typing import Final

from chatturn.database.api import NOW, Statement
from chatturn.durable.sql.runs import CLAIM_RUN, CLAIM_WHERE, GUARDED, LOAD_RUN, LOAD_STEPS, MOMENT

__all__ = [
    "CLAIM_RUN_UNLESS_LEGACY",
    "CLAIM_RUN_UNLESS_SAME_LEGACY",
    "LOAD_RUN_OR_LEGACY",
    "LOAD_STEPS_OR_LEGACY",
    "adoption",
    "either",
]

_HAS_RUN: Final = "EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1)"

_ADOPTABLE: Final = f"""
EXISTS (
  SELECT 1 FROM durable_runs WHERE run_id = ?4 AND manifest_hash = ?2 AND status <> 'completed'
    AND (lease_holder_id IS NULL OR lease_expires_at IS NULL OR lease_expires_at <= {MOMENT.format("?3")}))
AND NOT {_HAS_RUN} AND {GUARDED}
"""

# The run last: while it has their id, each statement finds it so.
_RENAME: Final = tuple(
    f"UPDATE {table} SET run_id = ?1 WHERE run_id = ?4 AND {_ADOPTABLE}"
    for table in ("durable_steps", "durable_events", "durable_runs")
)

CLAIM_RUN_UNLESS_LEGACY: Final = CLAIM_RUN.replace(
    CLAIM_WHERE,
    f"WHERE {_HAS_RUN} OR NOT EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?11 AND (manifest_hash = ?3"
    " OR (status = 'completed' AND project_id = ?4)))",
)
"""Where theirs of the same project is completed with another manifest it is refused, as a run of ours is."""

CLAIM_RUN_UNLESS_SAME_LEGACY: Final = CLAIM_RUN.replace(
    CLAIM_WHERE,
    f"WHERE {_HAS_RUN} OR NOT EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?11 AND manifest_hash = ?3)",
)
"""Of a claim that supersedes: where theirs has another manifest, ours takes its place, and theirs stays as it is."""


def either(placeholder: str) -> str:
    """Return the SQL of the id under which the run is: ours, if there is one, else theirs."""
    return f"coalesce((SELECT run_id FROM durable_runs WHERE run_id = ?1), {placeholder})"


LOAD_RUN_OR_LEGACY: Final = LOAD_RUN.replace("run_id = ?1", f"run_id = {either('?3')}")
LOAD_STEPS_OR_LEGACY: Final = LOAD_STEPS.replace("run_id = ?1", f"run_id = {either('?3')}")


def adoption(run_id: str, digest: str, legacy_run_id: str) -> list[Statement]:
    """Rename agent-runtime's run to our id, unless it is completed, leased or of another manifest, or we have one."""
    return [Statement(text, (run_id, digest, NOW, legacy_run_id)) for text in _RENAME]
