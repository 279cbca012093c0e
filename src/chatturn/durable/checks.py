"""Whether a write succeeded or was refused, judged by the rows after it: the only place that decides this."""

from collections.abc import Sequence

from chatturn.database.api import Row
from chatturn.durable.records import Lease, RunRecord, RunStatus, StepRecord, StepStatus
from chatturn.durable.rows import run_from_row
from chatturn.durable.store import Begin
from chatturn.errors import (
    DurableRunDivergenceError,
    DurableRunInputMismatchError,
    DurableRunLeaseHeldError,
    LeaseLost,
    RunNotFound,
    StepInputMismatch,
)

__all__ = ["claimed", "ended", "may_be_refused", "require_begun", "require_intent", "require_status", "waits_elsewhere"]


def claimed(row: Row, digest: str, holder: str, lease_ms: int, *, supersede: bool) -> Lease | None:
    """Return the claim's lease, or None for a completed run; raise if the run's row after the claim says refused."""
    run_id = str(row["run_id"])
    if row["lease_holder_id"] == holder:
        expires_at = str(row["lease_expires_at"])
        epoch = int(row["epoch"] or 0)
        return Lease(run_id=run_id, holder=holder, epoch=epoch, expires_at=expires_at, lease_ms=lease_ms)
    if row["manifest_hash"] != digest and not supersede:
        raise DurableRunInputMismatchError("it was created with another manifest", run_id=run_id)
    if row["status"] == RunStatus.COMPLETED:
        return None
    left_ms = int(row["lease_left_ms"] or 0)
    message = f"{row['lease_holder_id']!r} holds its lease until {row['lease_expires_at']}"
    same_input = row["manifest_hash"] == digest
    raise DurableRunLeaseHeldError(message, run_id=run_id, retry_after_ms=left_ms, same_input=same_input)


def may_be_refused(rows: Sequence[Row], digest: str, holder: str, *, supersede: bool) -> bool:
    """Say whether a guard may have refused the claim; *rows* is the run after it."""
    if not rows:
        return True
    [row] = rows
    if row["lease_holder_id"] == holder or (row["manifest_hash"] != digest and not supersede):
        return False
    return row["status"] == RunStatus.PENDING or (row["status"] != RunStatus.COMPLETED and not row["lease_left_ms"])


def waits_elsewhere(rows: Sequence[Row], waits_as: str | None) -> bool:
    """Say whether another caller than *waits_as* waits for the run's start under a live lease."""
    return any(row["lease_left_ms"] and row["lease_holder_id"] != waits_as for row in rows)


def ended(lease: Lease, status: RunStatus, rows: Sequence[Row]) -> RunRecord:
    """
    Return the run that this claim has just ended or released, from its row.

    The epoch is the lease's, so nobody has claimed the run since.  If the status is the wanted one, this claim has
    written it: now, or in an earlier try whose reply was lost.
    """
    if not rows:
        raise RunNotFound("it was deleted while it ran", run_id=lease.run_id)
    record = run_from_row(rows[0])
    if record.epoch != lease.epoch or record.status is not status or record.lease_holder_id is not None:
        raise LeaseLost("the run has another holder; nothing was written", run_id=lease.run_id)
    return record


def require_begun(step: StepRecord, begin: Begin) -> None:
    """Refuse a step that `BEGIN_STEP` did not write: the record has another intent or another input."""
    require_intent(step, begin)
    if begin.input_hash and step.input_hash and step.input_hash != begin.input_hash:
        message = f"step {step.step_index} ({step.intent!r}) is on record with another input"
        raise StepInputMismatch(message, run_id=step.run_id)


def require_intent(step: StepRecord, begin: Begin) -> None:
    """Refuse a step whose recorded intent is another one; the message names both."""
    if step.intent != begin.intent:
        message = f"step {step.step_index} is {step.intent!r} on record, but {begin.intent!r} was asked for"
        raise DurableRunDivergenceError(message, run_id=step.run_id)


def require_status(step: StepRecord, status: StepStatus) -> StepRecord:
    """Return *step* if the write gave it *status*; refuse a step that the write did not change."""
    if step.status is not status:
        message = f"step {step.step_index} ({step.intent!r}) is {step.status}, so it cannot become {status}"
        raise DurableRunDivergenceError(message, run_id=step.run_id)
    return step
