"""The chat of one deployment: what the HTTP routes ask for, done with its settings, product and database."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from chatturn.backends import AgentExecutionBackend
from chatturn.chat import statements as chat_sql
from chatturn.chat.engine import durable_chat_turn_engine
from chatturn.chat.hooks import ChatTurnHooks
from chatturn.chat.identity import ChatTurnIdentity, legacy_run_id, turn_run_id
from chatturn.chat.outbox import Outbox
from chatturn.chat.request import RunChatTurnInput, TurnRequest, TurnView
from chatturn.chat.sink import NoSink
from chatturn.chat.turn import ChatTurn
from chatturn.databases import Database, Row
from chatturn.databases.migration import read_version
from chatturn.databases.schema import DURABLE_SCHEMA_VERSION
from chatturn.durable.rows import run_from_row
from chatturn.durable.sql import SqlRunStore
from chatturn.errors import ChatTurnError, DurableRunLeaseHeldError, RunNotFound, SchemaOutdated
from chatturn.records import EventRecord, RunStatus
from chatturn.settings import Settings
from chatturn.telemetry import NULL_TRACER
from chatturn.telemetry.logs import Log
from chatturn.telemetry.otlp import Exporter
from chatturn.telemetry.spans import SpanRecorder

__all__ = ["DurableChatService", "TurnTraces"]

_RESUME_PAUSES_S: Final = (0.0, 1.0, 3.0)
"""A turn that is just being suspended has a lease for a moment longer, and may have missed the event."""

_RESUMED_PER_SWEEP: Final = 5
_DAY_MS: Final = 86_400_000
_DUE_PER_SWEEP: Final = 20
"""More than are resumed, so that a few that cannot be resumed do not hold up the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTraces:
    """Where one request's spans gather, and where they go."""

    recorder: SpanRecorder
    exporter: Exporter

    async def flush(self) -> None:
        """Send what has gathered; never raises."""
        await self.exporter.flush(self.recorder)


async def _no_flush() -> None:
    """Flush nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DurableChatService:
    """
    Durable chat turns of one deployment, for one request.

    Attributes:
        settings: The deployment's settings.
        hooks: Its product's hooks.
        backend: Its model.
        database: Its database.
        log: Takes failures that no client is told.
        traces: The request's; None where traces go nowhere.
    """

    settings: Settings
    hooks: ChatTurnHooks
    backend: AgentExecutionBackend
    database: Database
    log: Log
    traces: TurnTraces | None = None

    async def open(self, identity: ChatTurnIdentity, request: TurnRequest) -> ChatTurn:
        """Claim a turn, ready to run; see `DurableChatTurnEngine.open`."""
        settings, traces = self.settings, self.traces
        flush: Callable[[], Awaitable[None]] = _no_flush if traces is None else traces.flush
        return await durable_chat_turn_engine.open(
            RunChatTurnInput(
                identity=identity,
                user_message=request.message,
                model=request.model,
                default_model=settings.model or None,
                project_id=settings.project_id,
                domain=settings.domain,
                database=self.database,
                store=SqlRunStore(self.database),
                hooks=self.hooks,
                backend=self.backend,
                metadata=request.metadata,
                history_turns=settings.history_turns,
                history_characters=settings.history_characters,
                supersede=request.supersede,
                legacy_run_ids=settings.legacy_run_ids == "on",
                on_disconnect=settings.on_disconnect,
                lease_ms=settings.lease_ms,
                tracer=NULL_TRACER if traces is None else traces.recorder,
                trace_id=None if traces is None else traces.recorder.trace_id,
                trace_flush=flush,
                log=self.log,
            )
        )

    async def show(self, identity: ChatTurnIdentity) -> TurnView | None:
        """Return the turn's run, or None if this tenant has none there."""
        legacy = legacy_run_id(identity) if self.settings.legacy_run_ids == "on" else None
        [outcome] = await self.database.batch([chat_sql.read_turn(turn_run_id(identity), legacy)])
        return _view(outcome.rows[0]) if outcome.rows else None

    async def check(self) -> None:
        """
        Look whether a turn could run.

        Raises:
            StoreUnavailable: The database does not answer.
            SchemaOutdated: Its tables are missing, or older than this code.
        """
        version = await read_version(self.database)
        if version < DURABLE_SCHEMA_VERSION:
            message = f"the schema is at version {version}, but this code needs {DURABLE_SCHEMA_VERSION}"
            raise SchemaOutdated(message)

    async def emit(self, tenant_id: str, run_id: str, key: str, payload: Any) -> tuple[bool, EventRecord]:
        """
        Record an event of a run of this tenant's; the first under its key wins.

        Returns:
            Whether this one was the first, and the one that is recorded.

        Raises:
            RunNotFound: This tenant has no such run; nothing was stored.
        """
        row = await self._asked(run_id)
        if row is None or row["tenant_id"] != tenant_id:
            raise RunNotFound("this tenant has none of that name", run_id=run_id)
        return await SqlRunStore(self.database).emit_event(run_id, key, payload)

    async def resume(self, run_id: str) -> bool:
        """
        Go on with a suspended turn, or one whose worker died, while nobody reads it.

        A turn that is running is left alone: it sees for itself what it waits for.  Raises nothing but
        cancellation.

        Returns:
            Whether it ran.
        """
        try:
            return await self._resume(run_id)
        except ChatTurnError as error:
            self.log("turn.not_resumed", {"run_id": run_id, "error": error})
            return False

    async def _resume(self, run_id: str) -> bool:
        for pause_s in _RESUME_PAUSES_S:
            await asyncio.sleep(pause_s)
            row = await self._asked(run_id)
            if row is None or row["status"] not in {RunStatus.SUSPENDED, RunStatus.RUNNING}:
                return False
            metadata, model = row["metadata_json"], row["model"]
            request = TurnRequest(
                message=str(row["user_message"]),
                model=None if model is None else str(model),
                metadata={} if metadata is None else json.loads(str(metadata)),
            )
            try:
                turn = await self.open(_identity(row), request)
            except DurableRunLeaseHeldError:
                continue
            await turn.run(NoSink())
            return True
        return False

    async def _asked(self, run_id: str) -> Row | None:
        [outcome] = await self.database.batch([chat_sql.read_turn_input(run_id)])
        return outcome.rows[0] if outcome.rows else None

    async def sweep(self) -> int:
        """
        Make the hook calls that are due, resume the turns that are, and delete runs that are too old.

        Of each a bounded number; returns how many calls and turns succeeded.
        """
        called = await Outbox(database=self.database, hooks=self.hooks, log=self.log).sweep()
        resumed = 0
        for run_id in await SqlRunStore(self.database).due_runs(_DUE_PER_SWEEP):
            resumed += await self.resume(run_id)
            if resumed == _RESUMED_PER_SWEEP:
                break
        if self.settings.retention_days:
            age_ms = self.settings.retention_days * _DAY_MS
            await SqlRunStore(self.database).delete_finished_runs(older_than_ms=age_ms)
        return called + resumed


def _identity(row: Row) -> ChatTurnIdentity:
    return ChatTurnIdentity(
        tenant_id=str(row["tenant_id"]),
        session_id=str(row["session_id"]),
        user_id=str(row["user_id"]),
        turn_index=int(row["turn_index"] or 0),
    )


def _view(row: Row) -> TurnView:
    run, model = run_from_row(row), row["model"]
    return TurnView(
        run_id=run.run_id,
        status=run.status,
        attempts=run.epoch,
        created_at=run.created_at,
        updated_at=run.updated_at,
        completed_at=run.completed_at,
        model=None if model is None else str(model),
        outcome=run.outcome,
    )
