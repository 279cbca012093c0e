"""
`Attempt`: one execution of a run under a lease, from its claim to its end.

::

    claim ──▶ Finished: the run was completed before; nothing is written
      │
      ▼
    Attempt ──▶ kept: the lease is renewed ──▶ settle: Completed │ Cancelled │ Suspended │ Failed
                     held: work that ends with the lease              │ the database is away
                     write: further statements under the lease        ▼
                                                                 settle_late

A worker that dies anywhere leaves the run as the last write left it: claimable when the lease lapses.  A worker that
lost its lease writes nothing at all.

An answer was paid for, so while the database does not reply, storing it is tried again; after the client was told of
the failure, `settle_late` goes on until the lease lapses.  A failure must only let the next attempt claim at once: if
the database refuses its details, it is recorded without them.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Final, Self, TypeVar

from chatturn.database.api import Row, Statement
from chatturn.durable import suspension
from chatturn.durable.ends import Cancelled, Completed, End, Failed, Suspended, code_of
from chatturn.durable.heartbeat import RENEWALS_PER_TERM, Heartbeat
from chatturn.durable.identifiers import derive_worker_id
from chatturn.durable.records import (
    Claim,
    DurableRunManifest,
    Lease,
    RunOutcome,
    RunRecord,
    RunStatus,
    StepError,
)
from chatturn.durable.store import DEFAULT_LEASE_MS, NO_NEWS, Begin, DurableRunStore, Guard, News, Queue, Settlement
from chatturn.errors import (
    ChatTurnError,
    DurableRunDivergenceError,
    DurableRunError,
    LeaseLost,
    RunNotFound,
    StoreUnavailable,
    TurnAborted,
    TurnCancelled,
)
from chatturn.telemetry.operator_log import OperatorLog, print_log

__all__ = ["ENDINGS", "Attempt", "Finished", "RunToClaim"]

E = TypeVar("E")

ENDINGS: Final = (Exception, asyncio.CancelledError, GeneratorExit, suspension.Suspended)
"""Exceptions that end an attempt; any other exception ends the process, which writes nothing."""

_FIRST_LATE_PAUSE_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunToClaim:
    """
    The run to execute, and how to claim it.

    Attributes:
        run_id: Names the run; the same on every attempt.
        manifest: What the run is; another one under the same id is refused.
        answer: The step whose result is the run's answer; None for a run whose results are all in its steps.
        outcome: The outcome of a completed run that has no answer.
        worker_id: Who claims; a fresh one by default.
        lease_ms: The lease's term: after so many milliseconds without a renewal another worker may claim the run.
        renewals_per_term: Renewals in one term of the lease; 3 by default.
        with_statements: Writes of the claim's transaction, as in `DurableRunStore.start_or_resume`.
        reads: Reads of the claim's transaction; their rows are in the claim.
        supersede: Start a run that has another manifest anew instead of refusing it.
        legacy_run_id: What agent-runtime calls the run, as in `DurableRunStore.start_or_resume`; or None.
        guards: Conditions that must hold for the run to be claimed.
        ends_with: Statements of the write that ends the attempt, whatever its end; see `Settlement.with_statements`.
        queue: The queue in which the run waits for its start; None if it never waits.
        end_news: What to read with the write that ends the run.
    """

    run_id: str
    manifest: DurableRunManifest
    answer: Begin | None = None
    outcome: RunOutcome | None = None
    worker_id: str = field(default_factory=derive_worker_id)
    lease_ms: int = DEFAULT_LEASE_MS
    renewals_per_term: float = RENEWALS_PER_TERM
    with_statements: Sequence[Statement] = ()
    reads: Sequence[Statement] = ()
    supersede: bool = False
    legacy_run_id: str | None = None
    guards: Sequence[Guard] = ()
    ends_with: Sequence[Statement] = ()
    queue: Queue | None = None
    end_news: News = NO_NEWS


@dataclass(frozen=True, slots=True)
class Finished:
    """
    A run that was completed before: only its end is left to report.

    Attributes:
        claim: What the claim found; it has no lease.
    """

    claim: Claim

    def answer(self, step_index: int) -> Completed | Cancelled:
        """
        Return how the run has ended.

        Raises:
            DurableRunDivergenceError: The run holds no answer at *step_index*.
        """
        found = _stored_answer(self.claim, step_index)
        if found is None:
            raise DurableRunDivergenceError("it is completed, but holds no answer", run_id=self.claim.run.run_id)
        return found


class Attempt:
    """
    One execution of a run under a lease; made by `claim_run`.

    Attributes:
        claim: What the claim found.
        lease: The lease as it was granted.
        record: The run as this attempt last read or wrote it.
        stored: The attempt's end, once it is known to be stored; None before.
    """

    def __init__(
        self,
        store: DurableRunStore,
        run: RunToClaim,
        claim: Claim,
        lease: Lease,
        *,
        claimed_at: float,
        log: OperatorLog,
    ) -> None:
        self.claim = claim
        self.lease = lease
        self.record: RunRecord = claim.run
        self.stored: End | None = None
        self._store = store
        self._run = run
        self._log = log
        self._claimed_at = claimed_at
        self._heartbeat = Heartbeat(store, lease, log, renewals_per_term=run.renewals_per_term)
        self._unsettled: tuple[Settlement, End] | None = None

    @classmethod
    async def claim_run(cls, store: DurableRunStore, run: RunToClaim, log: OperatorLog = print_log) -> Self | Finished:
        """
        Claim a run, in one round trip.

        A run of agent-runtime whose worker died after its answer and before its end is ended in a second round trip.

        Args:
            store: Where the run is.
            run: Which one.
            log: Takes failures that must not mask another error.

        Raises:
            DurableRunLeaseHeldError: It is running elsewhere.
            DurableRunInputMismatchError: It was started with another manifest.
            Queued: The run has to wait for its start.
            StoreUnavailable: The database does not answer.
        """
        claimed_at = asyncio.get_running_loop().time()
        claim = await store.start_or_resume(
            run_id=run.run_id,
            manifest=run.manifest,
            worker_id=run.worker_id,
            lease_ms=run.lease_ms,
            begin=run.answer,
            with_statements=run.with_statements,
            reads=run.reads,
            supersede=run.supersede,
            legacy_run_id=run.legacy_run_id,
            guards=run.guards,
            ends_with=run.ends_with,
            queue=run.queue,
        )
        if claim.lease is None:
            return Finished(claim)
        if run.answer is not None and _stored_answer(claim, run.answer.step_index) is not None:
            outcome = RunOutcome(notes=run.answer.intent)
            await store.end_run(claim.lease, RunStatus.COMPLETED, outcome, run.ends_with)
            return Finished(claim)
        return cls(store, run, claim, claim.lease, claimed_at=claimed_at, log=log)

    @property
    def run_id(self) -> str:
        """The run."""
        return self.lease.run_id

    @property
    def number(self) -> int:
        """Which attempt at the run this is, from 1."""
        return self.lease.epoch

    def elapsed_ms(self) -> int:
        """Return how long ago the run was claimed."""
        return round((asyncio.get_running_loop().time() - self._claimed_at) * 1000)

    # Working under the lease.

    @contextmanager
    def kept(self, news: News = NO_NEWS) -> Iterator[None]:
        """Renew the lease while the block runs, and hear the news with each renewal."""
        self._heartbeat.start(self._claimed_at, news)
        try:
            yield
        finally:
            self._heartbeat.stop()

    def held(self) -> Heartbeat:
        """Return the context manager for work that must not outlive the lease: ``with attempt.held():``."""
        return self._heartbeat

    def require_held(self) -> None:
        """Raise `LeaseLost` if the lease is known to be lost: without a lease the attempt must cause no effect."""
        self._heartbeat.require_held()

    def ended(self) -> DurableRunError | None:
        """Return why the work is over before it is done: `LeaseLost`, or what stopped it; None while it goes on."""
        return self._heartbeat.ended

    async def forwarded(self, stream: AsyncGenerator[E, None]) -> AsyncGenerator[E, None]:
        """Yield what *stream* yields; a lost lease ends every wait for it.  Closing this generator closes *stream*."""
        async with aclosing(stream):
            while True:
                with self._heartbeat:
                    try:
                        event = await anext(stream)
                    except StopAsyncIteration:
                        return
                yield event

    async def write(self, statements: Sequence[Statement]) -> list[Sequence[Row]]:
        """Write under the lease; see `Heartbeat.write`."""
        return await self._heartbeat.write(statements)

    def cancel(self, reason: str) -> None:
        """
        Stop the attempt for good: `TurnCancelled` ends the work in `held`, now or as that work begins.

        Does nothing once the work is `done`: then the answer is whole.
        """
        self._heartbeat.interrupt(TurnCancelled(reason, run_id=self.run_id))

    def abort(self) -> None:
        """Stop the attempt so that the next one may begin: `TurnAborted` ends the work in `held`."""
        self._heartbeat.interrupt(TurnAborted("it was stopped", run_id=self.run_id))

    def done(self) -> None:
        """Note that the work is done up to its last write: from now on it cannot be cancelled."""
        self._heartbeat.allow_no_interruption()

    # Ending.

    def end_of(self, error: BaseException) -> Suspended | Failed:
        """
        Return the end of an attempt that has raised *error*, one of `ENDINGS`.

        Raises:
            LeaseLost: *error* itself, when this run's lease is lost: nothing may be written any more.
        """
        if isinstance(error, suspension.Suspended):
            return Suspended(error.wait)
        if isinstance(error, LeaseLost) and error.run_id == self.run_id:
            raise error
        return Failed(error)

    async def settle(self, end: End, last: Callable[[End], Sequence[Statement]] = lambda _end: ()) -> None:
        """
        Store how the attempt ends, and release the run; an end that cannot be stored makes it a failure.

        Call it outside `held`, while the lease is still renewed.  The write has its own fence, and releases the lease;
        a renewal after it is refused, and that refusal must not cancel the wait for the write's reply.

        Args:
            end: The attempt's end.  For a `Failed` end nothing is raised: the caller reports the error.
            last: Makes further statements of the last write, as in `Settlement.with_statements`.

        Raises:
            StoreUnavailable: An answer is not known to be stored; `settle_late` goes on trying.
            LeaseLost: Another worker has the run; nothing was written.
            StoreError, TypeError: The end cannot be stored.
        """
        if isinstance(end, Failed):
            await self._fail(end, last)
            return
        try:
            self.require_held()
            await self._store_end(end, last(end))
        except (Exception, asyncio.CancelledError) as error:
            if self._unsettled is None and not (isinstance(error, LeaseLost) and error.run_id == self.run_id):
                await self._fail(Failed(error), last)
            raise

    async def settle_late(self) -> bool:
        """
        Go on trying to store an answer that `settle` could not, until it is stored or the lease has lapsed.

        Call it after the client was told of the failure: once the answer is stored, a retry replays it.  Raises
        nothing but cancellation; a lost answer is logged.

        Returns:
            Whether the answer is stored now; False also if there was nothing to do.
        """
        if self._unsettled is None:
            return False
        settlement, end = self._unsettled
        try:
            async with asyncio.timeout(self.lease.lease_ms / 1000):
                self._ended(end, await self._insist(settlement))
        except Exception as error:  # noqa: BLE001 - the lease's end, a refusal: lost in any case, and nobody waits
            self._log("turn.answer_lost", {"run_id": self.run_id, "error": error})
            return False
        return True

    async def _store_end(self, end: Completed | Cancelled | Suspended, statements: Sequence[Statement]) -> None:
        store, run, lease = self._store, self._run, self._heartbeat.lease
        statements = [*run.ends_with, *statements]
        if isinstance(end, Suspended):
            self._ended(end, await store.suspend(lease, end.wait, statements))
        elif run.answer is None:
            self._ended(end, await store.end_run(lease, RunStatus.COMPLETED, run.outcome, run.ends_with))
        else:
            settlement = _settlement(run.answer, end, statements, run.end_news)
            try:
                self._ended(end, await store.settle(lease, settlement))
            except StoreUnavailable:
                self._unsettled = settlement, end
                raise

    async def _fail(self, end: Failed, last: Callable[[End], Sequence[Statement]]) -> None:
        """End the run as failed, so that the next attempt may claim at once; raises nothing but cancellation."""
        answer = self._run.answer
        outcome = RunOutcome(passed=False, notes=code_of(end.error))
        try:
            if answer is None:
                record = await self._end_as_failed(outcome)
            else:
                settlement = Settlement(
                    step_index=answer.step_index,
                    error=StepError(message=_storable(end.error), code=code_of(end.error)),
                    outcome=outcome,
                    with_statements=[*self._run.ends_with, *last(end)],
                    news=self._run.end_news,
                )
                record = await self._store.settle(self._heartbeat.lease, settlement)
            self._ended(end, record)
        except (LeaseLost, RunNotFound):
            return  # The run was ended, taken over or deleted: nobody needs this failure.
        except Exception as failure:  # noqa: BLE001 - the first error is what leaves; the lease lapses by itself
            particulars = {"run_id": self.run_id, "cause": end.error, "error": failure}
            if answer is None:
                self._log("run.unsettled", particulars)
                return
            self._log("turn.unsettled", particulars)
            if not isinstance(failure, StoreUnavailable):
                await self._release(outcome)  # The database would refuse the same details again: record without them.

    async def _release(self, outcome: RunOutcome) -> None:
        try:
            self.record = await self._end_as_failed(outcome)
        except Exception as error:  # noqa: BLE001 - the first error is what leaves; the lease lapses by itself
            self._log("turn.unsettled", {"run_id": self.run_id, "error": error})

    async def _end_as_failed(self, outcome: RunOutcome) -> RunRecord:
        return await self._store.end_run(self._heartbeat.lease, RunStatus.FAILED, outcome, self._run.ends_with)

    async def _insist(self, settlement: Settlement) -> RunRecord:
        pause_s = _FIRST_LATE_PAUSE_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                return await self._store.settle(self._heartbeat.lease, settlement)
            except StoreUnavailable:
                pause_s *= 2

    def _ended(self, end: End, record: RunRecord) -> None:
        self.stored, self.record = end, record


def _settlement(answer: Begin, end: Completed | Cancelled, statements: Sequence[Statement], news: News) -> Settlement:
    metadata = {"chars": _utf16_length(end.text)}
    if isinstance(end, Completed):
        result, outcome = {"finalText": end.text}, RunOutcome(notes=answer.intent, metadata=metadata)
    else:
        result = {"finalText": end.text, "cancelled": end.reason}
        outcome = RunOutcome(passed=False, notes="cancelled", metadata=metadata)
    return Settlement(
        step_index=answer.step_index, result=result, outcome=outcome, with_statements=statements, news=news
    )


def _stored_answer(claim: Claim, step_index: int) -> Completed | Cancelled | None:
    for step in claim.completed_steps:
        if step.step_index == step_index and isinstance(step.result, dict):
            text, reason = step.result.get("finalText"), step.result.get("cancelled")
            if not isinstance(text, str):
                return None
            return Completed(text) if reason is None else Cancelled(text, reason)
    return None


def _storable(error: BaseException) -> str:
    """Say what went wrong: our error's message, else only the type, as a foreign message may quote the answer."""
    return str(error) if isinstance(error, ChatTurnError) else type(error).__name__


def _utf16_length(text: str) -> int:
    """Return the length in UTF-16 code units, as agent-runtime counts: an emoji has 2."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
