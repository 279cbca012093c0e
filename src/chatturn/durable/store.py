"""
What a store of durable runs promises: agent-runtime's interface, every write under a lease.

::

                 start_or_resume                       end_run(completed)
    (absent) ──┬────────────────────▶ running ───────────────────────────▶ completed
               └──▶ pending ─────────▲ ▲  │ ▲                                  │ start_or_resume:
                     lease lapsed or   │  │ └── renew_lease                    ▼ no lease, read-only
                     released: epoch+1 │  │ end_run(failed)
                                       │  ▼
                                      failed

Timestamps and lease decisions are the database's clock, never a worker's.
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
"""Finished runs, in one transaction: a run may have thousands of steps, and D1 ends what takes 30 s."""

EndStatus = Literal[RunStatus.COMPLETED, RunStatus.FAILED]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """
    A step to begin.

    Attributes:
        step_index: 0-based position in the run.
        intent: What it does; another intent at the same position is a divergence.
        kind: A `StepKind`'s value.
        input_hash: Of what it is given; ``""`` is not compared.
    """

    step_index: int
    intent: str
    kind: str
    input_hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """
    What a worker wants to hear with a write of its own.

    Attributes:
        columns: SQL; see `DurableRunStore.write`.
        told: Takes their row, and when it was asked for by the event loop's clock.
    """

    columns: str
    told: Callable[[Row, float], None]


NO_NEWS: Final = News(columns="", told=lambda _row, _asked_at: None)
"""Nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """
    How a run's last step and the run itself end, in one write.

    Attributes:
        step_index: The step that ends.
        result: Its result, JSON; for a completed run.
        error: Why it failed; makes the run failed.
        outcome: The run's.
        with_statements: Further statements of the same transaction.  Their parameters start at ``?4``; the store
            puts the lease's run id, holder and epoch before them, and each carries the guard `sql.runs.HELD`.
        news: What to hear of the write that ends the run; not heard where its reply was lost.
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
    What must hold for a run to be claimed, looked at in the claim's own transaction.

    Attributes:
        sql: SQL, in which ``{0}``, ``{1}``, … stand for its parameters; it still holds behind the claim.
        params: Its parameters.
        told: Columns that tell why it does not hold, with the same parameters; "" for none.
        told_from: The FROM clause of these columns, of one row in any case, likewise; "" for none.
    """

    sql: str
    params: tuple[Value, ...]
    told: str = ""
    told_from: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard(Condition):
    """
    A condition without which nothing is written.

    Attributes:
        refusal: Makes what is raised where it does not hold, of what was told.
        only_for_start: That it holds of each run that is leased or completed.  So a claim that gets the run, or finds
            it so, need not ask what it tells; one that gets nothing does, with a round trip of its own.
    """

    refusal: Callable[[Row], Exception]
    only_for_start: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """
    That a run may have to wait for its start.

    Attributes:
        turn: Without it the run is pending, and not claimed.
        lease_ms: How long who waits may be silent until somebody else may start it.
        holder: Of the wait that goes on; None for a new one.
    """

    turn: Condition
    lease_ms: int
    holder: str | None = None


class Queued(Exception):
    """
    The run is pending: it waits for its start, under a lease of its own.

    Attributes:
        run: As it is now.
        lease: Who waits, until when.
        told: Why, as `Condition.told`.
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
    under a lease that is no longer the run's; in both cases nothing of this caller's is half-written.
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
            worker_id: Who claims; the same worker claiming twice is two claims.
            lease_ms: Until anybody may take the run over, unless it is renewed.
            begin: A step to begin in the same write.
            with_statements: As in `Settlement.with_statements`, but ``?3``, the epoch, is not known yet and null.
            reads: Further statements to read with; their rows are in `Claim.rows`.
            supersede: Give a run that has another manifest this one, and start it anew, instead of refusing;
                a live lease still stands.
            legacy_run_id: What agent-runtime calls the run.  Where there is none of ours, theirs with the
                same manifest is meant: completed, it is returned as it is; else it becomes ours.
            guards: What must hold; what the first makes that does not is raised.
            ends_with: Writes of the end of a run that holds another step than *begin*, as in
                `Settlement.with_statements`.
            queue: What a run waits for that was not begun; *with_statements* are run when it begins to wait as well.

        Raises:
            Queued: It has to wait, and is pending.
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
            statements: As in `Settlement.with_statements`; in addition each writes the same when it is run again, and
                the first returns at least one row while the lease is held.
            renew: Whether to extend the lease as well.
            returning: SQL of columns that extending it returns; ``?1`` is the run, ``?4`` the moment.

        Returns:
            The lease, and the rows of each statement, extending the lease being the last.

        Raises:
            LeaseLost: It lapsed or was taken over.
            StoreUnavailable: No answer came, and nothing is tried again here.
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
        Record what a step came to, begun or not, in one write; a completed step stays as it is.

        Args:
            lease: The run's.
            begin: The step.
            attempts: How often it was tried, this try included.
            elapsed_ms: How long ago it began.
            result_json: Its result as JSON text; for a completed step.
            error: Why it failed; for a failed one.
            with_statements: As in `Settlement.with_statements`.

        Raises:
            DurableRunDivergenceError: Another intent is recorded at this position.
        """

    async def suspend(self, lease: Lease, wait: Wait, with_statements: Sequence[Statement] = ()) -> RunRecord:
        """
        Release the lease until an event comes or a moment has come; the run is claimed again like any other.

        *with_statements* join the transaction, as in `Settlement.with_statements`.
        """

    async def due_runs(self, limit: int) -> Sequence[str]:
        """Return the ids of suspended runs whose event or moment has come, the longest due first."""

    async def poll_event(self, run_id: str, key: str, since: str) -> tuple[EventRecord | None, int]:
        """Read an event, and how many milliseconds have passed since a timestamp, by the database's clock."""

    async def settle(self, lease: Lease, settlement: Settlement) -> RunRecord:
        """
        End a step, end the run and run its `with_statements`, all in one transaction.

        A reply that was lost is recognised: settling again after it reports success.
        """

    async def load_run(self, run_id: str) -> RunRecord | None:
        """Read a run."""

    async def emit_event(self, run_id: str, key: str, payload: Any) -> tuple[bool, EventRecord]:
        """
        Record an event; the first under its key wins.

        Returns:
            Whether this one was the first, and the one that is recorded.

        Raises:
            RunNotFound: There is no such run; nothing was stored.
        """

    async def load_event(self, run_id: str, key: str) -> EventRecord | None:
        """Read an event."""

    async def list_runs(self, query: RunQuery) -> RunPage:
        """
        Return one page of a list of runs; its work is bounded, however many runs there are.

        Raises:
            InvalidField: The cursor is not one of this list's.
        """

    async def delete_finished_runs(self, *, older_than_ms: int, limit: int = DELETED_AT_ONCE) -> int:
        """
        Delete runs that ended longer ago, the oldest first, with all that hangs on them.

        One that is running, suspended, being tried again, or whose hook calls are still to be made, stays.

        Args:
            older_than_ms: Since they ended, by the database's clock.
            limit: Runs deleted in this one transaction, at most; call again until fewer are deleted.

        Returns:
            How many runs were deleted.
        """

    async def close(self) -> None:
        """Release what the store holds; a second time does nothing.  Stored data stays."""
