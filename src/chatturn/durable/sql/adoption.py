"""
The SQL that lets a run of agent-runtime go on under an id of ours, as part of the claim's batch.

agent-runtime's ids are ``chat:<session>:<turn_index>``, without a tenant.  A turn that has no run under our id, but
one under agent-runtime's with the same manifest, is taken for that run:

* completed, with an answer: it is read under agent-runtime's id, and nothing is written;
* leased: the claim is refused, as for any run with a live lease;
* else, and where its answer is empty, it is renamed, with its steps and events, and claimed.

The rename is the fence.  agent-runtime's writes name no holder and no epoch, only the run's id.  So after the rename a
worker of agent-runtime that was thought dead finds nothing to write to.

In every statement ``?1`` is our id; agent-runtime's id stands last.
"""

from typing import Final

from chatturn.database.api import NOW, Statement
from chatturn.durable.sql.runs import CLAIM_RUN, CLAIM_WHERE, GUARDED, LOAD_RUN, LOAD_STEPS, MOMENT

__all__ = [
    "CLAIM_UNLESS_LEGACY",
    "CLAIM_UNLESS_SAME_LEGACY",
    "LOAD_RUN_OR_LEGACY",
    "LOAD_RUN_OR_SAME_LEGACY",
    "LOAD_STEPS_OR_LEGACY",
    "adoption",
    "answered",
    "either",
    "text_of",
]


def text_of(step: str = "") -> str:
    """Return the SQL of the answer that the row of a turn's step holds; null for what is no text."""
    result = f"{step}result_json"
    said = f"CASE json_type({result}, '$.finalText') WHEN 'text' THEN {result} ->> '$.finalText' END"
    return f"CASE WHEN json_valid({result}) THEN {said} END"


def answered(run: str) -> str:
    """Return the SQL of whether a run of agent-runtime holds an answer: an empty one is none."""
    return f"""EXISTS (SELECT 1 FROM durable_steps AS a WHERE a.run_id = {run} AND a.step_index = 0
  AND a.status = 'completed' AND {text_of("a.")} <> '')"""


_HAS_RUN: Final = "EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1)"

_ADOPTABLE: Final = f"""
EXISTS (
  SELECT 1 FROM durable_runs WHERE run_id = ?4 AND manifest_hash = ?2
    AND (status <> 'completed' OR NOT {answered("?4")})
    AND (lease_holder_id IS NULL OR lease_expires_at IS NULL OR lease_expires_at <= {MOMENT.format("?3")}))
AND NOT {_HAS_RUN} AND {GUARDED}
"""

_IS_NO_ANSWER: Final = f"step_index = 0 AND status = 'completed' AND coalesce({text_of()}, '') = ''"

_FORGOTTEN: Final = (
    f"status = CASE WHEN {_IS_NO_ANSWER} THEN 'failed' ELSE status END,"
    f" result_json = CASE WHEN {_IS_NO_ANSWER} THEN NULL ELSE result_json END"
)

# The run last: each statement looks for the run under agent-runtime's id.
_RENAME: Final = tuple(
    f"UPDATE {table} SET {changed} WHERE run_id = ?4 AND {_ADOPTABLE}"
    for table, changed in (
        ("durable_steps", f"run_id = ?1, {_FORGOTTEN}"),
        ("durable_events", "run_id = ?1"),
        ("durable_runs", "run_id = ?1, status = CASE status WHEN 'completed' THEN 'failed' ELSE status END"),
    )
)

_IS_LEASED: Final = f"lease_holder_id IS NOT NULL AND lease_expires_at > {MOMENT.format('{now}')}"
_IS_OVER: Final = f"{_IS_LEASED} OR (status = 'completed' AND {answered('{theirs}')})"


def _unless(refused: str) -> str:
    """Return a claim that makes no run if agent-runtime's has the same manifest, or is the project's and *refused*."""
    refused = refused.format(now="?6", theirs="?12")
    theirs = (
        f"SELECT 1 FROM durable_runs WHERE run_id = ?12 AND (manifest_hash = ?3 OR (project_id = ?4 AND ({refused})))"
    )
    return CLAIM_RUN.replace(CLAIM_WHERE, f"{CLAIM_WHERE} AND ({_HAS_RUN} OR NOT EXISTS ({theirs}))")


CLAIM_UNLESS_LEGACY: Final = _unless(_IS_OVER)
"""A claim, refused if agent-runtime's run has another manifest and is answered or leased."""

CLAIM_UNLESS_SAME_LEGACY: Final = _unless(_IS_LEASED)
"""A claim that supersedes, refused if agent-runtime's run has another manifest and is leased; else it is left alone."""


def either(placeholder: str) -> str:
    """Return the SQL of the run's id: ours if that run exists, else agent-runtime's, which is *placeholder*."""
    return f"coalesce((SELECT run_id FROM durable_runs WHERE run_id = ?1), {placeholder})"


def _load(refused: str) -> str:
    """Return what reads our run after a claim; if there is none, agent-runtime's, if that is why none was made."""
    same, other = (each.format(now="?2", theirs="?3") for each in (_IS_OVER, refused))
    theirs = f"""(SELECT run_id FROM durable_runs
      WHERE run_id = ?3 AND ((manifest_hash = ?4 AND ({same})) OR (project_id = ?5 AND ({other}))))"""
    return LOAD_RUN.replace("run_id = ?1", f"run_id = {either(theirs)}")


LOAD_RUN_OR_LEGACY: Final = _load(_IS_OVER)
"""What a claim has come to; nothing where only a guard has refused it.  ``?4`` the manifest, ``?5`` the project."""

LOAD_RUN_OR_SAME_LEGACY: Final = _load(_IS_LEASED)
"""What a claim that supersedes has come to; the parameters are those of `LOAD_RUN_OR_LEGACY`."""

LOAD_STEPS_OR_LEGACY: Final = LOAD_STEPS.replace("run_id = ?1", f"run_id = {either('?3')}")


def adoption(run_id: str, digest: str, legacy_run_id: str) -> list[Statement]:
    """Rename agent-runtime's run to our id, unless it is answered, leased or of another manifest, or we have one."""
    return [Statement(text, (run_id, digest, NOW, legacy_run_id)) for text in _RENAME]
