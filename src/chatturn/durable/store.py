"""
The interface of a store of durable runs: agent-runtime's, with every write under a lease.

::

                 start_or_resume                       end_run(completed)
    (absent) ──┬────────────────────▶ running ───────────────────────────▶ completed
               └──▶ pending ─────────▲ ▲  │ ▲                                  │ start_or_resume:
                     lease lapsed or   │  │ └── renew_lease                    ▼ no lease, read-only
                     released: epoch+1 │  │ end_run(failed)
                                       │  ▼
                                      failed

Timestamps and leases follow the database's clock, never a worker's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from chatturn.database.api import Row, Statement, Value
from chatturn.durable.records import (
    Claim,
    DurableRunManifest,
    EventRecord,
    Lease,
    RunOutcome,
    RunPage,
    RunQuery,
    RunRecord,
    RunStatus,
    StepError,
    StepRecord,
    Wait,
)

__all__ = [
    "DEFAULT_LEASE_MS",
    "DELETED_AT_ONCE",
    "NO_NEWS",
    "Begin",
    "Condition",
    "DurableRunStore",
    "EndStatus",
    "Guard",
    "News",
    "Queue",
    "Queued",
    "Settlement",
]

DEFAULT_LEASE_MS = 30_000

DELETED_AT_ONCE = 50
"""Finished runs deleted in one transaction: a run may have thousands of steps, and D1 ends a query after 30 s."""

EndStatus = Literal[RunStatus.COMPLETED, RunStatus.FAILED]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """
    A step to begin.

    Attributes:
        step_index: 0-based position in the run.
        intent: What it does; another intent at the same position is a divergence.
        kind: A `StepKind`'s value.
        input_hash: The hash of the step's input; ``""`` is not compared.
    """

    step_index: int
    intent: str
    kind: str
    input_hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """
    What a worker wants to read with a write of its own.

    Attributes:
        columns: SQL of the columns to read; see *returning* of `DurableRunStore.write`.
        told: Called with their row, and with the time at which the write was sent, by the event loop's clock.
    """

    columns: str
    told: Callable[[Row, float], None]


NO_NEWS: Final = News(columns="", told=lambda _row, _asked_at: None)
"""Reads nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """
    How a run's last step and the run itself end, in one write.

    Attributes:
        step_index: The position of the step that ends.
        result: The step's result, JSON; for a completed run.
        error: Why the step failed; makes the run failed.
        outcome: The run's outcome.
        with_statements: Further statements of the same transaction.  Their parameters start at ``?4``; the store
            puts the lease's run id, holder and epoch before them, and each carries the guard `sql.runs.HELD`.
        news: What to read with the write that ends the run; not told if the write's reply was lost.
    """

    step_index: int
    result: Any = None
    error: StepError | None = None
    outcome: RunOutcome | None = None
    with_statements: Sequence[Statement] = ()
    news: News = NO_NEWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """
    A condition on a claim, checked in the claim's own transaction.

    Attributes:
        sql: The condition in SQL; ``{0}``, ``{1}``, … stand for the parameters.  It still holds after the claim.
        params: The parameters.
        told: Columns that tell why the condition does not hold, with the same parameters; "" for none.
        told_from: The FROM clause of these columns, with the same parameters; it yields exactly one row.  "" for none.
    """

    sql: str
    params: tuple[Value, ...]
    told: str = ""
    told_from: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard(Condition):
    """
    A condition on a claim that must hold for anything to be written.

    Attributes:
        refusal: Makes the exception for a condition that does not hold, from the row of the told columns.
        only_for_start: True if the condition holds for every run that runs, is suspended or is completed.  Then a claim
            that gets the run, or finds it so, does not read the told columns.  A claim that gets nothing reads them in
            a second round trip.
    """

    refusal: Callable[[Row], Exception]
    only_for_start: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """
    A queue in which a run may have to wait for its start.

    Attributes:
        turn: The condition for the start; until it holds, the run is pending and not claimed.
        lease_ms: The term of a wait: after so many milliseconds without a renewal another caller may start the run.
        holder: The holder of an earlier wait that goes on; None for a new wait.
    """

    turn: Condition
    lease_ms: int
    holder: str | None = None


class Queued(Exception):
    """
    The run is pending: it waits for its start, under a lease of its own.

    Attributes:
        run: The pending run.
        lease: The lease of the wait.
        told: Why it waits: the row of `Condition.told`.
    """

    def __init__(self, run: RunRecord, lease: Lease, told: Row) -> None:
        super().__init__(f"run {run.run_id!r} waits for its start")
        self.run = run
        self.lease = lease
        self.told = told


class DurableRunStore(Protocol):
    """
    Durable runs.  Every method is one round trip and one transaction: it applies whole or not at all.

    All methods raise `StoreUnavailable` when the database does not answer, and `LeaseLost` from every write
    under a lease that is no longer the run's; in both cases no write of this caller is half done.
    """

    async def start_or_resume(
        self,
        *,
        run_id: str,
        manifest: DurableRunManifest,
        worker_id: str,
        lease_ms: int = DEFAULT_LEASE_MS,
        begin: Begin | None = None,
        with_statements: Sequence[Statement] = (),
        reads: Sequence[Statement] = (),
        supersede: bool = False,
        legacy_run_id: str | None = None,
        guards: Sequence[Guard] = (),
        ends_with: Sequence[Statement] = (),
        queue: Queue | None = None,
    ) -> Claim:
        """
        Claim the run, creating it if absent; a completed run is returned without a lease, unchanged.

        Args:
            run_id: Names the run.
            manifest: Must hash to what the run was created with.
            worker_id: The claiming worker; two claims by one worker have two leases.
            lease_ms: The lease's term: after it anybody may claim the run, unless the lease was renewed.
            begin: A step to begin in the same write.
            with_statements: As in `Settlement.with_statements`, but ``?3``, the epoch, is null: it is not known yet.
            reads: Further statements to read with; their rows are in `Claim.rows`.
            supersede: Give a run that has another manifest this one, and start it anew, instead of refusing;
                a live lease still stands.
            legacy_run_id: agent-runtime's id of the run.  If no run exists under *run_id*, agent-runtime's run with
                the same manifest is claimed: a completed run is returned as it is, any other gets the id *run_id*.
            guards: Conditions that must hold; the refusal of the first that does not hold is raised.
            ends_with: Statements, as in `Settlement.with_statements`, of the write that fails a run whose recorded step
                is not *begin*.
            queue: Where a run waits for its start; *with_statements* are also run when it begins to wait.

        Raises:
            Queued: The run has to wait, and is pending.
            DurableRunInputMismatchError: The run has another manifest.
            DurableRunLeaseHeldError: Another claim's lease is live.
            DurableRunDivergenceError: *begin* is not the step recorded at its position.
        """

    async def renew_lease(self, lease: Lease) -> Lease:
        """Extend *lease* by its full term from now; refused, as `LeaseLost`, once it lapsed or was taken over."""

    async def write(
        self, lease: Lease, statements: Sequence[Statement], *, renew: bool, returning: str = ""
    ) -> tuple[Lease, list[Sequence[Row]]]:
        """
        Run further statements under the lease while the run goes on, and with *renew* extend the lease with them.

        Args:
            lease: The run's.
            statements: As in `Settlement.with_statements`.  Each must write the same when run again, and the first
                must return at least one row while the lease is held.
            renew: Whether to extend the lease as well.
            returning: SQL of columns that the renewal returns; ``?1`` is the run, ``?4`` the current time.

        Returns:
            The lease, and the rows of each statement; the renewal's rows are the last.

        Raises:
            LeaseLost: It lapsed or was taken over.
            StoreUnavailable: No reply came; this method does not try again.
        """

    async def load_step(self, run_id: str, step_index: int) -> StepRecord | None:
        """Read one step, whatever its status."""

    async def begin_step(self, lease: Lease, begin: Begin, with_statements: Sequence[Statement] = ()) -> StepRecord:
        """
        Begin a step, or begin it again after it failed or was interrupted.

        *with_statements* join the transaction, as in `Settlement.with_statements`.

        Raises:
            DurableRunDivergenceError: Another intent, or another input, is recorded at this position, or the
                step is completed already.
        """

    async def complete_step(self, lease: Lease, step_index: int, result: Any) -> StepRecord:
        """Record a begun step's result.  Raises `TypeError`, before anything is written, if it is not JSON."""

    async def fail_step(self, lease: Lease, step_index: int, error: StepError) -> StepRecord:
        """Record why a begun step failed; a completed step cannot fail any more."""

    async def end_run(
        self,
        lease: Lease,
        status: EndStatus,
        outcome: RunOutcome | None = None,
        with_statements: Sequence[Statement] = (),
    ) -> RunRecord:
        """End the run and release the lease; further statements as in `Settlement.with_statements`."""

    async def load_steps(self, run_id: str, first_index: int) -> Sequence[StepRecord]:
        """Read the next page of a run's steps, from a position on, and the first step of the page after it."""

    async def record_step(
        self,
        lease: Lease,
        begin: Begin,
        *,
        attempts: int,
        elapsed_ms: int,
        result_json: str | None = None,
        error: StepError | None = None,
        with_statements: Sequence[Statement] = (),
    ) -> None:
        """
        Record a step's outcome in one write, whether it was begun or not; a completed step stays as it is.

        Args:
            lease: The run's.
            begin: The step.
            attempts: Tries of the step, this one included.
            elapsed_ms: Milliseconds since the step began.
            result_json: Its result as JSON text; for a completed step.
            error: Why it failed; for a failed one.
            with_statements: As in `Settlement.with_statements`.

        Raises:
            DurableRunDivergenceError: Another intent is recorded at this position.
        """

    async def suspend(self, lease: Lease, wait: Wait, with_statements: Sequence[Statement] = ()) -> RunRecord:
        """
        Suspend the run until its event or its time has come, and release the lease; then it is claimed as usual.

        *with_statements* join the transaction, as in `Settlement.with_statements`.
        """

    async def due_runs(self, limit: int) -> Sequence[str]:
        """Return the ids of suspended runs whose event or time has come, the longest due first."""

    async def poll_event(self, run_id: str, key: str, since: str) -> tuple[EventRecord | None, int]:
        """Read an event, and how many milliseconds have passed since a timestamp, by the database's clock."""

    async def settle(self, lease: Lease, settlement: Settlement) -> RunRecord:
        """
        End a step, end the run and run its `with_statements`, all in one transaction.

        After a lost reply settle again: the store recognises its own write and reports success.
        """

    async def load_run(self, run_id: str) -> RunRecord | None:
        """Read a run."""

    async def emit_event(self, run_id: str, key: str, payload: Any) -> tuple[bool, EventRecord]:
        """
        Record an event; the first under its key wins.

        Returns:
            Whether this event was the first under its key, and the recorded event.

        Raises:
            RunNotFound: There is no such run; nothing was stored.
        """

    async def load_event(self, run_id: str, key: str) -> EventRecord | None:
        """Read an event."""

    async def list_runs(self, query: RunQuery) -> RunPage:
        """
        Return one page of a list of runs; one page reads a bounded number of rows.

        Raises:
            InvalidField: The cursor is not one of this list's.
        """

    async def delete_finished_runs(self, *, older_than_ms: int, limit: int = DELETED_AT_ONCE) -> int:
        """
        Delete runs that ended more than *older_than_ms* ago, the oldest first, with all their data.

        A run stays if it is running, suspended, being tried again, or has pending hook calls.

        Args:
            older_than_ms: Milliseconds since a run ended, by the database's clock.
            limit: Runs deleted at most, in one transaction; call again until fewer are deleted.

        Returns:
            How many runs were deleted.
        """

    async def close(self) -> None:
        """Release what the store holds; a second time does nothing.  Stored data stays."""
