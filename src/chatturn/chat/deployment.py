"""The value that all turns of one Worker share: settings, hooks, model, database."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Protocol, Self

from chatturn.backends.api import AgentExecutionBackend, taken_by
from chatturn.backends.parameters import TOOLS, allowed_parameters
from chatturn.chat.files import Files, FileStore
from chatturn.chat.hooks.attempts import AttemptListener
from chatturn.chat.hooks.hooks import ChatTurnHooks
from chatturn.chat.hooks.outbox import overrides
from chatturn.chat.log.live import Alarm, EventAlarm, LiveLogs
from chatturn.chat.log.query_budget import RENEWALS_PER_TERM, Pace, log_pace
from chatturn.chat.log.room import Room, reading_room, sending_room
from chatturn.chat.parts import Part, needs_of
from chatturn.chat.thread.identity import ChatTurnIdentity, legacy_run_id
from chatturn.chat.thread.their_sql import Theirs
from chatturn.chat.usage.calls import Budgets
from chatturn.database.api import Database
from chatturn.database.fullness import WriteProbe
from chatturn.durable.context import ContextSources
from chatturn.durable.runner import default_sources
from chatturn.durable.sql_store import SqlRunStore
from chatturn.errors import InvalidField
from chatturn.settings import Settings, names_in
from chatturn.telemetry.operator_log import OperatorLog, print_log
from chatturn.usage.prices import PriceTable

__all__ = ["Deployment"]

_NAMES_OF_NEEDS: Final[Mapping[str, str]] = {
    "file_data": "files",
    "file_url": "files by their address; send the file itself",
    "image_data": "images",
    "image_url": "images by their address; send the image itself",
}


class _Asked(Protocol):
    """What of a `chatturn.chat.requests.TurnRequest` a deployment may object to."""

    @property
    def model(self) -> str | None: ...

    @property
    def parameters(self) -> Mapping[str, Any]: ...

    @property
    def parts(self) -> Sequence[Part]: ...


_UNASKED_EVERY_MS: Final = 2_000


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """
    One product with its model and its database.

    Attributes:
        settings: What the operator has decided.
        hooks: The product's.
        backend: The model that the product's `produce` may call.
        database: Where everything is stored.
        log: Takes failures that no client is told.
        prices: What models cost.
        live: The logs of the turns that run in this isolate, for followers.
        reading: Room for the pages of logs that followers in this isolate read.
        sending: Room for text that followers were sent and have not taken.
        probe: Tries whether the database can be written.
        alarm: Makes the alarm that wakes a follower in this isolate.
        sources: Of undetermined values, for durable steps.
        attempt_listeners: Functions that are told of each attempt that ended, beside the product's own hook.
        turns_at_once: How many turns one invocation may run; they share its queries.
        file_store: The store of files that are too large for a message; None where no files are kept.
    """

    settings: Settings
    hooks: ChatTurnHooks
    backend: AgentExecutionBackend
    database: Database
    log: OperatorLog = print_log
    prices: PriceTable = field(default_factory=PriceTable)
    live: LiveLogs = field(default_factory=LiveLogs)
    reading: Room = field(default_factory=reading_room)
    sending: Room = field(default_factory=sending_room)
    probe: WriteProbe = field(default_factory=lambda: WriteProbe(time.monotonic))
    alarm: Callable[[], Alarm] = EventAlarm
    sources: ContextSources = field(default_factory=default_sources)
    attempt_listeners: Mapping[str, AttemptListener] = field(default_factory=dict)
    turns_at_once: int = 1
    file_store: FileStore | None = None

    @cached_property
    def files(self) -> Files:
        """The files that messages may name."""
        settings = self.settings
        owned = settings.session_owner == "subject"
        return Files(project_id=settings.project_id, store=self.file_store, owned=owned)

    def may_have_theirs(self, session_id: str) -> bool:
        """Say whether agent-runtime may have turns of a session; their ids would not tell where a colon in it ends."""
        return self.settings.legacy_run_ids == "on" and ":" not in session_id

    def theirs(self, identity: ChatTurnIdentity) -> Theirs | None:
        """Return where agent-runtime may have a turn; it knows no versions."""
        run_id = legacy_run_id(identity) if self.may_have_theirs(identity.session_id) else None
        return None if run_id is None or identity.version > 1 else Theirs(run_id, self.settings.project_id)

    @cached_property
    def store(self) -> SqlRunStore:
        """The durable runs in the database."""
        return SqlRunStore(self.database, run_bound_keys=self.settings.threads == "on")

    @cached_property
    def log_pace(self) -> Pace:
        """How often a turn's log is stored; more rarely where nobody asked for the turn, and many share the queries."""
        every_ms = self.settings.log_every_ms
        if self.turns_at_once > 1 and every_ms:
            every_ms = max(every_ms, _UNASKED_EVERY_MS)
        return log_pace(self.settings.workers_plan, every_ms, turns=self.turns_at_once)

    @property
    def renewals_per_term(self) -> float:
        """How often a lease is renewed in its term."""
        return RENEWALS_PER_TERM[self.settings.workers_plan]

    @cached_property
    def budgets(self) -> Budgets:
        """What may be spent on models."""
        settings = self.settings
        return Budgets(
            turn=settings.budget_turn_micro_usd,
            session=settings.budget_session_micro_usd,
            tenant=settings.budget_tenant_day_micro_usd,
        )

    def objection(self, request: _Asked) -> InvalidField | None:
        """
        Return why a request may not name its model, say its parameters, or have its parts; None if it may.

        Raises:
            ConfigurationError: ``ALLOW_PARAMETERS`` cannot be read.
        """
        settings, model = self.settings, request.model
        if settings.models and model is not None and model not in names_in(f"{settings.models},{settings.model}"):
            return InvalidField("model is none that may be named here; GET /v1/models has them", field="model")
        for name in request.parameters:
            if not self.may_say(name):
                return InvalidField(f"parameters.{name} may not be said here", field=f"parameters.{name}")
        needs = needs_of(request.parts)
        if needs and (missing := needs - taken_by(self.backend, model or settings.model or None)):
            return InvalidField(f"the model takes no {_NAMES_OF_NEEDS[min(missing)]}", field="message")
        return self._objection_to_tools(request.parameters.get(TOOLS, ()))

    def _objection_to_tools(self, tools: Sequence[Mapping[str, Any]]) -> InvalidField | None:
        names = [tool["function"]["name"] for tool in tools]
        if len(set(names)) < len(names):
            return InvalidField("parameters.tools has two of the same name", field="parameters.tools")
        if taken := sorted({tool.name for tool in self.hooks.tools} & set(names)):
            return InvalidField(f"parameters.tools: {taken[0]} is a tool of the product's", field="parameters.tools")
        return None

    def may_say(self, parameter: str) -> bool:
        """Say whether a request may say a parameter."""
        if parameter == TOOLS and not self.takes_client_tools:
            return False
        return parameter in allowed_parameters(self.settings.allow_parameters)

    @property
    def takes_client_tools(self) -> bool:
        """Whether the product lets a request bring tools: no product does that redacts."""
        return self.hooks.client_tools and not overrides(self.hooks, "transform_final_text")

    def running(self, turns_at_once: int) -> Self:
        """Return the same deployment for an invocation that runs *turns_at_once* turns beside each other."""
        return replace(self, turns_at_once=turns_at_once)
