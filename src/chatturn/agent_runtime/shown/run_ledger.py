"""
The ledger of one run: what was done for whom, what it cost, and how it ended.

A handle takes the run's `RuntimeStreamEvent`s and counts the model calls; whoever runs the task ends the run and stores
its row.  A number that a call did not report is unknown, which is not 0: a sum with an unknown part says so, and a sum
without a known part is None.  Estimates are not added to measured costs.  Only the adapter does I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chatturn.agent_runtime.shown.runs import (
    TRANSITIONS,
    RuntimeRunCompleteInput,
    RuntimeRunCost,
    RuntimeRunOptions,
    RuntimeRunPersistenceAdapter,
    RuntimeRunRow,
    RuntimeRunStateError,
    RuntimeRunStatus,
    count_of,
)
from chatturn.agent_runtime.values.events import LlmCallEvent, RuntimeStreamEvent
from chatturn.errors import ValidationError
from chatturn.timestamps import iso_timestamp
from chatturn.usage.money import micro_usd

__all__ = [
    "RuntimeRunCompleteInput",
    "RuntimeRunCost",
    "RuntimeRunHandle",
    "RuntimeRunOptions",
    "RuntimeRunPersistenceAdapter",
    "RuntimeRunRow",
    "RuntimeRunStateError",
    "RuntimeRunStatus",
    "start_runtime_run",
]


def start_runtime_run(options: RuntimeRunOptions) -> "RuntimeRunHandle":
    """
    Start a run.

    Raises:
        ValidationError: The workspace or the task has no id, or the run neither an id nor a token.
    """
    return RuntimeRunHandle(options)


@dataclass(slots=True)
class _Sum:
    """
    A sum of which parts may be unknown.

    Attributes:
        known: The sum of the known parts; None if there is none.
        missing: The number of unknown parts.
    """

    known: int | None = None
    missing: int = 0

    def add(self, part: int | None) -> None:
        if part is None:
            self.missing += 1
        else:
            self.known = part + (self.known or 0)

    def replace(self, total: int | None) -> None:
        if total is not None:
            self.known, self.missing = total, 0

    def total(self) -> int | None:
        """Return the sum of the known parts: 0 if there is no part at all, None if every part is unknown."""
        return self.known if self.known is not None or self.missing else 0


class RuntimeRunHandle:
    """
    One run of one task, from its start to its row.

    Attributes:
        id: The row's id.
        workspace_id: The workspace that the run belongs to.
        session_id: The thread, or None.
        task_spec: The run's task.
    """

    def __init__(self, options: RuntimeRunOptions) -> None:
        if not options.workspace_id:
            raise ValidationError("a run needs a workspace_id")
        if not options.task_spec.id:
            raise ValidationError("a run's task needs an id")
        self.id = options.id or _default_id(options)
        self.workspace_id = options.workspace_id
        self.session_id = options.session_id
        self.task_spec = options.task_spec
        self._status = RuntimeRunStatus.RUNNING
        self._options = options
        self._started_ms = options.now_ms()
        self._ended_ms: int | None = None
        self._end: RuntimeRunCompleteInput | None = None
        self._tokens_in, self._tokens_out, self._cost, self._estimated = _Sum(), _Sum(), _Sum(), _Sum()
        self._calls = 0

    @property
    def status(self) -> RuntimeRunStatus:
        """The run's status."""
        return self._status

    def observe(self, event: RuntimeStreamEvent) -> None:
        """
        Take the run's next event; only an `llm_call` counts.

        A call that is told after the run's end counts too: it was paid for.
        """
        if not isinstance(event, LlmCallEvent):
            return
        self._calls += 1
        self._tokens_in.add(count_of(event.tokens_in))
        self._tokens_out.add(count_of(event.tokens_out))
        cost = micro_usd(event.cost_usd)
        self._cost.add(cost)
        estimate = self._options.estimate
        if cost is None and estimate is not None:
            self._estimated.add(count_of(estimate(event)))

    def cost(self) -> RuntimeRunCost:
        """Return what the run has cost so far."""
        ended_ms = self._options.now_ms() if self._ended_ms is None else self._ended_ms
        return RuntimeRunCost(
            tokens_in=self._tokens_in.total(),
            tokens_out=self._tokens_out.total(),
            cost_micro_usd=self._cost.total(),
            wall_ms=max(0, ended_ms - self._started_ms),
            llm_calls=self._calls,
            tokens_known=not (self._tokens_in.missing or self._tokens_out.missing),
            usd_known=not self._cost.missing,
            estimated_micro_usd=self._estimated.known,
        )

    def complete(self, end: RuntimeRunCompleteInput) -> None:
        """
        End the run.  A second end with the same status changes nothing: the first end stays.

        Raises:
            ValidationError: The status is ``running``.
            RuntimeRunStateError: The run has ended with another status.
        """
        if TRANSITIONS[end.status]:
            raise ValidationError(f"a run does not end as {end.status}")
        if self._status == end.status:
            return
        if end.status not in TRANSITIONS[self._status]:
            raise RuntimeRunStateError(f"the run has ended as {self._status}, so it cannot end as {end.status}")
        self._status, self._end, self._ended_ms = end.status, end, self._options.now_ms()
        if end.cost is not None:
            self._replace(end.cost)

    def to_row(self, metadata: Mapping[str, Any] | None = None) -> RuntimeRunRow:
        """Return the row as it is now; *metadata* replace those of the end with the same names."""
        end, options = self._end, self._options
        merged = {**((end and end.metadata) or {}), **(metadata or {})}
        return RuntimeRunRow(
            id=self.id,
            workspace_id=self.workspace_id,
            session_id=self.session_id,
            agent_id=options.agent_id,
            domain=self.task_spec.domain,
            task_id=self.task_spec.id,
            scenario_id=options.scenario_id,
            status=self._status,
            result_summary=None if end is None else end.result_summary,
            error=None if end is None else end.error,
            cost=self.cost(),
            started_at=iso_timestamp(self._started_ms),
            completed_at=None if self._ended_ms is None else iso_timestamp(self._ended_ms),
            metadata=merged or None,
        )

    async def persist(self, metadata: Mapping[str, Any] | None = None) -> None:
        """
        Store the row, as often as wanted; *metadata* replace those of the end with the same names.

        Raises:
            RuntimeRunStateError: The run has not ended.
            Exception: What the adapter raises.
        """
        if TRANSITIONS[self._status]:
            raise RuntimeRunStateError("the run has not ended, so there is no row to store yet")
        if self._options.adapter is not None:
            await self._options.adapter.upsert(self.to_row(metadata))

    def _replace(self, cost: RuntimeRunCost) -> None:
        if cost.llm_calls not in {None, self._calls}:
            # The given number of calls is not that of the events, so the sums of the events have unknown parts.
            for sum_ in (self._tokens_in, self._tokens_out, self._cost):
                sum_.add(None)
        self._calls = self._calls if cost.llm_calls is None else cost.llm_calls
        self._tokens_in.replace(cost.tokens_in)
        self._tokens_out.replace(cost.tokens_out)
        self._cost.replace(cost.cost_micro_usd)
        self._estimated.replace(cost.estimated_micro_usd)


def _default_id(options: RuntimeRunOptions) -> str:
    if options.token is None:
        raise ValidationError("a run needs an id, or a token to make one")
    return f"{options.task_spec.id}:{options.token()}"
