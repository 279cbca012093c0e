"""
`run_durable`: plain asynchronous code as a durable run.

::

    claim ──▶ completed before? ──yes──▶ the task is replayed from its records; nothing is written
                  │ no
                  ▼
             run the task: each step recorded as it ends, the lease renewed meanwhile
                  │             │                  │
                  │ returns     │ raises           │ waits for long
                  ▼             ▼                  ▼
              completed       failed           suspended: no worker, no lease; an event, a moment or
                                │                  │       the next request claims it again
                                ▼                  ▼
                            the next claim replays the recorded steps and goes on after them
"""

import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Generic, TypeVar

from chatturn.durable.attempt import ENDINGS, Attempt, Finished, RunToClaim
from chatturn.durable.context import ContextSources, DurableContext
from chatturn.durable.ends import Completed, End, Failed, Suspended
from chatturn.durable.identifiers import derive_worker_id
from chatturn.durable.records import DurableRunManifest, RunOutcome, RunRecord, RunStatus, StepRecord
from chatturn.durable.store import DEFAULT_LEASE_MS, DurableRunStore
from chatturn.errors import AttemptsExhausted
from chatturn.product_calls import apart
from chatturn.telemetry.operator_log import OperatorLog, print_log
from chatturn.timestamps import timestamp

__all__ = ["RunDurableInput", "RunDurableResult", "default_sources", "run_durable"]

T = TypeVar("T")

DEFAULT_INLINE_WAIT_MS: Final = 5_000


def default_sources() -> ContextSources:
    """Take the time from the worker's clock, and random values from the system."""
    return ContextSources(
        now=lambda: timestamp(datetime.now(UTC)), uuid=lambda: str(uuid.uuid4()), random=random.SystemRandom().random
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDurableInput(Generic[T]):
    """
    What `run_durable` needs.

    Attributes:
        run_id: Names the run; the same on every attempt.
        manifest: What the run is; another one under the same id is refused.
        store: Records the run.
        task_fn: The task.  Between its steps it must be deterministic.
        worker_id: The worker's name; a fresh one by default.
        lease_ms: The lease's term: after so many milliseconds without a renewal another worker may claim the run.
        default_outcome: The outcome of a run that completes.
        max_attempts: After this number of consecutive attempts without progress the run fails for good; None for no
            cap.  An attempt that completes a step makes progress; an attempt that ends in a wait is not counted.
        inline_wait_ms: How long a wait may hold the worker before the run is suspended.
        sources: The sources of time, UUIDs and random numbers.
        log: Takes failures that must not mask another error.
    """

    run_id: str
    manifest: DurableRunManifest
    store: DurableRunStore
    task_fn: Callable[[DurableContext], Awaitable[T]]
    worker_id: str = field(default_factory=derive_worker_id)
    lease_ms: int = DEFAULT_LEASE_MS
    default_outcome: RunOutcome | None = None
    max_attempts: int | None = None
    inline_wait_ms: int = DEFAULT_INLINE_WAIT_MS
    sources: ContextSources = field(default_factory=default_sources)
    log: OperatorLog = print_log


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDurableResult(Generic[T]):
    """
    The result of one call of `run_durable`.

    Attributes:
        result: What the task returned; None while the run is suspended.
        record: The run, completed or suspended.
        steps: The run's steps on record.
    """

    result: T | None
    record: RunRecord
    steps: Sequence[StepRecord]

    @property
    def suspended(self) -> bool:
        """Whether the run is suspended: the task waits, and has not returned."""
        return self.record.status is RunStatus.SUSPENDED


async def run_durable(run: RunDurableInput[T]) -> RunDurableResult[T]:
    """
    Run or resume a task, to its end or to its next long wait.

    Raises:
        DurableRunLeaseHeldError: The run is running elsewhere.
        DurableRunInputMismatchError: It was started with another manifest.
        DurableRunDivergenceError: The task asks for other steps than those on record, or ends before them.
        AttemptsExhausted: The run has used up *max_attempts*; it is failed.
        LeaseLost: Another worker has taken over; nothing more was written.
        Exception: Whatever the task raises, unchanged; the run is failed, and the next call goes on after the
            last recorded step.
    """
    claimed = await Attempt.claim_run(
        run.store,
        RunToClaim(
            run_id=run.run_id,
            manifest=run.manifest,
            outcome=run.default_outcome,
            worker_id=run.worker_id,
            lease_ms=run.lease_ms,
        ),
        run.log,
    )
    context = _context(run, claimed)
    if isinstance(claimed, Finished):
        async with context.task():
            result = await run.task_fn(context)
            context.require_all_consumed()
        return RunDurableResult(result=result, record=claimed.claim.run, steps=context.steps())
    return await _run_leased(run, context, claimed)


async def _run_leased(run: RunDurableInput[T], context: DurableContext, attempt: Attempt) -> RunDurableResult[T]:
    result: T | None = None
    end: End = Completed()
    with attempt.kept():
        try:
            result = await apart(_worked(run, context, attempt), context.stop)
        except ENDINGS as error:
            end = attempt.end_of(error)
        await attempt.settle(end)
    if isinstance(end, Failed):
        raise end.error
    return RunDurableResult(
        result=None if isinstance(end, Suspended) else result, record=attempt.record, steps=context.steps()
    )


async def _worked(run: RunDurableInput[T], context: DurableContext, attempt: Attempt) -> T:
    with attempt.held():
        async with context.task():
            _require_attempt(run, attempt.claim.run)
            result = await run.task_fn(context)
            context.require_all_consumed()
        return result


def _context(run: RunDurableInput[T], claimed: Attempt | Finished) -> DurableContext:
    claim = claimed.claim
    return DurableContext(
        store=run.store,
        lease=claim.lease,
        run_id=run.run_id,
        project_id=run.manifest.project_id,
        scenario_id=run.manifest.scenario_id,
        recorded=claim.steps,
        sources=run.sources,
        inline_wait_ms=run.inline_wait_ms,
        log=run.log,
        key_name=claim.run.key_name,
        ended=claimed.ended if isinstance(claimed, Attempt) else lambda: None,
    )


def _require_attempt(run: RunDurableInput[T], record: RunRecord) -> None:
    if run.max_attempts is not None and record.idle_attempts > run.max_attempts:
        message = f"it has come no further in {record.idle_attempts - 1} attempts"
        raise AttemptsExhausted(message, run_id=record.run_id)
