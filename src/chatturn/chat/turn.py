"""
`ChatTurn`: the story of one chat turn, told in lines.

::

    claim ──▶ 409, 422, 503: before the first byte
      │
    run ──▶ session.run.started ──▶ producer's events ──▶ finish ──▶ hooks ──▶ session.run.completed
      │                                   │ fails       │ waits for long
      │                                   ▼             ▼
      │                                 error         session.run.suspended
      │                                   ▼
      │                                 session.run.failed
      └─(finished before)──▶ result ──▶ session.run.completed {replayed}

A turn pushes its lines and never waits for a reader who is gone.  Two awaited round trips to the database
for a fresh turn, one for a replay.
"""

import asyncio
import functools
import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final

from chatturn.backends import ChatMessage
from chatturn.canonical import canonical_hash
from chatturn.chat import statements as chat_sql
from chatturn.chat.agent import AgentProducer
from chatturn.chat.history import recent
from chatturn.chat.hooks import TurnContext
from chatturn.chat.identity import ChatTurnIdentity, legacy_run_id, turn_manifest, turn_run_id
from chatturn.chat.log import TurnLog
from chatturn.chat.outbox import Outbox, call_in_time, finished_turn, overrides
from chatturn.chat.output import Output
from chatturn.chat.producer import ChatProducer, Said
from chatturn.chat.request import RunChatTurnInput
from chatturn.chat.sink import Sink
from chatturn.databases import Statement
from chatturn.durable.context import DurableContext
from chatturn.durable.turn import RunDurableTurnOptions, TurnEnd, run_durable_turn
from chatturn.errors import ChatTurnError, StoreError, TurnAborted
from chatturn.events import ChatStreamEvent, encode_line
from chatturn.records import Claim, Wait
from chatturn.telemetry import AttributeValue
from chatturn.telemetry import conventions as names

__all__ = ["ChatTurn"]

_INLINE_WAIT_MS: Final = 2_000
"""A reader may be about to answer; beyond that, a worker that waits costs more than one that comes back."""


class ChatTurn:
    """
    One turn, from its claim to its terminal line.

    Attributes:
        run_id: Its run.
    """

    def __init__(self, turn: RunChatTurnInput) -> None:
        self.run_id = turn_run_id(turn.identity)
        self._input = turn
        self._outbox = Outbox(database=turn.database, hooks=turn.hooks, log=turn.log, moment=turn.moment)
        self._claimed: Claim | None = None
        self._producer: ChatProducer | None = None
        self._log = TurnLog(first_seq=0, attempt=1)
        self._history: Sequence[ChatMessage] = ()
        self._last_words: list[ChatStreamEvent] = []
        self._last_lines: list[str] = []
        self._task: asyncio.Task[object] | None = None
        self._aborted = False
        self._redacting = overrides(turn.hooks, "transform_final_text")
        self._durable: DurableContext | None = None
        self._handle = run_durable_turn(
            RunDurableTurnOptions(
                store=turn.store,
                run_id=self.run_id,
                manifest=turn_manifest(
                    turn.identity,
                    project_id=turn.project_id,
                    domain=turn.domain,
                    user_message=turn.user_message,
                    model=turn.model,
                ),
                worker_id=turn.worker_id,
                lease_ms=turn.lease_ms,
                intent=f"chat:turn-{turn.identity.turn_index}",
                produce=self._produce,
                replay_event=self._replay,
                transform=self._transform if self._redacting else None,
                begin_with=self._begin_statements(),
                read_with=self._read_statements(),
                end_with=self._end_statements,
                supersede=turn.supersede,
                legacy_run_id=legacy_run_id(turn.identity) if turn.legacy_run_ids else None,
                log=turn.log,
            )
        )

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1; of a finished turn, the one that finished it."""
        return self._log.attempt

    @property
    def replayed(self) -> bool:
        """Whether the turn had finished before it was claimed."""
        return self._claimed is not None and self._claimed.lease is None

    async def claim(self) -> None:
        """Claim the turn; see `DurableTurnHandle.claim`."""
        claim = await self._handle.claim()
        self._claimed = claim
        last, *history = claim.rows
        next_seq = int(last[0]["last_seq"]) + 1 if last else 0
        self._log = TurnLog(first_seq=next_seq, attempt=max(claim.run.epoch, 1), redacting=self._redacting)
        if history:
            self._history = recent([dict(row) for row in history[0]], self._input.history_characters)

    def abort(self) -> None:
        """Stop the turn: the model's connection is closed at once, and the turn ends as failed, `aborted`."""
        if not self._aborted:
            self._aborted = True
            if self._task is not None:
                self._task.cancel()

    async def run(self, sink: Sink) -> None:
        """
        Run the turn to its end: every line goes to *sink*, which is closed.  Raises nothing but cancellation.

        What remains to be done after the last line, and must not delay it, is done before this returns.
        """
        self._task = asyncio.current_task()
        if self._input.on_disconnect == "cancel":
            sink.when_lost(self.abort)
        output = Output(sink, self._observer(), self._input.log)
        marks: list[Statement] = []
        try:
            await self._claim_and_run(output, marks)
        finally:
            self._task = None
            output.stop_pings()
            # A reader that takes its time must not keep the marks from being written.
            await asyncio.gather(sink.close(), self._mark(marks)) if marks else await sink.close()
        await self._afterwards()

    async def _claim_and_run(self, output: Output, marks: list[Statement]) -> None:
        identity = self._input.identity
        started = {"sessionId": identity.session_id, "tenantId": identity.tenant_id, "turnIndex": identity.turn_index}
        try:
            if self._aborted:
                await self._handle.abandon(TurnAborted("it was stopped before it began", run_id=self.run_id))
            if self._claimed is None:
                await self.claim()
            self._say(output, [ChatStreamEvent("session.run.started", started)])
            output.start_pings()
            await self._tell(output, marks)
        except asyncio.CancelledError:
            self._say_failure(output, TurnAborted("it was stopped", run_id=self.run_id))
            if not self._aborted:
                raise
        except Exception as error:  # noqa: BLE001 - the boundary: the reader gets a terminal line for everything
            self._input.log("turn.failed", {"run_id": self.run_id, "attempt": self.attempt, "error": error})
            self._say_failure(output, error)
        finally:
            output.stop_pings()

    async def _tell(self, output: Output, marks: list[Statement]) -> None:
        """Say what the turn says; everything that goes wrong is raised."""
        tracer, identity = self._input.tracer, self._input.identity
        attributes: dict[str, AttributeValue] = {
            names.OPERATION_NAME: names.INVOKE_AGENT,
            names.AGENT_NAME: self._input.project_id,
            names.CONVERSATION_ID: identity.session_id,
            names.TURN_TENANT_ID: identity.tenant_id,
            names.TURN_RUN_ID: self.run_id,
            names.TURN_INDEX: identity.turn_index,
            names.TURN_ATTEMPT: self.attempt,
            names.TURN_REPLAYED: self.replayed,
        }
        with tracer.span(f"{names.INVOKE_AGENT} {self._input.project_id}", attributes=attributes):
            async with aclosing(self._handle.stream) as stream:
                async for said in stream:
                    output.send(said.lines, said.events)
                    await output.drain()
        if self._handle.replayed():
            self._say(output, self._completed())
            return
        stored, record = self._handle.stored(), self._handle.record()
        if stored is not None and stored.wait is None and record is not None:
            await self._outbox.deliver(finished_turn(identity, self._handle.final_text(), record), marks)
        output.send("".join(self._last_lines), self._last_words)

    def _say(self, output: Output, events: list[ChatStreamEvent]) -> None:
        output.send(self._unlogged(events) if self.replayed else self._log.extend(events), events)

    def _unlogged(self, events: list[ChatStreamEvent]) -> str:
        """Make lines that are in no log, and so have no place in it."""
        return "".join(encode_line(event, None, self.attempt) for event in events)

    def _say_failure(self, output: Output, error: Exception) -> None:
        """Say how the turn ended: in the stored lines, or, if none are known to be stored, outside the log."""
        if self._handle.stored() is not None:
            output.send("".join(self._last_lines), self._last_words)
        else:
            words = _failure(self._input.identity, error)
            output.send(self._unlogged(words), words)

    async def _mark(self, marks: list[Statement]) -> None:
        try:
            await self._input.database.batch(marks)
        except StoreError as error:
            self._input.log("outbox.unmarked", {"run_id": self.run_id, "error": error})

    async def _afterwards(self) -> None:
        """Do what no reader waits for; every failure is logged, none leaves."""
        log, context = self._input.log, {"run_id": self.run_id}
        if await self._handle.settle_late():
            log("turn.settled_late", context)
        try:
            await self._input.trace_flush()
        except Exception as error:  # noqa: BLE001 - telemetry must never fail a turn
            log("traces.unflushed", {**context, "error": error})

    # What the durable turn asks of the chat turn.

    def _produce(self) -> ChatProducer:
        turn = self._input
        self._durable = durable = self._steps()
        context = TurnContext(
            identity=turn.identity,
            user_message=turn.user_message,
            model=turn.model or turn.default_model,
            history=self._history,
            metadata=turn.metadata,
            attempt=self.attempt,
            request_id=canonical_hash([self.run_id, self.attempt]),
            backend=turn.backend,
            durable=durable,
            tracer=turn.tracer,
            log=turn.log,
        )
        tools, instructions = turn.hooks.tools, turn.hooks.instructions
        producer = AgentProducer(context, tools, instructions) if tools else turn.hooks.produce(context)
        self._producer = ChatProducer(producer, self._log, turn.log)
        return self._producer

    def _steps(self) -> DurableContext:
        """Return the run's steps after the turn itself."""
        turn, claim = self._input, self._claimed
        return DurableContext(
            store=turn.store,
            lease=None if claim is None else claim.lease,
            run_id=self.run_id,
            project_id=turn.project_id,
            scenario_id=turn.identity.session_id,
            recorded=() if claim is None else claim.steps,
            sources=turn.sources,
            inline_wait_ms=_INLINE_WAIT_MS,
            log=turn.log,
            first_position=1,
        )

    def _replay(self, text: str) -> Said:
        events = [ChatStreamEvent("result", {"finalText": text})]
        return Said(events, self._unlogged(events))

    async def _transform(self, text: str) -> str:
        transformed: str = await call_in_time(self._input.hooks, "transform_final_text", text)
        return transformed

    def _begin_statements(self) -> list[Statement]:
        turn = self._input
        metadata = json.dumps(dict(turn.metadata), ensure_ascii=False) if turn.metadata else None
        begin = chat_sql.begin_turn(
            turn.identity,
            user_message=turn.user_message,
            model=turn.model,
            metadata_json=metadata,
            trace_id=turn.trace_id,
        )
        return [begin, *([*self._outbox.forget(), chat_sql.forget_messages()] if turn.supersede else [])]

    def _read_statements(self) -> list[Statement]:
        turn = self._input
        reads = [chat_sql.read_last_seq(self.run_id)]
        if turn.history_turns and turn.identity.turn_index:
            reads.append(chat_sql.read_history(turn.identity, self.run_id, turn.history_turns))
        return reads

    def _end_statements(self, end: TurnEnd) -> list[Statement]:
        """Make the last write's companions: the log with its terminal line, messages, usage, hook calls."""
        if end.wait is not None:
            self._last_words = [_suspended(self._input.identity, end.wait)]
        elif end.text is None:
            self._last_words = _failure(self._input.identity, end.error)
        else:
            self._last_words = self._completed()
        self._last_lines = self._log.preview(self._last_words)
        usages = self._producer.usages if self._producer is not None else []
        moment = self._input.moment()
        return [
            *self._log.statements(self._last_lines, end.text),
            *chat_sql.record_usage(self.attempt, usages, moment),
            *([] if end.text is None else [chat_sql.record_messages(end.text, moment)]),
            *([] if end.text is None else self._outbox.statements(self.attempt)),
            *([] if end.text is None else self._forget_checkpoints()),
        ]

    def _forget_checkpoints(self) -> list[Statement]:
        """Forget what was said on the way to the answer, where a product redacts: no redactor has seen it."""
        checkpoints = self._durable is not None and self._durable.steps()
        return [chat_sql.forget_checkpoints()] if checkpoints and self._redacting else []

    def _completed(self) -> list[ChatStreamEvent]:
        data = {"sessionId": self._input.identity.session_id, "replayed": self.replayed}
        return [ChatStreamEvent("session.run.completed", data)]

    def _observer(self) -> Callable[[ChatStreamEvent], None] | None:
        hooks = self._input.hooks
        return functools.partial(hooks.on_event, self._input.identity) if overrides(hooks, "on_event") else None


def _suspended(identity: ChatTurnIdentity, wait: Wait) -> ChatStreamEvent:
    """Make the last line of a turn that waits."""
    members = {"sessionId": identity.session_id, "key": wait.key, "wakeAt": wait.wake_at}
    return ChatStreamEvent("session.run.suspended", members)


def _failure(identity: ChatTurnIdentity, error: BaseException | None) -> list[ChatStreamEvent]:
    """Make the lines of a failed turn: codes and fixed sentences, never what the error says."""
    kind = type(error) if isinstance(error, ChatTurnError) else ChatTurnError
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        kind = TurnAborted
    reason = {"code": kind.code, "message": kind.public, "retryable": kind.retryable}
    return [
        ChatStreamEvent("error", reason),
        ChatStreamEvent("session.run.failed", {"sessionId": identity.session_id, **reason}),
    ]
