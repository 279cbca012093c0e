"""
What the model calls of one attempt consume, put on record with whatever the turn writes next.

A call is on record soon after it has begun, with the log; when it is over, with the step that keeps it, if there is
one; and in any case with the attempt's last write.  So a worker that dies leaves behind what it had paid for.  Only
the call that it was making may be missing, and the attempt after it makes up for that: every attempt whose worker
was lost has one call that is ``lost``, of which nothing is known, unless the worker comes back and says what it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from chatturn.chat.requests import TurnInput
from chatturn.chat.usage import sql
from chatturn.chat.usage.calls import ModelCall
from chatturn.database.api import Database, Row, Statement
from chatturn.durable.ends import End, Suspended, answer_of
from chatturn.errors import BudgetExceeded, StoreError, UnpricedModel
from chatturn.settings import names_in

__all__ = ["MAX_REPORTS", "AttemptUsage", "begin_with", "read_with"]

MAX_REPORTS: Final = 2_000
"""Calls that a producer may report for the ledger: all are stored with the answer, in one parameter of a statement."""

_RESERVED_TOKENS_OUT: Final = 1_000
"""Tokens reserved for an answer where the request does not say how long it may be."""

_SCOPES: Final = ("turn", "session", "tenant")


def read_with(turn: TurnInput) -> list[Statement]:
    """Return the statement with which the claim reads what was spent so far; none without a budget."""
    identity, budgets = turn.identity, turn.deployment.budgets
    scopes = [scope for scope in _SCOPES if getattr(budgets, scope)]
    if not scopes:
        return []
    return [sql.read_spent(turn.run_id, identity.tenant_id, identity.session_id, scopes=scopes)]


def begin_with(turn: TurnInput) -> list[Statement]:
    """Return the statement with which the claim reserves the turn's estimated cost; none without a shared budget."""
    deployment = turn.deployment
    if not (deployment.budgets.session or deployment.budgets.tenant):
        return []
    price = deployment.prices.for_budgets(names_in(turn.model or ""))
    if price is None:  # no call is made
        return []
    said = turn.request.parameters
    tokens_out = said.get("max_completion_tokens") or said.get("max_tokens") or _RESERVED_TOKENS_OUT
    return [sql.reserve(price.estimate(len(turn.request.message), int(tokens_out)))]


class AttemptUsage:
    """
    What one attempt consumes: the `Meter` of its calls, and what of them is put on record with which write.

    Args:
        turn: The turn.
        attempt: The number of the attempt, from 1.
        spent: The rows of `read_with`.

    Attributes:
        calls: The attempt's, in the order in which they began.
    """

    def __init__(self, turn: TurnInput, attempt: int, spent: Sequence[Row]) -> None:
        self.calls: list[ModelCall] = []
        self._run_id = turn.run_id
        self._identity = turn.identity
        self._model = turn.model
        self._prices = turn.deployment.prices
        self._budgets = turn.deployment.budgets
        self._log = turn.deployment.log
        self._attempt = attempt
        self._spent = {scope: int(value or 0) for row in spent for scope, value in row.items()}
        self._follows = attempt > 1
        self._reports = 0
        self._on_record: dict[int, str] = {}
        self._on_its_way: dict[int, str] = {}
        self._told: set[int] = set()

    # Counting.

    def call(self, model: str | None, request_id: str) -> ModelCall:
        """Begin a call; see `Meter.call`."""
        self._require_budget(model or self._model)
        call = ModelCall(
            attempt=self._attempt,
            index=len(self.calls),
            prices=self._prices,
            model=model or self._model,
            request_id=request_id,
        )
        self.calls.append(call)
        return call

    def _require_budget(self, model: str | None) -> None:
        if self._budgets and self._prices.for_budgets(names_in(model or "")) is None:
            raise UnpricedModel(f"{model!r} has no price", run_id=self._run_id)
        own = sum(call.cost_micro_usd or call.estimated_cost_micro_usd or 0 for call in self.calls)
        for scope in _SCOPES:
            limit, spent = getattr(self._budgets, scope), self._spent.get(scope, 0) + own
            if limit and spent >= limit:
                message = f"the {scope} has spent {spent} micro-dollars of {limit}"
                raise BudgetExceeded(message, run_id=self._run_id, scope=scope)

    def report(self, usage: Mapping[str, Any]) -> int | None:
        """Take a call that was made elsewhere, of the first `MAX_REPORTS`; see `Meter.report`."""
        if self._reports >= MAX_REPORTS:
            if self._reports == MAX_REPORTS:
                self._log("usage.unrecorded", {"level": "warning", "most": MAX_REPORTS})
            self._reports = MAX_REPORTS + 1
            return None
        self._reports += 1
        call = ModelCall(attempt=self._attempt, index=len(self.calls), prices=self._prices, outcome="completed")
        call.reported(usage)
        self.calls.append(call)
        return call.index

    @property
    def finish_reason(self) -> str | None:
        """Why the latest model call that said so has ended."""
        reasons = [call.finish_reason for call in self.all_calls() if call.finish_reason is not None]
        return reasons[-1] if reasons else None

    def all_calls(self) -> list[ModelCall]:
        """Return all calls that the attempt knows of, as they are when it ends; what was said of them bills nothing."""
        return [replace(call, outcome="cancelled") if call.outcome == "running" else call for call in self.calls]

    # Recording.

    def news(self) -> list[Statement]:
        """Return the statements for what is not known to be on record, for any write of the turn."""
        return [*self._losses(), *self._record(self._unrecorded(), delivered=False)]

    def unrecorded(self) -> list[Statement]:
        """Return the same for the log's writer, which says when they were run; it has one write at a time."""
        self._on_its_way = {call.index: call.outcome for call in self._unrecorded()}
        return self.news()

    def recorded(self) -> None:
        """Take note that what `unrecorded` returned is on record."""
        self._follows = False
        self._on_record |= self._on_its_way

    def last_statements(self, end: End, *, went_on: bool, checkpoints: bool) -> list[Statement]:
        """
        Return the statements for the attempt's last write.

        Args:
            end: How the attempt ends.
            went_on: Whether the answer begins with the text of an earlier attempt.
            checkpoints: Whether the answer rests on stored steps, of this attempt or of earlier ones.
        """
        delivered = bool(answer_of(end)) or isinstance(end, Suspended)
        calls = self.all_calls()
        self._tell(calls)
        return [
            *self._losses(),
            *self._record(calls, delivered=delivered),
            *([sql.deliver_continued(self._attempt)] if delivered and went_on else []),
            *([sql.deliver_checkpoints()] if delivered and checkpoints else []),
        ]

    async def record_late(self, database: Database, begun: str) -> None:
        """
        Put on record what no write of the turn could: the lease is another worker's, or the database was away.

        Args:
            database: Where the ledger is.
            begun: When the turn was begun, by which it is told from another one of its name.
        """
        calls = self.all_calls()
        self._tell(calls)
        try:
            await database.batch(sql.record_calls_late(self._run_id, begun, self._attempt, calls, self._identity))
        except StoreError as error:
            self._log("usage.unrecorded", {"run_id": self._run_id, "calls": list(map(_shown, calls)), "error": error})

    def _unrecorded(self) -> list[ModelCall]:
        return [call for call in self.calls if self._on_record.get(call.index) != call.outcome]

    def _losses(self) -> list[Statement]:
        if not self._follows:
            return []
        return sql.lose_calls(self._attempt, self._model, self._identity)

    def _record(self, calls: Sequence[ModelCall], *, delivered: bool) -> list[Statement]:
        if not calls:
            return []
        told = {call.index for call in calls}
        new = self._told.isdisjoint(told)
        self._told |= told
        return sql.record_calls(calls, self._identity, delivered=delivered, new=new)

    def _tell(self, calls: Sequence[ModelCall]) -> None:
        """Say what about calls cannot be known."""
        for call in calls:
            if call.unusable:
                self._report("usage.unusable", call, counts=call.unusable)
            elif call.outcome != "completed":
                continue
            elif call.tokens_in is None or call.tokens_out is None:
                self._report("usage.unreported", call)
            elif call.cost_micro_usd is None:
                self._report("usage.unpriced", call)

    def _report(self, what: str, call: ModelCall, **particulars: object) -> None:
        """Log it, once for each model: the ledger has the others."""
        if self._prices.is_news(what, call.model or ""):
            self._log(what, {"level": "warning", "run_id": self._run_id, "model": call.model, **particulars})


def _shown(call: ModelCall) -> dict[str, Any]:
    names = ("attempt", "index", "model", "outcome", "tokens_in", "tokens_out", "cost_micro_usd")
    return {name: getattr(call, name) for name in names}
