"""Values: what is asked of a turn, and what is told about a turn."""

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Self

from chatturn.backends.api import ChatMessage
from chatturn.chat.deployment import Deployment
from chatturn.chat.listeners import TurnTracing
from chatturn.chat.parts import Part
from chatturn.chat.thread.identity import ChatTurnIdentity, session_run_ids, turn_manifest, turn_run_id
from chatturn.chat.thread.versions import Choice, Replace
from chatturn.chat.usage.totals import Sums
from chatturn.database.api import Row
from chatturn.durable.records import DurableRunManifest, RunOutcome, RunStatus
from chatturn.durable.rows import run_from_row
from chatturn.errors import ChatTurnError
from chatturn.settings import WhenBusy

__all__ = ["CANCELLED", "Cancellation", "TurnInput", "TurnRequest", "TurnView", "history_of", "history_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """
    What a user says, within the limits.

    Attributes:
        message: Not too long, storable as UTF-8; of a message with parts, their text, which may be "".
        parts: The message's parts, where it is more than text; see `chatturn.chat.parts`.
        model: The model asked for, or None for the deployment's.
        metadata: The caller's own, JSON.
        history: The conversation before the message, where the request brings its own; None: the session's is it.
        behind: What follows the message in that conversation: calls of the client's tools, and their results.
        parameters: How the model is to answer; see `chatturn.backends.parameters`.
        supersede: Start the turn anew if it was started with another message or model.
        follow: Show a turn that is being answered already, instead of refusing.
        replace: The version that the turn replaces; None for none.
        when_busy: What happens while another turn of the session is open; None for what the deployment says.
        stays: Whether the message keeps its index even if another message is open there.
    """

    message: str
    parts: Sequence[Part] = ()
    model: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    history: Sequence[ChatMessage] | None = None
    behind: Sequence[ChatMessage] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    supersede: bool = False
    follow: bool = False
    replace: Replace | None = None
    when_busy: WhenBusy | None = None
    stays: bool = False


def history_text(request: TurnRequest) -> str | None:
    """Return the conversation that a request brings, as it is stored; None for none."""
    before, behind = request.history, list(request.behind)
    if not behind:
        return None if before is None else json.dumps(list(before), ensure_ascii=False)
    said = {"before": None if before is None else list(before), "behind": behind}
    return json.dumps(said, ensure_ascii=False)


def history_of(text: str | None) -> tuple[Sequence[ChatMessage] | None, Sequence[ChatMessage]]:
    """Return what a request brought before its message, and behind it, of what is stored."""
    said = None if text is None else json.loads(text)
    return (said["before"], said["behind"]) if isinstance(said, dict) else (said, ())


CANCELLED: Final = "cancelled"
"""The status of a turn that was stopped; its run is completed, with what the turn had said by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnView:
    """
    A turn's run as its owner may see it; timestamps as in the records, the answer left out.

    Attributes:
        finish_reason: Why its answer ended; None where it has none, or nobody said.
        version: Which version of the turn it is, from 1.
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
    finish_reason: str | None = None
    version: int = 1
    usage: Sums | None = None

    @classmethod
    def of(cls, row: Row) -> Self:
        """Read the row of a turn and its run."""
        run, model, reason = run_from_row(row), row["model"], row["finish_reason"]
        status = RunStatus.FAILED if row["unanswered"] else run.status
        return cls(
            run_id=run.run_id,
            status=CANCELLED if row["cancelled_at"] is not None else status,
            attempts=run.epoch,
            created_at=run.created_at,
            updated_at=run.updated_at,
            completed_at=run.completed_at,
            model=None if model is None else str(model),
            outcome=run.outcome,
            finish_reason=None if reason is None else str(reason),
            version=int(row["version"] or 1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """
    What came of the wish to stop a turn.

    Attributes:
        requested: Whether the turn will stop; False for a turn that was over.
        turn: The turn's state at that moment.
    """

    requested: bool
    turn: TurnView


@dataclass(frozen=True, kw_only=True)
class TurnInput:
    """
    One turn to run: no request, and no platform.

    Attributes:
        deployment: The product, with its model and its database.
        identity: Whose turn, and its place in its thread.
        request: What the user says.
        tracing: The turn's telemetry; None: nobody listens.
        asked_again: Whether the deployment itself repeats the stored request; it may go on with any turn.
        choice: The version of the turn that the request is about, where that was looked up.
        asked_at_index: The index at which it was asked, if another message is open there; None for its own index.
        may_wait: Whether the turn may wait for its start; else it is refused where it would have to.
        waits_as: The holder of the wait that goes on; None for a new one.
        resume: Goes on with another turn, given its run id, that no worker has; None where that is not possible.
        refusal: What a turn that is neither finished nor running is refused with; None: it may begin.
    """

    deployment: Deployment
    identity: ChatTurnIdentity
    request: TurnRequest
    tracing: TurnTracing | None = None
    asked_again: bool = False
    choice: Choice | None = None
    asked_at_index: int | None = None
    may_wait: bool = True
    waits_as: str | None = None
    resume: Callable[[str], Coroutine[Any, Any, bool]] | None = None
    refusal: ChatTurnError | None = None

    @cached_property
    def run_id(self) -> str:
        """The turn's run."""
        return turn_run_id(self.identity)

    @cached_property
    def manifest(self) -> DurableRunManifest:
        """The turn's manifest; a request with another manifest at the same place is refused."""
        settings, request = self.deployment.settings, self.request
        return turn_manifest(
            self.identity,
            project_id=settings.project_id,
            domain=settings.domain,
            user_message=request.message,
            model=request.model,
            history=request.history,
            behind=request.behind,
            parameters=request.parameters,
            parts=request.parts,
        )

    @cached_property
    def when_busy(self) -> WhenBusy:
        """What happens while another turn of the session is open."""
        settings = self.deployment.settings
        if settings.threads == "off" or settings.legacy_run_ids == "on":
            return "parallel"
        if self.asked_again:  # the turn keeps its place in the queue
            return "queue"
        return self.request.when_busy or settings.when_busy

    @cached_property
    def session(self) -> str:
        """What the runs of its session begin with."""
        return session_run_ids(self.identity.tenant_id, self.identity.session_id)[0]

    @cached_property
    def model(self) -> str | None:
        """The model that is asked: the request's, else the deployment's.  Changing that changes no identity."""
        return self.request.model or self.deployment.settings.model or None
