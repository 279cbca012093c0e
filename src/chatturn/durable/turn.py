"""
`run_durable_turn`: a streaming turn that is answered once, whatever happens to the workers that run it.

A turn is a run with one step, whose result is the final text::

    claim ──▶ completed before? ──yes──▶ replay: one event made from the stored text; nothing is written
                    │ no
                    ▼
              produce ──▶ forward every event ──▶ transform ──▶ settle: step, run and companions in one write
                    │ error, abandonment, cancellation                     │ reply lost
                    ▼                                                      ▼
              settle as failed: the next request may claim at once      tried again, recognised by epoch

A worker that dies anywhere leaves the run as the last write left it: claimable when the lease lapses.  A
worker that lost its lease writes nothing at all.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

from chatturn.canonical import canonical_hash, derive_worker_id
from chatturn.databases import Statement
from chatturn.durable.heartbeat import Heartbeat
from chatturn.durable.store import Begin, DurableRunStore, Settlement
from chatturn.errors import ChatTurnError, EmptyAnswer, LeaseLost, StoreError, StoreUnavailable, TurnAborted
from chatturn.records import Claim, DurableRunManifest, Lease, RunOutcome, RunRecord, StepError, StepKind
from chatturn.telemetry.logs import Log, print_log

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
_FIRST_LATE_PAUSE_S: Final = 1.0


class DurableTurnProducer(Protocol[E_co]):
    """The live side of a turn."""

    @property
    def stream(self) -> AsyncGenerator[E_co, None]:
        """The turn's events.  Closed as soon as the turn ends for any reason."""

    def final_text(self) -> str | None:
        """Return the answer; asked once, after `stream` has drained.  None: take what was accumulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnd:
    """
    How a turn is about to end, for whoever adds to its last write.

    Attributes:
        text: The answer as it will be stored; None if there is none.
        error: Why there is none.
    """

    text: str | None = None
    error: BaseException | None = None


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
        intent: The step's label.
        accumulate: Sees each event and returns the text so far, or None to leave it; for producers that do
            not know their final text.
        transform: Applied to the answer before anything is stored (redaction).
        begin_with: Writes of the claim's transaction, as in `DurableRunStore.start_or_resume`.
        read_with: Reads of the claim's transaction; their rows are in the claim.
        supersede: Start a turn that has another manifest anew instead of refusing it.
        end_with: Makes the statements of the last write's transaction, as in `Settlement.companions`.
        result_with: Makes further members of the stored result, beside ``finalText``.
        log: Takes failures that must not mask another error.
    """

    store: DurableRunStore
    run_id: str
    manifest: DurableRunManifest
    produce: Callable[[], DurableTurnProducer[E]]
    replay_event: Callable[[str], E]
    worker_id: str = field(default_factory=derive_worker_id)
    lease_ms: int = _DEFAULT_TURN_LEASE_MS
    intent: str = "turn"
    accumulate: Callable[[E, str], str | None] | None = None
    transform: Callable[[str], Awaitable[str]] | None = None
    begin_with: Sequence[Statement] = ()
    read_with: Sequence[Statement] = ()
    supersede: bool = False
    end_with: Callable[[TurnEnd], Sequence[Statement]] = lambda _end: ()
    result_with: Callable[[], dict[str, Any]] = dict
    log: Log = print_log


class DurableTurnHandle(Generic[E]):
    """
    One turn, about to run or to replay.

    Iterate `stream` to run it.  The other members speak after it has drained, except `claim`, which may be
    awaited before to learn whether the turn can run at all.
    """

    def __init__(self, options: RunDurableTurnOptions[E]) -> None:
        self._options = options
        self._claim: Claim | None = None
        self._text = ""
        self._record: RunRecord | None = None
        self._replayed = False
        self._unsettled: tuple[Lease, Settlement] | None = None
        self.stream: AsyncGenerator[E, None] = self._stream()

    def final_text(self) -> str:
        """Return the turn's final text as it is stored."""
        return self._text

    def replayed(self) -> bool:
        """Say whether the text came from the store, and no producer ran."""
        return self._replayed

    def record(self) -> RunRecord | None:
        """Return the run as the turn left it."""
        return self._record

    async def claim(self) -> Claim:
        """
        Claim the turn's run, once: one round trip.  Leaves the turn to `stream` or to `abandon`.

        Raises:
            DurableRunLeaseHeldError: It is running elsewhere.
            DurableRunInputMismatchError: It was started with another manifest.
            StoreUnavailable: The database does not answer.
        """
        if self._claim is None:
            options = self._options
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
                companions=options.begin_with,
                reads=options.read_with,
                supersede=options.supersede,
            )
            self._record = self._claim.run
        return self._claim

    async def _stream(self) -> AsyncGenerator[E, None]:
        claim = await self.claim()
        if claim.lease is None:
            self._replayed = True
            self._text = _stored_text(claim)
            yield self._options.replay_event(self._text)
            return
        heartbeat = Heartbeat(self._options.store, claim.lease, self._options.log)
        heartbeat.start()
        try:
            async with aclosing(self._produced(heartbeat)) as events:
                async for event in events:
                    yield event
        except LeaseLost:
            raise
        except (Exception, asyncio.CancelledError, GeneratorExit) as error:
            if self._unsettled is None:
                await self._give_up(claim.lease, error)
            raise
        finally:
            heartbeat.stop()

    async def _produced(self, heartbeat: Heartbeat) -> AsyncGenerator[E, None]:
        """Forward the producer's events and settle; every wait for the producer or a hook ends with the lease."""
        options = self._options
        text = _Text(options.accumulate)
        with heartbeat:
            producer = options.produce()
        async with aclosing(producer.stream) as stream:
            while True:
                with heartbeat:
                    try:
                        event = await anext(stream)
                    except StopAsyncIteration:
                        break
                text.add(event)
                yield event
        with heartbeat:
            final = text.final(producer, options.log)
            if not final:
                raise EmptyAnswer("the producer ended without any text", backend=options.intent)
            self._text = final if options.transform is None else await options.transform(final)
            await self._settle_completed(heartbeat.lease)

    async def _settle_completed(self, lease: Lease) -> None:
        settlement = self._completed()
        try:
            self._record = await self._options.store.settle(lease, settlement)
        except StoreUnavailable:
            self._unsettled = (lease, settlement)
            raise

    async def settle_late(self) -> bool:
        """
        Go on trying to store an answer that `stream` could not, until it is stored or the lease has lapsed.

        For after the client was told: the answer was paid for, and once stored, a retry replays it.

        Returns:
            Whether the answer is stored now; False also if there was nothing to do.
        """
        if self._unsettled is None:
            return False
        lease, settlement = self._unsettled
        pause_s = _FIRST_LATE_PAUSE_S
        with suppress(LeaseLost, TimeoutError):
            async with asyncio.timeout(lease.lease_ms / 1000):
                while True:
                    await asyncio.sleep(pause_s)
                    with suppress(StoreUnavailable):
                        self._record = await self._options.store.settle(lease, settlement)
                        return True
                    pause_s *= 2
        return False

    def _completed(self) -> Settlement:
        options = self._options
        return Settlement(
            step_index=_STEP_INDEX,
            result={"finalText": self._text, **options.result_with()},
            outcome=RunOutcome(notes=options.intent, metadata={"chars": len(self._text.encode("utf-16-le")) // 2}),
            companions=options.end_with(TurnEnd(text=self._text)),
        )

    async def _give_up(self, lease: Lease, error: BaseException) -> None:
        """Settle as failed so that the next request may claim at once; *error* is what leaves, whatever happens."""
        options, code = self._options, _code(error)
        settlement = Settlement(
            step_index=_STEP_INDEX,
            error=StepError(message=_storable(error), code=code),
            outcome=RunOutcome(passed=False, notes=code),
            companions=options.end_with(TurnEnd(error=error)),
        )
        try:
            self._record = await options.store.settle(lease, settlement)
        except StoreError as failure:
            options.log("turn.unsettled", {"run_id": lease.run_id, "cause": error, "error": failure})
        except LeaseLost:
            pass  # Somebody else runs it by now, which is as good as settled.


def run_durable_turn(options: RunDurableTurnOptions[E]) -> DurableTurnHandle[E]:
    """
    Run one turn durably: forward its events live, store its text, or replay what was stored.

    Nothing happens before the handle's `stream` is iterated or its `claim` awaited.
    """
    return DurableTurnHandle(options)


class _Text(Generic[E]):
    """The answer from its two sources: what was accumulated, and what the producer says at the end."""

    def __init__(self, accumulate: Callable[[E, str], str | None] | None) -> None:
        self._accumulate = accumulate
        self._text = ""
        self._error: Exception | None = None

    def add(self, event: E) -> None:
        if self._accumulate is None or self._error is not None:
            return
        try:
            text = self._accumulate(event, self._text)
        except Exception as error:  # noqa: BLE001 - it matters only if the producer does not know its text
            self._error = error
        else:
            self._text = self._text if text is None else text

    def final(self, producer: DurableTurnProducer[E], log: Log) -> str:
        """Return the answer; one source that fails is made up for by the other, as everything was delivered."""
        try:
            text = producer.final_text()
        except Exception as error:
            if not self._text or self._error is not None:
                raise
            log("turn.final_text_failed", {"error": error})
            return self._text
        if not text and self._error is not None:
            raise self._error
        return text or self._text


def _stored_text(claim: Claim) -> str:
    for step in claim.completed_steps:
        if step.step_index == _STEP_INDEX and isinstance(step.result, dict):
            return str(step.result.get("finalText", ""))
    return ""


def _storable(error: BaseException) -> str:
    """Say what went wrong; what a foreign exception says may be anything, the answer included, so its type must do."""
    return str(error) if isinstance(error, ChatTurnError) else type(error).__name__


def _code(error: BaseException) -> str:
    if isinstance(error, ChatTurnError):
        return error.code
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return TurnAborted.code
    return ChatTurnError.code
