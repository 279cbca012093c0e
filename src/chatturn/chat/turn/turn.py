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
stream.  Two awaited round trips to the database for a fresh turn, one for a replay.
"""

import asyncio
import functools
import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final

from chatturn.chat.hooks.outbox import Outbox, call_in_time, finished_turn, overrides
from chatturn.chat.identity import legacy_run_id
from chatturn.chat.log.log import TurnLog
from chatturn.chat.log.position import Place
from chatturn.chat.log.sql import NEWS
from chatturn.chat.log.writer import LogWriter
from chatturn.chat.requests import TurnInput
from chatturn.chat.turn import sql as chat_sql
from chatturn.chat.turn import tracing
from chatturn.chat.turn.answer import Production
from chatturn.chat.turn.disconnects import Attendance
from chatturn.chat.turn.finish import Ending, ending_words, failure_words, kind_of
from chatturn.chat.turn.history import recent
from chatturn.chat.turn.reader import Output, ping_every_ms
from chatturn.chat.turn.sinks import Sink
from chatturn.chat.turn.stream import Said
from chatturn.chat.usage.attempt_usage import Account
from chatturn.database.api import Row, Statement
from chatturn.durable.records import Claim
from chatturn.durable.store import News
from chatturn.durable.turn import RunDurableTurnOptions, TurnEnd, run_durable_turn
from chatturn.errors import HookError, StoreError, TurnAborted
from chatturn.events import ChatStreamEvent, encode_line

__all__ = ["CANCEL_REQUESTED", "DISCONNECTED", "ChatTurn"]

CANCEL_REQUESTED: Final = "requested"
DISCONNECTED: Final = "disconnected"
"""Why a turn was cancelled, as its last line says."""


class ChatTurn:
    """
    One turn, from its claim to its terminal line.

    Attributes:
        run_id: Its run.
    """

    def __init__(self, turn: TurnInput) -> None:
        deployment, settings = turn.deployment, turn.deployment.settings
        self.run_id = turn.run_id
        self._input = turn
        self._deployment = deployment
        self._outbox = Outbox(database=deployment.database, hooks=deployment.hooks, log=deployment.log)
        self._redacting = overrides(deployment.hooks, "transform_final_text")
        self._claimed: Claim | None = None
        self._place = Place()
        self._output: Output | None = None
        self._task: asyncio.Task[object] | None = None
        self._aborted = False
        self._failure: Exception | None = None
        self._log = log = TurnLog(redacting=self._redacting)
        self._ending = Ending(identity=turn.identity, log=log, outbox=self._outbox, redacting=self._redacting)
        self._attendance = Attendance(
            settings.on_disconnect, settings.grace_ms, lambda: log.followers, lambda: self.cancel(DISCONNECTED)
        )
        self._account = Account(
            self.run_id,
            turn.identity,
            model=turn.model,
            prices=deployment.prices,
            budgets=deployment.budgets,
            log=deployment.log,
        )
        self._writer = LogWriter(
            self.run_id,
            log,
            self._account,
            write=self._write,
            pace=deployment.log_pace,
            news=self,
            report=deployment.log,
            comes_further=lambda: self._production.comes_further,
        )
        self._production = Production(
            turn,
            self.run_id,
            log,
            self._account,
            room=self._writer.room,
            drain=self._drain,
            cancel=self.cancel,
            require_held=lambda: self._handle.require_held(),  # noqa: PLW0108 - the handle is made below
        )
        self._handle = run_durable_turn(
            RunDurableTurnOptions(
                store=deployment.store,
                run_id=self.run_id,
                manifest=turn.manifest,
                lease_ms=settings.lease_ms,
                renewals_per_term=deployment.renewals_per_term,
                news=News(columns=NEWS, told=self.told),
                intent=f"chat:turn-{turn.identity.turn_index}",
                produce=self._production.produce,
                replay_event=self._replay,
                said_so_far=self._production.said_so_far,
                transform=self._transform if self._redacting else None,
                begin_with=self._begin_statements(),
                read_with=self._read_statements(),
                end_with=self._end_statements,
                supersede=turn.request.supersede,
                legacy_run_id=legacy_run_id(turn.identity) if settings.legacy_run_ids == "on" else None,
                log=deployment.log,
            )
        )

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1; of a finished turn, the one that finished it."""
        return self._log.attempt

    @property
    def created_at(self) -> str:
        """When the turn was begun, once it is claimed."""
        return "" if self._claimed is None else self._claimed.run.created_at

    @property
    def redacting(self) -> bool:
        """Whether the product redacts the answer: then what is said live is not what is stored."""
        return self._redacting

    @property
    def replayed(self) -> bool:
        """Whether the turn had finished before it was claimed."""
        return self._claimed is not None and self._claimed.lease is None

    async def claim(self) -> None:
        """Claim the turn; see `DurableTurnHandle.claim`."""
        claim = await self._handle.claim()
        epoch, (place, *history) = max(claim.run.epoch, 1), claim.rows
        spent = history.pop(0) if self._deployment.budgets else ()
        self._claimed = claim
        self._place = Place.of(place, epoch=epoch)
        if self._input.tracing is not None:
            self._input.tracing.claimed(tracing.found(place, attempt=epoch, replayed=claim.lease is None))
        self._log.begin(self._place, epoch)
        self._account.begin(epoch, spent)
        messages = [dict(row) for rows in history for row in rows]
        stored = recent(messages, self._deployment.settings.history_characters)
        self._production.begin(
            claim, self._place, stored if self._input.request.history is None else self._input.request.history
        )

    def abort(self) -> None:
        """Stop the turn: the model's connection is closed at once, and the turn ends as failed, `aborted`."""
        if not self._aborted:
            self._aborted = True
            if self._task is not None:
                self._task.cancel()

    def cancel(self, reason: str = CANCEL_REQUESTED) -> None:
        """Stop the turn for good: what it has said is its answer, and it ends as cancelled."""
        self._handle.cancel(reason)

    # What the log's writer tells, see `Listener`.

    def look(self) -> bool:
        """Look whether somebody in this isolate wants the turn stopped, or nobody reads it any more."""
        if self._log.cancel_requested:
            self.cancel()
        return self._attendance.end_if_unread()

    def told(self, news: Row, asked_at: float) -> None:
        """Learn from the database what others ask for."""
        if news["cancel_requested_at"] is not None:
            self.cancel()
        self._attendance.told(asked_at, followed=bool(news["followed"]))
        self._attendance.end_if_unread()

    def _lost(self) -> None:
        self._attendance.lost()
        self._writer.look()

    # Running.

    async def run(self, sink: Sink, *, joined: bool = False) -> None:
        """
        Run the turn to its end: every line goes to *sink*, which is closed.  Raises nothing but cancellation.

        What remains to be done after the last line, and must not delay it, is done before this returns.

        Args:
            sink: The reader.
            joined: Whether the reader has read the log so far, and needs not be told that the run has started.
        """
        self._task = asyncio.current_task()
        self._output = output = Output(sink, self._observer(), self._deployment.log)
        output.ping_every(ping_every_ms(self._deployment.settings.on_disconnect))
        if self._deployment.settings.on_disconnect != "continue":
            sink.when_lost(self._lost)
        marks: list[Statement] = []
        try:
            await self._claim_and_run(output, marks, joined=joined)
        finally:
            self._task = None
            output.stop_pings()
            # A reader that takes its time must not keep the marks from being written.
            await asyncio.gather(sink.close(), self._mark(marks)) if marks else await sink.close()
        await self._afterwards()

    async def _claim_and_run(self, output: Output, marks: list[Statement], *, joined: bool) -> None:
        deployment, log = self._deployment, None
        try:
            if self._aborted:
                await self._handle.abandon(TurnAborted("it was stopped before it began", run_id=self.run_id))
            if self._claimed is None:
                await self.claim()
            if not self.replayed:
                log = self._log
                deployment.live.add(self.run_id, log)
                self._writer.start()
            if log is not None:
                output.start_pings()
            self._say_first_words(output, joined=joined)
            await self._tell(output, marks)
        except asyncio.CancelledError:
            self._failure = TurnAborted("it was stopped", run_id=self.run_id)
            self._say_failure(output, self._failure)
            if not self._aborted:
                raise
        except Exception as error:  # noqa: BLE001 - the boundary: the reader gets a terminal line for everything
            self._failure = error
            deployment.log("turn.failed", {"run_id": self.run_id, "attempt": self.attempt, "error": error})
            self._say_failure(output, error)
        finally:
            output.stop_pings()
            self._writer.stop()
            if log is not None:
                deployment.live.remove(self.run_id, log)

    def _say_first_words(self, output: Output, *, joined: bool) -> None:
        """Say that the run has started: in the log if it begins here, else only to a reader who has not heard it."""
        identity, place = self._input.identity, self._place
        started = ChatStreamEvent(
            "session.run.started",
            {"sessionId": identity.session_id, "tenantId": identity.tenant_id, "turnIndex": identity.turn_index},
        )
        if self.replayed or not place.log_begins:
            if not joined:
                output.send(self._unlogged([started]), [started])
        else:
            self._say(output, [started])
        if place.interrupted and not self.replayed:
            data = {"attempt": self.attempt, "reason": "lease_lapsed"}
            self._say(output, [ChatStreamEvent("session.run.restarted", data)])

    async def _tell(self, output: Output, marks: list[Statement]) -> None:
        """Say what the turn says; everything that goes wrong is raised."""
        identity, handle = self._input.identity, self._handle
        async with aclosing(handle.stream) as stream:
            async for said in stream:
                output.send(said.lines, said.events)
                self._writer.said()
        if handle.replayed():
            end = TurnEnd(text=handle.final_text(), cancelled=handle.cancelled())
            words = ending_words(identity, end, replayed=True)
            output.send(self._unlogged(words), words)
            return
        stored, record = handle.stored(), handle.record()
        if stored is not None and stored.text and record is not None:
            cancelled = stored.cancelled is not None
            turn = finished_turn(identity, handle.final_text(), record, cancelled=cancelled)
            await self._outbox.deliver(turn, marks)
        self._say_last_words(output)

    def _say(self, output: Output, events: list[ChatStreamEvent]) -> None:
        output.send(self._log.extend(events), events)

    def _unlogged(self, events: list[ChatStreamEvent]) -> str:
        """Make lines that are in no log, and so have no place in it."""
        return "".join(encode_line(event, None, self.attempt) for event in events)

    def _say_last_words(self, output: Output) -> None:
        """Say how the turn ended, in the lines that are stored by now."""
        output.send("".join(self._ending.lines), self._ending.words)
        self._log.end(self._ending.lines)

    def _say_failure(self, output: Output, error: Exception) -> None:
        """Say how the turn ended: in the stored lines, or, if none are known to be stored, outside the log."""
        if self._handle.stored() is not None:
            self._say_last_words(output)
        else:
            words = failure_words(self._input.identity, kind_of(error))
            output.send(self._unlogged(words), words)

    async def _mark(self, marks: list[Statement]) -> None:
        try:
            await self._deployment.database.batch(marks)
        except StoreError as error:
            self._deployment.log("outbox.unmarked", {"run_id": self.run_id, "error": error})

    async def _afterwards(self) -> None:
        """Do what no reader waits for; every failure is logged, none leaves."""
        log, context = self._deployment.log, {"run_id": self.run_id}
        if await self._handle.settle_late():
            log("turn.settled_late", context)
        if self._claimed is not None and not self.replayed and self._handle.stored() is None:
            await self._account.record_late(self._deployment.database, self._production.usages)
        await self._writer.over()
        await self._production.keep_run(self._handle.stored())
        if self._input.tracing is not None:
            try:
                self._tell_end(self._input.tracing)
                await self._input.tracing.flush()
            except Exception as error:  # noqa: BLE001 - telemetry must never fail a turn
                log("telemetry.failed", {**context, "error": error})

    def _tell_end(self, listener: tracing.TurnTracing) -> None:
        tracing.tell_end(
            listener,
            self._handle.stored(),
            self._failure,
            self._account.all_calls(self._production.usages),
            replayed=self.replayed,
            provider=self._deployment.backend.kind,
            question=self._input.request.message,
        )

    # What the durable turn asks of the chat turn.

    async def _write(self, statements: Sequence[Statement]) -> list[Sequence[Row]]:
        return await self._handle.write(statements)

    async def _drain(self) -> None:
        if self._output is not None:
            await self._output.drain()

    def _replay(self, text: str) -> Said:
        events = [ChatStreamEvent("result", {"finalText": text})]
        return Said(events, self._unlogged(events))

    async def _transform(self, text: str) -> str:
        transformed = await call_in_time(self._deployment.hooks, "transform_final_text", text)
        if not isinstance(transformed, str):  # a `return` that was forgotten must not look like an empty answer
            raise HookError(f"returned {type(transformed).__name__}, not text", hook="transform_final_text")
        return transformed

    def _begin_statements(self) -> list[Statement]:
        turn, request = self._input, self._input.request
        metadata = json.dumps(request.metadata, ensure_ascii=False) if request.metadata else None
        begin = chat_sql.begin_turn(
            turn.identity,
            user_message=request.message,
            model=request.model,
            metadata_json=metadata,
            parameters_json=json.dumps(request.parameters, ensure_ascii=False) if request.parameters else None,
            history_json=None if request.history is None else json.dumps(list(request.history), ensure_ascii=False),
            trace=tracing.begin_with(turn.tracing),
        )
        return [begin, *([*self._outbox.forget(), chat_sql.forget_messages()] if request.supersede else [])]

    def _read_statements(self) -> list[Statement]:
        turn, turns = self._input, self._deployment.settings.history_turns
        reads = [chat_sql.read_place(self.run_id), *self._account.read_with()]
        if turns and turn.identity.turn_index and turn.request.history is None:
            reads.append(chat_sql.read_history(turn.identity, self.run_id, turns))
        return reads

    def _end_statements(self, end: TurnEnd) -> list[Statement]:
        # From here on the last write has all lines from the first that is not known to be stored: a write of the next
        # ones that overtook it would store them twice.
        self._writer.stop()
        production, checkpoints = self._production, self._production.has_checkpoints
        return [
            *self._account.last_statements(end, production.usages, went_on=production.went_on, checkpoints=checkpoints),
            *self._ending.statements(end, checkpoints=checkpoints),
            *tracing.end_with(self._input.tracing, end),
        ]

    def _observer(self) -> Callable[[ChatStreamEvent], None] | None:
        hooks = self._deployment.hooks
        return functools.partial(hooks.on_event, self._input.identity) if overrides(hooks, "on_event") else None
