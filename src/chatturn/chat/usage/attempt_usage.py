"""
The account of one attempt: what its model calls consume, put on record with whatever the turn writes next.

A call is on record soon after it has begun, with the log; when it is over, with the step that keeps it, if there is
one; and in any case with the attempt's last write.  So a worker that dies leaves behind what it had paid for.  Only
the call that it was making may be missing, and the attempt after it makes up for that: every attempt whose worker
was lost has one call that is ``lost``, of which nothing is known, unless the worker comes back and says what it was.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from chatturn.chat.identity import ChatTurnIdentity, session_run_ids
from chatturn.chat.usage import sql
from chatturn.chat.usage.calls import Budgets, ModelCall, count
from chatturn.database.api import Database, Row, Statement
from chatturn.durable.settling import TurnEnd
from chatturn.errors import BudgetExceeded, StoreError
from chatturn.telemetry.operator_log import OperatorLog
from chatturn.usage.prices import PriceTable

__all__ = ["Account"]

_SCOPES: Final = ("turn", "session", "tenant")


class Account:
    """
    What one attempt consumes: the `Meter` of its calls, and what of them is put on record with which write.

    Args:
        run_id: The turn's run.
        identity: Whose turn.
        model: Who is asked, as far as that is known.
        prices: The deployment's.
        budgets: The deployment's budgets.
        log: Takes what cannot be recorded, or counted.

    Attributes:
        calls: The attempt's, in the order in which they began.
    """

    def __init__(
        self,
        run_id: str,
        identity: ChatTurnIdentity,
        *,
        model: str | None,
        prices: PriceTable,
        budgets: Budgets,
        log: OperatorLog,
    ) -> None:
        self.calls: list[ModelCall] = []
        self._run_id = run_id
        self._identity = identity
        self._model = model
        self._prices = prices
        self._budgets = budgets
        self._log = log
        self._attempt = 1
        self._spent: Mapping[str, int] = {}
        self._follows = False
        self._on_record: dict[int, str] = {}
        self._on_its_way: dict[int, str] = {}

    def read_with(self) -> list[Statement]:
        """Return what the claim has to read: what was spent so far, if there is a limit."""
        identity = self._identity
        scopes = [scope for scope in _SCOPES if getattr(self._budgets, scope)]
        if not scopes:
            return []
        session = session_run_ids(identity.tenant_id, identity.session_id)
        return [sql.read_spent(self._run_id, session, identity.tenant_id, scopes=scopes)]

    def begin(self, attempt: int, spent: Sequence[Row]) -> None:
        """Take what the claim found; *spent* is of `read_with`."""
        self._attempt = attempt
        self._spent = {scope: int(value or 0) for row in spent for scope, value in row.items()}
        self._follows = attempt > 1

    # Counting.

    def call(self, model: str | None, request_id: str) -> ModelCall:
        """Begin a call; see `Meter.call`."""
        self._require_budget()
        call = ModelCall(
            attempt=self._attempt,
            index=len(self.calls),
            prices=self._prices,
            model=model or self._model,
            request_id=request_id,
        )
        self.calls.append(call)
        return call

    def _require_budget(self) -> None:
        own = sum(call.cost_micro_usd or 0 for call in self.calls)
        for scope in _SCOPES:
            limit, spent = getattr(self._budgets, scope), self._spent.get(scope, 0) + own
            if limit and spent >= limit:
                message = f"the {scope} has spent {spent} micro-dollars of {limit}"
                raise BudgetExceeded(message, run_id=self._run_id, scope=scope)

    def all_calls(self, said: Sequence[Mapping[str, Any]]) -> list[ModelCall]:
        """
        Return all calls that the attempt knows of.

        Args:
            said: The data of all ``usage`` events that were said.  One that no call has reported is about a call of
                its own, which the product's producer has made; one of an attempt before is on record.
        """
        calls = [replace(call, outcome="cancelled") if call.outcome == "running" else call for call in self.calls]
        reported = Counter(call.said_as() for call in calls)
        for usage in said:
            if (count(usage, "attempt") or self._attempt) < self._attempt:
                continue
            call = ModelCall(attempt=self._attempt, index=len(calls), prices=self._prices, outcome="completed")
            call.reported(usage)
            if reported[call.said_as()]:
                reported[call.said_as()] -= 1
            else:
                calls.append(call)
        return calls

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

    def last_statements(
        self, end: TurnEnd, said: Sequence[Mapping[str, Any]], *, went_on: bool, checkpoints: bool
    ) -> list[Statement]:
        """
        Return the statements for the attempt's last write.

        Args:
            end: How the attempt ends.
            said: The data of its ``usage`` events.
            went_on: Whether its answer begins with what attempts before it had said.
            checkpoints: Whether it rests on steps, of this attempt or others; they are still there.
        """
        delivered = bool(end.text) or end.wait is not None
        calls = self.all_calls(said)
        self._tell(calls)
        return [
            *self._losses(),
            *self._record(calls, delivered=delivered),
            *([sql.deliver_continued(self._attempt)] if delivered and went_on else []),
            *([sql.deliver_checkpoints()] if delivered and checkpoints else []),
        ]

    async def record_late(self, database: Database, said: Sequence[Mapping[str, Any]]) -> None:
        """Put on record what no write of the turn could: the lease is another worker's, or the database was away."""
        calls = self.all_calls(said)
        self._tell(calls)
        try:
            await database.batch(sql.record_calls_late(self._run_id, self._attempt, calls, self._identity))
        except StoreError as error:
            self._log("usage.unrecorded", {"run_id": self._run_id, "calls": list(map(_shown, calls)), "error": error})

    def _unrecorded(self) -> list[ModelCall]:
        return [call for call in self.calls if self._on_record.get(call.index) != call.outcome]

    def _losses(self) -> list[Statement]:
        if not self._follows:
            return []
        return sql.lose_calls(self._attempt, self._model, self._identity)

    def _record(self, calls: Sequence[ModelCall], *, delivered: bool) -> list[Statement]:
        return sql.record_calls(calls, self._identity, delivered=delivered)

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
