"""What a chat turn is run from: values, resolved by whoever owns the request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from chatturn.backends.api import AgentExecutionBackend, ChatMessage
from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.chat.identity import ChatTurnIdentity, turn_manifest
from chatturn.chat.log.live import LiveLogs
from chatturn.chat.log.query_budget import Pace, log_pace
from chatturn.chat.turn.tracing import TurnTracing
from chatturn.chat.usage.calls import Budgets
from chatturn.chat.usage.totals import Sums
from chatturn.database.api import Database
from chatturn.durable.context import ContextSources
from chatturn.durable.heartbeat import RENEWALS_PER_TERM
from chatturn.durable.records import DurableRunManifest, RunOutcome
from chatturn.durable.runner import default_sources
from chatturn.durable.store import DurableRunStore
from chatturn.jsontext.canonical import derive_worker_id
from chatturn.settings import DisconnectPolicy
from chatturn.telemetry.operator_log import OperatorLog, print_log
from chatturn.usage.prices import PriceTable

__all__ = ["CANCELLED", "Cancellation", "RunChatTurnInput", "TurnRequest", "TurnView"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """
    What a user says, within the limits.

    Attributes:
        message: Neither blank nor too long, storable as UTF-8.
        model: The model asked for, or None for the deployment's.
        metadata: The caller's own, JSON.
        history: The conversation before the message, where the request brings its own; None: the session's is it.
        supersede: Start the turn anew if it was started with another message or model.
        follow: Show what is being answered already, instead of refusing.
    """

    message: str
    model: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    history: Sequence[ChatMessage] | None = None
    supersede: bool = False
    follow: bool = False


CANCELLED: Final = "cancelled"
"""The status of a turn that was stopped; its run is completed, with what the turn had said by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnView:
    """
    A turn's run as its owner may see it; timestamps as in the records, the answer left out.

    Attributes:
        usage: What it consumed, where that was asked for.
    """

    run_id: str
    status: str
    attempts: int
    created_at: str
    updated_at: str
    completed_at: str | None
    model: str | None
    outcome: RunOutcome | None
    usage: Sums | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """
    What came of the wish to stop a turn.

    Attributes:
        requested: Whether it is on its way; False for a turn that was over.
        turn: As it stood then.
    """

    requested: bool
    turn: TurnView


@dataclass(frozen=True, slots=True, kw_only=True)
class RunChatTurnInput:
    """
    One turn to run: resolved values only, no request and no platform.

    Attributes:
        identity: Whose turn, where in which thread.
        user_message: Part of the turn's identity: another message at the same position is refused.
        model: The model that the request names, or None; part of the turn's identity too.
        default_model: The deployment's model, for a request that names none; changing it changes no identity.
        project_id: The product.
        domain: Its domain.
        database: Where the chat tables are.
        store: Its durable runs.
        hooks: The product's.
        backend: What the product's `produce` may call.
        metadata: The request's, for the hooks.
        history: The conversation before the message, as the request brings it, and then part of the turn's identity;
            None: the session's finished turns are it.
        history_turns: How many finished turns of the session `produce` is shown, at most.
        history_characters: How many characters of them, at most.
        supersede: Start the turn anew if it was started with another message or model.
        legacy_run_ids: Take a turn that has no run for agent-runtime's, if that has one; for a database
            that it shares with that engine, and only of one tenant.
        worker_id: Who runs it; a fresh one by default.
        on_disconnect: What the reader's going away does to the turn: nothing, or it is cancelled, at once or after
            a grace; not while somebody else reads it.
        grace_ms: How long that is.
        most_attempts: How often the turn is tried; those that ended in a wait are not counted.
        lease_ms: How long the worker may be silent towards the store.
        renewals_per_term: How often its lease is renewed in that time.
        live: The logs of this isolate, for followers.
        log_pace: How often the turn's log is stored.
        prices: What models cost.
        budgets: What may be spent.
        sources: Of undetermined values, for a producer's durable steps.
        tracing: Its telemetry; None: nobody listens.
        log: Takes failures that the reader is not told.
    """

    identity: ChatTurnIdentity
    user_message: str
    project_id: str
    domain: str
    database: Database
    store: DurableRunStore
    hooks: ChatTurnHooks
    backend: AgentExecutionBackend
    model: str | None = None
    default_model: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[ChatMessage] | None = None
    history_turns: int = 20
    history_characters: int = 100_000
    supersede: bool = False
    legacy_run_ids: bool = False
    worker_id: str = field(default_factory=derive_worker_id)
    on_disconnect: DisconnectPolicy = "continue"
    grace_ms: int = 30_000
    most_attempts: int = 10
    lease_ms: int = 60_000
    renewals_per_term: float = RENEWALS_PER_TERM
    live: LiveLogs = field(default_factory=LiveLogs)
    log_pace: Pace = field(default_factory=lambda: log_pace("paid", 250))
    prices: PriceTable = field(default_factory=PriceTable)
    budgets: Budgets = Budgets()
    sources: ContextSources = field(default_factory=default_sources)
    tracing: TurnTracing | None = None
    log: OperatorLog = print_log

    @property
    def manifest(self) -> DurableRunManifest:
        """What makes it this turn: another one at its place is refused."""
        return turn_manifest(
            self.identity,
            project_id=self.project_id,
            domain=self.domain,
            user_message=self.user_message,
            model=self.model,
            history=self.history,
        )
