"""The chat of one deployment: what the HTTP routes ask for, done with its settings, product and database."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from chatturn.backends import AgentExecutionBackend
from chatturn.chat import statements as chat_sql
from chatturn.chat.engine import durable_chat_turn_engine
from chatturn.chat.hooks import ChatTurnHooks
from chatturn.chat.identity import ChatTurnIdentity, turn_run_id
from chatturn.chat.outbox import Outbox
from chatturn.chat.request import RunChatTurnInput, TurnRequest, TurnView
from chatturn.chat.turn import ChatTurn
from chatturn.databases import Database, Row
from chatturn.durable.rows import run_from_row
from chatturn.durable.sql import SCHEMA_VERSION, SqlRunStore
from chatturn.errors import SchemaOutdated
from chatturn.settings import Settings
from chatturn.telemetry import NULL_TRACER
from chatturn.telemetry.logs import Log
from chatturn.telemetry.otlp import Exporter
from chatturn.telemetry.spans import SpanRecorder

__all__ = ["DurableChatService", "TurnTraces"]


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
        [outcome] = await self.database.batch([chat_sql.read_turn(turn_run_id(identity))])
        return _view(outcome.rows[0]) if outcome.rows else None

    async def check(self) -> None:
        """
        Look whether a turn could run.

        Raises:
            StoreUnavailable: The database does not answer.
            SchemaOutdated: Its tables are missing, or older than this code.
        """
        version = await SqlRunStore(self.database).schema_version()
        if version < SCHEMA_VERSION:
            message = f"the schema is at version {version}, but this code needs {SCHEMA_VERSION}"
            raise SchemaOutdated(message)

    async def sweep(self) -> int:
        """Make the hook calls that are due, a bounded number; return how many succeeded."""
        return await Outbox(database=self.database, hooks=self.hooks, log=self.log).sweep()


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
