"""
`run_durable_turn`: a streaming turn that is answered once, whatever happens to the workers that run it.

It wraps `chatturn.durable.attempt.Attempt` in agent-runtime's names and form: a handle with a stream to iterate, and
with the outcome afterwards.

::

    claim ──▶ completed before? ──yes──▶ one event from the stored text; nothing is written
                  │ no
                  ▼
             produce ──▶ events, as they come ──▶ transform ──▶ settle: the text and the end, in one write
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, Generic, NoReturn, TypeVar

from chatturn.chat.hooks.hooks import DurableTurnProducer
from chatturn.database.api import Row, Statement
from chatturn.durable.attempt import ENDINGS, Attempt, Finished, RunToClaim
from chatturn.durable.ends import Cancelled, Completed, End, Failed
from chatturn.durable.heartbeat import RENEWALS_PER_TERM
from chatturn.durable.identifiers import derive_worker_id
from chatturn.durable.records import Claim, DurableRunManifest, RunRecord, StepKind
from chatturn.durable.store import NO_NEWS, Begin, DurableRunStore, News
from chatturn.durable.suspension import ungrouped_waits
from chatturn.errors import EmptyAnswer, TurnCancelled
from chatturn.jsontext.canonical import canonical_hash
from chatturn.telemetry.operator_log import OperatorLog, print_log

__all__ = ["DurableTurnHandle", "DurableTurnProducer", "RunDurableTurnOptions", "run_durable_turn"]

E = TypeVar("E")

_STEP_INDEX: Final = 0
_DEFAULT_TURN_LEASE_MS: Final = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDurableTurnOptions(Generic[E]):
    """
    What `run_durable_turn` needs.

    Attributes:
        store: The store of the run.
        run_id: The run's id: the same for each retry of a turn, so that a retry replays.
        manifest: The turn's description; a different one under the same id is refused.
        produce: Builds the producer; called once per claimed attempt, never for a replay.
        replay_event: Makes the one event of a replay from the stored text.
        worker_id: The id of the worker that runs the turn; by default a fresh one for each turn.
        lease_ms: Milliseconds without a renewal of the lease after which others may take the turn over.
        renewals_per_term: How often the lease is renewed in *lease_ms*.
        news: What to read with every renewal.
        intent: The step's label.
        accumulate: Sees each event and returns the text so far, or None to leave it; for producers that do
            not know their final text.
        said_so_far: Returns what a turn that is cancelled keeps as its answer; by default what was accumulated.
        transform: Applied to the answer before anything is stored (redaction).
        begin_with: Writes in the claim's transaction, as in `DurableRunStore.start_or_resume`.
        read_with: Reads in the claim's transaction; the `Claim` has their rows.
        supersede: Whether a turn with another manifest is started anew, and not refused.
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
    news: News = NO_NEWS
    intent: str = "turn"
    accumulate: Callable[[E, str], str | None] | None = None
    said_so_far: Callable[[], str] | None = None
    transform: Callable[[str], Awaitable[str]] | None = None
    begin_with: Sequence[Statement] = ()
    read_with: Sequence[Statement] = ()
    supersede: bool = False
    legacy_run_id: str | None = None
    end_with: Callable[[End], Sequence[Statement]] = lambda _end: ()
    log: OperatorLog = print_log

    def run(self) -> RunToClaim:
        """Return the run to claim."""
        answer = Begin(
            step_index=_STEP_INDEX,
            intent=self.intent,
            kind=StepKind.LLM,
            input_hash=canonical_hash(self.manifest.input),
        )
        return RunToClaim(
            run_id=self.run_id,
            manifest=self.manifest,
            answer=answer,
            worker_id=self.worker_id,
            lease_ms=self.lease_ms,
            renewals_per_term=self.renewals_per_term,
            with_statements=self.begin_with,
            reads=self.read_with,
            supersede=self.supersede,
            legacy_run_id=self.legacy_run_id,
        )


class DurableTurnHandle(Generic[E]):
    """
    One turn, about to run or to replay.

    Iterate `stream` to run it.  The other members have the outcome once the stream is drained, except `claim`, which
    may be awaited before, to learn whether the turn can run at all.
    """

    def __init__(self, options: RunDurableTurnOptions[E]) -> None:
        self._options = options
        self._claimed: Attempt | Finished | None = None
        self._end: End | None = None
        self._text = _Text[E](options.accumulate)
        self.stream: AsyncGenerator[E, None] = self._stream()

    def final_text(self) -> str:
        """Return the turn's final text as it is stored."""
        return self._end.text if isinstance(self._end, Completed | Cancelled) else ""

    def replayed(self) -> bool:
        """Say whether the text came from the store, and no producer ran."""
        return isinstance(self._claimed, Finished) and self._end is not None

    def cancelled(self) -> str | None:
        """Say why the turn was cancelled, now or before; None if it was not."""
        return self._end.reason if isinstance(self._end, Cancelled) else None

    def record(self) -> RunRecord | None:
        """Return the run as the turn left it."""
        match self._claimed:
            case Attempt(record=record) | Finished(claim=Claim(run=record)):
                return record
            case None:
                return None

    def stored(self) -> End | None:
        """Return the end of this attempt, once it is known to be stored."""
        return self._claimed.stored if isinstance(self._claimed, Attempt) else None

    async def settle_late(self) -> bool:
        """Go on trying to store an answer that `stream` could not; see `Attempt.settle_late`."""
        return isinstance(self._claimed, Attempt) and await self._claimed.settle_late()

    async def claim(self) -> Claim:
        """
        Claim the turn's run, once, in one round trip; `stream` runs the turn.

        Raises:
            DurableRunLeaseHeldError: It is running elsewhere.
            DurableRunInputMismatchError: It was started with another manifest.
            StoreUnavailable: The database does not answer.
        """
        return (await self._claim()).claim

    async def _claim(self) -> Attempt | Finished:
        if self._claimed is None:
            options = self._options
            self._claimed = await Attempt.claim_run(options.store, options.run(), options.log)
        return self._claimed

    def cancel(self, reason: str) -> None:
        """End the claimed turn, now or once it runs, with the text so far as the answer; see `Attempt.cancel`."""
        if isinstance(self._claimed, Attempt):
            self._claimed.cancel(reason)

    def require_held(self) -> None:
        """Raise `LeaseLost` if the lease is known to be lost: then the turn must cause no further effect."""
        if isinstance(self._claimed, Attempt):
            self._claimed.require_held()

    async def write(self, statements: Sequence[Statement]) -> list[Sequence[Row]]:
        """Write under the lease while `stream` is iterated; see `Attempt.write`."""
        assert isinstance(self._claimed, Attempt), "a turn that is replayed writes nothing"  # noqa: S101 - a bug elsewhere
        return await self._claimed.write(statements)

    async def abandon(self, error: Exception) -> NoReturn:
        """Release the run, if it is claimed, instead of iterating `stream`; raises *error*, which says why."""
        if isinstance(self._claimed, Attempt):
            await self._claimed.settle(Failed(error), self._options.end_with)
        raise error

    async def _stream(self) -> AsyncGenerator[E, None]:
        claimed = await self._claim()
        if isinstance(claimed, Finished):
            self._end = end = claimed.answer(_STEP_INDEX)
            yield self._options.replay_event(end.text)
            return
        with claimed.kept(self._options.news):
            try:
                with ungrouped_waits():
                    async with aclosing(self._produced(claimed)) as events:
                        async for event in events:
                            yield event
                self._end = Completed(self._text.text)
            except TurnCancelled as cancelled:
                self._end = Cancelled(await self._what_was_said(), cancelled.reason)
            except ENDINGS as error:
                self._end = claimed.end_of(error)
            await claimed.settle(self._end, self._options.end_with)
        if isinstance(self._end, Failed):
            raise self._end.error

    async def _produced(self, attempt: Attempt) -> AsyncGenerator[E, None]:
        """Forward the producer's events, and make the text; a wait for the product ends when the lease does."""
        options, text = self._options, self._text
        with attempt.held():
            producer = options.produce()
        async with aclosing(attempt.forwarded(producer.stream)) as events:
            async for event in events:
                text.add(event)
                yield event
        attempt.done()
        text.text = text.final(producer, options.log)
        with attempt.held():
            if text.text and options.transform is not None:
                text.text = await options.transform(text.text)
        if not text.text:
            raise EmptyAnswer("the producer ended without any text", backend=options.intent)

    async def _what_was_said(self) -> str:
        """Return the answer so far; "" if `transform` fails, since text that is not redacted is not kept."""
        options = self._options
        text = self._text.text if options.said_so_far is None else options.said_so_far()
        if text and options.transform is not None:
            try:
                return await options.transform(text)
            except Exception as error:  # noqa: BLE001 - a product's code; the turn is over in any case
                options.log("turn.partial_text_lost", {"run_id": options.run_id, "error": error})
                return ""
        return text


def run_durable_turn(options: RunDurableTurnOptions[E]) -> DurableTurnHandle[E]:
    """
    Run one turn durably: forward its events live, store its text, or replay what was stored.

    Nothing happens before the handle's `stream` is iterated or its `claim` awaited.
    """
    return DurableTurnHandle(options)


class _Text(Generic[E]):
    """The answer from its two sources: the accumulated text, and the producer's final text."""

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
        """Return the answer; if one source fails, the other is used, since every event was delivered."""
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
