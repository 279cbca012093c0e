"""
`run_durable_turn`: a streaming turn that is answered once, whatever happens to the workers that run it.

A turn is a run whose first step's result is the final text; a producer may add steps of its own behind it::

    claim ──▶ completed before? ──yes──▶ replay: one event made from the stored text; nothing is written
                    │ no
                    ▼
              produce ──▶ forward every event ──▶ transform ──▶ settle: step, run and more in one write
                    │ error, abandonment, cancellation                     │ reply lost
                    ▼                                                      ▼
              settle as failed: the next request may claim at once      tried again, recognised by epoch

A producer that waits for longer than a worker should suspends the run instead: lease and worker are released, and
the next claim goes on.  A turn that is cancelled is completed with what it has said so far.  A worker that dies
anywhere leaves the run as the last write left it: claimable when the lease lapses.  A worker that lost its lease
writes nothing at all.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, Generic, NoReturn, Protocol, TypeVar

from chatturn.database.api import Row, Statement
from chatturn.durable.heartbeat import RENEWALS_PER_TERM, Heartbeat
from chatturn.durable.records import Claim, DurableRunManifest, Lease, RunOutcome, RunRecord, RunStatus, StepKind
from chatturn.durable.settling import Settling, TurnEnd
from chatturn.durable.store import Begin, DurableRunStore, News
from chatturn.durable.suspension import Suspended, ungrouped_waits
from chatturn.errors import DurableRunDivergenceError, EmptyAnswer, LeaseLost, TurnCancelled
from chatturn.jsontext.canonical import canonical_hash, derive_worker_id
from chatturn.telemetry.operator_log import OperatorLog, print_log

__all__ = [
    "DurableTurnHandle",
    "DurableTurnProducer",
    "RunDurableTurnOptions",
    "TurnEnd",
    "run_durable_turn",
]

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)

_STEP_INDEX: Final = 0
_DEFAULT_TURN_LEASE_MS: Final = 60_000


class DurableTurnProducer(Protocol[E_co]):
    """The live side of a turn."""

    @property
    def stream(self) -> AsyncGenerator[E_co, None]:
        """The turn's events.  Closed as soon as the turn ends for any reason."""

    def final_text(self) -> str | None:
        """Return the answer; asked once, after `stream` has drained.  None: take what was accumulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDurableTurnOptions(Generic[E]):
    """
    What `run_durable_turn` needs.

    Attributes:
        store: Where the run is.
        run_id: Stable per turn: the same on a retry is what makes the replay.
        manifest: What the turn is; another one under the same id is refused.
        produce: Builds the producer; called once per claimed attempt, never for a replay.
        replay_event: Makes the one event of a replay from the stored text.
        worker_id: Who runs it; a fresh one per turn by default.
        lease_ms: How long the turn may be silent towards the store before others may take it over.
        renewals_per_term: How often the lease is renewed in that time.
        news: What to hear with every renewal.
        intent: The step's label.
        accumulate: Sees each event and returns the text so far, or None to leave it; for producers that do
            not know their final text.
        said_so_far: Returns what a turn that is cancelled keeps as its answer; by default what was accumulated.
        transform: Applied to the answer before anything is stored (redaction).
        begin_with: Writes of the claim's transaction, as in `DurableRunStore.start_or_resume`.
        read_with: Reads of the claim's transaction; their rows are in the claim.
        supersede: Start a turn that has another manifest anew instead of refusing it.
        legacy_run_id: What agent-runtime calls the run, as in `DurableRunStore.start_or_resume`; or None.
        end_with: Makes the statements of the last write's transaction, as in `Settlement.with_statements`.
        log: Takes failures that must not mask another error.
    """

    store: DurableRunStore
    run_id: str
    manifest: DurableRunManifest
    produce: Callable[[], DurableTurnProducer[E]]
    replay_event: Callable[[str], E]
    worker_id: str = field(default_factory=derive_worker_id)
    lease_ms: int = _DEFAULT_TURN_LEASE_MS
    renewals_per_term: float = RENEWALS_PER_TERM
    news: News | None = None
    intent: str = "turn"
    accumulate: Callable[[E, str], str | None] | None = None
    said_so_far: Callable[[], str] | None = None
    transform: Callable[[str], Awaitable[str]] | None = None
    begin_with: Sequence[Statement] = ()
    read_with: Sequence[Statement] = ()
    supersede: bool = False
    legacy_run_id: str | None = None
    end_with: Callable[[TurnEnd], Sequence[Statement]] = lambda _end: ()
    log: OperatorLog = print_log


class DurableTurnHandle(Generic[E]):
    """
    One turn, about to run or to replay.

    Iterate `stream` to run it.  The other members speak after it has drained, except `claim`, which may be
    awaited before to learn whether the turn can run at all.
    """

    def __init__(self, options: RunDurableTurnOptions[E]) -> None:
        self._options = options
        self._claim: Claim | None = None
        self._claimed_at = 0.0
        self._heartbeat: Heartbeat | None = None
        self._said = _Text[E](options.accumulate)
        self._text = ""
        self._replayed = False
        self._cancelled: str | None = None
        self._settling = Settling(
            options.store, step_index=_STEP_INDEX, intent=options.intent, end_with=options.end_with, log=options.log
        )
        self.stream: AsyncGenerator[E, None] = self._stream()

    def final_text(self) -> str:
        """Return the turn's final text as it is stored."""
        return self._text

    def replayed(self) -> bool:
        """Say whether the text came from the store, and no producer ran."""
        return self._replayed

    def cancelled(self) -> str | None:
        """Say why the turn was cancelled, now or before; None if it was not."""
        return self._cancelled

    def record(self) -> RunRecord | None:
        """Return the run as the turn left it."""
        return self._settling.record

    def stored(self) -> TurnEnd | None:
        """Return how this attempt has ended, once it is known to be stored so; what it says is in its last write."""
        return self._settling.stored

    async def settle_late(self) -> bool:
        """Go on trying to store an answer that `stream` could not; see `Settling.settle_late`."""
        return await self._settling.settle_late()

    async def claim(self) -> Claim:
        """
        Claim the turn's run, once: one round trip.  Leaves the turn to `stream`.

        Raises:
            DurableRunLeaseHeldError: It is running elsewhere.
            DurableRunInputMismatchError: It was started with another manifest.
            StoreUnavailable: The database does not answer.
        """
        if self._claim is None:
            options = self._options
            self._claimed_at = asyncio.get_running_loop().time()
            self._claim = await options.store.start_or_resume(
                run_id=options.run_id,
                manifest=options.manifest,
                worker_id=options.worker_id,
                lease_ms=options.lease_ms,
                begin=Begin(
                    step_index=_STEP_INDEX,
                    intent=options.intent,
                    kind=StepKind.LLM,
                    input_hash=canonical_hash(options.manifest.input),
                ),
                with_statements=options.begin_with,
                reads=options.read_with,
                supersede=options.supersede,
                legacy_run_id=options.legacy_run_id,
            )
            self._settling.record = self._claim.run
            if self._claim.lease is not None:
                self._heartbeat = Heartbeat(
                    options.store,
                    self._claim.lease,
                    options.log,
                    renewals_per_term=options.renewals_per_term,
                    news=options.news,
                )
        return self._claim

    def cancel(self, reason: str) -> None:
        """
        End the turn, now or once it runs: its producer is closed at once, and what it has said is its answer.

        Too late, once the producer has ended: then the answer is whole.
        """
        if self._heartbeat is not None:
            self._heartbeat.interrupt(TurnCancelled(reason, run_id=self._options.run_id))

    def require_held(self) -> None:
        """Raise `LeaseLost` if the lease is known to be lost: then no effect may be had in its name."""
        if self._heartbeat is not None:
            self._heartbeat.require_held()

    async def write(self, statements: Sequence[Statement]) -> list[Sequence[Row]]:
        """Write under the lease while `stream` is iterated; see `Heartbeat.write`."""
        assert self._heartbeat is not None, "a turn that is replayed writes nothing"  # noqa: S101 - a bug elsewhere
        return await self._heartbeat.write(statements)

    async def abandon(self, error: Exception) -> NoReturn:
        """Release the run, if it is claimed, instead of iterating `stream`; raises *error*, which says why."""
        if self._claim is not None and self._claim.lease is not None:
            await self._settling.give_up(self._claim.lease, error)
        raise error

    async def _stream(self) -> AsyncGenerator[E, None]:
        claim = await self.claim()
        stored = _stored_result(claim)
        if stored is not None:
            if claim.lease is not None:
                await self._end_stored(claim.lease)
            self._replayed, self._text, self._cancelled = True, *stored
            yield self._options.replay_event(self._text)
            return
        heartbeat = self._heartbeat
        if heartbeat is None:
            raise DurableRunDivergenceError("it is completed, but holds no answer", run_id=claim.run.run_id)
        heartbeat.start(self._claimed_at)
        try:
            try:
                with ungrouped_waits():
                    async with aclosing(self._produced(heartbeat)) as events:
                        async for event in events:
                            yield event
            except Suspended as suspended:
                # The next claim goes on after the producer's last step.
                await self._settling.suspend(heartbeat.lease, suspended.wait)
            except TurnCancelled as cancelled:
                self._cancelled = cancelled.reason
                await self._keep_what_was_said(heartbeat.lease, cancelled.reason)
            else:
                await self._settle(heartbeat)
        except (Exception, asyncio.CancelledError, GeneratorExit) as error:
            if not (isinstance(error, LeaseLost) and error.run_id == claim.run.run_id):
                await self._settling.give_up(heartbeat.lease, error)
            raise
        finally:
            heartbeat.stop()

    async def _end_stored(self, lease: Lease) -> None:
        """End a run whose worker died, as only agent-runtime can, between its step and its end."""
        outcome = RunOutcome(notes=self._options.intent)
        self._settling.record = await self._options.store.end_run(lease, RunStatus.COMPLETED, outcome)

    async def _produced(self, heartbeat: Heartbeat) -> AsyncGenerator[E, None]:
        """Forward the producer's events, and make the text; every wait for the product ends with the lease."""
        options, said = self._options, self._said
        with heartbeat:
            producer = options.produce()
        async with aclosing(producer.stream) as stream:
            while True:
                with heartbeat:
                    try:
                        event = await anext(stream)
                    except StopAsyncIteration:
                        break
                said.add(event)
                yield event
        heartbeat.allow_no_interruption()
        final = said.final(producer, options.log)
        with heartbeat:
            if final and options.transform is not None:
                final = await options.transform(final)
        if not final:
            raise EmptyAnswer("the producer ended without any text", backend=options.intent)
        self._text = final

    async def _settle(self, heartbeat: Heartbeat) -> None:
        """
        Store the answer.

        Outside the heartbeat's block, though it goes on beating: the write is fenced by itself, and once it is
        applied the lease is released, so a renewal is refused; that must not cancel the wait for the reply.
        """
        heartbeat.require_held()
        await self._settling.complete(heartbeat.lease, self._text)

    async def _keep_what_was_said(self, lease: Lease, reason: str) -> None:
        """Store as much of the answer as there is; what no redactor can look at is not kept."""
        options = self._options
        text = self._said.text if options.said_so_far is None else options.said_so_far()
        if text and options.transform is not None:
            try:
                text = await options.transform(text)
            except Exception as error:  # noqa: BLE001 - a product's code; the turn is over in any case
                options.log("turn.partial_text_lost", {"run_id": options.run_id, "error": error})
                text = ""
        self._text = text
        await self._settling.complete(lease, text, cancelled=reason)


def run_durable_turn(options: RunDurableTurnOptions[E]) -> DurableTurnHandle[E]:
    """
    Run one turn durably: forward its events live, store its text, or replay what was stored.

    Nothing happens before the handle's `stream` is iterated or its `claim` awaited.
    """
    return DurableTurnHandle(options)


class _Text(Generic[E]):
    """The answer from its two sources: what was accumulated, and what the producer says at the end."""

    def __init__(self, accumulate: Callable[[E, str], str | None] | None) -> None:
        self.text = ""
        self._accumulate = accumulate
        self._error: Exception | None = None

    def add(self, event: E) -> None:
        if self._accumulate is None or self._error is not None:
            return
        try:
            text = self._accumulate(event, self.text)
        except Exception as error:  # noqa: BLE001 - it matters only if the producer does not know its text
            self._error = error
        else:
            self.text = self.text if text is None else text

    def final(self, producer: DurableTurnProducer[E], log: OperatorLog) -> str:
        """Return the answer; one source that fails is made up for by the other, as everything was delivered."""
        try:
            text = producer.final_text()
        except Exception as error:
            if not self.text or self._error is not None:
                raise
            log("turn.final_text_failed", {"error": error})
            return self.text
        if not text and self._error is not None:
            raise self._error
        return text or self.text


def _stored_result(claim: Claim) -> tuple[str, str | None] | None:
    """Return the answer on record, and why it is not whole if it was cancelled; None if there is none."""
    for step in claim.completed_steps:
        if step.step_index == _STEP_INDEX and isinstance(step.result, dict):
            text, cancelled = step.result.get("finalText"), step.result.get("cancelled")
            return (text, cancelled) if isinstance(text, str) else None
    return None
