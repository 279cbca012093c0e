"""
`ChatTurn`: the story of one chat turn, told in lines.

::

    claim ──▶ 409, 422, 503: before the first byte
      │
    run ──▶ session.run.started ──▶ producer's events ──▶ finish ──▶ hooks ──▶ session.run.completed
      │                 ▲                 │ stopped │ fails │ waits for long
      │                 │                 ▼         │       ▼
      │                 │  session.run.cancelled    │     session.run.suspended
      │                 │                           ▼
      │                 │                         error ──▶ session.run.failed
      │                 └─(its worker was lost)── session.run.restarted
      └─(finished before)──▶ result ──▶ session.run.completed {replayed}

A turn pushes its lines and never waits for a reader who is gone.  Its log is stored while it runs, beside the
stream.  A fresh turn awaits 2 round trips to the database, a replay 1.
"""

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeAlias

from chatturn.chat.hooks.attempts import tell_attempt_end
from chatturn.chat.hooks.hooks import EndedAttempt
from chatturn.chat.hooks.outbox import Outbox, call_in_time, finished_turn, overrides
from chatturn.chat.log.attempt_place import Place
from chatturn.chat.log.log import TurnLog
from chatturn.chat.log.writer import LogWriter
from chatturn.chat.requests import TurnInput, history_text
from chatturn.chat.thread.history import PastTurn
from chatturn.chat.thread.identity import turn_intent
from chatturn.chat.thread.queue_sql import (
    NEXT_IN_LINE,
    begins_now,
    idle,
    interrupt,
    not_passed,
    room,
    still_follows,
    still_there,
)
from chatturn.chat.thread.session_sql import owned_by, record_session, session_changed, session_of_run_changed
from chatturn.chat.thread.version_sql import OtherVersion, only_one_version, record_version, still_counts
from chatturn.chat.thread.versions import Choice
from chatturn.chat.turn import attempt_usage, limits_sql, tracing
from chatturn.chat.turn import sql as chat_sql
from chatturn.chat.turn.answer import Answer
from chatturn.chat.turn.attempt_usage import AttemptUsage
from chatturn.chat.turn.disconnects import CANCEL_REQUESTED, Readership
from chatturn.chat.turn.finish import Finish, context_event, failure_words, kind_of, started_words, unlogged
from chatturn.chat.turn.past import past_turns
from chatturn.chat.turn.queued import QueuedTurn, queue_of
from chatturn.chat.turn.reader import Reader, observer_of, ping_every_ms
from chatturn.chat.turn.replay import TURN_STEP, FailedTurn, ReplayedTurn, replay_of_version
from chatturn.chat.turn.retries import TooEarly, not_too_early
from chatturn.chat.turn.sinks import Sink
from chatturn.chat.usage.calls import ModelCall
from chatturn.database.api import Row, Statement
from chatturn.durable.attempt import ENDINGS, Attempt, Finished, RunToClaim
from chatturn.durable.ends import Cancelled, Completed, End, Failed, answer_of
from chatturn.durable.identifiers import manifest_hash
from chatturn.durable.records import RunOutcome, RunStatus, StepKind
from chatturn.durable.store import NO_NEWS, Begin, Guard, News, Queued
from chatturn.durable.suspension import ungrouped_waits
from chatturn.errors import (
    ChatTurnError,
    EmptyAnswer,
    HookError,
    LeaseLost,
    RunNotFound,
    StoreError,
    TurnAborted,
    TurnCancelled,
    VersionConflict,
)
from chatturn.events import ChatStreamEvent
from chatturn.jsontext.canonical import canonical_hash
from chatturn.product_calls import apart

__all__ = ["ChatTurn", "OpenTurn", "open_turn", "run_turn"]


async def open_turn(turn: TurnInput) -> "OpenTurn":
    """
    Claim a turn, in one round trip, and return it ready to run; or to wait, if others of its session are before it.

    Raises:
        DurableRunLeaseHeldError: It is being answered elsewhere.
        DurableRunInputMismatchError: It was started with another message or model.
        SessionBusy, QueueFull: Others of its session are before it, and it may not wait.
        TurnPassed: The turn has no answer, but later turns have one.
        StoreError: The database does not answer or is not set up.
    """
    deployment, rung, line = turn.deployment, turn.deployment.live.bells.rung, _Line()
    try:
        claimed = await Attempt.claim_run(deployment.store, _run_to_claim(turn, line), deployment.log)
    except TooEarly as early:
        return FailedTurn(turn, early)
    except Queued as queued:
        return _waiting(turn, queued, rung)
    except VersionConflict as conflict:
        await _give_up(turn, conflict)
        raise
    except OtherVersion as other:
        if (replayed := replay_of_version(turn, other.counting)) is None:
            raise
        return replayed
    finished, epoch = isinstance(claimed, Finished), max(claimed.claim.run.epoch, 1)
    found, *rows = claimed.claim.rows
    spent = rows.pop(0) if deployment.budgets else ()
    if turn.tracing is not None:
        turn.tracing.claimed(tracing.found(found, attempt=epoch, replayed=finished))
    if isinstance(claimed, Finished):
        reason = found[0]["finish_reason"] if found else None
        return ReplayedTurn(turn, claimed, None if reason is None else str(reason))
    past = past_turns(rows[0]) if rows else []
    return ChatTurn(turn, claimed, Place.of(found, epoch=epoch), past, spent, line=line)


async def _give_up(turn: TurnInput, error: ChatTurnError) -> None:
    """End a turn that waited in vain; it leaves no message."""
    store = turn.deployment.store
    if turn.waits_as is not None:
        await store.leave_queue(turn.run_id, turn.waits_as)
    await store.give_up(turn.run_id, RunOutcome(passed=False, notes=error.code), [session_of_run_changed(turn.run_id)])
    turn.deployment.live.bells.ring(turn.session)


def _waiting(turn: TurnInput, queued: Queued, rung: int) -> QueuedTurn:
    """Return a turn that waits; a turn that it interrupts is told at once, if that turn runs in this isolate."""
    waits, run = QueuedTurn(turn, queued, rung, open_turn), queued.run
    interrupts = turn.when_busy == "interrupt" and turn.waits_as is None and run.updated_at == run.created_at
    if interrupts and waits.front is not None:
        log = turn.deployment.live.get(waits.front.run_id)
        if log is not None and waits.front.status == RunStatus.RUNNING:
            log.cancel_requested = True
    return waits


@dataclass(slots=True)
class _Line:
    """
    Who waits behind a turn.

    Attributes:
        next_run_id: The turn of the session that comes next, if nobody waits with it; known once this one has ended.
    """

    next_run_id: str | None = None

    def told(self, news: Row, _asked_at: float) -> None:
        """Take the row of the write that has ended the run."""
        self.next_run_id = None if news["next_run_id"] is None else str(news["next_run_id"])


async def run_turn(turn: TurnInput, sink: Sink) -> None:
    """Claim a turn and run it; a refused claim becomes lines of its own, and *sink* is closed in any case."""
    try:
        opened = await open_turn(turn)
    except (Exception, asyncio.CancelledError) as error:
        stopped = isinstance(error, asyncio.CancelledError)
        if not stopped:
            turn.deployment.log("turn.failed", {"run_id": turn.run_id, "attempt": 1, "error": error})
        words = failure_words(turn.identity, kind_of(error))
        Reader(sink, observer_of(turn), turn.deployment.log).send(unlogged(words, 1), words)
        await sink.close()
        if stopped:
            raise
        await tracing.tell_end(turn, None, error, (), replayed=False)
    else:
        await opened.run(sink)


class ChatTurn:
    """
    One attempt at a turn, from its first line to its terminal line; made by `open_turn`.

    Args:
        turn: What is asked.
        attempt: The claimed attempt.
        place: Where the turn stands.
        past: The answered turns before this one, oldest first; at most one more than the model may be shown.
        spent: The rows of `attempt_usage.read_with`: what was spent so far of each budget.
        line: Takes which turn comes next.

    Attributes:
        run_id: Its run.
    """

    replayed: Final = False
    retry_after_ms: Final = 0

    def __init__(
        self,
        turn: TurnInput,
        attempt: Attempt,
        place: Place,
        past: Sequence[PastTurn],
        spent: Sequence[Row],
        *,
        line: "_Line",
    ) -> None:
        deployment, hooks = turn.deployment, turn.deployment.hooks
        redacting = overrides(hooks, "transform_final_text")
        self.run_id = turn.run_id
        self._turn = turn
        self._deployment = deployment
        self._attempt = attempt
        self._place = place
        self._line = line
        self._log = TurnLog(place, attempt.number, redacting=redacting, created_at=self.created_at)
        self._usage = AttemptUsage(turn, attempt.number, spent)
        self._readership = Readership(deployment.settings, self._log, attempt)
        self._answer = Answer(turn, attempt, place, past=past, log=self._log, usage=self._usage)
        self._writer = LogWriter(
            attempt,
            self._log,
            (self._usage, self._answer),
            self._readership,
            pace=deployment.log_pace,
            report=deployment.log,
        )
        self._outbox = Outbox(database=deployment.database, hooks=hooks, log=deployment.log)
        self._finish = Finish(
            identity=turn.identity,
            log=self._log,
            outbox=self._outbox,
            redacting=redacting,
            idle_attempts=place.idle_attempts,
            threaded=deployment.settings.threads == "on",
        )

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._attempt.number

    @property
    def created_at(self) -> str:
        """When the turn was begun."""
        return self._attempt.claim.run.created_at

    @property
    def redacting(self) -> bool:
        """Whether the product redacts the answer: then the live text differs from the stored text."""
        return self._finish.redacting

    def abort(self) -> None:
        """Stop the turn: the model's connection is closed at once, and the turn ends as failed, `aborted`."""
        self._attempt.abort()

    def cancel(self, reason: str = CANCEL_REQUESTED) -> None:
        """Stop the turn for good: its text so far is its answer, and it ends as cancelled."""
        self._attempt.cancel(reason)

    async def run(self, sink: Sink, *, joined: bool = False) -> None:
        """
        Run the turn to its end: every line goes to *sink*, which is closed.  Raises nothing but cancellation.

        Work that must not delay the last line is done after that line, before this returns.

        Args:
            sink: The reader.
            joined: Whether the reader has read the log so far, and needs not be told that the run has started.
        """
        reader, marks = self._reader(sink), list[Statement]()
        try:
            with self._deployment.live.showing(self.run_id, self._log):
                end = await self._tell(reader, marks, joined=joined)
        finally:
            reader.stop_pings()
            # A reader that takes its time must not keep the marks from being written.
            await asyncio.gather(sink.close(), self._mark(marks)) if marks else await sink.close()
        if isinstance(end, Failed) and isinstance(end.error, asyncio.CancelledError):
            raise end.error
        await self._afterwards(end)

    async def _tell(self, reader: Reader, marks: list[Statement], *, joined: bool) -> End:
        """Say what the turn says, store how it ends, call the hooks, and say how it ended."""
        attempt = self._attempt
        try:
            with attempt.kept(self._readership.news), self._writer.running():
                reader.start_pings()
                self._say_first_words(reader, joined=joined)
                end = await self._end(reader)
                await attempt.settle(end, self._last_statements)
            self._wake_next()
            await self._deliver(marks)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the reader gets a terminal line for all
            end = Failed(await self._deleted() or error if isinstance(error, LeaseLost) else error)
        reader.stop_pings()
        self._say_last_words(reader, end)
        return end

    async def _deleted(self) -> RunNotFound | None:
        """Return what a reader of a deleted turn is told in place of a lost lease: sent again, it would begin anew."""
        begun = self._attempt.record.created_at
        try:
            run = await self._deployment.store.load_run(self.run_id)
        except StoreError:
            return None
        if run is not None and run.created_at == begun:
            return None
        return RunNotFound("it was deleted", run_id=self.run_id)

    async def _end(self, reader: Reader) -> End:
        """
        Answer, and return how that ends.

        Raises:
            LeaseLost: The turn is another worker's.
        """
        try:
            with ungrouped_waits():
                if overrides(self._deployment.hooks, "produce"):
                    return await apart(self._produce(reader), self._answer.steps.stop)
                return await self._produce(reader)
        except TurnCancelled as cancelled:
            return Cancelled(await self._kept_text(), cancelled.reason)
        except ENDINGS as error:
            return self._attempt.end_of(error)

    async def _produce(self, reader: Reader) -> Completed:
        """Forward what the product's producer says; every wait for the product ends with the lease."""
        attempt = self._attempt
        with attempt.held():
            producer = await self._answer.begin(self._writer, reader)
        self._say_what_is_missing(reader)
        async with aclosing(attempt.forwarded(producer.stream)) as stream:
            async for said in stream:
                reader.send(said.lines, said.events)
                self._writer.said()
        attempt.done()
        text = producer.final_text() or ""
        with attempt.held():
            text = await self._transformed(text)
        if not text:
            raise EmptyAnswer("the producer ended without any text", backend=turn_intent(self._turn.identity))
        return Completed(text)

    async def _transformed(self, text: str) -> str:
        """Let the product redact the answer, before anything of it is stored."""
        hooks = self._deployment.hooks
        if not text or not overrides(hooks, "transform_final_text"):
            return text
        transformed = await call_in_time(hooks, "transform_final_text", text)
        if not isinstance(transformed, str):  # a `return` that was forgotten must not look like an empty answer
            raise HookError(f"returned {type(transformed).__name__}, not text", hook="transform_final_text")
        return transformed

    async def _kept_text(self) -> str:
        """Return what a turn that is cancelled keeps as its answer: nothing that no redactor can look at."""
        try:
            return await self._transformed(self._answer.said.said_so_far())
        except Exception as error:  # noqa: BLE001 - a product's code; the turn is over in any case
            self._deployment.log("turn.partial_text_lost", {"run_id": self.run_id, "error": error})
            return ""

    def _last_statements(self, end: End) -> list[Statement]:
        # From here on only the last write stores lines: it has every line that is not known to be stored.  A log write
        # that overtook it would store some of them twice.
        self._writer.stop()
        went_on, checkpoints = bool(self._answer.recalled), self._answer.has_checkpoints
        is_full = isinstance(end, Completed) and self._answer.said.is_full
        reason = "length" if is_full else self._usage.finish_reason
        kept_json = self._answer.kept_json() if isinstance(end, Completed) else None
        return [
            *self._usage.last_statements(end, went_on=went_on, checkpoints=checkpoints),
            *self._finish.statements(end, checkpoints=checkpoints, finish_reason=reason, kept_json=kept_json),
            *tracing.end_with(self._turn.tracing, end),
            *limits_sql.count_log(self._turn.identity, self._log.characters),
        ]

    async def _deliver(self, marks: list[Statement]) -> None:
        """Call the hooks of an answer that has just been stored."""
        end, record = self._attempt.stored, self._attempt.record
        text, cancelled = answer_of(end), isinstance(end, Cancelled)
        if text:
            reason = self._finish.finish_reason
            turn = finished_turn(
                self._turn.identity,
                text,
                record,
                cancelled=cancelled,
                finish_reason=reason,
                replaces=self._place.replaces,
            )
            await self._outbox.deliver(turn, marks)

    async def _mark(self, marks: list[Statement]) -> None:
        try:
            await self._deployment.database.batch(marks)
        except StoreError as error:
            self._deployment.log("outbox.unmarked", {"run_id": self.run_id, "error": error})

    async def _afterwards(self, end: End) -> None:
        """Do what no reader waits for; every failure is logged, none leaves."""
        attempt, deployment = self._attempt, self._deployment
        if await attempt.settle_late():
            deployment.log("turn.settled_late", {"run_id": self.run_id})
        if attempt.stored is None and not (isinstance(end, Failed) and isinstance(end.error, RunNotFound)):
            await self._usage.record_late(deployment.database, self.created_at)
        await self._writer.over()
        if self._turn.identity.version > 1 and answer_of(attempt.stored):
            await self._outbox.tell_changes(self.run_id)
        calls, failure = self._usage.all_calls(), end.error if isinstance(end, Failed) else None
        await tell_attempt_end(deployment.hooks, deployment.attempt_listeners, self._ended(calls), deployment.log)
        await tracing.tell_end(self._turn, attempt.stored, failure, calls, replayed=False)
        self._wake_next()
        if self._line.next_run_id is not None and self._turn.resume is not None:
            await self._turn.resume(self._line.next_run_id)

    def _wake_next(self) -> None:
        """Wake the turns of the session that wait in this isolate."""
        self._deployment.live.bells.ring(self._turn.session)

    def _ended(self, calls: Sequence[ModelCall]) -> EndedAttempt:
        attempt = self._attempt
        return EndedAttempt(
            run_id=self.run_id,
            attempt=attempt.number,
            manifest=self._turn.manifest,
            end=attempt.stored,
            calls=calls,
            ended_at=self._deployment.sources.now(),
            duration_ms=attempt.elapsed_ms(),
        )

    # What the reader is told.

    def _reader(self, sink: Sink) -> Reader:
        on_disconnect = self._deployment.settings.on_disconnect
        if on_disconnect != "continue":
            sink.when_lost(self._lost)
        every_ms = ping_every_ms(on_disconnect)
        return Reader(sink, observer_of(self._turn), self._deployment.log, every_ms=every_ms)

    def _lost(self) -> None:
        self._readership.lost()
        self._writer.look()

    def _say_first_words(self, reader: Reader, *, joined: bool) -> None:
        """Say that the run has started: in the log if it begins here, else only to a reader who has not heard it."""
        started = started_words(self._turn.identity)
        if self._place.log_begins:
            self._say(reader, started)
        elif not joined:
            reader.send(unlogged(started, self.attempt), started)
        if self._place.interrupted:
            data = {"attempt": self.attempt, "reason": "lease_lapsed"}
            self._say(reader, [ChatStreamEvent("session.run.restarted", data)])

    def _say_what_is_missing(self, reader: Reader) -> None:
        """Say what of the conversation the model is not shown, if anything."""
        shown = self._answer.shown
        if shown.is_whole:
            return
        self._say(reader, [context_event(shown)])
        tracing.tell_context(self._turn.tracing, shown)

    def _say(self, reader: Reader, events: list[ChatStreamEvent]) -> None:
        reader.send(self._log.extend(events), events)

    def _say_last_words(self, reader: Reader, end: End) -> None:
        """Say how the turn ended: in the stored lines, or, if none are known to be stored, outside the log."""
        if isinstance(end, Failed) and not isinstance(end.error, asyncio.CancelledError | TurnAborted):
            particulars = {"run_id": self.run_id, "attempt": self.attempt, "error": end.error}
            self._deployment.log("turn.failed", particulars)
        if self._attempt.stored is not None:
            reader.send("".join(self._finish.lines), self._finish.words)
            self._log.end(self._finish.lines)
        elif isinstance(end, Failed):
            words = failure_words(self._turn.identity, kind_of(end.error))
            reader.send(unlogged(words, self.attempt), words)


def _run_to_claim(turn: TurnInput, line: _Line) -> RunToClaim:
    deployment, settings, manifest = turn.deployment, turn.deployment.settings, turn.manifest
    theirs = deployment.theirs(turn.identity)
    input_hash = canonical_hash(manifest.input)
    return RunToClaim(
        run_id=turn.run_id,
        manifest=manifest,
        answer=Begin(step_index=TURN_STEP, intent=turn_intent(turn.identity), kind=StepKind.LLM, input_hash=input_hash),
        lease_ms=settings.lease_ms,
        renewals_per_term=deployment.renewals_per_term,
        with_statements=_begin_statements(turn),
        reads=_reads(turn),
        supersede=turn.request.supersede,
        legacy_run_id=None if theirs is None else theirs.run_id,
        guards=_guards(turn, manifest_hash(manifest)),
        ends_with=[session_changed(turn.identity)],
        queue=queue_of(turn) if turn.may_wait and turn.when_busy != "parallel" else None,
        end_news=NO_NEWS if deployment.settings.threads == "off" else News(columns=NEXT_IN_LINE, told=line.told),
    )


def _guards(turn: TurnInput, digest: str) -> list[Guard]:
    bounded = turn.deployment.settings.session_owner == "subject" and not turn.asked_again
    return [
        *([owned_by(turn.identity)] if bounded else []),
        *_version_guards(turn),
        not_too_early(turn.run_id, digest),
        *_queue_guards(turn),
        *limits_sql.within_limits(turn),
    ]


def _queue_guards(turn: TurnInput) -> list[Guard]:
    """Return the guards that keep a session to one turn at a time; none where turns may run in parallel."""
    if turn.when_busy == "parallel":
        return []
    passed = not_passed(turn.identity, turn.deployment.theirs(turn.identity))
    if turn.asked_again or turn.waits_as is not None:
        asked_before = [still_there(turn.identity), still_follows(turn.identity), passed]
        return asked_before if turn.may_wait else [*asked_before, begins_now(turn.identity)]
    return [
        *([passed] if turn.choice is None or turn.choice.fills_its_place else []),
        *([idle(turn.identity)] if turn.when_busy == "reject" else []),
        room(turn.identity, turn.deployment.settings.queue_turns),
    ]


def _version_guards(turn: TurnInput) -> list[Guard]:
    if turn.deployment.settings.threads == "off" or turn.asked_again or turn.waits_as is not None:
        return []
    if turn.choice is None:
        return [only_one_version(turn.identity)]
    return [still_counts(turn.identity, turn.choice.counts)] if turn.choice.is_new else []


def _begin_statements(turn: TurnInput) -> list[Statement]:
    request = turn.request
    begin = chat_sql.begin_turn(
        turn.identity,
        user_message=request.message,
        model=request.model,
        metadata_json=json.dumps(request.metadata, ensure_ascii=False) if request.metadata else None,
        parameters_json=json.dumps(request.parameters, ensure_ascii=False) if request.parameters else None,
        parts_json=json.dumps(list(request.parts), ensure_ascii=False) if request.parts else None,
        history_json=history_text(request),
        trace=tracing.begin_with(turn.tracing),
    )
    superseded = [Outbox.forget(), chat_sql.forget_messages()] if request.supersede else []
    begins_to_wait = turn.when_busy == "interrupt" and turn.waits_as is None
    interrupted = interrupt(turn.identity) if begins_to_wait else []
    reserved = attempt_usage.begin_with(turn)
    first = [record_session(turn.identity), *limits_sql.count_claim(turn), begin]
    return [*first, *reserved, *_version_statements(turn), *superseded, *interrupted]


def _version_statements(turn: TurnInput) -> list[Statement]:
    if turn.deployment.settings.threads == "off":
        return []
    choice = turn.choice or Choice(version=1)
    return [record_version(turn.identity, choice.replaces, choice.kind, turn.asked_at_index)]


def _reads(turn: TurnInput) -> list[Statement]:
    settings = turn.deployment.settings
    turns = settings.history_turns
    reads = [chat_sql.read_place(turn.run_id), *attempt_usage.read_with(turn)]
    if turns and turn.identity.turn_index and turn.request.history is None:
        reads.append(chat_sql.read_history(turn.identity, turn.run_id, turns + 1, settings.history_characters))
    return reads


OpenTurn: TypeAlias = ChatTurn | ReplayedTurn | FailedTurn | QueuedTurn
"""A turn that was claimed, that had finished or failed before, or that waits."""
